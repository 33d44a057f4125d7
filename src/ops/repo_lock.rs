//! Locks of a repository, with a time limit, and watched while data is written.

use super::watched::watched;
use super::{Error, Monitor, Result, Stop};
use crate::failpoint::{self, Failpoint};
use crate::repo::{self, LockMode, Permit, RepoLock, Repository, SnapshotList};
use crate::storage;
use rand::Rng;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The maximum time to wait for the lock of another process.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// The random delay between two attempts: an exclusive lock must find a gap between the locks of others.
const LOCK_RETRY: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_millis(1500);

/// How often to check whether the lock was lost.
const WATCH: Duration = Duration::from_millis(100);

/// Takes a lock. Waits for conflicting locks until the time limit or an interrupt.
pub(crate) fn lock(repo: &Repository, mode: LockMode, stop: &Stop) -> Result<RepoLock> {
    let lock = patiently(stop, || repo.lock(mode, Duration::ZERO))?;
    failpoint::hit(Failpoint::LockTaken);
    Ok(lock)
}

/// [`LOCK_WAIT`]; a build with debug assertions takes `$KVMB_TEST_LOCK_WAIT`, in seconds.
fn lock_wait() -> Duration {
    let seconds = std::env::var("KVMB_TEST_LOCK_WAIT").ok().filter(|_| cfg!(debug_assertions));
    seconds.and_then(|seconds| seconds.parse().ok()).map_or(LOCK_WAIT, Duration::from_secs)
}

pub(super) fn patiently<T>(stop: &Stop, take: impl Fn() -> repo::Result<T>) -> Result<T> {
    let deadline = Instant::now() + lock_wait();
    loop {
        let next = Instant::now() + rand::rng().random_range(LOCK_RETRY);
        match take() {
            Err(repo::Error::Locked { holder, .. }) if next < deadline => {
                tracing::debug!("waiting for the repository, locked {holder}");
            }
            other => return Ok(other?),
        }
        while Instant::now() < next {
            stop.check()?;
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Takes the lock of a command that only reads. Read-only media cannot be locked, and need not be: a concurrent prune
/// could only make chunks disappear, which is reported, and all data is verified anyway.
pub(crate) fn lock_for_reading(repo: &Repository, monitor: &dyn Monitor, stop: &Stop) -> Result<Option<RepoLock>> {
    match lock(repo, LockMode::Shared, stop) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) => go_without(error, monitor).map(|()| None),
    }
}

/// Takes the lock and lists the snapshots, in no more round trips to a distant server than the lock alone.
pub(crate) fn lock_and_list(
    repo: &Repository,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<(Option<RepoLock>, SnapshotList)> {
    match patiently(stop, || repo.lock_and_list_snapshots()) {
        Ok((lock, snapshots)) => {
            failpoint::hit(Failpoint::LockTaken);
            Ok((Some(lock), snapshots))
        }
        Err(error) => {
            go_without(error, monitor)?;
            Ok((None, repo.snapshots()?))
        }
    }
}

/// Warns if no lock can be taken because the storage is read-only. Other errors are returned.
fn go_without(error: Error, monitor: &dyn Monitor) -> Result<()> {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    if let Error::Repo(inner) = &error
        && let repo::Error::Storage(storage::Error::Io { source, path, .. }) = &**inner
        && matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem)
    {
        monitor.warn(&format!("reading without a lock: cannot write {}: {source}", path.display()));
        return Ok(());
    }
    Err(error)
}

/// Runs `work` with a flag that is raised when `stop` is raised or when the lock is lost. A lost lock is the error that
/// is returned, whatever `work` returned.
pub(crate) fn while_locked<T>(permit: &Permit, stop: &Stop, work: impl FnOnce(&Stop) -> Result<T>) -> Result<T> {
    let inner = Stop::default();
    let watch = |done: &AtomicBool| {
        while !done.load(Ordering::Relaxed) {
            if stop.requested() || permit.check().is_err() {
                inner.raise();
                return;
            }
            thread::park_timeout(WATCH);
        }
    };
    let (result, _) = watched(watch, || work(&inner))?;
    stop.check()?;
    permit.check()?;
    result
}
