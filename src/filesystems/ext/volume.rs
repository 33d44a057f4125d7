//! The blocks and inodes of a file system, with the journal applied.

use super::super::blocks::Blocks;
use super::super::{Result, damaged};
use super::inode::Inode;
use super::overlay::JournalOverlay;
use super::superblock::Superblock;

/// An ext file system without knowledge of files.
pub(super) struct ExtVolume {
    pub(super) blocks: Blocks,
    pub(super) superblock: Superblock,
    pub(super) overlay: JournalOverlay,
}

impl ExtVolume {
    pub(super) fn block_bytes(&self) -> u64 {
        self.superblock.block_bytes
    }

    /// Reads a block of the file system, with the journal applied.
    pub(super) fn read_block(&self, number: u64, buffer: &mut [u8]) -> Result<()> {
        match self.overlay.get(number) {
            Some(replacement) => {
                self.read_raw_block(replacement.block, buffer)?;
                replacement.finish(buffer)
            }
            None => self.read_raw_block(number, buffer),
        }
    }

    /// Reads a block from the disk, without the journal.
    pub(super) fn read_raw_block(&self, number: u64, buffer: &mut [u8]) -> Result<()> {
        let offset = number.checked_mul(self.block_bytes());
        let offset = offset.filter(|_| number < self.superblock.blocks_count);
        self.blocks.read_at(offset.ok_or_else(|| damaged(format!("block {number} does not exist")))?, buffer)
    }

    /// Reads bytes of the file system, regardless of block boundaries.
    pub(super) fn read_bytes(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let block_bytes = self.block_bytes();
        let (mut at, mut rest) = (offset, buffer);
        let mut block = vec![0; block_bytes as usize];
        while !rest.is_empty() {
            let begin = (at % block_bytes) as usize;
            let length = rest.len().min(block_bytes as usize - begin);
            self.read_block(at / block_bytes, &mut block)?;
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&block[begin..begin + length]);
            at += length as u64;
            rest = later;
        }
        Ok(())
    }

    /// Reads adjacent blocks, with a single read if the journal has none of them.
    pub(super) fn read_blocks(&self, first: u64, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let count = (offset + buffer.len() as u64).div_ceil(self.block_bytes());
        let end = first.checked_add(count).filter(|end| *end <= self.superblock.blocks_count);
        let end = end.ok_or_else(|| damaged(format!("blocks {first} and following do not exist")))?;
        let start = first * self.block_bytes() + offset;
        if self.overlay.has_any(first, end) {
            return self.read_bytes(start, buffer);
        }
        self.blocks.read_at(start, buffer)
    }

    pub(super) fn inode(&self, number: u64) -> Result<Inode> {
        let superblock = &self.superblock;
        if number == 0 || number > u64::from(superblock.inodes_count) {
            return Err(damaged(format!("inode {number} does not exist")));
        }
        let group = (number - 1) / u64::from(superblock.inodes_per_group);
        let index = (number - 1) % u64::from(superblock.inodes_per_group);
        let mut descriptor = vec![0; superblock.descriptor_bytes as usize];
        self.read_bytes(superblock.descriptor_offset(group), &mut descriptor)?;
        let table = superblock.inode_table(&descriptor);
        let mut bytes = vec![0; usize::from(superblock.inode_bytes)];
        let offset = table.checked_mul(self.block_bytes());
        let offset = offset.and_then(|offset| offset.checked_add(index * u64::from(superblock.inode_bytes)));
        self.read_bytes(offset.ok_or_else(|| damaged("an inode table has no location"))?, &mut bytes)?;
        Inode::parse(number, bytes)
    }
}
