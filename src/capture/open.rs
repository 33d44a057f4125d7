//! Opens a capture of a machine, running or off.
//!
//! ```text
//!  machine lock → clear leftovers → which disks, from which parents
//!    → state file «opening» → folders → [freeze → begin → thaw | qemu-storage-daemon] → copies → state file «open»
//! ```
//! Any failure on the way is undone by closing what the state file says.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, FixedOffset, Local, TimeDelta};
use rustix::fs::{FlockOperation, flock};

use super::agent::{Consistency, FreezeMode};
use super::close::{self, CloseRequest};
use super::copies;
use super::error::{Error, LibvirtErrorKind, Result};
use super::job::{self, JobDisk, JobRequest, NewCheckpoint};
use super::machine::{Machine, MachineState, PausedReason, Which};
use super::open_off::open_off;
pub use super::open_request::{DiskRequest, OpenRequest};
use super::open_request::{format_of, live_identity, read_mode, targets_with_new_bitmap, wanted_disks};
use super::runtime::{self, RuntimeDirs};
use super::state::{
    CaptureFile, CaptureKind, CaptureState, CapturedDisk, Phase, ReadMode, STATE_VERSION, ServerProcess, SkippedDisk,
};
use crate::capture::domain_xml::definition::{Definition, Device, DiskSource};
use crate::capture::offline::image_lookup::read_header;
use crate::failpoint::{self, Failpoint};

/// How long another command may be busy with the same machine: opening takes seconds at most.
const MACHINE_LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// How long libvirt may be at work on something else for the machine.
const OTHER_JOB_PATIENCE: Duration = Duration::from_secs(30);

/// Opens a capture. Clears first what an earlier run left; fails with [`Error::Held`] when a live capture of the machine is in
/// the way and with [`Error::ForeignJob`] when somebody else's backup job is.
pub fn open_capture(runtime: &RuntimeDirs, machine: &Machine, request: &OpenRequest) -> Result<CaptureState> {
    let _lock = lock_machine(runtime, machine)?;
    failpoint::hit(Failpoint::MachineLocked);
    close::clear_leftovers_locked(runtime, machine)?;
    failpoint::hit(Failpoint::LeftoversCleared);
    if !super::connection::is_local_uri(machine.uri()) {
        return Err(Error::NotLocal { uri: machine.uri().to_owned() });
    }
    if request.disks.is_empty() {
        return Err(Error::NothingToCapture { machine: machine.name().to_owned() });
    }
    let definition = machine.definition(Which::Live)?;
    for wanted in &request.disks {
        check_capturable(machine, &definition, &wanted.target)?;
    }
    let file = CaptureFile::create(runtime)?;
    let mut state = new_state(machine, &definition, request, file.id());
    let opened = if machine.is_running()? {
        open_running(runtime, machine, &definition, request, &file, &mut state)
    } else {
        open_off(runtime, machine, &definition, request, &file, &mut state)
    };
    if let Err(error) = opened {
        // Its QEMU has the images open: whatever failed, this is why.
        let was_started = state.kind == CaptureKind::Offline && machine.is_running().unwrap_or(false);
        if machine.limits().is_silent(machine.uuid()) {
            // What it was asked to begin may come about later: the state tells the next run of it.
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
    Ok(state)
}

/// Serialises opening and clearing of captures of one machine.
pub(super) fn lock_machine(runtime: &RuntimeDirs, machine: &Machine) -> Result<File> {
    let path = runtime.machine_lock(machine.uuid());
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    let wait = machine.limits().wait(MACHINE_LOCK_PATIENCE);
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if !wait.is_over() => {
                wait.check_stop()?;
                thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::Held {
                    machine: machine.name().to_owned(),
                    capture: "being opened".to_owned(),
                    until: None,
                });
            }
            Err(error) => return Err(Error::io("lock", &path)(error.into())),
        }
    }
}

/// Only what cannot work at all is refused here; what is sensible to leave out, the caller knows.
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
        kind: CaptureKind::Job,
        phase: Phase::Opening,
        created_at: now,
        captured_at: now,
        lease_ends_at: lease_end(now, request.lease),
        consistency: Consistency::Crash,
        freeze_note: None,
        thaw_due: false,
        io_paused_before: close::is_paused_by_io_error(machine),
        checkpoint: None,
        checkpoint_disks: Vec::new(),
        repository: request.repository.clone(),
        parent_point: request.parent_point.clone(),
        disks: Vec::new(),
        skipped: skipped_disks(definition, request),
        definition_xml: String::new(),
        live_definition_xml: None,
        autostart: machine.autostart().unwrap_or(false),
        snapshots: machine.snapshots().unwrap_or_default(),
        copies: Vec::new(),
        missing: Vec::new(),
        stillness: None,
        socket_folder: PathBuf::new(),
        servers: Vec::new(),
        job_socket: None,
        scratch_folder: None,
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

