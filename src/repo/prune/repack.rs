//! Copies needed blobs out of packs with much waste.
//!
//! Adjacent blobs are read together, verified, and stored as they are: sealed, without recompression.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::plan::{self, Packs, TablePlace};
use super::{PruneEvent, PruneWatch};
use crate::helper_thread;
use crate::repo::{Error, Index, Permit, Repository, Result, Writer, WriterOptions};
use crate::repo::{reader, reread};
use crate::storage::FileKind;

/// Copies the planned blobs into new packs, and stores their index.
pub(super) fn copy(
    (repo, permit): (&Repository, &Permit),
    index: &Index,
    packs: &Packs,
    watch: PruneWatch,
    stop: &AtomicBool,
) -> Result<()> {
    let wanted = packs.to_copy(index);
    if wanted.is_empty() {
        return Ok(());
    }
    // The writer must not find the blobs in the index, because they are to be stored again.
    let writer = Writer::new(repo, Arc::new(Index::default()), WriterOptions::default(), permit);
    let ranges = reader::ranges(wanted.iter().map(|place| plan::request(index, *place).location));
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || -> Result<()> {
        while !stop.load(Ordering::Relaxed) && !failed.load(Ordering::Relaxed) {
            let Some(range) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return Ok(());
            };
            match copy_range(repo, index, &writer, &wanted[range.clone()]) {
                Ok(bytes) => watch(PruneEvent::Copied { bytes }),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads = repo.storage().parallel().min(ranges.len());
        let helpers: Vec<_> = (1..threads).map(|_| helper_thread::start(scope, work)).collect();
        let own = work();
        let others = helpers.into_iter().map(|helper| helper.join().unwrap_or(Err(Error::WorkerGone)));
        others.fold(own, |result, other| result.and(other))
    })?;
    match stop.load(Ordering::Relaxed) {
        // The copies so far are in no index, and are waste for the next prune.
        true => Ok(()),
        false => writer.finish().map(drop),
    }
}

/// Copies adjacent blobs of one pack, and returns their size.
fn copy_range(repo: &Repository, index: &Index, writer: &Writer, places: &[TablePlace]) -> Result<u64> {
    let (Some(first), Some(last)) = (places.first(), places.last()) else {
        return Ok(0);
    };
    let (first, last) = (plan::request(index, *first), plan::request(index, *last));
    let start = u64::from(first.location.offset);
    let end = u64::from(last.location.offset) + u64::from(last.location.length);
    let pack = first.location.pack.to_string();
    let bytes = reread::read(&**repo.storage(), || {
        Ok(repo.storage().read_range(FileKind::Pack, &pack, start, (end - start) as usize)?)
    })?;
    let (mut plain, mut total_bytes) = (Vec::new(), 0);
    for place in places {
        let (kind, blob) = (place.0, plan::request(index, *place));
        let location = &blob.location;
        let at = (u64::from(location.offset) - start) as usize;
        let sealed = &bytes[at..at + location.length as usize];
        let mut opened = sealed.to_vec();
        let damaged = |flaw| reader::damaged(kind, &blob.id, location, flaw);
        let verified = repo
            .key()
            .open_in_place(&mut opened)
            .map_err(|error| damaged(error.into()))
            .and_then(|opened| reader::verify_blobs(kind, &blob.id, location, opened, &mut plain).map(drop));
        match verified {
            Ok(()) => {
                let raw_length = location.compressed.then_some(location.raw_length);
                writer.put_sealed(kind, blob.id, sealed, raw_length)?;
            }
            // The blob may have been damaged in transit, and another copy of it may be intact.
            Err(_) => {
                let plain = reader::read_blob((repo, index), kind, &blob.id, Some(location))?;
                writer.put(kind, &plain)?;
            }
        }
        total_bytes += u64::from(location.length);
    }
    Ok(total_bytes)
}
