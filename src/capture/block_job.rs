//! Block jobs on the disks of a running machine. A disk has at most one at a time, and a backup counts as one.

use std::fmt;

/// A block job other than a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockJob {
    /// The kind of the job.
    pub kind: BlockJobKind,
    /// Whether it has finished its work and waits to be ended.
    pub is_ready: bool,
    /// How much it has done.
    pub done_bytes: u64,
    /// How much it has to do in all; 0 until it is known. Grows if the machine writes.
    pub total_bytes: u64,
}

/// The kind of a block job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockJobKind {
    /// Copies a backing file into the image (`virsh blockpull`).
    Pull,
    /// Copies the disk elsewhere (`virsh blockcopy`, storage migration).
    Copy,
    /// Writes the image into its backing file (`virsh blockcommit`).
    Commit,
    /// Anything else.
    Other,
}

impl BlockJob {
    /// Converts libvirt's numbers. Returns `None` for a backup, which is detected separately.
    pub(super) fn from_numbers(kind: i32, position: u64, end: u64) -> Option<BlockJob> {
        let kind = match kind {
            1 => BlockJobKind::Pull,
            2 => BlockJobKind::Copy,
            3 | 4 => BlockJobKind::Commit,
            5 => return None,
            _ => BlockJobKind::Other,
        };
        Some(BlockJob { kind, is_ready: end > 0 && position == end, done_bytes: position, total_bytes: end })
    }

    /// Whether the job waits for a decision: to pivot to its result or to abort.
    pub(crate) fn waits_for_pivot(&self) -> bool {
        self.is_ready && matches!(self.kind, BlockJobKind::Copy | BlockJobKind::Commit)
    }
}

impl fmt::Display for BlockJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            BlockJobKind::Pull => "block pull",
            BlockJobKind::Copy => "block copy",
            BlockJobKind::Commit => "block commit",
            BlockJobKind::Other => "of another kind",
        };
        let state = if self.is_ready { ", ready to pivot" } else { "" };
        write!(f, "{kind}{state}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_job_names_match_virsh() {
        let named = |kind, position, end| BlockJob::from_numbers(kind, position, end).map(|job| job.to_string());
        assert_eq!(named(1, 5, 10).as_deref(), Some("block pull"));
        assert_eq!(named(2, 10, 10).as_deref(), Some("block copy, ready to pivot"));
        assert_eq!(named(4, 0, 0).as_deref(), Some("block commit"));
        assert_eq!(named(5, 0, 1), None);
    }
}
