//! XFS, by the crate `lamxfs`, which replays the log in memory.
//!
//! The crate provides the content and size of a file. Owner, times, links, devices and holes are read here from the
//! inode ("XFS Algorithms & Data Structures", 3rd edition). If the log is not empty, it may contain a newer inode than
//! the disk, and only the crate has the replayed data. So the crate is asked for the content of a file that does not
//! exist (the window file), whose only block is the one that contains the inode:
//!
//! ```text
//! read_file_at(window) ─ inode of the window? ─→ WindowedReads makes it up, where the log begins: nothing that is
//!        │                                        replayed is there
//!        └─ its block ─→ disk, and what was replayed over it ─→ the inode that is wanted
//! ```
//! Extended attributes are not read.

use super::blocks::{Blocks, be16, be32, be64};
use super::noted_reads::{NotedReads, ReadFailure};
use super::{
    DataRange, FsError, GuestFilesystem, InodeKind, InodeMetadata, Node, OpenedFilesystem, Result, Timestamp, damaged,
    push_range,
};
use lamxfs::{BlockRead, Inode, Path, SuperblockReason, Xfs};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// `XFS_DIFLAG2_BIGTIME`: times are nanoseconds since 1901.
const FLAG_BIGTIME: u64 = 8;

/// `XFS_DIFLAG2_NREXT64`: the number of extents has 64 bits, elsewhere.
const FLAG_LARGE_COUNTS: u64 = 16;

/// `XFS_DINODE_FMT_EXTENTS`: the inode contains the list of extents.
const FORMAT_EXTENTS: u8 = 2;

/// `XFS_MAX_BLOCKSIZE`
const MAX_BLOCK_BYTES: u64 = 64 << 10;

/// The block of the file system that the window file shows.
type WindowBlock = Rc<Cell<Option<u64>>>;

/// The disk, with the inode of the window file inserted.
struct WindowedReads {
    disk: NotedReads,
    /// The position of the window file's inode.
    window_at: Option<u64>,
    block: WindowBlock,
}

impl BlockRead for WindowedReads {
    type Error = FsError;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::result::Result<(), FsError> {
        match self.block.get() {
            Some(block) if self.window_at == Some(offset) && buffer.len() >= window_inode(block).len() => {
                let inode = window_inode(block);
                buffer.fill(0);
                buffer[..inode.len()].copy_from_slice(&inode);
                Ok(())
            }
            _ => self.disk.read(offset, buffer),
        }
    }
}

/// Returns the inode of a regular file with one extent, which is this block. Uses version 2, whose inodes have no
/// checksum.
fn window_inode(block: u64) -> [u8; 116] {
    let mut inode = [0; 116];
    inode[..2].copy_from_slice(b"IN");
    inode[2..4].copy_from_slice(&0o100_000_u16.to_be_bytes());
    inode[4] = 2;
    inode[5] = FORMAT_EXTENTS;
    inode[56..64].copy_from_slice(&MAX_BLOCK_BYTES.to_be_bytes());
    inode[76..80].copy_from_slice(&1_u32.to_be_bytes());
    // The extent: 1 bit for the state, 54 for the offset in the file, 52 for the block, 21 for the number of blocks.
    inode[100..108].copy_from_slice(&(block >> 43).to_be_bytes());
    inode[108..].copy_from_slice(&(block << 21 | 1).to_be_bytes());
    inode
}

struct XfsVolume {
    xfs: Xfs<WindowedReads>,
    window: WindowBlock,
    failure: ReadFailure,
    geometry: XfsGeometry,
    /// The path of each known file, because the crate reads directories and links by path.
    paths: HashMap<u64, Vec<u8>>,
}

/// The parameters for locating an inode.
struct XfsGeometry {
    root: u64,
    /// The first block of the log, encoded as in an extent: the group, then the block in it.
    log_start: u64,
    group_blocks: u64,
    block_log: u32,
    inode_bytes: usize,
    inodes_per_block_log: u32,
    group_blocks_log: u32,
}

impl XfsGeometry {
    fn read(blocks: &Blocks) -> Result<XfsGeometry> {
        let mut superblock = [0; 512];
        blocks.read_at(0, &mut superblock)?;
        Ok(XfsGeometry {
            root: be64(&superblock, 56),
            log_start: be64(&superblock, 48),
            group_blocks: be32(&superblock, 84).into(),
            block_log: superblock[120].into(),
            inode_bytes: be16(&superblock, 104).into(),
            inodes_per_block_log: superblock[123].into(),
            group_blocks_log: superblock[124].into(),
        })
    }

    /// Whether the values are valid for locating inodes.
    fn is_sane(&self) -> bool {
        let bits = self.group_blocks_log + self.inodes_per_block_log;
        bits < 64 && self.block_log <= 16 && (256..=2048).contains(&self.inode_bytes)
    }

