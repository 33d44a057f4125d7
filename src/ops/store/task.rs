//! The task of storing a disk, and its result.

use crate::nbd::NbdUri;
use crate::ops::chunk_map::{ChunkMap, Geometry};
use crate::ops::threads::Parallelism;
use crate::ops::{Error, Result, Stop};
use crate::rate_limiter::RateLimiter;

/// What storing one disk came to.
#[derive(Debug, Default)]
pub(crate) struct StoredDisk {
    pub(crate) map: ChunkMap,
    /// The disk's size as the capture has it.
    pub(crate) capacity_bytes: u64,
    /// What was read over NBD.
    pub(crate) read_bytes: u64,
    /// What of it was new to the repository.
    pub(crate) new_bytes: u64,
    /// What that takes there.
    pub(crate) stored_bytes: u64,
    /// Whether its bitmap said that nothing changed since the parent; false without a bitmap.
    pub(crate) is_unchanged: bool,
    /// Chunks that differ from the parent although the bitmap called them clean, as (first, count).
    pub(crate) bitmap_mismatches: Vec<(u64, u64)>,
}

/// How storing a disk ended.
#[derive(Debug)]
pub(crate) enum StoreOutcome {
    Stored(StoredDisk),
    /// The bitmap cannot be relied on: the disk must be read in full.
    BitmapInvalid {
        reason: String,
        /// What it was caught lying about: the parent is suspect there.
        bitmap_mismatches: Vec<(u64, u64)>,
    },
}

impl StoreOutcome {
    /// BitmapInvalid, without evidence of a lie.
    pub(super) fn untrusted(reason: impl Into<String>) -> StoreOutcome {
        StoreOutcome::BitmapInvalid { reason: reason.into(), bitmap_mismatches: Vec::new() }
    }
}

/// What is to be read of a disk.
#[derive(Debug)]
pub(crate) struct DiskTask<'a> {
    /// The disk's target name.
    pub(crate) disk: &'a str,
    /// Where it can be read.
    pub(crate) uri: &'a NbdUri,
    /// The size that the capture says.
    pub(crate) capacity_bytes: u64,
    /// The size of its chunks.
    pub(crate) chunk_bytes: u32,
    /// What the disk continues; none reads everything.
    pub(crate) base: Option<Base<'a>>,
    /// The chunks of an earlier point: those that are in pieces there stay so where they did not change.
    pub(crate) earlier: Option<&'a ChunkMap>,
    /// How fast it may be read.
    pub(crate) rate_limit: Option<&'a RateLimiter>,
    /// What its machine may use.
    pub(crate) parallelism: Parallelism,
}

impl DiskTask<'_> {
    /// Waits until this number of bytes may be read. What is read ahead is little, so it serves as well just after
    /// reading.
    pub(super) fn keep_pace(&self, bytes: usize, stop: &Stop) {
        if let Some(rate_limit) = self.rate_limit {
            rate_limit.acquire_while(bytes, || !stop.requested());
        }
    }
}

/// What a disk continues: the parent's chunks, and the bitmap that says what changed since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base<'a> {
    /// The meta context of the dirty bitmap.
    pub(crate) bitmap: &'a str,
    pub(crate) map: &'a ChunkMap,
    /// Chunks of it that the repository has lost, as (first, count), ascending: they are read whatever the bitmap says.
    pub(crate) lost: &'a [(u64, u64)],
    /// The size that the disk had then.
    pub(crate) capacity_bytes: u64,
    /// The share of clean chunks that is read all the same, and compared.
    pub(crate) audit: f64,
    /// Whether everything is read all the same, and compared.
    pub(crate) read_all: bool,
}

impl Base<'_> {
    /// How many chunks, from the first, are the same range of the disk then and now: beyond, everything counts as
    /// changed.
    pub(super) fn comparable(&self, geometry: Geometry) -> u64 {
        match self.capacity_bytes == geometry.capacity_bytes {
            true => geometry.chunks(),
            false => self.capacity_bytes.min(geometry.capacity_bytes) / u64::from(geometry.chunk_bytes),
        }
    }
}

/// Refuses to read what has another size than the disk that was captured. QEMU and libvirt count in sectors of 512
/// bytes or not, so that is no difference.
pub(crate) fn check_size(disk: &str, offered_bytes: u64, capacity_bytes: u64) -> Result<()> {
    const SECTOR_BYTES: u64 = 512;
    if offered_bytes.div_ceil(SECTOR_BYTES) == capacity_bytes.div_ceil(SECTOR_BYTES) {
        return Ok(());
    }
    let reason = format!("its NBD server offers {offered_bytes} bytes, but {capacity_bytes} bytes were captured");
    Err(Error::DiskMap { disk: disk.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_offers_another_size_is_not_read() {
        for (offered, captured) in [(0, 0), (512, 512), (1024, 1000), (1000, 1024)] {
            assert!(check_size("vda", offered, captured).is_ok());
        }
        for (offered, captured) in [(512, 0), (0, 512), (1024, 512), (1 << 60, 1 << 30)] {
            let error = check_size("vda", offered, captured).unwrap_err().to_string();
            assert!(error.contains(&format!("offers {offered} bytes, but {captured} bytes were captured")), "{error}");
        }
    }

    #[test]
    fn a_disk_of_another_size_is_comparable_up_to_the_common_whole_chunks() {
        let map = ChunkMap::default();
        let base =
            |capacity_bytes| Base { bitmap: "", map: &map, lost: &[], capacity_bytes, audit: 0.0, read_all: false };
        let geometry = Geometry { capacity_bytes: (5 << 20) + 512, chunk_bytes: 1 << 20 };
        assert_eq!(base((5 << 20) + 512).comparable(geometry), 6);
        assert_eq!(base(9 << 20).comparable(geometry), 5);
        assert_eq!(base((2 << 20) + 1024).comparable(geometry), 2);
    }
}
