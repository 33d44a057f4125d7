//! Computes how much of a repository groups of snapshots use, and how much of that they share.
//!
//! Memory: 8 bytes per blob location in the index, and one tree at a time.

use super::index_table::IndexEntry;
use super::reachable::each_blob;
use super::{BlobKind, Error, Id, Index, Repository, Result};
use std::sync::atomic::AtomicBool;

/// The space that the snapshots of a group use in the repository, compressed and encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GroupUsage {
    /// All blobs that the group needs, each counted once.
    pub(crate) stored_bytes: u64,
    /// The blobs that no other group needs.
    pub(crate) own_bytes: u64,
}

/// The space that all groups use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RepoUsage {
    /// In the order of the groups.
    pub(crate) groups: Vec<GroupUsage>,
    /// All blobs that any group needs, each counted once.
    pub(crate) stored_bytes: u64,
    /// All other blobs in the index: what a prune can free.
    pub(crate) unused_bytes: u64,
}

/// No group, for [`Blobs::owner`] and [`Blobs::seen`].
const NONE: u32 = 0;

/// Several groups, for [`Blobs::owner`].
const SHARED: u32 = u32::MAX;

/// The blobs of one kind, by position in the index.
struct Blobs {
    /// The number of the only group that needs the blob, from 1; [`NONE`] or [`SHARED`].
    owner: Vec<u32>,
    /// The number of the last group that it was counted for.
    seen: Vec<u32>,
}

impl Blobs {
    fn new(table: &[IndexEntry]) -> Blobs {
        Blobs { owner: vec![NONE; table.len()], seen: vec![NONE; table.len()] }
    }
}

impl RepoUsage {
    /// Counts what groups of root trees need. `stop` ends it early with an incomplete result.
    pub(crate) fn of(repo: &Repository, index: &Index, groups: &[Vec<Id>], stop: &AtomicBool) -> Result<RepoUsage> {
        let mut usage = RepoUsage { groups: vec![GroupUsage::default(); groups.len()], ..RepoUsage::default() };
        let mut data = Blobs::new(index.table(BlobKind::Data));
        let mut trees = Blobs::new(index.table(BlobKind::Tree));
        for (group, roots) in groups.iter().enumerate() {
            for root in roots {
                each_blob(repo, index, root, stop, |kind, id| {
                    let blobs = match kind {
                        BlobKind::Data => &mut data,
                        BlobKind::Tree => &mut trees,
                    };
                    let position = index.position(kind, id).ok_or(Error::BlobMissing { kind, id: *id })?;
                    let length = u64::from(index.table(kind)[position].length);
                    Ok(usage.count(blobs, position, length, group))
                })?;
            }
        }
        usage.unused_bytes = index.stored_bytes().saturating_sub(usage.stored_bytes);
        Ok(usage)
    }

    /// Counts a blob for a group and returns whether this was the first time.
    fn count(&mut self, blobs: &mut Blobs, position: usize, length: u64, group: usize) -> bool {
        let number = group as u32 + 1;
        if std::mem::replace(&mut blobs.seen[position], number) == number {
            return false;
        }
        self.groups[group].stored_bytes += length;
        let owner = &mut blobs.owner[position];
        match *owner {
            NONE => {
                *owner = number;
                self.groups[group].own_bytes += length;
                self.stored_bytes += length;
            }
            SHARED => {}
            other => {
                *owner = SHARED;
                self.groups[other as usize - 1].own_bytes -= length;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_counted_per_group_as_exclusive_or_shared() {
        let mut usage = RepoUsage { groups: vec![GroupUsage::default(); 3], ..RepoUsage::default() };
        let mut blobs = Blobs { owner: vec![NONE; 4], seen: vec![NONE; 4] };
        // Groups need: 0 and 1, twice; 1 and 2; 1 and 3.
        for (group, positions) in [(0, [0, 1, 0, 1]), (1, [1, 2, 1, 2]), (2, [1, 3, 3, 3])] {
            for position in positions {
                usage.count(&mut blobs, position, 10u64.pow(position as u32), group);
            }
        }
        let found = usage.groups.iter().map(|group| (group.stored_bytes, group.own_bytes));
        assert_eq!(found.collect::<Vec<_>>(), [(11, 1), (110, 100), (1010, 1000)]);
        assert_eq!(usage.stored_bytes, 1111);
    }
}
