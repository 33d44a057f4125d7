//! The index: the location of each blob.
//!
//! In memory there is one sorted table for each kind of blob, with 50 bytes per blob; the names of packs are stored
//! separately. In the repository the index is JSON ([`super::index_file`]). This host may have a copy
//! ([`super::cached_index`]), which is read on demand; then only newer entries are in memory.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};

use super::cache_folder::CacheFolder;
use super::cached_index::{CachedIndex, CachedSource};
use super::crypto::{OVERHEAD, SealKey};
use super::index_builder::{AddedFiles, IndexBuilder, SourceFile};
use super::index_table::{IndexEntry, IndexTable};
use super::{BlobKind, Id, Result, pack};

/// The location of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobLocation {
    pub pack: Id,
    /// The offset in the pack, in bytes.
    pub offset: u32,
    /// The length of the sealed blob, in bytes.
    pub length: u32,
    /// The length of the plaintext, in bytes.
    pub raw_length: u32,
    /// Whether it is compressed.
    pub compressed: bool,
}

/// All blobs in the index files.
#[derive(Debug, Default)]
pub struct Index {
    packs: Vec<Id>,
    data: IndexTable,
    trees: IndexTable,
    files: Vec<SourceFile>,
    superseded: Vec<Id>,
    /// Whether an index file supersedes others, whether or not they exist.
    has_replacements: bool,
    /// Entries that are not in the tables above.
    base: Option<Arc<IndexBase>>,
    copied: CopiedPart,
}

/// The part of an index that is in the copy on this host.
#[derive(Debug, Clone, Copy, Default)]
struct CopiedPart {
    blobs: u64,
    files: usize,
}

/// A copy that contains most of an index.
struct IndexBase {
    copy: CachedIndex,
    /// The whole copy in memory, after so many look-ups that this is cheaper, or the reloaded index if the copy is
    /// damaged.
    whole: OnceLock<Index>,
    reload: ReloadIndex,
}

/// Reads the repository's index files when the copy is damaged.
pub(super) type ReloadIndex = Box<dyn Fn() -> Result<Index> + Send + Sync>;

impl std::fmt::Debug for IndexBase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexBase").field("copy", &self.copy).finish_non_exhaustive()
    }
}

impl IndexBase {
    fn locations(&self, kind: BlobKind, id: &Id) -> Vec<BlobLocation> {
        if self.copy.is_read_often() {
            self.whole.get_or_init(|| Index::in_memory(&self.copy).unwrap_or_else(|error| self.reload(&error)));
        }
        if let Some(whole) = self.whole.get() {
            return whole.locations(kind, id).collect();
        }
        let found = || -> io::Result<Vec<BlobLocation>> {
            let entries = self.copy.places(kind, id)?.into_iter();
            entries.map(|entry| Ok(entry.at(self.copy.pack(entry.pack)?))).collect()
        };
        found().unwrap_or_else(|error| self.whole.get_or_init(|| self.reload(&error)).locations(kind, id).collect())
    }

    fn reload(&self, error: &io::Error) -> Index {
        tracing::warn!("reading the index of the repository again: {error}");
        (self.reload)().unwrap_or_else(|error| {
            tracing::error!("the index cannot be read: {error}");
            Index::default()
        })
    }
}

impl IndexEntry {
    fn at(&self, pack: Id) -> BlobLocation {
        let compressed = self.raw_length != 0;
        BlobLocation {
            pack,
            offset: self.offset,
            length: self.length,
            raw_length: match compressed {
                true => self.raw_length,
                false => self.length - OVERHEAD as u32,
            },
            compressed,
        }
    }
}

fn sorted(mut entries: Vec<IndexEntry>) -> Vec<IndexEntry> {
    entries.sort_unstable();
    entries
}

