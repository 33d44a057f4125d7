//! Numbers and layouts of the protocol: encodes the client's messages and decodes the server's, without I/O. Any input
//! results in a value or a [`Violation`].
//!
//! Everything is big-endian. Section names are those of `doc/proto.md`.

use std::fmt;

/// "Newstyle negotiation": the first eight bytes from every server.
pub(crate) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "Newstyle negotiation": announces the newstyle handshake, and begins every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// "Oldstyle negotiation": the greeting of servers from before 2011.
pub(crate) const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// "Fixed newstyle negotiation": begins every reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// "Request message".
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// "Simple reply message".
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// "Structured reply chunk message".
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// "Handshake flags": the server supports option replies.
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// "Handshake flags": the 124 zero bytes after `NBD_OPT_EXPORT_NAME` can be omitted.
pub(crate) const FLAG_NO_ZEROES: u16 = 2;

/// "Transmission flags": the other flags are valid.
pub(crate) const TRANSMISSION_HAS_FLAGS: u16 = 1;
/// "Transmission flags": writes are refused.
pub(crate) const TRANSMISSION_READ_ONLY: u16 = 1 << 1;
/// "Transmission flags": `NBD_CMD_FLUSH` is supported.
pub(crate) const TRANSMISSION_FLUSH: u16 = 1 << 2;
/// "Transmission flags": `NBD_CMD_FLAG_FUA` is supported.
pub(crate) const TRANSMISSION_FUA: u16 = 1 << 3;
/// "Transmission flags": `NBD_CMD_TRIM` is supported.
pub(crate) const TRANSMISSION_TRIM: u16 = 1 << 5;
/// "Transmission flags": `NBD_CMD_FLAG_DF` is supported.
pub(crate) const TRANSMISSION_DF: u16 = 1 << 7;
/// "Transmission flags": `NBD_CMD_CACHE` is supported.
pub(crate) const TRANSMISSION_CACHE: u16 = 1 << 10;
/// "Transmission flags": `NBD_CMD_WRITE_ZEROES` is supported.
pub(crate) const TRANSMISSION_WRITE_ZEROES: u16 = 1 << 6;
/// "Transmission flags": several connections see the same bytes.
pub(crate) const TRANSMISSION_MULTI_CONN: u16 = 1 << 8;

/// "Option types".
pub const OPT_EXPORT_NAME: u32 = 1;
/// "Option types".
pub(crate) const OPT_ABORT: u32 = 2;
/// "Option types".
pub(crate) const OPT_LIST: u32 = 3;
/// "Option types".
pub(crate) const OPT_INFO: u32 = 6;
/// "Option types".
pub(crate) const OPT_GO: u32 = 7;
/// "Option types".
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// "Option types".
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
/// "Option types".
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;

/// "Option reply types".
pub(crate) const REP_ACK: u32 = 1;
/// "Option reply types": an export in a list.
pub(crate) const REP_SERVER: u32 = 2;
/// "Option reply types".
pub(crate) const REP_INFO: u32 = 3;
/// "Option reply types".
pub(crate) const REP_META_CONTEXT: u32 = 4;
/// "Option reply types": this bit makes a reply an error.
pub(crate) const REP_ERROR_BIT: u32 = 1 << 31;
/// "Option reply types": the option is not supported.
pub(crate) const REP_ERR_UNSUP: u32 = REP_ERROR_BIT | 1;
/// "Option reply types": the option's data is invalid.
pub(crate) const REP_ERR_INVALID: u32 = REP_ERROR_BIT | 3;
/// "Option reply types": there is no such export.
pub(crate) const REP_ERR_UNKNOWN: u32 = REP_ERROR_BIT | 6;

/// `NBD_OPT_GO`: size and transmission flags.
pub(crate) const INFO_EXPORT: u16 = 0;
/// `NBD_OPT_GO`: the export's name.
pub(crate) const INFO_NAME: u16 = 1;
/// `NBD_OPT_GO`: a description of the export.
pub(crate) const INFO_DESCRIPTION: u16 = 2;
/// `NBD_OPT_GO`: minimum, preferred and maximum block size.
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

/// "Command flags": reply only when the data is durable.
pub(crate) const CMD_FLAG_FUA: u16 = 1;
/// "Command flags": allocate space for the zeros.
pub(crate) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// "Command flags": do not split the reply.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// "Command flags": return only one extent.
pub(crate) const CMD_FLAG_REQ_ONE: u16 = 1 << 3;

