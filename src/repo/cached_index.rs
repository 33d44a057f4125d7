//! A copy of the index in the cache folder: sorted and divided into pages, which are read on demand.
//!
//! ```text
//! "kvmb index 1\n" …    the first 16 KiB
//! pages                 sealed, 16 KiB each: 340 entries of data blobs …, of trees …, or 510 packs
//! directory             sealed: the index files that were copied, the sizes of the sections, the first id of each page
//! its length            8 bytes
//! ```
//!
//! A page contains the nonce of the copy and its own number, so that it cannot replace another page. It is
//! authenticated when it is read. The copy is valid as long as the repository still lists all the index files that it
//! was made of.
//!
//! Memory: 8 bytes per page, and the few hundred pages that were read last.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::cache_folder::CacheFolder;
use super::crypto::{OVERHEAD, SealKey, fill_random};
use super::index_table::IndexEntry;
use super::{BlobKind, Id};

/// The file's name.
const NAME: &str = "index";
const MAGIC: &[u8] = b"kvmb index 1\n";
const PAGE_BYTES: usize = 16 << 10;
const NONCE_BYTES: usize = 16;
/// The head of a page: the copy's nonce and the page's number.
const PAGE_HEAD_BYTES: usize = NONCE_BYTES + 8;
const ENTRY_BYTES: usize = 48;
const ENTRIES_PER_PAGE: usize = (PAGE_BYTES - OVERHEAD - PAGE_HEAD_BYTES) / ENTRY_BYTES;
const PACK_BYTES: usize = 32;
const PACKS_PER_PAGE: usize = (PAGE_BYTES - OVERHEAD - PAGE_HEAD_BYTES) / PACK_BYTES;
/// The number of cached pages: 8 MiB.
const KEPT_PAGES: usize = 512;
/// The directory of 10 million blobs takes 250 KB.
const LARGEST_DIRECTORY_BYTES: u64 = 64 << 20;

/// An index file that is part of the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CachedSource {
    pub(super) id: Id,
    /// Its size in the repository, to detect a file that was truncated there.
    pub(super) size_bytes: u64,
    /// The number of blobs in it.
    pub(super) blobs: u64,
}

/// A section of the copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Section {
    /// The number of its first page.
    first_page: u64,
    /// The number of its entries.
    entries: u64,
}

/// The directory of the copy.
#[derive(Debug, Default)]
struct Directory {
    nonce: [u8; NONCE_BYTES],
    stored_bytes: u64,
    data: Section,
    trees: Section,
    packs: Section,
    sources: Vec<CachedSource>,
    /// The first bits of the first id of each page of data blobs, followed by those of trees.
    beginnings: Vec<u64>,
}

/// An open copy.
pub(super) struct CachedIndex {
    file: File,
    key: SealKey,
    directory: Directory,
    kept: Mutex<KeptPages>,
    pages_read: AtomicU64,
}

impl std::fmt::Debug for CachedIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedIndex").field("entries", &self.len()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct KeptPages {
    pages: HashMap<u64, Arc<Vec<u8>>>,
    oldest_first: VecDeque<u64>,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the cached index is damaged: {what}"))
}

/// Reads numbers and ids in order.
struct FieldReader<'a>(&'a [u8]);

impl FieldReader<'_> {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| broken("its directory is short"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn number(&mut self) -> io::Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn section(&mut self) -> io::Result<Section> {
        Ok(Section { first_page: self.number()?, entries: self.number()? })
    }
}

impl Section {
    fn pages(self, per_page: usize) -> u64 {
        self.entries.div_ceil(per_page as u64)
    }
}

