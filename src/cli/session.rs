//! One run of one command: its records, its failures, its exit code.

use crate::cli::failure::exit_code::{ExitCode, PluginState, Tally};
use crate::cli::failure::hint::pasteable;
use crate::cli::failure::{CliError, Code};
use crate::cli::job_recorder::RecordKeeper;
use crate::cli::output::{CheckDisplay, ClosedPipe, Format, Output};
use crate::cli::table::View;
use crate::cli::terminal::stderr;
use crate::log::SHOWN;
use crate::record::{Check, Failure, Point, Record};

/// What a failure is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    /// The libvirt connection URI.
    pub(crate) connect: Option<String>,
    pub(crate) machine: Option<String>,
    pub(crate) disk: Option<String>,
    /// The capture that is still open.
    pub(crate) capture: Option<String>,
}

impl About {
    /// Returns the subject for a machine as a whole.
    pub(crate) fn machine(connect: &str, machine: &str) -> About {
        About { connect: Some(connect.to_owned()), machine: Some(machine.to_owned()), ..About::default() }
    }
}

/// Collects the records and failures of a command while it runs.
#[derive(Debug)]
pub(crate) struct Session {
    command: &'static str,
    output: Output,
    tally: Tally,
    /// Every record that was printed, if hooks need them.
    kept: Option<Vec<Record>>,
    /// Stores the records for `kvmb jobs`, if the run is a job.
    keeper: Option<RecordKeeper>,
    /// The exit state of a monitoring plugin, if the command acts as one.
    plugin: Option<PluginState>,
}

impl Session {
    pub(crate) fn new(format: Format, command: &'static str, effect: ClosedPipe) -> Session {
        let view = if command == "backup" { View::Backup } else { View::Listing };
        let output = Output::new(format, effect, view);
        Session { command, output, tally: Tally::default(), kept: None, keeper: None, plugin: None }
    }

