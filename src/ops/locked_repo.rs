//! A locked repository with its index. It is locked before the index is loaded, so that no prune can remove what the
//! index lists.

use super::manifest::Manifest;
use super::points::{self, Description, OpenPoint, PointRef};
use super::repo_lock::{lock, patiently};
use super::{Result, Stop};
use crate::repo::{self, Id, Index, LockMode, PendingLock, Permit, Repository, are_all_there};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

/// The index and the points of a repository, as of a moment at which it was locked.
#[derive(Debug)]
pub(crate) struct RepoView {
    pub(crate) repo: Repository,
    pub(crate) index: Arc<Index>,
    points: OnceLock<Vec<PointRef>>,
    /// The last description that was read: usually the point that was found is then opened.
    described: Mutex<Option<(Id, Description)>>,
}

/// A repository whose lock is not settled yet. It can be read but not written to.
#[derive(Debug)]
pub(crate) struct PendingRepo {
    view: RepoView,
    lock: PendingOrSettled,
}

#[derive(Debug)]
enum PendingOrSettled {
    Pending(PendingLock<Vec<Id>>),
    Settled(Permit),
}

/// A repository that can be read and written to while this value lives.
#[derive(Debug)]
pub(crate) struct LockedRepo {
    pub(crate) view: RepoView,
    /// The permission to add files.
    pub(crate) permit: Permit,
}

impl PendingRepo {
    /// Locks the repository and loads the index while the lock settles.
    pub(crate) fn begin(repo: &Repository, stop: &Stop) -> Result<PendingRepo> {
        let lock = patiently(stop, || repo.begin_lock(LockMode::Shared))?;
        if repo.has_orphans() {
            // Packs that an interrupted run left must be indexed before anything else is read, which requires a settled
            // lock.
            drop(lock);
            let LockedRepo { view, permit } = LockedRepo::shared(repo, stop)?;
            return Ok(PendingRepo { view, lock: PendingOrSettled::Settled(permit) });
        }
        Ok(PendingRepo { view: RepoView::load(repo)?, lock: PendingOrSettled::Pending(lock) })
    }

    pub(crate) fn view(&self) -> &RepoView {
        &self.view
    }

    /// Waits until the lock is settled. If another process locked the repository at the same moment, this waits for
    /// that process too and then loads the index again.
    pub(crate) fn settle(self, stop: &Stop) -> Result<LockedRepo> {
        let PendingRepo { view, lock } = self;
        let settled = match lock {
            PendingOrSettled::Settled(permit) => return Ok(LockedRepo { view, permit }),
            PendingOrSettled::Pending(lock) => lock.settle(),
        };
        match settled {
            Ok((lock, index_files)) => {
                Ok(LockedRepo { view: view.checked_against(&index_files)?, permit: lock.permit() })
            }
            Err(repo::Error::Locked { holder, .. }) => {
                tracing::debug!("the repository was locked at the same moment {holder}");
                LockedRepo::shared(&view.repo, stop)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl LockedRepo {
    /// Locks the repository, with retries, indexes the packs that interrupted runs left, and loads the index.
    pub(crate) fn shared(repo: &Repository, stop: &Stop) -> Result<LockedRepo> {
        let permit = lock(repo, LockMode::Shared, stop)?.permit();
        let recovery = repo.begin_recovery();
        let mut view = RepoView::load(repo)?;
        if let Some(recovery) = recovery {
            let recovered = recovery.finish(&view.index, &permit, &stop.flag())?;
            stop.check()?;
            if recovered > 0 {
                tracing::info!("reusing {recovered} packs of an interrupted run");
                view.index = repo.load_index()?;
            }
        }
        Ok(LockedRepo { view, permit })
    }

    pub(crate) fn view(&self) -> &RepoView {
        &self.view
    }
}

impl RepoView {
    fn load(repo: &Repository) -> Result<RepoView> {
        // Both are loaded in parallel because a server may have a high latency. An error of the list of points is left
        // to the callers that need it.
        let (index, points) = thread::scope(|scope| {
            let mut reading = None;
            let index = repo.load_index_and_list_snapshots(|files| {
                let read = || points::of_snapshots(repo.snapshots_in(files));
                reading = thread::Builder::new().spawn_scoped(scope, read).ok();
            });
            (index, reading.and_then(|reading| reading.join().ok()))
        });
        let points = points.map_or_else(OnceLock::new, |(points, _)| points.into());
        Ok(RepoView { repo: repo.clone(), index: index?, points, described: Mutex::default() })
    }

    /// Returns the same view if all index files that it was loaded from are in `index_files`; otherwise loads it again.
    fn checked_against(self, index_files: &[Id]) -> Result<RepoView> {
        if are_all_there(&self.index, index_files) {
            return Ok(self);
        }
        tracing::debug!("the repository was pruned at the same moment");
        RepoView::load(&self.repo)
    }

    /// The points, oldest first, as of the moment of the lock. None of them can have been removed since.
    pub(crate) fn points(&self) -> Result<&[PointRef]> {
        if let Some(points) = self.points.get() {
            return Ok(points);
        }
        let (points, _) = points::list(&self.repo)?;
        Ok(self.points.get_or_init(|| points))
    }

    /// Reads the manifest of a point.
    pub(crate) fn manifest(&self, point: &PointRef) -> Result<Manifest> {
        let described = points::describe(&self.repo, &self.index, point)?;
        let manifest = described.manifest.clone();
        *self.described.lock().unwrap_or_else(PoisonError::into_inner) = Some((point.id, described));
        Ok(manifest)
    }

    pub(crate) fn point(&self, point: &PointRef) -> Result<OpenPoint> {
        let last = self.described.lock().unwrap_or_else(PoisonError::into_inner).take();
        let described = match last {
            Some((id, described)) if id == point.id => described,
            _ => points::describe(&self.repo, &self.index, point)?,
        };
        points::open(&self.repo, &self.index, point, described)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{BlobKind, Password, Writer, WriterOptions};
    use crate::storage::FileKind;
    use crate::storage::testing::MemoryStorage;
    use std::time::Duration;

    #[test]
    fn blobs_pruned_before_the_lock_are_dropped_from_the_index() {
        let password = Password::new("test".to_owned());
        let repo = Repository::create(Arc::new(MemoryStorage::new()), &password).expect("create");
        let permit = repo.lock(LockMode::Shared, Duration::ZERO).expect("lock").permit();
        let names = || -> Vec<Id> {
            let files = repo.storage().list(FileKind::Index).expect("list");
            files.iter().map(|file| file.name.parse().expect("an id")).collect()
        };
        let store = |bytes: &[u8]| {
            let writer = Writer::new(&repo, Arc::new(Index::default()), WriterOptions::default(), &permit);
            let id = writer.put(BlobKind::Data, bytes).expect("put").id;
            writer.finish().expect("finish");
            id
        };
        let goes = store(b"goes");
        let its_files = names();
        let stays = store(b"stays");
        let has = |view: &RepoView| [goes, stays].map(|id| view.index.contains(BlobKind::Data, &id));
        let view = RepoView::load(&repo).expect("load").checked_against(&names()).expect("look");
        assert_eq!(has(&view), [true, true], "nothing is gone");
        for file in its_files {
            repo.storage().remove(FileKind::Index, &file.to_string()).expect("remove");
        }
        let view = view.checked_against(&names()).expect("look");
        assert_eq!(has(&view), [false, true]);
    }
}
