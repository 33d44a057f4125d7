//! Writes restored disks to a file, raw or qcow2, or to a block device.
//!
//! | name in the target's folder | content |
//! | --- | --- |
//! | `.kvmb-….partial` | an unfinished image; one left by a killed restore is removed by the next one in that folder |
//! | `.kvmb-….replaced` | the replaced image, until the machine is defined; kept after a kill, as it may be needed |

use super::planned::{PlannedDisk, TargetKind};
use super::preconditions::{refuse_in_use, refuse_too_small};
use super::qcow2::Layout;
use super::request::ImageFormat;
use crate::atomic_file;
use crate::capture::images::ImageOwner;
use crate::capture::parts::safe_path::{OpenFolder, ResolvedPath};
use crate::direct_file::DirectFile;
use crate::ops::{Error, Result};
use crate::repo::Id;
use rustix::fs::{CWD, FlockOperation, RenameFlags, XattrFlags, flock, renameat_with};
use rustix::fs::{fsetxattr, lgetxattr, llistxattr};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The prefix of all temporary names.
const TEMPORARY_PREFIX: &str = ".kvmb-";
/// The suffix of the names of replaced files.
const REPLACED_SUFFIX: &str = ".replaced";
/// The suffix of the names of unfinished files.
const PARTIAL_SUFFIX: &str = ".partial";
/// Unfinished files are locked. A file younger than this may not be locked yet.
const UNLOCKED_AGE: Duration = Duration::from_secs(60);

/// The maximum size of an extended attribute and of the list of their names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LARGEST_ATTRIBUTE_BYTES: usize = 64 << 10;

/// The place of a file.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    /// The path for messages.
    pub(crate) path: PathBuf,
    /// The path used in system calls.
    reach: PathBuf,
    /// The open folder that `reach` leads through, if the folder must not be looked up again.
    _folder: Option<OpenFolder>,
}

impl Destination {
    /// A path in a folder that nobody else can write to.
    pub(crate) fn new(path: &Path) -> Destination {
        Destination { path: path.to_owned(), reach: path.to_owned(), _folder: None }
    }

    /// A place in a folder that others may write to.
    pub(crate) fn anchored(place: &ResolvedPath) -> Destination {
        Destination { path: place.path(), reach: place.anchored(), _folder: Some(place.folder.clone()) }
    }

    fn folder(&self) -> &Path {
        self.reach.parent().unwrap_or(Path::new("/"))
    }
}

/// A disk being written.
#[derive(Debug)]
pub(crate) struct TargetDisk {
    disk: String,
    path: PathBuf,
    overwrite: bool,
    temporary: Option<PartialFile>,
    file: DirectFile,
    form: DiskForm,
}

/// How the bytes of the disk are arranged.
#[derive(Debug)]
enum DiskForm {
    /// Linear, in a new file that is all zeros.
    Raw,
    /// Linear, on a device with unknown content.
    Device,
    /// According to a qcow2 layout, in a new file or on a device with unknown content.
    Qcow2(Layout),
}

/// A complete and durable disk that still has its temporary name.
#[derive(Debug)]
pub(crate) struct WrittenDisk {
    disk: String,
    path: PathBuf,
    overwrite: bool,
    temporary: Option<PartialFile>,
}

/// An unfinished file next to its place. It is locked, so that it is not mistaken for a leftover of a killed restore.
/// Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct PartialFile {
    path: tempfile::TempPath,
    file: File,
}

/// The mode and owner of a file that replaces another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looks {
    /// Those of the replaced file.
    OfReplaced,
    /// Mode 0600 and the current user.
    Private,
    /// This mode and the current user.
    Mode(u32),
}

/// A file in its place. Dropping this restores the replaced file unless [`Placed::keep`] was called.
#[derive(Debug)]
pub(crate) struct Placed {
    at: Destination,
    replaced: Option<PathBuf>,
    kept: bool,
}

impl PartialFile {
    /// Creates an empty file with mode 0600 in the folder of its destination.
    pub(crate) fn create(at: &Destination) -> Result<PartialFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let made = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .suffix(PARTIAL_SUFFIX)
            .make_in(at.folder(), |path| options.open(path))
            .map_err(Error::io("create", &at.path))?;
        let (file, path) = made.into_parts();
        // Some network file systems do not support locks. Only the age protects the file there.
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            tracing::debug!("{}: {error}", path.display());
        }
        Ok(PartialFile { path, file })
    }

    /// The file, for writing.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }
}

