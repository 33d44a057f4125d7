//! One captured disk into the repository: read, find zeros, hash, look up, compress, encrypt, pack.
//!
//! ```text
//! QEMU ─NBD─▶ reader threads ─▶ bounded queue ─▶ N workers: zero? SHA-256, known?, zstd, AES ─▶ packs ─▶ storage
//!                                                    │
//!                                                    ▼
//!                                    assembler: chunk map, in order
//! ```
//!
//! Memory is bounded by the queue (some tens of chunks) and the packs in the making; the chunk map takes 40 bytes for
//! each chunk that is not zero.

use super::chunk_map::{Chunk, ChunkMap, Geometry, ZERO_BLOB_BYTES};
use super::{Error, Progress, Result, Stop};
use crate::nbd::{self, DiskReader, NbdUri, ReadOptions};
use crate::repo::{self, BlobKind, Writer};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The size of chunks for a disk that has none from an earlier point.
pub const CHUNK_BYTES: u32 = 1 << 20;

/// What storing one disk came to.
#[derive(Debug, Default)]
pub struct StoredDisk {
    /// The disk's chunks.
    pub map: ChunkMap,
    /// The disk's size as the capture has it.
    pub capacity_bytes: u64,
    /// What was read over NBD.
    pub read_bytes: u64,
    /// What of it was new to the repository.
    pub new_bytes: u64,
    /// What that takes there.
    pub stored_bytes: u64,
}

/// What is to be read of a disk.
#[derive(Debug)]
pub struct DiskTask<'a> {
    /// The disk's target name.
    pub disk: &'a str,
    /// Where it can be read.
    pub uri: &'a NbdUri,
    /// The size of its chunks.
    pub chunk_bytes: u32,
    /// The dirty bitmap that says what changed since `parent`; none reads everything.
    pub bitmap: Option<&'a str>,
    /// The chunks of the parent point, for those that are clean.
    pub parent: Option<&'a ChunkMap>,
}

/// Stores one disk.
pub fn store_disk(task: &DiskTask, writer: &Writer, progress: &dyn Progress, stop: &Stop) -> Result<StoredDisk> {
    let options = ReadOptions {
        chunk_bytes: task.chunk_bytes,
        bitmap_context: task.bitmap.map(str::to_owned),
        stop: stop.flag(),
        ..ReadOptions::default()
    };
    let reader = DiskReader::open(task.uri, options).map_err(Error::disk(task.disk))?;
    let geometry = Geometry { capacity_bytes: reader.size_bytes(), chunk_bytes: task.chunk_bytes };
    store_zero_blobs(writer, geometry)?;

    let source = Mutex::new(Some(reader.chunks()));
    let assembler = Mutex::new(Assembler::new(task.parent));
    let failed = Mutex::new(None);
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let next = || locked(&source).as_mut().and_then(Iterator::next);
                if let Err(error) = work(task, geometry, next, &assembler, writer, progress, stop) {
                    locked(&failed).get_or_insert(error);
                    // The other workers then see the end.
                    *locked(&source) = None;
                }
            });
        }
    });
    stop.check()?;
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let assembler = assembler.into_inner().unwrap_or_else(PoisonError::into_inner);
    assembler.finish(geometry).map_err(|reason| Error::DiskMap { disk: task.disk.to_owned(), reason })
}

/// One worker: takes chunks until there are none.
fn work(
    task: &DiskTask,
    geometry: Geometry,
    next: impl Fn() -> Option<nbd::Result<nbd::Chunk>>,
    assembler: &Mutex<Assembler>,
    writer: &Writer,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<()> {
    while let Some(chunk) = next() {
        stop.check()?;
        let piece = match chunk.map_err(Error::disk(task.disk))? {
            nbd::Chunk::Zero { first, count } => {
                Piece { first, count, what: What::Chunk(Chunk::Zero), ..Piece::default() }
            }
            nbd::Chunk::Clean { first, count, .. } => Piece { first, count, what: What::Clean, ..Piece::default() },
            nbd::Chunk::Data { index, bytes, .. } => {
                let (what, new_bytes, stored_bytes) = if is_zero(&bytes) {
                    (Chunk::Zero, 0, 0)
                } else {
                    let stored = writer.put(BlobKind::Data, &bytes)?;
                    let new_bytes = if stored.new { bytes.len() as u64 } else { 0 };
                    (Chunk::Blob(stored.id), new_bytes, stored.stored_bytes)
                };
                let read_bytes = bytes.len() as u64;
                Piece { first: index, count: 1, what: What::Chunk(what), read_bytes, new_bytes, stored_bytes }
            }
        };
        let end = geometry.offset(piece.first + piece.count).min(geometry.capacity_bytes);
        progress.advance(end.saturating_sub(geometry.offset(piece.first)));
        locked(assembler).add(piece);
    }
    Ok(())
}

/// The zero blobs are in every repository that has a disk, so that a chunk of zeros is always a known chunk.
fn store_zero_blobs(writer: &Writer, geometry: Geometry) -> repo::Result<()> {
    let zeros = vec![0; ZERO_BLOB_BYTES as usize];
    writer.put(BlobKind::Data, &zeros)?;
    let tail = geometry.zero_tail_bytes() as usize;
    if tail > 0 {
        writer.put(BlobKind::Data, &zeros[..tail])?;
    }
    Ok(())
}

/// Whether all bytes are zero. Most data shows that it is not in the first few.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|piece| piece.iter().fold(0, |or, byte| or | byte) == 0)
}

