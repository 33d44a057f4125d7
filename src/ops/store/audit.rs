//! Audits the dirty bitmap: chunks that it reports as clean are read and compared with the parent.
//!
//! A `dd` into an image, or a bitmap that was cleared by hand, can only be detected by reading. Therefore every run
//! reads a small random sample of the clean chunks, and some runs read everything.
//!
//! The sample always includes the last clean chunk that is not zero. If a disk was truncated and grown again,
//! everything after some offset is lost. Chunks completely after that offset read as zeros, which the chunk map builder
//! detects, and this chunk is the one that contains the offset.

use super::task::{Base, DiskTask, StoreOutcome, StoredDisk};
use crate::nbd::{ChunkState, Client, ClientOptions, chunk_runs, extents};
use crate::ops::chunk_map::{Geometry, MappedChunk, is_zero};
use crate::ops::pieces::Pieces;
use crate::ops::{Error, Result, Stop};
use crate::repo::Id;
use rand::Rng;
use std::collections::BTreeSet;
use std::ops::Range;

/// Reads single chunks over its own connection, which is opened for the first one.
pub(super) struct ChunkReader<'a> {
    task: &'a DiskTask<'a>,
    geometry: Geometry,
    stop: &'a Stop,
    client: Option<Client>,
    buffer: Vec<u8>,
}

