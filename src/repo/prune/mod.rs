//! Removes data that no snapshot needs, so that a crash at any moment leaves an intact repository.
//!
//! Under an exclusive lock, which restic honours, [`PrunePlan::make`] reads and decides but changes nothing. Then
//! [`PrunePlan::remove_unnamed`] and [`PrunePlan::execute`] act, in this order:
//!
//! | step | a crash here leaves | a reader then finds |
//! | --- | --- | --- |
//! | 1. remove superseded index files, then packs in no other one | fewer of them | everything it needs, as before |
//! | 2. the caller removes snapshots | fewer snapshots | the others intact |
//! | 3. copy needed blobs from packs with much waste into new packs | packs that are not in the index | as before |
//! | 4. save an index of the new packs | blobs in two places | either |
//! | 5. rewrite the old index files without the packs to remove | packs in two index files | either |
//! | 6. remove the old index files | some of them | every pack in the index still exists |
//! | 7. remove the packs | packs that are not in the index | everything it needs |
//!
//! Each step is durable before the next begins, and the lock is checked before anything irreversible. No progress is
//! recorded: the next run finds a state like any other and continues.
//!
//! **Damage.** An unreadable index file or snapshot, a missing or damaged tree, a needed blob that is not in the index,
//! a needed pack that is missing or too short: each makes the plan fail before anything is removed. Data that appears
//! unneeded in a damaged repository may be needed to rescue it. Blobs that are copied are verified first (their
//! SHA-256). Blobs that stay in place are not read, unless another copy of them is removed ([`duplicates`]).
//!
//! **Locked packs** ([`locked`]) stay, but are no longer in the index: a later prune removes them.
//!
//! **restic's snapshots** are treated like kvmb's: all trees of all snapshots are read.
//!
//! **Memory.** The [`Index`] (50 bytes per blob), two bits per blob for the marks, about 200 bytes per pack, one tree
//! at a time (32 bytes per chunk of the largest disk), and for copying a [`Writer`](super::Writer), 8 MiB per reading
//! thread and 16 bytes per copied blob. For 10 TiB in chunks of 1 MiB: about 0.7 GiB.

mod duplicates;
mod event;
mod limits;
mod locked;
mod mark;
mod plan;
mod repack;
mod rewrite;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::place_set::PlaceSet;
use super::{Error, Id, Index, Permit, Repository, Result};
use crate::storage::{self, FileKind};

use locked::LockedPacks;
use rewrite::Rewritten;

pub(crate) use event::{PruneEvent, PruneWatch};
pub use limits::{MaxUnused, PruneLimits};
pub use plan::PruneSummary;

/// How long a storage may take to list index files as they are; shorter in unit tests.
const LIST_DELAY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 10_000 });

/// What to remove, and what to copy before.
#[derive(Debug)]
pub struct PrunePlan {
    repo: Repository,
    index: Arc<Index>,
    /// Packs that are not in the index.
    unnamed: plan::Unnamed,
    packs: plan::Packs,
    /// Packs that cannot be removed yet.
    locked: LockedPacks,
    summary: PruneSummary,
}

impl PrunePlan {
    /// Decides what to remove when the snapshots in `forgotten` are removed. Changes nothing. A lock must be held since
    /// before the index was loaded. `stop` ends it without a plan.
    pub fn make(
        repo: &Repository,
        index: Arc<Index>,
        forgotten: &HashSet<Id>,
        limits: PruneLimits,
        watch: PruneWatch,
        stop: &AtomicBool,
    ) -> Result<Option<PrunePlan>> {
        let mut marks = PlaceSet::new(&index);
        for snapshot in mark::needed_snapshots(repo, forgotten)? {
            mark::mark_snapshot(&mut marks, repo, &index, &snapshot, stop)?;
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            watch(PruneEvent::SnapshotMarked);
        }
        let (packs, unnamed, mut summary) = plan(repo, &index, marks, limits, stop)?;
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let locked = LockedPacks::find(repo, &index, &packs, &unnamed, &mut summary)?;
        Ok(Some(PrunePlan { repo: repo.clone(), index, unnamed, packs, locked, summary }))
    }

