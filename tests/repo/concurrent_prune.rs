//! Prunes concurrent with other commands: several writers, kvmb and restic, on one repository; hosts that died; servers
//! that do not remove files.

// A test panics if a result is not what it expects.

mod creation;
mod lock_lost;

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::backups::{MIB, backup, init, names_in, noise, text};
use crate::support::{Disk, DiskModel, Env, Machine, Output, PASSWORD, wait_until};
use kvmb::repo::{LockMode, LockTiming, Password, Repository};
use kvmb::storage::LocalStorage;
use rand::Rng;

/// How long the other commands run.
const TOGETHER: Duration = Duration::from_secs(25);

/// The expected disks of a point.
type Models = BTreeMap<String, DiskModel>;

/// Counters of a test's threads.
#[derive(Default)]
struct Counts {
    backups: AtomicUsize,
    restic_backups: AtomicUsize,
    prunes: AtomicUsize,
    forgotten: AtomicUsize,
    restic_prunes: AtomicUsize,
    busy: AtomicUsize,
}

impl Counts {
    /// Whether a call succeeded. A busy repository is not a failure.
    fn is_done(&self, output: &Output, done: &AtomicUsize) -> bool {
        match output.code() {
            0 => drop(done.fetch_add(1, Ordering::Relaxed)),
            5 => drop(self.busy.fetch_add(1, Ordering::Relaxed)),
            _ => panic!("{output}"),
        }
        output.code() == 0
    }
}

fn pause() {
    thread::sleep(Duration::from_millis(rand::rng().random_range(100..900)));
}

/// Backs up a machine repeatedly, each time with different data on its disk.
fn keep_backing_up(
    machine: &Machine,
    repo: &str,
    end: Instant,
    counts: &Counts,
    stored: &Mutex<BTreeMap<String, Models>>,
) {
    let mut seed = rand::rng().random::<u64>();
    while Instant::now() < end {
        seed += 1;
        machine.write_bytes("vda", seed % 4 * MIB, &noise(seed, MIB));
        let models = machine.models();
        let output = machine.env().kvmb(["backup", "--verify", "-r", repo, "--", machine.name()]).run();
        if counts.is_done(&output, &counts.backups) {
            stored.lock().unwrap().insert(text(&output.record_of("point"), "point").to_owned(), models);
        }
        pause();
    }
}

/// Runs restic's own backups, and its `forget --prune` alternating with kvmb's.
fn keep_restic_busy(env: &Env, repo: &str, end: Instant, counts: &Counts) {
    let source = env.path("source");
    fs::create_dir(&source).unwrap();
    let mut seed = 7_000;
    while Instant::now() < end {
        seed += 1;
        fs::write(source.join(format!("file{}", seed % 3)), noise(seed, MIB)).unwrap();
        let output = env.restic(repo).call(["backup", "--tag", "restic"]).arg(&source).run();
        match output.stderr().contains("lock") {
            true => drop(counts.busy.fetch_add(1, Ordering::Relaxed)),
            false => drop(output.assert_ok()),
        }
        counts.restic_backups.fetch_add(1, Ordering::Relaxed);
        pause();
    }
}

fn keep_pruning(env: &Env, repo: &str, end: Instant, counts: &Counts) {
    for round in 0.. {
        if Instant::now() >= end {
            return;
        }
        if round % 3 == 2 {
            let forget = ["forget", "--keep-last", "2", "--group-by", "paths", "--prune", "--max-unused", "0"];
            let output = env.restic(repo).call(forget).run();
            match output.stderr().contains("lock") {
                true => drop(counts.busy.fetch_add(1, Ordering::Relaxed)),
                false => {
                    output.assert_ok();
                    counts.restic_prunes.fetch_add(1, Ordering::Relaxed);
                }
            }
        } else {
            let output = env.kvmb(["prune", "-r", repo, "--keep-last", "2", "--max-unused", "0%"]).run();
            if counts.is_done(&output, &counts.prunes) {
                let records = output.records_of("action");
                let gone = records.iter().filter(|r| r["action"] == "forget" && r["changed"] == true).count();
                counts.forgotten.fetch_add(gone, Ordering::Relaxed);
            }
        }
        pause();
    }
}

