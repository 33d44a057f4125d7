//! The NBD server: real clients, and clients that violate the protocol, are slow, or are many.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvmb::nbd::wire::{self, CMD_FLAG_DF, RequestType};
use kvmb::nbd::{Client, ClientOptions, Export, Exports, NbdUri, Piece, Server, StatusExtent, zero_flags};

const MIB: u64 = 1 << 20;

/// An 8 MiB disk: each byte is derived from its offset, except for the third MiB, which is zero, and the last 4 KiB,
/// which cannot be read.
struct Patterned;

const SIZE: u64 = 8 * MIB;
const BROKEN: u64 = SIZE - 4096;

fn byte_at(offset: u64) -> u8 {
    if (2 * MIB..3 * MIB).contains(&offset) { 0 } else { (offset ^ offset >> 8 ^ offset >> 16) as u8 | 1 }
}

impl Export for Patterned {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn description(&self) -> String {
        "a pattern".to_owned()
    }

    fn read(&self, offset: u64, length: u32, deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()> {
        let end = offset + u64::from(length);
        let bytes: Vec<u8> = (offset..end.min(BROKEN)).map(byte_at).collect();
        // Split at unusual places.
        for piece in bytes.chunks(100_003) {
            deliver(Piece::Data(piece))?;
        }
        if end > BROKEN {
            let length_bytes = (end - offset.max(BROKEN)) as u32;
            deliver(Piece::Unreadable { length_bytes, reason: "it is broken" })?;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusExtent> {
        let end = offset + u64::from(length);
        let (mut at, mut extents) = (offset, Vec::new());
        for (until, is_zero) in [(2 * MIB, false), (3 * MIB, true), (SIZE, false)] {
            let until = until.min(end);
            if until > at && extents.len() < limit {
                extents.push(StatusExtent { length: (until - at) as u32, flags: zero_flags(is_zero) });
                at = until;
            }
        }
        extents
    }
}

struct Running {
    folder: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    server: Server,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    fn start() -> Running {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut exports = Exports::default();
        exports.insert("pattern", Arc::new(Patterned));
        let server = Server::new(exports, Arc::clone(&stop));
        let running = server.clone();
        let thread = std::thread::spawn(move || running.run(&listener, || true));
        Running { folder, stop, server, thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///pattern?socket={}", self.socket().display())
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }

    fn client(&self) -> Client {
        let uri: NbdUri = self.uri().parse().unwrap();
        let contexts = vec![wire::BASE_ALLOCATION.to_owned()];
        Client::connect(&uri, &ClientOptions { contexts, ..ClientOptions::default() }).unwrap()
    }

    /// Fails unless the server works correctly with a client.
    fn assert_serves(&self) {
        let mut client = self.client();
        let mut read = vec![0; 3 * MIB as usize];
        client.read(MIB + 7, &mut read).unwrap();
        assert!(read.iter().zip(MIB + 7..).all(|(byte, offset)| *byte == byte_at(offset)));
    }

    fn wait_for_connections(&self, count: usize) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.server.connections() != count {
            assert!(Instant::now() < end, "{} connections, not {count}", self.server.connections());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

/// Receives the greeting and answers it.
fn greeted(running: &Running, flags: u32) -> UnixStream {
    let mut stream = running.connect();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&flags.to_be_bytes()).unwrap();
    stream
}

/// Connects like a client of before 2016: `NBD_OPT_EXPORT_NAME`, simple replies.
fn simple_client(running: &Running, name: &str, flags: u32) -> UnixStream {
    let mut stream = greeted(running, flags);
    stream.write_all(&wire::encode_option(wire::OPT_EXPORT_NAME, name.as_bytes())).unwrap();
    let mut answer = vec![0; if flags & 2 == 0 { 134 } else { 10 }];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(u64::from_be_bytes(answer[..8].try_into().unwrap()), SIZE);
    stream
}

fn error_of_simple_reply(stream: &mut UnixStream) -> u32 {
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(u32::from_be_bytes(reply[..4].try_into().unwrap()), wire::SIMPLE_REPLY_MAGIC);
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn real_clients_agree_on_data_holes_and_errors() {
    let running = Running::start();
    running.assert_serves();
    let map = Command::new("nbdinfo").args(["--map", &running.uri()]).output().unwrap();
    let map = String::from_utf8_lossy(&map.stdout).into_owned();
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(words.join(" "), "0 2097152 0 data 2097152 1048576 3 hole,zero 3145728 5242880 0 data");
    let out = running.folder.path().join("out");
    // Everything except the unreadable part; then including it.
    let io = |command: &str| {
        let args = ["-r", "-f", "raw", "-c", command, &running.uri()];
        Command::new("qemu-io").args(args).output().unwrap().status.success()
    };
    assert!(io("read 0 8380416") && io("read 8384000 512"));
    assert!(!io("read 8384512 512") && !io("read 0 8M"));
    let copy = Command::new("nbdcopy").arg(running.uri()).arg(&out).output().unwrap();
    assert!(!copy.status.success(), "a part cannot be read");
    // An unfragmented reply, and a request that is too long for that.
    let mut stream = structured_client(&running);
    stream.write_all(&wire::encode_request(RequestType::Read, CMD_FLAG_DF, 1, 10, 4096)).unwrap();
    let (kind, payload) = chunk(&mut stream);
    assert_eq!((kind, payload.len()), (wire::REPLY_OFFSET_DATA, 8 + 4096));
    stream.write_all(&wire::encode_request(RequestType::Read, CMD_FLAG_DF, 2, 0, 4 << 20)).unwrap();
    assert_eq!(chunk(&mut stream).0, wire::REPLY_ERROR);
}

/// Connects and negotiates structured replies.
fn structured_client(running: &Running) -> UnixStream {
    let mut stream = greeted(running, 3);
    stream.write_all(&wire::encode_option(wire::OPT_STRUCTURED_REPLY, &[])).unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    stream.write_all(&wire::encode_option(wire::OPT_EXPORT_NAME, b"pattern")).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

fn chunk(stream: &mut UnixStream) -> (u16, Vec<u8>) {
    let mut header = [0; 20];
    stream.read_exact(&mut header).unwrap();
    let mut payload = vec![0; u32::from_be_bytes(header[16..].try_into().unwrap()) as usize];
    stream.read_exact(&mut payload).unwrap();
    (u16::from_be_bytes(header[6..8].try_into().unwrap()), payload)
}

#[test]
fn clients_without_structured_replies_are_served() {
    let running = Running::start();
    for (name, flags) in [("pattern", 3), ("", 1), ("pattern", 0)] {
        let mut stream = simple_client(&running, name, flags);
        stream.write_all(&wire::encode_request(RequestType::Read, 0, 9, 5, 70_000)).unwrap();
        assert_eq!(error_of_simple_reply(&mut stream), 0);
        let mut read = vec![0; 70_000];
        stream.read_exact(&mut read).unwrap();
        assert!(read.iter().zip(5..).all(|(byte, offset)| *byte == byte_at(offset)));
        // The server must not hold a reply of this length in memory.
        stream.write_all(&wire::encode_request(RequestType::Read, 0, 9, 7, 5 << 20)).unwrap();
        assert_eq!(error_of_simple_reply(&mut stream), 0);
        let mut read = vec![0; 5 << 20];
        stream.read_exact(&mut read).unwrap();
        assert!(read.iter().zip(7..).all(|(byte, offset)| *byte == byte_at(offset)));
        // The data of a refused write must not be interpreted as a request.
        stream.write_all(&wire::encode_request(RequestType::Write, 0, 9, 0, 3 << 20)).unwrap();
        stream.write_all(&vec![0; 3 << 20]).unwrap();
        assert_eq!(error_of_simple_reply(&mut stream), wire::EPERM);
        // The connection survives failed requests.
        for (command, flags, offset, length, error) in [
            (RequestType::Read, 0, BROKEN, 512, wire::EIO),
            (RequestType::Read, 0, 0, SIZE as u32, wire::EIO),
            (RequestType::Read, 0, SIZE, 1, wire::EINVAL),
            (RequestType::Read, 0, u64::MAX, 512, wire::EINVAL),
            (RequestType::Read, 0, 0, 0, wire::EINVAL),
            (RequestType::Read, 0x40, 0, 512, wire::EINVAL),
            (RequestType::Read, 0, 0, u32::MAX, wire::EINVAL),
            (RequestType::WriteZeroes, 0, 0, 512, wire::EPERM),
            (RequestType::BlockStatus, 0, 0, 512, wire::EINVAL),
            (RequestType::Flush, 0, 0, 0, wire::EINVAL),
        ] {
            stream.write_all(&wire::encode_request(command, flags, 1, offset, length)).unwrap();
            assert_eq!(error_of_simple_reply(&mut stream), error, "{command} at {offset} of {length}");
        }
    }
}

#[test]
fn only_the_client_breaking_the_protocol_is_disconnected() {
    let running = Running::start();
    let huge_option = [&wire::OPTION_MAGIC.to_be_bytes()[..], &[0, 0, 0, 7], &u32::MAX.to_be_bytes()].concat();
    let huge_write = wire::encode_request(RequestType::Write, 0, 1, 0, u32::MAX);
    // Flags that were not offered.
    assert!(is_closed(&mut greeted(&running, 0x8000_0001)));
    // Not an option, an option that is too long, an unknown export.
    for bytes in [&[0xff; 64][..], &huge_option, &wire::encode_option(wire::OPT_EXPORT_NAME, b"no such export")] {
        let mut stream = greeted(&running, 3);
        stream.write_all(bytes).unwrap();
        assert!(is_closed(&mut stream), "{bytes:?}");
    }
    // Not a request, and a write that is too long.
    for bytes in [&[0xff; 28][..], &huge_write] {
        let mut stream = simple_client(&running, "pattern", 3);
        stream.write_all(bytes).unwrap();
        assert!(is_closed(&mut stream), "{bytes:?}");
    }
    // Endless options.
    let mut stream = greeted(&running, 3);
    let options = wire::encode_option(0x7777, b"?").repeat(200);
    let _ = stream.write_all(&options);
    assert!(is_closed(&mut stream));
    running.wait_for_connections(0);
    running.assert_serves();
}

#[test]
fn stalled_clients_block_no_others_and_excess_clients_are_closed() {
    let running = Running::start();
    // Each requests far more than its socket can hold, and reads nothing.
    let mut greedy = Vec::new();
    for _ in 0..8 {
        let mut stream = simple_client(&running, "pattern", 3);
        for cookie in 0..16 {
            stream.write_all(&wire::encode_request(RequestType::Read, 0, cookie, 0, 500_000)).unwrap();
        }
        greedy.push(stream);
    }
    running.assert_serves();
    // The slot of that client is free again.
    running.wait_for_connections(8);
    // All slots are in use: another client is refused, and accepted once a slot is free.
    let idle: Vec<UnixStream> = (8..32).map(|_| running.connect()).collect();
    running.wait_for_connections(32);
    assert!(is_closed(&mut running.connect()));
    drop(idle);
    running.wait_for_connections(8);
    running.assert_serves();
    drop(greedy);
    running.wait_for_connections(0);
}
