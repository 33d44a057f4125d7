//! Records the progress and result of this run for `kvmb jobs`, and shows its progress to programs. A job file that
//! cannot be written does not stop the run.

use crate::cli::failure::exit_code::ExitCode;
use crate::cli::folders::state_folder;
use crate::cli::run::Run;
use crate::cli::terminal::progress::ProgressBoard;
use crate::history::jobs::{JobRecords, JobWriter, Jobs, seconds};
use crate::record::{Job, Record, Time};
use chrono::Local;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The commands whose runs are jobs, if they are logged: of `files`, only `cp` is.
const JOBS: [&str; 10] =
    ["backup", "push", "verify", "restore", "drill", "files", "serve", "mount", "prune", "snapshot"];

/// Interval at which progress is recorded and shown.
const INTERVAL: Duration = Duration::from_secs(1);

/// Number of intervals over which the rate is averaged.
const RATE_INTERVALS: usize = 15;

/// Maximum length of an error text; longer ones are truncated.
const LONGEST_ERROR_CHARS: usize = 1000;

/// A thread that records and shows the progress of this run, and the file that it writes.
#[derive(Debug)]
pub(crate) struct JobRecorder {
    job: Option<Arc<Mutex<JobWriter>>>,
    board: Arc<ProgressBoard>,
    ticker: Option<(crossbeam_channel::Sender<()>, JoinHandle<()>)>,
}

/// Keeps the records that a job prints.
#[derive(Debug)]
pub(crate) struct RecordKeeper {
    job: Arc<Mutex<JobWriter>>,
    records: JobRecords,
}

impl JobRecorder {
    /// Starts recording. A dry run is not a job.
    pub(crate) fn begin(run: &Run, dry_run: bool, board: &Arc<ProgressBoard>) -> (JobRecorder, Option<RecordKeeper>) {
        let is_job = JOBS.contains(&run.command) && run.keeps_log && !dry_run;
        let begun = is_job.then(|| begin(run)).flatten();
        let (job, keeper) = match begun {
            Some((job, records)) => {
                let job = Arc::new(Mutex::new(job));
                (Some(Arc::clone(&job)), Some(RecordKeeper { job, records }))
            }
            None => (None, None),
        };
        let ticker = (job.is_some() || board.is_shown()).then(|| start_ticker(job.clone(), board)).flatten();
        (JobRecorder { job, board: Arc::clone(board), ticker }, keeper)
    }

    /// Records the result of the run.
    pub(crate) fn end(self, code: ExitCode) {
        if let Some((stop, thread)) = self.ticker {
            drop(stop);
            let _ = thread.join();
        }
        let Some(job) = self.job else { return };
        let now = Local::now().fixed_offset();
        let (done_bytes, total_bytes) = self.board.sums();
        let written = lock(&job).change(|job| {
            job.status = status(code).to_owned();
            job.exit_code = Some(u32::from(code as u8));
            job.ended_at = Some(now);
            job.duration_seconds = seconds(job.began_at, now);
            (job.done_bytes, job.total_bytes) = (done_bytes, total_bytes);
            (job.bytes_per_second, job.left_seconds, job.steps) = (None, None, Vec::new());
        });
        warn_of(written);
    }
}

impl RecordKeeper {
    pub(crate) fn add(&mut self, record: &Record) {
        warn_of(self.records.add(record));
        if let Record::Failure(failure) = record {
            let error = failure.error.chars().take(LONGEST_ERROR_CHARS).collect();
            warn_of(lock(&self.job).change(|job| {
                job.failures += 1;
                job.error = Some(error);
            }));
        }
    }
}

fn lock(job: &Mutex<JobWriter>) -> MutexGuard<'_, JobWriter> {
    job.lock().unwrap_or_else(PoisonError::into_inner)
}

fn warn_of(written: std::io::Result<()>) {
    if let Err(error) = written {
        tracing::warn!("cannot record the job: {error}");
    }
}

fn begin(run: &Run) -> Option<(JobWriter, JobRecords)> {
    let folder = state_folder().ok()?;
    let job = Job {
        job: run.id.clone(),
        command: run.command.to_owned(),
        arguments: std::env::args_os().skip(1).map(|word| without_password(&word.to_string_lossy())).collect(),
        status: "running".into(),
        user: user(),
        origin: origin().to_owned(),
        pid: std::process::id(),
        began_at: now(),
        ..Job::default()
    };
    match Jobs::of(&folder).begin(job) {
        Ok(begun) => Some(begun),
        Err(error) => {
            tracing::warn!("cannot record the job: {error}");
            None
        }
    }
}

