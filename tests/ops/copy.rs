//! Copies of points to another repository: the same bytes, re-encrypted, stored once, and no damaged point.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::backups::noise;
use crate::support::chains::{
    MIB, assert_changed, assert_full, assert_restores, backup, backup_with, checkpoint_in, disk_of, finish, id_of,
    init_at, ours, two_disks, verified,
};
use crate::support::sshd::USER;
use crate::support::{Disk, DiskModel, Env, Machine, Output, PASSWORD, set_mode};
use kvmb::failpoint::Failpoint;
use kvmb::ops::Silent;
use kvmb::ops::copy::transfer::Copier;
use kvmb::repo::{BlobKind, Compression, Password, Repository};
use kvmb::retention::Policy;
use kvmb::storage::testing::{FaultStorage, Operation};
use kvmb::storage::{FileKind, LocalStorage};
use serde_json::{Value, json};

/// Creates a repository with its own password, and returns its path and the password file.
fn init_with_own_password(env: &Env, name: &str) -> (String, String) {
    let (repo, file) = (env.repo_named(name), env.path(format!("{name}.pass")));
    fs::write(&file, format!("the password of {name}\n")).expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
    let file = file.display().to_string();
    env.kvmb(["init", "-r", &repo, "--password-file", &file]).run().assert_ok();
    (repo, file)
}

fn points(env: &Env, repo: &str) -> Vec<Value> {
    env.kvmb(["points", "-r", repo]).run().assert_ok().records_of("point")
}

/// Returns every file of a repository except locks, with its size.
fn files(repo: &str) -> BTreeMap<PathBuf, u64> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![PathBuf::from(repo)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("read").flatten().filter(|entry| entry.file_name() != "locks") {
            match entry.metadata().expect("stat") {
                metadata if metadata.is_dir() => folders.push(entry.path()),
                metadata => drop(found.insert(entry.path(), metadata.len())),
            }
        }
    }
    found
}

fn open(repo: &str, password: &str) -> Repository {
    Repository::open(Arc::new(LocalStorage::new(repo)), &Password::new(password.to_owned())).expect("open")
}

/// Makes three points of a machine, and returns them with the state of its disks at each.
fn three_points(machine: &Machine, repo: &str, args: &[&str]) -> Vec<(Value, BTreeMap<String, DiskModel>)> {
    let mut points = Vec::new();
    for round in 0..3 {
        machine.write_bytes("vda", 2 * MIB * round, &noise(round, MIB + 4096));
        machine.write("vdb", MIB * round, 64 * 1024, 0x30 + round as u8);
        points.push((backup_with(machine, repo, args), machine.models()));
    }
    points
}

#[test]
fn points_are_copied_once_and_match_restic_copies() {
    let env = Env::new("copies");
    let machine = two_disks(&env, "vm1");
    let (first, pass) = init_with_own_password(&env, "first");
    let second = init_at(&env, "second");
    let originals = three_points(&machine, &first, &["--password-file", &pass]);
    let script =
        format!("kvmb points -r {first} --password-file {pass} | kvmb push -r {second} --from-password-file {pass}");
    let copies = env.sh(&script).run().assert_ok().records_of("point");
    assert_eq!(copies.len(), 3);
    for (copy, (original, disks)) in copies.iter().zip(&originals) {
        assert_eq!(copy["original"], original["point"]);
        assert_ne!(copy["point"], original["point"], "the snapshot file says that it is a copy");
        assert_eq!(copy["repo"], second.as_str());
        assert_eq!(copy["copied"]["from_repo"], first.as_str());
        assert_eq!(copy["copied"]["from_point"], original["point"]);
        assert_eq!(copy["copied"]["already_there"], false);
        assert_restores(&env, &second, copy, disks);
    }
    // Each point adds its new data: a chunk of vda, and the pieces of another one and of a chunk of vdb, most of which
    // are equal.
    let new = |at: usize| copies[at]["copied"]["new_bytes"].as_u64().expect("new_bytes");
    assert!((MIB..2 * MIB).contains(&new(1)) && (MIB..2 * MIB).contains(&new(2)), "{copies:#?}");

    // Recognised without being copied again: no file is new.
    let before = files(&second);
    let again = env.sh(&script).run().assert_ok().records_of("point");
    assert!(again.iter().all(|copy| copy["copied"]["already_there"] == true), "{again:#?}");
    let ids = |points: &[Value]| points.iter().map(|point| id_of(point).to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&copies));
    assert_eq!(files(&second), before);
    let listed = points(&env, &second);
    assert!(listed.iter().all(|point| point["original"].is_string()), "{listed:#?}");

    // restic recognises kvmb's copies, and kvmb recognises restic's.
    let third = init_at(&env, "third");
    let restic_copy = |to: &str| {
        let restic = env.restic(to);
        restic.call(["copy", "--from-repo", &first, "--from-password-file", &pass]).run().assert_ok();
        restic.snapshots().len()
    };
    assert_eq!(restic_copy(&second), 3);
    assert_eq!(restic_copy(&third), 3);
    let script = script.replace(&second, &third);
    let third_copies = env.sh(&script).run().assert_ok().records_of("point");
    assert!(third_copies.iter().all(|copy| copy["copied"]["already_there"] == true), "{third_copies:#?}");
    // A copy of a copy is still the same point.
    let back = format!("kvmb points -r {third} | kvmb push -r {second}");
    let back = env.sh(&back).run().assert_ok().records_of("point");
    assert!(back.iter().all(|copy| copy["copied"]["already_there"] == true), "{back:#?}");
    finish(&env, &[&second, &third]);
}

