//! Pruning at the level of the repository: data that a snapshot needs is never lost, whatever fails and when.

// A test panics if a result is not what it expects.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use crate::support::repo::{
    Home, disk, password, read_disk, time, try_read_disk, write_disk, write_disk_with, writer_that_knows,
};
use kvmb::ops::prune::{Living, Prune, PruneRequest, Pruned};
use kvmb::ops::{self, Silent, Stop};
use kvmb::repo::{
    CheckOptions, Error, Id, LockMode, LockTiming, MaxUnused, PruneLimits, PrunePlan, PruneSummary, Repository, check,
};
use kvmb::retention::Policy;
use kvmb::storage::testing::{FaultEffect, FaultStorage, InjectedFault, MemoryStorage, Operation};
use kvmb::storage::{FileKind, Storage, Transit};

const MIB: usize = 1 << 20;

fn off() -> AtomicBool {
    AtomicBool::new(false)
}

/// Removes snapshots and frees the space, as `kvmb prune` does.
fn try_prune(repo: &Repository, forgotten: &[Id], max_unused: MaxUnused) -> kvmb::repo::Result<PruneSummary> {
    // The settling time of locks does not matter here.
    let timing = LockTiming { settle: Duration::from_millis(1), ..Default::default() };
    let permit = repo.lock_with(LockMode::Exclusive, Duration::ZERO, timing)?.permit();
    let index = repo.load_index()?;
    let forgotten: HashSet<Id> = forgotten.iter().copied().collect();
    let limits = PruneLimits { max_unused, room_bytes: None };
    let plan = PrunePlan::make(repo, index, &forgotten, limits, &|_| {}, &off())?.unwrap();
    plan.remove_unnamed(&permit, &|_| {}, &off())?;
    for id in &forgotten {
        repo.remove_snapshot(id, &permit).or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })?;
    }
    plan.execute(&permit, &|_| {}, &off())?;
    Ok(*plan.summary())
}

fn prune(repo: &Repository, forgotten: &[Id], max_unused: MaxUnused) -> PruneSummary {
    try_prune(repo, forgotten, max_unused).unwrap()
}

/// Prunes without any rule.
fn free(repo: &Repository) -> ops::Result<Pruned> {
    let policy = Policy::default();
    let request = PruneRequest {
        policy: &policy,
        names: &[],
        living: Living::DoesNotMatter,
        second: None,
        max_unused: MaxUnused::Share(0.0),
        dry_run: false,
    };
    let stop = Stop::default();
    Prune::plan(repo, &request, time(), &Silent, &stop)?.run(&Silent, &stop, &mut |_| {})
}

/// Returns all files of a repository with their sizes.
fn files(storage: &dyn Storage) -> BTreeMap<(FileKind, String), u64> {
    let of_kind = |kind| storage.list(kind).unwrap().into_iter().map(move |f| ((kind, f.name), f.size_bytes));
    let kinds = FileKind::ALL.into_iter().filter(|kind| *kind != FileKind::Lock);
    kinds.flat_map(of_kind).collect()
}

fn packs(repo: &Repository) -> usize {
    repo.storage().list(FileKind::Pack).unwrap().len()
}

/// Returns two halves of noise. The seeds determine what two such disks have in common.
fn halves(first: u64, second: u64) -> Vec<u8> {
    let mut bytes = disk(2 * MIB, first);
    bytes.truncate(2 * MIB);
    bytes.extend(disk(2 * MIB, second));
    bytes
}

/// A repository with three points of a machine that share halves, one of another machine, unused data, and two
/// redundant index files.
struct Scene {
    points: Vec<(Id, &'static str, Vec<u8>)>,
}

impl Scene {
    fn fill(repo: &Repository) -> Scene {
        let disks = [("vm1", halves(1, 2)), ("vm1", halves(1, 3)), ("vm1", halves(4, 3)), ("vm2", halves(5, 2))];
        let points = disks.map(|(name, bytes)| (write_disk(repo, name, &bytes), name, bytes));
        // The pack of a run that was killed before its index was written.
        repo.storage().write(FileKind::Pack, &Id::hash(b"unnamed").to_string(), b"whatever").unwrap();
        Scene { points: points.into() }
    }

    fn id(&self, number: usize) -> Id {
        self.points[number].0
    }

