//! Small immutable parts of a repository in the cache folder: snapshots, and the metadata of points.
//!
//! ```text
//! "kvmb records 1\n"
//! length (4 bytes)   sealed: kind (1 byte), the snapshot's id (32), zstd of the content        for each
//! ```
//!
//! A run appends what it had to read. If a record cannot be unsealed, it and all later ones are ignored, and the file
//! is rewritten. It is also rewritten when most of it belongs to snapshots that no longer exist.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Id;
use super::cache_folder::CacheFolder;
use super::crypto::SealKey;

/// The name of the file.
const NAME: &str = "records";
const MAGIC: &[u8] = b"kvmb records 1\n";
/// The maximum size of the file: the records of some 50,000 points.
const LARGEST_BYTES: usize = 128 << 20;
/// The maximum size of a decompressed record.
const LARGEST_RECORD_BYTES: usize = 1 << 20;
/// The number of records of removed snapshots that is tolerated.
const HARMLESS: usize = 200;

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum RecordKind {
    /// A snapshot file: its size and its contents.
    Snapshot = 1,
    /// Data that the layers above keep for a snapshot.
    Note = 2,
}

/// The records of one repository.
pub(super) struct KeptRecords {
    folder: Arc<CacheFolder>,
    key: SealKey,
    /// `None` until the first access.
    read: Mutex<Option<ReadRecords>>,
}

/// The kind of a record, and the id of its snapshot.
type RecordName = (u8, Id);

#[derive(Default)]
struct ReadRecords {
    /// By kind and snapshot: compressed.
    records: HashMap<RecordName, Vec<u8>>,
    size_bytes: usize,
    /// Whether the file cannot be appended to: it does not exist, or ends in something that is not a record.
    is_unusable: bool,
    unpacker: RecordUnpacker,
}

/// Decompresses records. Allocating its state and buffer takes longer than decompressing a record, and there are two
/// records per point.
#[derive(Default)]
struct RecordUnpacker {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    buffer: Vec<u8>,
}

impl RecordUnpacker {
    fn unpack(&mut self, packed: &[u8]) -> io::Result<Vec<u8>> {
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        self.buffer.clear();
        self.buffer.reserve(LARGEST_RECORD_BYTES);
        zstd.decompress_to_buffer(packed, &mut self.buffer)?;
        Ok(self.buffer.clone())
    }
}

