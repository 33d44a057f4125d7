//! What snapshots need: every tree and every blob that can be reached.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use crate::repo::reachable::each_blob;
use crate::repo::{BlobKind, Error, Id, Index, Repository, Result};

/// The root trees of the snapshots that stay. One that cannot be read is an error: nobody knows what it needs.
pub(super) fn needed_snapshots(repo: &Repository, forgotten: &HashSet<Id>) -> Result<Vec<Id>> {
    let mut list = repo.uncached().snapshots()?;
    if !list.damaged.is_empty() {
        return Err(list.damaged.swap_remove(0).error);
    }
    let stay = list.snapshots.into_iter().filter(|stored| !forgotten.contains(&stored.id));
    Ok(stay.map(|stored| stored.snapshot.tree).collect())
}

/// A mark for every blob of an index, at the first of its places.
pub(super) struct Marks {
    data: Vec<bool>,
    trees: Vec<bool>,
}

impl Marks {
    pub(super) fn new(index: &Index) -> Self {
        let none = |kind| vec![false; index.table(kind).len()];
        Marks { data: none(BlobKind::Data), trees: none(BlobKind::Tree) }
    }

    pub(super) fn of(&self, kind: BlobKind) -> &[bool] {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }

    /// Marks a blob; says whether it was marked before.
    fn mark(&mut self, index: &Index, kind: BlobKind, id: &Id) -> Result<bool> {
        let position = index.position(kind, id).ok_or(Error::BlobMissing { kind, id: *id })?;
        let marks = match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        };
        Ok(std::mem::replace(&mut marks[position], true))
    }

    /// Marks all that a snapshot with this root tree needs.
    pub(super) fn snapshot(&mut self, repo: &Repository, index: &Index, root: &Id, stop: &AtomicBool) -> Result<()> {
        each_blob(repo, index, root, stop, |kind, id| Ok(!self.mark(index, kind, id)?))
    }
}