impl Directory {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.nonce.to_vec();
        let mut add = |number: u64| bytes.extend_from_slice(&number.to_le_bytes());
        add(self.stored_bytes);
        for section in [self.data, self.trees, self.packs] {
            add(section.first_page);
            add(section.entries);
        }
        add(self.sources.len() as u64);
        for beginning in &self.beginnings {
            add(*beginning);
        }
        for source in &self.sources {
            bytes.extend_from_slice(source.id.as_bytes());
            bytes.extend_from_slice(&source.size_bytes.to_le_bytes());
            bytes.extend_from_slice(&source.blobs.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> io::Result<Directory> {
        let mut fields = FieldReader(bytes);
        let mut directory =
            Directory { nonce: fields.bytes()?, stored_bytes: fields.number()?, ..Directory::default() };
        directory.data = fields.section()?;
        directory.trees = fields.section()?;
        directory.packs = fields.section()?;
        let sources = fields.number()?;
        let pages = directory.data.pages(ENTRIES_PER_PAGE) + directory.trees.pages(ENTRIES_PER_PAGE);
        for _ in 0..pages {
            directory.beginnings.push(fields.number()?);
        }
        for _ in 0..sources {
            let id = Id::from_bytes(fields.bytes()?);
            directory.sources.push(CachedSource { id, size_bytes: fields.number()?, blobs: fields.number()? });
        }
        Ok(directory)
    }

    fn section(&self, kind: BlobKind) -> (Section, &[u64]) {
        let (data, trees) = self.beginnings.split_at(self.data.pages(ENTRIES_PER_PAGE) as usize);
        match kind {
            BlobKind::Data => (self.data, data),
            BlobKind::Tree => (self.trees, trees),
        }
    }
}

fn encode(entry: &IndexEntry) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..32].copy_from_slice(entry.id.as_bytes());
    let numbers = [entry.pack, entry.offset, entry.length, entry.raw_length];
    for (place, number) in bytes[32..].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> io::Result<IndexEntry> {
    let mut fields = FieldReader(bytes);
    let id = Id::from_bytes(fields.bytes()?);
    let mut number = || fields.bytes().map(u32::from_le_bytes);
    Ok(IndexEntry { id, pack: number()?, offset: number()?, length: number()?, raw_length: number()? })
}

impl CachedIndex {
    /// Opens the copy. Returns `None` if there is none, and an error if it is damaged or was made with another key.
    pub(super) fn open(folder: &CacheFolder, key: &SealKey) -> io::Result<Option<CachedIndex>> {
        let Some(mut file) = folder.read(NAME)? else { return Ok(None) };
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(broken("it has another form"));
        }
        let size = file.metadata()?.len();
        let end = size.checked_sub(8).ok_or_else(|| broken("it is short"))?;
        let mut length = [0; 8];
        file.read_exact_at(&mut length, end)?;
        let length = u64::from_le_bytes(length);
        let start = end.checked_sub(length).filter(|_| length <= LARGEST_DIRECTORY_BYTES);
        let start = start.ok_or_else(|| broken("its directory is too long"))?;
        let mut sealed = vec![0; length as usize];
        file.read_exact_at(&mut sealed, start)?;
        let plain = key.open_in_place(&mut sealed).map_err(|_| broken("its directory is not authentic"))?;
        let directory = Directory::decode(plain)?;
        let (key, kept) = (key.clone(), Mutex::default());
        Ok(Some(CachedIndex { file, key, directory, kept, pages_read: AtomicU64::new(0) }))
    }

    /// Removes the copy.
    pub(super) fn remove(folder: &CacheFolder) -> io::Result<()> {
        folder.remove(NAME)
    }

    /// Returns the index files that were copied.
    pub(super) fn sources(&self) -> &[CachedSource] {
        &self.directory.sources
    }

    /// Returns the number of blob locations.
    pub(super) fn len(&self) -> u64 {
        self.directory.data.entries + self.directory.trees.entries
    }

