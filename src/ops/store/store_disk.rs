//! Stores one captured disk in the repository: read, find zeros, hash, look up, compress, encrypt, pack.
//!
//! ```text
//! QEMU ─NBD─▶ reader threads ─▶ bounded queue ─▶ N workers: zero? SHA-256, known?, zstd, AES ─▶ packs ─▶ storage
//!                                                    │
//!                                                    ▼
//!                                    chunk map builder: chunks in order
//! ```
//!
//! A partly dirty chunk is not read by the reader threads. A worker reads the part of it that it needs: if the parent
//! has the chunk in pieces ([`Pieces`]), only the dirty ones.
//!
//! Memory is bounded by the queue (8 MiB) and the packs being written. The chunk map takes 32 bytes for each chunk that
//! is not zero, unless the parent has it at the same place, and 32 bytes for each piece.

use super::audit;
use super::chunk_map_builder::{Assembled, ChunkMapBuilder, RunKind, SlotRun};
use super::lost_chunks::{CleanPart, cut};
use super::task::{Base, DiskTask, StoreOutcome, check_size};
use crate::failpoint::{self, Failpoint};
use crate::helper_thread;
use crate::nbd::{self, DiskReader, ReadOptions};
use crate::ops::chunk_map::{Geometry, MappedChunk, ZERO_BLOB_BYTES, is_zero};
use crate::ops::pieces::{self, PIECE_BYTES, Pieces};
use crate::ops::{Error, Progress, Result, Stop};
use crate::repo::{self, BlobKind, Id, Writer};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The maximum amount of data, over all machines, that is being read or waits for a worker.
const IN_FLIGHT_BYTES: usize = 8 << 20;