/// Gives a file the owner, mode, ACL, label and user attributes of the file that it replaces.
pub(super) fn look_like(file: &File, old: &fs::Metadata, at: &Destination) -> Result<()> {
    give_to(file, ImageOwner { user: old.uid(), group: old.gid(), mode: old.mode() & 0o777 }, &at.path)?;
    if let Err(error) = copy_attributes(file, &at.reach) {
        // Only the mode applies then, as on a file system without attributes.
        tracing::debug!("{}: extended attributes: {error}", at.path.display());
    }
    Ok(())
}

/// Copies extended attributes that an administrator may have set. The attributes in which libvirt remembers the owner
/// while a machine runs are not copied, because they belong to the old file.
fn copy_attributes(file: &File, old: &Path) -> rustix::io::Result<()> {
    let (mut names, mut value) = (vec![0; LARGEST_ATTRIBUTE_BYTES], vec![0; LARGEST_ATTRIBUTE_BYTES]);
    let length = llistxattr(old, &mut names[..])?;
    for name in names[..length].split(|byte| *byte == 0).filter(|name| is_administrators(name)) {
        let length = lgetxattr(old, name, &mut value[..])?;
        fsetxattr(file, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

/// Sets the owner and mode of the file for `path`.
pub(super) fn give_to(file: &File, owner: ImageOwner, path: &Path) -> Result<()> {
    let mode = fs::Permissions::from_mode(owner.mode & 0o777);
    file.set_permissions(mode).map_err(Error::io("set the mode of", path))?;
    fchown(file, Some(owner.user), Some(owner.group)).map_err(Error::io("set the owner of", path))
}

/// Whether an extended attribute may have been set by an administrator.
fn is_administrators(name: &[u8]) -> bool {
    name == b"system.posix_acl_access" || name == b"security.selinux" || name.starts_with(b"user.")
}

/// Removes the unfinished files that killed restores left in a folder; failures are harmless. Returns the paths of
/// replaced files that they left. These may be the only copy of an old image, so they are kept.
pub(crate) fn sweep(folder: &Path) -> Vec<PathBuf> {
    let mut replaced = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(TEMPORARY_PREFIX) && name.ends_with(REPLACED_SUFFIX) {
            replaced.push(entry.path());
            continue;
        }
        // Opening a named pipe would wait without end.
        let is_partial = name.starts_with(TEMPORARY_PREFIX)
            && name.ends_with(PARTIAL_SUFFIX)
            && entry.file_type().is_ok_and(|kind| kind.is_file());
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if !is_partial || age().is_none_or(|age| age < UNLOCKED_AGE) {
            continue;
        }
        let left =
            File::open(entry.path()).is_ok_and(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if left {
            tracing::info!("removing {}, left by an interrupted restore", entry.path().display());
            let _ = fs::remove_file(entry.path());
        }
    }
    replaced
}

impl TargetDisk {
    /// Creates the empty image next to its place, or opens the device.
    pub(crate) fn create(disk: &PlannedDisk) -> Result<TargetDisk> {
        let path = disk.real_path.clone();
        let (temporary, file) = match disk.kind {
            TargetKind::Device => (None, open_device(disk)?),
            TargetKind::File => {
                let temporary = PartialFile::create(&Destination::new(&path))?;
                if let Some(owner) = disk.owner {
                    give_to(&temporary.file, owner, &path)?;
                }
                let file = temporary.file.try_clone().map_err(Error::io("open", &path))?;
                (Some(temporary), file)
            }
        };
        TargetDisk::prepare(disk, temporary, file)
    }

    /// Continues an unfinished image, or begins one in an empty file.
    pub(super) fn continue_in(file: File, disk: &PlannedDisk) -> Result<TargetDisk> {
        TargetDisk::prepare(disk, None, file)
    }

    /// Allocates the space and writes the metadata of the image format. Data that is there already stays.
    fn prepare(disk: &PlannedDisk, temporary: Option<PartialFile>, file: File) -> Result<TargetDisk> {
        let path = disk.real_path.clone();
        let file = DirectFile::new(file);
        let reserve = |(at, length)| match length {
            0 => Ok(()),
            _ if disk.kind == TargetKind::Device => Ok(()),
            _ => file.reserve(at, length).map_err(Error::io("write", &path)),
        };
        let form = match (disk.format, disk.kind) {
            (ImageFormat::Raw, TargetKind::Device) => DiskForm::Device,
            (ImageFormat::Raw, TargetKind::File) => {
                file.file().set_len(disk.capacity_bytes).map_err(Error::io("size", &path))?;
                disk.data_ranges().try_for_each(reserve)?;
                DiskForm::Raw
            }
            (ImageFormat::Qcow2, _) => {
                let layout = Layout::new(disk.geometry(), &disk.map);
                reserve(layout.data())?;
                layout.write_metadata(file.file()).map_err(Error::io("write", &path))?;
                DiskForm::Qcow2(layout)
            }
        };
        let overwrite = disk.overwrite || disk.kind == TargetKind::Device;
        Ok(TargetDisk { disk: disk.disk.clone(), path, overwrite, temporary, file, form })
    }

    /// Writes data. May be called from several threads in parallel.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.file_offset(offset)?).map_err(Error::io("write", &self.path))
    }

    /// Whether the image already contains the data with this SHA-256.
    pub(super) fn contains(&self, id: &Id, offset: u64, length: u32) -> bool {
        let Ok(at) = self.file_offset(offset) else { return false };
        // Nothing has been written to a hole.
        if rustix::fs::seek(self.file.file(), rustix::fs::SeekFrom::Data(at)).is_ok_and(|data| data != at) {
            return false;
        }
        self.file.read(at, length as usize).is_ok_and(|bytes| Id::hash(&bytes) == *id)
    }

    /// Where a byte of the disk is in the file.
    fn file_offset(&self, offset: u64) -> Result<u64> {
        match &self.form {
            DiskForm::Raw | DiskForm::Device => Ok(offset),
            DiskForm::Qcow2(layout) => layout.file_offset(offset).ok_or_else(|| {
                let reason = format!("byte {offset} has no place in the image");
                Error::DiskMap { disk: self.disk.clone(), reason }
            }),
        }
    }

    /// Makes a range read as zeros. This is already the case in a new image.
    pub(crate) fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        let (DiskForm::Device, file) = (&self.form, self.file.file()) else {
            return Ok(());
        };
        let flags = rustix::fs::FallocateFlags::ZERO_RANGE | rustix::fs::FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(file, flags, offset, length).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; (1 << 20).min(length as usize)];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(zeros.len() as u64) as usize;
            file.write_all_at(&zeros[..part], offset + done).map_err(Error::io("write", &self.path))?;
            done += part as u64;
        }
        Ok(())
    }

    /// Makes the written data durable.
    pub(crate) fn finish(self) -> Result<WrittenDisk> {
        self.file.file().sync_all().map_err(Error::io("sync", &self.path))?;
        Ok(WrittenDisk { disk: self.disk, path: self.path, overwrite: self.overwrite, temporary: self.temporary })
    }
}

