//! A disk as a list of chunks, and how that list becomes a file's content in a restic tree and back.
//!
//! ```text
//! capacity 3.25 MiB, chunks of 1 MiB:   | data A | zeros  | zeros  | data B (256 KiB) |
//! chunk map                             | A × 1  | zero × 2        | B × 1            |
//! the file's content in the tree        | A | z | z | z | z | B |          z = the 512 KiB zero blob
//! ```
//!
//! A chunk is one blob, or - all zero - repetitions of the 512 KiB zero blob, by which restic knows that it may restore
//! the file sparse, or several blobs ([`Pieces`]). The last chunk may be shorter than the others; when it is all zero,
//! what is left after the whole 512 KiB is one blob of its own.

use super::pieces::{self, PIECE_BYTES, Pieces};
use super::shared_list::SharedList;
use crate::repo::{self, Content, Id};
use std::collections::BTreeMap;
use std::ops::Range;

/// The size of restic's zero blob (its smallest chunk), by which it finds holes.
pub(crate) const ZERO_BLOB_BYTES: u64 = repo::ZERO_BLOB_BYTES as u64;

/// What one chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MappedChunk {
    Zero,
    /// The blob with this id.
    Blob(Id),
    /// Several blobs; this is [`Pieces::digest`].
    Split(Id),
}

/// How a disk is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The disk's size as the guest sees it.
    pub(crate) capacity_bytes: u64,
    /// The size of all chunks but the last: a multiple of 512 KiB.
    pub(crate) chunk_bytes: u32,
}

impl Geometry {
    /// How many chunks the disk has.
    pub(crate) fn chunks(self) -> u64 {
        self.capacity_bytes.div_ceil(u64::from(self.chunk_bytes))
    }

    /// Where a chunk begins.
    pub(crate) fn offset(self, index: u64) -> u64 {
        index * u64::from(self.chunk_bytes)
    }

    /// The length of a chunk: the last may be short.
    pub(crate) fn length(self, index: u64) -> u64 {
        u64::from(self.chunk_bytes).min(self.capacity_bytes - self.offset(index))
    }

    /// How many whole zero blobs a zero chunk is, and the bytes left after them.
    fn zero_blobs(self, index: u64) -> (u64, u64) {
        (self.length(index) / ZERO_BLOB_BYTES, self.length(index) % ZERO_BLOB_BYTES)
    }

    /// The length of the odd blob of zeros at the end of the disk, should its last chunk be zero; 0 when there is none.
    pub(crate) fn zero_tail_bytes(self) -> u64 {
        self.chunks().checked_sub(1).map_or(0, |last| self.zero_blobs(last).1)
    }
}

/// The ids of the blobs that zeros are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ZeroIds {
    /// The 512 KiB zero blob.
    pub(crate) whole: Id,
    /// The odd blob at the end of this disk, if its size asks for one.
    pub(crate) tail: Option<Id>,
}

impl ZeroIds {
    /// The ids for a disk of this geometry.
    pub(crate) fn of(geometry: Geometry) -> ZeroIds {
        let zeros = vec![0; ZERO_BLOB_BYTES as usize];
        let tail = geometry.zero_tail_bytes() as usize;
        ZeroIds { whole: Id::hash(&zeros), tail: (tail > 0).then(|| Id::hash(&zeros[..tail])) }
    }
}

/// Every chunk of a disk, in order. Cheap to clone; what it has in common with its parent is there once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ChunkMap {
    /// The blob of each chunk, or the digest of its pieces; nothing for zeros.
    list: SharedList,
    /// The chunks that are stored in pieces.
    split: BTreeMap<u64, Pieces>,
}

/// Equal blobs, or zeros, that lie one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobRun {
    /// Where on the disk they begin.
    pub(crate) offset: u64,
    /// All of them together.
    pub(crate) length: u64,
    /// Each of them but the last one of the disk.
    pub(crate) blob_bytes: u64,
    /// None are zeros.
    pub(crate) id: Option<Id>,
}

impl BlobRun {
    /// The byte after the last.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Where each of them is, and its length.
    pub(crate) fn places(self) -> impl Iterator<Item = (u64, u64)> {
        (self.offset..self.end())
            .step_by(self.blob_bytes as usize)
            .map(move |offset| (offset, self.blob_bytes.min(self.end() - offset)))
    }
}

