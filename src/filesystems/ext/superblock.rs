//! The superblock.

use super::super::blocks::{Blocks, le16, le32, text, uuid};
use super::super::format::FilesystemFormat;
use super::super::{FsError, Result, damaged};

pub(in crate::filesystems) const OFFSET: u64 = 1024;
pub(in crate::filesystems) const BYTES: usize = 1024;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEVICE: u32 = 0x8;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;

/// File types in entries, recovery, meta groups, extents, 64 bits, multiple mount protection, flexible groups,
/// attributes in inodes, checksum seed, large directories, inline data, encryption, case folding.
const SUPPORTED_INCOMPAT: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;

/// The fields of the primary superblock.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) block_bytes: u64,
    pub(super) blocks_count: u64,
    pub(super) inodes_count: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_bytes: u16,
    pub(super) descriptor_bytes: u16,
    pub(super) journal_inode: u32,
    pub(super) label: String,
    pub(super) uuid: Option<String>,
    blocks_per_group: u32,
    first_data_block: u32,
    first_meta_group: u32,
    backup_groups: [u32; 2],
    compat: u32,
    incompat: u32,
    ro_compat: u32,
}

impl Superblock {
    pub(super) fn read(blocks: &Blocks) -> Result<Superblock> {
        let mut bytes = vec![0; BYTES];
        blocks.read_at(OFFSET, &mut bytes)?;
        Superblock::parse(&bytes)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Superblock> {
        if le16(bytes, 56) != 0xef53 {
            return Err(damaged("it has no ext superblock"));
        }
        let incompat = le32(bytes, 96);
        let unknown = incompat & !SUPPORTED_INCOMPAT;
        if unknown != 0 {
            return Err(FsError::Unsupported(format!("ext features {unknown:#x} are not supported")));
        }
        let log_block = le32(bytes, 24);
        if log_block > 6 {
            return Err(damaged("its block size is impossible"));
        }
        let is_old = le32(bytes, 76) == 0;
        let is_64bit = incompat & INCOMPAT_64BIT != 0;
        let high = if is_64bit { u64::from(le32(bytes, 336)) << 32 } else { 0 };
        let superblock = Superblock {
            block_bytes: 1024 << log_block,
            blocks_count: u64::from(le32(bytes, 4)) | high,
            inodes_count: le32(bytes, 0),
            inodes_per_group: le32(bytes, 40),
            inode_bytes: if is_old { 128 } else { le16(bytes, 88) },
            descriptor_bytes: if is_64bit { le16(bytes, 254).max(32) } else { 32 },
            journal_inode: le32(bytes, 224),
            label: text(&bytes[120..136]),
            uuid: uuid(&bytes[104..120]),
            blocks_per_group: le32(bytes, 32),
            first_data_block: le32(bytes, 20),
            first_meta_group: le32(bytes, 260),
            backup_groups: [le32(bytes, 0x24c), le32(bytes, 0x250)],
            compat: le32(bytes, 92),
            incompat,
            ro_compat: le32(bytes, 100),
        };
        let block_bytes = superblock.block_bytes;
        let is_sound = superblock.inodes_per_group > 0
            && superblock.blocks_per_group > 0
            && u64::from(superblock.inode_bytes) <= block_bytes
            && superblock.inode_bytes.is_power_of_two()
            && superblock.inode_bytes >= 128
            && u64::from(superblock.descriptor_bytes) <= block_bytes
            && superblock.blocks_count.checked_mul(block_bytes).is_some()
            && superblock.first_data_block <= 1;
        if is_sound { Ok(superblock) } else { Err(damaged("its superblock is invalid")) }
    }

    pub(super) fn has_dirty_journal(&self) -> bool {
        self.compat & COMPAT_HAS_JOURNAL != 0 && self.incompat & INCOMPAT_RECOVER != 0 && self.journal_inode != 0
    }

    /// Whether there are changes in a journal on another device.
    pub(super) fn needs_external_journal(&self) -> bool {
        self.compat & COMPAT_HAS_JOURNAL != 0 && self.incompat & INCOMPAT_RECOVER != 0 && self.journal_inode == 0
    }

    /// Returns the offset of a group's descriptor, in bytes.
    pub(super) fn descriptor_offset(&self, group: u64) -> u64 {
        let per_block = self.block_bytes / u64::from(self.descriptor_bytes);
        let (descriptor_block, within) = (group / per_block, group % per_block * u64::from(self.descriptor_bytes));
        let first = u64::from(self.first_data_block);
        let is_meta = self.incompat & INCOMPAT_META_BG != 0 && descriptor_block >= u64::from(self.first_meta_group);
        let block = match is_meta {
            // Directly after the superblock, which is in block 1 only if blocks have 1 KiB. With clusters (bigalloc),
            // the first data block is 0 nevertheless.
            false => OFFSET / self.block_bytes + 1 + descriptor_block,
            true => {
                let group = descriptor_block * per_block;
                let start = group.saturating_mul(self.blocks_per_group.into());
                let is_behind = group == 0 && first == 0 && self.block_bytes == OFFSET;
                start.saturating_add(first + u64::from(self.has_superblock(group)) + u64::from(is_behind))
            }
        };
        // If the group does not exist, the result is beyond the end.
        block.saturating_mul(self.block_bytes).saturating_add(within)
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_superblock(&self, group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        match (self.compat & COMPAT_SPARSE_SUPER2 != 0, self.ro_compat & RO_COMPAT_SPARSE_SUPER != 0) {
            (true, _) => group == 0 || self.backup_groups.iter().any(|backup| u64::from(*backup) == group),
            (false, false) => true,
            (false, true) => group <= 1 || [3, 5, 7].into_iter().any(is_power),
        }
    }

    /// Returns the block of a group's inode table.
    pub(super) fn inode_table(&self, descriptor: &[u8]) -> u64 {
        let high = if self.descriptor_bytes >= 64 { u64::from(le32(descriptor, 40)) << 32 } else { 0 };
        u64::from(le32(descriptor, 8)) | high
    }
}

/// Distinguishes ext2, ext3 and ext4: the journal was introduced by ext3, the other features by ext4.
pub(in crate::filesystems) fn format_of(blocks: &Blocks) -> Result<FilesystemFormat> {
    let mut bytes = vec![0; BYTES];
    blocks.read_at(OFFSET, &mut bytes)?;
    let (compat, incompat, ro_compat) = (le32(&bytes, 92), le32(&bytes, 96), le32(&bytes, 100));
    let is_ext4 = incompat & !(0x2 | INCOMPAT_RECOVER | INCOMPAT_META_BG) & !INCOMPAT_JOURNAL_DEVICE != 0
        || incompat & INCOMPAT_EXTENTS != 0
        || ro_compat & !0x7 != 0;
    Ok(match (is_ext4, compat & COMPAT_HAS_JOURNAL != 0) {
        (true, _) => FilesystemFormat::Ext4,
        (false, true) => FilesystemFormat::Ext3,
        (false, false) => FilesystemFormat::Ext2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_descriptors_follow_the_superblock_with_bigalloc_too() {
        let put = |bytes: &mut Vec<u8>, at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let offset = |log_block: u32, first_data_block: u32, incompat: u32| {
            let mut bytes = vec![0; BYTES];
            let fields =
                [(0, 16), (4, 64), (20, first_data_block), (24, log_block), (32, 8192), (40, 16), (56, 0xef53)];
            for (at, value) in fields.into_iter().chain([(76, 1), (88, 256), (96, incompat)]) {
                put(&mut bytes, at, value);
            }
            Superblock::parse(&bytes).unwrap().descriptor_offset(0)
        };
        // Blocks of 1 KiB: as made by mkfs.ext4, and with -O bigalloc.
        assert_eq!((offset(0, 1, 0), offset(0, 0, 0)), (2048, 2048));
        assert_eq!((offset(0, 1, INCOMPAT_META_BG), offset(0, 0, INCOMPAT_META_BG)), (2048, 2048));
        assert_eq!((offset(2, 0, 0), offset(2, 0, INCOMPAT_META_BG)), (4096, 4096));
    }
}