    /// Returns the byte offset at which the log begins, where the window file's inode is inserted.
    fn window_at(&self) -> Option<u64> {
        if !self.is_sane() {
            return None;
        }
        let (group, block) = (self.log_start >> self.group_blocks_log, low_bits(self.log_start, self.group_blocks_log));
        group.checked_mul(self.group_blocks)?.checked_add(block)?.checked_mul(1 << self.block_log)
    }

    /// Returns the number of the window file's inode.
    fn window_number(&self) -> Option<u64> {
        if !self.is_sane() {
            return None;
        }
        self.log_start.checked_mul(1 << self.inodes_per_block_log).filter(|_| self.log_start != 0)
    }
}

fn low_bits(number: u64, bits: u32) -> u64 {
    number & ((1 << bits) - 1)
}

pub(super) fn open(blocks: &Blocks) -> Result<OpenedFilesystem> {
    let failure = ReadFailure::default();
    let geometry = XfsGeometry::read(blocks)?;
    let window = WindowBlock::default();
    let disk = NotedReads::new(blocks, &failure);
    let device = WindowedReads { disk, window_at: geometry.window_at(), block: Rc::clone(&window) };
    let xfs = Xfs::open(device, blocks.size_bytes()).map_err(|error| of_xfs(&error, &failure))?;
    let label = xfs.label().unwrap_or_default().to_owned();
    let uuid = Some(uuid::Uuid::from_bytes(xfs.uuid()).to_string());
    let paths = HashMap::from([(geometry.root, b"/".to_vec())]);
    let volume = XfsVolume { xfs, window, failure, geometry, paths };
    Ok(OpenedFilesystem { filesystem: Box::new(volume), label, uuid })
}

fn of_xfs(error: &lamxfs::Error, failure: &RefCell<Option<FsError>>) -> FsError {
    let io = failure.take();
    match error {
        lamxfs::Error::Io { .. } => io.unwrap_or_else(|| damaged("it cannot be read")),
        lamxfs::Error::UnsupportedFeature(feature) => {
            FsError::Unsupported(format!("XFS feature {feature} is not supported"))
        }
        lamxfs::Error::BadSuperblock(SuperblockReason::ExternalLog) => {
            FsError::Unsupported("XFS with a log on another device is not supported".into())
        }
        lamxfs::Error::BadSuperblock(SuperblockReason::RealtimeDevice) => {
            FsError::Unsupported("XFS with a realtime device is not supported".into())
        }
        lamxfs::Error::BadSuperblock(SuperblockReason::DirtyLog) => {
            FsError::Unsupported("its log cannot be replayed by kvmb; 'kvmb mount' can replay it".into())
        }
        error => damaged(format!("{error:?}")),
    }
}

/// The fields that are read from the inode itself.
struct RawInode {
    owner: (u32, u32),
    links: u32,
    modified: Timestamp,
    accessed: Timestamp,
    device: (u32, u32),
    mode: u32,
    size_bytes: u64,
    /// The written extents, if the inode contains all of them: first block in the file, and number of blocks.
    extents: Option<Vec<(u64, u64)>>,
}

/// Returns the written extents that an inode contains; None if they are in other blocks.
fn extents_in(inode: &[u8], flags: u64) -> Option<Vec<(u64, u64)>> {
    let start = if inode[4] >= 3 { 176 } else { 100 };
    let count = match flags & FLAG_LARGE_COUNTS != 0 {
        true => be64(inode, 24),
        false => be32(inode, 76).into(),
    };
    let list = inode.get(start..).filter(|list| inode[5] == FORMAT_EXTENTS && count <= list.len() as u64 / 16)?;
    let extents = list.chunks_exact(16).take(count as usize);
    // 1 bit for "unwritten", 54 for the offset in the file, 52 for the block, 21 for the number of blocks.
    let written = extents.filter(|extent| be64(extent, 0) >> 63 == 0);
    Some(written.map(|extent| (low_bits(be64(extent, 0) >> 9, 54), low_bits(be64(extent, 8), 21))).collect())
}

impl XfsVolume {
    fn wrong(&self, error: &lamxfs::Error) -> FsError {
        of_xfs(error, &self.failure)
    }

    fn path(&self, node: Node) -> Result<Vec<u8>> {
        self.paths.get(&node.0).cloned().ok_or_else(|| damaged("a file no longer exists"))
    }

