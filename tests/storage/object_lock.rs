//! Locked objects in a bucket are kept: nobody can remove or change them until the lock expires, and a prune leaves
//! them.

// A test panics if a result is not what it expects.

use crate::support::backups::noise;
use crate::support::chains::{MIB, assert_restores, id_of};
use crate::support::http_server::HttpServer;
use crate::support::{Disk, Env, Output};
use crate::with_keys;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

/// Prints a line for each version of an object: its key, its lock's expiry, and whether it is the latest version.
const LOCKS: &str = "
for version in s3.list_object_versions(Bucket='bucket').get('Versions', []):
    found = s3.head_object(Bucket='bucket', Key=version['Key'], VersionId=version['VersionId'])
    until = found.get('ObjectLockRetainUntilDate')
    print(version['Key'], until.isoformat() if until else '-', found.get('ObjectLockMode', '-'), version['IsLatest'])
";

/// Tries to remove every version of every object, like an attacker who wants to destroy the backups.
const DESTROY: &str = "
for version in s3.list_object_versions(Bucket='bucket').get('Versions', []):
    try:
        s3.delete_object(Bucket='bucket', Key=version['Key'], VersionId=version['VersionId'])
        print('removed', version['Key'])
    except Exception as error:
        assert 'AccessDenied' in str(error), error
";

/// Lets the locks of all objects whose keys contain this word expire, which moto permits.
fn end_locks(env: &Env, server: &HttpServer, word: &str) {
    let code = format!(
        "
past = datetime.datetime(2020, 1, 1)
for version in s3.list_object_versions(Bucket='bucket').get('Versions', []):
    if '{word}' in version['Key']:
        s3.put_object_retention(Bucket='bucket', Key=version['Key'], VersionId=version['VersionId'],
                                Retention={{'Mode': 'COMPLIANCE', 'RetainUntilDate': past}})
"
    );
    server.administer(env, &code);
}

fn kvmb(env: &Env, url: &str, args: &[&str]) -> Output {
    with_keys(env.kvmb(args).args(["-r", url])).run()
}

/// A version of an object on the server.
#[derive(Debug)]
struct Version {
    key: String,
    until: Option<DateTime<Utc>>,
    mode: String,
}

impl Version {
    fn is_in(&self, folder: &str) -> bool {
        self.key.starts_with(&format!("kvm/{folder}"))
    }

    fn days_left(&self) -> i64 {
        // A run takes at most a few minutes.
        let left = self.until.map_or(TimeDelta::zero(), |until| until - Utc::now());
        (left + TimeDelta::hours(12)).num_days()
    }
}

fn versions(env: &Env, server: &HttpServer) -> Vec<Version> {
    let printed = server.administer(env, LOCKS);
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let until = DateTime::parse_from_rfc3339(words[1]).ok().map(|until| until.to_utc());
        Version { key: words[0].to_owned(), until, mode: words[2].to_owned() }
    };
    printed.lines().map(line).collect()
}

fn prune_of(output: &Output) -> Value {
    output.records_of("action").into_iter().find(|action| action["action"] == "prune").expect("a prune")
}

