//! Tables whose columns fit the width of the terminal.
//!
//! If they do not fit, the least important columns are omitted first. Then the last column is wrapped between words,
//! with an indent; words are never broken, so that paths and addresses can be copied. A note is printed below its row
//! and never wrapped, because it may be a command to copy.

use unicode_width::UnicodeWidthStr;

/// The purpose of a table of points.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum View {
    /// The points that exist.
    #[default]
    Listing,
    /// The points that a run created, with statistics.
    Backup,
}

/// How tables are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// The width of the terminal; if None, nothing is omitted or wrapped.
    pub width: Option<usize>,
    /// Whether to use colour.
    pub color: bool,
    /// The purpose of a table of points.
    pub view: View,
}

/// The space between columns.
const GAP: usize = 2;

/// If less width than this is left for the last column, it moves below the others.
const LEAST_LAST: usize = 24;

/// The indent of text below a row.
const INDENT: usize = 4;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    head: &'static str,
    is_number: bool,
    /// The order in which columns are omitted, lowest first; `None` is never omitted.
    rank: Option<u8>,
}

impl Column {
    /// Creates a left-aligned column.
    pub(crate) fn text(head: &'static str) -> Column {
        Column { head, is_number: false, rank: None }
    }

    /// Creates a right-aligned column.
    pub(crate) fn number(head: &'static str) -> Column {
        Column { is_number: true, ..Column::text(head) }
    }

    /// Makes the column optional. Columns with the lowest rank are omitted first.
    pub(crate) fn optional(self, rank: u8) -> Column {
        Column { rank: Some(rank), ..self }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Row {
    cells: Vec<String>,
    note: Option<String>,
}

impl Row {
    /// Creates a row of these cells. An empty cell becomes `-`.
    pub(crate) fn new(cells: Vec<String>) -> Row {
        let filled = cells.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell });
        Row { cells: filled.collect(), note: None }
    }

    /// Adds a line below the row.
    pub(crate) fn note(self, note: Option<String>) -> Row {
        Row { note, ..self }
    }

    /// Replaces characters that could control a terminal.
    pub(crate) fn make_printable(&mut self, printable: impl Fn(&str) -> String) {
        self.cells.iter_mut().chain(&mut self.note).for_each(|text| *text = printable(text));
    }
}

#[derive(Debug)]
pub(crate) struct TableLayout {
    pub(crate) columns: Vec<Column>,
    /// Its rows, each with a cell for every column.
    pub(crate) rows: Vec<Row>,
}

impl TableLayout {
    /// Renders the table.
    pub(crate) fn render(mut self, options: TableOptions) -> String {
        while options.width.is_some_and(|width| self.natural_width() > width) && self.leave_out() {}
        let widths = self.widths();
        let before: usize = widths.iter().rev().skip(1).map(|width| width + GAP).sum();
        let last = match options.width {
            Some(width) if self.natural_width() > width => match width.saturating_sub(before) {
                rest if rest >= LEAST_LAST => Last { start: before, width: rest, is_below: false },
                _ => Last { start: INDENT, width: width.saturating_sub(INDENT).max(1), is_below: true },
            },
            _ => Last { start: before, width: usize::MAX, is_below: false },
        };
        let heads: Vec<String> = self.columns.iter().map(|column| column.head.to_owned()).collect();
        let mut text = String::new();
        self.line(&mut text, &heads, &widths, &last, |_| options.color.then_some(BOLD));
        for row in &self.rows {
            self.line(&mut text, &row.cells, &widths, &last, |cell| options.color.then(|| color_of(cell)).flatten());
            if let Some(note) = &row.note {
                text.push_str(&format!("{:INDENT$}{note}\n", ""));
            }
        }
        text
    }

    /// Omits the least important column.
    fn leave_out(&mut self) -> bool {
        let ranked = self.columns.iter().enumerate().filter_map(|(at, column)| Some((column.rank?, at)));
        let Some((_, at)) = ranked.min() else { return false };
        self.columns.remove(at);
        self.rows.iter_mut().for_each(|row| drop(row.cells.remove(at)));
        true
    }

    fn widths(&self) -> Vec<usize> {
        let cells = |at: usize| self.rows.iter().map(move |row| length(&row.cells[at])).max().unwrap_or(0);
        self.columns.iter().enumerate().map(|(at, column)| cells(at).max(length(column.head))).collect()
    }

    fn natural_width(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
    }

