//! The parts of a plan: the disks and the small files that a restore will write.

use super::qcow2::Layout;
use super::request::ImageFormat;
use crate::capture::DiskSource;
use crate::capture::images::ImageOwner;
use crate::ops::chunk_map::{ChunkMap, Geometry, MappedChunk};
use crate::record::RestoredDisk;
use std::path::PathBuf;

/// Whether a disk goes to a file or to a device.
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
    /// The file or device, as the definition names it.
    pub(crate) path: PathBuf,
    /// The same, links followed: what is written.
    pub(crate) real_path: PathBuf,
    /// Which of the two.
    pub(crate) kind: TargetKind,
    /// Whether that is the place that the definition has for it.
    pub(crate) is_unmoved: bool,
    /// The volume of a storage pool that it is.
    pub(crate) volume: Option<PlannedVolume>,
    /// The format that is written.
    pub(crate) format: ImageFormat,
    /// The size that the guest sees.
    pub(crate) capacity_bytes: u64,
    /// The size of chunks.
    pub(crate) chunk_bytes: u32,
    pub(crate) map: ChunkMap,
    /// Whether what is there may be replaced.
    pub(crate) overwrite: bool,
    /// Who may use an image that is made where none is: libvirt leaves that alone.
    pub(crate) owner: Option<ImageOwner>,
}

impl PlannedDisk {
    /// How the disk is cut.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { capacity_bytes: self.capacity_bytes, chunk_bytes: self.chunk_bytes }
    }

    /// Its chunks that are not zero, together where they lie together: from which byte of the disk, and how much.
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

    /// How much of a file or device it takes.
    pub(super) fn length_bytes(&self) -> u64 {
        match self.format {
            ImageFormat::Raw => self.capacity_bytes,
            ImageFormat::Qcow2 => Layout::new(self.geometry(), &self.map).file_bytes(),
        }
    }

    /// Where it is restored to, as a record.
    pub(super) fn to_record(&self) -> RestoredDisk {
        RestoredDisk {
            disk: self.disk.clone(),
            path: self.path.to_string_lossy().into_owned(),
            format: self.format.name().to_owned(),
            capacity_bytes: self.capacity_bytes,
        }
    }

    /// What it will take on the host, about.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_ranges().map(|(_, length)| length).sum()
    }
}

/// A volume of a storage pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedVolume {
    pub(crate) pool: String,
    pub(crate) volume: String,
    /// Whether libvirt has to make it: a device that is not there.
    pub(crate) is_new_device: bool,
}

/// One small file of the plan.
#[derive(Debug)]
pub(crate) struct PlannedFile {
    /// Its name in the point.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The folder above it that the user of the command named, if it is below one.
    pub(crate) below: Option<PathBuf>,
    /// Network storage that it goes to instead of a file.
    pub(crate) network: Option<DiskSource>,
    /// Whether it goes to a block device, which must be there.
    pub(crate) is_on_device: bool,
    /// Whether its folder is made if it is missing.
    pub(crate) makes_folder: bool,
    /// Its permissions; none are those of what it replaces, or mode 0600.
    pub(crate) mode: Option<u32>,
}
