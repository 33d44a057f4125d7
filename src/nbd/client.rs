//! One connection: requests, several of them in flight, and the verification of their replies. `doc/proto.md`,
//! "Transmission phase".
//!
//! Internally it is a pipeline: `submit_…` queues requests and returns a ticket, and `wait_any` sends what is queued
//! and returns whichever ticket finishes next. The public methods submit one request and wait for it.
//!
//! Nothing that a server sends is trusted: each byte of a read is received exactly once or the read fails, every length
//! is compared with the request before it is used, and a violation closes the connection for good.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::handshake::{self, NegotiatedExport};
use super::link::NbdStream;
use super::uri::NbdUri;
use super::wire::{self, ChunkHeader, Coverage, ErrorReply, MessageReader, RequestType, StatusExtent, Violation};
use super::{Error, Result};

/// Options of a connection.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The metadata contexts to request; see [`Client::has_context`] for those that the server has.
    pub contexts: Vec<String>,
    /// The timeout for the handshake, and then for each request. It starts with the end of the previous request, so
    /// that time spent queued behind others does not count.
    pub timeout: Duration,
    /// May be set by another thread to end any wait, within a tenth of a second, with [`Error::Stopped`].
    pub stop: Arc<AtomicBool>,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions { contexts: Vec::new(), timeout: Duration::from_secs(60), stop: Arc::default() }
    }
}

/// The status of a range in one metadata context, returned by [`Client::block_status`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextStatus {
    /// The name of the context.
    pub context: String,
    /// The extents, starting at the requested offset, in order, without gaps, and clipped to the request.
    pub extents: Vec<StatusExtent>,
}

/// One connection to one export.
#[derive(Debug)]
pub struct Client {
    link: NbdStream,
    export: NegotiatedExport,
    /// Encoded requests that have not been sent yet.
    outgoing: Vec<u8>,
    next_id: u64,
    /// Requests in flight, by cookie.
    pending: HashMap<u64, PendingRequest>,
    /// Reads in flight, by ticket. One read may need several requests.
    reads: HashMap<Ticket, Read>,
    /// Cleared when the connection can no longer be trusted.
    usable: bool,
}

/// Identifies a submitted request.
pub(super) type Ticket = u64;

/// The result of a submitted request.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) ticket: Ticket,
    /// The only errors are [`Error::Request`] and [`Error::Disconnected`].
    pub(super) outcome: Result<ReplyBody>,
}

#[derive(Debug)]
pub(super) enum ReplyBody {
    Read(Vec<u8>),
    /// One list per context.
    Status(Vec<ContextStatus>),
}

/// A request in flight.
#[derive(Debug)]
struct PendingRequest {
    ticket: Ticket,
    command: RequestType,
    offset: u64,
    length: u32,
    /// The first error in its chunks.
    refusal: Option<ErrorReply>,
    progress: ReplyProgress,
}

/// The part of a reply that was received.
#[derive(Debug)]
enum ReplyProgress {
    Read {
        /// The position of this request's bytes in the read's buffer.
        at: usize,
        coverage: Coverage,
    },
    Status {
        contexts: Vec<ContextStatus>,
    },
}

/// A read with requests in flight.
#[derive(Debug)]
struct Read {
    buffer: Vec<u8>,
    requests_left: usize,
    failure: Option<Error>,
}

impl Client {
    /// Connects and negotiates.
    pub fn connect(uri: &NbdUri, options: &ClientOptions) -> Result<Client> {
        let link = NbdStream::open(&uri.socket, options.timeout, Arc::clone(&options.stop))?;
        Client::negotiate(link, &uri.export, options)
    }

