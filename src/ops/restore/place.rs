//! Determines the target of each disk of a restore.
//!
//! | source in the definition | target without `--to` and `--into` |
//! | --- | --- |
//! | a file | that file |
//! | a block device, or any path below `/dev` | that device, which must exist |
//! | a volume of a storage pool | that volume, created if necessary |
//! | network storage | none |
//! | a slice of a file or device | none: the rest of it may contain other data |

use super::planned::{PlannedVolume, TargetKind};
use super::preconditions::refuse_without_folder;
use super::request::{ImageFormat, RestoreRequest};
use crate::capture::pools::VolumePlace;
use crate::capture::{DefinedDisk, DiskSource, Hypervisor};
use crate::ops::{Error, Result};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// The target of one disk.
#[derive(Debug)]
pub(super) struct DiskPlace {
    /// The file or device as specified.
    pub(crate) path: PathBuf,
    /// The same path with links resolved.
    pub(crate) real_path: PathBuf,
    /// Whether it is a file or a device.
    pub(crate) kind: TargetKind,
    /// Whether this is the path in the definition.
    pub(crate) is_unmoved: bool,
    /// The volume of a storage pool, if the target is one.
    pub(crate) volume: Option<PlannedVolume>,
}

/// The parameters that determine the target of a disk.
pub(super) struct Placing<'a> {
    pub(crate) request: &'a RestoreRequest,
    pub(crate) hypervisor: Option<&'a Hypervisor>,
    /// The machine's new name.
    pub(crate) machine: &'a str,
    /// The disk's name, and its element in the definition.
    pub(crate) disk: &'a str,
    pub(crate) described: Option<&'a DefinedDisk>,
    pub(crate) capacity_bytes: u64,
    pub(crate) format: ImageFormat,
}

impl Placing<'_> {
    /// Returns the file or device that the disk is restored to.
    pub(crate) fn place(&self) -> Result<DiskPlace> {
        let source = self.described.map(|disk| &disk.source);
        match (self.request.to.get(self.disk), &self.request.into, source) {
            (Some(path), ..) => self.named(std::path::absolute(path).map_err(Error::io("find", path))?, false),
            (None, Some(folder), _) => {
                self.named(folder.join(format!("{}-{}.{}", self.machine, self.disk, self.format.name())), false)
            }
            (None, None, _) if self.request.as_name.is_some() => {
                Err(self.nowhere("a machine with another name needs its own images"))
            }
            (None, None, _) if self.described.is_some_and(|disk| disk.slice.is_some()) => {
                Err(self.nowhere("it was a part of a file or device, and a restore must not overwrite the rest"))
            }
            (None, None, Some(DiskSource::File { path })) => self.named(path.clone(), false),
            (None, None, Some(DiskSource::Block { path })) => self.named(path.clone(), true),
            (None, None, Some(DiskSource::Volume { pool, volume })) => self.volume(pool, volume),
            (None, None, _) => Err(self.nowhere("its image was not a file or device of this host")),
        }
    }

    fn nowhere(&self, reason: &str) -> Error {
        Error::NoDestination { disk: self.disk.to_owned(), reason: reason.into() }
    }

    fn named(&self, path: PathBuf, must_be_device: bool) -> Result<DiskPlace> {
        let real_path = resolved(&path);
        let bad = |reason: &str| Error::BadTarget { disk: self.disk.into(), path: path.clone(), reason: reason.into() };
        // The storage of the target may not be mounted, so the link must not be replaced by a file.
        if let Ok(target) = fs::read_link(&real_path) {
            return Err(bad(&format!("it is a link to {}, which does not exist", target.display())));
        }
        let is_device = match fs::metadata(&real_path) {
            Ok(found) if found.file_type().is_block_device() => true,
            Ok(found) if !found.is_file() => return Err(bad("it is neither a file nor a block device")),
            Ok(_) if must_be_device => return Err(bad("it is a file, and the definition has a block device there")),
            // A file created below /dev would be in memory and lost at the next boot.
            Ok(_) if is_below_dev(&real_path) => return Err(bad("it is a regular file in /dev")),
            // With `--into /dev/null` the folder is invalid, which is reported below.
            Err(error) if error.kind() == ErrorKind::NotADirectory => false,
            Err(_) if must_be_device || is_below_dev(&path) || is_below_dev(&real_path) => {
                let (disk, capacity_bytes) = (self.disk.to_owned(), self.capacity_bytes);
                return Err(Error::NoDevice { disk, path, capacity_bytes });
            }
            _ => false,
        };
        refuse_without_folder(&real_path)?;
        let kind = if is_device { TargetKind::Device } else { TargetKind::File };
        let is_unmoved = self.described.and_then(DefinedDisk::path) == Some(&path);
        Ok(DiskPlace { path, real_path, kind, is_unmoved, volume: None })
    }

    fn volume(&self, pool: &str, volume: &str) -> Result<DiskPlace> {
        let refused = |reason: &str, solve: &str| Error::NoVolume {
            disk: self.disk.to_owned(),
            volume: format!("{pool}/{volume}"),
            reason: reason.to_owned(),
            solve: solve.to_owned(),
        };
        let Some(hypervisor) = self.hypervisor else {
            return Err(refused("only libvirt knows the location of the volume", "omit --no-define"));
        };
        let place = hypervisor.volume_place(pool, volume)?;
        let made = |is_new_device| PlannedVolume { pool: pool.to_owned(), volume: volume.to_owned(), is_new_device };
        let (path, is_new_device) = match place {
            VolumePlace::There(path) | VolumePlace::NewFile(path) => (path, false),
            VolumePlace::NewDevice(path) => (path, true),
            VolumePlace::PoolNotStarted => {
                return Err(refused(
                    "the storage pool is not running",
                    &format!("start it with 'virsh pool-start {pool}'"),
                ));
            }
            VolumePlace::NoPool => {
                let solve = format!("define and start the pool ('virsh pool-define-as {pool} dir --target DIR')");
                return Err(refused("the storage pool does not exist on this host", &solve));
            }
        };
        if is_new_device {
            let volume = Some(made(true));
            let (real_path, kind) = (path.clone(), TargetKind::Device);
            return Ok(DiskPlace { path, real_path, kind, is_unmoved: true, volume });
        }
        let place = self.named(path, false)?;
        Ok(DiskPlace { is_unmoved: true, volume: Some(made(false)), ..place })
    }
}

