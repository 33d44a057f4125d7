//! Tests the client against malicious servers, whose every byte is written here by hand or generated at random.
//!
//! Everything that such a server sends is put into a socket pair before the client starts, so there are no threads.
//! Cookies count from 2 because of the way in which [`Client`] numbers tickets and cookies.

use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

use proptest::prelude::*;

use std::os::unix::net::UnixStream;

use super::*;

const CONTEXT_IDS: [(u32, &str); 2] = [(7, "base:allocation"), (9, "qemu:dirty-bitmap:b")];
const SIZE_BYTES: u64 = 1 << 20;
/// The cookies of the first request, and of a second one with another ticket.
const FIRST: u64 = 2;
const SECOND: u64 = 4;

fn bytes_of(fields: &[&[u8]]) -> Vec<u8> {
    fields.concat()
}

fn greeting() -> Vec<u8> {
    bytes_of(&[b"NBDMAGIC", b"IHAVEOPT", &3u16.to_be_bytes()])
}

fn option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    bytes_of(&[
        &wire::OPTION_REPLY_MAGIC.to_be_bytes(),
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &(payload.len() as u32).to_be_bytes(),
        payload,
    ])
}

fn info_export(size_bytes: u64) -> Vec<u8> {
    option_reply(wire::OPT_GO, wire::REP_INFO, &bytes_of(&[&[0, 0], &size_bytes.to_be_bytes(), &1u16.to_be_bytes()]))
}

fn info_block_size(minimum: u32, maximum: u32) -> Vec<u8> {
    option_reply(
        wire::OPT_GO,
        wire::REP_INFO,
        &bytes_of(&[&[0, 3], &minimum.to_be_bytes(), &4096u32.to_be_bytes(), &maximum.to_be_bytes()]),
    )
}

fn ack(option: u32) -> Vec<u8> {
    option_reply(option, wire::REP_ACK, &[])
}

fn meta_contexts() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, name) in CONTEXT_IDS {
        bytes.extend(option_reply(
            wire::OPT_SET_META_CONTEXT,
            wire::REP_META_CONTEXT,
            &bytes_of(&[&id.to_be_bytes(), name.as_bytes()]),
        ));
    }
    bytes.extend(ack(wire::OPT_SET_META_CONTEXT));
    bytes
}

fn handshake() -> Vec<u8> {
    bytes_of(&[
        &greeting(),
        &ack(wire::OPT_STRUCTURED_REPLY),
        &meta_contexts(),
        &info_export(SIZE_BYTES),
        &info_block_size(1, 1 << 25),
        &ack(wire::OPT_GO),
    ])
}

fn handshake_without_structured_replies() -> Vec<u8> {
    bytes_of(&[
        &greeting(),
        &option_reply(wire::OPT_STRUCTURED_REPLY, wire::REP_ERR_UNSUP, b""),
        &info_export(SIZE_BYTES),
        &ack(wire::OPT_GO),
    ])
}

fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    bytes_of(&[
        &wire::STRUCTURED_REPLY_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &(payload.len() as u32).to_be_bytes(),
        payload,
    ])
}

fn data(flags: u16, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let payload = bytes_of(&[&offset.to_be_bytes(), bytes]);
    chunk(flags, wire::REPLY_OFFSET_DATA, cookie, &payload)
}

fn hole(flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let payload = bytes_of(&[&offset.to_be_bytes(), &length.to_be_bytes()]);
    chunk(flags, wire::REPLY_OFFSET_HOLE, cookie, &payload)
}

fn none(cookie: u64) -> Vec<u8> {
    chunk(1, wire::REPLY_NONE, cookie, &[])
}

fn error(flags: u16, cookie: u64, number: u32, message: &str) -> Vec<u8> {
    let payload = bytes_of(&[&number.to_be_bytes(), &(message.len() as u16).to_be_bytes(), message.as_bytes()]);
    chunk(flags, 0x8001, cookie, &payload)
}

fn simple(cookie: u64, number: u32, bytes: &[u8]) -> Vec<u8> {
    bytes_of(&[&wire::SIMPLE_REPLY_MAGIC.to_be_bytes(), &number.to_be_bytes(), &cookie.to_be_bytes(), bytes])
}

