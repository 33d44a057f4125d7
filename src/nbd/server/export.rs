//! What a server hands out.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::super::wire::{self, StatusExtent};

/// A part of an export's bytes, in the order of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// So many zeros.
    Zeros(u32),
    /// Bytes.
    Data(&'a [u8]),
    /// So many bytes that cannot be had, and why: the client gets EIO for these and no others.
    Unreadable {
        /// How many.
        length_bytes: u32,
        /// Why.
        reason: &'a str,
    },
}

impl Piece<'_> {
    /// How many bytes of the request this answers.
    pub(crate) fn length_bytes(&self) -> u32 {
        match self {
            Piece::Zeros(length) => *length,
            Piece::Data(bytes) => bytes.len() as u32,
            Piece::Unreadable { length_bytes, .. } => *length_bytes,
        }
    }
}

/// What is written to an export.
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

/// What a server hands out under one name. It is called from several threads at once, with offsets and lengths that lie
/// within its size.
pub trait Export: Send + Sync {
    /// Its size in bytes, which does not change.
    fn size_bytes(&self) -> u64;

    /// What it is, for people who list the exports.
    fn description(&self) -> String;

    /// Delivers the `length` bytes at `offset`, in order and without a gap. An error of `deliver` is passed on: then
    /// nobody wants the rest.
    fn read(&self, offset: u64, length: u32, deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()>;

    /// What is zero from `offset` on: at least one extent, at most `limit`, none of them empty, together no longer than
    /// `length`. The flags are [`wire::STATE_HOLE`] and [`wire::STATE_ZERO`].
    fn extents(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusExtent>;

    /// Whether it can be written to.
    fn is_writable(&self) -> bool {
        false
    }

    /// Writes; every later read sees it.
    fn write(&self, _offset: u64, _change: ExportWrite<'_>) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Exports by name.
#[derive(Clone, Default)]
pub struct Exports {
    pub(super) by_name: BTreeMap<String, Arc<dyn Export>>,
    /// Whether no client is told where there is no data.
    pub(super) hide_extents: bool,
}

impl Exports {
    /// Adds one, or replaces the one of this name.
    pub fn insert(&mut self, name: &str, export: Arc<dyn Export>) {
        self.by_name.insert(name.to_owned(), export);
    }

    /// Tells no client where there is no data: one that knows it already would ask all the same, before each read.
    pub(crate) fn hide_extents(&mut self) {
        self.hide_extents = true;
    }

    /// "Export name": the empty one means the only one that there is.
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

/// What a data piece says where it is: nothing but zeros, or not.
pub fn zero_flags(is_zero: bool) -> u32 {
    if is_zero { wire::STATE_HOLE | wire::STATE_ZERO } else { 0 }
}
