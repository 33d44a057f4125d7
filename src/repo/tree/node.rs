//! The entries of a tree: names, metadata and contents.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use chrono::{DateTime, FixedOffset};

use crate::repo::{Content, Id};

/// Go's mode bit for a folder.
pub(super) const GO_MODE_DIR: u32 = 1 << 31;

/// The entries of a folder, sorted by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tree {
    /// The entries.
    pub nodes: Vec<Node>,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The name: not empty, without `/`. restic allows any other bytes.
    pub name: OsString,
    pub(crate) metadata: Metadata,
    /// The kind of entry.
    pub kind: NodeKind,
}

/// The kind of an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeKind {
    /// A folder.
    Dir {
        /// The tree of the folder.
        subtree: Id,
    },
    /// A file.
    File {
        /// The size in bytes: the sum of its blobs.
        size_bytes: u64,
        /// The blobs.
        content: Content,
    },
    /// A link, a device …, with restic's name of the type. kvmb ignores these and never writes them.
    Other(String),
}

/// Owner, mode and times of an entry, used when it is restored with restic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Metadata {
    pub(crate) mode: u32,
    pub(crate) mtime: DateTime<FixedOffset>,
    pub(crate) atime: DateTime<FixedOffset>,
    pub(crate) ctime: DateTime<FixedOffset>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The owner's name, or empty.
    pub(crate) user: String,
    /// The group's name, or empty.
    pub(crate) group: String,
}

impl Metadata {
    /// Returns metadata of a file owned by root, with the same time for all three.
    pub(crate) fn private(time: DateTime<FixedOffset>, mode: u32) -> Self {
        Metadata {
            mode,
            mtime: time,
            atime: time,
            ctime: time,
            uid: 0,
            gid: 0,
            user: String::new(),
            group: String::new(),
        }
    }
}

impl Node {
    /// Creates a folder with mode 0700.
    pub fn dir(name: impl Into<OsString>, time: DateTime<FixedOffset>, subtree: Id) -> Self {
        Node { name: name.into(), metadata: Metadata::private(time, 0o700), kind: NodeKind::Dir { subtree } }
    }

    /// Creates a file with mode 0600.
    pub fn file(name: impl Into<OsString>, time: DateTime<FixedOffset>, size_bytes: u64, content: Content) -> Self {
        Node {
            name: name.into(),
            metadata: Metadata::private(time, 0o600),
            kind: NodeKind::File { size_bytes, content },
        }
    }
}

impl Tree {
    /// Returns the entry with this name.
    pub fn get(&self, name: impl AsRef<OsStr>) -> Option<&Node> {
        let name = name.as_ref();
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Returns the tree of the folder with this name.
    pub fn subtree(&self, name: impl AsRef<OsStr>) -> Option<Id> {
        match self.get(name)?.kind {
            NodeKind::Dir { subtree } => Some(subtree),
            _ => None,
        }
    }
}

/// Returns what is wrong with a name, if anything.
pub(super) fn name_flaw(name: &OsStr) -> Option<&'static str> {
    match name.as_bytes() {
        b"" => Some("the name is empty"),
        b"." | b".." => Some("the name is not one of an entry"),
        bytes if bytes.contains(&b'/') || bytes.contains(&0) => Some("the name contains a slash or a zero byte"),
        _ => None,
    }
}
