//! Standard error: messages for people while a command runs.

use crate::cli::failure::hint::pasteable;
use crate::cli::table::printable;
use crate::cli::terminal::{color, live_lines};
use crate::log::SHOWN;
use std::io::Write;
use std::sync::OnceLock;

/// Set once, when the log starts.
static IN_JOURNAL: OnceLock<bool> = OnceLock::new();

/// Whether the log goes to the journal and standard error is the journal too, so that messages need not be printed
/// twice.
pub(crate) fn in_journal() -> bool {
    IN_JOURNAL.get().copied().unwrap_or(false)
}

/// Sets once whether standard error is the journal too.
pub(crate) fn set_in_journal(yes: bool) {
    let _ = IN_JOURNAL.set(yes);
}

/// Prints and logs an error and its hint.
pub(crate) fn report(message: &str, hint: Option<&str>) {
    tracing::error!(target: SHOWN, hint, "{message}");
    error(message, hint);
}

/// Prints an error and its hint, unless it is already in the journal.
pub(crate) fn error(message: &str, hint: Option<&str>) {
    if in_journal() {
        return;
    }
    write(&format!("kvmb: {} {}", painted("error:", RED), printable(message)));
    hint.into_iter().for_each(self::hint);
}

/// Prints a hint.
pub(crate) fn hint(hint: &str) {
    say(&format!("kvmb: hint: {}", pasteable(hint, None)));
}

/// Prints why there is no output where the user would expect some, and how to continue.
pub(crate) fn note(message: &str, hint: &str) {
    say(&format!("kvmb: {message}"));
    self::hint(hint);
}

/// Prints a text with bold headings, which are bold on a terminal only.
pub(crate) fn styled(text: &str) {
    let plain =
        ["\u{1b}[0m", "\u{1b}[1m", "\u{1b}[4m"].iter().fold(text.to_owned(), |text, code| text.replace(code, ""));
    let text = if color::on_stderr() { text } else { &plain };
    let _ = write!(std::io::stderr(), "{text}");
}

pub(crate) fn warning(message: &str) {
    write(&format!("kvmb: {} {}", painted("warning:", YELLOW), printable(message)));
}

const RED: &str = "31";
const YELLOW: &str = "33";

fn painted(word: &str, code: &str) -> String {
    if color::on_stderr() { format!("\u{1b}[{code}m{word}\u{1b}[0m") } else { word.to_owned() }
}

/// Writes a line to standard error. Errors are ignored: a closed stream is no reason to abort a backup.
pub(crate) fn say(line: &str) {
    write(&printable(line));
}

fn write(line: &str) {
    let _ = live_lines::above(|| writeln!(std::io::stderr(), "{line}"));
}
