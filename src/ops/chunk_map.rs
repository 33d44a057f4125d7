//! A disk as a list of chunks, and how that list becomes a file's content in a restic tree and back.
//!
//! ```text
//! capacity 3.25 MiB, chunks of 1 MiB:   | data A | zeros  | zeros  | data B (256 KiB) |
//! chunk map                             | A × 1  | zero × 2        | B × 1            |
//! the file's content in the tree        | A | z | z | z | z | B |          z = the 512 KiB zero blob
//! ```
//!
//! A chunk is one blob, or - all zero - repetitions of the 512 KiB zero blob, by which restic knows that it may restore
//! the file sparse. The last chunk may be shorter than the others; when it is all zero, what is left after the whole
//! 512 KiB is one blob of its own.

use crate::repo::{self, Content, Id};

/// The size of restic's zero blob (its smallest chunk), by which it finds holes.
pub(crate) const ZERO_BLOB_BYTES: u64 = repo::ZERO_BLOB_BYTES as u64;

/// What one chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MappedChunk {
    /// Only zeros.
    Zero,
    /// The blob with this id.
    Blob(Id),
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

/// Every chunk of a disk, in order; equal neighbours take one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ChunkMap {
    runs: Vec<(MappedChunk, u32)>,
}

/// A file's content that is not a list of chunks of this geometry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the content list does not fit a disk of {} chunks: {} were found", wanted, found)]
pub(crate) struct Misfit {
    wanted: u64,
    found: u64,
}

impl ChunkMap {
    /// Adds `count` equal chunks at the end.
    pub(crate) fn push(&mut self, chunk: MappedChunk, mut count: u64) {
        if let Some((last, length)) = self.runs.last_mut()
            && *last == chunk
        {
            let room = u64::from(u32::MAX - *length).min(count);
            *length += room as u32;
            count -= room;
        }
        while count > 0 {
            let part = count.min(u64::from(u32::MAX));
            self.runs.push((chunk, part as u32));
            count -= part;
        }
    }

    /// How many chunks there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> u64 {
        self.runs.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// Runs of equal chunks: the index of the first, what it is, how many.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, MappedChunk, u64)> + '_ {
        self.runs.iter().scan(0, |next, (chunk, count)| {
            let first = *next;
            *next += u64::from(*count);
            Some((first, *chunk, u64::from(*count)))
        })
    }

    /// The chunks at these indices, which ascend.
    pub(crate) fn at(&self, indices: &[u64]) -> Vec<(u64, MappedChunk)> {
        let mut cursor = self.cursor();
        let chunk = |index: u64| cursor.take(index, 1).and_then(|taken| taken.first().copied());
        let found: Vec<_> = indices.iter().copied().map(chunk).collect();
        indices.iter().zip(found).filter_map(|(index, found)| Some((*index, found?.0))).collect()
    }

    /// A cursor before the first chunk.
    pub(crate) fn cursor(&self) -> ChunkCursor<'_> {
        ChunkCursor { runs: self.runs.iter(), start: 0, current: None }
    }

    /// The file's content for the tree.
    pub(crate) fn to_content(&self, geometry: Geometry, zeros: ZeroIds) -> Content {
        let mut content = Content::default();
        let last = geometry.chunks().saturating_sub(1);
        for (first, chunk, count) in self.runs() {
            match chunk {
                MappedChunk::Blob(id) => content.push_run(id, count),
                MappedChunk::Zero => {
                    let holds_last = first + count > last;
                    let whole = count - u64::from(holds_last);
                    content.push_run(zeros.whole, whole * u64::from(geometry.chunk_bytes) / ZERO_BLOB_BYTES);
                    if holds_last {
                        content.push_run(zeros.whole, geometry.zero_blobs(last).0);
                        if let Some(tail) = zeros.tail {
                            content.push(tail);
                        }
                    }
                }
            }
        }
        content
    }

    /// Reads a file's content back. The lengths of the blobs are not looked at here: whoever reads them compares.
    pub(crate) fn from_content(content: &Content, geometry: Geometry, zeros: ZeroIds) -> Result<ChunkMap, Misfit> {
        let per_chunk = u64::from(geometry.chunk_bytes) / ZERO_BLOB_BYTES;
        let (chunks, mut map, mut found) = (geometry.chunks(), ChunkMap::default(), 0);
        let last_zeros = chunks.checked_sub(1).map(|last| geometry.zero_blobs(last));
        let misfit = |found| Misfit { wanted: chunks, found };
        let mut runs = content.runs().peekable();
        while let Some((id, mut count)) = runs.next() {
            if id != zeros.whole {
                // A disk shorter than 512 KiB, or whose last chunk is, can end in the odd blob alone.
                let odd_last = found + 1 == chunks && Some(id) == zeros.tail && last_zeros.is_some_and(|(n, _)| n == 0);
                map.push(if odd_last { MappedChunk::Zero } else { MappedChunk::Blob(id) }, count);
                found += count;
                continue;
            }
            let before_last = chunks.saturating_sub(1).saturating_sub(found);
            let whole = (count / per_chunk).min(before_last);
            map.push(MappedChunk::Zero, whole);
            found += whole;
            count -= whole * per_chunk;
            if count > 0 {
                // What is left must be exactly the last chunk.
                let Some((blobs, tail)) = last_zeros.filter(|_| found + 1 == chunks) else {
                    return Err(misfit(found));
                };
                if count != blobs || (tail > 0 && runs.next() != zeros.tail.map(|id| (id, 1))) {
                    return Err(misfit(found));
                }
                map.push(MappedChunk::Zero, 1);
                found += 1;
            }
        }
        if found == chunks { Ok(map) } else { Err(misfit(found)) }
    }
}

