//! Which blob lies where.
//!
//! In memory: one sorted table for each kind of blob with 50 bytes a blob, and the packs' names apart. On disk: JSON,
//! at most 50,000 blobs a file.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::crypto::OVERHEAD;
use super::index_table::{IndexEntry, IndexTable};
use super::pack::{self, PackEntry};
use super::{BlobKind, Error, Flaw, Id, Permit, Repository, Result};
use crate::storage::FileKind;

/// Where one blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobLocation {
    /// In which pack.
    pub pack: Id,
    /// From which byte on.
    pub offset: u32,
    /// How many bytes, sealed.
    pub length: u32,
    /// How many bytes the plaintext has.
    pub raw_length: u32,
    /// Whether it is compressed.
    pub compressed: bool,
}

/// All blobs that the index files name.
#[derive(Debug, Default)]
pub struct Index {
    packs: Vec<Id>,
    data: IndexTable,
    trees: IndexTable,
    files: Vec<SourceFile>,
    superseded: Vec<Id>,
    /// Whether an index file says to replace others, there or not.
    has_replacements: bool,
}

/// An index file, and what of it is in the tables.
#[derive(Debug, Clone)]
pub(super) struct SourceFile {
    pub(super) id: Id,
    /// The numbers of the packs that it names.
    pub(super) packs: Vec<u32>,
    pub(super) blobs: usize,
}

/// The JSON of an index file.
#[derive(Serialize, Deserialize)]
pub(super) struct IndexFile {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    supersedes: Vec<Id>,
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

/// The packs that the next index file will name.
#[derive(Default)]
pub(super) struct PendingIndex {
    packs: Vec<PackJson>,
    blobs: usize,
}

/// restic begins a new index file at this number.
pub(super) const MAX_BLOBS_PER_FILE: usize = 50_000;

impl PendingIndex {
    /// Names a pack that is durable.
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

    /// Names a pack as another index file did.
    pub(super) fn add_again(&mut self, pack: PackJson) {
        self.blobs += pack.blobs.len();
        self.packs.push(pack);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// Whether a pack with this many blobs would make the file too large.
    pub(super) fn is_full_with(&self, blobs: usize) -> bool {
        !self.is_empty() && self.blobs + blobs > MAX_BLOBS_PER_FILE
    }

    pub(super) fn save(self, repo: &Repository, permit: &Permit) -> Result<Id> {
        let file = IndexFile { supersedes: Vec::new(), packs: self.packs };
        permit.store(repo, FileKind::Index, &file)
    }
}

/// One index file, already in the form of the table.
pub(super) struct LoadedFile {
    pub(super) supersedes: Vec<Id>,
    packs: Vec<Id>,
    data: Vec<IndexEntry>,
    trees: Vec<IndexEntry>,
}

impl LoadedFile {
    pub(super) fn load(repo: &Repository, id: &Id) -> Result<Self> {
        LoadedFile::of(repo.load_unpacked(FileKind::Index, id)?, id)
    }

    fn of(file: IndexFile, id: &Id) -> Result<Self> {
        let mut loaded = LoadedFile {
            supersedes: file.supersedes,
            packs: Vec::with_capacity(file.packs.len()),
            data: Vec::new(),
            trees: Vec::new(),
        };
        for pack in file.packs {
            let number = loaded.packs.len() as u32;
            loaded.packs.push(pack.id);
            for blob in pack.blobs {
                let end = blob.offset.checked_add(blob.length);
                if end.is_none() || (blob.length as usize) < OVERHEAD {
                    let reason = format!("the place of blob {} makes no sense", blob.id);
                    return Err(Error::damaged(FileKind::Index, id, Flaw::NotJson(reason)));
                }
                let entry = IndexEntry {
                    id: blob.id,
                    pack: number,
                    offset: blob.offset,
                    length: blob.length,
                    raw_length: blob.uncompressed_length,
                };
                match blob.kind {
                    KindJson::Data => loaded.data.push(entry),
                    KindJson::Tree => loaded.trees.push(entry),
                }
            }
        }
        Ok(loaded)
    }
}

/// Whether this is the JSON of an index file whose places make sense.
#[cfg(any(test, feature = "testing"))]
pub(super) fn is_readable(json: &[u8]) -> bool {
    let id = Id::hash(json);
    let loaded = serde_json::from_slice::<IndexFile>(json).ok().and_then(|file| LoadedFile::of(file, &id).ok());
    loaded.map(|file| Index::of(vec![(id, file)])).is_some()
}

impl Index {
    /// What these index files name, but those that another one says to replace.
    pub(super) fn of(files: Vec<(Id, LoadedFile)>) -> Index {
        let superseded: HashSet<Id> = files.iter().flat_map(|(_, file)| file.supersedes.iter().copied()).collect();
        let (gone, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|(id, _)| superseded.contains(id));
        let mut index = Index::extended(&Index::default(), files);
        index.superseded = gone.into_iter().map(|(id, _)| id).collect();
        index.has_replacements = !superseded.is_empty();
        index
    }

