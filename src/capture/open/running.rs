//! Opens a capture of a running machine: a libvirt backup job, and a checkpoint at the same instant.

use super::plan::{
    CUT_OFF, DiskRequest, OpenRequest, format_of, live_identity, read_mode, targets_with_new_bitmap, wanted_disks,
    warn_of_cut_off,
};
use crate::capture::agent::FreezeMode;
use crate::capture::close;
use crate::capture::disk_session::DiskSession;
use crate::capture::domain_folder::{domain_folder, is_domain_folder};
use crate::capture::domain_xml::definition::{DefinedDisk, Definition, DiskSource};
use crate::capture::error::{Error, LibvirtErrorKind, Result};
use crate::capture::images::owner_of;
use crate::capture::job::{self, JobDisk, JobRequest, NewCheckpoint};
use crate::capture::machine::{Machine, MachineState, PausedReason, Which};
use crate::capture::offline::image_lookup::read_header;
use crate::capture::own_changes;
use crate::capture::parts::copies;
use crate::capture::runtime::{self, RuntimeDirs};
use crate::capture::state::{BackupJob, CaptureFile, CaptureMethod, CaptureState, CapturedDisk, ReadMode};
use crate::failpoint::{self, Failpoint};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// How long to wait while libvirt is busy with another operation on the machine.
const OTHER_JOB_LIMIT: Duration = Duration::from_secs(30);

pub(super) fn open_running(
    runtime: &RuntimeDirs,
    machine: &Machine,
    live: &Definition,
    request: &OpenRequest,
    file: &CaptureFile,
    state: &mut CaptureState,
) -> Result<()> {
    wait_for_other_job(machine)?;
    machine.expect_no_block_job(request.disks.iter().map(|disk| disk.target.as_str()))?;
    if matches!(machine.state(), Ok(MachineState::Paused(PausedReason::Migration))) {
        return Err(Error::NotResumed { machine: machine.name().to_owned() });
    }
    let owner = live.dac_owner.unwrap_or_else(runtime::our_owner);
    let socket = job_socket(runtime, machine, live, file.id())?;
    runtime::check_socket_path(&socket)?;
    let scratch = request.scratch_dir.as_deref().unwrap_or_else(|| runtime.scratch_folder()).join(file.id());
    state.socket_folder = socket.parent().unwrap_or(Path::new("/")).to_owned();
    state.disks = running_disks(runtime, machine, live, request, &socket, &scratch)?;
    if let Some(name) = &request.checkpoint {
        let covered: Vec<String> = targets_with_new_bitmap(state);
        if !covered.is_empty() {
            state.checkpoint = Some(name.clone());
            state.checkpoint_disks = covered;
        }
    }
    // If this process is killed from here on, the next run depends on this state. An unneeded thaw is harmless.
    let thaw_due = request.freeze.mode != FreezeMode::Never && live.agent_connected;
    state.method = CaptureMethod::Job(BackupJob {
        socket,
        scratch_folder: scratch.clone(),
        freeze_note: None,
        thaw_due,
        io_paused_before: close::is_paused_by_io_error(machine),
    });
    file.save(state)?;
    if !is_domain_folder(&state.socket_folder) {
        runtime::make_qemu_folder(&state.socket_folder, owner)?;
    }
    runtime::make_qemu_folder(&scratch, owner)?;
    failpoint::hit(Failpoint::CaptureNoted);
    if thaw_due {
        // If this process is killed while the guest is frozen, the guard thaws it.
        request.start_guard(file);
    }
    let begun = begin(machine, request, file, state)?;
    state.captured_at = begun.captured_at;
    state.consistency = begun.consistency;
    if let Some(job) = state.job_mut() {
        job.freeze_note = begun.freeze_note;
        job.thaw_due = begun.thaw_due;
    }
    state.definition_xml = begun.definition_xml;
    state.live_definition_xml = begun.live_definition_xml;
    for disk in &mut state.disks {
        // The size cannot change while the job runs, but the disk may have been resized just before.
        disk.capacity_bytes = machine.disk_info(&disk.target)?.capacity_bytes;
    }
    note_sessions(machine, state)?;
    copies::copy_files(machine, live, true, file, state);
    Ok(())
}

/// Records the QEMU sessions of disks with external data files. While the job runs, such a disk cannot be detached.
fn note_sessions(machine: &Machine, state: &mut CaptureState) -> Result<()> {
    if state.disks.iter().any(|disk| disk.has_data_file) {
        let (live, pid) = (machine.definition(Which::Live)?, machine.qemu_pid());
        for disk in state.disks.iter_mut().filter(|disk| disk.has_data_file) {
            let source_index = live.disk(&disk.target).and_then(|disk| disk.source_index.clone());
            disk.session = pid.zip(source_index).and_then(|(pid, index)| DiskSession::new(pid, index));
        }
    }
    Ok(())
}

