//! Locks, compatible with restic.
//!
//! A process that adds to a repository holds a *shared* lock, a process that removes data an *exclusive* one. A lock is
//! a file in `locks/`. Not every storage can create a file atomically unless it exists, so a process writes its own
//! file first, waits, and then checks for others.
//!
//! ```text
//! A: write own ──── 200 ms ──── check: finds B's → remove own, fail
//! B:      write own ──── 200 ms ──── check: A's may still be there → fail as well, or gone → locked
//! ```
//!
//! Both may fail, but they never both succeed, as long as a file is visible 200 ms after it was written. A waiting
//! process retries after a random time. Where files are visible at once, as on local disks, no wait is needed: of two
//! processes that write and then check, the later check sees both files. A list that lacks our own file is outdated,
//! and is requested again.
//!
//! | the other lock | ours shared | ours exclusive |
//! | --- | --- | --- |
//! | shared | compatible | wait |
//! | exclusive | wait | wait |
//! | stale: older than 30 minutes, or of a dead process of this host | removed, or ignored if that is refused | the same |
//! | empty file (an interrupted upload) | ignored | ignored |
//! | unreadable | wait, then its error | wait, then its error |
//!
//! **SIGHUP.** To check whether the process of a lock is alive, restic sends it a SIGHUP (and ignores those that it
//! receives). Like restic, a process that has ever held a lock therefore ignores SIGHUP for the rest of its life.
//!
//! A lock is refreshed every 5 minutes: a new file is written, then the old one removed. If that fails for 22.5
//! minutes, or if our file is gone (`restic unlock --remove-all`), the lock is lost: [`Permit`] then fails, and without
//! a permit nothing can be written or removed.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use rand::Rng;
use serde::Serialize;

use super::{Error, Id, LockInfo, Repository, Result, host, time};
use crate::storage::{self, FileInfo, FileKind};

/// What others may do with the repository at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Others may hold shared locks: for reading and adding.
    Shared,
    /// Nobody else may hold a lock: for removing data.
    Exclusive,
}

/// The timing of the protocol. The defaults are restic's; tests use shorter times.
#[derive(Debug, Clone, Copy)]
pub struct LockTiming {
    /// The time between writing a lock and checking for others, if files may become visible late.
    pub settle: Duration,
    /// The time between two refreshes.
    pub refresh: Duration,
    /// The time without a refresh after which we no longer trust our own lock.
    pub distrust: Duration,
    /// The time without a refresh after which others ignore a lock.
    pub stale: Duration,
    /// The maximum time between two attempts while the repository is locked.
    pub retry: Duration,
}

impl Default for LockTiming {
    /// Returns restic's times. In builds with debug assertions, `$KVMB_TEST_LOCK_LIFE` sets the lifetime of a lock, in
    /// seconds.
    fn default() -> Self {
        let life = std::env::var("KVMB_TEST_LOCK_LIFE").ok().filter(|_| cfg!(debug_assertions));
        if let Some(life) = life.and_then(|life| life.parse().ok()).map(Duration::from_secs) {
            let timing = LockTiming { refresh: life / 6, distrust: life * 3 / 4, stale: life, ..LockTiming::RESTIC };
            return timing;
        }
        LockTiming::RESTIC
    }
}

impl LockTiming {
    const RESTIC: LockTiming = LockTiming {
        settle: Duration::from_millis(200),
        refresh: Duration::from_secs(5 * 60),
        distrust: Duration::from_secs(22 * 60 + 30),
        stale: Duration::from_secs(30 * 60),
        retry: Duration::from_secs(5),
    };
}

/// How often the lock's file is checked: a process that removed it may be removing packs.
const WATCH: Duration = Duration::from_secs(2);

/// How long a storage may take to list our lock, in multiples of [`LockTiming::settle`].
const LISTED: u32 = 50;

/// A held lock. Dropping it and its permits removes it.
#[derive(Debug)]
pub struct RepoLock {
    held: Arc<HeldLock>,
}

/// The permission to change a repository, obtained from a settled lock. Required to write or remove packs, indexes and
/// snapshots. It keeps the lock alive.
#[derive(Debug, Clone)]
pub struct Permit {
    held: Arc<HeldLock>,
}

