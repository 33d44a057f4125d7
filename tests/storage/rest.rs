//! Repositories on real REST servers: the contract of the storage, logins, TLS, and refused requests.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::fast;
use crate::support::http_server::{Certificates, HttpServer, has_rest_server};
use crate::support::proxy::{Proxy, Trouble};
use crate::support::scripted_http::{answer, answer_on_a_port, answer_on_a_socket};
use crate::support::{Env, faketime};
use kvmb::storage::http::{self, HttpContext, HttpCredentials};
use kvmb::storage::rest::{RestAddress, RestStorage};
use kvmb::storage::sftp::Secret;
use kvmb::storage::testing::{FaultStorage, conformance_without_overwriting};
use kvmb::storage::{Error, FileKind, LimitStorage, RetryPolicy, RetryStorage, Storage};

const NAME: &str = "aa0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";

fn at(url: &str, context: &HttpContext) -> RestStorage {
    RestStorage::new(RestAddress::parse(url).unwrap(), context).unwrap()
}

fn plain(url: &str) -> RestStorage {
    at(url, &HttpContext::default())
}

/// An account.
#[derive(Debug)]
struct Account(&'static str, &'static str);

impl HttpCredentials for Account {
    fn login(&self, user: Option<&str>) -> Result<Option<(String, Secret)>, String> {
        Ok(Some((user.unwrap_or(self.0).to_owned(), Secret::new(self.1.to_owned()))))
    }
}

#[track_caller]
fn server_error<T: std::fmt::Debug>(result: kvmb::storage::Result<T>) -> http::Error {
    match result {
        Err(Error::Http { source, .. }) => *source,
        other => panic!("not an error of the server: {other:?}"),
    }
}

#[test]
fn overwriting_rest_server_conforms() {
    let env = Env::new("rest-rclone");
    let server = HttpServer::rclone(&env, "server", [""; 0]);
    // Concurrently, because each creation waits a second.
    std::thread::scope(|scope| {
        scope.spawn(|| conformance_without_overwriting(&plain(&server.rest_url("plain"))));
        let below: Arc<dyn Storage> = Arc::new(plain(&server.rest_url("decorated")));
        let limited = Arc::new(LimitStorage::new(Arc::new(FaultStorage::new(below)), fast()));
        conformance_without_overwriting(&RetryStorage::new(limited, RetryPolicy::default(), Arc::default()));
    });
}

#[test]
fn non_overwriting_rest_server_conforms() {
    let env = Env::new("rest-server");
    if !has_rest_server() {
        // Debian 12 has no rest-server; rclone with --append-only is the closest substitute.
        return refuses_overwriting(&env, HttpServer::rclone(&env, "server", ["--append-only"]));
    }
    let server = HttpServer::rest_server(&env, "server", ["--no-auth", "--no-verify-upload"]);
    conformance_without_overwriting(&plain(&server.rest_url("plain")));
    let below: Arc<dyn Storage> = Arc::new(plain(&server.rest_url("decorated")));
    conformance_without_overwriting(&RetryStorage::new(below, RetryPolicy::default(), Arc::default()));
    refuses_overwriting(&env, HttpServer::rest_server(&env, "protected", ["--no-auth", "--append-only"]));
}

/// An append-only server: existing files are kept, except locks; writing the same again is not an error.
fn refuses_overwriting(_env: &Env, server: HttpServer) {
    let storage = plain(&server.rest_url("repo"));
    storage.create_layout().unwrap();
    storage.create(FileKind::Config, "", b"first").unwrap();
    assert!(matches!(storage.create(FileKind::Config, "", b"second"), Err(Error::Exists { .. })));
    storage.write(FileKind::Config, "", b"first").unwrap();
    for denied in [storage.write(FileKind::Config, "", b"second"), storage.remove(FileKind::Config, "")] {
        let error = server_error(denied);
        assert!(matches!(error, http::Error::Denied { .. }) && !error.is_transient(), "{error:?}");
    }
    assert_eq!(storage.read(FileKind::Config, "").unwrap(), b"first");
    // The SHA-256 of its content, which restic's server verifies.
    let lock = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    storage.write(FileKind::Lock, lock, b"x").unwrap();
    storage.remove(FileKind::Lock, lock).unwrap();
}

