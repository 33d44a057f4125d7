//! A repository, locked, with its index: in this order, so that nobody prunes what the index names.

use super::manifest::Manifest;
use super::points::{self, Description, OpenPoint, PointRef};
use super::{Result, Stop};
use crate::repo::{self, Id, Index, LockMode, PackRecovery, PendingLock, RepoLock, Repository};
use rand::Rng;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for a repository that somebody else needs for himself.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// How long to wait between two tries, at random: who needs the repository for himself must find the gaps of others.
const LOCK_RETRY: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_millis(1500);

/// Takes a lock, waiting for whoever is in the way; Ctrl-C ends the waiting.
pub fn lock(repo: &Repository, mode: LockMode, stop: &Stop) -> Result<RepoLock> {
    patiently(stop, || repo.lock(mode, Duration::ZERO))
}

fn patiently<T>(stop: &Stop, take: impl Fn() -> repo::Result<T>) -> Result<T> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        let next = Instant::now() + rand::rng().random_range(LOCK_RETRY);
        match take() {
            Err(repo::Error::Locked { holder, .. }) if next < deadline => {
                tracing::debug!("waiting for the repository, which is locked {holder}");
            }
            other => return Ok(other?),
        }
        while Instant::now() < next {
            stop.check()?;
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A repository that can be read and added to while this lives.
#[derive(Debug)]
pub struct LockedRepo {
    /// The repository.
    pub repo: Repository,
    /// Its index as of the moment it was locked.
    pub index: Arc<Index>,
    settling: Mutex<Option<PendingLock>>,
    lock: OnceLock<RepoLock>,
    points: OnceLock<Vec<PointRef>>,
    /// What was read last: the point that was looked for is the one that is opened.
    described: Mutex<Option<(Id, Description)>>,
}

impl LockedRepo {
    /// Locks, then loads the index.
    pub fn shared(repo: &Repository, stop: &Stop) -> Result<LockedRepo> {
        let open = LockedRepo::settling(repo, stop)?;
        open.settle()?;
        Ok(open)
    }

    /// The same, but the lock settles while the caller goes on, who must not write an index before [`LockedRepo::settle`].
    pub fn settling(repo: &Repository, stop: &Stop) -> Result<LockedRepo> {
        let settling = patiently(stop, || repo.begin_lock(LockMode::Shared))?;
        let adoption = repo.begin_recovery();
        // Together, for a server is far away. Points that cannot be listed are a matter for who asks for them.
        let (index, points) = thread::scope(|scope| {
            let points = scope.spawn(|| points::list(repo).ok());
            (repo.load_index(), points.join().ok().flatten())
        });
        let points = points.map_or_else(OnceLock::new, |(points, _)| points.into());
        let (index, settling) = (Arc::new(index?), Mutex::new(Some(settling)));
        let (lock, described) = (OnceLock::new(), Mutex::default());
        let mut open = LockedRepo { repo: repo.clone(), index, settling, lock, points, described };
        if let Some(adoption) = adoption {
            open.adopt(adoption, stop)?;
        }
        Ok(open)
    }

    /// Makes use of what a run before this one has stored and not named.
    fn adopt(&mut self, adoption: PackRecovery, stop: &Stop) -> Result<()> {
        let adopted = adoption.finish(&self.index, self.settled_lock()?, &stop.flag())?;
        stop.check()?;
        if adopted > 0 {
            tracing::info!("{adopted} packs of a run that was ended are used");
            self.index = Arc::new(self.repo.load_index()?);
        }
        Ok(())
    }

    /// Its points, oldest first, as of the moment it was locked: since then none can be gone.
    pub fn points(&self) -> Result<&[PointRef]> {
        if let Some(points) = self.points.get() {
            return Ok(points);
        }
        let (points, _) = points::list(&self.repo)?;
        Ok(self.points.get_or_init(|| points))
    }

    /// What a point says of itself.
    pub fn manifest(&self, point: &PointRef) -> Result<Manifest> {
        let described = points::describe(&self.repo, &self.index, point)?;
        let manifest = described.manifest.clone();
        *self.described.lock().unwrap_or_else(PoisonError::into_inner) = Some((point.id, described));
        Ok(manifest)
    }

    /// Opens a point.
    pub fn point(&self, point: &PointRef) -> Result<OpenPoint> {
        let last = self.described.lock().unwrap_or_else(PoisonError::into_inner).take();
        let described = match last {
            Some((id, described)) if id == point.id => described,
            _ => points::describe(&self.repo, &self.index, point)?,
        };
        points::open(&self.repo, &self.index, point, described)
    }

    /// Waits until the lock is certain; fails when somebody else locked at the same moment.
    pub fn settle(&self) -> Result<()> {
        let mut settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(settling) = settling.take() {
            let lock = settling.settle()?;
            self.lock.get_or_init(|| lock);
        }
        Ok(())
    }

    /// Fails when the lock may have been lost: then nothing may be committed.
    pub fn check_lock(&self) -> Result<()> {
        Ok(self.settled_lock()?.check()?)
    }

    fn settled_lock(&self) -> Result<&RepoLock> {
        self.settle()?;
        self.lock.get().ok_or_else(|| {
            let reason = "somebody else locked it at the same moment".to_owned();
            repo::Error::LockLost { url: self.repo.url(), reason }.into()
        })
    }
}
