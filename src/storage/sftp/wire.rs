//! SFTP version 3: requests and replies, with any number of requests in flight.
//!
//! libssh2 has its own SFTP implementation. Except for reads and writes, it waits for the reply to each request before
//! it sends the next one, which is slow on high-latency links. It also copies the data that it writes, and lacks
//! `posix-rename@openssh.com`. So kvmb uses only the channel of libssh2 and implements SFTP itself:
//!
//! | packet | contents |
//! | --- | --- |
//! | request | length, [`PacketType`], number, [`Field`]s |
//! | reply | length, type, number of the request, contents of [`Reply`] |
//!
//! A server may answer in any order; every reply is matched to its request. Requests are buffered until a reply is
//! waited for, and then sent together: independent requests take one round trip.

use super::connection::Connection;
use super::{Error, Result, SftpFault, SftpStatus, SshTarget};
use ssh2::{Channel, ErrorCode, ExtendedData};
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, Read, Write};

/// The types of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub(crate) enum PacketType {
    Open = 3,
    Close = 4,
    Read = 5,
    Write = 6,
    StatOpened = 8,
    OpenFolder = 11,
    ReadFolder = 12,
    Remove = 13,
    MakeFolder = 14,
    RealPath = 16,
    Stat = 17,
    Rename = 18,
    Extended = 200,
}

/// `SSH_FXP_INIT` and its answer.
const INIT: u8 = 1;
const VERSION: u8 = 2;

/// The maximum length of a server's packet. The longest are replies to reads, which never request more than 255 KiB.
const LONGEST_PACKET: usize = 256 << 10;

/// The number of bytes that the server may send before it has to wait.
const WINDOW_BYTES: u32 = 4 << 20;

/// A trailing field longer than this is sent without copying it: a copy would cost more than the short SSH packet
/// before it.
const LONG_TEXT_BYTES: usize = 64 << 10;

/// The number of buffered request bytes that are sent without waiting until a reply is needed.
const FULL_FLIGHT_BYTES: usize = 16 << 10;

/// The SSH packet size that every implementation supports.
const SSH_PACKET_BYTES: u32 = 32 << 10;

/// The maximum number of file bytes in early replies: more than a pack, whose parts may arrive in any order.
const EARLY_BYTES: usize = 72 << 20;

/// A field of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Field<'a> {
    /// A 32-bit number.
    Number(u32),
    /// A 64-bit number.
    Long(u64),
    /// A path, a handle, or bytes to write.
    Text(&'a [u8]),
}

/// A request whose reply has not been read yet.
#[must_use = "every request is answered: receive the reply, or say that nobody wants it"]
#[derive(Debug)]
pub(crate) struct Sent(u32);

/// A reply of the server.
#[derive(Debug)]
pub(crate) enum Reply {
    Done,
    /// The end of a file or folder.
    End,
    Refused(SftpStatus),
    /// An open file or folder.
    Handle(Vec<u8>),
    /// Bytes of a file.
    Data(Vec<u8>),
    /// Some of a folder's entries, or the one name that was requested.
    Names(ListedNames),
    /// The attributes of a file.
    Stat(Stat),
    /// The reply to an extension, in its own format.
    Extended(Vec<u8>),
}

/// Names with their attributes.
#[derive(Debug, Default)]
pub(crate) struct ListedNames {
    /// The names that are UTF-8.
    pub(crate) entries: Vec<(String, Stat)>,
    /// The size of all names in the packet.
    pub(crate) packet_bytes: usize,
}

/// The attributes of a file or folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) size_bytes: u64,
    pub(crate) is_folder: bool,
    /// The modification time in seconds since 1970, if the server reports it.
    pub(crate) modified: Option<u64>,
}

/// A channel to an SFTP server.
pub(crate) struct SftpChannel {
    // Declared before the connection, so that it is closed first.
    channel: Channel,
    connection: Connection,
    user: String,
    /// The server's extensions, known after the handshake.
    extensions: OnceCell<HashSet<String>>,
    state: RefCell<ChannelState>,
}

