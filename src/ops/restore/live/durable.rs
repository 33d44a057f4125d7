//! Makes images complete on disk, not just in the memory of their QEMU.
//!
//! ```text
//!  all data of a disk is copied ── QEMU writes its cached metadata ──→ the image no longer needs the point
//!     └─ QEMU is killed, the host loses power ──→ the image is put on the point again and the copy is repeated
//! ```
//! After QEMU has copied everything from a backing file, the image's header names no backing file. But the information
//! which clusters hold the copy may exist only in QEMU's memory until the guest flushes its disk: if QEMU is killed
//! before, the image appears empty.

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

/// How often to check a machine that is not running.
const INTERVAL: Duration = Duration::from_millis(200);

/// Lets the kernel start writing the data that QEMU has passed to it. Otherwise all of it is written at the end.
pub(super) fn begin_writing(image: &File) {
    if let Err(error) = fadvise(image, 0, None, Advice::DontNeed) {
        tracing::debug!("{error}");
    }
}

/// Lets QEMU write its cached metadata of an image by pausing the machine briefly. libvirt has no other way.
pub(super) fn write_out(
    machine: &Machine,
    image: &Path,
    (state, file): (&LiveState, &LiveFile),
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<()> {
    // This sync comes before the pause, so that little is left to write during it.
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

/// Resumes a machine that was left paused by a process that ended.
pub(super) fn end_pause(machine: &Machine, state: &LiveState) -> Result<()> {
    if state.paused && machine.state()? == MachineState::Paused(PausedReason::User) {
        machine.resume()?;
    }
    Ok(())
}

/// Puts images of a stopped machine on the point again if QEMU had copied everything but may have been killed before
/// that was on disk. Data that did reach the disk is not copied again.
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
        // The original settings were recorded when the restore began.
        let (xml, _) = on_served_point(&xml, &state.socket, &names).map_err(capture::Error::from)?;
        machine.redefine(&xml)?;
    }
    Ok(())
}

/// Whether a disk of the machine, as it runs or in the persistent definition, needs the point.
pub(super) fn needs_server(machine: &Machine, which: Which, disk: &str, state: &LiveState) -> capture::Result<bool> {
    let definition = machine.definition(which)?;
    Ok(sockets_below(&definition).any(|(name, socket)| name == disk && *socket == state.socket))
}

fn sync(image: &Path) -> Result<()> {
    File::open(image).and_then(|file| file.sync_all()).map_err(Error::io("sync", image))
}
