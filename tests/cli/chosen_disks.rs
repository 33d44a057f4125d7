//! Which disks a backup includes according to the configuration, and copies of points by name.

use crate::support::sshd::USER;
use crate::support::{Disk, Env};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Returns the excluded disks of a record, with the reasons.
fn left_out(record: &Value) -> Vec<(String, String)> {
    let all = record["left_out"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.iter().map(|disk| (text(&disk["disk"]), text(&disk["reason"]))).collect()
}

#[test]
fn excluded_disks_are_left_out_unless_named() {
    let env = Env::new("excluded disks");
    let disk = || Disk::qcow2(MIB);
    let _machines = [
        env.machine("kvmb-test-vm1").disk(disk()).disk(disk()).disk(disk()).define(),
        env.machine("kvmb-test-vm2").disk(disk()).define(),
    ];
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let set = |change: &str| env.kvmb(["config", "set", change]).run();
    set(r#"excluded_disks.kvmb-test-vm1=["vdb"]"#).assert_ok();
    // A disk that the other machine does not have is not an error.
    set(r#"excluded_disks.kvmb-test-*=["vdc", "vdz"]"#).assert_ok();
    set(r#"excluded_disks.kvmb-test-vm1="vdb""#).assert_code(2);
    set(r#"excluded_disks.kvmb-test-vm1=["vd*"]"#).assert_code(2).assert_stderr_has("the target of a disk");

    let reason = "excluded in the configuration (excluded_disks)";
    let listed = env.kvmb(["disks", "kvmb-test-*"]).run().assert_ok().records_of("disk");
    let excluded: Vec<_> = listed.iter().filter(|disk| disk["included"] == false).collect();
    assert!(excluded.iter().all(|disk| disk["skip_reason"] == reason && disk["machine"] == "kvmb-test-vm1"));
    let names: Vec<&Value> = excluded.iter().map(|disk| &disk["disk"]).collect();
    assert_eq!(names, ["vdb", "vdc"], "{listed:#?}");

    let backup = |args: &[&str]| env.kvmb(["backup", "-r", &env.repo()]).args(args).run().assert_ok();
    let planned = backup(&["kvmb-test-vm1", "-n"]).record_of("action");
    assert_eq!((&planned["disks"], &planned["skipped"][0]["reason"]), (&json!(["vda"]), &json!(reason)));
    let point = backup(&["kvmb-test-vm1"]).record_of("point");
    let both = ["vdb", "vdc"].map(|disk| (disk.to_owned(), reason.to_owned()));
    assert_eq!(left_out(&point), both, "{point}");
    assert_eq!(point["disks"].as_array().map(Vec::len), Some(1));
    let pipe = env.sh("kvmb disks kvmb-test-vm1 | kvmb snapshot -r $R | kvmb push -r $R | kvmb release").run();
    assert_eq!(pipe.assert_ok().record_of("point")["disks"].as_array().map(Vec::len), Some(1));
    // A disk that is named is backed up anyway.
    let named = backup(&["kvmb-test-vm1", "--disk", "vdb"]).record_of("point");
    assert_eq!(named["disks"][0]["disk"], "vdb");
    assert!(left_out(&backup(&["kvmb-test-vm2"]).record_of("point")).is_empty());
    env.assert_nothing_left();
}

#[test]
fn push_copies_points_by_machine_name_or_id() {
    let env = Env::new("copy by name");
    let machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(2 * MIB)).define();
    let (first, second) = (env.repo(), env.repo_named("second"));
    env.kvmb(["init", "-r", &first]).run().assert_ok();
    env.kvmb(["init", "-r", &second]).run().assert_ok();
    let points = [0x11, 0x22].map(|pattern| {
        machine.write("vda", 0, MIB, pattern);
        env.kvmb(["backup", "kvmb-test-vm1", "-r", &first]).run().assert_ok().record_of("point")
    });
    let push = |args: &[&str]| env.kvmb(["push", "-r", &second]).args(args).run();
    push(&["kvmb-test-vm1"]).assert_code(2).assert_stderr_has("--from-repo");
    push(&["nobody", "--from-repo", &first]).assert_code(1);
    let older = points[0]["point"].as_str().unwrap();
    let dry = push(&[&older[..10], "--from-repo", &first, "--dry-run"]).assert_ok().record_of("action");
    assert_eq!((&dry["point"], &dry["target"]), (&points[0]["point"], &json!("kvmb-test-vm1")));
    let copy = push(&[&older[..10], "--from-repo", &first]).assert_ok().record_of("point");
    assert_eq!((&copy["original"], &copy["copied"]["already_there"]), (&points[0]["point"], &json!(false)));
    let copy = push(&[older, "kvmb-test-vm1", "--from-repo", &first]).assert_ok().records_of("point");
    let there: Vec<&Value> = copy.iter().map(|copy| &copy["copied"]["already_there"]).collect();
    assert_eq!(there, [true, false]);
    env.kvmb(["verify", "--all", "-r", &second]).run().assert_ok();
    env.restic(&second).check();
}

#[test]
fn server_copy_opens_with_the_key_of_this_host() {
    let env = Env::new("shared key");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let _machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    let folder = sshd.home().join("repo");
    env.configure(&json!({
        "backup_host": "127.0.0.1", "backup_user": USER, "backup_path": folder, "ssh": { "port": sshd.port() },
    }));
    let server = format!("sftp://{USER}@127.0.0.1:{}/{}", sshd.port(), folder.display());
    let kvmb = |args: &[&str]| env.kvmb(args).without_env("KVMB_PASSWORD_FILE").run();
    // There is no repository on the server yet.
    kvmb(&["backup", "kvmb-test-vm1"]).assert_code(3);
    let key = env.path("data/repo.key").display().to_string();
    kvmb(&["init", "-r", &server, "--password-file", &key]).assert_ok();
    let copied = kvmb(&["backup", "kvmb-test-vm1"]).assert_ok().records_of("point");
    assert!(copied.iter().any(|point| point["repo"] == server.as_str()), "{copied:#?}");
    assert!(!kvmb(&["points", "-r", &server]).assert_ok().records_of("point").is_empty());
    // If the configuration names another local repository, the server's is not a copy of the default one.
    kvmb(&["config", "set", "repo=/srv/other"]).assert_ok();
    kvmb(&["points", "-r", &server]).assert_code(2).assert_stderr_has("no password for");
}