#[derive(Debug, Default)]
struct ChannelState {
    /// The number of the next request.
    next: u32,
    /// Requests that have not been sent yet.
    outgoing: Vec<u8>,
    /// Requests whose reply nobody waits for. They are sent with the next other request.
    deferred: Vec<u8>,
    /// Pending requests, and whether the reply is wanted.
    unanswered: HashMap<u32, bool>,
    /// Replies that arrived before they were waited for.
    early: HashMap<u32, Reply>,
    /// The number of file bytes in `early`.
    early_bytes: usize,
}

impl SftpChannel {
    /// Starts SFTP on an authenticated connection.
    pub(crate) fn start(connection: Connection, ssh_target: &SshTarget) -> Result<SftpChannel> {
        let no_sftp = |error: ssh2::Error| Error::NoSftp {
            server: ssh_target.server(),
            user: ssh_target.user.clone(),
            reason: error.message().to_owned(),
        };
        connection.restart_progress();
        let session = connection.session();
        let open = || session.channel_open("session", WINDOW_BYTES, SSH_PACKET_BYTES, None);
        let mut channel = connection.step(open)?.map_err(no_sftp)?;
        connection.step(|| channel.subsystem("sftp"))?.map_err(no_sftp)?;
        connection.step(|| channel.handle_extended_data(ExtendedData::Ignore))?.map_err(no_sftp)?;
        let user = ssh_target.user.clone();
        let wire = SftpChannel { channel, connection, user, extensions: OnceCell::new(), state: RefCell::default() };
        let extensions = wire.greet()?;
        wire.extensions.get_or_init(|| extensions);
        Ok(wire)
    }

    /// Exchanges the protocol versions and returns the server's extensions.
    fn greet(&self) -> Result<HashSet<String>> {
        self.write(&[&5u32.to_be_bytes()[..], &[INIT], &3u32.to_be_bytes()].concat(), false)?;
        let packet = self.read_packet()?;
        let extensions = || -> Option<HashSet<String>> {
            let mut fields = PacketReader(&packet);
            if fields.byte()? != VERSION {
                return None;
            }
            fields.number()?;
            let mut extensions = HashSet::new();
            while !fields.0.is_empty() {
                extensions.insert(String::from_utf8_lossy(fields.text()?).into_owned());
                fields.text()?;
            }
            Some(extensions)
        };
        extensions().ok_or_else(|| self.protocol_error())
    }

