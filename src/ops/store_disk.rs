//! One captured disk into the repository: read, find zeros, hash, look up, compress, encrypt, pack.
//!
//! ```text
//! QEMU ─NBD─▶ reader threads ─▶ bounded queue ─▶ N workers: zero? SHA-256, known?, zstd, AES ─▶ packs ─▶ storage
//!                                                    │
//!                                                    ▼
//!                                    assembler: chunk map, in order
//! ```
//!
//! Memory is bounded by the queue (8 MiB) and the packs in the making; the chunk map takes 40 bytes for
//! each chunk that is not zero.

use super::audit;
use super::chunk_map::{ChunkMap, Geometry, MappedChunk, ZERO_BLOB_BYTES};
use super::chunk_map_builder::{Assembled, ChunkMapBuilder, Piece, RunKind};
use super::lost_chunks::{CleanPart, cut};
use super::{Error, Progress, Result, Stop, threads};
use crate::failpoint::{self, Failpoint};
use crate::nbd::{self, DiskReader, NbdUri, ReadOptions};
use crate::rate_limiter::RateLimiter;
use crate::repo::{self, BlobKind, Writer};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How much of a disk is being read, or waits for a worker.
const IN_FLIGHT_BYTES: usize = 8 << 20;

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
    /// Whether its bitmap said that nothing changed since the parent; false without a bitmap.
    pub is_unchanged: bool,
    /// Chunks that differ from the parent although the bitmap called them clean, as (first, count).
    pub bitmap_mismatches: Vec<(u64, u64)>,
}

/// How storing a disk ended.
#[derive(Debug)]
pub enum StoreOutcome {
    /// It is stored.
    Stored(StoredDisk),
    /// The bitmap cannot be relied on: the disk must be read in full.
    BitmapInvalid {
        /// Why.
        reason: String,
        /// What it was caught lying about: the parent is suspect there.
        bitmap_mismatches: Vec<(u64, u64)>,
    },
}

impl StoreOutcome {
    /// BitmapInvalid, without proof of a lie.
    pub(super) fn untrusted(reason: impl Into<String>) -> StoreOutcome {
        StoreOutcome::BitmapInvalid { reason: reason.into(), bitmap_mismatches: Vec::new() }
    }
}

/// What is to be read of a disk.
#[derive(Debug)]
pub struct DiskTask<'a> {
    /// The disk's target name.
    pub disk: &'a str,
    /// Where it can be read.
    pub uri: &'a NbdUri,
    /// The size that the capture says.
    pub capacity_bytes: u64,
    /// The size of its chunks.
    pub chunk_bytes: u32,
    /// What the disk continues; none reads everything.
    pub base: Option<Base<'a>>,
    /// How fast it may be read.
    pub pace: Option<&'a RateLimiter>,
}

impl DiskTask<'_> {
    /// Waits until so many bytes may be read. What is read ahead is little, so it serves as well just after reading.
    pub(super) fn keep_pace(&self, bytes: usize) {
        if let Some(pace) = self.pace {
            pace.acquire(bytes);
        }
    }
}

/// What a disk continues: the parent's chunks, and the bitmap that says what changed since.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// The meta context of the dirty bitmap.
    pub bitmap: &'a str,
    /// The parent's chunks.
    pub map: &'a ChunkMap,
    /// Chunks of it that the repository has lost, as (first, count), ascending: they are read whatever the bitmap says.
    pub lost: &'a [(u64, u64)],
    /// The size that the disk had then.
    pub capacity_bytes: u64,
    /// The share of clean chunks that is read all the same, and compared.
    pub audit: f64,
    /// Whether everything is read all the same, and compared.
    pub read_all: bool,
}

impl Base<'_> {
    /// How many chunks, from the first, are the same range of the disk then and now: beyond, everything counts as changed.
    pub(super) fn comparable(&self, geometry: Geometry) -> u64 {
        match self.capacity_bytes == geometry.capacity_bytes {
            true => geometry.chunks(),
            false => self.capacity_bytes.min(geometry.capacity_bytes) / u64::from(geometry.chunk_bytes),
        }
    }
}

