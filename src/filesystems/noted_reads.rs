//! A source for crates whose errors cannot carry the cause of a failed read: it records the cause separately.

use super::blocks::Blocks;
use super::{FsError, Result};
use std::cell::RefCell;
use std::rc::Rc;

/// The cause of the last failed read, until it is taken.
pub(super) type ReadFailure = Rc<RefCell<Option<FsError>>>;

/// A source that records the cause of failed reads.
pub(super) struct NotedReads {
    blocks: Blocks,
    failure: ReadFailure,
}

impl NotedReads {
    /// Creates a source that records failures in `failure`.
    pub(super) fn new(blocks: &Blocks, failure: &ReadFailure) -> NotedReads {
        NotedReads { blocks: Rc::clone(blocks), failure: Rc::clone(failure) }
    }

    /// Fills `buffer` with the bytes at `offset`.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.blocks.read_at(offset, buffer).inspect_err(|error| {
            self.failure.replace(Some(error.clone()));
        })
    }
}