fn skipped_disks(definition: &Definition, request: &OpenRequest) -> Vec<SkippedDisk> {
    definition
        .disks
        .iter()
        .filter(|disk| !request.disks.iter().any(|wanted| wanted.target == disk.target))
        .map(|disk| {
            request.skipped.iter().find(|skipped| skipped.target == disk.target).cloned().unwrap_or_else(|| {
                SkippedDisk {
                    target: disk.target.clone(),
                    reason: disk.exclusion().unwrap_or("not selected").to_owned(),
                }
            })
        })
        .collect()
}

fn undo(runtime: &RuntimeDirs, machine: &Machine, file: CaptureFile) {
    let id = file.id().to_owned();
    if let Err(error) = close::close_with_machine(runtime, Some(machine), file, &CloseRequest::default()) {
        tracing::error!("capture {id} could not be undone: {error}");
    }
}

fn open_running(
    runtime: &RuntimeDirs,
    machine: &Machine,
    live: &Definition,
    request: &OpenRequest,
    file: &CaptureFile,
    state: &mut CaptureState,
) -> Result<()> {
    wait_for_other_job(machine)?;
    if matches!(machine.state(), Ok(MachineState::Paused(PausedReason::Migration))) {
        return Err(Error::NotResumed { machine: machine.name().to_owned() });
    }
    let owner = live.dac_owner.unwrap_or_else(runtime::our_owner);
    let socket = job_socket(runtime, machine, live, file.id())?;
    runtime::check_socket_path(&socket)?;
    let scratch = request.scratch_dir.as_deref().unwrap_or_else(|| runtime.scratch_folder()).join(file.id());
    state.socket_folder = socket.parent().unwrap_or(Path::new("/")).to_owned();
    state.job_socket = Some(socket.clone());
    state.scratch_folder = Some(scratch.clone());
    state.disks = running_disks(machine, live, request, &socket, &scratch)?;
    if let Some(name) = &request.checkpoint {
        let covered: Vec<String> = targets_with_new_bitmap(state);
        if !covered.is_empty() {
            state.checkpoint = Some(name.clone());
            state.checkpoint_disks = covered;
        }
    }
    // If we are killed from here on, this is what the next run goes by: a thaw that is not needed does no harm.
    state.thaw_due = request.freeze.mode != FreezeMode::Never && live.agent_connected;
    file.save(state)?;
    if !is_domain_folder(&state.socket_folder) {
        runtime::make_qemu_folder(&state.socket_folder, owner)?;
    }
    runtime::make_qemu_folder(&scratch, owner)?;
    failpoint::hit(Failpoint::CaptureNoted);
    let begun = begin(machine, request, file, state)?;
    state.captured_at = begun.captured_at;
    state.consistency = begun.consistency;
    state.freeze_note = begun.freeze_note;
    state.thaw_due = begun.thaw_due;
    state.definition_xml = begun.definition_xml;
    state.live_definition_xml = begun.live_definition_xml;
    for disk in &mut state.disks {
        // While the job runs it stays what it is; it may have grown just before.
        disk.capacity_bytes = machine.disk_info(&disk.target)?.capacity_bytes;
    }
    copies::copy_files(live, file, state);
    Ok(())
}

/// Waits for a snapshot, a migration … to be done, and so for the next one to begin with a guest that is not frozen.
fn wait_for_other_job(machine: &Machine) -> Result<()> {
    let wait = machine.limits().wait(OTHER_JOB_PATIENCE);
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

/// Where the job's socket goes. Under AppArmor or SELinux QEMU may only make one in the folder that libvirt keeps for the
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

/// `…/lib/qemu/domain-<id>-<name>`, where libvirt shortens long names.
pub(super) fn domain_folder(machine: &Machine) -> Option<PathBuf> {
    let library = match super::connection::embedded_root(machine.uri()) {
        Some(root) => root.join("lib/qemu"),
        None if machine.uri().ends_with("/session") => std::env::home_dir()?.join(".config/libvirt/qemu/lib"),
        None => PathBuf::from("/var/lib/libvirt/qemu"),
    };
    let prefix = format!("domain-{}-", machine.id()?);
    fs::read_dir(library)
        .ok()?
        .filter_map(std::result::Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

pub(super) fn is_domain_folder(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("domain-"))
}

fn running_disks(
    machine: &Machine,
    live: &Definition,
    request: &OpenRequest,
    socket: &Path,
    scratch: &Path,
) -> Result<Vec<CapturedDisk>> {
    let parents = Parents::look_up(machine, request)?;
    let mut disks = Vec::new();
    for (disk, wanted) in wanted_disks(live, request) {
        let info = machine.disk_info(&disk.target)?;
        // A volume is the file or device that it is now.
        let source = machine.resolve(&disk.source).unwrap_or_else(|_| disk.source.clone());
        let header = source.path().filter(|_| disk.slice.is_none()).map(|path| read_header(path, format_of(disk)));
        let keeps_bitmaps = match &header {
            Some(Ok(header)) => disk.keeps_bitmaps() && header.keeps_bitmaps,
            Some(Err(error)) => {
                tracing::debug!("{error}");
                disk.keeps_bitmaps()
            }
            None => disk.keeps_bitmaps(),
        };
        let (parent, reason) = parents.choose(wanted);
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
            has_new_bitmap: request.checkpoint.is_some() && keeps_bitmaps,
            scratch: Some(scratch.join(format!("{}.qcow2", disk.target))),
            image: live_identity(disk, &source),
        });
    }
    Ok(disks)
}

