//! Reads the lines of the log from its current and rotated files.

use super::rotating::{MOST_KEPT, aside};
use crate::atomic_file;
use crate::record::{Log, Time};
use chrono::{Local, NaiveDateTime, TimeZone};
use serde_json::Value;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The maximum length of a line; the rest of a longer one is not read as part of it.
const LONGEST_LINE_BYTES: u64 = 1 << 20;

/// The levels of lines, the least severe first.
pub(crate) const LEVELS: [&str; 4] = ["DEBUG", "INFO", "WARNING", "ERROR"];

/// The filter for lines.
#[derive(Debug, Clone, Default)]
pub(crate) struct LineFilter {
    /// Only lines of this run.
    pub(crate) run: Option<String>,
    /// Only lines of this level or a more severe one.
    pub(crate) level: Option<String>,
    /// Only lines that contain this text, ignoring case.
    pub(crate) text: Option<String>,
}

impl LineFilter {
    /// Returns whether a line belongs to a wanted run. Lines that kvmb did not write never do.
    fn is_of_run(&self, line: &str) -> bool {
        run_of(line).is_some_and(|run| self.run.as_ref().is_none_or(|wanted| *wanted == run))
    }

    /// Returns whether a line of a wanted run has the level and the text.
    fn takes(&self, line: &str) -> bool {
        let rank = |level: &str| LEVELS.iter().position(|known| *known == level);
        let has_level = self.level.as_ref().is_none_or(|least| {
            let level = parse(line).map(|line| line.level).unwrap_or_default();
            rank(&level) >= rank(least)
        });
        let has_text = |text: &String| line.to_lowercase().contains(&text.to_lowercase());
        has_level && self.text.as_ref().is_none_or(has_text)
    }
}

/// Calls `found` for each wanted line, oldest first, or with a limit for that many newest ones. Ends early if it
/// returns `false`. `end` is the length of the current file to read; later lines are left to a [`LogFollower`]. Returns
/// whether there is any line of a wanted run, regardless of level and text.
pub(crate) fn lines(
    path: &Path,
    filter: &LineFilter,
    limit: Option<usize>,
    end: Option<u64>,
    found: &mut dyn FnMut(&str) -> bool,
) -> io::Result<bool> {
    let mut is_any = false;
    let end_of = |file: &Path| end.filter(|_| file == path).unwrap_or(u64::MAX);
    let Some(limit) = limit else {
        for file in files(path).iter().rev() {
            let goes_on = each_line(file, end_of(file), &mut |line| {
                let is_of_run = filter.is_of_run(line);
                is_any |= is_of_run;
                !is_of_run || !filter.takes(line) || found(line)
            })?;
            if !goes_on {
                break;
            }
        }
        return Ok(is_any);
    };
    // Read the newest file first, and older ones only until there are enough lines.
    let mut newest = VecDeque::new();
    for file in files(path) {
        let mut of_file = VecDeque::new();
        let room = limit - newest.len();
        each_line(&file, end_of(&file), &mut |line| {
            let is_of_run = filter.is_of_run(line);
            is_any |= is_of_run;
            if is_of_run && filter.takes(line) {
                of_file.push_back(line.to_owned());
                if of_file.len() > room {
                    of_file.pop_front();
                }
            }
            true
        })?;
        of_file.append(&mut newest);
        newest = of_file;
        if newest.len() >= limit && is_any {
            break;
        }
    }
    let _ = newest.iter().all(|line| found(line));
    Ok(is_any)
}

