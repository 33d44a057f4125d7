//! Reads records from standard input, by the rules of a pipeline.

use crate::cli::failure::{CliError, Code};
use crate::cli::terminal::stderr::report;
use crate::ops::{self, Stop};
use crate::record::{Failure, ParseError, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::time::{Duration, Instant};

/// Longer lines are not valid records: a disk's or a point's record has a few kilobytes.
const LONGEST_LINE_BYTES: usize = 16 << 20;

/// Written before UTF-8 text by some Windows editors and shells.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Iterates over the records of standard input as they arrive.
///
/// Also accepts a complete JSON array (the output of `-o json`). Input without any record that the command can act on
/// is a usage error, so that a broken or missing stage does not look like success. Machines of a `snapshot` run that
/// never arrived are reported as a failure at the end.
pub(crate) struct Records<R> {
    command: &'static str,
    reader: R,
    waiting: VecDeque<Record>,
    line_number: usize,
    any: bool,
    ended: bool,
    batches: Batches,
    /// The types of records that the command acts on.
    wanted: &'static [&'static str],
    /// The other types that have arrived, as long as nothing else has.
    unwanted: Option<BTreeSet<String>>,
}

/// The `snapshot` runs that the records belong to, and which of their machines have arrived.
#[derive(Debug, Default)]
struct Batches {
    /// By the run's id: how many machines it covers, and those that have arrived.
    machines: BTreeMap<String, (usize, BTreeSet<String>)>,
    any_failure: bool,
}

impl Batches {
    fn note(&mut self, record: &Record) {
        let text = |text: &str| Some(text.to_owned());
        let (batch, expected, machine) = match record {
            Record::Disk(disk) => (disk.batch.clone(), disk.batch_machines, text(&disk.uuid)),
            Record::Point(point) => (point.batch.clone(), point.batch_machines, text(&point.uuid)),
            // An action stands for a machine without disks.
            Record::Action(action) => {
                let field = |key: &str| action.extra.get(key);
                let words = |key: &str| field(key).and_then(|value| value.as_str()).and_then(text);
                let expected = field("batch_machines").and_then(|count| usize::try_from(count.as_u64()?).ok());
                (words("batch"), expected, words("uuid"))
            }
            Record::Failure(_) => {
                self.any_failure = true;
                return;
            }
            _ => return,
        };
        if let (Some(batch), Some(expected), Some(machine)) = (batch, expected, machine) {
            self.machines.entry(batch).or_insert((expected, BTreeSet::new())).1.insert(machine);
        }
    }

    /// Returns a failure for machines that never arrived and that no stage reported: a stage was killed, or a filter
    /// removed them. Otherwise the rest of the pipeline would take the incomplete input for complete.
    fn cut_off(&mut self, command: &str) -> Option<Failure> {
        if std::mem::replace(&mut self.any_failure, true) {
            return None;
        }
        let (expected, came) = self.machines.values().find(|(expected, came)| came.len() < *expected)?;
        let error =
            CliError::new(Code::Incomplete, format!("only {} of {expected} captured machines arrived", came.len()))
                .hint(
                    "an earlier command in the pipe ended early or left them out; 'kvmb release' closes their captures",
                );
        report(&error.message, error.hint.as_deref());
        Some(error.to_record(command))
    }
}

/// How long an interrupted command waits for the end of its input. Ctrl-C reaches every stage of a pipeline, and what
/// earlier stages report about their captures must still reach `release`.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Standard input, until shortly after `stop` is raised: a stage that waits for records must be able to end.
#[derive(Debug)]
pub(crate) struct Stdin {
    stop: Stop,
    stopped_at: Option<Instant>,
}

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        /// A signal that arrives just before the wait is noticed after it.
        const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        let stdin = io::stdin();
        loop {
            if self.stop.requested() && self.stopped_at.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS {
                self.stop.check().map_err(io::Error::other)?;
            }
            match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&LOOK_AGAIN)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                _ => {}
            }
            // Bypass the standard library's buffer: poll() does not see data that is already buffered.
            match rustix::io::read(&stdin, &mut *buffer) {
                Err(rustix::io::Errno::INTR) => {}
                read => return Ok(read?),
            }
        }
    }
}

/// Returns the records of standard input. Refuses a terminal, on which nobody would type records.
pub(crate) fn stdin_records(
    command: &'static str,
    what: &str,
    wanted: &'static [&'static str],
    stop: &Stop,
) -> Result<Records<BufReader<Stdin>>, CliError> {
    if io::stdin().is_terminal() {
        return Err(CliError::usage(format!("no {what} given"))
            .hint(format!("specify {what}, or pipe records into the command: kvmb … | kvmb …")));
    }
    Ok(Records::new(command, wanted, BufReader::new(Stdin { stop: stop.clone(), stopped_at: None })))
}

