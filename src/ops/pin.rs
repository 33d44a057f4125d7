//! Pins: a pinned point is kept regardless of retention until it is unpinned. Live restores likewise keep their point
//! until the machine has all of its data.
//!
//! A pin is the tag `pinned` of the snapshot: `restic copy` preserves it, restic shows it, and `restic forget
//! --keep-tag pinned` respects it. A snapshot's id is the hash of its file, so a new tag changes the point's id; as
//! with `restic tag`, `original` then holds the first id. Users, captures and the `parent` of later manifests refer to
//! points by id, and both ids are found. Data, manifest, checkpoint and chain are not changed.

use super::points::{self, PINNED_TAG, PointRef, RESTORING_TAG, is_restoring};
use super::repo_lock::lock;
use super::{Error, Result, Stop};
use crate::failpoint::{self, Failpoint};
use crate::repo::{Id, LockMode, Permit, Repository};

/// Changes pins in a repository while holding a lock.
#[derive(Debug)]
pub(crate) struct Pinner<'a> {
    repo: &'a Repository,
    permit: Permit,
}

impl<'a> Pinner<'a> {
    /// Takes a shared lock, as a backup does: pinning adds a file and removes the one that it replaces, and does not
    /// interfere with backups.
    pub(crate) fn open(repo: &'a Repository, stop: &Stop) -> Result<Pinner<'a>> {
        Ok(Pinner { repo, permit: lock(repo, LockMode::Shared, stop)?.permit() })
    }

    /// Uses a lock that is held already.
    pub(crate) fn with(repo: &'a Repository, permit: Permit) -> Pinner<'a> {
        Pinner { repo, permit }
    }

    /// Pins or unpins a point and returns its new id. Unpinning a point that is only kept for live restores removes
    /// their tags.
    pub(crate) fn set(&self, point: &PointRef, pinned: bool) -> Result<Id> {
        let mut tags = point.snapshot.tags.clone();
        match (pinned, point.is_pinned()) {
            (true, true) => {}
            (true, false) => tags.push(PINNED_TAG.to_owned()),
            (false, true) => tags.retain(|tag| tag != PINNED_TAG),
            (false, false) => tags.retain(|tag| !is_restoring(tag)),
        }
        self.retag(point, tags)
    }

    /// Keeps a point for a live restore.
    pub(crate) fn hold(&self, point: &PointRef, restore: &str) -> Result<Id> {
        let mut tags = point.snapshot.tags.clone();
        for tag in [RESTORING_TAG.to_owned(), tag_of(restore)] {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        self.retag(point, tags)
    }

    /// Stops keeping the points of this live restore.
    pub(crate) fn release(&self, restore: &str) -> Result<()> {
        let (found, _) = points::list(self.repo)?;
        let tag = tag_of(restore);
        let is_held = |point: &PointRef| point.snapshot.tags.contains(&tag);
        for point in found.iter().filter(|point| is_held(point)) {
            // If an interrupted change left two snapshots of the point, the other one has the original tags.
            let original = point.snapshot.original;
            let is_twin = |other: &PointRef| !is_held(other) && original.is_some_and(|id| other.is_or_was(&id));
            if found.iter().any(is_twin) {
                self.remove(&point.id)?;
                continue;
            }
            let mut tags = point.snapshot.tags.clone();
            tags.retain(|other| *other != tag);
            if tags.iter().filter(|tag| is_restoring(tag)).eq([RESTORING_TAG]) {
                tags.retain(|tag| tag != RESTORING_TAG);
            }
            self.retag(point, tags)?;
        }
        Ok(())
    }

    fn retag(&self, point: &PointRef, tags: Vec<String>) -> Result<Id> {
        if tags == point.snapshot.tags {
            return Ok(point.id);
        }
        let mut snapshot = point.snapshot.clone();
        snapshot.tags = tags;
        snapshot.original.get_or_insert(point.id);
        // In this order, a crash leaves two snapshots of the point, never none.
        let id = self.repo.save_snapshot(&snapshot, &self.permit)?;
        failpoint::hit(Failpoint::PinStored);
        self.remove(&point.id)?;
        Ok(id)
    }

    fn remove(&self, id: &Id) -> Result<()> {
        match self.repo.remove_snapshot(id, &self.permit) {
            Err(error) if !error.is_not_found() => {
                Err(Error::RemovalRefused { url: self.repo.url(), source: Box::new(error) })
            }
            _ => Ok(()),
        }
    }
}

/// The tag of a live restore.
fn tag_of(restore: &str) -> String {
    format!("{RESTORING_TAG}={restore}")
}
