//! `kvmb log`

use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::output::Format;
use crate::cli::session::Session;
use crate::log::reader::{self, LineFilter, LogFollower};
use crate::record::Record;
use clap::ValueEnum;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often to check a log for new lines.
const INTERVAL: Duration = Duration::from_millis(200);

/// Show the log of one run, or of all runs.
///
/// Prints the lines of the log file as they are, also those in rotated files; with --json, a 'log' record for each. The
/// ID of a run is in each line of the log and in 'kvmb jobs'; it is last_run in the records of 'kvmb status'. Runs
/// under systemd are in the journal: journalctl -t kvmb RUN=ID.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb log
  kvmb log 5f0c2a9e
  kvmb log --all --level warning --limit 20
  kvmb log --follow --grep vm1
  kvmb log 5f0c2a9e --log-file /var/log/kvm_backup.log")]
pub(crate) struct LogCommandArgs {
    /// The ID of the run. Default: the last run in the log.
    #[arg(value_name = "RUN", value_parser = run_id, conflicts_with = "all")]
    run: Option<String>,

    /// Show the lines of all runs.
    #[arg(long)]
    all: bool,

    /// Only lines of this level or a more severe one.
    #[arg(long, value_enum, value_name = "LEVEL")]
    level: Option<LevelChoice>,

    /// Only lines that contain this text, regardless of case.
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,

    /// Only the newest N lines.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Print new lines as they are written, until Ctrl-C. Without RUN, those of all runs.
    #[arg(short, long)]
    follow: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LevelChoice {
    Debug,
    Info,
    Warning,
    Error,
}

fn run_id(text: &str) -> Result<String, String> {
    match text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("expected 8 hexadecimal digits, such as 5f0c2a9e".to_owned()),
    }
}

impl LogCommandArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let places = context.global.log.places();
        let as_records = matches!(context.global.format(), Format::Jsonl | Format::Json);
        for path in &places {
            let cannot_read = cannot_read(path);
            let mut filter = LineFilter {
                run: self.run.clone(),
                level: self.level.map(|level| reader::LEVELS[level as usize].to_owned()),
                text: self.grep.clone(),
            };
            if self.run.is_none() && !self.all && !self.follow {
                filter.run = reader::last_run(path).map_err(&cannot_read)?;
                if filter.run.is_none() {
                    continue;
                }
            }
            // Following starts at the end of the existing lines, so that none is lost or printed twice.
            let follower = match self.follow {
                true => Some(LogFollower::at_end(path, filter.clone()).map_err(&cannot_read)?),
                false => None,
            };
            let end = follower.as_ref().map(LogFollower::began_at_byte);
            let is_any = reader::lines(path, &filter, self.limit, end, &mut |line| {
                show(line, as_records, session);
                !session.is_pointless() && !context.stop.requested()
            });
            let is_any = is_any.map_err(&cannot_read)?;
            context.stop.check()?;
            if let Some(follower) = follower.filter(|_| is_any) {
                return follow(follower, as_records, context, session).map_err(cannot_read);
            }
            if is_any {
                return Ok(());
            }
        }
        let places: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        let places = places.join(" and ");
        Err(match &self.run {
            Some(run) => CliError::new(Code::NotFound, format!("no run {run} in {places}"))
                .hint(format!("for a run under systemd: journalctl -t kvmb RUN={run}")),
            None => CliError::new(Code::NotFound, format!("no run in {places}"))
                .hint("for runs under systemd: journalctl -t kvmb"),
        })
    }
}

fn cannot_read(path: &Path) -> impl Fn(std::io::Error) -> CliError {
    let path = path.display().to_string();
    move |error| {
        let code = if error.kind() == ErrorKind::PermissionDenied { Code::Permission } else { Code::Failed };
        CliError::new(code, format!("cannot read the log {path}: {error}"))
    }
}

fn show(line: &str, as_record: bool, session: &mut Session) {
    match as_record {
        true => reader::parse(line).into_iter().for_each(|line| session.done(Record::Log(line))),
        false => session.text(format!("{line}\n").as_bytes()),
    }
}

/// Prints new lines until interrupted, or until the reader closes the pipe.
fn follow(
    mut follower: LogFollower,
    as_records: bool,
    context: &Context,
    session: &mut Session,
) -> std::io::Result<()> {
    while !session.is_pointless() && !context.stop.requested() {
        follower.new_lines()?.iter().for_each(|line| show(line, as_records, session));
        thread::sleep(INTERVAL);
    }
    Ok(())
}
