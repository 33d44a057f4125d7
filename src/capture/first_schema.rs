//! Lets a single thread load the first schema.
//!
//! libvirt compares the XML of backups and checkpoints with a schema. What libxml2 needs for that, it makes when the
//! first schema is read, and says that it is there before it is: a second thread then finds nothing, and the backup of
//! its machine fails («Error type 'string' is not exported by type library»). With the embedded driver that happens in
//! this process, else in a daemon that has just started.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Others wait no longer for the first: its machine may hang, and theirs may be frozen.
const LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unread,
    Reading,
    Read,
}

/// Whether a schema was read.
#[derive(Debug)]
pub(super) struct FirstSchema {
    phase: Mutex<Phase>,
    changed: Condvar,
}

/// That of this process.
pub(super) static SCHEMA: FirstSchema = FirstSchema::new();

impl FirstSchema {
    const fn new() -> FirstSchema {
        FirstSchema { phase: Mutex::new(Phase::Unread), changed: Condvar::new() }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call that reads a schema.
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
    fn whoever_is_first_is_alone_and_the_others_are_not() {
        let (schema, together) = (FirstSchema::new(), Barrier::new(3));
        let (arrived, is_read) = (AtomicU32::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            schema.read(|| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        arrived.fetch_add(1, Ordering::SeqCst);
                        schema.read(|| {
                            assert!(is_read.load(Ordering::SeqCst), "it is not the only one");
                            // Nobody comes past this before all have come to it.
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
    fn nobody_waits_for_ever() {
        let schema = FirstSchema::new();
        schema.read(|| thread::scope(|scope| scope.spawn(|| schema.read(|| ())).join()).unwrap());
    }
}
