//! The capabilities of the terminal.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

/// The size of a terminal if it is unknown.
const USUAL: (usize, usize) = (80, 24);

/// Returns the columns and rows of a terminal; None if the stream is not a terminal or its size is unknown.
fn size(stream: impl AsFd + IsTerminal) -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(&stream).ok().filter(|_| stream.is_terminal())?;
    Some((size.ws_col.into(), size.ws_row.into())).filter(|(columns, rows)| *columns > 0 && *rows > 0)
}

/// Returns the number of columns of a terminal; None if the stream is not a terminal or its size is unknown.
pub(crate) fn width_of(stream: impl AsFd + IsTerminal) -> Option<usize> {
    size(stream).map(|(columns, _)| columns)
}

/// Returns the current columns and rows of standard error's terminal.
pub(super) fn stderr_size() -> (usize, usize) {
    size(io::stderr()).unwrap_or(USUAL)
}

/// Whether lines on standard error can be redrawn.
pub(super) fn can_draw() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stderr().is_terminal() && !is_dumb
}

/// Whether this process is currently in the foreground of its terminal, and not a background job of a shell.
pub(super) fn is_in_foreground() -> bool {
    // A terminal that does not control this process has no foreground process group.
    !rustix::termios::tcgetpgrp(io::stderr()).is_ok_and(|group| group != rustix::process::getpgrp())
}

/// Whether the locale can show more than ASCII.
pub(super) fn is_utf8() -> bool {
    let variables = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter();
    let locale = variables.filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty());
    locale.is_some_and(|locale| locale.to_lowercase().replace('-', "").contains("utf8"))
}
