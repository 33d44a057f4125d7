//! One SSH connection. Every call on it waits for the network in small steps, so that nothing hangs.
//!
//! libssh2 runs in non-blocking mode. When a call would block, we wait until the socket is ready, and check at short
//! intervals whether the program is ending, and whether the other side has been silent, or made no progress, for too
//! long. An abandoned call leaves the protocol in an undefined state, so the connection is shut down and never used
//! again.

use super::proxy::ProxyProcess;
use super::{Error, Result, SshContext, SshTarget, SshTimeouts, TransferProgress, known_hosts};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown, sockopt};
use ssh_key::PublicKey;
use ssh2::{BlockDirections, ErrorCode, Session};
use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The maximum length of the text that a server may send before its SSH identification.
const LONGEST_PREFACE_BYTES: usize = 16 << 10;

/// libssh2's error code for "would block".
const EAGAIN: ErrorCode = ErrorCode::Session(-37);

/// How often to check whether the program is ending.
const GLANCE: Duration = Duration::from_millis(100);

/// The longest keep-alive interval that the system accepts for a socket. `ssh_config` allows longer ones.
const LONGEST_KEEP_ALIVE: Duration = Duration::from_secs(32_767);

/// How long libssh2 may wait where it insists on blocking: when open handles are closed.
const LAST_WORDS_MS: u32 = 2000;

/// A connection with its session, not yet authenticated.
pub(crate) struct Connection {
    session: Session,
    /// A second handle of the session's socket, to poll it and to shut it down.
    socket: OwnedFd,
    /// The address that was connected to; `None` behind a proxy.
    address: Option<SocketAddr>,
    /// The process that carries the connection, if there is one.
    proxy: Option<ProxyProcess>,
    server: String,
    stop: Arc<AtomicBool>,
    timeouts: SshTimeouts,
    progress: TransferProgress,
    /// Set when a call is abandoned.
    broken: Cell<bool>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Connection {
    /// Wraps a connected TCP socket.
    pub(crate) fn new(socket: TcpStream, ssh_target: &SshTarget, ssh_context: &SshContext) -> Result<Connection> {
        let prepare = || -> io::Result<(OwnedFd, Option<SocketAddr>)> {
            socket.set_nodelay(true)?;
            // Keep-alives prevent routers from dropping idle connections, and detect a peer that is gone.
            sockopt::set_socket_keepalive(&socket, true)?;
            let interval = ssh_target.timeouts.keep_alive.min(LONGEST_KEEP_ALIVE);
            sockopt::set_tcp_keepidle(&socket, interval)?;
            sockopt::set_tcp_keepintvl(&socket, interval)?;
            sockopt::set_tcp_keepcnt(&socket, 4)?;
            Ok((socket.try_clone()?.into(), socket.peer_addr().ok()))
        };
        let (second, address) = prepare().map_err(|source| unreachable_server(ssh_target, source))?;
        let mut connection = Connection::wrap(socket, second, ssh_target, ssh_context)?;
        connection.address = address;
        Ok(connection)
    }

    /// Wraps the socket of a proxy process.
    pub(crate) fn through(
        socket: UnixStream,
        proxy: ProxyProcess,
        ssh_target: &SshTarget,
        ssh_context: &SshContext,
    ) -> Result<Connection> {
        let second = socket.try_clone().map_err(|source| unreachable_server(ssh_target, source))?;
        let mut connection = Connection::wrap(socket, second.into(), ssh_target, ssh_context)?;
        connection.proxy = Some(proxy);
        Ok(connection)
    }

    fn wrap(
        socket: impl AsRawFd + 'static,
        second: OwnedFd,
        ssh_target: &SshTarget,
        ssh_context: &SshContext,
    ) -> Result<Connection> {
        let handshake =
            |error: ssh2::Error| Error::Handshake { server: ssh_target.server(), reason: error.message().into() };
        let mut session = Session::new().map_err(handshake)?;
        session.set_timeout(LAST_WORDS_MS);
        session.set_blocking(false);
        session.set_tcp_stream(socket);
        Ok(Connection {
            session,
            socket: second,
            address: None,
            proxy: None,
            server: ssh_target.server(),
            stop: Arc::clone(&ssh_context.stop),
            timeouts: ssh_target.timeouts,
            progress: TransferProgress::default(),
            broken: Cell::new(false),
        })
    }

    /// Returns libssh2's session. Calls on it must run in [`Connection::step`] or [`Connection::call`].
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Returns the server's name for messages.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Returns the address that was connected to; `None` behind a proxy.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Returns whether the server identifies itself as OpenSSH.
    pub(crate) fn is_openssh(&self) -> bool {
        self.session.banner().is_some_and(|banner| banner.contains("OpenSSH"))
    }

    /// Waits for the server's SSH identification. libssh2 would read without end from a server that sends anything
    /// else.
    pub(crate) fn await_greeting(&self) -> Result<()> {
        let begun = Instant::now();
        let mut heard = vec![0; LONGEST_PREFACE_BYTES];
        let mut hung_up = false;
        loop {
            let length = match recv(&self.socket, &mut heard[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(self.ended_without_greeting()),
                Ok((_, length)) => length,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
                Err(error) => return Err(self.lost(&io::Error::from(error).to_string())),
            };
            if heard[..length].split(|byte| *byte == b'\n').any(|line| line.starts_with(b"SSH-")) {
                return Ok(());
            }
            let said = |longest: usize| {
                String::from_utf8_lossy(&heard[..length.min(longest)]).trim().escape_debug().to_string()
            };
            if hung_up {
                self.cut();
                return Err(Error::TurnedAway { server: self.server.clone(), said: said(200) });
            }
            if length == LONGEST_PREFACE_BYTES {
                self.cut();
                let reason = format!("it keeps sending something else: {}…", said(40));
                return Err(Error::Handshake { server: self.server.clone(), reason });
            }
            if begun.elapsed() >= self.limit(self.timeouts.connect) {
                self.cut();
                return Err(match length {
                    0 => Error::Silent { server: self.server.clone(), after: begun.elapsed() },
                    _ => Error::Handshake { server: self.server.clone(), reason: format!("it says: {}", said(40)) },
                });
            }
            match length {
                0 => drop(poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&glance()))),
                // The peeked bytes are still in the buffer, so a poll for input would return at once. The end of the
                // connection is behind them.
                _ => {
                    let mut sockets = [PollFd::new(&self.socket, PollFlags::RDHUP)];
                    let _ = poll(&mut sockets, Some(&glance()));
                    hung_up = !sockets[0].revents().is_empty();
                }
            }
        }
    }

