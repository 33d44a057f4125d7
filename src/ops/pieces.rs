//! Chunks stored in pieces, so that the next change of such a chunk only stores the changed pieces.
//!
//! ```text
//!  first point     | one blob of 1 MiB                        |
//!  a part changed  | 64 KiB | 64 KiB | … 16 blobs             |   stored completely once more
//!  changed again   | unchanged | 64 KiB, new | unchanged …    |   from now on only changed pieces are stored
//!  more than half  | one blob of 1 MiB                        |
//! ```

use crate::repo::Id;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// The size of a piece: the granularity of QEMU's dirty bitmaps, so changes of smaller parts are not visible anyway.
pub(crate) const PIECE_BYTES: u32 = 64 << 10;

/// The blobs of a chunk that is stored in pieces, in order. The last one may be shorter than the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pieces {
    ids: Arc<[Id]>,
}

impl Pieces {
    pub(crate) fn new(ids: Vec<Id>) -> Pieces {
        Pieces { ids: ids.into() }
    }

    /// Splits these bytes into pieces.
    pub(crate) fn of(bytes: &[u8]) -> Pieces {
        Pieces::new(bytes.chunks(PIECE_BYTES as usize).map(Id::hash).collect())
    }

    pub(crate) fn ids(&self) -> &[Id] {
        &self.ids
    }

    /// An id for all pieces together.
    pub(crate) fn digest(&self) -> Id {
        Id::hash(&self.ids.iter().flat_map(|id| id.as_bytes().iter().copied()).collect::<Vec<u8>>())
    }

    /// Whether all pieces are full-size pieces of zeros.
    pub(crate) fn is_zero(&self) -> bool {
        self.ids.iter().all(|id| *id == *ZERO_PIECE)
    }

    /// Whether the pieces selected by `bits` (bit 0 is the first piece) are zeros. `chunk_length` is the length of the
    /// chunk.
    pub(crate) fn are_zero_at(&self, bits: u64, chunk_length: u64) -> bool {
        let is_zero = |number: usize, id: &Id| match range(number, chunk_length as usize).len() {
            length if length == PIECE_BYTES as usize => *id == *ZERO_PIECE,
            length => *id == Id::hash(&vec![0; length]),
        };
        self.ids.iter().enumerate().all(|(number, id)| bits & (1 << number) == 0 || is_zero(number, id))
    }
}

static ZERO_PIECE: LazyLock<Id> = LazyLock::new(|| Id::hash(&[0; PIECE_BYTES as usize]));

/// The number of pieces for this number of bytes.
pub(crate) fn count(bytes: u64) -> u64 {
    bytes.div_ceil(u64::from(PIECE_BYTES))
}

/// The range of a piece within a chunk of this length.
pub(crate) fn range(piece: usize, chunk_length: usize) -> Range<usize> {
    let start = piece * PIECE_BYTES as usize;
    start..chunk_length.min(start + PIECE_BYTES as usize)
}

/// Whether to store a chunk with `pieces` pieces, of which `changed` changed, in pieces. If more than half of them
/// changed, a file was probably written sequentially.
pub(crate) fn are_worth_it(pieces: u64, changed: u64) -> bool {
    pieces > 1 && 2 * changed <= pieces
}

/// The maximum number of a disk's chunks that are stored in pieces. Each piece is one more entry in the list, which is
/// kept in memory and written with every point. At most four times as many pieces as the disk has chunks make the list
/// at most five times as long. Small disks may have more because their list is short anyway; very large ones have none
/// because their list must stay below 4 GiB, the maximum size of a blob.
pub(crate) fn most_chunks(chunks: u64, chunk_bytes: u32) -> u64 {
    /// The number of pieces in a chunk of 1 MiB. Smaller chunks count as this many, so that no more of them are in
    /// pieces.
    const LEAST_PIECES: u64 = 16;
    let pieces = count(chunk_bytes.into()).max(LEAST_PIECES);
    match chunks {
        0..=0xff_ffff => (4 * chunks).clamp(1 << 14, 1 << 20) / pieces,
        _ => 0,
    }
}

/// Formats chunk numbers as text: `3,17-20,45`.
pub(crate) fn ranges_to_text(numbers: impl Iterator<Item = u64>) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let word = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    ranges.into_iter().map(word).collect::<Vec<_>>().join(",")
}

/// Parses the ranges of such a text, which must be ascending and below `end`. `None` if the text is invalid.
pub(crate) fn ranges_of_text(text: &str, end: u64) -> Option<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for word in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let least = ranges.last().map_or(0, |range| range.end);
        if first < least || last < first || last >= end {
            return None;
        }
        ranges.push(first..last + 1);
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn number_lists_round_trip_as_text(numbers in proptest::collection::btree_set(0u64..200, 0..60)) {
            let text = ranges_to_text(numbers.iter().copied());
            let ranges = ranges_of_text(&text, 200).expect("ranges");
            prop_assert_eq!(ranges.into_iter().flatten().collect::<Vec<_>>(), numbers.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn malformed_range_lists_are_refused() {
        assert_eq!(ranges_of_text("", 0), Some(vec![]));
        assert_eq!(ranges_of_text("3,17-20,45", 46), Some(vec![3..4, 17..21, 45..46]));
        for wrong in ["x", "1,", ",1", "2,1", "1,1", "1-3,3", "5-4", "46", "1-46", "-1", "1-", "18446744073709551616"] {
            assert_eq!(ranges_of_text(wrong, 46), None, "{wrong:?}");
        }
    }

    #[test]
    fn number_of_split_chunks_is_limited_by_disk_size() {
        for (chunk_bytes, pieces) in [(512 << 10, 8), (1 << 20, 16), (2 << 20, 32), (4 << 20, 64)] {
            for chunks in [1 << 13, 1 << 16, 1 << 20, (1 << 24) - 1] {
                let most = most_chunks(chunks, chunk_bytes);
                assert!(most > 0 && most * pieces <= (4 * chunks).min(1 << 20), "{chunks} of {chunk_bytes}: {most}");
            }
            assert_eq!(most_chunks(1 << 24, chunk_bytes), 0);
        }
        assert_eq!((most_chunks(1, 1 << 20), most_chunks(8192, 1 << 20)), (1024, 2048));
    }

    #[test]
    fn pieces_have_distinct_digests_and_detect_zeros() {
        let (zero, other) = (Id::hash(&[0; PIECE_BYTES as usize]), Id::hash(b"x"));
        assert!(Pieces::new(vec![zero; 16]).is_zero() && !Pieces::new(vec![zero, other]).is_zero());
        let short = Id::hash(&[0; 5]);
        let pieces = Pieces::new(vec![zero, other, zero, short]);
        assert!(pieces.are_zero_at(0b1101, 3 * u64::from(PIECE_BYTES) + 5) && pieces.are_zero_at(0, 1));
        assert!(!pieces.are_zero_at(0b0010, 3 * u64::from(PIECE_BYTES) + 5));
        assert_ne!(Pieces::new(vec![zero, other]).digest(), Pieces::new(vec![other, zero]).digest());
        assert_eq!(range(15, 1 << 20), (15 << 16)..(16 << 16));
        assert_eq!(range(1, (64 << 10) + 5), (64 << 10)..(64 << 10) + 5);
    }
}