    /// Negotiates on a connected socket.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn from_stream(
        stream: std::os::unix::net::UnixStream,
        export: &str,
        options: &ClientOptions,
    ) -> Result<Client> {
        let link = NbdStream::new(stream, options.timeout, Arc::clone(&options.stop))?;
        Client::negotiate(link, export, options)
    }

    fn negotiate(mut link: NbdStream, export: &str, options: &ClientOptions) -> Result<Client> {
        match handshake::negotiate(&mut link, export, &options.contexts) {
            Ok(export) => Ok(Client {
                link,
                export,
                outgoing: Vec::new(),
                next_id: 1,
                pending: HashMap::new(),
                reads: HashMap::new(),
                usable: true,
            }),
            Err(error) => {
                link.close(&wire::encode_option(wire::OPT_ABORT, &[]));
                Err(error)
            }
        }
    }

    /// Returns the size of the export.
    pub fn size_bytes(&self) -> u64 {
        self.export.size_bytes
    }

    /// Returns whether the server refuses writes.
    pub fn read_only(&self) -> bool {
        self.has_flag(wire::TRANSMISSION_READ_ONLY)
    }

    /// Returns whether the server allows several connections that see the same bytes.
    pub fn multi_conn(&self) -> bool {
        self.has_flag(wire::TRANSMISSION_MULTI_CONN)
    }

    /// Returns the maximum size of one request.
    pub fn max_request_bytes(&self) -> u32 {
        self.export.max_request_bytes
    }

    /// Returns the alignment of requests.
    pub fn min_block_bytes(&self) -> u32 {
        self.export.min_block_bytes
    }

    /// Returns whether this metadata context was negotiated.
    pub fn has_context(&self, name: &str) -> bool {
        self.export.contexts.iter().any(|(_, known)| known == name)
    }

    fn has_flag(&self, flag: u16) -> bool {
        self.export.flags & (wire::TRANSMISSION_HAS_FLAGS | flag) == wire::TRANSMISSION_HAS_FLAGS | flag
    }

    /// Fills `buf` from `offset`, with as many requests as necessary.
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let size_bytes = self.export.size_bytes;
        let end = offset.saturating_add(buf.len() as u64);
        if end > size_bytes {
            return Err(refused_here(RequestType::Read, offset, buf.len() as u64));
        }
        let block = u64::from(self.export.min_block_bytes);
        let mut rest = buf;
        let mut position = offset;
        while !rest.is_empty() {
            // Align the request to the server's blocks; the end of the export counts as aligned.
            let begin = position - position % block;
            let end = begin
                .saturating_add(u64::from(self.export.max_request_bytes))
                .min(end.next_multiple_of(block))
                .min(size_bytes);
            let ticket = self.submit_read(begin, Vec::new(), (end - begin) as usize)?;
            if let ReplyBody::Read(bytes) = self.finish(ticket)? {
                let skip = (position - begin) as usize;
                let count = rest.len().min(bytes.len() - skip);
                let (head, tail) = rest.split_at_mut(count);
                head.copy_from_slice(&bytes[skip..skip + count]);
                rest = tail;
                position += count as u64;
            }
        }
        Ok(())
    }

    /// Returns the status of a range in each negotiated context. The answer may cover less than the requested range,
    /// but is never empty.
    pub fn block_status(&mut self, offset: u64, length: u32) -> Result<Vec<ContextStatus>> {
        let ticket = self.submit_block_status(offset, length)?;
        self.finish_status(ticket)
    }

    fn finish_status(&mut self, ticket: Ticket) -> Result<Vec<ContextStatus>> {
        match self.finish(ticket)? {
            ReplyBody::Status(contexts) => Ok(contexts),
            ReplyBody::Read(_) => Ok(Vec::new()),
        }
    }

    /// Disconnects. Dropping the client does the same.
    pub fn disconnect(self) {
        drop(self);
    }

    /// Replaces the timeout and the stop flag.
    pub(super) fn reconfigure(&mut self, timeout: Duration, stop: Arc<AtomicBool>) {
        self.link.reconfigure(timeout, stop);
    }
}

