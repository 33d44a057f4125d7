//! Starts a confined process and sends it requests.

use super::COMMAND;
use super::protocol::{
    BLOCKS, ChildReply, DATA, MOST_MESSAGE_BYTES, NO_BLOCKS, ParentRequest, REPLY, REQUEST, WANT_BLOCKS,
};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the child may work without a result. Includes the time between its requests for blocks, but not the time
/// that the parent needs to read them.
const PATIENCE: Duration = Duration::from_secs(120);

/// Interval at which the parent checks the stop flag.
const TICK: Duration = Duration::from_millis(100);

/// Why a confined process does not respond any more.
#[derive(Debug, thiserror::Error)]
pub enum ConfinedError {
    /// The process could not be started.
    #[error("cannot start a confined process: {0}")]
    Start(io::Error),
    /// The process could not drop its privileges, and was not used.
    #[error("cannot confine the process that reads the guest's file systems: {0}")]
    NotConfined(String),
    /// The process ended unexpectedly, or exceeded a limit.
    #[error("the process that reads the guest's file systems ended: {}", describe(*.0))]
    Ended(ExitStatus),
    /// The process worked for too long without a result.
    #[error("the process that reads the guest's file systems worked for {} s without a result", PATIENCE.as_secs())]
    Silent,
    /// The process sent an invalid message.
    #[error("the process that reads the guest's file systems broke the protocol: {0}")]
    Protocol(&'static str),
    /// This process must end.
    #[error("interrupted")]
    Stopped,
}

/// Describes how a process ended.
fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(libc::SIGSYS) => "it used a forbidden system call".to_owned(),
        Some(libc::SIGXCPU) => "it used all its processor time".to_owned(),
        Some(libc::SIGABRT) => "it needs more memory than it may have, or failed".to_owned(),
        Some(signal) => format!("signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}

/// A message of the child.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    Reply(ChildReply),
    /// Bytes of the current file.
    Data {
        offset: u64,
        bytes: &'a [u8],
    },
}

/// Reads blocks of a disk: its number, the offset, and the buffer. The error is a message for the user.
pub(crate) type ReadBlocks<'a> = &'a mut dyn FnMut(usize, u64, &mut [u8]) -> Result<(), String>;

/// A confined process, which is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Confined {
    child: Child,
    socket: UnixStream,
    stop: Arc<AtomicBool>,
    waited: Duration,
}

impl Confined {
    /// Starts a process and waits until it is confined.
    pub(crate) fn start(stop: Arc<AtomicBool>) -> Result<Confined, ConfinedError> {
        let started = || -> io::Result<Confined> {
            let (socket, theirs) = UnixStream::pair()?;
            socket.set_read_timeout(Some(TICK))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            let child = Command::new("/proc/self/exe")
                .arg(COMMAND)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            Ok(Confined { child, socket, stop, waited: Duration::ZERO })
        };
        let mut confined = started().map_err(ConfinedError::Start)?;
        match confined.receive()? {
            (REPLY, body) => match serde_json::from_slice(&body) {
                Ok(ChildReply::Ready) => Ok(confined),
                Ok(ChildReply::Failed(why)) => Err(ConfinedError::NotConfined(why)),
                _ => Err(ConfinedError::Protocol("it is not ready")),
            },
            _ => Err(ConfinedError::Protocol("it is not ready")),
        }
    }

    /// Sends a request and passes on the results until the request is done or `take` breaks, after which the
    /// process cannot be used any more. The last reply is passed on, too.
    pub(crate) fn ask(
        &mut self,
        request: &ParentRequest,
        blocks: ReadBlocks<'_>,
        take: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), ConfinedError> {
        let body = serde_json::to_vec(request).map_err(|_| ConfinedError::Protocol("the request cannot be written"))?;
        self.send(REQUEST, &body)?;
        self.waited = Duration::ZERO;
        loop {
            match self.receive()? {
                (WANT_BLOCKS, body) => self.send_blocks(&body, blocks)?,
                (DATA, body) => {
                    self.waited = Duration::ZERO;
                    let Some((offset, bytes)) = body.split_first_chunk::<8>() else {
                        return Err(ConfinedError::Protocol("data without a place"));
                    };
                    let offset = u64::from_le_bytes(*offset);
                    if take(Event::Data { offset, bytes }).is_break() {
                        return Ok(());
                    }
                }
                (REPLY, body) => {
                    self.waited = Duration::ZERO;
                    let reply: ChildReply =
                        serde_json::from_slice(&body).map_err(|_| ConfinedError::Protocol("a reply is invalid"))?;
                    let is_last = matches!(reply, ChildReply::Done | ChildReply::Refused(_));
                    if take(Event::Reply(reply)).is_break() || is_last {
                        return Ok(());
                    }
                }
                _ => return Err(ConfinedError::Protocol("a message of an unknown kind")),
            }
        }
    }

    fn send_blocks(&mut self, body: &[u8], blocks: ReadBlocks<'_>) -> Result<(), ConfinedError> {
        let wrong = ConfinedError::Protocol("a request for blocks is invalid");
        let Ok(body) = <&[u8; 16]>::try_from(body) else { return Err(wrong) };
        let number = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        let (disk, length) = (number(0), number(4));
        let offset = u64::from(number(8)) | u64::from(number(12)) << 32;
        if length >= MOST_MESSAGE_BYTES {
            return Err(wrong);
        }
        let mut bytes = vec![0; length as usize];
        match blocks(disk as usize, offset, &mut bytes) {
            Ok(()) => self.send(BLOCKS, &bytes),
            Err(reason) => self.send(NO_BLOCKS, &reason.as_bytes()[..reason.len().min(4096)]),
        }
    }

    fn send(&mut self, letter: u8, body: &[u8]) -> Result<(), ConfinedError> {
        let length = (1 + body.len()) as u32;
        let mut head = length.to_le_bytes().to_vec();
        head.push(letter);
        let sent = self.socket.write_all(&head).and_then(|()| self.socket.write_all(body));
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ConfinedError::Silent,
            _ => self.ended(),
        })
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>), ConfinedError> {
        let mut length = [0; 4];
        self.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        // Replies with many attributes are longer than data messages.
        if !(1..=64 * MOST_MESSAGE_BYTES).contains(&length) {
            return Err(ConfinedError::Protocol("a message of an impossible length"));
        }
        let mut letter = [0];
        self.read_exact(&mut letter)?;
        let mut body = vec![0; length as usize - 1];
        self.read_exact(&mut body)?;
        Ok((letter[0], body))
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), ConfinedError> {
        while !buffer.is_empty() {
            let begun = Instant::now();
            let read = self.socket.read(buffer);
            self.waited += begun.elapsed();
            match read {
                Ok(0) => return Err(self.ended()),
                Ok(read) => buffer = &mut buffer[read..],
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(self.ended()),
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(ConfinedError::Stopped);
            }
            if self.waited > PATIENCE {
                return Err(ConfinedError::Silent);
            }
        }
        Ok(())
    }

    /// Returns the error after the child has closed its socket.
    fn ended(&mut self) -> ConfinedError {
        // The child closes the socket by ending; then this has no effect.
        let _ = self.child.kill();
        let status = self.child.wait();
        status.map_or_else(ConfinedError::Start, ConfinedError::Ended)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // The child has already ended, or has nothing to clean up.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