#[test]
fn locked_objects_survive_deletion_and_their_locks_are_extended() {
    let env = Env::new("s3-locked");
    let server = HttpServer::moto(&env, "server");
    let url = server.s3_url("bucket/kvm");
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(1, 2 * MIB));
    kvmb(&env, &url, &["init", "--lock-for", "10d"]).assert_ok();
    let first = kvmb(&env, &url, &["backup", "vm", "--lock-for", "10d"]).assert_ok().record_of("point");
    let locked = versions(&env, &server);
    for folder in ["config", "keys/", "data/", "index/", "snapshots/"] {
        let files: Vec<&Version> = locked.iter().filter(|version| version.is_in(folder)).collect();
        assert!(!files.is_empty(), "{folder}: {locked:#?}");
        assert!(files.iter().all(|file| file.mode == "COMPLIANCE" && file.days_left() == 10), "{files:#?}");
    }
    let locks: Vec<&Version> = locked.iter().filter(|version| version.is_in("locks/")).collect();
    assert!(!locks.is_empty() && locks.iter().all(|lock| lock.until.is_none()), "{locks:#?}");

    // The data of the first point that the second one needs is locked for less than half of the new time.
    machine.write_bytes("vda", 8 * MIB, &noise(2, MIB));
    let second = kvmb(&env, &url, &["backup", "vm", "--lock-for", "30d"]).assert_ok().record_of("point");
    let again = versions(&env, &server);
    let old_packs: Vec<&Version> = locked.iter().filter(|version| version.is_in("data/")).collect();
    let left = |key: &str| again.iter().find(|version| version.key == key).map(Version::days_left);
    assert!(old_packs.iter().any(|pack| left(&pack.key) == Some(30)), "{again:#?}");
    assert!(old_packs.iter().all(|pack| [Some(10), Some(30)].contains(&left(&pack.key))), "{again:#?}");
    assert_eq!(left(&format!("kvm/snapshots/{}", id_of(&first))), Some(10), "nothing needs the old point");
    assert_eq!(left("kvm/config"), Some(30));

    // With all keys in the wrong hands, only repository locks can be removed.
    let removed = server.administer(&env, DESTROY);
    assert!(removed.lines().all(|line| line.contains("/locks/")), "{removed}");
    kvmb(&env, &url, &["verify", "--all"]).assert_ok();
    assert_restores_over(&env, &url, &second, &machine);
}

/// With restic, which knows nothing about object locks.
fn assert_restores_over(env: &Env, url: &str, point: &Value, machine: &crate::support::Machine) {
    let copy = env.path("copy").display().to_string();
    env.restic(copy.clone()).init();
    let password = env.password_file().display().to_string();
    let args = ["-q", "-r", &copy, "copy", "--from-repo", url, "--from-password-file", &password];
    with_keys(env.program("restic").args(args).arg(id_of(point))).run().assert_ok();
    let copied = kvmb(env, &copy, &["points"]).assert_ok().record_of("point");
    assert_restores(env, &copy, &copied, &machine.models());
}

#[test]
fn prune_keeps_locked_objects_and_reports_the_lock_end() {
    let env = Env::new("s3-locked-prune");
    let server = HttpServer::moto(&env, "server");
    let url = server.s3_url("bucket/kvm");
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(1, 2 * MIB));
    env.configure(&serde_json::json!({ "s3": { "lock_for": "30d" } }));
    kvmb(&env, &url, &["init"]).assert_ok();
    let first = kvmb(&env, &url, &["backup", "vm"]).assert_ok().record_of("point");
    machine.write_bytes("vda", 0, &noise(2, 2 * MIB));
    kvmb(&env, &url, &["backup", "vm", "--full"]).assert_ok();
    let restic = ["-q", "-r", &url, "check", "--read-data"];
    let check = || with_keys(env.program("restic").args(restic)).run().assert_ok();
    let points = || kvmb(&env, &url, &["points"]).assert_ok().records_of("point").len();
    let prune = || kvmb(&env, &url, &["prune", "--keep-last", "1", "--max-unused", "0%", "-v"]).assert_ok();

    let output = prune();
    let forget = output.records_of("action").into_iter().find(|action| action["target"] == first["point"]);
    let forget = forget.expect("a record for the old point");
    assert_eq!((&forget["keep"], &forget["rules"][0]), (&Value::from(true), &Value::from("locked")), "{output}");
    let until: DateTime<Utc> = forget["locked_until"].as_str().expect("a time").parse().expect("a time");
    assert_eq!((until - Utc::now() + TimeDelta::hours(12)).num_days(), 30, "{output}");
    assert_eq!((points(), prune_of(&output)["locked_packs"].clone()), (2, Value::from(0)), "{output}");

    // The point may be removed, but its data not yet: it still exists, without an index entry.
    end_locks(&env, &server, "/snapshots/");
    let output = prune();
    let pruned = prune_of(&output);
    assert!(pruned["locked_packs"].as_u64() > Some(0) && pruned["locked_bytes"].as_u64() > Some(2 * MIB), "{output}");
    assert!(pruned["locked_until"].is_string() && pruned["removed_packs"] == 0, "{output}");
    assert!(pruned["reason"].as_str().is_some_and(|reason| reason.contains("locked until")), "{output}");
    assert_eq!(points(), 1);
    check();
    let again = prune_of(&prune());
    assert_eq!(again["locked_packs"], pruned["locked_packs"], "they wait: {again}");

    end_locks(&env, &server, "/data/");
    let output = prune();
    let counted = output.stderr().lines().find(|line| line.contains("requests to 127.0.0.1:")).unwrap_or_default();
    assert!(counted.contains(" POST"), "packs are removed together: {counted}");
    let freed = prune_of(&output);
    assert_eq!(
        (&freed["locked_packs"], &freed["removed_packs"]),
        (&Value::from(0), &pruned["locked_packs"]),
        "{freed}"
    );
    check();
    kvmb(&env, &url, &["verify", "--all"]).assert_ok();
}