    /// Returns the expected result.
    pub fn summary(&self) -> &PruneSummary {
        &self.summary
    }

    /// Removes the remains of interrupted runs: packs that are not in the index, and unfinished files. This only frees
    /// space.
    pub fn remove_unnamed(&self, permit: &Permit, watch: PruneWatch, stop: &AtomicBool) -> Result<()> {
        permit.confirm()?;
        self.repo.storage().remove_leftovers()?;
        // restic reads superseded index files too, so they must not outlive the packs in them.
        let superseded: Vec<(Id, u64)> = self.index.superseded().iter().map(|id| (*id, 0)).collect();
        if !superseded.is_empty() {
            self.remove(FileKind::Index, &superseded, permit, stop, &|_| {})?;
            self.check_index_files(&superseded, &[], stop)?;
        }
        let unnamed = self.locked.without(&self.unnamed);
        self.remove(FileKind::Pack, &unnamed, permit, stop, &|bytes| watch(PruneEvent::UnnamedRemoved { bytes }))
    }

    /// Executes the rest of the plan. The snapshots in `forgotten` must have been removed. `stop` ends it between two
    /// steps or files, and the next prune continues.
    pub fn execute(&self, permit: &Permit, watch: PruneWatch, stop: &AtomicBool) -> Result<()> {
        let is_over = || stop.load(Ordering::Relaxed);
        if is_over() {
            return Ok(());
        }
        repack::copy((&self.repo, permit), &self.index, &self.packs, watch, stop)?;
        if is_over() {
            return Ok(());
        }
        watch(PruneEvent::AllCopied);
        let Rewritten { old, new } = rewrite::index(&self.repo, &self.index, &self.packs, permit)?;
        let old: Vec<(Id, u64)> = old.into_iter().map(|id| (id, 0)).collect();
        watch(PruneEvent::IndexStored);
        self.remove(FileKind::Index, &old, permit, stop, &|_| watch(PruneEvent::IndexRemoved))?;
        if is_over() {
            return Ok(());
        }
        watch(PruneEvent::OldIndexGone);
        let gone = self.locked.without(&self.packs.files_that_go(&self.index));
        if !gone.is_empty() {
            self.check_index_files(&old, &new, stop)?;
        }
        self.remove(FileKind::Pack, &gone, permit, stop, &|bytes| watch(PruneEvent::PackRemoved { bytes }))
    }

    /// Fails unless the storage lists none of the removed index files, and all new ones. A server that does not find a
    /// file while it restarts, or ignores a removal, would leave an index file whose packs are then removed, and the
    /// next backup would rely on them.
    fn check_index_files(&self, removed: &[(Id, u64)], new: &[Id], stop: &AtomicBool) -> Result<()> {
        let began = Instant::now();
        loop {
            let listed: HashSet<Id> = self.repo.list(FileKind::Index)?.into_iter().collect();
            let stays = removed.iter().find(|(id, _)| listed.contains(id)).map(|(id, _)| (*id, "the removal"));
            let Some((id, change)) =
                stays.or_else(|| new.iter().find(|id| !listed.contains(id)).map(|id| (*id, "the creation")))
            else {
                return Ok(());
            };
            if stop.load(Ordering::Relaxed) {
                return Err(storage::Error::Interrupted.into());
            }
            if began.elapsed() >= LIST_DELAY {
                return Err(Error::IndexOutdated { url: self.repo.url(), id, change });
            }
            thread::sleep(LIST_DELAY / 20);
        }
    }

