//! The parts of a restore plan: disks and small files.

use super::qcow2::Layout;
use super::request::ImageFormat;
use crate::capture::DiskSource;
use crate::capture::images::ImageOwner;
use crate::ops::chunk_map::{ChunkMap, Geometry, MappedChunk};
use crate::record::RestoredDisk;
use std::path::PathBuf;

/// Whether a disk is restored to a file or to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TargetKind {
    File,
    /// A block device, written in place.
    Device,
}

/// One disk of the plan.
#[derive(Debug)]
pub(crate) struct PlannedDisk {
    pub(crate) disk: String,
    /// The file or device, as in the definition.
    pub(crate) path: PathBuf,
    /// The same path with links resolved, which is what is written.
    pub(crate) real_path: PathBuf,
    /// Whether it is a file or a device.
    pub(crate) kind: TargetKind,
    /// Whether this is the path in the original definition.
    pub(crate) is_unmoved: bool,
    /// The volume of a storage pool, if the target is one.
    pub(crate) volume: Option<PlannedVolume>,
    /// The image format to write.
    pub(crate) format: ImageFormat,
    /// The size of the virtual disk.
    pub(crate) capacity_bytes: u64,
    pub(crate) chunk_bytes: u32,
    pub(crate) map: ChunkMap,
    /// Whether an existing image may be replaced.
    pub(crate) overwrite: bool,
    /// The owner of an image that is created where none exists, if libvirt does not manage it.
    pub(crate) owner: Option<ImageOwner>,
}

impl PlannedDisk {
    /// How the disk is cut.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { capacity_bytes: self.capacity_bytes, chunk_bytes: self.chunk_bytes }
    }

    /// The ranges of the disk that are not zero, as (offset, length). Adjacent chunks are merged.
    pub(crate) fn data_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let geometry = self.geometry();
        let mut data = self.map.runs().filter(|(_, chunk, _)| *chunk != MappedChunk::Zero).peekable();
        std::iter::from_fn(move || {
            let (first, _, mut count) = data.next()?;
            while let Some((_, _, more)) = data.next_if(|(next, ..)| *next == first + count) {
                count += more;
            }
            let (start, end) = (geometry.offset(first), geometry.offset(first + count).min(self.capacity_bytes));
            Some((start, end - start))
        })
    }

    /// The length of the file, or the size needed on a device.
    pub(super) fn length_bytes(&self) -> u64 {
        match self.format {
            ImageFormat::Raw => self.capacity_bytes,
            ImageFormat::Qcow2 => Layout::new(self.geometry(), &self.map).file_bytes(),
        }
    }

    /// The target as a record.
    pub(super) fn to_record(&self) -> RestoredDisk {
        RestoredDisk {
            disk: self.disk.clone(),
            path: self.path.to_string_lossy().into_owned(),
            format: self.format.name().to_owned(),
            capacity_bytes: self.capacity_bytes,
        }
    }

    /// The approximate space that the disk takes on the host.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_ranges().map(|(_, length)| length).sum()
    }
}

/// A volume of a storage pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedVolume {
    pub(crate) pool: String,
    pub(crate) volume: String,
    /// Whether libvirt must create it because it is a device that does not exist.
    pub(crate) is_new_device: bool,
}

/// One small file of the plan.
#[derive(Debug)]
pub(crate) struct PlannedFile {
    /// The name in the point.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The folder above it that the user specified, if there is one.
    pub(crate) below: Option<PathBuf>,
    /// The network storage that it is written to instead of a file.
    pub(crate) network: Option<DiskSource>,
    /// Whether it is written to a block device, which must exist.
    pub(crate) is_on_device: bool,
    /// Whether its folder is created if it is missing.
    pub(crate) makes_folder: bool,
    /// The file mode; `None` uses the mode of the replaced file, or 0600.
    pub(crate) mode: Option<u32>,
}
