//! Exclusive creation of files, on servers that allow overwriting.

use crate::storage::{Error, FileKind, Result, Storage};
use std::thread;
use std::time::Duration;

/// How long a concurrent writer of the same name may take to overwrite the file, as with locks.
const SETTLE: Duration = Duration::from_secs(1);

/// Fails with [`Error::Exists`] if there is a file of this name.
pub(in crate::storage) fn refuse_existing(storage: &dyn Storage, kind: FileKind, name: &str) -> Result<()> {
    match storage.size(kind, name) {
        Ok(_) => Err(exists(storage, kind, name)),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits, and then fails with [`Error::Exists`] unless the file still has these contents.
pub(in crate::storage) fn settle(storage: &dyn Storage, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
    thread::sleep(SETTLE);
    match storage.read(kind, name) {
        Ok(there) if there == contents => Ok(()),
        Ok(_) => Err(exists(storage, kind, name)),
        Err(error) if error.is_not_found() => Err(exists(storage, kind, name)),
        Err(error) => Err(error),
    }
}

/// Returns the error for a file that another process has created.
pub(in crate::storage) fn exists(storage: &dyn Storage, kind: FileKind, name: &str) -> Error {
    Error::Exists { url: storage.url(), kind, name: name.to_owned() }
}
