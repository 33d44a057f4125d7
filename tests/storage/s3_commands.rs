//! The commands on object storage, together with restic.

// A test panics if a result is not what it expects.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::backups::noise;
use crate::support::chains::{MIB, assert_restores, id_of};
use crate::support::http_server::HttpServer;
use crate::support::{Call, Disk, Env, Output};
use crate::{BOUND, with_keys};

#[test]
fn kvmb_and_restic_share_a_bucket_without_leaking_secrets() {
    let env = Env::new("s3-interop");
    let server = HttpServer::rclone_s3(&env, "server");
    let url = server.s3_url("bucket/kvm");
    let folder = server.folder().join("bucket/kvm").display().to_string();
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(1, 4 * MIB));
    let kvmb = |args: &[&str]| with_keys(env.kvmb(args).args(["-r", &url, "-vvv"])).run().assert_ok();
    let restic = |args: &[&str]| with_keys(env.program("restic").args(["-q", "-r", &url]).args(args)).run().assert_ok();

    kvmb(&["init"]);
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
    // Objects in a bucket are removed by both programs.
    kvmb(&["prune", "--keep-last", "1", "--max-unused", "0%"]);
    restic(&["check", "--read-data"]);

    let log = fs::read_to_string(env.log_file()).unwrap_or_default();
    for text in [&log, &server.log(), &seen] {
        assert!(!text.contains("swordfish"), "a secret in a log");
    }
    let refused = env.kvmb(["points", "-r", &url]).limit(BOUND).run().assert_code(1);
    assert!(refused.stderr().contains("AWS_ACCESS_KEY_ID"), "{refused}");
    let inside = url.replace("http://", "http://keeper:swordfish@");
    let refused = env.kvmb(["points", "-r", &inside]).run().assert_code(2);
    assert!(!refused.stderr().contains("swordfish"), "{refused}");
}

#[test]
fn profile_keys_are_used_for_copies_to_a_bucket() {
    let env = Env::new("s3-profile");
    let server = HttpServer::rclone_s3(&env, "server");
    let keys = env.path("aws-credentials");
    fs::write(&keys, "[kvm]\naws_access_key_id = keeper-key\naws_secret_access_key = swordfish-secret\n").unwrap();
    crate::support::set_mode(&keys, 0o600);
    env.configure(&serde_json::json!({
        "repo": env.repo(),
        "copy_to": server.s3_url("bucket/kvm"),
        "s3": {"credentials_file": keys, "profile": "kvm", "region": "eu-central-1", "bucket_lookup": "path"},
    }));
    env.kvmb(["config", "check"]).run().assert_ok();
    env.kvmb(["init"]).run().assert_ok();
    env.kvmb(["init", "-r", &server.s3_url("bucket/kvm")]).limit(BOUND).run().assert_ok();
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(3, 2 * MIB));
    let points = env.kvmb(["backup", "vm"]).limit(BOUND).run().assert_ok().records_of("point");
    assert_eq!(points.len(), 2, "{points:#?}");
    let folder = server.folder().join("bucket/kvm").display().to_string();
    env.restic(folder.clone()).check();
    assert_restores(&env, &folder, &points[1], &machine.models());
}

#[test]
fn remote_setup_stores_only_accepted_logins() {
    let env = Env::new("http-setup");
    let s3 = HttpServer::rclone_s3(&env, "s3");
    let rest = HttpServer::rclone(&env, "rest", ["--user", "keeper", "--pass", "swordfish-secret"]);
    let (bucket, server) = (s3.s3_url("bucket/kvm"), rest.rest_url("kvm"));
    env.configure(&serde_json::json!({ "http": { "timeout": "30s" } }));
    let setup = |url: &str| env.kvmb(["remote", "setup", "-r", url]).limit(BOUND);
    let account =
        |call: Call, password: &str| call.env("RESTIC_REST_USERNAME", "keeper").env("RESTIC_REST_PASSWORD", password);
    // A login that the server refuses is not stored.
    let before = fs::read_to_string(env.config_file()).unwrap();
    setup(&bucket).run().assert_code(1).assert_stderr_has("AWS_ACCESS_KEY_ID");
    // Without a key there is no request, and no retry.
    let without = env.kvmb(["points", "-r", &bucket]).run().assert_code(1).assert_stderr_has("no access key for");
    assert!(!without.stderr().contains("again"), "{without}");
    let wrong = with_keys(setup(&bucket)).env("AWS_SECRET_ACCESS_KEY", "herring").run().assert_code(1);
    assert!(!wrong.stderr().contains("herring"), "{wrong}");
    account(setup(&server), "herring").run().assert_code(1);
    with_keys(setup(&bucket)).arg("-n").run().assert_ok();
    assert_eq!(fs::read_to_string(env.config_file()).unwrap(), before);

    let done =
        [with_keys(setup(&bucket)).run().assert_ok(), account(setup(&server), "swordfish-secret").run().assert_ok()];
    let is_clean = |output: &Output| ![output.stdout(), output.stderr()].iter().any(|text| text.contains("swordfish"));
    assert!(done.iter().all(is_clean), "a secret in the output");
    let config: serde_json::Value = serde_json::from_str(&fs::read_to_string(env.config_file()).unwrap()).unwrap();
    assert_eq!((&config["http"]["user"], &config["http"]["timeout"]), (&"keeper".into(), &"30s".into()), "{config}");
    for file in [&config["s3"]["credentials_file"], &config["http"]["password_file"]] {
        let mode = fs::metadata(file.as_str().expect("a file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // Without variables, like a scheduled backup.
    for url in [&bucket, &server] {
        env.kvmb(["init", "-r", url]).limit(BOUND).run().assert_ok();
        let again = setup(url).run().assert_ok().record_of("action");
        assert_eq!(again["changed"], false, "{again}");
    }
}
