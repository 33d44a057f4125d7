//! Data that this host keeps about a repository between runs.
//!
//! It is not required: without it a run may only do some work twice. The folder is private and part of kvmb's data
//! folder, `repositories/<the repository's id>`:
//!
//! | file | contents |
//! | --- | --- |
//! | `unfinished/*` | packs that a run has stored but not added to an index: see [`super::orphaned_packs`] |
//! | others | data of the layers above, each under its own name |

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};

use super::Id;
use crate::atomic_file;

/// The folder of one repository. It is created when something is first stored in it.
#[derive(Debug)]
pub struct RepoCacheDir {
    data_folder: PathBuf,
    path: PathBuf,
    /// Held by the one thread that recovers the packs of ended runs.
    pub(super) recovering: Mutex<()>,
}

impl RepoCacheDir {
    /// Returns the folder for the repository with this id, below kvmb's data folder.
    pub(super) fn new(data_folder: &Path, repository: Id) -> RepoCacheDir {
        let path = data_folder.join("repositories").join(repository.to_string());
        RepoCacheDir { data_folder: data_folder.to_owned(), path, recovering: Mutex::default() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a private folder in it.
    pub(super) fn make_folder(&self, name: &str) -> io::Result<PathBuf> {
        // QEMU's user must be able to traverse the data folder to reach the scratch files.
        DirBuilder::new().recursive(true).mode(0o711).create(&self.data_folder)?;
        let folder = self.path.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(folder)
    }

    /// Returns what was stored under a name, or `None`.
    pub(crate) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match atomic_file::read(&self.path.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Atomically replaces what is stored under a name. `change` gets the previous contents; no other run changes them
    /// meanwhile.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(Vec<u8>) -> io::Result<Vec<u8>>) -> io::Result<()> {
        let folder = self.make_folder("")?;
        let lock = File::open(&folder)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let contents = change(self.read(name)?.unwrap_or_default())?;
        atomic_file::write(&folder.join(name), &contents, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn concurrent_changes_are_all_kept_in_private_files() {
        let home = tempfile::tempdir().unwrap();
        let host_folder = RepoCacheDir::new(&home.path().join("data"), Id::hash(b"repository"));
        assert_eq!(host_folder.read("x").unwrap(), None);
        let add = |byte| host_folder.change("x", |before| Ok([before, vec![byte]].concat())).unwrap();
        std::thread::scope(|scope| {
            (0..8).for_each(|thread| drop(scope.spawn(move || (0..10).for_each(|_| add(thread)))));
        });
        assert_eq!(host_folder.read("x").unwrap().unwrap().len(), 80, "a change was lost");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&host_folder.path().join("x")), 0o600);
        assert_eq!(mode(host_folder.path()), 0o700);
        assert_eq!(mode(&home.path().join("data")), 0o711);
        assert_eq!(fs::read_dir(host_folder.path()).unwrap().count(), 1, "nothing else is left");
    }
}
