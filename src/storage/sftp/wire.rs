//! SFTP, version 3: requests and replies, as many of them on the way as the caller likes.
//!
//! libssh2 has an SFTP of its own. It waits for the reply to each request before it sends the next one, writes and
//! reads excepted; over a distance that is what takes the time. It also copies what it writes, and lacks
//! `posix-rename@openssh.com`. So kvmb has from libssh2 the channel, and speaks SFTP itself:
//!
//! | packet | is |
//! | --- | --- |
//! | request | length, [`PacketType`], number, [`Field`]s |
//! | reply | length, kind, number of the request, what [`Reply`] holds |
//!
//! A server may answer in any order; here every reply finds its request. Requests are collected until somebody waits
//! for a reply, and go out together: what does not depend on each other takes one round trip.

use super::connection::Connection;
use super::{Error, Result, SftpFault, SftpStatus, SshTarget};
use ssh2::{Channel, ErrorCode, ExtendedData};
use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, Read, Write};

/// What a request may ask for.
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

/// No packet of a server's is longer: the longest are answers to reads, which are never asked for more than 255 KiB.
const LONGEST_PACKET: usize = 256 << 10;

/// The number of bytes that the server may send before it waits.
const WINDOW_BYTES: u32 = 4 << 20;

/// A last part that is longer is sent from where it is: to copy it would cost more than the short SSH packet before it.
const LONG_TEXT_BYTES: usize = 64 << 10;

/// The number of bytes of requests that are sent without waiting until a reply is needed.
const FULL_FLIGHT_BYTES: usize = 16 << 10;

/// As much of an SSH packet as every implementation takes.
const SSH_PACKET_BYTES: u32 = 32 << 10;

/// So many bytes may have come before they were asked for: more than a pack has, whose parts may come in any order.
const EARLY_BYTES: usize = 72 << 20;

/// What a request consists of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Field<'a> {
    /// A number of 32 bits.
    Number(u32),
    /// A number of 64 bits.
    Long(u64),
    /// A path, a handle, or bytes to write.
    Text(&'a [u8]),
}

/// A request whose reply has not been read yet.
#[must_use = "every request is answered: receive the reply, or say that nobody wants it"]
#[derive(Debug)]
pub(crate) struct Sent(u32);

/// What a server answers.
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
    /// Some of a folder's entries, or the one name that was asked for.
    Names(ListedNames),
    /// What is known of a file.
    Stat(Stat),
    /// The answer to an extension, as that defines it.
    Extended(Vec<u8>),
}

/// Names, each with what is known of it.
#[derive(Debug, Default)]
pub(crate) struct ListedNames {
    /// Those that are UTF-8.
    pub(crate) entries: Vec<(String, Stat)>,
    /// What all of them took in the packet.
    pub(crate) packet_bytes: usize,
}

/// What is known of a file or folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) size_bytes: u64,
    /// Whether it is a folder.
    pub(crate) is_folder: bool,
    /// When it was last written, in seconds since 1970, if the server says it.
    pub(crate) modified: Option<u64>,
}

/// A channel on which a server answers SFTP.
pub(crate) struct SftpChannel {
    // Before the connection, so that it is closed first.
    channel: Channel,
    connection: Connection,
    user: String,
    /// What the server can do beyond version 3; known when the versions are exchanged.
    extensions: OnceCell<HashSet<String>>,
    state: RefCell<ChannelState>,
}

#[derive(Debug, Default)]
struct ChannelState {
    /// The number of the next request.
    next: u32,
    /// Requests that have not gone out yet.
    outgoing: Vec<u8>,
    /// Requests that nobody waits for: they go out with the next one that somebody does.
    deferred: Vec<u8>,
    /// Requests that are not answered yet, and whether anybody wants the reply.
    unanswered: HashMap<u32, bool>,
    /// Replies that came before they were asked for.
    early: HashMap<u32, Reply>,
    /// The bytes of files in these.
    early_bytes: usize,
}

impl SftpChannel {
    /// Starts SFTP on a connection that is logged in.
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

    /// The versions are exchanged; the answer is what the server can do besides.
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

