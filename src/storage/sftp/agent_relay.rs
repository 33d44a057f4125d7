//! A relay between libssh2 and the ssh-agent, with time limits.
//!
//! libssh2 waits without end, and without noticing that the program is ending, for the answer of an agent: of one that
//! is stuck, that is forwarded over a dead connection, or that asks somebody who is not there to confirm. So libssh2
//! gets a socket of this process, whose requests a thread passes on. If the agent does not answer in time, the thread
//! closes the socket, and libssh2's call fails.

use super::SshTimeouts;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::fs::Permissions;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How often to check whether the program is ending.
const GLANCE: Duration = Duration::from_millis(100);

/// The limit for a signature, which somebody may have to confirm. A server waits two minutes for a login.
const SIGNATURE: Duration = Duration::from_secs(100);

/// A socket for libssh2 that leads to the agent.
#[derive(Debug)]
pub(super) struct AgentRelay {
    /// A private folder with the socket, until libssh2 is connected.
    folder: Option<tempfile::TempDir>,
    socket: PathBuf,
    /// Why the thread closed the connection.
    failure: Arc<OnceLock<String>>,
    /// Set before the first signature is requested.
    signing: Arc<AtomicBool>,
}

impl AgentRelay {
    /// Starts a relay to the agent at `socket`, for one connection.
    pub(super) fn start(socket: &Path, timeouts: SshTimeouts, stop: &Arc<AtomicBool>) -> io::Result<AgentRelay> {
        let signing = Arc::<AtomicBool>::default();
        let limit = {
            let (signing, stop) = (Arc::clone(&signing), Arc::clone(stop));
            move || match (stop.load(Ordering::Relaxed), signing.load(Ordering::Relaxed)) {
                // A program that is ending may need another connection to remove its lock.
                (true, _) => timeouts.connect.min(timeouts.ending),
                (false, true) => SIGNATURE,
                (false, false) => timeouts.connect,
            }
        };
        let agent = connect_within(socket, &limit)?;
        let folder = tempfile::Builder::new().prefix("kvmb-").permissions(Permissions::from_mode(0o700)).tempdir()?;
        let socket = folder.path().join("agent");
        let listener = UnixListener::bind(&socket)?;
        let relay = AgentRelay { folder: Some(folder), socket, failure: Arc::default(), signing };
        let failure = Arc::clone(&relay.failure);
        thread::Builder::new().name("agent relay".to_owned()).spawn(move || {
            let client = match wait_for_input([listener.as_fd()], Instant::now(), &limit) {
                Ok(_) => listener.accept().map(|(client, _)| client),
                Err(error) => Err(error),
            };
            // Without a client, nobody asks for the reason.
            let Ok(client) = client else { return };
            if let Err(reason) = pass_on(&client, &agent, &limit) {
                // Before the client's socket is closed, so that the reason is known to whoever notices that.
                let _ = failure.set(reason.to_string());
            }
        })?;
        Ok(relay)
    }

    /// Returns the socket for libssh2.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Removes the socket, which would be left behind if the process were killed. Connections to it stay.
    pub(super) fn connected(&mut self) {
        self.folder = None;
    }

    /// Allows the agent more time from now on, because somebody may have to confirm.
    pub(super) fn expect_signatures(&self) {
        self.signing.store(true, Ordering::Relaxed);
    }

    /// Returns why the relay has closed the connection, if it did.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }
}

/// Connects to a listening socket. While its backlog is full, the kernel would block a connect.
fn connect_within(path: &Path, limit: &dyn Fn() -> Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let begun = Instant::now();
    loop {
        match connect(&socket, &address) {
            Err(Errno::AGAIN) if begun.elapsed() >= limit() => return Err(no_answer(begun.elapsed())),
            Err(Errno::AGAIN | Errno::INTR) => thread::sleep(GLANCE),
            Err(error) => return Err(error.into()),
            Ok(()) => break,
        }
    }
    let agent = UnixStream::from(socket);
    agent.set_nonblocking(false)?;
    agent.set_write_timeout(Some(limit()))?;
    Ok(agent)
}

/// Passes requests and answers on until the client disconnects.
fn pass_on(mut client: &UnixStream, mut agent: &UnixStream, limit: &dyn Fn() -> Duration) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        // One request; it may come in parts.
        wait_for_input([client.as_fd()], Instant::now(), &|| Duration::MAX)?;
        let asked = Instant::now();
        let mut answer = Vec::new();
        while !is_complete(&answer) {
            let [from_client, from_agent] = wait_for_input([client.as_fd(), agent.as_fd()], asked, limit)?;
            if from_client {
                let length = client.read(&mut buffer)?;
                if length == 0 {
                    return Ok(());
                }
                agent.write_all(&buffer[..length])?;
            }
            if from_agent {
                let length = agent.read(&mut buffer)?;
                if length == 0 {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection"));
                }
                client.write_all(&buffer[..length])?;
                answer.extend_from_slice(&buffer[..length]);
            }
        }
    }
}

/// Returns whether this is a whole message: four bytes with the length of the rest, and the rest.
fn is_complete(message: &[u8]) -> bool {
    let length = |header: &[u8; 4]| u32::from_be_bytes(*header) as usize;
    message.split_first_chunk().is_some_and(|(header, rest)| rest.len() >= length(header))
}

/// Waits until a socket has input or was closed by its peer, and returns which. The limit applies from `begun` on.
fn wait_for_input<const N: usize>(
    sockets: [BorrowedFd; N],
    begun: Instant,
    limit: &dyn Fn() -> Duration,
) -> io::Result<[bool; N]> {
    let glance = Timespec { tv_sec: 0, tv_nsec: GLANCE.subsec_nanos().into() };
    loop {
        let mut polled = sockets.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN));
        match poll(&mut polled, Some(&glance)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(polled.map(|socket| !socket.revents().is_empty())),
            Err(error) => return Err(error.into()),
        }
        if begun.elapsed() >= limit() {
            return Err(no_answer(begun.elapsed()));
        }
    }
}

fn no_answer(after: Duration) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("it has not answered for {} s", after.as_secs()))
}
