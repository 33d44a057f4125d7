//! Taking away locks that nobody holds any more, with the meaning of `restic unlock`.

use super::lock::{LockTiming, is_stale, remove};
use super::lock_info::LockInfo;
use super::{Error, Id, Repository, Result};
use crate::storage::FileKind;

/// A lock file, and what is to become of it.
#[derive(Debug)]
pub(crate) struct FoundLock {
    pub(crate) id: Id,
    /// What it says; the reason where it cannot be read.
    pub(crate) holder: std::result::Result<LockInfo, String>,
    pub(crate) goes: bool,
}

impl Repository {
    /// Looks at all locks. Stale ones go: those older than 30 minutes, and those of dead processes of this host. With
    /// `all` every one goes, those of programs at work and those that cannot be read too.
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
