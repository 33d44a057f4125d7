//! The handshake of a client, up to the negotiated export: `doc/proto.md`, "Fixed newstyle negotiation".
//!
//! ```text
//! S: NBDMAGIC IHAVEOPT flags
//! C: flags
//! C: NBD_OPT_STRUCTURED_REPLY               S: ACK, or an error: then simple replies and no extents
//! C: NBD_OPT_SET_META_CONTEXT (all at once) S: META_CONTEXT for each that it has, ACK, or an error: then no extents
//! C: NBD_OPT_GO                             S: INFO … ACK, or UNSUP:
//! C:   NBD_OPT_EXPORT_NAME                  S:   size, flags, or the end of the connection
//! ```

use super::link::NbdStream;
use super::wire::{
    self, DEFAULT_MIN_BLOCK_BYTES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, INFO_BLOCK_SIZE, INFO_EXPORT,
    MAX_OPTION_REPLY_BYTES, MAX_REQUEST_BYTES, MessageReader, OLD_STYLE_MAGIC, OPT_EXPORT_NAME, OPT_GO,
    OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, OPTION_MAGIC, OPTION_REPLY_MAGIC, REP_ACK, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_ERROR_BIT, REP_INFO, REP_META_CONTEXT, Violation,
};
use super::{Error, Result};

/// The maximum number of replies to one option.
const MAX_REPLIES: usize = 256;

/// The result of the handshake.
#[derive(Debug, Clone)]
pub(super) struct NegotiatedExport {
    pub(super) size_bytes: u64,
    pub(super) flags: u16,
    /// Requests start and end at multiples of this, or at the end of the export.
    pub(super) min_block_bytes: u32,
    /// A multiple of `min_block_bytes`.
    pub(super) max_request_bytes: u32,
    pub(super) structured_replies: bool,
    pub(super) contexts: Vec<(u32, String)>,
}

/// One reply to an option.
struct OptionReply {
    kind: u32,
    payload: Vec<u8>,
}

impl OptionReply {
    fn is_error(&self) -> bool {
        self.kind & REP_ERROR_BIT != 0
    }
}

/// Performs the whole handshake, within the link's deadline.
pub(super) fn negotiate(link: &mut NbdStream, export: &str, contexts: &[String]) -> Result<NegotiatedExport> {
    let no_zeroes = greet(link)?;
    let structured_replies = negotiate_structured_replies(link)?;
    let contexts = if structured_replies && !contexts.is_empty() {
        negotiate_contexts(link, export, contexts)?
    } else {
        Vec::new()
    };
    let (size_bytes, flags, block_sizes) = match go(link, export)? {
        Some(info) => info,
        None => export_name(link, export, no_zeroes)?,
    };
    // Offsets are signed in every implementation (section "Values").
    if i64::try_from(size_bytes).is_err() {
        return Err(Violation::ExportSize(size_bytes).into());
    }
    let (min_block_bytes, max_request_bytes) = match block_sizes {
        None => (DEFAULT_MIN_BLOCK_BYTES, MAX_REQUEST_BYTES),
        Some((minimum, maximum)) => {
            if !minimum.is_power_of_two() || minimum > 65536 || maximum < minimum {
                return Err(Violation::BlockSize { minimum, maximum }.into());
            }
            (minimum, maximum.min(MAX_REQUEST_BYTES) & !(minimum - 1))
        }
    };
    Ok(NegotiatedExport { size_bytes, flags, min_block_bytes, max_request_bytes, structured_replies, contexts })
}

/// Receives the greeting and responds. Returns whether the 124 zero bytes will be omitted.
fn greet(link: &mut NbdStream) -> Result<bool> {
    let magic = u64::from_be_bytes(link.receive_array()?);
    if magic != GREETING_MAGIC {
        return Err(Violation::Greeting(magic).into());
    }
    match u64::from_be_bytes(link.receive_array()?) {
        OPTION_MAGIC => {}
        OLD_STYLE_MAGIC => return Err(Violation::OldStyle.into()),
        other => return Err(Violation::Greeting(other).into()),
    }
    let flags = u16::from_be_bytes(link.receive_array()?);
    if flags & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(Violation::OldStyle.into());
    }
    let ours = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    link.send(&u32::from(ours).to_be_bytes())?;
    Ok(ours & FLAG_NO_ZEROES != 0)
}

/// `NBD_OPT_STRUCTURED_REPLY`.
fn negotiate_structured_replies(link: &mut NbdStream) -> Result<bool> {
    link.send(&wire::encode_option(OPT_STRUCTURED_REPLY, &[]))?;
    let reply = receive_reply(link, OPT_STRUCTURED_REPLY)?;
    match reply.kind {
        REP_ACK => Ok(true),
        _ if reply.is_error() => Ok(false),
        other => Err(unexpected(OPT_STRUCTURED_REPLY, other)),
    }
}

