//! The server's side of the handshake, up to the export that the client chose: `doc/proto.md`, "Fixed newstyle
//! negotiation".
//!
//! | option | answer |
//! | --- | --- |
//! | `NBD_OPT_EXPORT_NAME` | size and flags, or the connection is closed |
//! | `NBD_OPT_ABORT` | `ACK`, then the connection is closed |
//! | `NBD_OPT_LIST` | `SERVER` for each export, `ACK` |
//! | `NBD_OPT_INFO`, `NBD_OPT_GO` | `INFO` …, `ACK`; or `ERR_UNKNOWN` |
//! | `NBD_OPT_STRUCTURED_REPLY` | `ACK` |
//! | `NBD_OPT_LIST_META_CONTEXT`, `NBD_OPT_SET_META_CONTEXT` | `META_CONTEXT` for `base:allocation`, `ACK` |
//! | all others, including TLS | `ERR_UNSUP` |

use std::sync::Arc;

use super::super::link::NbdStream;
use super::super::wire::{
    self, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME,
    MessageReader, OPTION_MAGIC, REP_ACK, REP_ERR_INVALID, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT,
    REP_SERVER, Violation,
};
use super::super::{Error, Result};
use super::export::{Export, Exports};
use super::message::{decode_go, decode_meta_context, encode_option_reply};

/// The maximum length of an option's data.
const MAX_OPTION_BYTES: u32 = 64 * 1024;

/// The maximum number of options before the transmission phase.
const MAX_OPTIONS: usize = 128;

/// The id of the only context.
pub(super) const ALLOCATION_CONTEXT: u32 = 1;

/// The recommended request size.
const PREFERRED_BLOCK_BYTES: u32 = 64 * 1024;

/// The result of the handshake.
pub(super) struct Agreed {
    pub(super) export: Arc<dyn Export>,
    pub(super) structured_replies: bool,
    /// Whether `base:allocation` was chosen.
    pub(super) has_allocation: bool,
}

/// The effects of the options so far.
#[derive(Default)]
struct Settled {
    no_zeroes: bool,
    structured_replies: bool,
    /// The export whose `base:allocation` was chosen.
    allocation_of: Option<String>,
}

/// Answers options until an export is chosen. Returns `None` if the client leaves before.
pub(super) fn negotiate(link: &mut NbdStream, exports: &Exports) -> Result<Option<Agreed>> {
    let mut settled = Settled { no_zeroes: greet(link)?, ..Settled::default() };
    for _ in 0..MAX_OPTIONS {
        let Some((option, data)) = receive_option(link)? else { return Ok(None) };
        let agreed = match option {
            wire::OPT_EXPORT_NAME => return export_name(link, exports, &settled, &data),
            wire::OPT_ABORT => {
                // The client may already be gone.
                let _ = reply(link, option, REP_ACK, &[]);
                return Ok(None);
            }
            wire::OPT_LIST => list(link, exports, &data)?,
            wire::OPT_STRUCTURED_REPLY if data.is_empty() => {
                settled.structured_replies = true;
                reply(link, option, REP_ACK, &[])?;
                None
            }
            wire::OPT_STRUCTURED_REPLY => refuse(link, option, REP_ERR_INVALID, "this option has no data")?,
            wire::OPT_LIST_META_CONTEXT | wire::OPT_SET_META_CONTEXT => {
                meta_context(link, exports, &mut settled, option, &data)?
            }
            wire::OPT_INFO | wire::OPT_GO => go(link, exports, &settled, option, &data)?,
            _ => refuse(link, option, REP_ERR_UNSUP, "")?,
        };
        if agreed.is_some() {
            return Ok(agreed);
        }
    }
    Err(Violation::EndlessOption(0).into())
}

/// Exchanges greetings. Returns whether the 124 zero bytes are omitted.
fn greet(link: &mut NbdStream) -> Result<bool> {
    let mut greeting = wire::GREETING_MAGIC.to_be_bytes().to_vec();
    greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    link.send(&greeting)?;
    let flags = u32::from_be_bytes(link.receive_array()?);
    if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
        return Err(Violation::ClientFlags(flags).into());
    }
    Ok(flags & u32::from(FLAG_NO_ZEROES) != 0)
}

/// Receives the next option with its data. Returns `None` if the client is gone.
fn receive_option(link: &mut NbdStream) -> Result<Option<(u32, Vec<u8>)>> {
    let header: [u8; 16] = match link.receive_array() {
        Err(Error::Disconnected) => return Ok(None),
        header => header?,
    };
    let mut fields = MessageReader::new("an option's header", &header);
    let magic = fields.u64()?;
    if magic != OPTION_MAGIC {
        return Err(Violation::OptionMagic(magic).into());
    }
    let (option, length) = (fields.u32()?, fields.u32()?);
    if length > MAX_OPTION_BYTES {
        return Err(Violation::Length { what: "an option", length: length.into() }.into());
    }
    let mut data = vec![0; length as usize];
    link.receive(&mut data)?;
    Ok(Some((option, data)))
}

fn reply(link: &mut NbdStream, option: u32, kind: u32, payload: &[u8]) -> Result<()> {
    link.send(&encode_option_reply(option, kind, payload))
}

