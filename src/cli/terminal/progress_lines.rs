//! The appearance of progress: a line for each task, as much of it as fits into the terminal.

use crate::cli::table::{bytes, printable};
use unicode_width::UnicodeWidthStr;

/// A task.
#[derive(Debug, Clone)]
pub(super) struct WorkView {
    /// What is done, and to what.
    pub(super) label: String,
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
    /// The current rate; None at the beginning.
    pub(super) bytes_per_second: Option<f64>,
}

/// The totals of a run.
#[derive(Debug, Clone)]
pub(super) struct Overall {
    /// The items that are counted: `machines`.
    pub(super) noun: &'static str,
    pub(super) done: usize,
    pub(super) all: usize,
    /// The number of bytes that all tasks have processed.
    pub(super) done_bytes: u64,
    pub(super) bytes_per_second: Option<f64>,
}

/// The capabilities of the terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) columns: usize,
    pub(super) rows: usize,
    pub(super) is_utf8: bool,
}

const BAR: usize = 24;

/// If less width than this is left for the label, details are omitted.
const LEAST_LABEL: usize = 32;

/// Returns the lines, each narrower than the terminal.
pub(super) fn lines(works: &[WorkView], overall: Option<&Overall>, shape: Shape) -> Vec<String> {
    let columns = shape.columns.saturating_sub(1);
    let room = shape.rows.saturating_sub(2 + usize::from(overall.is_some())).max(1);
    let shown = if works.len() > room { room - 1 } else { works.len() };
    let mut lines: Vec<String> = works[..shown].iter().map(|work| line(work, columns, shape.is_utf8)).collect();
    if shown < works.len() {
        lines.push(cut(&format!("and {} more", works.len() - shown), columns, shape.is_utf8));
    }
    lines.extend(overall.map(|overall| {
        let counted = format!("total: {} of {} {} done", overall.done, overall.all, overall.noun);
        let (read, rate) = (bytes(overall.done_bytes), overall.bytes_per_second.map(rate));
        let details = [format!(", {read}{}", rate.map(|rate| format!(", {rate}")).unwrap_or_default()), String::new()];
        let fitting = details.into_iter().find(|details| counted.len() + details.len() <= columns);
        cut(&(counted + &fitting.unwrap_or_default()), columns, shape.is_utf8)
    }));
    lines
}

fn line(work: &WorkView, columns: usize, is_utf8: bool) -> String {
    let WorkView { done_bytes: done, total_bytes: total, .. } = *work;
    let done = done.min(total);
    let percent = if total == 0 { 100 } else { u128::from(done) * 100 / u128::from(total) };
    let percent = format!("{percent:>3} %");
    let amount = format!("{:>22}", format!("{} of {}", bytes(done), bytes(total)));
    let speed = format!("{:>12}", work.bytes_per_second.map(rate).unwrap_or_default());
    let left = work.bytes_per_second.filter(|rate| *rate >= 1.0).map(|rate| (total - done) as f64 / rate);
    let left = format!("{:>11}", left.map(time_left).unwrap_or_default());
    let bar = bar(done, total, is_utf8);
    let forms = [
        [bar.as_str(), &percent, &amount, &speed, &left].join("  "),
        [percent.as_str(), &amount, &speed, &left].join("  "),
        [percent.as_str(), &amount, &left].join("  "),
        [percent.as_str(), &amount].join("  "),
        percent.clone(),
    ];
    let label = if is_utf8 { printable(&work.label) } else { ascii(&work.label) };
    let needed = label.chars().count().min(LEAST_LABEL) + 2;
    let fits = |form: &&String| form.chars().count() + needed <= columns;
    let form = forms.iter().find(fits).unwrap_or(&percent);
    let for_label = columns.saturating_sub(form.chars().count() + 2);
    let label = cut(&label, for_label, is_utf8);
    let space = " ".repeat(for_label.saturating_sub(label.width()) + 2);
    cut(&format!("{label}{space}{form}"), columns, is_utf8).trim_end().to_owned()
}

fn bar(done: u64, total: u64, is_utf8: bool) -> String {
    let filled = if total == 0 { BAR } else { (u128::from(done) * BAR as u128 / u128::from(total)) as usize };
    let (full, empty) = if is_utf8 { ("█", "░") } else { ("#", "-") };
    full.repeat(filled) + &empty.repeat(BAR - filled)
}

fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second as u64))
}

/// Formats the remaining time: `12 min left`.
fn time_left(seconds: f64) -> String {
    match seconds.ceil() as u64 {
        seconds @ 0..=99 => format!("{seconds} s left"),
        seconds @ 100..=5_999 => format!("{} min left", seconds.div_ceil(60)),
        seconds => format!("{} h left", seconds.div_ceil(3600)),
    }
}

/// Replaces non-ASCII and control characters.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' }).collect()
}

/// Truncates a text to at most this number of columns.
fn cut(text: &str, columns: usize, is_utf8: bool) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mark = if is_utf8 { "…" } else { "..." };
    let mut kept = text.to_owned();
    while !kept.is_empty() && kept.width() + mark.width() > columns {
        kept.pop();
    }
    (kept + mark).chars().take(columns).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn work(label: &str) -> WorkView {
        WorkView {
            label: label.into(),
            done_bytes: 3 * GIB,
            total_bytes: 10 * GIB,
            bytes_per_second: Some(200.0 * 1024.0 * 1024.0),
        }
    }

    fn shown(label: &str, columns: usize, is_utf8: bool) -> String {
        lines(&[work(label)], None, Shape { columns, rows: 24, is_utf8 }).concat()
    }

    #[test]
    fn progress_line_is_shortened_to_the_terminal_width() {
        let texts = [160, 120, 80, 60, 40, 20].map(|columns| shown("reading web1/vda", columns, false));
        let bar = "#######-----------------";
        let label = "reading web1/vda";
        let amount = "30 %   3.00 GiB of 10.00 GiB";
        let details = format!("{amount}  200.00 MiB/s    36 s left");
        assert_eq!(texts[0], format!("{label:75}  {bar}   {details}"));
        assert_eq!(texts[1], format!("{label:35}  {bar}   {details}"));
        assert_eq!(texts[2], format!("{label:21}   {details}"));
        assert_eq!(texts[3], format!("{label:28}   {amount}"));
        assert_eq!(texts[4], format!("{label:32}   30 %"));
        assert_eq!(texts[5], "reading w...   30 %");
        for (text, columns) in texts.iter().zip([160, 120, 80, 60, 40, 20]) {
            assert!(text.chars().count() < columns, "{columns}: {text}");
        }
    }

    #[test]
    fn progress_is_ascii_on_a_terminal_without_utf_8() {
        assert!(shown("reading bücher/vda", 160, false).is_ascii());
        let text = shown("reading bücher/vda", 160, true);
        assert!(text.starts_with("reading bücher/vda ") && text.contains("███████░"), "{text}");
        assert!(shown("reading a-machine-with-a-very-long-name/vda", 40, true).contains('…'));
    }

    #[test]
    fn progress_of_several_machines_has_a_total_and_fits_the_screen() {
        let overall = Overall { noun: "machines", done: 2, all: 12, done_bytes: 7 * GIB, bytes_per_second: Some(1e8) };
        let shape = Shape { columns: 80, rows: 6, is_utf8: true };
        let text = lines(&vec![work("reading web1/vda"); 10], Some(&overall), shape);
        assert_eq!(text.len(), 4);
        assert_eq!(text[2], "and 8 more");
        assert_eq!(text[3], "total: 2 of 12 machines done, 7.00 GiB, 95.37 MiB/s");
        let text = lines(&[], Some(&overall), Shape { columns: 32, ..shape });
        assert_eq!(text, ["total: 2 of 12 machines done"]);
    }

    #[test]
    fn empty_work_is_complete_and_time_left_has_one_unit() {
        let empty = WorkView { done_bytes: 0, total_bytes: 0, bytes_per_second: None, label: "reading a/vda".into() };
        let text = lines(&[empty], None, Shape { columns: 80, rows: 24, is_utf8: true }).concat();
        assert!(text.contains("100 %") && text.ends_with("0 B of 0 B"), "{text:?}");
        assert_eq!([5.2, 100.0, 7_200.0].map(time_left), ["6 s left", "2 min left", "2 h left"]);
    }
}