/// `NBD_OPT_SET_META_CONTEXT`. Returns the contexts that the export has.
fn negotiate_contexts(link: &mut NbdStream, export: &str, wanted: &[String]) -> Result<Vec<(u32, String)>> {
    link.send(&wire::encode_set_meta_context(export, wanted))?;
    let mut contexts: Vec<(u32, String)> = Vec::new();
    for _ in 0..MAX_REPLIES {
        let reply = receive_reply(link, OPT_SET_META_CONTEXT)?;
        match reply.kind {
            REP_ACK => return Ok(contexts),
            REP_META_CONTEXT => {
                let mut fields = MessageReader::new("a metadata context", &reply.payload);
                let id = fields.u32()?;
                let name = String::from_utf8_lossy(fields.rest()).into_owned();
                let known = |(other, known): &(u32, String)| *other == id || *known == name;
                if !wanted.contains(&name) || contexts.iter().any(known) {
                    return Err(Violation::Context(id).into());
                }
                contexts.push((id, name));
            }
            REP_ERR_UNKNOWN => return Err(no_such_export(export, &reply)),
            // No context was selected, but the export may be usable.
            _ if reply.is_error() => return Ok(Vec::new()),
            other => return Err(unexpected(OPT_SET_META_CONTEXT, other)),
        }
    }
    Err(Violation::EndlessOption(OPT_SET_META_CONTEXT).into())
}

/// Size, transmission flags, minimum and maximum block size.
type ExportInfo = (u64, u16, Option<(u32, u32)>);

/// `NBD_OPT_GO`. Returns `None` if the server does not support it.
fn go(link: &mut NbdStream, export: &str) -> Result<Option<ExportInfo>> {
    link.send(&wire::encode_go(export))?;
    let mut size_and_flags = None;
    let mut block_sizes = None;
    for _ in 0..MAX_REPLIES {
        let reply = receive_reply(link, OPT_GO)?;
        match reply.kind {
            REP_ACK => {
                let (size_bytes, flags) = size_and_flags.ok_or(Violation::NoExportInfo)?;
                return Ok(Some((size_bytes, flags, block_sizes)));
            }
            REP_INFO => {
                let mut fields = MessageReader::new("an export's information", &reply.payload);
                match fields.u16()? {
                    INFO_EXPORT => {
                        size_and_flags = Some((fields.u64()?, fields.u16()?));
                        fields.end()?;
                    }
                    INFO_BLOCK_SIZE => {
                        let minimum = fields.u32()?;
                        let _preferred = fields.u32()?;
                        block_sizes = Some((minimum, fields.u32()?));
                        fields.end()?;
                    }
                    // "Clients SHOULD ignore" information that they do not know.
                    _ => {}
                }
            }
            REP_ERR_UNSUP => return Ok(None),
            REP_ERR_UNKNOWN => return Err(no_such_export(export, &reply)),
            kind if reply.is_error() => {
                return Err(Error::Negotiation { reply: kind, message: wire::printable(&reply.payload) });
            }
            other => return Err(unexpected(OPT_GO, other)),
        }
    }
    Err(Violation::EndlessOption(OPT_GO).into())
}

/// `NBD_OPT_EXPORT_NAME`, for servers from before 2016. On a refusal the server closes the connection.
fn export_name(link: &mut NbdStream, export: &str, no_zeroes: bool) -> Result<ExportInfo> {
    link.send(&wire::encode_option(OPT_EXPORT_NAME, export.as_bytes()))?;
    let size_bytes = match link.receive_array() {
        Err(Error::Disconnected) => {
            return Err(Error::NoSuchExport { export: export.to_owned(), message: String::new() });
        }
        other => u64::from_be_bytes(other?),
    };
    let flags = u16::from_be_bytes(link.receive_array()?);
    if !no_zeroes {
        link.receive_array::<124>()?;
    }
    Ok((size_bytes, flags, None))
}

/// "Fixed newstyle negotiation": receives one reply to the option that is being negotiated.
fn receive_reply(link: &mut NbdStream, option: u32) -> Result<OptionReply> {
    let header: [u8; 20] = link.receive_array()?;
    let mut fields = MessageReader::new("an option reply's header", &header);
    let magic = fields.u64()?;
    let answered = fields.u32()?;
    let kind = fields.u32()?;
    let length = fields.u32()?;
    if magic != OPTION_REPLY_MAGIC {
        return Err(Violation::OptionMagic(magic).into());
    }
    if answered != option {
        return Err(Violation::OptionMismatch { asked: option, answered }.into());
    }
    if length > MAX_OPTION_REPLY_BYTES {
        return Err(Violation::Length { what: "the reply to an option", length: length.into() }.into());
    }
    let mut payload = vec![0; length as usize];
    link.receive(&mut payload)?;
    Ok(OptionReply { kind, payload })
}

fn unexpected(option: u32, reply: u32) -> Error {
    Violation::OptionReply { option, reply }.into()
}

fn no_such_export(export: &str, reply: &OptionReply) -> Error {
    Error::NoSuchExport { export: export.to_owned(), message: wire::printable(&reply.payload) }
}