#[derive(Debug)]
struct HeldLock {
    shared: Arc<LockShared>,
    refresher: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct LockShared {
    repo: Repository,
    mode: LockMode,
    timing: LockTiming,
    state: Mutex<LockState>,
    /// Signals the refresher to end.
    ended: Condvar,
}

#[derive(Debug)]
struct LockState {
    file: Id,
    refreshed: Moment,
    lost: Option<Loss>,
    ended: bool,
}

/// Why a lock was lost.
#[derive(Debug, Clone)]
enum Loss {
    /// Its file was removed.
    Removed,
    /// The whole repository is gone: its disk was removed, or its share unmounted.
    RepositoryGone,
    /// The process was suspended for so long that others may ignore the lock.
    NotRefreshed,
}

/// A point in time on two clocks: the steady one stops during suspend, the wall clock may be set.
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
            let taken = PendingLock::begin(repo.clone(), mode, timing, None, |_, _| Ok(()));
            let taken = taken.and_then(PendingLock::settle);
            let taken = taken.map(|(lock, ())| lock);
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
            Ok(refresher) => {
                Ok(RepoLock { held: Arc::new(HeldLock { shared, refresher: Mutex::new(Some(refresher)) }) })
            }
            Err(error) => {
                let _ = shared.remove(&file);
                Err(Error::NoThread(error))
            }
        }
    }

    /// Returns a permission to change the repository.
    pub fn permit(&self) -> Permit {
        Permit { held: Arc::clone(&self.held) }
    }

    /// Fails if the lock was lost.
    pub fn check(&self) -> Result<()> {
        self.held.shared.check()
    }

    /// Releases the lock and returns an error if its file could not be removed. Dropping it does the same, but ignores
    /// the error.
    pub fn release(self) -> Result<()> {
        self.held.end()
    }
}

impl Permit {
    /// Fails if the lock is known to be lost. Its file existed at most `WATCH` ago.
    pub(crate) fn check(&self) -> Result<()> {
        self.held.shared.check()
    }

    /// Like [`Permit::check`], but first checks that the lock's file exists. Called before irreversible operations.
    pub(crate) fn confirm(&self) -> Result<()> {
        self.check()?;
        self.held.shared.look()?;
        self.check()
    }

    /// Stores an index or a snapshot. If the lock was lost meanwhile, nobody relied on the file yet, and it is removed.
    pub(super) fn store(&self, repo: &Repository, kind: FileKind, value: &impl Serialize) -> Result<Id> {
        self.confirm()?;
        let id = repo.save_unpacked(kind, value)?;
        self.check().inspect_err(|_| {
            if let Err(error) = repo.storage().remove(kind, &id.to_string()) {
                tracing::warn!(%kind, %id, %error, "cannot remove what was stored without a lock");
            }
        })?;
        Ok(id)
    }
}

impl HeldLock {
    fn end(&self) -> Result<()> {
        let refresher = self.refresher.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(refresher) = refresher else {
            return Ok(());
        };
        self.shared.state().ended = true;
        self.shared.ended.notify_all();
        let _ = refresher.join();
        let file = self.shared.state().file;
        self.shared.remove(&file)
    }
}

impl Drop for HeldLock {
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

    fn check(&self) -> Result<()> {
        let state = self.state();
        let age = state.refreshed.age();
        let reason = match &state.lost {
            Some(Loss::RepositoryGone) => return Err(Error::RepositoryGone { url: self.repo.url() }),
            Some(Loss::Removed) => "another program removed it".to_owned(),
            Some(Loss::NotRefreshed) => "it was not refreshed in time".to_owned(),
            None if state.ended => "it was released".to_owned(),
            None if age > self.timing.distrust => format!("it could not be refreshed for {} s", age.as_secs()),
            None => return Ok(()),
        };
        Err(Error::LockLost { url: self.repo.url(), reason })
    }

    /// Returns why the lock's file is gone.
    fn loss(&self) -> Loss {
        match self.repo.storage().size(FileKind::Config, "") {
            Err(error) if error.is_not_found() => Loss::RepositoryGone,
            _ => Loss::Removed,
        }
    }