    fn line(
        &self,
        text: &mut String,
        cells: &[String],
        widths: &[usize],
        last: &Last,
        color: impl Fn(&str) -> Option<&'static str>,
    ) {
        let Some((end, others)) = cells.split_last() else { return };
        let painted = |cell: &str, of: &str| match color(of) {
            Some(color) => format!("{color}{cell}{RESET}"),
            None => cell.to_owned(),
        };
        let mut line = String::new();
        for ((cell, width), column) in others.iter().zip(widths).zip(&self.columns) {
            let space = " ".repeat(width.saturating_sub(length(cell)));
            let cell = painted(cell, cell);
            line += &if column.is_number { format!("{space}{cell}") } else { format!("{cell}{space}") };
            line += &" ".repeat(GAP);
        }
        let indent = " ".repeat(last.start);
        if last.is_below {
            text.push_str(line.trim_end());
            text.push('\n');
            line.clone_from(&indent);
        }
        let is_number = self.columns.last().is_some_and(|column| column.is_number);
        let space = widths.last().map_or(0, |width| width.saturating_sub(length(end)));
        if is_number && !last.is_below {
            line += &" ".repeat(space);
        }
        for (number, piece) in wrapped(end, last.width).into_iter().enumerate() {
            let start = if number == 0 { &line } else { &indent };
            text.push_str((start.clone() + &painted(&piece, end)).trim_end());
            text.push('\n');
        }
    }
}

/// The position of the last column.
struct Last {
    start: usize,
    width: usize,
    is_below: bool,
}

/// Splits a text into lines of at most this width, between words only.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    if length(text) <= width {
        return vec![text.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().map_or(0, |line| length(line));
        match lines.last_mut() {
            Some(current) if line == 0 => current.push_str(word),
            Some(current) if line + 1 + length(word) <= width => {
                current.push(' ');
                current.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn length(text: &str) -> usize {
    text.width()
}

const RESET: &str = "\u{1b}[0m";
const BOLD: &str = "\u{1b}[1m";
const RED: &str = "\u{1b}[31m";
const GREEN: &str = "\u{1b}[32m";
const YELLOW: &str = "\u{1b}[33m";

/// Returns the colour of a state.
fn color_of(cell: &str) -> Option<&'static str> {
    match cell {
        "ok" | "OK" | "running" => Some(GREEN),
        "warning" | "WARNING" | "unknown" | "UNKNOWN" | "remove" => Some(YELLOW),
        "critical" | "CRITICAL" => Some(RED),
        other if other.starts_with("DAMAGED") => Some(RED),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> TableLayout {
        let columns = vec![Column::text("NAME"), Column::number("SIZE").optional(1), Column::text("NOTE")];
        let row = |cells: [&str; 3]| Row::new(cells.map(str::to_owned).to_vec());
        let rows = vec![
            row(["web1", "20 GiB", ""]),
            row(["db1", "4 GiB", "a note of several words and sftp://kvm@backup.example.com//srv/kvm in it"]).note(
                Some(
                    "run 'a command that is never wrapped, however long it is and however narrow the terminal'".into(),
                ),
            ),
        ];
        TableLayout { columns, rows }
    }

    #[test]
    fn narrow_table_drops_columns_and_wraps_the_last_between_words() {
        let wide = table().render(TableOptions::default());
        assert!(wide.starts_with("NAME    SIZE  NOTE\nweb1  20 GiB  -\ndb1    4 GiB  a note"), "{wide}");
        let narrow = table().render(TableOptions { width: Some(40), color: false, ..TableOptions::default() });
        assert!(!narrow.contains("SIZE"), "{narrow}");
        assert!(narrow.contains("\n      sftp://kvm@backup.example.com//srv/kvm\n"), "{narrow}");
        let is_word = |line: &str| !line.trim().contains(' ');
        let fits = |line: &&str| line.chars().count() <= 40 || is_word(line) || line.starts_with("    run 'a command");
        assert!(narrow.lines().all(|line| fits(&line)), "{narrow}");
        let tiny = table().render(TableOptions { width: Some(20), color: false, ..TableOptions::default() });
        assert!(tiny.contains("\ndb1\n    a note of\n    several words\n"), "{tiny}");
    }

    #[test]
    fn colour_does_not_change_the_text_of_a_table() {
        let plain = table().render(TableOptions { width: Some(60), color: false, ..TableOptions::default() });
        let painted = table().render(TableOptions { width: Some(60), color: true, ..TableOptions::default() });
        assert!(painted.contains(BOLD) && !plain.contains('\u{1b}'));
        assert_eq!(painted.replace(BOLD, "").replace(RESET, ""), plain);
        assert_eq!(color_of("CRITICAL"), Some(RED));
    }
}