    /// Fails unless every listed snapshot is intact, and returns which ones are listed.
    fn assert_whole(&self, repo: &Repository, why: &str) -> Vec<usize> {
        let report = check(repo, CheckOptions { quick: false, pack_headers: true }, &off()).unwrap();
        assert!(report.damage.is_empty(), "{why}: {:?}", report.damage);
        let list = repo.snapshots().unwrap();
        assert!(list.damaged.is_empty(), "{why}");
        let mut found = Vec::new();
        for stored in list.snapshots {
            let number = self.points.iter().position(|(id, ..)| *id == stored.id).unwrap();
            let (_, name, bytes) = &self.points[number];
            let read = try_read_disk(repo, &stored.snapshot, name);
            assert!(read.is_ok_and(|read| read == *bytes), "{why}: point {number}");
            found.push(number);
        }
        found.sort_unstable();
        found
    }
}

#[test]
fn prune_removes_unused_data_and_restic_verifies_the_rest() {
    let home = Home::new();
    let repo = home.create();
    let scene = Scene::fill(&repo);
    // restic's own snapshots are respected.
    fs::create_dir(home.path("source")).unwrap();
    fs::write(home.path("source/file"), disk(3 * MIB, 77)).unwrap();
    std::os::unix::fs::symlink("file", home.path("source/link")).unwrap();
    home.restic(&["backup", home.path("source").to_str().unwrap()]);
    let before = files(&*repo.storage().clone());

    let summary = prune(&repo, &[scene.id(0), scene.id(3)], MaxUnused::Share(0.0));
    assert_eq!(summary.unnamed_packs, 1);
    assert!(summary.removed_packs > 1 && summary.repacked_packs >= 1, "{summary:?}");
    assert_eq!(summary.unused_bytes, 0);
    let after = files(&*repo.storage().clone());
    let size = |files: &BTreeMap<(FileKind, String), u64>| -> u64 {
        files.iter().filter(|((kind, _), _)| *kind == FileKind::Pack).map(|(_, size)| size).sum()
    };
    assert_eq!(size(&before), summary.size_bytes);
    // Except for the headers of the new packs, which have an entry for each blob.
    let freed = size(&before) - size(&after);
    assert!(freed.abs_diff(summary.freed_bytes()) < 5_000, "{freed} of {summary:?}");

    home.clean(&repo);
    let said = home.restic(&["check", "--read-data"]);
    assert!(!said.contains("not referenced"), "{said}");
    let list = repo.snapshots().unwrap();
    assert_eq!(list.snapshots.len(), 3);
    for stored in list.snapshots.iter().filter(|stored| stored.snapshot.tags.contains(&"kvmb".to_owned())) {
        let (_, name, bytes) = scene.points.iter().find(|(id, ..)| *id == stored.id).unwrap();
        assert!(read_disk(&repo, &stored.snapshot, name) == *bytes);
    }
    home.restic(&[
        "restore",
        "latest",
        "--path",
        home.path("source").to_str().unwrap(),
        "--target",
        home.path("out").to_str().unwrap(),
    ]);
    let restored = home.path("out").join(home.path("source/file").strip_prefix("/").unwrap());
    assert!(fs::read(restored).unwrap() == disk(3 * MIB, 77));

    // There is nothing to do for a second prune, or for restic's; new data can be stored.
    let summary = prune(&repo, &[], MaxUnused::Share(0.0));
    assert!(summary.is_nothing(), "{summary:?}");
    assert_eq!(files(&*repo.storage().clone()), after);
    home.restic(&["prune", "--max-unused", "0"]);
    let again = write_disk(&repo, "vm1", &scene.points[0].2);
    assert!(read_disk(&repo, &repo.snapshot(&again).unwrap(), "vm1") == scene.points[0].2);
    home.restic(&["check", "--read-data"]);
}

#[test]
fn unused_data_within_the_limit_is_not_repacked() {
    let home = Home::new();
    let repo = home.create();
    let scene = Scene::fill(&repo);
    let summary = prune(&repo, &[scene.id(0), scene.id(3)], MaxUnused::Unlimited);
    assert_eq!((summary.repacked_packs, summary.copied_bytes), (0, 0));
    let waste = summary.unused_bytes;
    scene.assert_whole(&repo, "unlimited");
    assert!(waste > 0);
    // For data: an unused tree is removed immediately.
    let summary = prune(&repo, &[], MaxUnused::Bytes(waste));
    assert!(summary.unused_bytes > waste / 2 && summary.unused_bytes <= waste, "{summary:?} {waste}");
    let summary = prune(&repo, &[], MaxUnused::Share(0.0));
    assert!(summary.repacked_packs > 0 && summary.unused_bytes == 0, "{summary:?}");
    assert_eq!(scene.assert_whole(&repo, "nothing wasted"), [1, 2]);
    home.restic(&["check", "--read-data"]);
}

#[test]
fn duplicate_packs_of_concurrent_backups_are_removed() {
    let home = Home::new();
    let repo = home.create();
    let bytes = halves(1, 2);
    // Two concurrent backups did not see each other's packs.
    let index_of_nothing = |repo: &Repository| {
        let stash = home.path("stash");
        fs::rename(home.path("repo/index"), &stash).unwrap();
        fs::create_dir(home.path("repo/index")).unwrap();
        let id = write_disk(repo, "vm1", &bytes);
        for file in fs::read_dir(&stash).unwrap() {
            let file = file.unwrap();
            fs::rename(file.path(), home.path("repo/index").join(file.file_name())).unwrap();
        }
        fs::remove_dir(stash).unwrap();
        id
    };
    let first = write_disk(&repo, "vm1", &bytes);
    let second = index_of_nothing(&repo);
    let before = packs(&repo);
    let summary = prune(&repo, &[], MaxUnused::default());
    assert_eq!(summary.removed_packs as usize, before / 2, "{summary:?}");
    for id in [first, second] {
        assert!(read_disk(&repo, &repo.snapshot(&id).unwrap(), "vm1") == bytes);
    }
    home.restic(&["check", "--read-data"]);
}

/// Two concurrent backups stored the same data, and then packs were damaged. Everything that is readable must remain
/// readable.
#[test]
fn prune_keeps_the_readable_copy_of_a_duplicate_blob() {
    let original: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let repo = Repository::create(Arc::clone(&original), &password()).unwrap();
    let bytes = halves(1, 2);
    let blind = || writer_that_knows(&repo, Arc::default());
    let first = write_disk(&repo, "vm1", &bytes);
    let before: BTreeSet<_> = files(&*original).into_keys().filter(|(kind, _)| *kind == FileKind::Pack).collect();
    // The second backup's packs contain unused data, so that by size alone the first one's would be kept; one pack is
    // shared.
    let waste = write_disk_with(&repo, blind(), "vm2", &halves(3, 2));
    let second = write_disk_with(&repo, blind(), "vm1", &[bytes.clone(), disk(MIB / 2, 9)].concat());
    let trial = Trial::of(&*original);
    let (memory, repo) = (&trial.memory, &trial.repo);
    let mut cases = 0;
    for (kind, name) in files(&*original).into_keys().filter(|(kind, _)| *kind == FileKind::Pack) {
        let whole = original.read(kind, &name).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 3] ^= 1;
        for harm in [Some(flipped), Some(whole[..whole.len() / 3].to_vec()), None] {
            trial.reset(&*original);
            memory.replace(kind, &name, harm);
            let readable = |repo: &Repository| -> BTreeSet<Id> {
                let list = repo.snapshots().unwrap().snapshots.into_iter();
                let machine = |id: &Id| if *id == waste { "vm2" } else { "vm1" };
                list.filter(|s| try_read_disk(repo, &s.snapshot, machine(&s.id)).is_ok()).map(|s| s.id).collect()
            };
            let before_it = readable(repo);
            // An error means that a blob that is needed has no intact copy.
            cases += usize::from(try_prune(repo, &[waste], MaxUnused::Share(0.0)).is_ok());
            let after = readable(repo);
            let lost: Vec<_> = before_it.iter().filter(|id| **id != waste && !after.contains(id)).collect();
            assert!(lost.is_empty(), "{name}: {lost:?} of {first} and {second} cannot be read any more");
        }
    }
    assert!(before.len() >= 2 && cases >= 2 * before.len(), "{cases} cases, {} packs", before.len());
}

