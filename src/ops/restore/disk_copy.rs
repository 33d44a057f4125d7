//! Copies the disks of a point to their targets.

use super::planned::PlannedDisk;
use super::target::TargetDisk;
use crate::helper_thread;
use crate::ops::chunk_map::{ChunkMap, Geometry};
use crate::ops::points::OpenPoint;
use crate::ops::{Error, Monitor, Progress, Result, Stop, threads};
use crate::rate_limiter::RateLimiter;
use crate::record::Damage;
use crate::repo::{Id, Index, Repository, read_blobs};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::thread;

/// The repository and point that the data is read from.
#[derive(Clone, Copy)]
pub(super) struct RestoreSource<'a> {
    pub(super) repo: &'a Repository,
    pub(super) index: &'a Index,
    pub(super) point: &'a OpenPoint,
}

/// The copy of one disk. Every chunk is compared with its SHA-256 before it is written.
pub(super) struct DiskCopy<'a> {
    source: &'a RestoreSource<'a>,
    disk: &'a PlannedDisk,
    monitor: &'a dyn Monitor,
    stop: &'a Stop,
    /// What the progress says.
    verb: &'static str,
    limit: Option<&'a RateLimiter>,
    /// Whether the target may contain chunks already, from a copy that was interrupted.
    is_resumed: bool,
}

/// The id of a blob, its offset and its expected length.
type DiskPlace = (Id, u64, u32);

impl<'a> DiskCopy<'a> {
    pub(super) fn new(
        source: &'a RestoreSource<'a>,
        disk: &'a PlannedDisk,
        monitor: &'a dyn Monitor,
        stop: &'a Stop,
    ) -> DiskCopy<'a> {
        DiskCopy { source, disk, monitor, stop, verb: "restoring", limit: None, is_resumed: false }
    }

    /// For a machine that runs already: limits the speed, and keeps the chunks that the target of an interrupted copy
    /// contains already.
    pub(super) fn live(self, limit: Option<&'a RateLimiter>, is_resumed: bool) -> DiskCopy<'a> {
        DiskCopy { verb: "copying", limit, is_resumed, ..self }
    }

    /// Writes the disk.
    pub(super) fn write(self, target: &TargetDisk) -> Result<()> {
        let progress = self.start(self.verb);
        self.copy(Some(target), &*progress)
    }

    /// Only verifies that the disk is complete.
    pub(super) fn verify(self) -> Result<()> {
        let progress = self.start("verifying");
        self.copy(None, &*progress)
    }

    fn start(&self, verb: &str) -> Box<dyn Progress> {
        let label = format!("{}/{}", self.source.point.manifest.machine, self.disk.disk);
        self.monitor.start(verb, &label, self.disk.capacity_bytes)
    }

    fn copy(&self, target: Option<&TargetDisk>, progress: &dyn Progress) -> Result<()> {
        let RestoreSource { repo, index, point } = self.source;
        let (mut places, zero_bytes) = places(&self.disk.map, self.disk.geometry(), target)?;
        progress.skip(zero_bytes);
        if let Some(target) = target.filter(|_| self.is_resumed) {
            places = self.missing(places, target, progress);
        }
        places.sort_unstable();
        let mut ids: Vec<Id> = places.iter().map(|(id, ..)| *id).collect();
        ids.dedup();

        let trouble = Mutex::new((Vec::new(), None));
        read_blobs(repo, index, ids, threads::for_disks(), &self.stop.flag(), |id, blob| {
            let result = match blob {
                Ok(bytes) => self.write_chunk(&id, bytes, &places, target, progress),
                Err(error) => Ok(self.damage(&id, &error.to_string(), &places)),
            };
            let mut trouble = trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            match result {
                Ok(damage) => trouble.0.extend(damage),
                Err(error) => {
                    trouble.1.get_or_insert(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        self.stop.check()?;
        let (mut damage, error) = trouble.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(error) = error {
            return Err(error);
        }
        if damage.is_empty() {
            return Ok(());
        }
        damage.sort_by_key(|place| place.offset_bytes);
        Err(Error::Damaged { point: point.id.to_string(), damage })
    }

    /// The chunks that the target does not contain yet.
    fn missing(&self, places: Vec<DiskPlace>, target: &TargetDisk, progress: &dyn Progress) -> Vec<DiskPlace> {
        let is_missing = |(id, offset, length): &DiskPlace| {
            let is_there = !self.stop.requested() && target.contains(id, *offset, *length);
            progress.advance(if is_there { u64::from(*length) } else { 0 });
            !is_there
        };
        let part = places.len().div_ceil(threads::for_disks()).max(1);
        thread::scope(|scope| {
            let is_missing = &is_missing;
            let threads: Vec<_> = places
                .chunks(part)
                .map(|part| {
                    let compare = move || part.iter().filter(|place| is_missing(place)).copied().collect::<Vec<_>>();
                    helper_thread::start(scope, compare)
                })
                .collect();
            let parts = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            parts.collect::<Vec<_>>().concat()
        })
    }

    fn write_chunk(
        &self,
        id: &Id,
        bytes: &[u8],
        places: &[DiskPlace],
        target: Option<&TargetDisk>,
        progress: &dyn Progress,
    ) -> Result<Vec<Damage>> {
        if places_of(id, places).any(|(_, length)| length as usize != bytes.len()) {
            return Ok(self.damage(id, &format!("chunk {} has the wrong length", id.short()), places));
        }
        for (offset, _) in places_of(id, places) {
            if let Some(limit) = self.limit {
                limit.acquire_while(bytes.len(), || !self.stop.requested());
                self.stop.check()?;
            }
            if let Some(target) = target {
                target.write(offset, bytes)?;
            }
            progress.advance(bytes.len() as u64);
        }
        Ok(Vec::new())
    }

    fn damage(&self, id: &Id, error: &str, places: &[DiskPlace]) -> Vec<Damage> {
        places_of(id, places)
            .map(|(offset, length)| Damage {
                disk: Some(self.disk.disk.clone()),
                offset_bytes: Some(offset),
                length_bytes: Some(length.into()),
                file: None,
                error: error.to_owned(),
            })
            .collect()
    }
}

/// Returns where each blob is written. Zeros are written immediately; their number of bytes is returned too.
fn places(map: &ChunkMap, geometry: Geometry, target: Option<&TargetDisk>) -> Result<(Vec<DiskPlace>, u64)> {
    let (mut places, mut zero_bytes) = (Vec::new(), 0);
    for run in map.blob_runs(geometry) {
        match run.id {
            Some(id) => places.extend(run.places().map(|(offset, length)| (id, offset, length as u32))),
            None => {
                if let Some(target) = target {
                    target.write_zeros(run.offset, run.length)?;
                }
                zero_bytes += run.length;
            }
        }
    }
    Ok((places, zero_bytes))
}

fn places_of<'a>(id: &'a Id, places: &'a [DiskPlace]) -> impl Iterator<Item = (u64, u32)> + 'a {
    let start = places.partition_point(|(other, ..)| other < id);
    places[start..].iter().take_while(move |(other, ..)| other == id).map(|(_, offset, length)| (*offset, *length))
}
