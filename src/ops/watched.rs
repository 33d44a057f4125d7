//! Work that a second thread watches.

use super::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

/// Tells the watcher that the work has ended. This includes a panic, which would otherwise wait forever for the
/// watcher.
struct EndOfWork<'a> {
    done: &'a AtomicBool,
    watcher: Thread,
}

impl Drop for EndOfWork<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.watcher.unpark();
    }
}

/// Runs `work` while another thread runs `watch`, which must return soon after its flag was raised and it was unparked.
/// Returns the results of both. If the system refuses the thread, the work is not started.
pub(super) fn watched<T, S: Send>(
    watch: impl FnOnce(&AtomicBool) -> S + Send,
    work: impl FnOnce() -> T,
) -> Result<(T, thread::Result<S>)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = thread::Builder::new().name("watcher".to_owned()).spawn_scoped(scope, || watch(&done));
        let watcher = watcher.map_err(Error::NoThread)?;
        let end = EndOfWork { done: &done, watcher: watcher.thread().clone() };
        let result = work();
        drop(end);
        Ok((result, watcher.join()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn watcher_ends_when_the_work_returns_or_panics() {
        let watch = |done: &AtomicBool| {
            while !done.load(Ordering::Relaxed) {
                thread::park();
            }
            7
        };
        let (result, seen) = watched(watch, || 1).unwrap();
        assert_eq!((result, seen.unwrap()), (1, 7));
        let panicked = catch_unwind(AssertUnwindSafe(|| watched(watch, || panic!("the work"))));
        assert!(panicked.is_err());
    }
}
