//! Watches a stopped machine while its capture is read.
//!
//! If no lock prevents it, the machine may be started during the read, and the data is then not of a single moment
//! ([`crate::capture::offline::offline_fingerprint`]). The check after the last byte decides. The checks before it only
//! avoid reading for hours what cannot be stored.

use super::watched::watched;
use super::{Result, Stop};
use crate::capture::offline::offline_fingerprint::{ComparisonDepth, OfflineFingerprint};
use crate::capture::{self, CaptureState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The interval between checks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Runs `work`, which reads the capture, with a flag that is raised when `stop` is raised or when the machine changed.
/// A change is the error that is returned, whatever `work` returned.
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
    // The error may be a consequence of a change, so the check comes first.
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
    /// The maximum delay until a raised `stop` is passed on.
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
