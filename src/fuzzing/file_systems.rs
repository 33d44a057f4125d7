//! Exercises the confined process's code on a guest's disk: partitions, file systems, operating systems, files.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Once;

use crate::filesystems::blocks::{BlockSource, Blocks, Cached};
use crate::filesystems::volumes::{SourceDisk, Volumes};
use crate::filesystems::{DataRange, FsError, GuestFilesystem, InodeKind, Result, systems};

const SECTOR: usize = 512;

/// Maximum size of the disk: no reader needs more to open the smallest of its file systems.
const MOST_SECTORS: u32 = 2 << 20;

/// Maximum number of reads for one operation. Each reader's own limit is far below this.
const MOST_READS: u64 = 1 << 25;

/// Maximum number of volumes, and of files in each.
const MOST_VOLUMES: usize = 8;
const MOST_FILES: usize = 64;

/// How much is read at the beginning and at the end of a data range.
const PIECE_BYTES: u64 = 64 << 10;

/// A disk of any size in a few bytes: the number of its sectors (32 bits, little-endian), then for each non-zero sector
/// its number (32 bits) and its 512 bytes. The last sector may be truncated. If a number occurs twice, the last
/// occurrence counts.
pub(super) struct FuzzedDisk {
    size_bytes: u64,
    sectors: HashMap<u64, [u8; SECTOR]>,
}

impl FuzzedDisk {
    fn new(bytes: &[u8]) -> FuzzedDisk {
        let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |number| u32::from_le_bytes(*number));
        let pieces = bytes.get(4..).unwrap_or_default().chunks(4 + SECTOR);
        let sectors = pieces.map(|piece| {
            let mut sector = [0; SECTOR];
            let content = piece.get(4..).unwrap_or_default();
            sector[..content.len()].copy_from_slice(content);
            (number(piece).into(), sector)
        });
        FuzzedDisk {
            size_bytes: u64::from(number(bytes).min(MOST_SECTORS)) * SECTOR as u64,
            sectors: sectors.collect(),
        }
    }
}

impl BlockSource for FuzzedDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        assert!(offset + buffer.len() as u64 <= self.size_bytes, "{offset} {}", buffer.len());
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let begin = (at % SECTOR as u64) as usize;
            let length = rest.len().min(SECTOR - begin);
            let (now, later) = rest.split_at_mut(length);
            match self.sectors.get(&(at / SECTOR as u64)) {
                Some(sector) => now.copy_from_slice(&sector[begin..begin + length]),
                None => now.fill(0),
            }
            at += length as u64;
            rest = later;
        }
        Ok(())
    }
}

/// Panics if a reader does not end.
struct Counted {
    disk: RefCell<Option<Cached<FuzzedDisk>>>,
    size_bytes: u64,
    reads_left: Cell<u64>,
}

impl BlockSource for Counted {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let left = self.reads_left.get().checked_sub(1 + buffer.len() as u64 / PIECE_BYTES);
        self.reads_left.set(left.expect("a reader ends"));
        match &*self.disk.borrow() {
            Some(disk) => disk.read_at(offset, buffer),
            None => Err(FsError::Unreadable("the disk is gone".into())),
        }
    }
}

/// Reads a disk, and returns the number of files that were found.
pub(super) fn read(bytes: &[u8]) -> usize {
    let disk = FuzzedDisk::new(bytes);
    let disk = Rc::new(Counted {
        size_bytes: disk.size_bytes,
        disk: RefCell::new(Some(Cached::new(disk))),
        reads_left: Cell::new(MOST_READS),
    });
    let files = Cell::new(0);
    contained(|| {
        let blocks: Blocks = Rc::<Counted>::clone(&disk);
        let mut volumes = Volumes::find(&[SourceDisk { name: "vda".to_owned(), blocks, number: Some(0) }]);
        disk.reads_left.set(MOST_READS);
        systems::find(&mut volumes);
        for volume in volumes.readable().into_iter().take(MOST_VOLUMES) {
            if let Ok(filesystem) = volumes.filesystem(volume) {
                walk(filesystem, &disk.reads_left, &files);
            }
        }
    });
    // Drop the disk here, because a reader may leak its handle until the process ends.
    disk.disk.take();
    files.get()
}

