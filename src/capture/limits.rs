//! Time limits for libvirt calls, and the handling of machines whose QEMU does not answer.
//!
//! A libvirt call that waits for a hung QEMU cannot be cancelled. It is abandoned on its thread ([`crate::bounded`]).
//! While such a call is pending for a machine, no other call is made that would wait behind it. A dead machine thus
//! costs its time limit only once, and blocks only one of libvirt's few worker threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bounded::{self, GaveUp, StopFlag};
use crate::capture::error::{Error, Result};

/// The time limits for libvirt calls, shared by all parts of a run.
#[derive(Debug, Clone)]
pub(crate) struct CallLimits {
    pub(crate) call: Duration,
    /// The limit for beginning a backup.
    pub(crate) begin: Duration,
    /// Raised when the program should end.
    pub(crate) stop: StopFlag,
    /// The calls that timed out, by machine, each with whether it has returned since.
    given_up: Arc<Mutex<HashMap<String, Vec<Arc<AtomicBool>>>>>,
}

impl Default for CallLimits {
    fn default() -> CallLimits {
        CallLimits {
            call: Duration::from_secs(60),
            begin: Duration::from_secs(120),
            stop: StopFlag::default(),
            given_up: Arc::default(),
        }
    }
}

impl CallLimits {
    /// The limits for calls and for beginning a backup, and the flag that ends them early.
    pub(crate) fn new(call: Duration, begin: Duration, stop: StopFlag) -> CallLimits {
        CallLimits { call, begin, stop, ..CallLimits::default() }
    }

    /// Returns [`Error::Interrupted`] if the program should end.
    pub(crate) fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Makes a libvirt call that does not concern a machine.
    pub(super) fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        action: impl FnOnce() -> String,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        bounded::call(limit, &self.stop, work).map_err(|why| gave_up(why, action(), limit))
    }

    /// Makes a libvirt call about a machine.
    pub(super) fn run_for<T: Send + 'static>(
        &self,
        machine: &str,
        limit: Duration,
        action: impl FnOnce() -> String,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let returned = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&returned);
        let result = self.run(limit, action, move || {
            let result = work();
            tell.store(true, Ordering::SeqCst);
            result
        });
        if result.is_err() {
            self.given_up().entry(machine.to_owned()).or_default().push(returned);
        }
        result
    }

    /// Whether a call about the machine timed out and has not returned.
    pub(super) fn is_silent(&self, machine: &str) -> bool {
        let mut given_up = self.given_up();
        let Some(calls) = given_up.get_mut(machine) else { return false };
        calls.retain(|returned| !returned.load(Ordering::SeqCst));
        !calls.is_empty()
    }

    fn given_up(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<AtomicBool>>>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a wait with repeated checks. It ends at the limit, and immediately if the program should end. A wait that
    /// starts after that is part of the cleanup and has its whole limit.
    pub(super) fn wait(&self, limit: Duration) -> Wait<'_> {
        let end = Instant::now() + limit;
        Wait { stop: &self.stop, stopped_before: self.stop.load(Ordering::Relaxed), end }
    }
}

/// A wait with repeated checks.
pub(super) struct Wait<'a> {
    stop: &'a AtomicBool,
    stopped_before: bool,
    end: Instant,
}

impl Wait<'_> {
    /// Whether the limit is over.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Returns [`Error::Interrupted`] if the stop flag was raised since the wait began.
    pub(super) fn check_stop(&self) -> Result<()> {
        let stopped = !self.stopped_before && self.stop.load(Ordering::Relaxed);
        if stopped { Err(Error::Interrupted) } else { Ok(()) }
    }
}

fn gave_up(why: GaveUp, action: String, limit: Duration) -> Error {
    match why {
        GaveUp::TimedOut => Error::TimedOut { action, limit },
        GaveUp::Interrupted => Error::Interrupted,
        GaveUp::NoThread => Error::Io { action: "start a thread for", path: action.into(), source: why.into() },
    }
}
