//! The index: the location of each blob.
//!
//! In memory: one sorted table for each kind of blob with 50 bytes a blob, and the packs' names apart. In the
//! repository: JSON ([`super::index_file`]). On this host there may be a copy ([`super::cached_index`]), which stays in
//! its file; then only what is newer is in memory.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};

use super::cache_folder::CacheFolder;
use super::cached_index::{CachedIndex, CachedSource};
use super::crypto::{OVERHEAD, SealKey};
use super::index_builder::{AddedFiles, IndexBuilder, SourceFile};
use super::index_table::{IndexEntry, IndexTable};
use super::{BlobKind, Id, Result, pack};

/// Where one blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobLocation {
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
    /// What is not in the tables above.
    base: Option<Arc<IndexBase>>,
    copied: CopiedPart,
}

/// How much of an index is in the copy on this host.
#[derive(Debug, Clone, Copy, Default)]
struct CopiedPart {
    blobs: u64,
    files: usize,
}

/// A copy that most of an index is in.
struct IndexBase {
    copy: CachedIndex,
    /// All of it in memory, when so much was asked for that this is less work, or when the copy turned out damaged.
    whole: OnceLock<Index>,
    reload: ReloadIndex,
}

/// Reads the repository's index files, when a copy of them turned out damaged.
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

/// All of two sorted lists, sorted; what is in both comes once.
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
    /// What index files name.
    pub(super) fn of(files: IndexBuilder) -> Index {
        Index::extended(&Index::default(), files)
    }

    /// What `known` has and what these index files name, which are new.
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

    /// What a copy has, which stays in its file.
    pub(super) fn on_copy(copy: CachedIndex, reload: ReloadIndex) -> Index {
        let source = |file: &CachedSource| SourceFile { id: file.id, packs: Vec::new(), blobs: file.blobs as usize };
        let files = copy.sources().iter().map(source).collect();
        let copied = CopiedPart { blobs: copy.len(), files: copy.sources().len() };
        let base = Some(Arc::new(IndexBase { copy, whole: OnceLock::new(), reload }));
        Index { files, base, copied, ..Index::default() }
    }

    /// What a copy has, all in memory.
    fn in_memory(copy: &CachedIndex) -> io::Result<Index> {
        let table = |kind| -> io::Result<IndexTable> {
            Ok(IndexTable::merged(&[], copy.entries(kind).collect::<io::Result<_>>()?))
        };
        let packs = copy.packs().collect::<io::Result<_>>()?;
        Ok(Index { packs, data: table(BlobKind::Data)?, trees: table(BlobKind::Tree)?, ..Index::default() })
    }

    /// Whether it is worth to copy it again, for the next run to have less to read: much is new, or it is soon done.
    pub(super) fn deserves_copy(&self) -> bool {
        let CopiedPart { blobs, files } = self.copied;
        let (new_blobs, new_files) =
            ((self.len() as u64).saturating_sub(blobs), self.files.len().saturating_sub(files));
        let is_one_copy = !self.has_replacements && self.superseded.is_empty();
        is_one_copy && new_files > 0 && (blobs < 200_000 || new_files >= 32 || new_blobs * 20 > blobs)
    }

    /// Copies it into the cache folder. `sizes` are those of the index files.
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
            // Without an older copy no number changes, and what is sorted stays so.
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

    /// Every place of every blob of a kind, sorted by the blobs' ids; of an index that has no copy for its base.
    pub(super) fn table(&self, kind: BlobKind) -> &[IndexEntry] {
        self.table_of(kind).entries()
    }

    /// Where in the table the places of a blob begin.
    pub(super) fn position(&self, kind: BlobKind, id: &Id) -> Option<usize> {
        self.table_of(kind).position(id)
    }

    pub(super) fn location(&self, entry: &IndexEntry) -> BlobLocation {
        entry.at(self.packs[entry.pack as usize])
    }

    /// Every place of a blob: two backups that ran at once may both have stored it.
    pub(crate) fn locations(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = BlobLocation> + use<'_> {
        let id = *id;
        let newer = self.table_of(kind).places(&id).iter().map(|entry| self.location(entry));
        newer.chain(self.base.iter().flat_map(move |base| base.locations(kind, &id)))
    }

    /// Where a blob is.
    pub fn get(&self, kind: BlobKind, id: &Id) -> Option<BlobLocation> {
        self.locations(kind, id).next()
    }

    /// Whether a blob is known.
    pub fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.position(kind, id).is_some() || self.locations(kind, id).next().is_some()
    }

    /// How many places of blobs are known.
    pub fn len(&self) -> usize {
        let in_copy = self.base.as_ref().map_or(0, |base| base.copy.len() as usize);
        in_copy + self.data.entries().len() + self.trees.entries().len()
    }

    /// What all of them take in their packs.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let tables = [&self.data, &self.trees].into_iter().flat_map(IndexTable::entries);
        let in_copy = self.base.as_ref().map_or(0, |base| base.copy.stored_bytes());
        in_copy + tables.map(|entry| u64::from(entry.length)).sum::<u64>()
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
        let in_copy = self.base.iter().flat_map(|base| {
            let packs = base.copy.packs().collect::<io::Result<Vec<Id>>>();
            packs.unwrap_or_else(|error| base.whole.get_or_init(|| base.reload(&error)).packs.clone())
        });
        self.packs.iter().copied().chain(in_copy)
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
