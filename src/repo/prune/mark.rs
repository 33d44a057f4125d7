//! Marks what snapshots need: every reachable tree and blob.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use crate::repo::place_set::PlaceSet;
use crate::repo::reachable::each_blob;
use crate::repo::{Error, Id, Index, Repository, Result};

/// Returns the root trees of the snapshots that stay. An unreadable snapshot is an error, because it is unknown what it
/// needs.
pub(super) fn needed_snapshots(repo: &Repository, forgotten: &HashSet<Id>) -> Result<Vec<Id>> {
    let list = repo.uncached().snapshots()?;
    if let Some(damaged) = list.damaged.into_iter().find(|damaged| !forgotten.contains(&damaged.id)) {
        return Err(damaged.error);
    }
    let stay = list.snapshots.into_iter().filter(|stored| !forgotten.contains(&stored.id));
    Ok(stay.map(|stored| stored.snapshot.tree).collect())
}

/// Marks all blobs that a snapshot with this root tree needs, each at the first of its locations. Trees that are
/// already marked are not read again.
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
