//! A disk as a list of chunks, and its conversion to and from a file's content in a restic tree.
//!
//! ```text
//! capacity 3.25 MiB, chunks of 1 MiB:   | data A | zeros  | zeros  | data B (256 KiB) |
//! chunk map                             | A × 1  | zero × 2        | B × 1            |
//! the file's content in the tree        | A | z | z | z | z | B |          z = the 512 KiB zero blob
//! ```
//!
//! A chunk is stored in one of three ways: as one blob, as several blobs ([`Pieces`]), or, if it is all zeros, as
//! repetitions of the 512 KiB zero blob, which restic recognizes and restores as a hole. The last chunk may be shorter
//! than the others. If it is all zeros, the rest after the whole 512 KiB blobs is a blob of its own.

use super::pieces::{self, PIECE_BYTES, Pieces};
use super::shared_list::SharedList;
use crate::repo::{self, Content, Id};
use std::collections::BTreeMap;
use std::ops::Range;

/// The size of restic's zero blob (its smallest chunk), by which restic detects holes.
pub(crate) const ZERO_BLOB_BYTES: u64 = repo::ZERO_BLOB_BYTES as u64;

/// The content of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MappedChunk {
    Zero,
    /// The blob with this id.
    Blob(Id),
    /// Several blobs, identified by [`Pieces::digest`].
    Split(Id),
}

/// How a disk is split into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The size of the virtual disk.
    pub(crate) capacity_bytes: u64,
    /// The size of every chunk but the last, a multiple of 512 KiB.
    pub(crate) chunk_bytes: u32,
}

impl Geometry {
    /// The number of chunks of the disk.
    pub(crate) fn chunks(self) -> u64 {
        self.capacity_bytes.div_ceil(u64::from(self.chunk_bytes))
    }

    /// The offset of a chunk on the disk.
    pub(crate) fn offset(self, index: u64) -> u64 {
        index * u64::from(self.chunk_bytes)
    }

    /// The length of a chunk. The last one may be shorter.
    pub(crate) fn length(self, index: u64) -> u64 {
        u64::from(self.chunk_bytes).min(self.capacity_bytes - self.offset(index))
    }

    /// The number of whole zero blobs in a zero chunk, and the number of bytes after them.
    fn zero_blobs(self, index: u64) -> (u64, u64) {
        (self.length(index) / ZERO_BLOB_BYTES, self.length(index) % ZERO_BLOB_BYTES)
    }

    /// The length of the shorter zero blob at the end of the disk, needed if the last chunk is zero; 0 if there is
    /// none.
    pub(crate) fn zero_tail_bytes(self) -> u64 {
        self.chunks().checked_sub(1).map_or(0, |last| self.zero_blobs(last).1)
    }
}

/// The ids of the blobs that represent zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ZeroIds {
    /// The 512 KiB zero blob.
    pub(crate) whole: Id,
    /// The shorter zero blob at the end of this disk, if its size requires one.
    pub(crate) tail: Option<Id>,
}

impl ZeroIds {
    pub(crate) fn of(geometry: Geometry) -> ZeroIds {
        let zeros = vec![0; ZERO_BLOB_BYTES as usize];
        let tail = geometry.zero_tail_bytes() as usize;
        ZeroIds { whole: Id::hash(&zeros), tail: (tail > 0).then(|| Id::hash(&zeros[..tail])) }
    }
}

/// Every chunk of a disk, in order. Cheap to clone: parts in common with the parent are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ChunkMap {
    /// The blob of each chunk, or the digest of its pieces; `None` for zeros.
    list: SharedList,
    /// The chunks that are stored in pieces.
    split: BTreeMap<u64, Pieces>,
}

/// A run of equal blobs, or of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobRun {
    /// The offset of the run on the disk.
    pub(crate) offset: u64,
    /// The length of the whole run.
    pub(crate) length: u64,
    /// The length of each blob; the last one of the disk may be shorter.
    pub(crate) blob_bytes: u64,
    /// The blob, or `None` for zeros.
    pub(crate) id: Option<Id>,
}