fn now() -> Time {
    Local::now().fixed_offset()
}

fn start_ticker(
    job: Option<Arc<Mutex<JobWriter>>>,
    board: &Arc<ProgressBoard>,
) -> Option<(crossbeam_channel::Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let board = Arc::clone(board);
    let ticks = move || {
        let mut seen = VecDeque::from([(Instant::now(), 0)]);
        while stopped.recv_timeout(INTERVAL) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            board.show();
            let (done, total) = board.sums();
            seen.push_back((Instant::now(), done));
            if seen.len() > RATE_INTERVALS {
                seen.pop_front();
            }
            let rate = seen
                .front()
                .map(|(then, before)| (done.saturating_sub(*before)) as f64 / then.elapsed().as_secs_f64().max(0.001));
            if let Some(job) = &job {
                let steps = board.steps();
                warn_of(lock(job).change(|job| {
                    (job.done_bytes, job.total_bytes, job.steps) = (done, total, steps);
                    job.bytes_per_second = rate;
                    let left = total.saturating_sub(done) as f64;
                    job.left_seconds = rate.filter(|rate| *rate >= 1.0).map(|rate| (left / rate).round());
                }));
            }
        }
    };
    thread::Builder::new().name("job".into()).spawn(ticks).ok().map(|thread| (stop, thread))
}

fn status(code: ExitCode) -> &'static str {
    match code {
        ExitCode::Done => "done",
        ExitCode::Failed | ExitCode::Usage => "failed",
        ExitCode::Partial => "partial",
        ExitCode::Damage => "damage",
        ExitCode::Busy => "busy",
        ExitCode::Interrupted | ExitCode::Terminated => "interrupted",
    }
}

/// Returns an argument with the password in an address hidden. (Such an address is refused later.)
fn without_password(word: &str) -> String {
    let hidden = || {
        let (scheme, rest) = word.split_once("://")?;
        let (login, place) = rest.split_once('@')?;
        let (user, _) = login.split_once(':').filter(|_| !login.contains('/'))?;
        Some(format!("{scheme}://{user}:***@{place}"))
    };
    hidden().unwrap_or_else(|| word.to_owned())
}

/// Returns the user who started this run.
fn user() -> String {
    let uid = rustix::process::getuid();
    let by_sudo = std::env::var("SUDO_USER").ok().filter(|name| uid.is_root() && !name.is_empty());
    let name = || uzers::get_user_by_uid(uid.as_raw()).map(|user| user.name().to_string_lossy().into_owned());
    by_sudo.or_else(name).unwrap_or_else(|| uid.as_raw().to_string())
}

/// Returns what started this run, judging by its ancestors.
fn origin() -> &'static str {
    let mut pid = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    for _ in 0..8 {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { break };
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else { break };
        match name {
            "cron" | "crond" | "CRON" | "anacron" => return "cron",
            "kvmb" if is_console(pid) => return "console",
            _ => pid = rest.split_whitespace().nth(1).and_then(|parent| parent.parse().ok()).unwrap_or(0),
        }
    }
    match std::env::var_os("INVOCATION_ID") {
        // A login session of systemd --user has this variable too, but a service is its own session leader, without a
        // terminal.
        Some(_) if rustix::process::getsid(None).is_ok_and(|sid| sid == rustix::process::getpid()) => "systemd",
        _ => "shell",
    }
}

/// Whether a process is kvmb's web console.
fn is_console(pid: i32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).skip(1).any(|word| word == b"ui")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_are_not_recorded() {
        for (word, kept) in [
            ("sftp://kvm:secret@host//backup", "sftp://kvm:***@host//backup"),
            ("rest:https://u:p@host/", "rest:https://u:***@host/"),
            ("sftp://kvm@host:22//backup", "sftp://kvm@host:22//backup"),
            ("vm1@2026-11-20T14:30", "vm1@2026-11-20T14:30"),
            ("/backup://a@b", "/backup://a@b"),
        ] {
            assert_eq!(without_password(word), kept);
        }
    }
}