impl Client {
    /// Returns whether no requests are in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Submits a read of `length` bytes from `offset`, both aligned. The buffer is returned with exactly these bytes.
    /// Its present contents are irrelevant, so a recycled buffer need not be cleared.
    pub(super) fn submit_read(&mut self, offset: u64, mut buffer: Vec<u8>, length: usize) -> Result<Ticket> {
        // A new zeroed allocation needs no memset.
        if buffer.capacity() < length {
            buffer = vec![0; length];
        }
        buffer.resize(length, 0);
        let ticket = self.next_id;
        self.next_id += 1;
        let mut at = 0;
        let mut requests_left = 0;
        while at < length {
            let piece = (length - at).min(self.export.max_request_bytes as usize);
            let progress = ReplyProgress::Read { at, coverage: Coverage::default() };
            // The cast is lossless, because `max_request_bytes` is a u32.
            self.enqueue(ticket, RequestType::Read, 0, offset + at as u64, piece as u32, progress)?;
            requests_left += 1;
            at += piece;
        }
        self.reads.insert(ticket, Read { buffer, requests_left, failure: None });
        Ok(ticket)
    }

    pub(super) fn submit_block_status(&mut self, offset: u64, length: u32) -> Result<Ticket> {
        let end = offset.saturating_add(length.into());
        if self.export.contexts.is_empty() || length == 0 || end > self.export.size_bytes {
            return Err(refused_here(RequestType::BlockStatus, offset, length.into()));
        }
        let progress = ReplyProgress::Status { contexts: Vec::with_capacity(self.export.contexts.len()) };
        self.submit(RequestType::BlockStatus, 0, offset, length, progress)
    }

    fn submit(
        &mut self,
        command: RequestType,
        flags: u16,
        offset: u64,
        length: u32,
        progress: ReplyProgress,
    ) -> Result<Ticket> {
        let ticket = self.next_id;
        self.next_id += 1;
        self.enqueue(ticket, command, flags, offset, length, progress)?;
        Ok(ticket)
    }

    fn enqueue(
        &mut self,
        ticket: Ticket,
        command: RequestType,
        flags: u16,
        offset: u64,
        length: u32,
        progress: ReplyProgress,
    ) -> Result<()> {
        if !self.usable {
            return Err(Error::Disconnected);
        }
        if self.pending.is_empty() {
            self.link.extend_deadline();
        }
        let cookie = self.next_id;
        self.next_id += 1;
        self.outgoing.extend_from_slice(&wire::encode_request(command, flags, cookie, offset, length));
        self.pending.insert(cookie, PendingRequest { ticket, command, offset, length, refusal: None, progress });
        Ok(())
    }

    /// Waits for a ticket, which must be the only one.
    fn finish(&mut self, ticket: Ticket) -> Result<ReplyBody> {
        loop {
            let completion = self.wait_any()?;
            if completion.ticket == ticket {
                return completion.outcome;
            }
        }
    }

    /// Sends what is queued and waits for the next ticket to finish. An error ends the connection; the error of a
    /// single request is in the completion.
    pub(super) fn wait_any(&mut self) -> Result<Completion> {
        if !self.usable {
            return Err(Error::Disconnected);
        }
        let result = self.try_wait_any();
        if result.is_err() {
            self.usable = false;
            self.pending.clear();
            self.reads.clear();
            self.link.close(&[]);
        }
        result
    }

    fn try_wait_any(&mut self) -> Result<Completion> {
        self.link.send(&self.outgoing)?;
        self.outgoing.clear();
        loop {
            if let Some(completion) = self.receive_message()? {
                return Ok(completion);
            }
        }
    }

    /// Receives one simple reply or one chunk. Returns a completion if it finishes a ticket.
    fn receive_message(&mut self) -> Result<Option<Completion>> {
        let magic = u32::from_be_bytes(self.link.receive_array()?);
        match magic {
            wire::SIMPLE_REPLY_MAGIC => self.receive_simple_reply(),
            wire::STRUCTURED_REPLY_MAGIC if self.export.structured_replies => self.receive_chunk(),
            other => Err(Violation::ReplyMagic(other).into()),
        }
    }

