//! A repository in a folder of this host.
//!
//! A file is written under a temporary name in the same folder, synced, renamed, and its folder synced: a reader sees
//! all of it or nothing, even after a power failure. The temporary name contains `-tmp-`, as in restic; such files are
//! never listed. A killed writer leaves one behind; later writers remove those that are older than a day from each
//! folder that they write to.
//!
//! Folders have mode 0700, files 0600. The root folder is created only by [`Storage::create_layout`], never by a write:
//! when a disk is not mounted, nothing must be written to the empty mount point.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::{Error, FileAction, FileInfo, FileKind, Gate, Result, Storage};
use crate::atomic_file;
use crate::direct_file::{self, DirectFile};

/// The part of a name that marks a temporary file.
const TEMPORARY_MARK: &str = "-tmp-";
/// The number of bytes between two calls of the gate.
const PIECE_BYTES: usize = 256 << 10;
/// The size of a single write. Files of at least this size bypass the page cache.
const WRITE_BYTES: usize = 8 * PIECE_BYTES;
/// Reads of at least this length bypass the page cache: they span several chunks of the usual size, and are not
/// repeated.
const DIRECT_READ_BYTES: usize = (1 << 20) + (64 << 10);
/// The file systems of local disks, by their numbers in statfs(2): ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS and
/// tmpfs. A network or FUSE file system may cache listings for a while.
const OF_OWN_DISKS: [i64; 7] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1, 0x0102_1994];
/// A temporary file older than this has no active writer.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder on a local (or mounted) file system.
#[derive(Debug)]
pub struct LocalStorage {
    root: PathBuf,
    /// Folders that were searched for stale temporary files.
    swept: Mutex<HashSet<PathBuf>>,
}