fn unreadable(error: io::Error) -> CliError {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(ops::Error::Interrupted) => CliError::new(Code::Interrupted, "interrupted while waiting for records"),
        _ => CliError::failed(format!("cannot read standard input: {error}")),
    }
}

impl<R: BufRead> Records<R> {
    /// Returns the records in `reader`, for a command.
    pub(crate) fn new(command: &'static str, wanted: &'static [&'static str], reader: R) -> Records<R> {
        Records {
            command,
            reader,
            waiting: Default::default(),
            line_number: 0,
            any: false,
            ended: false,
            batches: Batches::default(),
            wanted,
            unwanted: Some(BTreeSet::new()),
        }
    }

    fn line(&mut self) -> Result<Option<String>, CliError> {
        let mut line = Vec::new();
        let mut limited = io::Read::take(&mut self.reader, LONGEST_LINE_BYTES as u64 + 1);
        let count = limited.read_until(b'\n', &mut line).map_err(unreadable)?;
        self.line_number += 1;
        if self.line_number == 1 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        match count {
            0 => Ok(None),
            _ if count > LONGEST_LINE_BYTES => Err(self.bad("the line is too long")),
            _ => String::from_utf8(line).map(Some).map_err(|_| self.bad("not UTF-8")),
        }
    }

    fn bad(&self, why: impl std::fmt::Display) -> CliError {
        CliError::usage(format!("line {} of standard input: {why}", self.line_number))
            .hint("the input must be the output of kvmb: one JSON record per line")
    }

    /// Returns the error for an invalid record. A record that ends too early spans several lines, or was cut off.
    fn bad_record(&self, line: &str, error: ParseError) -> CliError {
        let is_part = matches!(&error, ParseError::Json(json) if json.is_eof());
        match (is_part, line.ends_with('\n')) {
            (false, _) => self.bad(error),
            (true, true) => self.bad(error).hint("print each record on one line, as 'jq -c' does"),
            (true, false) => self
                .bad("the record is incomplete")
                .hint("the input was cut off; check whether the first command of the pipe failed"),
        }
    }

    fn array(&mut self, first: String) -> Result<(), CliError> {
        let mut text = first;
        while let Some(line) = self.line()? {
            text.push_str(&line);
        }
        let items: Vec<serde_json::Value> = serde_json::from_str(&text).map_err(|error| self.bad(error))?;
        for item in items {
            let record = Record::parse(&item.to_string()).map_err(|error| self.bad(error))?;
            self.waiting.push_back(record);
        }
        Ok(())
    }

    /// Reads until a record is available or the input ends.
    fn fill(&mut self) -> Result<(), CliError> {
        while self.waiting.is_empty() && !self.ended {
            match self.line()? {
                None => self.ended = true,
                Some(line) if line.trim().is_empty() => {}
                Some(line) if line.trim_start().starts_with('[') && !self.any => {
                    self.array(line)?;
                    self.ended = true;
                }
                Some(line) => {
                    let record = Record::parse(line.trim()).map_err(|error| self.bad_record(&line, error))?;
                    self.waiting.push_back(record);
                }
            }
        }
        Ok(())
    }

    /// Waits for the first record, and returns whether there is none. For commands that work without input.
    pub(crate) fn are_missing(&mut self) -> Result<bool, CliError> {
        self.fill()?;
        Ok(self.waiting.is_empty() && !self.any)
    }

    fn note_type(&mut self, record: &Record) {
        // A failure is reported anyway, an action stands for a machine without disks or for a dry run, and unknown
        // types are only passed on.
        let is_neutral = matches!(record, Record::Failure(_) | Record::Action(_) | Record::Other(_));
        match &mut self.unwanted {
            Some(unwanted) if !is_neutral && !self.wanted.contains(&record.kind()) => {
                unwanted.insert(record.kind().to_owned());
            }
            unwanted => *unwanted = None,
        }
    }

    fn all_unwanted(&self, unwanted: &BTreeSet<String>) -> CliError {
        let quoted = |kinds: Vec<&str>, and: &str| {
            let kinds: Vec<String> = kinds.iter().map(|kind| format!("'{kind}'")).collect();
            kinds.join(and)
        };
        let wanted = quoted(self.wanted.to_vec(), " or ");
        let unwanted = quoted(unwanted.iter().map(String::as_str).collect(), " and ");
        CliError::usage(format!("standard input has no {wanted} records, only {unwanted}"))
            .hint(format!("check the commands before 'kvmb {}' in the pipe", self.command))
    }

    fn advance(&mut self) -> Result<Option<Record>, CliError> {
        self.fill()?;
        if let Some(record) = self.waiting.pop_front() {
            self.any = true;
            self.batches.note(&record);
            self.note_type(&record);
            return Ok(Some(record));
        }
        match self.any {
            true => match self.unwanted.take() {
                Some(unwanted) => Err(self.all_unwanted(&unwanted)),
                None => Ok(self.batches.cut_off(self.command).map(Record::Failure)),
            },
            false => Err(CliError::usage("no names were given and standard input is empty")
                .hint("check whether the first command of the pipe failed")),
        }
    }
}

impl<R: BufRead> Iterator for Records<R> {
    type Item = Result<Record, CliError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(record) => record.map(Ok),
            Err(error) => {
                self.ended = true;
                self.any = true;
                self.waiting.clear();
                self.unwanted = None;
                self.batches.any_failure = true;
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Result<Record, CliError>> {
        Records::new("push", &["disk", "point", "file"], text.as_bytes()).collect()
    }

    #[test]
    fn json_lines_and_arrays_give_the_same_records() {
        let line = r#"{"type":"file","path":"a","size_bytes":1,"sha256":"00"}"#;
        let lines = read(&format!("{line}\n\n{line}"));
        let array = read(&format!("[{line},\n {line}]\n"));
        assert_eq!(lines.len(), 2);
        for (a, b) in lines.into_iter().zip(array) {
            assert_eq!(a.unwrap(), b.unwrap());
        }
    }

    #[test]
    fn byte_order_mark_is_skipped_only_at_the_start() {
        let line = r#"{"type":"file","path":"a","size_bytes":1,"sha256":"00"}"#;
        for text in [format!("\u{feff}{line}\r\n{line}\r\n"), format!("\u{feff}[{line},{line}]")] {
            let records = read(&text);
            assert!(records.len() == 2 && records.iter().all(Result::is_ok), "{records:?}");
        }
        assert!(read(&format!("{line}\n\u{feff}{line}\n"))[1].is_err());
    }

    #[test]
    fn hint_names_the_cause_of_an_invalid_record() {
        let hint = |text: &str| read(text).remove(0).unwrap_err().hint.unwrap_or_default();
        assert!(hint("{\n  \"type\": \"file\",\n").contains("jq -c"));
        assert!(hint("{\"type\":\"file\",\"pa").contains("cut off"));
        assert!(hint("nonsense").contains("the output of kvmb"));
    }

    #[test]
    fn input_with_only_records_of_other_types_is_an_error() {
        let machine = r#"{"type":"machine","connect":"c","machine":"m","uuid":"u","state":"running","persistent":true,"autostart":false,"memory_bytes":1,"vcpus":1,"disks":[],"agent":"none"}"#;
        let file = r#"{"type":"file","path":"a","size_bytes":1,"sha256":"00"}"#;
        let records = |text: String| Records::new("push", &["disk", "file"], text.as_bytes()).collect::<Vec<_>>();
        let error = records(format!("{machine}\n{machine}\n")).pop().unwrap().unwrap_err();
        assert_eq!(error.message, "standard input has no 'disk' or 'file' records, only 'machine'");
        let failure = r#"{"type":"failure","command":"snapshot","code":"busy","error":"e"}"#;
        for other in [file, failure, r#"{"type":"action","action":"a","target":"t","changed":true,"reason":"r"}"#] {
            let records = records(format!("{machine}\n{other}\n"));
            assert!(records.len() == 2 && records.iter().all(Result::is_ok), "{records:?}");
        }
    }

    #[test]
    fn input_without_records_is_an_error() {
        for text in ["", "\n\n", "[]", "[ ]\n"] {
            assert!(Records::new("backup", &["disk"], text.as_bytes()).are_missing().unwrap());
            let records = read(text);
            assert_eq!(records.len(), 1, "{text:?}");
            assert!(records[0].is_err());
        }
    }

    #[test]
    fn machine_missing_from_its_batch_is_reported_as_a_failure() {
        let file = |uuid: &str| {
            format!(
                r#"{{"type":"point","point":"p","repo":"r","machine":"m","uuid":"{uuid}","host":"h","captured_at":"2026-11-20T12:00:00+01:00","consistency":"crash","batch":"b-1","batch_machines":2,"disks":[]}}"#
            )
        };
        let kinds = |text: String| -> Vec<String> {
            read(&text).into_iter().map(|record| record.unwrap().kind().to_owned()).collect()
        };
        assert_eq!(kinds(file("1")), ["point", "failure"]);
        assert_eq!(kinds(file("1") + "\n" + &file("1")), ["point", "point", "failure"]);
        assert_eq!(kinds(file("1") + "\n" + &file("2")), ["point", "point"]);
        // A stage that has reported a failure need not report more.
        let failure = r#"{"type":"failure","command":"snapshot","code":"busy","error":"e"}"#;
        assert_eq!(kinds(format!("{}\n{failure}\n", file("1"))), ["point", "failure"]);
    }

    #[test]
    fn invalid_record_ends_the_stream_with_one_error() {
        let records = read("{\"type\":\"x\"}\nnonsense\n{\"type\":\"x\"}\n");
        assert_eq!(records.len(), 2);
        assert!(records[0].is_ok() && records[1].is_err());
    }
}