impl BlobRun {
    /// The offset after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// The offset and length of each blob.
    pub(crate) fn places(self) -> impl Iterator<Item = (u64, u64)> {
        (self.offset..self.end())
            .step_by(self.blob_bytes as usize)
            .map(move |offset| (offset, self.blob_bytes.min(self.end() - offset)))
    }
}

/// The error for content that is not a list of chunks of the given geometry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the content list does not fit a disk of {} chunks: {} were found", wanted, found)]
pub(crate) struct Misfit {
    wanted: u64,
    found: u64,
}

impl ChunkMap {
    /// Appends a chunk that is stored in pieces.
    pub(crate) fn push_split(&mut self, pieces: Pieces) {
        let digest = pieces.digest();
        self.split.insert(self.len(), pieces);
        self.push(MappedChunk::Split(digest), 1);
    }

    /// Appends `count` equal chunks that are not stored in pieces.
    pub(crate) fn push(&mut self, chunk: MappedChunk, count: u64) {
        let entry = match chunk {
            MappedChunk::Zero => None,
            MappedChunk::Blob(id) | MappedChunk::Split(id) => Some(id),
        };
        self.list.push(entry, count);
    }

    /// Appends these chunks of another map. Returns false if that map does not have all of them.
    pub(crate) fn extend_from(&mut self, other: &ChunkMap, range: Range<u64>) -> bool {
        if range.start > range.end || range.end > other.len() {
            return false;
        }
        let here = self.len();
        let split = other.split.range(range.clone());
        self.split.extend(split.map(|(index, pieces)| (index - range.start + here, pieces.clone())));
        self.list.extend_from(&other.list, range);
        true
    }

    /// The number of chunks.
    pub(crate) fn len(&self) -> u64 {
        self.list.len()
    }

    /// The pieces of a chunk, if it is stored in pieces.
    pub(crate) fn pieces(&self, index: u64) -> Option<&Pieces> {
        self.split.get(&index)
    }

    /// The chunks that are stored in pieces, ascending.
    pub(crate) fn split_chunks(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.split.keys().copied()
    }

