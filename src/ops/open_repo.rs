//! A repository, locked, with its index: in this order, so that nobody prunes what the index names.

use super::{Result, Stop};
use crate::repo::{self, Index, LockMode, RepoLock, Repository};
use rand::Rng;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for a repository that somebody else needs for himself.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// How long to wait between two tries, at random: who needs the repository for himself must find the gaps of others.
const LOCK_RETRY: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_millis(1500);

/// Takes a lock, waiting for whoever is in the way; Ctrl-C ends the waiting.
pub fn lock(repo: &Repository, mode: LockMode, stop: &Stop) -> Result<RepoLock> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        let next = Instant::now() + rand::rng().random_range(LOCK_RETRY);
        match repo.lock(mode, Duration::ZERO) {
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
pub struct OpenRepo {
    /// The repository.
    pub repo: Repository,
    /// Its index as of the moment it was locked.
    pub index: Arc<Index>,
    lock: RepoLock,
}

impl OpenRepo {
    /// Locks, then loads the index.
    pub fn shared(repo: &Repository, stop: &Stop) -> Result<OpenRepo> {
        let lock = lock(repo, LockMode::Shared, stop)?;
        let index = Arc::new(repo.load_index()?);
        Ok(OpenRepo { repo: repo.clone(), index, lock })
    }

    /// Fails when the lock may have been lost: then nothing may be committed.
    pub fn check_lock(&self) -> Result<()> {
        Ok(self.lock.check()?)
    }
}
