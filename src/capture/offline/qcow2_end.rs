//! Detects whether a qcow2 image is truncated within its data (pure).
//!
//! An interrupted copy or a full file system leaves an image with an intact header. QEMU opens it and reads data beyond
//! the end as zeros, without an error. `qemu-img check` detects this, but reads all tables. Here, the reference counts
//! (`docs/interop/qcow2.txt` of QEMU) first show where the last used cluster begins, which takes one or two reads. Only
//! if that is beyond the end are the L1 and L2 tables read, because a cluster that was reserved when QEMU was killed is
//! counted too, although nothing refers to it.

use std::io;

use super::image_bytes::{HeaderBytes, ReadAt};

/// QEMU's limit for a refcount table.
const MAX_COUNTS_TABLE_BYTES: u64 = 8 << 20;
/// QEMU's limit for an L1 table.
const MAX_L1_BYTES: u64 = 32 << 20;
/// The maximum size of L2 tables that is read, because a malicious image may refer to one table repeatedly. It is
/// enough for 8 TiB with clusters of 64 KiB.
const MAX_L2_BYTES: u64 = 1 << 30;
/// The bits of a table entry with the offset of its cluster.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const IS_COMPRESSED: u64 = 1 << 62;

/// Whether a cluster with data of the guest begins beyond the end of the image.
///
/// Unreadable data and invalid tables do not count. QEMU itself reports those.
pub(super) fn is_cut_off(image: &dyn ReadAt, header: &HeaderBytes) -> bool {
    let tables = Tables::of(image, header);
    tables.and_then(|tables| Ok(tables.counts_go_beyond()? && tables.data_goes_beyond()?)).unwrap_or(false)
}

struct Tables<'a> {
    image: &'a dyn ReadAt,
    cluster_bits: u32,
    counts_at: u64,
    counts_bytes: u64,
    /// The size of a reference count in bits.
    count_bits: u64,
    l1_at: u64,
    l1_bytes: u64,
    /// The size of an L2 entry in bytes. It is doubled if clusters have subclusters.
    l2_entry_bytes: usize,
}

impl<'a> Tables<'a> {
    fn of(image: &'a dyn ReadAt, header: &HeaderBytes) -> io::Result<Tables<'a>> {
        let is_new = header.u32(4)? >= 3;
        let has_parts = is_new && header.u64(72)? & 16 != 0;
        let cluster_bits = header.u32(20)?;
        let count_order = if is_new { header.u32(96)? } else { 4 };
        if !(9..=21).contains(&cluster_bits) || count_order > 6 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Tables {
            image,
            cluster_bits,
            counts_at: header.u64(48)?,
            counts_bytes: (u64::from(header.u32(56)?) << cluster_bits).min(MAX_COUNTS_TABLE_BYTES),
            count_bits: 1 << count_order,
            l1_at: header.u64(40)?,
            l1_bytes: (u64::from(header.u32(36)?) * 8).min(MAX_L1_BYTES),
            l2_entry_bytes: if has_parts { 16 } else { 8 },
        })
    }

    /// Whether a cluster beyond the end is in use according to the reference counts.
    fn counts_go_beyond(&self) -> io::Result<bool> {
        let table = numbers(&self.image.read_at(self.counts_at, self.counts_bytes as usize)?, 8);
        let cluster_bytes = 1_u64 << self.cluster_bits;
        let clusters_per_block = cluster_bytes * 8 / self.count_bits;
        for (at, entry) in table.iter().enumerate().rev().filter(|(_, entry)| **entry != 0) {
            let block_at = entry & !511;
            if self.is_beyond(block_at)? {
                return Ok(true);
            }
            let block = self.image.read_at(block_at, cluster_bytes as usize)?;
            if let Some(last) = block.iter().rposition(|byte| *byte != 0) {
                let last_of_block = last as u64 * 8 / self.count_bits;
                return self.is_beyond((at as u64 * clusters_per_block + last_of_block) << self.cluster_bits);
            }
        }
        Ok(false)
    }

    /// Whether an L2 table or a data cluster begins beyond the end.
    fn data_goes_beyond(&self) -> io::Result<bool> {
        let l1 = numbers(&self.image.read_at(self.l1_at, self.l1_bytes as usize)?, 8);
        let l2_tables = l1.into_iter().map(|entry| entry & OFFSET_MASK).filter(|at| *at != 0);
        for l2_at in l2_tables.take((MAX_L2_BYTES >> self.cluster_bits) as usize) {
            let l2 = self.image.read_at(l2_at, 1 << self.cluster_bits)?;
            let begins = numbers(&l2, self.l2_entry_bytes).into_iter().map(|entry| self.data_at(entry));
            if l2.is_empty() || self.is_beyond(begins.max().unwrap_or(0))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The offset of an entry's data; 0 if it has none in this image.
    fn data_at(&self, l2_entry: u64) -> u64 {
        if l2_entry & IS_COMPRESSED != 0 {
            return l2_entry & ((1 << (62 - (self.cluster_bits - 8))) - 1);
        }
        // Bit 0 means that the cluster reads as zeros. With subclusters, this is stored elsewhere.
        let is_zero = self.l2_entry_bytes == 8 && l2_entry & 1 != 0;
        if is_zero { 0 } else { l2_entry & OFFSET_MASK }
    }

    fn is_beyond(&self, offset: u64) -> io::Result<bool> {
        Ok(self.image.read_at(offset, 1)?.is_empty())
    }
}

/// The first number of each entry.
fn numbers(table: &[u8], entry_bytes: usize) -> Vec<u64> {
    let first = |entry: &[u8]| entry.first_chunk().map_or(0, |number| u64::from_be_bytes(*number));
    table.chunks_exact(entry_bytes).map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// An image whose tables are all equal, and that ends before a cluster that is in use according to its reference
    /// counts.
    struct Repeating {
        read_bytes: Cell<u64>,
    }

    const END: u64 = 1 << 40;

    impl ReadAt for Repeating {
        fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
            let length = length.min(END.saturating_sub(offset) as usize);
            self.read_bytes.set(self.read_bytes.get() + length as u64);
            // The refcount table, then the L1 table. The L2 table has no data.
            let entry = match offset {
                0x20_0000 => END,
                0x40_0000 => 0x60_0000,
                _ => return Ok(vec![0; length]),
            };
            Ok(entry.to_be_bytes().repeat(length / 8))
        }
    }

    #[test]
    fn oversized_tables_are_read_only_up_to_the_limit() {
        let mut header = vec![0; 112];
        let fields = [(4, 3), (20, 21), (36, u32::MAX), (44, 0x40_0000), (52, 0x20_0000), (56, 1), (96, 4)];
        for (at, value) in fields {
            header[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
        }
        let image = Repeating { read_bytes: Cell::new(0) };
        assert!(!is_cut_off(&image, &HeaderBytes(header)));
        assert!((MAX_L2_BYTES..2 * MAX_L2_BYTES).contains(&image.read_bytes.get()), "{}", image.read_bytes.get());
    }
}
