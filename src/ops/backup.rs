//! One machine, from capture to committed point: snapshot, push and release in the commit order.

use super::push::{PushRequest, push};
use super::release::release;
use super::snapshot::{SnapshotRequest, snapshot};
use super::{Monitor, Result, Stop};
use crate::capture::close::drain_capture;
use crate::capture::{self, CaptureFile, Hypervisor, Runtime};
use crate::record;
use crate::repo::Repository;
use std::collections::BTreeMap;

/// What a backup works with.
pub struct Backup<'a> {
    /// The folders of captures.
    pub runtime: &'a Runtime,
    /// Opens the machine's hypervisor: late, and for a short time, since the embedded driver admits one process only.
    pub connect: &'a (dyn Fn() -> capture::Result<Hypervisor> + Sync),
    /// Where the point goes.
    pub repo: &'a Repository,
    /// Watches.
    pub monitor: &'a dyn Monitor,
    /// Raised to stop.
    pub stop: &'a Stop,
}

impl Backup<'_> {
    /// Backs up the machine with this UUID or name. Whatever happens, the capture is ended.
    pub fn run(&self, machine: &str, request: &SnapshotRequest) -> Result<record::Point> {
        self.stop.check()?;
        let hypervisor = (self.connect)()?;
        let state = snapshot(self.runtime, &hypervisor.machine(machine)?, request)?;
        if let Some(note) = &state.freeze_note {
            tracing::info!("{}: not frozen: {note}", state.machine);
        }
        hypervisor.close();

        let file = CaptureFile::open(self.runtime, &state.id)?;
        let stored = self.store(&file, &state);
        let released = release(self.runtime, None, file);
        match (stored, released) {
            (Ok(mut point), Ok(_)) => {
                // The capture is over: nothing is left to be released.
                point.capture = None;
                Ok(point)
            }
            // The point is stored; what could not be tidied up is cleared by the next run.
            (Ok(mut point), Err(error)) => {
                self.monitor.warn(&format!("{}: {error}; the next run clears it", state.machine));
                point.capture = None;
                Ok(point)
            }
            (Err(error), released) => {
                if let Err(second) = released {
                    self.monitor.warn(&format!("{}: {second}; the next run clears it", state.machine));
                }
                Err(error)
            }
        }
    }

    fn store(&self, file: &CaptureFile, state: &capture::CaptureState) -> Result<record::Point> {
        file.lock_shared()?;
        let request = PushRequest { file, capture: state, sha256: BTreeMap::new() };
        let mut after_read = || {
            let hypervisor = (self.connect)()?;
            drain_capture(self.runtime, Some(&hypervisor), file)?;
            Ok(())
        };
        let point = push(self.repo, &request, self.monitor, self.stop, &mut after_read);
        file.unlock();
        point
    }
}