/// "Structured reply flags": the last chunk of a reply.
pub(crate) const REPLY_FLAG_DONE: u16 = 1;
/// "Structured reply types".
pub(crate) const REPLY_NONE: u16 = 0;
/// "Structured reply types".
pub const REPLY_OFFSET_DATA: u16 = 1;
/// "Structured reply types".
pub(crate) const REPLY_OFFSET_HOLE: u16 = 2;
/// "Structured reply types".
pub(crate) const REPLY_BLOCK_STATUS: u16 = 5;
/// "Structured reply types": this bit makes a chunk an error.
pub(crate) const REPLY_ERROR_BIT: u16 = 1 << 15;
/// "Structured reply types": the whole request failed.
pub const REPLY_ERROR: u16 = REPLY_ERROR_BIT | 1;
/// "Structured reply types": the request failed at an offset.
pub(crate) const REPLY_ERROR_OFFSET: u16 = REPLY_ERROR_BIT | 2;

/// "`base:allocation` metadata context": not allocated.
pub(crate) const STATE_HOLE: u32 = 1;
/// "`base:allocation` metadata context": reads as zeros.
pub(crate) const STATE_ZERO: u32 = 1 << 1;
/// QEMU's `doc/interop/nbd.rst`, "qemu:dirty-bitmap": written to since the bitmap was created.
pub(crate) const STATE_DIRTY: u32 = 1;

/// The context for allocation and zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// "Values": the maximum length of strings.
pub(crate) const MAX_STRING_BYTES: usize = 4096;
/// The maximum length of a reply to an option.
pub(crate) const MAX_OPTION_REPLY_BYTES: u32 = 16 * 1024;
/// The maximum length of a list of extents (QEMU limits its lists to 1 MiB, nbdkit to 2²⁰ extents).
pub(crate) const MAX_STATUS_REPLY_BYTES: u32 = 8 * 1024 * 1024 + 4;
/// "Block size constraints": the maximum request size, unless the server states a smaller one.
pub(crate) const MAX_REQUEST_BYTES: u32 = 32 * 1024 * 1024;
/// "Block size constraints": the alignment if the server does not state a smaller one.
pub(crate) const DEFAULT_MIN_BLOCK_BYTES: u32 = 512;

/// `EPERM` of "Error values".
pub const EPERM: u32 = 1;
/// `EIO` of "Error values".
pub const EIO: u32 = 5;
/// `ENOSPC` of "Error values".
pub(crate) const ENOSPC: u32 = 28;
/// `EOVERFLOW` of "Error values".
pub(crate) const EOVERFLOW: u32 = 75;
/// `ESHUTDOWN` of "Error values": the server is shutting down.
pub(crate) const ESHUTDOWN: u32 = 108;
/// `EINVAL` of "Error values".
pub const EINVAL: u32 = 22;

