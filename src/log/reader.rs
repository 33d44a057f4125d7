//! The lines of one run, from the log and what was set aside of it.

use super::rotating::{MOST_KEPT, aside};
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::Path;

/// No line of ours is longer; what is behind it is not read as one.
const LONGEST_LINE_BYTES: u64 = 1 << 20;

/// Calls `found` for each line of this run (of the last run in the log, if none is named), oldest first. False ends the
/// search.
pub(crate) fn lines_of_run(path: &Path, run: Option<&str>, found: &mut dyn FnMut(&str) -> bool) -> io::Result<()> {
    let last = match run {
        Some(_) => None,
        None => last_run(path)?,
    };
    let Some(run) = run.or(last.as_deref()) else { return Ok(()) };
    each_line(path, &mut |line| run_of(line).as_deref() != Some(run) || found(line))
}

fn last_run(path: &Path) -> io::Result<Option<String>> {
    let mut last = None;
    each_line(path, &mut |line| {
        last = run_of(line).or(last.take());
        true
    })?;
    Ok(last)
}

/// The run that a line is of; none if it is none of kvmb's.
fn run_of(line: &str) -> Option<String> {
    if line.starts_with('{') {
        let object: Value = serde_json::from_str(line).ok()?;
        return object.get("run")?.as_str().map(str::to_owned);
    }
    // `2025-08-06 14:30:15,123 - INFO - [run] message`
    let (_, behind) = line.split_once(" - ")?;
    let (_, message) = behind.split_once(" - ")?;
    let (run, _) = message.strip_prefix('[')?.split_once(']')?;
    Some(run.to_owned())
}

fn each_line(path: &Path, found: &mut dyn FnMut(&str) -> bool) -> io::Result<()> {
    let set_aside = (1..=MOST_KEPT).map(|number| aside(path, number)).take_while(|path| path.exists());
    let set_aside: Vec<_> = set_aside.collect();
    for path in set_aside.iter().rev().map(|path| path.as_path()).chain([path]) {
        let file = match File::open(path) {
            // It was set aside a moment ago, or there is none yet.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            file => file?,
        };
        let mut file = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = io::Read::take(&mut file, LONGEST_LINE_BYTES);
            if limited.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if !found(String::from_utf8_lossy(&line).trim_end_matches('\n')) {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn lines(path: &Path, run: Option<&str>) -> Vec<String> {
        let mut lines = Vec::new();
        lines_of_run(path, run, &mut |line| {
            lines.push(line.to_owned());
            true
        })
        .unwrap();
        lines
    }

    #[test]
    fn the_lines_of_a_run_are_found_in_all_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert!(lines(&path, None).is_empty());
        let text = |run: &str, message: &str| format!("2026-11-20 12:00:00,000 - INFO - [{run}] {message}\n");
        fs::write(aside(&path, 2), text("aaaaaaaa", "one") + "2025-01-01 00:00:00,000 - INFO - of old\n").unwrap();
        fs::write(aside(&path, 1), text("bbbbbbbb", "[aaaaaaaa] no") + &text("aaaaaaaa", "two")).unwrap();
        let json = "{\"time\":\"t\",\"run\":\"aaaaaaaa\",\"message\":\"three\"}\n";
        fs::write(&path, json.to_owned() + &text("cccccccc", "last") + "{ torn").unwrap();
        let ends: Vec<_> =
            lines(&path, Some("aaaaaaaa")).iter().map(|line| line[line.len() - 3..].to_owned()).collect();
        assert_eq!(ends, ["one", "two", "e\"}"]);
        assert_eq!(lines(&path, None).len(), 1);
        assert!(lines(&path, Some("dddddddd")).is_empty());
    }
}
