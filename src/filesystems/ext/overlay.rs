//! Journal blocks that replace blocks of the file system.

use super::super::{Result, damaged};
use crc::{CRC_32_ISCSI, Crc, Digest};
use std::collections::BTreeMap;

/// The beginning of every metadata block of the journal.
pub(super) const JOURNAL_MAGIC: u32 = 0xc03b_3998;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A journal block that replaces a block of the file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replacement {
    /// Its number on the disk.
    pub(super) block: u64,
    /// Whether its first four bytes were replaced by zeros, because they equal the journal's magic number.
    pub(super) is_escaped: bool,
    pub(super) sequence: u32,
    pub(super) checksum: Option<TagChecksum>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TagChecksum {
    pub(super) seed: u32,
    pub(super) value: u32,
    pub(super) mask: u32,
}

impl Replacement {
    /// Converts a block from its form in the journal to its form in the file system, after verifying its checksum.
    pub(super) fn finish(&self, buffer: &mut [u8]) -> Result<()> {
        if let Some(checksum) = self.checksum {
            let found = crc(checksum.seed, &[&self.sequence.to_be_bytes(), buffer]);
            if found & checksum.mask != checksum.value {
                return Err(damaged(format!("a block of the journal, {}, has a wrong checksum", self.block)));
            }
        }
        if self.is_escaped {
            buffer[..4].copy_from_slice(&JOURNAL_MAGIC.to_be_bytes());
        }
        Ok(())
    }
}

/// The blocks that the journal replaces.
#[derive(Debug, Default)]
pub(super) struct JournalOverlay(pub(super) BTreeMap<u64, Replacement>);

impl JournalOverlay {
    pub(super) fn get(&self, block: u64) -> Option<&Replacement> {
        self.0.get(&block)
    }

    /// Whether any of the blocks from `first` to before `end` is replaced.
    pub(super) fn has_any(&self, first: u64, end: u64) -> bool {
        self.0.range(first..end).next().is_some()
    }
}

/// Returns the CRC-32C in the kernel's variant: without the final inversion, so that it can be continued.
pub(super) fn crc(seed: u32, parts: &[&[u8]]) -> u32 {
    // The crate expects the initial value bit-reversed.
    let mut digest: Digest<'_, u32> = CRC.digest_with_initial(seed.reverse_bits());
    parts.iter().for_each(|part| digest.update(part));
    !digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_crc32c_without_final_inversion() {
        // The CRC-32C of "123456789" is e3069283 after the inversion that the kernel omits.
        assert_eq!(crc(u32::MAX, &[b"123456789"]), !0xe306_9283);
        assert_eq!(crc(u32::MAX, &[b"1234", b"56789"]), !0xe306_9283);
        assert_eq!(crc(crc(u32::MAX, &[b"1234"]), &[b"56789"]), !0xe306_9283);
    }
}
