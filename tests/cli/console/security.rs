//! Access control of the console: hosts, tokens, forms, limits.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use std::{fs, net};

use super::client::{Console, LIMIT, Page, form, open, start};
use crate::support::{Disk, Env, wait_until, wait_until_it_listens};
use rustix::process::Signal;

#[test]
fn foreign_host_headers_are_refused_first() {
    let env = Env::new("hosts");
    let console = start(&env, &[]);
    let link = format!("/login?token={}", console.token);
    let port = console.port;
    for host in
        ["evil.example.com", "evil.example.com:8420", "127.0.0.1.evil.example.com", "10.0.0.1", "localhost@x", ""]
    {
        for path in ["/", "/login", &link, "/style.css", "/nothing"] {
            let page = console.request("GET", path, &[("Host", host)], "");
            assert_eq!(page.status, 421, "{host} {path}: {page:?}");
            assert_eq!(page.header("set-cookie"), "");
        }
    }
    let twice = [("Host", "localhost"), ("Host", "evil.example.com")];
    assert!([400, 421].contains(&console.request("GET", "/", &twice, "").status));
    assert!([400, 421].contains(&console.request("GET", "/", &[], "").status), "no host at all");
    let absolute = console.request("GET", "http://evil.example.com/", &[("Host", "localhost")], "");
    assert_eq!(absolute.status, 421);
    // None of these requests has used up the token, and every loopback name is accepted.
    for host in ["localhost", "LOCALHOST:1", "[::1]:8420", &format!("127.0.0.1:{port}")] {
        assert_eq!(console.request("GET", "/", &[("Host", host)], "").status, 401, "{host}");
    }
    console.request("GET", &link, &[("Host", "localhost")], "").assert_status(303);
}

