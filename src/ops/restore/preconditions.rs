//! Checks of a target before anything is written to it.

use super::planned::{PlannedDisk, TargetKind};
use crate::capture::holders::{self, Holder};
use crate::ops::{Error, Result};
use crate::units::in_units;
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Refuses a file whose folder does not exist.
pub(super) fn refuse_without_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    match fs::metadata(folder) {
        Ok(there) if there.is_dir() => Ok(()),
        Ok(_) => Err(Error::NotAFolder { path: folder.to_owned() }),
        // The folder is not created, because it may belong to a disk that is not mounted, or the path may be mistyped.
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::NoFolder { path: folder.to_owned() }),
        Err(error) => Err(Error::io("open", folder)(error)),
    }
}

/// Refuses a target that exists and may not be replaced, is in use, or is too small.
pub(super) fn refuse_replacing(disk: &PlannedDisk) -> Result<()> {
    let there = disk.real_path.exists();
    if there && !disk.overwrite {
        return Err(Error::Exists { path: disk.path.clone() });
    }
    if there {
        refuse_in_use(&disk.disk, &disk.real_path)?;
    }
    if there && disk.kind == TargetKind::Device {
        refuse_read_only(disk)?;
        refuse_too_small(disk)?;
    }
    Ok(())
}

/// Refuses a read-only device. Opening it for writing would succeed; only the writes would fail.
fn refuse_read_only(disk: &PlannedDisk) -> Result<()> {
    let device = fs::metadata(&disk.real_path).map_err(Error::io("read", &disk.real_path))?.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let read_only = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"));
    if read_only.is_ok_and(|text| text.trim() == "1") {
        let reason = "the device is read-only ('blockdev --setrw' changes that)".to_owned();
        return Err(Error::BadTarget { disk: disk.disk.clone(), path: disk.path.clone(), reason });
    }
    Ok(())
}

/// Refuses a device that is too small for the disk.
pub(super) fn refuse_too_small(disk: &PlannedDisk) -> Result<()> {
    let wanted_bytes = disk.length_bytes();
    let size = File::open(&disk.real_path).and_then(|mut device| device.seek(SeekFrom::End(0)));
    let size_bytes = size.map_err(Error::io("size", &disk.real_path))?;
    if size_bytes < wanted_bytes {
        let reason = match (in_units(size_bytes), in_units(wanted_bytes)) {
            (size, wanted) if size == wanted => format!("it has {size_bytes} bytes and the disk needs {wanted_bytes}"),
            (size, wanted) => format!("it has {size} and the disk needs {wanted}"),
        };
        return Err(Error::BadTarget { disk: disk.disk.clone(), path: disk.path.clone(), reason });
    }
    Ok(())
}

/// Refuses an image that is open in QEMU, and a device that any process writes to: what it writes later would be mixed
/// with the restored data.
pub(super) fn refuse_in_use(disk: &str, path: &Path) -> Result<()> {
    let writers = holders::writers_of(std::iter::once(path));
    if in_use_by_qemu(path)? || writers.iter().any(Holder::is_qemu) {
        return Err(Error::ImageInUse { disk: disk.to_owned(), path: path.to_owned() });
    }
    let is_device = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    if let Some(writer) = writers.first().filter(|_| is_device) {
        let (disk, path, holder) = (disk.to_owned(), path.to_owned(), writer.to_string());
        return Err(Error::DeviceInUse { disk, path, holder });
    }
    Ok(())
}

/// Whether a QEMU process holds image locks on the file (open file description locks from byte 100,
/// `block/file-posix.c`), regardless of what started it. This is tested by briefly locking the whole file. A QEMU that
/// starts at that moment fails, as it should.
fn in_use_by_qemu(path: &Path) -> Result<bool> {
    let file = File::options().read(true).write(true).open(path).map_err(Error::io("open", path))?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
        Err(error) => Err(Error::io("test the lock of", path)(error.into())),
    }
}

/// Refuses a restore if a file system has too little free space.
pub(super) fn refuse_without_room(disks: &[PlannedDisk]) -> Result<()> {
    let mut wanted: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for disk in disks.iter().filter(|disk| disk.kind == TargetKind::File) {
        let folder = disk.real_path.parent().unwrap_or(Path::new("/")).to_owned();
        let device = fs::metadata(&folder).map_err(Error::io("read", &folder))?.dev();
        wanted.entry(device).or_insert((folder, 0)).1 += disk.data_bytes();
    }
    for (path, wanted_bytes) in wanted.into_values() {
        let found = rustix::fs::statvfs(&path).map_err(|error| Error::io("measure", &path)(error.into()))?;
        let free_bytes = found.f_bavail * found.f_frsize;
        if free_bytes < wanted_bytes {
            return Err(Error::NoRoom { path, free_bytes, wanted_bytes });
        }
    }
    Ok(())
}
