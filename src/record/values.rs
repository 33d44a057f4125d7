//! Value types of record fields, and text that is safe to print.

use serde_json::{Map, Value};

/// Fields that are unknown to this version, and passed on unchanged.
pub type Extra = Map<String, Value>;

/// Escapes characters in JSON that control a terminal. They can only occur in strings, where the escape has the same
/// meaning.
pub fn without_steering(json: String) -> String {
    if !json.contains(steers_terminal) {
        return json;
    }
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match steers_terminal(c) {
            true => safe.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => safe.push(c),
        }
    }
    safe
}

/// Returns whether a character controls a terminal instead of being displayed: control characters, and those that
/// change the text direction, which can make one name look like another.
pub fn steers_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns the visible text of terminal output: without colours, cursor movements and other control sequences.
pub fn plain_text(text: &str) -> String {
    let (mut plain, mut characters) = (String::with_capacity(text.len()), text.chars());
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                // A control sequence ends with a letter; other sequences have one more character.
                if characters.next() == Some('[') {
                    while characters.next().is_some_and(|next| !('\u{40}'..='\u{7e}').contains(&next)) {}
                }
            }
            '\n' | '\t' => plain.push(character),
            other if steers_terminal(other) => {}
            other => plain.push(other),
        }
    }
    plain
}