fn walk(filesystem: &mut dyn GuestFilesystem, reads_left: &Cell<u64>, files: &Cell<usize>) {
    let mut seen = HashSet::new();
    let mut rest = vec![filesystem.root()];
    while let Some(node) = rest.pop().filter(|_| seen.len() < MOST_FILES) {
        if !seen.insert(node) {
            continue;
        }
        reads_left.set(MOST_READS);
        let Ok(metadata) = filesystem.metadata(node) else { continue };
        let was_read = match metadata.kind {
            InodeKind::Directory => filesystem.read_dir(node).map(|entries| {
                rest.extend(entries.into_iter().map(|(_, node)| node));
            }),
            InodeKind::Symlink => filesystem.read_link(node).map(drop),
            InodeKind::File => filesystem.data_ranges(node).and_then(|ranges| {
                check(&ranges, metadata.size_bytes);
                ranges.iter().take(4).chain(ranges.last()).try_for_each(|range| {
                    let mut buffer = vec![0; range.length.min(PIECE_BYTES) as usize];
                    filesystem.read_at(node, range.offset, &mut buffer)?;
                    filesystem.read_at(node, range.offset + range.length - buffer.len() as u64, &mut buffer)
                })
            }),
            _ => Ok(()),
        };
        if was_read.and_then(|()| filesystem.xattrs(node)).is_ok() {
            files.set(files.get() + 1);
        }
    }
}

/// Checks the guarantees of [`GuestFilesystem::data_ranges`].
fn check(ranges: &[DataRange], size_bytes: u64) {
    let mut end = 0;
    for range in ranges {
        assert!(range.offset >= end && range.length > 0, "{ranges:?}");
        end = range.offset.checked_add(range.length).expect("a stretch has an end");
    }
    assert!(end <= size_bytes, "{end} of {size_bytes} bytes: {ranges:?}");
}

thread_local! {
    /// Whether this thread reads a disk, and if so, whether a crate has panicked.
    static READING: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Ignores panics of crates, which the confined process turns into a message. Only our own panics are findings.
fn contained(read: impl FnOnce()) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        let ours = file!().trim_end_matches("fuzzing/file_systems.rs");
        panic::set_hook(Box::new(move |panic| {
            let is_ours = panic.location().is_none_or(|location| location.file().starts_with(ours));
            match READING.get() {
                Some(_) if !is_ours => READING.set(Some(true)),
                _ => before(panic),
            }
        }));
    });
    READING.set(Some(false));
    let ended = panic::catch_unwind(AssertUnwindSafe(read));
    let is_of_a_crate = READING.take() == Some(true);
    match ended {
        Err(panic) if !is_of_a_crate => panic::resume_unwind(panic),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::fs;
    use std::path::Path;

    /// Returns the seeds by name.
    fn seeds() -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/file_systems");
        let seeds = fs::read_dir(folder).unwrap().map(|seed| seed.unwrap());
        let mut seeds: Vec<_> =
            seeds.map(|seed| (seed.file_name().into_string().unwrap(), fs::read(seed.path()).unwrap())).collect();
        seeds.sort();
        seeds
    }

    #[test]
    fn files_of_every_seed_are_read() {
        for (name, seed) in seeds() {
            let files = read(&seed);
            assert!(files >= 3, "{name}: {files} files");
        }
    }

    #[test]
    fn subvolumes_appear_as_empty_directories_in_a_btrfs_snapshot() {
        let seeds = seeds();
        let (_, seed) = seeds.iter().find(|(name, _)| name == "btrfs_snapshot").unwrap();
        // The root; a subvolume with a file and two subvolumes, one of which has a file; and the snapshot with its file
        // and two empty directories.
        assert_eq!(read(seed), 10);
    }

    #[test]
    fn disks_with_random_corruption_are_read_without_a_panic() {
        let mut random = StdRng::seed_from_u64(20_261_129);
        for (name, seed) in seeds() {
            for round in 0..20 {
                let mut changed = seed.clone();
                for _ in 0..random.random_range(1..12) {
                    let at = random.random_range(4..changed.len() - 4);
                    let value: u32 = match random.random_range(0..4) {
                        0 => 0,
                        1 => u32::MAX,
                        2 => random.random_range(0..64),
                        _ => random.random(),
                    };
                    let length = random.random_range(1..=4);
                    changed[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
                }
                let ended = panic::catch_unwind(|| read(&changed));
                assert!(ended.is_ok(), "{name}, round {round}");
            }
        }
    }
}
