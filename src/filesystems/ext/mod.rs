//! ext2, ext3 and ext4.
//!
//! kvmb has its own reader because the crate `ext4-view` does not provide inode numbers, link counts, attributes,
//! device numbers or holes, which a faithful copy needs. The format is described in "ext4 Data Structures and
//! Algorithms" in the kernel's documentation.
//!
//! | module | what |
//! | --- | --- |
//! | `superblock` | sizes and features |
//! | `volume` | blocks and inodes |
//! | `journal`, `overlay` | the changes of a journal that was not replayed, kept in memory |
//! | `inode` | an inode |
//! | `extents` | the location of a file's blocks: extent trees and block maps |
//! | `directory` | the entries of a directory block |
//! | `xattr` | extended attributes, and ACLs in the format of Linux |

mod directory;
mod extents;
mod inode;
mod journal;
mod overlay;
pub(super) mod superblock;
mod volume;
mod xattr;

use super::blocks::Blocks;
use super::{
    DataRange, FsError, GuestFilesystem, InodeMetadata, Node, OpenedFilesystem, Result, Xattr, damaged, push_range,
};
use extents::BlockRun;
use inode::Inode;
use overlay::JournalOverlay;
use std::rc::Rc;
use superblock::Superblock;
use volume::ExtVolume;

/// Maximum length of a link target, and of an inline file.
const SMALL_BYTES: u64 = 64 << 10;

/// Maximum number of bytes read from a directory.
const MOST_DIRECTORY_BYTES: u64 = 4 << 30;

pub(super) struct Ext {
    volume: ExtVolume,
    /// The runs of the file that was read last.
    last_runs: Option<(u64, Rc<Vec<BlockRun>>)>,
}

/// Opens a file system, with its journal replayed in memory.
pub(super) fn open(blocks: &Blocks) -> Result<OpenedFilesystem> {
    let superblock = Superblock::read(blocks)?;
    let mut volume = ExtVolume { blocks: Rc::clone(blocks), superblock, overlay: JournalOverlay::default() };
    if volume.superblock.needs_external_journal() {
        return Err(FsError::Unsupported("its journal is on another device, and has changes to be replayed".into()));
    }
    if volume.superblock.has_dirty_journal() {
        volume.overlay = journal::scan(&volume)?;
        // The superblock may be among the replayed blocks.
        let mut bytes = vec![0; superblock::BYTES];
        volume.read_bytes(superblock::OFFSET, &mut bytes)?;
        volume.superblock = Superblock::parse(&bytes)?;
    }
    let (label, uuid) = (volume.superblock.label.clone(), volume.superblock.uuid.clone());
    let ext = Ext { volume, last_runs: None };
    Ok(OpenedFilesystem { filesystem: Box::new(ext), label, uuid })
}

impl Ext {
    /// Returns the runs of a file.
    fn runs(&mut self, inode: &Inode) -> Result<Rc<Vec<BlockRun>>> {
        if let Some((number, runs)) = &self.last_runs
            && *number == inode.number
        {
            return Ok(Rc::clone(runs));
        }
        let runs = Rc::new(extents::read(&self.volume, inode)?);
        self.last_runs = Some((inode.number, Rc::clone(&runs)));
        Ok(runs)
    }

    /// Returns the data of a file that is stored in its inode.
    fn inline_data(&mut self, inode: &Inode) -> Result<Vec<u8>> {
        let mut bytes = inode.block_area().to_vec();
        let rest = xattr::read(&self.volume, inode)?.into_iter().find(|(name, _)| name == xattr::INLINE_DATA);
        bytes.extend(rest.map(|(_, value)| value).unwrap_or_default());
        bytes.resize(inode.size_bytes.min(SMALL_BYTES) as usize, 0);
        Ok(bytes)
    }

    fn check_readable(&self, inode: &Inode) -> Result<()> {
        match inode.is_encrypted() {
            true => Err(FsError::Unsupported("the file is encrypted by the guest's file system".into())),
            false => Ok(()),
        }
    }
}