/// Walks over a map, forward only.
#[derive(Debug, Clone)]
pub(crate) struct ChunkCursor<'a> {
    runs: std::slice::Iter<'a, (MappedChunk, u32)>,
    start: u64,
    current: Option<(MappedChunk, u64)>,
}

impl ChunkCursor<'_> {
    /// The runs of `count` chunks from `first`, which is not before what was taken last; none if the map ends before.
    pub(crate) fn take(&mut self, mut first: u64, mut count: u64) -> Option<Vec<(MappedChunk, u64)>> {
        let mut taken = Vec::new();
        while count > 0 {
            let (chunk, length) = match self.current {
                Some((chunk, length)) if self.start + length > first => (chunk, length),
                passed => {
                    self.start += passed.map_or(0, |(_, length)| length);
                    let (chunk, length) = self.runs.next()?;
                    self.current = Some((*chunk, u64::from(*length)));
                    continue;
                }
            };
            let part = (self.start + length).checked_sub(first)?.min(count);
            taken.push((chunk, part));
            first += part;
            count -= part;
        }
        Some(taken)
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

    proptest! {
        #[test]
        fn a_map_survives_the_tree(
            per_chunk in 1u32..5,
            kinds in proptest::collection::vec((0u8..3, 1u64..6), 0..12),
            short in 0u64..(2 << 20),
        ) {
            let chunk_bytes = per_chunk * ZERO_BLOB_BYTES as u32;
            let mut map = ChunkMap::default();
            for (kind, count) in kinds {
                let chunk = match kind {
                    0 => MappedChunk::Zero,
                    n => MappedChunk::Blob(Id::hash(&[n])),
                };
                map.push(chunk, count);
            }
            let whole = map.len() * u64::from(chunk_bytes);
            let capacity_bytes = whole.saturating_sub(short % u64::from(chunk_bytes));
            let geometry = Geometry { capacity_bytes, chunk_bytes };
            prop_assert_eq!(geometry.chunks(), map.len());
            let zeros = ZeroIds::of(geometry);
            let content = map.to_content(geometry, zeros);
            prop_assert_eq!(ChunkMap::from_content(&content, geometry, zeros).unwrap(), map);
        }

        #[test]
        fn a_foreign_content_list_is_refused_or_fits(
            ids in proptest::collection::vec(0u8..3, 0..40),
            capacity_bytes in 0u64..(20 << 20),
        ) {
            let geometry = Geometry { capacity_bytes, chunk_bytes: 1 << 20 };
            let zeros = ZeroIds::of(geometry);
            let mut content = Content::default();
            for id in ids {
                content.push(match id { 0 => zeros.whole, n => Id::hash(&[n]) });
            }
            if let Ok(map) = ChunkMap::from_content(&content, geometry, zeros) {
                prop_assert_eq!(map.len(), geometry.chunks());
            }
        }
    }

    #[test]
    fn a_cursor_takes_any_ascending_ranges() {
        let mut map = ChunkMap::default();
        let kinds: Vec<MappedChunk> = (0..40u8)
            .map(|n| if n % 7 < 3 { MappedChunk::Zero } else { MappedChunk::Blob(Id::hash(&[n / 9])) })
            .collect();
        kinds.iter().for_each(|chunk| map.push(*chunk, 1));
        let mut cursor = map.cursor();
        for (first, count) in [(0, 1), (1, 5), (6, 0), (9, 10), (20, 1), (38, 2)] {
            let taken = cursor.take(first, count).unwrap();
            let flat: Vec<MappedChunk> =
                taken.iter().flat_map(|(chunk, n)| std::iter::repeat_n(*chunk, *n as usize)).collect();
            assert_eq!(flat, kinds[first as usize..(first + count) as usize]);
        }
        assert!(map.cursor().take(39, 2).is_none());
        assert_eq!(map.at(&[0, 3, 39]), [(0, kinds[0]), (3, kinds[3]), (39, kinds[39])]);
    }

    #[test]
    fn a_two_tebibyte_hole_is_one_entry() {
        let geometry = Geometry { capacity_bytes: 2 << 40, chunk_bytes: 1 << 20 };
        let mut map = ChunkMap::default();
        map.push(MappedChunk::Zero, geometry.chunks());
        assert_eq!(map.runs().count(), 1);
        assert_eq!(map.to_content(geometry, ZeroIds::of(geometry)).runs().count(), 1);
    }

    #[test]
    fn one_bit_is_not_zero() {
        let mut bytes = vec![0; 100_000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        bytes[99_999] = 1;
        assert!(!is_zero(&bytes));
    }
}