#[test]
fn lock_for_without_object_lock_support_writes_nothing() {
    let env = Env::new("s3-no-lock");
    let server = HttpServer::moto(&env, "server");
    server.administer(&env, "s3.create_bucket(Bucket='bucket')");
    let url = server.s3_url("bucket/kvm");
    let refused = kvmb(&env, &url, &["init", "--lock-for", "30d"]).assert_code(1);
    assert!(refused.stdout().contains("\"unsupported\"") && refused.stderr().contains("Object Lock"), "{refused}");
    assert_eq!(server.administer(&env, "print(s3.list_objects_v2(Bucket='bucket')['KeyCount'])").trim(), "0");
    // An existing repository: the backup stores nothing.
    kvmb(&env, &url, &["init"]).assert_ok();
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(3, MIB));
    let count = || server.administer(&env, "print(s3.list_objects_v2(Bucket='bucket')['KeyCount'])");
    let before = count();
    let refused = kvmb(&env, &url, &["backup", "vm", "--lock-for", "30d"]);
    assert!(refused.code() != 0 && refused.stderr().contains("Object Lock"), "{refused}");
    assert_eq!(count(), before);
    assert!(!machine.is_captured());
    let state = |args: &[&str]| {
        let checks = kvmb(&env, &url, args).records_of("check");
        let check = checks.iter().find(|check| check["check"] == "object_lock").expect("a check");
        check["status"].as_str().expect("a status").to_owned()
    };
    assert_eq!(state(&["remote", "test"]), "ok", "nobody wants it");
    env.configure(&serde_json::json!({ "s3": { "lock_for": "30d" } }));
    assert_eq!((state(&["remote", "test"]), state(&["doctor"])), ("critical".to_owned(), "critical".to_owned()));
    let folder = env.repo();
    for args in [&["init", "--lock-for", "1d"][..], &["backup", "vm", "--lock-for", "1d"]] {
        let refused = kvmb(&env, &folder, args).assert_code(2);
        assert!(refused.stderr().contains("not a bucket"), "{refused}");
    }
    // In a bucket that supports it, as the second repository.
    let copy = server.s3_url("other-bucket/kvm");
    kvmb(&env, &copy, &["init", "--lock-for", "1d"]).assert_ok();
    env.configure(&serde_json::json!({}));
    kvmb(&env, &folder, &["init"]).assert_ok();
    let points = kvmb(&env, &folder, &["backup", "vm", "--copy-to", &copy, "--lock-for", "1d"]).assert_ok();
    assert_eq!(points.records_of("point").len(), 2, "{points}");
    let found = "print(s3.head_object(Bucket='other-bucket', Key='kvm/config')['ObjectLockMode'])";
    assert_eq!(server.administer(&env, found).trim(), "COMPLIANCE");
}
