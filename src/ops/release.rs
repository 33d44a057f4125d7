//! Ends captures. Whether a capture's point was stored is recorded in the capture's own state, not in the records of a
//! pipe.

use super::Result;
use super::chain;
use crate::capture::{CaptureFile, CloseRequest, ClosedCapture, Hypervisor, RuntimeDirs, close_capture};
use std::time::Duration;

/// The time that a release waits for readers.
const WAIT: Duration = Duration::from_secs(10);

/// Ends a capture: its job or servers, sockets and scratch files. Its checkpoint is kept if the point was stored, and
/// rolled back otherwise. Without `hypervisor`, the capture's own connection is opened if it is needed.
pub(crate) fn release(
    runtime: &RuntimeDirs,
    hypervisor: Option<&Hypervisor>,
    file: CaptureFile,
) -> Result<ClosedCapture> {
    let chain = file.load().ok().and_then(|state| state.repository).map(|repository| chain::prefix(&repository));
    let request = CloseRequest { chain, wait: WAIT };
    Ok(close_capture(runtime, hypervisor, file, &request)?)
}
