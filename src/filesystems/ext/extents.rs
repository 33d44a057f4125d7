//! The location of a file's blocks.

use super::super::blocks::{le16, le32};
use super::super::{FsError, Result, damaged};
use super::inode::Inode;
use super::volume::ExtVolume;

/// A contiguous run of a file's blocks on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockRun {
    /// The number of its first block within the file.
    pub(super) logical: u64,
    pub(super) blocks: u64,
    /// The number of its first block on the disk.
    pub(super) physical: u64,
}

const EXTENT_MAGIC: u16 = 0xf30a;

/// "The maximum depth is 5".
const MOST_LEVELS: u16 = 5;

/// Longer extents are allocated but unwritten: they read as zeros.
const MOST_WRITTEN: u16 = 32768;

/// Maximum number of tree or map blocks read for one file: a tree block has 340 extents; a map block, 1024 block
/// numbers.
const MOST_TREE_BLOCKS: u64 = 4 << 20;

/// Maximum number of tree or map blocks for data blocks beyond the end of a file, which are preallocated.
const TREE_BLOCKS_BEYOND_END: u64 = 1024;

/// Maximum number of runs of one file.
const MOST_RUNS: usize = 4 << 20;

/// Returns the runs of a file in order, without holes and unwritten extents.
pub(super) fn read(volume: &ExtVolume, inode: &Inode) -> Result<Vec<BlockRun>> {
    let most_blocks = TREE_BLOCKS_BEYOND_END.saturating_add(inode.size_bytes.div_ceil(volume.block_bytes()));
    let blocks_left = most_blocks.min(MOST_TREE_BLOCKS);
    let mut reader = Reader { volume, runs: Vec::new(), blocks_left, next_logical: 0 };
    match inode.has_extents() {
        true => reader.extents(inode.block_area(), None)?,
        false => reader.map(inode)?,
    }
    Ok(reader.runs)
}

struct Reader<'e> {
    volume: &'e ExtVolume,
    runs: Vec<BlockRun>,
    blocks_left: u64,
    /// Everything before this block is done, because a tree is sorted.
    next_logical: u64,
}

impl Reader<'_> {
    fn read_block(&mut self, number: u64) -> Result<Vec<u8>> {
        let left = self.blocks_left.checked_sub(1);
        self.blocks_left = left.ok_or_else(|| damaged("a file's list of blocks does not end"))?;
        let mut block = vec![0; self.volume.block_bytes() as usize];
        self.volume.read_block(number, &mut block)?;
        Ok(block)
    }

    fn push(&mut self, logical: u64, blocks: u64, physical: u64) -> Result<()> {
        let is_full = self.runs.len() >= MOST_RUNS;
        match self.runs.last_mut() {
            Some(last) if last.logical + last.blocks == logical && last.physical + last.blocks == physical => {
                last.blocks += blocks;
            }
            _ if is_full => {
                return Err(FsError::Unsupported("the file has more than 4 million fragments".into()));
            }
            _ => self.runs.push(BlockRun { logical, blocks, physical }),
        }
        Ok(())
    }

    /// Reads a node of an extent tree. `level` is its required depth.
    fn extents(&mut self, node: &[u8], level: Option<u16>) -> Result<()> {
        let (entries, most, depth) = (usize::from(le16(node, 2)), usize::from(le16(node, 4)), le16(node, 6));
        let is_sound = le16(node, 0) == EXTENT_MAGIC
            && entries <= most
            && 12 * (entries + 1) <= node.len()
            && depth <= MOST_LEVELS
            && level.is_none_or(|level| level == depth);
        if !is_sound {
            return Err(damaged("a node of an extent tree is invalid"));
        }
        for entry in node[12..].chunks_exact(12).take(entries) {
            let logical = u64::from(le32(entry, 0));
            if logical < self.next_logical {
                return Err(damaged("an extent tree is not in order"));
            }
            if depth > 0 {
                let child = u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32;
                let child = self.read_block(child)?;
                self.extents(&child, Some(depth - 1))?;
                continue;
            }
            let length = le16(entry, 4);
            let (blocks, is_written) = match length {
                length if length > MOST_WRITTEN => (u64::from(length - MOST_WRITTEN), false),
                length => (u64::from(length), true),
            };
            self.next_logical = logical + blocks;
            if is_written && blocks > 0 {
                let physical = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
                self.push(logical, blocks, physical)?;
            }
        }
        Ok(())
    }

    /// Reads a block map: twelve direct blocks, then one, two and three levels of indirect blocks.
    fn map(&mut self, inode: &Inode) -> Result<()> {
        let area = inode.block_area();
        let limit = inode.size_bytes.div_ceil(self.volume.block_bytes());
        for slot in 0..15 {
            let level = (slot as u32).saturating_sub(11);
            self.mapped(le32(area, 4 * slot), level, limit)?;
        }
        Ok(())
    }

    fn mapped(&mut self, number: u32, level: u32, limit: u64) -> Result<()> {
        let per_block = self.volume.block_bytes() / 4;
        let covered = per_block.pow(level);
        if number == 0 || self.next_logical >= limit {
            self.next_logical += covered;
            return Ok(());
        }
        if level == 0 {
            self.push(self.next_logical, 1, number.into())?;
            self.next_logical += 1;
            return Ok(());
        }
        let block = self.read_block(number.into())?;
        block.chunks_exact(4).try_for_each(|entry| self.mapped(le32(entry, 0), level - 1, limit))
    }
}

/// Fills a buffer from runs; bytes outside of them are zero.
pub(super) fn read_runs(volume: &ExtVolume, runs: &[BlockRun], offset: u64, buffer: &mut [u8]) -> Result<()> {
    let block_bytes = volume.block_bytes();
    let (mut at, end) = (offset, offset + buffer.len() as u64);
    while at < end {
        let block = at / block_bytes;
        let next = runs.partition_point(|run| run.logical + run.blocks <= block);
        let rest = &mut buffer[(at - offset) as usize..];
        match runs.get(next) {
            Some(run) if run.logical <= block => {
                let until = ((run.logical + run.blocks) * block_bytes).min(end);
                let within = at - run.logical * block_bytes;
                let (first, within) = (run.physical + within / block_bytes, within % block_bytes);
                volume.read_blocks(first, within, &mut rest[..(until - at) as usize])?;
                at = until;
            }
            hole => {
                let until = hole.map_or(end, |run| (run.logical * block_bytes).min(end));
                rest[..(until - at) as usize].fill(0);
                at = until;
            }
        }
    }
    Ok(())
}
