//! The JSON of an index file: packs with the locations of their blobs, at most 50,000 blobs per file.

use serde::{Deserialize, Serialize};

use super::crypto::OVERHEAD;
use super::index_table::IndexEntry;
use super::pack::PackEntry;
use super::{BlobKind, Error, Flaw, Id, Permit, Repository, Result};
use crate::storage::FileKind;

/// The JSON of an index file.
#[derive(Serialize, Deserialize)]
pub(super) struct IndexFile {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) supersedes: Vec<Id>,
    pub(super) packs: Vec<PackJson>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct PackJson {
    pub(super) id: Id,
    pub(super) blobs: Vec<BlobJson>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct BlobJson {
    id: Id,
    #[serde(rename = "type")]
    kind: KindJson,
    offset: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    uncompressed_length: u32,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindJson {
    Data,
    Tree,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl IndexFile {
    /// Reads an index file. An invalid location is damage.
    pub(super) fn load(repo: &Repository, id: &Id) -> Result<IndexFile> {
        repo.load_unpacked::<IndexFile>(FileKind::Index, id)?.check(id)
    }

    /// Returns this file if its locations are valid.
    pub(super) fn check(self, id: &Id) -> Result<IndexFile> {
        match self.packs.iter().flat_map(|pack| &pack.blobs).find(|blob| !blob.makes_sense()) {
            Some(blob) => {
                let reason = format!("the location of blob {} is invalid", blob.id);
                Err(Error::damaged(FileKind::Index, id, Flaw::NotJson(reason)))
            }
            None => Ok(self),
        }
    }
}

impl BlobJson {
    fn makes_sense(&self) -> bool {
        self.offset.checked_add(self.length).is_some() && self.length as usize >= OVERHEAD
    }

    pub(super) fn kind(&self) -> BlobKind {
        match self.kind {
            KindJson::Data => BlobKind::Data,
            KindJson::Tree => BlobKind::Tree,
        }
    }

    /// Returns the entry for the table, in the pack with this number.
    pub(super) fn entry(&self, pack: u32) -> IndexEntry {
        let BlobJson { id, offset, length, uncompressed_length: raw_length, .. } = *self;
        IndexEntry { id, pack, offset, length, raw_length }
    }
}

/// The packs for the next index file.
#[derive(Default)]
pub(super) struct PendingIndex {
    packs: Vec<PackJson>,
    blobs: usize,
}

/// The number of blobs at which restic begins a new index file.
pub(super) const MAX_BLOBS_PER_FILE: usize = 50_000;

impl PendingIndex {
    /// Adds a pack that is durably stored.
    pub(super) fn add<'a>(&mut self, pack: Id, entries: impl Iterator<Item = (BlobKind, &'a PackEntry)>) {
        let blobs = entries.map(|(kind, entry)| BlobJson {
            id: entry.id,
            kind: match kind {
                BlobKind::Data => KindJson::Data,
                BlobKind::Tree => KindJson::Tree,
            },
            offset: entry.offset,
            length: entry.length,
            uncompressed_length: entry.raw_length.unwrap_or(0),
        });
        self.add_again(PackJson { id: pack, blobs: blobs.collect() });
    }

    /// Adds a pack with the entry of another index file.
    pub(super) fn add_again(&mut self, pack: PackJson) {
        self.blobs += pack.blobs.len();
        self.packs.push(pack);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// Returns whether a pack with this many blobs would make the file too large.
    pub(super) fn is_full_with(&self, blobs: usize) -> bool {
        !self.is_empty() && self.blobs + blobs > MAX_BLOBS_PER_FILE
    }

    pub(super) fn save(self, repo: &Repository, permit: &Permit) -> Result<Id> {
        let file = IndexFile { supersedes: Vec::new(), packs: self.packs };
        permit.store(repo, FileKind::Index, &file)
    }
}
