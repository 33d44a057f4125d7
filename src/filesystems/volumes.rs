//! All file systems of a point's disks.

use super::blocks::{Blocks, BlocksSlice};
use super::format::FilesystemFormat;
use super::partitions::{self, Partition};
use super::{DeviceOfSeveral, FsError, GuestFilesystem, Result, lvm, probe};
use serde::{Deserialize, Serialize};
use std::rc::Rc;

/// Maximum number of logical volumes.
const MOST_LOGICAL: usize = 1024;

/// A partition, or a whole disk without a partition table, with its content.
pub(crate) struct Volume {
    pub(crate) about: VolumeInfo,
    opened: Option<Box<dyn GuestFilesystem>>,
}

/// The description of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeInfo {
    /// `vda2`, or `vda` for a whole disk.
    pub(crate) name: String,
    pub(crate) disk: String,
    /// The index of its disk; None for a logical volume.
    pub(crate) disk_number: Option<usize>,
    /// The partition number; None for a whole disk.
    pub(crate) partition: Option<u32>,
    pub(crate) partition_name: String,
    pub(crate) partition_uuid: Option<String>,
    pub(crate) offset_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) format: FilesystemFormat,
    pub(crate) label: String,
    pub(crate) uuid: Option<String>,
    /// Why it cannot be read.
    pub(crate) problem: Option<FsError>,
    /// The operating system whose root it is.
    pub(crate) system: Option<String>,
    /// Its mount point in an operating system of the point.
    pub(crate) mount_point: Option<String>,
}

pub(crate) struct Volumes(pub(crate) Vec<Volume>);

/// A disk to search for volumes.
pub(crate) struct SourceDisk {
    pub(crate) name: String,
    pub(crate) blocks: Blocks,
    /// Its index among the machine's disks; None for a device that was assembled from them.
    pub(crate) number: Option<usize>,
}

impl Volumes {
    /// Searches every disk. An unreadable one becomes a volume with a problem.
    pub(crate) fn find(disks: &[SourceDisk]) -> Volumes {
        let (mut found, mut parts) = (Vec::new(), Vec::new());
        for SourceDisk { name: disk, blocks, number } in disks {
            let whole = |problem| VolumeInfo {
                name: disk.clone(),
                disk: disk.clone(),
                disk_number: *number,
                partition: None,
                partition_name: String::new(),
                partition_uuid: None,
                offset_bytes: 0,
                size_bytes: blocks.size_bytes(),
                format: FilesystemFormat::Unknown,
                label: String::new(),
                uuid: None,
                problem,
                system: None,
                mount_point: None,
            };
            let partitions = match probe::format_of(blocks) {
                Err(error) => {
                    found.push(Volume { about: whole(Some(error)), opened: None });
                    continue;
                }
                Ok(FilesystemFormat::Unknown) => partitions::read(blocks),
                // An array leaves an old partition table where it is.
                Ok(FilesystemFormat::Raid) => Ok(Vec::new()),
                Ok(_) => Ok(partitions_in_use(blocks)),
            };
            match partitions {
                Err(error) => found.push(Volume { about: whole(Some(error)), opened: None }),
                Ok(partitions) if partitions.is_empty() => {
                    found.push(open(blocks, whole(None)));
                    parts.push((found.len() - 1, Rc::clone(blocks)));
                }
                Ok(partitions) => partitions.into_iter().for_each(|partition| {
                    let separator = if disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
                    let about = VolumeInfo {
                        name: format!("{disk}{separator}{}", partition.number),
                        partition: Some(partition.number),
                        partition_name: partition.name,
                        partition_uuid: partition.uuid,
                        offset_bytes: partition.start,
                        size_bytes: partition.size_bytes,
                        ..whole(None)
                    };
                    let blocks = BlocksSlice::of(blocks, partition.start, partition.size_bytes);
                    found.push(open(&blocks, about));
                    parts.push((found.len() - 1, blocks));
                }),
            }
        }
        add_logical(&mut found, parts);
        leave_one_device_of_each(&mut found);
        Volumes(found)
    }

    /// Returns the file system of a volume, if it can be read.
    pub(crate) fn filesystem(&mut self, volume: usize) -> Result<&mut dyn GuestFilesystem> {
        let volume = self.0.get_mut(volume).ok_or_else(|| super::damaged("no such volume"))?;
        let about = &volume.about;
        match (&mut volume.opened, &about.problem) {
            (Some(opened), _) => Ok(opened.as_mut()),
            (None, Some(problem)) => Err(problem.clone()),
            (None, None) => Err(not_readable(about.format)),
        }
    }

