//! The NBD client against real servers: `qemu-nbd`, QEMU itself, and `nbdkit` for all others.

// Clippy allows unwrap() in test functions, but not in helpers.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::servers::{Qemu, Server, qemu_io, run};
use kvmb::nbd::{
    Chunk, ChunkRun, ChunkState, Client, ClientOptions, DiskReader, Error, Extent, NbdUri, ReadOptions, Violation,
    chunk_runs, extents,
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const ALLOCATION: &str = "base:allocation";

fn with_contexts(contexts: &[&str]) -> ClientOptions {
    ClientOptions { contexts: contexts.iter().map(|&name| name.to_owned()).collect(), ..ClientOptions::default() }
}

fn connect(uri: &NbdUri) -> Client {
    Client::connect(uri, &with_contexts(&[ALLOCATION])).unwrap()
}

/// Returns the content of a disk: patterns with holes, no two blocks alike, from a generator without a seed.
fn pattern(size_bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size_bytes);
    while bytes.len() < size_bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Insert some ranges of zeros, short or long.
        let zeros = match state % 9 {
            0 => 700 * 1024,
            1 => 100 * 1024,
            _ => 0,
        };
        bytes.extend(std::iter::repeat_n(0, zeros));
        for word in 0..4096_u64 {
            bytes.extend((state ^ word.wrapping_mul(0x0101_0101_0107)).to_le_bytes());
        }
    }
    bytes.truncate(size_bytes);
    bytes
}

/// Writes a raw image with holes for every 4 KiB of zeros.
fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (index, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, index as u64 * 4096).unwrap();
        }
    }
}

struct Image {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Image {
    fn raw(bytes: &[u8]) -> Image {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        write_sparse(&path, bytes);
        Image { path, _folder: folder }
    }

    fn qcow2(size: &str) -> Image {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        run("qemu-img", &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), size]);
        Image { path, _folder: folder }
    }

    fn qcow2_of(bytes: &[u8]) -> Image {
        let raw = Image::raw(bytes);
        let path = raw.path.with_extension("qcow2");
        let (from, to) = (raw.path.to_str().unwrap(), path.to_str().unwrap());
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", from, to]);
        Image { path, _folder: raw._folder }
    }

    fn bitmap(&self, name: &str) {
        run("qemu-img", &["bitmap", "--add", self.path.to_str().unwrap(), name]);
    }
}

fn options(chunk_bytes: u64) -> ReadOptions {
    ReadOptions { chunk_bytes: chunk_bytes as u32, ..ReadOptions::default() }
}

/// Each chunk's state, and its bytes if it was read.
type Chunks = BTreeMap<u64, (ChunkState, Option<Vec<u8>>)>;

/// Reads everything, in order or as it arrives, and checks that each chunk arrives exactly once.
fn collect(reader: DiskReader, in_order: bool, chunk_bytes: u64) -> Chunks {
    let size_bytes = reader.size_bytes();
    let chunks = if in_order { reader.chunks_in_order() } else { reader.chunks() };
    let mut seen = Chunks::new();
    for chunk in chunks {
        let (first, count, state, bytes) = match chunk.unwrap() {
            Chunk::Data { index, offset, bytes } => {
                assert_eq!(offset, index * chunk_bytes);
                let length = chunk_bytes.min(size_bytes - offset);
                assert_eq!(bytes.len() as u64, length);
                (index, 1, ChunkState::Data, Some(bytes.to_vec()))
            }
            Chunk::Zero { first, count } => (first, count, ChunkState::Zero, None),
            Chunk::Clean { first, count, zero } => (first, count, ChunkState::Clean { zero }, None),
            Chunk::Mixed { index, dirty, clean_zeros } => (index, 1, ChunkState::Mixed { dirty, clean_zeros }, None),
        };
        if in_order {
            let expected = seen.last_key_value().map_or(0, |(last, _)| last + 1);
            assert_eq!(first, expected);
        }
        for index in first..first + count {
            assert!(seen.insert(index, (state, bytes.clone())).is_none());
        }
    }
    assert_eq!(seen.len() as u64, size_bytes.div_ceil(chunk_bytes));
    if let Some((last, _)) = seen.last_key_value() {
        assert_eq!(*last, seen.len() as u64 - 1);
    }
    seen
}

