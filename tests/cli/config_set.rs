//! `kvmb config set`: changes that leave the rest of the file as it is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;

use crate::support::{Env, set_mode};

const FILE: &str = "{\n\t\"//\": \"ours\",\n\t\"jobs\": 2,\n\t\"selected_vms\": {\"vm1\": true}\n}\n";

fn env(name: &str) -> Env {
    let env = Env::new(name);
    fs::write(env.config_file(), FILE).unwrap();
    env
}

fn text(env: &Env) -> String {
    fs::read_to_string(env.config_file()).unwrap()
}

#[test]
fn config_set_changes_only_named_keys_and_dry_run_shows_the_diff() {
    let env = env("set");
    set_mode(&env.config_file(), 0o640);
    let set = |args: &[&str]| env.kvmb(["config", "set"]).args(args);
    let dry = set(&["-n", "jobs=4", "selected_vms.a.b=false"]).run().assert_ok().record_of("action");
    assert_eq!(text(&env), FILE);
    let diff = dry["diff"].as_str().unwrap();
    for line in ["-\t\"jobs\": 2,", "+\t\"jobs\": 4,", "+\t\"selected_vms\": {\"vm1\": true, \"a.b\": false}"] {
        assert!(diff.lines().any(|found| found == line), "{line}: {diff}");
    }
    assert_eq!((&dry["changes"][0]["before"], &dry["changes"][0]["after"]), (&2.into(), &4.into()));
    let sum = dry["file_sha256"].as_str().unwrap();

    let done = set(&["jobs=4", "selected_vms.a.b=false", "--if-sha256", sum]).run().assert_ok().record_of("action");
    assert_eq!((&done["changed"], &done["diff"]), (&true.into(), &dry["diff"]));
    let expected = FILE.replace("2,", "4,").replace("true}", "true, \"a.b\": false}");
    assert_eq!(text(&env), expected);
    assert_eq!(fs::metadata(env.config_file()).unwrap().permissions().mode() & 0o777, 0o640);
    set(&["jobs=5", "--if-sha256", sum]).run().assert_code(1).assert_stderr_has("has been changed by someone else");
    let same = set(&["jobs=4"]).run().assert_ok().record_of("action");
    assert_eq!(same["changed"], false);
    set(&["--unset", "jobs", "--unset", "selected_vms.a.b"]).run().assert_ok();
    assert_eq!(text(&env), FILE.replace("\t\"jobs\": 2,\n", ""));
    let table = set(&["jobs=3", "-n", "-o", "table"]).run().assert_ok();
    assert!(table.stdout().contains("+\t\"jobs\": 3") || table.stdout().contains("\"jobs\": 3"), "{table}");
}

#[test]
fn invalid_settings_are_refused_and_leave_the_file_unchanged() {
    let env = env("refused");
    for (change, words) in [
        ("jobs=65", "must be a whole number from 1 to 64"),
        ("jbs=4", "the key \"jbs\" is unknown"),
        ("ssh.prot=1", "did you mean ssh.port?"),
        ("jobs", "not of the form KEY=VALUE"),
        ("backup_freq=nightly", "backup_freq"),
        ("hooks.after_run=x", "must be JSON"),
    ] {
        env.kvmb(["config", "set", change]).run().assert_code(2).assert_stderr_has(words);
        assert_eq!(text(&env), FILE, "{change}");
    }
    env.kvmb(["config", "set"]).run().assert_code(2);
    let new = env.path("new/config.json");
    env.kvmb(["config", "set", "backup_freq=nightly"]).env("KVMB_CONFIG", &new).run().assert_code(2);
    assert!(!env.path("new").exists());
    set_mode(&env.config_file(), 0o666);
    env.kvmb(["config", "set", "jobs=3"]).run().assert_code(2).assert_stderr_has("writable by other users");
    assert_eq!(text(&env), FILE);
}

#[test]
fn new_files_are_private_links_are_kept_and_secrets_hidden() {
    let env = env("new");
    let file = env.path("new.json");
    let set = |args: &[&str]| env.kvmb(["config", "set"]).args(args).env("KVMB_CONFIG", &file);
    set(&["-n", "jobs=1"]).run().assert_ok();
    assert!(!file.exists());
    set(&["jobs=1", "--if-sha256", ""]).run().assert_ok();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\n  \"jobs\": 1\n}\n");

    fs::rename(&file, env.path("real.json")).unwrap();
    symlink("real.json", &file).unwrap();
    set_mode(&env.path("real.json"), 0o644);
    let secret = set(&["password_command=echo hunter2", "jobs=2"]).run().assert_ok();
    assert!(!secret.stdout().contains("hunter2") && secret.stdout().contains("(hidden)"), "{secret}");
    assert!(fs::symlink_metadata(&file).unwrap().is_symlink());
    assert!(fs::read_to_string(env.path("real.json")).unwrap().contains("hunter2"));
    assert_eq!(fs::metadata(env.path("real.json")).unwrap().permissions().mode() & 0o777, 0o640, "it has a secret");
    let other = set(&["jobs=3"]).run().assert_ok();
    assert!(!other.stdout().contains("hunter2"), "{other}");
}

#[test]
fn concurrent_changes_are_all_applied() {
    let env = env("concurrent");
    thread::scope(|scope| {
        for number in 0..6 {
            let env = &env;
            scope.spawn(move || {
                env.kvmb(["config", "set", &format!("selected_vms.m{number}=true")]).run().assert_ok();
            });
        }
    });
    let document: serde_json::Value = serde_json::from_str(&text(&env)).unwrap();
    assert_eq!(document["selected_vms"].as_object().unwrap().len(), 7, "{document}");
}

#[test]
fn changed_file_keeps_its_group() {
    use std::os::unix::fs::{MetadataExt, chown};
    let env = env("config group");
    chown(env.config_file(), None, Some(4242)).unwrap();
    set_mode(&env.config_file(), 0o640);
    env.kvmb(["config", "set", "jobs=3"]).run().assert_ok();
    let found = fs::metadata(env.config_file()).unwrap();
    assert_eq!((found.gid(), found.mode() & 0o7777), (4242, 0o640));
}
