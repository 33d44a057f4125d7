//! A run that ended before it had indexed its packs: the next run finds them and uploads only the rest.

// A test panics if a result is not what it expects.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::support::backups::{MIB, noise, text};
use crate::support::call::Running;
use crate::support::repo::Home;
use crate::support::{Disk, Env, Machine, process, wait_until};
use kvmb::repo::{BlobKind, Id, Index, LockMode, Repository, Writer, WriterOptions};
use kvmb::storage::testing::{FaultEffect, FaultStorage, InjectedFault, Operation};
use kvmb::storage::{FileKind, Storage};

// --- complete runs of the program

/// The size of the disk: all new, and incompressible.
const DISK_BYTES: u64 = 96 * MIB;
/// The disk data in a pack: chunks of 1 MiB up to 16 MiB.
const PACK_BYTES: u64 = 16 * MIB;
/// Slow enough to be interrupted halfway.
const SLOWLY: [&str; 2] = ["--limit-upload", "12M"];

fn machine(env: &Env) -> Machine<'_> {
    machine_with(env, DISK_BYTES)
}

fn machine_with(env: &Env, bytes: u64) -> Machine<'_> {
    let machine = env.machine("vm1").disk(Disk::raw(bytes)).define();
    machine.write_bytes("vda", 0, &noise(7, bytes));
    machine
}

/// Returns the files in which runs have recorded their packs.
fn notes(env: &Env) -> Vec<PathBuf> {
    let repositories = fs::read_dir(env.path("data/repositories")).into_iter().flatten().flatten();
    let folders = repositories.map(|repository| repository.path().join("unfinished"));
    folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()).map(|file| file.path()).collect()
}

fn noted_packs(env: &Env) -> BTreeSet<String> {
    let text: String = notes(env).iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect();
    text.lines().map(str::to_owned).collect()
}

fn packs(repo: &Path) -> BTreeSet<String> {
    let fans = fs::read_dir(repo.join("data")).unwrap().flatten();
    let names = fans.flat_map(|fan| fs::read_dir(fan.path()).unwrap().flatten());
    names.map(|file| file.file_name().into_string().unwrap()).filter(|name| !name.contains("-tmp-")).collect()
}

fn wait_for_packs(env: &Env, running: &mut Running, count: usize) {
    wait_until("packs are stored", Duration::from_secs(60), || {
        assert!(!running.has_ended(), "it is too fast for this test");
        noted_packs(env).len() >= count
    });
}

/// Fails unless the next run stores only what the previous one has not stored.
fn assert_goes_on(env: &Env, machine: &Machine, url: &str, folder: &Path) {
    let (noted, before) = (noted_packs(env), packs(folder));
    assert!(noted.len() >= 2 && noted.is_subset(&before), "{noted:?}\n{before:?}");
    assert!(
        fs::read_dir(folder.join("index")).unwrap().next().is_none(),
        "an index was saved: this test shows nothing"
    );
    let point = env.kvmb(["backup", "vm1", "-r", url]).run().assert_ok().record_of("point");
    // Packs of small files and of trees may be among them.
    let chunks_in = |pack: &String| fs::metadata(folder.join("data").join(&pack[..2]).join(pack)).unwrap().len() / MIB;
    let rest = DISK_BYTES - noted.iter().map(chunks_in).sum::<u64>() * MIB;
    assert_eq!(point["disks"][0]["new_bytes"], rest, "{point:#}");
    // One pack of trees; the small files of a point share a pack with chunks or have their own.
    let new = packs(folder).difference(&before).count() as u64;
    let fewest = rest / PACK_BYTES;
    assert!((fewest..=fewest + 2).contains(&new), "{new} packs are new, {fewest} to {} were to be", fewest + 2);
    assert!(notes(env).is_empty(), "notes are left");
    env.restic(folder.display().to_string()).check();
    let target = crate::support::backups::new_folder(env, "restored");
    let restored = env
        .kvmb(["restore", text(&point, "point"), "-r", url, "--format", "raw", "--no-define", "--into"])
        .arg(&target)
        .run()
        .assert_ok()
        .record_of("point");
    machine.model("vda").assert_image_equals(&crate::support::backups::images_of(&restored)["vda"], "raw");
    env.assert_nothing_left();
}

#[test]
fn killed_backup_is_resumed() {
    let env = Env::new("killed");
    let machine = machine(&env);
    let repo = crate::support::backups::init(&env);
    let mut running = env.kvmb(["backup", "vm1", "-r", &repo]).args(SLOWLY).spawn();
    wait_for_packs(&env, &mut running, 3);
    process::kill(running.pid());
    running.wait();
    assert_goes_on(&env, &machine, &repo, &env.path("repo"));
}

