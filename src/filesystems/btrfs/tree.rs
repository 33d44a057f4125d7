//! Reads what the crate does not read of a Btrfs: times, device numbers, extended attributes and the holes of files
//! ("Btrfs On-disk Format", in the documentation of btrfs-progs).
//!
//! Searches a tree for the items of one inode. Reads only the first copy of a block; a block with the wrong tree, level
//! or address counts as damage.

use super::super::blocks::{Blocks, le16, le32, le64};
use super::super::{DataRange, Result, Timestamp, Xattr, damaged, push_range};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

const SUPERBLOCK: u64 = 65_536;

const INODE_ITEM: u8 = 1;
const XATTR_ITEM: u8 = 24;
const EXTENT_DATA: u8 = 108;
const ROOT_ITEM: u8 = 132;
const CHUNK_ITEM: u8 = 228;

/// The objectid of all chunks.
const CHUNKS: u64 = 256;

const HEADER_BYTES: usize = 101;
const KEY_BYTES: usize = 17;
const ITEM_BYTES: usize = 25;
const POINTER_BYTES: usize = 33;

/// "Trees have at most eight levels".
const MOST_LEVELS: u8 = 8;

/// Maximum number of blocks read for one file: a leaf has 300 extents or more.
const MOST_BLOCKS: usize = 100_000;

/// Maximum size of the items of one file: 2 million extents.
const MOST_ITEM_BYTES: usize = 256 << 20;

/// The memory overhead of an item in addition to its data.
const ITEM_OVERHEAD_BYTES: usize = 64;

/// A key: objectid, type, offset.
type ItemKey = (u64, u8, u64);

/// An item of an inode: its key and its data.
type Item = (ItemKey, Vec<u8>);

/// The trees of a file system.
pub(super) struct Trees {
    blocks: Blocks,
    node_bytes: usize,
    root: u64,
    /// Logical address → length and physical address on this device.
    chunks: BTreeMap<u64, (u64, u64)>,
    /// The roots of subvolumes' trees that were already looked up.
    subvolumes: HashMap<u64, u64>,
}

/// The fields of an inode item that the crate does not provide.
pub(super) struct InodeTimes {
    pub(super) modified: Timestamp,
    pub(super) accessed: Timestamp,
    pub(super) device: (u32, u32),
}

fn key(bytes: &[u8]) -> ItemKey {
    (le64(bytes, 0), bytes.get(8).copied().unwrap_or_default(), le64(bytes, 9))
}

impl Trees {
    /// Reads the chunks of a file system that the crate has opened.
    pub(super) fn open(blocks: &Blocks) -> Result<Trees> {
        let mut superblock = vec![0; 4096];
        blocks.read_at(SUPERBLOCK, &mut superblock)?;
        let node_bytes = le32(&superblock, 148) as usize;
        if !node_bytes.is_power_of_two() || !(4096..=65_536).contains(&node_bytes) {
            return Err(damaged("its nodes have an impossible size"));
        }
        let mut trees = Trees {
            blocks: Rc::clone(blocks),
            node_bytes,
            root: le64(&superblock, 80),
            chunks: BTreeMap::new(),
            subvolumes: HashMap::new(),
        };
        let device = le64(&superblock, 201);
        let array_bytes = (le32(&superblock, 160) as usize).min(2048);
        let mut array = &superblock[811..811 + array_bytes];
        while array.len() > KEY_BYTES + 48 {
            let (_, _, logical) = key(array);
            let stripes = usize::from(le16(array, KEY_BYTES + 44));
            trees.add_chunk(logical, &array[KEY_BYTES..], device);
            array = array.get(KEY_BYTES + 48 + 32 * stripes..).unwrap_or_default();
        }
        let chunk_root = le64(&superblock, 88);
        for ((_, _, logical), item) in trees.items(chunk_root, CHUNKS, CHUNK_ITEM)? {
            trees.add_chunk(logical, &item, device);
        }
        Ok(trees)
    }

    /// Records the first copy of a chunk that is on this device.
    fn add_chunk(&mut self, logical: u64, chunk: &[u8], device: u64) {
        let stripes = chunk.get(48..).unwrap_or_default().chunks_exact(32).take(le16(chunk, 44).into());
        if let Some(stripe) = stripes.into_iter().find(|stripe| le64(stripe, 0) == device) {
            self.chunks.insert(logical, (le64(chunk, 0), le64(stripe, 8)));
        }
    }

    fn read_node(&self, logical: u64) -> Result<Vec<u8>> {
        let (start, (length, physical)) =
            self.chunks.range(..=logical).next_back().ok_or_else(|| damaged("a tree is in no chunk"))?;
        let within = logical - start;
        if within.checked_add(self.node_bytes as u64).is_none_or(|end| end > *length) {
            return Err(damaged("a tree is in no chunk"));
        }
        let mut node = vec![0; self.node_bytes];
        let offset = physical.checked_add(within).ok_or_else(|| damaged("a chunk has no location"))?;
        self.blocks.read_at(offset, &mut node)?;
        match le64(&node, 48) == logical {
            true => Ok(node),
            false => Err(damaged("a node of a tree is not where it should be")),
        }
    }