    /// Removes files, given with their sizes, several at a time. Stops at the first error.
    fn remove(
        &self,
        kind: FileKind,
        files: &[(Id, u64)],
        permit: &Permit,
        stop: &AtomicBool,
        removed: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        permit.confirm()?;
        let failed = AtomicBool::new(false);
        let storage = self.repo.storage();
        let batches: Vec<&[(Id, u64)]> = files.chunks(storage.removal_batch().max(1)).collect();
        let results = self.repo.for_each(&batches, |batch| -> Result<()> {
            if stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let names: Vec<String> = batch.iter().map(|(id, _)| id.to_string()).collect();
            let result = permit.check().and_then(|()| storage.remove_many(kind, &names).map_err(Error::from));
            match &result {
                Ok(()) => batch.iter().for_each(|(_, bytes)| removed(*bytes)),
                Err(_) => failed.store(true, Ordering::Relaxed),
            }
            result
        });
        results.into_iter().collect()
    }
}

/// Decides about each pack, and verifies blobs that are about to lose their other copies.
fn plan(
    repo: &Repository,
    index: &Index,
    marks: PlaceSet,
    limits: PruneLimits,
    stop: &AtomicBool,
) -> Result<(plan::Packs, plan::Unnamed, PruneSummary)> {
    let mut found = PruneSummary::default();
    let files = repo.storage().list(FileKind::Pack)?;
    let (mut packs, unnamed) = plan::Packs::find(index, files, &mut found);
    for kind in plan::KINDS {
        packs.choose_places(index, kind, &marks)?;
    }
    drop(marks);
    let mut summary = found;
    duplicates::keep_whole_copies(repo, index, &mut packs, stop, |packs| {
        summary = found;
        packs.decide(limits, &mut summary);
    })?;
    summary.old_index_files = packs.old_index_files(index).len() as u64;
    Ok((packs, unnamed, summary))
}

