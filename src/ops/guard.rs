//! The guard of a capture: a process of its own that keeps the lease and watches the scratch space.
//!
//! ```text
//!  snapshot ─ starts ─→ guard ──┬ somebody reads ──────────────→ the lease is renewed
//!                        ↑      ├ nobody, and the lease is over → the capture is ended and cleared
//!  hash, push, backup ───┘      ├ scratch space runs low ───────→ the job is ended, the reader fails with «no space»
//!   start it again if it        └ the capture is gone ──────────→ it ends
//!   was killed
//! ```
//! A running machine's writes go on during a backup, and what they overwrite is kept in scratch files. When their file
//! system is full, QEMU stops the *guest*. So the job is ended before, however slowly somebody reads or uploads.
//!
//! The guard never opens libvirt itself: the embedded driver stays open until its process ends, and keeps all others
//! away. A child that ends the job and then itself does it ([`Errand`]), and is killed when it hangs.

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

/// With less scratch space than this the capture ends, unless its disks are smaller.
const LOW_BYTES: u64 = 64 << 20;

/// How often the guard looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// How often a reader looks at what the guard says.
const LOOK: Duration = Duration::from_millis(100);

/// A guard that was started has this long to write its record before another is started.
const START_LIMIT: Duration = Duration::from_secs(3);

/// How long asking a file system for its free space may take: a dead one never answers.
const MEASURE_LIMIT: Duration = Duration::from_millis(500);

/// How long a child that ends a job or a capture may take.
const ERRAND_LIMIT: Duration = Duration::from_secs(15);

/// How often a child is tried before the capture is left to the next run.
const ERRAND_TRIES: u32 = 40;

/// Secrets of ours that are no business of a guard.
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

/// What a guard's child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Ends the job; checkpoint and state stay, for whoever reads.
    Drain,
    /// Ends the capture for good.
    Release,
}

/// The program whose `guard` command is a guard.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Says which program's `guard` command is a guard. Without it, as in a library, captures have none.
pub(crate) fn set_program(program: PathBuf) {
    // It is reported once a process.
    let _ = PROGRAM.set(program);
}

/// The program itself, for another of its commands.
pub(crate) fn program() -> Option<&'static Path> {
    PROGRAM.get().map(PathBuf::as_path)
}

/// Whether captures are guarded.
pub(crate) fn is_available() -> bool {
    PROGRAM.get().is_some()
}

/// Starts a guard, detached. Where there is one already, the new one ends at once.
pub(crate) fn start(file: &CaptureFile) -> Result<()> {
    let Some(mut command) = command(file, &[]) else { return Ok(()) };
    let spawned = command.spawn();
    let mut child = spawned.map_err(|source| Error::NotStarted { program: "kvmb guard", source })?;
    // Somebody has to take the exit status, or it stays a zombie for as long as we run: no harm where no thread can.
    let _ = std::thread::Builder::new().spawn(move || child.wait());
    Ok(())
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

/// Runs `work`, which reads the capture, with a flag that is raised when `stop` is, or when the guard ended the
/// capture: then that is the error, however the work ended. A guard that was killed is started again.
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
            // Whichever thread saw it first, and however it says so: this is why.
            Err(verdict().map_or(error, |verdict| error_of(verdict, capture)))
        }
    }
}

fn watch(file: &CaptureFile, stop: &Stop, inner: &Stop, done: &AtomicBool) {
    // Without a record, the one that opened the capture has just started a guard.
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
            if let Err(error) = start(file) {
                tracing::warn!("capture {} has no guard: {error}", file.id());
            }
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

/// The life of a guard. It ends with the capture, and when another guards it.
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

/// Does what a guard sends a child for.
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

    /// One look; false when there is nothing more to guard.
    fn look(&mut self, stop: &Stop) -> Result<bool> {
        let Ok(state) = self.file.load() else { return Ok(self.file.exists()) };
        if state.phase == Phase::Open && !self.has_space(&state)? {
            self.end_job(&state, stop);
        }
        self.keep_lease(&state, stop)
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
            // A verdict stays: the job ends, whatever was freed meanwhile.
            _ => Ok(self.record.verdict.is_none()),
        }
    }

    fn end_job(&mut self, state: &CaptureState, stop: &Stop) {
        // A process that has the embedded driver open keeps it, and ends the job by itself as soon as it sees the
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
        if !is_due && !is_over {
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
        self.tries += 1;
        Ok(self.file.exists() && self.tries < ERRAND_TRIES)
    }

    /// Has a child do it; one that hangs is killed, and tried again at the next look.
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

/// Measures free space. A file system that does not answer is asked again only when it has.
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
                // Nobody may listen any more.
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