#[test]
fn concurrent_backups_and_prunes_lose_no_data() {
    let (env1, env2) = (Env::new("together 1"), Env::new("together 2"));
    let repo = init(&env1);
    let make = |env| {
        let machine = Env::machine(env, "vm").disk(Disk::raw(4 * MIB)).define();
        machine.write_bytes("vda", 0, &noise(5, 4 * MIB));
        machine
    };
    let (vm1, vm2) = (make(&env1), make(&env2));
    let (counts, stored) = (Counts::default(), Mutex::new(BTreeMap::new()));
    let end = Instant::now() + TOGETHER;
    thread::scope(|scope| {
        scope.spawn(|| keep_backing_up(&vm1, &repo, end, &counts, &stored));
        scope.spawn(|| keep_backing_up(&vm2, &repo, end, &counts, &stored));
        scope.spawn(|| keep_restic_busy(&env1, &repo, end, &counts));
        scope.spawn(|| keep_pruning(&env2, &repo, end, &counts));
    });
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    println!(
        "{} backups, {} of restic's, {} prunes that forgot {} points, {} of restic's, {} times busy",
        count(&counts.backups),
        count(&counts.restic_backups),
        count(&counts.prunes),
        count(&counts.forgotten),
        count(&counts.restic_prunes),
        count(&counts.busy)
    );
    assert!(count(&counts.backups) > 3 && count(&counts.restic_backups) > 1, "nobody came to write");
    assert!(count(&counts.prunes) > 0, "nobody came to prune");
    env1.restic(&repo).check();
    let listed = env1.kvmb(["points", "-r", &repo]).run().assert_ok().records_of("point");
    assert!(!listed.is_empty());
    let stored = stored.into_inner().unwrap();
    for point in &listed {
        let models = &stored[text(point, "point")];
        crate::support::backups::assert_restores_to(&env1, text(point, "point"), models);
    }
    env1.assert_nothing_left();
    env2.assert_nothing_left();
}

/// Starts a backup and kills it as soon as it has stored a pack that no index lists. Returns its output if it finished
/// earlier.
fn killed_backup(machine: &Machine, repo: &str) -> Option<Output> {
    let env = machine.env();
    let has_noted = || {
        let repositories = fs::read_dir(env.path("data/repositories")).into_iter().flatten().flatten();
        let folders = repositories.flat_map(|repository| fs::read_dir(repository.path().join("unfinished")));
        folders.flatten().flatten().any(|file| file.metadata().is_ok_and(|file| file.len() > 0))
    };
    let mut running = env.kvmb(["backup", "-r", repo, "--limit-upload", "24M", "--", machine.name()]).spawn();
    // The record of the previous run is gone once this one has opened the repository.
    wait_until("it has opened the repository", Duration::from_secs(60), || running.has_ended() || !has_noted());
    wait_until("it has stored a pack", Duration::from_secs(60), || running.has_ended() || has_noted());
    if running.has_ended() {
        return Some(running.wait());
    }
    crate::support::process::kill(running.pid());
    running.wait();
    wait_until("its servers are gone", Duration::from_secs(60), || machine.servers().is_empty());
    None
}

/// Backs up a machine with many changes, and kills every second run.
fn keep_being_killed(
    machine: &Machine,
    repo: &str,
    end: Instant,
    counts: &Counts,
    stored: &Mutex<BTreeMap<String, Models>>,
) -> usize {
    let (mut seed, mut killed) = (rand::rng().random::<u64>(), 0);
    let store = |output: &Output, models: Models| {
        if counts.is_done(output, &counts.backups) {
            stored.lock().unwrap().insert(text(&output.record_of("point"), "point").to_owned(), models);
        }
    };
    while Instant::now() < end {
        seed = seed.wrapping_add(1);
        machine.write_bytes("vda", 0, &noise(seed, 40 * MIB));
        match killed_backup(machine, repo) {
            Some(output) => store(&output, machine.models()),
            None => killed += 1,
        }
        let output = machine.env().kvmb(["backup", "-r", repo, "--", machine.name()]).run();
        store(&output, machine.models());
    }
    killed
}

#[test]
fn killed_backups_with_concurrent_prunes_lose_no_data() {
    let (env1, env2) = (Env::new("killed 1"), Env::new("killed 2"));
    let repo = init(&env1);
    let machine = env1.machine("vm").disk(Disk::raw(40 * MIB)).define();
    let other = env2.machine("vm").disk(Disk::raw(4 * MIB)).define();
    let (counts, stored) = (Counts::default(), Mutex::new(BTreeMap::new()));
    let end = Instant::now() + TOGETHER;
    let killed = thread::scope(|scope| {
        let killed = scope.spawn(|| keep_being_killed(&machine, &repo, end, &counts, &stored));
        scope.spawn(|| keep_backing_up(&other, &repo, end, &counts, &stored));
        scope.spawn(|| keep_pruning(&env2, &repo, end, &counts));
        killed.join().unwrap()
    });
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    // Once more, without a prune in between.
    machine.write_bytes("vda", 0, &noise(1, 40 * MIB));
    assert!(killed_backup(&machine, &repo).is_none(), "it is too fast for this test");
    let (models, point) = (machine.models(), backup(&machine));
    stored.lock().unwrap().insert(text(&point, "point").to_owned(), models);
    let log = fs::read_to_string(env1.log_file()).unwrap();
    let adopted = log.lines().filter(|line| line.contains("packs of an interrupted run")).count();
    println!(
        "{} backups, {killed} killed, {adopted} went on, {} prunes that forgot {} points, {} of restic's, {} times \
         busy",
        count(&counts.backups),
        count(&counts.prunes),
        count(&counts.forgotten),
        count(&counts.restic_prunes),
        count(&counts.busy)
    );
    assert!(killed > 0 && adopted > 0 && count(&counts.prunes) > 0, "nothing came together");
    env1.restic(&repo).check();
    let stored = stored.into_inner().unwrap();
    for point in &env1.kvmb(["points", "-r", &repo]).run().assert_ok().records_of("point") {
        crate::support::backups::assert_restores_to(&env1, text(point, "point"), &stored[text(point, "point")]);
    }
    env1.assert_nothing_left();
    env2.assert_nothing_left();
}