    /// Runs of equal chunks: the index of the first, the content, the count.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, MappedChunk, u64)> + '_ {
        self.runs_in(0..self.len()).scan(0, |next, (chunk, count)| {
            let first = *next;
            *next += count;
            Some((first, chunk, count))
        })
    }

    /// Runs of equal chunks in `range`, which is cut at the end of the map.
    pub(crate) fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = (MappedChunk, u64)> + '_ {
        let mut next = range.start;
        let mut split = self.split.range(next..).map(|(index, _)| *index).peekable();
        let mut chunks = self
            .list
            .runs_in(range)
            .map(move |(entry, count)| {
                while split.next_if(|index| *index < next).is_some() {}
                let is_split = split.peek() == Some(&next);
                next += count;
                match entry {
                    None => (MappedChunk::Zero, count),
                    Some(id) if is_split => (MappedChunk::Split(id), count),
                    Some(id) => (MappedChunk::Blob(id), count),
                }
            })
            .peekable();
        std::iter::from_fn(move || {
            let (chunk, mut count) = chunks.next()?;
            while let Some((_, more)) = chunks.next_if(|(next, _)| *next == chunk) {
                count += more;
            }
            Some((chunk, count))
        })
    }

    /// Runs of equal blobs in order, covering the whole disk.
    pub(crate) fn blob_runs(&self, geometry: Geometry) -> impl Iterator<Item = BlobRun> + '_ {
        self.runs().flat_map(move |(first, chunk, count)| {
            let (offset, end) = (geometry.offset(first), geometry.offset(first + count).min(geometry.capacity_bytes));
            let one = |id| BlobRun { offset, length: end - offset, blob_bytes: geometry.chunk_bytes.into(), id };
            match chunk {
                MappedChunk::Zero => vec![one(None)],
                MappedChunk::Blob(id) => vec![one(Some(id))],
                MappedChunk::Split(_) => (first..first + count)
                    .filter_map(|index| Some((index, self.pieces(index)?)))
                    .flat_map(|(index, pieces)| split_runs(geometry, index, pieces))
                    .collect(),
            }
        })
    }

    /// The chunks at these indices, which must be ascending.
    pub(crate) fn at(&self, indices: &[u64]) -> Vec<(u64, MappedChunk)> {
        let chunk = |index: u64| Some((index, self.runs_in(index..index + 1).next()?.0));
        indices.iter().filter_map(|index| chunk(*index)).collect()
    }

    /// The blobs of the file for its tree, each with its number of consecutive repetitions.
    pub(crate) fn blobs(&self, geometry: Geometry, zeros: ZeroIds) -> impl Iterator<Item = (Id, u64)> + '_ {
        let last = geometry.chunks().saturating_sub(1);
        self.runs().flat_map(move |(first, chunk, count)| {
            let (whole, others) = match chunk {
                MappedChunk::Blob(id) => (Some((id, count)), Vec::new()),
                MappedChunk::Split(_) => {
                    let pieces = (first..first + count).filter_map(|index| self.pieces(index));
                    (None, pieces.flat_map(|pieces| pieces.ids().iter().map(|id| (*id, 1))).collect())
                }
                MappedChunk::Zero => {
                    let holds_last = first + count > last;
                    let mut blobs = (count - u64::from(holds_last)) * u64::from(geometry.chunk_bytes) / ZERO_BLOB_BYTES;
                    let tail = zeros.tail.filter(|_| holds_last).map(|tail| (tail, 1));
                    blobs += if holds_last { geometry.zero_blobs(last).0 } else { 0 };
                    (Some((zeros.whole, blobs)).filter(|_| blobs > 0), Vec::from_iter(tail))
                }
            };
            whole.into_iter().chain(others)
        })
    }

    /// Parses a file's content. The chunks in `split`, which must be ascending, are stored in pieces. The lengths of
    /// the blobs are not checked here; readers compare them.
    pub(crate) fn from_content(
        content: &Content,
        geometry: Geometry,
        zeros: ZeroIds,
        split: &[Range<u64>],
    ) -> Result<ChunkMap, Misfit> {
        let per_chunk = u64::from(geometry.chunk_bytes) / ZERO_BLOB_BYTES;
        let (chunks, mut map) = (geometry.chunks(), ChunkMap::default());
        let last_zeros = chunks.checked_sub(1).map(|last| geometry.zero_blobs(last));
        let misfit = |map: &ChunkMap| Misfit { wanted: chunks, found: map.len() };
        let mut runs = BlobList { runs: content.runs(), rest: None };
        let mut split = split.iter();
        let mut next_split = split.next();
        while let Some((id, mut count)) = runs.next() {
            if let Some(range) = next_split.filter(|range| range.start <= map.len()) {
                runs.give_back(id, count);
                let wanted = pieces::count(geometry.length(map.len()));
                let ids: Vec<Id> = runs.take(wanted).ok_or(misfit(&map))?;
                map.push_split(Pieces::new(ids));
                if map.len() >= range.end {
                    next_split = split.next();
                }
                continue;
            }
            // All chunks before this index are stored whole.
            let end = next_split.map_or(u64::MAX, |range| range.start);
            if id != zeros.whole {
                // If the last chunk is shorter than 512 KiB, it can be the shorter zero blob alone.
                let odd_last =
                    map.len() + 1 == chunks && Some(id) == zeros.tail && last_zeros.is_some_and(|(n, _)| n == 0);
                if !SharedList::can_have(&id) {
                    return Err(misfit(&map));
                }
                let here = count.min(end - map.len());
                map.push(if odd_last { MappedChunk::Zero } else { MappedChunk::Blob(id) }, here);
                runs.give_back(id, count - here);
                continue;
            }
            let before_last = chunks.saturating_sub(1).saturating_sub(map.len());
            let whole = (count / per_chunk).min(before_last).min(end - map.len());
            map.push(MappedChunk::Zero, whole);
            count -= whole * per_chunk;
            if map.len() == end {
                runs.give_back(id, count);
            } else if count > 0 {
                // The rest must be exactly the last chunk.
                let Some((blobs, tail)) = last_zeros.filter(|_| map.len() + 1 == chunks) else {
                    return Err(misfit(&map));
                };
                if count != blobs || (tail > 0 && runs.next() != zeros.tail.map(|id| (id, 1))) {
                    return Err(misfit(&map));
                }
                map.push(MappedChunk::Zero, 1);
            }
        }
        if map.len() == chunks && next_split.is_none() { Ok(map) } else { Err(misfit(&map)) }
    }
}