pub(crate) fn store_disk(
    task: &DiskTask,
    writer: &Writer,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<StoreOutcome> {
    let skips = task.base.filter(|base| !base.read_all);
    let options = ReadOptions {
        chunk_bytes: task.chunk_bytes,
        in_flight: (task.parallelism.share(IN_FLIGHT_BYTES) / task.chunk_bytes as usize).max(2),
        bitmap_context: skips.map(|base| base.bitmap.to_owned()),
        piece_bytes: skips.map(|_| PIECE_BYTES),
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
    let known_split = task.earlier.map_or(0, |map| map.split_chunks().len() as u64);
    let may_split =
        AtomicU64::new(pieces::most_chunks(geometry.chunks(), geometry.chunk_bytes).saturating_sub(known_split));
    std::thread::scope(|scope| {
        for _ in 0..task.parallelism.threads {
            helper_thread::start(scope, || {
                let assembler = &assembler;
                let worker =
                    StoreWorker { task, skips, geometry, writer, progress, assembler, may_split: &may_split, stop };
                let next = || locked(&source).as_mut().and_then(Iterator::next);
                if let Err(error) = worker.run(next) {
                    locked(&failed).get_or_insert(error);
                    // This ends the other workers.
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
    /// How many more chunks may be stored in pieces.
    may_split: &'a AtomicU64,
    stop: &'a Stop,
}

impl StoreWorker<'_, '_> {
    /// Processes chunks until there are no more.
    fn run(&self, next: impl Fn() -> Option<nbd::Result<nbd::Chunk>>) -> Result<()> {
        let mut second_look = audit::ChunkReader::new(self.task, self.geometry, self.stop);
        while let Some(chunk) = next() {
            self.stop.check()?;
            match chunk.map_err(Error::disk(self.task.disk))? {
                nbd::Chunk::Zero { first, count } => {
                    self.add(SlotRun::new(first, count, RunKind::Chunk(MappedChunk::Zero)))
                }
                nbd::Chunk::Data { index, bytes, .. } => {
                    self.task.keep_pace(bytes.len(), self.stop);
                    self.store(index, &bytes)?;
                }
                nbd::Chunk::Mixed { index, dirty, clean_zeros } => {
                    self.store_mixed(index, (dirty, clean_zeros), &mut second_look)?;
                }
                nbd::Chunk::Clean { first, count, zero } => {
                    let known = self.skips.map_or(0, |base| base.comparable(self.geometry));
                    let same = known.saturating_sub(first).min(count);
                    // Chunks that are zero now are not read. If the parent had data there, the chunk map builder
                    // detects it.
                    let lost = self.skips.filter(|_| !zero).map_or(&[][..], |base| base.lost);
                    for part in cut(first, same, lost) {
                        match part {
                            CleanPart::Known(first, count) => {
                                self.add(SlotRun::new(first, count, RunKind::Clean { zero }));
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
                        rest if zero => self.add(SlotRun::new(first + same, rest, RunKind::Chunk(MappedChunk::Zero))),
                        // The disk grew. Chunks that the parent did not have are new, whatever the bitmap says.
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

    /// Stores a chunk that was read. It is stored in pieces if it was before and few of them changed.
    fn store(&self, index: u64, bytes: &[u8]) -> Result<()> {
        let earlier = self.task.earlier.and_then(|map| map.pieces(index));
        if let Some(earlier) = earlier.filter(|_| !is_zero(bytes)) {
            let now = Pieces::of(bytes);
            let (total, same) = (now.ids().len(), now.ids().iter().zip(earlier.ids()).filter(|(a, b)| a == b).count());
            if pieces::are_worth_it(total as u64, (total - same) as u64) {
                return self.store_pieces(index, bytes);
            }
        }
        self.store_whole(index, bytes)
    }

    /// Stores a partly dirty chunk, given its dirty pieces and its pieces that are clean and zero. If it is stored in
    /// pieces already, only the dirty ones are read and stored.
    fn store_mixed(&self, index: u64, (dirty, clean_zeros): (u64, u64), reader: &mut audit::ChunkReader) -> Result<()> {
        let total = pieces::count(self.geometry.length(index));
        let is_part = pieces::are_worth_it(total, u64::from(dirty.count_ones()));
        let known = self.skips.filter(|base| index < base.comparable(self.geometry));
        let known = known.filter(|base| matches!(cut(index, 1, base.lost)[..], [CleanPart::Known(..)]));
        let Some(base) = known.filter(|_| is_part) else {
            return self.store_whole(index, reader.read(index)?);
        };
        let Some(before) = base.map.pieces(index).filter(|before| before.ids().len() as u64 == total) else {
            let may_split = |left: u64| left.checked_sub(1);
            let bytes = reader.read(index)?;
            return match self.may_split.fetch_update(Ordering::Relaxed, Ordering::Relaxed, may_split) {
                Ok(_) if !is_zero(bytes) => self.store_pieces(index, bytes),
                _ => self.store_whole(index, bytes),
            };
        };
        if !before.are_zero_at(clean_zeros, self.geometry.length(index)) {
            // The bitmap missed a change; this reports it in the same way as for a whole chunk.
            self.add(SlotRun::new(index, 1, RunKind::Clean { zero: true }));
            return Ok(());
        }
        let mut ids = before.ids().to_vec();
        let mut piece = SlotRun::new(index, 1, RunKind::Chunk(MappedChunk::Zero));
        for (number, id) in ids.iter_mut().enumerate().filter(|(number, _)| dirty & (1 << number) != 0) {
            let part = pieces::range(number, self.geometry.length(index) as usize);
            *id = self.put(reader.read_part(index, part)?, &mut piece)?;
        }
        let now = Pieces::new(ids);
        if !now.is_zero() {
            piece.what = RunKind::Split(now);
        }
        self.add_stored(piece);
        Ok(())
    }

    fn store_pieces(&self, index: u64, bytes: &[u8]) -> Result<()> {
        let mut piece = SlotRun::new(index, 1, RunKind::Chunk(MappedChunk::Zero));
        let parts = bytes.chunks(PIECE_BYTES as usize);
        let ids = parts.map(|part| self.put(part, &mut piece)).collect::<Result<_>>()?;
        piece.what = RunKind::Split(Pieces::new(ids));
        self.add_stored(piece);
        Ok(())
    }

    fn store_whole(&self, index: u64, bytes: &[u8]) -> Result<()> {
        let mut piece = SlotRun::new(index, 1, RunKind::Chunk(MappedChunk::Zero));
        if is_zero(bytes) {
            piece.read_bytes = bytes.len() as u64;
        } else {
            piece.what = RunKind::Chunk(MappedChunk::Blob(self.put(bytes, &mut piece)?));
        }
        self.add_stored(piece);
        Ok(())
    }

    fn add_stored(&self, piece: SlotRun) {
        self.add(piece);
        failpoint::hit(Failpoint::FirstChunk);
    }

    /// Stores a blob that was read, and counts it.
    fn put(&self, bytes: &[u8], piece: &mut SlotRun) -> Result<Id> {
        let stored = self.writer.put(BlobKind::Data, bytes)?;
        piece.read_bytes += bytes.len() as u64;
        piece.new_bytes += if stored.new { bytes.len() as u64 } else { 0 };
        piece.stored_bytes += stored.stored_bytes;
        Ok(stored.id)
    }

    fn add(&self, piece: SlotRun) {
        let end = self.geometry.offset(piece.first + piece.count).min(self.geometry.capacity_bytes);
        self.progress.advance(piece.read_bytes);
        self.progress.skip(end.saturating_sub(self.geometry.offset(piece.first)).saturating_sub(piece.read_bytes));
        locked(self.assembler).add(piece);
    }
}

/// Stores the zero blobs. They are in every repository that has a disk, so that a chunk of zeros is always known.
fn store_zero_blobs(writer: &Writer, geometry: Geometry) -> repo::Result<()> {
    let zeros = vec![0; ZERO_BLOB_BYTES as usize];
    writer.put(BlobKind::Data, &zeros)?;
    let tail = geometry.zero_tail_bytes() as usize;
    if tail > 0 {
        writer.put(BlobKind::Data, &zeros[..tail])?;
    }
    Ok(())
}

/// Locks a mutex even if a worker panicked. The panic itself ends the scope.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
