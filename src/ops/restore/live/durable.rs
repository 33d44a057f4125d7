//! Images that are complete on disk, and not only as far as their QEMU knows.
//!
//! ```text
//!  all data of a disk is copied ── QEMU writes what it has in memory ──→ the image needs nothing of the point
//!     └─ QEMU is killed, the host loses its power ──→ the image is put on the point again, and the copy repeated
//! ```
//! When QEMU has copied what is below an image, the header names nothing below any more. Which clusters hold the copy,
//! QEMU may still have in memory alone, until its guest flushes its disk: one that was killed leaves an empty image.

use super::state::{LiveFile, LiveState};
use crate::capture::domain_xml::rewrite::served::{on_served_point, sockets_below};
use crate::capture::machine::{MachineState, PausedReason, Which};
use crate::capture::runtime::nbd_uri;
use crate::capture::{self, Machine, images};
use crate::ops::{Error, Monitor, Result, Stop};
use rustix::fs::{Advice, fadvise};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often a machine is looked at that does not run.
const INTERVAL: Duration = Duration::from_millis(200);

/// Has the kernel begin to write what QEMU has handed to it: otherwise the whole disk is waited for at the end.
pub(super) fn begin_writing(image: &File) {
    if let Err(error) = fadvise(image, 0, None, Advice::DontNeed) {
        tracing::debug!("{error}");
    }
}

/// Has QEMU write what it has in memory of an image, by a moment's pause: libvirt knows no other way.
pub(super) fn write_out(
    machine: &Machine,
    image: &Path,
    (state, file): (&LiveState, &LiveFile),
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<()> {
    // Before the machine is paused: what is left to be written then is little.
    sync(image)?;
    let mut is_said = false;
    loop {
        stop.check()?;
        match machine.state()? {
            MachineState::Off | MachineState::Crashed => {
                return Err(Error::LiveRestoreStopped { machine: state.machine.clone() });
            }
            MachineState::Running => break,
            MachineState::Paused(PausedReason::IoError) => drop(machine.resume()),
            MachineState::ShuttingDown => {}
            _ if !is_said => {
                is_said = true;
                monitor.warn(&format!("{} is paused: the restore ends when it runs again", state.machine));
            }
            _ => {}
        }
        thread::sleep(INTERVAL);
    }
    file.save(&LiveState { paused: true, ..state.clone() })?;
    machine.suspend()?;
    let written = sync(image);
    machine.resume()?;
    file.save(state)?;
    written
}

/// Lets a machine go on that was paused for a moment by a process that has ended since.
pub(super) fn end_pause(machine: &Machine, state: &LiveState) -> Result<()> {
    if state.paused && machine.state()? == MachineState::Paused(PausedReason::User) {
        machine.resume()?;
    }
    Ok(())
}

/// Puts images of a machine that is off on the point again, whose QEMU had copied everything, but may have been killed
/// before that was on disk. Where it was, nothing is copied twice.
pub(super) fn put_back_on_point(machine: &Machine, state: &LiveState) -> Result<()> {
    let xml = machine.definition_xml(Which::Inactive, true)?;
    let mut names = BTreeSet::new();
    for disk in &state.disks {
        let is_same = fs::metadata(&disk.path).is_ok_and(|found| disk.inode == Some(found.ino()));
        if is_same && !needs_server(machine, Which::Inactive, &disk.disk, state)? {
            images::put_on(&disk.path, &nbd_uri(&state.socket, &disk.disk))?;
            names.insert(disk.disk.clone());
        }
    }
    if !names.is_empty() {
        // How the settings were before is known since the restore began.
        let (xml, _) = on_served_point(&xml, &state.socket, &names).map_err(capture::Error::from)?;
        machine.redefine(&xml)?;
    }
    Ok(())
}

/// Whether a disk of the machine, as it runs or as it would start, needs the point.
pub(super) fn needs_server(machine: &Machine, which: Which, disk: &str, state: &LiveState) -> capture::Result<bool> {
    let definition = machine.definition(which)?;
    Ok(sockets_below(&definition).any(|(name, socket)| name == disk && *socket == state.socket))
}

fn sync(image: &Path) -> Result<()> {
    File::open(image).and_then(|file| file.sync_all()).map_err(Error::io("sync", image))
}
