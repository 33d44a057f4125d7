//! Locks of a repository: taken with a limit, and watched while something is written.

use super::watched::watched;
use super::{Error, Monitor, Result, Stop};
use crate::failpoint::{self, Failpoint};
use crate::repo::{self, LockMode, Permit, RepoLock, Repository, SnapshotList};
use crate::storage;
use rand::Rng;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for a repository that somebody else needs for himself.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// How long to wait between two tries, at random: who needs the repository for himself must find the gaps of others.
const LOCK_RETRY: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_millis(1500);

/// How often to look whether the lock is lost.
const WATCH: Duration = Duration::from_millis(100);

/// Takes a lock, waiting for whoever is in the way; Ctrl-C ends the waiting.
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

/// Takes the lock of a command that only reads. On a medium that cannot be written there is no lock, and no need of
/// one: a prune beside us could only make chunks go missing, which is reported; what is read is verified in any case.
pub(crate) fn lock_for_reading(repo: &Repository, monitor: &dyn Monitor, stop: &Stop) -> Result<Option<RepoLock>> {
    match lock(repo, LockMode::Shared, stop) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) => go_without(error, monitor).map(|()| None),
    }
}

/// The same with the list of the snapshots, which on a far server takes no more round trips than the lock alone.
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

/// Warns if there is no lock because nothing can be written there; any other error stays one.
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

/// Runs `work` with a flag that is raised when `stop` is, or when the lock is lost: then that is the error, however the
/// work ended.
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