impl<'a> ChunkReader<'a> {
    pub(crate) fn new(task: &'a DiskTask<'a>, geometry: Geometry, stop: &'a Stop) -> ChunkReader<'a> {
        ChunkReader { task, geometry, stop, client: None, buffer: Vec::new() }
    }

    /// Reads a chunk.
    pub(crate) fn read(&mut self, index: u64) -> Result<&[u8]> {
        self.read_part(index, 0..self.geometry.length(index) as usize)
    }

    /// Reads a part of a chunk.
    pub(crate) fn read_part(&mut self, index: u64, part: Range<usize>) -> Result<&[u8]> {
        self.stop.check()?;
        let failed = Error::disk(self.task.disk);
        let client = match &mut self.client {
            Some(client) => client,
            none => {
                let options = ClientOptions { stop: self.stop.flag(), ..ClientOptions::default() };
                none.insert(Client::connect(self.task.uri, &options).map_err(&failed)?)
            }
        };
        self.buffer.resize(part.len(), 0);
        self.task.keep_pace(self.buffer.len(), self.stop);
        client.read(self.geometry.offset(index) + part.start as u64, &mut self.buffer).map_err(&failed)?;
        Ok(&self.buffer)
    }
}

/// Reads a share of the clean chunks again. A difference means that the bitmap cannot be trusted.
pub(super) fn sample(
    task: &DiskTask,
    geometry: Geometry,
    share: f64,
    mut stored: StoredDisk,
    clean: &[(u64, u64)],
    stop: &Stop,
) -> Result<StoreOutcome> {
    let chosen = choose(clean, share);
    let mut reader = ChunkReader::new(task, geometry, stop);
    let mut bitmap_mismatches = Vec::new();
    for (index, expected) in stored.map.at(&chosen) {
        let bytes = reader.read(index)?;
        stored.read_bytes += bytes.len() as u64;
        let is_same = match expected {
            MappedChunk::Zero => is_zero(bytes),
            MappedChunk::Blob(id) => Id::hash(bytes) == id,
            MappedChunk::Split(digest) => Pieces::of(bytes).digest() == digest,
        };
        if !is_same {
            bitmap_mismatches.push((index, 1));
        }
    }
    if bitmap_mismatches.is_empty() {
        return Ok(StoreOutcome::Stored(stored));
    }
    let reason = format!("{} of {} chunks that were marked clean had changed", bitmap_mismatches.len(), chosen.len());
    Ok(StoreOutcome::BitmapInvalid { reason, bitmap_mismatches })
}

/// Selects the chunks to read, ascending: the last one and a random share of all.
fn choose(clean: &[(u64, u64)], share: f64) -> Vec<u64> {
    let total: u64 = clean.iter().map(|(_, count)| count).sum();
    let Some((first, count)) = clean.last() else {
        return Vec::new();
    };
    let mut chosen = BTreeSet::from([first + count - 1]);
    let wanted = (total as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
    let mut random = rand::rng();
    let mut numbers = BTreeSet::new();
    if wanted >= total {
        numbers.extend(0..total);
    }
    while (numbers.len() as u64) < wanted.min(total) {
        numbers.insert(random.random_range(0..total));
    }
    let mut before = 0;
    let mut runs = clean.iter();
    let mut run = runs.next();
    for number in numbers {
        while let Some((_, count)) = run.filter(|(_, count)| before + count <= number) {
            before += count;
            run = runs.next();
        }
        chosen.extend(run.map(|(first, _)| first + number - before));
    }
    chosen.into_iter().collect()
}

/// After everything was read, records the chunks that differ from the parent although the bitmap reports them as clean.
pub(super) fn compare_all(
    task: &DiskTask,
    geometry: Geometry,
    base: Base,
    mut stored: StoredDisk,
    stop: &Stop,
) -> Result<StoreOutcome> {
    let failed = Error::disk(task.disk);
    let options = ClientOptions {
        contexts: vec!["base:allocation".into(), base.bitmap.to_owned()],
        stop: stop.flag(),
        ..ClientOptions::default()
    };
    let mut client = Client::connect(task.uri, &options).map_err(&failed)?;
    if !client.has_context(base.bitmap) {
        return Ok(StoreOutcome::Stored(stored));
    }
    let known = base.comparable(geometry);
    let mut is_unchanged = true;
    for run in chunk_runs(extents(&mut client, Some(base.bitmap)), geometry.capacity_bytes, geometry.chunk_bytes) {
        let run = run.map_err(&failed)?;
        let count = known.saturating_sub(run.first).min(run.count);
        let is_clean = matches!(run.state, ChunkState::Clean { .. });
        is_unchanged &= is_clean && count == run.count;
        if !is_clean || count == 0 {
            continue;
        }
        let range = run.first..run.first + count;
        let found = differences(run.first, base.map.runs_in(range.clone()), stored.map.runs_in(range));
        stored.bitmap_mismatches.extend(found);
    }
    stored.is_unchanged = is_unchanged;
    Ok(StoreOutcome::Stored(stored))
}

/// The differences between two lists of runs, as (first, count).
fn differences(
    first: u64,
    mut then: impl Iterator<Item = (MappedChunk, u64)>,
    mut now: impl Iterator<Item = (MappedChunk, u64)>,
) -> Vec<(u64, u64)> {
    let (mut a, mut b) = (then.next(), now.next());
    let (mut index, mut found) = (first, Vec::<(u64, u64)>::new());
    while let (Some((old, left)), Some((new, right))) = (a, b) {
        let part = left.min(right);
        match found.last_mut() {
            _ if old == new => {}
            Some((first, count)) if *first + *count == index => *count += part,
            _ => found.push((index, part)),
        }
        index += part;
        a = if left > part { Some((old, left - part)) } else { then.next() };
        b = if right > part { Some((new, right - part)) } else { now.next() };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_sample_always_includes_the_last_clean_chunk() {
        assert_eq!(choose(&[(3, 4), (10, 2)], 0.0), [11]);
        assert_eq!(choose(&[], 1.0), [] as [u64; 0]);
        assert_eq!(choose(&[(3, 4), (10, 2)], 1.0), [3, 4, 5, 6, 10, 11]);
        let some = choose(&[(0, 10_000), (20_000, 10_000)], 0.001);
        assert!((20..=21).contains(&some.len()) && some.iter().all(|i| *i < 10_000 || (20_000..30_000).contains(i)));
    }

    #[test]
    fn differences_are_found_by_range() {
        let blob = |n: u8| MappedChunk::Blob(Id::hash(&[n]));
        let then = [(MappedChunk::Zero, 4), (blob(1), 4)];
        let now = [(MappedChunk::Zero, 3), (blob(1), 2), (blob(2), 3)];
        let differences = |first, then: &[_], now: &[_]| differences(first, then.iter().copied(), now.iter().copied());
        assert_eq!(differences(100, &then, &now), [(103, 1), (105, 3)]);
        assert_eq!(differences(0, &then, &then), []);
    }
}
