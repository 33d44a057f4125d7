//! What this host remembers of a repository from one run to the next.
//!
//! Nothing that a repository needs: without it a run may only do some work twice. The folder is one of kvmb's own, in its
//! data folder and private, `repositories/<the repository's id>`:
//!
//! | file | what |
//! | --- | --- |
//! | `unfinished/*` | packs that a run has stored and not named yet: see [`super::unfinished`] |
//! | others | what the layers above keep, each with a name of its own |

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::Id;

/// The folder of one repository. It is made when something is first kept in it.
#[derive(Debug)]
pub struct Memory {
    data_folder: PathBuf,
    folder: PathBuf,
    /// Held by the one thread that names what ended runs have left.
    pub(super) adopting: Mutex<()>,
}

impl Memory {
    /// What is remembered of the repository with this id, below kvmb's data folder.
    pub(super) fn new(data_folder: &Path, repository: Id) -> Memory {
        let folder = data_folder.join("repositories").join(repository.to_string());
        Memory { data_folder: data_folder.to_owned(), folder, adopting: Mutex::default() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a folder in it, private.
    pub(super) fn make_folder(&self, name: &str) -> io::Result<PathBuf> {
        // QEMU's user passes through the data folder, to the scratch files.
        DirBuilder::new().recursive(true).mode(0o711).create(&self.data_folder)?;
        let folder = self.folder.join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(folder)
    }

    /// What was kept under a name; none if nothing was.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.folder.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Keeps something under a name, in the place of what was there: all of it or nothing.
    pub fn write(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        let folder = self.make_folder("")?;
        let temporary = folder.join(format!("{name}-tmp-{:016x}", rand::random::<u64>()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, folder.join(name)));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_kept_is_private_and_replaced_as_a_whole() {
        let home = tempfile::tempdir().unwrap();
        let memory = Memory::new(&home.path().join("data"), Id::hash(b"repository"));
        assert_eq!(memory.read("x").unwrap(), None);
        memory.write("x", b"one").unwrap();
        memory.write("x", b"two").unwrap();
        assert_eq!(memory.read("x").unwrap().unwrap(), b"two");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&memory.folder().join("x")), 0o600);
        assert_eq!(mode(memory.folder()), 0o700);
        assert_eq!(mode(&home.path().join("data")), 0o711);
        assert_eq!(fs::read_dir(memory.folder()).unwrap().count(), 1, "nothing else is left");
    }
}