    /// Returns whether the server supports this extension.
    pub(crate) fn has(&self, extension: &str) -> bool {
        self.extensions.get().is_some_and(|extensions| extensions.contains(extension))
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a request whose reply is received later. Writes are sent at once, because the caller decides when they may
    /// go out. Other requests are buffered until a reply is waited for or [`FULL_FLIGHT_BYTES`] are reached.
    pub(crate) fn send(&self, call: PacketType, parts: &[Field<'_>]) -> Result<Sent> {
        let state = &mut *self.state.borrow_mut();
        let number = state.number(true);
        state.outgoing.append(&mut state.deferred);
        let tail = encode(&mut state.outgoing, call, number, parts);
        // Requests for single bytes could be repeated without end, so they are not progress.
        let is_progress = call == PacketType::Write;
        if is_progress || !tail.is_empty() || state.outgoing.len() >= FULL_FLIGHT_BYTES {
            self.flush(&mut state.outgoing, is_progress)?;
            self.write(tail, is_progress)?;
        }
        Ok(Sent(number))
    }

    /// Buffers a request whose reply nobody waits for. It is sent with the next other request.
    pub(crate) fn defer(&self, call: PacketType, parts: &[Field<'_>]) {
        let state = &mut *self.state.borrow_mut();
        let number = state.number(false);
        let tail = encode(&mut state.deferred, call, number, parts);
        state.deferred.extend_from_slice(tail);
    }

    fn flush(&self, outgoing: &mut Vec<u8>, is_progress: bool) -> Result<()> {
        let written = self.write(outgoing, is_progress);
        outgoing.clear();
        written
    }

    /// Waits for the reply to a request. An error means that the connection is lost.
    pub(crate) fn receive(&self, sent: Sent) -> Result<Reply> {
        let Sent(number) = sent;
        loop {
            if let Some(reply) = self.state.borrow_mut().take_early(number) {
                return Ok(reply);
            }
            self.flush(&mut self.state.borrow_mut().outgoing, false)?;
            let packet = self.read_packet()?;
            let (of, reply) = Reply::parse(packet).ok_or_else(|| self.protocol_error())?;
            // A server can send file data and names of a folder in tiny portions.
            if !matches!(reply, Reply::Data(_) | Reply::Names(_)) {
                self.connection.restart_progress();
            }
            let state = &mut *self.state.borrow_mut();
            // Replies to unknown requests would fill the memory.
            let is_wanted = state.unanswered.remove(&of).ok_or_else(|| self.protocol_error())?;
            if of == number {
                return Ok(reply);
            }
            if is_wanted {
                state.early_bytes += reply.data_bytes();
                if state.early_bytes > EARLY_BYTES {
                    return Err(self.protocol_error());
                }
                state.early.insert(of, reply);
            }
        }
    }

    /// Sends a request and waits for its reply. A refusal is returned as an error.
    pub(crate) fn ask(&self, call: PacketType, parts: &[Field<'_>]) -> std::result::Result<Reply, SftpFault> {
        let sent = self.send(call, parts)?;
        self.answer(sent)
    }

    /// Waits for a reply. A refusal is returned as an error.
    pub(crate) fn answer(&self, sent: Sent) -> std::result::Result<Reply, SftpFault> {
        match self.receive(sent)? {
            Reply::Refused(refusal) => Err(SftpFault::Refused(refusal)),
            reply => Ok(reply),
        }
    }

    /// Returns the error for an invalid reply. The connection is shut down.
    pub(crate) fn protocol_error(&self) -> Error {
        self.fault("it does not speak SFTP")
    }

    /// Returns the error for a fault of the channel, and shuts the connection down.
    fn fault(&self, reason: &str) -> Error {
        let lost = self.connection.lost(reason);
        match self.extensions.get() {
            Some(_) => lost,
            // Before the handshake: a server with a different forced command prints its output and closes the channel.
            None => Error::NoSftp {
                server: self.connection.server().to_owned(),
                user: self.user.clone(),
                reason: reason.to_owned(),
            },
        }
    }

    fn read_packet(&self) -> Result<Vec<u8>> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST_PACKET {
            return Err(self.protocol_error());
        }
        let mut packet = vec![0; length];
        self.fill(&mut packet)?;
        Ok(packet)
    }

    fn write(&self, packet: &[u8], is_progress: bool) -> Result<()> {
        let mut rest = packet;
        while !rest.is_empty() {
            match self.transfer(|channel| channel.write(rest))? {
                0 => return Err(self.fault("it accepts no more data")),
                sent => {
                    rest = &rest[sent..];
                    self.connection.moved(if is_progress { sent } else { 0 });
                }
            }
        }
        Ok(())
    }

    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.transfer(|channel| channel.read(&mut bytes[filled..]))? {
                0 => return Err(self.fault("it closed the channel")),
                read => {
                    filled += read;
                    self.connection.moved(read);
                }
            }
        }
        Ok(())
    }

    fn transfer(&self, mut call: impl FnMut(&mut ssh2::Stream) -> io::Result<usize>) -> Result<usize> {
        let mut stream = self.channel.stream(0);
        let attempt = || {
            call(&mut stream).map_err(|error| match error.kind() {
                ErrorKind::WouldBlock => ssh2::Error::from_errno(ErrorCode::Session(-37)),
                _ => ssh2::Error::last_session_error(self.connection.session()).unwrap_or_else(ssh2::Error::unknown),
            })
        };
        // A peer that is not an SFTP server may answer keep-alives and nothing else, so the connect timeout applies
        // first.
        let answer = match self.extensions.get() {
            None => self.connection.step(attempt)?,
            Some(_) => self.connection.call(attempt)?,
        };
        answer.map_err(|error| self.fault(error.message()))
    }
}

/// Appends a request, except for a long text at its end, which is returned to be sent without copying it.
fn encode<'a>(packets: &mut Vec<u8>, call: PacketType, number: u32, parts: &[Field<'a>]) -> &'a [u8] {
    let (copied, tail) = match parts.split_last() {
        Some((Field::Text(text), before)) if text.len() > LONG_TEXT_BYTES => (before, *text),
        _ => (parts, &[][..]),
    };
    let start = packets.len();
    packets.extend_from_slice(&[0; 4]);
    packets.push(call as u8);
    packets.extend_from_slice(&number.to_be_bytes());
    for part in copied {
        match part {
            Field::Number(number) => packets.extend_from_slice(&number.to_be_bytes()),
            Field::Long(number) => packets.extend_from_slice(&number.to_be_bytes()),
            Field::Text(text) => {
                packets.extend_from_slice(&length_of(text));
                packets.extend_from_slice(text);
            }
        }
    }
    if !tail.is_empty() {
        packets.extend_from_slice(&length_of(tail));
    }
    let length = u32::try_from(packets.len() - start - 4 + tail.len()).unwrap_or(u32::MAX);
    packets[start..start + 4].copy_from_slice(&length.to_be_bytes());
    tail
}

