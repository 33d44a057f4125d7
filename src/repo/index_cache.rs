//! The index as last read, shared by all machines of a run.
//!
//! Index files never change, because their name is the hash of their contents. So to load the index again, the files
//! are listed, and only new ones are read. If files are gone, after a prune, all are read again. A lock is needed to
//! rely on the result.
//!
//! Between runs a copy is kept in the cache folder, in the same way: it is used as long as the repository lists all the
//! index files that it was made of, and new files are read. Operations that remove data or look for damage always read
//! the files themselves.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::cached_index::CachedIndex;
use super::index_builder::IndexBuilder;
use super::index_file::IndexFile;
use super::{Error, Id, Index, Repository, Result};
use crate::storage::FileKind;

/// An index, and the index files that are unreadable.
pub(crate) type IndexWithDamage = (Arc<Index>, Vec<(Id, Error)>);

/// The sizes of index files.
type FileSizes = HashMap<Id, u64>;

impl Repository {
    /// Loads the index. Call this after locking. Only files that this process has not read yet are read: all machines
    /// of a run share one index.
    pub fn load_index(&self) -> Result<Arc<Index>> {
        first_damage(self.load_index_with_damage()?)
    }

    /// Like [`Repository::load_index`], but reads every file again, for callers that remove unreferenced data.
    pub(crate) fn reload_index(&self) -> Result<Arc<Index>> {
        first_damage(self.reload_index_with_damage()?)
    }

    /// Like [`Repository::load_index_with_damage`], but reads every file again, for callers that look for damage.
    pub(crate) fn reload_index_with_damage(&self) -> Result<IndexWithDamage> {
        let mut last = self.last_index().lock().unwrap_or_else(PoisonError::into_inner);
        *last = None;
        let sizes = self.list_with_sizes(FileKind::Index)?.into_iter().collect();
        let (index, damaged) = read_all(self, &names_of(&sizes));
        Ok(self.keep(&mut last, index, damaged, &sizes))
    }

    /// Like [`Repository::load_index`], but uses all readable index files and returns the unreadable ones as well, to
    /// rescue data. Concurrent callers read the index once.
    pub(crate) fn load_index_with_damage(&self) -> Result<IndexWithDamage> {
        self.load_listed(|| self.list_with_sizes(FileKind::Index))
    }

    /// Like [`Repository::load_index`], and lists the snapshots in the same round trips. `listed` gets their list
    /// before index files are read, unless listing them fails.
    pub(crate) fn load_index_and_list_snapshots(&self, listed: impl FnOnce(Vec<(Id, u64)>)) -> Result<Arc<Index>> {
        first_damage(self.load_listed(|| match self.list_both_with_sizes([FileKind::Index, FileKind::Snapshot]) {
            Ok([index, snapshots]) => {
                listed(snapshots);
                Ok(index)
            }
            Err(error) if error.is_unreachable() => Err(error),
            Err(_) => self.list_with_sizes(FileKind::Index),
        })?)
    }

    fn load_listed(&self, list: impl FnOnce() -> Result<Vec<(Id, u64)>>) -> Result<IndexWithDamage> {
        let mut last = self.last_index().lock().unwrap_or_else(PoisonError::into_inner);
        // List while holding the mutex: an older list would lack files that a concurrent load has already read.
        let sizes = list()?.into_iter().collect();
        let names = names_of(&sizes);
        let known = last.clone().and_then(|last| last.downcast::<Index>().ok());
        let known = known.or_else(|| self.cached_index(&sizes));
        let (index, damaged) = match known.and_then(|known| Some((new_since(&known, &names)?, known))) {
            Some((new, known)) if new.is_empty() => {
                *last = Some(Arc::clone(&known) as _);
                return Ok((known, Vec::new()));
            }
            Some((new, known)) => match read(self, &new) {
                (files, damaged) if !files.has_replacements() => (Index::extended(&known, files), damaged),
                _ => read_all(self, &names),
            },
            None => {
                // Free the memory of the old index first.
                *last = None;
                read_all(self, &names)
            }
        };
        Ok(self.keep(&mut last, index, damaged, &sizes))
    }

