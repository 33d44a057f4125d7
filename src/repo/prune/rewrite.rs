//! Rewrites the index without the packs to remove.
//!
//! Only index files that list such a pack are rewritten. The many small ones that backups leave are merged at the same
//! time, and so are those that list the same pack: an interrupted prune leaves packs in two index files, and old
//! versions of restic could divide the blobs of a pack between two.

use std::collections::{HashMap, HashSet};

use super::plan::{KINDS, Packs, listed_twice};
use crate::repo::index_builder::SourceFile;
use crate::repo::index_file::{IndexFile, PendingIndex};
use crate::repo::pack::PackEntry;
use crate::repo::{BlobKind, Id, Index, Permit, Repository, Result};
use crate::storage::FileKind;

/// The result of rewriting the index.
pub(super) struct Rewritten {
    /// The index files that can now be removed.
    pub(super) old: Vec<Id>,
    /// The index files that were stored.
    pub(super) new: Vec<Id>,
}

/// Stores the remaining parts of the old index files, with one file in memory at a time.
pub(super) fn index(repo: &Repository, index: &Index, packs: &Packs, permit: &Permit) -> Result<Rewritten> {
    let old: Vec<&SourceFile> = packs.old_index_files(index);
    let goes: HashSet<Id> =
        (0u32..).zip(index.pack_ids()).filter(|(number, _)| !packs.stays(*number)).map(|(_, id)| *id).collect();
    let mut united = united(index);
    let (mut pending, mut new) = (PendingIndex::default(), Vec::new());
    for file in &old {
        let content: IndexFile = repo.load_unpacked(FileKind::Index, &file.id)?;
        for pack in content.packs.into_iter().filter(|pack| !goes.contains(&pack.id)) {
            // Taken by the first file that lists the pack.
            let together = united.get_mut(&pack.id).map(std::mem::take);
            let blobs = together.as_ref().map_or(pack.blobs.len(), Vec::len);
            if pending.is_full_with(blobs) {
                new.push(std::mem::take(&mut pending).save(repo, permit)?);
            }
            match together {
                None => pending.add_again(pack),
                Some(blobs) if blobs.is_empty() => {}
                Some(blobs) => pending.add(pack.id, blobs.iter().map(|(kind, entry)| (*kind, entry))),
            }
        }
    }
    if !pending.is_empty() {
        new.push(pending.save(repo, permit)?);
    }
    Ok(Rewritten { old: old.into_iter().map(|file| file.id).collect(), new })
}

/// Returns all blobs of the packs that are listed more than once, in the order in which they lie in the pack.
fn united(index: &Index) -> HashMap<Id, Vec<(BlobKind, PackEntry)>> {
    let is_twice = listed_twice(index);
    let mut found: HashMap<Id, Vec<(BlobKind, PackEntry)>> = HashMap::new();
    if !is_twice.contains(&true) {
        return found;
    }
    for kind in KINDS {
        for entry in index.table(kind).iter().filter(|entry| is_twice[entry.pack as usize]) {
            let raw_length = Some(entry.raw_length).filter(|length| *length != 0);
            let blob = PackEntry { id: entry.id, offset: entry.offset, length: entry.length, raw_length };
            found.entry(index.pack_ids()[entry.pack as usize]).or_default().push((kind, blob));
        }
    }
    found.values_mut().for_each(|blobs| blobs.sort_by_key(|(_, blob)| blob.offset));
    found
}