/// Opens a device for writing, unless it is mounted or otherwise in use (`O_EXCL`).
fn open_device(disk: &PlannedDisk) -> Result<File> {
    // A machine may have been started since the restore was planned.
    refuse_in_use(&disk.disk, &disk.real_path)?;
    let flags = rustix::fs::OFlags::EXCL.bits() as i32;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&disk.real_path);
    let file = opened.map_err(Error::io("open", &disk.real_path))?;
    refuse_too_small(disk)?;
    Ok(file)
}

impl WrittenDisk {
    /// Moves the disk to its place, unless its machine was started while the disk was being written.
    pub(crate) fn place(self) -> Result<Placed> {
        if self.temporary.is_some() && self.path.exists() {
            refuse_in_use(&self.disk, &self.path)?;
        }
        let at = Destination::new(&self.path);
        match self.temporary {
            Some(temporary) => Placed::put(temporary, at, self.overwrite, Looks::OfReplaced),
            None => Ok(Placed::in_place(at)),
        }
    }
}

impl Placed {
    /// A device or file that was overwritten in place, which cannot be undone.
    pub(crate) fn in_place(at: Destination) -> Placed {
        Placed { at, replaced: None, kept: true }
    }

    /// Renames `temporary` to its destination. An existing file is an error or, with `overwrite`, is exchanged
    /// atomically, so that the path exists at every moment. A link is replaced, not followed.
    pub(crate) fn put(temporary: PartialFile, at: Destination, overwrite: bool, looks: Looks) -> Result<Placed> {
        let old = if overwrite { fs::symlink_metadata(&at.reach).ok() } else { None };
        let folder = at.folder().to_owned();
        let path = at.path.clone();
        if let Looks::Mode(mode) = looks {
            let permissions = fs::Permissions::from_mode(mode);
            temporary.file.set_permissions(permissions).map_err(Error::io("set the mode of", &path))?;
        }
        let placed = match old {
            Some(old) => {
                // Only a regular file has attributes that a file can take over.
                if looks == Looks::OfReplaced && old.is_file() {
                    look_like(&temporary.file, &old, &at)?;
                }
                Placed::exchange(temporary, at)?
            }
            None => match temporary.path.persist_noclobber(&at.reach) {
                Ok(()) => Placed { at, replaced: None, kept: false },
                Err(error) if error.error.kind() == ErrorKind::AlreadyExists => return Err(Error::Exists { path }),
                Err(error) => return Err(Error::io("create", &path)(error.error)),
            },
        };
        atomic_file::sync_folder(&folder).map_err(Error::io("sync the folder of", &path))?;
        Ok(placed)
    }

