//! The index as it was last read, shared by all machines of one run.
//!
//! Index files never change, their name is the hash of what they hold. So whoever asks again lists them, which is what
//! a lock makes certain, and reads only those that are new since. When files are gone, after a prune, all are read
//! again.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use super::index::LoadedFile;
use super::{Error, Id, Index, Repository, Result};
use crate::storage::FileKind;

/// An index, and the index files that cannot be read.
pub(crate) type IndexWithDamage = (Arc<Index>, Vec<(Id, Error)>);

/// Index files that were read.
type LoadedFiles = Vec<(Id, LoadedFile)>;

impl Repository {
    /// What the index files name. Do it after locking. Only those are read that are new since this process read them
    /// last: all machines of a run share one index.
    pub fn load_index(&self) -> Result<Arc<Index>> {
        let (index, mut damaged) = self.load_index_with_damage()?;
        match damaged.is_empty() {
            true => Ok(index),
            false => Err(damaged.swap_remove(0).1),
        }
    }

    /// As [`Repository::load_index`], and reads every file again: for whoever removes what no index file names.
    pub(crate) fn reload_index(&self) -> Result<Arc<Index>> {
        *self.last_index().lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.load_index()
    }

    /// As [`Repository::load_index`], from the index files that can be read; says which cannot: for `verify` and for
    /// rescuing what is left. Several who ask at the same moment read it once.
    pub(crate) fn load_index_with_damage(&self) -> Result<IndexWithDamage> {
        let mut last = self.last_index().lock().unwrap_or_else(PoisonError::into_inner);
        // Listed while nobody else loads: what is new has been named before the caller asked.
        let names = self.list(FileKind::Index)?;
        let known = last.clone().and_then(|last| last.downcast::<Index>().ok());
        let (index, damaged) = match known.and_then(|known| Some((new_since(&known, &names)?, known))) {
            Some((new, known)) if new.is_empty() => return Ok((known, Vec::new())),
            Some((new, known)) => match read(self, &new) {
                (files, damaged) if files.iter().all(|(_, file)| file.supersedes.is_empty()) => {
                    (Index::extended(&known, files), damaged)
                }
                _ => read_all(self, &names),
            },
            None => {
                // It would only take memory meanwhile.
                *last = None;
                read_all(self, &names)
            }
        };
        let index = Arc::new(index);
        if damaged.is_empty() {
            *last = Some(Arc::clone(&index) as _);
        }
        Ok((index, damaged))
    }
}

/// The names that an index does not know; none if it knows files that are gone, or that replace others.
fn new_since(known: &Index, names: &[Id]) -> Option<Vec<Id>> {
    let there: HashSet<&Id> = names.iter().collect();
    let files: HashSet<&Id> = known.sources().iter().map(|file| &file.id).chain(known.superseded()).collect();
    let new: Vec<Id> = names.iter().filter(|name| !files.contains(name)).copied().collect();
    let can_grow = new.is_empty() || !known.has_replacements();
    (files.is_subset(&there) && can_grow).then_some(new)
}

/// Reads index files; those that cannot be read come apart.
fn read(repo: &Repository, names: &[Id]) -> (LoadedFiles, Vec<(Id, Error)>) {
    tracing::debug!(files = names.len(), repo = repo.url(), "reading index files");
    let (mut files, mut damaged) = (Vec::new(), Vec::new());
    let results = repo.for_each(names, |id| LoadedFile::load(repo, id));
    for (id, result) in names.iter().zip(results) {
        match result {
            Ok(file) => files.push((*id, file)),
            Err(error) => damaged.push((*id, error)),
        }
    }
    (files, damaged)
}

/// Reads all of these index files, whatever was read before.
pub(super) fn read_all(repo: &Repository, names: &[Id]) -> (Index, Vec<(Id, Error)>) {
    let (files, damaged) = read(repo, names);
    (Index::of(files), damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{BlobKind, LockMode, Password, Writer, WriterOptions};
    use crate::storage::testing::{FaultEffect, FaultStorage, InjectedFault, MemoryStorage, Operation, RecordedCall};
    use std::time::Duration;

    struct Scene {
        storage: Arc<FaultStorage>,
        repo: Repository,
    }

    impl Scene {
        fn new() -> Scene {
            let storage = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
            let password = Password::new("test".to_owned());
            let repo = Repository::create(Arc::clone(&storage) as _, &password).expect("create");
            Scene { storage, repo }
        }

        /// Stores a blob, with an index file of its own.
        fn add(&self, bytes: &[u8]) -> Id {
            let permit = self.repo.lock(LockMode::Shared, Duration::ZERO).expect("lock").permit();
            let writer = Writer::new(&self.repo, Arc::new(Index::default()), WriterOptions::default(), &permit);
            let id = writer.put(BlobKind::Data, bytes).expect("put").id;
            writer.finish().expect("finish");
            id
        }

        /// How many index files were read so far.
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
    fn machines_that_ask_at_the_same_moment_read_the_index_once() {
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
    fn an_index_file_that_is_gone_is_forgotten() {
        let scene = Scene::new();
        let ids: Vec<Id> = (0..3u8).map(|n| scene.add(&[n])).collect();
        let before = scene.repo.load_index().unwrap();
        let gone = before.sources()[0].id;
        scene.repo.storage().remove(FileKind::Index, &gone.to_string()).unwrap();
        let after = scene.repo.load_index().unwrap();
        assert_eq!((after.len(), scene.reads()), (2, 5));
        assert_eq!(ids.iter().filter(|id| after.contains(BlobKind::Data, id)).count(), 2);
    }

    #[test]
    fn a_new_index_file_that_cannot_be_read_is_an_error_each_time() {
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
