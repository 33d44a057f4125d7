//! The guard of a capture: a separate process that renews the lease and watches the scratch space.
//!
//! ```text
//!  snapshot ─ starts ─→ guard ──┬ a process reads the capture ────→ renews the lease
//!                        ↑      ├ the opening process was killed ─→ thaws the guest, releases the capture
//!                        │      ├ no reader, the lease is over ───→ ends and releases the capture
//!  hash, push, backup ───┘      ├ scratch space runs low ─────────→ ends the job; readers fail with "no space"
//!   start it again if it        └ the capture is gone ────────────→ exits
//!   was killed
//! ```
//! A running machine keeps writing during a backup, and QEMU saves the data that it overwrites in scratch files. When
//! their file system is full, QEMU pauses the *guest*. The guard ends the job before that happens, even if a reader is
//! slow.
//!
//! The guard never opens libvirt itself: the embedded driver stays open until its process exits, and excludes all other
//! processes. A short-lived child ends the job or the capture instead ([`Errand`]), and is killed if it hangs.

use super::release::release;
use super::watched::watched;
use super::{Error, Result, Stop};
use crate::capture::close::drain_capture;
use crate::capture::guard::{GuardRecord, Verdict};
use crate::capture::process::ServerProcess;
use crate::capture::runtime::free_bytes;
use crate::capture::state::Phase;
use crate::capture::{self, CaptureFile, CaptureState, RuntimeDirs};
use chrono::{DateTime, FixedOffset, Local, TimeDelta};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// The job ends when less scratch space than this is free. For smaller disks, their total size is the limit.
const LOW_BYTES: u64 = 64 << 20;

/// The interval between checks.
const INTERVAL: Duration = Duration::from_millis(200);

/// The interval at which a reader checks for the guard's verdict.
const LOOK: Duration = Duration::from_millis(100);

/// The time that a started guard has to write its record before another one is started.
const START_LIMIT: Duration = Duration::from_secs(3);

/// The time limit for measuring free space. A dead file system never answers.
const MEASURE_LIMIT: Duration = Duration::from_millis(500);

/// The time limit for a child that ends a job or a capture.
const ERRAND_LIMIT: Duration = Duration::from_secs(15);

/// The number of attempts to release a capture in quick succession. Later ones are rarer: libvirt may be down for long,
/// and meanwhile the scratch space must still be watched.
const QUICK_TRIES: u32 = 40;

/// The interval between later attempts.
const LATER_TRY: Duration = Duration::from_secs(30);

/// Secrets in the environment that a guard does not need.
pub(crate) const SECRETS: [&str; 8] = [
    "KVMB_PASSWORD",
    "KVMB_PASSWORD_COMMAND",
    "KVMB_SSH_PASSWORD",
    "KVMB_SSH_PASSWORD_COMMAND",
    "KVMB_REST_PASSWORD_COMMAND",
    "RESTIC_REST_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

/// The task of a guard's child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Ends the job. The checkpoint and the state stay for the readers.
    Drain,
    /// Ends and releases the capture.
    Release,
}

/// The program whose `guard` command is a guard.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Sets the program whose `guard` command is a guard. Without one, as in a library, captures are not guarded.
pub(crate) fn set_program(program: PathBuf) {
    // A second call changes nothing.
    let _ = PROGRAM.set(program);
}

/// The program itself, to run another of its commands.
pub(crate) fn program() -> Option<&'static Path> {
    PROGRAM.get().map(PathBuf::as_path)
}

/// Whether captures are guarded.
pub(crate) fn is_available() -> bool {
    PROGRAM.get().is_some()
}

/// Returns the function that starts guards, if captures are guarded.
pub(crate) fn starter() -> Option<fn(&CaptureFile)> {
    is_available().then_some(start)
}

/// Starts a detached guard. If the capture has a guard already, the new one exits at once. Without a guard, a capture
/// works as well, and a reader will try again.
fn start(file: &CaptureFile) {
    let Some(mut command) = command(file, &[]) else { return };
    match command.spawn() {
        Ok(mut child) => {
            // Reaps the child. If the thread cannot start, a zombie stays until this process exits, which is harmless.
            let _ = std::thread::Builder::new().spawn(move || child.wait());
        }
        Err(source) => {
            let error = Error::NotStarted { program: "kvmb guard", source };
            tracing::warn!("capture {} has no guard: {error}", file.id());
        }
    }
}

fn command(file: &CaptureFile, arguments: &[&str]) -> Option<Command> {
    let mut command = Command::new(PROGRAM.get()?);
    SECRETS.iter().for_each(|name| {
        command.env_remove(name);
    });
    command
        .arg("guard")
        .arg(file.id())
        .args(arguments)
        .env("KVMB_RUNTIME_DIR", file.folder().parent().unwrap_or(Path::new("/")))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Some(command)
}

