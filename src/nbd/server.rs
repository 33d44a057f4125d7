//! The NBD server: disks for other programs to read, over a Unix socket.
//!
//! | file | contents |
//! | --- | --- |
//! | `server/export.rs` | the trait for exports, and exports by name |
//! | `server/message.rs` | decoding of requests, encoding of replies; no I/O |
//! | `server/handshake.rs` | the handshake, up to the export that the client chose |
//! | `server/connection.rs` | one client: requests in, replies out, several at a time |
//! | `server/overlay.rs` | an export that accepts writes and discards them at the end |
//!
//! ```text
//!               ┌ connection ─ 4 workers: one receives, the others ─ Export::read ─→ replies, in any order
//! socket ─ accept
//!               └ connection ─ …                    one that does not read its replies stops itself, nobody else
//! ```
//! Clients are not trusted: lengths are limited, a handshake may take ten seconds, the reception of a reply a minute,
//! and there are at most [`MAX_CONNECTIONS`]. A client may be silent between two requests for as long as it likes.

mod connection;
mod export;
mod handshake;
mod message;
mod overlay;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use export::{Export, Exports, Piece, zero_flags};
pub(crate) use overlay::Overlay;

/// The maximum number of clients; further ones are refused.
pub(crate) const MAX_CONNECTIONS: usize = 32;

/// How often the accepting thread checks the stop flag.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A server. Dropping it does not end it; setting its stop flag does.
#[derive(Debug, Clone)]
pub struct Server {
    exports: Exports,
    connections: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Creates a server of these exports, which ends when `stop` is set.
    pub fn new(exports: Exports, stop: Arc<AtomicBool>) -> Server {
        Server { exports, connections: Arc::default(), stop }
    }

    /// Returns the number of connected clients.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Serves clients until the stop flag is set. Then closes all connections, and returns when the last of them has
    /// ended. `look` is called regularly (about every tenth of a second), and ends the server by returning `false`.
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

    /// Serves one connected client, until it leaves or the stop flag is set. An error says how the client violated the
    /// protocol, or that its connection failed; the server and its other clients are not affected.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn serve(&self, stream: UnixStream) -> crate::nbd::Result<()> {
        let _seat = Seat::take(&self.connections);
        connection::serve(stream, &self.exports, &self.stop)
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

/// Counts a connection of a server.
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

/// Returns the next client, or `None` if there is none within a tick.
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
        // The client is gone, or there are no file descriptors left. This does not affect the other clients.
        Err(error) => {
            tracing::debug!("no NBD client: {error}");
            if error.kind() != io::ErrorKind::WouldBlock {
                thread::sleep(Duration::from_millis(10));
            }
            Ok(None)
        }
    }
}