/// The runs of a chunk that is stored in pieces.
fn split_runs(geometry: Geometry, index: u64, pieces: &Pieces) -> Vec<BlobRun> {
    let (mut offset, end) = (geometry.offset(index), geometry.offset(index) + geometry.length(index));
    let mut runs: Vec<BlobRun> = Vec::new();
    for id in pieces.ids() {
        let length = u64::from(PIECE_BYTES).min(end - offset);
        match runs.last_mut() {
            Some(run) if run.id == Some(*id) => run.length += length,
            _ => runs.push(BlobRun { offset, length, blob_bytes: PIECE_BYTES.into(), id: Some(*id) }),
        }
        offset += length;
    }
    runs
}

/// The blobs of a content, run by run. A part of a run can be put back.
struct BlobList<I> {
    runs: I,
    rest: Option<(Id, u64)>,
}

impl<I: Iterator<Item = (Id, u64)>> BlobList<I> {
    fn next(&mut self) -> Option<(Id, u64)> {
        self.rest.take().or_else(|| self.runs.next())
    }

    fn give_back(&mut self, id: Id, count: u64) {
        self.rest = (count > 0).then_some((id, count));
    }

    /// Takes the next `wanted` blobs; `None` if there are fewer.
    fn take(&mut self, mut wanted: u64) -> Option<Vec<Id>> {
        let mut ids = Vec::new();
        while wanted > 0 {
            let (id, count) = self.next()?;
            let here = count.min(wanted);
            ids.extend(std::iter::repeat_n(id, here as usize));
            self.give_back(id, count - here);
            wanted -= here;
        }
        Some(ids)
    }
}

