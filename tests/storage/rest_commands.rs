//! The commands on real REST servers, together with restic, and the benefit of an append-only server.

// A test panics if a result is not what it expects.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::backups::noise;
use crate::support::chains::{MIB, assert_restores, id_of};
use crate::support::http_server::{Certificates, HttpServer, has_rest_server};
use crate::support::proxy::{Proxy, Trouble};
use crate::support::scripted_http::{answer, answer_on_a_port};
use crate::support::{Disk, Env};
use crate::{BOUND, with_keys};

#[test]
fn kvmb_and_restic_share_a_rest_server_without_leaking_secrets() {
    let env = Env::new("rest-interop");
    let server = HttpServer::rclone(&env, "server", ["--user", "keeper", "--pass", "swordfish-7261"]);
    let url = server.rest_url("repo");
    let folder = server.folder().join("repo").display().to_string();
    let secret = env.path("rest-password");
    fs::write(&secret, "swordfish-7261\n").unwrap();
    crate::support::set_mode(&secret, 0o600);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(1, 4 * MIB));

    // restic creates it; kvmb understands restic's variables.
    let restic = |args: &[&str]| {
        let url = url.replace("http://", "http://keeper:swordfish-7261@");
        env.program("restic").args(["-q", "-r", &url]).args(args).limit(BOUND).run().assert_ok()
    };
    restic(&["init", "--repository-version", "2"]);
    let kvmb = |args: &[&str]| {
        env.kvmb(args)
            .args(["-r", &url, "-vvv"])
            .env("RESTIC_REST_USERNAME", "keeper")
            .env("KVMB_REST_PASSWORD_FILE", &secret)
            .limit(BOUND)
            .run()
            .assert_ok()
    };
    let first = kvmb(&["backup", "vm"]);
    assert!(first.stderr().contains("requests to 127.0.0.1:"), "{first}");
    let seen = first.stderr().to_owned();
    let first = first.record_of("point");
    machine.write_bytes("vda", 8 * MIB, &noise(2, MIB));
    let second = kvmb(&["backup", "vm"]).record_of("point");
    assert_eq!(second["disks"][0]["read_mode"], "changed", "{second:#}");
    restic(&["check", "--read-data"]);
    restic(&["forget", "--prune", id_of(&first)]);
    kvmb(&["verify", "--all"]);
    assert_restores(&env, &folder, &second, &machine.models());
    kvmb(&["prune", "--keep-last", "1", "--max-unused", "0%"]);
    restic(&["check", "--read-data"]);

    let log = fs::read_to_string(env.log_file()).unwrap_or_default();
    for text in [&log, &server.log(), &seen] {
        // In plain text, and as in basic authentication.
        for secret in ["swordfish", "a2VlcGVyOnN3b3JkZmlzaC03MjYx"] {
            assert!(!text.contains(secret), "a secret in a log");
        }
    }
    // Each step separately: the server responds, and the repository exists.
    let tested = kvmb(&["remote", "test"]).records_of("check");
    assert!(tested.len() == 4 && tested.iter().all(|check| check["status"] == "ok"), "{tested:#?}");
    let tested = env.kvmb(["remote", "test", "-r", &url]).limit(BOUND).run().assert_code(1).records_of("check");
    let states: Vec<_> = tested.iter().map(|check| (check["check"].as_str(), check["status"].as_str())).collect();
    let wanted = [("reach", "ok"), ("certificate", "ok"), ("login", "critical"), ("path", "unknown")];
    assert_eq!(states, wanted.map(|(check, status)| (Some(check), Some(status))));
    // Without a login, and with a password in the address.
    let refused = env.kvmb(["points", "-r", &url]).limit(BOUND).run().assert_code(1);
    assert!(refused.stderr().contains("RESTIC_REST_USERNAME"), "{refused}");
    let inside = url.replace("http://", "http://keeper:swordfish@");
    let refused = env.kvmb(["points", "-r", &inside]).run().assert_code(2);
    assert!(refused.stderr().contains("RESTIC_REST_PASSWORD") && !refused.stderr().contains("swordfish"), "{refused}");
}

#[test]
fn append_only_rest_server_accepts_backups_and_refuses_prune() {
    let env = Env::new("rest-append");
    let server = match has_rest_server() {
        true => HttpServer::rest_server(&env, "server", ["--no-auth", "--append-only"]),
        false => HttpServer::rclone(&env, "server", ["--append-only"]),
    };
    let url = server.rest_url("repo");
    let folder = server.folder().join("repo").display().to_string();
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(3, 4 * MIB));
    let kvmb = |args: &[&str]| env.kvmb(args).args(["-r", &url]).limit(BOUND).run();
    kvmb(&["init"]).assert_ok();
    let first = kvmb(&["backup", "vm"]).assert_ok().record_of("point");
    let second = kvmb(&["backup", "vm", "--full"]).assert_ok().record_of("point");
    let refused = kvmb(&["prune", "--keep-last", "1"]).assert_code(1);
    assert!(refused.stdout().contains("\"permission\""), "{refused}");
    for point in [&first, &second] {
        assert_restores(&env, &folder, point, &machine.models());
    }
    env.restic(folder).check();
}