#[test]
fn only_the_right_password_opens_a_server() {
    let env = Env::new("rest-login");
    let server = HttpServer::rclone(&env, "server", ["--user", "keeper", "--pass", "swordfish"]);
    let url = server.rest_url("repo");
    let with = |url: &str, account: Account| {
        at(url, &HttpContext { credentials: Arc::new(account), ..HttpContext::default() }).create_layout()
    };
    with(&url, Account("keeper", "swordfish")).unwrap();
    with(&url.replace("127.0.0.1", "keeper@127.0.0.1"), Account("nobody", "swordfish")).unwrap();
    for refused in [plain(&url).create_layout(), with(&url, Account("keeper", "herring"))] {
        let error = server_error(refused);
        assert!(matches!(error, http::Error::Login { .. }) && !error.is_transient(), "{error:?}");
        assert!(!error.to_string().contains("herring"), "{error}");
    }
}

#[test]
fn server_certificate_is_checked_and_client_certificate_sent() {
    let env = Env::new("rest-tls");
    let certificates = Certificates::make(&env);
    let file = |name: &str| certificates.file(name).display().to_string();
    let [certificate, key, authority] = ["server.pem", "server.key", "ca.pem"].map(file);
    let tls = ["--cert", &certificate, "--key", &key];
    let server = HttpServer::rclone(&env, "server", tls);
    let url = server.rest_url("repo").replace("http:", "https:");
    let error = server_error(plain(&url).create_layout());
    assert!(matches!(error, http::Error::Certificate { .. }) && !error.is_transient(), "{error:?}");
    let context = HttpContext { ca_file: Some(certificates.file("ca.pem")), ..HttpContext::default() };
    at(&url, &context).create_layout().unwrap();
    // Not the certificate's name.
    let error = server_error(at(&url.replace("127.0.0.1", "localhost"), &context).create_layout());
    assert!(matches!(error, http::Error::Certificate { .. }), "{error:?}");
    let points = |url: &str| env.kvmb(["points", "-r", url, "--cacert", &authority, "--retry-for", "2s"]);
    let other_name = points(&url.replace("127.0.0.1", "localhost")).run().assert_code(1);
    other_name.assert_stderr_has("use a name of the server that its certificate contains");
    let expired = points(&url).env("LD_PRELOAD", faketime::library()).env("FAKETIME", "+9d").run().assert_code(1);
    expired.assert_stderr_has("if it is valid, check the clock of this host");
    // An unencrypted server does not speak TLS.
    let open = HttpServer::rclone(&env, "open", [""; 0]);
    let error = server_error(at(&open.rest_url("repo").replace("http:", "https:"), &context).create_layout());
    assert!(matches!(error, http::Error::Tls { .. }), "{error:?}");

    let strict = HttpServer::rclone(&env, "strict", tls.into_iter().chain(["--client-ca", &authority]));
    let url = strict.rest_url("repo").replace("http:", "https:");
    let error = server_error(at(&url, &context).create_layout());
    assert!(matches!(error, http::Error::ClientCertificate { .. }), "{error:?}");
    let context = HttpContext { client_certificate: Some(certificates.file("both.pem")), ..context };
    at(&url, &context).create_layout().unwrap();
    // An error names the incomplete file.
    let broken = HttpContext { client_certificate: Some(certificates.file("ca.pem")), ..HttpContext::default() };
    let error = RestStorage::new(RestAddress::parse(&url).unwrap(), &broken).unwrap_err();
    assert!(error.to_string().ends_with("ca.pem: it contains no private key"), "{error}");
}

