//! Keeps an eye on a machine that is off while its capture is read.
//!
//! Where no lock keeps it from starting, it may be started, and then what is read is of no one moment
//! ([`crate::capture::offline::offline_fingerprint`]). The last look, after the last byte, decides; the looks before it
//! only spare reading hours of what cannot be stored.

use super::watched::watched;
use super::{Result, Stop};
use crate::capture::offline::offline_fingerprint::{ComparisonDepth, OfflineFingerprint};
use crate::capture::{self, CaptureState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(1);

/// Runs `work`, which reads all that it wants of the capture, with a flag that is raised when `stop` is, or when the
/// machine did not stay as it was: then that is the error, however the work ended.
pub(crate) fn while_unchanged<T>(
    capture: &CaptureState,
    stop: &Stop,
    work: impl FnOnce(&Stop) -> Result<T>,
) -> Result<T> {
    let Some(fingerprint) = capture.fingerprint() else {
        return work(stop);
    };
    let inner = Stop::default();
    let (result, seen) = watched(|done| watch(fingerprint, capture, stop, &inner, done), || work(&inner))?;
    stop.check()?;
    seen.unwrap_or(Ok(()))?;
    // An error may have come of the change.
    fingerprint.check(capture, ComparisonDepth::Full)?;
    result
}

fn watch(
    fingerprint: &OfflineFingerprint,
    capture: &CaptureState,
    stop: &Stop,
    inner: &Stop,
    done: &AtomicBool,
) -> capture::Result<()> {
    /// A raised flag is passed on within this time.
    const STOP_INTERVAL: Duration = Duration::from_millis(100);
    let mut since_look = Duration::ZERO;
    while !done.load(Ordering::Relaxed) {
        if stop.requested() {
            inner.raise();
            return Ok(());
        }
        if since_look >= INTERVAL {
            since_look = Duration::ZERO;
            if let Err(error) = fingerprint.check(capture, ComparisonDepth::Glance) {
                inner.raise();
                return Err(error);
            }
        }
        std::thread::park_timeout(STOP_INTERVAL);
        since_look += STOP_INTERVAL;
    }
    Ok(())
}