impl LocalStorage {
    /// Opens the repository in `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        LocalStorage { root: root.into(), swept: Mutex::default() }
    }

    /// Returns the folder of the repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, kind: FileKind, name: &str) -> PathBuf {
        match kind {
            FileKind::Config => self.root.clone(),
            FileKind::Pack => self.root.join(kind.folder()).join(name.get(..2).unwrap_or(name)),
            _ => self.root.join(kind.folder()),
        }
    }

    fn path(&self, kind: FileKind, name: &str) -> PathBuf {
        match kind {
            FileKind::Config => self.root.join(kind.folder()),
            _ => self.folder(kind, name).join(name),
        }
    }

    fn error(&self, action: FileAction, kind: FileKind, name: &str, path: &Path, source: io::Error) -> Error {
        match source.kind() {
            ErrorKind::NotFound if action != FileAction::Write => {
                Error::NotFound { url: self.url(), kind, name: name.to_owned() }
            }
            _ => self.io_error(action, path, source),
        }
    }

    fn io_error(&self, action: FileAction, path: &Path, source: io::Error) -> Error {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Error::NoSpace { url: self.url(), path: path.to_owned(), source }
            }
            _ => Error::Io { action, path: path.to_owned(), source },
        }
    }

    /// Creates a folder unless it exists.
    fn create_folder(&self, path: &Path) -> Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(self.io_error(FileAction::Create, path, e)),
            _ => Ok(()),
        }
    }

    fn open_temporary(&self, folder: &Path, path: &Path) -> io::Result<File> {
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match open() {
            // A folder below the root is missing; a tool that copied the repository left it out.
            Err(e) if e.kind() == ErrorKind::NotFound && self.root.is_dir() => {
                for missing in [folder.parent(), Some(folder)].into_iter().flatten() {
                    if missing.starts_with(&self.root) && !missing.is_dir() {
                        DirBuilder::new().mode(0o700).create(missing)?;
                        atomic_file::sync_folder(missing.parent().unwrap_or(missing))?;
                    }
                }
                open()
            }
            other => other,
        }
    }

    /// Removes temporary files of killed writers from `folder`, once per folder. Failures are harmless.
    fn sweep(&self, folder: &Path) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if !swept.insert(folder.to_owned()) {
            return;
        }
        drop(swept);
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        for entry in entries.flatten() {
            let is_temporary = entry.file_name().to_string_lossy().contains(TEMPORARY_MARK);
            let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
            if is_temporary && age().is_some_and(|age| age > STALE_AFTER) {
                tracing::debug!(path = %entry.path().display(), "removing a stale temporary file");
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn list_folder(&self, folder: &Path, found: &mut Vec<FileInfo>) -> Result<()> {
        let fail = |e: io::Error| match e.kind() {
            // The root is missing, not just a part of the repository.
            ErrorKind::NotFound if !self.root.is_dir() => self.io_error(FileAction::Find, &self.root, e),
            _ => self.io_error(FileAction::List, folder, e),
        };
        for entry in fs::read_dir(folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.contains(TEMPORARY_MARK) {
                continue;
            }
            let metadata = match fs::metadata(entry.path()) {
                // Removed meanwhile, by a prune or an unlock.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other.map_err(|e| self.io_error(FileAction::Read, &entry.path(), e))?,
            };
            if metadata.is_file() {
                found.push(FileInfo { name, size_bytes: metadata.len() });
            }
        }
        Ok(())
    }
}

impl Storage for LocalStorage {
    fn url(&self) -> String {
        self.root.display().to_string()
    }

    fn create_layout(&self) -> Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(|e| self.io_error(FileAction::Create, &self.root, e))?;
        for kind in FileKind::ALL {
            if kind != FileKind::Config {
                self.create_folder(&self.root.join(kind.folder()))?;
            }
        }
        let data = self.root.join(FileKind::Pack.folder());
        for fan in 0..=u8::MAX {
            self.create_folder(&data.join(hex::encode([fan])))?;
        }
        for folder in [&data, &self.root] {
            atomic_file::sync_folder(folder).map_err(|e| self.io_error(FileAction::Sync, folder, e))?;
        }
        Ok(())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>> {
        let mut found = Vec::new();
        let top = self.root.join(kind.folder());
        match kind {
            FileKind::Config => match fs::metadata(&top) {
                Ok(metadata) => found.push(FileInfo { name: String::new(), size_bytes: metadata.len() }),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(self.io_error(FileAction::Read, &top, e)),
            },
            FileKind::Lock if matches!(fs::metadata(&top), Err(e) if e.kind() == ErrorKind::NotFound) => {}
            FileKind::Pack => {
                let fail = |e| self.io_error(FileAction::List, &top, e);
                for entry in fs::read_dir(&top).map_err(fail)? {
                    let entry = entry.map_err(fail)?;
                    if entry.file_name().len() != 2 {
                        continue;
                    }
                    // A folder that cannot be examined is an error: its packs would seem to be missing.
                    let metadata = fs::metadata(entry.path());
                    if metadata.map_err(|e| self.io_error(FileAction::Examine, &entry.path(), e))?.is_dir() {
                        self.list_folder(&entry.path(), &mut found)?;
                    }
                }
            }
            _ => self.list_folder(&top, &mut found)?,
        }
        Ok(found)
    }

    fn modified_at(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        let path = self.path(kind, name);
        let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
        modified.map(Some).map_err(|e| self.error(FileAction::Read, kind, name, &path, e))
    }

    fn size(&self, kind: FileKind, name: &str) -> Result<u64> {
        let path = self.path(kind, name);
        fs::metadata(&path)
            .map(|metadata| metadata.len())
            .map_err(|e| self.error(FileAction::Read, kind, name, &path, e))
    }

    fn read(&self, kind: FileKind, name: &str) -> Result<Vec<u8>> {
        let path = self.path(kind, name);
        let (mut bytes, longest_bytes) = (Vec::new(), kind.longest_bytes());
        let mut read = || atomic_file::open(&path)?.take(longest_bytes + 1).read_to_end(&mut bytes);
        let length = read().map_err(|e| self.error(FileAction::Read, kind, name, &path, e))?;
        match length as u64 > longest_bytes {
            true => Err(Error::too_long(self.url(), kind, name)),
            false => Ok(bytes),
        }
    }

    fn read_range(&self, kind: FileKind, name: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        let path = self.path(kind, name);
        let fail = |e| self.error(FileAction::Read, kind, name, &path, e);
        let too_short = || Error::TooShort {
            url: self.url(),
            kind,
            name: name.to_owned(),
            wanted_bytes: offset.saturating_add(length as u64),
        };
        let mut file = atomic_file::open(&path).map_err(fail)?;
        // Check the size first, so that a wrong length from a damaged index is not allocated.
        let size_bytes = file.metadata().map_err(fail)?.len();
        if offset.saturating_add(length as u64) > size_bytes {
            return Err(too_short());
        }
        if length >= DIRECT_READ_BYTES
            && rustix::fs::fstatfs(&file).is_ok_and(is_own_disk)
            && let Some(bytes) = direct_file::read_range(&file, offset, length)
        {
            return Ok(bytes);
        }
        let mut bytes = Vec::with_capacity(length);
        file.seek(SeekFrom::Start(offset)).map_err(fail)?;
        file.take(length as u64).read_to_end(&mut bytes).map_err(fail)?;
        match bytes.len() == length {
            true => Ok(bytes),
            false => Err(too_short()),
        }
    }

    fn write(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        self.write_gated(kind, name, contents, &|_| true)
    }

    fn write_gated(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate) -> Result<()> {
        let folder = self.folder(kind, name);
        let path = self.path(kind, name);
        let temporary = temporary_beside(&path);
        let write = || -> io::Result<bool> {
            let file = self.open_temporary(&folder, &temporary)?;
            let file = match contents.len() >= WRITE_BYTES && rustix::fs::fstatfs(&file).is_ok_and(is_own_disk) {
                true => DirectFile::new(file),
                false => DirectFile::cached(file),
            };
            let mut written = 0;
            for part in contents.chunks(WRITE_BYTES) {
                if !part.chunks(PIECE_BYTES).all(|piece| gate(piece.len())) {
                    return Ok(false);
                }
                file.write_all_at(part, written)?;
                written += part.len() as u64;
            }
            file.file().sync_all()?;
            drop(file);
            // The sync took time, so the program may have been stopped meanwhile.
            if !gate(0) {
                return Ok(false);
            }
            fs::rename(&temporary, &path)?;
            atomic_file::sync_folder(&folder)?;
            Ok(true)
        };
        let written = write();
        if !matches!(written, Ok(true)) {
            let _ = fs::remove_file(&temporary);
        }
        self.sweep(&folder);
        match written.map_err(|error| self.error(FileAction::Write, kind, name, &path, error))? {
            true => Ok(()),
            false => Err(Error::Interrupted),
        }
    }

    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        let folder = self.folder(kind, name);
        let path = self.path(kind, name);
        let temporary = temporary_beside(&path);
        let create = || -> io::Result<()> {
            let mut file = self.open_temporary(&folder, &temporary)?;
            file.write_all(contents)?;
            file.sync_all()?;
            atomic_file::publish(&temporary, &path, contents, 0o600)?;
            atomic_file::sync_folder(&folder)
        };
        let created = create();
        let _ = fs::remove_file(&temporary);
        created.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Error::Exists { url: self.url(), kind, name: name.to_owned() },
            _ => self.error(FileAction::Write, kind, name, &path, error),
        })
    }

    fn remove_exact(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<bool> {
        let path = self.path(kind, name);
        let aside = temporary_beside(&path);
        let fail = |error| self.error(FileAction::Remove, kind, name, &path, error);
        fs::rename(&path, &aside).map_err(fail)?;
        // Nobody writes to the file under its new name, so the contents that are compared are those that are removed.
        let found = fs::read(&aside).map_err(fail)?;
        let is_it = found == contents;
        if !is_it {
            atomic_file::publish(&aside, &path, &found, 0o600).map_err(fail)?;
        }
        fs::remove_file(&aside).map_err(fail)?;
        let folder = self.folder(kind, name);
        atomic_file::sync_folder(&folder).map_err(|e| self.io_error(FileAction::Sync, &folder, e))?;
        Ok(is_it)
    }

    fn remove(&self, kind: FileKind, name: &str) -> Result<()> {
        let path = self.path(kind, name);
        fs::remove_file(&path).map_err(|e| self.error(FileAction::Remove, kind, name, &path, e))?;
        let folder = self.folder(kind, name);
        atomic_file::sync_folder(&folder).map_err(|e| self.io_error(FileAction::Sync, &folder, e))
    }

    fn sync_folder(&self, kind: FileKind, name: &str) -> Result<()> {
        let folder = self.folder(kind, name);
        // The folder of a pack may be new itself.
        let above = folder.parent().filter(|_| kind == FileKind::Pack);
        for folder in [Some(folder.as_path()), above].into_iter().flatten() {
            match atomic_file::sync_folder(folder) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(self.io_error(FileAction::Sync, folder, e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn remove_leftovers(&self) -> Result<()> {
        let data = self.root.join(FileKind::Pack.folder());
        for kind in FileKind::ALL.into_iter().filter(|kind| !matches!(kind, FileKind::Config | FileKind::Pack)) {
            self.sweep(&self.root.join(kind.folder()));
        }
        for fan in 0..=u8::MAX {
            self.sweep(&data.join(hex::encode([fan])));
        }
        Ok(())
    }

    fn sees_writes_at_once(&self) -> bool {
        let locks = self.folder(FileKind::Lock, "");
        rustix::fs::statfs(&locks).is_ok_and(is_own_disk)
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        let stat =
            rustix::fs::statvfs(&self.root).map_err(|e| self.io_error(FileAction::Examine, &self.root, e.into()))?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }
}

/// Returns whether a file system is on a local disk. Network file systems show new files late, and are faster through
/// the page cache.
fn is_own_disk(found: rustix::fs::StatFs) -> bool {
    OF_OWN_DISKS.contains(&found.f_type)
}

/// Returns a path like `name-tmp-1f9c…` in the same folder.
fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("{TEMPORARY_MARK}{:016x}", rand::random::<u64>()));
    path.with_file_name(name)
}
