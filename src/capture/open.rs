//! Opens a capture of a machine, running or off.
//!
//! ```text
//!  machine lock → clear leftovers → which disks, from which parents
//!    → state file «opening» → folders → [freeze → begin → thaw | qemu-nbd a disk] → copies → state file «open»
//! ```
//! Any failure on the way is undone by closing what the state file says.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, FixedOffset, Local, TimeDelta};
use rustix::fs::{FlockOperation, flock};

use super::agent::{Consistency, FreezeMode, FreezeOptions};
use super::close::{self, CloseRequest};
use super::copies;
use super::definition::{DefinedDisk, Definition, Device, DiskSource};
use super::error::{Error, LibvirtErrorKind, Result};
use super::images::{self, ImageIdentity};
use super::job::{self, JobDisk, JobRequest, NewCheckpoint};
use super::machine::{Machine, MachineState, PausedReason, Which};
use super::offline_fingerprint::OfflineFingerprint;
use super::qemu_nbd::{self, ServeRequest};
use super::runtime::{self, RuntimeDirs};
use super::state::{
    CaptureFile, CaptureKind, CaptureState, CapturedDisk, Phase, ReadMode, STATE_VERSION, ServerProcess, SkippedDisk,
};
use crate::failpoint::{self, Failpoint};

/// How long another command may be busy with the same machine: opening takes seconds at most.
const MACHINE_LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// How long libvirt may be at work on something else for the machine.
const OTHER_JOB_PATIENCE: Duration = Duration::from_secs(30);

/// What to capture, and how.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    /// The disks to capture. All others are left out.
    pub disks: Vec<DiskRequest>,
    /// Disks that are left out for a reason that the caller wants to be remembered.
    pub skipped: Vec<SkippedDisk>,
    /// The name of a checkpoint to make at the same instant, covering the captured disks that can keep a bitmap. A machine
    /// that is off does not change: it gets one only where a disk that can keep a bitmap has no parent's that can be used.
    pub checkpoint: Option<String>,
    /// Whether to freeze the guest's file systems.
    pub freeze: FreezeOptions,
    /// How long the capture stays open at most.
    pub lease: Duration,
    /// Whether a guard ends the capture with its lease.
    pub guarded: bool,
    /// Whether the capture belongs to this process: when the process is gone, anybody may clear it away.
    pub owned: bool,
    /// The repository whose chain is continued; only remembered.
    pub repository: Option<String>,
    /// The restore point that is continued; only remembered.
    pub parent_point: Option<String>,
    /// Where scratch files go, if not where the runtime says.
    pub scratch_dir: Option<PathBuf>,
}

/// A disk to capture.
#[derive(Debug, Clone)]
pub struct DiskRequest {
    /// Its target.
    pub target: String,
    /// The checkpoint since which changes are wanted. When its bitmap cannot be used, the disk is captured in full, and the
    /// reason is told.
    pub parent: Option<String>,
    /// Why it has no parent, where one could be expected; becomes the reason of the full read.
    pub full_reason: Option<String>,
}

impl Default for OpenRequest {
    fn default() -> OpenRequest {
        OpenRequest {
            disks: Vec::new(),
            skipped: Vec::new(),
            checkpoint: None,
            freeze: FreezeOptions::default(),
            lease: Duration::from_secs(6 * 3600),
            guarded: false,
            owned: false,
            repository: None,
            parent_point: None,
            scratch_dir: None,
        }
    }
}

impl OpenRequest {
    /// When a server of a machine that is off ends by itself: a guard renews the lease, which a server could not.
    pub(super) fn server_lease(&self) -> Duration {
        const GUARDED: Duration = Duration::from_secs(30 * 24 * 3600);
        if self.guarded { GUARDED } else { self.lease }
    }
}

impl DiskRequest {
    /// A disk to read in full.
    pub fn full(target: impl Into<String>) -> DiskRequest {
        DiskRequest { target: target.into(), parent: None, full_reason: None }
    }

    /// A disk to read what changed since a checkpoint.
    pub fn since(target: impl Into<String>, checkpoint: impl Into<String>) -> DiskRequest {
        DiskRequest { target: target.into(), parent: Some(checkpoint.into()), full_reason: None }
    }
}

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
        let was_started = state.kind == CaptureKind::QemuNbd && machine.is_running().unwrap_or(false);
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
    failpoint::hit(Failpoint::CaptureOpen);
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
                "{} is confined by a security module, but libvirt's folder for it was not found",
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
        let layers = source.path().map(|path| images::read_layers(path, format_of(disk)));
        let keeps_bitmaps = match &layers {
            Some(Ok(layers)) => disk.keeps_bitmaps() && layers.first().is_some_and(|layer| layer.keeps_bitmaps),
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
            server: None,
            image: live_identity(disk, &source),
        });
    }
    Ok(disks)
}