/// Removes the locks that could not be removed at the end, which is irrelevant to the prune.
fn unlock(storage: &dyn Storage) {
    for lock in storage.list(FileKind::Lock).unwrap() {
        storage.remove(FileKind::Lock, &lock.name).unwrap();
    }
}

/// A copy of a repository in a storage that can inject faults, and that can be reset. (Opening it is intentionally
/// slow, so it is opened only once.)
struct Trial {
    memory: Arc<MemoryStorage>,
    faulty: Arc<FaultStorage>,
    repo: Repository,
}

impl Trial {
    fn of(original: &dyn Storage) -> Trial {
        let memory = copy(original);
        let faulty = Arc::new(FaultStorage::new(Arc::clone(&memory) as Arc<dyn Storage>));
        let repo = Repository::open(Arc::clone(&faulty) as Arc<dyn Storage>, &password()).unwrap();
        Trial { memory, faulty, repo }
    }

    fn reset(&self, original: &dyn Storage) {
        self.faulty.heal();
        unlock(&*self.memory);
        let wanted = files(original);
        for (kind, name) in files(&*self.memory).into_keys().filter(|file| !wanted.contains_key(file)) {
            self.memory.remove(kind, &name).unwrap();
        }
        for (kind, name) in wanted.into_keys() {
            self.memory.write(kind, &name, &original.read(kind, &name).unwrap()).unwrap();
        }
    }
}

