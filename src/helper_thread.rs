//! Threads that help with what one thread could do alone.
//!
//! The system may refuse a thread: `TasksMax=` of a systemd unit, the limit of a container, `ulimit -u`. The standard
//! library's `spawn` then panics. Who only wants help goes on without it.

use std::thread::{self, Scope, ScopedJoinHandle};

/// A part of the work: on a thread of its own, or done already where there was none.
#[derive(Debug)]
pub enum HelperThread<'scope, T> {
    /// It runs.
    Running(ScopedJoinHandle<'scope, T>),
    /// The caller has done it.
    Done(T),
}

/// Has a thread do some work, or does it before it returns: the work must not wait for its caller.
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