#[test]
fn backup_interrupted_and_then_killed_is_resumed() {
    let env = Env::new("stopped");
    // Two runs together must not complete it.
    let bytes = 192 * MIB;
    let machine = machine_with(&env, bytes);
    let repo = crate::support::backups::init(&env);
    let mut running = env.kvmb(["backup", "vm1", "-r", &repo]).args(SLOWLY).spawn();
    wait_for_packs(&env, &mut running, 1);
    running.interrupt();
    running.wait().assert_code(130);
    let first = noted_packs(&env);
    // The second run indexes what the first one has stored, and is then killed.
    let mut running = env.kvmb(["backup", "vm1", "-r", &repo]).args(SLOWLY).spawn();
    wait_until("it has stored something too", Duration::from_secs(60), || {
        assert!(!running.has_ended(), "it is too fast for this test");
        !noted_packs(&env).is_empty() && noted_packs(&env).is_disjoint(&first)
    });
    process::kill(running.pid());
    running.wait();
    let second = noted_packs(&env);
    let point = env.kvmb(["backup", "vm1", "-r", &repo]).run().assert_ok().record_of("point");
    let rest = bytes - (first.len() + second.len()) as u64 * PACK_BYTES;
    assert_eq!(point["disks"][0]["new_bytes"], rest, "{point:#}");
    crate::support::backups::assert_restores_to(&env, text(&point, "point"), &machine.models());
    env.restic(&repo).check();
    env.assert_nothing_left();
}

#[test]
fn killed_backup_over_sftp_is_resumed() {
    let env = Env::new("killed, server");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let (url, folder) = (sshd.url("repo"), sshd.home().join("repo"));
    let machine = machine(&env);
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    let mut running = env.kvmb(["backup", "vm1", "-r", &url]).args(SLOWLY).spawn();
    wait_for_packs(&env, &mut running, 3);
    process::kill(running.pid());
    running.wait();
    assert_goes_on(&env, &machine, &url, &folder);
}

#[test]
fn backup_with_a_lost_connection_is_resumed() {
    let env = Env::new("network");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let (url, folder) = (sshd.url("repo"), sshd.home().join("repo"));
    let machine = machine(&env);
    env.kvmb(["init", "-r", &url]).run().assert_ok();
    let mut running = env.kvmb(["backup", "vm1", "-r", &url, "--retry-for", "1s"]).args(SLOWLY).spawn();
    wait_for_packs(&env, &mut running, 2);
    sshd.stop();
    let output = running.wait().assert_code(1);
    assert_eq!(output.record_of("failure")["code"], "unreachable", "{output}");
    sshd.run();
    assert_goes_on(&env, &machine, &url, &folder);
}

#[test]
fn packs_removed_by_prune_are_stored_again() {
    let env = Env::new("pruned");
    let machine = machine(&env);
    let repo = crate::support::backups::init(&env);
    let mut running = env.kvmb(["backup", "vm1", "-r", &repo]).args(SLOWLY).spawn();
    wait_for_packs(&env, &mut running, 2);
    process::kill(running.pid());
    running.wait();
    env.kvmb(["prune", "-r", &repo]).run().assert_ok();
    assert_eq!(packs(&env.path("repo")), BTreeSet::new());
    let point = env.kvmb(["backup", "vm1", "-r", &repo]).run().assert_ok().record_of("point");
    assert_eq!(point["disks"][0]["new_bytes"], DISK_BYTES);
    assert!(notes(&env).is_empty());
    crate::support::backups::assert_restores_to(&env, text(&point, "point"), &machine.models());
    env.restic(&repo).check();
    env.assert_nothing_left();
}

// --- which packs are adopted

fn remembered(home: &Home) -> Repository {
    home.open().remembered_in(&home.path("data"))
}

/// Returns a writer that has stored these blobs, each in its own pack, without an index.
fn writer_with_packs(repo: &Repository, seeds: std::ops::Range<u64>) -> (Writer, Vec<Id>) {
    let index = repo.load_index().unwrap();
    let writer = Writer::new(
        repo,
        index,
        WriterOptions { pack_bytes: 1, ..Default::default() },
        &crate::support::repo::permit(repo),
    );
    let count = seeds.end - seeds.start;
    let ids = seeds.map(|seed| writer.put(BlobKind::Data, &noise(seed, 100_000)).unwrap().id).collect();
    crate::support::repo::until(|| writer.summary().packs == count && noted_in(repo) >= count as usize);
    (writer, ids)
}

fn noted_in(repo: &Repository) -> usize {
    let folder = repo.host_folder().unwrap().path().join("unfinished");
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.map(|file| fs::read_to_string(file.path()).unwrap_or_default().lines().count()).sum()
}

/// Adopts existing packs, and returns their number and the resulting index.
fn adopt(repo: &Repository) -> (usize, Arc<Index>) {
    let lock = repo.lock(LockMode::Shared, Duration::from_secs(10)).unwrap();
    let index = repo.load_index().unwrap();
    let adopted = match repo.begin_recovery() {
        Some(adoption) => adoption.finish(&index, &lock.permit(), &AtomicBool::new(false)).unwrap(),
        None => 0,
    };
    (adopted, repo.load_index().unwrap())
}