fn length_of(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}

impl ChannelState {
    /// Allocates the number of a new request.
    fn number(&mut self, is_wanted: bool) -> u32 {
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.unanswered.insert(number, is_wanted);
        number
    }

    fn take_early(&mut self, number: u32) -> Option<Reply> {
        let reply = self.early.remove(&number)?;
        self.early_bytes -= reply.data_bytes();
        Some(reply)
    }
}

impl Reply {
    fn data_bytes(&self) -> usize {
        if let Reply::Data(data) = self { data.len() } else { 0 }
    }

    /// Parses a packet without its length. Returns the number of its request, or `None` if it is not a reply.
    pub(crate) fn parse(mut packet: Vec<u8>) -> Option<(u32, Reply)> {
        let mut fields = PacketReader(&packet);
        let (kind, number) = (fields.byte()?, fields.number()?);
        let reply = match kind {
            101 => match fields.number()? {
                0 => Reply::Done,
                1 => Reply::End,
                // Old servers omit the message.
                code => Reply::Refused(SftpStatus::of_status(
                    code,
                    &String::from_utf8_lossy(fields.text().unwrap_or_default()),
                )),
            },
            102 => Reply::Handle(fields.text()?.to_vec()),
            103 => {
                let length = fields.text()?.len();
                packet.truncate(9 + length);
                packet.drain(..9);
                Reply::Data(packet)
            }
            104 => {
                let count = fields.number()?;
                let mut entries = Vec::new();
                for _ in 0..count {
                    let name = String::from_utf8(fields.text()?.to_vec());
                    // The line that `ls -l` would print.
                    fields.text()?;
                    let stat = fields.stat()?;
                    // Names in a repository are hexadecimal, so a name that is not UTF-8 belongs to no file of it.
                    entries.extend(name.ok().map(|name| (name, stat)));
                }
                Reply::Names(ListedNames { entries, packet_bytes: packet.len() })
            }
            105 => Reply::Stat(fields.stat()?),
            201 => Reply::Extended(fields.0.to_vec()),
            _ => return None,
        };
        Some((number, reply))
    }
}

/// Reads the fields of a packet in order.
pub(crate) struct PacketReader<'a>(pub(crate) &'a [u8]);

