//! The journal (jbd2): overlays blocks that are committed in the journal but not yet written to the file system.
//!
//! Nothing is copied: a replaced block is read from the journal. As in Linux, the journal ends at the first block that
//! does not belong to the next transaction, or at a commit with a wrong checksum.

use super::super::blocks::{be16, be32};
use super::super::{FsError, Result, damaged};
use super::extents;
use super::overlay::{JOURNAL_MAGIC, JournalOverlay, Replacement, TagChecksum, crc};
use super::volume::ExtVolume;
use std::collections::BTreeMap;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;

/// Revokes, 64 bits, asynchronous commits, checksums (v2 and v3), fast commits.
const SUPPORTED_INCOMPAT: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20;

const DEFAULT_FAST_COMMIT_BLOCKS: u64 = 256;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

/// The journal's superblock, and how to find its blocks.
struct Journal<'e> {
    volume: &'e ExtVolume,
    runs: Vec<extents::BlockRun>,
    /// The first block of the log, and the one after the last.
    first: u64,
    end: u64,
    start: u64,
    sequence: u32,
    incompat: u32,
    seed: u32,
}

impl Journal<'_> {
    fn physical(&self, block: u64) -> Result<u64> {
        let at = self.runs.partition_point(|run| run.logical + run.blocks <= block);
        let run = self.runs.get(at).filter(|run| run.logical <= block);
        run.map(|run| run.physical + block - run.logical).ok_or_else(|| damaged("the journal has a hole"))
    }

    fn read(&self, block: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.volume.block_bytes() as usize];
        self.volume.read_raw_block(self.physical(block)?, &mut bytes)?;
        Ok(bytes)
    }

    fn next(&self, block: u64) -> u64 {
        if block + 1 >= self.end { self.first } else { block + 1 }
    }

    fn has_checksums(&self) -> bool {
        self.incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0
    }

    /// Whether the checksum at the end of a descriptor or revoke block is correct.
    fn tail_is_right(&self, block: &[u8]) -> bool {
        let (body, tail) = block.split_at(block.len() - 4);
        !self.has_checksums() || crc(self.seed, &[body, &[0; 4]]) == be32(tail, 0)
    }

    fn commit_is_right(&self, block: &[u8]) -> bool {
        !self.has_checksums() || crc(self.seed, &[&block[..16], &[0; 4], &block[20..]]) == be32(block, 16)
    }

    /// Returns the blocks that a descriptor lists: number, whether escaped, checksum.
    fn tags(&self, descriptor: &[u8]) -> Vec<(u64, bool, Option<TagChecksum>)> {
        let is_64bit = self.incompat & INCOMPAT_64BIT != 0;
        let is_v3 = self.incompat & INCOMPAT_CSUM_V3 != 0;
        let tag_bytes = match (is_v3, self.incompat & INCOMPAT_CSUM_V2 != 0) {
            (true, _) => 16,
            (false, is_v2) => 8 + if is_v2 { 2 } else { 0 } + if is_64bit { 4 } else { 0 },
        };
        let end = descriptor.len() - if self.has_checksums() { 4 } else { 0 };
        let (mut at, mut tags) = (12, Vec::new());
        while at + tag_bytes <= end {
            let tag = &descriptor[at..at + tag_bytes];
            let flags = if is_v3 { be32(tag, 4) } else { u32::from(be16(tag, 6)) };
            let high = if is_64bit { u64::from(be32(tag, 8)) << 32 } else { 0 };
            let checksum = match self.has_checksums() {
                true if is_v3 => Some(TagChecksum { seed: self.seed, value: be32(tag, 12), mask: u32::MAX }),
                true => Some(TagChecksum { seed: self.seed, value: be16(tag, 4).into(), mask: 0xffff }),
                false => None,
            };
            tags.push((u64::from(be32(tag, 0)) | high, flags & TAG_ESCAPED != 0, checksum));
            at += tag_bytes + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        tags
    }

    fn revoked(&self, block: &[u8]) -> Vec<u64> {
        let width = if self.incompat & INCOMPAT_64BIT != 0 { 8 } else { 4 };
        let end = (be32(block, 12) as usize).min(block.len());
        let numbers = block.get(16..end).unwrap_or_default().chunks_exact(width);
        numbers
            .map(|number| match width {
                8 => u64::from(be32(number, 0)) << 32 | u64::from(be32(number, 4)),
                _ => be32(number, 0).into(),
            })
            .collect()
    }
}

