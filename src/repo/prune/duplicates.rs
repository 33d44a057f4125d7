//! Blobs that are in more than one pack: before a copy is removed, the one that stays is verified.
//!
//! Which copy stays depends on the waste in the packs, but a pack of sufficient size may still contain a damaged blob.
//! A blob that was readable before a prune must be readable after it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::plan::{self, Packs, TablePlace};
use crate::repo::place_set::PlaceSet;
use crate::repo::reader::{self, BlobRequest};
use crate::repo::{BlobKind, Index, Repository, Result};

/// The number of copies that are verified in one batch: 400 bytes each.
const BATCH: usize = 50_000;

/// Verifies copies and chooses others, until every blob that loses a copy keeps one that is readable. `decide` decides
/// about the packs again whenever a choice was changed. Ends early, without a result, when `stop` is set.
pub(super) fn keep_whole_copies(
    repo: &Repository,
    index: &Index,
    packs: &mut Packs,
    stop: &AtomicBool,
    mut decide: impl FnMut(&mut Packs),
) -> Result<()> {
    let (mut whole, mut damaged) = (PlaceSet::new(index), HashSet::new());
    loop {
        decide(packs);
        let mut doubtful = packs.last_copies(index);
        doubtful.retain(|(kind, position)| !whole.contains(*kind, *position));
        if doubtful.is_empty() || stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        plan::sort_as_they_lie(index, &mut doubtful);
        for batch in doubtful.chunks(BATCH) {
            let opened = open_all(repo, index, batch, stop);
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            for ((kind, position), opened) in batch.iter().copied().zip(opened) {
                match opened {
                    Ok(()) => drop(whole.insert(kind, position)),
                    Err(error) if error.is_unreachable() => return Err(error),
                    Err(error) => {
                        damaged.insert((kind, position));
                        tracing::warn!(%error, "another copy of a blob is kept");
                        if !packs.choose_other(index, kind, position, &damaged) {
                            return Err(error);
                        }
                    }
                }
            }
        }
    }
}

/// Reads and verifies the blobs at these places, which are sorted by location. The results are in the same order.
fn open_all(repo: &Repository, index: &Index, places: &[TablePlace], stop: &AtomicBool) -> Vec<Result<()>> {
    let kinds: Vec<BlobKind> = places.iter().map(|(kind, _)| *kind).collect();
    let blobs: Vec<BlobRequest> = places.iter().map(|place| plan::request(index, *place)).collect();
    let ranges = reader::ranges(blobs.iter().map(|blob| blob.location));
    let results = repo.for_each(&ranges, |range| match stop.load(Ordering::Relaxed) {
        true => Vec::new(),
        false => reader::verify_together(repo, &kinds[range.clone()], &blobs[range.clone()]),
    });
    results.into_iter().flatten().collect()
}
