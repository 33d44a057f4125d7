//! What the terminal can show.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

/// Where the size is not known.
const USUAL: (usize, usize) = (80, 24);

/// Columns and rows of a terminal; none where a stream is no terminal, or one of unknown size.
fn size(stream: impl AsFd + IsTerminal) -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(&stream).ok().filter(|_| stream.is_terminal())?;
    Some((size.ws_col.into(), size.ws_row.into())).filter(|(columns, rows)| *columns > 0 && *rows > 0)
}

/// How many columns a terminal has; none where a stream is no terminal.
pub(crate) fn width_of(stream: impl AsFd + IsTerminal) -> Option<usize> {
    size(stream).map(|(columns, _)| columns)
}

/// Columns and rows of the terminal of standard error, at this moment.
pub(super) fn stderr_size() -> (usize, usize) {
    size(io::stderr()).unwrap_or(USUAL)
}

/// Whether lines can be drawn on standard error, and drawn again.
pub(super) fn can_draw() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stderr().is_terminal() && !is_dumb
}

/// Whether the terminal is that of this process at this moment, and not that of a shell which runs it in the
/// background.
pub(super) fn is_in_foreground() -> bool {
    // A terminal that does not control this process has no foreground.
    !rustix::termios::tcgetpgrp(io::stderr()).is_ok_and(|group| group != rustix::process::getpgrp())
}

/// Whether the locale can show more than ASCII.
pub(super) fn is_utf8() -> bool {
    let variables = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter();
    let locale = variables.filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty());
    locale.is_some_and(|locale| locale.to_lowercase().replace('-', "").contains("utf8"))
}
