//! A manual page under construction.

use crate::cli::failure::CliError;
use clap_mangen::roff::{Inline, Roff, bold, roman};
use std::io::Write;

/// Roff text, section by section. Text is escaped; words in backquotes are set in bold.
#[derive(Debug, Default)]
pub(crate) struct Text {
    roff: Roff,
}

impl Text {
    /// Adds a section heading.
    pub(crate) fn section(&mut self, title: &str) {
        self.roff.control("SH", [title]);
    }

    /// Adds a subsection heading.
    pub(crate) fn subsection(&mut self, title: &str) {
        self.roff.control("SS", [title]);
    }

    /// Adds a paragraph.
    pub(crate) fn paragraph(&mut self, text: &str) {
        self.roff.control("PP", []);
        self.roff.text(inlines(text));
    }

    /// Adds a term and its description.
    pub(crate) fn term(&mut self, term: &str, meaning: &str) {
        self.roff.control("TP", []);
        self.roff.text([bold(term)]);
        self.roff.text(inlines(meaning));
    }

    /// Adds literal lines.
    pub(crate) fn literal<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) {
        self.roff.control("PP", []);
        self.roff.control("nf", []);
        self.roff.control("RS", ["4"]);
        for line in lines {
            self.roff.text([roman(line)]);
        }
        self.roff.control("RE", []);
        self.roff.control("fi", []);
    }

    /// Returns the text.
    pub(crate) fn finish(self) -> String {
        self.roff.render()
    }
}

/// Returns the roff text that `write` produces.
pub(crate) fn rendered(write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<String, CliError> {
    let mut text = Vec::new();
    write(&mut text).map_err(|error| CliError::failed(format!("no manual page: {error}")))?;
    String::from_utf8(text).map_err(|error| CliError::failed(format!("no manual page: {error}")))
}

/// Joins parts into one page. Each part begins with the same definition of an apostrophe, which a page needs only once.
pub(crate) fn join(parts: &[String]) -> String {
    let preamble = Roff::new().render();
    preamble.clone() + &parts.concat().replace(&preamble, "")
}

fn inlines(text: &str) -> Vec<Inline> {
    let part = |(at, part): (usize, &str)| if at % 2 == 1 { bold(part) } else { roman(part) };
    text.split('`').enumerate().filter(|(_, text)| !text.is_empty()).map(part).collect()
}
