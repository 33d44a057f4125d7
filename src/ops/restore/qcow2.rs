//! Writes new qcow2 images. Their content is known in advance, so all tables are computed before any data is written.
//!
//! The format is QEMU's (`docs/interop/qcow2.txt`, version 3). The images are flat (no backing file, no snapshots, no
//! bitmaps) with clusters of 64 KiB:
//!
//! ```text
//! | header | refcount table | refcount blocks | L1 table | L2 tables | data, in the order of the guest's addresses … |
//! ```
//!
//! Chunks are whole clusters and contiguous, so a chunk is written with one call from any thread, as in a raw file.
//! Chunks of zeros are not allocated. Every cluster of the file is used exactly once, so all reference counts are 1.
//!
//! An overlay ([`Layout::overlay`]) is empty, and the only kind of image with a backing file.

use crate::ops::chunk_map::{ChunkMap, Geometry, MappedChunk};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

/// The cluster size, QEMU's default.
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// The number of entries of an L2 table: one cluster of 8-byte entries.
const L2_ENTRIES: u64 = CLUSTER_BYTES / 8;
/// The number of reference counts in a block: one cluster of 2-byte counts.
const BLOCK_ENTRIES: u64 = CLUSTER_BYTES / 2;
/// In L1 and L2 entries: the reference count is exactly one, so writes need no copy ("OFLAG_COPIED").
const COPIED: u64 = 1 << 63;
/// The length of a version 3 header without extensions.
const HEADER_BYTES: u32 = 104;
/// The header extension with the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// The positions of all parts of an image.
#[derive(Debug)]
pub(crate) struct Layout {
    geometry: Geometry,
    /// Runs of chunks that have L2 entries: the first chunk, the count, and the first cluster in the file.
    runs: Vec<(u64, u64, u64)>,
    table_clusters: u64,
    block_clusters: u64,
    l1_entries: u64,
    /// The indices of the L1 entries that have an L2 table, ascending.
    l2_tables: Vec<u64>,
    clusters: u64,
}