/// A file's content that is not a list of chunks of this geometry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the content list does not fit a disk of {} chunks: {} were found", wanted, found)]
pub(crate) struct Misfit {
    wanted: u64,
    found: u64,
}

impl ChunkMap {
    /// Adds a chunk in pieces at the end.
    pub(crate) fn push_split(&mut self, pieces: Pieces) {
        let digest = pieces.digest();
        self.split.insert(self.len(), pieces);
        self.push(MappedChunk::Split(digest), 1);
    }

    /// Adds `count` equal chunks at the end, which are not in pieces.
    pub(crate) fn push(&mut self, chunk: MappedChunk, count: u64) {
        let entry = match chunk {
            MappedChunk::Zero => None,
            MappedChunk::Blob(id) | MappedChunk::Split(id) => Some(id),
        };
        self.list.push(entry, count);
    }

    /// Adds these chunks of another map at the end; false if it does not have them all.
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

    /// How many chunks there are.
    pub(crate) fn len(&self) -> u64 {
        self.list.len()
    }

    /// The pieces of a chunk that is stored in such.
    pub(crate) fn pieces(&self, index: u64) -> Option<&Pieces> {
        self.split.get(&index)
    }

    /// The chunks that are stored in pieces, ascending.
    pub(crate) fn split_chunks(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.split.keys().copied()
    }

    /// Runs of equal chunks: the index of the first, what it is, how many.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, MappedChunk, u64)> + '_ {
        self.runs_in(0..self.len()).scan(0, |next, (chunk, count)| {
            let first = *next;
            *next += count;
            Some((first, chunk, count))
        })
    }

    /// How many chunks there are up to the last one that is not zero, and with it.
    pub(crate) fn chunks_to_last_data(&self) -> u64 {
        let data = self.runs().filter(|(_, chunk, _)| *chunk != MappedChunk::Zero);
        data.last().map_or(0, |(first, _, count)| first + count)
    }

    /// Runs of equal chunks of a part, as far as the map goes.
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

    /// Runs of equal blobs, in order: all of the disk.
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

    /// The chunks at these indices, which ascend.
    pub(crate) fn at(&self, indices: &[u64]) -> Vec<(u64, MappedChunk)> {
        let chunk = |index: u64| Some((index, self.runs_in(index..index + 1).next()?.0));
        indices.iter().filter_map(|index| chunk(*index)).collect()
    }

    /// The blobs of the file, for the tree: each with how often it comes in a row.
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

    /// Reads a file's content back; the chunks of `split`, which ascend, are in pieces. The lengths of the blobs are
    /// not looked at here: whoever reads them compares.
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
            // Chunks up to here are whole ones.
            let end = next_split.map_or(u64::MAX, |range| range.start);
            if id != zeros.whole {
                // A disk shorter than 512 KiB, or whose last chunk is, can end in the odd blob alone.
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
                // What is left must be exactly the last chunk.
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

/// The runs of the pieces of a chunk.
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

/// The blobs of a content, run by run, of which a part can be put back.
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

    /// The next blobs, if there are enough.
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

/// Whether all bytes are zero. Most data shows that it is not in the first few.
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
        fn a_map_survives_the_tree(
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
                        // Among the pieces are blobs that also stand for whole chunks, and the zero blob.
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
            // The runs of blobs are the same list, with places.
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
        fn a_foreign_content_list_is_refused_or_fits(
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
    fn any_part_of_a_map_is_a_list_of_runs() {
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
    fn an_id_that_stands_for_nothing_is_no_chunk() {
        let geometry = Geometry { capacity_bytes: 2 << 20, chunk_bytes: 1 << 20 };
        let content: Content = [Id::hash(b"x"), Id::from_bytes([0; 32])].into_iter().collect();
        let misfit = ChunkMap::from_content(&content, geometry, ZeroIds::of(geometry), &[]).unwrap_err();
        assert_eq!(misfit.to_string(), "the content list does not fit a disk of 2 chunks: 1 were found");
    }

    #[test]
    fn one_bit_is_not_zero() {
        let mut bytes = vec![0; 100_000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        bytes[99_999] = 1;
        assert!(!is_zero(&bytes));
    }
}
