//! What fields of records are made of, and text that is safe to print.

use serde_json::{Map, Value};

/// Fields that this version does not know; passed on as they came.
pub type Extra = Map<String, Value>;

/// JSON without characters that steer a terminal, which it leaves as they are. They can only stand in a text, where an
/// escape means the same.
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

/// Whether a character does something to a terminal instead of being shown: controls, and those that turn the direction
/// of writing around, so that a name can look like another one.
pub fn steers_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What a terminal would show of a text in plain letters: without colours, movements of the cursor and other steering.
pub fn plain_text(text: &str) -> String {
    let (mut plain, mut characters) = (String::with_capacity(text.len()), text.chars());
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                // A control sequence ends with a letter; other sequences have one character more.
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
