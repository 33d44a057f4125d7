//! Backs up one machine: snapshot, push and release, in the commit order.

use super::locked_repo::{PendingRepo, RepoView};
use super::push::{PushRequest, Trust, push};
use super::release::release;
use super::snapshot::{SnapshotRequest, snapshot};
use super::threads::Parallelism;
use super::{Error, Monitor, Result, Stop};
use crate::capture::close::drain_capture;
use crate::capture::{self, CaptureFile, CaptureState, Hypervisor, RuntimeDirs};
use crate::failpoint::{self, Failpoint};
use crate::nbd;
use crate::rate_limiter::RateLimiter;
use crate::record;
use crate::repo::{Compression, Repository};
use crate::units::ChunkSize;
use std::collections::BTreeMap;

/// The settings and handles of a backup.
pub(crate) struct Backup<'a> {
    /// The folders of captures.
    pub(crate) runtime: &'a RuntimeDirs,
    /// Connects to the machine's hypervisor. Called late, and the connection is closed soon: while a process has the
    /// embedded driver open, no other process can open it.
    pub(crate) connect: &'a (dyn Fn() -> capture::Result<Hypervisor> + Sync),
    /// Where the point is stored.
    pub(crate) repo: &'a Repository,
    /// How far the dirty bitmaps are trusted.
    pub(crate) trust: Trust,
    /// Limits the speed at which all disks together are read.
    pub(crate) rate_limit: Option<&'a RateLimiter>,
    /// The chunk size; `None` keeps the one of each disk's last point.
    pub(crate) chunk_size: Option<ChunkSize>,
    /// The compression level of new data.
    pub(crate) compression: Compression,
    /// The threads and memory that one machine may use.
    pub(crate) parallelism: Parallelism,
    pub(crate) monitor: &'a dyn Monitor,
    pub(crate) stop: &'a Stop,
}

/// Why a machine could not be backed up.
struct FailedAttempt {
    error: Error,
    /// Whether a capture of the running machine was open.
    was_running: bool,
}

impl Backup<'_> {
    /// Backs up the machine with this UUID or name. The capture is always ended, even after an error. A machine that is
    /// stopped, started or changed during its backup is captured once more, in its new state.
    pub(crate) fn run(&self, machine: &str, request: &SnapshotRequest) -> Result<record::Point> {
        use capture::Error::{ChangedMeanwhile, StartedMeanwhile};
        let what = match self.attempt(machine, request) {
            Err(failed) if failed.was_running && lost_the_disks(&failed.error) && self.is_off(machine) => {
                format!("{machine} was stopped during its backup")
            }
            Err(FailedAttempt {
                error: Error::Capture(error @ (ChangedMeanwhile { .. } | StartedMeanwhile { .. })),
                ..
            }) => error.to_string(),
            result => return result.map_err(|failed| failed.error),
        };
        self.monitor.warn(&format!("{what}; capturing it again"));
        self.attempt(machine, request).map_err(|failed| failed.error)
    }

    fn is_off(&self, machine: &str) -> bool {
        let running = (self.connect)().and_then(|hypervisor| hypervisor.machine(machine)?.is_running());
        running.is_ok_and(|running| !running)
    }

    fn attempt(&self, machine: &str, request: &SnapshotRequest) -> std::result::Result<record::Point, FailedAttempt> {
        let before = |error| FailedAttempt { error, was_running: false };
        self.stop.check().map_err(before)?;
        let pending = PendingRepo::begin(self.repo, self.stop).map_err(before)?;
        failpoint::hit(Failpoint::RepositoryOpened);
        let (state, first_checkpoint) = self.capture(machine, request, pending.view()).map_err(before)?;
        let was_running = state.job().is_some();
        let during = |error| FailedAttempt { error, was_running };
        let file = CaptureFile::open(self.runtime, &state.id).map_err(|error| during(error.into()))?;
        let stored = self.store(pending, &file, &state);
        let released = release(self.runtime, None, file);
        if let Err(error) = released {
            // The next run releases the capture. A stored point stays valid.
            self.monitor.warn(&format!("{}: {error}; the next run cleans it up", state.machine));
        }
        let mut point = stored.map_err(during)?;
        if let Some(note) = first_checkpoint {
            self.monitor.warn(&note);
        }
        // The capture was released.
        point.capture = None;
        Ok(point)
    }

    /// Captures a machine. Also returns the warning to show once the machine's first checkpoint is kept.
    fn capture(
        &self,
        machine: &str,
        request: &SnapshotRequest,
        view: &RepoView,
    ) -> Result<(CaptureState, Option<String>)> {
        let hypervisor = (self.connect)()?;
        // Only this process uses the capture, so if it is killed, the capture need not wait for its lease to expire.
        let request = SnapshotRequest { owned: true, ..request.clone() };
        let machine = hypervisor.machine(machine)?;
        let state = snapshot(self.runtime, &machine, &request, Some(view))?;
        let is_first = state.checkpoint.is_some() && state.parent_point.is_none();
        let note =
            is_first.then(|| about_checkpoints(&state.machine, &machine.internal_snapshots().unwrap_or_default()));
        drop(machine);
        hypervisor.close();
        Ok((state, note))
    }

    fn store(&self, pending: PendingRepo, file: &CaptureFile, state: &CaptureState) -> Result<record::Point> {
        file.lock_shared()?;
        let request = PushRequest {
            file,
            capture: state,
            sha256: BTreeMap::new(),
            trust: self.trust,
            rate_limit: self.rate_limit,
            chunk_size: self.chunk_size,
            compression: self.compression,
            parallelism: self.parallelism,
        };
        let mut after_read = || {
            let hypervisor = (self.connect)()?;
            match hypervisor.machine(&state.uuid) {
                Ok(machine) => machine.check_unchanged(state)?,
                // The machine was undefined meanwhile. The content of its disks is still known.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
            drain_capture(self.runtime, Some(&hypervisor), file)?;
            Ok(())
        };
        // Nothing is stored before the lock is settled. If another process locked at the same moment, this waits for
        // it.
        let open = pending.settle(self.stop);
        let point = open.and_then(|open| push(&open, &request, self.monitor, self.stop, &mut after_read));
        file.unlock();
        point
    }
}

/// Describes what libvirt refuses once a machine has checkpoints. Shown once, when the first checkpoint is made.
fn about_checkpoints(machine: &str, internal_snapshots: &[String]) -> String {
    let undefine = format!("{machine} has a libvirt checkpoint now: 'virsh undefine' needs --checkpoints-metadata");
    match internal_snapshots {
        [] => format!("{undefine}, and internal snapshots cannot be reverted to ('kvmb doctor' shows how)"),
        names => format!(
            "{undefine}, and its internal snapshots ({}) cannot be reverted to: a try leaves the machine off ('kvmb \
             doctor' shows how)",
            names.join(", ")
        ),
    }
}

/// Whether the disks became unreadable during the backup because QEMU exited.
fn lost_the_disks(error: &Error) -> bool {
    let Error::Disk { source, .. } = error else {
        return false;
    };
    matches!(source, nbd::Error::Disconnected | nbd::Error::Io { .. } | nbd::Error::Connect { .. })
}