/// Copies a repository to memory.
fn copy(from: &dyn Storage) -> Arc<MemoryStorage> {
    let to = MemoryStorage::new();
    for (kind, name) in files(from).into_keys() {
        to.write(kind, &name, &from.read(kind, &name).unwrap()).unwrap();
    }
    Arc::new(to)
}

#[test]
fn prune_loses_nothing_on_any_storage_failure_and_can_be_repeated() {
    let original: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let repo = Repository::create(Arc::clone(&original), &password()).unwrap();
    let scene = Scene::fill(&repo);
    let forgotten = [scene.id(0), scene.id(3)];
    let changes = &[FaultEffect::Fail, FaultEffect::FailAfter, FaultEffect::NoSpace][..];
    let plan = [
        (Operation::Write, changes),
        (Operation::Remove, &changes[..2]),
        (Operation::ReadRange, &changes[..1]),
        (Operation::Read, &changes[..1]),
        (Operation::List, &changes[..1]),
    ];
    let (mut failures, mut operations) = (0, BTreeSet::new());
    let trial = Trial::of(&*original);
    let (faulty, repo) = (&trial.faulty, &trial.repo);
    for (operation, effects) in plan {
        for effect in effects.iter().copied() {
            for nth in 1.. {
                trial.reset(&*original);
                let count = || faulty.calls().iter().filter(|call| call.operation == operation).count() as u64;
                let before = count();
                faulty.add(InjectedFault::every(operation, effect).nth(nth));
                let result = try_prune(repo, &forgotten, MaxUnused::Share(0.0));
                if count() - before < nth {
                    // The prune finished earlier.
                    assert!(result.is_ok());
                    break;
                }
                failures += usize::from(result.is_err());
                operations.insert(format!("{operation:?}"));
                let why = format!("{operation:?} {nth} {effect:?}: {:?}", result.err().map(|e| e.to_string()));
                faulty.heal();
                unlock(&**faulty);
                let points = scene.assert_whole(repo, &why);
                assert!(points.contains(&1) && points.contains(&2), "{why}: {points:?}");

                let summary = prune(repo, &forgotten, MaxUnused::Share(0.0));
                assert_eq!(summary.unused_bytes, 0, "{why}");
                assert_eq!(scene.assert_whole(repo, &why), [1, 2]);
                let report = check(repo, CheckOptions::default(), &off()).unwrap();
                assert_eq!(report.unused_packs, 0, "{why}");
                assert!(prune(repo, &[], MaxUnused::Share(0.0)).is_nothing(), "{why}");
            }
        }
    }
    assert_eq!(operations.len(), 5);
    assert!(failures > 40, "{failures}");
}