    pub(crate) fn command(&self) -> &'static str {
        self.command
    }

    /// Prints a record of this command, and counts one success.
    pub(crate) fn done(&mut self, record: Record) {
        self.print(&record);
        self.tally.done();
    }

    fn print(&mut self, record: &Record) {
        self.output.record(record);
        self.kept.iter_mut().for_each(|kept| kept.push(record.clone()));
        self.keeper.iter_mut().for_each(|keeper| keeper.add(record));
    }

    /// Stores every record for `kvmb jobs`.
    pub(crate) fn keep_for_job(&mut self, keeper: Option<RecordKeeper>) {
        self.keeper = keeper;
    }

    /// Keeps every record from here on.
    pub(crate) fn keep_records(&mut self) {
        self.kept.get_or_insert_default();
    }

    /// Returns the records that were kept.
    pub(crate) fn kept_records(&self) -> &[Record] {
        self.kept.as_deref().unwrap_or_default()
    }

    /// Makes a table show checks with problems first, and a summary; `all` shows checks without problems too.
    pub(crate) fn summarize_checks(&mut self, all: bool) {
        self.output.summarize_checks(if all { CheckDisplay::All } else { CheckDisplay::Problems });
    }

    /// Prints text above a table. Programs get the same information in a record.
    pub(crate) fn say_to_people(&mut self, text: &str) {
        self.output.before_table(text);
    }

    /// Prints text that is not a record: a completion script, a manual page.
    pub(crate) fn text(&mut self, text: &[u8]) {
        self.output.text(text);
    }

    /// Counts a success that has no record.
    pub(crate) fn count_done(&mut self) {
        self.tally.done();
    }

    pub(crate) fn prints_to_terminal(&self) -> bool {
        self.output.is_terminal()
    }

    /// Prints no records: standard output is reserved for the bytes of [`Session::text`].
    pub(crate) fn suppress_records(&mut self) {
        self.output.suppress_records();
    }

    /// Prints a record without counting it: an additional one about something counted elsewhere, or one that is passed
    /// on.
    pub(crate) fn pass(&mut self, record: &Record) {
        self.print(record);
    }

    /// Passes on a failure of an earlier stage, and counts it.
    pub(crate) fn pass_failure(&mut self, failure: Failure) {
        let code = Code::ALL.iter().find(|(_, word, _)| *word == failure.code).map_or(Code::Failed, |(code, ..)| *code);
        self.print(&Record::Failure(failure));
        self.tally.failed(code.exit_code());
    }

    /// Prints a failure: as a record, and on standard error for people.
    pub(crate) fn fail(&mut self, about: About, error: impl Into<CliError>) {
        self.report(about, error.into(), stderr::error);
    }

    /// Prints a failure in something that follows the requested work: as a warning for people. It counts as a failure.
    pub(crate) fn warn(&mut self, about: About, error: impl Into<CliError>) {
        self.report(about, error.into(), |message, hint| {
            stderr::warning(message);
            hint.into_iter().for_each(stderr::hint);
        });
    }

    fn report(&mut self, about: About, mut error: CliError, print: impl FnOnce(&str, Option<&str>)) {
        error.hint = error.hint.map(|hint| pasteable(&hint, about.machine.as_deref()));
        let subject = match (&about.machine, &about.disk) {
            (Some(machine), Some(disk)) if !names(&error.message, disk) => format!("{machine}/{disk}: "),
            (Some(machine), _) if !names(&error.message, machine) => format!("{machine}: "),
            _ => String::new(),
        };
        let message = format!("{subject}{}", error.message);
        let (machine, hint) = (about.machine.as_deref(), error.hint.as_deref());
        tracing::error!(target: SHOWN, machine, code = error.code.word(), hint, "{message}");
        print(&message, hint);
        self.tally.failed(error.code.exit_code());
        let failure = Failure {
            connect: about.connect,
            machine: about.machine,
            disk: about.disk,
            capture: about.capture,
            ..error.to_record(self.command)
        };
        self.print(&Record::Failure(failure));
    }

    /// Prints a new point, and counts damage that it reports, in itself or in the chain.
    pub(crate) fn stored(&mut self, point: Point) {
        log_stored(&point);
        for damage in point.damage.iter().chain(&point.chain_damage) {
            let disk = damage.disk.as_deref().unwrap_or("?");
            stderr::report(&format!("{}/{disk}: {}", point.machine, damage.error), None);
        }
        if point.damage.is_empty() && point.chain_damage.is_empty() {
            return self.done(Record::Point(point));
        }
        self.print(&Record::Point(point));
        self.tally.failed(ExitCode::Damage);
    }

    /// After a new point, reports what older points lack, and what this one lacks of its machine. The machine is
    /// stored, but the run counts as incomplete.
    pub(crate) fn report_shortcomings(&mut self, about: About, point: &Point) {
        if let Some(error) = CliError::of_damaged_points(point) {
            self.fail(about.clone(), error);
        }
        if let Some(error) = CliError::of_missing_parts(point) {
            self.fail(about, error);
        }
    }

    /// Prints a check; a critical one counts as a failure.
    pub(crate) fn check(&mut self, mut check: Check) {
        check.hint = check.hint.map(|hint| pasteable(&hint, None));
        if check.is_critical() {
            self.tally.failed(ExitCode::Failed);
        }
        self.print(&Record::Check(check));
    }

    /// Adds lines below a table; other formats do not have them.
    pub(crate) fn close_table(&mut self, text: &str) {
        self.output.close_table(text);
    }

    pub(crate) fn is_table(&self) -> bool {
        self.output.is_table()
    }

    /// Whether each record is printed immediately.
    pub(crate) fn prints_at_once(&self) -> bool {
        self.output.prints_at_once()
    }

    /// Ends the output before the command ends. Later events appear only on standard error and in the exit code.
    pub(crate) fn end_output(&mut self) {
        self.output.finish();
    }

    /// Counts damage that a record reports.
    pub(crate) fn damage(&mut self) {
        self.count_failure(ExitCode::Damage);
    }

    /// Counts a failure that a record reports.
    pub(crate) fn count_failure(&mut self, code: ExitCode) {
        self.tally.failed(code);
    }

    /// Whether the reader has closed the pipe and there is nothing left to do.
    pub(crate) fn is_pointless(&self) -> bool {
        self.output.is_pointless()
    }

    /// Makes the command exit as a monitoring plugin does.
    pub(crate) fn answer_as_plugin(&mut self, state: PluginState) {
        self.plugin = Some(state);
    }

    /// Returns the exit state of a monitoring plugin, if the command acts as one.
    pub(crate) fn plugin(&self) -> Option<PluginState> {
        self.plugin
    }

    pub(crate) fn finish(mut self) -> ExitCode {
        self.output.finish();
        if self.output.is_pointless() && !self.output.has_failed() {
            return ExitCode::Done;
        }
        match self.outcome() {
            // The reader got an incomplete answer, however much was done.
            ExitCode::Done | ExitCode::Partial if self.output.has_failed() => ExitCode::Failed,
            code => code,
        }
    }

    /// Returns the exit code if the command ended now.
    pub(crate) fn outcome(&self) -> ExitCode {
        match (self.tally.code(), crate::cli::terminal::interrupt::exit_code()) {
            // The interruption came too late: everything was done already. Damage is reported in any case.
            (ExitCode::Done | ExitCode::Damage, _) | (_, None) => self.tally.code(),
            // Other failures are consequences of the interruption.
            (_, Some(interrupted)) => interrupted,
        }
    }
}

/// Logs a machine that was backed up.
fn log_stored(point: &Point) {
    tracing::info!(
        machine = point.machine,
        point = point.point,
        read_bytes = point.read_bytes,
        new_bytes = point.new_bytes,
        stored_bytes = point.stored_bytes,
        duration_seconds = point.duration_seconds,
        "{} was backed up",
        point.machine
    );
}

/// Whether a message contains a name as a separate word: "kvmb" does not contain the name "vm".
fn names(message: &str, name: &str) -> bool {
    let within = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    message.match_indices(name).any(|(at, _)| {
        let before = message[..at].chars().next_back();
        let after = message[at + name.len()..].chars().next();
        !before.is_some_and(within) && !after.is_some_and(|c| within(c) && c != '.')
    })
}
