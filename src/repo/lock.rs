//! Locks, as restic understands them.
//!
//! Whoever adds to a repository holds a *shared* lock, whoever removes from it an *exclusive* one. A lock is a file in
//! `locks/`; storages have no atomic "create unless": so everybody writes their file first, waits, and then looks for
//! others.
//!
//! ```text
//! A: write own ──── 200 ms ──── look: B's is there → remove own, fail
//! B:      write own ──── 200 ms ──── look: A's may be there still → fail as well, or gone → locked
//! ```
//!
//! Both may fail; both never succeed, as long as a file is visible 200 ms after it was written. Who waits tries again
//! after a random time.
//!
//! | the other's lock | ours shared | ours exclusive |
//! | --- | --- | --- |
//! | shared | fine | wait |
//! | exclusive | wait | wait |
//! | stale: older than 30 minutes, or of a dead process of this host | removed, or ignored where that is refused | the same |
//! | empty file (an interrupted upload) | ignored | ignored |
//! | unreadable | wait, then its error | wait, then its error |
//!
//! **SIGHUP.** To see whether the process of a lock lives, restic sends it a SIGHUP (and ignores those that it gets). A
//! process that has ever held a lock here therefore ignores SIGHUP for the rest of its life, as restic does.
//!
//! A lock is refreshed every 5 minutes: a new file is written, then the old one removed. If that fails for 22.5 minutes,
//! or if our file is gone (`restic unlock --remove-all`), the lock is lost and [`RepoLock::check`] says so.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, FixedOffset};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{Error, Id, Repository, Result, host, time};
use crate::storage::{self, FileKind};

/// How others may use the repository meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Others may hold shared locks: for reading and for adding.
    Shared,
    /// Nobody else: for removing data.
    Exclusive,
}

/// The JSON of a lock file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LockInfo {
    /// When it was last refreshed.
    #[serde(with = "time")]
    pub time: DateTime<FixedOffset>,
    /// Whether nobody else may hold one.
    pub exclusive: bool,
    /// On which host.
    #[serde(default)]
    pub hostname: String,
    /// By whom.
    #[serde(default)]
    pub username: String,
    /// By which process.
    #[serde(default)]
    pub pid: i32,
    /// By which user number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// By which group number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
}

impl fmt::Display for LockInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exclusively = if self.exclusive { "exclusively " } else { "" };
        write!(
            f,
            "{exclusively}by process {} of {} on {} since {}",
            self.pid,
            self.username,
            self.hostname,
            self.time.format("%Y-%m-%d %H:%M:%S %:z")
        )
    }
}

/// The times of the protocol. The default is what restic uses; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct LockTiming {
    /// Between writing a lock and looking for others.
    pub settle: Duration,
    /// Between two refreshes.
    pub refresh: Duration,
    /// Without a refresh for so long we no longer trust our own lock.
    pub distrust: Duration,
    /// Without a refresh for so long nobody respects a lock.
    pub stale: Duration,
    /// Between two tries while somebody else is at it, at most.
    pub retry: Duration,
}

impl Default for LockTiming {
    fn default() -> Self {
        LockTiming {
            settle: Duration::from_millis(200),
            refresh: Duration::from_secs(5 * 60),
            distrust: Duration::from_secs(22 * 60 + 30),
            stale: Duration::from_secs(30 * 60),
            retry: Duration::from_secs(5),
        }
    }
}

/// A held lock. Dropping it removes it.
#[derive(Debug)]
pub struct RepoLock {
    shared: Arc<LockShared>,
    refresher: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct LockShared {
    repo: Repository,
    mode: LockMode,
    timing: LockTiming,
    state: Mutex<LockState>,
    /// Tells the refresher to end.
    ended: Condvar,
}

#[derive(Debug)]
struct LockState {
    file: Id,
    refreshed: Moment,
    lost: Option<String>,
    ended: bool,
}

/// A moment on both clocks: one stands still while the machine sleeps, the other jumps when it is set.
#[derive(Debug, Clone, Copy)]
struct Moment {
    steady: Instant,
    wall: SystemTime,
}

impl Moment {
    fn now() -> Self {
        Moment { steady: Instant::now(), wall: SystemTime::now() }
    }

