//! The connection of one client: the server's side of `doc/proto.md`, "Transmission phase".

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_send_buffer_size;

use super::super::link::NbdStream;
use super::super::wire::{
    CMD_FLAG_DF, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_REQ_ONE, EINVAL, EIO, ENOSPC, EOVERFLOW, EPERM,
    MAX_REQUEST_BYTES, Violation,
};
use super::super::{Error, Result};
use super::export::{ExportWrite, Exports, Piece};
use super::handshake::{self, ALLOCATION_CONTEXT, Agreed};
use super::message::{
    Position, Request, encode_block_status, encode_data_header, encode_end, encode_error, encode_error_at, encode_hole,
    encode_simple_reply,
};

/// How long a client may take to choose an export.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// How long a client may take to send the rest of a request, or to receive a reply.
const TRANSFER_LIMIT: Duration = Duration::from_secs(60);

/// How long a client may be silent between two requests. Virtually unlimited: a machine reads when it needs to.
const IDLE_LIMIT: Duration = Duration::from_secs(u32::MAX as u64);

/// How long the connections may take to end after the stop flag is set.
pub(super) const ENDING_LIMIT: Duration = Duration::from_secs(5);

/// The number of requests of one client that are processed in parallel.
const WORKERS: usize = 4;

/// Space for the reply to the largest request of QEMU when it copies, 512 KiB, so that it is sent without waiting for
/// the client.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// The maximum length of a reply that must not be split; "the server MUST NOT" refuse up to 64 KiB. No longer reply is
/// held in memory.
const MAX_WHOLE_REPLY_BYTES: u32 = 2 << 20;

/// The maximum number of extents in a reply.
const MAX_EXTENTS: usize = 8192;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISCONNECT: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_CACHE: u16 = 5;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;

/// The size of the pieces in which the data of a write is written, and a long reply is sent.
const PIECE_BYTES: usize = 1 << 20;

/// A request, and for a write, which was executed while its data arrived, the error number; 0 means success.
type Received = (Request, Option<u32>);

/// Serves one client until it leaves, violates the protocol, or `stop` is set.
pub(super) fn serve(stream: UnixStream, exports: &Exports, stop: &Arc<AtomicBool>) -> Result<()> {
    let failed = |source| Error::Io { action: "share the connection of", source };
    let (ours, replies) = (stream.try_clone().map_err(failed)?, stream.try_clone().map_err(failed)?);
    // The kernel may allow less, which is acceptable.
    let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
    let mut link = NbdStream::new(stream, HANDSHAKE_LIMIT, Arc::clone(stop))?;
    let Some(agreed) = handshake::negotiate(&mut link, exports)? else { return Ok(()) };
    let replies = NbdStream::new(replies, TRANSFER_LIMIT, Arc::clone(stop))?;
    let requests = Mutex::new(RequestStream { link, is_over: false });
    let connection = ClientConnection { agreed, requests, replies: Mutex::new(replies), whole: Mutex::default() };
    let work = || {
        let result = connection.work(stop);
        // After an error, shut the socket down, so that all other workers see the end of the connection.
        if result.is_err() {
            let _ = ours.shutdown(Shutdown::Both);
        }
        result
    };
    thread::scope(|scope| {
        // If the system allows no more threads, this one is sufficient.
        let helpers = (1..WORKERS).map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok());
        let workers: Vec<_> = helpers.collect();
        let own = work();
        // A worker that panicked has no result; the panic hook has reported it.
        workers.into_iter().filter_map(|worker| worker.join().ok()).fold(own, Result::and)
    })
}

