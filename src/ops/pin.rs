//! Pinning: a point that stays whatever the retention says, until it is unpinned.
//!
//! A pin is the snapshot's tag `pinned`: it travels with `restic copy`, restic shows it, and `restic forget --keep-tag
//! pinned` respects it. A snapshot file is named by its content, so a tag changes the point's id; `original` then keeps
//! the first one, as with `restic tag`. What refers to points by id - the user, a capture that continues one, the
//! `parent` in later manifests - finds them by either. Data, manifest, checkpoint and chain are not touched.

use super::points::{PINNED_TAG, PointRef};
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

    /// Pins or unpins a point; returns its new id.
    pub(crate) fn set(&self, point: &PointRef, pinned: bool) -> Result<Id> {
        if point.is_pinned() == pinned {
            return Ok(point.id);
        }
        let mut snapshot = point.snapshot.clone();
        match pinned {
            true => snapshot.tags.push(PINNED_TAG.to_owned()),
            false => snapshot.tags.retain(|tag| tag != PINNED_TAG),
        }
        snapshot.original.get_or_insert(point.id);
        // In this order a crash leaves two snapshots of one point, never none.
        let id = self.repo.save_snapshot(&snapshot, &self.permit)?;
        failpoint::hit(Failpoint::PinStored);
        match self.repo.remove_snapshot(&point.id, &self.permit) {
            Err(error) if !error.is_not_found() => {
                Err(Error::RemovalRefused { url: self.repo.url(), source: Box::new(error) })
            }
            _ => Ok(id),
        }
    }
}
