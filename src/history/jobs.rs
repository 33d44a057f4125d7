//! The jobs of this host: `jobs/ID.json` below kvmb's data folder, one for each run, and `jobs/ID.records` with the
//! records that it printed.
//!
//! A run writes its file when it begins, while it works and when it ends. If its process is gone without a result, it
//! was killed. The process is identified by its start time as well, because process ids are reused.

use super::VERSION;
use crate::atomic_file;
use crate::record::{Job, Record, Time};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The maximum number of jobs. The newest ones are kept.
const MOST_JOBS: usize = 500;

/// The maximum size of a file.
const LARGEST_FILE_BYTES: u64 = 1 << 20;

/// The maximum size of a job's records.
const MOST_RECORD_BYTES: u64 = 4 << 20;

/// The time after which the modification time of a folder is reliable: the clocks of file systems are coarse.
const SETTLED: Duration = Duration::from_millis(100);

/// An error of an operation on a job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// There is no job with this id.
    #[error("no job {id}")]
    None { id: String },
    /// Several jobs have ids that begin with this one.
    #[error("several jobs begin with {id}")]
    Several { id: String },
    #[error("job {id} is not running: {status}")]
    Ended { id: String, status: String },
    /// The process cannot be signalled.
    #[error("cannot interrupt job {id}: {source}")]
    Signal { id: String, source: io::Error },
    /// A file or folder is unreadable.
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The jobs below a data folder.
#[derive(Debug, Clone)]
pub(crate) struct Jobs {
    folder: PathBuf,
}

/// The contents of a job's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct JobFile {
    version: u32,
    /// The start time of the process, in ticks since boot.
    started_ticks: u64,
    /// The boot to which the ticks refer.
    boot_id: String,
    job: Job,
}

/// Writes the state of a job of this process.
#[derive(Debug)]
pub(crate) struct JobWriter {
    path: PathBuf,
    file: JobFile,
}

/// Writes the records that a job prints.
#[derive(Debug)]
pub(crate) struct JobRecords {
    file: File,
    left_bytes: u64,
}

/// Reports changed jobs. Files of ended jobs are read only once, and nothing is read while nothing was written.
#[derive(Debug)]
pub(crate) struct JobFollower {
    jobs: Jobs,
    seen: HashMap<String, Job>,
    /// The jobs that were reported as ended last time.
    just_ended: HashSet<String>,
    /// The modification time of the folder at the last call.
    changed: Option<SystemTime>,
}

impl JobFollower {
    /// Returns the jobs that have changed since the last call, oldest first. The first call returns all.
    pub(crate) fn changed(&mut self) -> Result<Vec<Job>, JobError> {
        let changed = fs::metadata(&self.jobs.folder).and_then(|folder| folder.modified()).ok();
        self.just_ended.clear();
        if changed == self.changed && self.seen.values().all(|job| job.status != "running") {
            return Ok(Vec::new());
        }
        let paths = self.jobs.paths()?;
        let name = |path: &PathBuf| path.file_stem().map(|name| name.to_string_lossy().into_owned());
        let names: HashSet<String> = paths.iter().filter_map(name).collect();
        self.seen.retain(|id, _| names.contains(id));
        let mut found = Vec::new();
        for path in &paths {
            let known = name(path).and_then(|id| self.seen.get(&id));
            if known.is_some_and(|known| known.status != "running") {
                continue;
            }
            let Some(job) = read(path) else { continue };
            if known != Some(&job) {
                if known.is_some() && job.status != "running" {
                    self.just_ended.insert(job.job.clone());
                }
                self.seen.insert(job.job.clone(), job.clone());
                found.push(job);
            }
        }
        // A file that was written at the same moment may have been missed.
        let is_settled = changed.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > SETTLED);
        self.changed = if is_settled { changed } else { None };
        found.sort_by(|a, b| (a.began_at, &a.job).cmp(&(b.began_at, &b.job)));
        Ok(found)
    }

    /// Returns whether a job that was just reported as ended had been reported as running before.
    pub(crate) fn was_running(&self, job: &Job) -> bool {
        self.just_ended.contains(&job.job)
    }
}

