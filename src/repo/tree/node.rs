//! What a tree has: entries with names, owners, times and contents.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use chrono::{DateTime, FixedOffset};

use crate::repo::{Content, Id};

/// Go's bit for a folder in the mode.
pub(super) const GO_MODE_DIR: u32 = 1 << 31;

/// The entries of a folder, sorted by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tree {
    /// The entries.
    pub nodes: Vec<Node>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name: not empty, without `/`. restic allows any bytes.
    pub name: OsString,
    pub(crate) metadata: Metadata,
    /// What it is.
    pub kind: NodeKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeKind {
    /// A folder.
    Dir {
        /// Its tree.
        subtree: Id,
    },
    /// A file.
    File {
        /// Its size: the sum of its blobs.
        size_bytes: u64,
        /// Its blobs.
        content: Content,
    },
    /// A link, a device …: restic's word for it. kvmb reads over these and never writes one.
    Other(String),
}

/// Owner, mode and times of an entry, for whoever restores it with restic.
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
    /// Root's, for nobody else's eyes, with one time for all three.
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
    /// A folder, mode 0700.
    pub fn dir(name: impl Into<OsString>, time: DateTime<FixedOffset>, subtree: Id) -> Self {
        Node { name: name.into(), metadata: Metadata::private(time, 0o700), kind: NodeKind::Dir { subtree } }
    }

    /// A file, mode 0600.
    pub fn file(name: impl Into<OsString>, time: DateTime<FixedOffset>, size_bytes: u64, content: Content) -> Self {
        Node {
            name: name.into(),
            metadata: Metadata::private(time, 0o600),
            kind: NodeKind::File { size_bytes, content },
        }
    }
}

impl Tree {
    /// The entry of this name.
    pub fn get(&self, name: impl AsRef<OsStr>) -> Option<&Node> {
        let name = name.as_ref();
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The tree of the folder of this name.
    pub fn subtree(&self, name: impl AsRef<OsStr>) -> Option<Id> {
        match self.get(name)?.kind {
            NodeKind::Dir { subtree } => Some(subtree),
            _ => None,
        }
    }
}

/// What is wrong with a name, if anything is.
pub(super) fn name_flaw(name: &OsStr) -> Option<&'static str> {
    match name.as_bytes() {
        b"" => Some("the name is empty"),
        b"." | b".." => Some("the name is not one of an entry"),
        bytes if bytes.contains(&b'/') || bytes.contains(&0) => Some("the name contains a slash or a zero byte"),
        _ => None,
    }
}
