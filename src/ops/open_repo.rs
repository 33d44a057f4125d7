//! A repository, locked, with its index: in this order, so that nobody prunes what the index names.

use super::Result;
use crate::repo::{Index, LockMode, RepoLock, Repository};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for a repository that somebody prunes.
pub const LOCK_WAIT: Duration = Duration::from_secs(60);

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
    pub fn shared(repo: &Repository) -> Result<OpenRepo> {
        let lock = repo.lock(LockMode::Shared, LOCK_WAIT)?;
        let index = Arc::new(repo.load_index()?);
        Ok(OpenRepo { repo: repo.clone(), index, lock })
    }

    /// Fails when the lock may have been lost: then nothing may be committed.
    pub fn check_lock(&self) -> Result<()> {
        Ok(self.lock.check()?)
    }
}