    /// Keeps the index for this run and copies it for the next.
    fn keep(
        &self,
        last: &mut Option<Arc<dyn Any + Send + Sync>>,
        mut index: Index,
        damaged: Vec<(Id, Error)>,
        sizes: &FileSizes,
    ) -> IndexWithDamage {
        if damaged.is_empty()
            && index.deserves_copy()
            && let Some(folder) = self.cache_folder()
            && let Err(error) = index.copy_to(folder, self.key(), sizes)
        {
            tracing::debug!("cannot write to {}: {error}", folder.path().display());
        }
        let index = Arc::new(index);
        if damaged.is_empty() {
            *last = Some(Arc::clone(&index) as _);
        }
        (index, damaged)
    }

    /// Returns the copy in the cache folder, unless the size of one of its index files has changed. Does not check that
    /// all of them still exist.
    fn cached_index(&self, sizes: &FileSizes) -> Option<Arc<Index>> {
        let folder = self.cache_folder()?;
        match CachedIndex::open(folder, self.key()) {
            Ok(Some(copy))
                if copy
                    .sources()
                    .iter()
                    .any(|file| sizes.get(&file.id).is_some_and(|size| *size != file.size_bytes)) =>
            {
                None
            }
            Ok(copy) => {
                let (repo, damaged) = (self.apart(), Arc::clone(folder));
                let reload = move || {
                    // The next run writes a new copy.
                    let removed = CachedIndex::remove(&damaged);
                    tracing::debug!(?removed, "the copy in {} is damaged", damaged.path().display());
                    // Damaged index files show up as missing blobs.
                    Ok(read_all(&repo, &repo.list(FileKind::Index)?).0)
                };
                Some(Arc::new(Index::on_copy(copy?, Box::new(reload))))
            }
            Err(error) => {
                tracing::debug!("not using {}: {error}", folder.path().display());
                None
            }
        }
    }
}

fn names_of(sizes: &FileSizes) -> Vec<Id> {
    let mut names: Vec<Id> = sizes.keys().copied().collect();
    names.sort_unstable();
    names
}

/// Returns the index if all of it was readable, and else the first error.
fn first_damage((index, mut damaged): IndexWithDamage) -> Result<Arc<Index>> {
    match damaged.is_empty() {
        true => Ok(index),
        false => Err(damaged.swap_remove(0).1),
    }
}

/// Returns the names that an index does not know, or `None` if it must be read again: files are gone, or a known file
/// supersedes others.
fn new_since(known: &Index, names: &[Id]) -> Option<Vec<Id>> {
    let files: HashSet<&Id> = files_of(known).collect();
    let new: Vec<Id> = names.iter().filter(|name| !files.contains(name)).copied().collect();
    let can_grow = new.is_empty() || !known.has_replacements();
    (are_all_there(known, names) && can_grow).then_some(new)
}

/// Returns whether all index files that an index was made of are among `names`.
pub(crate) fn are_all_there(known: &Index, names: &[Id]) -> bool {
    let there: HashSet<&Id> = names.iter().collect();
    files_of(known).all(|file| there.contains(file))
}

fn files_of(index: &Index) -> impl Iterator<Item = &Id> {
    index.sources().iter().map(|file| &file.id).chain(index.superseded())
}

/// Reads index files, each in memory only until its entries are added. Unreadable ones are returned separately.
fn read(repo: &Repository, names: &[Id]) -> (IndexBuilder, Vec<(Id, Error)>) {
    tracing::debug!(files = names.len(), repo = repo.url(), "reading index files");
    let files = Mutex::new(IndexBuilder::default());
    let results = repo.for_each(names, |id| {
        let file = IndexFile::load(repo, id)?;
        files.lock().unwrap_or_else(PoisonError::into_inner).add(*id, file);
        Ok(())
    });
    let damaged = names.iter().zip(results).filter_map(|(id, result)| Some((*id, result.err()?))).collect();
    (files.into_inner().unwrap_or_else(PoisonError::into_inner), damaged)
}