/// The error reply to a request: the error number and a message.
type Refusal = (u32, &'static str);

/// The stream of requests from a client.
struct RequestStream {
    link: NbdStream,
    /// Whether no more requests follow.
    is_over: bool,
}

impl RequestStream {
    /// Returns the next request, or `None` when the client disconnects.
    fn next(&mut self, stop: &Arc<AtomicBool>) -> Result<Option<Request>> {
        self.link.reconfigure(IDLE_LIMIT, Arc::clone(stop));
        let request = match self.link.receive_array() {
            Err(Error::Disconnected) => return Ok(None),
            header => Request::decode(&header?)?,
        };
        Ok((request.command != CMD_DISCONNECT).then_some(request))
    }
}

struct ClientConnection {
    agreed: Agreed,
    /// A worker without work holds this and waits for the next request, which then need not be passed to another
    /// thread.
    requests: Mutex<RequestStream>,
    /// Locked for one message at a time.
    replies: Mutex<NbdStream>,
    /// The buffer for replies that must not be split. There is only one, so that a client cannot use much memory.
    whole: Mutex<Vec<u8>>,
}

impl ClientConnection {
    /// Answers requests until the client disconnects or violates the protocol.
    fn work(&self, stop: &Arc<AtomicBool>) -> Result<()> {
        while let Some((request, done)) = self.receive(stop)? {
            self.answer(&request, done)?;
        }
        Ok(())
    }

    /// Receives the next request, and writes the data of a write. Returns `None` if there are no more requests.
    fn receive(&self, stop: &Arc<AtomicBool>) -> Result<Option<Received>> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.is_over {
            return Ok(None);
        }
        // Reset below if nothing fails.
        requests.is_over = true;
        let Some(request) = requests.next(stop)? else { return Ok(None) };
        let mut done = None;
        if request.command == CMD_WRITE {
            if request.length > MAX_REQUEST_BYTES {
                // Skipping this much data would take too long.
                return Err(Violation::Length { what: "a write", length: request.length.into() }.into());
            }
            requests.link.reconfigure(TRANSFER_LIMIT, Arc::clone(stop));
            done = Some(self.receive_write(&mut requests.link, &request)?);
        }
        requests.is_over = false;
        Ok(Some((request, done)))
    }

    /// Receives and writes the data of a write piece by piece, so that a client cannot use more memory than one piece.
    /// Returns the error number for the client.
    fn receive_write(&self, link: &mut NbdStream, request: &Request) -> Result<u32> {
        let mut error = self.check(request).err().map_or(0, |(error, _)| error);
        let (mut at, mut left) = (request.offset, request.length as usize);
        let mut piece = vec![0; left.min(PIECE_BYTES)];
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE_BYTES)];
            link.receive(piece)?;
            // Receive the rest of the data even after an error: the next request follows it.
            if error == 0 {
                error = self.write(at, ExportWrite::Data(piece));
                at += piece.len() as u64;
            }
            left -= piece.len();
        }
        Ok(error)
    }

    fn answer(&self, request: &Request, done: Option<u32>) -> Result<()> {
        if let Some(error) = done {
            return self.send([&encode_simple_reply(request.cookie, error)]);
        }
        if let Err((error, message)) = self.check(request) {
            return self.fail(request, error, message);
        }
        match request.command {
            CMD_READ if !self.agreed.structured_replies => self.read_simply(request),
            CMD_READ if request.flags & CMD_FLAG_DF != 0 => self.read_whole(request),
            CMD_READ => self.read_in_pieces(request),
            CMD_BLOCK_STATUS => self.block_status(request),
            CMD_TRIM | CMD_WRITE_ZEROES => {
                let error = self.write(request.offset, ExportWrite::Zeros(request.length.into()));
                self.send([&encode_simple_reply(request.cookie, error)])
            }
            // Flush and cache do nothing: writes do not outlive the server.
            _ => self.send([&encode_simple_reply(request.cookie, 0)]),
        }
    }

    /// Checks a request before anything is done for it.
    fn check(&self, request: &Request) -> std::result::Result<(), Refusal> {
        let export = &self.agreed.export;
        let (is_write, known_flags) = match request.command {
            CMD_READ if self.agreed.structured_replies => (false, CMD_FLAG_DF),
            CMD_READ | CMD_CACHE => (false, 0),
            CMD_BLOCK_STATUS if self.agreed.has_allocation => (false, CMD_FLAG_REQ_ONE),
            CMD_BLOCK_STATUS => return Err((EINVAL, "no metadata context was chosen")),
            CMD_FLUSH if export.is_writable() => return Ok(()),
            CMD_WRITE | CMD_TRIM => (true, CMD_FLAG_FUA),
            CMD_WRITE_ZEROES => (true, CMD_FLAG_FUA | CMD_FLAG_NO_HOLE),
            _ => return Err((EINVAL, "the command is not known")),
        };
        if is_write && !export.is_writable() {
            return Err((EPERM, "the export is read-only"));
        }
        if request.flags & !known_flags != 0 {
            return Err((EINVAL, "a flag is not known"));
        }
        let end = request.offset.checked_add(request.length.into());
        if request.length == 0 || end.is_none_or(|end| end > export.size_bytes()) {
            let error = if is_write { ENOSPC } else { EINVAL };
            return Err((error, "the request is empty, or passes the end of the export"));
        }
        match request.command {
            CMD_READ if request.length > MAX_REQUEST_BYTES => Err((EINVAL, "the request is too long")),
            CMD_READ if request.flags & CMD_FLAG_DF != 0 && request.length > MAX_WHOLE_REPLY_BYTES => {
                Err((EOVERFLOW, "too long for one piece"))
            }
            _ => Ok(()),
        }
    }

    /// Sends one whole message.
    fn send<const N: usize>(&self, parts: [&[u8]; N]) -> Result<()> {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.extend_deadline();
        replies.send_parts(&mut parts.map(IoSlice::new))
    }

    fn fail(&self, request: &Request, error: u32, message: &str) -> Result<()> {
        match (request.command, self.agreed.structured_replies) {
            (CMD_READ | CMD_BLOCK_STATUS, true) => self.send([&encode_error(request.cookie, error, message)]),
            _ => self.send([&encode_simple_reply(request.cookie, error)]),
        }
    }

    /// Sends each piece as it is read. Unreadable ones are sent as errors at their offset.
    fn read_in_pieces(&self, request: &Request) -> Result<()> {
        let (cookie, mut offset, end) = (request.cookie, request.offset, request.offset + u64::from(request.length));
        let mut is_over = false;
        self.read(request, |piece| {
            let at = offset;
            offset += u64::from(piece.length_bytes());
            match piece {
                Piece::Zeros(length) => self.send([&encode_hole(cookie, at, length)]),
                Piece::Data(bytes) => {
                    is_over = offset == end;
                    let position = if is_over { Position::Last } else { Position::Middle };
                    self.send([&encode_data_header(cookie, position, at, bytes.len()), bytes])
                }
                Piece::Unreadable { reason, .. } => self.send([&encode_error_at(cookie, EIO, at, reason)]),
            }
        })?;
        if is_over { Ok(()) } else { self.send([&encode_end(cookie)]) }
    }

    /// Sends all data in one chunk, or an error.
    fn read_whole(&self, request: &Request) -> Result<()> {
        self.collect(request, |bytes| {
            self.send([&encode_data_header(request.cookie, Position::Last, request.offset, bytes.len()), bytes])
        })
    }

    /// "Simple reply message": it must be certain that all data is readable before the first byte is sent.
    fn read_simply(&self, request: &Request) -> Result<()> {
        if request.length > MAX_WHOLE_REPLY_BYTES {
            return self.read_simply_twice(request);
        }
        self.collect(request, |bytes| self.send([&encode_simple_reply(request.cookie, 0), bytes]))
    }

    /// The same for data that is too large to hold in memory: it is read once to check that it is readable, and again
    /// to send it.
    fn read_simply_twice(&self, request: &Request) -> Result<()> {
        let mut failure = None;
        self.read(request, |piece| {
            if let Piece::Unreadable { reason, .. } = piece {
                failure.get_or_insert_with(|| reason.to_owned());
            }
            Ok(())
        })?;
        if let Some(reason) = failure {
            return self.fail(request, EIO, &reason);
        }
        let zeros = vec![0; PIECE_BYTES];
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.extend_deadline();
        replies.send(&encode_simple_reply(request.cookie, 0))?;
        self.read(request, |piece| {
            replies.extend_deadline();
            match piece {
                Piece::Data(bytes) => replies.send(bytes),
                Piece::Zeros(length) => {
                    let mut left = length as usize;
                    while left > 0 {
                        let part = left.min(zeros.len());
                        replies.send(&zeros[..part])?;
                        left -= part;
                    }
                    Ok(())
                }
                // "the server MUST initiate a hard disconnect": the data was readable in the first pass.
                Piece::Unreadable { .. } => {
                    Err(Error::Io { action: "read for", source: io::ErrorKind::UnexpectedEof.into() })
                }
            }
        })
    }

    fn collect(&self, request: &Request, reply: impl Fn(&[u8]) -> Result<()>) -> Result<()> {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        whole.clear();
        let mut failure = None;
        self.read(request, |piece| {
            match piece {
                Piece::Zeros(length) => {
                    let filled = whole.len() + length as usize;
                    whole.resize(filled, 0);
                }
                Piece::Data(bytes) => whole.extend_from_slice(bytes),
                Piece::Unreadable { reason, .. } => drop(failure.get_or_insert_with(|| reason.to_owned())),
            }
            Ok(())
        })?;
        match failure {
            Some(reason) => self.fail(request, EIO, &reason),
            None => reply(&whole),
        }
    }

    fn read(&self, request: &Request, mut take: impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        let mut broken = None;
        let read = self.agreed.export.read(request.offset, request.length, &mut |piece| {
            take(piece).map_err(|error| {
                broken = Some(error);
                io::Error::from(io::ErrorKind::BrokenPipe)
            })
        });
        match (broken, read) {
            (Some(error), _) => Err(error),
            // The export failed, and the promised pieces will not come.
            (None, Err(source)) => Err(Error::Io { action: "read for", source }),
            (None, Ok(())) => Ok(()),
        }
    }

    fn block_status(&self, request: &Request) -> Result<()> {
        let limit = if request.flags & CMD_FLAG_REQ_ONE != 0 { 1 } else { MAX_EXTENTS };
        let extents = self.agreed.export.extents(request.offset, request.length, limit);
        self.send([&encode_block_status(request.cookie, ALLOCATION_CONTEXT, &extents)])
    }

    /// Writes and returns the error number for the client.
    fn write(&self, offset: u64, change: ExportWrite<'_>) -> u32 {
        match self.agreed.export.write(offset, change) {
            Ok(()) => 0,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => ENOSPC,
            Err(_) => EIO,
        }
    }
}