impl<'a> PacketReader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// Reads a 32-bit number.
    pub(crate) fn number(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// Reads a 64-bit number.
    pub(crate) fn long(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length as usize)
    }

    fn stat(&mut self) -> Option<Stat> {
        let (size, owner, permissions, times, extended) = (1, 2, 4, 8, 1 << 31);
        let flags = self.number()?;
        let mut stat = Stat::default();
        if flags & size != 0 {
            stat.size_bytes = self.long()?;
        }
        if flags & owner != 0 {
            self.long()?;
        }
        if flags & permissions != 0 {
            stat.is_folder = self.number()? & 0o170_000 == 0o040_000;
        }
        if flags & times != 0 {
            self.number()?;
            stat.modified = Some(self.number()?.into());
        }
        if flags & extended != 0 {
            for _ in 0..self.number()? {
                self.text()?;
                self.text()?;
            }
        }
        Some(stat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&length_of(text.as_bytes())[..], text.as_bytes()].concat()
    }

    #[test]
    fn request_is_encoded_completely_with_long_text_anywhere() {
        let long = vec![7; LONG_TEXT_BYTES + 1];
        let middle = [Field::Text(b"handle"), Field::Text(&long), Field::Long(1)];
        let last = [Field::Long(1), Field::Text(b"handle"), Field::Text(&long)];
        for (parts, uncopied) in [(middle, 0), (last, long.len())] {
            let before = b"the request before";
            let mut packets = before.to_vec();
            let tail = encode(&mut packets, PacketType::Write, 5, &parts);
            assert_eq!(tail.len(), uncopied);
            packets.extend_from_slice(tail);
            let packet = packets.strip_prefix(before).expect("what was collected before");
            let mut fields = PacketReader(packet);
            assert_eq!(fields.number().unwrap() as usize, packet.len() - 4);
            assert_eq!((fields.byte(), fields.number()), (Some(PacketType::Write as u8), Some(5)));
            for part in parts {
                match part {
                    Field::Number(number) => assert_eq!(fields.number(), Some(number)),
                    Field::Long(number) => assert_eq!(fields.long(), Some(number)),
                    Field::Text(text) => assert!(fields.text() == Some(text)),
                }
            }
            assert!(fields.0.is_empty());
        }
    }

    #[test]
    fn replies_are_parsed_and_truncated_ones_refused() {
        let names = [
            &[104, 0, 0, 0, 7, 0, 0, 0, 2][..],
            &text("a"),
            &text("-rw------- a"),
            &[0, 0, 0, 0x0d],
            &9u64.to_be_bytes(),
            &0o100_600u32.to_be_bytes(),
            &[0, 0, 0, 1, 0, 0, 0, 2],
            &text("b"),
            &text("drwx------ b"),
            &[0x80, 0, 0, 4],
            &0o040_700u32.to_be_bytes(),
            &[0, 0, 0, 1],
            &text("more@example.com"),
            &text("x"),
        ]
        .concat();
        let (number, reply) = Reply::parse(names.clone()).unwrap();
        let Reply::Names(found) = reply else { panic!("{reply:?}") };
        let file = Stat { size_bytes: 9, is_folder: false, modified: Some(2) };
        let folder = Stat { is_folder: true, ..Stat::default() };
        assert_eq!((number, found.entries), (7, vec![("a".to_owned(), file), ("b".to_owned(), folder)]));
        for length in 0..names.len() {
            assert!(Reply::parse(names[..length].to_vec()).is_none(), "{length} bytes");
        }
        let data = [&[103, 0, 0, 0, 1][..], &text("bytes"), b"more"].concat();
        assert!(matches!(Reply::parse(data).unwrap(), (1, Reply::Data(bytes)) if bytes == b"bytes"));
        assert!(Reply::parse(vec![103, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_none(), "a length beyond the packet");
        assert!(Reply::parse(vec![77, 0, 0, 0, 1]).is_none(), "no reply of SFTP's");
    }

    #[test]
    fn status_codes_are_mapped_to_replies() {
        let status = |code: u8, words: &str| {
            let words = if words.is_empty() { Vec::new() } else { text(words) };
            let packet = [&[101, 0, 0, 0, 3, 0, 0, 0, code][..], &words].concat();
            Reply::parse(packet).unwrap().1
        };
        assert!(matches!(status(0, ""), Reply::Done));
        assert!(matches!(status(1, "End of file"), Reply::End));
        for (code, words, wanted) in [
            (2, "No such file", SftpStatus::NotFound),
            (3, "Permission denied", SftpStatus::Permission),
            (8, "Operation unsupported", SftpStatus::Unsupported),
            (14, "", SftpStatus::NoSpace),
            (4, "No space left on device", SftpStatus::NoSpace),
            (15, "", SftpStatus::Quota),
            (4, "Disk quota exceeded", SftpStatus::Quota),
            (4, "Failure", SftpStatus::Other("Failure".to_owned())),
            (4, "", SftpStatus::Other("failure 4".to_owned())),
        ] {
            let Reply::Refused(refusal) = status(code, words) else { panic!("{code} {words}") };
            assert_eq!(refusal, wanted, "{code} {words}");
        }
    }
}