impl Jobs {
    /// Returns a follower that reports all jobs, and then changes.
    pub(crate) fn follow(&self) -> JobFollower {
        JobFollower { jobs: self.clone(), seen: HashMap::new(), just_ended: HashSet::new(), changed: None }
    }

    /// Returns the jobs below kvmb's data folder. Creates nothing yet.
    pub(crate) fn of(data_folder: &Path) -> Jobs {
        Jobs { folder: data_folder.join("jobs") }
    }

    fn file(&self, id: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{id}.{extension}"))
    }

    /// Writes the file of a new job of this process, and removes the oldest jobs.
    pub(crate) fn begin(&self, job: Job) -> io::Result<(JobWriter, JobRecords)> {
        let make = |folder: &Path, mode| DirBuilder::new().recursive(true).mode(mode).create(folder);
        // QEMU's user must be able to traverse the data folder.
        self.folder.parent().map_or(Ok(()), |data| make(data, 0o711))?;
        make(&self.folder, 0o700)?;
        self.forget_oldest();
        let (path, records) = (self.file(&job.job, "json"), self.file(&job.job, "records"));
        let started_ticks = started_ticks(job.pid).ok_or_else(|| io::Error::other("/proc is not mounted"))?;
        let writer = JobWriter { path, file: JobFile { version: VERSION, started_ticks, boot_id: boot_id(), job } };
        writer.write()?;
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(records)?;
        Ok((writer, JobRecords { file, left_bytes: MOST_RECORD_BYTES }))
    }

    /// Returns all jobs, oldest first. Files that are not job files, or were removed meanwhile, are skipped.
    pub(crate) fn all(&self) -> Result<Vec<Job>, JobError> {
        let mut jobs: Vec<Job> = self.paths()?.iter().filter_map(|path| read(path)).collect();
        jobs.sort_by(|a, b| (a.began_at, &a.job).cmp(&(b.began_at, &b.job)));
        Ok(jobs)
    }

    fn paths(&self) -> Result<Vec<PathBuf>, JobError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(JobError::Io { path: self.folder.clone(), source }),
        };
        let paths = entries.flatten().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect())
    }

    /// Returns the job with this id, or the only one whose id begins with it.
    pub(crate) fn find(&self, id: &str) -> Result<Job, JobError> {
        let mut found = self.all()?.into_iter().filter(|job| !id.is_empty() && job.job.starts_with(id));
        match (found.next(), found.next()) {
            (Some(job), None) => Ok(job),
            (None, _) => Err(JobError::None { id: id.to_owned() }),
            (Some(_), Some(_)) => Err(JobError::Several { id: id.to_owned() }),
        }
    }

    /// Returns the records that a job has printed.
    pub(crate) fn records(&self, job: &Job) -> Vec<Record> {
        let mut text = Vec::new();
        let opened = atomic_file::open(&self.file(&job.job, "records"));
        let read = opened.and_then(|file| file.take(MOST_RECORD_BYTES).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        let lines = read.is_ok().then(|| text.lines()).into_iter().flatten();
        lines.filter_map(|line| Record::parse(line).ok()).collect()
    }

    /// Interrupts a job, like Ctrl-C. Only its own process is signalled, even if the process id was reused.
    pub(crate) fn interrupt(&self, job: &Job) -> Result<(), JobError> {
        let id = || job.job.clone();
        let ended = |status: &str| JobError::Ended { id: id(), status: status.to_owned() };
        if job.status != "running" {
            return Err(ended(&job.status));
        }
        let pid = i32::try_from(job.pid).ok().and_then(Pid::from_raw).ok_or_else(|| ended("lost"))?;
        let signal = |error: rustix::io::Errno| match error {
            rustix::io::Errno::SRCH => ended("lost"),
            error => JobError::Signal { id: id(), source: error.into() },
        };
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(signal)?;
        // The pidfd refers to one process: if that is the job's now, it still is when the signal arrives.
        match read(&self.file(&job.job, "json")) {
            Some(now) if now.status == "running" => pidfd_send_signal(process, Signal::INT).map_err(signal),
            Some(now) => Err(ended(&now.status)),
            None => Err(JobError::None { id: id() }),
        }
    }

    fn forget_oldest(&self) {
        let mut jobs = self.all().unwrap_or_default();
        let too_many = (jobs.len() + 1).saturating_sub(MOST_JOBS);
        jobs.retain(|job| job.status != "running");
        for job in jobs.iter().take(too_many) {
            for extension in ["json", "records"] {
                let _ = fs::remove_file(self.file(&job.job, extension));
            }
        }
    }
}

