//! The messages between parent and child over one socket.
//!
//! A message is its length (32 bits, little-endian), a letter, and its body: JSON, or bytes. The child asks for blocks
//! while it works on a request; the parent answers and goes on waiting.

use crate::filesystems::volumes::VolumeInfo;
use crate::filesystems::{DataRange, FsError, InodeMetadata};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest message: a piece of data, and what belongs to it.
pub(crate) const MOST_MESSAGE_BYTES: u32 = (1 << 20) + 4096;

/// The longest piece of data, and of blocks that are asked for at once.
pub(crate) const MOST_DATA_BYTES: usize = 1 << 20;

/// The number of extents in one message.
pub(crate) const RANGES_PER_MESSAGE: usize = 4096;

/// Letters of messages from the child.
pub(crate) const WANT_BLOCKS: u8 = b'b';
/// A [`ChildReply`].
pub(crate) const REPLY: u8 = b'r';
/// Data of the last entry: the offset, 64 bits, and bytes.
pub(crate) const DATA: u8 = b'd';

/// Letters of messages from the parent: a [`ParentRequest`].
pub(crate) const REQUEST: u8 = b'q';
/// Blocks that were asked for.
pub(crate) const BLOCKS: u8 = b'k';
/// Why they cannot be had.
pub(crate) const NO_BLOCKS: u8 = b'n';

/// A name, or another sequence of bytes; in JSON as hexadecimal digits, since it need not be text.
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

/// A disk that the parent has blocks of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConfinedDisk {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    /// Its place among the machine's disks; none for a device that was made of them.
    pub(crate) number: Option<usize>,
}

/// What the parent asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ParentRequest {
    /// Which file systems and operating systems there are. The first request.
    Open { disks: Vec<ConfinedDisk> },
    /// A file, and what is below it.
    Walk(Walk),
}

/// Which files, and what of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Walk {
    /// As on the command line.
    pub(crate) path: String,
    pub(crate) depth: Depth,
    /// Whether a link at the end of the path is followed.
    pub(crate) follow: Follow,
    /// Whether attributes, and the data of files, are sent.
    pub(crate) content: bool,
}

/// How far a walk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Depth {
    Itself,
    /// What is in the directory, or the file.
    Children,
    /// Everything below, and it itself.
    All,
}

/// What happens to a link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Follow {
    No,
    /// If it leads to a directory.
    ToDirectory,
    Yes,
}

/// What the child says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChildReply {
    /// It has given up everything, and waits for requests.
    Ready,
    /// It could not, and ends.
    Failed(String),
    /// The answer to [`ParentRequest::Open`].
    Volumes(Vec<VolumeInfo>),
    /// Where the walk begins, and on which volume: the names from the root.
    Start {
        volume: String,
        names: Vec<Bytes>,
    },
    Entry(Entry),
    /// Stretches of data of the file that was named last; the data follow in this order.
    Ranges(Vec<DataRange>),
    /// There is nothing to say yet.
    Working,
    /// All of that file was sent.
    EndOfFile,
    /// Something below the start cannot be read; the walk goes on.
    Unreadable {
        names: Vec<Bytes>,
        error: FsError,
    },
    /// The request is done.
    Done,
    /// The request cannot be done.
    Refused(FsError),
}

/// A file of a walk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The names below the start; none for the start itself.
    pub(crate) names: Vec<Bytes>,
    pub(crate) metadata: InodeMetadata,
    /// What a symbolic link points to.
    pub(crate) target: Option<Bytes>,
    /// The same file under the name that came first: it has no data of its own.
    pub(crate) same_as: Option<Vec<Bytes>>,
    pub(crate) xattrs: Vec<(Bytes, Bytes)>,
}
