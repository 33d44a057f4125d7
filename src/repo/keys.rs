//! The keys of an open repository.

use super::key::KeyFile;
use super::{Id, KeyInfo, Password, Permit, Repository, Result};
use crate::storage::FileKind;

impl Repository {
    /// Adds a key for another password.
    pub fn add_key(&self, password: &Password, permit: &Permit) -> Result<Id> {
        permit.confirm()?;
        KeyFile::add(&**self.storage(), self.key(), password)
    }

    /// Reads the key file that opened the repository, for callers that look for damage and must not use the copy on
    /// this host.
    pub(crate) fn check_key(&self) -> Result<()> {
        KeyFile::read(&**self.storage(), self.key_id()).map(drop)
    }

    /// Returns the keys, sorted by time. Damaged ones are skipped with a warning.
    pub fn keys(&self) -> Result<Vec<KeyInfo>> {
        let mut keys = Vec::new();
        for id in self.list(FileKind::Key)? {
            match KeyFile::read(&**self.storage(), &id) {
                Ok(file) => keys.push(file.info(id, id == *self.key_id())),
                Err(error) => tracing::warn!(key = %id, %error, "skipping a key"),
            }
        }
        keys.sort_by_key(|key| (key.created, key.id));
        Ok(keys)
    }
}
