//! Copies files of a guest into a folder of this host.
//!
//! The guest chose the names, links and modes. Therefore paths are opened one name at a time without following links in
//! the target. A file is written under a temporary name, gets its owner, mode and attributes, and is then renamed.
//! Folders get theirs at the end. Nothing is overwritten unless the user requested it.

use super::{FileSink, GuestFile, WalkStart};
use crate::filesystems::namespace::Names;
use crate::filesystems::{DataRange, FsError, InodeKind, InodeMetadata, Timestamp};
use crate::ops::{Error, Monitor, Progress, Result};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, StatxFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, fstat, ftruncate, futimens, linkat, makedev, mkdirat, mknodat, openat, renameat, renameat_with,
    statx, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files with at least this much data get a progress bar.
const LARGE_BYTES: u64 = 16 << 20;

/// The options of a copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyOptions {
    /// Whether to replace existing files.
    pub(crate) overwrite: bool,
    pub(crate) devices: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CopyTotals {
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) bytes: u64,
    pub(crate) skipped: u64,
}

/// Called for each file that was not copied.
pub(crate) type Report<'a> = &'a mut dyn FnMut(Error);

/// Copies one walk into a folder: under the last name of its start, or directly into the folder if it starts at a root.
pub(crate) struct CopyTarget<'a> {
    folder: PathBuf,
    base: OwnedFd,
    options: CopyOptions,
    is_root: bool,
    monitor: &'a dyn Monitor,
    report: Report<'a>,
    start: WalkStart,
    /// Regular files written by this copy, as targets of hard links.
    written: HashSet<Names>,
    /// Folders that could not be created. Their content cannot be copied either.
    refused: HashSet<Names>,
    /// Folders that get their modes and times at the end.
    folders: Vec<GuestFile>,
    open: Option<UnfinishedFile>,
    /// The parent folder that was opened last.
    parent: Option<(Names, OwnedFd)>,
    totals: CopyTotals,
    incomplete: Option<(u64, String, io::Error)>,
}

/// The file being written.
struct UnfinishedFile {
    guest: GuestFile,
    file: File,
    parent: OwnedFd,
    temporary: String,
    name: Vec<u8>,
    progress: Option<Box<dyn Progress>>,
    data_bytes: u64,
}

/// A name as a path. It contains no slash.
fn component(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

/// Whether an error means that nothing more can be written.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    )
}

