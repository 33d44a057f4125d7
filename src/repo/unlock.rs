//! Removes stale locks, like `restic unlock`.

use super::lock::{LockTiming, is_stale, remove};
use super::lock_info::LockInfo;
use super::{Error, Id, Repository, Result};
use crate::storage::FileKind;

/// A lock file, and whether it is to be removed.
#[derive(Debug)]
pub(crate) struct FoundLock {
    pub(crate) id: Id,
    /// Its contents, or the reason why it is unreadable.
    pub(crate) holder: std::result::Result<LockInfo, String>,
    pub(crate) goes: bool,
}

impl Repository {
    /// Returns all locks. Stale ones are marked for removal: those older than 30 minutes, and those of dead processes
    /// of this host. With `all`, every lock is, including those of running programs and unreadable ones.
    pub(crate) fn locks(&self, all: bool) -> Result<Vec<FoundLock>> {
        let mut found = Vec::new();
        for file in self.storage().list(FileKind::Lock)? {
            let Ok(id) = file.name.parse::<Id>() else { continue };
            let holder = match self.load_unpacked::<LockInfo>(FileKind::Lock, &id) {
                Ok(lock) => Ok(lock),
                Err(Error::Storage(error)) if error.is_not_found() => continue,
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => Err(error.to_string()),
            };
            let goes = all || holder.as_ref().is_ok_and(|lock| is_stale(lock, &LockTiming::default()));
            found.push(FoundLock { id, holder, goes });
        }
        Ok(found)
    }

    pub(crate) fn remove_lock(&self, id: &Id) -> Result<()> {
        remove(self, id)
    }
}
