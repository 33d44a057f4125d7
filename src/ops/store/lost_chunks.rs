//! Chunks that the parent point refers to but that no index lists any more, because a pack was lost and a repair
//! removed it from the index.
//!
//! Clean chunks are taken over from the parent without being read. They are looked up in the index together with the
//! parent's list, and unknown ones are read as if they had changed. The new point is then complete. Older points lack
//! data that can no longer be read.

use crate::ops::Result;
use crate::ops::chunk_map::{ChunkMap, MappedChunk};
use crate::ops::locked_repo::RepoView;
use crate::ops::points::OpenPoint;
use crate::record::DamagedPoint;
use crate::repo::{BlobKind, Id, Index, Writer};

/// The number of chunks looked up at once.
const TOGETHER: usize = 1 << 18;

/// Returns the chunks of a map that the repository lacks, as (first, count), ascending.
pub(crate) fn lost_chunks(map: &ChunkMap, writer: &Writer) -> Vec<(u64, u64)> {
    lost_runs(map, |id| writer.has(BlobKind::Data, id), TOGETHER)
}

fn lost_runs(map: &ChunkMap, is_known: impl Fn(&Id) -> bool, together: usize) -> Vec<(u64, u64)> {
    let mut blobs = map.runs().flat_map(|(first, chunk, count)| {
        let (whole, pieces) = match chunk {
            MappedChunk::Blob(id) => (Some(id), None),
            MappedChunk::Split(_) => (None, map.pieces(first)),
            MappedChunk::Zero => (None, None),
        };
        let pieces = pieces.into_iter().flat_map(|pieces| pieces.ids().iter().copied());
        whole.into_iter().chain(pieces).map(move |id| (id, first, count))
    });
    let mut lost = Vec::new();
    loop {
        let mut some: Vec<(Id, u64, u64)> = blobs.by_ref().take(together).collect();
        if some.is_empty() {
            break;
        }
        // An index on disk is sorted, so sorted lookups access neighbours on the same page.
        some.sort_unstable();
        lost.extend(some.iter().filter(|(id, ..)| !is_known(id)).map(|(_, first, count)| (*first, *count)));
    }
    lost.sort_unstable();
    // A chunk that lost several pieces is listed once.
    lost.dedup();
    lost
}

/// A part of a run of clean chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CleanPart {
    /// The repository has these chunks: first, count.
    Known(u64, u64),
    /// These chunks must be read: first, count.
    Lost(u64, u64),
}

/// Splits a run of clean chunks where the repository lacks some.
pub(super) fn cut(first: u64, count: u64, lost: &[(u64, u64)]) -> Vec<CleanPart> {
    let (mut parts, mut next, end) = (Vec::new(), first, first + count);
    let begin = lost.partition_point(|(first, count)| first + count <= next);
    for (lost_first, lost_count) in &lost[begin..] {
        if *lost_first >= end {
            break;
        }
        let (from, to) = ((*lost_first).max(next), (lost_first + lost_count).min(end));
        if from > next {
            parts.push(CleanPart::Known(next, from - next));
        }
        parts.push(CleanPart::Lost(from, to - from));
        next = to;
    }
    if next < end {
        parts.push(CleanPart::Known(next, end - next));
    }
    parts
}

/// Returns the points that lack chunks, as of the moment of `view`, and the affected disks.
pub(crate) fn damaged_points(view: &RepoView) -> Result<Vec<DamagedPoint>> {
    let mut damaged = Vec::new();
    for point in view.points()? {
        let open = match view.point(point) {
            Ok(open) => Some(open),
            Err(crate::ops::Error::Repo(error)) if error.is_unreachable() => return Err((*error).into()),
            // The point is completely unreadable.
            Err(_) => None,
        };
        let disks: Vec<String> = open.iter().flat_map(|open| lacking_disks(open, &view.index)).collect();
        if open.is_none() || !disks.is_empty() {
            damaged.push(DamagedPoint { point: point.id.to_string(), machine: point.machine().to_owned(), disks });
        }
    }
    Ok(damaged)
}

/// The disks of a point with chunks that the index does not list.
fn lacking_disks(point: &OpenPoint, index: &Index) -> Vec<String> {
    let is_known = |id: Id| index.contains(BlobKind::Data, &id);
    let is_whole = |disk: &str| point.blobs_of_disk(disk).is_some_and(|mut blobs| blobs.all(is_known));
    point.manifest.disks.iter().map(|disk| disk.disk.clone()).filter(|disk| !is_whole(disk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use CleanPart::{Known, Lost};

    #[test]
    fn lost_chunks_are_listed_in_order() {
        let mut map = ChunkMap::default();
        let id = |number: u8| Id::hash(&[number]);
        for number in 0..100 {
            map.push(MappedChunk::Blob(id(number)), 2);
            map.push(MappedChunk::Zero, 1);
        }
        let known: Vec<Id> = (0..100).filter(|number| number % 7 != 3).map(id).collect();
        let wanted: Vec<(u64, u64)> = (0..100).filter(|number| number % 7 == 3).map(|number| (number * 3, 2)).collect();
        for together in [1, 9, 1000] {
            assert_eq!(lost_runs(&map, |id| known.contains(id), together), wanted);
        }
    }

    #[test]
    fn clean_run_is_split_at_lost_chunks() {
        assert_eq!(cut(0, 10, &[]), [Known(0, 10)]);
        assert_eq!(cut(0, 10, &[(0, 10)]), [Lost(0, 10)]);
        assert_eq!(
            cut(5, 10, &[(0, 3), (4, 2), (8, 1), (14, 9)]),
            [Lost(5, 1), Known(6, 2), Lost(8, 1), Known(9, 5), Lost(14, 1)]
        );
        assert_eq!(cut(5, 3, &[(8, 2)]), [Known(5, 3)]);
    }
}
