//! Time limits for libvirt calls, and the handling of machines whose QEMU does not answer.
//!
//! A call of libvirt that waits for a QEMU that hangs cannot be cancelled: it is left behind on its thread
//! ([`crate::bounded`]). While such a call of a machine is pending, no other is made that would wait behind it, so that
//! a dead machine costs its limit once, and no more than one of libvirt's few workers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bounded::{self, GaveUp, StopFlag};
use crate::capture::error::{Error, Result};

/// How long libvirt may take; shared by all that comes of one run.
#[derive(Debug, Clone)]
pub(crate) struct CallLimits {
    pub(crate) call: Duration,
    /// For beginning a backup.
    pub(crate) begin: Duration,
    /// Raised when the program shall end.
    pub(crate) stop: StopFlag,
    /// By machine: the calls that were given up, each with whether it has returned since.
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
    /// Limits for calls and for beginning a backup, ended by this flag.
    pub(crate) fn new(call: Duration, begin: Duration, stop: StopFlag) -> CallLimits {
        CallLimits { call, begin, stop, ..CallLimits::default() }
    }

    /// [`Error::Interrupted`] if the program shall end.
    pub(crate) fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Makes one call of libvirt's that is about no machine.
    pub(super) fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        action: impl FnOnce() -> String,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        bounded::call(limit, &self.stop, work).map_err(|why| gave_up(why, action(), limit))
    }

    /// Makes one call about a machine.
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

    /// Whether a call about the machine was given up and has not returned.
    pub(super) fn is_silent(&self, machine: &str) -> bool {
        let mut given_up = self.given_up();
        let Some(calls) = given_up.get_mut(machine) else { return false };
        calls.retain(|returned| !returned.load(Ordering::SeqCst));
        !calls.is_empty()
    }

    fn given_up(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<AtomicBool>>>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something that is looked at again and again: ends at the limit, and at once when the program shall
    /// end. A wait that begins after that is cleaning up, and has its whole limit.
    pub(super) fn wait(&self, limit: Duration) -> Wait<'_> {
        let end = Instant::now() + limit;
        Wait { stop: &self.stop, stopped_before: self.stop.load(Ordering::Relaxed), end }
    }
}

/// A wait for something that is looked at again and again.
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

    /// [`Error::Interrupted`] when the program shall end since the wait began.
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