/// Runs `work`, which reads the capture, with a flag that is raised when `stop` is raised or when the guard ended the
/// capture. If the guard ended it and `work` fails, the guard's reason is the error. A guard that was killed is started
/// again.
pub(crate) fn guarded<T>(
    file: &CaptureFile,
    capture: &CaptureState,
    stop: &Stop,
    work: impl FnOnce(&Stop) -> Result<T>,
) -> Result<T> {
    if !is_available() {
        return work(stop);
    }
    let verdict = || file.guard().and_then(|guard| guard.verdict);
    if let Some(verdict) = verdict() {
        return Err(error_of(verdict, capture));
    }
    let inner = Stop::default();
    let (result, _) = watched(|done| watch(file, stop, &inner, done), || work(&inner))?;
    match result {
        Ok(result) => Ok(result),
        Err(error) => {
            stop.check()?;
            // The guard's reason is the cause, whichever error a thread met first.
            Err(verdict().map_or(error, |verdict| error_of(verdict, capture)))
        }
    }
}

fn watch(file: &CaptureFile, stop: &Stop, inner: &Stop, done: &AtomicBool) {
    // If there is no record yet, the process that opened the capture has just started a guard.
    let mut started = file.guard().is_none().then(Instant::now);
    while !done.load(Ordering::Relaxed) {
        let guard = file.guard();
        if stop.requested() || guard.as_ref().is_some_and(|guard| guard.verdict.is_some()) {
            inner.raise();
            return;
        }
        let is_guarded = guard.is_some_and(|guard| guard.process.is_alive());
        if !is_guarded && started.is_none_or(|at| at.elapsed() > START_LIMIT) {
            started = Some(Instant::now());
            start(file);
        }
        std::thread::park_timeout(LOOK);
    }
}

fn error_of(verdict: Verdict, capture: &CaptureState) -> Error {
    match verdict {
        Verdict::NoSpace { folder, free_bytes, needed_bytes } => {
            Error::NoScratchRoom { path: folder, free_bytes, wanted_bytes: needed_bytes }
        }
        Verdict::Expired => Error::CaptureExpired {
            capture: capture.id.clone(),
            machine: capture.machine.clone(),
            lease_ends_at: capture.lease_ends_at,
        },
    }
}

