//! Optional threads for work that one thread could do alone.
//!
//! The system may refuse a thread: `TasksMax=` of a systemd unit, the limit of a container, `ulimit -u`. The standard
//! library's `spawn` panics then. Here the caller does the work itself.

use std::thread::{self, Scope, ScopedJoinHandle};

/// A part of the work: running on its own thread, or already done by the caller.
#[derive(Debug)]
pub enum HelperThread<'scope, T> {
    /// The work of a thread.
    Running(ScopedJoinHandle<'scope, T>),
    /// The result, if the system refused the thread.
    Done(T),
}

/// Starts a thread for some work. If the system refuses it, does the work before returning, so the work must not wait
/// for its caller.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl Fn() -> T + Clone + Send + 'scope,
) -> HelperThread<'scope, T> {
    match thread::Builder::new().spawn_scoped(scope, work.clone()) {
        Ok(running) => HelperThread::Running(running),
        Err(error) => {
            tracing::debug!("going on with fewer threads: {error}");
            HelperThread::Done(work())
        }
    }
}

impl<T> HelperThread<'_, T> {
    /// Waits for the result; an error is the panic that ended the thread.
    pub fn join(self) -> thread::Result<T> {
        match self {
            HelperThread::Running(running) => running.join(),
            HelperThread::Done(result) => Ok(result),
        }
    }
}
