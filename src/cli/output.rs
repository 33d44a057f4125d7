//! The only writer of standard output: prints records as a table, as JSON Lines or as one JSON array.

use crate::cli::table::{self, TableOptions, View};
use crate::cli::terminal::stderr::report;
use crate::cli::terminal::{color, live_lines, screen};
use crate::record::Record;
use clap::ValueEnum;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IsTerminal, Write};

/// How records are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Default)]
pub(crate) enum Format {
    /// A table on a terminal, JSON Lines otherwise.
    #[default]
    Auto,
    /// A table.
    Table,
    /// One JSON object per line.
    Jsonl,
    /// One JSON array, for Ansible's `from_json`.
    Json,
}

/// How a command reacts when its reader closes the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClosedPipe {
    /// The command only reads: it ends silently.
    Reads,
    /// The command changes something: it finishes its work.
    Changes,
}

/// Which checks a table shows, problems first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckDisplay {
    /// Only problems; the others are counted.
    Problems,
    All,
}

/// Flushes what a library left in the buffer of standard output, because the program skips the exit handlers that
/// would.
pub(crate) fn flush() {
    // A reader that has closed the pipe does not need it.
    let _ = io::stdout().flush();
}

/// Whether standard output still has a reader: poll() reports a closed pipe without a write.
pub(crate) fn has_reader() -> bool {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    let polled = poll(&mut watched, Some(&Timespec::default()));
    polled.is_err() || !watched[0].revents().contains(PollFlags::ERR)
}

#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    effect: ClosedPipe,
    view: View,
    held: Vec<Record>,
    /// Lines below the table.
    closing: String,
    /// How a table shows checks; None: in the order of arrival.
    checks: Option<CheckDisplay>,
    /// Whether output has ended: nothing is printed any more.
    ended: bool,
    closed: bool,
    failed: bool,
}

impl Output {
    /// Creates an output in `format`. Resolves `Auto`.
    pub(crate) fn new(format: Format, effect: ClosedPipe, view: View) -> Output {
        let format = match format {
            Format::Auto if io::stdout().is_terminal() => Format::Table,
            Format::Auto => Format::Jsonl,
            chosen => chosen,
        };
        Output {
            format,
            effect,
            view,
            held: Vec::new(),
            closing: String::new(),
            checks: None,
            ended: false,
            closed: false,
            failed: false,
        }
    }

    /// Makes a table show checks with problems first, and a summary.
    pub(crate) fn summarize_checks(&mut self, display: CheckDisplay) {
        self.checks = Some(display);
    }

    /// Prints a record, immediately if the format allows it.
    pub(crate) fn record(&mut self, record: &Record) {
        match self.format {
            _ if self.ended => {}
            Format::Jsonl => self.write((record.to_line() + "\n").as_bytes()),
            _ => self.held.push(record.clone()),
        }
    }

    /// Whether each record is printed immediately.
    pub(crate) fn prints_at_once(&self) -> bool {
        self.format == Format::Jsonl
    }

    pub(crate) fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Prints no records: standard output is reserved for raw bytes.
    pub(crate) fn suppress_records(&mut self) {
        self.ended = true;
    }

    pub(crate) fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// Adds lines below a table.
    pub(crate) fn close_table(&mut self, text: &str) {
        self.closing.push_str(text);
    }

    /// Prints what was held back: the table, or the array. Anything after that is not printed.
    pub(crate) fn finish(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let held = std::mem::take(&mut self.held);
        match self.format {
            Format::Json => {
                let lines: Vec<String> = held.iter().map(Record::to_line).collect();
                self.write(format!("[{}]\n", lines.join(",\n ")).as_bytes());
            }
            Format::Table => {
                let color = color::is_wanted(io::stdout().is_terminal());
                let options = TableOptions { width: screen::width_of(io::stdout()), color, view: self.view };
                let now = chrono::Local::now().fixed_offset();
                let mut text = match self.checks {
                    Some(display) => table::render_checks(&held, now, options, display == CheckDisplay::All),
                    None => table::render(&held, now, options),
                };
                if !self.closing.is_empty() {
                    let gap = if text.is_empty() { "" } else { "\n" };
                    text = format!("{text}{gap}{}", self.closing);
                }
                self.write(text.as_bytes());
            }
            _ => {}
        }
    }

    /// Prints text above a table; other formats do not have it.
    pub(crate) fn before_table(&mut self, text: &str) {
        if self.format == Format::Table {
            let lines: Vec<String> = text.lines().map(table::printable).collect();
            self.write((lines.join("\n") + "\n").as_bytes());
        }
    }

    /// Prints text that is not a record: a completion script, a manual page.
    pub(crate) fn text(&mut self, text: &[u8]) {
        self.write(text);
    }

    /// Whether the reader has closed the pipe and the command has therefore nothing left to do.
    pub(crate) fn is_pointless(&self) -> bool {
        self.closed && self.effect == ClosedPipe::Reads
    }

    fn write(&mut self, text: &[u8]) {
        if self.closed {
            return;
        }
        let mut stdout = io::stdout().lock();
        if let Err(error) = live_lines::above(|| stdout.write_all(text).and_then(|()| stdout.flush())) {
            self.closed = true;
            if error.kind() != io::ErrorKind::BrokenPipe {
                report(&format!("cannot write to standard output: {error}"), None);
                self.failed = true;
            }
        }
    }

    /// Whether writing failed for a reason other than a closed pipe.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }
}
