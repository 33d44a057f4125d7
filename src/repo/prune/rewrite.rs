//! Rewrites the index without the packs to remove.
//!
//! Only index files that list such a pack are rewritten. The many small ones that backups leave are merged at the same
//! time.

use std::collections::HashSet;

use super::plan::Packs;
use crate::repo::index_builder::SourceFile;
use crate::repo::index_file::{IndexFile, PendingIndex};
use crate::repo::{Id, Index, Permit, Repository, Result};
use crate::storage::FileKind;

/// Stores the remaining parts of the old index files, with one file in memory at a time. Returns the files that can now
/// be removed.
pub(super) fn index(repo: &Repository, index: &Index, packs: &Packs, permit: &Permit) -> Result<Vec<Id>> {
    let old: Vec<&SourceFile> = packs.old_index_files(index);
    let old_ids: HashSet<Id> = old.iter().map(|file| file.id).collect();
    let new_files = index.sources().iter().filter(|file| !old_ids.contains(&file.id));
    // An interrupted prune leaves packs in two index files: list them only once.
    let mut named: HashSet<Id> =
        new_files.flat_map(|file| &file.packs).map(|number| index.pack_ids()[*number as usize]).collect();
    let goes: HashSet<Id> =
        (0u32..).zip(index.pack_ids()).filter(|(number, _)| !packs.stays(*number)).map(|(_, id)| *id).collect();
    let mut pending = PendingIndex::default();
    for file in &old {
        let content: IndexFile = repo.load_unpacked(FileKind::Index, &file.id)?;
        for pack in content.packs {
            if goes.contains(&pack.id) || !named.insert(pack.id) {
                continue;
            }
            if pending.is_full_with(pack.blobs.len()) {
                std::mem::take(&mut pending).save(repo, permit)?;
            }
            pending.add_again(pack);
        }
    }
    if !pending.is_empty() {
        pending.save(repo, permit)?;
    }
    Ok(old.into_iter().map(|file| file.id).chain(index.superseded().iter().copied()).collect())
}