    /// Checks whether the lock's file still exists.
    fn look(&self) -> Result<()> {
        let file = self.state().file;
        match self.repo.storage().size(FileKind::Lock, &file.to_string()) {
            Err(error) if error.is_not_found() => {
                let loss = self.loss();
                let mut state = self.state();
                // Unless it was refreshed at the same moment.
                if state.file == file && !state.ended {
                    state.lost.get_or_insert(loss);
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    fn refresh_until_ended(&self) {
        // Retry a failed refresh sooner, which leaves time for a dozen attempts.
        let soon = self.timing.refresh / 10;
        let mut due = Instant::now() + self.timing.refresh;
        loop {
            let pause = due.saturating_duration_since(Instant::now()).min(WATCH);
            let (state, _) = self
                .ended
                .wait_timeout_while(self.state(), pause, |state| !state.ended)
                .unwrap_or_else(PoisonError::into_inner);
            if state.ended || state.lost.is_some() {
                return;
            }
            let file = state.file;
            drop(state);
            if Instant::now() < due {
                if let Err(error) = self.look() {
                    tracing::debug!(%error, "cannot access the repository's lock");
                }
                continue;
            }
            due = Instant::now()
                + match self.refresh(&file) {
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
            let loss = self.loss();
            self.state().lost = Some(loss);
        };
        match storage.size(FileKind::Lock, &old.to_string()) {
            Err(e) if e.is_not_found() => {
                gone();
                return Ok(());
            }
            other => other?,
        };
        // A lock that is older than the time after which others ignore it must not be revived.
        if self.state().refreshed.age() > self.timing.distrust {
            self.state().lost = Some(Loss::NotRefreshed);
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
            // The old file becomes stale. An append-only server never removes it.
            Err(error) => tracing::debug!(lock = %old, %error, "a refreshed lock stays"),
            Ok(()) => {}
        }
        Ok(())
    }
}

/// Installs a harmless handler for SIGHUP, whose default action would end the process. See the module documentation.
fn survive_hangups() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let noticed = Arc::new(AtomicBool::new(false));
        if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGHUP, noticed) {
            tracing::warn!(%error, "cannot ignore SIGHUP: `restic unlock` may end this process");
        }
    });
}

/// A lock whose file was written but which was not yet checked against others. The check runs in a background thread
/// when it is due, followed by `when_certain`.
///
/// Data that is read before that may be outdated: a prune that checked before our lock existed, and has ended since,
/// may have removed it. So compare it with the repository once the lock is settled. Irreversible operations must wait
/// for [`PendingLock::settle`]: only a settled lock provides a [`Permit`].
#[derive(Debug)]
pub(crate) struct PendingLock<T> {
    /// `Some` until the lock is settled.
    looking: Option<JoinHandle<Result<(RepoLock, T)>>>,
}

impl<T: Send + 'static> PendingLock<T> {
    /// `beside` is listed after the locks of others, without further round trips if the storage supports that.
    pub(super) fn begin(
        repo: Repository,
        mode: LockMode,
        timing: LockTiming,
        beside: Option<FileKind>,
        when_certain: impl FnOnce(&Repository, Vec<FileInfo>) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        survive_hangups();
        // This first check only avoids disturbing a process that holds a lock, so a slightly outdated list is
        // sufficient. The check after writing our own file is the one that counts.
        let locks = repo.take_locks_at_opening().map_or_else(|| repo.storage().list(FileKind::Lock), Ok)?;
        if let Some(conflict) = find_conflict(&repo, mode, &timing, None, locks)? {
            return Err(conflict);
        }
        let (file, refreshed) = write(&repo, mode)?;
        let settle = if repo.storage().sees_writes_at_once() { Duration::ZERO } else { timing.settle };
        let look = {
            let repo = repo.clone();
            move || {
                thread::sleep(settle.saturating_sub(refreshed.steady.elapsed()));
                let look = || -> Result<Vec<FileInfo>> {
                    let kinds: Vec<FileKind> = [FileKind::Lock].into_iter().chain(beside).collect();
                    let mut lists = list_with_own(&repo, &kinds, &file, &timing)?.into_iter();
                    let locks = lists.next().unwrap_or_default();
                    match find_conflict(&repo, mode, &timing, Some(file), locks)? {
                        None => Ok(lists.next().unwrap_or_default()),
                        Some(conflict) => Err(conflict),
                    }
                };
                let listed = look().inspect_err(|_| remove_or_warn(&repo, &file))?;
                let lock = RepoLock::hold(repo.clone(), mode, timing, file, refreshed)?;
                when_certain(&repo, listed).map(|found| (lock, found))
            }
        };
        match thread::Builder::new().name("repo-lock".to_owned()).spawn(look) {
            Ok(looking) => Ok(PendingLock { looking: Some(looking) }),
            Err(error) => {
                remove_or_warn(&repo, &file);
                Err(Error::NoThread(error))
            }
        }
    }

    /// Waits until the lock is settled. Returns it with the result of `when_certain`, or fails with [`Error::Locked`].
    pub(crate) fn settle(mut self) -> Result<(RepoLock, T)> {
        let looked = self.looking.take().map(JoinHandle::join);
        looked.and_then(std::result::Result::ok).unwrap_or(Err(Error::WorkerGone))
    }
}

impl<T> Drop for PendingLock<T> {
    fn drop(&mut self) {
        // The resulting lock is dropped as well, which removes its file.
        let _ = self.looking.take().map(JoinHandle::join);
    }
}