#[test]
fn requests_without_a_session_get_401_and_tokens_work_once() {
    let env = Env::new("tokens");
    let mut console = start(&env, &[]);
    for path in
        ["/", "/jobs", "/machines/vm1", "/style.css", "/nothing", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"]
    {
        console.get(path).assert_status(401).assert_has("kvmb ui");
    }
    console.post_raw("/backup", "m=vm1", &format!("http://{}", console.host())).assert_status(401);
    console.get("/login").assert_status(401).assert_has("works once");
    for guess in ["", "x", &"A".repeat(43), &console.token[1..], &console.token.to_lowercase()] {
        console.get(&format!("/login?token={guess}")).assert_status(401);
    }
    console.cookie = format!("kvmb-00000000={}", console.token);
    console.get("/").assert_status(401);

    let page = console.get(&format!("/login?token={}", console.token)).assert_status(303);
    let cookie = page.header("set-cookie").to_owned();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{cookie}");
    assert!(!cookie.contains(&console.token));
    console.get(&format!("/login?token={}", console.token)).assert_status(401).assert_has("already been used");
    console.cookie = cookie.split(';').next().unwrap().to_owned();
    let page = console.get("/").assert_status(200);
    assert!(!page.body.contains(&console.token) && !page.body.contains(console.cookie.split('=').nth(1).unwrap()));
    let log = fs::read_to_string(env.log_file()).unwrap();
    assert!(!log.contains(&console.token) && !log.contains(console.cookie.split('=').nth(1).unwrap()), "{log}");

    // Another console's cookie has another name; after a session has ended, there is a new link.
    let other = open(&env, &[]);
    assert_ne!(other.cookie.split('=').next(), console.cookie.split('=').next());
    console.post("/logout", &[]).assert_status(303);
    console.get("/").assert_status(401);
    let links = || console.running.stderr_so_far().matches("/login?token=").count();
    wait_until("a new link is printed", LIMIT, || links() == 2);
    other.get("/jobs").assert_status(200);
}

#[test]
fn other_loopback_address_and_link_on_another_site_open_a_session() {
    let env = Env::new("other loopback");
    let running = env.kvmb(["ui", "--no-open", "--listen", "127.0.0.2:0"]).limit(LIMIT).spawn();
    let place = || {
        let said = running.stderr_so_far();
        let (port, token) = said.split_once("http://127.0.0.2:")?.1.split_once("/login?token=")?;
        Some((port.to_owned(), token.lines().next()?.to_owned()))
    };
    wait_until("the link is printed", LIMIT, || place().is_some());
    let (port, token) = place().unwrap();
    // A terminal in the browser is on another site: after a redirect, the browser would not send the cookie.
    let mut stream = TcpStream::connect(format!("127.0.0.2:{port}")).unwrap();
    write!(
        stream,
        "GET /login?token={token} HTTP/1.1\r\nHost: 127.0.0.2:{port}\r\nSec-Fetch-Site: cross-site\r\n\
         Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let page = Page::parse(&answer).unwrap().assert_status(200).assert_has("content=\"0; url=/\"");
    assert!(page.header("set-cookie").starts_with("kvmb-"), "{page:?}");
}

#[test]
fn ended_session_ends_its_streams_and_cut_forms_are_refused() {
    let env = Env::new("ended streams");
    let console = open(&env, &[]);
    let body = format!("csrf={}{}", console.get("/jobs").field("csrf"), "&m=a".repeat(2000));
    console.post_raw("/backup", &body, &format!("http://{}", console.host())).assert_status(413);
    let mut stream = TcpStream::connect(("127.0.0.1", console.port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(
        stream,
        "GET /events?page=/jobs HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\nConnection: close\r\n\r\n",
        console.host(),
        console.cookie
    )
    .unwrap();
    stream.read_exact(&mut [0; 16]).unwrap();
    console.post("/logout", &[]).assert_status(303);
    stream.read_to_end(&mut Vec::new()).expect("the end of the stream");
}

#[test]
fn changes_require_a_same_origin_form_with_the_session_token() {
    let env = Env::new("forms");
    let console = open(&env, &[]);
    let (own, host) = (format!("http://{}", console.host()), console.host());
    let token = console.get("/jobs").field("csrf");
    let body = |token: &str| form(&[("csrf", token), ("set", "true"), ("pattern", "web*")]);
    console.post_raw("/selection", &body(&token), &own).assert_status(200).assert_has("web*");
    for (token, origin) in [
        ("", own.as_str()),
        ("x", &own),
        (&token, "null"),
        (&token, ""),
        (&token, "http://evil.example.com"),
        (&token, "http://127.0.0.1:1"),
        (&token, &format!("https://{host}")),
    ] {
        let page = console.post_raw("/selection", &body(token), origin);
        assert_eq!(page.status, 403, "{token} {origin}: {page:?}");
    }
    let send = |extra: &[(&str, &str)], kind: &str| {
        let headers: Vec<(&str, &str)> = [("Host", host.as_str()), ("Cookie", &console.cookie), ("Content-Type", kind)]
            .iter()
            .chain(extra)
            .copied()
            .collect();
        console.request("POST", "/selection", &headers, &body(&token)).status
    };
    let kind = "application/x-www-form-urlencoded";
    assert_eq!(send(&[("Origin", &own), ("Sec-Fetch-Site", "cross-site")], kind), 403);
    assert_eq!(send(&[("Origin", &own), ("Sec-Fetch-Site", "same-site")], kind), 403);
    assert_eq!(send(&[("Origin", &own)], "text/plain"), 403);
    assert_eq!(send(&[("Origin", &own)], "application/json"), 403);
    assert_eq!(send(&[("Sec-Fetch-Site", "same-origin")], kind), 200);
    // The form token of one session is invalid in another.
    let other = open(&env, &[]);
    other.post_raw("/selection", &body(&token), &format!("http://{}", other.host())).assert_status(403);
    // Actions cannot be requested by a link or by other methods.
    for path in [
        "/backup",
        "/settings/write",
        "/prune",
        "/drill",
        "/live-restores/vm1/abort",
        "/jobs/5f0c2a9e/cancel",
        "/logout",
        "/schedule/install",
    ] {
        assert!([404, 405].contains(&console.get(path).status), "{path}");
    }
    for method in ["PUT", "DELETE", "TRACE", "CONNECT"] {
        let status = console.request(method, "/jobs", &[("Host", &host), ("Cookie", &console.cookie)], "").status;
        assert!([400, 405].contains(&status), "{method}: {status}");
    }
    let away = console.get("/language?to=fr&back=//evil.example.com/").assert_status(303);
    assert_eq!(away.header("location"), "/");
}

#[test]
fn every_response_has_security_headers_and_no_inline_code() {
    let env = Env::new("headers");
    let machine = env.machine("kvmb-test-<b onclick=x>\"&'").disk(Disk::qcow2(1 << 20)).define();
    let console = open(&env, &[]);
    let name = machine
        .name()
        .replace('%', "%25")
        .replace('<', "%3C")
        .replace('>', "%3E")
        .replace('"', "%22")
        .replace(' ', "%20");
    let mut pages = vec![
        "/nothing".to_owned(),
        format!("/machines/{name}"),
        format!("/machines/{name}/drill"),
        "/style.css".into(),
        "/console.js".into(),
    ];
    let menu = ["/", "/machines", "/restore", "/jobs", "/server", "/schedule", "/retention", "/settings", "/doctor"];
    pages.extend(menu.map(str::to_owned));
    for path in &pages {
        let page = console.get(path);
        let policy = page.header("content-security-policy").to_owned();
        assert!(policy.starts_with("default-src 'none'; style-src 'self' 'sha256-"), "{path}: {policy}");
        for part in ["script-src 'self';", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        for (header, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "same-origin"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            assert_eq!(page.header(header), value, "{path}");
        }
        if path.ends_with(".css") || path.ends_with(".js") {
            continue;
        }
        assert_eq!(page.header("cache-control"), "no-store", "{path}");
        for inline in
            [" style=", "<style", "<script>", " onclick=\"", "javascript:", "http://", "https://", "<b onclick"]
        {
            assert!(!page.body.contains(inline), "{path} has {inline}: {}", page.body);
        }
    }
    console.get("/machines").assert_status(200).assert_has("kvmb-test-&lt;b onclick=x&gt;&quot;&amp;");
    console.get(&format!("/machines/{name}")).assert_status(200);
}

/// Opens a connection and sends the beginning of a request.
fn begin(console: &Console, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", console.port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

#[test]
fn body_size_request_time_and_connections_are_limited() {
    let env = Env::new("limits");
    let console = open(&env, &[]);
    let head = format!(
        "POST /selection HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\nOrigin: http://{0}\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n",
        console.host(),
        console.cookie
    );
    let large = format!("{head}Content-Length: 200000\r\n\r\ncsrf={}", "x".repeat(200_000));
    assert_eq!(console.send(large.as_bytes()).map(|page| page.status), Some(413));
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(100_000));
    assert!(console.send(long.as_bytes()).is_none_or(|page| (400..500).contains(&page.status)));

    // Slow clients, and more silent ones than connections are allowed: all of them are disconnected, and others are
    // served.
    let slow_body = begin(&console, &format!("{head}Content-Length: 100\r\n\r\ncsrf="));
    let slow_head = begin(&console, "GET / HTTP/1.1\r\nHost: loc");
    let silent: Vec<TcpStream> = (0..200).map(|_| begin(&console, "")).collect();
    let began = Instant::now();
    console.get("/jobs").assert_status(200);
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    let answer = |mut stream: TcpStream| {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        Page::parse(&bytes).map(|page| page.status)
    };
    assert_eq!(answer(slow_body), Some(408));
    assert!(answer(slow_head).is_none_or(|status| status == 408));
    drop(silent);
    console.get("/jobs").assert_status(200);
}

#[test]
fn read_only_console_shows_everything_and_changes_nothing() {
    let env = Env::new("read only");
    let _machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(1 << 20)).define();
    let console = open(&env, &["--read-only"]);
    let before = fs::read(env.config_file()).unwrap();
    for path in ["/", "/machines", "/machines/kvmb-test-vm1", "/schedule", "/settings", "/server", "/retention"] {
        let page = console.get(path).assert_status(200);
        let forms: Vec<&str> = page.body.split("method=\"post\" action=\"").skip(1).collect();
        let others = forms.iter().filter(|form| !form.starts_with("/logout") && !form.starts_with("/settings/review"));
        let buttons = others.filter(|form| form.split("</form>").next().unwrap().contains("<button")).count();
        assert_eq!(buttons, 0, "{path}: {}", page.body);
    }
    for path in [
        "/backup",
        "/selection",
        "/settings/review",
        "/settings/write",
        "/prune",
        "/drill",
        "/live-restores/x/continue",
        "/schedule/install",
        "/server/test",
    ] {
        console.post(path, &[("m", "kvmb-test-vm1"), ("set", "true")]).assert_status(403).assert_has("read-only");
    }
    assert_eq!(fs::read(env.config_file()).unwrap(), before);
    console.post("/logout", &[]).assert_status(303);
}

#[test]
fn console_listens_only_locally_and_ends_when_idle() {
    let env = Env::new("places");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8420"] {
        let call = env.kvmb(["ui", "--listen", address]);
        call.run().assert_code(2).assert_stderr_has("is not a loopback address");
    }
    env.kvmb(["ui", "--listen", "example.com:80"]).run().assert_code(2);
    let taken = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    env.kvmb(["ui", "--listen", &address]).run().assert_code(5).assert_stderr_has("use another port");

    let socket = env.path("ui.sock");
    let ui = || env.kvmb(["ui", "--socket"]).arg(&socket);
    let running = ui().spawn();
    wait_until_it_listens(&socket);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(Page::parse(&answer).map(|page| page.status), Some(401));
    ui().run().assert_code(5).assert_stderr_has("is in use");
    running.interrupt();
    running.wait().assert_ok();
    assert!(!socket.exists());
    ui().args(["--idle", "1s"]).run().assert_ok();
    // The socket of a killed console does not prevent a start.
    let killed = ui().spawn();
    wait_until_it_listens(&socket);
    killed.kill();
    assert!(killed.wait().ended_by(Signal::KILL) && socket.exists());
    let again = ui().spawn();
    wait_until_it_listens(&socket);
    again.interrupt();
    again.wait().assert_ok();
    env.assert_nothing_left();
}

#[test]
fn backups_outlive_the_console_and_are_logged() {
    let env = Env::new("survives");
    let machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(16 << 20)).define();
    machine.write("vda", 0, 4 << 20, 0x11);
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let console = open(&env, &[]);
    let page = console.post("/backup", &[("m", "kvmb-test-vm1"), ("limit_read", "1M")]).assert_status(303);
    let job = page.header("location").trim_start_matches("/jobs/").to_owned();
    console.running.interrupt();
    console.running.wait().assert_ok();
    let state = || env.kvmb(["jobs", "show", &job]).run().assert_ok().record_of("job");
    assert_eq!((&state()["status"], &state()["origin"]), (&"running".into(), &"console".into()));
    wait_until("the backup ends", LIMIT, || state()["status"] == "done");
    let log = fs::read_to_string(env.log_file()).unwrap();
    assert!(
        log.contains("console: kvmb backup '--limit-read=1M' -- kvmb-test-vm1")
            || log.contains("console: kvmb backup --limit-read=1M -- kvmb-test-vm1"),
        "{log}"
    );
}
