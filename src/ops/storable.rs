//! Checks whether a disk's list of chunks fits into a restic tree before the disk is read.
//!
//! The list is one JSON blob with 67 bytes for each chunk, or for each 512 KiB of a chunk of zeros, and a blob is
//! limited to 4 GiB. A disk of up to 30 TiB always fits; for larger ones, it depends on the chunk size and the holes.

use super::chunk_map::{Geometry, ZERO_BLOB_BYTES};
use super::{Error, Result, Stop};
use crate::nbd::wire::BASE_ALLOCATION;
use crate::nbd::{Client, ClientOptions, NbdUri, extents};

/// The size of a blob's id in the list: 64 digits, two quotes, a comma.
const ITEM_BYTES: u64 = 67;

/// Reserved for the other fields of the tree.
const RESERVED_BYTES: u64 = 64 << 10;

/// The longest list that a tree can hold.
const LONGEST_BYTES: u64 = u32::MAX as u64 - RESERVED_BYTES;

/// The minimum length of the list of a disk with this number of zero chunks.
fn shortest_list_bytes(geometry: Geometry, zero_chunks: u64) -> u64 {
    let chunk_bytes = u64::from(geometry.chunk_bytes);
    let zeros = zero_chunks * (chunk_bytes / ZERO_BLOB_BYTES);
    let data = (geometry.capacity_bytes / chunk_bytes).saturating_sub(zero_chunks);
    (zeros + data).saturating_mul(ITEM_BYTES)
}

/// The number of whole chunks in a range.
fn whole_chunks(geometry: Geometry, begin: u64, end: u64) -> u64 {
    let chunk_bytes = u64::from(geometry.chunk_bytes);
    (end / chunk_bytes).saturating_sub(begin.div_ceil(chunk_bytes))
}

/// Refuses a disk that cannot be stored, either with any content or because of its holes.
pub(super) fn check_storable(disk: &str, uri: &NbdUri, geometry: Geometry, stop: &Stop) -> Result<()> {
    let refuse = |has_holes| Error::DiskTooLarge {
        disk: disk.to_owned(),
        capacity_bytes: geometry.capacity_bytes,
        chunk_bytes: geometry.chunk_bytes,
        has_holes,
    };
    if shortest_list_bytes(geometry, 0) > LONGEST_BYTES {
        return Err(refuse(false));
    }
    if shortest_list_bytes(geometry, whole_chunks(geometry, 0, geometry.capacity_bytes)) <= LONGEST_BYTES {
        return Ok(());
    }
    let failed = Error::disk(disk);
    let contexts = vec![BASE_ALLOCATION.to_owned()];
    let options = ClientOptions { contexts, stop: stop.flag(), ..ClientOptions::default() };
    let mut client = Client::connect(uri, &options).map_err(&failed)?;
    // The number of zero chunks before the current run of zeros, and the start of that run.
    let (mut before, mut run) = (0, None);
    for extent in extents(&mut client, None) {
        let extent = extent.map_err(&failed)?;
        if !extent.zero {
            before += run.take().map_or(0, |begin| whole_chunks(geometry, begin, extent.offset));
            continue;
        }
        let begin = *run.get_or_insert(extent.offset);
        let zero_chunks = before + whole_chunks(geometry, begin, extent.offset + extent.length);
        if shortest_list_bytes(geometry, zero_chunks) > LONGEST_BYTES {
            return Err(refuse(true));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    #[test]
    fn content_list_length_depends_on_chunk_size_and_holes() {
        let list = |tib: u64, chunk_kib: u32, zero_tib: u64| {
            let geometry = Geometry { capacity_bytes: tib * TIB, chunk_bytes: chunk_kib << 10 };
            shortest_list_bytes(geometry, whole_chunks(geometry, 0, zero_tib * TIB))
        };
        assert!(list(30, 512, 30) <= LONGEST_BYTES && list(31, 512, 0) > LONGEST_BYTES);
        assert!(list(60, 1024, 0) <= LONGEST_BYTES && list(62, 1024, 0) > LONGEST_BYTES);
        assert!(list(240, 4096, 0) <= LONGEST_BYTES && list(250, 4096, 0) > LONGEST_BYTES);
        // Holes are listed in units of 512 KiB, whatever the chunk size.
        assert!(list(60, 4096, 26) <= LONGEST_BYTES && list(60, 4096, 27) > LONGEST_BYTES);
    }

    #[test]
    fn a_chunk_that_is_zero_in_part_is_not_counted_as_zero() {
        let geometry = Geometry { capacity_bytes: TIB, chunk_bytes: 1 << 20 };
        let whole = |begin, end| whole_chunks(geometry, begin, end);
        assert_eq!((whole(0, 3 << 20), whole(1, 3 << 20), whole(0, (3 << 20) - 1)), (3, 2, 2));
        assert_eq!(whole(1, 2), 0);
    }
}