    fn exchange(temporary: PartialFile, at: Destination) -> Result<Placed> {
        let partial = temporary.path;
        // The file is first renamed to this name, so that after the exchange the replaced file is not removed as a
        // leftover.
        let aside = partial.with_extension(REPLACED_SUFFIX.trim_start_matches('.'));
        partial.persist_noclobber(&aside).map_err(|error| Error::io("rename", &at.path)(error.error))?;
        let undo = |error: std::io::Error| {
            let _ = fs::remove_file(&aside);
            Error::io("replace", &at.path)(error)
        };
        match renameat_with(CWD, &aside, CWD, &at.reach, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(Placed { at, replaced: Some(aside), kept: false }),
            // The file system (such as NFS) does not support the exchange. There is a moment without an image, and the
            // old one is kept under a second name.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let older = partial_sibling(&aside);
                fs::rename(&at.reach, &older).map_err(undo)?;
                if let Err(error) = fs::rename(&aside, &at.reach) {
                    let _ = fs::rename(&older, &at.reach);
                    return Err(undo(error));
                }
                Ok(Placed { at, replaced: Some(older), kept: false })
            }
            Err(error) => Err(undo(error.into())),
        }
    }

    /// Keeps the file and removes the one that it replaced.
    pub(crate) fn keep(mut self) {
        self.kept = true;
        if let Some(replaced) = self.replaced.take() {
            let _ = fs::remove_file(replaced);
        }
    }
}

/// A second name for a replaced file.
fn partial_sibling(aside: &Path) -> PathBuf {
    aside.with_extension("old.replaced")
}

impl Drop for Placed {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        match self.replaced.take() {
            Some(replaced) => drop(fs::rename(replaced, &self.at.reach)),
            None => drop(fs::remove_file(&self.at.reach)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::chunk_map::{ChunkMap, MappedChunk};

    #[test]
    fn pipe_with_the_name_of_a_leftover_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join(".kvmb-x.partial");
        for words in [&["mkfifo"][..], &["touch", "--date=@0"]] {
            let done = std::process::Command::new(words[0]).args(&words[1..]).arg(&pipe).status();
            assert!(done.unwrap().success(), "{words:?}");
        }
        assert!(sweep(folder.path()).is_empty() && pipe.exists());
    }

    #[test]
    fn unfinished_image_contains_only_what_was_written_completely() {
        let (first, second) = (vec![1; 1 << 20], vec![2; (1 << 20) - 512]);
        let mut map = ChunkMap::default();
        map.push(MappedChunk::Blob(Id::hash(&first)), 1);
        map.push(MappedChunk::Zero, 1);
        map.push(MappedChunk::Blob(Id::hash(&second)), 1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
            let disk = PlannedDisk {
                disk: "vda".to_owned(),
                path: path.clone(),
                real_path: path.clone(),
                kind: TargetKind::File,
                is_unmoved: false,
                volume: None,
                format,
                capacity_bytes: (3 << 20) - 512,
                chunk_bytes: 1 << 20,
                map: map.clone(),
                overwrite: true,
                owner: None,
            };
            let open = || File::options().create(true).truncate(false).read(true).write(true).open(&path).unwrap();
            let target = TargetDisk::continue_in(open(), &disk).unwrap();
            let has_first = |target: &TargetDisk| target.contains(&Id::hash(&first), 0, 1 << 20);
            let has_second = |target: &TargetDisk| target.contains(&Id::hash(&second), 2 << 20, second.len() as u32);
            assert!(!has_first(&target) && !has_second(&target));
            target.write(2 << 20, &second).unwrap();
            target.write(0, &first[1 << 19..]).unwrap();
            drop(target);
            let target = TargetDisk::continue_in(open(), &disk).unwrap();
            assert!(!has_first(&target) && has_second(&target), "{format:?}");
            fs::remove_file(&path).unwrap();
        }
    }
}
