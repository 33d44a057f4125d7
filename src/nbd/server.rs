//! The NBD server: disks for other programs to read, over a Unix socket.
//!
//! | file | what |
//! | --- | --- |
//! | `server/message.rs` | requests decoded, replies encoded; pure |
//! | `server/handshake.rs` | from the greeting to the export that a client chose |
//! | `server/connection.rs` | one client: requests in, replies out, several at a time |
//! | `server/overlay.rs` | an export that can be written to, and forgets it |
//!
//! ```text
//!               ┌ connection ─ receives ─→ queue ─→ 4 workers ─ Export::read ─→ replies, in any order
//! socket ─ accept
//!               └ connection ─ …                    one that does not read its replies stops itself, nobody else
//! ```
//! What a client sends is not trusted: lengths have limits, a handshake has ten seconds, a reply that nobody takes a minute, and
//! there are at most [`MAX_CONNECTIONS`]. A client may be silent between two requests for as long as it likes.

mod connection;
mod handshake;
mod message;
mod overlay;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{StatusExtent, wire};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use overlay::Overlay;

/// More clients than these are sent away.
pub const MAX_CONNECTIONS: usize = 32;

/// How often the accepting thread looks at the stop flag.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A part of an export's bytes, in the order of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// So many zeros.
    Zeros(u32),
    /// Bytes.
    Data(&'a [u8]),
    /// So many bytes that cannot be had, and why: the client gets EIO for these and no others.
    Unreadable {
        /// How many.
        length_bytes: u32,
        /// Why.
        reason: &'a str,
    },
}

impl Piece<'_> {
    /// How many bytes of the request this answers.
    pub fn length_bytes(&self) -> u32 {
        match self {
            Piece::Zeros(length) => *length,
            Piece::Data(bytes) => bytes.len() as u32,
            Piece::Unreadable { length_bytes, .. } => *length_bytes,
        }
    }
}

/// What is written to an export.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
}

impl Change<'_> {
    fn length_bytes(&self) -> u64 {
        match self {
            Change::Data(bytes) => bytes.len() as u64,
            Change::Zeros(length) => *length,
        }
    }
}

/// What a server hands out under one name. It is called from several threads at once, with offsets and lengths that lie within
/// its size.
pub trait Export: Send + Sync {
    /// Its size in bytes, which does not change.
    fn size_bytes(&self) -> u64;

    /// What it is, for people who list the exports.
    fn description(&self) -> String;

    /// Delivers the `length` bytes at `offset`, in order and without a gap. An error of `deliver` is passed on: then nobody
    /// wants the rest.
    fn read(&self, offset: u64, length: u32, deliver: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()>;

    /// What is zero from `offset` on: at least one extent, at most `limit`, none of them empty, together no longer than `length`.
    /// The flags are [`wire::STATE_HOLE`] and [`wire::STATE_ZERO`].
    fn extents(&self, offset: u64, length: u32, limit: usize) -> Vec<StatusExtent>;

    /// Whether it can be written to.
    fn is_writable(&self) -> bool {
        false
    }

    /// Writes; every later read sees it.
    fn write(&self, _offset: u64, _change: Change<'_>) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Exports by name.
#[derive(Clone, Default)]
pub struct Exports(BTreeMap<String, Arc<dyn Export>>);

impl Exports {
    /// Adds one, or replaces the one of this name.
    pub fn insert(&mut self, name: &str, export: Arc<dyn Export>) {
        self.0.insert(name.to_owned(), export);
    }

    /// "Export name": the empty one means the only one that there is.
    fn get(&self, name: &str) -> Option<(&str, &Arc<dyn Export>)> {
        let only = (name.is_empty() && self.0.len() == 1).then(|| self.0.iter().next()).flatten();
        self.0.get_key_value(name).or(only).map(|(name, export)| (name.as_str(), export))
    }
}

impl std::fmt::Debug for Exports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A server; dropped, it goes on until its stop flag is raised.
#[derive(Debug, Clone)]
pub struct Server {
    exports: Exports,
    connections: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// A server of these exports, which ends when `stop` is raised.
    pub fn new(exports: Exports, stop: Arc<AtomicBool>) -> Server {
        Server { exports, connections: Arc::default(), stop }
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Serves whoever connects, until the stop flag is raised; then ends all connections, and returns when the last of them has
    /// ended. `look` is called now and then (every tenth of a second or so); it ends the server when it returns false.
    pub fn run(&self, listener: &UnixListener, mut look: impl FnMut() -> bool) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let result = loop {
            if self.stop.load(Ordering::Relaxed) || !look() {
                break Ok(());
            }
            match wait_for_client(listener) {
                Ok(Some(stream)) => self.admit(stream),
                Ok(None) => {}
                Err(error) => break Err(error),
            }
        };
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + connection::ENDING_LIMIT;
        while self.connections() > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        result
    }

    fn admit(&self, stream: UnixStream) {
        if self.connections() >= MAX_CONNECTIONS {
            tracing::warn!("an NBD client was sent away: {MAX_CONNECTIONS} are connected");
            return;
        }
        let seat = Seat::take(&self.connections);
        let server = self.clone();
        let spawned = thread::Builder::new().name("nbd-client".into()).spawn(move || {
            let _seat = seat;
            if let Err(error) = connection::serve(stream, &server.exports, &server.stop) {
                tracing::debug!("an NBD client: {error}");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("an NBD client was sent away: {error}");
        }
    }
}

/// One of the connections that a server has.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(connections: &Arc<AtomicUsize>) -> Seat {
        connections.fetch_add(1, Ordering::Relaxed);
        Seat(Arc::clone(connections))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The next client, or nothing within a tick.
fn wait_for_client(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&TICK)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(false)?;
            Ok(Some(stream))
        }
        // It went away again, or there are no descriptors left for it: the others go on.
        Err(error) => {
            tracing::debug!("no NBD client: {error}");
            if error.kind() != io::ErrorKind::WouldBlock {
                thread::sleep(Duration::from_millis(10));
            }
            Ok(None)
        }
    }
}

/// What a data piece says where it is: nothing but zeros, or not.
pub fn zero_flags(is_zero: bool) -> u32 {
    if is_zero { wire::STATE_HOLE | wire::STATE_ZERO } else { 0 }
}