/// Cuts the storage off at the n-th change, like a kill or a power failure: nothing is done from there on.
#[test]
fn prune_cut_off_at_any_change_leaves_a_whole_repository() {
    let original: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let repo = Repository::create(Arc::clone(&original), &password()).unwrap();
    let scene = Scene::fill(&repo);
    let forgotten = [scene.id(0), scene.id(3)];
    let mut cuts = 0;
    let trial = Trial::of(&*original);
    let (faulty, repo) = (&trial.faulty, &trial.repo);
    for operation in [Operation::Write, Operation::Remove] {
        for nth in 1.. {
            trial.reset(&*original);
            faulty.add(InjectedFault::every(operation, FaultEffect::Fail).from_nth(nth));
            if try_prune(repo, &forgotten, MaxUnused::Share(0.0)).is_ok() {
                break;
            }
            cuts += 1;
            faulty.heal();
            unlock(&**faulty);
            let why = format!("{operation:?} from {nth} on");
            scene.assert_whole(repo, &why);
            prune(repo, &forgotten, MaxUnused::Share(0.0));
            assert_eq!(scene.assert_whole(repo, &why), [1, 2]);
        }
    }
    assert!(cuts > 10, "{cuts}");
}

#[test]
fn prune_of_a_damaged_repository_removes_nothing_needed() {
    let original: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let repo = Repository::create(Arc::clone(&original), &password()).unwrap();
    let scene = Scene::fill(&repo);
    let index = repo.load_index().unwrap();
    let needed: HashSet<String> = index.packs().map(|id| id.to_string()).collect();
    let mut cases = 0;
    let trial = Trial::of(&*original);
    let (memory, repo) = (&trial.memory, &trial.repo);
    for (kind, name) in files(&*original).into_keys() {
        let is_needed = match kind {
            FileKind::Snapshot => name != scene.id(0).to_string(),
            FileKind::Index => true,
            FileKind::Pack => needed.contains(&name),
            _ => false,
        };
        if !is_needed {
            continue;
        }
        let whole = original.read(kind, &name).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        let truncated = whole[..whole.len() / 4].to_vec();
        // A lost snapshot looks like a removed one, and a flipped bit in data is found only by reading the data.
        let harms = match kind {
            FileKind::Snapshot => vec![Some(flipped), Some(truncated)],
            FileKind::Index => vec![Some(flipped), Some(truncated), None],
            _ => vec![Some(truncated), None],
        };
        for harm in harms {
            trial.reset(&*original);
            memory.replace(kind, &name, harm);
            let before = files(&**memory);
            let result = free(repo);
            // The loss of a pack of which only one blob is needed may be harmless, if that blob exists elsewhere.
            match result {
                Err(ops::Error::Unprunable { source }) => {
                    assert!(!source.to_string().is_empty());
                    assert_eq!(files(&**memory), before, "{kind} {name}");
                    cases += 1;
                }
                Err(other) => panic!("{kind} {name}: {other}"),
                Ok(_) => {
                    scene.assert_whole(repo, &format!("{kind} {name}"));
                }
            }
        }
    }
    assert!(cases >= 20, "{cases}");
}

#[test]
fn prune_stops_at_a_damaged_blob_and_keeps_its_pack() {
    let original: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let repo = Repository::create(Arc::clone(&original), &password()).unwrap();
    let scene = Scene::fill(&repo);
    repo.remove_snapshot(&scene.id(0), &crate::support::repo::permit(&repo)).unwrap();
    repo.remove_snapshot(&scene.id(3), &crate::support::repo::permit(&repo)).unwrap();
    // Point 1 needs the first half of the first backup's data; the second half is unused.
    let index = repo.load_index().unwrap();
    let first = Id::hash(&scene.points[1].2[..crate::support::repo::CHUNK]);
    let place = index.get(kvmb::repo::BlobKind::Data, &first).unwrap();
    let mut bytes = original.read(FileKind::Pack, &place.pack.to_string()).unwrap();
    bytes[place.offset as usize + 20] ^= 1;
    original.write(FileKind::Pack, &place.pack.to_string(), &bytes).unwrap();
    let before = files(&*original);
    let error = free(&repo).unwrap_err();
    assert!(matches!(error, ops::Error::Unprunable { .. }), "{error}");
    let after = files(&*original);
    assert!(before.keys().filter(|(_, name)| *name != Id::hash(b"unnamed").to_string()).all(|f| after.contains_key(f)));
}