    /// "Simple reply message". If structured replies were negotiated, the server may still use it for errors, and for
    /// successful requests without data.
    fn receive_simple_reply(&mut self) -> Result<Option<Completion>> {
        let header: [u8; 12] = self.link.receive_array()?;
        let mut fields = MessageReader::new("a simple reply", &header);
        let error = fields.u32()?;
        let mut pending = self.take_pending(fields.u64()?)?;
        if error != 0 {
            pending.refusal = Some(ErrorReply { error, message: String::new() });
        } else {
            let has_data = matches!(pending.command, RequestType::Read | RequestType::BlockStatus);
            if has_data && self.export.structured_replies {
                return Err(Violation::SimpleReply(pending.command).into());
            }
            if let ReplyProgress::Read { at, coverage } = &mut pending.progress {
                let target = read_buffer(&mut self.reads, pending.ticket, *at, pending.length)?;
                self.link.receive(target)?;
                coverage.add(0, pending.length)?;
            }
        }
        self.complete(pending)
    }

    /// "Structured reply chunk message".
    fn receive_chunk(&mut self) -> Result<Option<Completion>> {
        let header = ChunkHeader::decode(self.link.receive_array()?)?;
        let mut pending = self.take_pending(header.cookie)?;
        let command = pending.command;
        match (header.kind, &mut pending.progress) {
            _ if header.is_error() => {
                let payload =
                    self.receive_payload("an error chunk", header.length, wire::MAX_STRING_BYTES as u32 + 14)?;
                let refusal = wire::decode_error_chunk(&payload)?;
                pending.refusal.get_or_insert(refusal);
            }
            (wire::REPLY_NONE, _) => {
                if header.length != 0 || !header.is_done() {
                    return Err(Violation::Length { what: "an empty chunk", length: header.length.into() }.into());
                }
            }
            (wire::REPLY_OFFSET_DATA, ReplyProgress::Read { at, coverage }) => {
                let length = header
                    .length
                    .checked_sub(8)
                    .filter(|length| *length > 0)
                    .ok_or(Violation::Length { what: "a data chunk", length: header.length.into() })?;
                let offset = u64::from_be_bytes(self.link.receive_array()?);
                let within = position_within(offset, length, pending.offset, pending.length)?;
                coverage.add(within, length)?;
                let at = *at + within as usize;
                self.link.receive(read_buffer(&mut self.reads, pending.ticket, at, length)?)?;
            }
            (wire::REPLY_OFFSET_HOLE, ReplyProgress::Read { at, coverage }) => {
                let payload = self.receive_payload("a hole", header.length, 12)?;
                let mut fields = MessageReader::new("a hole", &payload);
                let offset = fields.u64()?;
                let length = fields.u32()?;
                fields.end()?;
                let within = position_within(offset, length, pending.offset, pending.length)?;
                coverage.add(within, length)?;
                let at = *at + within as usize;
                read_buffer(&mut self.reads, pending.ticket, at, length)?.fill(0);
            }
            (wire::REPLY_BLOCK_STATUS, ReplyProgress::Status { contexts }) => {
                let payload = self.receive_payload("a list of extents", header.length, wire::MAX_STATUS_REPLY_BYTES)?;
                let (id, extents) = wire::decode_block_status(&payload, pending.offset, pending.length)?;
                let context = self
                    .export
                    .contexts
                    .iter()
                    .find(|(known, _)| *known == id)
                    .map(|(_, name)| name.clone())
                    .filter(|name| contexts.iter().all(|seen| seen.context != *name))
                    .ok_or(Violation::Context(id))?;
                contexts.push(ContextStatus { context, extents });
            }
            (kind, _) => return Err(Violation::ChunkType { command, kind }.into()),
        }
        if header.is_done() {
            return self.complete(pending);
        }
        self.pending.insert(header.cookie, pending);
        Ok(None)
    }

    /// Receives a payload of limited length.
    fn receive_payload(&mut self, what: &'static str, length: u32, most: u32) -> Result<Vec<u8>> {
        if length > most {
            return Err(Violation::Length { what, length: length.into() }.into());
        }
        let mut payload = vec![0; length as usize];
        self.link.receive(&mut payload)?;
        Ok(payload)
    }

