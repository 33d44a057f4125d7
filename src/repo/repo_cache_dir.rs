//! What this host remembers of a repository from one run to the next.
//!
//! Nothing that a repository needs: without it a run may only do some work twice. The folder is one of kvmb's own, in
//! its data folder and private, `repositories/<the repository's id>`:
//!
//! | file | what |
//! | --- | --- |
//! | `unfinished/*` | packs that a run has stored and not named yet: see [`super::orphaned_packs`] |
//! | others | what the layers above keep, each with a name of its own |

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};

use super::Id;
use crate::atomic_file;

/// The folder of one repository. It is made when something is first kept in it.
#[derive(Debug)]
pub struct RepoCacheDir {
    data_folder: PathBuf,
    path: PathBuf,
    /// Held by the one thread that names what ended runs have left.
    pub(super) adopting: Mutex<()>,
}

impl RepoCacheDir {
    /// What is remembered of the repository with this id, below kvmb's data folder.
    pub(super) fn new(data_folder: &Path, repository: Id) -> RepoCacheDir {
        let path = data_folder.join("repositories").join(repository.to_string());
        RepoCacheDir { data_folder: data_folder.to_owned(), path, adopting: Mutex::default() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder in it, private.
    pub(super) fn make_folder(&self, name: &str) -> io::Result<PathBuf> {
        // QEMU's user passes through the data folder, to the scratch files.
        DirBuilder::new().recursive(true).mode(0o711).create(&self.data_folder)?;
        let folder = self.path.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(folder)
    }

    /// What was kept under a name; none if nothing was.
    pub(crate) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match atomic_file::read(&self.path.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Keeps something under a name, in the place of what was there: all of it or nothing. `change` gets what was
    /// there, and no other run changes it meanwhile.
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
    fn what_is_kept_is_private_and_replaced_as_a_whole() {
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