/// Whether all bytes are zero. Returns early for most data, which has a nonzero byte in the first few.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|piece| piece.iter().fold(0, |or, byte| or | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content_of(map: &ChunkMap, geometry: Geometry) -> Content {
        let mut content = Content::default();
        map.blobs(geometry, ZeroIds::of(geometry)).for_each(|(id, count)| content.push_run(id, count));
        content
    }

    proptest! {
        #[test]
        fn chunk_map_round_trips_through_the_content_list(
            per_chunk in 1u32..5,
            kinds in proptest::collection::vec((0u8..5, 1u64..6), 0..12),
            short in 0u64..(2 << 20),
        ) {
            let chunk_bytes = per_chunk * ZERO_BLOB_BYTES as u32;
            let mut map = ChunkMap::default();
            let chunks: u64 = kinds.iter().map(|(_, count)| count).sum();
            let whole = chunks * u64::from(chunk_bytes);
            let capacity_bytes = whole.saturating_sub(short % u64::from(chunk_bytes));
            let geometry = Geometry { capacity_bytes, chunk_bytes };
            for (kind, count) in kinds {
                match kind {
                    0 => map.push(MappedChunk::Zero, count),
                    3.. => for _ in 0..count {
                        // The pieces include blobs that are also whole chunks, and the zero blob.
                        let ids = [Id::hash(&[1]), ZeroIds::of(geometry).whole, Id::hash(&[kind])];
                        let wanted = pieces::count(geometry.length(map.len())) as usize;
                        map.push_split(Pieces::new(ids.into_iter().cycle().take(wanted).collect()));
                    },
                    n => map.push(MappedChunk::Blob(Id::hash(&[n])), count),
                }
            }
            prop_assert_eq!(geometry.chunks(), map.len());
            let zeros = ZeroIds::of(geometry);
            let content = content_of(&map, geometry);
            let text = pieces::ranges_to_text(map.split_chunks());
            let split = pieces::ranges_of_text(&text, geometry.chunks()).unwrap();
            // The runs of blobs are the same list, with offsets.
            let mut end = 0;
            let mut listed = Content::default();
            for run in map.blob_runs(geometry) {
                prop_assert_eq!(run.offset, end);
                prop_assert_eq!(run.places().map(|(_, length)| length).sum::<u64>(), run.length);
                end = run.end();
                if let Some(id) = run.id {
                    listed.push_run(id, run.places().count() as u64);
                }
            }
            prop_assert_eq!(end, capacity_bytes);
            let data = |content: &Content| content.iter().filter(|id| {
                *id != zeros.whole && Some(*id) != zeros.tail
            }).collect::<Vec<_>>();
            prop_assert_eq!(data(&listed), data(&content));
            prop_assert_eq!(ChunkMap::from_content(&content, geometry, zeros, &split).unwrap(), map);
        }

        #[test]
        fn arbitrary_content_list_is_refused_or_fits_the_disk(
            ids in proptest::collection::vec(0u8..3, 0..40),
            capacity_bytes in 0u64..(20 << 20),
            split in proptest::collection::btree_set(0u64..20, 0..4),
        ) {
            let geometry = Geometry { capacity_bytes, chunk_bytes: 1 << 20 };
            let zeros = ZeroIds::of(geometry);
            let mut content = Content::default();
            for id in ids {
                content.push(match id { 0 => zeros.whole, n => Id::hash(&[n]) });
            }
            let split: Vec<u64> = split.into_iter().filter(|index| *index < geometry.chunks()).collect();
            let ranges: Vec<_> = split.iter().map(|index| *index..*index + 1).collect();
            if let Ok(map) = ChunkMap::from_content(&content, geometry, zeros, &ranges) {
                prop_assert_eq!(map.len(), geometry.chunks());
                prop_assert_eq!(map.split_chunks().collect::<Vec<_>>(), split);
            }
        }
    }

    #[test]
    fn any_range_of_a_map_is_listed_as_runs() {
        let mut map = ChunkMap::default();
        let kinds: Vec<MappedChunk> = (0..40u8)
            .map(|n| if n % 7 < 3 { MappedChunk::Zero } else { MappedChunk::Blob(Id::hash(&[n / 9])) })
            .collect();
        kinds.iter().for_each(|chunk| map.push(*chunk, 1));
        for (first, count) in [(0, 1), (1, 5), (6, 0), (20, 1), (9, 10), (38, 2)] {
            let runs = map.runs_in(first..first + count);
            let flat: Vec<MappedChunk> = runs.flat_map(|(chunk, n)| std::iter::repeat_n(chunk, n as usize)).collect();
            assert_eq!(flat, kinds[first as usize..(first + count) as usize]);
            let mut part = ChunkMap::default();
            assert!(part.extend_from(&map, first..first + count) && part.len() == count);
            assert!(part.runs().map(|(_, chunk, n)| (chunk, n)).eq(map.runs_in(first..first + count)));
        }
        assert_eq!(map.runs_in(39..41).count(), 1);
        assert!(!ChunkMap::default().extend_from(&map, 39..41));
        assert_eq!(map.at(&[0, 3, 39]), [(0, kinds[0]), (3, kinds[3]), (39, kinds[39])]);
    }

    #[test]
    fn a_two_tebibyte_hole_is_one_entry() {
        let geometry = Geometry { capacity_bytes: 2 << 40, chunk_bytes: 1 << 20 };
        let mut map = ChunkMap::default();
        map.push(MappedChunk::Zero, geometry.chunks());
        assert_eq!(map.runs().count(), 1);
        assert_eq!(map.blobs(geometry, ZeroIds::of(geometry)).count(), 1);
    }

    #[test]
    fn content_list_with_an_unusable_id_does_not_fit() {
        let geometry = Geometry { capacity_bytes: 2 << 20, chunk_bytes: 1 << 20 };
        let content: Content = [Id::hash(b"x"), Id::from_bytes([0; 32])].into_iter().collect();
        let misfit = ChunkMap::from_content(&content, geometry, ZeroIds::of(geometry), &[]).unwrap_err();
        assert_eq!(misfit.to_string(), "the content list does not fit a disk of 2 chunks: 1 were found");
    }

    #[test]
    fn single_set_bit_is_not_zero() {
        let mut bytes = vec![0; 100_000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        bytes[99_999] = 1;
        assert!(!is_zero(&bytes));
    }
}