    /// Returns the error for a connection that ended before the server said anything.
    fn ended_without_greeting(&self) -> Error {
        match self.proxy.as_ref().and_then(ProxyProcess::problem) {
            Some((problem, said)) => {
                self.cut();
                Error::Proxy { server: self.server.clone(), problem, said }
            }
            None => self.lost("it closed the connection"),
        }
    }

    /// Returns the type and fingerprint of the server's host key.
    pub(crate) fn host_key(&self) -> Option<(String, String)> {
        let (blob, _) = self.session.host_key()?;
        let key = PublicKey::from_bytes(blob).ok()?;
        Some((known_hosts::key_type(&key), known_hosts::fingerprint(&key)))
    }

    /// Returns whether the connection can no longer be used.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Restarts the progress timeout, for a new request or because the server has made progress.
    pub(crate) fn restart_progress(&self) {
        self.progress.restart();
    }

    /// Counts bytes that were sent or received as progress.
    pub(crate) fn moved(&self, bytes: usize) {
        self.progress.moved(bytes, self.timeouts.progress);
    }

    /// Runs a step of the connection setup, with the connect timeout and without keep-alives.
    pub(crate) fn step<T>(&self, call: impl FnMut() -> std::result::Result<T, ssh2::Error>) -> Result<SshResult<T>> {
        self.drive(self.timeouts.connect, false, call)
    }

    /// Runs a call on an established connection.
    pub(crate) fn call<T>(&self, call: impl FnMut() -> std::result::Result<T, ssh2::Error>) -> Result<SshResult<T>> {
        self.drive(self.timeouts.silence, true, call)
    }

