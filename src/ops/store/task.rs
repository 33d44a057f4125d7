//! The task of storing a disk, and its result.

use crate::nbd::NbdUri;
use crate::ops::chunk_map::{ChunkMap, Geometry};
use crate::ops::threads::Parallelism;
use crate::ops::{Error, Result, Stop};
use crate::rate_limiter::RateLimiter;

/// The result of storing one disk.
#[derive(Debug, Default)]
pub(crate) struct StoredDisk {
    pub(crate) map: ChunkMap,
    /// The size of the captured disk.
    pub(crate) capacity_bytes: u64,
    /// The number of bytes read over NBD.
    pub(crate) read_bytes: u64,
    /// The number of those bytes that were new to the repository.
    pub(crate) new_bytes: u64,
    /// The size of the new data in the repository.
    pub(crate) stored_bytes: u64,
    /// Whether the bitmap reported no change since the parent; false without a bitmap.
    pub(crate) is_unchanged: bool,
    /// Chunks that differ from the parent although the bitmap reported them as clean, as (first, count).
    pub(crate) bitmap_mismatches: Vec<(u64, u64)>,
}

/// The outcome of storing a disk.
#[derive(Debug)]
pub(crate) enum StoreOutcome {
    Stored(StoredDisk),
    /// The bitmap cannot be trusted. The disk must be read in full.
    BitmapInvalid {
        reason: String,
        /// The changes that the bitmap missed. The parent may be wrong there.
        bitmap_mismatches: Vec<(u64, u64)>,
    },
}

impl StoreOutcome {
    /// An invalid bitmap without known mismatches.
    pub(super) fn untrusted(reason: impl Into<String>) -> StoreOutcome {
        StoreOutcome::BitmapInvalid { reason: reason.into(), bitmap_mismatches: Vec::new() }
    }
}

/// What to read of a disk.
#[derive(Debug)]
pub(crate) struct DiskTask<'a> {
    /// The disk's target name.
    pub(crate) disk: &'a str,
    /// The address of the disk.
    pub(crate) uri: &'a NbdUri,
    /// The size of the disk in the capture.
    pub(crate) capacity_bytes: u64,
    pub(crate) chunk_bytes: u32,
    /// What the disk continues; `None` reads everything.
    pub(crate) base: Option<Base<'a>>,
    /// The chunks of an earlier point. Those stored in pieces stay so if few of them changed.
    pub(crate) earlier: Option<&'a ChunkMap>,
    /// Limits the speed of reading.
    pub(crate) rate_limit: Option<&'a RateLimiter>,
    /// The threads and memory that its machine may use.
    pub(crate) parallelism: Parallelism,
}

impl DiskTask<'_> {
    /// Waits until this number of bytes may be read. Little data is read ahead, so this may also be called just after
    /// reading.
    pub(super) fn keep_pace(&self, bytes: usize, stop: &Stop) {
        if let Some(rate_limit) = self.rate_limit {
            rate_limit.acquire_while(bytes, || !stop.requested());
        }
    }
}

/// What a disk continues: the parent's chunks, and the bitmap of the changes since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base<'a> {
    /// The NBD meta context of the dirty bitmap.
    pub(crate) bitmap: &'a str,
    pub(crate) map: &'a ChunkMap,
    /// Chunks of the map that the repository has lost, as (first, count), ascending. They are read whatever the bitmap
    /// says.
    pub(crate) lost: &'a [(u64, u64)],
    /// The size of the disk in the parent.
    pub(crate) capacity_bytes: u64,
    /// The share of clean chunks that is read and compared anyway.
    pub(crate) audit: f64,
    /// Whether everything is read and compared anyway.
    pub(crate) read_all: bool,
}

impl Base<'_> {
    /// The number of chunks, from the first, that cover the same ranges of the disk as in the parent. Later ones count
    /// as changed.
    pub(super) fn comparable(&self, geometry: Geometry) -> u64 {
        match self.capacity_bytes == geometry.capacity_bytes {
            true => geometry.chunks(),
            false => self.capacity_bytes.min(geometry.capacity_bytes) / u64::from(geometry.chunk_bytes),
        }
    }
}

/// Refuses a disk whose size differs from that of the captured one. QEMU and libvirt may round sizes to sectors of 512
/// bytes, so such a difference is accepted.
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
    fn export_of_another_size_is_refused() {
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
