//! Closes captures, and cleans up after killed runs.
//!
//! Every step is idempotent: it acts on what exists, not on what the state file lists. The order is: end the job,
//! remove sockets and scratch files, settle the checkpoints, remove the capture's state. After a crash in between, the
//! state file still exists, so the next run completes the work.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::capture::connection::Hypervisor;
use crate::capture::domain_folder::is_domain_folder;
use crate::capture::error::{Error, LibvirtErrorKind, Result};
use crate::capture::images::{self, ImageIdentity};
use crate::capture::machine::{Machine, MachineState, PausedReason, Which};
use crate::capture::machine_lock::lock_machine;
use crate::capture::offline::image_lookup::read_header;
use crate::capture::offline::storage_daemon::{self, SERVER_SOCKETS};
use crate::capture::own_changes::UnchangedLayers;
use crate::capture::runtime::RuntimeDirs;
use crate::capture::state::{
    BackupJob, CaptureFile, CaptureMethod, CaptureState, OfflineReader, Phase, is_capture_id, remove_nameless,
};
use crate::failpoint::{self, Failpoint};

/// How long and how often a resumed machine is checked, because the same cause may pause it again.
const SETTLING_TIME: Duration = Duration::from_secs(1);
const SETTLING_INTERVAL: Duration = Duration::from_millis(50);

/// How to close a capture.
#[derive(Debug, Clone, Default)]
pub struct CloseRequest {
    /// The prefix of the names of this chain's checkpoints. If a point was stored together with its checkpoint, the
    /// others of the chain are superseded and deleted.
    pub chain: Option<String>,
    /// The time to wait for readers.
    pub wait: Duration,
}

/// The result of closing a capture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClosedCapture {
    pub(crate) capture: String,
    pub(crate) machine: String,
    /// The point that was stored from the capture.
    pub(crate) committed_point: Option<String>,
    /// Whether a running job or server of ours was ended.
    pub ended: bool,
    /// Whether the machine was resumed after an I/O error had paused it during the capture, for example because the
    /// scratch files' file system was full.
    pub(crate) resumed: bool,
    /// Whether the machine no longer exists.
    pub machine_gone: bool,
    /// The checkpoints that were deleted.
    pub deleted_checkpoints: Vec<String>,
    /// Checkpoints that could not be deleted because the machine is off. A later run deletes them.
    pub pending_checkpoints: Vec<String>,
}

/// Closes a capture. Waits for readers as requested, then fails with [`Error::Held`]. Without a hypervisor, it opens
/// the connection that the capture was made through, if needed.
pub fn close_capture(
    runtime: &RuntimeDirs,
    hypervisor: Option<&Hypervisor>,
    file: CaptureFile,
    request: &CloseRequest,
) -> Result<ClosedCapture> {
    // Before the lock: libvirt's embedded driver waits for the processes that have it open, and one of them may be
    // about to close the capture.
    let machine = find_machine(runtime, hypervisor, &file.load()?)?;
    file.lock_exclusive(request.wait)?;
    close_with_machine(runtime, machine.as_ref(), file, request)
}

/// Ends the job (or the servers) and removes sockets and scratch files, but keeps checkpoints and the capture's state.
/// Used when the last byte was read and the point is not stored yet. The caller must hold the exclusive lock or be the
/// only reader.
pub fn drain_capture(
    runtime: &RuntimeDirs,
    hypervisor: Option<&Hypervisor>,
    file: &CaptureFile,
) -> Result<ClosedCapture> {
    let mut state = file.load()?;
    let machine = find_machine(runtime, hypervisor, &state)?;
    let mut closed = ClosedCapture::of(&state);
    drain(runtime, machine.as_ref(), file, &mut state, &mut closed)?;
    Ok(closed)
}

/// Cleans up what earlier runs left and no live capture owns: a job, servers, sockets, scratch files, and checkpoints
/// that were never committed. Fails with [`Error::Held`] for a live capture, and with [`Error::ForeignJob`] for a job
/// of another program.
pub fn clear_leftovers(runtime: &RuntimeDirs, machine: &Machine) -> Result<Vec<ClosedCapture>> {
    let _lock = lock_machine(runtime, machine)?;
    clear_leftovers_locked(runtime, machine)
}

