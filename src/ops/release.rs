//! Ending a capture. Whether its point was stored stands in the capture's own state, never in a stream.

use super::Result;
use super::chain;
use crate::capture::{CaptureFile, CloseRequest, ClosedCapture, Hypervisor, RuntimeDirs, close_capture};
use std::time::Duration;

/// How long a release waits for whoever still reads.
const WAIT: Duration = Duration::from_secs(10);

/// Ends a capture for good: job or servers, sockets, scratch files, then the checkpoint - kept if its point was stored,
/// rolled back if not. Without `hypervisor` the capture's own connection is opened, if it is needed.
pub(crate) fn release(
    runtime: &RuntimeDirs,
    hypervisor: Option<&Hypervisor>,
    file: CaptureFile,
) -> Result<ClosedCapture> {
    let chain = file.load().ok().and_then(|state| state.repository).map(|repository| chain::prefix(&repository));
    let request = CloseRequest { chain, wait: WAIT };
    Ok(close_capture(runtime, hypervisor, file, &request)?)
}