fn knows(index: &Index, ids: &[Id]) -> Vec<bool> {
    ids.iter().map(|id| index.contains(BlobKind::Data, id)).collect()
}

#[test]
fn only_intact_existing_packs_are_adopted() {
    let home = Home::new();
    home.create();
    let repo = remembered(&home);
    let (writer, ids) = writer_with_packs(&repo, 0..6);
    drop(writer);
    let storage = home.storage();
    let names: Vec<String> = storage.list(FileKind::Pack).unwrap().into_iter().map(|file| file.name).collect();
    assert_eq!(names.len(), 6);
    let replace = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = storage.read(FileKind::Pack, name).unwrap();
        change(&mut bytes);
        storage.write(FileKind::Pack, name, &bytes).unwrap();
    };
    replace(&names[0], &|bytes| bytes.truncate(bytes.len() - 1));
    // Header and blobs are intact, but do not add up to the file's size.
    replace(&names[1], &|bytes| {
        bytes.remove(0);
    });
    replace(&names[2], &|bytes| *bytes.iter_mut().nth_back(10).unwrap() ^= 1);
    replace(&names[3], &|bytes| bytes.clear());
    storage.remove(FileKind::Pack, &names[4]).unwrap();
    let (adopted, index) = adopt(&repo);
    assert_eq!(adopted, 1);
    let known: Vec<&Id> = ids.iter().filter(|id| index.contains(BlobKind::Data, id)).collect();
    assert_eq!(known.len(), 1);
    assert_eq!(Id::hash(&repo.read_blob(&index, known[0]).unwrap()), *known[0]);
    assert_eq!(noted_in(&repo), 0);
    assert!(repo.begin_recovery().is_none());
}

#[test]
fn packs_of_a_running_writer_are_not_adopted() {
    let home = Home::new();
    home.create();
    let repo = remembered(&home);
    let (dead, gone) = writer_with_packs(&repo, 0..3);
    drop(dead);
    let (writer, ids) = writer_with_packs(&repo, 10..13);
    let (adopted, index) = adopt(&remembered(&home));
    assert_eq!(adopted, 3);
    assert_eq!((knows(&index, &gone), knows(&index, &ids)), (vec![true; 3], vec![false; 3]));
    assert_eq!(noted_in(&repo), 3, "its notes stay");
    writer.finish().unwrap();
    assert_eq!(noted_in(&repo), 0);
    assert_eq!(knows(&repo.load_index().unwrap(), &ids), [true; 3]);
    assert!(repo.begin_recovery().is_none());
    home.clean(&repo);
    home.restic(&["check", "--read-data"]);
}

#[test]
fn stopped_or_failed_adoption_changes_nothing() {
    let home = Home::new();
    home.create();
    let faulty = Arc::new(FaultStorage::new(home.storage()));
    let repo = Repository::open(Arc::clone(&faulty) as Arc<dyn Storage>, &crate::support::repo::password()).unwrap();
    let repo = repo.remembered_in(&home.path("data"));
    let (writer, ids) = writer_with_packs(&repo, 0..3);
    drop(writer);
    let lock = repo.lock(LockMode::Shared, Duration::from_secs(10)).unwrap();
    let index = repo.load_index().unwrap();
    let adopt_until =
        |stop: bool| repo.begin_recovery().unwrap().finish(&index, &lock.permit(), &AtomicBool::new(stop));
    assert_eq!(adopt_until(true).unwrap(), 0);
    for (operation, effect) in [(Operation::Write, FaultEffect::NoSpace), (Operation::ReadRange, FaultEffect::Cut)] {
        faulty.add(InjectedFault::every(operation, effect));
        adopt_until(false).unwrap_err();
        faulty.heal();
    }
    lock.release().unwrap();
    assert!(repo.load_index().unwrap().is_empty());
    assert_eq!(noted_in(&repo), 3);
    let (adopted, index) = adopt(&repo);
    assert_eq!((adopted, knows(&index, &ids)), (3, vec![true; 3]));
}

#[test]
fn truncated_line_in_the_pack_notes_is_ignored() {
    let home = Home::new();
    home.create();
    let repo = remembered(&home);
    let (writer, _) = writer_with_packs(&repo, 0..2);
    drop(writer);
    let folder = repo.host_folder().unwrap().path().join("unfinished");
    let file = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() - 5]).unwrap();
    assert_eq!(adopt(&repo).0, 1);
}

#[test]
fn backup_succeeds_where_packs_cannot_be_noted() {
    let home = Home::new();
    home.create();
    // Not a folder.
    fs::write(home.path("data"), "").unwrap();
    let repo = remembered(&home);
    let image = crate::support::repo::disk(4 << 20, 3);
    let point = crate::support::repo::write_disk(&repo, "vm1", &image);
    assert!(crate::support::repo::read_disk(&repo, &repo.snapshot(&point).unwrap(), "vm1") == image);
}