    fn age(&self) -> Duration {
        let wall = self.wall.elapsed().unwrap_or_default();
        self.steady.elapsed().max(wall)
    }
}

impl RepoLock {
    pub(super) fn acquire(repo: Repository, mode: LockMode, wait: Duration, timing: LockTiming) -> Result<Self> {
        let deadline = Instant::now() + wait;
        loop {
            let taken = PendingLock::begin(repo.clone(), mode, timing).and_then(PendingLock::settle);
            let conflict = match taken {
                Err(conflict @ (Error::Locked { .. } | Error::Damaged { kind: FileKind::Lock, .. })) => conflict,
                other => return other,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(conflict);
            }
            tracing::debug!(%conflict, "waiting for the repository's lock");
            let pause = timing.retry.mul_f64(rand::rng().random_range(0.5..1.0));
            thread::sleep(pause.min(left));
        }
    }

    fn hold(repo: Repository, mode: LockMode, timing: LockTiming, file: Id, refreshed: Moment) -> Result<Self> {
        let shared = Arc::new(LockShared {
            repo,
            mode,
            timing,
            state: Mutex::new(LockState { file, refreshed, lost: None, ended: false }),
            ended: Condvar::new(),
        });
        let refresher = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("repo-lock".to_owned()).spawn(move || shared.refresh_until_ended())
        };
        match refresher {
            Ok(refresher) => Ok(RepoLock { shared, refresher: Some(refresher) }),
            Err(_) => {
                let _ = shared.remove(&file);
                Err(Error::WorkerGone)
            }
        }
    }

    /// Whether the lock still holds. Ask before every step that cannot be undone.
    pub fn check(&self) -> Result<()> {
        let shared = &self.shared;
        let state = shared.state();
        let age = state.refreshed.age();
        let reason = match &state.lost {
            Some(reason) => reason.clone(),
            None if age > shared.timing.distrust => {
                format!("it could not be refreshed for {} minutes", age.as_secs() / 60)
            }
            None => return Ok(()),
        };
        Err(Error::LockLost { url: shared.repo.url(), reason })
    }

    /// Ends the lock and says if its file could not be removed; dropping does the same and says nothing.
    pub fn release(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(refresher) = self.refresher.take() else {
            return Ok(());
        };
        self.shared.state().ended = true;
        self.shared.ended.notify_all();
        let _ = refresher.join();
        let file = self.shared.state().file;
        self.shared.remove(&file)
    }
}

impl Drop for RepoLock {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "cannot remove the repository's lock");
        }
    }
}

impl LockShared {
    fn state(&self) -> MutexGuard<'_, LockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, file: &Id) -> Result<()> {
        remove(&self.repo, file)
    }

    fn refresh_until_ended(&self) {
        // After a failure sooner than usual: there is time for a dozen tries.
        let soon = self.timing.refresh / 10;
        let mut pause = self.timing.refresh;
        loop {
            let (state, _) = self
                .ended
                .wait_timeout_while(self.state(), pause, |state| !state.ended)
                .unwrap_or_else(PoisonError::into_inner);
            if state.ended || state.lost.is_some() {
                return;
            }
            let file = state.file;
            drop(state);
            pause = match self.refresh(&file) {
                Ok(()) => self.timing.refresh,
                Err(error) => {
                    tracing::warn!(%error, "cannot refresh the repository's lock");
                    soon
                }
            };
        }
    }

    fn refresh(&self, old: &Id) -> Result<()> {
        let storage = self.repo.storage();
        let gone = || {
            self.state().lost = Some("somebody removed it".to_owned());
        };
        match storage.size(FileKind::Lock, &old.to_string()) {
            Err(e) if e.is_not_found() => {
                gone();
                return Ok(());
            }
            other => other?,
        };
        // A lock that slept beyond the time at which others ignore it must not come back to life.
        if self.state().refreshed.age() > self.timing.distrust {
            self.state().lost = Some("it was not refreshed in time".to_owned());
            return Ok(());
        }
        let (file, refreshed) = write(&self.repo, self.mode)?;
        {
            let mut state = self.state();
            state.file = file;
            state.refreshed = refreshed;
        }
        match storage.remove(FileKind::Lock, &old.to_string()) {
            Err(e) if e.is_not_found() => gone(),
            // It becomes stale by itself; an append-only server refuses it for ever.
            Err(error) => tracing::debug!(lock = %old, %error, "a refreshed lock stays"),
            Ok(()) => {}
        }
        Ok(())
    }
}

/// See the module's word on SIGHUP: a handler that does nothing of importance replaces the deadly default.
fn survive_hangups() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let noticed = Arc::new(AtomicBool::new(false));
        if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGHUP, noticed) {
            tracing::warn!(%error, "cannot ignore SIGHUP: `restic unlock` may end this process");
        }
    });
}