/// The image and its layers as the live definition names them, which is what QEMU really has open.
fn live_identity(disk: &DefinedDisk, source: &DiskSource) -> Vec<ImageIdentity> {
    let top = (source, format_of(disk));
    let below = disk.backing.iter().map(|layer| (&layer.source, layer.format.as_deref().unwrap_or("raw")));
    std::iter::once(top).chain(below).map(|(source, format)| identity_of(source, format)).collect()
}

/// A file's identity; of what is no local file, or cannot be seen, only the address.
fn identity_of(source: &DiskSource, format: &str) -> ImageIdentity {
    let address = match source {
        DiskSource::File { path } | DiskSource::Block { path } => match images::identify(path, format) {
            Ok(identity) => return identity,
            Err(error) => {
                tracing::debug!("{error}");
                path.to_string_lossy().into_owned()
            }
        },
        DiskSource::Network { protocol, name, .. } => {
            format!("{protocol}:{}", name.as_deref().unwrap_or_default())
        }
        DiskSource::Volume { pool, volume } => format!("volume:{pool}/{volume}"),
        other => other.kind().to_owned(),
    };
    ImageIdentity {
        path: address,
        format: format.to_owned(),
        device: 0,
        inode: 0,
        size_bytes: 0,
        modified_ns: 0,
        born_ns: None,
    }
}

fn wanted_disks<'a>(
    definition: &'a Definition,
    request: &'a OpenRequest,
) -> impl Iterator<Item = (&'a DefinedDisk, &'a DiskRequest)> {
    definition.disks.iter().filter_map(|disk| {
        let wanted = request.disks.iter().find(|wanted| wanted.target == disk.target)?;
        Some((disk, wanted))
    })
}

fn format_of(disk: &DefinedDisk) -> &str {
    disk.format.as_deref().unwrap_or("raw")
}