/// Merges two sorted lists. An entry in both is returned once.
fn merged(
    known: impl Iterator<Item = io::Result<IndexEntry>>,
    new: impl Iterator<Item = IndexEntry>,
) -> impl Iterator<Item = io::Result<IndexEntry>> {
    let (mut known, mut new) = (known.peekable(), new.peekable());
    std::iter::from_fn(move || match (known.peek(), new.peek()) {
        (Some(Ok(one)), Some(other)) if one > other => new.next().map(Ok),
        (Some(Ok(one)), Some(other)) => {
            if one == other {
                new.next();
            }
            known.next()
        }
        (Some(_), _) => known.next(),
        (None, _) => new.next().map(Ok),
    })
}

impl Index {
    /// Returns the index of these index files.
    pub(super) fn of(files: IndexBuilder) -> Index {
        Index::extended(&Index::default(), files)
    }

    /// Extends `known` by these index files, which are new.
    pub(super) fn extended(known: &Index, files: IndexBuilder) -> Index {
        let has_replacements = known.has_replacements || files.has_replacements();
        let AddedFiles { packs, data, trees, files, superseded } = files.finish(&known.packs);
        Index {
            packs,
            data: IndexTable::merged(known.data.entries(), data),
            trees: IndexTable::merged(known.trees.entries(), trees),
            files: [known.files.as_slice(), &files].concat(),
            superseded: [known.superseded.as_slice(), &superseded].concat(),
            has_replacements,
            base: known.base.clone(),
            copied: known.copied,
        }
    }

    /// Returns an index on a copy that is read on demand.
    pub(super) fn on_copy(copy: CachedIndex, reload: ReloadIndex) -> Index {
        let source = |file: &CachedSource| SourceFile { id: file.id, packs: Vec::new(), blobs: file.blobs as usize };
        let files = copy.sources().iter().map(source).collect();
        let copied = CopiedPart { blobs: copy.len(), files: copy.sources().len() };
        let base = Some(Arc::new(IndexBase { copy, whole: OnceLock::new(), reload }));
        Index { files, base, copied, ..Index::default() }
    }

    /// Reads a whole copy into memory.
    fn in_memory(copy: &CachedIndex) -> io::Result<Index> {
        let table = |kind| -> io::Result<IndexTable> {
            Ok(IndexTable::merged(&[], copy.entries(kind).collect::<io::Result<_>>()?))
        };
        let packs = copy.packs().collect::<io::Result<_>>()?;
        Ok(Index { packs, data: table(BlobKind::Data)?, trees: table(BlobKind::Tree)?, ..Index::default() })
    }

    /// Returns whether a new copy is worthwhile, so that the next run has less to read: much is new, or the index is
    /// small.
    pub(super) fn deserves_copy(&self) -> bool {
        let CopiedPart { blobs, files } = self.copied;
        let (new_blobs, new_files) =
            ((self.len() as u64).saturating_sub(blobs), self.files.len().saturating_sub(files));
        let is_one_copy = !self.has_replacements && self.superseded.is_empty();
        is_one_copy && new_files > 0 && (blobs < 200_000 || new_files >= 32 || new_blobs * 20 > blobs)
    }

    /// Writes a copy into the cache folder. `sizes` are those of the index files.
    pub(super) fn copy_to(&mut self, folder: &CacheFolder, key: &SealKey, sizes: &HashMap<Id, u64>) -> io::Result<()> {
        let copy = self.base.as_ref().map(|base| &base.copy);
        let mut packs: Vec<Id> = copy.iter().flat_map(|copy| copy.packs()).collect::<io::Result<_>>()?;
        let mut numbers: HashMap<Id, u32> = packs.iter().copied().zip(0..).collect();
        let new_numbers: Vec<u32> = self
            .packs
            .iter()
            .map(|pack| {
                *numbers.entry(*pack).or_insert_with(|| {
                    packs.push(*pack);
                    packs.len() as u32 - 1
                })
            })
            .collect();
        let entries = |kind| {
            let renumber = |entry: &IndexEntry| IndexEntry { pack: new_numbers[entry.pack as usize], ..*entry };
            let new = self.table_of(kind).entries().iter().map(renumber);
            // Without an older copy the numbers do not change, so the order is kept.
            let new: Box<dyn Iterator<Item = IndexEntry>> = match copy {
                None => Box::new(new),
                Some(_) => Box::new(sorted(new.collect()).into_iter()),
            };
            merged(copy.into_iter().flat_map(move |copy| copy.entries(kind)), new)
        };
        let source = |file: &SourceFile| CachedSource {
            id: file.id,
            size_bytes: sizes.get(&file.id).copied().unwrap_or_default(),
            blobs: file.blobs as u64,
        };
        let sources = self.files.iter().map(source).collect();
        CachedIndex::write(folder, key, sources, &packs, entries(BlobKind::Data), entries(BlobKind::Tree))?;
        self.copied = CopiedPart { blobs: self.len() as u64, files: self.files.len() };
        Ok(())
    }

