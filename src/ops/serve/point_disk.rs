//! One disk of a point, as an NBD export.

use super::super::chunk_map::{ChunkMap, Geometry};
use super::blob_runs::BlobRuns;
use super::chunk_cache::{ChunkCache, Unavailable};
use crate::nbd::{Export, Piece, StatusExtent, zero_flags};
use crate::record::Damage;
use crate::repo::Id;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// The damage found since it was last taken for reporting.
#[derive(Debug, Default)]
pub(super) struct DamageLog(Mutex<NotedDamage>);

#[derive(Debug, Default)]
struct NotedDamage {
    /// The disks and offsets recorded so far.
    places: BTreeSet<(String, u64)>,
    new: Vec<Damage>,
}

impl DamageLog {
    /// Records damage. Each place is recorded once.
    fn note(&self, damage: Damage) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (damage.disk.clone().unwrap_or_default(), damage.offset_bytes.unwrap_or_default());
        if log.places.insert(place) {
            log.new.push(damage);
        }
    }

    /// Returns the damage recorded since the last call.
    pub(super) fn take(&self) -> Vec<Damage> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).new)
    }
}

/// A disk of a point.
pub(super) struct ServedDisk {
    pub(super) disk: String,
    pub(super) description: String,
    pub(super) geometry: Geometry,
    runs: BlobRuns,
    pub(super) cache: Arc<ChunkCache>,
    pub(super) damage: Arc<DamageLog>,
    /// The number of the disk within the point, for the read-ahead.
    number: usize,
}

impl ServedDisk {
    pub(super) fn new(
        (number, disk): (usize, &str),
        description: String,
        geometry: Geometry,
        map: &ChunkMap,
        (cache, damage): (&Arc<ChunkCache>, &Arc<DamageLog>),
    ) -> ServedDisk {
        ServedDisk {
            disk: disk.to_owned(),
            description,
            geometry,
            runs: BlobRuns::new(map.blob_runs(geometry)),
            cache: Arc::clone(cache),
            damage: Arc::clone(damage),
            number,
        }
    }

    /// Reads ahead the data after a blob if its reader is sequential. Readers that skip zeros count as sequential.
    fn read_ahead_of(&self, (start, end): (u64, u64)) {
        let end = self.runs.next_data(end);
        let Some(ahead_bytes) = self.cache.ahead_of(self.number, (start, end)) else { return };
        let ids = self.runs.blobs_from(end, ahead_bytes);
        // Half of the blobs are requested at a time, because neighbours in a pack are read together.
        if ids.get(ids.len() / 2).is_some_and(|middle| !self.cache.is_known(middle)) {
            self.cache.read_ahead(ids);
        }
    }

    /// Returns the requested part of a blob's bytes, or why it is not available.
    fn read_blob(
        &self,
        id: &Id,
        (first, blob_end): (u64, u64),
        (offset, end): (u64, u64),
        deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let length = blob_end - first;
        let read = match self.cache.get(id) {
            Ok(bytes) if bytes.len() as u64 == length => Ok(bytes),
            Ok(_) => Err(Unavailable::Damaged(format!("chunk {} has the wrong length", id.short()).into())),
            Err(why) => Err(why),
        };
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

impl Export for ServedDisk {
    fn size_bytes(&self) -> u64 {
        self.geometry.capacity_bytes
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn read(&self, offset: u64, length: u32, deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()> {
        let (mut at, end) = (offset, offset + u64::from(length));
        while at < end
            && let Some(run) = self.runs.at(at)
        {
            let Some(id) = run.id else {
                let until = run.end().min(end);
                deliver(Piece::Zeros((until - at) as u32))?;
                at = until;
                continue;
            };
            let start = at - (at - run.offset) % run.blob_bytes;
            let blob = (start, (start + run.blob_bytes).min(run.end()));
            let until = blob.1.min(end);
            self.read_ahead_of(blob);
            self.read_blob(&id, blob, (at, until), deliver)?;
            at = until;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusExtent> {
        let (mut at, end) = (offset, offset + u64::from(length));
        let mut extents: Vec<StatusExtent> = Vec::new();
        while at < end
            && let Some(run) = self.runs.at(at)
        {
            let until = run.end().min(end);
            let (length, flags) = ((until - at) as u32, zero_flags(run.id.is_none()));
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
    fn each_damaged_range_is_reported_once() {
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