/// Waits until another operation, such as a snapshot or a migration, has ended, so that the guest is not frozen
/// meanwhile.
fn wait_for_other_job(machine: &Machine) -> Result<()> {
    let wait = machine.limits().wait(OTHER_JOB_LIMIT);
    loop {
        match machine.expect_no_job() {
            Err(Error::OtherJob { .. }) if !wait.is_over() => {
                wait.check_stop()?;
                thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

/// The path of the job's socket. Under AppArmor or SELinux, QEMU can only create one in libvirt's folder for the
/// running machine.
fn job_socket(runtime: &RuntimeDirs, machine: &Machine, live: &Definition, id: &str) -> Result<PathBuf> {
    let confined = live.seclabel_models.iter().any(|model| matches!(model.as_str(), "apparmor" | "selinux"));
    if confined {
        match domain_folder(machine) {
            Some(folder) => return Ok(folder.join(format!("kvmb-{id}"))),
            None => tracing::warn!(
                "{} is confined by a security module, and the folder that libvirt permits was not found",
                machine.name()
            ),
        }
    }
    Ok(runtime.socket_folder().join(id).join("nbd"))
}

fn running_disks(
    runtime: &RuntimeDirs,
    machine: &Machine,
    live: &Definition,
    request: &OpenRequest,
    socket: &Path,
    scratch: &Path,
) -> Result<Vec<CapturedDisk>> {
    let parents = Parents::look_up(machine, request)?;
    let mut disks = Vec::new();
    for (disk, wanted) in wanted_disks(live, request) {
        if disk.transient {
            return Err(Error::DiskTransient { machine: machine.name().to_owned(), disk: disk.target.clone() });
        }
        let info = machine.disk_info(&disk.target)?;
        // The file or device that a volume currently refers to.
        let source = machine.resolve(&disk.source).unwrap_or_else(|_| disk.source.clone());
        let header = source.path().filter(|_| disk.slice.is_none()).map(|path| read_header(path, format_of(disk)));
        let has_data_file =
            disk.data_file.is_some() || matches!(&header, Some(Ok(header)) if header.data_file.is_some());
        let keeps_bitmaps = match &header {
            Some(Ok(header)) => disk.keeps_bitmaps() && header.keeps_bitmaps,
            Some(Err(error)) => {
                tracing::debug!("{error}");
                disk.keeps_bitmaps()
            }
            None => disk.keeps_bitmaps(),
        };
        let cut_off = cut_off_layer(disk, &source);
        let (parent, reason) = match &cut_off {
            // As for a stopped machine: no bitmap records the loss, nor a repair.
            Some(address) => {
                warn_of_cut_off(address);
                (None, Some(CUT_OFF.to_owned()))
            }
            None => parents.choose(wanted),
        };
        let image = live_identity(disk, &source);
        disks.push(CapturedDisk {
            target: disk.target.clone(),
            nbd_uri: runtime::nbd_uri(socket, &disk.target),
            socket: socket.to_owned(),
            export: disk.target.clone(),
            capacity_bytes: info.capacity_bytes,
            format: format_of(disk).to_owned(),
            read_mode: read_mode(parent.as_ref()),
            read_mode_reason: reason,
            dirty_context: parent.as_ref().map(|_| job::dirty_context(&disk.target)),
            parent_checkpoint: parent,
            has_new_bitmap: request.checkpoint.is_some() && keeps_bitmaps && cut_off.is_none(),
            scratch: Some(scratch.join(format!("{}.qcow2", disk.target))),
            owner: source.path().filter(|_| disk.keeps_owner).and_then(|path| owner_of(path)),
            own_changes: own_changes::of_layers(runtime, machine.uuid(), &image),
            image,
            has_data_file,
            session: None,
            distrusts: wanted.parent.clone().filter(|_| cut_off.is_some()),
        });
    }
    Ok(disks)
}

/// Returns the address of the first layer that ends before its data. QEMU writes data before the tables that refer to
/// it, so they never refer beyond the end of a complete image, even while the guest writes. Only a shrinking image may
/// look so while its tables are read, and is complete when they are read again.
fn cut_off_layer(disk: &DefinedDisk, source: &DiskSource) -> Option<String> {
    let below = disk.backing.iter().map(|layer| (&layer.source, layer.format.as_deref().unwrap_or("raw"), layer.slice));
    let mut layers = std::iter::once((source, format_of(disk), disk.slice)).chain(below);
    let is_cut_off = |path: &Path, format: &str| read_header(path, format).is_ok_and(|header| header.is_cut_off);
    let found = layers.find(|(source, format, slice)| {
        let path = source.path().filter(|_| slice.is_none());
        path.is_some_and(|path| is_cut_off(path, format) && is_cut_off(path, format))
    });
    found.map(|(source, ..)| source.address())
}

/// For each requested checkpoint, the disks whose bitmap is usable.
struct Parents {
    usable: std::collections::HashMap<String, Vec<String>>,
}

impl Parents {
    fn look_up(machine: &Machine, request: &OpenRequest) -> Result<Parents> {
        let mut usable = std::collections::HashMap::new();
        for parent in request.disks.iter().filter_map(|disk| disk.parent.as_ref()) {
            if usable.contains_key(parent) {
                continue;
            }
            let mut sizes = machine.usable_bitmaps(parent)?;
            if sizes.is_empty() {
                bring_back(machine, parent, request);
                sizes = machine.usable_bitmaps(parent)?;
            }
            usable.insert(parent.clone(), sizes.into_keys().collect());
        }
        Ok(Parents { usable })
    }

    /// Returns the parent to use for a disk, or why there is none.
    fn choose(&self, wanted: &DiskRequest) -> (Option<String>, Option<String>) {
        let Some(parent) = &wanted.parent else {
            return (None, wanted.full_reason.clone());
        };
        let usable = self.usable.get(parent).is_some_and(|disks| disks.contains(&wanted.target));
        if usable { (Some(parent.clone()), None) } else { (None, Some(format!("the bitmap {parent} cannot be used"))) }
    }
}

/// Tries to redefine a checkpoint whose metadata is gone while its bitmaps still exist (after an undefine, a rename, or
/// on another host).
fn bring_back(machine: &Machine, checkpoint: &str, request: &OpenRequest) {
    match machine.checkpoints() {
        Ok(names) if !names.iter().any(|name| name == checkpoint) => {}
        _ => return,
    }
    let disks: Vec<&str> = request
        .disks
        .iter()
        .filter(|disk| disk.parent.as_deref() == Some(checkpoint))
        .map(|disk| disk.target.as_str())
        .collect();
    let is_broken = |disks: &[&str]| match machine.redefine_checkpoint(checkpoint, disks) {
        Ok(()) => false,
        Err(error) => {
            tracing::debug!("{error}");
            error.meaning() == LibvirtErrorKind::BitmapBroken
        }
    };
    if disks.is_empty() || !is_broken(&disks) {
        return;
    }
    // A disk without its bitmap must not affect the others, so disks are tried one by one to find those with a bitmap.
    let mut whole = Vec::new();
    for disk in disks {
        if machine.redefine_checkpoint(checkpoint, &[disk]).is_ok() {
            whole.push(disk);
            if let Err(error) = machine.forget_checkpoint(checkpoint) {
                tracing::debug!("{error}");
                return;
            }
        }
    }
    if !whole.is_empty() {
        is_broken(&whole);
    }
}

/// Begins the job. If a bitmap turns out to be broken, its disk is read in full and the backup continues.
fn begin(machine: &Machine, request: &OpenRequest, file: &CaptureFile, state: &mut CaptureState) -> Result<job::Begun> {
    loop {
        let wanted = job_request(state);
        let error = match machine.begin_backup(&wanted, request.freeze) {
            Ok(begun) => return Ok(begun),
            Err(error) => error,
        };
        let reason = error.to_string();
        let gave_way = match error.meaning() {
            LibvirtErrorKind::BitmapBroken => {
                let broken = broken_bitmaps(machine, state);
                // No bitmap is broken any more, or libvirt does not report which one, so none is trusted.
                read_in_full(state, |at| broken.is_empty() || broken.contains(&at.target), &reason)
            }
            LibvirtErrorKind::CheckpointMissing => read_in_full(state, |_| true, &reason),
            LibvirtErrorKind::Unsupported | LibvirtErrorKind::Internal => {
                let uncertain = uncertain_bitmaps(machine, state);
                leave_out_of_checkpoint(state, &uncertain)
            }
            LibvirtErrorKind::NotFound
            | LibvirtErrorKind::NoBackupJob
            | LibvirtErrorKind::Busy
            | LibvirtErrorKind::AgentSilent
            | LibvirtErrorKind::AgentFailed
            | LibvirtErrorKind::ReadOnlyUri
            | LibvirtErrorKind::NoConnection
            | LibvirtErrorKind::InvalidState
            | LibvirtErrorKind::NoAnswer
            | LibvirtErrorKind::Other => false,
        };
        if !gave_way {
            // No further queries are made if there was no answer.
            if error.is_no_answer() {
                return Err(error);
            }
            // A block job that started meanwhile may be the cause.
            let disks = state.disks.iter().map(|disk| disk.target.as_str());
            if let Err(held @ Error::BlockJob { .. }) = machine.expect_no_block_job(disks) {
                return Err(held);
            }
            return Err(scratch_hidden(machine, state).unwrap_or(error));
        }
        tracing::warn!("{error}");
        file.save(state)?;
    }
}

/// Whether the folder for scratch files is on a file system that was mounted after the machine was started. libvirt
/// starts QEMU in its own mount namespace.
fn scratch_hidden(machine: &Machine, state: &CaptureState) -> Option<Error> {
    let folder = &state.job()?.scratch_folder;
    let pid = machine.qemu_pid()?;
    let seen = Path::new("/proc").join(pid.to_string()).join("root").join(folder.strip_prefix("/").ok()?);
    let is_hidden = matches!(fs::metadata(seen), Err(error) if error.kind() == ErrorKind::NotFound);
    is_hidden.then(|| Error::ScratchHidden { machine: machine.name().to_owned(), folder: folder.clone() })
}

fn job_request(state: &CaptureState) -> JobRequest {
    JobRequest {
        socket: state.job().map(|job| job.socket.clone()).unwrap_or_default(),
        disks: state
            .disks
            .iter()
            .map(|disk| JobDisk {
                target: disk.target.clone(),
                scratch: disk.scratch.clone().unwrap_or_default(),
                parent: disk.parent_checkpoint.clone(),
            })
            .collect(),
        skipped: state.skipped.iter().filter(|s| !s.is_absent).map(|skipped| skipped.target.clone()).collect(),
        checkpoint: state
            .checkpoint
            .as_ref()
            .map(|name| NewCheckpoint { name: name.clone(), disks: state.checkpoint_disks.clone() }),
    }
}

/// Makes the selected disks be read in full. Returns whether anything changed.
fn read_in_full(state: &mut CaptureState, which: impl Fn(&CapturedDisk) -> bool, reason: &str) -> bool {
    let mut changed = false;
    for disk in &mut state.disks {
        if disk.parent_checkpoint.is_some() && which(disk) {
            disk.parent_checkpoint = None;
            disk.dirty_context = None;
            disk.read_mode = ReadMode::Full;
            disk.read_mode_reason = Some(reason.to_owned());
            changed = true;
        }
    }
    changed
}

/// Returns the disks that continue a checkpoint whose bitmap libvirt does not report as usable.
fn broken_bitmaps(machine: &Machine, state: &CaptureState) -> Vec<String> {
    let is_broken = |disk: &&CapturedDisk| {
        let Some(parent) = &disk.parent_checkpoint else { return false };
        machine.usable_bitmaps(parent).is_ok_and(|usable| !usable.contains_key(&disk.target))
    };
    state.disks.iter().filter(is_broken).map(|disk| disk.target.clone()).collect()
}

/// Returns the disks of the new checkpoint whose image is not known to support bitmaps, because it could not be
/// inspected or was replaced.
fn uncertain_bitmaps(machine: &Machine, state: &CaptureState) -> Vec<String> {
    let Ok(live) = machine.definition(Which::Live) else { return Vec::new() };
    let is_certain = |target: &String| {
        let Some(disk) = live.disk(target).filter(|disk| disk.slice.is_none() && disk.keeps_bitmaps()) else {
            return false;
        };
        let source = machine.resolve(&disk.source).unwrap_or_else(|_| disk.source.clone());
        let header = source.path().and_then(|path| read_header(path, format_of(disk)).ok());
        header.is_some_and(|header| header.keeps_bitmaps && header.data_file.is_none())
    };
    state.checkpoint_disks.iter().filter(|target| !is_certain(target)).cloned().collect()
}

/// Removes disks from the new checkpoint. Returns whether anything changed.
fn leave_out_of_checkpoint(state: &mut CaptureState, out: &[String]) -> bool {
    if out.is_empty() {
        return false;
    }
    state.checkpoint_disks.retain(|target| !out.contains(target));
    for disk in &mut state.disks {
        disk.has_new_bitmap &= !out.contains(&disk.target);
    }
    if state.checkpoint_disks.is_empty() {
        state.checkpoint = None;
    }
    true
}
