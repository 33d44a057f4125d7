//! Progress reports and interruption of workflows.

use super::{Error, Result};
use crate::bounded;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Receives the progress of long work. The library does not use a terminal: the command line draws progress bars, and
/// tests count.
pub trait Monitor: Sync {
    /// Called when work starts on `label` (a machine's disk, a point), which is at most `total_bytes` long.
    fn start(&self, verb: &str, label: &str, total_bytes: u64) -> Box<dyn Progress>;

    /// Shows a warning that does not stop the work.
    fn warn(&self, message: &str);
}

/// The progress of one long task. Dropped when the task ends.
pub trait Progress: Send + Sync {
    /// More bytes were processed, not just skipped.
    fn advance(&self, bytes: u64);

    /// Bytes were skipped because they are a hole or unchanged.
    fn skip(&self, bytes: u64);
}

/// A monitor that ignores everything.
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

/// A flag that a signal handler raises. Work then ends at the next chunk and cleans up.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// The flag of this process, raised by signals.
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

    /// Returns [`Error::Interrupted`] if the flag is raised.
    pub(crate) fn check(&self) -> Result<()> {
        if self.requested() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