fn status(flags: u16, cookie: u64, context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    for (length, state) in extents {
        payload.extend(length.to_be_bytes());
        payload.extend(state.to_be_bytes());
    }
    chunk(flags, wire::REPLY_BLOCK_STATUS, cookie, &payload)
}

fn options() -> ClientOptions {
    ClientOptions {
        contexts: CONTEXT_IDS.map(|(_, name)| name.to_owned()).to_vec(),
        timeout: Duration::from_millis(500),
        ..ClientOptions::default()
    }
}

/// Returns the client's and the server's end. Keep the latter open for a silent server instead of a closed one.
fn server_that_says(bytes: &[u8]) -> (UnixStream, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    theirs.write_all(bytes).unwrap();
    (ours, theirs)
}

/// A client with the server's end, which must stay open so that the client can send its requests.
#[derive(Debug)]
struct Scripted {
    client: Client,
    _theirs: UnixStream,
}

impl Deref for Scripted {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Scripted {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

fn connect(bytes: &[u8]) -> Result<Scripted> {
    let (ours, theirs) = server_that_says(bytes);
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    Ok(Scripted { client: Client::from_stream(ours, "x", &options())?, _theirs: theirs })
}

fn connected(replies: &[Vec<u8>]) -> Scripted {
    connect(&bytes_of(&[&handshake(), &replies.concat()])).unwrap()
}

fn read(length: usize, replies: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut bytes = vec![0xaa; length];
    connected(replies).read(100, &mut bytes)?;
    Ok(bytes)
}

fn violation<T: std::fmt::Debug>(result: Result<T>) -> Violation {
    match result {
        Err(Error::Protocol(violation)) => violation,
        other => panic!("expected a violation, not {other:?}"),
    }
}

#[test]
fn read_is_assembled_from_chunks_in_any_order() {
    let replies = [
        data(0, FIRST, 106, b"ghij"),
        hole(0, FIRST, 102, 3),
        data(0, FIRST, 100, b"ab"),
        data(0, FIRST, 105, b"f"),
        none(FIRST),
    ];
    assert_eq!(read(10, &replies).unwrap(), b"ab\0\0\0fghij");
    assert_eq!(read(2, &[data(1, FIRST, 100, b"ab")]).unwrap(), b"ab");
    assert_eq!(read(2, &[hole(1, FIRST, 100, 2)]).unwrap(), b"\0\0");
}

#[test]
fn interleaved_replies_are_assigned_to_their_requests() {
    let mut client = connected(&[
        data(0, SECOND, 202, b"CD"),
        data(0, FIRST, 100, b"ab"),
        data(1, SECOND, 200, b"AB"),
        data(1, FIRST, 102, b"cd"),
    ]);
    let first = client.submit_read(100, vec![7; 100], 4).unwrap();
    let second = client.submit_read(200, vec![8; 1], 4).unwrap();
    let mut results = Vec::new();
    while !client.is_idle() {
        let completion = client.wait_any().unwrap();
        let Ok(ReplyBody::Read(bytes)) = completion.outcome else {
            panic!("not read");
        };
        results.push((completion.ticket, bytes));
    }
    assert_eq!(results, [(second, b"ABCD".to_vec()), (first, b"abcd".to_vec())]);
}

#[test]
fn read_with_missing_overlapping_or_invalid_chunks_is_a_violation() {
    let cases: [(&[Vec<u8>], Violation); 12] = [
        (&[data(0, FIRST, 100, b"ab"), none(FIRST)], Violation::Incomplete { missing: 2 }),
        (&[none(FIRST)], Violation::Incomplete { missing: 4 }),
        (&[data(0, FIRST, 100, b"abc"), data(1, FIRST, 102, b"cd")], Violation::Overlap { offset: 2, length: 2 }),
        (&[hole(0, FIRST, 100, 4), hole(1, FIRST, 100, 1)], Violation::Overlap { offset: 0, length: 1 }),
        (&[data(1, FIRST, 99, b"abcd")], Violation::OutOfBounds { offset: 99, length: 4 }),
        (&[data(1, FIRST, 101, b"abcd")], Violation::OutOfBounds { offset: 101, length: 4 }),
        (
            &[hole(1, FIRST, u64::MAX, u32::MAX)],
            Violation::OutOfBounds { offset: u64::MAX, length: u64::from(u32::MAX) },
        ),
        (&[hole(1, FIRST, 100, 0)], Violation::OutOfBounds { offset: 100, length: 0 }),
        (&[data(1, FIRST, 100, b"")], Violation::Length { what: "a data chunk", length: 8 }),
        (&[chunk(0, wire::REPLY_NONE, FIRST, &[])], Violation::Length { what: "an empty chunk", length: 0 }),
        (&[status(1, FIRST, 7, &[(4, 0)])], Violation::ChunkType { command: RequestType::Read, kind: 5 }),
        (&[chunk(1, 77, FIRST, b"")], Violation::ChunkType { command: RequestType::Read, kind: 77 }),
    ];
    for (replies, expected) in cases {
        assert_eq!(violation(read(4, replies)), expected);
    }
}

#[test]
fn wrong_magic_cookie_or_reply_type_is_a_violation() {
    assert_eq!(violation(read(4, &[b"SSH-2.0-OpenSSH".to_vec()])), Violation::ReplyMagic(u32::from_be_bytes(*b"SSH-")));
    assert_eq!(violation(read(4, &[data(1, 99, 100, b"abcd")])), Violation::Cookie(99));
    assert_eq!(violation(read(4, &[simple(FIRST, 0, b"abcd")])), Violation::SimpleReply(RequestType::Read));
    assert_eq!(violation(read(4, &[error(1, FIRST, 0, "all is well")])), Violation::NoError);
    // A chunk without negotiated structured replies.
    let bytes = bytes_of(&[&handshake_without_structured_replies(), &data(1, FIRST, 100, b"abcd")]);
    let mut client = connect(&bytes).unwrap();
    assert!(matches!(violation(client.read(0, &mut [0; 4])), Violation::ReplyMagic(_)));
}

#[test]
fn oversized_lengths_are_refused() {
    let huge = |kind: u16| {
        let mut bytes = chunk(1, kind, FIRST, &[]);
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&u32::MAX.to_be_bytes());
        bytes.extend([0; 64]);
        bytes
    };
    for kind in [0x8001, 0x8002, 0xffff, wire::REPLY_OFFSET_HOLE] {
        assert!(matches!(
            violation(read(4, &[huge(kind)])),
            Violation::Length { length, .. } if length == u64::from(u32::MAX)
        ));
    }
    assert!(matches!(violation(read(4, &[huge(wire::REPLY_OFFSET_DATA)])), Violation::OutOfBounds { .. }));
    let result = connected(&[huge(wire::REPLY_BLOCK_STATUS)]).block_status(0, 4096);
    assert!(matches!(violation(result), Violation::Length { .. }));
    let mut long = option_reply(wire::OPT_STRUCTURED_REPLY, wire::REP_ACK, &[]);
    let at = long.len() - 4;
    long[at..].copy_from_slice(&u32::MAX.to_be_bytes());
    let result = connect(&bytes_of(&[&greeting(), &long]));
    assert!(matches!(violation(result), Violation::Length { .. }));
}

#[test]
fn a_refused_request_leaves_the_connection_usable() {
    let mut client = connected(&[
        data(0, FIRST, 100, b"ab"),
        error(0, FIRST, 5, "the \x1b[31mdisk\n is ill"),
        error(0, FIRST, 28, "a second one"),
        none(FIRST),
        simple(SECOND, 22, b""),
        data(1, 6, 100, b"abcd"),
    ]);
    let mut bytes = [0; 4];
    match client.read(100, &mut bytes) {
        Err(failure @ Error::Request { error: 5, .. }) => {
            assert!(failure.connection_is_usable());
            assert_eq!(
                failure.to_string(),
                "the NBD server failed to read 4 bytes at offset 100: input/output error ('the  [31mdisk  is ill')"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.read(100, &mut bytes), Err(Error::Request { error: 22, .. })));
    client.read(100, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcd");
}

#[test]
fn client_is_disconnected_after_a_violation() {
    let mut client = connected(&[none(FIRST), data(1, SECOND, 100, b"abcd")]);
    assert!(client.read(100, &mut [0; 4]).is_err());
    assert!(matches!(client.read(100, &mut [0; 4]), Err(Error::Disconnected)));
    assert!(matches!(client.block_status(0, 1), Err(Error::Disconnected)));
}

#[test]
fn closed_or_shut_down_connection_is_reported_as_disconnected() {
    for replies in [
        vec![error(1, FIRST, wire::ESHUTDOWN, "")],
        vec![],
        vec![data(0, FIRST, 100, b"ab")],
        vec![data(0, FIRST, 100, b"abcd")[..30].to_vec()],
    ] {
        assert!(matches!(read(4, &replies), Err(Error::Disconnected)));
    }
    assert!(matches!(connect(b"NBDMA"), Err(Error::Disconnected)));
}

#[test]
fn block_status_is_validated_and_clipped() {
    let ask = |replies: &[Vec<u8>]| connected(replies).block_status(0, 4096);
    let good = ask(&[status(0, FIRST, 9, &[(4096, 1)]), status(0, FIRST, 7, &[(512, 0), (u32::MAX, 3)]), none(FIRST)])
        .unwrap();
    assert_eq!(good[0].context, "qemu:dirty-bitmap:b");
    assert_eq!(good[1].context, "base:allocation");
    assert_eq!(good[1].extents, [StatusExtent { length: 512, flags: 0 }, StatusExtent { length: 3584, flags: 3 },]);
    let extents = Violation::Extents { offset: 0 };
    for (replies, expected) in [
        (vec![status(1, FIRST, 7, &[(4096, 0)])], extents.clone()),
        (vec![status(1, FIRST, 7, &[])], extents.clone()),
        (vec![status(1, FIRST, 7, &[(0, 0)])], extents.clone()),
        (vec![status(1, FIRST, 7, &[(512, 0), (0, 0)])], extents.clone()),
        (vec![status(1, FIRST, 7, &[(4096, 0), (1, 0)])], extents.clone()),
        (vec![status(1, FIRST, 7, &[(9999, 0), (1, 0)])], extents.clone()),
        (vec![chunk(1, 5, FIRST, &[0, 0, 0, 7, 0, 0, 0])], extents.clone()),
        (vec![status(1, FIRST, 8, &[(4096, 0)])], Violation::Context(8)),
        (vec![status(0, FIRST, 7, &[(4096, 0)]), status(1, FIRST, 7, &[(4096, 0)])], Violation::Context(7)),
        (vec![data(1, FIRST, 0, b"abc")], Violation::ChunkType { command: RequestType::BlockStatus, kind: 1 }),
        (vec![simple(FIRST, 0, b"")], Violation::SimpleReply(RequestType::BlockStatus)),
    ] {
        assert_eq!(violation(ask(&replies)), expected);
    }
}

#[test]
fn handshake_refuses_invalid_and_unsupported_answers() {
    let after_greeting = |parts: &[Vec<u8>]| connect(&bytes_of(&[&greeting(), &parts.concat()]));
    let sr = || ack(wire::OPT_STRUCTURED_REPLY);
    let go = |parts: &[Vec<u8>]| after_greeting(&[sr(), meta_contexts(), parts.concat()]);
    assert!(matches!(violation(connect(b"HTTP/1.1 400 Bad Request")), Violation::Greeting(_)));
    let old = bytes_of(&[b"NBDMAGIC", &wire::OLD_STYLE_MAGIC.to_be_bytes(), &[0; 144]]);
    assert_eq!(violation(connect(&old)), Violation::OldStyle);
    assert_eq!(violation(after_greeting(&[ack(wire::OPT_GO)])), Violation::OptionMismatch { asked: 8, answered: 7 });
    assert_eq!(violation(after_greeting(&[vec![0; 20]])), Violation::OptionMagic(0));
    assert_eq!(violation(go(&[ack(wire::OPT_GO)])), Violation::NoExportInfo);
    assert_eq!(violation(go(&[info_export(1 << 63), ack(wire::OPT_GO)])), Violation::ExportSize(1 << 63));
    for (minimum, maximum) in [(0, 1 << 20), (3, 1 << 20), (1 << 17, 1 << 20), (4096, 512)] {
        let result = go(&[info_export(4), info_block_size(minimum, maximum), ack(wire::OPT_GO)]);
        assert_eq!(violation(result), Violation::BlockSize { minimum, maximum });
    }
    let endless = vec![info_export(4); 1000].concat();
    assert_eq!(violation(go(&[endless])), Violation::EndlessOption(wire::OPT_GO));
    let stranger = option_reply(wire::OPT_SET_META_CONTEXT, wire::REP_META_CONTEXT, b"\0\0\0\x01x:y");
    assert_eq!(violation(after_greeting(&[sr(), stranger])), Violation::Context(1));
    let tls = option_reply(wire::OPT_GO, wire::REP_ERROR_BIT | 5, b"use \x07TLS");
    assert_eq!(go(&[tls]).unwrap_err().to_string(), "the NBD server refused to negotiate: it wants TLS ('use  TLS')");
    let unknown = option_reply(wire::OPT_GO, wire::REP_ERR_UNKNOWN, b"");
    assert_eq!(go(&[unknown]).unwrap_err().to_string(), "the NBD server has no export \"x\"");
}

#[test]
fn handshake_falls_back_to_export_name_without_go() {
    let unsupported = |option| option_reply(option, wire::REP_ERR_UNSUP, b"");
    let old_door = |zeroes: usize, flags: u16| {
        bytes_of(&[
            b"NBDMAGIC",
            b"IHAVEOPT",
            &flags.to_be_bytes(),
            &unsupported(wire::OPT_STRUCTURED_REPLY),
            &unsupported(wire::OPT_GO),
            &SIZE_BYTES.to_be_bytes(),
            &3u16.to_be_bytes(),
            &vec![0; zeroes],
            &simple(FIRST, 0, &[b'a'; 512]),
        ])
    };
    for (zeroes, flags) in [(0, 3), (124, 1)] {
        let mut client = connect(&old_door(zeroes, flags)).unwrap();
        assert!(client.read_only());
        assert!(!client.has_context("base:allocation"));
        assert_eq!(client.size_bytes(), SIZE_BYTES);
        let mut bytes = [0; 3];
        client.read(5, &mut bytes).unwrap();
        assert_eq!(&bytes, b"aaa");
    }
    let closed = bytes_of(&[&greeting(), &unsupported(wire::OPT_STRUCTURED_REPLY), &unsupported(wire::OPT_GO)]);
    assert!(matches!(connect(&closed), Err(Error::NoSuchExport { .. })));
}

#[test]
fn requests_outside_of_the_export_are_refused_locally() {
    let mut client = connected(&[]);
    let refused = |result: Result<()>| matches!(result, Err(Error::Request { error: 22, .. }));
    assert!(refused(client.read(SIZE_BYTES, &mut [0; 1])));
    assert!(refused(client.read(u64::MAX, &mut [0; 2])));
    assert!(refused(client.block_status(SIZE_BYTES, 1).map(drop)));
    assert!(refused(client.block_status(0, 0).map(drop)));
    // None of this has disturbed the connection, or requires it.
    client.read(SIZE_BYTES, &mut []).unwrap();
}

#[test]
fn silent_server_times_out_at_any_stage() {
    let whole = bytes_of(&[&handshake(), &data(0, FIRST, 100, b"ab")]);
    for length in [0, 10, 25, handshake().len(), whole.len() - 1, whole.len()] {
        let (ours, _theirs) = server_that_says(&whole[..length]);
        let begin = Instant::now();
        let result = Client::from_stream(ours, "x", &options()).and_then(|mut client| client.read(100, &mut [0; 4]));
        assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn trickling_server_times_out() {
    let (ours, mut theirs) = server_that_says(&handshake());
    // Every byte is valid, and arrives well within the timeout.
    let trickle = std::thread::spawn(move || {
        for byte in data(1, FIRST, 100, &[1; 1000]) {
            if theirs.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let begin = Instant::now();
    let mut client = Client::from_stream(ours, "x", &options()).unwrap();
    let result = client.read(100, &mut [0; 1000]);
    assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    assert!(begin.elapsed() < Duration::from_secs(15));
    trickle.join().unwrap();
}

#[test]
fn endless_error_chunks_time_out() {
    let (ours, mut theirs) = server_that_says(&handshake());
    theirs.set_nonblocking(false).unwrap();
    let flood = std::thread::spawn(move || while theirs.write_all(&error(0, FIRST, 5, "x")).is_ok() {});
    let mut client = Client::from_stream(ours, "x", &options()).unwrap();
    let result = client.read(100, &mut [0; 4]);
    assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    flood.join().unwrap();
}

#[test]
fn server_that_does_not_read_requests_times_out() {
    let (ours, _theirs) = server_that_says(&handshake());
    let mut client = Client::from_stream(ours, "x", &options()).unwrap();
    // More requests than the socket buffers.
    for _ in 0..50_000 {
        client.submit_read(0, Vec::new(), 1).unwrap();
    }
    let result = client.wait_any();
    assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
}

#[test]
fn connecting_to_a_full_backlog_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let address = rustix::net::SocketAddrUnix::new(&socket).unwrap();
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let uri = NbdUri { socket: socket.clone(), export: String::new() };
    // The first one waits in the backlog, the next ones do not even get there.
    let _waiting = UnixStream::connect(&socket).unwrap();
    for _ in 0..2 {
        let result = Client::connect(&uri, &options());
        assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    }
}

#[test]
fn stop_flag_ends_the_wait() {
    let (ours, _theirs) = server_that_says(&handshake());
    let options = ClientOptions { timeout: Duration::from_secs(600), ..options() };
    let mut client = Client::from_stream(ours, "x", &options).unwrap();
    let stop = Arc::clone(&options.stop);
    let raiser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(matches!(client.read(0, &mut [0; 4]), Err(Error::Stopped)));
    raiser.join().unwrap();
}

/// A message of a server: valid, almost valid, or noise.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let cookie = prop_oneof![8 => Just(FIRST), 4 => Just(SECOND), 2 => Just(6u64), 1 => any::<u64>()];
    let flags = prop_oneof![3 => Just(0u16), 3 => Just(1u16), 1 => any::<u16>()];
    let offset = prop_oneof![8 => 95u64..140, 1 => any::<u64>()];
    let small = proptest::collection::vec(any::<u8>(), 0..40);
    let extents = proptest::collection::vec((prop_oneof![4 => 0u32..64, 1 => any::<u32>()], 0u32..4), 0..5);
    let context = prop_oneof![4 => Just(7u32), 4 => Just(9u32), 1 => any::<u32>()];
    let number = prop_oneof![Just(5u32), Just(108u32), Just(0u32), any::<u32>()];
    // Pieces that together form a whole reply, so that some reads succeed.
    let piece = (0u64..3, flags.clone(), cookie.clone(), any::<bool>(), any::<u8>()).prop_map(
        |(piece, flags, cookie, is_hole, byte)| match is_hole {
            true => hole(flags, cookie, 100 + 10 * piece, 10),
            false => data(flags, cookie, 100 + 10 * piece, &[byte; 10]),
        },
    );
    prop_oneof![
        12 => piece,
        4 => (flags.clone(), cookie.clone(), offset.clone(), small.clone())
            .prop_map(|(f, c, o, b)| data(f, c, o, &b)),
        3 => (flags.clone(), cookie.clone(), offset, prop_oneof![4 => 0u32..40, 1 => any::<u32>()])
            .prop_map(|(f, c, o, l)| hole(f, c, o, l)),
        2 => cookie.clone().prop_map(none),
        1 => (flags.clone(), cookie.clone(), number.clone()).prop_map(|(f, c, n)| error(f, c, n, "e")),
        1 => (cookie.clone(), number, small.clone()).prop_map(|(c, n, b)| simple(c, n, &b)),
        2 => (flags.clone(), cookie.clone(), context, extents)
            .prop_map(|(f, c, i, e)| status(f, c, i, &e)),
        1 => (flags, any::<u16>(), cookie, small.clone()).prop_map(|(f, k, c, b)| chunk(f, k, c, &b)),
        1 => small,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the server sends, the client returns, and bytes that it returns are those that were sent, each once.
    #[test]
    fn random_replies_never_hang_panic_or_yield_unsent_bytes(
        messages in proptest::collection::vec(message(), 0..12),
    ) {
        let mut client = connected(&messages);
        let reads = [client.submit_read(100, vec![0xee; 50], 30).unwrap(), {
            client.submit_read(110, Vec::new(), 20).unwrap()
        }];
        client.submit_block_status(100, 30).unwrap();
        while !client.is_idle() {
            match client.wait_any() {
                Ok(Completion { ticket, outcome: Ok(ReplyBody::Read(bytes)) }) => {
                    let (offset, cookie) = if ticket == reads[0] { (100, FIRST) } else { (110, SECOND) };
                    prop_assert_eq!(bytes, replay(&messages, cookie, offset));
                }
                Ok(Completion { outcome: Ok(ReplyBody::Status(contexts)), .. }) => {
                    prop_assert_eq!(contexts.len(), 2);
                    for context in contexts {
                        let total: u32 = context.extents.iter().map(|extent| extent.length).sum();
                        prop_assert!((1..=30).contains(&total));
                    }
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }

    #[test]
    fn mutated_handshake_never_hangs_or_panics(
        at in proptest::collection::vec((0usize..400, any::<u8>()), 0..6),
        length in 0usize..400,
    ) {
        let mut bytes = handshake();
        for (at, value) in at {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(length);
        if let Ok(client) = connect(&bytes) {
            prop_assert!(client.max_request_bytes() >= client.min_block_bytes());
            prop_assert!(client.max_request_bytes() <= wire::MAX_REQUEST_BYTES);
        }
    }

    #[test]
    fn decoding_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        offset in any::<u64>(),
        length in any::<u32>(),
    ) {
        let _ = wire::decode_error_chunk(&bytes);
        if let Ok((_, extents)) = wire::decode_block_status(&bytes, offset, length) {
            let total: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
            prop_assert!((1..=u64::from(length)).contains(&total));
        }
        prop_assert!(!wire::printable(&bytes).contains(char::is_control));
    }

    #[test]
    fn coverage_counts_every_byte_once(
        pieces in proptest::collection::vec((0u32..100, 1u32..20), 0..40),
    ) {
        let mut coverage = Coverage::default();
        let mut model = [false; 120];
        for (offset, length) in pieces {
            let range = offset as usize..(offset + length) as usize;
            let is_free = model[range.clone()].iter().all(|byte| !byte);
            prop_assert_eq!(coverage.add(offset, length).is_ok(), is_free);
            if is_free {
                model[range].fill(true);
            }
            let covered = model.iter().filter(|byte| **byte).count();
            prop_assert_eq!(coverage.missing(120), 120 - covered as u64);
        }
    }
}

/// Applies the data and hole chunks for a cookie, up to the first one that ends the reply.
fn replay(messages: &[Vec<u8>], cookie: u64, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0x55; if cookie == FIRST { 30 } else { 20 }];
    let all = messages.concat();
    let mut rest = all.as_slice();
    loop {
        // A simple reply is an error, either of this request, which ends it, or of another one.
        if rest.len() >= 16 && rest[..4] == wire::SIMPLE_REPLY_MAGIC.to_be_bytes() {
            if rest[8..16] == cookie.to_be_bytes() {
                break;
            }
            rest = &rest[16..];
            continue;
        }
        if rest.len() < 20 || rest[..4] != wire::STRUCTURED_REPLY_MAGIC.to_be_bytes() {
            break;
        }
        let header = ChunkHeader::decode(rest[4..20].try_into().unwrap()).unwrap();
        let payload = &rest[20..20 + header.length as usize];
        rest = &rest[20 + header.length as usize..];
        if header.cookie != cookie {
            continue;
        }
        if matches!(header.kind, wire::REPLY_OFFSET_DATA | wire::REPLY_OFFSET_HOLE) {
            let at = (u64::from_be_bytes(payload[..8].try_into().unwrap()) - offset) as usize;
            if header.kind == wire::REPLY_OFFSET_DATA {
                bytes[at..at + payload.len() - 8].copy_from_slice(&payload[8..]);
            } else {
                let length = u32::from_be_bytes(payload[8..].try_into().unwrap());
                bytes[at..at + length as usize].fill(0);
            }
        }
        if header.is_done() {
            break;
        }
    }
    bytes
}