/// Reads the disk in every possible way and compares every byte. The server may have rounded the size up.
fn assert_reads_as(uri: &NbdUri, expected: &[u8], chunk_bytes: u64) {
    for in_order in [true, false] {
        let reader = DiskReader::open(uri, options(chunk_bytes)).unwrap();
        let mut expected = expected.to_vec();
        expected.resize(reader.size_bytes() as usize, 0);
        for (index, (state, bytes)) in collect(reader, in_order, chunk_bytes) {
            let begin = (index * chunk_bytes) as usize;
            let end = expected.len().min(begin + chunk_bytes as usize);
            match bytes {
                Some(bytes) => assert!(bytes == expected[begin..end], "chunk {index} differs"),
                None => {
                    assert_eq!(state, ChunkState::Zero);
                    assert!(expected[begin..end].iter().all(|byte| *byte == 0));
                }
            }
        }
    }
    let mut client = connect(uri);
    let mut whole = vec![0xee; client.size_bytes() as usize];
    client.read(0, &mut whole).unwrap();
    assert!(whole[..expected.len()] == *expected);
    assert!(whole[expected.len()..].iter().all(|byte| *byte == 0));
    client.disconnect();
}

fn map(client: &mut Client, bitmap: Option<&str>) -> Vec<Extent> {
    extents(client, bitmap).map(|extent| extent.unwrap()).collect()
}

fn runs(client: &mut Client, bitmap: Option<&str>, chunk_bytes: u64) -> Vec<(u64, u64, ChunkState)> {
    let size_bytes = client.size_bytes();
    chunk_runs(extents(client, bitmap), size_bytes, chunk_bytes as u32)
        .map(|run| {
            let ChunkRun { first, count, state } = run.unwrap();
            (first, count, state)
        })
        .collect()
}

#[test]
fn qcow2_reads_as_the_guest_sees_it() {
    let expected = pattern(37 * MIB as usize + 512);
    let image = Image::qcow2_of(&expected);
    let server = Server::qemu_nbd("qcow2", &image.path, &[]);
    for chunk_bytes in [512 * KIB, MIB, 64 * MIB] {
        assert_reads_as(&server.uri(), &expected, chunk_bytes);
    }
}

#[test]
fn raw_image_of_any_size_is_read_to_its_last_byte() {
    for size_bytes in [0, 1, 511, 512, 513, 4096, MIB - 1, MIB, MIB + 1, 5 * MIB + 4097] {
        let expected = pattern(size_bytes as usize);
        let image = Image::raw(&expected);
        let server = Server::qemu_nbd("raw", &image.path, &[]);
        assert_reads_as(&server.uri(), &expected, 512 * KIB);
        let file = format!("file={}", image.path.display());
        let server = Server::nbdkit(&["-r", "file", &file]);
        assert_eq!(connect(&server.uri()).size_bytes(), size_bytes);
        assert_reads_as(&server.uri(), &expected, 512 * KIB);
    }
}

#[test]
fn requests_respect_the_block_sizes_of_the_server() {
    let expected = pattern(9 * MIB as usize);
    let image = Image::raw(&expected);
    let server = Server::nbdkit(&[
        "-r",
        "--filter=blocksize-policy",
        "file",
        &format!("file={}", image.path.display()),
        "blocksize-minimum=65536",
        "blocksize-preferred=64K",
        "blocksize-maximum=192K",
        "blocksize-error-policy=error",
    ]);
    assert_reads_as(&server.uri(), &expected, MIB);
    let mut client = connect(&server.uri());
    assert_eq!(client.min_block_bytes(), 65536);
    assert_eq!(client.max_request_bytes(), 192 * 1024);
    for (offset, length) in [(1, 1), (65535, 2), (70_000, 1_000_000), (9 * MIB - 1, 1)] {
        let mut bytes = vec![0; length];
        client.read(offset, &mut bytes).unwrap();
        let offset = offset as usize;
        assert!(bytes == expected[offset..offset + length]);
    }
}