    /// Runs a call. The outer error means that the connection is lost; the inner one is the result of this call.
    fn drive<T>(
        &self,
        silence: Duration,
        keep_alive: bool,
        mut call: impl FnMut() -> std::result::Result<T, ssh2::Error>,
    ) -> Result<SshResult<T>> {
        if self.broken.get() {
            return Err(self.lost("it was closed before"));
        }
        let mut heard = Instant::now();
        loop {
            let begun = Instant::now();
            match call() {
                Err(error) if error.code() == EAGAIN => {}
                Err(error) if is_broken(&error) => return Err(self.lost(error.message())),
                answer => return Ok(answer),
            }
            self.wait(silence, keep_alive, &mut heard)?;
            self.progress.waited(begun.elapsed());
            let stuck_for = self.progress.stuck_for();
            if stuck_for >= self.limit(self.timeouts.progress) {
                self.cut();
                return Err(Error::Stuck { server: self.server.clone(), after: stuck_for });
            }
        }
    }

    /// Returns the timeout to use instead of `usual`: a shorter one when the program is ending.
    fn limit(&self, usual: Duration) -> Duration {
        match self.stop.load(Ordering::Relaxed) {
            true => usual.min(self.timeouts.ending),
            false => usual,
        }
    }

    /// Waits until the socket is ready, or for [`GLANCE`].
    fn wait(&self, silence: Duration, keep_alive: bool, heard: &mut Instant) -> Result<()> {
        let wanted = match self.session.block_directions() {
            BlockDirections::Outbound => PollFlags::OUT,
            BlockDirections::Both => PollFlags::IN | PollFlags::OUT,
            BlockDirections::Inbound | BlockDirections::None => PollFlags::IN,
        };
        let mut sockets = [PollFd::new(&self.socket, wanted)];
        match poll(&mut sockets, Some(&glance())) {
            Ok(0) => {}
            Ok(_) => {
                *heard = Instant::now();
                return Ok(());
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(self.lost(&io::Error::from(error).to_string())),
        }
        let silent = heard.elapsed();
        if silent >= self.limit(silence) {
            self.cut();
            return Err(Error::Silent { server: self.server.clone(), after: silent });
        }
        // Only if the socket can take the whole packet: libssh2 does not recover from a partially sent one.
        if keep_alive && wanted == PollFlags::IN && silent >= self.timeouts.keep_alive && self.can_send() {
            let seconds = u32::try_from(self.timeouts.keep_alive.as_secs()).unwrap_or(u32::MAX);
            self.session.set_keepalive(true, seconds.max(2));
            if let Err(error) = self.session.keepalive_send()
                && is_broken(&error)
            {
                return Err(self.lost(error.message()));
            }
        }
        Ok(())
    }

    fn can_send(&self) -> bool {
        let mut sockets = [PollFd::new(&self.socket, PollFlags::OUT)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut sockets, Some(&now)), Ok(1))
    }

    /// Shuts the connection down and returns the error to report.
    pub(crate) fn lost(&self, reason: &str) -> Error {
        self.cut();
        let reason = match self.proxy.as_ref().and_then(ProxyProcess::said) {
            Some(said) => format!("{reason}; the proxy says: {said}"),
            None => reason.to_owned(),
        };
        Error::Lost { server: self.server.clone(), reason }
    }

    /// Shuts the connection down. No later call waits for the network, nor does freeing the open handles.
    pub(crate) fn cut(&self) {
        self.broken.set(true);
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.broken.get() {
            // Do not wait: the server notices the closed socket anyway.
            let _ = self.session.disconnect(None, "done", None);
            self.cut();
        }
        // Calls on a socket that is shut down return at once, so libssh2 frees everything without "would block".
        self.session.set_blocking(true);
    }
}

fn unreachable_server(ssh_target: &SshTarget, source: io::Error) -> Error {
    Error::Unreachable { server: ssh_target.server(), source }
}

fn glance() -> rustix::event::Timespec {
    rustix::event::Timespec { tv_sec: 0, tv_nsec: GLANCE.subsec_nanos().into() }
}

/// The result of one call on the server.
pub(crate) type SshResult<T> = std::result::Result<T, ssh2::Error>;

/// Returns whether an error means that the connection is unusable.
///
/// | code | libssh2's name |
/// | --- | --- |
/// | -4, -12, -14, -41, -44 | a packet that is damaged, or cannot be decrypted or encrypted |
/// | -7, -13, -43, -45 | the socket |
/// | -9, -30 | libssh2's own timeouts |
fn is_broken(error: &ssh2::Error) -> bool {
    const BROKEN: [i32; 11] = [-4, -7, -9, -12, -13, -14, -30, -41, -43, -44, -45];
    matches!(error.code(), ErrorCode::Session(code) if BROKEN.contains(&code))
}
