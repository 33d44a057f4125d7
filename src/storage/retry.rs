//! A decorator that retries calls while the connection is bad.
//!
//! Only transient errors ([`Error::is_transient`]) are retried, after growing pauses with jitter, until the time of the
//! [`RetryPolicy`] is over or the stop flag is set. An interrupted call may have been executed, so every call here must
//! be repeatable:
//!
//! | call | when it is repeated |
//! | --- | --- |
//! | read, list, size, sync_folder, remove_leftovers, extend_lock | it is simply executed again |
//! | write | a file with the whole length is complete, because it is not visible before, so only its folder is synced; otherwise it is written again |
//! | create | a file with these contents is ours, so only its folder is synced; any other was created by another process |
//! | remove, remove_exact | a missing file was removed, so only its folder is synced |
//! | create_layout | existing folders are kept |
//!
//! On a network that may alter data (HTTP without TLS), more errors may be transient: an invalid response, a refused
//! signature or login, a missing file. They are retried once. Errors that a server which answered before never returns
//! for a valid request are retried a few more times. Listings are repeated until two are equal.
//!
//! A storage that answered before is retried for longer than one that has not answered yet, or whose last call got no
//! answer in time: a wrong address, or a server that is gone, should not take forever.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use backon::{BlockingRetryable, ExponentialBuilder};

use super::{Error, FileInfo, FileKind, Gate, Result, Storage, Transit};

/// The interval at which waits check the stop flag.
const TICK: Duration = Duration::from_millis(50);

/// The number of retries of an error that an altered request would explain, if the storage answered before.
const MOST_DOUBTS: u32 = 4;

/// The maximum number of listings until two are equal. In a busy repository they keep changing.
const MOST_LISTS: usize = 4;

/// How long to retry.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// For a storage that answered before.
    pub known: Duration,
    /// For a storage that has not answered yet.
    pub unknown: Duration,
    /// The approximate first pause; each further one is about twice as long.
    pub shortest_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            known: Duration::from_secs(15 * 60),
            unknown: Duration::from_secs(20),
            shortest_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// A storage whose calls are retried.
#[derive(Debug)]
pub struct RetryStorage {
    inner: Arc<dyn Storage>,
    policy: RetryPolicy,
    stop: Arc<AtomicBool>,
    /// Whether the last call got an answer.
    answers: AtomicBool,
}

impl RetryStorage {
    /// Retries calls on `inner`. Setting `stop` ends this with [`Error::Interrupted`].
    pub fn new(inner: Arc<dyn Storage>, policy: RetryPolicy, stop: Arc<AtomicBool>) -> Self {
        RetryStorage { inner, policy, stop, answers: AtomicBool::new(false) }
    }

    /// Calls until there is an answer. The argument of `call` says whether it was called before.
    fn persist<T>(&self, mut call: impl FnMut(bool) -> Result<T>) -> Result<T> {
        let RetryPolicy { known, unknown, shortest_pause, longest_pause } = self.policy;
        let (began, mut tries, doubts) = (Instant::now(), 0, Cell::new(0));
        let answered = self.answers.load(Ordering::Relaxed);
        let limit = if answered { known } else { unknown.min(known) };
        let transit = self.inner.transit();
        let pauses = ExponentialBuilder::new()
            .with_min_delay(shortest_pause)
            .with_max_delay(longest_pause)
            .without_max_times()
            .with_jitter();
        let sleep = {
            let stop = Arc::clone(&self.stop);
            move |pause| sleep(pause, &stop)
        };
        let attempt = || {
            if tries > 0 && self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            tries += 1;
            call(tries > 1)
        };
        let result = attempt
            .retry(pauses)
            .sleep(sleep)
            .when(|error| match error.is_transient() {
                true => began.elapsed() < limit,
                false => {
                    doubts.set(doubts.get() + 1);
                    let most = if answered && !error.is_denial() { MOST_DOUBTS } else { 1 };
                    error.is_doubtful(transit) && doubts.get() <= most
                }
            })
            .notify(|error, pause| {
                tracing::warn!("{error}; trying again in {:.1} s", pause.as_secs_f64());
            })
            .call();
        match result {
            Err(error) if error.is_transient() => {
                self.answers.store(false, Ordering::Relaxed);
                Err(Error::GaveUp { source: Box::new(error), after: began.elapsed() })
            }
            // Do not extend the retries of the next call because of this answer.
            Err(error) if error.is_doubtful(transit) => Err(error),
            answer => {
                // A refusal is an answer, too.
                self.answers.store(true, Ordering::Relaxed);
                answer
            }
        }
    }

    fn is_unprotected(&self) -> bool {
        self.inner.transit() == Transit::Unprotected
    }

    /// Like [`RetryStorage::persist`], for a call about one file. On a network that may alter data, "not found" may
    /// refer to an altered name.
    fn persist_about_file<T>(&self, mut call: impl FnMut(bool) -> Result<T>) -> Result<T> {
        self.persist(|again| match call(again) {
            Err(error) if error.is_not_found() && self.is_unprotected() => call(again),
            result => result,
        })
    }

    /// Lists files until two listings are equal.
    fn confirmed_list(&self, kind: FileKind) -> Result<Vec<FileInfo>> {
        let list = || -> Result<Vec<FileInfo>> {
            let mut files = self.persist(|_| self.inner.list(kind))?;
            files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(files)
        };
        let mut files = list()?;
        for _ in 1..MOST_LISTS {
            let confirmation = list()?;
            if files == confirmation {
                break;
            }
            files = confirmation;
        }
        Ok(files)
    }
}

