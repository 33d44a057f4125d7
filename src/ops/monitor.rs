//! How a workflow reports what it is doing, and how it is interrupted.

use super::{Error, Result};
use crate::bounded;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Watches long work. The library knows no terminal: the command line draws bars, the tests count.
pub trait Monitor: Sync {
    /// Work on something (`label`: a machine's disk, a point) of at most `total_bytes` begins.
    fn start(&self, verb: &str, label: &str, total_bytes: u64) -> Box<dyn Progress>;

    /// Something that the user should know and that stops nothing.
    fn warn(&self, message: &str);
}

/// One piece of long work; dropped when it ends.
pub trait Progress: Send + Sync {
    /// More bytes are done: actually read, not only skipped.
    fn advance(&self, bytes: u64);

    /// Bytes that need no work, because they are a hole or unchanged.
    fn skip(&self, bytes: u64);
}

/// Watches nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Monitor for Silent {
    fn start(&self, _verb: &str, _label: &str, _total_bytes: u64) -> Box<dyn Progress> {
        Box::new(Silent)
    }

    fn warn(&self, message: &str) {
        tracing::warn!("{message}");
    }
}

impl Progress for Silent {
    fn advance(&self, _bytes: u64) {}

    fn skip(&self, _bytes: u64) {}
}

/// A flag that a signal handler raises: work ends at the next chunk and cleans up.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// The flag of this process, raised by its signals.
    pub(crate) fn of_process() -> Stop {
        Stop(bounded::ending())
    }

    /// The flag itself, for a signal handler or a lower layer.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// [`Error::Interrupted`] if it is time to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.requested() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
