//! A copy of the key file that last opened a repository, in the cache folder.
//!
//! A key file is named by the hash of its contents. So if the repository lists its name, and the copy has that hash, it
//! need not be read, which saves two round trips. A key that was removed is not listed, so its copy is not used.
//! Callers that look for damage read the file itself ([`super::Repository::check_key`]). The repository's id is not
//! known before it is open, so the folder is named by the hash of its address.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::Id;
use super::cache_folder::CacheFolder;
use crate::storage::FileKind;

/// The name of the file.
const NAME: &str = "key";

/// The copy of the key file for one address.
pub(super) struct KeptKey {
    base: PathBuf,
    address: Id,
    kept: Option<(Id, Vec<u8>)>,
}

impl KeptKey {
    /// Opens the copy for the repository at this address, below `base`. Creates nothing until a key file is kept.
    pub(super) fn open(base: &Path, url: &str) -> KeptKey {
        let address = Id::hash(url.as_bytes());
        let kept = read(base, address).unwrap_or_else(|error| {
            tracing::debug!("no key file in {}: {error}", base.display());
            None
        });
        KeptKey { base: base.to_owned(), address, kept }
    }

    /// Returns the contents of the copy if it is of the key file `id`.
    pub(super) fn contents(&self, id: &Id) -> Option<&[u8]> {
        self.kept.as_ref().filter(|(kept, _)| kept == id).map(|(_, contents)| &**contents)
    }

    /// Keeps the file that opened the repository, replacing the previous copy.
    pub(super) fn keep(&self, id: &Id, contents: &[u8]) {
        if self.contents(id).is_some() {
            return;
        }
        let folder = CacheFolder::open(&self.base, self.address);
        if let Err(error) = folder.and_then(|folder| folder.write(NAME, |file| file.write_all(contents))) {
            tracing::debug!("cannot write to {}: {error}", self.base.display());
        }
    }
}

fn read(base: &Path, address: Id) -> io::Result<Option<(Id, Vec<u8>)>> {
    if !base.join(address.to_string()).exists() {
        return Ok(None);
    }
    let Some(file) = CacheFolder::open(base, address)?.read(NAME)? else { return Ok(None) };
    let mut contents = Vec::new();
    file.take(FileKind::Key.longest_bytes()).read_to_end(&mut contents)?;
    Ok(Some((Id::hash(&contents), contents)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{Error, LockMode, Password, Repository};
    use crate::storage::Storage;
    use crate::storage::testing::{FaultStorage, MemoryStorage, Operation, RecordedCall};
    use std::fs;
    use std::sync::Arc;
    use std::time::Duration;

    struct Scene {
        storage: Arc<FaultStorage>,
        cache: tempfile::TempDir,
    }

    fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    impl Scene {
        fn new() -> Scene {
            let storage = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
            Repository::create(Arc::clone(&storage) as _, &password("first")).expect("create");
            Scene { storage, cache: tempfile::tempdir().expect("a folder") }
        }

        fn open(&self, text: &str) -> crate::repo::Result<Repository> {
            Repository::open_with(Arc::clone(&self.storage) as _, &password(text), None, Some(self.cache.path()))
        }

        /// Opens the repository and returns how many key files were read.
        fn reads(&self, text: &str) -> usize {
            let count = || {
                let is_of_key =
                    |call: &&RecordedCall| call.operation == Operation::Read && call.kind == Some(FileKind::Key);
                self.storage.calls().iter().filter(is_of_key).count()
            };
            let before = count();
            self.open(text).expect("open");
            count() - before
        }

        fn file(&self) -> PathBuf {
            self.cache.path().join(Id::hash(self.storage.url().as_bytes()).to_string()).join(NAME)
        }
    }

    #[test]
    fn known_key_file_is_not_read_again() {
        let scene = Scene::new();
        assert_eq!(scene.reads("first"), 1);
        assert_eq!(scene.reads("first"), 0);
        assert!(matches!(scene.open("wrong"), Err(Error::WrongPassword { .. })));
        let repo = scene.open("first").expect("open");
        let permit = repo.lock(LockMode::Shared, Duration::ZERO).expect("lock").permit();
        repo.add_key(&password("second"), &permit).expect("add");
        assert!(scene.reads("second") >= 1, "another file is needed");
        assert_eq!(scene.reads("second"), 0, "it is tried first");
    }

    #[test]
    fn cached_copy_of_a_removed_key_is_not_used() {
        let scene = Scene::new();
        let repo = scene.open("first").expect("open");
        let permit = repo.lock(LockMode::Shared, Duration::ZERO).expect("lock").permit();
        repo.add_key(&password("second"), &permit).expect("add");
        scene.storage.remove(FileKind::Key, &repo.key_id().to_string()).expect("remove");
        assert!(scene.file().exists());
        assert!(matches!(scene.open("first"), Err(Error::WrongPassword { .. })));
        assert_eq!((scene.reads("second"), scene.reads("second")), (1, 0));
    }

    #[test]
    fn damaged_copy_of_a_key_file_is_reread_and_replaced() {
        let scene = Scene::new();
        scene.open("first").expect("open");
        let good = fs::read(scene.file()).expect("read");
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bytes in [flipped, good[..good.len() - 1].to_vec(), Vec::new()] {
            fs::write(scene.file(), bytes).expect("write");
            assert_eq!((scene.reads("first"), scene.reads("first")), (1, 0));
        }
        fs::write(scene.file(), &good).expect("write");
        let mut flipped = good.clone();
        flipped[9] ^= 1;
        let name = Id::hash(&good).to_string();
        scene.storage.write(FileKind::Key, &name, &flipped).expect("write");
        let repo = scene.open("first").expect("this host has the file");
        assert!(matches!(repo.check_key(), Err(Error::Damaged { kind: FileKind::Key, .. })), "and it is missed");
        // A key file that was truncated in the repository is damaged, even if this host has a copy.
        scene.storage.write(FileKind::Key, &name, &good[..9]).expect("write");
        assert!(matches!(scene.open("first"), Err(Error::NoKey { .. })));
    }
}