fn sleep(pause: Duration, stop: &AtomicBool) {
    let end = Instant::now() + pause;
    while !stop.load(Ordering::Relaxed) {
        match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return,
            left => thread::sleep(left.min(TICK)),
        }
    }
}

impl Storage for RetryStorage {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn create_layout(&self) -> Result<()> {
        self.persist(|_| self.inner.create_layout())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>> {
        match self.is_unprotected() {
            true => self.confirmed_list(kind),
            false => self.persist(|_| self.inner.list(kind)),
        }
    }

    fn lists_several_at_once(&self) -> bool {
        self.inner.lists_several_at_once()
    }

    fn list_several(&self, kinds: &[FileKind]) -> Result<Vec<Vec<FileInfo>>> {
        match self.is_unprotected() {
            true => kinds.iter().map(|kind| self.list(*kind)).collect(),
            false => self.persist(|_| self.inner.list_several(kinds)),
        }
    }

    fn read_config_and_list(&self, kinds: &[FileKind]) -> Result<(Vec<u8>, Vec<Vec<FileInfo>>)> {
        match self.is_unprotected() {
            true => Ok((self.read(FileKind::Config, "")?, self.list_several(kinds)?)),
            false => self.persist(|_| self.inner.read_config_and_list(kinds)),
        }
    }

    fn modified_at(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.persist(|_| self.inner.modified_at(kind, name))
    }

    fn size(&self, kind: FileKind, name: &str) -> Result<u64> {
        self.persist_about_file(|_| self.inner.size(kind, name))
    }

    fn read(&self, kind: FileKind, name: &str) -> Result<Vec<u8>> {
        self.persist_about_file(|_| self.inner.read(kind, name))
    }

    fn read_range(&self, kind: FileKind, name: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.persist_about_file(|_| self.inner.read_range(kind, name, offset, length))
    }

    fn write(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        self.write_gated(kind, name, contents, &|_| true)
    }

    fn write_gated(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate) -> Result<()> {
        self.persist_about_file(|again| {
            // The name of the config is not a hash of its contents.
            let is_whole = again
                && kind != FileKind::Config
                && match self.inner.size(kind, name) {
                    Err(error) if error.is_transient() => return Err(error),
                    size => size.is_ok_and(|size| size == contents.len() as u64),
                };
            if !is_whole {
                self.inner.write_gated(kind, name, contents, gate)?;
            }
            // The interrupted call may have created the file, or its folder, without reaching the sync.
            if again { self.inner.sync_folder(kind, name) } else { Ok(()) }
        })
    }

    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()> {
        self.persist_about_file(|again| match self.inner.create(kind, name, contents) {
            // The interrupted call may have created it.
            Err(exists @ Error::Exists { .. }) if again => match self.inner.read(kind, name) {
                Ok(there) if there == contents => self.inner.sync_folder(kind, name),
                Ok(_) => Err(exists),
                Err(error) if error.is_not_found() => Err(exists),
                Err(error) => Err(error),
            },
            result => result,
        })
    }

    fn remove_exact(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<bool> {
        self.persist(|again| match self.inner.remove_exact(kind, name, contents) {
            Err(error) if again && error.is_not_found() => self.inner.sync_folder(kind, name).map(|()| true),
            result => result,
        })
    }

    fn remove(&self, kind: FileKind, name: &str) -> Result<()> {
        self.persist_about_file(|again| match self.inner.remove(kind, name) {
            Err(error) if again && error.is_not_found() => self.inner.sync_folder(kind, name),
            result => result,
        })
    }

    fn removal_batch(&self) -> usize {
        self.inner.removal_batch()
    }

    fn remove_many(&self, kind: FileKind, names: &[String]) -> Result<()> {
        match names {
            // A single removal is retried with a check that it is durable.
            [name] => match self.remove(kind, name) {
                Err(error) if error.is_not_found() => Ok(()),
                result => result,
            },
            names => self.persist(|_| self.inner.remove_many(kind, names)),
        }
    }

    fn sync_folder(&self, kind: FileKind, name: &str) -> Result<()> {
        self.persist(|_| self.inner.sync_folder(kind, name))
    }

    fn remove_leftovers(&self) -> Result<()> {
        self.persist(|_| self.inner.remove_leftovers())
    }

    fn warm_up(&self, files: usize) {
        self.inner.warm_up(files);
    }

    fn sees_writes_at_once(&self) -> bool {
        self.inner.sees_writes_at_once()
    }

    fn parallel(&self) -> usize {
        self.inner.parallel()
    }

    fn transit(&self) -> Transit {
        self.inner.transit()
    }

    fn is_taken(&self) -> Result<bool> {
        self.persist(|_| self.inner.is_taken())
    }

    fn lock_period(&self) -> Option<Duration> {
        self.inner.lock_period()
    }

    fn can_lock(&self) -> Result<bool> {
        self.persist(|_| self.inner.can_lock())
    }

    fn locked_until(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.persist(|_| self.inner.locked_until(kind, name))
    }

    fn extend_lock(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.persist(|_| self.inner.extend_lock(kind, name))
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        self.persist(|_| self.inner.free_bytes())
    }
}
