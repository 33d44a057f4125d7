//! The log of this run, and the lines that every run logs.

use crate::cli::failure::exit_code::ExitCode;
use crate::cli::folders;
use crate::cli::run::Run;
use crate::cli::terminal::live_lines::StderrAbove;
use crate::cli::terminal::{color, stderr};
use crate::config::Log;
use crate::log::{self, FilePlan, Level, LogSettings, line, rotating};
use clap::{Args, ValueEnum};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The log.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// Log file.
    ///
    /// Default: $KVMB_LOG_FILE, otherwise log.file of the configuration, otherwise /var/log/kvm_backup.log or, if
    /// that cannot be written, ~/.local/state/kvmb/kvmb.log. Under systemd, the journal is used. Only 'verify' and
    /// commands that change something are logged.
    #[arg(long, value_name = "FILE", env = "KVMB_LOG_FILE", hide_env_values = true, global = true)]
    pub(crate) log_file: Option<PathBuf>,

    /// Format of the log.
    #[arg(long, value_enum, default_value_t = LogStyle::Text, value_name = "FORMAT", global = true)]
    pub(crate) log_format: LogStyle,
}

/// How the lines of the log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogStyle {
    /// 2025-08-06 14:30:15,123 - INFO - …, local time.
    Text,
    /// One JSON object per line.
    Json,
}

/// The host's log.
const OF_HOST: &str = "/var/log/kvm_backup.log";

impl LogArgs {
    /// Returns the possible log files, most preferred first.
    pub(crate) fn places(&self) -> Vec<PathBuf> {
        match &self.log_file {
            Some(file) => vec![file.clone()],
            None => {
                let of_user = folders::log_of_user().map(|(path, _)| path);
                [PathBuf::from(OF_HOST)].into_iter().chain(of_user).collect()
            }
        }
    }
}

/// Starts the log of this run with the requested verbosity.
pub(crate) fn start(run: &Run, args: &LogArgs, (quiet, verbose): (bool, u8), config: &Log) {
    let level = match (quiet, verbose) {
        (true, _) => Level::Quiet,
        (_, 0) => Level::Normal,
        (_, 1) => Level::Verbose,
        _ => Level::Debug,
    };
    let journal = run.keeps_log && stderr_is_journal();
    let places = if journal && args.log_file.is_none() { Vec::new() } else { args.places() };
    let style = match args.log_format {
        LogStyle::Text => line::Style::Text,
        LogStyle::Json => line::Style::Json,
    };
    let (max_bytes, keep) = (config.max_size.value().0, config.keep.get());
    let own_folder = folders::log_of_user().filter(|(_, is_own)| *is_own);
    let own_folder = own_folder.and_then(|(path, _)| path.parent().map(Path::to_owned));
    let file = FilePlan { places, own_folder, style, max_bytes, keep };
    let file = (run.keeps_log && !file.places.is_empty()).then_some(file);
    let (run_id, command, color) = (&run.id, run.command, color::on_stderr());
    let writer = || -> Box<dyn Write> { Box::new(StderrAbove) };
    let started = log::start(LogSettings { run: run_id, command, level, color, stderr: writer, file, journal });
    stderr::set_in_journal(started.journal);
    if let Some((path, error)) = started.fault.filter(|_| !quiet) {
        stderr::warning(&format!("logging is disabled: cannot write {}: {error}", path.display()));
    }
    if run.keeps_log {
        tracing::info!("kvmb {} {} begins", env!("CARGO_PKG_VERSION"), run.command);
    }
}

/// Whether standard error is still the journal: systemd identifies its journal socket in `$JOURNAL_STREAM`.
fn stderr_is_journal() -> bool {
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes the last line of a run.
pub(crate) fn ended(run: &Run, code: ExitCode, quiet: bool) {
    if !run.keeps_log {
        return;
    }
    let (_, words) = ExitCode::ALL.into_iter().find(|(known, _)| *known == code).unwrap_or((code, ""));
    let seconds = run.began.elapsed().as_secs_f64();
    tracing::info!(exit_code = code as u8, duration_seconds = seconds, "kvmb {} ends: {words}", run.command);
    // A full disk shows only when a line is written.
    if let Some((path, error)) = rotating::write_fault().filter(|_| !quiet) {
        stderr::warning(&format!("the log of this run is incomplete: cannot write {}: {error}", path.display()));
    }
}