impl GuestFilesystem for Ext {
    fn root(&self) -> Node {
        Node(2)
    }

    fn metadata(&mut self, node: Node) -> Result<InodeMetadata> {
        self.volume.inode(node.0)?.metadata()
    }

    fn read_dir(&mut self, dir: Node) -> Result<Vec<(Vec<u8>, Node)>> {
        let inode = self.volume.inode(dir.0)?;
        self.check_readable(&inode)?;
        let mut entries = Vec::new();
        if inode.is_inline() {
            // The inode number of the parent (four bytes), then entries, and more of them in an attribute.
            let area = inode.block_area();
            directory::parse(&area[4..], self.volume.superblock.inodes_count, &mut entries)?;
            let rest = xattr::read(&self.volume, &inode)?.into_iter().find(|(name, _)| name == xattr::INLINE_DATA);
            directory::parse(
                &rest.map(|(_, value)| value).unwrap_or_default(),
                self.volume.superblock.inodes_count,
                &mut entries,
            )?;
            return Ok(entries);
        }
        let runs = self.runs(&inode)?;
        let block_bytes = self.volume.block_bytes();
        let blocks = inode.size_bytes.div_ceil(block_bytes);
        let mut block = vec![0; block_bytes as usize];
        let mut blocks_left = MOST_DIRECTORY_BYTES / block_bytes;
        for run in runs.iter() {
            for at in 0..run.blocks.min(blocks.saturating_sub(run.logical)) {
                blocks_left = blocks_left.checked_sub(1).ok_or_else(|| damaged("a directory does not end"))?;
                self.volume.read_block(run.physical + at, &mut block)?;
                directory::parse(&block, self.volume.superblock.inodes_count, &mut entries)?;
            }
        }
        Ok(entries)
    }

    fn read_link(&mut self, node: Node) -> Result<Vec<u8>> {
        let inode = self.volume.inode(node.0)?;
        self.check_readable(&inode)?;
        if inode.size_bytes > SMALL_BYTES {
            return Err(damaged(format!("a symbolic link claims {} bytes", inode.size_bytes)));
        }
        if inode.is_inline() {
            return self.inline_data(&inode);
        }
        if inode.is_fast_link() {
            return Ok(inode.block_area()[..inode.size_bytes as usize].to_vec());
        }
        let mut target = vec![0; inode.size_bytes as usize];
        let runs = self.runs(&inode)?;
        extents::read_runs(&self.volume, &runs, 0, &mut target)?;
        Ok(target)
    }

    fn xattrs(&mut self, node: Node) -> Result<Vec<Xattr>> {
        let inode = self.volume.inode(node.0)?;
        let all = xattr::read(&self.volume, &inode)?;
        Ok(all.into_iter().filter(|(name, _)| name != xattr::INLINE_DATA && name != xattr::ENCRYPTION).collect())
    }

    fn data_ranges(&mut self, node: Node) -> Result<Vec<DataRange>> {
        let inode = self.volume.inode(node.0)?;
        self.check_readable(&inode)?;
        let mut ranges = Vec::new();
        if inode.is_inline() {
            push_range(&mut ranges, 0, inode.size_bytes.min(SMALL_BYTES))?;
            return Ok(ranges);
        }
        let block_bytes = self.volume.block_bytes();
        for run in self.runs(&inode)?.iter() {
            let begin = run.logical * block_bytes;
            let end = ((run.logical + run.blocks) * block_bytes).min(inode.size_bytes);
            push_range(&mut ranges, begin, end.saturating_sub(begin))?;
        }
        Ok(ranges)
    }

    fn read_at(&mut self, node: Node, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let inode = self.volume.inode(node.0)?;
        self.check_readable(&inode)?;
        if inode.is_inline() {
            let bytes = self.inline_data(&inode)?;
            let part = bytes.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(part.ok_or_else(|| damaged("a file in an inode is shorter than it says"))?);
            return Ok(());
        }
        let runs = self.runs(&inode)?;
        extents::read_runs(&self.volume, &runs, offset, buffer)
    }
}
