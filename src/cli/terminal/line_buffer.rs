//! An editable line of text: takes keys, provides text and cursor.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The meaning of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Left,
    Right,
    Home,
    End,
    Backspace,
    /// Removes the character under the cursor.
    Delete,
    /// Removes everything before the cursor.
    ToStart,
    /// Removes everything from the cursor on.
    ToEnd,
    /// Removes the word before the cursor.
    Word,
    Enter,
    /// Ctrl-D: no more input.
    EndOfInput,
    /// A key without a meaning here.
    Other,
}

/// Decodes keys from the bytes that a terminal sends.
#[derive(Debug, Default)]
pub(super) struct KeyReader {
    bytes: Vec<u8>,
}

impl KeyReader {
    /// Adds a byte, and returns the key that it completes.
    pub(super) fn take(&mut self, byte: u8) -> Option<Key> {
        self.bytes.push(byte);
        let key = key(&self.bytes)?;
        self.bytes.clear();
        Some(key)
    }
}

/// Decodes a key; None if the bytes are incomplete.
fn key(bytes: &[u8]) -> Option<Key> {
    Some(match bytes {
        [b'\r' | b'\n'] => Key::Enter,
        [0x01] => Key::Home,
        [0x02] => Key::Left,
        [0x04] => Key::EndOfInput,
        [0x05] => Key::End,
        [0x06] => Key::Right,
        [0x08 | 0x7f] => Key::Backspace,
        [0x0b] => Key::ToEnd,
        [0x15] => Key::ToStart,
        [0x17] => Key::Word,
        [0x1b] | [0x1b, b'[' | b'O'] => return None,
        [0x1b, b'[', parameters @ .., last] => match (parameters, last) {
            // An escape sequence ends with a byte of this range.
            (_, last) if !(0x40..=0x7e).contains(last) => return None,
            ([], b'D') => Key::Left,
            ([], b'C') => Key::Right,
            ([], b'H') | (b"1" | b"7", b'~') => Key::Home,
            ([], b'F') | (b"4" | b"8", b'~') => Key::End,
            (b"3", b'~') => Key::Delete,
            _ => Key::Other,
        },
        [0x1b, b'O', b'H'] => Key::Home,
        [0x1b, b'O', b'F'] => Key::End,
        [0x1b, b'O', b'D'] => Key::Left,
        [0x1b, b'O', b'C'] => Key::Right,
        [0x1b, ..] => Key::Other,
        [control] if *control < 0x20 => Key::Other,
        bytes => match std::str::from_utf8(bytes) {
            Ok(text) => text.chars().next().filter(|c| !c.is_control()).map_or(Key::Other, Key::Char),
            // The rest of the character has not arrived yet.
            Err(error) if error.error_len().is_none() => return None,
            Err(_) => Key::Other,
        },
    })
}

#[derive(Debug, Clone, Default)]
pub(super) struct LineBuffer {
    chars: Vec<char>,
    /// The index of the character at which the cursor is.
    cursor: usize,
}

impl LineBuffer {
    /// Creates a line with the cursor at its end.
    pub(super) fn new(text: &str) -> LineBuffer {
        let chars: Vec<char> = text.chars().collect();
        LineBuffer { cursor: chars.len(), chars }
    }

    pub(super) fn text(&self) -> String {
        self.chars.iter().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chars.is_empty()
    }