#[test]
fn rest_storage_works_over_a_unix_socket() {
    let env = Env::new("rest-unix");
    let server = HttpServer::rclone(&env, "server", [""; 0]);
    // A socket that forwards to the port.
    let socket = env.path("rest.socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let port = server.port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let upstream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut up, mut down) = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || drop(std::io::copy(&mut &client, &mut up)));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut &upstream, &mut down);
                let _ = down.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    let storage = plain(&format!("rest:http+unix://{}:/repo/", socket.display()));
    storage.create_layout().unwrap();
    storage.write(FileKind::Pack, NAME, &[5; 300_000]).unwrap();
    assert_eq!(plain(&server.rest_url("repo")).read(FileKind::Pack, NAME).unwrap(), [5; 300_000]);
    assert_eq!(storage.list(FileKind::Pack).unwrap().len(), 1);
    let gone = plain(&format!("rest:http+unix://{}:/repo/", env.path("none.socket").display()));
    assert!(matches!(server_error(gone.create_layout()), http::Error::Unreachable { .. }));
}

#[test]
fn upload_stopped_by_the_gate_is_never_complete() {
    let env = Env::new("rest-gate");
    let server = HttpServer::rclone(&env, "server", [""; 0]);
    let storage = plain(&server.rest_url("repo"));
    storage.create_layout().unwrap();
    let contents = vec![7; 3 << 20];
    let passed = AtomicU64::new(0);
    let gate = |bytes: usize| {
        assert!(bytes <= 256 << 10, "{bytes} at once");
        passed.fetch_add(bytes as u64, Ordering::Relaxed);
        true
    };
    storage.write_gated(FileKind::Index, NAME, &contents, &gate).unwrap();
    assert_eq!(passed.load(Ordering::Relaxed), contents.len() as u64);
    // The last call of the gate has a size of zero: whether the file may get its name.
    let stopped = storage.write_gated(FileKind::Snapshot, NAME, &contents, &|bytes| bytes > 0);
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    // rclone keeps the beginning of an aborted upload, but reports its size.
    match storage.size(FileKind::Snapshot, NAME) {
        Ok(size) => assert!(size < contents.len() as u64, "{size}"),
        Err(error) => assert!(error.is_not_found(), "{error:?}"),
    }
    assert!(storage.read(FileKind::Index, NAME).unwrap() == contents);
}

#[test]
fn silent_server_times_out_and_cut_transfers_are_retried() {
    let env = Env::new("rest-trouble");
    let server = HttpServer::rclone(&env, "server", [""; 0]);
    let proxy = Proxy::start(server.port(), Duration::ZERO);
    let url = format!("rest:http://127.0.0.1:{}/repo/", proxy.port());
    let mut context = HttpContext::default();
    context.timeouts.silence = Duration::from_secs(2);
    let storage = at(&url, &context);
    storage.create_layout().unwrap();
    let contents = vec![3; 2 << 20];
    proxy.order(&[Trouble::Stall], 1000..(1 << 20), 1);
    let error = server_error(storage.write(FileKind::Pack, NAME, &contents));
    assert!(matches!(error, http::Error::Silent { .. }) && error.is_transient(), "{error:?}");

    // A run that must end waits less.
    let stop = Arc::new(AtomicBool::new(true));
    let mut context = HttpContext { stop, ..HttpContext::default() };
    context.timeouts.ending = Duration::from_millis(200);
    proxy.order(&[Trouble::Stall], 1000..(1 << 20), 2);
    let begun = Instant::now();
    let stopped = at(&url, &context).write(FileKind::Pack, NAME, &contents);
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());

    let patient = RetryStorage::new(Arc::new(storage), RetryPolicy::default(), Arc::default());
    proxy.order(&[Trouble::Cut, Trouble::Stall, Trouble::Cut], 1000..(1 << 20), 3);
    patient.write(FileKind::Pack, NAME, &contents).unwrap();
    proxy.order(&[Trouble::Cut, Trouble::Stall, Trouble::Cut], 1000..(1 << 20), 4);
    assert_eq!(patient.read(FileKind::Pack, NAME).unwrap(), contents);
    assert_eq!(patient.read_range(FileKind::Pack, NAME, 5, 1 << 20).unwrap(), contents[5..(1 << 20) + 5]);
    assert!(proxy.happened() >= 4, "{}", proxy.happened());
}

/// Starts a server that answers every request depending on its first line.
fn answering(mut answer: impl FnMut(&str) -> String + Send + 'static) -> String {
    format!("rest:http://127.0.0.1:{}/", answer_on_a_port(move |request| answer(&request.line)))
}

/// The same on a Unix socket.
fn answering_locally(socket: &Path, mut answer: impl FnMut(&str) -> String + Send + 'static) -> String {
    answer_on_a_socket(socket, move |request| answer(&request.line));
    format!("rest:http+unix://{}:/", socket.display())
}