#[test]
fn copied_chunks_are_resealed_but_not_recompressed() {
    let env = Env::new("seal");
    let machine = two_disks(&env, "vm1");
    let (first, pass) = init_with_own_password(&env, "first");
    let second = init_at(&env, "second");
    machine.write_bytes("vda", 0, &noise(1, 3 * MIB));
    backup_with(&machine, &first, &["--password-file", &pass]);
    env.sh(&format!(
        "kvmb points -r {first} --password-file {pass} | kvmb push -r {second} --from-password-file {pass}"
    ))
    .run()
    .assert_ok();
    let (from, to) = (open(&first, "the password of first"), open(&second, PASSWORD));
    let (from, to) = (from.load_index().expect("index"), to.load_index().expect("index"));
    for kind in [BlobKind::Data, BlobKind::Tree] {
        let form = |index: &kvmb::repo::Index| -> Vec<_> {
            index.blobs(kind).map(|(id, at)| (id, at.length, at.raw_length, at.compressed)).collect()
        };
        assert_eq!(form(&from), form(&to), "{kind}");
        let is_compressed: Vec<bool> = to.blobs(kind).map(|(_, at)| at.compressed).collect();
        assert!(is_compressed.contains(&true), "{kind}: some are compressed");
        assert!(kind == BlobKind::Tree || is_compressed.contains(&false), "and noise is not");
    }
    let packs = |repo: &str| -> BTreeSet<String> {
        let packs = files(repo).into_keys().filter(|path| path.starts_with(Path::new(repo).join("data")));
        packs.map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect()
    };
    assert!(packs(&first).is_disjoint(&packs(&second)), "the same pack in both: it was not sealed anew");
}

#[test]
fn copies_are_recompressed_on_request() {
    let env = Env::new("harder");
    let machine = two_disks(&env, "vm1");
    let first = init_at(&env, "first");
    let lines: String = (0..MIB / 16).map(|line| format!("line {:9}\n", line * line)).collect();
    machine.write_bytes("vda", 0, lines.as_bytes());
    let plain = backup_with(&machine, &first, &["--compression", "off"]);
    let data = |repo: &str| -> (u64, bool) {
        let index = open(repo, PASSWORD).load_index().expect("index");
        let lengths = index.blobs(BlobKind::Data).map(|(_, at)| u64::from(at.length)).sum();
        (lengths, index.blobs(BlobKind::Data).any(|(_, at)| at.compressed && at.raw_length >= MIB as u32))
    };
    let (plain_bytes, is_compressed) = data(&first);
    assert!(!is_compressed && plain_bytes > MIB, "{plain_bytes} bytes");
    assert_eq!(disk_of(&plain, "vda")["new_bytes"].as_u64(), Some(2 * MIB), "{plain:#}");

    let copy = |from: &str, to: &str, mode: &str| -> (Value, u64) {
        let to_repo = init_at(&env, to);
        let call = env.kvmb(["push", "--from-repo", from, "-r", &to_repo, "--compression", mode, "vm1@latest"]);
        let copied = call.run().assert_ok().record_of("point");
        assert_restores(&env, &to_repo, &copied, &machine.models());
        env.restic(&to_repo).check();
        (copied, data(&to_repo).0)
    };
    let (_, as_it_was) = copy(&first, "same", "off");
    assert_eq!(as_it_was, plain_bytes);
    let (_, fast) = copy(&first, "fast", "fastest");
    let (record, hard) = copy(&env.repo_named("fast"), "hard", "max");
    assert!(hard < fast && fast < plain_bytes, "{hard}, {fast}, {plain_bytes} bytes");
    assert!(record["copied"]["stored_bytes"].as_u64() < Some(fast), "{record:#}");
    // Compressed data is not compressed again.
    let (_, kept) = copy(&env.repo_named("hard"), "kept", "off");
    assert_eq!(kept, hard);
    finish(&env, &[&first]);
}