impl JobWriter {
    /// Changes the job and writes its file.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Job)) -> io::Result<()> {
        change(&mut self.file.job);
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        atomic_file::write(&self.path, &serde_json::to_vec(&self.file)?, 0o600)
    }
}

impl JobRecords {
    /// Adds a record, unless the maximum size is exceeded.
    pub(crate) fn add(&mut self, record: &Record) -> io::Result<()> {
        let line = record.to_line() + "\n";
        match self.left_bytes.checked_sub(line.len() as u64) {
            Some(left) => self.left_bytes = left,
            None => return Ok(()),
        }
        self.file.write_all(line.as_bytes())
    }
}

fn read(path: &Path) -> Option<Job> {
    let mut text = String::new();
    atomic_file::open(path).ok()?.take(LARGEST_FILE_BYTES).read_to_string(&mut text).ok()?;
    let JobFile { version, started_ticks: ticks, boot_id: boot, mut job } = serde_json::from_str(&text).ok()?;
    let is_named = path.file_stem().is_some_and(|name| *name == *job.job);
    if version != VERSION || !is_named {
        return None;
    }
    if job.status == "running" {
        let lives = boot == boot_id() && started_ticks(job.pid) == Some(ticks);
        match lives {
            true => job.duration_seconds = seconds(job.began_at, chrono::Local::now().fixed_offset()),
            false => {
                job.status = "lost".into();
                (job.bytes_per_second, job.left_seconds, job.steps) = (None, None, Vec::new());
            }
        }
    }
    Some(job)
}

/// Returns the number of seconds between two times, or 0 if they are reversed.
pub(crate) fn seconds(from: Time, to: Time) -> f64 {
    (to - from).num_milliseconds().max(0) as f64 / 1000.0
}

