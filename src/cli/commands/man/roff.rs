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
    /// A section.
    pub(crate) fn section(&mut self, title: &str) {
        self.roff.control("SH", [title]);
    }

    /// A part of a section.
    pub(crate) fn subsection(&mut self, title: &str) {
        self.roff.control("SS", [title]);
    }

    /// A paragraph.
    pub(crate) fn paragraph(&mut self, text: &str) {
        self.roff.control("PP", []);
        self.roff.text(inlines(text));
    }

    /// A term and what it means.
    pub(crate) fn term(&mut self, term: &str, meaning: &str) {
        self.roff.control("TP", []);
        self.roff.text([bold(term)]);
        self.roff.text(inlines(meaning));
    }

    /// Lines as they are.
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

    /// The text.
    pub(crate) fn finish(self) -> String {
        self.roff.render()
    }
}

/// What a writer of roff text wrote.
pub(crate) fn rendered(write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<String, CliError> {
    let mut text = Vec::new();
    write(&mut text).map_err(|error| CliError::failed(format!("no manual page: {error}")))?;
    String::from_utf8(text).map_err(|error| CliError::failed(format!("no manual page: {error}")))
}

/// One page from its parts. Each begins with the same definition of an apostrophe; a page needs it once.
pub(crate) fn join(parts: &[String]) -> String {
    let preamble = Roff::new().render();
    preamble.clone() + &parts.concat().replace(&preamble, "")
}

fn inlines(text: &str) -> Vec<Inline> {
    let part = |(at, part): (usize, &str)| if at % 2 == 1 { bold(part) } else { roman(part) };
    text.split('`').enumerate().filter(|(_, text)| !text.is_empty()).map(part).collect()
}