    /// Returns the total size of these blobs in their packs.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.directory.stored_bytes
    }

    /// Returns whether single pages were read so often that reading the whole copy would have been cheaper.
    pub(super) fn is_read_often(&self) -> bool {
        self.pages_read.load(Ordering::Relaxed) > 64 + 2 * self.directory.beginnings.len() as u64
    }

    /// Returns every location of a blob.
    pub(super) fn places(&self, kind: BlobKind, id: &Id) -> io::Result<Vec<IndexEntry>> {
        let (section, beginnings) = self.directory.section(kind);
        let first = beginnings.partition_point(|bits| *bits < id.first_bits()).saturating_sub(1);
        let mut found = Vec::new();
        for (number, beginning) in beginnings.iter().enumerate().skip(first) {
            if number > first && *beginning > id.first_bits() {
                break;
            }
            let page = self.page(section.first_page + number as u64)?;
            let entries: &[[u8; ENTRY_BYTES]] = page[PAGE_HEAD_BYTES..].as_chunks().0;
            let wanted = &id.as_bytes()[..];
            let begin = entries.partition_point(|entry| &entry[..32] < wanted);
            for entry in entries[begin..].iter().take_while(|entry| &entry[..32] == wanted) {
                found.push(decode(entry)?);
            }
        }
        Ok(found)
    }

    /// Returns the pack with this number.
    pub(super) fn pack(&self, number: u32) -> io::Result<Id> {
        let (page, position) = (number as usize / PACKS_PER_PAGE, number as usize % PACKS_PER_PAGE);
        let page = self.page(self.directory.packs.first_page + page as u64)?;
        let packs: &[[u8; PACK_BYTES]] = page[PAGE_HEAD_BYTES..].as_chunks().0;
        packs.get(position).map(|id| Id::from_bytes(*id)).ok_or_else(|| broken("a pack is missing"))
    }

    /// Returns all entries of a kind, sorted.
    pub(super) fn entries(&self, kind: BlobKind) -> impl Iterator<Item = io::Result<IndexEntry>> {
        let section = self.directory.section(kind).0;
        self.records::<ENTRY_BYTES>(section, ENTRIES_PER_PAGE).map(|record| decode(&record?))
    }

    /// Returns all packs, ordered by number.
    pub(super) fn packs(&self) -> impl Iterator<Item = io::Result<Id>> {
        self.records::<PACK_BYTES>(self.directory.packs, PACKS_PER_PAGE).map(|record| record.map(Id::from_bytes))
    }

    fn records<const N: usize>(&self, section: Section, per_page: usize) -> impl Iterator<Item = io::Result<[u8; N]>> {
        (0..section.pages(per_page)).flat_map(move |number| {
            let page = self.read_page(section.first_page + number);
            let (records, error) = match page {
                Ok(page) => (page[PAGE_HEAD_BYTES..].as_chunks::<N>().0.to_vec(), None),
                Err(error) => (Vec::new(), Some(error)),
            };
            records.into_iter().map(Ok).chain(error.map(Err))
        })
    }

    fn page(&self, number: u64) -> io::Result<Arc<Vec<u8>>> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = lock().pages.get(&number) {
            return Ok(Arc::clone(page));
        }
        self.pages_read.fetch_add(1, Ordering::Relaxed);
        let page = Arc::new(self.read_page(number)?);
        let mut kept = lock();
        if kept.pages.insert(number, Arc::clone(&page)).is_none() {
            kept.oldest_first.push_back(number);
        }
        if kept.oldest_first.len() > KEPT_PAGES
            && let Some(oldest) = kept.oldest_first.pop_front()
        {
            kept.pages.remove(&oldest);
        }
        Ok(page)
    }

    /// Reads and unseals a page: its head and its entries.
    fn read_page(&self, number: u64) -> io::Result<Vec<u8>> {
        let Directory { nonce, data, trees, packs, .. } = &self.directory;
        let sections = [
            (data, ENTRIES_PER_PAGE, ENTRY_BYTES),
            (trees, ENTRIES_PER_PAGE, ENTRY_BYTES),
            (packs, PACKS_PER_PAGE, PACK_BYTES),
        ];
        let length = sections.into_iter().find_map(|(section, per_page, bytes)| {
            let before = number.checked_sub(section.first_page)?.checked_mul(per_page as u64)?;
            let here = section.entries.checked_sub(before).filter(|here| *here > 0)?.min(per_page as u64);
            Some(here as usize * bytes)
        });
        let length = length.ok_or_else(|| broken("it has no such page"))?;
        let mut sealed = vec![0; length + PAGE_HEAD_BYTES + OVERHEAD];
        self.file.read_exact_at(&mut sealed, (number + 1) * PAGE_BYTES as u64)?;
        let plain = self.key.open_in_place(&mut sealed).map_err(|_| broken("a page is not authentic"))?;
        match plain.starts_with(nonce) && plain[NONCE_BYTES..].starts_with(&number.to_le_bytes()) {
            true => Ok(plain.to_vec()),
            false => Err(broken("a page stands in the wrong place")),
        }
    }

    /// Writes a copy, replacing the existing one.
    pub(super) fn write(
        folder: &CacheFolder,
        key: &SealKey,
        sources: Vec<CachedSource>,
        packs: &[Id],
        data: impl Iterator<Item = io::Result<IndexEntry>>,
        trees: impl Iterator<Item = io::Result<IndexEntry>>,
    ) -> io::Result<()> {
        folder.write(NAME, |file| {
            let mut first = [0; PAGE_BYTES];
            first[..MAGIC.len()].copy_from_slice(MAGIC);
            file.write_all(&first)?;
            let mut directory = Directory { sources, ..Directory::default() };
            fill_random(&mut directory.nonce).map_err(io::Error::other)?;
            let mut writer = PageWriter { file, key, nonce: directory.nonce, next: 0, page: Vec::new() };
            let (mut beginnings, mut stored_bytes) = (Vec::new(), 0);
            let mut table = |entries: &mut dyn Iterator<Item = io::Result<IndexEntry>>| {
                writer.section(ENTRIES_PER_PAGE, entries, |entry, begins_page| {
                    stored_bytes += u64::from(entry.length);
                    if begins_page {
                        beginnings.push(entry.id.first_bits());
                    }
                    encode(entry)
                })
            };
            directory.data = table(&mut { data })?;
            directory.trees = table(&mut { trees })?;
            let mut packs = packs.iter().map(|id| Ok(*id));
            directory.packs = writer.section(PACKS_PER_PAGE, &mut packs, |id, _| *id.as_bytes())?;
            directory.beginnings = beginnings;
            directory.stored_bytes = stored_bytes;
            let sealed = key.seal(&directory.encode()).map_err(io::Error::other)?;
            file.write_all(&sealed)?;
            file.write_all(&(sealed.len() as u64).to_le_bytes())
        })
    }
}

