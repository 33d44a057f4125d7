//! `kvmb jobs`

use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::folders::state_folder;
use crate::cli::output::has_reader;
use crate::cli::session::Session;
use crate::history::jobs::{JobError, Jobs};
use crate::record::{Action, Record};
use serde_json::json;
use std::time::Duration;

/// How often to check whether a job has changed.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// List the running and past jobs of this host, and cancel jobs.
///
/// A job is a run of a command that backs up, copies, restores, verifies, serves or prunes, whoever started it: a
/// shell, cron, systemd or the console. The newest 500 are kept in the data folder of the user who ran them. Prints a
/// 'job' record for each, oldest first.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  kvmb jobs
  kvmb jobs --running
  kvmb jobs show 5f0c2a9e
  kvmb jobs --follow --json | jq -r 'select(.status != \"running\") | [.job, .status] | @tsv'
  kvmb jobs --limit 20 --json | jq -r 'select(.status == \"failed\") | .error'"
)]
pub(crate) struct JobsArgs {
    /// Only jobs that are running.
    #[arg(long)]
    running: bool,

    /// Only the newest N jobs.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Then print each job again whenever it changes, until Ctrl-C. Records only, no table.
    #[arg(long, conflicts_with = "limit")]
    follow: bool,

    #[command(subcommand)]
    command: Option<JobsCommand>,
}

#[derive(Debug, clap::Subcommand)]
enum JobsCommand {
    /// Show a job and the records that it printed.
    #[command(after_help = "Examples:
  kvmb jobs show 5f0c2a9e
  kvmb jobs show 5f0c2a9e --json | jq -r 'select(.type == \"failure\") | .error'")]
    Show {
        /// The job. The beginning of an ID is enough.
        #[arg(value_name = "ID")]
        job: String,
    },
    /// Interrupt jobs, as Ctrl-C does: they clean up and exit.
    ///
    /// Prints an action record for each. An interrupted backup keeps the points that it has stored.
    #[command(after_help = "Examples:
  kvmb jobs cancel 5f0c2a9e
  kvmb jobs cancel -n 5f0c")]
    Cancel {
        /// The jobs. The beginning of an ID is enough.
        #[arg(required = true, value_name = "ID")]
        jobs: Vec<String>,

        /// Show what would be interrupted without doing it.
        #[arg(short = 'n', long)]
        dry_run: bool,
    },
}

impl JobsArgs {
    /// Whether the command changes anything.
    pub(crate) fn changes(&self) -> bool {
        matches!(self.command, Some(JobsCommand::Cancel { .. }))
    }

    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let jobs = Jobs::of(&state_folder()?);
        if let Some(JobsCommand::Cancel { jobs: ids, dry_run }) = &self.command {
            for id in ids {
                match cancel(&jobs, id, *dry_run) {
                    Ok(action) => session.done(Record::Action(action)),
                    Err(error) => session.fail(Default::default(), error),
                }
            }
            return Ok(());
        }
        if let Some(JobsCommand::Show { job: id }) = self.command {
            let job = jobs.find(&id).map_err(explained)?;
            session.done(Record::Job(job.clone()));
            jobs.records(&job).iter().for_each(|record| session.pass(record));
            return Ok(());
        }
        if self.follow {
            return follow(context, &jobs, self.running, session);
        }
        let mut all = jobs.all().map_err(explained)?;
        all.retain(|job| !self.running || job.status == "running");
        let too_many = self.limit.map_or(0, |limit| all.len().saturating_sub(limit));
        for job in all.into_iter().skip(too_many) {
            session.done(Record::Job(job));
        }
        Ok(())
    }
}

/// Prints the jobs, and each one that changes, until the run is interrupted or the reader closes the pipe.
fn follow(context: &Context, jobs: &Jobs, only_running: bool, session: &mut Session) -> Result<(), CliError> {
    if !session.prints_at_once() {
        return Err(CliError::usage("--follow prints records and requires --json").hint("kvmb jobs --follow --json"));
    }
    let mut follower = jobs.follow();
    while !context.stop.requested() && !session.is_pointless() && has_reader() {
        for job in follower.changed().map_err(explained)? {
            // A job that has ended is printed if it was seen running.
            if !only_running || job.status == "running" || follower.was_running(&job) {
                session.done(Record::Job(job));
            }
        }
        std::thread::sleep(FOLLOW_INTERVAL);
    }
    Ok(())
}

fn cancel(jobs: &Jobs, id: &str, dry_run: bool) -> Result<Action, CliError> {
    let job = jobs.find(id).map_err(explained)?;
    let is_running = job.status == "running";
    if is_running && !dry_run {
        match jobs.interrupt(&job) {
            // The job has ended meanwhile, which was the goal.
            Ok(()) | Err(JobError::Ended { .. }) => {}
            Err(error) => return Err(explained(error)),
        }
    }
    let reason = match is_running {
        true if dry_run => "running".to_owned(),
        true => "interrupted; the job cleans up and exits".to_owned(),
        false => format!("not running: {}", job.status),
    };
    let extra = json!({ "pid": job.pid }).as_object().cloned().unwrap_or_default();
    Ok(Action { action: "jobs cancel".into(), target: job.job, changed: is_running, reason, dry_run, extra })
}

fn explained(error: JobError) -> CliError {
    let list = "run 'kvmb jobs' for a list of the jobs";
    match &error {
        JobError::None { .. } => CliError::new(Code::NotFound, error.to_string()).hint(list),
        JobError::Several { .. } => CliError::usage(error.to_string()).hint(list),
        JobError::Signal { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            CliError::new(Code::Permission, error.to_string()).hint("run the command as root")
        }
        _ => CliError::failed(error.to_string()),
    }
}
