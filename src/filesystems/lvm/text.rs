//! LVM's metadata text: sections of keys and values, as in `lvm.conf`.

use crate::filesystems::{Result, damaged};
use std::collections::BTreeMap;

/// Maximum nesting of sections.
const MOST_LEVELS: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
}

impl Value {
    pub(super) fn number(&self) -> Option<u64> {
        if let Value::Number(number) = self { Some(*number) } else { None }
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section {
    sections: BTreeMap<String, Section>,
    values: BTreeMap<String, Vec<Value>>,
}

impl Section {
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.sections.iter().map(|(name, section)| (name.as_str(), section))
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.get(name)
    }

    pub(super) fn list(&self, key: &str) -> Option<&[Value]> {
        self.values.get(key).map(Vec::as_slice)
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.list(key)?.first()?.number()
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.list(key)?.first()?.text()
    }

    pub(super) fn texts(&self, key: &str) -> impl Iterator<Item = &str> {
        self.list(key).unwrap_or_default().iter().filter_map(Value::text)
    }
}

/// Parses a text, which may end with a NUL byte.
pub(super) fn parse(bytes: &[u8]) -> Result<Section> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let mut parser = Parser { rest: &bytes[..end] };
    let section = parser.section(0)?;
    if parser.rest.is_empty() { Ok(section) } else { Err(damaged("a section of LVM's metadata ends twice")) }
}

struct Parser<'b> {
    rest: &'b [u8],
}

impl Parser<'_> {
    /// Returns the next byte that is not white space or in a comment.
    fn peek(&mut self) -> Option<u8> {
        loop {
            self.rest = self.rest.trim_ascii_start();
            if self.rest.first() != Some(&b'#') {
                return self.rest.first().copied();
            }
            let end = self.rest.iter().position(|byte| *byte == b'\n').unwrap_or(self.rest.len());
            self.rest = &self.rest[end..];
        }
    }

    fn skip(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }

    /// Parses the content of a section, up to its end marker, which is not consumed.
    fn section(&mut self, level: usize) -> Result<Section> {
        let mut section = Section::default();
        while let Some(byte) = self.peek().filter(|byte| *byte != b'}') {
            let word = self.word();
            match (word.is_empty(), self.peek()) {
                (false, Some(b'{')) if level < MOST_LEVELS => {
                    self.skip();
                    let inner = self.section(level + 1)?;
                    if self.peek() != Some(b'}') {
                        return Err(damaged("a section of LVM's metadata does not end"));
                    }
                    self.skip();
                    section.sections.insert(word, inner);
                }
                (false, Some(b'=')) => {
                    self.skip();
                    let values = self.values()?;
                    section.values.insert(word, values);
                }
                _ => return Err(damaged(format!("LVM's metadata has byte {byte} where no word begins"))),
            }
        }
        Ok(section)
    }

    fn word(&mut self) -> String {
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-+./".contains(byte);
        let length = self.rest.iter().take_while(|byte| is_part(byte)).count();
        let (word, rest) = self.rest.split_at(length);
        self.rest = rest;
        String::from_utf8_lossy(word).into_owned()
    }

    /// Parses a value or a list of values.
    fn values(&mut self) -> Result<Vec<Value>> {
        if self.peek() != Some(b'[') {
            return Ok(vec![self.value()?]);
        }
        self.skip();
        let mut values = Vec::new();
        loop {
            match self.peek() {
                Some(b']') => {
                    self.skip();
                    return Ok(values);
                }
                Some(b',') => self.skip(),
                _ => values.push(self.value()?),
            }
        }
    }

    fn value(&mut self) -> Result<Value> {
        if self.peek() == Some(b'"') {
            self.skip();
            let mut text = Vec::new();
            loop {
                let (byte, escaped) = match self.rest {
                    [b'\\', byte, ..] => (*byte, true),
                    [byte, ..] => (*byte, false),
                    [] => return Err(damaged("a text in LVM's metadata does not end")),
                };
                self.rest = &self.rest[1 + usize::from(escaped)..];
                if byte == b'"' && !escaped {
                    return Ok(Value::Text(String::from_utf8_lossy(&text).into_owned()));
                }
                text.push(byte);
            }
        }
        let word = self.word();
        word.parse().map(Value::Number).map_err(|_| damaged("a value in LVM's metadata is invalid"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_values_are_read() {
        let text =
            b"# a comment {\nvg0 {\nid = \"a\\\"b\" # more\nseqno=7\nstatus = [\"READ\", \"WRITE\"]\nnone = []\n\
            pv { pv0 { start = 2048 } } }\nversion = 1\0garbage {";
        let document = parse(text).unwrap();
        let group = document.section("vg0").unwrap();
        assert_eq!((group.text("id"), group.number("seqno")), (Some("a\"b"), Some(7)));
        assert_eq!(group.texts("status").collect::<Vec<_>>(), ["READ", "WRITE"]);
        assert_eq!(group.list("none"), Some(&[][..]));
        assert_eq!(group.section("pv").unwrap().section("pv0").unwrap().number("start"), Some(2048));
        assert_eq!(document.number("version"), Some(1));
    }

    #[test]
    fn malformed_metadata_is_an_error() {
        let deep = b"a {".repeat(10_000);
        for text in [&b"a {"[..], b"a = \"b", b"a = [ 1,", b"a = b", b"}", b"{", b"= 1", b"a b", b"a = -", &deep] {
            assert!(parse(text).is_err(), "{}", String::from_utf8_lossy(&text[..text.len().min(20)]));
        }
    }
}
