//! The file systems of guests, read without the kernel.
//!
//! Everything here parses hostile bytes, so it runs only in a confined process (see the layer `confined`), never
//! allocates an amount that a guest chose, and bounds every loop. It reads through a [`blocks::BlockSource`] and never
//! writes.
//!
//! | module | what |
//! | --- | --- |
//! | [`blocks`] | bytes of a disk or of a partition, cached |
//! | `noted_reads` | the same for crates, with the cause of a failed read |
//! | [`partitions`] | GPT and MBR |
//! | [`mod@format`], [`probe`] | the content of a partition, by its signature |
//! | [`ext`] | ext2, ext3, ext4, with the journal replayed in memory |
//! | [`fat`], [`ntfs`], [`xfs`], [`btrfs`] | the others, by crates |
//! | `lvm` | logical volumes of LVM |
//! | `raid` | devices of striped arrays |
//! | [`volumes`] | all file systems of a point's disks |
//! | [`systems`] | operating systems: `os-release` and `fstab`, or `Windows\System32` |
//! | [`namespace`] | paths, links and mounted file systems, as the guest sees them |

pub(crate) mod blocks;
pub(crate) mod btrfs;
pub(crate) mod ext;
pub(crate) mod fat;
pub(crate) mod format;
mod lvm;
pub(crate) mod namespace;
mod noted_reads;
pub(crate) mod ntfs;
pub(crate) mod partitions;
pub(crate) mod probe;
mod raid;
pub(crate) mod systems;
pub(crate) mod volumes;
pub(crate) mod xfs;

use serde::{Deserialize, Serialize};

pub(crate) type Result<T> = std::result::Result<T, FsError>;

/// Why a guest's file system or file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum FsError {
    /// The repository is damaged or unreachable.
    #[error("{0}")]
    Unreadable(String),
    /// The data is invalid.
    #[error("the file system is damaged: {0}")]
    Damaged(String),
    /// The data is valid but not supported.
    #[error("{0}")]
    Unsupported(String),
    /// The data is encrypted or a part of a larger device, and another program can open it.
    #[error("{0}")]
    Closed(String),
    /// There is no such file.
    #[error("{path} does not exist{}", crate::suggest::suggestion(near))]
    NotFound {
        /// The missing part of the path.
        path: String,
        /// Similar names.
        near: Vec<String>,
    },
    /// The path is invalid.
    #[error("{0}")]
    BadPath(String),
}

/// Creates an [`FsError::Damaged`].
pub(crate) fn damaged(what: impl Into<String>) -> FsError {
    FsError::Damaged(what.into())
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InodeKind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl InodeKind {
    /// Returns the type for the type bits of a Unix mode.
    pub(crate) fn of_mode(mode: u32) -> Option<InodeKind> {
        Some(match mode & 0o170_000 {
            0o100_000 => InodeKind::File,
            0o040_000 => InodeKind::Directory,
            0o120_000 => InodeKind::Symlink,
            0o020_000 => InodeKind::CharDevice,
            0o060_000 => InodeKind::BlockDevice,
            0o010_000 => InodeKind::Fifo,
            0o140_000 => InodeKind::Socket,
            _ => return None,
        })
    }

    /// Returns the word for records.
    pub(crate) fn word(self) -> &'static str {
        match self {
            InodeKind::File => "file",
            InodeKind::Directory => "directory",
            InodeKind::Symlink => "symlink",
            InodeKind::CharDevice => "char_device",
            InodeKind::BlockDevice => "block_device",
            InodeKind::Fifo => "fifo",
            InodeKind::Socket => "socket",
        }
    }
}

/// A time, in seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// The attributes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InodeMetadata {
    pub(crate) kind: InodeKind,
    pub(crate) size_bytes: u64,
    /// Permission bits with setuid, setgid and sticky; None if the file system has none.
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<(u32, u32)>,
    /// The number of hard links; 1 if the file system does not record it.
    pub(crate) links: u32,
    pub(crate) modified: Option<Timestamp>,
    pub(crate) accessed: Option<Timestamp>,
    /// Major and minor number of a device file.
    pub(crate) device: Option<(u32, u32)>,
}

#[cfg(test)]
impl InodeMetadata {
    /// Returns the metadata of a file of which only the size is known.
    pub(crate) fn of_file(size_bytes: u64) -> InodeMetadata {
        let (mode, owner, modified, accessed, device) = (None, None, None, None, None);
        InodeMetadata { kind: InodeKind::File, size_bytes, mode, owner, links: 1, modified, accessed, device }
    }
}

/// A file, identified by a number that its file system assigns while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node(pub(crate) u64);

/// A range of a file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DataRange {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// An extended attribute: its name with prefix, and its value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// One device of a file system on several devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceOfSeveral {
    pub(crate) filesystem: [u8; 16],
    pub(crate) devices: u64,
    /// Increases with each write; the device with the highest value is the current one.
    pub(crate) generation: u64,
}

/// A readable file system. Results are what the guest wrote and unchecked, unless a method says otherwise.
pub(crate) trait GuestFilesystem {
    fn root(&self) -> Node;

    /// Returns the root of a subvolume, by the ID that Btrfs gives it.
    fn subvolume(&mut self, _id: u64) -> Result<Node> {
        Err(FsError::Unsupported("it has no subvolumes".into()))
    }

    fn metadata(&mut self, node: Node) -> Result<InodeMetadata>;

    /// Returns the names in a directory, without `.` and `..`, in no particular order.
    fn read_dir(&mut self, dir: Node) -> Result<Vec<(Vec<u8>, Node)>>;

    /// Returns which device of the file system this is, if it may have several.
    fn device(&self) -> Option<DeviceOfSeveral> {
        None
    }

    /// Whether names are case-insensitive.
    fn ignores_case(&self) -> bool {
        false
    }

    /// Returns the target of a symbolic link.
    fn read_link(&mut self, node: Node) -> Result<Vec<u8>>;

    fn xattrs(&mut self, _node: Node) -> Result<Vec<Xattr>> {
        Ok(Vec::new())
    }

    /// Returns the ranges with data, sorted, without overlap, and within the file's size. The rest are holes.
    fn data_ranges(&mut self, node: Node) -> Result<Vec<DataRange>>;

    /// Fills `buffer` from `offset`. The range must lie within the file's size.
    fn read_at(&mut self, node: Node, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// An opened file system, with label and UUID as in `blkid`.
pub(crate) struct OpenedFilesystem {
    pub(crate) filesystem: Box<dyn GuestFilesystem>,
    pub(crate) label: String,
    pub(crate) uuid: Option<String>,
}

/// Maximum number of data ranges of one file.
const MOST_RANGES: usize = 4 << 20;

/// Adds a range, and merges it with the previous one if they are adjacent.
pub(crate) fn push_range(ranges: &mut Vec<DataRange>, offset: u64, length: u64) -> Result<()> {
    if length == 0 {
        return Ok(());
    }
    let is_full = ranges.len() >= MOST_RANGES;
    match ranges.last_mut() {
        Some(last) if last.offset + last.length == offset => last.length += length,
        Some(last) if last.offset + last.length > offset => return Err(damaged("a file's extents overlap")),
        _ if is_full => {
            return Err(FsError::Unsupported("the file has more than 4 million fragments".into()));
        }
        _ => ranges.push(DataRange { offset, length }),
    }
    Ok(())
}
