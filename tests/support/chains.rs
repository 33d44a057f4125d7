//! Steps of the tests of backup chains: back up, check how it was read, restore, compare every byte.
#![allow(dead_code, reason = "each test program tells its own stories")]

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::call::Running;
use crate::support::{Disk, DiskModel, Env, Machine, Output, wait_until};

pub const MIB: u64 = 1 << 20;

/// The size of a chunk.
pub const CHUNK: u64 = MIB;

/// Starts a machine with two disks that have some content.
pub fn two_disks<'e>(env: &'e Env, name: &str) -> Machine<'e> {
    let machine = env.machine(name).disk(Disk::qcow2(24 * MIB)).disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", MIB, 16 * MIB, 0x11);
    machine.write("vdb", 0, 4 * MIB, 0x22);
    machine
}

/// Creates a repository at [`Env::repo`].
pub fn init(env: &Env) -> String {
    init_at(env, "repo")
}

/// Creates a repository with this name.
pub fn init_at(env: &Env, name: &str) -> String {
    let repo = env.repo_named(name);
    env.kvmb(["init", "-r", &repo]).run().assert_ok();
    repo
}

/// Backs a machine up with these arguments, and returns the output.
pub fn try_backup(machine: &Machine, repo: &str, args: &[&str]) -> Output {
    machine.env().kvmb(["backup", "-r", repo]).args(args).args(["--", machine.name()]).run()
}

/// Backs a machine up, and returns the point.
#[track_caller]
pub fn backup(machine: &Machine, repo: &str) -> Value {
    backup_with(machine, repo, &[])
}

/// Backs a machine up with these arguments, and returns the point.
#[track_caller]
pub fn backup_with(machine: &Machine, repo: &str, args: &[&str]) -> Value {
    try_backup(machine, repo, args).assert_ok().record_of("point")
}

/// Backs a machine up, and compares the restored point with the content of the machine's disks.
#[track_caller]
pub fn verified(machine: &Machine, repo: &str) -> Value {
    let point = backup(machine, repo);
    assert_restores(machine.env(), repo, &point, &machine.models());
    point
}

/// Fails unless the restored point is identical to these disks.
#[track_caller]
pub fn assert_restores(env: &Env, repo: &str, point: &Value, disks: &BTreeMap<String, DiskModel>) {
    let folder = tempfile::Builder::new().prefix("restored").tempdir_in(env.path("")).expect("a folder");
    let restored = env
        .kvmb(["restore", "-r", repo, "--format", "raw", "--no-define", "--into"])
        .arg(folder.path())
        .args(["--", id_of(point)])
        .run()
        .assert_ok()
        .record_of("point");
    let images = restored["restored_to"]["disks"].as_array().expect("disks");
    let mut targets: Vec<&str> = images.iter().map(|disk| disk["disk"].as_str().expect("disk")).collect();
    targets.sort_unstable();
    assert_eq!(targets, disks.keys().collect::<Vec<_>>(), "other disks were restored");
    for image in images {
        let path = image["path"].as_str().expect("path");
        disks[image["disk"].as_str().expect("disk")].assert_image_equals(path.as_ref(), "raw");
    }
}

/// Returns a point's id.
pub fn id_of(point: &Value) -> &str {
    point["point"].as_str().expect("a point")
}

/// Returns the record of a point's disk.
#[track_caller]
pub fn disk_of(point: &Value, target: &str) -> Value {
    let disks = point["disks"].as_array().expect("disks");
    disks.iter().find(|disk| disk["disk"] == target).unwrap_or_else(|| panic!("no {target} in {point:#}")).clone()
}

/// Fails unless only changed data of a disk was read: this many bytes, plus at most two chunks of the audit.
#[track_caller]
pub fn assert_changed(point: &Value, target: &str, bytes: u64) {
    let disk = disk_of(point, target);
    assert_eq!(disk["read_mode"], "changed", "{disk:#}");
    assert_eq!(disk.get("read_mode_reason"), None, "{disk:#}");
    let read = disk["read_bytes"].as_u64().expect("read_bytes");
    assert!((bytes..=bytes + 2 * CHUNK).contains(&read), "{read} bytes were read, {bytes} changed: {disk:#}");
}

/// Fails unless a disk was read in full, for a reason that contains these words.
#[track_caller]
pub fn assert_full(point: &Value, target: &str, reason: &str) {
    let disk = disk_of(point, target);
    assert_eq!(disk["read_mode"], "full", "{disk:#}");
    let said = disk["read_mode_reason"].as_str().unwrap_or_else(|| panic!("no reason: {disk:#}"));
    assert!(said.contains(reason), "the reason is {said:?} and not {reason:?}");
}

/// Returns the machine's checkpoints that kvmb created.
pub fn ours(machine: &Machine) -> Vec<String> {
    machine.checkpoints().into_iter().filter(|name| name.starts_with("kvmb-")).collect()
}

/// Returns the checkpoint from which the next point can continue, as recorded in the manifest.
pub fn checkpoint_in(env: &Env, repo: &str, point: &Value) -> Option<String> {
    let machine = point["machine"].as_str().expect("machine");
    let manifest = env.restic(repo).dump(id_of(point), &format!("/{machine}/point.json"));
    let manifest: Value = serde_json::from_slice(&manifest).expect("point.json");
    manifest["checkpoint"].as_str().map(str::to_owned)
}

/// Fails unless restic finds no errors in these repositories and no capture has left anything behind.
#[track_caller]
pub fn finish(env: &Env, repos: &[&str]) {
    env.assert_nothing_left();
    for repo in repos {
        env.restic(*repo).check();
    }
}

/// Starts a backup that stops itself at a failpoint, and waits until it has stopped. Returns the output if the run
/// ended without reaching the failpoint.
pub fn stopped_at(machine: &Machine, repo: &str, step: &str, args: &[&str]) -> Result<Running, Output> {
    let call = machine.env().kvmb(["backup", "-r", repo]).args(args).args(["--", machine.name()]);
    let mut running = call.env("KVMB_TEST_STOP_AT", step).spawn();
    let mut ended = false;
    wait_until(&format!("kvmb is at {step}"), Duration::from_secs(60), || {
        ended = running.has_ended();
        ended || running.is_stopped()
    });
    if ended { Err(running.wait()) } else { Ok(running) }
}

/// Lets a stopped run continue to its end.
pub fn go_on(running: Running) -> Output {
    running.signal(Signal::CONT);
    running.wait()
}
