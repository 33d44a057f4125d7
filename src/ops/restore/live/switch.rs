//! Moves a machine from the overlays of its point to its own disks, which contain the data of the point.
//!
//! ```text
//!  copy each overlay to its disk ── later writes go to both ── pause ── pivot ── final definition ── resume
//! ```
//! Overlay and disk have the same content while the machine is paused, so a crash at any moment loses nothing: until
//! the definition names the disk, the machine starts on the overlay, and the copy is repeated. QEMU has flushed the
//! disk when it pivots.

use super::state::{LiveDisk, LiveFile, LiveState};
use super::watch::Watch;
use crate::capture::block_job::{BlockJob, BlockJobKind};
use crate::capture::domain_xml::rewrite::served::with_settings;
use crate::capture::machine::{MachineState, PausedReason, Which};
use crate::capture::{self, DiskSource, Machine};
use crate::failpoint::{self, Failpoint};
use crate::ops::restore::place::resolved;
use crate::ops::{Error, Monitor, Progress, Result};

/// How often the copy of an overlay may fail.
const TRIES: u32 = 5;

/// Whether a disk of the machine is an overlay of the point. Otherwise it is on its own image. Fails if it is on
/// neither, because a person has detached it or moved it elsewhere: what the guest has written may be in the overlay.
pub(super) fn is_on_overlay(machine: &Machine, which: Which, disk: &LiveDisk) -> Result<bool> {
    let definition = machine.definition(which)?;
    let source = definition.disk(&disk.disk).map(|found| machine.resolve(&found.source)).transpose()?;
    match source.as_ref().and_then(DiskSource::path) {
        Some(path) if *path == disk.overlay => Ok(true),
        Some(path) if resolved(path) == disk.path => Ok(false),
        _ => Err(Error::LiveDiskMoved {
            machine: machine.name().to_owned(),
            disk: disk.disk.clone(),
            overlay: disk.overlay.clone(),
        }),
    }
}

/// Moves all disks that are still overlays, and gives the machine its final definition.
pub(super) fn switch(watch: &Watch, file: &LiveFile) -> Result<()> {
    let Watch { machine, state, .. } = *watch;
    for disk in on_overlays(machine, state)? {
        copy_overlay(watch, disk)?;
    }
    let disks = on_overlays(machine, state)?;
    // A paused guest writes nothing, so it does not matter on which of the two images a machine starts that is killed
    // now.
    let must_pause = matches!(machine.state()?, MachineState::Running | MachineState::ShuttingDown);
    if must_pause && !disks.is_empty() {
        file.save(&LiveState { paused: true, ..state.clone() })?;
        machine.suspend()?;
    }
    let switched = disks.iter().try_for_each(|disk| Ok(machine.pivot(&disk.disk)?)).and_then(|()| {
        failpoint::hit(Failpoint::RestoreSwitched);
        let xml = machine.definition_xml(Which::Inactive, true)?;
        let settled = with_settings(&xml, &state.settings).map_err(capture::Error::from)?;
        Ok(machine.redefine(&settled)?)
    });
    if must_pause && !disks.is_empty() {
        machine.resume()?;
        file.save(state)?;
    }
    switched
}

/// The disks on which the machine still runs on an overlay.
fn on_overlays<'a>(machine: &Machine, state: &'a LiveState) -> Result<Vec<&'a LiveDisk>> {
    let mut found = Vec::new();
    for disk in &state.disks {
        if is_on_overlay(machine, Which::Live, disk)? {
            found.push(disk);
        }
    }
    Ok(found)
}

/// Copies an overlay to its disk. At the end, the guest's writes go to both.
fn copy_overlay(watch: &Watch, disk: &LiveDisk) -> Result<()> {
    let (machine, name) = (watch.machine, &disk.disk);
    let (mut tries, mut progress, mut is_reported) = (0, None, false);
    watch.until(|| match machine.block_job(name)? {
        Some(job) if job.kind == BlockJobKind::Copy => match machine.copy_target(name)? {
            Some(target) if resolved(&target) == disk.path => {
                progress
                    .get_or_insert_with(|| CopyProgress::new(watch.monitor, format!("{}/{name}", machine.name())))
                    .show(&job);
                Ok(job.is_ready)
            }
            // The machine must not move to an image that a person copies the disk to.
            target => {
                if target.is_some() && !std::mem::replace(&mut is_reported, true) {
                    watch.monitor.warn(&format!(
                        "another program copies disk {name} of {} to another image; the restore continues when that \
                         ends",
                        machine.name()
                    ));
                }
                Ok(false)
            }
        },
        // Another job of this disk is waited for.
        Some(_) => Ok(false),
        None if tries == TRIES => Err(Error::NotSwitched { machine: machine.name().to_owned(), disk: name.clone() }),
        // The machine has moved to its disk already.
        None if !is_on_overlay(machine, Which::Live, disk)? => Ok(true),
        None => {
            tries += 1;
            match machine.begin_copy(name, &disk.path, disk.format.name()) {
                // The machine may just be ending, which the next look finds.
                Err(error) if tries < TRIES => tracing::debug!("{error}"),
                begun => begun?,
            }
            Ok(false)
        }
    })
}

/// Shows the progress of copying an overlay. Its size is known only after the copy has begun.
struct CopyProgress<'a> {
    monitor: &'a dyn Monitor,
    label: String,
    shown: Option<Box<dyn Progress>>,
    total_bytes: u64,
    done_bytes: u64,
}

impl<'a> CopyProgress<'a> {
    fn new(monitor: &'a dyn Monitor, label: String) -> CopyProgress<'a> {
        CopyProgress { monitor, label, shown: None, total_bytes: 0, done_bytes: 0 }
    }

    fn show(&mut self, job: &BlockJob) {
        if job.total_bytes == 0 {
            return;
        }
        let shown = self.shown.get_or_insert_with(|| {
            self.total_bytes = job.total_bytes;
            self.monitor.start("moving", &self.label, job.total_bytes)
        });
        // What the machine writes meanwhile is copied as well, but was not part of the total.
        let done_bytes = job.done_bytes.min(self.total_bytes);
        shown.advance(done_bytes.saturating_sub(self.done_bytes));
        self.done_bytes = self.done_bytes.max(done_bytes);
    }
}

/// Resumes a machine that was left paused by a process that ended.
pub(super) fn end_pause(machine: &Machine, state: &LiveState) -> Result<()> {
    if !state.paused || machine.state()? != MachineState::Paused(PausedReason::User) {
        return Ok(());
    }
    match machine.resume() {
        // After a restart, libvirt reports the old state until it knows that QEMU is gone.
        Err(error) if machine.is_running()? => Err(error.into()),
        _ => Ok(()),
    }
}
