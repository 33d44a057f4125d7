//! One disk of a point, as an NBD export.

use super::super::chunk_map::{ChunkMap, Geometry, MappedChunk};
use super::chunk_cache::{ChunkCache, Unavailable};
use crate::nbd::{Export, Piece, StatusExtent, zero_flags};
use crate::record::Damage;
use crate::repo::Id;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// So many chunks are read ahead of somebody who reads one after the other.
const AHEAD: u64 = 8;

/// So many readers of one disk are distinguished: the connections of `nbdcopy`, say.
const STREAMS: usize = 16;

/// The damage that was met, until somebody takes it to report it.
#[derive(Debug, Default)]
pub(super) struct DamageLog(Mutex<NotedDamage>);

#[derive(Debug, Default)]
struct NotedDamage {
    /// The disks and offsets that were noted.
    places: BTreeSet<(String, u64)>,
    new: Vec<Damage>,
}

impl DamageLog {
    /// Notes damage; each place once.
    fn note(&self, damage: Damage) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (damage.disk.clone().unwrap_or_default(), damage.offset_bytes.unwrap_or_default());
        if log.places.insert(place) {
            log.new.push(damage);
        }
    }

    /// What was noted since the last time.
    pub(super) fn take(&self) -> Vec<Damage> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).new)
    }
}

/// Where the readers of a disk are, so that one that goes on is distinguished from one that jumps.
#[derive(Debug, Default)]
struct Streams {
    chunks: [Option<u64>; STREAMS],
    next: usize,
}

impl Streams {
    /// Whether this chunk follows one that was read last.
    fn goes_on_to(&mut self, chunk: u64) -> bool {
        if self.chunks.contains(&Some(chunk)) {
            return false;
        }
        let before = chunk.checked_sub(1);
        match self.chunks.iter().position(|at| before.is_some() && *at == before) {
            Some(stream) => {
                self.chunks[stream] = Some(chunk);
                true
            }
            None => {
                self.chunks[self.next] = Some(chunk);
                self.next = (self.next + 1) % STREAMS;
                false
            }
        }
    }
}

/// A disk of a point.
pub(super) struct PointDisk {
    /// Its target name.
    pub(super) disk: String,
    pub(super) description: String,
    pub(super) geometry: Geometry,
    runs: Vec<(u64, MappedChunk)>,
    pub(super) cache: Arc<ChunkCache>,
    pub(super) damage: Arc<DamageLog>,
    streams: Mutex<Streams>,
}

impl PointDisk {
    pub(super) fn new(
        disk: &str,
        description: String,
        geometry: Geometry,
        map: &ChunkMap,
        (cache, damage): (&Arc<ChunkCache>, &Arc<DamageLog>),
    ) -> PointDisk {
        PointDisk {
            disk: disk.to_owned(),
            description,
            geometry,
            runs: map.runs().map(|(first, chunk, _)| (first, chunk)).collect(),
            cache: Arc::clone(cache),
            damage: Arc::clone(damage),
            streams: Mutex::default(),
        }
    }

    /// What a chunk is, and where the run of equal ones that it belongs to ends.
    fn run_at(&self, chunk: u64) -> (MappedChunk, u64) {
        let after = self.runs.partition_point(|(first, _)| *first <= chunk);
        let end = self.runs.get(after).map_or(self.geometry.chunks(), |(first, _)| *first);
        let here = after.checked_sub(1).and_then(|at| self.runs.get(at));
        (here.map_or(MappedChunk::Zero, |(_, chunk)| *chunk), end)
    }

    fn end_of_chunk(&self, chunk: u64) -> u64 {
        self.geometry.offset(chunk) + self.geometry.length(chunk)
    }

    fn chunk_of(&self, offset: u64) -> u64 {
        offset / u64::from(self.geometry.chunk_bytes)
    }

