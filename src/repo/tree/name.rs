//! Names as written by Go's `strconv.Quote` and its JSON encoder.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Like Go's `strconv.Quote`, without the surrounding quotes.
pub(super) fn quote(name: &OsStr) -> String {
    let mut quoted = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                '\x07' => quoted.push_str("\\a"),
                '\x08' => quoted.push_str("\\b"),
                '\x0c' => quoted.push_str("\\f"),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\x0b' => quoted.push_str("\\v"),
                c if is_printable(c) => quoted.push(c),
                '\0'..='\x7f' => quoted.push_str(&format!("\\x{:02x}", c as u32)),
                '\u{80}'..='\u{ffff}' => quoted.push_str(&format!("\\u{:04x}", c as u32)),
                _ => quoted.push_str(&format!("\\U{:08x}", c as u32)),
            }
        }
        for byte in chunk.invalid() {
            quoted.push_str(&format!("\\x{byte:02x}"));
        }
    }
    quoted
}

/// Returns whether Go considers a character printable: letters, marks, numbers, punctuation, symbols and the space.
/// Rust uses the same set in `escape_debug`, which escapes a combining mark only at the beginning, so a letter is put
/// before it.
fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        '\0'..='\x7f' => false,
        _ => {
            let mut text = [b'a', 0, 0, 0, 0];
            let length = 1 + c.encode_utf8(&mut text[1..]).len();
            let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
            text.escape_debug().eq(text.chars())
        }
    }
}

/// The inverse of [`quote`]. Returns `None` where `strconv.Unquote` would fail.
pub(super) fn unquote(quoted: &str) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(quoted.len());
    let mut rest = quoted.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'"' | b'\n' => return None,
            b'\\' => rest = unescape(rest, &mut name)?,
            other => name.push(other),
        }
    }
    Some(name)
}

/// Decodes an escape sequence after its backslash, and returns the text after it.
fn unescape<'a>(text: &'a [u8], name: &mut Vec<u8>) -> Option<&'a [u8]> {
    let number = |skip: usize, digits: usize, radix: u32| {
        let (digits, after) = text.get(skip..)?.split_at_checked(digits)?;
        let mut value = 0u32;
        for digit in digits {
            value = value * radix + char::from(*digit).to_digit(radix)?;
        }
        Some((value, after))
    };
    let (&escape, after) = text.split_first()?;
    let (byte, after) = match escape {
        b'a' => (0x07, after),
        b'b' => (0x08, after),
        b'f' => (0x0c, after),
        b'n' => (b'\n', after),
        b'r' => (b'\r', after),
        b't' => (b'\t', after),
        b'v' => (0x0b, after),
        b'\\' | b'"' => (escape, after),
        b'x' => {
            let (value, after) = number(1, 2, 16)?;
            (u8::try_from(value).ok()?, after)
        }
        b'0'..=b'7' => {
            let (value, after) = number(0, 3, 8)?;
            (u8::try_from(value).ok()?, after)
        }
        b'u' | b'U' => {
            let digits = if escape == b'u' { 4 } else { 8 };
            let (value, after) = number(1, digits, 16)?;
            let c = char::from_u32(value)?;
            name.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(after);
        }
        _ => return None,
    };
    name.push(byte);
    Some(after)
}

/// Formats a JSON string like Go's encoder, including the quotes.
pub(super) fn json_string(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '<' | '>' | '&' | '\0'..='\x1f' | '\u{2028}' | '\u{2029}' => {
                json.push_str(&format!("\\u{:04x}", c as u32));
            }
            other => json.push(other),
        }
    }
    json.push('"');
    json
}
