//! Lets a single thread load the first schema.
//!
//! libvirt validates the XML of backups and checkpoints against a schema. libxml2 initializes its datatype library when
//! it parses the first schema, and marks it as initialized too early: a second thread then finds it empty, and the
//! backup of its machine fails ("Error type 'string' is not exported by type library"). This happens in this process
//! with the embedded driver, otherwise in a daemon that was just started.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The maximum time to wait for the first thread. Its machine may hang while the machines of others are frozen.
const LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unread,
    Reading,
    Read,
}

/// Records whether a schema was parsed.
#[derive(Debug)]
pub(super) struct FirstSchema {
    phase: Mutex<Phase>,
    changed: Condvar,
}

/// The state of this process.
pub(super) static SCHEMA: FirstSchema = FirstSchema::new();

impl FirstSchema {
    const fn new() -> FirstSchema {
        FirstSchema { phase: Mutex::new(Phase::Unread), changed: Condvar::new() }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call that parses a schema.
    pub(super) fn read<T>(&self, call: impl FnOnce() -> T) -> T {
        let mut phase = self.phase();
        if *phase == Phase::Unread {
            *phase = Phase::Reading;
            drop(phase);
            let result = call();
            *self.phase() = Phase::Read;
            self.changed.notify_all();
            return result;
        }
        let waited = self.changed.wait_timeout_while(phase, LIMIT, |phase| *phase == Phase::Reading);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        call()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread;

    #[test]
    fn first_schema_reader_runs_alone_and_later_ones_in_parallel() {
        let (schema, together) = (FirstSchema::new(), Barrier::new(3));
        let (arrived, is_read) = (AtomicU32::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            schema.read(|| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        arrived.fetch_add(1, Ordering::SeqCst);
                        schema.read(|| {
                            assert!(is_read.load(Ordering::SeqCst), "it is not the only one");
                            // No thread passes this barrier before all have reached it.
                            together.wait();
                        });
                    });
                }
                while arrived.load(Ordering::SeqCst) < 3 {
                    thread::yield_now();
                }
                is_read.store(true, Ordering::SeqCst);
            });
        });
    }

    #[test]
    fn waiting_for_the_first_schema_is_bounded() {
        let schema = FirstSchema::new();
        schema.read(|| thread::scope(|scope| scope.spawn(|| schema.read(|| ())).join()).unwrap());
    }
}
