//! `kvmb backup --prune`: what it removes, in which order, and that the backup counts regardless of the prune.

// A test panics if a result is not what it expects.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::backups::{MIB, assert_restores_to, init, noise, text};
use crate::support::{Call, Disk, Env, Machine, Output, PASSWORD};
use kvmb::repo::{LockMode, LockTiming, Password, Repository};
use kvmb::storage::LocalStorage;
use serde_json::{Value, json};

/// Prepares a machine that is off, an empty repository, and a rule that keeps this many points.
fn prepared<'e>(env: &'e Env, keep_last: u32) -> Machine<'e> {
    init(env);
    configure(env, keep_last, json!({}));
    let machine = env.machine("vm1").disk(Disk::raw(4 * MIB)).define();
    machine.write_bytes("vda", 0, &noise(1, 4 * MIB));
    machine
}

fn configure(env: &Env, keep_last: u32, more: Value) {
    let mut config = json!({"repo": env.repo(), "retention": {"local": {"keep_last": keep_last}}});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    env.configure(&config);
}

fn backup(env: &Env, args: &[&str]) -> Call {
    env.kvmb([&["backup", "vm1"], args].concat())
}

/// Returns the ids of the points in a repository, oldest first.
fn points(env: &Env, repo: &str) -> Vec<String> {
    let listed = env.kvmb(["points", "-r", repo]).run().assert_ok();
    listed.records_of("point").iter().map(|point| text(point, "point").to_owned()).collect()
}

fn id(output: &Output) -> String {
    text(&output.records_of("point")[0], "point").to_owned()
}

/// Returns the types and actions of the records, in order.
fn kinds(output: &Output) -> Vec<String> {
    let kind = |record: &Value| record["action"].as_str().unwrap_or_else(|| text(record, "type")).to_owned();
    output.records().iter().map(kind).collect()
}

/// Returns the retention check of `kvmb status`.
fn retention_check(env: &Env) -> Value {
    let checks = env.kvmb(["status"]).run().assert_ok().records_of("check");
    checks.into_iter().find(|check| check["check"] == "retention").expect("no check of retention")
}

/// Takes a lock, like another process.
fn locked_by_another(repo: &Path) -> kvmb::repo::RepoLock {
    let opened = Repository::open(Arc::new(LocalStorage::new(repo)), &Password::new(PASSWORD.to_owned())).unwrap();
    opened.lock_with(LockMode::Shared, Duration::ZERO, LockTiming::default()).unwrap()
}

#[test]
fn backup_with_prune_removes_old_points_after_storing_the_new() {
    let env = Env::new("prune after");
    let vm1 = prepared(&env, 2);
    backup(&env, &[]).run().assert_ok();
    assert_eq!(retention_check(&env)["detail"], "not pruned yet");
    let second = id(&backup(&env, &[]).run().assert_ok());
    // Without the option, nothing is removed.
    assert_eq!(points(&env, &env.repo()).len(), 2);
    let planned = backup(&env, &["--prune", "--dry-run"]).run().assert_ok();
    assert_eq!(kinds(&planned), ["backup", "prune"], "{planned}");
    let record = &planned.records()[1];
    assert_eq!((&record["dry_run"], text(record, "target")), (&json!(true), env.repo().as_str()));
    assert_eq!(record["reason"], "would be pruned after the backup: keep-last 2");
    assert_eq!(points(&env, &env.repo()).len(), 2);

    vm1.write_bytes("vda", 0, &noise(2, MIB));
    let output = backup(&env, &["--prune"]).run().assert_ok();
    assert_eq!(kinds(&output), ["point", "forget", "prune"], "{output}");
    let prune = &output.records()[2];
    assert_eq!((&prune["removed_points"], &prune["kept_points"]), (&json!(1), &json!(2)), "{prune}");
    assert_eq!(points(&env, &env.repo()), [second, id(&output)]);
    assert_restores_to(&env, &id(&output), &vm1.models());
    assert!(text(&retention_check(&env), "detail").starts_with("pruned "));

    // The configuration can enable it too; a flag takes precedence.
    configure(&env, 2, json!({"prune_after_backup": true}));
    backup(&env, &["--no-prune"]).run().assert_ok();
    assert_eq!(points(&env, &env.repo()).len(), 3);
    assert_eq!(kinds(&backup(&env, &[]).run().assert_ok()), ["point", "forget", "forget", "prune"]);
    assert_eq!(points(&env, &env.repo()).len(), 2);
    // A table has one sentence about it.
    let table = backup(&env, &["-o", "table"]).run().assert_ok();
    assert!(table.stdout().contains("removed 1 of 3 points, freed "), "{table}");
    env.restic(env.repo()).check();
    env.assert_nothing_left();
}