impl std::fmt::Debug for KeptRecords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptRecords").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl KeptRecords {
    pub(super) fn new(folder: Arc<CacheFolder>, key: SealKey) -> KeptRecords {
        KeptRecords { folder, key, read: Mutex::default() }
    }

    /// Returns the record of a snapshot.
    pub(super) fn get(&self, kind: RecordKind, id: &Id) -> Option<Vec<u8>> {
        let mut read = self.lock();
        let ReadRecords { records, unpacker, .. } = self.ensure(&mut read);
        unpacker.unpack(records.get(&(kind as u8, *id))?).ok()
    }

    /// Keeps these records, for this run and the next.
    pub(super) fn add(&self, kind: RecordKind, records: &[(Id, Vec<u8>)]) {
        let mut read = self.lock();
        let known = self.ensure(&mut read);
        let mut new = Vec::new();
        for (id, content) in records {
            if content.len() > LARGEST_RECORD_BYTES || known.size_bytes + new.len() > LARGEST_BYTES {
                continue;
            }
            let Ok(packed) = zstd::bulk::compress(content, 3) else { continue };
            if known.records.insert((kind as u8, *id), packed.clone()).is_none() {
                self.encode(&mut new, (kind as u8, *id), &packed);
            }
        }
        if new.is_empty() {
            return;
        }
        let written = match known.is_unusable {
            true => self.write(known),
            false => self.folder.append(NAME, &new),
        };
        match written {
            Ok(()) => known.size_bytes += new.len(),
            Err(error) => tracing::debug!("cannot write to {}: {error}", self.folder.path().display()),
        }
    }

    /// Removes the records of all other snapshots, if there are many.
    pub(super) fn retain(&self, snapshots: &HashSet<Id>) {
        let mut read = self.lock();
        let known = self.ensure(&mut read);
        let live = known.records.keys().filter(|(_, id)| snapshots.contains(id)).count();
        if known.records.len() - live > live + HARMLESS {
            known.records.retain(|(_, id), _| snapshots.contains(id));
            if let Err(error) = self.write(known) {
                tracing::debug!("cannot write to {}: {error}", self.folder.path().display());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<ReadRecords>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ensure<'a>(&self, read: &'a mut Option<ReadRecords>) -> &'a mut ReadRecords {
        read.get_or_insert_with(|| {
            self.read_file().unwrap_or_else(|error| {
                tracing::debug!("not using {}: {error}", self.folder.path().display());
                ReadRecords { is_unusable: true, ..ReadRecords::default() }
            })
        })
    }

    fn read_file(&self) -> io::Result<ReadRecords> {
        let mut bytes = Vec::new();
        if let Some(file) = self.folder.read(NAME)? {
            file.take(LARGEST_BYTES as u64).read_to_end(&mut bytes)?;
        }
        let mut read = ReadRecords { size_bytes: bytes.len(), ..ReadRecords::default() };
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            read.is_unusable = true;
            return Ok(read);
        };
        let mut rest = rest.to_vec();
        let mut rest = &mut rest[..];
        while !rest.is_empty() {
            let Some((name, packed, after)) = self.decode(rest) else {
                read.is_unusable = true;
                break;
            };
            read.records.insert(name, packed);
            rest = after;
        }
        Ok(read)
    }

    /// Decodes the first record. Returns it with the remaining bytes, or `None` if it cannot be unsealed.
    fn decode<'a>(&self, bytes: &'a mut [u8]) -> Option<(RecordName, Vec<u8>, &'a mut [u8])> {
        let (length, rest) = bytes.split_first_chunk_mut::<4>()?;
        let (sealed, rest) = rest.split_at_mut_checked(u32::from_le_bytes(*length) as usize)?;
        let plain = self.key.open_in_place(sealed).ok()?;
        let (kind, plain) = plain.split_first()?;
        let (id, content) = plain.split_first_chunk::<32>()?;
        Some(((*kind, Id::from_bytes(*id)), content.to_vec(), rest))
    }

    fn encode(&self, bytes: &mut Vec<u8>, (kind, id): RecordName, packed: &[u8]) {
        let plain = [&[kind][..], id.as_bytes(), packed].concat();
        if let Ok(sealed) = self.key.seal(&plain) {
            bytes.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&sealed);
        }
    }

    fn write(&self, known: &mut ReadRecords) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        for (name, packed) in &known.records {
            self.encode(&mut bytes, *name, packed);
        }
        self.folder.write(NAME, |file| file.write_all(&bytes))?;
        (known.size_bytes, known.is_unusable) = (bytes.len(), false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const FILE: &str = "records";

    fn records(base: &Path, key: &SealKey) -> KeptRecords {
        KeptRecords::new(Arc::new(CacheFolder::open(base, Id::hash(b"repository")).unwrap()), key.clone())
    }

    fn id(number: u32) -> Id {
        Id::hash(&number.to_le_bytes())
    }

    fn known(records: &KeptRecords, count: u32) -> Vec<u32> {
        let is_right = |number: &u32| match records.get(RecordKind::Note, &id(*number)) {
            Some(content) => {
                assert_eq!(content, number.to_string().repeat(50).as_bytes());
                true
            }
            None => false,
        };
        (0..count).filter(is_right).collect()
    }

    fn add(records: &KeptRecords, numbers: std::ops::Range<u32>) {
        let content = |number: u32| (id(number), number.to_string().repeat(50).into_bytes());
        records.add(RecordKind::Note, &numbers.map(content).collect::<Vec<_>>());
    }

    #[test]
    fn records_are_kept_for_the_next_run() {
        let (home, key) = (tempfile::tempdir().unwrap(), SealKey::random().unwrap());
        let first = records(home.path(), &key);
        add(&first, 0..3);
        let (second, third) = (records(home.path(), &key), records(home.path(), &key));
        assert_eq!(known(&second, 9), [0, 1, 2]);
        assert_eq!(second.get(RecordKind::Snapshot, &id(1)), None, "it is of another kind");
        add(&second, 2..5);
        add(&third, 5..7);
        assert_eq!(known(&records(home.path(), &key), 9), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn damaged_and_foreign_records_are_ignored_and_replaced() {
        let (home, key) = (tempfile::tempdir().unwrap(), SealKey::random().unwrap());
        add(&records(home.path(), &key), 0..6);
        let folder = CacheFolder::open(home.path(), Id::hash(b"repository")).unwrap();
        let path = folder.path().join(FILE);
        let good = fs::read(&path).unwrap();
        let mut harmed: Vec<Vec<u8>> = (0..good.len()).step_by(7).map(|end| good[..end].to_vec()).collect();
        harmed.extend((0..good.len()).step_by(5).map(|at| {
            let mut flipped = good.clone();
            flipped[at] ^= 8;
            flipped
        }));
        for bytes in harmed {
            fs::write(&path, &bytes).unwrap();
            let some = records(home.path(), &key);
            let before = known(&some, 9);
            assert!(before.len() < 6, "all of them were believed");
            add(&some, 6..9);
            let after = known(&records(home.path(), &key), 9);
            assert_eq!(after, before.into_iter().chain([6, 7, 8]).collect::<Vec<_>>());
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(known(&records(home.path(), &SealKey::random().unwrap()), 9), [0; 0]);
    }

    #[test]
    fn records_of_removed_snapshots_are_dropped_once_they_prevail() {
        let (home, key) = (tempfile::tempdir().unwrap(), SealKey::random().unwrap());
        let some = records(home.path(), &key);
        add(&some, 0..300);
        let live: HashSet<Id> = (0..60).map(id).collect();
        some.retain(&live);
        assert_eq!(known(&some, 300).len(), 300, "it is not much");
        let live: HashSet<Id> = (0..40).map(id).collect();
        some.retain(&live);
        assert_eq!(known(&some, 300).len(), 40);
        assert_eq!(known(&records(home.path(), &key), 300).len(), 40);
        add(&some, 300..302);
        assert_eq!(known(&records(home.path(), &key), 302).len(), 42);
    }
}