/// Writes pages in sequence.
struct PageWriter<'a, W> {
    file: &'a mut W,
    key: &'a SealKey,
    nonce: [u8; NONCE_BYTES],
    next: u64,
    page: Vec<u8>,
}

impl<W: Write> PageWriter<'_, W> {
    /// Writes all records of a section. The second argument of `encode` says whether the record begins a page.
    fn section<T, const N: usize>(
        &mut self,
        per_page: usize,
        records: &mut dyn Iterator<Item = io::Result<T>>,
        mut encode: impl FnMut(&T, bool) -> [u8; N],
    ) -> io::Result<Section> {
        let mut section = Section { first_page: self.next, entries: 0 };
        for record in records {
            let begins_page = section.entries.is_multiple_of(per_page as u64);
            if begins_page {
                self.flush()?;
            }
            self.page.extend_from_slice(&encode(&record?, begins_page));
            section.entries += 1;
        }
        self.flush()?;
        Ok(section)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.page.is_empty() {
            return Ok(());
        }
        let plain = [&self.nonce[..], &self.next.to_le_bytes(), &self.page].concat();
        let mut sealed = self.key.seal(&plain).map_err(io::Error::other)?;
        sealed.resize(PAGE_BYTES, 0);
        self.file.write_all(&sealed)?;
        self.page.clear();
        self.next += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::index_table::IndexTable;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn cached_index_answers_like_the_table(
            // Many ids with the same first bits, over several pages.
            groups in proptest::collection::vec((any::<u8>(), 1u32..900), 0..5),
            trees in 0u32..3,
            packs in 1u32..1200,
        ) {
            let entry = |(first, number): (u8, u32)| {
                let mut id = [first; 32];
                id[20..24].copy_from_slice(&(number / 2).to_be_bytes());
                let pack = number % packs;
                IndexEntry { id: Id::from_bytes(id), pack, offset: number, length: 100 + number, raw_length: number }
            };
            let data = groups.iter().flat_map(|(first, count)| (0..*count).map(|n| (*first, n)));
            let data = IndexTable::merged(&[], data.map(entry).collect());
            let trees = IndexTable::merged(&[], (0..trees).map(|n| entry((9, n))).collect());
            let packs: Vec<Id> = (0..packs).map(|n| Id::hash(&n.to_le_bytes())).collect();

            let home = tempfile::tempdir().unwrap();
            let folder = CacheFolder::open(home.path(), Id::hash(b"repository")).unwrap();
            let key = SealKey::random().unwrap();
            let sources = vec![CachedSource { id: Id::hash(b"index"), size_bytes: 100, blobs: 7 }];
            let all = |table: &IndexTable| table.entries().iter().map(|entry| Ok(*entry)).collect::<Vec<_>>();
            CachedIndex::write(&folder, &key, sources.clone(), &packs, all(&data).into_iter(), all(&trees).into_iter())
                .unwrap();
            prop_assert!(CachedIndex::open(&folder, &SealKey::random().unwrap()).is_err());

            let copy = CachedIndex::open(&folder, &key).unwrap().unwrap();
            prop_assert_eq!(copy.sources(), &sources[..]);
            for (kind, table) in [(BlobKind::Data, &data), (BlobKind::Tree, &trees)] {
                for entry in table.entries() {
                    prop_assert_eq!(copy.places(kind, &entry.id).unwrap(), table.places(&entry.id));
                }
                for id in (0..=255).map(|first| Id::from_bytes([first; 32])) {
                    prop_assert_eq!(copy.places(kind, &id).unwrap(), table.places(&id));
                }
                prop_assert_eq!(copy.entries(kind).collect::<io::Result<Vec<_>>>().unwrap(), table.entries());
            }
            prop_assert_eq!(copy.packs().collect::<io::Result<Vec<_>>>().unwrap(), &packs[..]);
            for (number, pack) in (0..).zip(&packs) {
                prop_assert_eq!(copy.pack(number).unwrap(), *pack);
            }
            prop_assert!(copy.pack(packs.len() as u32).is_err());
        }
    }
}