/// Lists files of these kinds, locks first. A list without our own lock is outdated or incomplete, so it may lack the
/// locks of others as well.
fn list_with_own(repo: &Repository, kinds: &[FileKind], own: &Id, timing: &LockTiming) -> Result<Vec<Vec<FileInfo>>> {
    let (began, name) = (Instant::now(), own.to_string());
    loop {
        let lists = repo.storage().list_several(kinds)?;
        if lists.first().is_some_and(|locks| locks.iter().any(|lock| lock.name == name)) {
            return Ok(lists);
        }
        let reason = match repo.storage().size(FileKind::Lock, &name) {
            Err(error) if error.is_not_found() => "another program removed it",
            Err(error) => return Err(error.into()),
            Ok(_) if began.elapsed() < timing.settle * LISTED => {
                thread::sleep(timing.settle);
                continue;
            }
            Ok(_) => "the storage does not list it, and may not list those of other programs either",
        };
        return Err(Error::LockLost { url: repo.url(), reason: reason.to_owned() });
    }
}

fn remove_or_warn(repo: &Repository, file: &Id) {
    if let Err(error) = remove(repo, file) {
        tracing::warn!(%error, "cannot remove the repository's lock");
    }
}

/// Returns a conflicting lock. Stale locks are removed.
fn find_conflict(
    repo: &Repository,
    mode: LockMode,
    timing: &LockTiming,
    own: Option<Id>,
    locks: Vec<FileInfo>,
) -> Result<Option<Error>> {
    for file in locks {
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
            // An append-only server refuses this, but everyone ignores the lock anyway.
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

pub(super) fn is_stale(lock: &LockInfo, timing: &LockTiming) -> bool {
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

/// Removes a lock file. It is not an error if it is gone already.
pub(super) fn remove(repo: &Repository, file: &Id) -> Result<()> {
    let removed: storage::Result<()> = repo.storage().remove(FileKind::Lock, &file.to_string());
    match removed {
        Err(e) if !e.is_not_found() => Err(e.into()),
        _ => Ok(()),
    }
}

impl Repository {
    /// Locks the repository, waiting for others up to `wait`.
    pub fn lock(&self, mode: LockMode, wait: Duration) -> Result<RepoLock> {
        self.lock_with(mode, wait, LockTiming::default())
    }

    /// Begins to lock the repository. The settled lock comes with the names of the index files.
    pub(crate) fn begin_lock(&self, mode: LockMode) -> Result<PendingLock<Vec<Id>>> {
        PendingLock::begin(self.clone(), mode, LockTiming::default(), None, |repo, _| repo.list(FileKind::Index))
    }

    /// Begins to take a shared lock. The settled lock comes with the files of `kind`, listed together with the final
    /// check of the locks of others.
    pub(super) fn begin_lock_and_list(&self, kind: FileKind) -> Result<PendingLock<Vec<FileInfo>>> {
        let timing = LockTiming::default();
        PendingLock::begin(self.clone(), LockMode::Shared, timing, Some(kind), |_, listed| Ok(listed))
    }

    /// Like [`Repository::lock`], with other times than restic's, for tests.
    pub fn lock_with(&self, mode: LockMode, wait: Duration, timing: LockTiming) -> Result<RepoLock> {
        RepoLock::acquire(self.clone(), mode, wait, timing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Password;
    use crate::storage::testing::{FaultEffect, FaultStorage, InjectedFault, MemoryStorage, Operation};

    #[test]
    fn list_without_the_own_lock_is_not_trusted() {
        let storage = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
        let repo = Repository::create(Arc::clone(&storage) as _, &Password::new("test".to_owned())).expect("create");
        let timing = LockTiming { settle: Duration::from_millis(2), ..LockTiming::RESTIC };
        let lock = |mode| repo.lock_with(mode, Duration::ZERO, timing);
        let hide = || InjectedFault::every(Operation::List, FaultEffect::Hide).on(FileKind::Lock);
        // The first list is from before the own lock was written, the second one is outdated.
        storage.add(hide().nth(2));
        lock(LockMode::Exclusive).expect("the third list has it").release().expect("release");
        storage.heal();

        let _other = lock(LockMode::Shared).expect("lock");
        storage.add(hide());
        let error = lock(LockMode::Exclusive).expect_err("the other lock is not listed");
        assert!(matches!(&error, Error::LockLost { reason, .. } if reason.contains("does not list it")), "{error}");
        storage.heal();
        assert_eq!(repo.storage().list(FileKind::Lock).unwrap().len(), 1, "only the other one is left");
    }
}