    /// Changes the line according to a key.
    pub(super) fn press(&mut self, key: Key) {
        match key {
            Key::Char(c) => {
                self.chars.insert(self.cursor, c);
                self.cursor += 1;
            }
            Key::Left => self.cursor = self.cursor.saturating_sub(1),
            Key::Right => self.cursor = (self.cursor + 1).min(self.chars.len()),
            Key::Home => self.cursor = 0,
            Key::End => self.cursor = self.chars.len(),
            Key::Backspace if self.cursor > 0 => {
                self.cursor -= 1;
                self.chars.remove(self.cursor);
            }
            Key::Delete if self.cursor < self.chars.len() => drop(self.chars.remove(self.cursor)),
            Key::ToStart => {
                self.chars.drain(..self.cursor);
                self.cursor = 0;
            }
            Key::ToEnd => self.chars.truncate(self.cursor),
            Key::Word => {
                let before = &self.chars[..self.cursor];
                let end = before.iter().rposition(|c| !c.is_whitespace()).map_or(0, |at| at + 1);
                let start = before[..end].iter().rposition(|c| c.is_whitespace()).map_or(0, |at| at + 1);
                self.chars.drain(start..self.cursor);
                self.cursor = start;
            }
            Key::Backspace | Key::Delete | Key::Enter | Key::EndOfInput | Key::Other => {}
        }
    }

    /// Returns the part of the line around the cursor that fits into this number of columns, and the cursor's column in
    /// it.
    pub(super) fn window(&self, columns: usize) -> (String, usize) {
        let width = |chars: &[char]| -> usize { chars.iter().map(|c| c.width().unwrap_or(0)).sum() };
        let mut start = 0;
        while width(&self.chars[start..self.cursor]) >= columns.max(1) && start < self.cursor {
            start += 1;
        }
        let mut text = String::new();
        for c in &self.chars[start..] {
            if text.width() + c.width().unwrap_or(0) > columns {
                break;
            }
            text.push(*c);
        }
        (text, width(&self.chars[start..self.cursor]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the text after these bytes were typed, with `|` at the cursor.
    fn typed(text: &str, bytes: &[u8]) -> String {
        let (mut reader, mut line) = (KeyReader::default(), LineBuffer::new(text));
        bytes.iter().filter_map(|byte| reader.take(*byte)).for_each(|key| line.press(key));
        let (before, after) = line.chars.split_at(line.cursor);
        format!("{}|{}", String::from_iter(before), String::from_iter(after))
    }

    #[test]
    fn keys_edit_the_line_at_the_cursor() {
        for (text, bytes, expected) in [
            ("", &b"vm1"[..], "vm1|"),
            ("", "büch\u{1f600}er".as_bytes(), "büch\u{1f600}er|"),
            ("abc", b"\x1b[D\x1b[Dx", "ax|bc"),
            ("abc", b"\x1b[H>\x1b[F<", ">abc<|"),
            ("abc", b"\x1bOH>\x1bOF<\x01(\x05)", "(>abc<)|"),
            ("abc", b"\x1b[1~>\x1b[4~<", ">abc<|"),
            ("abc", b"\x1b[D\x7f", "a|c"),
            ("abc", b"\x1b[H\x1b[3~\x08", "|bc"),
            ("größe", "\x1b[D\x7f".as_bytes(), "grö|e"),
            ("/var/lib old name", b"\x17\x17", "/var/lib |"),
            ("abcd", b"\x1b[D\x1b[D\x15", "|cd"),
            ("abcd", b"\x1b[D\x1b[D\x0b", "ab|"),
            ("ab", b"\x1b[D\x1b[D\x1b[D\x1b[C\x1b[C\x1b[C!", "ab!|"),
            // Keys without a meaning leave nothing in the line.
            ("ab", b"\x1b[A\x1b[B\x1b[15~\x1b[1;5D\t\x00\xff", "ab|"),
        ] {
            assert_eq!(typed(text, bytes), expected, "{text:?} {bytes:?}");
        }
    }

    #[test]
    fn long_line_is_scrolled_to_the_cursor() {
        let mut line = LineBuffer::new("0123456789");
        assert_eq!(line.window(20), ("0123456789".into(), 10));
        assert_eq!(line.window(5), ("6789".into(), 4));
        line.press(Key::Home);
        assert_eq!(line.window(5), ("01234".into(), 0));
        // A character that is two columns wide.
        assert_eq!(LineBuffer::new("日本語").window(20), ("日本語".into(), 6));
        assert_eq!(LineBuffer::new("日本語").window(5), ("本語".into(), 4));
    }
}
