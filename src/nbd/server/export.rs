//! The exports of a server.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::super::wire::{self, StatusExtent};

/// A part of an export's bytes, in request order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// This number of zeros.
    Zeros(u32),
    /// Bytes.
    Data(&'a [u8]),
    /// This number of bytes that are unreadable, and why. The client gets EIO for these bytes only.
    Unreadable {
        /// The number of bytes.
        length_bytes: u32,
        /// The reason.
        reason: &'a str,
    },
}

impl Piece<'_> {
    /// Returns the number of bytes.
    pub(crate) fn length_bytes(&self) -> u32 {
        match self {
            Piece::Zeros(length) => *length,
            Piece::Data(bytes) => bytes.len() as u32,
            Piece::Unreadable { length_bytes, .. } => *length_bytes,
        }
    }
}

/// A change of an export.
#[derive(Debug, Clone, Copy)]
pub enum ExportWrite<'a> {
    /// Bytes.
    Data(&'a [u8]),
    Zeros(u64),
}

impl ExportWrite<'_> {
    pub(super) fn length_bytes(&self) -> u64 {
        match self {
            ExportWrite::Data(bytes) => bytes.len() as u64,
            ExportWrite::Zeros(length) => *length,
        }
    }
}

/// An export, which a server offers under a name. The methods are called by several threads at once, with offsets and
/// lengths within its size.
pub trait Export: Send + Sync {
    /// Returns the size in bytes, which never changes.
    fn size_bytes(&self) -> u64;

    /// Returns a description for people who list the exports.
    fn description(&self) -> String;

    /// Passes the `length` bytes at `offset` to `deliver`, in order and without gaps. An error of `deliver` ends the
    /// read and is returned.
    fn read(&self, offset: u64, length: u32, deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()>;

    /// Returns which ranges from `offset` are zero: at least one extent, at most `limit`, none of them empty, together
    /// no longer than `length`. The flags are [`wire::STATE_HOLE`] and [`wire::STATE_ZERO`].
    fn extents(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusExtent>;

    /// Returns whether the export can be written to.
    fn is_writable(&self) -> bool {
        false
    }

    /// Writes data. Every later read sees it.
    fn write(&self, _offset: u64, _change: ExportWrite<'_>) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Exports by name.
#[derive(Clone, Default)]
pub struct Exports {
    pub(super) by_name: BTreeMap<String, Arc<dyn Export>>,
}

impl Exports {
    /// Adds an export, replacing the one with this name.
    pub fn insert(&mut self, name: &str, export: Arc<dyn Export>) {
        self.by_name.insert(name.to_owned(), export);
    }

    /// "Export name": an empty name means the only export, if there is just one.
    pub(super) fn get(&self, name: &str) -> Option<(&str, &Arc<dyn Export>)> {
        let only = (name.is_empty() && self.by_name.len() == 1).then(|| self.by_name.iter().next()).flatten();
        self.by_name.get_key_value(name).or(only).map(|(name, export)| (name.as_str(), export))
    }
}

impl std::fmt::Debug for Exports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}

/// Returns the extent flags of a range: a zero hole, or data.
pub fn zero_flags(is_zero: bool) -> u32 {
    if is_zero { wire::STATE_HOLE | wire::STATE_ZERO } else { 0 }
}