/// Returns these answers one after the other, and then the last one repeatedly.
fn in_turn(answers: &[&str]) -> (Arc<AtomicUsize>, impl FnMut(&str) -> String + Send + use<>) {
    let texts: Vec<String> = answers.iter().map(|status| answer(status, "", "")).collect();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    (asked, move |_| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        texts[number.min(texts.len() - 1)].clone()
    })
}

/// Retries with pauses that are short enough for a test.
fn impatient(storage: RestStorage) -> RetryStorage {
    let shortest_pause = Duration::from_millis(1);
    RetryStorage::new(Arc::new(storage), RetryPolicy { shortest_pause, ..RetryPolicy::default() }, Arc::default())
}

const YES: &str = "200 OK";
const WRONG_BIT: &str = "2\x200 OK";
const WRONG_LOGIN: &str = "401 Unauthorized";
const BAD: &str = "400 Bad Request";
const DENIED: &str = "403 Forbidden";
const GONE: &str = "404 Not Found";

#[test]
fn refusal_without_tls_is_confirmed_by_a_second_request() {
    let size = |answers: &[&str]| {
        let (asked, answer) = in_turn(answers);
        let result = impatient(plain(&answering(answer))).size(FileKind::Pack, NAME);
        (result, asked.load(Ordering::Relaxed))
    };
    for refusal in [WRONG_BIT, WRONG_LOGIN, BAD, DENIED, GONE] {
        let (result, asked) = size(&[refusal, YES]);
        assert!(result.is_ok() && asked == 2, "{refusal:?}: {asked}: {result:?}");
        // A permanent error is reported after the second request, without a pause.
        let (result, asked) = size(&[refusal]);
        assert!(result.is_err() && asked == 2, "{refusal:?}: {asked}: {result:?}");
    }
    let (result, _) = size(&[WRONG_LOGIN]);
    assert!(matches!(server_error(result), http::Error::Login { .. }));
    let (result, _) = size(&[GONE]);
    assert!(result.unwrap_err().is_not_found());

    // A server that answered before speaks the protocol and accepts the login.
    let (asked, answer) = in_turn(&[YES, WRONG_BIT, WRONG_LOGIN, BAD, WRONG_BIT, YES]);
    let storage = impatient(plain(&answering(answer)));
    for _ in 0..2 {
        storage.size(FileKind::Pack, NAME).unwrap();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 6);
    let (asked, answer) = in_turn(&[YES, WRONG_LOGIN]);
    let storage = impatient(plain(&answering(answer)));
    storage.size(FileKind::Pack, NAME).unwrap();
    let error = server_error(storage.size(FileKind::Pack, NAME));
    assert!(matches!(error, http::Error::Login { .. }), "{error:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 1 + 5);
}

#[test]
fn listing_without_tls_needs_two_equal_answers() {
    let [right, wrong] = ["a", "c"].map(|end| format!("[{{\"name\":\"{}{end}\",\"size\":5}}]", &NAME[1..]));
    for (lists, expected) in
        [(vec![&right, &right], 2), (vec![&wrong, &right, &right], 3), (vec![&right, &wrong, &right, &right], 4)]
    {
        let of_version_2 = "Content-Type: application/vnd.x.restic.rest.v2\r\n";
        let answers: Vec<_> = lists.iter().map(|list| answer(YES, of_version_2, list)).collect();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let url = answering(move |_| answers[count.fetch_add(1, Ordering::Relaxed)].clone());
        let files = impatient(plain(&url)).list(FileKind::Snapshot).unwrap();
        assert!(files.len() == 1 && right.contains(&files[0].name), "{files:?}");
        assert_eq!(asked.load(Ordering::Relaxed), expected);
    }
}

#[test]
fn upload_refused_as_corrupted_is_sent_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let socket = |name: &str| folder.path().join(name);
    let (asked, answer) = in_turn(&[BAD, GONE, YES]);
    let storage = impatient(plain(&answering_locally(&socket("once"), answer)));
    storage.write(FileKind::Pack, NAME, b"contents").unwrap();
    // The second request asks whether the first one has stored it.
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    let (asked, answer) = in_turn(&[BAD, GONE, BAD]);
    let storage = impatient(plain(&answering_locally(&socket("always"), answer)));
    let error = server_error(storage.write(FileKind::Pack, NAME, b"contents"));
    assert!(matches!(error, http::Error::Refused { status: 400, .. }), "{error:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    // On a Unix socket, where data cannot be changed in transit, nothing else is repeated.
    let (asked, answer) = in_turn(&[WRONG_LOGIN]);
    let storage = impatient(plain(&answering_locally(&socket("login"), answer)));
    assert!(matches!(server_error(storage.size(FileKind::Pack, NAME)), http::Error::Login { .. }));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn only_a_missing_folder_of_rclone_is_an_empty_one() {
    let list = |headers: &'static str, kind| plain(&answering(move |_| answer(GONE, headers, "not found"))).list(kind);
    assert!(list("Server: rclone/v1.60.1-DEV\r\n", FileKind::Snapshot).unwrap().is_empty());
    // A proxy whose server is restarting. An empty list of snapshots would mean that no data is needed.
    for kind in [FileKind::Key, FileKind::Snapshot, FileKind::Index, FileKind::Pack] {
        let error = server_error(list("", kind));
        assert!(matches!(error, http::Error::NoFolder { .. }), "{error:?}");
    }
    assert!(list("", FileKind::Lock).unwrap().is_empty());
}

#[test]
fn upload_limit_of_a_reverse_proxy_is_not_reported_as_a_full_disk() {
    let write = |headers: &'static str, body: &'static str| {
        let url = answering(move |_| answer("413 Request Entity Too Large", headers, body));
        plain(&url).write(FileKind::Pack, NAME, b"contents").unwrap_err()
    };
    // nginx answers like this.
    let error = write("Content-Type: text/html\r\n", "<html><head><title>413 Request Entity Too Large</title></head>");
    let error = server_error::<()>(Err(error));
    assert!(matches!(error, http::Error::TooLarge { .. }) && !error.is_transient(), "{error:?}");
    // And rest-server like this, beyond its --max-size.
    let error = write("Content-Type: text/plain; charset=utf-8\r\n", "Request Entity Too Large\n");
    assert!(matches!(error, kvmb::storage::Error::NoSpace { .. }), "{error:?}");
}

#[test]
fn a_listing_of_version_1_is_understood() {
    let storage = plain(&answering(|request| match request {
        "GET /keys/ HTTP/1.1" => {
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.x.restic.rest.v1\r\nContent-Length: 20\r\n\
             Connection: close\r\n\r\n[\"one\",\"two\",\"gone\"]"
                .to_owned()
        }
        "HEAD /keys/one HTTP/1.1" => "HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\n".to_owned(),
        "HEAD /keys/two HTTP/1.1" => "HTTP/1.1 200 OK\r\nContent-Length: 22\r\nConnection: close\r\n\r\n".to_owned(),
        _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
    }));
    let mut found = storage.list(FileKind::Key).unwrap();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let found: Vec<_> = found.iter().map(|file| (file.name.as_str(), file.size_bytes)).collect();
    assert_eq!(found, [("one", 11), ("two", 22)]);
}

#[test]
fn malformed_redirecting_and_endless_answers_are_errors() {
    let close = "Connection: close\r\n\r\n";
    let cases = [
        (format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n{close}<ht>"), false),
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), false),
        (format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n{close}"), false),
        (format!("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n{close}"), true),
        // The response is truncated.
        (format!("HTTP/1.1 200 OK\r\nContent-Length: 40\r\n{close}[]"), true),
    ];
    for (answer, is_transient) in cases {
        let text = answer.clone();
        let error = server_error(plain(&answering(move |_| text.clone())).list(FileKind::Key));
        assert_eq!(error.is_transient(), is_transient, "{answer:?}: {error:?}");
    }
    // A response longer than any file of its kind is not read to its end.
    let endless = format!("HTTP/1.1 200 OK\r\n{close}{}", "x".repeat(1 << 20));
    let read = plain(&answering(move |_| endless.clone())).read(FileKind::Key, NAME);
    assert!(matches!(read, Err(Error::TooLong { .. })), "{read:?}");
}
