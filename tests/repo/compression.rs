//! Every compression mode stores the same bytes, and slow storage gets stronger compression.

use std::sync::Arc;
use std::time::Duration;

use crate::support::repo::{Home, disk, password, permit, read_disk, write_disk_with};
use kvmb::repo::{BlobKind, Compression, Repository, Writer, WriterOptions};
use kvmb::storage::FileKind;
use kvmb::storage::testing::{FaultEffect, FaultStorage, InjectedFault, Operation};

/// All modes, strongest last.
const MODES: [Compression; 5] =
    [Compression::Off, Compression::Fastest, Compression::Auto, Compression::Better, Compression::Max];

fn options(compression: Compression) -> WriterOptions {
    WriterOptions { compression, pack_bytes: 1 << 20, ..WriterOptions::default() }
}

fn writer(repo: &Repository, compression: Compression) -> Writer {
    Writer::new(repo, repo.load_index().expect("index"), options(compression), &permit(repo))
}

/// Returns text of many different words, for which compression levels differ.
fn prose(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A few words are frequent, many are rare.
        let word = (state >> 33) as u32 % (1 << ((state >> 60) + 1));
        text.extend_from_slice(format!("word{word:x} ").as_bytes());
    }
    text.truncate(length);
    text
}

#[test]
fn every_mode_stores_the_same_bytes_and_restic_reads_them() {
    let mut bytes = disk(3 << 20, 7);
    bytes.extend(prose(2 << 20, 7));
    let mut sizes = Vec::new();
    for mode in MODES {
        let home = Home::new();
        let repo = home.create();
        let snapshot = write_disk_with(&repo, writer(&repo, mode), "vm1", &bytes);
        let index = repo.load_index().expect("index");
        let data: Vec<_> = index.blobs(BlobKind::Data).map(|(_, at)| at).collect();
        assert!(index.blobs(BlobKind::Tree).all(|(_, at)| at.compressed || at.raw_length < 1000), "{mode:?}: trees");
        assert_eq!(data.iter().any(|at| at.compressed), mode != Compression::Off, "{mode:?}");
        assert!(data.iter().any(|at| !at.compressed), "{mode:?}: noise is stored as it is");
        sizes.push(data.iter().map(|at| u64::from(at.length)).sum::<u64>());
        home.clean(&repo);
        home.restic(&["check", "--read-data"]);
        assert!(home.restic_bytes(&["dump", "latest", "/vm1/vda/vda.raw"]) == bytes, "{mode:?}: other bytes");
        let stored = repo.snapshots().expect("snapshots").snapshots;
        let stored = stored.iter().find(|stored| stored.id == snapshot).expect("the snapshot");
        assert!(read_disk(&repo, &stored.snapshot, "vm1") == bytes, "{mode:?}: other bytes");
    }
    assert!(sizes.is_sorted_by(|before, after| before >= after), "{sizes:?}");
    assert!(sizes[1] < sizes[0] * 9 / 10 && sizes[3] < sizes[1], "{sizes:?}");
}

#[test]
fn auto_compression_is_stronger_on_slow_storage() {
    let home = Home::new();
    home.create();
    let slow = Arc::new(FaultStorage::new(home.storage()));
    let repo = Repository::open(Arc::clone(&slow) as Arc<_>, &password()).expect("open");
    // Compressing a chunk takes a few milliseconds, so that even on a busy host the CPU is not the bottleneck.
    let delay = FaultEffect::Delay(Duration::from_millis(500));
    slow.add(InjectedFault::every(Operation::Write, delay).on(FileKind::Pack));
    let options = WriterOptions { pack_bytes: 16 << 10, ..options(Compression::Auto) };
    let writer = Writer::new(&repo, repo.load_index().expect("index"), options, &permit(&repo));
    let chunks: Vec<Vec<u8>> = (0..24).map(|seed| prose(128 << 10, 1000 + seed)).collect();
    for chunk in &chunks {
        writer.put(BlobKind::Data, chunk).expect("put");
    }
    writer.finish().expect("finish");
    let index = repo.load_index().expect("index");
    let length_of = |chunk: &Vec<u8>| {
        let location = index.get(BlobKind::Data, &kvmb::repo::Id::hash(chunk)).expect("it was stored");
        location.length as usize
    };
    let level_1 = |chunk: &Vec<u8>| zstd::bulk::compress(chunk, 1).expect("zstd").len();
    assert!(length_of(&chunks[0]) >= level_1(&chunks[0]), "it begins below level 1");
    let (last, fast) = (length_of(&chunks[23]), level_1(&chunks[23]));
    assert!(last < fast * 98 / 100, "the last one takes {last} bytes, and {fast} at level 1");
}
