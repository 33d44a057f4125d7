//! A console that systemd starts: its units, its sockets, and links for root only; and the browser of a desktop.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use super::client::{Console, LIMIT, parse_link, start_call};
use crate::support::host::Host;
use crate::support::{Env, wait_until};

#[test]
fn console_units_are_installed_verified_and_removed() {
    let host = Host::new("console units");
    let env = &host.env;
    let ui = |words: &[&str]| host.program(&[&["kvmb", "ui"], words].concat());
    let dry = ui(&["install", "-n"]).run().assert_ok();
    assert!(dry.records().iter().all(|record| record["changed"] == true && record["dry_run"] == true), "{dry}");
    assert_eq!(fs::read_dir(env.path("units")).unwrap().count(), 0);
    ui(&["install", "--listen", "0.0.0.0:80"]).run().assert_code(2).assert_stderr_has("not a loopback address");

    let done = ui(&["install", "--read-only"]).run().assert_ok();
    assert_eq!(done.records().iter().filter(|record| record["changed"] == true).count(), 2, "{done}");
    let socket = fs::read_to_string(env.path("units/kvmb-ui.socket")).unwrap();
    for line in ["ListenStream=127.0.0.1:8420", "ListenStream=/run/kvmb-ui.sock", "SocketMode=0600"] {
        assert!(socket.lines().any(|known| known == line), "{socket}");
    }
    let service = fs::read_to_string(env.path("units/kvmb-ui.service")).unwrap();
    assert!(service.contains(" ui --system --read-only\n") && service.contains("KillMode=process"), "{service}");
    assert!(env.path("units/sockets.target.wants/kvmb-ui.socket").is_symlink());
    for unit in ["kvmb-ui.socket", "kvmb-ui.service"] {
        let path = format!("/etc/systemd/system/{unit}");
        let verified = host.program(&["systemd-analyze", "verify", "--man=no", &path]).run().assert_ok();
        assert!(!verified.stderr().contains("kvmb"), "{verified}");
    }
    let again = ui(&["install", "--read-only"]).run().assert_ok();
    assert!(again.records().iter().all(|record| record["changed"] == false), "{again}");

    ui(&["remove", "-n"]).run().assert_ok();
    assert!(env.path("units/kvmb-ui.socket").exists());
    ui(&["remove"]).run().assert_ok();
    ui(&["remove"]).run().assert_ok();
    assert_eq!(
        fs::read_dir(env.path("units")).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()).count(),
        0
    );
    let none = ui(&["--url"]).run().assert_code(1);
    assert!(none.stderr().contains("kvmb ui install"), "{none}");
}

#[test]
fn socket_activated_console_gives_links_only_to_root() {
    let env = Env::new("console socket");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    drop(taken);
    let folder = env.path("sockets");
    fs::create_dir(&folder).unwrap();
    let link = folder.join("links.sock");
    let kvmb = env.path("bin/kvmb").display().to_string();
    let words = ["-l", &address.to_string(), "-l", &link.display().to_string()];
    // systemd-socket-activate does not pass on the tests' environment by default.
    let names = ["HOME", "KVMB_RUNTIME_DIR", "KVMB_SCRATCH", "KVMB_DATA_DIR", "KVMB_CONFIG", "KVMB_LOG_FILE"];
    let names = names.iter().flat_map(|name| ["-E", *name]);
    let activated = env.program("systemd-socket-activate").args(words).args(names);
    let running = activated.args([&kvmb, "ui", "--system", "--idle", "4s"]).spawn();
    wait_until("the sockets are there", LIMIT, || link.exists());
    let url = || env.kvmb(["ui", "--url", "--link-socket"]).arg(&link);
    let first = url().run().assert_ok();
    let second = url().run().assert_ok().assert_stderr_has(&format!("ssh -L {0}:127.0.0.1:{0} ", address.port()));
    let (port, token) = parse_link(second.stdout()).unwrap();
    assert_eq!(port, address.port());
    let console = Console { running, port, token, cookie: String::new(), language: "en" };
    // The earlier link is invalid; a page without a session says how to get a link.
    let (_, void) = parse_link(first.stdout()).unwrap();
    console.get(&format!("/login?token={void}")).assert_status(401).assert_has("sudo kvmb ui --url");
    let console = console.opened();
    console.get("/settings").assert_status(200);
    let log = fs::read_to_string(env.log_file()).unwrap_or_default();
    assert!(!log.contains(&console.token) && !console.running.stderr_so_far().contains(&console.token));

    // Other users are refused, even if the socket's mode admits them.
    for (path, mode) in [(env.path(""), 0o711), (folder.clone(), 0o711), (link.clone(), 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let ask = "my $s = IO::Socket::UNIX->new(Peer => shift) or die qq(no socket: $!); print qq(connected\n), <$s>";
    let other = env.program("setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups", "perl"]);
    let other = other.args(["-MIO::Socket::UNIX", "-e", ask]).arg(&link).run().assert_ok();
    assert_eq!(other.stdout(), "connected\n", "{other}");

    // The console ends when idle; systemd would start it again.
    console.running.wait().assert_ok();
    env.kvmb(["ui", "--system"]).run().assert_code(2).assert_stderr_has("kvmb ui install");
}

#[test]
fn browser_opens_only_on_a_desktop() {
    let env = Env::new("console desktop");
    let seen = env.path("opened");
    let browser = env.path("bin/xdg-open");
    fs::write(&browser, format!("#!/bin/sh\nprintf '%s' \"$1\" >'{0}.new' && mv '{0}.new' '{0}'\n", seen.display()))
        .unwrap();
    fs::set_permissions(&browser, fs::Permissions::from_mode(0o755)).unwrap();
    let ui = |words: &[&str]| env.kvmb(["ui", "--listen", "127.0.0.1:0"]).args(words).env("KVMB_REPO", env.repo());
    let end = |console: Console| {
        console.get("/login").assert_status(401);
        console.running.interrupt();
        console.running.wait().assert_ok();
    };
    end(start_call(ui(&[]).env("DISPLAY", "").env("WAYLAND_DISPLAY", "")));
    end(start_call(ui(&["--no-open"]).env("DISPLAY", ":9")));
    end(start_call(ui(&[]).env("DISPLAY", ":9").env("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")));
    assert!(!seen.exists());
    let console = start_call(ui(&[]).env("WAYLAND_DISPLAY", "wayland-0"));
    wait_until("a browser is opened", LIMIT, || seen.exists());
    let link = fs::read_to_string(&seen).unwrap();
    assert_eq!(parse_link(&link).unwrap(), (console.port, console.token.clone()));
    end(console);
}

#[test]
fn ipv6_loopback_console_prints_its_ssh_tunnel_command() {
    let env = Env::new("console six");
    let running = env.kvmb(["ui", "--no-open", "--listen", "[::1]:0"]).spawn();
    wait_until("it prints how", LIMIT, || running.stderr_so_far().contains("ssh -L"));
    let said = running.stderr_so_far();
    let port = said.split("http://[::1]:").nth(1).unwrap().split('/').next().unwrap();
    assert!(said.contains(&format!("ssh -L '{port}:[::1]:{port}' ")), "{said}");
    running.interrupt();
    running.wait().assert_ok();
}
