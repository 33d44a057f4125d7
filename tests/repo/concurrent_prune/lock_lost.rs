//! Runs that lose the repository's lock, or find it taken: nothing is stored without a lock.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::backups::{self, MIB, init, names_in, noise};
use crate::support::call::Running;
use crate::support::{Call, Disk, Env, wait_until};
use kvmb::failpoint::Failpoint;
use rustix::process::Signal;

/// The lifetime of a lock in these tests, in seconds.
const LIFE: u64 = 4;

/// How long a run may take to end after its lock is lost.
const END: Duration = Duration::from_secs(60);

fn files(repo: &Path) -> BTreeSet<String> {
    let of = |folder: &str| names_in(&repo.join(folder));
    let packs = names_in(&repo.join("data")).into_iter().flat_map(|fan| names_in(&repo.join("data").join(fan)));
    packs.chain(of("index")).chain(of("snapshots")).chain(of("keys")).filter(|name| !name.contains("tmp")).collect()
}

fn mortal(call: Call) -> Call {
    call.env("KVMB_TEST_LOCK_LIFE", LIFE.to_string())
}

/// Continues a stopped run whose lock is lost. Fails unless it ends soon with `busy` and stores nothing.
fn assert_ends_busy(repo: &Path, running: Running) {
    let before = files(repo);
    let begun = Instant::now();
    running.signal(Signal::CONT);
    let output = running.wait().assert_code(5);
    assert!(begun.elapsed() < END, "{:?}", begun.elapsed());
    assert_eq!(output.record_of("failure")["code"], "busy", "{output}");
    assert_eq!(files(repo), before, "something was stored without a lock");
}

#[test]
fn suspended_backup_that_lost_its_lock_stores_nothing() {
    // Before packs, before the index, before the point.
    for step in [Failpoint::FirstChunk, Failpoint::AllRead, Failpoint::IndexStored] {
        let env = Env::new("slept");
        let (repo, other) = (init(&env), Env::new("slept beside"));
        let machine = env.machine("vm").disk(Disk::raw(64 * MIB)).define();
        machine.write_bytes("vda", 0, &noise(1, 40 * MIB));
        let backup = || mortal(env.kvmb(["backup", "vm", "-r", &repo]));
        let running = backups::stopped_at(backup(), step);
        thread::sleep(Duration::from_secs(LIFE + 1));
        mortal(other.kvmb(["prune", "-r", &repo])).run().assert_ok();
        assert_ends_busy(&env.path("repo"), running);
        let models = machine.models();
        let point = backup().run().assert_ok().record_of("point");
        env.kvmb(["verify", "vm@latest", "-r", &repo]).run().assert_ok();
        backups::assert_restores_to(&env, backups::text(&point, "point"), &models);
        env.restic(&repo).check();
        env.assert_nothing_left();
    }
}

#[test]
fn backup_with_a_removed_lock_ends_during_a_slow_upload() {
    let env = Env::new("unlocked");
    let repo = init(&env);
    let before = files(&env.path("repo"));
    let machine = env.machine("vm").disk(Disk::raw(64 * MIB)).define();
    machine.write_bytes("vda", 0, &noise(1, 64 * MIB));
    let slow = env.kvmb(["backup", "vm", "-r", &repo, "--limit-upload", "200K"]);
    let mut running = slow.spawn();
    let uploads =
        || names_in(&env.path("repo/data")).iter().any(|fan| !names_in(&env.path("repo/data").join(fan)).is_empty());
    wait_until("it uploads", Duration::from_secs(60), || running.has_ended() || uploads());
    env.restic(&repo).call(["unlock", "--remove-all"]).run().assert_ok();
    let begun = Instant::now();
    running.wait().assert_code(5);
    assert!(begun.elapsed() < END, "{:?}", begun.elapsed());
    assert_eq!(files(&env.path("repo")), before);
    env.assert_nothing_left();
}

#[test]
fn suspended_prune_that_lost_its_lock_removes_nothing() {
    let (env, other) = (Env::new("prune slept"), Env::new("prune slept beside"));
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::raw(MIB)).define();
    for seed in 0..3 {
        machine.write_bytes("vda", 0, &noise(seed, MIB));
        backups::backup(&machine);
    }
    let prune = mortal(other.kvmb(["prune", "-r", &repo, "--keep-last", "1", "--gone-machines"]));
    let running = backups::stopped_at(prune, Failpoint::PrunePlanned);
    thread::sleep(Duration::from_secs(LIFE + 1));
    // Another run adds a point meanwhile.
    machine.write_bytes("vda", 0, &noise(7, MIB));
    mortal(env.kvmb(["backup", "vm", "-r", &repo])).run().assert_ok();
    assert_ends_busy(&env.path("repo"), running);
    assert_eq!(env.kvmb(["points", "-r", &repo]).run().assert_ok().records_of("point").len(), 4);
    env.restic(&repo).check();
}

#[test]
fn incremental_backup_and_prune_started_together_both_succeed() {
    let (env, other) = (Env::new("settle"), Env::new("settle beside"));
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).define();
    backups::backup(&machine);
    for round in 0..8 {
        machine.write_bytes("vda", round * 65536, &noise(round, 65536));
        let backup = env.kvmb(["backup", "vm", "-r", &repo]).spawn();
        // Each time a little later: from before the lock until after it has settled.
        thread::sleep(Duration::from_millis(40 * round));
        let prune = other.kvmb(["prune", "-r", &repo]).spawn();
        backup.wait().assert_ok();
        prune.wait().assert_ok();
    }
    env.kvmb(["verify", "vm@latest", "-r", &repo]).run().assert_ok();
}

#[test]
fn copy_pin_and_key_add_store_nothing_after_losing_the_lock() {
    let (env, other) = (Env::new("others slept"), Env::new("others slept beside"));
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::raw(MIB)).define();
    machine.write_bytes("vda", 0, &noise(1, MIB));
    let point = backups::backup(&machine);
    let id = backups::text(&point, "point");
    let second = env.repo_named("second");
    env.kvmb(["init", "-r", &second]).run().assert_ok();
    std::fs::write(env.path("new.pass"), "another password\n").unwrap();
    crate::support::set_mode(&env.path("new.pass"), 0o600);
    let copied = env.kvmb(["points", "-r", &repo, "-o", "jsonl"]).run().assert_ok();
    let copy = env.kvmb(["push", "-r", &second]).stdin(copied.stdout());
    let key = env.kvmb(["key", "add", "-r", &repo, "--new-password-file"]).arg(env.path("new.pass"));
    let pin = env.kvmb(["pin", id, "-r", &repo]);
    let running = [
        (backups::stopped_at(mortal(copy), Failpoint::CopyBegun), &second),
        (backups::stopped_at(mortal(key), Failpoint::LockTaken), &repo),
        (backups::stopped_at(mortal(pin), Failpoint::LockTaken), &repo),
    ];
    thread::sleep(Duration::from_secs(LIFE + 1));
    for repo in [&repo, &second] {
        mortal(other.kvmb(["prune", "-r", repo])).run().assert_ok();
    }
    for (running, repo) in running {
        assert_ends_busy(Path::new(repo), running);
    }
    env.restic(&repo).check();
    env.restic(&second).check();
}