pub(super) fn clear_leftovers_locked(runtime: &RuntimeDirs, machine: &Machine) -> Result<Vec<ClosedCapture>> {
    remove_nameless(runtime);
    let mut all = Vec::new();
    for file in CaptureFile::open_all(runtime)? {
        let state = match file.load() {
            Ok(state) => state,
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                remove_stateless(file)?;
                continue;
            }
            Err(error) => {
                tracing::warn!("{error}");
                continue;
            }
        };
        if !state.uuid.eq_ignore_ascii_case(machine.uuid()) {
            continue;
        }
        // A capture in the phase `Opening` is abandoned: a process that is still opening it would hold the machine's
        // lock, which this process holds.
        let leased = state.phase == Phase::Open && !state.is_expired() && !state.is_orphaned();
        if leased {
            return Err(Error::Held {
                machine: machine.name().to_owned(),
                by: state.running_backup(),
                capture: state.id,
                until: Some(state.lease_ends_at.to_rfc3339()),
            });
        }
        // The guard may be releasing a capture whose opener was killed.
        let wait = Duration::from_secs(if state.phase == Phase::Opening { 20 } else { 2 });
        file.lock_exclusive(wait)?;
        tracing::info!("clearing capture {} of {}", state.id, state.machine);
        all.push(close_with_machine(runtime, Some(machine), file, &CloseRequest::default())?);
    }
    end_stray_job(runtime, machine)?;
    remove_scratch_of_before_boot(runtime);
    Ok(all)
}

/// Whether a machine is paused because of an I/O error.
pub(super) fn is_paused_by_io_error(machine: &Machine) -> bool {
    matches!(machine.state(), Ok(MachineState::Paused(PausedReason::IoError)))
}

/// Closes a capture that this process has locked.
pub(super) fn close_with_machine(
    runtime: &RuntimeDirs,
    machine: Option<&Machine>,
    file: CaptureFile,
    request: &CloseRequest,
) -> Result<ClosedCapture> {
    let mut state = match file.load() {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            let closed = ClosedCapture { capture: file.id().to_owned(), ..ClosedCapture::default() };
            remove_folder(&runtime.socket_folder().join(file.id()))?;
            file.remove()?;
            return Ok(closed);
        }
        other => other?,
    };
    let mut closed = ClosedCapture::of(&state);
    drain(runtime, machine, &file, &mut state, &mut closed)?;
    settle_checkpoints(runtime, machine, &state, request, &mut closed)?;
    failpoint::hit(Failpoint::CheckpointsSettled);
    let guard = file.guard();
    if closed.pending_checkpoints.is_empty() {
        file.remove()?;
    }
    if let Some(guard) = guard {
        guard.process.ask_to_end();
    }
    failpoint::hit(Failpoint::CaptureForgotten);
    Ok(closed)
}

impl ClosedCapture {
    fn of(state: &CaptureState) -> ClosedCapture {
        ClosedCapture {
            capture: state.id.clone(),
            machine: state.machine.clone(),
            committed_point: state.committed_point.clone(),
            ..ClosedCapture::default()
        }
    }
}