impl<'a> CopyTarget<'a> {
    /// Opens a folder to copy into, which must exist.
    pub(crate) fn open(
        folder: &Path,
        options: CopyOptions,
        monitor: &'a dyn Monitor,
        report: Report<'a>,
    ) -> Result<CopyTarget<'a>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // The user specified the folder, so a link to it is followed.
        let base = rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOENT => Error::NoFolder { path: folder.to_owned() },
            error => Error::io("open", folder)(error.into()),
        })?;
        Ok(CopyTarget {
            folder: folder.to_owned(),
            base,
            options,
            is_root: rustix::process::geteuid().is_root(),
            monitor,
            report,
            start: WalkStart::default(),
            written: HashSet::new(),
            refused: HashSet::new(),
            folders: Vec::new(),
            open: None,
            parent: None,
            totals: CopyTotals::default(),
            incomplete: None,
        })
    }

    /// Sets the modes and times of folders. Returns what was copied, and where to.
    pub(crate) fn finish(mut self) -> Result<(CopyTotals, PathBuf)> {
        self.open = None;
        self.parent = None;
        for folder in std::mem::take(&mut self.folders).into_iter().rev() {
            let names = self.target_names(&folder.names);
            let opened = self.open_folder(&names);
            let set = opened.and_then(|opened| self.set_metadata(&folder.metadata, &folder.xattrs, &opened));
            if let Err(error) = set {
                self.fail(&folder.names, error)?;
            }
        }
        if let Some((count, what, source)) = self.incomplete.take() {
            (self.report)(Error::IncompleteCopies { count, what, source });
        }
        let target = self.target_names(&Vec::new());
        let target = target.iter().fold(self.folder.clone(), |path, name| path.join(component(name)));
        Ok((self.totals, target))
    }

    /// The names below the target folder.
    fn target_names(&self, names: &Names) -> Names {
        self.start.names.last().into_iter().chain(names).cloned().collect()
    }

    /// The path on this host, for messages.
    fn target_path(&self, names: &Names) -> PathBuf {
        self.target_names(names).iter().fold(self.folder.clone(), |path, name| path.join(component(name)))
    }

    /// Opens a folder below the target, one name at a time, without following links.
    fn open_folder(&self, names: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut folder = self.base.try_clone()?;
        for name in names {
            folder = openat(&folder, component(name), flags, Mode::empty())?;
        }
        Ok(folder)
    }

    /// Returns the folder that a file is copied into and its name there, or `None` for the root of a walk.
    fn place(&mut self, names: &Names) -> io::Result<Option<(OwnedFd, Vec<u8>)>> {
        let mut names = self.target_names(names);
        let Some(name) = names.pop() else { return Ok(None) };
        match &self.parent {
            Some((known, parent)) if *known == names => Ok(Some((parent.try_clone()?, name))),
            _ => {
                let parent = self.open_folder(&names)?;
                self.parent = Some((names, parent.try_clone()?));
                Ok(Some((parent, name)))
            }
        }
    }

    /// Reports a failure of one file. It is returned as an error only if nothing more can be written.
    fn fail(&mut self, names: &Names, error: io::Error) -> Result<()> {
        let path = self.target_path(names);
        if is_fatal(&error) {
            return Err(Error::io("write", &path)(error));
        }
        let error = match error.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path },
            _ => Error::io("write", &path)(error),
        };
        (self.report)(error);
        Ok(())
    }

    fn lacks(&mut self, what: &str, error: impl Into<io::Error>) {
        match &mut self.incomplete {
            Some((count, ..)) => *count += 1,
            None => self.incomplete = Some((1, what.to_owned(), error.into())),
        }
    }

    /// Sets owner, mode, attributes and times, in an order in which none resets another.
    fn set_metadata(
        &mut self,
        metadata: &InodeMetadata,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        file: &impl AsFd,
    ) -> io::Result<()> {
        let mut is_owned = false;
        if let Some((uid, gid)) = metadata.owner.filter(|_| self.is_root) {
            match owner(uid, gid).map(|(uid, gid)| fchown(file, Some(uid), Some(gid))) {
                Some(Ok(())) => is_owned = true,
                Some(Err(error)) => self.lacks("the owner", error),
                None => self.lacks("the owner", Errno::INVAL),
            }
        }
        let default = if metadata.kind == InodeKind::Directory { 0o755 } else { 0o644 };
        // Without its owner, a setuid file would run as the user who copied it.
        let mask = if is_owned { 0o7777 } else { 0o777 };
        fchmod(file, Mode::from_raw_mode(metadata.mode.unwrap_or(default) & mask))?;
        for (name, value) in xattrs {
            let is_meant = match name.as_slice() {
                name if name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") => true,
                name => is_owned && (name.starts_with(b"security.") || name.starts_with(b"trusted.")),
            };
            if !is_meant {
                continue;
            }
            if let Err(error) = fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                self.lacks(&format!("attribute {}", String::from_utf8_lossy(name)), error);
            }
        }
        if let Some(times) = timestamps(metadata)
            && let Err(error) = futimens(file, &times)
        {
            self.lacks("the times", error);
        }
        Ok(())
    }

    fn make(&mut self, file: GuestFile) -> io::Result<()> {
        let Some((parent, name)) = self.place(&file.names)? else {
            // The root of a guest is copied into the folder itself, whose metadata is not changed.
            return Ok(());
        };
        match file.metadata.kind {
            _ if file.same_as.is_some() => self.make_hard_link(&file, &parent, &name)?,
            InodeKind::Directory => {
                match mkdirat(&parent, component(&name), Mode::RWXU) {
                    Err(Errno::EXIST) if self.options.overwrite => {
                        // It must be a folder, not a link to one.
                        openat(
                            &parent,
                            component(&name),
                            OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                            Mode::empty(),
                        )
                        .map_err(|_| io::ErrorKind::AlreadyExists)?;
                    }
                    made => made?,
                }
                self.totals.directories += 1;
                self.folders.push(file);
                return Ok(());
            }
            InodeKind::File => return self.begin_file(file, parent, name),
            InodeKind::Symlink => {
                self.make_way(&parent, &name)?;
                let target = file.target.as_deref().unwrap_or_default();
                symlinkat(OsStr::from_bytes(target), &parent, component(&name))?;
                self.set_link_metadata(&file.metadata, &parent, &name);
            }
            InodeKind::Fifo => self.make_node(&file, &parent, &name, rustix::fs::FileType::Fifo)?,
            InodeKind::CharDevice if self.options.devices => {
                self.make_node(&file, &parent, &name, rustix::fs::FileType::CharacterDevice)?;
            }
            InodeKind::BlockDevice if self.options.devices => {
                self.make_node(&file, &parent, &name, rustix::fs::FileType::BlockDevice)?;
            }
            InodeKind::Socket | InodeKind::CharDevice | InodeKind::BlockDevice => {
                self.totals.skipped += 1;
                return Ok(());
            }
        }
        self.totals.files += 1;
        Ok(())
    }

    /// Removes an existing file at the place of a link or node, if overwriting is allowed.
    fn make_way(&self, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        match statx(parent, component(name), AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) if !self.options.overwrite => Err(io::ErrorKind::AlreadyExists.into()),
            // A folder is not removed; this is an error.
            Ok(_) => Ok(unlinkat(parent, component(name), AtFlags::empty())?),
        }
    }

    fn make_hard_link(&mut self, file: &GuestFile, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let same = file.same_as.clone().unwrap_or_default();
        if !self.written.contains(&same) {
            return Err(io::Error::other("it is a hard link to a file that was not copied"));
        }
        self.make_way(parent, name)?;
        let mut names = self.target_names(&same);
        let last = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = self.open_folder(&names)?;
        Ok(linkat(&folder, component(&last), parent, component(name), AtFlags::empty())?)
    }

    fn make_node(
        &mut self,
        file: &GuestFile,
        parent: &OwnedFd,
        name: &[u8],
        kind: rustix::fs::FileType,
    ) -> io::Result<()> {
        self.make_way(parent, name)?;
        let (major, minor) = file.metadata.device.unwrap_or((0, 0));
        mknodat(parent, component(name), kind, Mode::RUSR | Mode::WUSR, makedev(major, minor))?;
        self.set_link_metadata(&file.metadata, parent, name);
        // The folder may belong to somebody who replaces the node with a link: the mode is set through a descriptor.
        let node = openat(parent, component(name), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if rustix::fs::FileType::from_raw_mode(fstat(&node)?.st_mode) != kind {
            return Err(io::Error::other("it was replaced while it was written"));
        }
        let mode = Mode::from_raw_mode(file.metadata.mode.unwrap_or(0o600) & 0o777);
        Ok(rustix::fs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), mode)?)
    }

    /// Sets owner and times of a file that cannot be opened.
    fn set_link_metadata(&mut self, metadata: &InodeMetadata, parent: &OwnedFd, name: &[u8]) {
        if let Some((uid, gid)) = metadata.owner.filter(|_| self.is_root).and_then(|(uid, gid)| owner(uid, gid))
            && let Err(error) = chownat(parent, component(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        {
            self.lacks("the owner", error);
        }
        if let Some(times) = timestamps(metadata)
            && let Err(error) = utimensat(parent, component(name), &times, AtFlags::SYMLINK_NOFOLLOW)
        {
            self.lacks("the times", error);
        }
    }

    fn begin_file(&mut self, guest: GuestFile, parent: OwnedFd, name: Vec<u8>) -> io::Result<()> {
        if !self.options.overwrite
            && statx(&parent, component(&name), AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE).is_ok()
        {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let temporary = format!(".kvmb-{:016x}.part", rand::random::<u64>());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&parent, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)?);
        self.open = Some(UnfinishedFile { guest, file, parent, temporary, name, progress: None, data_bytes: 0 });
        Ok(())
    }

    fn end_file(&mut self, open: &UnfinishedFile) -> io::Result<()> {
        ftruncate(&open.file, open.guest.metadata.size_bytes)?;
        self.set_metadata(&open.guest.metadata, &open.guest.xattrs, &open.file)?;
        let (from, to) = (open.temporary.as_str(), component(&open.name));
        let renamed = match self.options.overwrite {
            true => renameat(&open.parent, from, &open.parent, to),
            false => match renameat_with(&open.parent, from, &open.parent, to, RenameFlags::NOREPLACE) {
                // The file system does not support this flag. Whether the place is free was checked before.
                Err(Errno::INVAL) => renameat(&open.parent, from, &open.parent, to),
                renamed => renamed,
            },
        };
        renamed?;
        self.totals.files += 1;
        self.written.insert(open.guest.names.clone());
        Ok(())
    }

    fn is_below_refused(&self, names: &Names) -> bool {
        !self.refused.is_empty() && (0..names.len()).any(|end| self.refused.contains(&names[..end]))
    }
}

