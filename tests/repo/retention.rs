//! `kvmb prune` and `kvmb pin`: they remove exactly the expected points, and a kill at any step leaves an intact
//! repository.

// A test panics if a result is not what it expects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::backups::{MIB, assert_restores_to, backup, init, names_in, noise, text};
use crate::support::{Disk, DiskModel, Env, Machine, Output, wait_until};
use kvmb::failpoint::Failpoint;
use rustix::process::Signal;
use serde_json::Value;

/// Returns all files in a repository except locks, with sizes.
fn files(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for name in names_in(&folder) {
            let path = folder.join(name);
            match path.is_dir() {
                true if path.ends_with("locks") => {}
                true => folders.push(path),
                false => drop(found.insert(path.clone(), fs::metadata(&path).unwrap().len())),
            }
        }
    }
    found
}

fn prune(env: &Env, args: &[&str]) -> Output {
    env.kvmb(["prune", "-r", &env.repo()]).args(args).run()
}

/// Returns the ids of the points in the repository, oldest first.
fn points(env: &Env) -> Vec<String> {
    let listed = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok();
    listed.records_of("point").iter().map(|point| text(point, "point").to_owned()).collect()
}

/// Returns the points that a prune removes, and those that it keeps with the rules that keep them.
fn verdicts(output: &Output) -> (BTreeSet<String>, BTreeMap<String, Vec<String>>) {
    let (mut gone, mut kept) = (BTreeSet::new(), BTreeMap::new());
    for record in output.records_of("action").iter().filter(|record| record["action"] == "forget") {
        let id = text(record, "target").to_owned();
        let rules = record["rules"].as_array().unwrap().iter().map(|rule| rule.as_str().unwrap().to_owned()).collect();
        match record["changed"] == true {
            true => drop(gone.insert(id)),
            false => drop(kept.insert(id, rules)),
        }
    }
    (gone, kept)
}

fn action(output: &Output, name: &str) -> Value {
    let mut found = output.records_of("action");
    found.retain(|record| record["action"] == name);
    assert_eq!(found.len(), 1, "{output}");
    found.remove(0)
}

/// Creates a machine that is off, with noise on its disk.
fn machine<'e>(env: &'e Env, name: &str) -> Machine<'e> {
    let machine = env.machine(name).disk(Disk::raw(6 * MIB)).define();
    machine.write_bytes("vda", 0, &noise(1, 6 * MIB));
    machine
}

/// Makes points of the machine, each with another mebibyte changed. Returns their ids and their expected disks.
fn history(machine: &Machine, count: u64) -> Vec<(String, BTreeMap<String, DiskModel>)> {
    let one = |number| {
        machine.write_bytes("vda", number % 6 * MIB, &noise(number + 10, MIB));
        (text(&backup(machine), "point").to_owned(), machine.models())
    };
    (0..count).map(one).collect()
}