/// Refuses an option.
fn refuse(link: &mut NbdStream, option: u32, kind: u32, message: &str) -> Result<Option<Agreed>> {
    reply(link, option, kind, message.as_bytes())?;
    Ok(None)
}

fn list(link: &mut NbdStream, exports: &Exports, data: &[u8]) -> Result<Option<Agreed>> {
    if !data.is_empty() {
        return refuse(link, wire::OPT_LIST, REP_ERR_INVALID, "this option has no data");
    }
    for (name, export) in &exports.by_name {
        let mut payload = (name.len() as u32).to_be_bytes().to_vec();
        payload.extend_from_slice(name.as_bytes());
        payload.extend_from_slice(export.description().as_bytes());
        reply(link, wire::OPT_LIST, REP_SERVER, &payload)?;
    }
    reply(link, wire::OPT_LIST, REP_ACK, &[])?;
    Ok(None)
}

fn meta_context(
    link: &mut NbdStream,
    exports: &Exports,
    settled: &mut Settled,
    option: u32,
    data: &[u8],
) -> Result<Option<Agreed>> {
    let is_set = option == wire::OPT_SET_META_CONTEXT;
    if is_set {
        // "If this option is sent again, it replaces what was chosen", even if it fails.
        settled.allocation_of = None;
    }
    if !settled.structured_replies {
        return refuse(link, option, REP_ERR_INVALID, "ask for structured replies first");
    }
    let Ok((name, queries)) = decode_meta_context(data) else {
        return refuse(link, option, REP_ERR_INVALID, "");
    };
    let Some((name, _)) = exports.get(&name) else {
        return refuse(link, option, REP_ERR_UNKNOWN, "");
    };
    let is_asked_for = match is_set {
        true => queries.iter().any(|query| query == wire::BASE_ALLOCATION),
        // In a request to list contexts, a namespace alone matches all its contexts, and no query matches everything.
        false => queries.is_empty() || queries.iter().any(|query| query == wire::BASE_ALLOCATION || query == "base:"),
    };
    if is_asked_for {
        let id = if is_set { ALLOCATION_CONTEXT } else { 0 };
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend_from_slice(wire::BASE_ALLOCATION.as_bytes());
        reply(link, option, REP_META_CONTEXT, &payload)?;
        if is_set {
            settled.allocation_of = Some(name.to_owned());
        }
    }
    reply(link, option, REP_ACK, &[])?;
    Ok(None)
}

fn go(link: &mut NbdStream, exports: &Exports, settled: &Settled, option: u32, data: &[u8]) -> Result<Option<Agreed>> {
    let Ok((name, wanted)) = decode_go(data) else {
        return refuse(link, option, REP_ERR_INVALID, "");
    };
    let Some((name, export)) = exports.get(&name) else {
        return refuse(link, option, REP_ERR_UNKNOWN, "");
    };
    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
    info.extend_from_slice(&export.size_bytes().to_be_bytes());
    info.extend_from_slice(&transmission_flags(&**export, settled).to_be_bytes());
    reply(link, option, REP_INFO, &info)?;
    let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for bytes in [1, PREFERRED_BLOCK_BYTES, wire::MAX_REQUEST_BYTES] {
        info.extend_from_slice(&bytes.to_be_bytes());
    }
    reply(link, option, REP_INFO, &info)?;
    for (kind, text) in [(INFO_NAME, name.to_owned()), (INFO_DESCRIPTION, export.description())] {
        if wanted.contains(&kind) {
            let mut info = kind.to_be_bytes().to_vec();
            info.extend_from_slice(text.as_bytes());
            reply(link, option, REP_INFO, &info)?;
        }
    }
    reply(link, option, REP_ACK, &[])?;
    Ok((option == wire::OPT_GO).then(|| agree(export, name, settled)))
}

fn export_name(link: &mut NbdStream, exports: &Exports, settled: &Settled, data: &[u8]) -> Result<Option<Agreed>> {
    let Some((name, export)) = std::str::from_utf8(data).ok().and_then(|name| exports.get(name)) else {
        // There is no other way to refuse.
        return Ok(None);
    };
    let mut answer = export.size_bytes().to_be_bytes().to_vec();
    answer.extend_from_slice(&transmission_flags(&**export, settled).to_be_bytes());
    if !settled.no_zeroes {
        answer.extend_from_slice(&[0; 124]);
    }
    link.send(&answer)?;
    Ok(Some(agree(export, name, settled)))
}

fn agree(export: &Arc<dyn Export>, name: &str, settled: &Settled) -> Agreed {
    Agreed {
        export: Arc::clone(export),
        structured_replies: settled.structured_replies,
        has_allocation: settled.allocation_of.as_deref() == Some(name),
    }
}

fn transmission_flags(export: &dyn Export, settled: &Settled) -> u16 {
    let always = wire::TRANSMISSION_HAS_FLAGS | wire::TRANSMISSION_MULTI_CONN | wire::TRANSMISSION_CACHE;
    let writing = match export.is_writable() {
        true => {
            wire::TRANSMISSION_FLUSH
                | wire::TRANSMISSION_FUA
                | wire::TRANSMISSION_TRIM
                | wire::TRANSMISSION_WRITE_ZEROES
        }
        false => wire::TRANSMISSION_READ_ONLY,
    };
    let fragments = if settled.structured_replies { wire::TRANSMISSION_DF } else { 0 };
    always | writing | fragments
}