    /// What `known` has and what these index files name, which are new and replace none.
    pub(super) fn extended(known: &Index, files: Vec<(Id, LoadedFile)>) -> Index {
        let total = |part: fn(&LoadedFile) -> &Vec<IndexEntry>| files.iter().map(|(_, file)| part(file).len()).sum();
        let mut packs = known.packs.clone();
        let mut data = Vec::with_capacity(total(|file| &file.data));
        let mut trees = Vec::with_capacity(total(|file| &file.trees));
        let mut sources = known.files.clone();
        let mut numbers: HashMap<Id, u32> = packs.iter().copied().zip(0..).collect();
        for (id, file) in files {
            let of_pack: Vec<u32> = file
                .packs
                .iter()
                .map(|pack| {
                    *numbers.entry(*pack).or_insert_with(|| {
                        packs.push(*pack);
                        packs.len() as u32 - 1
                    })
                })
                .collect();
            let renumber = |mut entry: IndexEntry| {
                entry.pack = of_pack[entry.pack as usize];
                entry
            };
            let blobs = file.data.len() + file.trees.len();
            data.extend(file.data.into_iter().map(renumber));
            trees.extend(file.trees.into_iter().map(renumber));
            sources.push(SourceFile { id, packs: of_pack, blobs });
        }
        Index {
            packs,
            data: IndexTable::merged(known.data.entries(), data),
            trees: IndexTable::merged(known.trees.entries(), trees),
            files: sources,
            superseded: known.superseded.clone(),
            has_replacements: known.has_replacements,
        }
    }

    fn table_of(&self, kind: BlobKind) -> &IndexTable {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }

    /// Every place of every blob of a kind, sorted by the blobs' ids.
    pub(super) fn table(&self, kind: BlobKind) -> &[IndexEntry] {
        self.table_of(kind).entries()
    }

    /// Where in the table the places of a blob begin.
    pub(super) fn position(&self, kind: BlobKind, id: &Id) -> Option<usize> {
        self.table_of(kind).position(id)
    }

    pub(super) fn location(&self, entry: &IndexEntry) -> BlobLocation {
        let compressed = entry.raw_length != 0;
        BlobLocation {
            pack: self.packs[entry.pack as usize],
            offset: entry.offset,
            length: entry.length,
            raw_length: match compressed {
                true => entry.raw_length,
                false => entry.length - OVERHEAD as u32,
            },
            compressed,
        }
    }

    /// Every place of a blob: two backups that ran at once may both have stored it.
    pub(crate) fn locations(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = BlobLocation> + use<'_> {
        self.table_of(kind).places(id).iter().map(|entry| self.location(entry))
    }

    /// Where a blob is.
    pub fn get(&self, kind: BlobKind, id: &Id) -> Option<BlobLocation> {
        self.locations(kind, id).next()
    }

    /// Whether a blob is known.
    pub fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.position(kind, id).is_some()
    }

    /// How many places of blobs are known.
    pub fn len(&self) -> usize {
        self.data.entries().len() + self.trees.entries().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index files that it came from.
    pub(super) fn sources(&self) -> &[SourceFile] {
        &self.files
    }

    /// Index files that another one says to replace, and that are there all the same.
    pub(super) fn superseded(&self) -> &[Id] {
        &self.superseded
    }

    /// Whether an index file says to replace others, there or not.
    pub(super) fn has_replacements(&self) -> bool {
        self.has_replacements
    }

    /// The packs by their numbers.
    pub(super) fn pack_ids(&self) -> &[Id] {
        &self.packs
    }

    /// Every pack, in no order.
    pub fn packs(&self) -> impl Iterator<Item = Id> + '_ {
        self.packs.iter().copied()
    }

    /// Every blob of a kind, sorted by id.
    pub fn blobs(&self, kind: BlobKind) -> impl Iterator<Item = (Id, BlobLocation)> + '_ {
        let table = self.table(kind).iter();
        table.map(|entry| (entry.id, self.location(entry)))
    }

    /// Every pack with the number of bytes that it must have at least for its blobs and its header.
    pub(super) fn pack_sizes(&self) -> Vec<(Id, u64)> {
        #[derive(Clone, Default)]
        struct Sum {
            end: u64,
            blobs: u64,
            compressed: u64,
        }
        let mut sums = vec![Sum::default(); self.packs.len()];
        for entry in self.data.entries().iter().chain(self.trees.entries()) {
            let sum = &mut sums[entry.pack as usize];
            sum.end = sum.end.max(u64::from(entry.offset) + u64::from(entry.length));
            sum.blobs += 1;
            sum.compressed += u64::from(entry.raw_length != 0);
        }
        let sizes = sums.iter().map(|sum| sum.end + pack::header_bytes(sum.blobs, sum.compressed));
        self.packs.iter().copied().zip(sizes).collect()
    }
}