#[test]
fn finished_copies_are_recognised_without_reading_data() {
    let env = Env::new("known");
    let machine = two_disks(&env, "vm1");
    let (first, second) = (init_at(&env, "first"), init_at(&env, "second"));
    let originals = three_points(&machine, &first, &[]);
    let watched = Arc::new(FaultStorage::new(Arc::new(LocalStorage::new(&first))));
    let source = Repository::open(Arc::clone(&watched) as Arc<_>, &Password::new(PASSWORD.to_owned())).expect("open");
    let target = open(&second, PASSWORD);
    let stop = kvmb::ops::Stop::default();
    let read_bytes = || -> usize {
        let calls = watched.calls().into_iter();
        calls
            .filter(|call| call.operation == Operation::ReadRange && call.kind == Some(FileKind::Pack))
            .map(|call| call.length)
            .sum()
    };
    let copy_all = || {
        let mut copier = Copier::open(&source, &target, Compression::Auto, &Silent, &stop).expect("copier");
        for (point, _) in &originals {
            let point = copier.find(id_of(point)).expect("the point");
            copier.copy(&point, &Silent, &stop).expect("copy");
        }
        let (uuid, now) = (originals[0].0["uuid"].as_str().expect("uuid"), chrono::Local::now().fixed_offset());
        copier.uncopied(uuid, &Policy::default(), now).expect("uncopied").len()
    };
    assert_eq!(copy_all(), 0, "everything is copied");
    let all = read_bytes();
    assert!(all > 3 * MIB as usize, "{all} bytes were read");
    assert_eq!(copy_all(), 0);
    let again = read_bytes() - all;
    assert!(again < 64 * 1024, "{again} bytes were read although nothing was to be copied");
}

/// Flips a bit in the middle of the largest pack.
pub(crate) fn damage_largest_pack(repo: &str) -> PathBuf {
    let packs = files(repo).into_iter().filter(|(path, _)| path.to_string_lossy().contains("/data/"));
    let (path, size) = packs.max_by_key(|(_, size)| *size).expect("a pack");
    let mut bytes = fs::read(&path).expect("read");
    bytes[size as usize / 2] ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::write(&path, bytes).expect("write");
    path
}

#[test]
fn damaged_points_are_reported_and_never_copied() {
    let env = Env::new("damage");
    let machine = two_disks(&env, "vm1");
    let other = env.machine("vm2").disk(Disk::qcow2(4 * MIB)).start_paused();
    other.write("vda", 0, MIB, 0x77);
    let (first, second) = (init_at(&env, "first"), init_at(&env, "second"));
    machine.write_bytes("vda", 4 * MIB, &noise(1, 6 * MIB));
    let hit = backup(&machine, &first);
    let whole = backup(&other, &first);
    let pack = damage_largest_pack(&first);
    let output = env.sh(&format!("kvmb points -r {first} | kvmb push -r {second}")).run().assert_code(4);
    let failure = output.record_of("failure");
    assert_eq!((&failure["code"], &failure["machine"]), (&"damage".into(), &"vm1".into()), "{failure:#}");
    let said = failure["error"].as_str().expect("error");
    assert!(said.contains("disk vda, bytes ") && said.contains(id_of(&hit)), "{said}");
    let copy = output.record_of("point");
    assert_eq!(copy["original"], whole["point"]);
    assert_restores(&env, &second, &copy, &other.models());
    assert_eq!(points(&env, &second).len(), 1, "the damaged point is not there");
    // The same with the pack missing, and with two tiers: the next points are still copied.
    fs::remove_file(pack).expect("remove");
    env.sh(&format!("kvmb points -r {first} | kvmb push -r {second}")).run().assert_code(4);
    let healed = env.kvmb(["backup", "vm1", "--full", "-r", &first, "--copy-to", &second]).run();
    assert_eq!(healed.code(), 4, "the older point is damaged still\n{healed}");
    finish(&env, &[&second]);
}