    fn take_pending(&mut self, cookie: u64) -> Result<PendingRequest> {
        self.pending.remove(&cookie).ok_or_else(|| Violation::Cookie(cookie).into())
    }

    /// Handles the end of a request's reply: checks that it is complete, and whether it was the last of its ticket.
    fn complete(&mut self, pending: PendingRequest) -> Result<Option<Completion>> {
        self.link.extend_deadline();
        let ticket = pending.ticket;
        let failure = pending.refusal.map(|refusal| match refusal.error {
            wire::ESHUTDOWN => Error::Disconnected,
            error => Error::Request {
                command: pending.command,
                offset: pending.offset,
                length: pending.length.into(),
                error,
                message: refusal.message,
            },
        });
        let outcome = match pending.progress {
            ReplyProgress::Read { coverage, .. } => {
                let missing = coverage.missing(pending.length);
                if failure.is_none() && missing > 0 {
                    return Err(Violation::Incomplete { missing }.into());
                }
                return self.complete_read(ticket, failure);
            }
            ReplyProgress::Status { contexts, .. } => {
                if failure.is_none() && contexts.len() != self.export.contexts.len() {
                    return Err(Violation::Extents { offset: pending.offset }.into());
                }
                ReplyBody::Status(contexts)
            }
        };
        Ok(Some(Completion { ticket, outcome: failure.map_or(Ok(outcome), Err) }))
    }

    /// Handles the end of one request of a read. The read fails with the first error of its requests.
    fn complete_read(&mut self, ticket: Ticket, failure: Option<Error>) -> Result<Option<Completion>> {
        let Some(mut read) = self.reads.remove(&ticket) else {
            return Err(Violation::Cookie(ticket).into());
        };
        read.requests_left -= 1;
        read.failure = read.failure.or(failure);
        if read.requests_left > 0 {
            self.reads.insert(ticket, read);
            return Ok(None);
        }
        Ok(Some(Completion { ticket, outcome: read.failure.map_or(Ok(ReplyBody::Read(read.buffer)), Err) }))
    }
}

impl Drop for Client {
    /// Sends `NBD_CMD_DISC`, which "MUST NOT" be sent while requests are in flight.
    fn drop(&mut self) {
        if !self.usable {
            return;
        }
        if self.pending.is_empty() {
            let goodbye = wire::encode_request(RequestType::Disconnect, 0, self.next_id, 0, 0);
            self.link.close(&goodbye);
        } else {
            self.link.close(&[]);
        }
    }
}

/// Returns the position of a part of a reply within its request.
fn position_within(offset: u64, length: u32, request_offset: u64, request_length: u32) -> Result<u32, Violation> {
    let out_of_bounds = Violation::OutOfBounds { offset, length: length.into() };
    let Some(within) = offset.checked_sub(request_offset).and_then(|within| u32::try_from(within).ok()) else {
        return Err(out_of_bounds);
    };
    match within.checked_add(length) {
        Some(end) if end <= request_length && length > 0 => Ok(within),
        _ => Err(out_of_bounds),
    }
}

/// Returns a part of the buffer of a read in flight.
fn read_buffer(
    reads: &mut HashMap<Ticket, Read>,
    ticket: Ticket,
    at: usize,
    length: u32,
) -> Result<&mut [u8], Violation> {
    reads
        .get_mut(&ticket)
        .and_then(|read| read.buffer.get_mut(at..at + length as usize))
        .ok_or(Violation::Cookie(ticket))
}

/// Returns the error for a request that the server would refuse with `EINVAL`.
fn refused_here(command: RequestType, offset: u64, length: u64) -> Error {
    Error::Request {
        command,
        offset,
        length,
        error: wire::EINVAL,
        message: "outside of the export, or not on its blocks".to_owned(),
    }
}

#[cfg(test)]
mod tests;