    fn read_ahead_of(&self, chunk: u64) {
        if !self.streams.lock().unwrap_or_else(PoisonError::into_inner).goes_on_to(chunk) {
            return;
        }
        let last = (chunk + AHEAD).min(self.geometry.chunks().saturating_sub(1));
        let ids: Vec<Id> = (chunk + 1..=last)
            .filter_map(|ahead| match self.run_at(ahead).0 {
                MappedChunk::Blob(id) => Some(id),
                MappedChunk::Zero => None,
            })
            .collect();
        // Half of them at a time: neighbours in a pack are read together.
        if ids.get(ids.len() / 2).is_some_and(|middle| !self.cache.is_known(middle)) {
            self.cache.read_ahead(ids);
        }
    }

    /// The part of a chunk's bytes that is asked for, or why it cannot be had.
    fn read_chunk(
        &self,
        chunk: u64,
        id: &Id,
        (offset, end): (u64, u64),
        deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let length = self.geometry.length(chunk);
        let read = match self.cache.get(id) {
            Ok(bytes) if bytes.len() as u64 == length => Ok(bytes),
            Ok(_) => Err(Unavailable::Damaged(format!("chunk {} has the wrong length", id.short()).into())),
            Err(why) => Err(why),
        };
        let first = self.geometry.offset(chunk);
        let length_bytes = (end - offset) as u32;
        match read {
            Ok(bytes) => deliver(Piece::Data(&bytes[(offset - first) as usize..(end - first) as usize])),
            Err(Unavailable::Damaged(reason)) => {
                self.damage.note(Damage {
                    disk: Some(self.disk.clone()),
                    offset_bytes: Some(first),
                    length_bytes: Some(length),
                    file: None,
                    error: reason.to_string(),
                });
                deliver(Piece::Unreadable { length_bytes, reason: &reason })
            }
            Err(Unavailable::Unreachable(reason)) => deliver(Piece::Unreadable { length_bytes, reason: &reason }),
            Err(Unavailable::Stopping) => deliver(Piece::Unreadable { length_bytes, reason: "the server is ending" }),
        }
    }
}

impl Export for PointDisk {
    fn size_bytes(&self) -> u64 {
        self.geometry.capacity_bytes
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn read(&self, offset: u64, length: u32, deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()> {
        let (mut at, end) = (offset, offset + u64::from(length));
        while at < end {
            let chunk = self.chunk_of(at);
            match self.run_at(chunk) {
                (MappedChunk::Zero, run_end) => {
                    let until = self.end_of_chunk(run_end - 1).min(end);
                    deliver(Piece::Zeros((until - at) as u32))?;
                    at = until;
                }
                (MappedChunk::Blob(id), _) => {
                    let until = self.end_of_chunk(chunk).min(end);
                    self.read_ahead_of(chunk);
                    self.read_chunk(chunk, &id, (at, until), deliver)?;
                    at = until;
                }
            }
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusExtent> {
        let (mut at, end) = (offset, offset + u64::from(length));
        let mut extents: Vec<StatusExtent> = Vec::new();
        while at < end {
            let (chunk, run_end) = self.run_at(self.chunk_of(at));
            let until = self.end_of_chunk(run_end - 1).min(end);
            let (length, flags) = ((until - at) as u32, zero_flags(chunk == MappedChunk::Zero));
            let is_full = extents.len() == limit;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.length += length,
                _ if is_full => break,
                _ => extents.push(StatusExtent { length, flags }),
            }
            at = until;
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_goes_on_is_distinguished_from_one_that_jumps() {
        let mut streams = Streams::default();
        let seen = [5, 5, 6, 100, 7, 101, 3, 8].map(|chunk| streams.goes_on_to(chunk));
        assert_eq!(seen, [false, false, true, false, true, true, false, true]);
    }

    #[test]
    fn each_place_of_damage_is_reported_once() {
        let log = DamageLog::default();
        let damage = |offset| Damage {
            disk: Some("vda".into()),
            offset_bytes: Some(offset),
            length_bytes: Some(1),
            file: None,
            error: "gone".into(),
        };
        [0, 1, 0].into_iter().for_each(|offset| log.note(damage(offset)));
        assert_eq!(log.take().len(), 2);
        log.note(damage(0));
        assert_eq!(log.take(), []);
    }
}