/// Taken over from a worker that panicked as well: the panic itself ends the scope.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Chunk(Chunk),
    /// As in the parent.
    Clean,
}

#[derive(Debug)]
struct Piece {
    first: u64,
    count: u64,
    what: What,
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
}

impl Default for Piece {
    fn default() -> Piece {
        Piece { first: 0, count: 0, what: What::Clean, read_bytes: 0, new_bytes: 0, stored_bytes: 0 }
    }
}

/// Puts the pieces that the workers finish in any order into one map.
#[derive(Debug)]
struct Assembler<'a> {
    stored: StoredDisk,
    next: u64,
    early: BTreeMap<u64, Piece>,
    parent: ParentCursor<'a>,
    gap: Option<String>,
}

impl<'a> Assembler<'a> {
    fn new(parent: Option<&'a ChunkMap>) -> Assembler<'a> {
        Assembler {
            stored: StoredDisk::default(),
            next: 0,
            early: BTreeMap::new(),
            parent: ParentCursor::new(parent),
            gap: None,
        }
    }

    fn add(&mut self, piece: Piece) {
        self.stored.read_bytes += piece.read_bytes;
        self.stored.new_bytes += piece.new_bytes;
        self.stored.stored_bytes += piece.stored_bytes;
        self.early.insert(piece.first, piece);
        while let Some(piece) = self.early.remove(&self.next) {
            match piece.what {
                What::Chunk(chunk) => self.stored.map.push(chunk, piece.count),
                What::Clean => {
                    if let Err(index) = self.parent.copy(piece.first, piece.count, &mut self.stored.map) {
                        self.gap.get_or_insert(format!("chunk {index} is clean and the parent has none such"));
                    }
                }
            }
            self.next += piece.count;
        }
    }

    fn finish(mut self, geometry: Geometry) -> std::result::Result<StoredDisk, String> {
        if let Some(gap) = self.gap {
            return Err(gap);
        }
        if self.next != geometry.chunks() || !self.early.is_empty() {
            return Err(format!("{} of {} chunks came", self.next, geometry.chunks()));
        }
        self.stored.capacity_bytes = geometry.capacity_bytes;
        Ok(self.stored)
    }
}

/// Walks over the parent's chunks, forward only: clean pieces are copied in ascending order.
struct ParentCursor<'a> {
    runs: Box<dyn Iterator<Item = (u64, Chunk, u64)> + Send + 'a>,
    current: Option<(u64, Chunk, u64)>,
}

impl std::fmt::Debug for ParentCursor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParentCursor").field("current", &self.current).finish_non_exhaustive()
    }
}

impl<'a> ParentCursor<'a> {
    fn new(parent: Option<&'a ChunkMap>) -> ParentCursor<'a> {
        match parent {
            Some(map) => ParentCursor { runs: Box::new(map.runs()), current: None },
            None => ParentCursor { runs: Box::new(std::iter::empty()), current: None },
        }
    }

    /// Copies chunks to the end of `map`; the index of the first that the parent does not have is the error.
    fn copy(&mut self, mut first: u64, mut count: u64, map: &mut ChunkMap) -> std::result::Result<(), u64> {
        while count > 0 {
            while self.current.is_none_or(|(start, _, length)| start + length <= first) {
                self.current = Some(self.runs.next().ok_or(first)?);
            }
            let (start, chunk, length) = self.current.ok_or(first)?;
            let part = (start + length - first).min(count);
            map.push(chunk, part);
            first += part;
            count -= part;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Id;

    fn piece(first: u64, count: u64, what: What) -> Piece {
        Piece { first, count, what, ..Piece::default() }
    }

    #[test]
    fn pieces_in_any_order_give_one_map() {
        let blob = |n: u8| Chunk::Blob(Id::hash(&[n]));
        let mut parent = ChunkMap::default();
        parent.push(Chunk::Zero, 3);
        parent.push(blob(1), 1);
        parent.push(blob(2), 4);
        let mut assembler = Assembler::new(Some(&parent));
        assembler.add(piece(6, 2, What::Clean));
        assembler.add(piece(5, 1, What::Chunk(blob(9))));
        assembler.add(piece(2, 3, What::Clean));
        assembler.add(piece(0, 2, What::Chunk(blob(8))));
        let geometry = Geometry { capacity_bytes: 8 << 20, chunk_bytes: 1 << 20 };
        let stored = assembler.finish(geometry).unwrap();
        let mut wanted = ChunkMap::default();
        for (chunk, count) in [(blob(8), 2), (Chunk::Zero, 1), (blob(1), 1), (blob(2), 1), (blob(9), 1), (blob(2), 2)] {
            wanted.push(chunk, count);
        }
        assert_eq!(stored.map, wanted);
    }

    #[test]
    fn a_gap_and_a_short_parent_are_errors() {
        let geometry = Geometry { capacity_bytes: 4 << 20, chunk_bytes: 1 << 20 };
        let mut assembler = Assembler::new(None);
        assembler.add(piece(0, 1, What::Chunk(Chunk::Zero)));
        assembler.add(piece(2, 2, What::Chunk(Chunk::Zero)));
        assert!(assembler.finish(geometry).is_err());
        let mut parent = ChunkMap::default();
        parent.push(Chunk::Zero, 3);
        let mut assembler = Assembler::new(Some(&parent));
        assembler.add(piece(0, 4, What::Clean));
        assert!(assembler.finish(geometry).is_err());
    }

    #[test]
    fn one_bit_is_not_zero() {
        let mut bytes = vec![0; 100_000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        bytes[99_999] = 1;
        assert!(!is_zero(&bytes));
    }
}
