//! The points of a repository: the snapshots that kvmb made.

use crate::ops::Result;
use crate::repo::{DamagedSnapshot, Id, Repository, Snapshot, SnapshotList};

/// The tag that marks kvmb's snapshots among others in a repository.
pub(crate) const TAG: &str = "kvmb";

/// The beginning of the tag that names the machine.
pub(crate) const MACHINE_TAG: &str = "machine=";

/// The tag that keeps a point whatever the retention says; restic's `forget --keep-tag pinned` keeps it too.
pub(crate) const PINNED_TAG: &str = "pinned";

/// The tag of a point that machines run on, until their live restores have ended. Each restore adds one of its own:
/// `restoring=<id>`.
pub(crate) const RESTORING_TAG: &str = "restoring";

/// A snapshot that kvmb made.
#[derive(Debug, Clone)]
pub struct PointRef {
    /// The snapshot's id, which is the point's.
    pub(crate) id: Id,
    pub(crate) snapshot: Snapshot,
}

impl PointRef {
    /// The machine's name, from the tag.
    pub(crate) fn machine(&self) -> &str {
        self.snapshot.tags.iter().find_map(|tag| tag.strip_prefix(MACHINE_TAG)).unwrap_or("")
    }

    /// Whether retention leaves it alone.
    pub(crate) fn is_pinned(&self) -> bool {
        self.snapshot.tags.iter().any(|tag| tag == PINNED_TAG)
    }

    /// Whether a machine runs on it, so that it must stay.
    pub(crate) fn is_restoring(&self) -> bool {
        self.snapshot.tags.iter().any(|tag| is_restoring(tag))
    }

    /// Whether this is what the id meant when it was given: pinning a point, or tagging it with restic, changes its id,
    /// and so does copying it to another repository.
    pub(crate) fn is_or_was(&self, id: &Id) -> bool {
        self.id == *id || self.snapshot.original == Some(*id)
    }
}

/// Whether kvmb made a snapshot, and nobody took its tags away.
pub(crate) fn is_point(snapshot: &Snapshot) -> bool {
    snapshot.tags.iter().any(|tag| tag == TAG)
}

/// Whether a tag is one of those that live restores set.
pub(crate) fn is_restoring(tag: &str) -> bool {
    tag.strip_prefix(RESTORING_TAG).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// All points of a repository, oldest first, and what could not be read.
pub(crate) fn list(repo: &Repository) -> Result<(Vec<PointRef>, Vec<DamagedSnapshot>)> {
    Ok(of_snapshots(repo.snapshots()?))
}

/// The points among snapshots, oldest first, and what could not be read.
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