fn read_mode(parent: Option<&String>) -> ReadMode {
    match parent {
        Some(_) => ReadMode::Changed,
        None => ReadMode::Full,
    }
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

fn open_off(
    runtime: &RuntimeDirs,
    machine: &Machine,
    definition: &Definition,
    request: &OpenRequest,
    file: &CaptureFile,
    state: &mut CaptureState,
) -> Result<()> {
    state.kind = CaptureKind::QemuNbd;
    state.consistency = Consistency::Offline;
    state.socket_folder = runtime.socket_folder().join(file.id());
    // Known before it is there: whoever clears after a kill goes by the state.
    file.save(state)?;
    runtime::make_qemu_folder(&state.socket_folder, runtime::our_owner())?;
    let mut sources = Vec::new();
    for (disk, wanted) in wanted_disks(definition, request) {
        let off = off_disk(machine, disk, wanted, &state.socket_folder)?;
        runtime::check_socket_path(&off.captured.socket)?;
        state.disks.push(CapturedDisk { has_new_bitmap: off.keeps_bitmaps, ..off.captured });
        sources.push(off.source);
    }
    start_chain(request, file, state)?;
    // Before anybody can read; our own bitmaps are in the images by now.
    let mut still = OfflineFingerprint::note(machine, state, &sources);
    for (at, source) in sources.into_iter().enumerate() {
        let disk = &state.disks[at];
        let server = qemu_nbd::serve(&ServeRequest {
            target: disk.target.clone(),
            source,
            format: disk.format.clone(),
            bitmap: disk.parent_checkpoint.clone(),
            socket: disk.socket.clone(),
            log: file.folder().join(format!("qemu-nbd-{}.log", disk.target)),
            lease: request.server_lease(),
            dies_with_us: request.owned,
        })?;
        state.disks[at].server = Some(server);
        file.save(state)?;
        if state.disks[at].capacity_bytes == 0 {
            // libvirt does not know how large what is on the network is.
            state.disks[at].capacity_bytes = images::size_of_export(&state.disks[at].nbd_uri)?;
        }
    }
    failpoint::hit(Failpoint::Begun);
    state.captured_at = Local::now().fixed_offset();
    // From the first server on, QEMU's locks keep the machine from starting; before it, it may just have been started.
    if machine.is_running()? {
        return Err(Error::StartedMeanwhile { machine: machine.name().to_owned() });
    }
    if machine.has_saved_memory().unwrap_or(false) {
        state.freeze_note =
            Some("the machine is suspended to disk; its saved memory is not part of the backup".to_owned());
        state.consistency = Consistency::Crash;
    }
    state.definition_xml = machine.definition_xml(Which::Inactive, true)?;
    still.note_opened(state, file.folder());
    state.stillness = Some(still);
    copies::copy_files(definition, file, state);
    Ok(())
}

/// Puts new bitmaps into the images of a machine that is off, where a disk that could have one has none to continue: what the
/// guest writes from its next start on is then known. Entered with `has_new_bitmap` saying which disks could have one.
fn start_chain(request: &OpenRequest, file: &CaptureFile, state: &mut CaptureState) -> Result<()> {
    let starts = state.disks.iter().any(|disk| disk.has_new_bitmap && disk.parent_checkpoint.is_none());
    let name = request.checkpoint.as_ref().filter(|_| starts);
    match name {
        Some(name) => {
            state.checkpoint = Some(name.clone());
            state.checkpoint_disks = targets_with_new_bitmap(state);
        }
        None => state.disks.iter_mut().for_each(|disk| disk.has_new_bitmap = false),
    }
    // What is begun is known before it begins: every socket, and every bitmap.
    file.save(state)?;
    failpoint::hit(Failpoint::CaptureNoted);
    let Some(name) = name else {
        return Ok(());
    };
    for disk in state.disks.iter_mut().filter(|disk| disk.has_new_bitmap) {
        let Some(image) = disk.image.first() else { continue };
        if let Err(error) = images::add_bitmap(Path::new(&image.path), name) {
            // Somebody has it open, or it may not be written: it is read in full next time.
            tracing::debug!("{error}");
            disk.has_new_bitmap = false;
        }
    }
    state.checkpoint_disks = targets_with_new_bitmap(state);
    if state.checkpoint_disks.is_empty() {
        state.checkpoint = None;
    }
    file.save(state)?;
    failpoint::hit(Failpoint::BitmapsAdded);
    Ok(())
}

fn targets_with_new_bitmap(state: &CaptureState) -> Vec<String> {
    state.disks.iter().filter(|disk| disk.has_new_bitmap).map(|disk| disk.target.clone()).collect()
}

/// A disk of a machine that is off, to be served.
struct OffDisk {
    captured: CapturedDisk,
    source: DiskSource,
    keeps_bitmaps: bool,
}

fn off_disk(machine: &Machine, disk: &DefinedDisk, wanted: &DiskRequest, sockets: &Path) -> Result<OffDisk> {
    if let Some(kind) = &disk.encryption {
        return Err(Error::DiskNotCapturable {
            machine: machine.name().to_owned(),
            disk: disk.target.clone(),
            reason: format!("it is encrypted ({kind}), which needs the machine to run"),
        });
    }
    let source = machine.resolve(&disk.source)?;
    let layers = match source.path() {
        Some(path) => images::read_layers(path, format_of(disk))?,
        None => Vec::new(),
    };
    let mut bitmap = None;
    let mut reason = wanted.full_reason.clone();
    if let Some(parent) = &wanted.parent {
        let found = layers.first().and_then(|layer| layer.bitmaps.iter().find(|bitmap| bitmap.name == *parent));
        match found {
            Some(found) if found.is_usable() => bitmap = Some(parent.clone()),
            Some(_) => reason = Some(format!("the bitmap {parent} was not closed properly")),
            None => reason = Some(format!("the bitmap {parent} is not in the image")),
        }
    }
    let socket = sockets.join(&disk.target);
    let capacity = match layers.first() {
        Some(layer) => layer.capacity_bytes,
        None => machine.disk_info(&disk.target).map_or(0, |info| info.capacity_bytes),
    };
    let image = if layers.is_empty() {
        vec![identity_of(&source, format_of(disk))]
    } else {
        layers.iter().map(|layer| images::identify(&layer.path, &layer.format)).collect::<Result<_>>()?
    };
    let captured = CapturedDisk {
        target: disk.target.clone(),
        nbd_uri: runtime::nbd_uri(&socket, &disk.target),
        socket,
        export: disk.target.clone(),
        capacity_bytes: capacity,
        format: format_of(disk).to_owned(),
        read_mode: read_mode(bitmap.as_ref()),
        read_mode_reason: reason,
        parent_checkpoint: bitmap.clone(),
        dirty_context: bitmap.as_deref().map(qemu_nbd::dirty_context),
        has_new_bitmap: false,
        scratch: None,
        server: None,
        image,
    };
    let keeps_bitmaps = disk.keeps_bitmaps() && layers.first().is_some_and(|layer| layer.keeps_bitmaps);
    Ok(OffDisk { captured, source, keeps_bitmaps })
}

impl Machine {
    /// A volume of a storage pool as the file or device that it is.
    pub fn resolve(&self, source: &DiskSource) -> Result<DiskSource> {
        let DiskSource::Volume { pool, volume } = source else {
            return Ok(source.clone());
        };
        let action = || format!("look up volume {volume} of storage pool {pool}");
        let (pool, volume) = (pool.clone(), volume.clone());
        let path = self.call(action, move |domain| super::connection::volume_path(domain, &pool, &volume))?;
        let is_block =
            fs::metadata(&path).is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_block_device(&found.file_type()));
        Ok(if is_block { DiskSource::Block { path } } else { DiskSource::File { path } })
    }
}