/// How a server or client violated the protocol. The connection cannot be trusted afterwards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The greeting is not NBD.
    #[error("it greets with {0:#018x}: this is no NBD server")]
    Greeting(u64),
    /// The server is from before 2011.
    #[error("it speaks only the old handshake")]
    OldStyle,
    /// A reply to an option has a wrong magic number.
    #[error("the reply to an option begins with {0:#018x}")]
    OptionMagic(u64),
    /// A reply to an option that was not sent.
    #[error("option {asked} is answered with option {answered}")]
    OptionMismatch {
        /// The option that was sent.
        asked: u32,
        /// The option in the reply.
        answered: u32,
    },
    /// A reply type that is invalid for this option.
    #[error("option {option} is answered with the reply {reply:#x}")]
    OptionReply {
        /// The option that was sent.
        option: u32,
        /// The reply's type.
        reply: u32,
    },
    /// An endless sequence of replies to one option.
    #[error("it does not stop to answer option {0}")]
    EndlessOption(u32),
    /// An invalid length.
    #[error("{what} of {length} bytes")]
    Length {
        /// The message or field.
        what: &'static str,
        /// Its length.
        length: u64,
    },
    /// `NBD_OPT_GO` succeeded without `NBD_INFO_EXPORT`.
    #[error("it does not say how large the export is")]
    NoExportInfo,
    /// An export of more than 2⁶³-1 bytes.
    #[error("an export of {0} bytes")]
    ExportSize(u64),
    /// Block sizes that violate "Block size constraints".
    #[error("block sizes of minimum {minimum} and maximum {maximum} bytes")]
    BlockSize {
        /// The minimum.
        minimum: u32,
        /// The maximum.
        maximum: u32,
    },
    /// A metadata context that was not requested, or that was sent twice.
    #[error("an unexpected metadata context {0}")]
    Context(u32),
    /// A reply has a wrong magic number.
    #[error("a reply begins with {0:#010x}")]
    ReplyMagic(u32),
    /// A request has a wrong magic number.
    #[error("a request begins with {0:#010x}")]
    RequestMagic(u32),
    /// A client sent handshake flags that were not offered.
    #[error("the greeting is answered with the flags {0:#010x}")]
    ClientFlags(u32),
    /// A reply to a request that is not in flight.
    #[error("a reply to request {0}, which is not under way")]
    Cookie(u64),
    /// A simple reply where a structured one is required.
    #[error("a simple reply to {0}")]
    SimpleReply(RequestType),
    /// A chunk type that is invalid for this request, or requires structured replies.
    #[error("a chunk of type {kind:#06x} in the reply to {command}")]
    ChunkType {
        /// The type of the request.
        command: RequestType,
        /// The chunk's type.
        kind: u16,
    },
    /// An error without an error number, or with a wrong flag.
    #[error("an error without a number")]
    NoError,
    /// A chunk is outside of the requested range.
    #[error("a chunk of {length} bytes at offset {offset} is outside of the request")]
    OutOfBounds {
        /// The offset of the chunk.
        offset: u64,
        /// The length of the chunk.
        length: u64,
    },
    /// A byte was sent twice.
    #[error("a chunk of {length} bytes at offset {offset} overlaps an earlier one")]
    Overlap {
        /// The offset of the chunk.
        offset: u64,
        /// The length of the chunk.
        length: u64,
    },
    /// A reply in more pieces than an honest server sends.
    #[error("a reply in too many pieces")]
    Shattered,
    /// The reply is incomplete.
    #[error("a reply without {missing} of its bytes, and without an error")]
    Incomplete {
        /// The number of missing bytes.
        missing: u64,
    },
    /// A list of extents that is empty, contains an empty extent, or extends beyond the requested range.
    #[error("an impossible list of extents at offset {offset}")]
    Extents {
        /// The start of the requested range.
        offset: u64,
    },
    /// Extents that do not cover the disk without gaps or overlaps.
    #[error("the map of the disk does not go on at offset {offset}")]
    Map {
        /// The offset of the gap or overlap.
        offset: u64,
    },
    /// Two connections to the same export report different sizes.
    #[error("the export has {first} bytes on one connection and {second} on another")]
    SizeChanged {
        /// The size on the first connection.
        first: u64,
        /// The size on the other connection.
        second: u64,
    },
}

/// "Request types": the requests that the client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RequestType {
    /// `NBD_CMD_READ`
    Read = 0,
    /// `NBD_CMD_WRITE`
    Write = 1,
    /// `NBD_CMD_DISC`
    Disconnect = 2,
    /// `NBD_CMD_FLUSH`
    Flush = 3,
    /// `NBD_CMD_WRITE_ZEROES`
    WriteZeroes = 6,
    /// `NBD_CMD_BLOCK_STATUS`
    BlockStatus = 7,
}

impl fmt::Display for RequestType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RequestType::Read => "read",
            RequestType::Write => "write",
            RequestType::Disconnect => "disconnect",
            RequestType::Flush => "flush",
            RequestType::WriteZeroes => "write zeroes",
            RequestType::BlockStatus => "map",
        })
    }
}

/// An extent of an `NBD_CMD_BLOCK_STATUS` reply, in disk order. It starts where the previous one ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusExtent {
    /// The length in bytes, never 0.
    pub length: u32,
    /// The flags of the context: [`STATE_ZERO`], [`STATE_DIRTY`] …
    pub flags: u32,
}

/// An error reported by a reply or chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ErrorReply {
    /// The error number, never 0.
    pub(crate) error: u32,
    /// The server's message, made safe to print.
    pub(crate) message: String,
}

