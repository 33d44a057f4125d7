//! Files of a guest into a folder of this host.
//!
//! The guest chose the names, links and modes. So a path is opened one name at a time, and no link of the target is
//! followed; a file is written beside its place, given its owner, mode and attributes, and renamed; a directory gets
//! its own in the end. Nothing is written over unless that was asked for.

use super::{FileSink, GuestFile, WalkStart};
use crate::filesystems::namespace::Names;
use crate::filesystems::{DataRange, FsError, InodeKind, InodeMetadata, Timestamp};
use crate::ops::{Error, Monitor, Progress, Result};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, StatxFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, ftruncate, futimens, linkat, makedev, mkdirat, mknodat, openat, renameat, renameat_with, statx,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// From this much data on a file has a progress bar.
const LARGE_BYTES: u64 = 16 << 20;

/// What a copy may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyOptions {
    /// Replace what is there.
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

/// Something that was not copied.
pub(crate) type Report<'a> = &'a mut dyn FnMut(Error);

/// Copies one walk into a folder: under the last name of where it began, or, from a root, into the folder itself.
pub(crate) struct CopyTarget<'a> {
    folder: PathBuf,
    base: OwnedFd,
    options: CopyOptions,
    is_root: bool,
    monitor: &'a dyn Monitor,
    report: Report<'a>,
    start: WalkStart,
    /// Regular files that were written by this copy, for links to them.
    written: HashSet<Names>,
    /// Folders that could not be made: what is in them cannot, either.
    refused: HashSet<Names>,
    /// Folders that get their modes and times in the end.
    folders: Vec<GuestFile>,
    open: Option<UnfinishedFile>,
    /// The parent that was opened last.
    parent: Option<(Names, OwnedFd)>,
    totals: CopyTotals,
    incomplete: Option<(u64, String, io::Error)>,
}

/// The file that is being written.
struct UnfinishedFile {
    guest: GuestFile,
    file: File,
    parent: OwnedFd,
    temporary: String,
    name: Vec<u8>,
    progress: Option<Box<dyn Progress>>,
    data_bytes: u64,
}

/// One name as a path: it has no slash.
fn component(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

/// Whether nothing more can be written.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    )
}

impl<'a> CopyTarget<'a> {
    /// Copies into a folder, which must be there.
    pub(crate) fn open(
        folder: &Path,
        options: CopyOptions,
        monitor: &'a dyn Monitor,
        report: Report<'a>,
    ) -> Result<CopyTarget<'a>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // The folder is the user's: a link to it is followed.
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

    /// Gives folders their modes and times, and returns what was copied, and to where.
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

    /// The names below the folder.
    fn target_names(&self, names: &Names) -> Names {
        self.start.names.last().into_iter().chain(names).cloned().collect()
    }

    /// The path on this host, for messages.
    fn target_path(&self, names: &Names) -> PathBuf {
        self.target_names(names).iter().fold(self.folder.clone(), |path, name| path.join(component(name)))
    }

    /// Opens a folder below the target, one name after the other and no link.
    fn open_folder(&self, names: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut folder = self.base.try_clone()?;
        for name in names {
            folder = openat(&folder, component(name), flags, Mode::empty())?;
        }
        Ok(folder)
    }

    /// The folder that a file goes into, and its name there; none for the root of a walk.
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

    /// Reports one file; the copy goes on unless nothing can be written any more.
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

    /// Owner, mode, attributes and times, in the order in which none undoes another.
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
        // A file that is somebody else's must not run as whoever copied it.
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
            // The root of a guest goes into the folder itself, which stays as it is.
            return Ok(());
        };
        match file.metadata.kind {
            _ if file.same_as.is_some() => self.make_hard_link(&file, &parent, &name)?,
            InodeKind::Directory => {
                match mkdirat(&parent, component(&name), Mode::RWXU) {
                    Err(Errno::EXIST) if self.options.overwrite => {
                        // It must be one, and no link to one.
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

    /// Removes what is in the place of something that is no file, if it may be replaced.
    fn make_way(&self, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        match statx(parent, component(name), AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) if !self.options.overwrite => Err(io::ErrorKind::AlreadyExists.into()),
            // Not a folder: that is an error.
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
        // Not through a link: the node was made a moment ago, by us, in a folder that is ours.
        let mode = Mode::from_raw_mode(file.metadata.mode.unwrap_or(0o600) & 0o777);
        Ok(rustix::fs::chmodat(parent, component(name), mode, AtFlags::empty())?)
    }

    /// Owner and times of what cannot be opened.
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
                // A file system that cannot do that: whether the place is free was looked at before.
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
    // The number that means "leave it as it is" is no owner.
    (uid != u32::MAX && gid != u32::MAX).then(|| (Uid::from_raw(uid), Gid::from_raw(gid)))
}

fn timestamps(metadata: &InodeMetadata) -> Option<Timestamps> {
    let spec = |time: Timestamp| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    let modified = metadata.modified?;
    Some(Timestamps { last_access: spec(metadata.accessed.unwrap_or(modified)), last_modification: spec(modified) })
}

impl Drop for UnfinishedFile {
    fn drop(&mut self) {
        // Renamed by now, unless it is not whole.
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
