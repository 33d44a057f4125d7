//! Linux software RAID whose metadata is at the end of its devices (versions 0.90 and 1.0).
//!
//! The first device of a striped array begins like the file system on the array, but has only some of its blocks. A
//! mirror has all of them, and is read without its array.

use super::Result;
use super::blocks::{Blocks, le32, le64};

const SECTOR: u64 = 512;

const MAGIC: u32 = 0xa92b_4efc;

/// The level of a mirror. Others are -1 for linear, 0, 4, 5, 6 and 10.
const MIRROR: u32 = 1;

/// The metadata of version 0.90 is in the last aligned block of this size.
const OLD_BLOCK: u64 = 64 << 10;

/// Returns whether this is a device of an array that is not a mirror, with its metadata at the end.
pub(super) fn is_striped_member(blocks: &Blocks) -> Result<bool> {
    Ok(new_level(blocks)?.or(old_level(blocks)?).is_some_and(|level| level != MIRROR))
}

/// Reads the level from the metadata of version 1.0, which records its own position.
fn new_level(blocks: &Blocks) -> Result<Option<u32>> {
    let Some(sector) = (blocks.size_bytes() / SECTOR).checked_sub(16).map(|sector| sector & !7) else {
        return Ok(None);
    };
    let mut metadata = [0; 256];
    blocks.read_at(sector * SECTOR, &mut metadata)?;
    let is_metadata = le32(&metadata, 0) == MAGIC && le32(&metadata, 4) == 1 && le64(&metadata, 144) == sector;
    Ok(is_metadata.then(|| le32(&metadata, 72)))
}

/// Reads the level from the metadata of version 0.90. It does not say where it is: that of the last partition may be
/// where that of the disk would be. Its size of each device, in KiB, tells them apart.
fn old_level(blocks: &Blocks) -> Result<Option<u32>> {
    let Some(at) = (blocks.size_bytes() & !(OLD_BLOCK - 1)).checked_sub(OLD_BLOCK) else { return Ok(None) };
    let mut metadata = [0; 64];
    blocks.read_at(at, &mut metadata)?;
    let device_bytes = u64::from(le32(&metadata, 32)) << 10;
    let is_metadata = le32(&metadata, 0) == MAGIC
        && (le32(&metadata, 4), le32(&metadata, 8)) == (0, 90)
        && (device_bytes == 0 || at.checked_sub(device_bytes).is_some_and(|unused| unused < 1 << 20));
    Ok(is_metadata.then(|| le32(&metadata, 28)))
}

#[cfg(test)]
mod tests {
    use super::super::blocks::tests::MemoryBlocks;
    use super::*;
    use std::rc::Rc;

    const SIZE: usize = 1 << 20;

    /// Returns a device with these 32-bit numbers at its end: offset from the metadata's start, and value.
    fn device(at: usize, numbers: &[(usize, u32)]) -> Blocks {
        let mut bytes = vec![0; SIZE];
        for (offset, number) in numbers {
            bytes[at + offset..at + offset + 4].copy_from_slice(&number.to_le_bytes());
        }
        Rc::new(MemoryBlocks(bytes))
    }

    #[test]
    fn devices_of_striped_arrays_are_recognized_by_metadata_at_their_end() {
        let new = |level, position: usize| {
            let at = SIZE - 8192;
            device(at, &[(0, MAGIC), (4, 1), (72, level), (144, (position / 512) as u32)])
        };
        let old = |level, kib| device(SIZE - 65_536, &[(0, MAGIC), (8, 90), (28, level), (32, kib)]);
        for (level, is_striped) in [(0, true), (u32::MAX, true), (5, true), (10, true), (MIRROR, false)] {
            assert_eq!(is_striped_member(&new(level, SIZE - 8192)), Ok(is_striped), "{level}");
            assert_eq!(is_striped_member(&old(level, 960)), Ok(is_striped), "{level}");
        }
        // The metadata is that of a partition.
        assert_eq!(is_striped_member(&new(0, SIZE - 16_384)), Ok(false));
        let bytes = vec![0; 3 << 20];
        let mut whole = bytes.clone();
        let at = bytes.len() - 65_536;
        for (offset, number) in [(0, MAGIC), (8, 90), (32, (at as u32 >> 10) - 1024)] {
            whole[at + offset..at + offset + 4].copy_from_slice(&number.to_le_bytes());
        }
        assert_eq!(is_striped_member(&(Rc::new(MemoryBlocks(whole)) as Blocks)), Ok(false));
        for size in [0, 100, 8192, 65_536] {
            assert_eq!(is_striped_member(&(Rc::new(MemoryBlocks(vec![0; size])) as Blocks)), Ok(false));
        }
    }
}