#[test]
fn copied_point_is_not_the_base_of_another_repositorys_bitmap() {
    let env = Env::new("chains");
    let machine = two_disks(&env, "vm1");
    let (first, second) = (init_at(&env, "first"), init_at(&env, "second"));
    let original = backup(&machine, &first);
    let copied =
        env.sh(&format!("kvmb points -r {first} | kvmb push -r {second}")).run().assert_ok().record_of("point");
    assert_eq!(checkpoint_in(&env, &second, &copied), checkpoint_in(&env, &first, &original), "copied as it is");

    // The second repository starts its own chain, and already has all the data.
    machine.write("vda", 5 * MIB, MIB, 0x55);
    let own = verified(&machine, &second);
    assert_full(&own, "vda", "first backup");
    assert_eq!(disk_of(&own, "vda")["new_bytes"], MIB);
    let theirs = checkpoint_in(&env, &second, &own).expect("a checkpoint");
    assert_ne!(Some(theirs.clone()), checkpoint_in(&env, &first, &original));
    assert_eq!(ours(&machine).len(), 2, "each has its own");

    // Both chains continue separately, regardless of copies in both directions.
    machine.write("vdb", 0, 4096, 0x66);
    assert_changed(&verified(&machine, &first), "vdb", MIB);
    env.sh(&format!("kvmb points -r {first} | kvmb push -r {second}")).run().assert_ok();
    env.sh(&format!("kvmb points -r {second} | kvmb push -r {first}")).run().assert_ok();
    machine.write("vdb", 4 * MIB, 4096, 0x67);
    assert_changed(&verified(&machine, &second), "vdb", 2 * MIB);
    assert_eq!(ours(&machine).len(), 2);
    finish(&env, &[&first, &second]);
}

/// Makes a backup with two tiers, and returns the output.
fn two_tiers(machine: &Machine, first: &str, second: &str) -> Output {
    machine.env().kvmb(["backup", "-r", first, "--copy-to", second, "--", machine.name()]).run()
}

#[test]
fn backup_copies_to_the_second_tier_and_catches_up() {
    let env = Env::new("tiers");
    let machine = two_disks(&env, "vm1");
    let (first, second) = (init_at(&env, "first"), init_at(&env, "second"));
    let early = backup(&machine, &first);
    machine.write("vda", 0, 4096, 1);
    let records = two_tiers(&machine, &first, &second).assert_ok().records_of("point");
    let repos: Vec<&str> = records.iter().map(|point| point["repo"].as_str().expect("repo")).collect();
    assert_eq!(repos, [&first, &second, &second], "the new point, and both copies, the older first");
    assert_eq!(records[1]["original"], early["point"]);
    assert_restores(&env, &second, &records[2], &machine.models());

    // The second tier is missing: the first one's point is stored, and the exit code reports the failure.
    let away = format!("{second}.away");
    fs::rename(&second, &away).expect("rename");
    machine.write("vda", MIB, 4096, 2);
    let output = two_tiers(&machine, &first, &second).assert_code(3);
    assert_eq!(output.record_of("point")["repo"], first.as_str());
    assert_eq!(output.record_of("failure")["code"], "no_repository", "{output}");
    fs::rename(&away, &second).expect("rename");
    machine.write("vda", 2 * MIB, 4096, 3);
    let records = two_tiers(&machine, &first, &second).assert_ok().records_of("point");
    assert_eq!(records.len(), 3, "the new point, and the two that were missing: {records:#?}");
    assert_eq!(points(&env, &first).len(), 4);
    assert_eq!(points(&env, &second).len(), 4);

    // Points that the second tier's retention removed are not copied again; those that were removed manually are.
    env.configure(&json!({ "retention": { "local": { "keep_last": 3 } } }));
    env.kvmb(["prune", "-r", &second, "--copy-to", "", "--gone-machines"]).run().assert_ok();
    assert_eq!(points(&env, &second).len(), 3);
    let records = two_tiers(&machine, &first, &second).assert_ok().records_of("point");
    assert_eq!(records.len(), 2, "{records:#?}");
    let oldest = id_of(&points(&env, &second)[2]).to_owned();
    env.restic(&second).call(["forget", "--prune", &oldest]).run().assert_ok();
    let records = two_tiers(&machine, &first, &second).assert_ok().records_of("point");
    assert_eq!(records.len(), 3, "the new one, and that of the last three that is not there: {records:#?}");
    // With a missing password file, nothing is attempted.
    env.kvmb(["backup", "vm1", "-r", &first, "--copy-to", &second, "--copy-to-password-file", "nothing"])
        .run()
        .assert_code(1)
        .assert_stderr_has("password file");
    assert_eq!(points(&env, &first).len(), 6);
    let rehearsal = env.kvmb(["backup", "vm1", "-n", "-r", &first, "--copy-to", &second]).run().assert_ok();
    assert_eq!(rehearsal.record_of("action")["copy_to"], second.as_str());
    // With a wrong password, the hint names its option.
    fs::write(env.path("other"), "of nobody\n").expect("write");
    set_mode(&env.path("other"), 0o600);
    env.kvmb(["backup", "vm1", "-r", &first, "--copy-to", &second, "--copy-to-password-file", "other"])
        .run()
        .assert_code(3)
        .assert_stderr_has("use --copy-to-password-file FILE");
    finish(&env, &[&first, &second]);
}

