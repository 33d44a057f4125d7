//! Lines at the bottom of the terminal that are redrawn, and output that is printed above them.
//!
//! There is one terminal, so there is one set of these lines. All code that prints to standard output or standard error
//! does so within [`above`], so that nothing is printed into a bar.

use super::screen;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use unicode_width::UnicodeWidthStr;

/// The lines that are on the terminal now.
static SHOWN: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn shown() -> MutexGuard<'static, Vec<String>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Draws these lines in place of the current ones.
pub(super) fn draw(lines: Vec<String>, width: usize) {
    let mut shown = shown();
    write(&(erasing(&shown, width) + &text(&lines)));
    *shown = lines;
}

pub(super) fn erase() {
    draw(Vec::new(), screen::stderr_size().0);
}

/// Prints something above the lines.
pub(crate) fn above<T>(print: impl FnOnce() -> T) -> T {
    let shown = shown();
    if shown.is_empty() {
        return print();
    }
    write(&erasing(&shown, screen::stderr_size().0));
    let printed = print();
    write(&text(&shown));
    printed
}

/// Standard error, above the lines.
#[derive(Debug)]
pub(crate) struct StderrAbove;

impl Write for StderrAbove {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        above(|| io::stderr().write_all(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Returns the lines, with the cursor at the start of the last one, so that an echoed ^C does not add a line.
fn text(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { lines.join("\n") + "\r" }
}

/// Returns the codes that move to the start of the lines and clear the terminal from there. A terminal that has become
/// narrower shows a line in several rows.
fn erasing(lines: &[String], width: usize) -> String {
    let rows = |line: &String| line.width().div_ceil(width.max(1)).max(1);
    // The cursor is in the first row of the last line.
    let above: usize = lines.iter().rev().skip(1).map(rows).sum();
    match (lines.is_empty(), above) {
        (true, _) => String::new(),
        (false, 0) => "\r\u{1b}[J".into(),
        (false, above) => format!("\r\u{1b}[{above}A\u{1b}[J"),
    }
}

fn write(text: &str) {
    if text.is_empty() {
        return;
    }
    // If the terminal is gone, no lines are needed.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wrapped_by_a_resize_are_erased_completely() {
        let lines = ["a".repeat(70), "b".repeat(70), "c".repeat(70)];
        assert_eq!(erasing(&lines, 80), "\r\u{1b}[2A\u{1b}[J");
        assert_eq!(erasing(&lines, 30), "\r\u{1b}[6A\u{1b}[J");
        assert_eq!(erasing(&lines[..1], 30), "\r\u{1b}[J");
        assert_eq!(erasing(&[], 30), "");
    }
}
