//! Opens captures of running and stopped machines.
//!
//! ```text
//!  machine lock → clear leftovers → which disks, from which parents
//!    → state file "opening" → folders → [freeze → begin → thaw | qemu-storage-daemon] → copies → state file "open"
//! ```
//! If a step fails, everything that the state file records is closed again.

mod offline;
mod plan;
mod running;

use crate::capture::agent::Consistency;
use crate::capture::close::{self, CloseRequest};
use crate::capture::domain_xml::definition::{Definition, Device, DiskSource};
use crate::capture::domain_xml::rewrite::served::sockets_below;
use crate::capture::error::{Error, Result};
use crate::capture::link::is_local_uri;
use crate::capture::machine::{Machine, Which};
use crate::capture::machine_lock::lock_machine;
use crate::capture::parts::copies;
use crate::capture::process::ServerProcess;
use crate::capture::runtime::{RuntimeDirs, is_of_live_restore};
use crate::capture::state::{CaptureFile, CaptureMethod, CaptureState, Phase, STATE_VERSION, SkippedDisk};
use crate::failpoint::{self, Failpoint};
use chrono::{DateTime, FixedOffset, Local, TimeDelta};
use std::path::PathBuf;
use std::time::Duration;

use offline::open_off;
use running::open_running;

pub use plan::{DiskRequest, OpenRequest};

/// Opens a capture, after cleaning up leftovers of earlier runs. Fails with [`Error::Held`] if the machine has a live
/// capture, and with [`Error::ForeignJob`] if another program has a backup job.
pub fn open_capture(runtime: &RuntimeDirs, machine: &Machine, request: &OpenRequest) -> Result<CaptureState> {
    let _lock = lock_machine(runtime, machine)?;
    failpoint::hit(Failpoint::MachineLocked);
    close::clear_leftovers_locked(runtime, machine)?;
    failpoint::hit(Failpoint::LeftoversCleared);
    if !is_local_uri(machine.uri()) {
        return Err(Error::NotLocal { uri: machine.uri().to_owned() });
    }
    let definition = machine.definition(Which::Live)?;
    if let Some((disk, _)) = sockets_below(&definition).find(|(_, socket)| is_of_live_restore(socket)) {
        return Err(Error::LiveRestore { machine: machine.name().to_owned(), disk: disk.to_owned() });
    }
    for wanted in &request.disks {
        check_capturable(machine, &definition, &wanted.target)?;
    }
    let file = CaptureFile::create(runtime)?;
    let mut state = new_state(machine, &definition, request, file.id());
    let opened = if request.disks.is_empty() {
        open_definition(machine, &definition, &file, &mut state)
    } else if machine.is_running()? && !request.moving {
        open_running(runtime, machine, &definition, request, &file, &mut state)
    } else {
        open_off(runtime, machine, &definition, request, &file, &mut state)
    };
    if let Err(error) = opened {
        // The machine's QEMU has the images open, which is the cause of any other error.
        let is_off = state.offline().is_some() && !request.moving;
        let was_started = is_off && machine.is_running().unwrap_or(false);
        if machine.limits().is_silent(machine.uuid()) {
            // The machine may still carry out a request that timed out. The next run learns about it from the state.
            tracing::warn!("capture {} is left to the next run, which clears it", state.id);
            return Err(error);
        }
        undo(runtime, machine, file);
        if was_started {
            tracing::debug!("{error}");
            return Err(Error::StartedMeanwhile { machine: machine.name().to_owned() });
        }
        return Err(error);
    }
    state.phase = Phase::Open;
    if let Err(error) = file.save(&state) {
        undo(runtime, machine, file);
        return Err(error);
    }
    file.unlock();
    if !request.disks.is_empty() {
        request.start_guard(&file);
    }
    Ok(state)
}

