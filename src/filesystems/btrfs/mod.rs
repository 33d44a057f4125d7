//! Btrfs, by the crate `lambutter`: the default subvolume, with the other subvolumes as directories in it, and each
//! subvolume by its ID. Only one device of a file system with several devices is read; data on the others is refused.
//!
//! `tree` reads what the crate does not: times, device numbers, extended attributes, holes.

mod tree;

use super::blocks::{Blocks, le64, text};
use super::noted_reads::{NotedReads, ReadFailure};
use super::{
    DataRange, DeviceOfSeveral, FsError, GuestFilesystem, InodeKind, InodeMetadata, Node, OpenedFilesystem, Result,
    Xattr, damaged,
};
use lambutter::{BlockRead, Btrfs, Inode, Path};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tree::Trees;

const SUPERBLOCK: u64 = 65_536;

/// Maximum number of subvolumes that are opened by their ID.
const MOST_OPENED: usize = 256;

/// The empty directory in a snapshot that replaces a nested subvolume. It has no inode.
const EMPTY_DIRECTORY: u64 = 2;

impl BlockRead for NotedReads {
    type Error = FsError;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::result::Result<(), FsError> {
        self.read(offset, buffer)
    }
}

struct BtrfsVolume {
    blocks: Blocks,
    /// The file system as seen from each opened subvolume. The first one is the default subvolume.
    opened: Vec<Btrfs<NotedReads>>,
    trees: Trees,
    device: DeviceOfSeveral,
    failure: ReadFailure,
    /// Every known file; a node is an index into this list.
    files: Vec<KnownFile>,
    /// Files by subvolume and inode. Empty directories all have the same inode number, so they are distinguished by
    /// their path.
    by_inode: HashMap<(u64, u64, Vec<u8>), usize>,
}

struct KnownFile {
    inode: Inode,
    /// The index of an opened subvolume, and the path from its root.
    opened: usize,
    path: Vec<u8>,
}

impl KnownFile {
    /// Returns the root of an opened subvolume.
    fn root(opened: usize, btrfs: &mut Btrfs<NotedReads>, failure: &ReadFailure) -> Result<KnownFile> {
        let path = Path::new(b"/").ok_or_else(|| damaged("it has no top directory"))?;
        let inode = btrfs.resolve(path).map_err(|error| of_btrfs(&error, failure))?;
        Ok(KnownFile { inode, opened, path: b"/".to_vec() })
    }
}

pub(super) fn open(blocks: &Blocks) -> Result<OpenedFilesystem> {
    let failure = ReadFailure::default();
    let device = NotedReads::new(blocks, &failure);
    let mut btrfs = Btrfs::open(device, blocks.size_bytes()).map_err(|error| of_btrfs(&error, &failure))?;
    let root = KnownFile::root(0, &mut btrfs, &failure)?;
    let mut superblock = vec![0; 4096];
    blocks.read_at(SUPERBLOCK, &mut superblock)?;
    let (label, uuid) = (text(&superblock[299..555]), super::blocks::uuid(&superblock[32..48]));
    let device = DeviceOfSeveral {
        filesystem: superblock[32..48].try_into().map_err(|_| damaged("it has no UUID"))?,
        devices: le64(&superblock, 136),
        generation: le64(&superblock, 72),
    };
    let trees = Trees::open(blocks)?;
    let (blocks, opened, files) = (Rc::clone(blocks), vec![btrfs], vec![root]);
    let volume = BtrfsVolume { blocks, opened, trees, device, failure, files, by_inode: HashMap::new() };
    Ok(OpenedFilesystem { filesystem: Box::new(volume), label, uuid })
}

fn of_btrfs(error: &lambutter::Error, failure: &RefCell<Option<FsError>>) -> FsError {
    let io = failure.take();
    match error {
        lambutter::Error::Io { .. } => io.unwrap_or_else(|| damaged("it cannot be read")),
        lambutter::Error::UnsupportedChecksum(what) => {
            let kind = what.trim_start_matches("csum_");
            FsError::Unsupported(format!("Btrfs with {kind} checksums is not supported"))
        }
        lambutter::Error::UnsupportedFeature(what) | lambutter::Error::UnsupportedProfile(what) => {
            FsError::Unsupported(format!("Btrfs feature {what} is not supported"))
        }
        error => damaged(error.to_string()),
    }
}

impl BtrfsVolume {
    fn wrong(&self, error: &lambutter::Error) -> FsError {
        of_btrfs(error, &self.failure)
    }

    fn key(&self, node: Node) -> Result<(u64, u64)> {
        let inode = &self.file(node)?.inode;
        Ok((inode.subvolume(), inode.objectid()))
    }

