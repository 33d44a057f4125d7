//! A repository in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::storage::{Error, FileInfo, FileKind, Result, Storage, Transit};

type MemoryFiles = BTreeMap<(FileKind, String), Vec<u8>>;

/// A storage in memory, whose files tests can damage with [`MemoryStorage::replace`].
#[derive(Debug)]
pub struct MemoryStorage {
    files: Mutex<MemoryFiles>,
    transit: Transit,
}

impl Default for MemoryStorage {
    fn default() -> Self {
        MemoryStorage::behind(Transit::Local)
    }
}

impl MemoryStorage {
    /// Creates an empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty storage with this [`Transit`].
    pub fn behind(transit: Transit) -> Self {
        MemoryStorage { files: Mutex::default(), transit }
    }

    fn files(&self) -> MutexGuard<'_, MemoryFiles> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the contents of a file, as bit rot would; `None` removes it.
    pub fn replace(&self, kind: FileKind, name: &str, contents: Option<Vec<u8>>) {
        let key = key(kind, name);
        match contents {
            Some(contents) => self.files().insert(key, contents),
            None => self.files().remove(&key),
        };
    }

    fn not_found(&self, kind: FileKind, name: &str) -> Error {
        Error::NotFound { url: self.url(), kind, name: name.to_owned() }
    }
}

/// The config has no name.
fn key(kind: FileKind, name: &str) -> (FileKind, String) {
    let name = if kind == FileKind::Config { "" } else { name };
    (kind, name.to_owned())
}

impl Storage for MemoryStorage {
    fn url(&self) -> String {
        "memory:".to_owned()
    }

    fn transit(&self) -> Transit {
        self.transit
    }

    fn create_layout(&self) -> Result<()> {
        Ok(())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>> {
        let files = self.files();
        let of_kind = files.iter().filter(|((k, _), _)| *k == kind);
        Ok(of_kind
            .map(|((_, name), contents)| FileInfo { name: name.clone(), size_bytes: contents.len() as u64 })
            .collect())
    }

    fn size(&self, kind: FileKind, name: &str) -> Result<u64> {
        match self.files().get(&key(kind, name)) {
            Some(contents) => Ok(contents.len() as u64),
            None => Err(self.not_found(kind, name)),
        }
    }

    fn read(&self, kind: FileKind, name: &str) -> Result<Vec<u8>> {
        match self.files().get(&key(kind, name)) {
            Some(contents) if contents.len() as u64 > kind.longest_bytes() => {
                Err(Error::too_long(self.url(), kind, name))
            }
            Some(contents) => Ok(contents.clone()),
            None => Err(self.not_found(kind, name)),
        }
    }

    fn read_range(&self, kind: FileKind, name: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        let files = self.files();
        let Some(contents) = files.get(&key(kind, name)) else {
            return Err(self.not_found(kind, name));
        };
        let end = offset.saturating_add(length as u64);
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(start, end)| contents.get(start..end));
        match range {
            Some(range) => Ok(range.to_vec()),
            None => Err(Error::TooShort { url: self.url(), kind, name: name.to_owned(), wanted_bytes: end }),
        }
    }

    fn write(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        self.files().insert(key(kind, name), contents.to_vec());
        Ok(())
    }

    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        match self.files().entry(key(kind, name)) {
            Entry::Occupied(_) => Err(Error::Exists { url: self.url(), kind, name: name.to_owned() }),
            Entry::Vacant(place) => {
                place.insert(contents.to_vec());
                Ok(())
            }
        }
    }

    fn remove_exact(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<bool> {
        match self.files().entry(key(kind, name)) {
            Entry::Vacant(_) => Err(self.not_found(kind, name)),
            Entry::Occupied(there) if there.get() == contents => {
                there.remove();
                Ok(true)
            }
            Entry::Occupied(_) => Ok(false),
        }
    }

    fn remove(&self, kind: FileKind, name: &str) -> Result<()> {
        match self.files().remove(&key(kind, name)) {
            Some(_) => Ok(()),
            None => Err(self.not_found(kind, name)),
        }
    }

    fn sync_folder(&self, _kind: FileKind, _name: &str) -> Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