    /// Returns the items of one type of an inode, or of all chunks, in order.
    fn items(&self, root: u64, objectid: u64, kind: u8) -> Result<Vec<Item>> {
        let (first, last) = ((objectid, kind, 0), (objectid, kind, u64::MAX));
        let (mut found, mut left, mut bytes_left) = (Vec::new(), MOST_BLOCKS, MOST_ITEM_BYTES);
        // Nodes to be read, next one last, with the level that each must have.
        let mut rest = vec![(root, None::<u8>)];
        while let Some((logical, expected)) = rest.pop() {
            left = left.checked_sub(1).ok_or_else(|| damaged("a tree does not end"))?;
            let node = self.read_node(logical)?;
            let (count, level) = (le32(&node, 96) as usize, node[100]);
            if level >= MOST_LEVELS || expected.is_some_and(|expected| expected != level) {
                return Err(damaged("a tree has a node of another level"));
            }
            let body = &node[HEADER_BYTES..];
            if level == 0 {
                for item in body.chunks_exact(ITEM_BYTES).take(count) {
                    let key = key(item);
                    if key < first || key > last {
                        continue;
                    }
                    let (offset, length) = (le32(item, 17) as usize, le32(item, 21) as usize);
                    let data = offset.checked_add(length).and_then(|end| body.get(offset..end));
                    let data = data.ok_or_else(|| damaged("an item of a tree is truncated"))?;
                    bytes_left = bytes_left
                        .checked_sub(length + ITEM_OVERHEAD_BYTES)
                        .ok_or_else(|| damaged("a file has too many extents or attributes"))?;
                    found.push((key, data.to_vec()));
                }
                continue;
            }
            let pointers: Vec<(ItemKey, u64)> =
                body.chunks_exact(POINTER_BYTES).take(count).map(|pointer| (key(pointer), le64(pointer, 17))).collect();
            // A child contains the keys from its own to just before the next child's.
            for (number, (from, child)) in pointers.iter().enumerate().rev() {
                let ends_before = pointers.get(number + 1).is_some_and(|(next, _)| *next <= first);
                if *from <= last && !ends_before {
                    rest.push((*child, Some(level - 1)));
                }
            }
        }
        Ok(found)
    }

    /// Returns the root of a subvolume's tree.
    fn subvolume(&mut self, subvolume: u64) -> Result<u64> {
        if let Some(root) = self.subvolumes.get(&subvolume) {
            return Ok(*root);
        }
        let items = self.items(self.root, subvolume, ROOT_ITEM)?;
        let (_, item) = items.last().ok_or_else(|| damaged("a subvolume has no tree"))?;
        let root = le64(item, 176);
        self.subvolumes.insert(subvolume, root);
        Ok(root)
    }

    fn inode_items(&mut self, (subvolume, inode): (u64, u64), kind: u8) -> Result<Vec<Item>> {
        let root = self.subvolume(subvolume)?;
        self.items(root, inode, kind)
    }

    /// Returns times and device number of an inode.
    pub(super) fn times(&mut self, inode: (u64, u64)) -> Result<InodeTimes> {
        let items = self.inode_items(inode, INODE_ITEM)?;
        let (_, item) = items.first().ok_or_else(|| damaged("a file has no inode"))?;
        let time = |at: usize| Timestamp {
            seconds: le64(item, at).cast_signed(),
            nanoseconds: le32(item, at + 8).min(999_999_999),
        };
        let device = le64(item, 56);
        let device = ((device >> 20) as u32, (device & 0xf_ffff) as u32);
        Ok(InodeTimes { accessed: time(112), modified: time(136), device })
    }

    /// Returns the extended attributes of an inode. ACLs are in the format of Linux.
    pub(super) fn xattrs(&mut self, inode: (u64, u64)) -> Result<Vec<Xattr>> {
        let mut found = Vec::new();
        for (_, item) in self.inode_items(inode, XATTR_ITEM)? {
            // Names with the same hash share an item.
            let mut rest = item.as_slice();
            while rest.len() >= 30 {
                let (value_bytes, name_bytes) = (usize::from(le16(rest, 25)), usize::from(le16(rest, 27)));
                let (name, value) =
                    (rest.get(30..30 + name_bytes), rest.get(30 + name_bytes..30 + name_bytes + value_bytes));
                let (Some(name), Some(value)) = (name, value) else { return Err(damaged("an attribute is truncated")) };
                // Skip Btrfs's own properties, such as whether a file is compressed.
                if !name.starts_with(b"btrfs.") {
                    found.push((name.to_vec(), value.to_vec()));
                }
                rest = &rest[30 + name_bytes + value_bytes..];
            }
        }
        Ok(found)
    }

    /// Returns the ranges in which a file has data.
    pub(super) fn data_ranges(&mut self, inode: (u64, u64), size_bytes: u64) -> Result<Vec<DataRange>> {
        let mut ranges = Vec::new();
        for ((_, _, offset), item) in self.inode_items(inode, EXTENT_DATA)? {
            let length = match item.get(20) {
                Some(0) => le64(&item, 8),
                // An address of zero is a hole.
                Some(1) if le64(&item, 21) != 0 => le64(&item, 45),
                _ => continue,
            };
            let end = offset.saturating_add(length).min(size_bytes);
            push_range(&mut ranges, offset, end.saturating_sub(offset))?;
        }
        Ok(ranges)
    }
}