    fn file(&self, node: Node) -> Result<&KnownFile> {
        self.files.get(node.0 as usize).ok_or_else(|| damaged("a file no longer exists"))
    }
}

impl GuestFilesystem for BtrfsVolume {
    fn root(&self) -> Node {
        Node(0)
    }

    fn device(&self) -> Option<DeviceOfSeveral> {
        Some(self.device)
    }

    fn subvolume(&mut self, id: u64) -> Result<Node> {
        let known = self.opened.iter().position(|btrfs| btrfs.subvolume() == id);
        let (file, opened) = match known {
            Some(opened) => (KnownFile::root(opened, &mut self.opened[opened], &self.failure)?, None),
            None if self.opened.len() >= MOST_OPENED => {
                return Err(FsError::Unsupported("too many of its subvolumes are mounted".into()));
            }
            None => {
                let device = NotedReads::new(&self.blocks, &self.failure);
                let opened = Btrfs::open_subvol_id(device, self.blocks.size_bytes(), id);
                let mut btrfs = opened.map_err(|error| self.wrong(&error))?;
                (KnownFile::root(self.opened.len(), &mut btrfs, &self.failure)?, Some(btrfs))
            }
        };
        self.opened.extend(opened);
        self.files.push(file);
        Ok(Node(self.files.len() as u64 - 1))
    }

    fn metadata(&mut self, node: Node) -> Result<InodeMetadata> {
        let inode = self.file(node)?.inode;
        let said = self.opened[0].metadata(&inode).map_err(|error| self.wrong(&error))?;
        let kind = InodeKind::of_mode(said.mode).ok_or_else(|| damaged("an inode has no type"))?;
        let times = match inode.objectid() {
            EMPTY_DIRECTORY => None,
            number => Some(self.trees.times((inode.subvolume(), number))?),
        };
        let is_device = matches!(kind, InodeKind::CharDevice | InodeKind::BlockDevice);
        Ok(InodeMetadata {
            kind,
            size_bytes: said.size,
            mode: Some(said.mode & 0o7777),
            owner: Some((said.uid, said.gid)),
            links: said.nlink,
            modified: times.as_ref().map(|times| times.modified),
            accessed: times.as_ref().map(|times| times.accessed),
            device: times.filter(|_| is_device).map(|times| times.device),
        })
    }

    fn read_dir(&mut self, dir: Node) -> Result<Vec<(Vec<u8>, Node)>> {
        let KnownFile { opened, path, .. } = self.file(dir)?;
        let (opened, path) = (*opened, path.clone());
        let parsed = Path::new(&path).ok_or_else(|| damaged("a name has a zero byte"))?;
        let entries = self.opened[opened].read_dir(parsed).map_err(|error| self.wrong(&error))?;
        let mut found = Vec::new();
        for entry in entries {
            let mut below = path.clone();
            if !below.ends_with(b"/") {
                below.push(b'/');
            }
            below.extend(&entry.name);
            let files = &mut self.files;
            let path = if entry.inode.objectid() == EMPTY_DIRECTORY { below.clone() } else { Vec::new() };
            let key = (entry.inode.subvolume(), entry.inode.objectid(), path);
            let number = *self.by_inode.entry(key).or_insert_with(|| {
                files.push(KnownFile { inode: entry.inode, opened, path: below });
                files.len() - 1
            });
            found.push((entry.name, Node(number as u64)));
        }
        Ok(found)
    }

    fn read_link(&mut self, node: Node) -> Result<Vec<u8>> {
        let KnownFile { opened, path, .. } = self.file(node)?;
        let (opened, path) = (*opened, path.clone());
        let parsed = Path::new(&path).ok_or_else(|| damaged("a name has a zero byte"))?;
        self.opened[opened].read_link(parsed).map_err(|error| self.wrong(&error))
    }

    fn xattrs(&mut self, node: Node) -> Result<Vec<Xattr>> {
        let key = self.key(node)?;
        self.trees.xattrs(key)
    }

    fn data_ranges(&mut self, node: Node) -> Result<Vec<DataRange>> {
        let size_bytes = self.metadata(node)?.size_bytes;
        let key = self.key(node)?;
        self.trees.data_ranges(key, size_bytes)
    }

    fn read_at(&mut self, node: Node, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let inode = self.file(node)?.inode;
        let mut done = 0;
        while done < buffer.len() {
            let read = self.opened[0].read_file_at(&inode, offset + done as u64, &mut buffer[done..]);
            match read.map_err(|error| self.wrong(&error))? {
                0 => return Err(damaged("a file is shorter than it says")),
                read => done += read,
            }
        }
        Ok(())
    }
}
