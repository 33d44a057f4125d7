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
use super::chunk_map_builder::{Assembled, ChunkMapBuilder, Piece, RunKind};
use super::lost_chunks::{CleanPart, cut};
use super::task::{Base, DiskTask, StoreOutcome, check_size};
use crate::failpoint::{self, Failpoint};
use crate::nbd::{self, DiskReader, ReadOptions};
use crate::ops::chunk_map::{Geometry, MappedChunk, ZERO_BLOB_BYTES, is_zero};
use crate::ops::{Error, Progress, Result, Stop, threads};
use crate::repo::{self, BlobKind, Writer};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How much of a disk is being read, or waits for a worker.
const IN_FLIGHT_BYTES: usize = 8 << 20;

/// Stores one disk.
pub(crate) fn store_disk(
    task: &DiskTask,
    writer: &Writer,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<StoreOutcome> {
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
                    self.task.keep_pace(bytes.len(), self.stop);
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

/// Taken over from a worker that panicked as well: the panic itself ends the scope.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