fn owner(uid: u32, gid: u32) -> Option<(Uid, Gid)> {
    // The value -1, which means "unchanged" to chown, is not a valid owner.
    (uid != u32::MAX && gid != u32::MAX).then(|| (Uid::from_raw(uid), Gid::from_raw(gid)))
}

fn timestamps(metadata: &InodeMetadata) -> Option<Timestamps> {
    let spec = |time: Timestamp| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    let modified = metadata.modified?;
    Some(Timestamps { last_access: spec(metadata.accessed.unwrap_or(modified)), last_modification: spec(modified) })
}

impl Drop for UnfinishedFile {
    fn drop(&mut self) {
        // A complete file was renamed already; only an incomplete one is still here.
        let _ = unlinkat(&self.parent, self.temporary.as_str(), AtFlags::empty());
    }
}

impl FileSink for CopyTarget<'_> {
    fn start(&mut self, start: &WalkStart) -> Result<()> {
        self.start = start.clone();
        Ok(())
    }

    fn file(&mut self, file: GuestFile) -> Result<()> {
        self.open = None;
        if self.is_below_refused(&file.names) {
            return Ok(());
        }
        let (names, is_folder) = (file.names.clone(), file.metadata.kind == InodeKind::Directory);
        match self.make(file) {
            Ok(()) => Ok(()),
            Err(error) => {
                if is_folder {
                    self.refused.insert(names.clone());
                }
                self.fail(&names, error)
            }
        }
    }

    fn ranges(&mut self, ranges: &[DataRange]) -> Result<()> {
        if let Some(open) = &mut self.open {
            open.data_bytes += ranges.iter().map(|range| range.length).sum::<u64>();
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.progress.is_none() && open.data_bytes >= LARGE_BYTES {
            let label = self.start.path(&open.guest.names);
            open.progress = Some(self.monitor.start("copying", &label, open.data_bytes));
        }
        match open.file.write_all_at(bytes, offset) {
            Ok(()) => {
                self.totals.bytes += bytes.len() as u64;
                open.progress.iter().for_each(|progress| progress.advance(bytes.len() as u64));
                Ok(())
            }
            Err(error) => {
                let names = open.guest.names.clone();
                self.open = None;
                self.fail(&names, error)
            }
        }
    }

    fn end_of_file(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        match self.end_file(&open) {
            Ok(()) => Ok(()),
            Err(error) => self.fail(&open.guest.names.clone(), error),
        }
    }

    fn unreadable(&mut self, names: &Names, source: FsError) -> Result<()> {
        self.open = None;
        if !self.is_below_refused(names) {
            (self.report)(Error::GuestFile { path: self.start.path(names), source });
        }
        Ok(())
    }
}
