//! Creating a file that nobody else has created, on servers that let everybody overwrite it.

use crate::storage::{Error, FileKind, Result, Storage};
use std::thread;
use std::time::Duration;

/// How long another writer of the same name may take to overwrite what was written, as with locks.
const SETTLE: Duration = Duration::from_secs(1);

/// Fails with [`Error::Exists`] where there is a file of this name.
pub(in crate::storage) fn refuse_existing(storage: &dyn Storage, kind: FileKind, name: &str) -> Result<()> {
    match storage.size(kind, name) {
        Ok(_) => Err(exists(storage, kind, name)),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits, and fails with [`Error::Exists`] unless the file is still what was written.
pub(in crate::storage) fn settle(storage: &dyn Storage, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
    thread::sleep(SETTLE);
    match storage.read(kind, name) {
        Ok(there) if there == contents => Ok(()),
        Ok(_) => Err(exists(storage, kind, name)),
        Err(error) if error.is_not_found() => Err(exists(storage, kind, name)),
        Err(error) => Err(error),
    }
}

/// Another one has created a file of this name.
pub(in crate::storage) fn exists(storage: &dyn Storage, kind: FileKind, name: &str) -> Error {
    Error::Exists { url: storage.url(), kind, name: name.to_owned() }
}