/// Returns whether an error says that the storage is full.
pub(crate) fn is_no_space(error: &Error) -> bool {
    matches!(error.root(), Error::Storage(storage::Error::NoSpace { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::index_file::{IndexFile, PackJson};
    use crate::repo::{BlobKind, Content, LockMode, Node, Password, Snapshot, Writer, WriterOptions, write_tree};
    use crate::storage::testing::{FaultEffect, FaultStorage, InjectedFault, MemoryStorage, Operation};

    struct Scene {
        storage: Arc<FaultStorage>,
        repo: Repository,
        permit: Permit,
    }

    impl Scene {
        fn new() -> Scene {
            let storage = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
            let password = Password::new("test".to_owned());
            let repo = Repository::create(Arc::clone(&storage) as _, &password).expect("create");
            let permit = repo.lock(LockMode::Exclusive, Duration::ZERO).expect("lock").permit();
            Scene { storage, repo, permit }
        }

        fn store<T>(&self, work: impl FnOnce(&Writer) -> T) -> T {
            let writer = Writer::new(&self.repo, Arc::default(), WriterOptions::default(), &self.permit);
            let result = work(&writer);
            writer.finish().expect("finish");
            result
        }

        /// Stores blobs in one pack, and a snapshot that needs them.
        fn store_point(&self, blobs: &[&[u8]]) -> Vec<Id> {
            let (ids, tree) = self.store(|writer| {
                let mut content = Content::default();
                let put = |bytes: &&[u8]| writer.put(BlobKind::Data, bytes).expect("put").id;
                let ids: Vec<Id> = blobs.iter().map(put).collect();
                ids.iter().for_each(|id| content.push(*id));
                let size_bytes = blobs.iter().map(|bytes| bytes.len() as u64).sum();
                let node = Node::file("disk", crate::repo::time::now(), size_bytes, content);
                (ids, write_tree(writer, &[node]).expect("write"))
            });
            self.repo.save_snapshot(&Snapshot::new(tree, Vec::new()), &self.permit).expect("save");
            ids
        }

        /// Stores a blob that nothing needs, in a pack of its own.
        fn store_waste(&self) {
            self.store(|writer| writer.put(BlobKind::Data, b"waste").expect("put"));
        }

        fn prune(&self) -> Result<()> {
            let stop = AtomicBool::new(false);
            let index = self.repo.reload_index()?;
            let plan = PrunePlan::make(&self.repo, index, &HashSet::new(), PruneLimits::default(), &|_| {}, &stop)?;
            let plan = plan.expect("a plan");
            plan.remove_unnamed(&self.permit, &|_| {}, &stop)?;
            plan.execute(&self.permit, &|_| {}, &stop)
        }

        /// The kinds of the files that were removed, in order. Removals without effect count as well.
        fn removed(&self) -> Vec<FileKind> {
            let calls = self.storage.calls().into_iter().filter(|call| call.operation == Operation::Remove);
            calls.filter_map(|call| call.kind).filter(|kind| *kind != FileKind::Lock).collect()
        }
    }

    #[test]
    fn blobs_of_a_pack_in_two_index_files_stay_in_the_index() {
        let scene = Scene::new();
        let ids = scene.store_point(&[b"first", b"second", b"third"]);
        // Divide the blobs of the data pack between two index files.
        let whole = scene.repo.list(FileKind::Index).unwrap().remove(0);
        let mut content: IndexFile = scene.repo.load_unpacked(FileKind::Index, &whole).unwrap();
        let pack = content.packs.iter_mut().find(|pack| pack.blobs.len() == 3).expect("the data pack");
        let second = PackJson { id: pack.id, blobs: pack.blobs.split_off(1) };
        scene.repo.save_unpacked(FileKind::Index, &content).unwrap();
        let rest = IndexFile { supersedes: Vec::new(), packs: vec![second] };
        scene.repo.save_unpacked(FileKind::Index, &rest).unwrap();
        scene.repo.storage().remove(FileKind::Index, &whole.to_string()).unwrap();
        scene.store_waste();

        scene.prune().unwrap();
        let index = scene.repo.reload_index().unwrap();
        for id in &ids {
            scene.repo.read_blob(&index, id).expect("a blob");
        }
        assert_eq!((index.len(), index.sources().len()), (4, 1), "three blobs and the tree, in one index file");
        assert_eq!(scene.repo.storage().list(FileKind::Pack).unwrap().len(), 2, "the waste is gone");
    }

    #[test]
    fn superseded_index_files_are_removed_before_their_packs() {
        let scene = Scene::new();
        scene.store_waste();
        let old = scene.repo.list(FileKind::Index).unwrap();
        let newer = IndexFile { supersedes: old.clone(), packs: Vec::new() };
        let newer = scene.repo.save_unpacked(FileKind::Index, &newer).unwrap();
        scene.prune().unwrap();
        assert_eq!(scene.removed(), [FileKind::Index, FileKind::Pack]);
        assert_eq!(scene.repo.list(FileKind::Index).unwrap(), [newer]);
    }

    #[test]
    fn packs_stay_while_an_index_file_that_lists_them_is_still_there() {
        let scene = Scene::new();
        scene.store_point(&[b"needed"]);
        scene.store_waste();
        // The server claims that an index file does not exist.
        scene.storage.add(InjectedFault::every(Operation::Remove, FaultEffect::Hide).on(FileKind::Index).nth(1));
        let error = scene.prune().unwrap_err();
        assert!(matches!(error, Error::IndexOutdated { .. }), "{error}");
        assert!(scene.removed().iter().all(|kind| *kind == FileKind::Index), "{:?}", scene.removed());
        scene.prune().unwrap();
        assert_eq!(scene.repo.storage().list(FileKind::Pack).unwrap().len(), 2);
    }

    #[test]
    fn unused_limits_are_parsed_as_in_restic() {
        let read = |text: &str| text.parse::<MaxUnused>();
        assert_eq!(read("5%"), Ok(MaxUnused::Share(0.05)));
        assert_eq!(read("2G"), Ok(MaxUnused::Bytes(2 << 30)));
        assert_eq!(read("700"), Ok(MaxUnused::Bytes(700)));
        assert_eq!(read("unlimited"), Ok(MaxUnused::Unlimited));
        for bad in ["", "%", "101%", "-1%", "G", "1.5G", "99999999999T", "nan%", "5 %%"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(MaxUnused::Share(0.05).limit_bytes(95), 5);
        assert_eq!(MaxUnused::Share(1.0).limit_bytes(95), u64::MAX);
    }
}