#[test]
fn configured_rest_servers_are_used_for_both_repositories() {
    let env = Env::new("rest-config");
    let certificates = Certificates::make(&env);
    let file = |name: &str| certificates.file(name).display().to_string();
    let (certificate, key) = (file("server.pem"), file("server.key"));
    let first = HttpServer::rclone(&env, "first", [""; 0]);
    let second =
        HttpServer::rclone(&env, "second", ["--cert", &certificate, "--key", &key, "--user", "u", "--pass", "p"]);
    let secret = env.path("rest-password");
    fs::write(&secret, "p\n").unwrap();
    crate::support::set_mode(&secret, 0o600);
    env.configure(&serde_json::json!({
        "repo": first.rest_url("a"),
        "copy_to": second.rest_url("b").replace("http:", "https:"),
        "http": {"ca_file": file("ca.pem"), "user": "u", "password_file": secret},
    }));
    env.kvmb(["config", "check"]).run().assert_ok();
    env.kvmb(["init"]).limit(BOUND).run().assert_ok();
    env.kvmb(["init", "-r", &second.rest_url("b").replace("http:", "https:")]).limit(BOUND).run().assert_ok();
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(4, 2 * MIB));
    let proxy = Proxy::start(first.port(), Duration::ZERO);
    let by_proxy = format!("rest:http://127.0.0.1:{}/a/", proxy.port());
    proxy.order(&[Trouble::Cut, Trouble::Cut], 1000..MIB, 9);
    let points = env.kvmb(["backup", "vm", "-r", &by_proxy]).limit(BOUND).run().assert_ok().records_of("point");
    assert_eq!(points.len(), 2, "{points:#?}");
    for (point, server) in points.iter().zip([&first, &second]) {
        let folder = server.folder().join(if server.port() == first.port() { "a" } else { "b" });
        let folder = folder.display().to_string();
        env.restic(folder.clone()).check();
        assert_restores(&env, &folder, point, &machine.models());
    }
    let checks = env.kvmb(["status", "vm"]).limit(BOUND).run().records_of("check");
    assert!(checks.iter().any(|check| check["check"] == "backup" && check["points"] == 1), "{checks:#?}");
}

#[test]
fn refusing_proxy_is_reported_and_not_retried() {
    let env = Env::new("rest-proxy");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let proxy = answer_on_a_port(move |request| {
        count.fetch_add(1, Ordering::Relaxed);
        assert_eq!(request.line, "CONNECT backup.example:443 HTTP/1.1");
        answer("407 Proxy Authentication Required", "", "")
    });
    let address = format!("http://joe:swordfish@127.0.0.1:{proxy}");
    let url = "rest:https://backup.example/kvm/";
    let points = |url: &str, variable: &str, value: &str| {
        with_keys(env.kvmb(["points", "-r", url, "--retry-for", "1s"])).env(variable, value).run()
    };
    let refused = points(url, "HTTPS_PROXY", &address).assert_code(1);
    let failure = refused.record_of("failure");
    let error = format!("the proxy 127.0.0.1:{proxy} does not connect to backup.example: status 407");
    assert!(failure["error"].as_str().unwrap().starts_with(&error) && failure["code"] == "unreachable", "{refused}");
    assert!(failure["hint"].as_str().unwrap().contains("HTTPS_PROXY=") && !refused.stderr().contains("swordfish"));
    assert_eq!(asked.load(Ordering::Relaxed), 1);

    let gone = points(url, "https_proxy", "127.0.0.1:1").assert_code(1).record_of("failure");
    assert!(gone["error"].as_str().unwrap().contains("the proxy 127.0.0.1:1 of backup.example"), "{gone:#}");
    let socks = points(url, "ALL_PROXY", "socks5://127.0.0.1:1").assert_code(2).record_of("failure");
    assert!(socks["error"].as_str().unwrap().contains("SOCKS"), "{socks:#}");

    // A server without TLS uses another proxy variable, or none.
    let server = HttpServer::rclone(&env, "server", [""; 0]);
    let plain = points(&server.rest_url("kvm"), "HTTPS_PROXY", &address).assert_code(1).record_of("failure");
    assert_eq!(plain["code"], "no_repository", "{plain:#}");
}