/// The header of a structured reply chunk, after the magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkHeader {
    /// [`REPLY_FLAG_DONE`].
    pub(crate) flags: u16,
    /// `NBD_REPLY_TYPE_…`.
    pub(crate) kind: u16,
    /// The cookie of the request.
    pub(crate) cookie: u64,
    /// The length of the payload that follows.
    pub(crate) length: u32,
}

impl ChunkHeader {
    /// "Structured reply chunk message", without the magic.
    pub(crate) fn decode(bytes: [u8; 16]) -> Result<ChunkHeader, Violation> {
        let mut fields = MessageReader::new("a chunk's header", &bytes);
        Ok(ChunkHeader { flags: fields.u16()?, kind: fields.u16()?, cookie: fields.u64()?, length: fields.u32()? })
    }

    /// Returns whether this is the last chunk of the reply.
    pub(crate) fn is_done(&self) -> bool {
        self.flags & REPLY_FLAG_DONE != 0
    }

    /// Returns whether this chunk is an error.
    pub(crate) fn is_error(&self) -> bool {
        self.kind & REPLY_ERROR_BIT != 0
    }
}

/// "Request message".
pub fn encode_request(command: RequestType, flags: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// "Fixed newstyle negotiation": an option and its data.
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&length_field(data).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// `NBD_OPT_GO`: the export's name and the requested information.
pub(crate) fn encode_go(export: &str) -> Vec<u8> {
    let mut data = Vec::new();
    push_string(&mut data, export);
    data.extend_from_slice(&1u16.to_be_bytes());
    data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    encode_option(OPT_GO, &data)
}

/// `NBD_OPT_SET_META_CONTEXT`: the export's name and all contexts at once.
pub(crate) fn encode_set_meta_context(export: &str, contexts: &[String]) -> Vec<u8> {
    let mut data = Vec::new();
    push_string(&mut data, export);
    data.extend_from_slice(&u32::try_from(contexts.len()).unwrap_or(u32::MAX).to_be_bytes());
    for context in contexts {
        push_string(&mut data, context);
    }
    encode_option(OPT_SET_META_CONTEXT, &data)
}

fn push_string(data: &mut Vec<u8>, text: &str) {
    data.extend_from_slice(&length_field(text.as_bytes()).to_be_bytes());
    data.extend_from_slice(text.as_bytes());
}

/// Never saturates in practice: all data that is sent is limited to about [`MAX_STRING_BYTES`].
fn length_field(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// `NBD_REPLY_TYPE_ERROR`, `NBD_REPLY_TYPE_ERROR_OFFSET` and future error chunks, which all begin alike.
pub(crate) fn decode_error_chunk(payload: &[u8]) -> Result<ErrorReply, Violation> {
    let mut fields = MessageReader::new("an error chunk", payload);
    let error = fields.u32()?;
    let message_bytes = fields.u16()?;
    let message = fields.take(usize::from(message_bytes))?;
    if error == 0 {
        return Err(Violation::NoError);
    }
    Ok(ErrorReply { error, message: printable(message) })
}

/// `NBD_REPLY_TYPE_BLOCK_STATUS`: the context's id and its extents. `length` is the requested length from `offset`.
pub(crate) fn decode_block_status(
    payload: &[u8],
    offset: u64,
    length: u32,
) -> Result<(u32, Vec<StatusExtent>), Violation> {
    let mut fields = MessageReader::new("a list of extents", payload);
    let context = fields.u32()?;
    let (pairs, rest) = fields.rest().as_chunks::<8>();
    if pairs.is_empty() || !rest.is_empty() {
        return Err(Violation::Extents { offset });
    }
    let mut extents = Vec::with_capacity(pairs.len());
    let mut left = u64::from(length);
    for (position, pair) in pairs.iter().enumerate() {
        let mut pair = MessageReader::new("an extent", pair);
        let mut extent = StatusExtent { length: pair.u32()?, flags: pair.u32()? };
        let is_last = position + 1 == pairs.len();
        let too_long = u64::from(extent.length) > left && !is_last;
        if extent.length == 0 || left == 0 || too_long {
            return Err(Violation::Extents { offset });
        }
        // Only the last extent may exceed the remaining length, which is at most `length`.
        extent.length = extent.length.min(u32::try_from(left).unwrap_or(u32::MAX));
        left -= u64::from(extent.length);
        extents.push(extent);
    }
    Ok((context, extents))
}

/// Makes a message of the server safe to print on a terminal: it is not trusted.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_STRING_BYTES)])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Describes an error of "Error values".
pub(crate) fn error_name(error: u32) -> String {
    match error {
        EPERM => "operation not permitted".to_owned(),
        EIO => "input/output error".to_owned(),
        12 => "out of memory".to_owned(),
        EINVAL => "invalid argument".to_owned(),
        ENOSPC => "no space left".to_owned(),
        EOVERFLOW => "value too large".to_owned(),
        95 => "not supported".to_owned(),
        ESHUTDOWN => "the server is shutting down".to_owned(),
        other => format!("error {other}"),
    }
}

/// Describes an error of "Option reply types".
pub(crate) fn option_error_name(reply: u32) -> String {
    match reply & !REP_ERROR_BIT {
        1 => "the option is not supported".to_owned(),
        2 => "forbidden by its policy".to_owned(),
        3 => "invalid request".to_owned(),
        4 => "not supported on its platform".to_owned(),
        5 => "it wants TLS".to_owned(),
        6 => "unknown export".to_owned(),
        7 => "it is shutting down".to_owned(),
        8 => "it wants its block sizes to be honoured".to_owned(),
        9 => "the request is too big".to_owned(),
        10 => "it wants extended headers".to_owned(),
        other => format!("error {other}"),
    }
}

/// Reads the fields of a message in order.
#[derive(Debug)]
pub(crate) struct MessageReader<'a> {
    what: &'static str,
    whole: usize,
    bytes: &'a [u8],
}

impl<'a> MessageReader<'a> {
    /// `what` is the name of the message in errors about its length.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> MessageReader<'a> {
        MessageReader { what, whole: bytes.len(), bytes }
    }

    /// Returns the next `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Violation> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or_else(|| self.wrong_length())?;
        self.bytes = tail;
        Ok(head)
    }

    /// Returns all remaining bytes.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// Fails if there are remaining bytes.
    pub(crate) fn end(self) -> Result<(), Violation> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.wrong_length()) }
    }

    /// Reads a 16-bit number.
    pub(crate) fn u16(&mut self) -> Result<u16, Violation> {
        self.array().map(u16::from_be_bytes)
    }

    /// Reads a 32-bit number.
    pub(crate) fn u32(&mut self) -> Result<u32, Violation> {
        self.array().map(u32::from_be_bytes)
    }

    /// Reads a 64-bit number.
    pub(crate) fn u64(&mut self) -> Result<u64, Violation> {
        self.array().map(u64::from_be_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let (head, tail) = self.bytes.split_first_chunk().ok_or_else(|| self.wrong_length())?;
        self.bytes = tail;
        Ok(*head)
    }

    fn wrong_length(&self) -> Violation {
        Violation::Length { what: self.what, length: self.whole as u64 }
    }
}