/// Refuses only disks that cannot be captured at all. The caller decides which others to leave out.
fn check_capturable(machine: &Machine, definition: &Definition, target: &str) -> Result<()> {
    let refuse = |reason: &str| Error::DiskNotCapturable {
        machine: machine.name().to_owned(),
        disk: target.to_owned(),
        reason: reason.to_owned(),
    };
    let disk = definition.disk(target).ok_or_else(|| refuse("there is no such disk"))?;
    let readable = disk.device == Device::Disk
        && matches!(
            disk.source,
            DiskSource::File { .. } | DiskSource::Block { .. } | DiskSource::Network { .. } | DiskSource::Volume { .. }
        );
    match disk.exclusion() {
        Some(reason) if !readable => Err(refuse(reason)),
        _ => Ok(()),
    }
}

fn new_state(machine: &Machine, definition: &Definition, request: &OpenRequest, id: &str) -> CaptureState {
    let now = Local::now().fixed_offset();
    CaptureState {
        version: STATE_VERSION,
        id: id.to_owned(),
        machine: machine.name().to_owned(),
        uuid: machine.uuid().to_owned(),
        connect: machine.uri().to_owned(),
        method: CaptureMethod::Definition,
        phase: Phase::Opening,
        created_at: now,
        captured_at: now,
        lease_ends_at: lease_end(now, request.lease),
        consistency: Consistency::Crash,
        checkpoint: None,
        checkpoint_disks: Vec::new(),
        repository: request.repository.clone(),
        parent_point: request.parent_point.clone(),
        disks: Vec::new(),
        skipped: skipped_disks(machine, definition, request),
        definition_xml: String::new(),
        live_definition_xml: None,
        autostart: machine.autostart().unwrap_or(false),
        snapshots: machine.snapshots().unwrap_or_default(),
        copies: Vec::new(),
        missing: Vec::new(),
        outside: Vec::new(),
        outside_left_out: Vec::new(),
        socket_folder: PathBuf::new(),
        committed_point: None,
        owner: request.owned.then(ServerProcess::this),
    }
}

fn lease_end(from: DateTime<FixedOffset>, lease: Duration) -> DateTime<FixedOffset> {
    TimeDelta::from_std(lease)
        .ok()
        .and_then(|lease| from.checked_add_signed(lease))
        .unwrap_or(DateTime::<chrono::Utc>::MAX_UTC.fixed_offset())
}

fn skipped_disks(machine: &Machine, definition: &Definition, request: &OpenRequest) -> Vec<SkippedDisk> {
    let is_wanted = |target: &str| request.disks.iter().any(|wanted| wanted.target == target);
    let of_live = definition.disks.iter().filter(|disk| !is_wanted(&disk.target)).map(|disk| {
        let known = request.skipped.iter().find(|skipped| skipped.target == disk.target);
        let reason = || machine.skip_reason(disk).unwrap_or_else(|| "not selected".to_owned());
        known.cloned().unwrap_or_else(|| machine.skipped(disk, reason()))
    });
    let absent = request.skipped.iter().filter(|skipped| definition.disk(&skipped.target).is_none());
    of_live.chain(absent.cloned()).collect()
}

fn undo(runtime: &RuntimeDirs, machine: &Machine, file: CaptureFile) {
    let id = file.id().to_owned();
    if let Err(error) = close::close_with_machine(runtime, Some(machine), file, &CloseRequest::default()) {
        tracing::error!("capture {id} could not be undone: {error}");
    }
}

/// Keeps the definition, and the files that belong to it, of a machine without disks to capture.
fn open_definition(machine: &Machine, live: &Definition, file: &CaptureFile, state: &mut CaptureState) -> Result<()> {
    let is_running = machine.is_running()?;
    state.consistency = if is_running { Consistency::Crash } else { Consistency::Offline };
    file.save(state)?;
    state.captured_at = Local::now().fixed_offset();
    state.definition_xml = machine.definition_xml(Which::Inactive, true)?;
    copies::copy_files(machine, live, is_running, file, state);
    Ok(())
}