#[test]
fn failed_copy_postpones_the_prune_after_a_backup() {
    let env = Env::new("prune copies");
    let vm1 = prepared(&env, 1);
    let second = env.repo_named("second");
    env.kvmb(["init", "-r", &second]).run().assert_ok();
    let args = ["--prune", "--copy-to", &second];
    backup(&env, &args).run().assert_ok();
    vm1.write_bytes("vda", 0, &noise(3, MIB));
    let output = backup(&env, &args).run().assert_ok();
    // Both repositories have rules, and both are pruned.
    let pruned: Vec<Value> = output.records_of("action").into_iter().filter(|a| a["action"] == "prune").collect();
    assert_eq!(pruned.iter().map(|a| text(a, "target")).collect::<Vec<_>>(), [&env.repo(), &second], "{output}");
    assert!(pruned.iter().all(|action| action["removed_points"] == 1), "{output}");
    assert_eq!((points(&env, &env.repo()).len(), points(&env, &second).len()), (1, 1));

    fs::rename(&second, env.path("away")).unwrap();
    let output = backup(&env, &args).run().assert_code(3);
    assert!(output.records_of("action").is_empty(), "{output}");
    let failures = output.records_of("failure");
    assert_eq!(failures.len(), 2, "{output}");
    assert!(text(&failures[1], "error").starts_with("the backup is complete, but "), "{output}");
    output.assert_stderr_has("kvmb: warning: the backup is complete, but ");
    assert_eq!(points(&env, &env.repo()).len(), 2);

    fs::rename(env.path("away"), &second).unwrap();
    let output = backup(&env, &args).run().assert_ok();
    assert_eq!((points(&env, &env.repo()).len(), points(&env, &second).len()), (1, 1), "{output}");
    assert_restores_to(&env, &id(&output), &vm1.models());
    env.assert_nothing_left();
}

#[test]
fn failed_prune_after_a_backup_keeps_the_new_point() {
    let env = Env::new("prune fails");
    let vm1 = prepared(&env, 1);
    backup(&env, &[]).run().assert_ok();
    let models = vm1.models();
    vm1.write_bytes("vda", 0, &noise(4, MIB));
    let held = locked_by_another(Path::new(&env.repo()));
    let output = backup(&env, &["--prune"]).env("KVMB_TEST_LOCK_WAIT", "2").run().assert_code(3);
    drop(held);
    assert_eq!(kinds(&output), ["point", "failure"], "{output}");
    assert_eq!(output.records()[1]["code"], "busy");
    assert_restores_to(&env, &id(&output), &vm1.models());
    output.assert_stderr_has("kvmb: warning: the backup is complete, but ");
    let check = retention_check(&env);
    assert_eq!((&check["status"], &check["last_result"]), (&json!("ok"), &json!("busy")), "{check}");

    // Damage: nothing is removed, and the exit code is that of damage.
    let oldest = points(&env, &env.repo())[0].clone();
    let snapshot = env.path("repo/snapshots").join(&oldest);
    let whole = fs::read(&snapshot).unwrap();
    fs::write(&snapshot, &whole[1..]).unwrap();
    let output = backup(&env, &["--prune"]).run().assert_code(4);
    assert_eq!(kinds(&output), ["point", "failure"], "{output}");
    assert_eq!(output.records()[1]["code"], "damage");
    fs::write(&snapshot, &whole).unwrap();
    assert_eq!(points(&env, &env.repo()).len(), 3);
    assert_restores_to(&env, &oldest, &models);

    // A run that stores nothing removes nothing.
    configure(&env, 1, json!({"hooks": {"before_machine": [{"command": ["false"]}]}}));
    let output = backup(&env, &["--prune"]).run().assert_code(1);
    assert_eq!(kinds(&output), ["failure"], "{output}");
    output.assert_stderr_has("nothing was pruned because no machine was backed up");
    assert_eq!(points(&env, &env.repo()).len(), 3);
    env.assert_nothing_left();
}

#[test]
fn backup_with_prune_is_refused_without_retention_rules() {
    let env = Env::new("prune rules");
    prepared(&env, 1);
    env.configure(&json!({"repo": env.repo(), "retention": {"remote": {"keep_last": 3}}}));
    for args in [&["--prune"][..], &["--prune", "--dry-run"]] {
        let output = backup(&env, args).run().assert_code(2);
        assert_eq!(kinds(&output), ["failure"], "{output}");
        output.assert_stderr_has("no retention rules").assert_stderr_has("kvmb: hint: set the rules in the config");
    }
    env.configure(&json!({"repo": env.repo(), "prune_after_backup": true}));
    backup(&env, &[]).run().assert_code(2);
    assert!(points(&env, &env.repo()).is_empty());
    backup(&env, &["--no-prune"]).run().assert_ok();
    let output = env.kvmb(["schedule", "install", "--dry-run", "--prune", "vm1"]).run().assert_code(2);
    output.assert_stderr_has("--prune needs retention rules");
    env.assert_nothing_left();
}