/// Runs a guard until the capture ends. Returns at once if another guard is running.
pub(crate) fn run(runtime: &RuntimeDirs, capture: &str, stop: &Stop) -> Result<()> {
    let file = match CaptureFile::open(runtime, capture) {
        Err(capture::Error::NoSuchCapture { .. }) => return Ok(()),
        file => file?,
    };
    let Some(_only_one) = file.lock_guard()? else { return Ok(()) };
    let mut guard = Guard::take_over(file)?;
    while !stop.requested() && guard.file.exists() && guard.look(stop)? {
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}

/// Performs the task of a guard's child process.
pub(crate) fn do_errand(runtime: &RuntimeDirs, capture: &str, errand: Errand) -> Result<()> {
    let file = match CaptureFile::open(runtime, capture) {
        Err(capture::Error::NoSuchCapture { .. }) => return Ok(()),
        file => file?,
    };
    match errand {
        Errand::Drain => drain_capture(runtime, None, &file).map(drop)?,
        Errand::Release => release(runtime, None, file).map(drop)?,
    }
    Ok(())
}

struct Guard {
    file: CaptureFile,
    record: GuardRecord,
    gauge: Gauge,
    renewed: Instant,
    tries: u32,
}

impl Guard {
    fn take_over(file: CaptureFile) -> Result<Guard> {
        let state = file.load()?;
        let record = match file.guard() {
            Some(earlier) => GuardRecord { process: ServerProcess::this(), ..earlier },
            None => GuardRecord {
                process: ServerProcess::this(),
                lease_seconds: (state.lease_ends_at - state.created_at).num_seconds().max(1).unsigned_abs(),
                lease_ends_at: state.lease_ends_at,
                verdict: None,
            },
        };
        file.note_guard(&record)?;
        Ok(Guard { file, record, gauge: Gauge::default(), renewed: Instant::now(), tries: 0 })
    }

    /// Performs one check. Returns false if there is nothing left to guard.
    fn look(&mut self, stop: &Stop) -> Result<bool> {
        let Ok(state) = self.file.load() else { return Ok(self.file.exists()) };
        if state.phase == Phase::Opening {
            return Ok(self.look_at_opener(stop));
        }
        if state.phase == Phase::Open && !self.has_space(&state)? {
            self.end_job(&state, stop);
        }
        self.keep_lease(&state, stop)
    }

    /// Releases the capture if the process that was opening it is gone: it may have left the guest frozen. Returns
    /// false if there is nothing left to guard.
    fn look_at_opener(&mut self, stop: &Stop) -> bool {
        if !is_time_to_try(self.tries, self.renewed.elapsed()) || self.file.is_in_use() {
            return true;
        }
        // The opener notes that the capture is open before it unlocks the file.
        if self.file.load().is_ok_and(|state| state.phase == Phase::Opening) {
            tracing::info!("capture {} was not opened completely", self.file.id());
            self.renewed = Instant::now();
            self.tries = self.tries.saturating_add(1);
            self.send(Errand::Release, stop);
        }
        self.file.exists()
    }

    fn has_space(&mut self, state: &CaptureState) -> Result<bool> {
        let Some(job) = state.job() else { return Ok(true) };
        let folder = &job.scratch_folder;
        let capacity: u64 = state.disks.iter().map(|disk| disk.capacity_bytes).sum();
        let needed_bytes = capacity.min(LOW_BYTES);
        match self.gauge.measure(folder) {
            Some(free_bytes) if free_bytes < needed_bytes => {
                if self.record.verdict.is_none() {
                    let folder = folder.clone();
                    self.record.verdict = Some(Verdict::NoSpace { folder, free_bytes, needed_bytes });
                    self.file.note_guard(&self.record)?;
                }
                Ok(false)
            }
            // A verdict is final: the job ends even if space was freed meanwhile.
            _ => Ok(self.record.verdict.is_none()),
        }
    }

    fn end_job(&mut self, state: &CaptureState, stop: &Stop) {
        // A process that has the embedded driver open excludes this one, and ends the job itself as soon as it sees the
        // verdict.
        let belongs_to_another = state.owner.as_ref().is_some_and(ServerProcess::is_alive);
        if state.connect.starts_with("qemu:///embed") && belongs_to_another {
            return;
        }
        self.send(Errand::Drain, stop);
    }

    fn keep_lease(&mut self, state: &CaptureState, stop: &Stop) -> Result<bool> {
        let lease = Duration::from_secs(self.record.lease_seconds);
        let is_due = self.renewed.elapsed() >= (lease / 4).clamp(INTERVAL, Duration::from_secs(30));
        let is_over = self.record.lease_ends_at <= Local::now();
        if !is_due && !is_over || !is_time_to_try(self.tries, self.renewed.elapsed()) {
            return Ok(true);
        }
        self.renewed = Instant::now();
        if self.file.is_in_use() {
            self.record.lease_ends_at = end_of(lease);
            self.file.note_guard(&self.record)?;
            return Ok(true);
        }
        if !is_over {
            return Ok(true);
        }
        tracing::info!("the lease of capture {} of {} has expired", state.id, state.machine);
        self.record.verdict.get_or_insert(Verdict::Expired);
        self.file.note_guard(&self.record)?;
        self.send(Errand::Release, stop);
        self.tries = self.tries.saturating_add(1);
        // Without a job, there is nothing left to watch.
        let may_have_job = || self.file.load().is_ok_and(|state| state.phase != Phase::Drained);
        Ok(self.file.exists() && (self.tries < QUICK_TRIES || may_have_job()))
    }

    /// Runs a child that performs the errand. A child that hangs is killed, and the next check tries again.
    fn send(&self, errand: Errand, stop: &Stop) {
        let argument = match errand {
            Errand::Drain => "--drain",
            Errand::Release => "--release",
        };
        let Some(mut command) = command(&self.file, &[argument]) else { return };
        match command.spawn() {
            Ok(child) => wait_for(child, stop),
            Err(error) => tracing::error!("{error}"),
        }
    }
}

/// Whether to try again to release a capture, after this number of attempts and this time since the last one.
fn is_time_to_try(tries: u32, since_last: Duration) -> bool {
    tries < QUICK_TRIES || since_last >= LATER_TRY
}

fn wait_for(mut child: Child, stop: &Stop) {
    let deadline = Instant::now() + ERRAND_LIMIT;
    while matches!(child.try_wait(), Ok(None)) {
        if stop.requested() || Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn end_of(lease: Duration) -> DateTime<FixedOffset> {
    let now = Local::now().fixed_offset();
    let end = TimeDelta::from_std(lease).ok().and_then(|lease| now.checked_add_signed(lease));
    end.unwrap_or(DateTime::<chrono::Utc>::MAX_UTC.fixed_offset())
}

/// Measures free space. While a measurement is pending, no other one is started.
#[derive(Default)]
struct Gauge {
    pending: Option<Receiver<Option<u64>>>,
}

impl Gauge {
    fn measure(&mut self, folder: &Path) -> Option<u64> {
        let pending = self.pending.take().or_else(|| {
            let (sender, receiver) = mpsc::sync_channel(1);
            let folder = folder.to_owned();
            let measuring = std::thread::Builder::new().spawn(move || {
                // The receiver may be gone.
                let _ = sender.send(free_bytes(&folder).ok());
            });
            measuring.is_ok().then_some(receiver)
        })?;
        match pending.recv_timeout(MEASURE_LIMIT) {
            Ok(measured) => measured,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.pending = Some(pending);
                None
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_is_tried_often_at_first_and_then_without_end() {
        assert!(is_time_to_try(QUICK_TRIES - 1, Duration::ZERO));
        assert!(!is_time_to_try(QUICK_TRIES, LATER_TRY / 2));
        assert!(is_time_to_try(u32::MAX, LATER_TRY));
    }
}
