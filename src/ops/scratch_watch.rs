//! Keeps an eye on the scratch files' file system while a capture is read.
//!
//! A running machine's writes go on during a backup, and what they overwrite is kept in scratch files. When their file
//! system is full, QEMU stops the *guest*. So the reading gives up before: the backup fails, the machine does not.

use super::{Error, Result, Stop};
use crate::capture::CaptureState;
use crate::capture::runtime::free_bytes;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// With less room than this the reading gives up.
const LOW_BYTES: u64 = 64 << 20;

/// How often to look.
const INTERVAL: Duration = Duration::from_millis(100);

/// Runs `work` with a flag that is raised when `stop` is, or when the scratch space runs low.
pub fn watched<T>(capture: &CaptureState, stop: &Stop, work: impl FnOnce(&Stop) -> Result<T>) -> Result<T> {
    let Some(folder) = &capture.scratch_folder else {
        return work(stop);
    };
    let needed: u64 = capture.disks.iter().map(|disk| disk.capacity_bytes).sum::<u64>().min(LOW_BYTES);
    let (inner, done) = (Stop::default(), AtomicBool::new(false));
    let (result, low) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(folder, needed, stop, &inner, &done));
        let result = work(&inner);
        done.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        (result, watcher.join().unwrap_or(None))
    });
    match (result, low) {
        // Whichever thread saw the flag first, and however it says so: this is why.
        (Err(_), Some(free_bytes)) => Err(Error::NoRoom { path: folder.clone(), free_bytes, wanted_bytes: needed }),
        (result, _) => result,
    }
}

fn watch(folder: &Path, needed: u64, stop: &Stop, inner: &Stop, done: &AtomicBool) -> Option<u64> {
    while !done.load(Ordering::Relaxed) {
        if stop.requested() {
            inner.raise();
            return None;
        }
        match free_bytes(folder) {
            Ok(free) if free < needed => {
                inner.raise();
                return Some(free);
            }
            _ => std::thread::park_timeout(INTERVAL),
        }
    }
    None
}