#[test]
fn retention_keeps_points_awaiting_a_copy() {
    let env = Env::new("awaits");
    let machine = two_disks(&env, "vm1");
    let (first, second) = (init_at(&env, "first"), init_at(&env, "second"));
    let mut ids = Vec::new();
    for round in 0..4 {
        machine.write("vda", round * MIB, 4096, 0x40 + round as u8);
        ids.push(id_of(&backup(&machine, &first)).to_owned());
        if round == 1 {
            env.sh(&format!("kvmb points -r {first} | kvmb push -r {second}")).run().assert_ok();
        }
    }
    env.configure(&json!({ "retention": { "local": { "keep_last": 1 } } }));
    let prune = |repo: &str, args: &[&str]| {
        let output = env.kvmb(["prune", "-r", repo, "--gone-machines"]).args(args).run().assert_ok();
        let forget = output.records_of("action").into_iter().filter(|action| action["action"] == "forget");
        forget.map(|action| (action["target"].as_str().expect("target").to_owned(), action["rules"].clone())).collect()
    };
    // The second tier's own retention has removed the first point, which does not wait to be copied again.
    let copies: BTreeMap<String, Value> = prune(&second, &[]);
    assert_eq!(copies.len(), 2);
    let rehearsed: BTreeMap<String, Value> = prune(&first, &["--copy-to", &second, "--dry-run"]);
    let rules: Vec<&Value> = ids.iter().map(|id| &rehearsed[id]).collect();
    let kept = |rule: &Value| rule.to_string().contains("awaits_copy");
    assert_eq!(rules.iter().map(|rule| kept(rule)).collect::<Vec<_>>(), [false, false, true, true], "{rehearsed:#?}");
    let _: BTreeMap<String, Value> = prune(&first, &["--copy-to", &second]);
    assert_eq!(points(&env, &first).iter().map(id_of).collect::<Vec<_>>(), ids[2..]);
    // An unreachable second tier: nothing is removed.
    env.kvmb(["prune", "-r", &first, "--keep-last", "1", "--gone-machines", "--copy-to", "nowhere"])
        .run()
        .assert_code(1)
        .assert_stderr_has("nothing was removed, because the points in nowhere cannot be listed");
    assert_eq!(points(&env, &first).len(), 2);
    finish(&env, &[&first, &second]);
}