#[test]
fn unaligned_end_of_a_large_block_export_reads_correctly() {
    // The size is not a multiple of the minimum block size: the server may refuse the last bytes, but only those.
    let size_bytes = 3 * MIB + 1000;
    let server = Server::nbdkit(&[
        "--filter=blocksize-policy",
        "memory",
        &size_bytes.to_string(),
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=1M",
    ]);
    assert_reads_as(&server.uri(), &vec![0; size_bytes as usize], MIB);
}

#[test]
fn sparse_ten_tebibyte_disk_is_read_within_a_minute() {
    let image = Image::qcow2("10T");
    let last = format!("write -P 0x11 {} 64k", 10 * MIB * MIB - 64 * KIB);
    qemu_io("qcow2", &image.path, &["write -P 0x22 5T 3M", &last, "write -P 0x33 0 64k"]);
    image.bitmap("b");
    qemu_io("qcow2", &image.path, &["write -P 0x44 5T 64k"]);
    let begin = Instant::now();
    let server = Server::qemu_nbd("qcow2", &image.path, &["-B", "b"]);
    let read = |bitmap: Option<&str>| {
        let reader = DiskReader::open(
            &server.uri(),
            ReadOptions { bitmap_context: bitmap.map(str::to_owned), ..ReadOptions::default() },
        )
        .unwrap();
        let mut data = Vec::new();
        let mut total = 0;
        for chunk in reader.chunks_in_order() {
            match chunk.unwrap() {
                Chunk::Data { index, bytes, .. } => {
                    total += 1;
                    data.push((index, bytes[0], bytes[bytes.len() - 1]));
                }
                Chunk::Zero { count, .. } | Chunk::Clean { count, .. } => total += count,
                Chunk::Mixed { .. } => total += 1,
            }
        }
        assert_eq!(total, 10 * MIB);
        data
    };
    assert_eq!(
        read(None),
        [
            (0, 0x33, 0),
            (5 * MIB, 0x44, 0x22),
            (5 * MIB + 1, 0x22, 0x22),
            (5 * MIB + 2, 0x22, 0x22),
            (10 * MIB - 1, 0, 0x11)
        ]
    );
    assert_eq!(read(Some("qemu:dirty-bitmap:b")), [(5 * MIB, 0x44, 0x22)]);
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn bitmap_marks_changes_including_zeroed_ranges() {
    let image = Image::qcow2("16M");
    let context = "qemu:dirty-bitmap:since";
    qemu_io("qcow2", &image.path, &["write -P 0x11 0 12M"]);
    image.bitmap("since");
    qemu_io("qcow2", &image.path, &["write -P 0x22 1M 64k", "write -z -u 4M 2M", "write -z 8M 64k", "discard 14M 1M"]);
    let server = Server::qemu_nbd("qcow2", &image.path, &["-B", "since"]);
    let mut client = Client::connect(&server.uri(), &with_contexts(&[ALLOCATION, context])).unwrap();
    assert!(client.has_context(ALLOCATION) && client.has_context(context));
    assert!(client.read_only() && client.multi_conn());
    let data = ChunkState::Data;
    let clean = |zero| ChunkState::Clean { zero };
    let zero = ChunkState::Zero;
    let expected = [
        (0, 1, clean(false)),
        (1, 1, data),
        (2, 2, clean(false)),
        (4, 2, zero),
        (6, 2, clean(false)),
        // One cluster of it is dirty and zero, the rest is clean data.
        (8, 1, data),
        (9, 3, clean(false)),
        (12, 2, clean(true)),
        (14, 1, zero),
        (15, 1, clean(true)),
    ];
    assert_eq!(runs(&mut client, Some(context), MIB), expected);
    // The extents below the chunks, with cluster granularity.
    let map = map(&mut client, Some(context));
    let dirty: Vec<_> = map
        .iter()
        .filter(|extent| extent.dirty == Some(true))
        .map(|extent| (extent.offset / KIB, extent.length / KIB, extent.zero))
        .collect();
    assert_eq!(dirty, [(1024, 64, false), (4096, 2048, true), (8192, 64, true), (14336, 1024, true)]);
    client.disconnect();

    for in_order in [true, false] {
        let reader =
            DiskReader::open(&server.uri(), ReadOptions { bitmap_context: Some(context.to_owned()), ..options(MIB) })
                .unwrap();
        assert!(reader.has_bitmap());
        assert_eq!(reader.connections(), 2);
        let chunks = collect(reader, in_order, MIB);
        let states: Vec<ChunkState> = chunks.values().map(|chunk| chunk.0).collect();
        let expected: Vec<ChunkState> =
            expected.iter().flat_map(|&(_, count, state)| std::iter::repeat_n(state, count as usize)).collect();
        assert_eq!(states, expected);
        let (_, Some(bytes)) = &chunks[&1] else {
            panic!("the dirty chunk was not read");
        };
        assert!(bytes[..64 * KIB as usize].iter().all(|byte| *byte == 0x22));
        assert!(bytes[64 * KIB as usize..].iter().all(|byte| *byte == 0x11));
    }
}

#[test]
fn missing_bitmap_is_not_reported_as_clean() {
    let image = Image::qcow2("4M");
    qemu_io("qcow2", &image.path, &["write -P 0x11 0 1M"]);
    image.bitmap("other");
    for server in [
        Server::qemu_nbd("qcow2", &image.path, &["-B", "other"]),
        Server::qemu_nbd("qcow2", &image.path, &[]),
        Server::nbdkit(&["--no-sr", "memory", "4M"]),
    ] {
        let reader = DiskReader::open(
            &server.uri(),
            ReadOptions { bitmap_context: Some("qemu:dirty-bitmap:since".to_owned()), ..options(MIB) },
        )
        .unwrap();
        assert!(!reader.has_bitmap());
        for (state, _) in collect(reader, true, MIB).values() {
            assert!(!matches!(state, ChunkState::Clean { .. }));
        }
    }
}

#[test]
fn multiple_meta_contexts_are_answered_in_one_request() {
    let image = Image::qcow2("8M");
    image.bitmap("b");
    qemu_io("qcow2", &image.path, &["write -P 1 1M 1M", "write -z 4M 1M"]);
    let server = Server::qemu_nbd("qcow2", &image.path, &["-B", "b", "-A"]);
    let contexts = [ALLOCATION, "qemu:dirty-bitmap:b", "qemu:allocation-depth"];
    let mut client = Client::connect(&server.uri(), &with_contexts(&[&contexts[..], &["x:y"]].concat())).unwrap();
    assert!(contexts.iter().all(|name| client.has_context(name)));
    assert!(!client.has_context("x:y"));
    let lengths = |statuses: Vec<kvmb::nbd::ContextStatus>| {
        let mut lengths: Vec<_> = statuses
            .into_iter()
            .map(|status| {
                let extents: Vec<_> =
                    status.extents.iter().map(|extent| (u64::from(extent.length) / KIB, extent.flags)).collect();
                (status.context, extents)
            })
            .collect();
        lengths.sort();
        lengths
    };
    let all = lengths(client.block_status(0, 8 << 20).unwrap());
    assert_eq!(all[0].1, [(1024, 3), (1024, 0), (6144, 3)]);
    assert_eq!(all[2].1, [(1024, 0), (1024, 1), (2048, 0), (1024, 1), (3072, 0)]);
}

#[test]
fn server_without_structured_replies_is_read_in_full() {
    let expected = pattern(5 * MIB as usize + 7);
    let image = Image::raw(&expected);
    let file = format!("file={}", image.path.display());
    let server = Server::nbdkit(&["--no-sr", "-r", "file", &file]);
    let mut client = connect(&server.uri());
    assert!(!client.has_context(ALLOCATION));
    assert!(matches!(client.block_status(0, 512), Err(Error::Request { .. })));
    assert_eq!(map(&mut client, None), [Extent { offset: 0, length: expected.len() as u64, zero: false, dirty: None }]);
    let reader = DiskReader::open(&server.uri(), options(MIB)).unwrap();
    for (index, (state, bytes)) in collect(reader, false, MIB) {
        assert_eq!(state, ChunkState::Data);
        let begin = (index * MIB) as usize;
        let end = expected.len().min(begin + MIB as usize);
        assert!(bytes.unwrap() == expected[begin..end]);
    }
}

#[test]
fn old_style_servers_are_a_protocol_violation() {
    for arguments in [&["-o", "memory", "1M"][..], &["--mask-handshake=0", "memory", "1M"]] {
        let server = Server::nbdkit(arguments);
        let result = Client::connect(&server.uri(), &ClientOptions::default());
        assert!(matches!(result, Err(Error::Protocol(Violation::OldStyle))), "{result:?}");
    }
}

#[test]
fn missing_export_or_socket_is_a_specific_error() {
    let image = Image::qcow2("1M");
    let server = Server::qemu_nbd("qcow2", &image.path, &["-x", "vda"]);
    for options in [ClientOptions::default(), with_contexts(&[ALLOCATION])] {
        match Client::connect(&server.export("vdb"), &options) {
            Err(Error::NoSuchExport { export, .. }) => assert_eq!(export, "vdb"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(connect(&server.export("vda")).size_bytes(), MIB);
    let nowhere = NbdUri { socket: server.path("nowhere"), export: String::new() };
    assert!(matches!(
        Client::connect(&nowhere, &ClientOptions::default()),
        Err(Error::Connect { source, .. }) if source.kind() == std::io::ErrorKind::NotFound
    ));
    let long = NbdUri { socket: PathBuf::from("/".repeat(200)), export: String::new() };
    assert!(matches!(Client::connect(&long, &ClientOptions::default()), Err(Error::Connect { .. })));
}

#[test]
fn failed_read_reports_its_offset_and_keeps_the_connection() {
    let trigger = tempfile::tempdir().unwrap();
    let file = trigger.path().join("fail");
    let mut bytes = vec![0; 16 * MIB as usize];
    bytes[..MIB as usize].fill(1);
    let image = Image::raw(&bytes);
    let server = Server::nbdkit(&[
        "--filter=error",
        "file",
        image.path.to_str().unwrap(),
        "error-pread=EIO",
        "error-pread-rate=100%",
        &format!("error-pread-file={}", file.display()),
    ]);
    let mut client = connect(&server.uri());
    let mut bytes = [1; 512];
    client.read(MIB, &mut bytes).unwrap();
    std::fs::write(&file, "").unwrap();
    match client.read(MIB, &mut bytes) {
        Err(error @ Error::Request { offset: MIB, error: 5, .. }) => assert!(error.connection_is_usable()),
        other => panic!("{other:?}"),
    }
    std::fs::remove_file(&file).unwrap();
    client.read(MIB, &mut bytes).unwrap();

    // The reader of a whole disk returns the same error once, and ends.
    std::fs::write(&file, "").unwrap();
    for in_order in [true, false] {
        let reader = DiskReader::open(&server.uri(), options(MIB)).unwrap();
        let results: Vec<_> = if in_order { reader.chunks_in_order().collect() } else { reader.chunks().collect() };
        let errors: Vec<_> = results.iter().filter(|result| result.is_err()).collect();
        assert!(matches!(errors.as_slice(), [Err(Error::Request { offset: 0, error: 5, .. })]), "{errors:?}");
        assert!(results.last().unwrap().is_err());
    }
}

#[test]
fn unresponsive_server_times_out() {
    let image = Image::raw(&pattern(4 * MIB as usize));
    let server = Server::nbdkit(&["--filter=delay", "file", image.path.to_str().unwrap(), "rdelay=120"]);
    let timeout = Duration::from_secs(2);
    let begin = Instant::now();
    let mut client = Client::connect(&server.uri(), &ClientOptions { timeout, ..ClientOptions::default() }).unwrap();
    let result = client.read(0, &mut [0; 512]);
    assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    assert!(matches!(client.read(0, &mut [0; 512]), Err(Error::Disconnected)));
    let reader = DiskReader::open(&server.uri(), ReadOptions { timeout, ..options(MIB) }).unwrap();
    let result = reader.chunks().find(|chunk| chunk.is_err());
    assert!(matches!(result, Some(Err(Error::Timeout { .. }))), "{result:?}");
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn killed_server_is_reported_as_disconnected() {
    for in_order in [true, false] {
        let mut server = Server::nbdkit(&["--filter=delay", "pattern", "1G", "rdelay=5ms"]);
        let reader = DiskReader::open(&server.uri(), options(MIB)).unwrap();
        let mut chunks = if in_order { reader.chunks_in_order() } else { reader.chunks() };
        for _ in 0..5 {
            chunks.next().unwrap().unwrap();
        }
        server.kill();
        let last = chunks.last().unwrap();
        assert!(matches!(last, Err(Error::Disconnected)), "{last:?}");
    }
}

#[test]
fn single_client_server_is_read_over_one_connection() {
    let expected = pattern(9 * MIB as usize);
    let image = Image::qcow2_of(&expected);
    // qemu-nbd's default: it does not even respond to a second connection.
    let server = Server::qemu_nbd_raw("qcow2", &image.path, &["-r"]);
    let reader = DiskReader::open(&server.uri(), options(MIB)).unwrap();
    assert_eq!(reader.connections(), 1);
    let chunks = collect(reader, true, MIB);
    assert!(chunks[&0].1.as_deref() == Some(&expected[..MIB as usize]));
    // A server that announces more connections than it accepts.
    let server = Server::nbdkit(&[
        "-r",
        "--filter=limit",
        "--filter=multi-conn",
        "memory",
        "9M",
        "limit=1",
        "multi-conn-mode=unsafe",
    ]);
    let reader = DiskReader::open(&server.uri(), options(MIB)).unwrap();
    assert_eq!(reader.connections(), 1);
    assert_eq!(collect(reader, true, MIB).len(), 9);
}

#[test]
fn reader_stops_when_interrupted_or_dropped() {
    // One server for each part: nbdkit 1.32 occasionally crashes if clients disconnect while it delays their reads.
    let server = || Server::nbdkit(&["--filter=delay", "pattern", "1T", "rdelay=120"]);
    let stop = Arc::new(AtomicBool::new(false));
    let reader = |server: &Server| {
        DiskReader::open(&server.uri(), ReadOptions { stop: Arc::clone(&stop), ..options(MIB) }).unwrap()
    };
    // Interrupted while it waits for the server.
    let waiting = server();
    let mut chunks = reader(&waiting).chunks();
    let raiser = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
        })
    };
    let begin = Instant::now();
    assert!(matches!(chunks.next(), Some(Err(Error::Stopped))));
    assert!(chunks.next().is_none());
    drop(chunks);
    assert!(begin.elapsed() < Duration::from_secs(60));
    raiser.join().unwrap();
    // Dropped while requests are pending.
    stop.store(false, Ordering::Relaxed);
    let busy = server();
    let chunks = reader(&busy).chunks_in_order();
    std::thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    drop(chunks);
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn read_ahead_is_bounded_and_a_hoarding_consumer_is_not_blocked() {
    for in_order in [true, false] {
        let log = tempfile::tempdir().unwrap();
        let log = log.path().join("log");
        // One server each: nbdkit's log filter occasionally makes the server crash if a client with pending requests
        // disconnects.
        let server = Server::nbdkit(&["--filter=log", "pattern", "1G", &format!("logfile={}", log.display())]);
        let reads = || {
            let log = std::fs::read_to_string(&log).unwrap();
            log.lines().filter(|line| line.contains(" Read id=") && line.contains("count=0x100000")).count()
        };
        let reader =
            DiskReader::open(&server.uri(), ReadOptions { in_flight: 6, connections: 3, ..options(MIB) }).unwrap();
        let mut chunks = if in_order { reader.chunks_in_order() } else { reader.chunks() };
        let mut hoard: Vec<_> = chunks.by_ref().take(10).collect();
        std::thread::sleep(Duration::from_millis(300));
        // 10 have arrived; 6 more may be in transit or in the queue.
        let read = reads();
        assert!((10..=16).contains(&read), "{read}");
        hoard.extend(chunks.by_ref().take(100));
        assert_eq!(hoard.len(), 110);
        assert!(hoard.iter().all(|chunk| chunk.is_ok()));
    }
}

#[test]
fn alternating_chunks_arrive_complete_in_every_reader_setup() {
    // Many more runs than the queue holds, with the narrowest reader.
    let chunk_bytes = 512 * KIB;
    let count = 2400_u64;
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(count * chunk_bytes).unwrap();
    for index in (0..count).step_by(2) {
        let bytes = [(index % 251) as u8 + 1; 4096];
        image.as_file().write_all_at(&bytes, index * chunk_bytes).unwrap();
    }
    let server = Server::nbdkit(&["file", image.path().to_str().unwrap()]);
    for (in_order, in_flight, connections) in [(true, 1, 1), (false, 1, 2), (true, 3, 2), (false, 8, 3)] {
        let reader =
            DiskReader::open(&server.uri(), ReadOptions { in_flight, connections, ..options(chunk_bytes) }).unwrap();
        let chunks = collect(reader, in_order, chunk_bytes);
        for (index, (state, bytes)) in chunks {
            if index % 2 == 0 {
                assert_eq!(bytes.unwrap()[0], (index % 251) as u8 + 1);
            } else {
                assert_eq!(state, ChunkState::Zero);
            }
        }
    }
}

#[test]
fn live_export_is_read_with_its_bitmap_until_disconnected() {
    let image = Image::qcow2("64M");
    let mut qemu = Qemu::start();
    let socket = qemu.path("nbd");
    qemu.execute(
        "blockdev-add",
        serde_json::json!({
            "driver": "qcow2", "node-name": "vda", "discard": "unmap",
            "file": {"driver": "file", "filename": image.path}
        }),
    );
    qemu.io("vda", "write -P 0x11 0 8M");
    qemu.io("vda", "write -P 0x12 60M 4M");
    qemu.execute("block-dirty-bitmap-add", serde_json::json!({"node": "vda", "name": "since"}));
    qemu.io("vda", "write -P 0x22 3M 1M");
    qemu.io("vda", "write -z -u 61M 1M");
    // A bitmap cannot be recorded and exported at the same time; a backup job freezes a copy.
    qemu.execute("block-dirty-bitmap-disable", serde_json::json!({"node": "vda", "name": "since"}));
    qemu.execute("nbd-server-start", serde_json::json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    qemu.execute(
        "block-export-add",
        serde_json::json!({
            "type": "nbd", "id": "e", "node-name": "vda", "name": "vda", "bitmaps": ["since"]
        }),
    );
    let uri = NbdUri { socket, export: "vda".to_owned() };
    let context = "qemu:dirty-bitmap:since";
    let reader =
        DiskReader::open(&uri, ReadOptions { bitmap_context: Some(context.to_owned()), ..options(MIB) }).unwrap();
    assert!(reader.has_bitmap());
    let chunks = collect(reader, false, MIB);
    for (index, (state, bytes)) in chunks {
        let expected = match index {
            3 => {
                assert!(bytes.unwrap().iter().all(|byte| *byte == 0x22));
                ChunkState::Data
            }
            61 => ChunkState::Zero,
            0..8 | 60..64 => ChunkState::Clean { zero: false },
            _ => ChunkState::Clean { zero: true },
        };
        assert_eq!(state, expected, "chunk {index}");
    }
    let full = DiskReader::open(&uri, options(MIB)).unwrap();
    let data = collect(full, true, MIB).values().filter(|(_, bytes)| bytes.is_some()).count();
    assert_eq!(data, 11);

    // As when a backup job is aborted while a reader is active.
    let mut client = connect(&uri);
    client.read(0, &mut [0; 512]).unwrap();
    qemu.execute("nbd-server-stop", serde_json::json!({}));
    let result = client.read(0, &mut [0; 512]);
    assert!(matches!(result, Err(Error::Disconnected)), "{result:?}");
}