    /// Returns the volumes that can be read.
    pub(crate) fn readable(&self) -> Vec<usize> {
        (0..self.0.len()).filter(|volume| self.0[*volume].opened.is_some()).collect()
    }
}

/// Returns the partitions of a disk that also looks like a file system. Its boot sector may look like a partition
/// table; or it may be what is left of a file system on the whole disk, which systems ignore. Then a partition has
/// content.
fn partitions_in_use(blocks: &Blocks) -> Vec<Partition> {
    let partitions = partitions::read(blocks).unwrap_or_default();
    let has_content = |partition: &Partition| {
        let content = BlocksSlice::of(blocks, partition.start, partition.size_bytes);
        probe::format_of(&content).is_ok_and(|format| format != FilesystemFormat::Unknown)
    };
    if partitions.iter().any(has_content) { partitions } else { Vec::new() }
}

/// Of each file system on several devices, keeps only the device that was written last, because a disk may have been
/// missing for some time.
fn leave_one_device_of_each(found: &mut [Volume]) {
    let device = |volume: &Volume| volume.opened.as_ref()?.device().filter(|device| device.devices > 1);
    for at in 0..found.len() {
        let Some(own) = device(&found[at]) else { continue };
        let others = (0..found.len()).filter(|other| *other != at).filter_map(|other| {
            let device = device(&found[other]).filter(|device| device.filesystem == own.filesystem)?;
            Some((other, device))
        });
        let better = |(other, device): &(usize, DeviceOfSeveral)| {
            device.generation > own.generation || (device.generation == own.generation && *other < at)
        };
        if let Some((other, _)) = others.into_iter().find(better) {
            let what = format!("it is a part of the file system on {}", found[other].about.name);
            found[at].about.problem = Some(FsError::Unsupported(what));
            found[at].opened = None;
        }
    }
}

/// Adds the logical volumes on LVM's physical volumes.
fn add_logical(found: &mut Vec<Volume>, mut parts: Vec<(usize, Blocks)>) {
    parts.retain(|(volume, _)| found[*volume].about.format == FilesystemFormat::Lvm);
    let blocks: Vec<Blocks> = parts.into_iter().map(|(_, blocks)| blocks).collect();
    for volume in lvm::find(&blocks).into_iter().take(MOST_LOGICAL) {
        // The volume is already one of the disks, because another program has assembled it.
        if found.iter().any(|known| known.about.name == volume.name) {
            continue;
        }
        let about = VolumeInfo {
            name: volume.name.clone(),
            disk: volume.name,
            disk_number: None,
            partition: None,
            partition_name: String::new(),
            partition_uuid: None,
            offset_bytes: 0,
            size_bytes: volume.blocks.as_ref().map_or(0, |blocks| blocks.size_bytes()),
            format: FilesystemFormat::Unknown,
            label: String::new(),
            uuid: None,
            problem: None,
            system: None,
            mount_point: None,
        };
        found.push(match volume.blocks {
            Ok(blocks) => open(&blocks, about),
            Err(error) => Volume { about: VolumeInfo { problem: Some(error), ..about }, opened: None },
        });
    }
}

/// Returns why a format cannot be read.
fn not_readable(format: FilesystemFormat) -> FsError {
    match format {
        FilesystemFormat::Unknown => FsError::Unsupported("it holds no file system that kvmb knows".to_owned()),
        FilesystemFormat::Lvm => {
            FsError::Unsupported("it is a part of logical volumes, which have names of their own".to_owned())
        }
        format @ (FilesystemFormat::Luks | FilesystemFormat::Raid) => {
            FsError::Closed(format!("kvmb cannot read {}", format.word()))
        }
        format => FsError::Unsupported(format!("kvmb cannot read {}", format.word())),
    }
}

fn open(blocks: &Blocks, mut about: VolumeInfo) -> Volume {
    let mut opened = None;
    match probe::format_of(blocks) {
        Err(error) => about.problem = Some(error),
        Ok(format) => {
            about.format = format;
            if format.is_readable() {
                match probe::open(blocks, format) {
                    Ok(found) => {
                        (about.label, about.uuid) = (found.label, found.uuid);
                        opened = Some(found.filesystem);
                    }
                    Err(error) => about.problem = Some(error),
                }
            }
        }
    }
    Volume { about, opened }
}
