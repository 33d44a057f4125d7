//! A folder with copies of parts of a repository, so that they need not be fetched and parsed in each run.
//!
//! ```text
//! /var/cache/kvmb                 0700, owned by the user who runs kvmb
//! ├── CACHEDIR.TAG                makes backup programs skip the folder
//! ├── <the repository's id>       0700
//! │   ├── index                   see [`super::cached_index`]
//! │   └── records                 see [`super::kept_records`]
//! └── <the hash of its address>   0700
//!     └── key                     see [`super::kept_key`]
//! ```
//!
//! The folder may be removed at any time. Its contents are not trusted: each file is sealed with the key of its
//! repository, or has the hash that the repository lists, and is used only as far as the repository still lists the
//! originals. A folder that belongs to another user, or that others may write to, is not used, and symbolic links are
//! not followed.

use std::fs::{DirBuilder, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::Id;

/// The first line of a `CACHEDIR.TAG`.
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n";
/// The prefix of a file that is being written.
const TEMPORARY: &str = ".new-";

/// The folder of one repository.
#[derive(Debug)]
pub(super) struct CacheFolder {
    folder: File,
    path: PathBuf,
}

impl CacheFolder {
    /// Opens the folder of a repository, or of its address, below `base`. Creates both if they do not exist.
    pub(super) fn open(base: &Path, repository: Id) -> io::Result<CacheFolder> {
        DirBuilder::new().recursive(true).mode(0o700).create(base)?;
        let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32;
        let top = File::options().read(true).custom_flags(flags).open(base)?;
        refuse_foreign(&top, base)?;
        // The cache works without the tag.
        if let Ok(mut tag) = create_new(&top, "CACHEDIR.TAG") {
            let _ = tag.write_all(TAG.as_bytes());
        }
        let name = repository.to_string();
        match mkdirat(&top, &*name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = File::from(openat(&top, &*name, flags, Mode::empty())?);
        let path = base.join(name);
        refuse_foreign(&folder, &path)?;
        Ok(CacheFolder { folder, path })
    }

    /// Returns the path of the folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file for reading. Returns `None` if it does not exist.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = refuse_foreign(&file, &self.path.join(name))?;
        match found.is_file() {
            true => Ok(Some(file)),
            false => Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
        }
    }

    /// Writes a file atomically, replacing an existing one. If another run is writing at the same moment, nothing is
    /// written. The file is not synced: a reader detects one that a crash damaged.
    pub(super) fn write(
        &self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(_lock) = self.try_lock()? else { return Ok(()) };
        let temporary = format!("{TEMPORARY}{name}");
        // Left over by a killed run.
        self.remove(&temporary)?;
        let mut file = BufWriter::with_capacity(1 << 20, create_new(&self.folder, &temporary)?);
        let written = write(&mut file).and_then(|()| file.flush());
        let written = written.and_then(|()| Ok(renameat(&self.folder, &*temporary, &self.folder, name)?));
        if written.is_err() {
            // Return the first error.
            let _ = self.remove(&temporary);
        }
        written
    }

    /// Appends to an existing file. Like [`CacheFolder::write`], it does nothing if another run is writing.
    pub(super) fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let Some(_lock) = self.try_lock()? else { return Ok(()) };
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.folder, name, flags, Mode::empty())?);
        refuse_foreign(&file, &self.path.join(name))?;
        file.write_all(bytes)
    }

    /// Takes the lock for writing. Returns `None` if another run holds it.
    fn try_lock(&self) -> io::Result<Option<File>> {
        // A separate open file description, because threads of one run share `self.folder`.
        let lock = File::from(openat(&self.folder, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a file, if it exists.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.folder, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn create_new(folder: &File, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Fails if the file belongs to another user or is writable by others.
fn refuse_foreign(file: &File, path: &Path) -> io::Result<std::fs::Metadata> {
    let found = file.metadata()?;
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        let reason = format!("{} belongs to another user, or others may write to it", path.display());
        return Err(io::Error::new(ErrorKind::PermissionDenied, reason));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn id() -> Id {
        Id::hash(b"repository")
    }

    fn read(folder: &CacheFolder, name: &str) -> Option<String> {
        let mut text = String::new();
        folder.read(name).unwrap()?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn cached_files_are_private_and_replaced_atomically() {
        let home = tempfile::tempdir().unwrap();
        let base = home.path().join("a/kvmb");
        let folder = CacheFolder::open(&base, id()).unwrap();
        assert_eq!(read(&folder, "x"), None);
        folder.write("x", |file| file.write_all(b"one")).unwrap();
        let other = CacheFolder::open(&base, id()).unwrap();
        assert_eq!(read(&other, "x").unwrap(), "one");
        let failed = other.write("x", |file| file.write_all(b"two").and(Err(ErrorKind::StorageFull.into())));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(read(&folder, "x").unwrap(), "one");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(&base), mode(folder.path()), mode(&folder.path().join("x"))], [0o700, 0o700, 0o600]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        assert!(fs::read_to_string(base.join("CACHEDIR.TAG")).unwrap().starts_with(TAG));
    }

    #[test]
    fn stale_temporary_file_is_replaced_unless_a_writer_holds_it() {
        let home = tempfile::tempdir().unwrap();
        let folder = CacheFolder::open(home.path(), id()).unwrap();
        fs::write(folder.path().join(".new-x"), "half").unwrap();
        folder
            .write("x", |file| {
                let other = CacheFolder::open(home.path(), id()).unwrap();
                other.write("x", |_| panic!("somebody else writes")).unwrap();
                file.write_all(b"one")
            })
            .unwrap();
        assert_eq!(read(&folder, "x").unwrap(), "one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_and_files_writable_by_others_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let base = home.path().join("kvmb");
        let folder = CacheFolder::open(&base, id()).unwrap();
        folder.write("x", |file| file.write_all(b"one")).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        set(&folder.path().join("x"), 0o666);
        assert_eq!(folder.read("x").unwrap_err().kind(), ErrorKind::PermissionDenied);
        for path in [&base, folder.path()] {
            set(path, 0o777);
            assert_eq!(CacheFolder::open(&base, id()).unwrap_err().kind(), ErrorKind::PermissionDenied);
            set(path, 0o700);
        }
        // Only root can change the owner of a file.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(1), None).unwrap();
            assert_eq!(CacheFolder::open(&base, id()).unwrap_err().kind(), ErrorKind::PermissionDenied);
            std::os::unix::fs::chown(folder.path(), Some(0), None).unwrap();
        }
        fs::remove_file(folder.path().join("x")).unwrap();
        symlink("/etc/hostname", folder.path().join("x")).unwrap();
        assert!(folder.read("x").is_err());
        fs::create_dir(folder.path().join("d")).unwrap();
        assert!(folder.read("d").is_err());
        let moved = home.path().join("moved");
        fs::rename(folder.path(), &moved).unwrap();
        symlink(&moved, folder.path()).unwrap();
        assert!(CacheFolder::open(&base, id()).is_err());
        let link = home.path().join("link");
        symlink(&base, &link).unwrap();
        assert!(CacheFolder::open(&link, id()).is_err());
    }
}