/// Returns when a process started, in ticks since boot, or `None` if it does not exist or has ended.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The process name may contain anything, including parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let is_ended = matches!(fields.first(), Some(&"Z" | &"X"));
    fields.get(19).filter(|_| !is_ended)?.parse().ok()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str, pid: u32) -> Job {
        let began_at: Time = "2026-11-20T02:00:00+01:00".parse().unwrap();
        Job {
            job: id.into(),
            command: "backup".into(),
            arguments: vec!["backup".into()],
            status: "running".into(),
            user: "root".into(),
            origin: "shell".into(),
            pid,
            began_at,
            ..Job::default()
        }
    }

    #[test]
    fn job_without_a_result_is_running_or_lost_by_its_process() {
        let data = tempfile::tempdir().unwrap();
        let jobs = Jobs::of(data.path());
        assert!(jobs.all().unwrap().is_empty());
        let mut child =
            std::process::Command::new("env").args(["--default-signal=INT", "sleep", "600"]).spawn().unwrap();
        jobs.begin(job("1a2b3c4d", child.id())).unwrap();
        let (mut own, mut records) = jobs.begin(job("1a2b9999", std::process::id())).unwrap();
        let failure = Record::Failure(crate::record::Failure { error: "no\nspace".into(), ..Default::default() });
        records.add(&failure).unwrap();
        assert_eq!(jobs.records(&own.file.job), [failure]);
        assert!(matches!(jobs.find("1a2b"), Err(JobError::Several { .. })));
        assert!(matches!(jobs.find("ff"), Err(JobError::None { .. })));
        assert!(matches!(jobs.find(""), Err(JobError::None { .. })));
        let running = jobs.find("1a2b3").unwrap();
        assert_eq!(running.status, "running");
        assert!(running.duration_seconds > 0.0);
        jobs.interrupt(&running).unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(jobs.find("1a2b3").unwrap().status, "lost");
        assert!(matches!(jobs.interrupt(&running), Err(JobError::Ended { .. })));
        own.change(|job| job.status = "done".into()).unwrap();
        assert!(matches!(jobs.interrupt(&jobs.find("1a2b9").unwrap()), Err(JobError::Ended { .. })));
    }

    #[test]
    fn follower_reports_only_changed_jobs() {
        let data = tempfile::tempdir().unwrap();
        let jobs = Jobs::of(data.path());
        let mut follower = jobs.follow();
        assert!(follower.changed().unwrap().is_empty(), "there is no folder yet");
        let (mut writer, _) = jobs.begin(job("1a2b3c4d", std::process::id())).unwrap();
        let first = follower.changed().unwrap();
        assert_eq!((first.len(), first[0].status.as_str()), (1, "running"));
        assert!(!follower.was_running(&first[0]));
        writer.change(|job| job.done_bytes = 7).unwrap();
        assert_eq!(follower.changed().unwrap()[0].done_bytes, 7);
        writer.change(|job| job.status = "done".into()).unwrap();
        let ended = follower.changed().unwrap();
        assert!(ended[0].status == "done" && follower.was_running(&ended[0]));
        assert!(follower.changed().unwrap().is_empty());
        // Files of ended jobs are not read again, even if they change.
        writer.change(|job| job.status = "failed".into()).unwrap();
        assert!(follower.changed().unwrap().is_empty());
        // Another job is reported. A removed job is not a change.
        fs::remove_file(jobs.file("1a2b3c4d", "json")).unwrap();
        jobs.begin(job("00000001", std::process::id())).unwrap();
        assert_eq!(follower.changed().unwrap()[0].job, "00000001");
    }

    #[test]
    fn reused_process_id_is_not_the_job() {
        let data = tempfile::tempdir().unwrap();
        let jobs = Jobs::of(data.path());
        let (mut writer, _) = jobs.begin(job("1a2b3c4d", std::process::id())).unwrap();
        writer.file.started_ticks -= 1;
        writer.write().unwrap();
        let found = jobs.find("1a2b3c4d").unwrap();
        assert_eq!(found.status, "lost");
        assert!(matches!(jobs.interrupt(&job("1a2b3c4d", std::process::id())), Err(JobError::Ended { .. })));
    }

    #[test]
    fn oldest_jobs_are_removed_and_foreign_files_kept() {
        let data = tempfile::tempdir().unwrap();
        let jobs = Jobs::of(data.path());
        for number in 0..MOST_JOBS + 3 {
            let mut job = job(&format!("{number:08x}"), std::process::id());
            job.began_at += chrono::TimeDelta::seconds(number as i64);
            let (mut writer, _) = jobs.begin(job).unwrap();
            writer.change(|job| job.status = "done".into()).unwrap();
            if number == 0 {
                fs::write(jobs.file("other", "json"), "{}").unwrap();
            }
        }
        let all = jobs.all().unwrap();
        assert_eq!((all.len(), all[0].job.as_str()), (MOST_JOBS, "00000003"));
        assert!(!jobs.file("00000000", "records").exists() && jobs.file("other", "json").exists());
    }
}
