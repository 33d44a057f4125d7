//! The messages between parent and child, over one socket.
//!
//! A message consists of its length (32 bits, little-endian), a letter, and its body: JSON or bytes. While the child
//! works on a request, it asks the parent for blocks; the parent answers and keeps waiting for results.

use crate::filesystems::volumes::VolumeInfo;
use crate::filesystems::{DataRange, FsError, InodeMetadata};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maximum length of a data message: the data and its header.
pub(crate) const MOST_MESSAGE_BYTES: u32 = (1 << 20) + 4096;

/// Maximum length of one piece of data, and of one request for blocks.
pub(crate) const MOST_DATA_BYTES: usize = 1 << 20;

/// Maximum number of extents in one message.
pub(crate) const RANGES_PER_MESSAGE: usize = 4096;

/// Letters of messages from the child.
pub(crate) const WANT_BLOCKS: u8 = b'b';
/// A [`ChildReply`].
pub(crate) const REPLY: u8 = b'r';
/// Data of the current file: the offset (64 bits) and the bytes.
pub(crate) const DATA: u8 = b'd';

/// Letters of messages from the parent: a [`ParentRequest`].
pub(crate) const REQUEST: u8 = b'q';
/// The requested blocks.
pub(crate) const BLOCKS: u8 = b'k';
/// Why the blocks are not available.
pub(crate) const NO_BLOCKS: u8 = b'n';

/// A name or another sequence of bytes. In JSON it is hexadecimal, because it need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        hex::decode(text).map(Bytes).map_err(serde::de::Error::custom)
    }
}

/// A disk whose blocks the parent provides.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConfinedDisk {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    /// Its index among the machine's disks; None for a device that was assembled from them.
    pub(crate) number: Option<usize>,
}

/// A request of the parent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ParentRequest {
    /// Find the file systems and operating systems. This is the first request.
    Open { disks: Vec<ConfinedDisk> },
    /// Walk a file and everything below it.
    Walk(Walk),
}

/// Which files to walk, and what to send of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Walk {
    /// The path as on the command line.
    pub(crate) path: String,
    pub(crate) depth: Depth,
    /// Whether to follow a symbolic link at the end of the path.
    pub(crate) follow: Follow,
    /// Whether to send attributes and the data of files.
    pub(crate) content: bool,
}

/// How deep a walk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Depth {
    Itself,
    /// The entries of the directory, or the file itself.
    Children,
    /// The file itself and everything below it.
    All,
}

/// Whether to follow a symbolic link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Follow {
    No,
    /// Only if it points to a directory.
    ToDirectory,
    Yes,
}

/// A message of the child.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChildReply {
    /// The child has dropped its privileges and waits for requests.
    Ready,
    /// The child could not drop its privileges, and ends.
    Failed(String),
    /// The answer to [`ParentRequest::Open`].
    Volumes(Vec<VolumeInfo>),
    /// The start of the walk: its volume, and the names from the root.
    Start {
        volume: String,
        names: Vec<Bytes>,
    },
    Entry(Entry),
    /// The data ranges of the current file. Their data follow in this order.
    Ranges(Vec<DataRange>),
    /// There is no result yet, but the child is making progress.
    Working,
    /// The file has been sent completely.
    EndOfFile,
    /// Something below the start cannot be read; the walk continues.
    Unreadable {
        names: Vec<Bytes>,
        error: FsError,
    },
    /// The request is complete.
    Done,
    /// The request failed.
    Refused(FsError),
}

/// A file of a walk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The names below the start; empty for the start itself.
    pub(crate) names: Vec<Bytes>,
    pub(crate) metadata: InodeMetadata,
    /// What a symbolic link points to.
    pub(crate) target: Option<Bytes>,
    /// The first name of the same file (a hard link). The entry then has no data.
    pub(crate) same_as: Option<Vec<Bytes>>,
    pub(crate) xattrs: Vec<(Bytes, Bytes)>,
}