#[test]
fn older_uncopied_point_awaits_copy_after_a_newer_copy() {
    let env = Env::new("never");
    let machine = two_disks(&env, "vm1");
    let (first, second) = (init_at(&env, "first"), init_at(&env, "second"));
    let mut originals = Vec::new();
    for round in 0..3 {
        machine.write("vda", round * MIB, 4096, 0x50 + round as u8);
        originals.push((backup(&machine, &first), machine.models()));
    }
    let ids: Vec<String> = originals.iter().map(|(point, _)| id_of(point).to_owned()).collect();
    // The newest point, manually.
    env.sh(&format!("kvmb points vm1 -r {first} | tail -n 1 | kvmb push -r {second}")).run().assert_ok();
    let awaiting = || -> Vec<bool> {
        let call = env.kvmb(["prune", "-n", "-r", &first, "--keep-last", "1", "--gone-machines", "--copy-to", &second]);
        let actions = call.run().assert_ok().records_of("action").into_iter();
        let forget = actions.filter(|action| action["action"] == "forget");
        forget.map(|action| action["rules"].to_string().contains("awaits_copy")).collect()
    };
    assert_eq!(awaiting(), [true, true, false], "nothing is ever removed from the second: it never had the older ones");
    env.configure(&json!({ "retention": { "local": { "keep_last": 2 } } }));
    assert_eq!(awaiting(), [false, true, false], "its own retention would keep two");
    env.configure(&json!({ "retention": { "local": { "keep_last": 10 } } }));
    env.kvmb(["prune", "-r", &first, "--keep-last", "1", "--gone-machines", "--copy-to", &second]).run().assert_ok();
    assert_eq!(points(&env, &first).len(), 3, "all are there for the next backup");

    let records = two_tiers(&machine, &first, &second).assert_ok().records_of("point");
    let copied: Vec<&str> = records.iter().filter_map(|point| point["original"].as_str()).collect();
    assert_eq!(copied, [ids[0].as_str(), &ids[1], id_of(&records[0])], "the older ones before the new one");
    for (copy, (_, disks)) in records[1..].iter().zip(&originals) {
        assert_restores(&env, &second, copy, disks);
    }
    assert_eq!(awaiting(), [false; 4]);
    let again = two_tiers(&machine, &first, &second).assert_ok().records_of("point");
    assert_eq!(again.len(), 2, "nothing is copied twice: {again:#?}");
    finish(&env, &[&first, &second]);
}