#[test]
fn lock_of_a_dead_host_blocks_until_stale() {
    let env = Env::new("dead host");
    init(&env);
    let vm1 = env.machine("vm1").disk(Disk::raw(MIB)).define();
    backup(&vm1);
    // On a host with another name, which then dies: no other host can check whether the process is alive.
    let script = "hostname deadhost && exec kvmb prune -r $R --keep-last 1";
    let mut running = env
        .program("unshare")
        .args(["--uts", "/bin/sh", "-c", script])
        .env("R", env.repo())
        .env("KVMB_TEST_STOP_AT", "PrunePlanned")
        .spawn();
    wait_until("it holds the lock", Duration::from_secs(60), || {
        assert!(!running.has_ended());
        running.is_stopped()
    });
    running.kill();
    running.wait();
    assert_eq!(names_in(&env.path("repo/locks")).len(), 1);

    for command in [&["prune", "--keep-last", "1"][..], &["backup", "vm1"]] {
        let running = env.kvmb(command).args(["-r", &env.repo(), "-vv"]).spawn();
        wait_until("it names the holder", Duration::from_secs(60), || running.stderr_so_far().contains("on deadhost"));
        running.interrupt();
        running.wait().assert_code(130);
    }
    // Half an hour later, which is simulated here.
    let storage = Arc::new(LocalStorage::new(env.repo()));
    let repo = Repository::open(storage, &Password::new(PASSWORD.to_owned())).unwrap();
    let timing = LockTiming { stale: Duration::from_millis(100), ..LockTiming::default() };
    repo.lock_with(LockMode::Exclusive, Duration::ZERO, timing).unwrap().release().unwrap();
    assert_eq!(names_in(&env.path("repo/locks")), [""; 0]);
    env.kvmb(["prune", "-r", &env.repo(), "--keep-last", "1"]).run().assert_ok();
    backup(&vm1);
    env.restic(env.repo()).check();
    env.assert_nothing_left();
}

#[test]
fn append_only_server_accepts_backups_and_refuses_prune() {
    let env = Env::new("append-only");
    let sshd = env.sshd_with("ForceCommand internal-sftp -P remove,rmdir\n");
    sshd.trust_host_key();
    let (folder, url) = (sshd.home().join("repo"), sshd.url("repo"));
    let kvmb = |args: &[&str]| env.kvmb(args).args(["-r", &url]).run();
    kvmb(&["init"]).assert_ok();
    let vm1 = env.machine("vm1").disk(Disk::raw(2 * MIB)).define();
    for round in 0..3 {
        vm1.write_bytes("vda", 0, &noise(round, MIB));
        kvmb(&["backup", "vm1"]).assert_ok();
    }
    let output = kvmb(&["prune", "--keep-last", "1"]);
    assert!([1, 3].contains(&output.code()), "{output}");
    let failure = output.record_of("failure");
    assert_eq!(failure["code"], "permission", "{output}");
    assert!(text(&failure, "error").contains("refuses to remove"), "{output}");
    assert!(text(&failure, "hint").contains("append-only"), "{output}");
    vm1.write_bytes("vda", 0, &noise(9, MIB));
    kvmb(&["backup", "vm1"]).assert_ok();
    let points = kvmb(&["points"]).assert_ok().records_of("point");
    assert_eq!(points.len(), 4);
    // Its own user may remove files.
    env.kvmb(["prune", "--keep-last", "1", "-r"]).arg(&folder).run().assert_ok();
    assert_eq!(kvmb(&["points"]).assert_ok().records_of("point").len(), 1);
    // Locks of earlier runs still exist.
    env.restic(folder.display().to_string()).call(["check", "--read-data", "--no-lock"]).run().assert_ok();
    env.assert_nothing_left();
}