    fn table_of(&self, kind: BlobKind) -> &IndexTable {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }

    /// Returns every location of every blob of a kind, sorted by id, for an index that is not based on a copy.
    pub(super) fn table(&self, kind: BlobKind) -> &[IndexEntry] {
        self.table_of(kind).entries()
    }

    /// Returns the position of a blob's first location in the table.
    pub(super) fn position(&self, kind: BlobKind, id: &Id) -> Option<usize> {
        self.table_of(kind).position(id)
    }

    pub(super) fn location(&self, entry: &IndexEntry) -> BlobLocation {
        entry.at(self.packs[entry.pack as usize])
    }

    /// Returns every location of a blob: two concurrent backups may both have stored it.
    pub(crate) fn locations(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = BlobLocation> + use<'_> {
        let id = *id;
        let newer = self.table_of(kind).places(&id).iter().map(|entry| self.location(entry));
        newer.chain(self.base.iter().flat_map(move |base| base.locations(kind, &id)))
    }

    /// Returns a location of a blob.
    pub fn get(&self, kind: BlobKind, id: &Id) -> Option<BlobLocation> {
        self.locations(kind, id).next()
    }

    /// Returns whether a blob is in the index.
    pub fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.position(kind, id).is_some() || self.locations(kind, id).next().is_some()
    }

    /// Returns the number of blob locations.
    pub fn len(&self) -> usize {
        let in_copy = self.base.as_ref().map_or(0, |base| base.copy.len() as usize);
        in_copy + self.data.entries().len() + self.trees.entries().len()
    }

    /// Returns the total size of all blobs in their packs.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let tables = [&self.data, &self.trees].into_iter().flat_map(IndexTable::entries);
        let in_copy = self.base.as_ref().map_or(0, |base| base.copy.stored_bytes());
        in_copy + tables.map(|entry| u64::from(entry.length)).sum::<u64>()
    }

    /// Returns whether the index has no locations.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the index files that the index was made of.
    pub(super) fn sources(&self) -> &[SourceFile] {
        &self.files
    }

    /// Returns index files that are superseded by another one but still exist.
    pub(super) fn superseded(&self) -> &[Id] {
        &self.superseded
    }

    /// Returns whether an index file supersedes others, whether or not they exist.
    pub(super) fn has_replacements(&self) -> bool {
        self.has_replacements
    }

    /// Returns the packs, ordered by number.
    pub(super) fn pack_ids(&self) -> &[Id] {
        &self.packs
    }

    /// Returns every pack, in no particular order.
    pub fn packs(&self) -> impl Iterator<Item = Id> + '_ {
        let in_copy = self.base.iter().flat_map(|base| {
            let packs = base.copy.packs().collect::<io::Result<Vec<Id>>>();
            packs.unwrap_or_else(|error| base.whole.get_or_init(|| base.reload(&error)).packs.clone())
        });
        self.packs.iter().copied().chain(in_copy)
    }

    /// Returns every blob of a kind, sorted by id.
    pub fn blobs(&self, kind: BlobKind) -> impl Iterator<Item = (Id, BlobLocation)> + '_ {
        let table = self.table(kind).iter();
        table.map(|entry| (entry.id, self.location(entry)))
    }

    /// Returns every pack with its minimum size in bytes, for its blobs and its header.
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
