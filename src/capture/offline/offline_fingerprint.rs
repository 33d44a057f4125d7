//! The attributes that show whether the files of a stopped machine were written to.
//!
//! See `offline_changes` for how they are used.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::capture::process::ServerProcess;

/// The size of an image's header that is compared. A qcow2 header with its extensions is in the first cluster of 64
/// KiB.
const HEADER_BYTES: usize = 64 << 10;

/// The state of a stopped machine when a capture of it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OfflineFingerprint {
    pub(super) uuid: String,
    /// The files and devices of the disks.
    pub(super) storage: Vec<StorageFingerprint>,
    /// Whether a disk can be written without a visible change of these.
    pub(super) has_unobservable_disk: bool,
    /// QEMU processes with the machine's UUID that existed although the machine is off. They belong to another libvirt.
    pub(super) foreign_processes: Vec<ServerProcess>,
    /// libvirt's log of the machine with its stamp; `None` without a log.
    pub(super) log: Option<(PathBuf, Option<Stamp>)>,
    /// The file with libvirt's definition, if its content matches what libvirt reports.
    pub(super) definition: Option<PathBuf>,
    /// libvirt's reason why the machine is off.
    pub(super) off_reason: i32,
}

/// A file or device with its earlier stamp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StorageFingerprint {
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
}

/// The attributes that change when a file or device is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size_bytes: u64,
    pub(super) modified_ns: i64,
    /// SHA-256 of the start of the file; `None` if it cannot be read.
    pub(super) header: Option<String>,
    /// The numbers of sectors of a block device that were written and discarded.
    pub(super) writes: Option<Vec<u64>>,
}

/// How thoroughly to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ComparisonDepth {
    /// Without reading the file, for frequent checks.
    Glance,
    Full,
}

impl StorageFingerprint {
    /// Returns what has changed, if anything.
    pub(super) fn change(&self, depth: ComparisonDepth) -> Option<String> {
        let path = self.path.display();
        let now = match Stamp::of(&self.path, depth) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(format!("{path} no longer exists")),
            Err(error) => return Some(format!("{path} cannot be accessed: {error}")),
            Ok(now) => now,
        };
        let before = &self.stamp;
        if (now.device, now.inode) != (before.device, before.inode) {
            return Some(format!("{path} is another file"));
        }
        let is_read = now.header.is_some();
        let same = (now.size_bytes, now.modified_ns, &now.writes)
            == (before.size_bytes, before.modified_ns, &before.writes)
            && (!is_read || now.header == before.header);
        (!same).then(|| format!("{path} was written"))
    }
}

impl Stamp {
    pub(super) fn of(path: &Path, depth: ComparisonDepth) -> io::Result<Stamp> {
        let found = fs::metadata(path)?;
        let kind = found.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("it is neither a file nor a block device"));
        }
        // The file is opened because a network file system then queries its server instead of using cached attributes.
        let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path).ok();
        if kind.is_block_device() {
            // Cached data is only counted when it is written.
            if let Some(device) = opened.as_ref().filter(|_| depth == ComparisonDepth::Full) {
                device.sync_data()?;
            }
            return Ok(Stamp {
                device: 0,
                inode: found.rdev(),
                size_bytes: 0,
                modified_ns: 0,
                header: None,
                writes: writes_of(found.rdev()),
            });
        }
        let header = opened.as_ref().filter(|_| depth == ComparisonDepth::Full).and_then(|file| header_of(file).ok());
        let found = opened.map_or(Ok(found), |file| file.metadata())?;
        Ok(Stamp {
            device: found.dev(),
            inode: found.ino(),
            size_bytes: found.size(),
            modified_ns: found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()),
            header,
            writes: None,
        })
    }

    /// Whether a write changes the stamp.
    pub(super) fn shows_writes(&self) -> bool {
        self.device != 0 || self.writes.is_some()
    }
}

fn header_of(file: &File) -> io::Result<String> {
    let (mut header, mut filled) = (vec![0; HEADER_BYTES], 0);
    while filled < header.len() {
        match file.read_at(&mut header[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(hex::encode(Sha256::digest(&header[..filled])))
}

/// Returns the sectors written and discarded, from `/sys/dev/block/…/stat` (`Documentation/block/stat.rst`). The number
/// of write requests is not used, because it may include flushes, which this check itself causes.
fn writes_of(device: u64) -> Option<Vec<u64>> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition does not have its own queue.
    let counts =
        ["queue/iostats", "../queue/iostats"].iter().find_map(|file| fs::read_to_string(folder.join(file)).ok());
    if counts.is_some_and(|counts| counts.trim() == "0") {
        return None;
    }
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let columns: Vec<u64> = stat.split_whitespace().map(|column| column.parse().unwrap_or_default()).collect();
    let written: Vec<u64> = [6, 13].into_iter().filter_map(|column| columns.get(column).copied()).collect();
    (!written.is_empty()).then_some(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_a_file_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, vec![1; 200 << 10]).unwrap();
        let before = StorageFingerprint { path: path.clone(), stamp: Stamp::of(&path, ComparisonDepth::Full).unwrap() };
        let file = File::options().write(true).open(&path).unwrap();
        let as_before = |file: &File| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(before.stamp.modified_ns as u64);
            file.set_modified(time).unwrap();
        };
        assert_eq!(before.change(ComparisonDepth::Full), None);
        file.write_all_at(&[2], 150 << 10).unwrap();
        assert!(before.change(ComparisonDepth::Glance).unwrap().ends_with("was written"));
        // A changed header is detected even if the modification time does not show it.
        as_before(&file);
        assert_eq!(before.change(ComparisonDepth::Full), None);
        file.write_all_at(&[2], 72).unwrap();
        as_before(&file);
        assert_eq!(before.change(ComparisonDepth::Glance), None);
        assert!(before.change(ComparisonDepth::Full).unwrap().ends_with("was written"));
        file.write_all_at(&[1], 72).unwrap();
        file.set_len(100 << 10).unwrap();
        as_before(&file);
        assert!(before.change(ComparisonDepth::Glance).unwrap().ends_with("was written"));
        fs::copy(&path, folder.path().join("other")).unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        assert!(before.change(ComparisonDepth::Glance).unwrap().ends_with("is another file"));
        fs::remove_file(&path).unwrap();
        assert!(before.change(ComparisonDepth::Glance).unwrap().ends_with("no longer exists"));
    }
}