/// Stores one disk.
pub fn store_disk(task: &DiskTask, writer: &Writer, progress: &dyn Progress, stop: &Stop) -> Result<StoreOutcome> {
    let skips = task.base.filter(|base| !base.read_all);
    let options = ReadOptions {
        chunk_bytes: task.chunk_bytes,
        in_flight: (IN_FLIGHT_BYTES / task.chunk_bytes as usize).max(2),
        bitmap_context: skips.map(|base| base.bitmap.to_owned()),
        stop: stop.flag(),
        ..ReadOptions::default()
    };
    let reader = DiskReader::open(task.uri, options).map_err(Error::disk(task.disk))?;
    check_size(task.disk, reader.size_bytes(), task.capacity_bytes)?;
    if skips.is_some() && !reader.has_bitmap() {
        return Ok(StoreOutcome::untrusted("QEMU does not offer the dirty bitmap"));
    }
    let geometry = Geometry { capacity_bytes: reader.size_bytes(), chunk_bytes: task.chunk_bytes };
    store_zero_blobs(writer, geometry)?;

    let source = Mutex::new(Some(reader.chunks()));
    let assembler = Mutex::new(ChunkMapBuilder::new(geometry, skips));
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads::for_processors() {
            scope.spawn(|| {
                let worker = StoreWorker { task, skips, geometry, writer, progress, assembler: &assembler, stop };
                let next = || locked(&source).as_mut().and_then(Iterator::next);
                if let Err(error) = worker.run(next) {
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
    match (assembler.finish(), task.base) {
        (Assembled::Incomplete(reason), _) => Err(Error::DiskMap { disk: task.disk.to_owned(), reason }),
        (Assembled::Vanished(index), _) => Ok(StoreOutcome::untrusted(format!(
            "data at byte {} was lost without being marked dirty: the disk was shrunk in between",
            geometry.offset(index)
        ))),
        (Assembled::Whole { stored, clean }, Some(base)) if !base.read_all => {
            audit::sample(task, geometry, base.audit, stored, &clean, stop)
        }
        (Assembled::Whole { stored, .. }, Some(base)) => audit::compare_all(task, geometry, base, stored, stop),
        (Assembled::Whole { stored, .. }, None) => Ok(StoreOutcome::Stored(stored)),
    }
}

/// Refuses to read what has another size than the disk that was captured. QEMU and libvirt count in sectors of 512 bytes or
/// not, so that is no difference.
pub fn check_size(disk: &str, offered_bytes: u64, capacity_bytes: u64) -> Result<()> {
    const SECTOR_BYTES: u64 = 512;
    if offered_bytes.div_ceil(SECTOR_BYTES) == capacity_bytes.div_ceil(SECTOR_BYTES) {
        return Ok(());
    }
    let reason = format!("its NBD server offers {offered_bytes} bytes, and {capacity_bytes} bytes were captured");
    Err(Error::DiskMap { disk: disk.to_owned(), reason })
}

/// One thread of the pipeline.
struct StoreWorker<'a, 'base> {
    task: &'a DiskTask<'a>,
    skips: Option<Base<'a>>,
    geometry: Geometry,
    writer: &'a Writer,
    progress: &'a dyn Progress,
    assembler: &'a Mutex<ChunkMapBuilder<'base>>,
    stop: &'a Stop,
}

impl StoreWorker<'_, '_> {
    /// Takes chunks until there are none.
    fn run(&self, next: impl Fn() -> Option<nbd::Result<nbd::Chunk>>) -> Result<()> {
        let mut second_look = audit::ChunkReader::new(self.task, self.geometry, self.stop);
        while let Some(chunk) = next() {
            self.stop.check()?;
            match chunk.map_err(Error::disk(self.task.disk))? {
                nbd::Chunk::Zero { first, count } => {
                    self.add(Piece::new(first, count, RunKind::Chunk(MappedChunk::Zero)))
                }
                nbd::Chunk::Data { index, bytes, .. } => {
                    self.task.keep_pace(bytes.len());
                    self.store(index, &bytes)?;
                }
                nbd::Chunk::Clean { first, count, zero } => {
                    let known = self.skips.map_or(0, |base| base.comparable(self.geometry));
                    let same = known.saturating_sub(first).min(count);
                    // What is zero now is not read: where the parent had data, that is found without.
                    let lost = self.skips.filter(|_| !zero).map_or(&[][..], |base| base.lost);
                    for part in cut(first, same, lost) {
                        match part {
                            CleanPart::Known(first, count) => {
                                self.add(Piece::new(first, count, RunKind::Clean { zero }));
                            }
                            CleanPart::Lost(first, count) => {
                                for index in first..first + count {
                                    self.store(index, second_look.read(index)?)?;
                                }
                            }
                        }
                    }
                    match count - same {
                        0 => {}
                        rest if zero => self.add(Piece::new(first + same, rest, RunKind::Chunk(MappedChunk::Zero))),
                        // The disk grew: what the parent did not have is new, whatever the bitmap says.
                        _ => {
                            for index in first + same..first + count {
                                self.store(index, second_look.read(index)?)?;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn store(&self, index: u64, bytes: &[u8]) -> Result<()> {
        let mut piece = Piece::new(index, 1, RunKind::Chunk(MappedChunk::Zero));
        piece.read_bytes = bytes.len() as u64;
        if !is_zero(bytes) {
            let stored = self.writer.put(BlobKind::Data, bytes)?;
            piece.what = RunKind::Chunk(MappedChunk::Blob(stored.id));
            piece.new_bytes = if stored.new { bytes.len() as u64 } else { 0 };
            piece.stored_bytes = stored.stored_bytes;
        }
        self.add(piece);
        failpoint::hit(Failpoint::FirstChunk);
        Ok(())
    }

    fn add(&self, piece: Piece) {
        let end = self.geometry.offset(piece.first + piece.count).min(self.geometry.capacity_bytes);
        self.progress.advance(end.saturating_sub(self.geometry.offset(piece.first)));
        locked(self.assembler).add(piece);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_is_not_zero() {
        let mut bytes = vec![0; 100_000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        bytes[99_999] = 1;
        assert!(!is_zero(&bytes));
    }

    #[test]
    fn a_server_that_offers_another_size_is_not_read() {
        for (offered, captured) in [(0, 0), (512, 512), (1024, 1000), (1000, 1024)] {
            assert!(check_size("vda", offered, captured).is_ok());
        }
        for (offered, captured) in [(512, 0), (0, 512), (1024, 512), (1 << 60, 1 << 30)] {
            let error = check_size("vda", offered, captured).unwrap_err().to_string();
            assert!(error.contains(&format!("offers {offered} bytes, and {captured} bytes were captured")), "{error}");
        }
    }

    #[test]
    fn a_disk_of_another_size_is_comparable_up_to_the_common_whole_chunks() {
        let map = ChunkMap::default();
        let base =
            |capacity_bytes| Base { bitmap: "", map: &map, lost: &[], capacity_bytes, audit: 0.0, read_all: false };
        let geometry = Geometry { capacity_bytes: (5 << 20) + 512, chunk_bytes: 1 << 20 };
        assert_eq!(base((5 << 20) + 512).comparable(geometry), 6);
        assert_eq!(base(9 << 20).comparable(geometry), 5);
        assert_eq!(base((2 << 20) + 1024).comparable(geometry), 2);
    }
}
