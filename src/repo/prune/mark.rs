//! What snapshots need: every tree and every blob that can be reached.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use crate::repo::place_set::PlaceSet;
use crate::repo::reachable::each_blob;
use crate::repo::{Error, Id, Index, Repository, Result};

/// The root trees of the snapshots that stay. One that cannot be read is an error: nobody knows what it needs.
pub(super) fn needed_snapshots(repo: &Repository, forgotten: &HashSet<Id>) -> Result<Vec<Id>> {
    let mut list = repo.uncached().snapshots()?;
    if !list.damaged.is_empty() {
        return Err(list.damaged.swap_remove(0).error);
    }
    let stay = list.snapshots.into_iter().filter(|stored| !forgotten.contains(&stored.id));
    Ok(stay.map(|stored| stored.snapshot.tree).collect())
}

/// Marks all blobs that a snapshot with this root tree needs, each at the first of its places. A tree that is marked
/// already is not read again.
pub(super) fn mark_snapshot(
    marks: &mut PlaceSet,
    repo: &Repository,
    index: &Index,
    root: &Id,
    stop: &AtomicBool,
) -> Result<()> {
    let mark = |kind, id: &Id| marks.insert_blob(index, kind, id).ok_or(Error::BlobMissing { kind, id: *id });
    each_blob(repo, index, root, stop, mark)
}