    /// Whether the server has this extension.
    pub(crate) fn has(&self, extension: &str) -> bool {
        self.extensions.get().is_some_and(|extensions| extensions.contains(extension))
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a request; the reply is to be received later. It goes out at once only if it writes, for that is to happen
    /// when it may; all others go out when a reply is waited for.
    pub(crate) fn send(&self, call: PacketType, parts: &[Field<'_>]) -> Result<Sent> {
        let state = &mut *self.state.borrow_mut();
        let number = state.number(true);
        state.outgoing.append(&mut state.deferred);
        let tail = encode(&mut state.outgoing, call, number, parts);
        // Asking again and again for single bytes is no progress.
        let is_progress = call == PacketType::Write;
        if is_progress || !tail.is_empty() || state.outgoing.len() >= FULL_FLIGHT_BYTES {
            self.flush(&mut state.outgoing, is_progress)?;
            self.write(tail, is_progress)?;
        }
        Ok(Sent(number))
    }

    /// Sends a request that nobody waits for with the next one that somebody waits for.
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

    /// The reply to a request. The outer error means that the connection is gone.
    pub(crate) fn receive(&self, sent: Sent) -> Result<Reply> {
        let Sent(number) = sent;
        loop {
            if let Some(reply) = self.state.borrow_mut().take_early(number) {
                return Ok(reply);
            }
            self.flush(&mut self.state.borrow_mut().outgoing, false)?;
            let packet = self.read_packet()?;
            let (of, reply) = Reply::parse(packet).ok_or_else(|| self.protocol_error())?;
            // Bytes of a file and names of a folder can be handed out one by one.
            if !matches!(reply, Reply::Data(_) | Reply::Names(_)) {
                self.connection.restart_progress();
            }
            let state = &mut *self.state.borrow_mut();
            // Answers to what nobody asked would fill the memory.
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

    /// A request, and the wait for its reply; a refusal is an error.
    pub(crate) fn ask(&self, call: PacketType, parts: &[Field<'_>]) -> std::result::Result<Reply, SftpFault> {
        let sent = self.send(call, parts)?;
        self.answer(sent)
    }

    /// The reply; a refusal is an error.
    pub(crate) fn answer(&self, sent: Sent) -> std::result::Result<Reply, SftpFault> {
        match self.receive(sent)? {
            Reply::Refused(refusal) => Err(SftpFault::Refused(refusal)),
            reply => Ok(reply),
        }
    }

    /// What is said about a reply that makes no sense. The connection is cut.
    pub(crate) fn protocol_error(&self) -> Error {
        self.fault("it does not speak SFTP")
    }

    /// What is wrong with the channel of a connection that is not lost. The connection is cut.
    fn fault(&self, reason: &str) -> Error {
        let lost = self.connection.lost(reason);
        match self.extensions.get() {
            Some(_) => lost,
            // A server whose forced command is something else talks, and hangs up.
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
        // What is no SFTP server may answer keep-alives and nothing else.
        let answer = match self.extensions.get() {
            None => self.connection.step(attempt)?,
            Some(_) => self.connection.call(attempt)?,
        };
        answer.map_err(|error| self.fault(error.message()))
    }
}

/// Appends a request, all but a long text at its end: that is returned, to be sent from where it is.
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
    /// The number of a new request.
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

    /// A packet without its length, with the number of its request; none if it is no reply.
    pub(crate) fn parse(mut packet: Vec<u8>) -> Option<(u32, Reply)> {
        let mut fields = PacketReader(&packet);
        let (kind, number) = (fields.byte()?, fields.number()?);
        let reply = match kind {
            101 => match fields.number()? {
                0 => Reply::Done,
                1 => Reply::End,
                // Old servers leave the words out.
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
                    // What 'ls -l' would say.
                    fields.text()?;
                    let stat = fields.stat()?;
                    // Ours are hexadecimal: another name is no file of a repository.
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

/// The fields of a packet, from the front.
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

    /// A number of 32 bits.
    pub(crate) fn number(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A number of 64 bits.
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
    fn a_request_is_whole_wherever_its_long_text_stands() {
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
    fn replies_are_understood_and_what_is_cut_short_is_not() {
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
    fn a_status_is_an_answer() {
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