fn open<'e>(volume: &'e ExtVolume, runs: Vec<extents::BlockRun>) -> Result<Journal<'e>> {
    let mut journal = Journal { volume, runs, first: 0, end: 0, start: 0, sequence: 0, incompat: 0, seed: 0 };
    let superblock = journal.read(0)?;
    let version = be32(&superblock, 4);
    if be32(&superblock, 0) != JOURNAL_MAGIC || !matches!(version, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
        return Err(damaged("its journal has no superblock"));
    }
    if u64::from(be32(&superblock, 12)) != volume.block_bytes() {
        return Err(damaged("the blocks of its journal have another size"));
    }
    if version == SUPERBLOCK_V2 {
        journal.incompat = be32(&superblock, 40);
    }
    let unknown = journal.incompat & !SUPPORTED_INCOMPAT;
    if unknown != 0 {
        return Err(FsError::Unsupported(format!("features {unknown:#x} of the ext journal are not supported")));
    }
    let blocks: u64 = journal.runs.iter().map(|run| run.blocks).sum();
    journal.end = u64::from(be32(&superblock, 16)).min(blocks);
    if journal.incompat & INCOMPAT_FAST_COMMIT != 0 {
        let fast = u64::from(be32(&superblock, 84));
        journal.end = journal.end.saturating_sub(if fast == 0 { DEFAULT_FAST_COMMIT_BLOCKS } else { fast });
    }
    journal.first = be32(&superblock, 20).into();
    journal.start = be32(&superblock, 28).into();
    journal.sequence = be32(&superblock, 24);
    journal.seed = crc(u32::MAX, &[&superblock[48..64]]);
    if journal.start != 0 && !(journal.first..journal.end).contains(&journal.start) {
        return Err(damaged("its journal has no start"));
    }
    Ok(journal)
}

/// A partially read transaction.
#[derive(Default)]
struct Transaction {
    blocks: Vec<(u64, Replacement)>,
    revoked: Vec<u64>,
}

/// Reads the journal.
pub(super) fn scan(volume: &ExtVolume) -> Result<JournalOverlay> {
    let inode = volume.inode(volume.superblock.journal_inode.into())?;
    let runs = extents::read(volume, &inode)?;
    let journal = open(volume, runs)?;
    let mut overlay = JournalOverlay::default();
    if journal.start == 0 {
        return Ok(overlay);
    }
    // The last transaction that revoked each block: entries in that or an earlier transaction do not count.
    let mut revoked = BTreeMap::<u64, u32>::new();
    let mut replayed = Vec::new();
    let (mut at, mut sequence) = (journal.start, journal.sequence);
    let mut transaction = Transaction::default();
    let mut left = journal.end - journal.first;
    while left > 0 {
        let block = journal.read(at)?;
        if be32(&block, 0) != JOURNAL_MAGIC || be32(&block, 8) != sequence {
            break;
        }
        left -= 1;
        at = journal.next(at);
        match be32(&block, 4) {
            DESCRIPTOR if journal.tail_is_right(&block) => {
                for (target, is_escaped, checksum) in journal.tags(&block) {
                    let block = journal.physical(at)?;
                    transaction.blocks.push((target, Replacement { block, is_escaped, sequence, checksum }));
                    at = journal.next(at);
                    left = left.saturating_sub(1);
                }
            }
            REVOKE if journal.tail_is_right(&block) => transaction.revoked.extend(journal.revoked(&block)),
            COMMIT if journal.commit_is_right(&block) => {
                let Transaction { blocks, revoked: numbers } = std::mem::take(&mut transaction);
                revoked.extend(numbers.into_iter().map(|number| (number, sequence)));
                replayed.extend(blocks);
                sequence = sequence.wrapping_add(1);
            }
            _ => break,
        }
    }
    for (target, replacement) in replayed {
        let is_revoked =
            revoked.get(&target).is_some_and(|last| replacement.sequence.wrapping_sub(*last).cast_signed() <= 0);
        if !is_revoked {
            overlay.0.insert(target, replacement);
        }
    }
    Ok(overlay)
}
