//! Disk records of captures in a stream: groups them by capture and tracks which machines failed.

use crate::record::{Disk, Failure};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct CaptureStream {
    waiting: BTreeMap<String, Vec<Disk>>,
    failed: Vec<(Option<String>, String)>,
}

impl CaptureStream {
    /// Records a failure: its machine is left out from now on.
    pub(crate) fn note_failure(&mut self, failure: &Failure) {
        if let Some(machine) = &failure.machine {
            self.failed.push((failure.connect.clone(), machine.clone()));
        }
    }

    /// Whether a machine failed at an earlier stage.
    pub(crate) fn has_failed(&self, connect: &str, machine: &str) -> bool {
        self.failed.iter().any(|(c, m)| m == machine && c.as_deref().is_none_or(|c| c == connect))
    }

    /// Adds a captured disk. Returns all disks of its capture once the last one has arrived.
    pub(crate) fn add(&mut self, capture: &str, disk: Disk) -> Option<Vec<Disk>> {
        let expected = disk.capture_disks.unwrap_or(1);
        let disks = self.waiting.entry(capture.to_owned()).or_default();
        disks.retain(|known| known.disk != disk.disk);
        disks.push(disk);
        if disks.len() < expected {
            return None;
        }
        self.waiting.remove(capture)
    }

    /// Returns the captures that never became complete.
    pub(crate) fn incomplete(self) -> BTreeMap<String, Vec<Disk>> {
        self.waiting
    }
}
