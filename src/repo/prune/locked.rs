//! Unneeded packs on a storage that locks files: they stay, but are no longer in the index. A later prune finds them
//! there and removes them when their locks have ended.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use super::plan::{Packs, PruneSummary, Unnamed};
use crate::repo::{Error, Id, Index, Repository, Result};
use crate::storage::FileKind;

/// Packs that cannot be removed yet.
#[derive(Debug, Default)]
pub(super) struct LockedPacks(HashSet<Id>);

impl LockedPacks {
    /// Queries the storage about all packs that would be removed, and subtracts the locked ones from what is freed.
    pub(super) fn find(
        repo: &Repository,
        index: &Index,
        packs: &Packs,
        unnamed: &Unnamed,
        summary: &mut PruneSummary,
    ) -> Result<LockedPacks> {
        if !repo.storage().can_lock()? {
            return Ok(LockedPacks::default());
        }
        let named = packs.files_that_go(index);
        let ids: Vec<Id> = named.iter().chain(unnamed).map(|(id, _)| *id).collect();
        let ends = repo.for_each(&ids, |id| match repo.storage().locked_until(FileKind::Pack, &id.to_string()) {
            Err(error) if !error.is_not_found() => Err(Error::from(error)),
            found => Ok(found.ok().flatten()),
        });
        let mut locked: HashMap<Id, SystemTime> = HashMap::new();
        for (id, end) in ids.into_iter().zip(ends) {
            locked.extend(end?.map(|end| (id, end)));
        }
        let unneeded = packs.unneeded_files(index);
        for (id, bytes) in &named {
            if let Some(end) = locked.get(id) {
                summary.leave(*bytes, *end);
                match unneeded.contains(id) {
                    true => summary.leave_removed(*bytes),
                    false => summary.repacked_bytes -= bytes,
                }
            }
        }
        for (id, bytes) in unnamed {
            if let Some(end) = locked.get(id) {
                summary.leave(*bytes, *end);
                summary.leave_removed(*bytes);
                summary.unnamed_packs -= 1;
            }
        }
        Ok(LockedPacks(locked.into_keys().collect()))
    }

    /// Returns the files that can be removed.
    pub(super) fn without(&self, files: &[(Id, u64)]) -> Vec<(Id, u64)> {
        files.iter().filter(|(id, _)| !self.0.contains(id)).copied().collect()
    }
}
