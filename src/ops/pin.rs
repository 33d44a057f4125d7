//! Pinning: a point that stays whatever the retention says, until it is unpinned, or until the machines that run on it
//! have their data.
//!
//! A pin is the snapshot's tag `pinned`: it travels with `restic copy`, restic shows it, and `restic forget --keep-tag
//! pinned` respects it. A snapshot file is named by its content, so a tag changes the point's id; `original` then keeps
//! the first one, as with `restic tag`. What refers to points by id - the user, a capture that continues one, the
//! `parent` in later manifests - finds them by either. Data, manifest, checkpoint and chain are not touched.

use super::points::{self, PINNED_TAG, PointRef, RESTORING_TAG, is_restoring};
use super::repo_lock::lock;
use super::{Error, Result, Stop};
use crate::failpoint::{self, Failpoint};
use crate::repo::{Id, LockMode, Permit, Repository};

/// Changes pins in one repository, while it holds a lock there.
#[derive(Debug)]
pub(crate) struct Pinner<'a> {
    repo: &'a Repository,
    permit: Permit,
}

impl<'a> Pinner<'a> {
    /// Takes the lock that a backup takes: pinning adds a file and removes the one that it replaces, and disturbs no
    /// backup.
    pub(crate) fn open(repo: &'a Repository, stop: &Stop) -> Result<Pinner<'a>> {
        Ok(Pinner { repo, permit: lock(repo, LockMode::Shared, stop)?.permit() })
    }

    /// The same with a lock that is held already.
    pub(crate) fn with(repo: &'a Repository, permit: Permit) -> Pinner<'a> {
        Pinner { repo, permit }
    }

    /// Pins or unpins a point; returns its new id. One that is not pinned, but kept for live restores, is given up by
    /// them.
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

    /// Whatever was kept for this live restore need not stay any more.
    pub(crate) fn release(&self, restore: &str) -> Result<()> {
        let (found, _) = points::list(self.repo)?;
        let tag = tag_of(restore);
        let is_held = |point: &PointRef| point.snapshot.tags.contains(&tag);
        for point in found.iter().filter(|point| is_held(point)) {
            // Where an interrupted change has left two snapshots of the point, the other one is as it was.
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
        // In this order a crash leaves two snapshots of one point, never none.
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

/// The tag of one live restore.
fn tag_of(restore: &str) -> String {
    format!("{RESTORING_TAG}={restore}")
}