#[test]
fn prune_on_a_full_disk_removes_only_packs_without_copying() {
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let faulty = Arc::new(FaultStorage::new(memory));
    let repo = Repository::create(Arc::clone(&faulty) as Arc<dyn Storage>, &password()).unwrap();
    let scene = Scene::fill(&repo);
    repo.remove_snapshot(&scene.id(0), &crate::support::repo::permit(&repo)).unwrap();
    repo.remove_snapshot(&scene.id(3), &crate::support::repo::permit(&repo)).unwrap();
    faulty.add(InjectedFault::every(Operation::Write, FaultEffect::NoSpace).on(FileKind::Pack));
    let pruned = free(&repo).unwrap();
    assert!(pruned.was_short_of_room && pruned.summary.unused_bytes > 0, "{pruned:?}");
    assert_eq!(pruned.summary.copied_bytes, 0);
    assert_eq!(scene.assert_whole(&repo, "full"), [1, 2]);
    faulty.heal();
    let pruned = free(&repo).unwrap();
    assert!(!pruned.was_short_of_room && pruned.summary.unused_bytes == 0, "{pruned:?}");
    assert_eq!(scene.assert_whole(&repo, "room"), [1, 2]);
}

#[test]
fn prune_that_lost_its_lock_removes_nothing() {
    let home = Home::new();
    let repo = home.create();
    let scene = Scene::fill(&repo);
    repo.remove_snapshot(&scene.id(0), &crate::support::repo::permit(&repo)).unwrap();
    let timing = kvmb::repo::LockTiming { refresh: Duration::from_millis(50), ..Default::default() };
    let lock = repo.lock_with(LockMode::Exclusive, Duration::ZERO, timing).unwrap();
    let index = repo.load_index().unwrap();
    let none = HashSet::new();
    let plan = PrunePlan::make(&repo, index, &none, PruneLimits::default(), &|_| {}, &off()).unwrap().unwrap();
    home.restic(&["unlock", "--remove-all"]);
    crate::support::repo::until(|| lock.check().is_err());
    let before = files(&**repo.storage());
    let error = plan.remove_unnamed(&lock.permit(), &|_| {}, &off()).unwrap_err();
    assert!(matches!(error, Error::LockLost { .. }), "{error}");
    assert_eq!(files(&**repo.storage()), before);
}

#[test]
fn refused_removals_fail_the_prune_but_not_backups() {
    let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let faulty = Arc::new(FaultStorage::new(memory));
    let repo = Repository::create(Arc::clone(&faulty) as Arc<dyn Storage>, &password()).unwrap();
    faulty.add(InjectedFault::every(Operation::Remove, FaultEffect::Refuse));
    let timing = kvmb::repo::LockTiming {
        settle: Duration::from_millis(5),
        refresh: Duration::from_millis(20),
        stale: Duration::from_millis(1000),
        retry: Duration::from_millis(20),
        ..Default::default()
    };
    for round in 0..3 {
        // Locks of earlier rounds cannot be removed, and become stale.
        let lock = repo.lock_with(LockMode::Shared, Duration::ZERO, timing).unwrap();
        write_disk(&repo, "vm1", &halves(round, 9));
        let files = || faulty.list(FileKind::Lock).unwrap().len();
        let written = files();
        crate::support::repo::until(|| files() > written + 1);
        lock.check().unwrap();
    }
    assert!(faulty.list(FileKind::Lock).unwrap().len() > 3);
    assert_eq!(repo.snapshots().unwrap().snapshots.len(), 3);
    // An exclusive lock that remains is ignored as well once it is stale.
    let patience = Duration::from_secs(60);
    drop(repo.lock_with(LockMode::Exclusive, patience, timing).unwrap());
    drop(repo.lock_with(LockMode::Shared, patience, timing).unwrap());

    faulty.heal();
    unlock(&*faulty);
    for what in [FileKind::Pack, FileKind::Snapshot, FileKind::Index] {
        faulty.heal();
        faulty.add(InjectedFault::every(Operation::Remove, FaultEffect::Refuse).on(what));
        let victim = repo.snapshots().unwrap().snapshots.remove(0).id;
        let error = match what {
            FileKind::Snapshot => {
                assert!(try_prune(&repo, &[victim], MaxUnused::Share(0.0)).unwrap_err().is_refused_removal());
                continue;
            }
            _ => {
                repo.remove_snapshot(&victim, &crate::support::repo::permit(&repo)).unwrap();
                free(&repo).unwrap_err()
            }
        };
        assert!(matches!(error, ops::Error::RemovalRefused { .. }), "{what}: {error}");
        let report = check(&repo, CheckOptions::default(), &off()).unwrap();
        assert!(report.damage.is_empty(), "{what}: {:?}", report.damage);
    }
}

