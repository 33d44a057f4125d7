//! Parses trees whose lists of blobs are in the form that restic and kvmb write, without white space:
//!
//! ```text
//! {"nodes":[{…,"content":["64 hex digits","64 hex digits",…]},{…,"content":null,"subtree":"…"}]}
//! ```
//!
//! All except these lists is passed to the general parser, entry by entry, so that both parsers accept the same input
//! with the same meaning. `,"content":` cannot occur inside a string, where quotes are escaped; and an entry that has
//! it anywhere but at its end is not valid JSON when it is cut there.

use std::io::Read;

use super::json::TreeJson;
use crate::repo::{Content, Id};

/// `"` + id + `"` + `,` or `]`
const ITEM: usize = Id::HEX_LENGTH + 3;
/// The size of the buffer.
const WINDOW_BYTES: usize = 256 << 10;
/// The maximum length of an entry up to its list of blobs.
const LARGEST_HEAD_BYTES: usize = 64 << 10;

const BEGINNING: &[u8] = b"{\"nodes\":[";
const CONTENT: &[u8] = b",\"content\":";
const SUBTREE: &[u8] = b"null,\"subtree\":\"";

/// Parses a tree. Returns `None` if it does not have this form. Otherwise `source` was read to its end.
pub(super) fn parse(source: impl Read) -> Option<TreeJson> {
    let mut window = FormWindow { source, buffer: vec![0; WINDOW_BYTES], start: 0, end: 0 };
    window.expect(BEGINNING)?;
    let mut nodes = Vec::new();
    if window.peek()? != b']' {
        loop {
            let mut entry = window.entry()?;
            nodes.append(entry.nodes.as_mut()?);
            match window.next()? {
                b',' => {}
                b']' => break,
                _ => return None,
            }
        }
    } else {
        window.expect(b"]")?;
    }
    window.expect(b"}\n")?;
    window.is_at_end().then_some(TreeJson { nodes: Some(nodes) })
}

/// A buffered source.
struct FormWindow<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: Read> FormWindow<R> {
    fn rest(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Reads until there are this many bytes, or the source has ended.
    fn fill(&mut self, wanted: usize) -> Option<()> {
        if self.end - self.start >= wanted {
            return Some(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < wanted {
            match self.source.read(&mut self.buffer[self.end..]).ok()? {
                0 => break,
                count => self.end += count,
            }
        }
        Some(())
    }

    fn peek(&mut self) -> Option<u8> {
        self.fill(1)?;
        self.rest().first().copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.start += 1;
        Some(byte)
    }

    fn expect(&mut self, text: &[u8]) -> Option<()> {
        self.fill(text.len())?;
        self.rest().starts_with(text).then(|| self.start += text.len())
    }

    fn is_at_end(&mut self) -> bool {
        self.fill(1).is_some() && self.rest().is_empty()
    }

    /// Parses one entry as a tree of its own, so that no part of it can have a different meaning than among others.
    fn entry(&mut self) -> Option<TreeJson> {
        self.fill(CONTENT.len())?;
        let mut searched = 0;
        let length = loop {
            let rest = self.rest();
            if let Some(at) = rest[searched..].windows(CONTENT.len()).position(|text| text == CONTENT) {
                break searched + at;
            }
            let known = rest.len();
            searched = known.saturating_sub(CONTENT.len());
            if known >= LARGEST_HEAD_BYTES {
                return None;
            }
            self.fill(known + 1)?;
            if self.rest().len() == known {
                return None;
            }
        };
        let mut json = [BEGINNING, &self.rest()[..length]].concat();
        self.start += length;
        self.expect(CONTENT)?;
        if self.peek()? == b'[' {
            let content = self.content()?;
            self.expect(b"}")?;
            json.extend_from_slice(b",\"content\":null}]}");
            return TreeJson::of_one(&json, Some(content));
        }
        json.extend_from_slice(CONTENT);
        let end = SUBTREE.len() + Id::HEX_LENGTH + 2;
        self.fill(end)?;
        let subtree = self.rest().get(..end).filter(|text| text.starts_with(SUBTREE) && text.ends_with(b"\"}"))?;
        json.extend_from_slice(subtree);
        json.extend_from_slice(b"]}");
        self.start += end;
        TreeJson::of_one(&json, None)
    }

    /// Parses a list of blobs.
    fn content(&mut self) -> Option<Content> {
        self.expect(b"[")?;
        let mut content = Content::new();
        if self.peek()? == b']' {
            self.start += 1;
            return Some(content);
        }
        loop {
            self.fill(ITEM)?;
            let (item, _) = self.rest().split_at_checked(ITEM)?;
            let [b'"', hex @ .., b'"', end] = item else { return None };
            let (id, end) = (Id::from_hex(hex)?, *end);
            if end != b',' {
                content.push(id);
                self.start += ITEM;
                return (end == b']').then_some(content);
            }
            let alike = self.rest().chunks_exact(ITEM).take_while(|other| *other == item).count();
            content.push_run(id, alike as u64);
            self.start += alike * ITEM;
        }
    }
}