#[test]
fn retention_rules_remove_points_and_the_chain_continues() {
    let env = Env::new("rules");
    init(&env);
    let root = PathBuf::from(env.repo());
    let vm1 = env.machine("vm1").disk(Disk::qcow2(6 * MIB)).start_paused();
    vm1.write_bytes("vda", 0, &noise(1, 6 * MIB));
    let history = history(&vm1, 4);
    let before = files(&root);

    // Without rules, nothing is removed, and the record says so.
    let output = prune(&env, &[]).assert_ok();
    let (gone, kept) = verdicts(&output);
    assert!(gone.is_empty() && kept.values().all(|rules| rules == &["no_policy"]) && kept.len() == 4, "{output}");
    let record = action(&output, "prune");
    assert_eq!(record["changed"], false);
    assert!(text(&record, "reason").contains("no retention rules"), "{record}");
    assert_eq!(files(&root), before);

    // A dry run changes nothing and reports the same.
    let rehearsal = prune(&env, &["--keep-last", "2", "--max-unused", "0%", "--dry-run"]).assert_ok();
    assert_eq!(files(&root), before);
    assert!(rehearsal.records_of("action").iter().all(|record| record["dry_run"] == true), "{rehearsal}");
    let output = prune(&env, &["--keep-last", "2", "--max-unused", "0%"]).assert_ok();
    assert_eq!(verdicts(&output), verdicts(&rehearsal));
    for field in ["freed_bytes", "removed_packs", "repacked_packs", "size_bytes", "changed"] {
        assert_eq!(action(&output, "prune")[field], action(&rehearsal, "prune")[field], "{field}");
    }
    let (gone, kept) = verdicts(&output);
    assert_eq!(gone, history[..2].iter().map(|(id, _)| id.clone()).collect());
    assert_eq!(kept[&history[3].0], ["last"]);
    assert_eq!(points(&env), history[2..].iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
    env.restic(env.repo()).check();
    for (id, disks) in &history[2..] {
        assert_restores_to(&env, id, disks);
    }

    // The chain continues.
    vm1.write_bytes("vda", 0, &noise(50, MIB));
    let next = backup(&vm1);
    assert_eq!(next["disks"][0]["read_mode"], "changed", "{next}");
    assert_restores_to(&env, text(&next, "point"), &vm1.models());
    // Its parent was removed by another program: everything is read, with the reason.
    env.restic(env.repo()).call(["forget", text(&next, "point"), &history[3].0, "--prune"]).run().assert_ok();
    let next = backup(&vm1);
    assert_eq!(next["disks"][0]["read_mode"], "full", "{next}");
    assert!(!text(&next["disks"][0], "read_mode_reason").is_empty());
    assert_restores_to(&env, text(&next, "point"), &vm1.models());
    env.restic(env.repo()).check();
    // Without flags, the configuration's rules apply.
    fs::write(env.path("config.json"), r#"{"retention": {"local": {"keep_last": 1}, "remote": {"keep_last": 9}}}"#)
        .unwrap();
    let (gone, kept) = verdicts(&prune(&env, &["--dry-run"]).assert_ok());
    assert_eq!((gone.len(), kept.len()), (points(&env).len() - 1, 1));
    assert_eq!(verdicts(&prune(&env, &["--dry-run", "--keep-last", "8"]).assert_ok()).0.len(), 0);
    prune(&env, &["nobody", "--keep-last", "1"]).assert_code(1).assert_stderr_has("no point \"nobody\"");
    prune(&env, &["--keep-last", "many"]).assert_code(2);
    env.assert_nothing_left();
}

#[test]
fn backup_of_one_disk_does_not_expire_the_other_disks() {
    let env = Env::new("prune chosen disks");
    init(&env);
    let machine = env.machine("vm1").disk(Disk::raw(MIB)).disk(Disk::raw(MIB)).define();
    let backup = |disks: &[&str]| {
        let call = env.kvmb(["backup", machine.name(), "-r", &env.repo()]).args(disks);
        text(&call.run().assert_ok().record_of("point"), "point").to_owned()
    };
    let (old, whole) = (backup(&[]), backup(&[]));
    let (other, newest) = (backup(&["--exclude-disk", "vdb"]), backup(&["--disk", "vda"]));
    let planned = prune(&env, &["--keep-last", "1", "-n", "-o", "table"]).assert_ok();
    assert!(planned.stdout().contains("last (with a part that later points leave out)"), "{planned}");
    let (gone, kept) = verdicts(&prune(&env, &["--keep-last", "1", "-n"]).assert_ok());
    assert_eq!(gone, [old.clone(), other.clone()].into());
    assert_eq!(kept.into_keys().collect::<BTreeSet<_>>(), [whole.clone(), newest.clone()].into());
    prune(&env, &["--keep-last", "1"]).assert_ok();
    assert_eq!(points(&env), [whole, newest]);
    // A new point of everything replaces both.
    let all = backup(&[]);
    prune(&env, &["--keep-last", "1"]).assert_ok();
    assert_eq!(points(&env), [all]);
}

#[test]
fn pinned_point_is_kept_and_found_by_either_id() {
    let env = Env::new("pinned");
    init(&env);
    let vm1 = env.machine("vm1").disk(Disk::qcow2(4 * MIB)).start_paused();
    let history = history(&vm1, 3);
    let pin = |args: &[&str]| env.kvmb(["pin", "-r", &env.repo()]).args(args).run().assert_ok().record_of("action");
    let rehearsed = pin(&[&history[0].0, "--dry-run"]);
    assert_eq!((&rehearsed["changed"], text(&rehearsed, "target")), (&Value::Bool(true), &history[0].0[..]));
    let pinned = pin(&[&history[0].0[..10]]);
    let new_id = text(&pinned, "target");
    assert_ne!(new_id, history[0].0);
    assert_eq!(text(&pinned, "previous"), history[0].0);
    assert_eq!(pin(&[new_id])["changed"], false);
    // The newest point, whose bitmap the next backup continues.
    let newest = pin(&["vm1@latest"]);
    vm1.write_bytes("vda", 0, &noise(60, MIB));
    let next = backup(&vm1);
    assert_eq!(next["disks"][0]["read_mode"], "changed", "{next}");
    assert_eq!(next["parent"], newest["target"]);
    // While a capture that continues it is open.
    env.sh("kvmb snapshot vm1 -r $R >captured").run().assert_ok();
    pin(&["vm1@latest"]);
    let pushed = env.sh("kvmb push -r $R <captured | kvmb release").run().assert_ok().record_of("point");
    assert_eq!(pushed["disks"][0]["read_mode"], "changed", "{pushed}");
    pin(&["--undo", &history[2].0]);

    let output = prune(&env, &["--keep-last", "1"]).assert_ok();
    let (gone, kept) = verdicts(&output);
    assert_eq!(gone.len(), 2, "{output}");
    assert_eq!(kept[new_id], ["pinned"]);
    let forget = ["forget", "--keep-last", "1", "--keep-tag", "pinned", "--group-by", "paths", "--dry-run"];
    let said = env.restic(env.repo()).call(forget).run().assert_ok();
    assert!(!said.stdout().contains("remove"), "{said}");
    for name in [new_id, &history[0].0, &history[0].0[..8]] {
        assert_restores_to(&env, name, &history[0].1);
    }
    let listed = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records_of("point");
    assert_eq!(listed[0]["pinned"], true, "{}", listed[0]);
    assert!(listed.last().unwrap().get("pinned").is_none());
    env.sh("kvmb points -r $R | kvmb pin --undo -r $R").run().assert_ok();
    assert!(env.kvmb(["points", "-r", &env.repo()]).run().records().iter().all(|point| point.get("pinned").is_none()));
    env.restic(env.repo()).check();
    env.assert_nothing_left();
}

#[test]
fn points_of_an_undefined_machine_are_kept_unless_requested() {
    let env = Env::new("gone");
    init(&env);
    let (vm1, vm2) = (machine(&env, "vm1"), machine(&env, "vm2"));
    history(&vm1, 3);
    history(&vm2, 2);
    env.virsh(&["undefine", "vm1"]);
    let output = prune(&env, &["--keep-last", "1"]).assert_ok();
    let (gone, kept) = verdicts(&output);
    assert_eq!((gone.len(), kept.len()), (1, 4), "{output}");
    assert_eq!(kept.values().filter(|rules| rules.contains(&"machine_gone".to_owned())).count(), 3);
    // Without libvirt, it is unknown whether the machine exists.
    let output = prune(&env, &["--keep-last", "1", "-c", "test:///nowhere"]).assert_ok();
    assert_eq!(verdicts(&output).0.len(), 0, "{output}");
    output.assert_stderr_has("libvirt cannot tell whether the machine exists");
    // A machine that is named is pruned; the last point is always kept.
    let output = prune(&env, &["vm1", "--keep-last", "2"]).assert_ok();
    assert_eq!(verdicts(&output).0.len(), 1, "{output}");
    let output = prune(&env, &["--keep-last", "1", "--gone-machines"]).assert_ok();
    let (gone, kept) = verdicts(&output);
    assert_eq!((gone.len(), kept.len()), (1, 2), "{output}");
    assert_eq!(points(&env).len(), 2);
    env.restic(env.repo()).check();
    env.assert_nothing_left();
}

/// Prepares a repository in which a prune with `--keep-last 2 --max-unused 0%` reaches every step.
fn scene(env: &Env) -> Vec<(String, BTreeMap<String, DiskModel>)> {
    init(env);
    let vm1 = machine(env, "vm1");
    let history = history(&vm1, 4);
    let name = "0123456789abcdef".repeat(4);
    fs::write(env.path("repo/data/01").join(name), "of a run that was killed").unwrap();
    history
}

#[test]
fn prune_killed_at_any_step_leaves_a_whole_repository() {
    let env = Env::new("killed");
    let history = scene(&env);
    let whole = env.path("whole");
    fs::rename(env.repo(), &whole).unwrap();
    let rules = ["--keep-last", "2", "--max-unused", "0%"];
    for step in Failpoint::PRUNE {
        env.program("cp").args(["-a", "--"]).arg(&whole).arg(env.repo()).run().assert_ok();
        let mut running =
            env.kvmb(["prune", "-r", &env.repo()]).args(rules).env("KVMB_TEST_STOP_AT", step.name()).spawn();
        wait_until(&format!("it stops at {}", step.name()), Duration::from_secs(60), || {
            assert!(!running.has_ended(), "no step {}", step.name());
            running.is_stopped()
        });
        running.kill();
        running.wait();
        // Its lock still exists.
        env.restic(env.repo()).call(["check", "--read-data", "--no-lock"]).run().assert_ok();
        let listed = points(&env);
        assert!(listed.len() >= 2, "{}: {listed:?}", step.name());
        for (id, disks) in history.iter().filter(|(id, _)| listed.contains(id)) {
            assert_restores_to(&env, id, disks);
        }

        let (_, kept) = verdicts(&prune(&env, &rules).assert_ok());
        let stay: BTreeSet<String> = history[2..].iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(kept.into_keys().collect::<BTreeSet<_>>(), stay, "{}", step.name());
        assert_eq!(names_in(&env.path("repo/snapshots")), Vec::from_iter(stay), "{}", step.name());
        env.restic(env.repo()).check();
        let again = prune(&env, &["--max-unused", "0%"]).assert_ok();
        assert_eq!(action(&again, "prune")["changed"], false, "{}: {again}", step.name());
        fs::remove_dir_all(env.repo()).unwrap();
    }
    env.assert_nothing_left();
}

#[test]
fn interrupted_prune_leaves_no_lock() {
    let env = Env::new("stop");
    let history = scene(&env);
    let mut codes = Vec::new();
    for step in [Failpoint::PointForgotten, Failpoint::BlobsCopied, Failpoint::NewIndexStored] {
        let mut running = env
            .kvmb(["prune", "-r", &env.repo(), "--keep-last", "2", "--max-unused", "0%"])
            .env("KVMB_TEST_STOP_AT", step.name())
            .spawn();
        let mut ended = false;
        wait_until("it stops", Duration::from_secs(60), || {
            ended = running.has_ended();
            ended || running.is_stopped()
        });
        if ended {
            // An earlier round has already done that.
            running.wait().assert_ok();
            continue;
        }
        running.interrupt();
        running.signal(Signal::CONT);
        let output = running.wait();
        // After the last step there is nothing left to interrupt.
        assert!([0, 130].contains(&output.code()), "{output}");
        codes.push(output.code());
        assert_eq!(names_in(&env.path("repo/locks")), [""; 0]);
        env.restic(env.repo()).check();
    }
    assert!(codes.contains(&130), "no prune was interrupted: {codes:?}");
    prune(&env, &["--keep-last", "2", "--max-unused", "0%"]).assert_ok();
    for (id, disks) in &history[2..] {
        assert_restores_to(&env, id, disks);
    }
    env.assert_nothing_left();
}

#[test]
fn prune_succeeds_with_little_free_space() {
    let env = Env::new("room");
    let tmpfs = env.tmpfs("small", 96 * MIB);
    let repo = tmpfs.path().join("repo").display().to_string();
    env.kvmb(["init", "-r", &repo]).run().assert_ok();
    let vm1 = env.machine("vm1").disk(Disk::raw(12 * MIB)).define();
    let mut models = Vec::new();
    for number in 0..3 {
        // The third point needs nothing of the first two except half of the second one's data.
        vm1.write_bytes("vda", 0, &noise(number, 6 * MIB));
        if number < 2 {
            vm1.write_bytes("vda", 6 * MIB, &noise(100 + number, 6 * MIB));
        }
        env.kvmb(["backup", "vm1", "-r", &repo]).run().assert_ok();
        models.push(vm1.models());
    }
    // Not enough space for everything that will be repacked: the cheapest packs are repacked first.
    tmpfs.fill_up_to(2 * MIB);
    let output = env.kvmb(["prune", "-r", &repo, "--keep-last", "1", "--max-unused", "0%"]).run().assert_ok();
    let record = action(&output, "prune");
    assert_eq!(record["unused_bytes"], 0, "{output}");
    assert!(record["copied_bytes"].as_u64().unwrap() > 6 * MIB, "{output}");
    assert!(record["freed_bytes"].as_u64().unwrap() > 12 * MIB, "{output}");
    env.restic(&repo).check();
    let restored = env.path("restored");
    fs::create_dir(&restored).unwrap();
    let output = env
        .kvmb(["restore", "vm1", "-r", &repo, "--no-define", "--format", "raw", "--into"])
        .arg(&restored)
        .run()
        .assert_ok();
    for (target, image) in crate::support::backups::images_of(&output.record_of("point")) {
        models[2][&target].assert_image_equals(&image, "raw");
    }
    env.assert_nothing_left();
}