/// A lock whose file is made and which has not looked again yet: whoever made one at the same moment may be in the way. It
/// looks by itself when it is time. What is read meanwhile is read under the lock; what cannot be undone must wait for
/// [`PendingLock::settle`].
#[derive(Debug)]
pub struct PendingLock {
    /// Until it is settled.
    looking: Option<JoinHandle<Result<RepoLock>>>,
}

impl PendingLock {
    pub(super) fn begin(repo: Repository, mode: LockMode, timing: LockTiming) -> Result<Self> {
        survive_hangups();
        if let Some(conflict) = find_conflict(&repo, mode, &timing, None)? {
            return Err(conflict);
        }
        let (file, refreshed) = write(&repo, mode)?;
        let look = {
            let repo = repo.clone();
            move || {
                thread::sleep(timing.settle.saturating_sub(refreshed.steady.elapsed()));
                match find_conflict(&repo, mode, &timing, Some(file)) {
                    Ok(None) => RepoLock::hold(repo, mode, timing, file, refreshed),
                    Ok(Some(error)) | Err(error) => {
                        remove_or_warn(&repo, &file);
                        Err(error)
                    }
                }
            }
        };
        match thread::Builder::new().name("repo-lock".to_owned()).spawn(look) {
            Ok(looking) => Ok(PendingLock { looking: Some(looking) }),
            Err(_) => {
                remove_or_warn(&repo, &file);
                Err(Error::WorkerGone)
            }
        }
    }

    /// The lock, when it is certain; fails with [`Error::Locked`] if somebody else is there.
    pub fn settle(mut self) -> Result<RepoLock> {
        let looked = self.looking.take().map(JoinHandle::join);
        looked.and_then(std::result::Result::ok).unwrap_or(Err(Error::WorkerGone))
    }
}

impl Drop for PendingLock {
    fn drop(&mut self) {
        // The lock that comes of it is dropped as well, and removed.
        let _ = self.looking.take().map(JoinHandle::join);
    }
}

fn remove_or_warn(repo: &Repository, file: &Id) {
    if let Err(error) = remove(repo, file) {
        tracing::warn!(%error, "cannot remove the repository's lock");
    }
}

/// Another lock that does not go with ours; stale ones are removed on the way.
fn find_conflict(repo: &Repository, mode: LockMode, timing: &LockTiming, own: Option<Id>) -> Result<Option<Error>> {
    let files = repo.storage().list(FileKind::Lock)?;
    for file in files {
        let Ok(id) = file.name.parse::<Id>() else {
            continue;
        };
        if own == Some(id) || file.size_bytes == 0 {
            continue;
        }
        let lock: LockInfo = match repo.load_unpacked(FileKind::Lock, &id) {
            Ok(lock) => lock,
            Err(Error::Storage(e)) if e.is_not_found() => continue,
            Err(error @ Error::Damaged { .. }) => return Ok(Some(error)),
            Err(error) => return Err(error),
        };
        if is_stale(&lock, timing) {
            tracing::warn!(lock = %id, "removing a stale lock, held {lock}");
            // An append-only server refuses it; nobody respects the lock all the same.
            if let Err(error) = remove(repo, &id) {
                tracing::debug!(lock = %id, %error, "a stale lock stays");
            }
            continue;
        }
        if lock.exclusive || mode == LockMode::Exclusive {
            return Ok(Some(Error::Locked { url: repo.url(), holder: Box::new(lock) }));
        }
    }
    Ok(None)
}

fn is_stale(lock: &LockInfo, timing: &LockTiming) -> bool {
    let age = (time::now() - lock.time).to_std().unwrap_or_default();
    age > timing.stale || (lock.hostname == host::host_name() && !host::process_exists(lock.pid))
}

fn write(repo: &Repository, mode: LockMode) -> Result<(Id, Moment)> {
    let (uid, gid) = host::user_and_group();
    let refreshed = Moment::now();
    let lock = LockInfo {
        time: time::now(),
        exclusive: mode == LockMode::Exclusive,
        hostname: host::host_name(),
        username: host::user_name(),
        pid: i32::try_from(std::process::id()).unwrap_or_default(),
        uid,
        gid,
    };
    Ok((repo.save_unpacked(FileKind::Lock, &lock)?, refreshed))
}

/// That it is gone already is fine.
fn remove(repo: &Repository, file: &Id) -> Result<()> {
    let removed: storage::Result<()> = repo.storage().remove(FileKind::Lock, &file.to_string());
    match removed {
        Err(e) if !e.is_not_found() => Err(e.into()),
        _ => Ok(()),
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