    fn raw_inode(&mut self, number: u64) -> Result<Option<RawInode>> {
        let geometry = &self.geometry;
        let Some(window) = geometry.window_number() else { return Ok(None) };
        let index = low_bits(number, geometry.inodes_per_block_log);
        let mut inode = vec![0; geometry.inode_bytes];
        let at = index * geometry.inode_bytes as u64;
        self.window.set(Some(number >> geometry.inodes_per_block_log));
        let read = self.xfs.read_file_at(&Inode { ino: window }, at, &mut inode);
        self.window.set(None);
        read.map_err(|error| self.wrong(&error))?;
        let version = inode[4];
        if &inode[..2] != b"IN" || (version >= 3 && be64(&inode, 152) != number) {
            return Ok(None);
        }
        let flags = if version >= 3 { be64(&inode, 120) } else { 0 };
        let is_bigtime = flags & FLAG_BIGTIME != 0;
        let time = |at: usize| match is_bigtime {
            true => {
                let since_1901 = be64(&inode, at);
                let seconds = (since_1901 / 1_000_000_000).cast_signed() - (1 << 31);
                Timestamp { seconds, nanoseconds: (since_1901 % 1_000_000_000) as u32 }
            }
            false => Timestamp {
                seconds: be32(&inode, at).cast_signed().into(),
                nanoseconds: be32(&inode, at + 4).min(999_999_999),
            },
        };
        let device = be32(&inode, if version >= 3 { 176 } else { 100 });
        Ok(Some(RawInode {
            owner: (be32(&inode, 8), be32(&inode, 12)),
            links: be32(&inode, 16),
            accessed: time(32),
            modified: time(40),
            device: (device >> 18, device & 0x3ffff),
            mode: be16(&inode, 2).into(),
            size_bytes: be64(&inode, 56),
            extents: extents_in(&inode, flags),
        }))
    }
}

impl GuestFilesystem for XfsVolume {
    fn root(&self) -> Node {
        Node(self.geometry.root)
    }

    fn metadata(&mut self, node: Node) -> Result<InodeMetadata> {
        let said = self.xfs.metadata(&Inode { ino: node.0 }).map_err(|error| self.wrong(&error))?;
        let kind = InodeKind::of_mode(said.mode()).ok_or_else(|| damaged("an inode has no type"))?;
        let raw = self.raw_inode(node.0)?;
        let raw = raw.filter(|raw| raw.mode == said.mode() && raw.size_bytes == said.size());
        let is_device = matches!(kind, InodeKind::CharDevice | InodeKind::BlockDevice);
        Ok(InodeMetadata {
            kind,
            size_bytes: said.size(),
            mode: Some(said.mode() & 0o7777),
            owner: raw.as_ref().map(|raw| raw.owner),
            links: raw.as_ref().map_or(1, |raw| raw.links),
            modified: raw.as_ref().map(|raw| raw.modified),
            accessed: raw.as_ref().map(|raw| raw.accessed),
            device: raw.filter(|_| is_device).map(|raw| raw.device),
        })
    }

    fn read_dir(&mut self, dir: Node) -> Result<Vec<(Vec<u8>, Node)>> {
        let path = self.path(dir)?;
        let entries = self.xfs.read_dir(Path::new(&path)).map_err(|error| self.wrong(&error))?;
        let mut found = Vec::new();
        for entry in entries {
            if matches!(entry.name.as_slice(), b"." | b".." | b"") {
                continue;
            }
            let mut below = path.clone();
            if !below.ends_with(b"/") {
                below.push(b'/');
            }
            below.extend(&entry.name);
            self.paths.entry(entry.inode_number).or_insert(below);
            found.push((entry.name, Node(entry.inode_number)));
        }
        Ok(found)
    }

    fn read_link(&mut self, node: Node) -> Result<Vec<u8>> {
        let path = self.path(node)?;
        self.xfs.read_link(Path::new(&path)).map_err(|error| self.wrong(&error))
    }

    fn data_ranges(&mut self, node: Node) -> Result<Vec<DataRange>> {
        let size_bytes = self.metadata(node)?.size_bytes;
        let raw = self.raw_inode(node.0)?.filter(|raw| raw.size_bytes == size_bytes);
        let mut ranges = Vec::new();
        let Some(extents) = raw.and_then(|raw| raw.extents) else {
            // The crate does not report holes; zeros are skipped when they are read.
            push_range(&mut ranges, 0, size_bytes)?;
            return Ok(ranges);
        };
        for (first, blocks) in extents {
            let begin = first.saturating_mul(1 << self.geometry.block_log);
            let end = (first + blocks).saturating_mul(1 << self.geometry.block_log).min(size_bytes);
            push_range(&mut ranges, begin, end.saturating_sub(begin))?;
        }
        Ok(ranges)
    }

    fn read_at(&mut self, node: Node, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let read = self.xfs.read_file_at(&Inode { ino: node.0 }, offset + done as u64, &mut buffer[done..]);
            match read.map_err(|error| self.wrong(&error))? {
                0 => return Err(damaged("a file is shorter than it says")),
                read => done += read,
            }
        }
        Ok(())
    }
}