impl Layout {
    /// The layout of an image with these chunks. The chunk size is a multiple of 512 KiB, so chunks are whole clusters.
    pub(crate) fn new(geometry: Geometry, map: &ChunkMap) -> Layout {
        let guest_clusters = geometry.capacity_bytes.div_ceil(CLUSTER_BYTES);
        let per_chunk = u64::from(geometry.chunk_bytes) / CLUSTER_BYTES;
        let (mut runs, mut l2_tables, mut data) = (Vec::<(u64, u64, u64)>::new(), Vec::new(), 0);
        for (first, _, count) in map.runs().filter(|(_, chunk, _)| *chunk != MappedChunk::Zero) {
            let begin = first * per_chunk;
            let end = ((first + count) * per_chunk).min(guest_clusters);
            match runs.last_mut() {
                Some((from, length, _)) if *from + *length == first => *length += count,
                _ => runs.push((first, count, data)),
            }
            data += end - begin;
            for table in begin / L2_ENTRIES..=(end - 1) / L2_ENTRIES {
                if l2_tables.last() != Some(&table) {
                    l2_tables.push(table);
                }
            }
        }
        let l1_entries = guest_clusters.div_ceil(L2_ENTRIES);
        let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER_BYTES);
        let others = 1 + l1_clusters + l2_tables.len() as u64 + data;
        let (mut table_clusters, mut block_clusters) = (1, 1);
        // The refcount blocks also count themselves.
        loop {
            let clusters = others + table_clusters + block_clusters;
            let blocks = clusters.div_ceil(BLOCK_ENTRIES);
            let table = (blocks * 8).div_ceil(CLUSTER_BYTES);
            if (table, blocks) == (table_clusters, block_clusters) {
                let first_data = clusters - data;
                runs.iter_mut().for_each(|(_, _, cluster)| *cluster += first_data);
                return Layout { geometry, runs, table_clusters, block_clusters, l1_entries, l2_tables, clusters };
            }
            (table_clusters, block_clusters) = (table, blocks);
        }
    }

    /// The layout of an empty image that is to have a backing file ([`Layout::write_backing`]).
    pub(crate) fn overlay(geometry: Geometry) -> Layout {
        Layout::new(geometry, &ChunkMap::default())
    }

    /// The offset in the file of a byte of the disk that is in an allocated chunk.
    pub(crate) fn file_offset(&self, offset: u64) -> Option<u64> {
        let chunk = offset / u64::from(self.geometry.chunk_bytes);
        let at = self.runs.partition_point(|(first, ..)| *first <= chunk).checked_sub(1)?;
        let (first, count, cluster) = self.runs[at];
        (chunk < first + count).then(|| cluster * CLUSTER_BYTES + offset - self.geometry.offset(first))
    }

    /// The offset and length of the data in the file.
    pub(crate) fn data(&self) -> (u64, u64) {
        let first = self.runs.first().map_or(self.clusters, |(.., cluster)| *cluster);
        (first * CLUSTER_BYTES, (self.clusters - first) * CLUSTER_BYTES)
    }

    /// The length of the image file.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.clusters * CLUSTER_BYTES
    }

    /// Writes everything but the data. Every byte of the metadata is written, so that the old content of a device is
    /// never mistaken for a part of it.
    pub(crate) fn write_metadata(&self, file: &File) -> io::Result<()> {
        if file.metadata()?.is_file() {
            file.set_len(self.file_bytes())?;
        }
        let mut out = BufWriter::with_capacity(CLUSTER_BYTES as usize, file);
        out.seek(SeekFrom::Start(0))?;
        self.write_header(&mut out)?;
        let first_block = 1 + self.table_clusters;
        write_table(
            &mut out,
            self.table_clusters,
            (first_block..first_block + self.block_clusters).map(|c| c * CLUSTER_BYTES),
        )?;
        let ones = (0..self.block_clusters * BLOCK_ENTRIES).map(|cluster| u16::from(cluster < self.clusters));
        for count in ones {
            out.write_all(&count.to_be_bytes())?;
        }
        let first_l2 = self.first_l2();
        let mut tables = self.l2_tables.iter().zip(first_l2..).peekable();
        let l1 = (0..self.l1_entries).map(|index| match tables.next_if(|(table, _)| **table == index) {
            Some((_, cluster)) => COPIED | (cluster * CLUSTER_BYTES),
            None => 0,
        });
        write_table(&mut out, self.l1_clusters(), l1)?;
        for table in &self.l2_tables {
            let entries = (table * L2_ENTRIES..(table + 1) * L2_ENTRIES).map(|cluster| {
                let offset = cluster * CLUSTER_BYTES;
                let inside = offset < self.geometry.capacity_bytes;
                self.file_offset(offset).filter(|_| inside).map_or(0, |at| COPIED | at)
            });
            write_table(&mut out, 1, entries)?;
        }
        out.flush()
    }

    /// Makes a raw file the backing file of the image. The metadata must be written already.
    pub(crate) fn write_backing(&self, file: &File, name: &str) -> io::Result<()> {
        let mut extensions = BACKING_FORMAT.to_be_bytes().to_vec();
        extensions.extend(3_u32.to_be_bytes());
        // Padded to 8 bytes, followed by the end of the extensions.
        extensions.extend(b"raw\0\0\0\0\0");
        extensions.extend([0; 8]);
        let at = u64::from(HEADER_BYTES) + extensions.len() as u64;
        if at + name.len() as u64 > CLUSTER_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of the image below is too long"));
        }
        extensions.extend(name.as_bytes());
        file.write_all_at(&extensions, u64::from(HEADER_BYTES))?;
        file.write_all_at(&at.to_be_bytes(), 8)?;
        file.write_all_at(&(name.len() as u32).to_be_bytes(), 16)
    }

    fn l1_clusters(&self) -> u64 {
        (self.l1_entries * 8).div_ceil(CLUSTER_BYTES)
    }

    fn first_l1(&self) -> u64 {
        1 + self.table_clusters + self.block_clusters
    }

    fn first_l2(&self) -> u64 {
        self.first_l1() + self.l1_clusters()
    }

    fn write_header(&self, out: &mut impl Write) -> io::Result<()> {
        let mut header = Vec::with_capacity(CLUSTER_BYTES as usize);
        let put32 = |header: &mut Vec<u8>, value: u32| header.extend(value.to_be_bytes());
        let put64 = |header: &mut Vec<u8>, value: u64| header.extend(value.to_be_bytes());
        header.extend(b"QFI\xfb");
        put32(&mut header, 3); // version
        put64(&mut header, 0); // backing file: none
        put32(&mut header, 0);
        put32(&mut header, CLUSTER_BITS);
        put64(&mut header, self.geometry.capacity_bytes);
        put32(&mut header, 0); // encryption: none
        put32(&mut header, self.l1_entries as u32);
        put64(&mut header, self.first_l1() * CLUSTER_BYTES);
        put64(&mut header, CLUSTER_BYTES); // the refcount table follows the header
        put32(&mut header, self.table_clusters as u32);
        put32(&mut header, 0); // snapshots: none
        put64(&mut header, 0);
        put64(&mut header, 0); // incompatible features
        put64(&mut header, 0); // compatible features
        put64(&mut header, 0); // autoclear features
        put32(&mut header, 4); // refcounts of 2⁴ bits
        put32(&mut header, HEADER_BYTES);
        // The rest is zeros, which also means "no header extension".
        header.resize(CLUSTER_BYTES as usize, 0);
        out.write_all(&header)
    }
}