#[test]
fn old_temporary_files_of_killed_writers_are_removed() {
    let home = Home::new();
    let repo = home.create();
    write_disk(&repo, "vm1", &halves(1, 2));
    let old = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
    let names = ["data/00/x-tmp-1", "data/ff/x-tmp-2", "index/x-tmp-3", "snapshots/x-tmp-4", "locks/x-tmp-5"];
    for name in names {
        let path = home.path("repo").join(name);
        fs::write(&path, "half a file").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    }
    let young = home.path("repo/data/00/y-tmp-6");
    fs::write(&young, "of a living writer, perhaps").unwrap();
    prune(&home.open(), &[], MaxUnused::default());
    for name in names {
        assert!(!home.path("repo").join(name).exists(), "{name}");
    }
    assert!(young.exists());
}

#[test]
fn prune_merges_small_index_files() {
    let home = Home::new();
    let repo = home.create();
    let ids: Vec<Id> = (0..8).map(|seed| write_disk(&repo, "vm1", &halves(seed, seed + 100))).collect();
    let index_files = || repo.storage().list(FileKind::Index).unwrap().len();
    assert_eq!(index_files(), 8);
    prune(&repo, &ids[..2], MaxUnused::default());
    // One for the kept packs, one for the copied blobs.
    assert!(index_files() <= 2, "{}", index_files());
    home.restic(&["check", "--read-data"]);
    // If nothing is removed, they are left alone.
    let before = index_files();
    write_disk(&repo, "vm1", &halves(200, 300));
    assert!(prune(&repo, &[], MaxUnused::default()).is_nothing());
    assert_eq!(index_files(), before + 1);
}

#[test]
fn prune_of_a_hundred_thousand_packs_is_planned_quickly() {
    let home = Home::new();
    let repo = home.create();
    write_disk(&repo, "vm1", &halves(1, 2));
    let real = packs(&repo);
    for number in 0..100_000u32 {
        let name = Id::hash(&number.to_le_bytes()).to_string();
        fs::write(home.path("repo/data").join(&name[..2]).join(&name), "").unwrap();
    }
    let start = Instant::now();
    assert_eq!(packs(&repo), 100_000 + real);
    let listed = start.elapsed();
    let start = Instant::now();
    let index = repo.load_index().unwrap();
    let none = HashSet::new();
    let plan = PrunePlan::make(&repo, index, &none, PruneLimits::default(), &|_| {}, &off()).unwrap().unwrap();
    let planned = start.elapsed();
    assert_eq!(plan.summary().unnamed_packs, 100_000);
    println!("100,000 packs: listed in {listed:?}, a prune planned in {planned:?}");
    assert!(listed < Duration::from_secs(20) && planned < Duration::from_secs(25), "{listed:?} {planned:?}");
}

#[test]
fn stopped_prune_makes_no_plan() {
    let home = Home::new();
    let repo = home.create();
    write_disk(&repo, "vm1", &halves(1, 2));
    let index = repo.load_index().unwrap();
    let stop = AtomicBool::new(true);
    let plan = PrunePlan::make(&repo, index, &HashSet::new(), PruneLimits::default(), &|_| {}, &stop).unwrap();
    assert!(plan.is_none());
}

#[test]
fn prune_rereads_data_corrupted_in_transit() {
    for operation in [Operation::Read, Operation::ReadRange] {
        for number in 1.. {
            let memory = Arc::new(MemoryStorage::behind(Transit::Protected));
            let network = Arc::new(FaultStorage::new(memory));
            let repo = Repository::create(Arc::clone(&network) as Arc<dyn Storage>, &password()).unwrap();
            let scene = Scene::fill(&repo);
            let reads = || network.calls().iter().filter(|call| call.operation == operation).count();
            let before = reads();
            network.add(InjectedFault::every(operation, FaultEffect::FlipBit(2)).nth(number));
            prune(&repo, &[scene.id(0), scene.id(3)], MaxUnused::Share(0.0));
            let during = reads() - before;
            assert!(during > 0, "a prune that reads nothing");
            network.heal();
            assert_eq!(scene.assert_whole(&repo, "after it"), [1, 2], "{operation:?} {number}");
            if number > during as u64 {
                break;
            }
        }
    }
}