/// Returns the run of the last line in the log.
pub(crate) fn last_run(path: &Path) -> io::Result<Option<String>> {
    for file in files(path) {
        let mut last = None;
        each_line(&file, u64::MAX, &mut |line| {
            last = run_of(line).or(last.take());
            true
        })?;
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}

/// Returns the run of a line, or `None` if kvmb did not write it.
fn run_of(line: &str) -> Option<String> {
    if line.starts_with('{') {
        let object: Value = serde_json::from_str(line).ok()?;
        return object.get("run")?.as_str().map(str::to_owned);
    }
    let (_, _, run, _) = parts(line)?;
    Some(run.to_owned())
}

/// Returns time, level, run and message of `2025-08-06 14:30:15,123 - INFO - [run] message`.
fn parts(line: &str) -> Option<(&str, &str, &str, &str)> {
    let (time, behind) = line.split_once(" - ")?;
    let (level, behind) = behind.split_once(" - ")?;
    let (run, message) = behind.strip_prefix('[')?.split_once(']')?;
    Some((time, level, run, message.trim_start()))
}

/// Parses a line, or returns `None` if kvmb did not write it.
pub(crate) fn parse(line: &str) -> Option<Log> {
    let record = |logged_at, level: &str, run: &str, message: String| Log {
        logged_at,
        level: level.to_owned(),
        run: run.to_owned(),
        message,
        extra: Default::default(),
    };
    if line.starts_with('{') {
        let object: serde_json::Map<String, Value> = serde_json::from_str(line).ok()?;
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        let mut message = text("message")?.to_owned();
        for (key, value) in &object {
            if !["time", "level", "run", "command", "message"].contains(&key.as_str()) {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                message.push_str(&format!(" {key}={value}"));
            }
        }
        let time: Time = text("time")?.parse().ok()?;
        return Some(record(time, text("level")?, text("run")?, message));
    }
    let (time, level, run, message) = parts(line)?;
    let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S,%3f").ok()?;
    let time = Local.from_local_datetime(&time).earliest()?.fixed_offset();
    Some(record(time, level, run, message.to_owned()))
}

/// Returns the files of a log, newest first.
fn files(path: &Path) -> Vec<PathBuf> {
    let set_aside = (1..=MOST_KEPT).map(|number| aside(path, number)).take_while(|path| path.exists());
    [path.to_owned()].into_iter().chain(set_aside).collect()
}

/// Calls `found` for each line in the first `most_bytes` of a file. Stops and returns `false` if it does.
fn each_line(path: &Path, most_bytes: u64, found: &mut dyn FnMut(&str) -> bool) -> io::Result<bool> {
    let file = match atomic_file::open(path) {
        // It was rotated a moment ago, or does not exist yet.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        file => file?,
    };
    let mut file = BufReader::new(file.take(most_bytes));
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = Read::take(&mut file, LONGEST_LINE_BYTES);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(true);
        }
        if !found(String::from_utf8_lossy(&line).trim_end_matches('\n')) {
            return Ok(false);
        }
    }
}

/// Reads lines that are added to a log, across rotations.
#[derive(Debug)]
pub(crate) struct LogFollower {
    path: PathBuf,
    filter: LineFilter,
    file: Option<File>,
    /// The length of the file at the start.
    began_at_byte: u64,
    /// The beginning of an incomplete line.
    rest: Vec<u8>,
}

