//! Blobs that lie in more than one pack: before a copy goes, the one that stays is opened.
//!
//! Which copy stays is decided by what the packs waste, and a pack that is long enough may hold a damaged blob all the
//! same. A blob that can be read before a prune can be read after it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::plan::Packs;
use crate::repo::reader::{self, BlobRequest};
use crate::repo::{BlobKind, Error, Index, Repository, Result};

/// Places in the index: kind and position.
type Places = HashSet<(BlobKind, usize)>;

/// Opens copies and chooses others until every blob of which a copy goes has one that stays and can be opened. `decide`
/// says what becomes of the packs, each time that a choice was changed. Ends early, undone, when `stop` is set.
pub(super) fn keep_whole_copies(
    repo: &Repository,
    index: &Index,
    packs: &mut Packs,
    stop: &AtomicBool,
    mut decide: impl FnMut(&mut Packs),
) -> Result<()> {
    let (mut whole, mut damaged) = (Places::new(), Places::new());
    loop {
        decide(packs);
        let mut doubtful = packs.last_copies(index);
        doubtful.retain(|place| !whole.contains(place));
        if doubtful.is_empty() || stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let opened = open_all(repo, index, &doubtful, stop);
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        for (place, opened) in doubtful.into_iter().zip(opened) {
            match opened {
                Ok(()) => drop(whole.insert(place)),
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => {
                    damaged.insert(place);
                    let (kind, position) = place;
                    tracing::warn!(%error, "another copy of a blob is kept");
                    if !packs.choose_other(index, kind, position, &damaged) {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// Reads and verifies the blobs at these places; the results stand in their order.
fn open_all(repo: &Repository, index: &Index, places: &[(BlobKind, usize)], stop: &AtomicBool) -> Vec<Result<()>> {
    let mut wanted: Vec<(usize, BlobKind, BlobRequest)> = Vec::with_capacity(places.len());
    for (number, (kind, position)) in places.iter().enumerate() {
        let entry = &index.table(*kind)[*position];
        wanted.push((number, *kind, BlobRequest { id: entry.id, location: index.location(entry) }));
    }
    wanted.sort_unstable_by_key(|(_, _, blob)| (blob.location.pack, blob.location.offset));
    let mut blobs = Vec::with_capacity(wanted.len());
    let mut numbers = Vec::with_capacity(wanted.len());
    for (number, kind, blob) in wanted {
        numbers.push((number, kind));
        blobs.push(blob);
    }
    let ranges = reader::ranges(&blobs);
    let results = repo.for_each(&ranges, |range| match stop.load(Ordering::Relaxed) {
        true => Vec::new(),
        false => {
            let kinds: Vec<BlobKind> = numbers[range.clone()].iter().map(|(_, kind)| *kind).collect();
            reader::verify_together(repo, &kinds, &blobs[range.clone()])
        }
    });
    let mut opened: Vec<Result<()>> = places.iter().map(|_| Err(Error::WorkerGone)).collect();
    for (range, results) in ranges.into_iter().zip(results) {
        for ((number, _), result) in numbers[range].iter().zip(results) {
            opened[*number] = result;
        }
    }
    opened
}
