//! Chunks that the parent point names and that no index knows any more: a pack was lost, and a repair took it out of
//! the index.
//!
//! A clean chunk is taken over from the parent unread, so it is looked up when the parent's list is: one that is
//! unknown is read as if it had changed. The new point is whole then. The older points lack what nobody can read again.

use crate::ops::Result;
use crate::ops::chunk_map::{ChunkMap, MappedChunk};
use crate::ops::locked_repo::RepoView;
use crate::ops::points::{OpenPoint, disk_file};
use crate::record::DamagedPoint;
use crate::repo::{BlobKind, Index, Writer};

/// The chunks of a map that the repository does not have, as (first, count), ascending.
pub(crate) fn lost_chunks(map: &ChunkMap, writer: &Writer) -> Vec<(u64, u64)> {
    let is_lost = |chunk: &MappedChunk| match chunk {
        MappedChunk::Blob(id) => !writer.has(BlobKind::Data, id),
        MappedChunk::Zero => false,
    };
    map.runs().filter(|(_, chunk, _)| is_lost(chunk)).map(|(first, _, count)| (first, count)).collect()
}

/// A part of a run of clean chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CleanPart {
    /// The repository has these: first, count.
    Known(u64, u64),
    /// These must be read.
    Lost(u64, u64),
}

/// Cuts a run of clean chunks where the repository lacks some.
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

/// The points that lack chunks, as of the moment that `view` shows, and the disks that the chunks are of.
pub(crate) fn damaged_points(view: &RepoView) -> Result<Vec<DamagedPoint>> {
    let mut damaged = Vec::new();
    for point in view.points()? {
        let open = match view.point(point) {
            Ok(open) => Some(open),
            Err(crate::ops::Error::Repo(error)) if error.is_unreachable() => return Err((*error).into()),
            // Nothing of it can be read.
            Err(_) => None,
        };
        let disks: Vec<String> = open.iter().flat_map(|open| lacking_disks(open, &view.index)).collect();
        if open.is_none() || !disks.is_empty() {
            damaged.push(DamagedPoint { point: point.id.to_string(), machine: point.machine().to_owned(), disks });
        }
    }
    Ok(damaged)
}

/// The disks of a point of which the index does not know every chunk.
fn lacking_disks(point: &OpenPoint, index: &Index) -> Vec<String> {
    let is_whole = |disk: &str| {
        let file = point.files.get(&disk_file(disk));
        file.is_some_and(|(_, content)| content.runs().all(|(id, _)| index.contains(BlobKind::Data, &id)))
    };
    point.manifest.disks.iter().map(|disk| disk.disk.clone()).filter(|disk| !is_whole(disk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use CleanPart::{Known, Lost};

    #[test]
    fn a_clean_run_is_cut_where_chunks_are_lost() {
        assert_eq!(cut(0, 10, &[]), [Known(0, 10)]);
        assert_eq!(cut(0, 10, &[(0, 10)]), [Lost(0, 10)]);
        assert_eq!(
            cut(5, 10, &[(0, 3), (4, 2), (8, 1), (14, 9)]),
            [Lost(5, 1), Known(6, 2), Lost(8, 1), Known(9, 5), Lost(14, 1)]
        );
        assert_eq!(cut(5, 3, &[(8, 2)]), [Known(5, 3)]);
    }
}