impl LogFollower {
    /// Starts at the present end of the log.
    pub(crate) fn at_end(path: &Path, filter: LineFilter) -> io::Result<LogFollower> {
        let (file, began_at_byte) = match atomic_file::open(path) {
            Ok(mut file) => {
                let end = file.seek(SeekFrom::End(0))?;
                (Some(file), end)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => (None, 0),
            Err(error) => return Err(error),
        };
        Ok(LogFollower { path: path.to_owned(), filter, file, began_at_byte, rest: Vec::new() })
    }

    /// Returns the length of the log at the start; [`lines`] reads what is before that.
    pub(crate) fn began_at_byte(&self) -> u64 {
        self.began_at_byte
    }

    /// Returns the wanted lines that were added since the last call.
    pub(crate) fn new_lines(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            if let Some(file) = &mut self.file {
                file.read_to_end(&mut self.rest)?;
            }
            let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let whole: Vec<u8> = self.rest.drain(..end).collect();
            let text = String::from_utf8_lossy(&whole);
            let wanted = text.lines().filter(|line| self.filter.is_of_run(line) && self.filter.takes(line));
            lines.extend(wanted.map(str::to_owned));
            // If the name refers to another file, the previous one was rotated, or did not exist.
            let named = match atomic_file::open(&self.path) {
                Ok(named) => named,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(lines),
                Err(error) => return Err(error),
            };
            let id = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
            let is_same = match &self.file {
                Some(file) => id(file)? == id(&named)?,
                None => false,
            };
            if is_same {
                return Ok(lines);
            }
            self.rest.clear();
            self.file = Some(named);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn found(path: &Path, filter: &LineFilter, limit: Option<usize>) -> Vec<String> {
        let mut found = Vec::new();
        lines(path, filter, limit, None, &mut |line| {
            found.push(line[line.len() - 3..].to_owned());
            true
        })
        .unwrap();
        found
    }

    fn of_run(run: &str) -> LineFilter {
        LineFilter { run: Some(run.to_owned()), ..LineFilter::default() }
    }

    fn text(level: &str, run: &str, message: &str) -> String {
        format!("2026-11-20 12:00:00,000 - {level} - [{run}] {message}\n")
    }

    #[test]
    fn lines_are_filtered_across_rotated_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert!(found(&path, &LineFilter::default(), None).is_empty());
        assert_eq!(last_run(&path).unwrap(), None);
        let old = "2025-01-01 00:00:00,000 - INFO - of old\n";
        fs::write(aside(&path, 2), text("INFO", "aaaaaaaa", "one") + old).unwrap();
        fs::write(aside(&path, 1), text("INFO", "bbbbbbbb", "[aaaaaaaa] no") + &text("INFO", "aaaaaaaa", "two"))
            .unwrap();
        let json = "{\"time\":\"2026-11-20T12:00:00+01:00\",\"level\":\"ERROR\",\"run\":\"aaaaaaaa\",\
                    \"message\":\"three\"}\n";
        fs::write(&path, json.to_owned() + &text("WARNING", "cccccccc", "Last") + "{ torn").unwrap();
        let all = ["one", "two", "e\"}"];
        assert_eq!(found(&path, &of_run("aaaaaaaa"), None), all);
        for limit in 0..5 {
            let newest = &all[3usize.saturating_sub(limit)..];
            assert_eq!(found(&path, &of_run("aaaaaaaa"), Some(limit)), newest, "{limit}");
        }
        assert_eq!(last_run(&path).unwrap().as_deref(), Some("cccccccc"));
        assert!(found(&path, &of_run("dddddddd"), None).is_empty());
        assert_eq!(found(&path, &LineFilter::default(), None).len(), 5);
        let level = |level: &str| LineFilter { level: Some(level.into()), ..LineFilter::default() };
        assert_eq!(found(&path, &level("WARNING"), None), ["e\"}", "ast"]);
        assert_eq!(found(&path, &level("ERROR"), None), ["e\"}"]);
        let with = |text: &str| LineFilter { text: Some(text.into()), ..LineFilter::default() };
        assert_eq!(found(&path, &with("lAST"), None), ["ast"]);
        let filter = LineFilter { text: Some("nothing".into()), ..of_run("aaaaaaaa") };
        assert!(lines(&path, &filter, Some(1), None, &mut |_| true).unwrap(), "there is such a run");
    }

    #[test]
    fn text_and_json_lines_are_parsed_and_others_refused() {
        let line = parse(text("WARNING", "aaaaaaaa", "it is so key=1").trim_end()).unwrap();
        assert_eq!((&*line.level, &*line.run, &*line.message), ("WARNING", "aaaaaaaa", "it is so key=1"));
        let json = r#"{"time":"2026-11-20T12:00:00+01:00","level":"INFO","run":"aaaaaaaa","command":"backup",
            "message":"stored","machine":"a b","read_bytes":7}"#;
        assert_eq!(parse(json).unwrap().message, "stored machine=a b read_bytes=7");
        for line in ["", "{", "{}", "a - b - c", "x - INFO - [aaaaaaaa] m", "2026-13-20 12:00:00,000 - INFO - [a] m"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn follower_reads_appended_lines_across_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut follower = LogFollower::at_end(&path, LineFilter::default()).unwrap();
        assert!(follower.new_lines().unwrap().is_empty());
        let add = |text: &str| {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        add(&text("INFO", "aaaaaaaa", "one"));
        add("2026-11-20 12:00:00,000 - IN");
        assert_eq!(follower.new_lines().unwrap().len(), 1);
        add("FO - [aaaaaaaa] two\n");
        fs::rename(&path, aside(&path, 1)).unwrap();
        add(&text("INFO", "aaaaaaaa", "three"));
        let lines = follower.new_lines().unwrap();
        assert!(lines.len() == 2 && lines[0].ends_with("two") && lines[1].ends_with("three"), "{lines:?}");
        assert!(follower.new_lines().unwrap().is_empty());
        let mut late = LogFollower::at_end(&path, LineFilter::default()).unwrap();
        assert!(late.new_lines().unwrap().is_empty());
    }
}
