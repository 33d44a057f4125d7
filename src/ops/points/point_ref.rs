//! The points of a repository: the snapshots that kvmb made.

use crate::ops::Result;
use crate::repo::{DamagedSnapshot, Id, Repository, Snapshot, SnapshotList};

/// The tag that distinguishes kvmb's snapshots from others in a repository.
pub(crate) const TAG: &str = "kvmb";

/// The prefix of the tag with the machine's name.
pub(crate) const MACHINE_TAG: &str = "machine=";

/// The tag of a point that is kept regardless of retention; restic's `forget --keep-tag pinned` keeps it too.
pub(crate) const PINNED_TAG: &str = "pinned";

/// The tag of a point that machines run on, until their live restores are finished. Each restore also adds its own tag,
/// `restoring=<id>`.
pub(crate) const RESTORING_TAG: &str = "restoring";

/// A snapshot that kvmb made.
#[derive(Debug, Clone)]
pub struct PointRef {
    /// The id of the snapshot, which is also the point's.
    pub(crate) id: Id,
    pub(crate) snapshot: Snapshot,
}

impl PointRef {
    /// The machine's name, from its tag.
    pub(crate) fn machine(&self) -> &str {
        self.snapshot.tags.iter().find_map(|tag| tag.strip_prefix(MACHINE_TAG)).unwrap_or("")
    }

    /// Whether retention always keeps the point.
    pub(crate) fn is_pinned(&self) -> bool {
        self.snapshot.tags.iter().any(|tag| tag == PINNED_TAG)
    }

    /// Whether a machine runs on the point, which must therefore be kept.
    pub(crate) fn is_restoring(&self) -> bool {
        self.snapshot.tags.iter().any(|tag| is_restoring(tag))
    }

    /// Whether the point has or had this id. Pinning a point, tagging it with restic and copying it to another
    /// repository change its id.
    pub(crate) fn is_or_was(&self, id: &Id) -> bool {
        self.id == *id || self.snapshot.original == Some(*id)
    }
}

/// Whether kvmb made the snapshot and its tags were not removed.
pub(crate) fn is_point(snapshot: &Snapshot) -> bool {
    snapshot.tags.iter().any(|tag| tag == TAG)
}

/// Whether a tag is one that live restores set.
pub(crate) fn is_restoring(tag: &str) -> bool {
    tag.strip_prefix(RESTORING_TAG).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// Returns all points of a repository, oldest first, and the snapshots that could not be read.
pub(crate) fn list(repo: &Repository) -> Result<(Vec<PointRef>, Vec<DamagedSnapshot>)> {
    Ok(of_snapshots(repo.snapshots()?))
}

/// Returns the points among these snapshots, oldest first, and the snapshots that could not be read.
pub(crate) fn of_snapshots(list: SnapshotList) -> (Vec<PointRef>, Vec<DamagedSnapshot>) {
    let mut points: Vec<PointRef> = list
        .snapshots
        .into_iter()
        .filter(|stored| is_point(&stored.snapshot))
        .map(|stored| PointRef { id: stored.id, snapshot: stored.snapshot })
        .collect();
    points.sort_by_key(|point| (point.snapshot.time, point.id));
    (points, list.damaged)
}