#[test]
fn configured_backup_server_is_the_second_tier() {
    let env = Env::new("server");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let machine = two_disks(&env, "vm1");
    let first = init_at(&env, "first");
    let folder = sshd.home().join("repo");
    let config = json!({
        "backup_host": "127.0.0.1", "backup_user": USER, "backup_path": folder, "ssh": { "port": sshd.port() },
        "repo": first,
    });
    let file = env.path("config.json");
    fs::write(&file, config.to_string()).expect("write");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
    let server = format!("sftp://{USER}@127.0.0.1:{}/{}", sshd.port(), folder.display());
    env.kvmb(["init", "-r", &server]).run().assert_ok();
    let run =
        |machine: &Machine| env.kvmb(["backup", machine.name(), "--retry-for", "1s", "--config"]).arg(&file).run();
    let records = run(&machine).assert_ok().records_of("point");
    let repos: Vec<&str> = records.iter().map(|point| point["repo"].as_str().expect("repo")).collect();
    assert_eq!(repos, [&first, &server]);
    assert_restores(&env, &server, &records[1], &machine.models());

    sshd.stop();
    machine.write("vda", 0, 4096, 1);
    let output = run(&machine).assert_code(3).assert_stderr_has("cannot connect");
    assert_eq!(output.record_of("point")["repo"], first.as_str());
    // It knows about the first point but not the second; while it is unreachable, nothing is removed.
    let prune = |args: &[&str]| {
        let call = env.kvmb(["prune", "--keep-last", "1", "--retry-for", "1s", "--config"]).arg(&file);
        call.args(args).run()
    };
    machine.write("vda", 2 * MIB, 4096, 3);
    assert_eq!(run(&machine).assert_code(3).record_of("point")["repo"], first.as_str());
    let output = prune(&[]).assert_code(1).assert_stderr_has("nothing was removed");
    assert_eq!(output.record_of("failure")["code"], "unreachable", "{output}");
    assert_eq!(points(&env, &first).len(), 3);
    sshd.run();
    let rules = |output: &Output| -> Vec<String> {
        let forget = output.records_of("action").into_iter().filter(|action| action["action"] == "forget");
        forget.map(|action| action["rules"].to_string()).collect()
    };
    let output = prune(&["--dry-run"]).assert_ok();
    let awaits: Vec<bool> = rules(&output).iter().map(|rules| rules.contains("awaits_copy")).collect();
    assert_eq!(awaits, [false, true, true], "{output}");
    // Its own retention is independent, because it has no second tier.
    let output = prune(&["--dry-run", "-r", &server]).assert_ok();
    assert_eq!(rules(&output), [r#"["last"]"#], "{output}");
    machine.write("vda", MIB, 4096, 2);
    let records = run(&machine).assert_ok().records_of("point");
    assert_eq!(records.len(), 4, "the new point, and the three that the server lacks: {records:#?}");
    assert_restores(&env, &server, &records[3], &machine.models());
    // Now it has all of them, and the rules apply.
    prune(&[]).assert_ok();
    assert_eq!(points(&env, &first).len(), 1);
    assert_eq!(points(&env, &server).len(), 4);
    // Directly to the server: then there is no second tier.
    let straight = env.kvmb(["backup", "vm1", "-r", &server, "--config"]).arg(&file).run().assert_ok();
    assert_eq!(straight.record_of("point")["repo"], server.as_str());
    finish(&env, &[&first, folder.to_str().expect("UTF-8")]);
}

#[test]
fn pipe_pushes_to_two_repositories_and_releases_the_machine() {
    let env = Env::new("pipe");
    let machine = two_disks(&env, "vm1");
    let (first, second) = (init_at(&env, "first"), init_at(&env, "second"));
    let script = format!(
        "kvmb snapshot vm1 -r {first} | kvmb push -r {first} | tee one | kvmb push -r {second} | kvmb release | kvmb \
         verify -r {second}"
    );
    let point = env.sh(&script).run().assert_ok().record_of("point");
    assert_eq!(point["verified"], "full");
    assert_restores(&env, &second, &point, &machine.models());
    assert_eq!(ours(&machine).len(), 1, "the checkpoint stays, for its point was stored");
    // A copy of a repository into itself: nothing to do.
    let itself = env.sh(&format!("kvmb points -r {first} | kvmb push -r {first}")).run().assert_ok().record_of("point");
    assert_eq!(itself["copied"]["already_there"], true);
    // A point that does not exist.
    let gone = "0".repeat(64);
    let script = format!("sed s/{}/{gone}/ one | kvmb push -r {second}", id_of(&points(&env, &first)[0]));
    assert_eq!(env.sh(&script).run().assert_code(1).record_of("failure")["code"], "not_found");
    finish(&env, &[&first, &second]);
}

#[test]
fn copy_killed_at_any_step_leaves_both_repositories_sound() {
    let env = Env::new("killed copies");
    let machine = two_disks(&env, "vm1");
    let first = init_at(&env, "first");
    let originals = three_points(&machine, &first, &[]);
    let records = env.kvmb(["points", "-r", &first]).run().assert_ok();
    for step in Failpoint::COPY {
        let second = init_at(&env, &format!("second-{}", step.name()));
        let copy = || env.kvmb(["push", "-r", &second]).stdin(records.stdout());
        let running = crate::support::backups::stopped_at(copy(), step);
        running.kill();
        running.wait();
        // Its locks still exist.
        for repo in [&first, &second] {
            env.restic(repo).call(["check", "--read-data", "--no-lock"]).run().assert_ok();
        }
        let there = points(&env, &second);
        assert_eq!(there.len(), usize::from(step == Failpoint::CopyStored), "{step:?}");
        let copies = copy().run().assert_ok().records_of("point");
        let known = copies.iter().filter(|copy| copy["copied"]["already_there"] == true).count();
        assert_eq!((copies.len(), known), (3, there.len()), "{step:?}");
        for (copy, (_, disks)) in copies.iter().zip(&originals) {
            assert_restores(&env, &second, copy, disks);
        }
        env.restic(&second).check();
    }
}

#[test]
fn second_repository_that_links_to_the_first_causes_a_warning() {
    let env = Env::new("copy to itself");
    let machine = env.machine("vm1").disk(Disk::qcow2(2 * MIB)).define();
    let (repo, link) = (init_at(&env, "repo"), env.repo_named("link"));
    std::os::unix::fs::symlink(&repo, &link).unwrap();
    let output = env.kvmb(["backup", machine.name(), "-r", &repo, "--copy-to", &link]).run().assert_ok();
    output.assert_stderr_has("are the same folder: there is no second copy");
}
