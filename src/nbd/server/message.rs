//! Decodes messages from clients and encodes those of the server, without I/O. Any input results in a value or a
//! [`Violation`].

use super::super::wire::{
    self, MAX_STRING_BYTES, MessageReader, OPTION_REPLY_MAGIC, REPLY_BLOCK_STATUS, REPLY_ERROR, REPLY_ERROR_OFFSET,
    REPLY_FLAG_DONE, REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
    StatusExtent, Violation,
};

/// The maximum number of metadata contexts in a request.
const MAX_QUERIES: u32 = 64;

/// The length of a structured reply chunk's header.
const CHUNK_HEADER_BYTES: usize = 20;

/// "Request message".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    /// `NBD_CMD_…`; possibly an unknown one.
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    pub(super) const BYTES: usize = 28;

    pub(super) fn decode(bytes: &[u8; Request::BYTES]) -> Result<Request, Violation> {
        let mut fields = MessageReader::new("a request", bytes);
        let magic = fields.u32()?;
        if magic != REQUEST_MAGIC {
            return Err(Violation::RequestMagic(magic));
        }
        let (flags, command, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
        Ok(Request { flags, command, cookie, offset: fields.u64()?, length: fields.u32()? })
    }
}

/// `NBD_OPT_INFO` and `NBD_OPT_GO`: the export, and the requested information.
pub(super) fn decode_go(data: &[u8]) -> Result<(String, Vec<u16>), Violation> {
    let mut fields = MessageReader::new("a request for information", data);
    let name = string(&mut fields)?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Result<_, _>>()?;
    fields.end()?;
    Ok((name, wanted))
}

/// `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: the export, and the requested contexts.
pub(super) fn decode_meta_context(data: &[u8]) -> Result<(String, Vec<String>), Violation> {
    let mut fields = MessageReader::new("a request for contexts", data);
    let name = string(&mut fields)?;
    let count = fields.u32()?;
    if count > MAX_QUERIES {
        return Err(Violation::Length { what: "a list of contexts", length: count.into() });
    }
    let queries = (0..count).map(|_| string(&mut fields)).collect::<Result<_, _>>()?;
    fields.end()?;
    Ok((name, queries))
}

/// "Values": a length, and UTF-8 without a zero byte.
fn string(fields: &mut MessageReader<'_>) -> Result<String, Violation> {
    let length = fields.u32()? as usize;
    let wrong = || Violation::Length { what: "a string", length: length as u64 };
    if length > MAX_STRING_BYTES {
        return Err(wrong());
    }
    String::from_utf8(fields.take(length)?.to_vec()).map_err(|_| wrong())
}

/// "Fixed newstyle negotiation": a reply to an option.
pub(super) fn encode_option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + payload.len());
    bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// "Simple reply message", without its data.
pub(super) fn encode_simple_reply(cookie: u64, error: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// Whether more chunks of the same reply follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    Middle,
    Last,
}

fn chunk_header(cookie: u64, kind: u16, position: Position, length: usize) -> Vec<u8> {
    let flags = if position == Position::Last { REPLY_FLAG_DONE } else { 0 };
    let mut bytes = Vec::with_capacity(CHUNK_HEADER_BYTES + length.min(64));
    bytes.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    bytes
}

/// `NBD_REPLY_TYPE_NONE`: the end of a reply.
pub(super) fn encode_end(cookie: u64) -> Vec<u8> {
    chunk_header(cookie, wire::REPLY_NONE, Position::Last, 0)
}

/// `NBD_REPLY_TYPE_OFFSET_DATA`, up to its data.
pub(super) fn encode_data_header(cookie: u64, position: Position, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = chunk_header(cookie, REPLY_OFFSET_DATA, position, 8 + length);
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes
}

/// `NBD_REPLY_TYPE_OFFSET_HOLE`.
pub(super) fn encode_hole(cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = chunk_header(cookie, REPLY_OFFSET_HOLE, Position::Middle, 12);
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// `NBD_REPLY_TYPE_ERROR`: the whole request failed.
pub(super) fn encode_error(cookie: u64, error: u32, message: &str) -> Vec<u8> {
    let message = shortened(message);
    let mut bytes = chunk_header(cookie, REPLY_ERROR, Position::Last, 6 + message.len());
    push_error(&mut bytes, error, message);
    bytes
}

/// `NBD_REPLY_TYPE_ERROR_OFFSET`: the bytes at `offset` are unreadable.
pub(super) fn encode_error_at(cookie: u64, error: u32, offset: u64, message: &str) -> Vec<u8> {
    let message = shortened(message);
    let mut bytes = chunk_header(cookie, REPLY_ERROR_OFFSET, Position::Middle, 14 + message.len());
    push_error(&mut bytes, error, message);
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes
}

fn push_error(bytes: &mut Vec<u8>, error: u32, message: &str) {
    bytes.extend_from_slice(&error.to_be_bytes());
    bytes.extend_from_slice(&(message.len() as u16).to_be_bytes());
    bytes.extend_from_slice(message.as_bytes());
}

/// "Values": strings have at most 4096 bytes.
fn shortened(message: &str) -> &str {
    let ends = (0..=message.len().min(MAX_STRING_BYTES)).rev();
    &message[..ends.into_iter().find(|end| message.is_char_boundary(*end)).unwrap_or(0)]
}

/// `NBD_REPLY_TYPE_BLOCK_STATUS` for one context, which is the whole reply.
pub(super) fn encode_block_status(cookie: u64, context: u32, extents: &[StatusExtent]) -> Vec<u8> {
    let mut bytes = chunk_header(cookie, REPLY_BLOCK_STATUS, Position::Last, 4 + 8 * extents.len());
    bytes.extend_from_slice(&context.to_be_bytes());
    for extent in extents {
        bytes.extend_from_slice(&extent.length.to_be_bytes());
        bytes.extend_from_slice(&extent.flags.to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_go(&bytes);
            let _ = decode_meta_context(&bytes);
            if let Some(request) = bytes.first_chunk() {
                let _ = Request::decode(request);
            }
        }
    }

    #[test]
    fn request_encoded_by_the_client_is_decoded() {
        let bytes = wire::encode_request(wire::RequestType::Read, wire::CMD_FLAG_DF, 7, 1 << 40, 4096);
        let request = Request { flags: wire::CMD_FLAG_DF, command: 0, cookie: 7, offset: 1 << 40, length: 4096 };
        assert_eq!(Request::decode(&bytes), Ok(request));
        assert_eq!(Request::decode(&[0; 28]), Err(Violation::RequestMagic(0)));
    }

    #[test]
    fn a_string_longer_than_the_protocol_allows_is_refused() {
        let mut data = 4097u32.to_be_bytes().to_vec();
        data.extend(vec![b'a'; 4097 + 2]);
        assert!(matches!(decode_go(&data), Err(Violation::Length { what: "a string", length: 4097 })));
    }
}