/// For each checkpoint asked for, the disks whose bitmap can be used.
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

    /// The parent to use for a disk, or why there is none.
    fn choose(&self, wanted: &DiskRequest) -> (Option<String>, Option<String>) {
        let Some(parent) = &wanted.parent else {
            return (None, wanted.full_reason.clone());
        };
        let usable = self.usable.get(parent).is_some_and(|disks| disks.contains(&wanted.target));
        if usable { (Some(parent.clone()), None) } else { (None, Some(format!("the bitmap {parent} cannot be used"))) }
    }
}

/// A checkpoint may be forgotten while its bitmaps live on (undefine, rename, another host): try to make it known again.
fn bring_back(machine: &Machine, checkpoint: &str, request: &OpenRequest) {
    match machine.checkpoints() {
        Ok(names) if !names.iter().any(|name| name == checkpoint) => {}
        _ => return,
    }
    let mut disks: Vec<&str> = request
        .disks
        .iter()
        .filter(|disk| disk.parent.as_deref() == Some(checkpoint))
        .map(|disk| disk.target.as_str())
        .collect();
    while !disks.is_empty() {
        let Err(error) = machine.redefine_checkpoint(checkpoint, &disks) else {
            return;
        };
        tracing::debug!("{error}");
        // One disk without its bitmap does not keep the others from theirs.
        let LibvirtErrorKind::BitmapBroken { disk: Some(broken) } = error.meaning() else {
            return;
        };
        let before = disks.len();
        disks.retain(|disk| *disk != broken);
        if disks.len() == before {
            return;
        }
    }
}

/// Begins the job. A bitmap that turns out to be broken after all costs its disk a full read, not the backup.
fn begin(machine: &Machine, request: &OpenRequest, file: &CaptureFile, state: &mut CaptureState) -> Result<job::Begun> {
    loop {
        let wanted = job_request(state);
        let error = match machine.begin_backup(&wanted, request.freeze) {
            Ok(begun) => return Ok(begun),
            Err(error) => error,
        };
        let reason = error.to_string();
        let gave_way = match error.meaning() {
            LibvirtErrorKind::BitmapBroken { disk } => {
                read_in_full(state, |at| disk.as_ref().is_none_or(|disk| *disk == at.target), &reason)
            }
            LibvirtErrorKind::CheckpointMissing => read_in_full(state, |_| true, &reason),
            LibvirtErrorKind::BitmapUnsupported => leave_out_of_checkpoint(state, &reason),
            _ => false,
        };
        if !gave_way {
            return Err(error);
        }
        tracing::warn!("{error}");
        file.save(state)?;
    }
}

fn job_request(state: &CaptureState) -> JobRequest {
    JobRequest {
        socket: state.job_socket.clone().unwrap_or_default(),
        disks: state
            .disks
            .iter()
            .map(|disk| JobDisk {
                target: disk.target.clone(),
                scratch: disk.scratch.clone().unwrap_or_default(),
                parent: disk.parent_checkpoint.clone(),
            })
            .collect(),
        skipped: state.skipped.iter().map(|skipped| skipped.target.clone()).collect(),
        checkpoint: state
            .checkpoint
            .as_ref()
            .map(|name| NewCheckpoint { name: name.clone(), disks: state.checkpoint_disks.clone() }),
    }
}

/// Says whether that changed anything.
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

/// Takes the disk that libvirt names out of the new checkpoint; every disk when it names none. Says whether that changed
/// anything.
fn leave_out_of_checkpoint(state: &mut CaptureState, reason: &str) -> bool {
    if state.checkpoint_disks.is_empty() {
        return false;
    }
    let named: Vec<String> = state
        .checkpoint_disks
        .iter()
        .filter(|target| {
            reason.split(|character: char| !character.is_ascii_alphanumeric()).any(|word| word == target.as_str())
        })
        .cloned()
        .collect();
    let out = if named.is_empty() { state.checkpoint_disks.clone() } else { named };
    state.checkpoint_disks.retain(|target| !out.contains(target));
    for disk in &mut state.disks {
        disk.has_new_bitmap &= !out.contains(&disk.target);
    }
    if state.checkpoint_disks.is_empty() {
        state.checkpoint = None;
    }
    true
}