/// Whether a path is below `/dev`, where only devices are expected. (`/dev/shm` is meant for files in memory.)
pub(super) fn is_below_dev(path: &Path) -> bool {
    path.starts_with("/dev") && !path.starts_with("/dev/shm")
}

/// Resolves a path to its canonical name. The image behind a link is thus replaced, not the link, and two names of one
/// place are recognized as equal. For a file that does not exist yet, its folder is resolved.
pub(super) fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Definition;

    const SLICED: &str = "<domain type='qemu'><name>vm</name><uuid>3f6c4d4e-9a0e-4b8e-9a51-2f2f7a6f2a11</uuid>\
        <devices><disk type='file' device='disk'><driver name='qemu' type='raw'/>\
        <source file='/images/all.raw'><slices><slice type='storage' offset='1048576' size='4194304'/></slices>\
        </source><target dev='vda' bus='virtio'/></disk></devices></domain>";

    #[test]
    fn slice_is_never_restored_over_its_containing_file() {
        let definition = Definition::parse(SLICED).unwrap();
        let place = |request: &RestoreRequest| {
            let (machine, disk, format) = ("vm", "vda", ImageFormat::Raw);
            let described = definition.disk(disk);
            Placing { request, hypervisor: None, machine, disk, described, capacity_bytes: 4 << 20, format }.place()
        };
        for overwrite in [false, true] {
            let request = RestoreRequest { overwrite, ..RestoreRequest::default() };
            assert!(matches!(place(&request), Err(Error::NoDestination { .. })), "overwrite: {overwrite}");
        }
        let folder = tempfile::tempdir().unwrap();
        let into = Some(folder.path().to_owned());
        let path = place(&RestoreRequest { into, ..RestoreRequest::default() }).unwrap().path;
        assert_eq!(path, folder.path().join("vm-vda.raw"));
    }
}
