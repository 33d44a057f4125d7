//! The expected content of a disk, with which every restored image is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{SeekFrom, seek};
use sha2::{Digest, Sha256};

/// The granularity at which the model stores non-zero data.
const BLOCK: u64 = 64 * 1024;

/// A disk's content in memory; unwritten blocks are zero.
#[derive(Clone, PartialEq, Eq)]
pub struct DiskModel {
    capacity_bytes: u64,
    /// Block number → content. Zero blocks are never stored, so that equal disks have equal models.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl DiskModel {
    pub fn new(capacity_bytes: u64) -> DiskModel {
        DiskModel { capacity_bytes, blocks: BTreeMap::new() }
    }

    /// Reads the content of an image as the guest sees it. No running machine may have it open, unless it is raw.
    pub fn from_image(path: &Path, format: &str) -> DiskModel {
        // A device has no holes.
        if format == "raw" && path.is_file() {
            return DiskModel::from_raw(path);
        }
        let raw = tempfile::NamedTempFile::new().expect("cannot make a file");
        let output = Command::new("qemu-img")
            .args(["convert", "-f", format, "-O", "raw"])
            .arg(path)
            .arg(raw.path())
            .output()
            .expect("qemu-img");
        assert!(
            output.status.success(),
            "cannot read {} as {format}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        DiskModel::from_raw(raw.path())
    }

    fn from_raw(path: &Path) -> DiskModel {
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let capacity_bytes = seek(&file, SeekFrom::End(0)).expect("seek");
        let mut model = DiskModel::new(capacity_bytes);
        let mut offset = 0;
        // After the last data, seeking for data fails.
        while let Ok(data) = seek(&file, SeekFrom::Data(offset)) {
            let hole = seek(&file, SeekFrom::Hole(data)).expect("seek");
            let mut block = data / BLOCK;
            while block * BLOCK < hole {
                let start = block * BLOCK;
                let mut content = vec![0; (capacity_bytes - start).min(BLOCK) as usize];
                file.read_exact_at(&mut content, start).expect("read");
                model.write(start, &content);
                block += 1;
            }
            offset = block * BLOCK;
            if offset >= capacity_bytes {
                break;
            }
        }
        model
    }

    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.change(offset, bytes.len() as u64, |target, at| {
            let at = at as usize;
            target.copy_from_slice(&bytes[at..at + target.len()]);
        });
    }

    /// Fills a range with one byte.
    pub fn fill(&mut self, offset: u64, length: u64, pattern: u8) {
        self.change(offset, length, |target, _| target.fill(pattern));
    }

    /// Zeroes a range.
    pub fn zero(&mut self, offset: u64, length: u64) {
        self.fill(offset, length, 0);
    }

    /// Grows (with zeros) or shrinks the disk.
    pub fn resize(&mut self, capacity_bytes: u64) {
        if capacity_bytes < self.capacity_bytes {
            self.zero(capacity_bytes, self.capacity_bytes - capacity_bytes);
        }
        self.capacity_bytes = capacity_bytes;
    }

    /// Returns the content of a range.
    pub fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        assert!(offset + length <= self.capacity_bytes, "past the disk's end");
        let mut bytes = vec![0; length as usize];
        for (block, start, end) in pieces(offset, length) {
            if let Some(content) = self.blocks.get(&block) {
                let at = (block * BLOCK + start - offset) as usize;
                let piece = &content[start as usize..end as usize];
                bytes[at..at + piece.len()].copy_from_slice(piece);
            }
        }
        bytes
    }

    /// Returns the SHA-256 of the raw image.
    pub fn sha256(&self) -> String {
        let zeros = vec![0; BLOCK as usize];
        let mut hasher = Sha256::new();
        for (block, start, end) in pieces(0, self.capacity_bytes) {
            let content = self.blocks.get(&block).unwrap_or(&zeros);
            hasher.update(&content[start as usize..end as usize]);
        }
        hex::encode(hasher.finalize())
    }

    /// Returns the first byte in which two disks differ: offset, byte in this disk, byte in the other one.
    pub fn first_difference(&self, other: &DiskModel) -> Option<(u64, u8, u8)> {
        // Compare whole blocks first: without optimisation, comparing byte by byte is slow.
        let block = self.differing_blocks(other).pop_first()?;
        let zeros = vec![0; BLOCK as usize];
        let here = self.blocks.get(&block).unwrap_or(&zeros);
        let there = other.blocks.get(&block).unwrap_or(&zeros);
        let at = here.iter().zip(there).position(|(a, b)| a != b)?;
        Some((block * BLOCK + at as u64, here[at], there[at]))
    }

    /// Whether a block (by its number, of 64 KiB) is the same in both.
    pub(super) fn same_block(&self, other: &DiskModel, block: u64) -> bool {
        self.blocks.get(&block) == other.blocks.get(&block)
    }

    /// Returns the blocks in which two disks differ.
    pub(super) fn differing_blocks(&self, other: &DiskModel) -> BTreeSet<u64> {
        let blocks = self.blocks.keys().chain(other.blocks.keys()).copied();
        blocks.filter(|block| !self.same_block(other, *block)).collect()
    }

    /// Fails unless the image has exactly this content.
    #[track_caller]
    pub fn assert_image_equals(&self, path: &Path, format: &str) {
        let image = DiskModel::from_image(path, format);
        let path = path.display();
        assert_eq!(image.capacity_bytes, self.capacity_bytes, "{path}: the capacity differs");
        if let Some((offset, wanted, found)) = self.first_difference(&image) {
            let blocks = self.differing_blocks(&image);
            panic!(
                "{path}: byte {offset} must be {wanted:#04x} and is {found:#04x}; {} blocks of 64 KiB differ: {:?} …",
                blocks.len(),
                blocks.iter().take(16).collect::<Vec<_>>()
            );
        }
    }

    /// Calls `fill` for each affected block, with the part to set and its distance from `offset`.
    fn change(&mut self, offset: u64, length: u64, mut fill: impl FnMut(&mut [u8], u64)) {
        assert!(offset + length <= self.capacity_bytes, "past the disk's end");
        let zeros = vec![0; BLOCK as usize];
        for (block, start, end) in pieces(offset, length) {
            let content = self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize]);
            fill(&mut content[start as usize..end as usize], block * BLOCK + start - offset);
            if *content == zeros {
                self.blocks.remove(&block);
            }
        }
    }
}

/// Returns the numbers of the blocks that a range touches.
pub(super) fn blocks_of(offset: u64, length: u64) -> impl Iterator<Item = u64> {
    pieces(offset, length).map(|(block, _, _)| block)
}

/// Splits a range into blocks: number, first byte and end within the block.
fn pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let end = offset + length;
    (offset / BLOCK..end.div_ceil(BLOCK)).map(move |block| {
        let base = block * BLOCK;
        (block, offset.max(base) - base, end.min(base + BLOCK) - base)
    })
}