/// Writes 8-byte entries, followed by zeros up to the end of the last cluster.
fn write_table(out: &mut impl Write, clusters: u64, entries: impl Iterator<Item = u64>) -> io::Result<()> {
    let mut left = clusters * L2_ENTRIES;
    for entry in entries {
        out.write_all(&entry.to_be_bytes())?;
        left -= 1;
    }
    for _ in 0..left {
        out.write_all(&[0; 8])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Id;
    use proptest::prelude::*;
    use std::path::Path;
    use std::process::Command;

    fn qemu_img(arguments: &[&str], paths: &[&Path]) {
        let output = Command::new("qemu-img").args(arguments).args(paths).output().expect("qemu-img: run make test");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Builds the image and a raw image of the same content. `qemu-img` must find no error and no difference.
    fn check(capacity_bytes: u64, chunk_bytes: u32, kinds: &[(bool, u64)]) {
        let geometry = Geometry { capacity_bytes, chunk_bytes };
        let mut map = ChunkMap::default();
        for (n, (data, count)) in kinds.iter().enumerate() {
            let chunk = if *data { MappedChunk::Blob(Id::hash(&[n as u8])) } else { MappedChunk::Zero };
            map.push(chunk, (*count).min(geometry.chunks() - map.len()));
        }
        map.push(MappedChunk::Zero, geometry.chunks() - map.len());
        let folder = tempfile::tempdir().unwrap();
        let (image, raw) = (folder.path().join("image"), folder.path().join("raw"));
        let (file, reference) = (File::create_new(&image).unwrap(), File::create_new(&raw).unwrap());
        reference.set_len(capacity_bytes).unwrap();
        let layout = Layout::new(geometry, &map);
        layout.write_metadata(&file).unwrap();
        for (first, chunk, count) in map.runs().filter(|(_, chunk, _)| *chunk != MappedChunk::Zero) {
            for index in first..first + count {
                let MappedChunk::Blob(id) = chunk else { unreachable!() };
                let fill = id.to_string().as_bytes()[(index % 64) as usize];
                let bytes = vec![fill; geometry.length(index) as usize];
                file.write_all_at(&bytes, layout.file_offset(geometry.offset(index)).unwrap()).unwrap();
                reference.write_all_at(&bytes, geometry.offset(index)).unwrap();
            }
        }
        qemu_img(&["check", "-q", "-f", "qcow2"], &[&image]);
        qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2"], &[&raw, &image]);
        let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&image).output().unwrap();
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
        assert_eq!(info["virtual-size"], capacity_bytes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn random_images_pass_qemu_img_check_and_compare(
            kinds in proptest::collection::vec((any::<bool>(), 1u64..5), 0..8),
            capacity in 1u64..(40 << 11),
            halves in 1u32..4,
        ) {
            check(capacity * 512, halves << 19, &kinds);
        }
    }

    #[test]
    fn empty_full_and_large_sparse_images_are_valid() {
        check(512, 1 << 20, &[(true, 1)]);
        check(1 << 20, 1 << 20, &[]);
        check(3 << 20, 1 << 20, &[(true, 3)]);
        // Several L2 tables with a gap between them.
        check(3 << 30, 1 << 20, &[(true, 2), (false, 1500), (true, 1)]);
        // An L1 table of more than one cluster.
        check(8 << 40, 1 << 20, &[(false, 5_000_000), (true, 1)]);
    }

    #[test]
    fn reference_counts_cover_the_refcount_blocks_themselves() {
        // Just below and above the capacity of one refcount block: 2 GiB of file.
        for chunks in [2040, 2047, 2048, 2060] {
            let geometry = Geometry { capacity_bytes: chunks << 20, chunk_bytes: 1 << 20 };
            let mut map = ChunkMap::default();
            map.push(MappedChunk::Blob(Id::hash(b"x")), chunks);
            let folder = tempfile::tempdir().unwrap();
            let image = folder.path().join("image");
            Layout::new(geometry, &map).write_metadata(&File::create_new(&image).unwrap()).unwrap();
            qemu_img(&["check", "-q", "-f", "qcow2"], &[&image]);
        }
    }

    #[test]
    fn overlay_reads_as_its_backing_file() {
        let geometry = Geometry { capacity_bytes: (5 << 20) + 512, chunk_bytes: 1 << 20 };
        let folder = tempfile::tempdir().unwrap();
        let (image, raw) = (folder.path().join("image"), folder.path().join("raw"));
        std::fs::write(&raw, vec![7; (5 << 20) + 512]).unwrap();
        let (layout, file) = (Layout::overlay(geometry), File::create_new(&image).unwrap());
        layout.write_metadata(&file).unwrap();
        layout.write_backing(&file, raw.to_str().unwrap()).unwrap();
        qemu_img(&["check", "-q", "-f", "qcow2"], &[&image]);
        qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2"], &[&raw, &image]);
        assert!(layout.write_backing(&file, &"x".repeat(65536)).is_err());
        let large = Layout::overlay(Geometry { capacity_bytes: 3 << 40, ..geometry });
        assert!(large.file_bytes() < 1 << 20);
    }

    #[test]
    fn only_allocated_chunks_have_a_file_offset() {
        let geometry = Geometry { capacity_bytes: 5 << 20, chunk_bytes: 1 << 20 };
        let mut map = ChunkMap::default();
        map.push(MappedChunk::Zero, 2);
        map.push(MappedChunk::Blob(Id::hash(b"x")), 1);
        map.push(MappedChunk::Zero, 2);
        let layout = Layout::new(geometry, &map);
        assert!(layout.file_offset(1 << 20).is_none() && layout.file_offset(3 << 20).is_none());
        let at = layout.file_offset(2 << 20).unwrap();
        assert_eq!(layout.file_offset((2 << 20) + 70_000), Some(at + 70_000));
    }
}
