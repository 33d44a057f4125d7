//! Copies the backing file of an image into the image while the machine runs (`virsh blockpull`).

use crate::capture::error::{LibvirtErrorKind, Result};
use crate::capture::ffi;
use crate::capture::machine::Machine;

/// The progress of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PullProgress {
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
}

impl Machine {
    /// Starts copying, with a limit in bytes per second if there is one.
    pub(crate) fn begin_pull(&self, disk: &str, bytes_per_second: Option<u32>) -> Result<()> {
        let (action, target) = (|| format!("copy the data of {}'s disk {disk}", self.name()), disk.to_owned());
        let limit = bytes_per_second.map_or(0, u64::from);
        self.call(action, move |domain| ffi::block_pull(domain, &target, limit))
    }

    /// Returns the progress of a disk's block job, or `None` if there is none.
    pub(crate) fn pull_progress(&self, disk: &str) -> Result<Option<PullProgress>> {
        let (action, target) = (|| format!("check for a block job of {}'s disk {disk}", self.name()), disk.to_owned());
        match self.call(action, move |domain| ffi::block_job(domain, &target)) {
            Ok(job) => Ok(job.map(|(_, done_bytes, total_bytes)| PullProgress { done_bytes, total_bytes })),
            // The machine is off.
            Err(error) if error.meaning() == LibvirtErrorKind::InvalidState => Ok(None),
            Err(error) => Err(error),
        }
    }
}
