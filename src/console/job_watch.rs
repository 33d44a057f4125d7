//! The jobs of this host, from a single command for all pages and streams: `kvmb jobs --follow`.
//!
//! The command runs while pages are in use. A page reads the known state; a stream waits for changes.

use crate::record::{Job, Record};
use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// The command ends this long after the last use.
const IDLE: Duration = Duration::from_secs(60);

/// The number of jobs that are remembered, newest first; the same as in the toolbox.
const MOST_JOBS: usize = 500;

#[derive(Debug)]
pub(super) struct JobWatch {
    known: Mutex<KnownJobs>,
    changes: watch::Sender<u64>,
    /// Lets only one caller at a time start the command.
    starting: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct KnownJobs {
    jobs: HashMap<String, Job>,
    /// Whether the command is running.
    is_followed: bool,
    /// The number of jobs that were seen to end.
    ended: u64,
    /// The time of the last use.
    looked: Instant,
}

impl KnownJobs {
    fn take(&mut self, job: Job) {
        let before = self.jobs.get(&job.job).map(|known| known.status.clone());
        self.ended += u64::from(before.as_deref() == Some("running") && job.status != "running");
        self.jobs.insert(job.job.clone(), job);
        if self.jobs.len() > MOST_JOBS {
            let oldest = self.jobs.values().min_by_key(|job| job.began_at).map(|job| job.job.clone());
            oldest.map(|id| self.jobs.remove(&id));
        }
    }
}

impl JobWatch {
    pub(super) fn new() -> JobWatch {
        let known = KnownJobs { jobs: HashMap::new(), is_followed: false, ended: 0, looked: Instant::now() };
        JobWatch { known: Mutex::new(known), changes: watch::Sender::new(0), starting: tokio::sync::Mutex::new(()) }
    }

    fn known(&self) -> MutexGuard<'_, KnownJobs> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the command is running; otherwise the caller must call [`JobWatch::follow`]. Records the use.
    fn is_followed(&self) -> bool {
        let mut known = self.known();
        known.looked = Instant::now();
        known.is_followed
    }

    /// Follows the jobs with `command`, unless that is already running. `first` returns the current jobs.
    pub(super) async fn follow(
        self: &Arc<Self>,
        command: impl FnOnce() -> Command,
        first: impl Future<Output = Vec<Job>>,
    ) {
        if self.is_followed() {
            return;
        }
        let _one_at_a_time = self.starting.lock().await;
        if self.is_followed() {
            return;
        }
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        match command.spawn() {
            Ok(child) => {
                self.known().is_followed = true;
                tokio::spawn(Arc::clone(self).read(child));
            }
            // Without the command, pages show the state of their last load.
            Err(error) => tracing::warn!("console: cannot follow the jobs: {error}"),
        }
        let jobs = first.await;
        let mut known = self.known();
        for job in jobs {
            // Records that arrived meanwhile are newer.
            if !known.is_followed || !known.jobs.contains_key(&job.job) {
                known.take(job);
            }
        }
    }

    async fn read(self: Arc<Self>, mut child: Child) {
        let mut lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        while let Some(lines) = lines.as_mut() {
            match tokio::time::timeout(IDLE, lines.next_line()).await {
                Ok(Ok(Some(line))) => {
                    if let Ok(Record::Job(job)) = Record::parse(&line) {
                        self.known().take(job);
                        self.changes.send_modify(|count| *count += 1);
                    }
                }
                Ok(_) => break,
                Err(_) => {}
            }
            if self.known().looked.elapsed() > IDLE && self.changes.receiver_count() == 0 {
                break;
            }
        }
        let mut known = self.known();
        known.is_followed = false;
        // Changes from now on go unnoticed.
        known.jobs.clear();
    }

    /// Returns all jobs, newest first.
    pub(super) fn jobs(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self.known().jobs.values().cloned().collect();
        jobs.sort_by(|a, b| (b.began_at, &b.job).cmp(&(a.began_at, &a.job)));
        jobs
    }

    /// Returns the number of jobs that were seen to end.
    pub(super) fn ended(&self) -> u64 {
        self.known().ended
    }

    /// Returns a receiver that is notified of changes while it exists.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(id: &str, second: u32, status: &str) -> Job {
        let began_at = format!("2026-11-20T02:00:{second:02}+01:00");
        serde_json::from_value(json!({
            "job": id, "command": "backup", "arguments": [], "status": status, "user": "root", "origin": "cron",
            "pid": 1, "began_at": began_at, "duration_seconds": 1.0, "done_bytes": 0, "total_bytes": 0, "failures": 0,
        }))
        .unwrap()
    }

    fn lines(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn reported_jobs_override_a_late_answer_and_ends_are_counted() {
        block_on(async {
            let watch = Arc::new(JobWatch::new());
            let mut changes = watch.subscribe();
            let line = |job: Job| Record::Job(job).to_line();
            let script = format!(
                "echo '{}'; read line </dev/null; echo '{}'; exec sleep 600",
                line(job("a", 1, "running")),
                line(job("a", 1, "done"))
            );
            // This answer arrives late, with the state before the job's end.
            let first = async {
                while watch.ended() == 0 {
                    changes.changed().await.unwrap();
                }
                vec![job("a", 1, "running"), job("b", 2, "done")]
            };
            watch.follow(|| lines(&script), first).await;
            let jobs = watch.jobs();
            let seen: Vec<_> = jobs.iter().map(|job| (job.job.as_str(), job.status.as_str())).collect();
            assert_eq!(seen, [("b", "done"), ("a", "done")]);
            assert_eq!(watch.ended(), 1);
            // The command runs only once.
            watch.follow(|| unreachable!(), async { unreachable!() }).await;
        });
    }

    #[test]
    fn following_ends_with_the_command_and_can_begin_again() {
        block_on(async {
            let watch = Arc::new(JobWatch::new());
            for round in 0..2 {
                let mut is_started = false;
                let command = || {
                    is_started = true;
                    lines("exit 1")
                };
                watch.follow(command, async { vec![job("a", round, "done")] }).await;
                while watch.known().is_followed {
                    tokio::task::yield_now().await;
                }
                assert!(is_started, "round {round}");
            }
        });
    }
}