/// The bytes of a read request that were received, as disjoint ranges in order.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// Start and end, relative to the request.
    ranges: Vec<(u32, u32)>,
}

impl Coverage {
    /// Far above what an honest server causes that splits 32 MiB into 4 KiB pages and sends every other page first.
    const MAX_RANGES: usize = 1 << 16;

    /// Adds `length` bytes at `offset`. The caller has checked that they are within the request.
    pub(crate) fn add(&mut self, offset: u32, length: u32) -> Result<(), Violation> {
        let overlap = || Violation::Overlap { offset: offset.into(), length: length.into() };
        let end = offset.checked_add(length).ok_or_else(overlap)?;
        let at = self.ranges.partition_point(|range| range.1 <= offset);
        if self.ranges.get(at).is_some_and(|next| next.0 < end) {
            return Err(overlap());
        }
        let joins_next = self.ranges.get(at).is_some_and(|next| next.0 == end);
        let joins_previous = at > 0 && self.ranges[at - 1].1 == offset;
        match (joins_previous, joins_next) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = end,
            (false, true) => self.ranges[at].0 = offset,
            (false, false) => {
                if self.ranges.len() >= Self::MAX_RANGES {
                    return Err(Violation::Shattered);
                }
                self.ranges.insert(at, (offset, end));
            }
        }
        Ok(())
    }

    /// Returns how many of `length` bytes were not received.
    pub(crate) fn missing(&self, length: u32) -> u64 {
        let covered: u64 = self.ranges.iter().map(|(begin, end)| u64::from(end - begin)).sum();
        u64::from(length).saturating_sub(covered)
    }
}
