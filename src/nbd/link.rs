//! A socket on which no wait exceeds its deadline.
//!
//! The kernel's timeouts apply to a single call, so a server that sends a byte now and then defeats them. Therefore
//! every call waits only for a short tick, and the deadline and the stop flag are checked between ticks. The owner
//! extends the deadline after *completed* work - the handshake, a request - not when bytes trickle in.

use std::io::{BufReader, ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{Error, Result};

/// How long one system call may wait.
const TICK: Duration = Duration::from_millis(100);

/// Holds a reply's header and the beginning of its data; longer reads bypass it.
const BUFFER_BYTES: usize = 4096;

/// The byte stream of a connection.
#[derive(Debug)]
pub(super) struct NbdStream {
    stream: BufReader<UnixStream>,
    timeout: Duration,
    deadline: Instant,
    stop: Arc<AtomicBool>,
}

impl NbdStream {
    /// Connects to a listening socket. The kernel blocks a connect while the listener's backlog is full; here for at
    /// most `timeout`.
    pub(super) fn open(path: &Path, timeout: Duration, stop: Arc<AtomicBool>) -> Result<NbdStream> {
        let failed = |errno: rustix::io::Errno| match errno {
            rustix::io::Errno::AGAIN => Error::Timeout { after: timeout },
            other => Error::Connect { socket: path.to_owned(), source: other.into() },
        };
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
        set_socket_timeout(&socket, Timeout::Send, Some(timeout.max(Duration::from_millis(1)))).map_err(failed)?;
        connect(&socket, &address).map_err(failed)?;
        NbdStream::new(UnixStream::from(socket), timeout, stop)
    }

    /// Wraps a connected socket.
    pub(super) fn new(stream: UnixStream, timeout: Duration, stop: Arc<AtomicBool>) -> Result<NbdStream> {
        let tick = TICK.min(timeout).max(Duration::from_millis(1));
        stream
            .set_read_timeout(Some(tick))
            .and_then(|()| stream.set_write_timeout(Some(tick)))
            .map_err(|source| Error::Io { action: "set the time-out of the connection to", source })?;
        Ok(NbdStream {
            stream: BufReader::with_capacity(BUFFER_BYTES, stream),
            timeout,
            deadline: Instant::now() + timeout,
            stop,
        })
    }

    /// Restarts the timeout after completed work.
    pub(super) fn extend_deadline(&mut self) {
        self.deadline = Instant::now() + self.timeout;
    }

    /// Replaces the timeout and the stop flag.
    pub(super) fn reconfigure(&mut self, timeout: Duration, stop: Arc<AtomicBool>) {
        self.timeout = timeout;
        self.stop = stop;
        self.extend_deadline();
    }

    /// Fills `buffer`.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            self.check()?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(Error::Disconnected),
                Ok(count) => filled += count,
                Err(error) => retry_or_fail(error, "read from")?,
            }
        }
        Ok(())
    }

    /// Receives a few bytes as an array.
    pub(super) fn receive_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.receive(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends all of `bytes`.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.send_parts(&mut [IoSlice::new(bytes)])
    }

    /// Sends all parts in order, in one call as far as the kernel accepts them, so that the peer is not woken for a
    /// header alone.
    pub(super) fn send_parts(&mut self, mut parts: &mut [IoSlice<'_>]) -> Result<()> {
        // Skip empty slices at the beginning.
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            self.check()?;
            match self.stream.get_mut().write_vectored(parts) {
                Ok(0) => return Err(Error::Disconnected),
                Ok(count) => IoSlice::advance_slices(&mut parts, count),
                Err(error) => retry_or_fail(error, "write to")?,
            }
        }
        Ok(())
    }

    /// Sends a final message if the socket accepts it without blocking, and closes the connection.
    pub(super) fn close(&mut self, farewell: &[u8]) {
        let stream = self.stream.get_mut();
        if !farewell.is_empty() && stream.set_nonblocking(true).is_ok() {
            let _ = stream.write(farewell);
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }

    fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        if Instant::now() >= self.deadline {
            return Err(Error::Timeout { after: self.timeout });
        }
        Ok(())
    }
}

/// Ignores the end of a tick, and converts any other error.
fn retry_or_fail(error: std::io::Error, action: &'static str) -> Result<()> {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe | ErrorKind::NotConnected => {
            Err(Error::Disconnected)
        }
        _ => Err(Error::Io { action, source: error }),
    }
}