/// Returns the capture's machine, or `None` if it no longer exists.
fn find_machine(
    runtime: &RuntimeDirs,
    hypervisor: Option<&Hypervisor>,
    state: &CaptureState,
) -> Result<Option<Machine>> {
    let needed = state.job().is_some() || state.checkpoint.is_some();
    if !needed && hypervisor.is_none() {
        return Ok(None);
    }
    let opened;
    let hypervisor = match hypervisor {
        Some(hypervisor) => hypervisor,
        None => {
            opened = Hypervisor::open_within(Some(&state.connect), runtime.limits())?;
            &opened
        }
    };
    match hypervisor.machine(&state.uuid) {
        Ok(machine) => Ok(Some(machine)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn drain(
    runtime: &RuntimeDirs,
    machine: Option<&Machine>,
    file: &CaptureFile,
    state: &mut CaptureState,
    closed: &mut ClosedCapture,
) -> Result<()> {
    match &state.method {
        CaptureMethod::Job(job) => match machine {
            None => closed.machine_gone = true,
            Some(machine) => end_job(machine, job, closed)?,
        },
        CaptureMethod::Offline(reader) => end_servers(state, reader, closed)?,
        CaptureMethod::Definition => {}
    }
    remove_sockets(runtime, state)?;
    if let Some(job) = state.job() {
        remove_scratch(&job.scratch_folder, &state.id)?;
    }
    if state.phase != Phase::Drained || state.job().is_some_and(|job| job.thaw_due) {
        note_drained(state);
        // A reader may record its point at the same time.
        file.update(note_drained)?;
    }
    Ok(())
}

fn note_drained(state: &mut CaptureState) {
    state.phase = Phase::Drained;
    if let Some(job) = state.job_mut() {
        job.thaw_due = false;
    }
}

fn end_job(machine: &Machine, job: &BackupJob, closed: &mut ClosedCapture) -> Result<()> {
    match end_running_job(machine, job, closed) {
        // The machine stopped or vanished meanwhile, so the job is gone too.
        Err(error) if matches!(error.meaning(), LibvirtErrorKind::InvalidState | LibvirtErrorKind::NotFound) => {
            closed.machine_gone = error.is_not_found();
            Ok(())
        }
        other => other,
    }
}

fn end_running_job(machine: &Machine, job: &BackupJob, closed: &mut ClosedCapture) -> Result<()> {
    if !machine.is_running()? {
        return Ok(());
    }
    if job.thaw_due {
        // A guest that never answers must not prevent the capture from being closed.
        if let Err(error) = machine.thaw() {
            let name = shlex::try_quote(machine.name()).unwrap_or_else(|_| machine.uuid().into());
            tracing::error!("{error}; if its file systems stay frozen, run 'virsh domfsthaw {name}', or reset it");
        }
    }
    let running = machine.settled_backup()?;
    if running.is_none_or(|running| running.socket.as_ref() != Some(&job.socket)) {
        return Ok(());
    }
    closed.ended = machine.end_backup()?;
    // The scratch space was full, although there may be space again by now. A guest whose own disk failed is paused
    // again at the same request.
    if !job.io_paused_before && is_paused_by_io_error(machine) {
        keep_running(machine)?;
        closed.resumed = true;
    }
    Ok(())
}

/// Resumes a machine that an I/O error paused, and again if another request that found the scratch space full only
/// fails now.
fn keep_running(machine: &Machine) -> Result<()> {
    let settled = Instant::now() + SETTLING_TIME;
    loop {
        if is_paused_by_io_error(machine) {
            machine.resume_stopped()?;
        }
        if Instant::now() >= settled {
            return Ok(());
        }
        thread::sleep(SETTLING_INTERVAL);
    }
}

fn end_servers(state: &CaptureState, reader: &OfflineReader, closed: &mut ClosedCapture) -> Result<()> {
    for server in &reader.servers {
        closed.ended |= storage_daemon::end(&server.process, &server.socket)?;
    }
    // A server may have been started without being recorded yet.
    for socket in SERVER_SOCKETS {
        storage_daemon::end_all_on(&state.socket_folder.join(socket));
    }
    Ok(())
}

/// Removes our socket folder with its content. In libvirt's folder, only our socket is removed.
fn remove_sockets(runtime: &RuntimeDirs, state: &CaptureState) -> Result<()> {
    if is_domain_folder(&state.socket_folder) {
        if let Some(job) = state.job() {
            remove_file(&job.socket)?;
        }
        return Ok(());
    }
    remove_folder(&runtime.socket_folder().join(&state.id))
}

/// Removes the scratch folder. Only a folder with the name of the capture belongs to it completely.
fn remove_scratch(folder: &Path, id: &str) -> Result<()> {
    if folder.file_name().is_some_and(|name| name == id) {
        remove_folder(folder)?;
    }
    Ok(())
}

fn settle_checkpoints(
    runtime: &RuntimeDirs,
    machine: Option<&Machine>,
    state: &CaptureState,
    request: &CloseRequest,
    closed: &mut ClosedCapture,
) -> Result<()> {
    let Some(made) = &state.checkpoint else {
        return Ok(());
    };
    let Some(machine) = machine else {
        // The images may still exist.
        if state.committed_point.is_none() && state.offline().is_some() {
            remove_bitmaps(&images_of(state), made)?;
        }
        return Ok(());
    };
    if state.committed_point.is_some() && state.offline().is_some() {
        make_known(machine, state, made);
    }
    let doomed: Vec<String> = match (&state.committed_point, &request.chain) {
        (None, _) => vec![made.clone()],
        (Some(_), Some(chain)) => superseded(machine, chain, made)?,
        (Some(_), None) => Vec::new(),
    };
    for name in doomed {
        let layers = UnchangedLayers::of(runtime, state);
        let deleted = match delete_known_or_not(machine, &name, state) {
            // QEMU exited during the deletion.
            Err(error) if !error.is_not_found() && ends_now(machine) => {
                tracing::debug!("{error}");
                delete_known_or_not(machine, &name, state)
            }
            other => other,
        };
        match deleted {
            Ok(true) => {
                layers.note_changes(runtime, &state.uuid);
                closed.deleted_checkpoints.push(name.clone());
            }
            Ok(false) => {}
            Err(error) if matches!(error.meaning(), LibvirtErrorKind::Unsupported | LibvirtErrorKind::InvalidState) => {
                tracing::info!("{error}; left for a later run");
                closed.pending_checkpoints.push(name.clone());
            }
            Err(error) if error.is_not_found() => closed.machine_gone = true,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a machine has stopped, although libvirt may need a moment to notice.
fn ends_now(machine: &Machine) -> bool {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match machine.is_running() {
            Ok(true) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Ok(running) => return !running,
            Err(_) => return false,
        }
    }
}

/// Defines a checkpoint in libvirt for a chain that was started while the machine was off. If this fails, the next
/// backup tries again.
fn make_known(machine: &Machine, state: &CaptureState, name: &str) {
    let disks: Vec<&str> = state.checkpoint_disks.iter().map(String::as_str).collect();
    let known = machine.checkpoints().is_ok_and(|names| names.iter().any(|known| known == name));
    if !known && let Err(error) = machine.redefine_checkpoint(name, &disks) {
        tracing::warn!("{error}");
    }
}

/// Returns the checkpoints of a chain except the newest.
fn superseded(machine: &Machine, chain: &str, newest: &str) -> Result<Vec<String>> {
    let names = match machine.checkpoints() {
        Err(error) if error.is_not_found() => Vec::new(),
        names => names?,
    };
    Ok(names.into_iter().filter(|name| name.starts_with(chain) && name != newest).collect())
}

/// Deletes a checkpoint and its bitmaps, whether or not libvirt knows it.
fn delete_known_or_not(machine: &Machine, name: &str, state: &CaptureState) -> Result<bool> {
    if !machine.is_running()? {
        return delete_off(machine, name, state);
    }
    if machine.delete_checkpoint(name)? {
        return Ok(true);
    }
    if state.checkpoint.as_deref() != Some(name) {
        return Ok(false);
    }
    // libvirt may have been killed after creating the bitmaps and before recording the checkpoint. Checkpoints of
    // stopped machines are never known to it.
    let disks: Vec<&str> = state.checkpoint_disks.iter().map(String::as_str).collect();
    match machine.redefine_checkpoint(name, &disks) {
        Ok(()) => machine.delete_checkpoint(name),
        // This is the usual case: the bitmaps do not exist either.
        Err(error) => {
            tracing::debug!("{error}");
            Ok(false)
        }
    }
}

/// Deletes a checkpoint of a stopped machine. libvirt cannot, so the bitmaps are removed from the images, and then
/// libvirt deletes the metadata.
fn delete_off(machine: &Machine, name: &str, state: &CaptureState) -> Result<bool> {
    let mut images = images_of(state);
    for disk in machine.definition(Which::Inactive)?.disks {
        let source = machine.resolve(&disk.source)?;
        if disk.keeps_bitmaps()
            && let Some(path) = source.path()
        {
            images.insert(path.to_owned());
        }
    }
    let removed = remove_bitmaps(&images, name)?;
    // After an external snapshot, bitmaps are in backing files too. Other machines may use those.
    if let Err(error) = remove_bitmaps(&backing_of(state), name) {
        tracing::debug!("{error}");
    }
    let known = machine.checkpoints()?.iter().any(|known| known == name);
    if known {
        machine.forget_checkpoint(name)?;
    }
    Ok(known || removed)
}

/// Returns the top images of a capture that may have bitmaps.
fn images_of(state: &CaptureState) -> BTreeSet<PathBuf> {
    with_bitmaps(state.disks.iter().filter_map(|disk| disk.image.first()))
}

/// The same for its backing files.
fn backing_of(state: &CaptureState) -> BTreeSet<PathBuf> {
    with_bitmaps(state.disks.iter().flat_map(|disk| disk.image.iter().skip(1)))
}

fn with_bitmaps<'s>(layers: impl Iterator<Item = &'s ImageIdentity>) -> BTreeSet<PathBuf> {
    layers.filter(|layer| layer.format == "qcow2" && layer.inode != 0).map(|layer| PathBuf::from(&layer.path)).collect()
}

/// Removes a bitmap from those of these images that have it. Returns whether one had it.
fn remove_bitmaps(images: &BTreeSet<PathBuf>, name: &str) -> Result<bool> {
    let mut removed = false;
    for path in images.iter().filter(|path| path.exists()) {
        match read_header(path, "qcow2") {
            Ok(header) if header.bitmaps.iter().any(|bitmap| bitmap.name == name) => {
                let data_bytes = header.data_file.and(header.capacity_bytes);
                images::remove_bitmap(path, name, data_bytes)?;
                removed = true;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("{error}"),
        }
    }
    Ok(removed)
}

/// Ends a job without a state. It is ours if its socket is, and then nothing reads from it.
fn end_stray_job(runtime: &RuntimeDirs, machine: &Machine) -> Result<()> {
    if !machine.is_running()? {
        return Ok(());
    }
    let Some(job) = machine.settled_backup()? else {
        return Ok(());
    };
    let capture = job.socket.as_deref().and_then(|socket| capture_of_socket(runtime, socket));
    let Some(capture) = capture else {
        return Err(Error::ForeignJob {
            machine: machine.name().to_owned(),
            job: match &job.socket {
                Some(socket) => format!("on socket {}", socket.display()),
                None => format!("of disks {}", job.disks.join(", ")),
            },
        });
    };
    tracing::info!("ending the stray job {capture} of {}", machine.name());
    machine.end_backup()?;
    for scratch in &job.scratch {
        if let Some(folder) = scratch.parent() {
            remove_scratch(folder, &capture)?;
        }
    }
    if let Some(socket) = &job.socket {
        remove_file(socket)?;
    }
    remove_folder(&runtime.socket_folder().join(&capture))
}

/// Returns the capture that a socket belongs to: `<sockets>/<id>/…` or `domain-…/kvmb-<id>`.
pub(super) fn capture_of_socket(runtime: &RuntimeDirs, socket: &Path) -> Option<String> {
    let folder = socket.parent()?;
    let id = if is_domain_folder(folder) {
        socket.file_name()?.to_str()?.strip_prefix("kvmb-")?
    } else if folder.parent() == Some(runtime.socket_folder()) {
        folder.file_name()?.to_str()?
    } else {
        return None;
    };
    is_capture_id(id).then(|| id.to_owned())
}

/// Removes the folders of captures whose owner was killed before it wrote a state.
pub(crate) fn clear_stateless(runtime: &RuntimeDirs) -> Result<()> {
    remove_nameless(runtime);
    for file in CaptureFile::open_all(runtime)? {
        if matches!(file.load(), Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound) {
            remove_stateless(file)?;
        }
    }
    Ok(())
}

/// A process that is still opening the capture holds the lock.
fn remove_stateless(file: CaptureFile) -> Result<()> {
    if file.lock_exclusive(Duration::ZERO).is_ok() {
        // The state may have been written between the check and the lock.
        if matches!(file.load(), Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound) {
            file.remove()?;
        }
    }
    Ok(())
}

/// Removes scratch files that are older than the last boot. Unlike the state folder, they survive a reboot.
fn remove_scratch_of_before_boot(runtime: &RuntimeDirs) {
    let Some(boot) = boot_time() else { return };
    let Ok(entries) = fs::read_dir(runtime.scratch_folder()) else {
        return;
    };
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name();
        let old = entry.metadata().and_then(|found| found.modified()).is_ok_and(|at| at < boot);
        let ours = name.to_str().is_some_and(is_capture_id);
        if old
            && ours
            && let Err(error) = remove_folder(&entry.path())
        {
            tracing::warn!("{error}");
        }
    }
}

fn boot_time() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