/// Reads all these index files, even if they were read before.
pub(super) fn read_all(repo: &Repository, names: &[Id]) -> (Index, Vec<(Id, Error)>) {
    let (files, damaged) = read(repo, names);
    (Index::of(files), damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{BlobKind, BlobLocation, LockMode, Password, Writer, WriterOptions};
    use crate::storage::testing::{FaultEffect, FaultStorage, InjectedFault, MemoryStorage, Operation, RecordedCall};
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    struct Scene {
        storage: Arc<FaultStorage>,
        repo: Repository,
    }

    fn password() -> Password {
        Password::new("test".to_owned())
    }

    impl Scene {
        fn new() -> Scene {
            let storage = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
            let repo = Repository::create(Arc::clone(&storage) as _, &password()).expect("create");
            Scene { storage, repo }
        }

        /// Stores a blob with its own index file.
        fn add(&self, bytes: &[u8]) -> Id {
            let permit = self.repo.lock(LockMode::Shared, Duration::ZERO).expect("lock").permit();
            let writer = Writer::new(&self.repo, Arc::new(Index::default()), WriterOptions::default(), &permit);
            let id = writer.put(BlobKind::Data, bytes).expect("put").id;
            writer.finish().expect("finish");
            id
        }

        /// Returns how many index files were read so far.
        fn reads(&self) -> usize {
            let of_index = |call: &&_| {
                matches!(call, RecordedCall { operation: Operation::Read, kind: Some(FileKind::Index), .. })
            };
            self.storage.calls().iter().filter(of_index).count()
        }
    }

    #[test]
    fn only_new_index_files_are_read_again() {
        let scene = Scene::new();
        let ids: Vec<Id> = (0..5u8).map(|n| scene.add(&[n])).collect();
        let first = scene.repo.load_index().unwrap();
        assert_eq!((scene.reads(), first.len()), (5, 5));
        assert!(Arc::ptr_eq(&first, &scene.repo.load_index().unwrap()));
        assert!(Arc::ptr_eq(&first, &scene.repo.clone().load_index_with_damage().unwrap().0), "a clone is the same");
        assert_eq!(scene.reads(), 5);

        let new = scene.add(b"new");
        let second = scene.repo.load_index().unwrap();
        assert_eq!(scene.reads(), 6);
        assert!(ids.iter().chain([&new]).all(|id| second.contains(BlobKind::Data, id)));
        assert!(!first.contains(BlobKind::Data, &new), "who has the older one is not disturbed");
        assert_eq!(scene.repo.read_blob(&second, &new).unwrap(), b"new");
        assert_eq!(scene.repo.read_blob(&second, &ids[3]).unwrap(), [3]);
    }

    #[test]
    fn concurrent_loads_read_the_index_once() {
        let scene = Scene::new();
        for n in 0..4u8 {
            scene.add(&[n]);
        }
        scene.storage.add(InjectedFault::every(Operation::Read, FaultEffect::Delay(Duration::from_millis(20))));
        std::thread::scope(|scope| {
            (0..8).for_each(|_| drop(scope.spawn(|| assert_eq!(scene.repo.load_index().unwrap().len(), 4))));
        });
        assert_eq!(scene.reads(), 4);
    }

    #[test]
    fn blobs_of_a_removed_index_file_are_dropped() {
        let scene = Scene::new();
        let ids: Vec<Id> = (0..3u8).map(|n| scene.add(&[n])).collect();
        let before = scene.repo.load_index().unwrap();
        let gone = before.sources()[0].id;
        scene.repo.storage().remove(FileKind::Index, &gone.to_string()).unwrap();
        let after = scene.repo.load_index().unwrap();
        assert_eq!((after.len(), scene.reads()), (2, 5));
        assert_eq!(ids.iter().filter(|id| after.contains(BlobKind::Data, id)).count(), 2);
    }

    /// Simulates another run with a cache in this folder. Returns its repository, its index and how many index files it
    /// read.
    fn run(scene: &Scene, cache: &Path) -> (Repository, Arc<Index>, usize) {
        let before = scene.reads();
        let repo = Repository::open(Arc::clone(&scene.storage) as _, &password()).expect("open").cached_in(cache);
        let index = repo.load_index().expect("load");
        (repo, index, scene.reads() - before)
    }

    fn file(scene: &Scene, cache: &Path) -> PathBuf {
        cache.join(scene.repo.id()).join("index")
    }

    /// Some blobs, each with an index file, and some that share one.
    fn fill(scene: &Scene) -> Vec<Id> {
        let mut ids: Vec<Id> = (0..3u8).map(|n| scene.add(&[n])).collect();
        let permit = scene.repo.lock(LockMode::Shared, Duration::ZERO).expect("lock").permit();
        let writer = Writer::new(&scene.repo, Arc::new(Index::default()), WriterOptions::default(), &permit);
        for number in 0..1500u32 {
            let kind = if number % 3 == 0 { BlobKind::Tree } else { BlobKind::Data };
            let id = writer.put(kind, &number.to_le_bytes()).expect("put").id;
            ids.extend((kind == BlobKind::Data).then_some(id));
        }
        writer.finish().expect("finish");
        ids
    }

    /// Returns all locations of these blobs and of one that does not exist.
    fn answers(index: &Index, ids: &[Id]) -> Vec<Vec<BlobLocation>> {
        let kinds = [BlobKind::Data, BlobKind::Tree];
        let asked = ids.iter().copied().chain([Id::hash(b"none")]);
        asked.flat_map(|id| kinds.map(|kind| index.locations(kind, &id).collect())).collect()
    }

    #[test]
    fn next_run_reads_only_new_index_files() {
        let (scene, cache) = (Scene::new(), tempfile::tempdir().unwrap());
        let ids = fill(&scene);
        let (_, truth, reads) = run(&scene, cache.path());
        assert_eq!(reads, 4);
        let (repo, index, reads) = run(&scene, cache.path());
        assert_eq!(reads, 0, "nothing is new");
        assert_eq!(answers(&index, &ids), answers(&truth, &ids));
        assert_eq!((index.len(), index.stored_bytes()), (truth.len(), truth.stored_bytes()));
        let packs = |index: &Index| index.packs().collect::<HashSet<Id>>();
        assert_eq!(packs(&index), packs(&truth));
        assert!(Arc::ptr_eq(&index, &repo.load_index().unwrap()));
        assert_eq!(repo.read_blob(&index, &ids[1]).unwrap(), [1]);

        let new = scene.add(b"new");
        let (_, index, reads) = run(&scene, cache.path());
        assert!(index.contains(BlobKind::Data, &new) && reads == 1);
        assert_eq!(answers(&index, &ids), answers(&truth, &ids));
        let (_, index, reads) = run(&scene, cache.path());
        assert!(index.contains(BlobKind::Data, &new) && reads == 0, "it was added to the copy");
        assert_eq!(answers(&index, &ids), answers(&truth, &ids));
    }

    #[test]
    fn many_lookups_stay_correct_after_the_cached_index_is_removed() {
        let (scene, cache) = (Scene::new(), tempfile::tempdir().unwrap());
        let ids = fill(&scene);
        let (_, truth, _) = run(&scene, cache.path());
        let (_, index, _) = run(&scene, cache.path());
        let removed = std::fs::remove_dir_all(cache.path().join(scene.repo.id()));
        removed.expect("what is open stays readable");
        for _ in 0..100 {
            assert_eq!(answers(&index, &ids[..40]), answers(&truth, &ids[..40]));
        }
        assert_eq!(answers(&index, &ids), answers(&truth, &ids));
    }

    #[test]
    fn pruned_index_file_invalidates_the_cached_index() {
        let (scene, cache) = (Scene::new(), tempfile::tempdir().unwrap());
        let ids = fill(&scene);
        let (_, before, _) = run(&scene, cache.path());
        let gone = before.sources().iter().find(|file| file.blobs == 1).unwrap().id;
        scene.repo.storage().remove(FileKind::Index, &gone.to_string()).unwrap();
        let (_, after, reads) = run(&scene, cache.path());
        assert_eq!(reads, 3, "all that is there is read");
        let known = ids.iter().filter(|id| after.contains(BlobKind::Data, id)).count();
        assert_eq!((known, after.len()), (ids.len() - 1, before.len() - 1));
        assert_eq!(run(&scene, cache.path()).2, 0, "there is a new copy");
    }

    #[test]
    fn damaged_and_foreign_cached_indexes_are_never_used() {
        let (scene, other) = (Scene::new(), Scene::new());
        // A few entries from each page.
        let ids: Vec<Id> = fill(&scene).into_iter().step_by(25).collect();
        let home = tempfile::tempdir().unwrap();
        let (_, truth, _) = run(&scene, home.path());
        let truth = answers(&truth, &ids);
        let good = std::fs::read(file(&scene, home.path())).unwrap();
        // A copy with the same index files by name, but of another key.
        other.add(b"x");
        run(&other, home.path());
        let of_other_key = std::fs::read(file(&other, home.path())).unwrap();

        let mut copies: Vec<(String, Vec<u8>)> = vec![
            ("of another key".into(), of_other_key),
            ("empty".into(), Vec::new()),
            ("of another version".into(), [b"kvmb index 0\n", &good[13..]].concat()),
            ("with the pages in another order".into(), {
                let mut swapped = good.clone();
                swapped[16 << 10..48 << 10].rotate_left(16 << 10);
                swapped
            }),
        ];
        for length in [1, 20_000, good.len() - 1] {
            copies.push((format!("of {length} bytes"), good[..length].to_vec()));
        }
        for position in
            (0..10).map(|n| n * 9803 % good.len()).chain([0, good.len() - 8, good.len() - 1, good.len() - 60])
        {
            let mut flipped = good.clone();
            flipped[position] ^= 4;
            copies.push((format!("with a flipped bit at {position}"), flipped));
        }
        for (what, copy) in copies {
            std::fs::write(file(&scene, home.path()), copy).unwrap();
            let (_, index, _) = run(&scene, home.path());
            assert_eq!(answers(&index, &ids), truth, "{what}");
            let (_, index, _) = run(&scene, home.path());
            assert_eq!(answers(&index, &ids), truth, "{what}, again");
        }
    }

    #[test]
    fn cached_index_damaged_while_in_use_is_replaced() {
        let (scene, home) = (Scene::new(), tempfile::tempdir().unwrap());
        let ids = fill(&scene);
        let (_, truth, _) = run(&scene, home.path());
        let (_, index, _) = run(&scene, home.path());
        std::fs::File::options().write(true).open(file(&scene, home.path())).unwrap().set_len(1000).unwrap();
        assert_eq!(answers(&index, &ids), answers(&truth, &ids));
        assert!(index.packs().collect::<HashSet<Id>>().contains(&truth.packs().next().unwrap()));
        assert!(!file(&scene, home.path()).exists());
        run(&scene, home.path());
        assert!(file(&scene, home.path()).exists());
    }

    #[test]
    fn damage_checks_read_the_index_files_themselves() {
        let (scene, home) = (Scene::new(), tempfile::tempdir().unwrap());
        fill(&scene);
        let (repo, ..) = run(&scene, home.path());
        scene.storage.add(InjectedFault::every(Operation::Read, FaultEffect::FlipBit(20)).on(FileKind::Index));
        assert_eq!(repo.reload_index_with_damage().unwrap().1.len(), 4);
        assert!(repo.reload_index().is_err());
    }

    #[test]
    fn unreadable_new_index_file_is_an_error_each_time() {
        let scene = Scene::new();
        scene.add(b"old");
        scene.repo.load_index().unwrap();
        scene.add(b"new");
        scene.storage.add(InjectedFault::every(Operation::Read, FaultEffect::FlipBit(20)).on(FileKind::Index));
        for _ in 0..2 {
            assert!(matches!(scene.repo.load_index(), Err(Error::Damaged { .. })));
            let (rest, damaged) = scene.repo.load_index_with_damage().unwrap();
            assert_eq!((rest.len(), damaged.len()), (1, 1));
        }
        scene.storage.heal();
        assert_eq!(scene.repo.load_index().unwrap().len(), 2);
    }
}
