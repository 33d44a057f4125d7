//! Live restores: the machine runs at once on an empty image on top of its served point, and its data is copied
//! meanwhile.
//!
//! ```text
//!  state file ─ images next to the old ones ─ files ─ definition ─ server ─ start
//!     ─ copy disk by disk, each made durable ─ final definition ─ old images, server and state file removed
//! ```
//! Until all data is on the disks of this host, the machine needs the server of its point. If the server exits, it is
//! restarted while the machine waits. If this process exits, the server and the machine continue under the supervisor,
//! and another process can continue the restore from the state file. The definition names the server's socket, so
//! libvirt refuses to start the machine without the server.

pub(crate) mod confinement;
mod durable;
mod pull;
mod server;
pub(crate) mod state;
pub(crate) mod supervisor;
mod undo;

use super::plan::{self, RestorePlan};
use super::planned::{PlannedDisk, PlannedFile, TargetKind};
use super::qcow2::Layout;
use super::request::ImageFormat;
use super::settle::{refresh_pools, settle};
use super::small_file::{NewFolders, SmallFile, place_of};
use super::target::{Destination, PartialFile};
use crate::atomic_file;
use crate::capture::domain_xml::rewrite::served::{on_served_point, with_settings};
use crate::capture::machine::Which;
use crate::capture::offline::qemu_user::QemuUser;
use crate::capture::process::ServerProcess;
use crate::capture::runtime::nbd_uri;
use crate::capture::{self, Definition, Hypervisor, Machine, RuntimeDirs};
use crate::failpoint::{self, Failpoint};
use crate::ops::pin::Pinner;
use crate::ops::points::{OpenPoint, PointRef};
use crate::ops::{Error, Monitor, Result, Stop};
use crate::record::{self, LiveRestore, RestoredTo};
use crate::repo::{Index, Permit, Repository};
use chrono::Local;
use confinement::MissingRule;
use server::PointServer;
use state::{LiveDisk, LiveFile, LiveFolder, LivePhase, LiveState, ReplacedFile, ServerAccess, boot_id};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;
use supervisor::{HostService, Supervised};

/// The maximum size of a small file that is kept until a restore is over.
const LARGEST_FILE_BYTES: u64 = 256 << 20;

/// The environment of a live restore.
pub(crate) struct LiveContext<'a> {
    pub(crate) folder: &'a LiveFolder,
    pub(crate) runtime: &'a RuntimeDirs,
    /// The maximum number of bytes copied per second.
    pub(crate) limit_read: Option<u32>,
    /// Starts a supervisor when the host boots.
    pub(crate) service: &'a dyn HostService,
    pub(crate) monitor: &'a dyn Monitor,
    pub(crate) stop: &'a Stop,
}

/// What is restored, and how the server accesses the repository.
pub(crate) struct LiveSource<'a> {
    pub(crate) repo: &'a Repository,
    pub(crate) index: &'a Index,
    pub(crate) point: &'a OpenPoint,
    pub(crate) access: ServerAccess,
    /// The permission to tag the point; `None` for a read-only repository.
    pub(crate) permit: Option<Permit>,
    /// When the command started.
    pub(crate) began: Instant,
}

/// Fails if this plan cannot be carried out as a live restore.
pub(crate) fn check(plan: &RestorePlan, hypervisor: &Hypervisor, runtime: &RuntimeDirs) -> Result<()> {
    for disk in &plan.disks {
        let refused = |reason: &'static str, solve: &'static str| Error::NotLive {
            subject: format!("disk {}", disk.disk),
            reason,
            solve,
        };
        if disk.kind == TargetKind::Device {
            return Err(refused("it goes to a block device", "choose a folder for qcow2 images: --into DIR"));
        }
        if disk.format != ImageFormat::Qcow2 {
            return Err(refused("only a qcow2 image can lie on a served point", "add --format qcow2"));
        }
    }
    if let Some(file) = plan.files.iter().find(|file| file.network.is_some() || file.is_on_device) {
        let (subject, solve) = (file.name.clone(), "omit --live");
        return Err(Error::NotLive { subject, reason: "it is not a file of this host", solve });
    }
    let host = hypervisor.survey()?;
    match host.confined_by.as_deref().and_then(|module| confinement::missing_rule(module, runtime)) {
        Some(MissingRule { module, rule, command }) => {
            Err(Error::ForbiddenBy { machine: plan.machine.clone(), module, rule, command })
        }
        None => Ok(()),
    }
}

/// Carries out a plan. When the machine runs, `on_running` is called with the seconds that it took.
pub(crate) fn restore_live(
    source: &LiveSource,
    plan: &RestorePlan,
    connect: &dyn Fn() -> capture::Result<Hypervisor>,
    context: &LiveContext,
    on_running: &dyn Fn(f64),
) -> Result<record::Point> {
    let (monitor, stop) = (context.monitor, context.stop);
    plan.notes.iter().for_each(|note| monitor.warn(note));
    let hypervisor = connect()?;
    check(plan, &hypervisor, context.runtime)?;
    plan::refuse_running(&hypervisor, plan)?;
    let file = context.folder.lock(&plan.uuid, &plan.machine)?;
    if file.load()?.is_some() {
        return Err(Error::LiveRestoreUnfinished { machine: plan.machine.clone() });
    }
    let mut state = new_state(source, plan, &hypervisor, context, &file)?;
    file.save(&state)?;
    hold_point(source, &state, monitor);
    let placed = place(source, plan, &hypervisor, context, &mut state, &file);
    let machine = match placed {
        Ok(placed) => placed,
        Err(error) => {
            // The first error is the cause. If the undo fails too, the state file records what is left to undo.
            if let Err(undone) = give_up(&hypervisor, &state, file, Some(source), context) {
                monitor.warn(&format!("{}: what the restore replaced is not back yet: {undone}", plan.machine));
            }
            return Err(if stop.requested() { Error::Interrupted } else { error });
        }
    };
    let running_seconds = source.began.elapsed().as_secs_f64();
    on_running(running_seconds);
    finish(&machine, &state, file, Some(source), context)?;
    refresh_pools(&hypervisor, &plan.disks, monitor);
    let mut record = source.point.to_record(source.repo);
    record.point = state.point.clone();
    record.restored_to = Some(RestoredTo {
        machine: Some(plan.machine.clone()),
        uuid: Some(plan.uuid.clone()),
        definition: None,
        disks: plan.disks.iter().map(PlannedDisk::to_record).collect(),
        started: true,
        live: Some(LiveRestore { running_seconds, done_seconds: source.began.elapsed().as_secs_f64() }),
    });
    Ok(record)
}

/// The id by which the point is found even after its tags change, as they do when the restore starts and ends.
fn persistent_id(point: &OpenPoint) -> String {
    point.snapshot.original.unwrap_or(point.id).to_string()
}

fn new_state(
    source: &LiveSource,
    plan: &RestorePlan,
    hypervisor: &Hypervisor,
    context: &LiveContext,
    file: &LiveFile,
) -> Result<LiveState> {
    let id = format!("{:08x}", rand::random::<u32>());
    let disk = |disk: &PlannedDisk| LiveDisk {
        disk: disk.disk.clone(),
        path: disk.real_path.clone(),
        capacity_bytes: disk.capacity_bytes,
        aside: disk.real_path.with_file_name(format!(".kvmb-live-{id}-{}.kept", disk.disk)),
        had_image: disk.real_path.exists(),
        inode: None,
    };
    let previous = plan::existing(hypervisor, &plan.uuid)?;
    let previous = previous.map(|machine| machine.definition_xml(Which::Inactive, true)).transpose()?;
    let files = plan.files.iter().enumerate().map(|(number, planned)| keep_copy(planned, &file.copy_path(number)));
    Ok(LiveState {
        id: id.clone(),
        machine: plan.machine.clone(),
        uuid: plan.uuid.clone(),
        connect: hypervisor.uri().to_owned(),
        point: persistent_id(source.point),
        access: source.access.clone(),
        began_at: Local::now().fixed_offset(),
        phase: LivePhase::Placing,
        process: ServerProcess::this(),
        boot: boot_id(),
        held: false,
        owner: None,
        paused: false,
        limit_read: context.limit_read,
        disks: plan.disks.iter().map(disk).collect(),
        files: files.collect::<Result<Vec<_>>>()?,
        previous_definition: previous,
        autostart: plan.autostart,
        settings: Default::default(),
        socket: context.runtime.live_restore_socket(&plan.uuid),
        ends_with_data: true,
    })
}

/// Protects the point from prunes on any host until all data is copied, even while no server runs. A repository that
/// cannot be tagged can still be restored from.
fn hold_point(source: &LiveSource, state: &LiveState, monitor: &dyn Monitor) {
    let point = PointRef { id: source.point.id, snapshot: source.point.snapshot.clone() };
    let held = source.permit.clone().map(|permit| Pinner::with(source.repo, permit).hold(&point, &state.id));
    if let Some(Err(error)) = held {
        monitor.warn(&format!(
            "point {} cannot be protected from pruning, so do not prune it until the restore has ended: {error}",
            point.id.short()
        ));
    }
}

/// Copies a small file that will be replaced to kvmb's own folder. QEMU's user can write to the folder of the original.
fn keep_copy(planned: &PlannedFile, copy: &Path) -> Result<ReplacedFile> {
    let replaced = |copy| ReplacedFile {
        name: planned.name.clone(),
        path: planned.path.clone(),
        below: planned.below.clone(),
        copy,
    };
    // The folder may not exist yet.
    let place = match place_of(planned) {
        Ok(place) if place.kind().is_some() => place,
        _ => return Ok(replaced(None)),
    };
    let mut bytes = Vec::new();
    let opened = place.open(false)?;
    opened.take(LARGEST_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", &planned.path))?;
    if bytes.len() as u64 > LARGEST_FILE_BYTES {
        let solve = "omit --live";
        return Err(Error::NotLive { subject: planned.name.clone(), reason: "the file there is too large", solve });
    }
    atomic_file::write(copy, &bytes, 0o600).map_err(Error::io("write", copy))?;
    Ok(replaced(Some(copy.to_owned())))
}

/// Moves everything to its place and starts the machine.
fn place(
    source: &LiveSource,
    plan: &RestorePlan,
    hypervisor: &Hypervisor,
    context: &LiveContext,
    state: &mut LiveState,
    file: &LiveFile,
) -> Result<Machine> {
    if plan.discard_saved_memory {
        plan::discard_saved_memory(hypervisor, plan)?;
    }
    let names: BTreeSet<String> = plan.disks.iter().map(|disk| disk.disk.clone()).collect();
    let (xml, settings) = on_served_point(&plan.definition, &state.socket, &names).map_err(capture::Error::from)?;
    state.settings = settings;
    file.save(state)?;
    for (disk, live) in plan.disks.iter().zip(&mut state.disks) {
        let mut image = empty_image(disk, &state.socket)?;
        live.inode = image.file().metadata().ok().map(|found| found.ino());
        image.replace_keeping(&live.path, &live.aside)?;
        failpoint::hit(Failpoint::RestorePlacedFirst);
    }
    let folders = NewFolders::create(&plan.files)?;
    for planned in &plan.files {
        let bytes = source.point.read_file(source.repo, source.index, &planned.name)?;
        let connect = || Ok(hypervisor.clone());
        SmallFile::create(planned, bytes, plan.overwrite)?.place(&connect)?.keep();
    }
    failpoint::hit(Failpoint::RestorePlaced);
    context.stop.check()?;
    let machine = hypervisor.define(&xml)?;
    failpoint::hit(Failpoint::RestoreDefined);
    state.owner = Some(owner_of(&machine)?);
    server(state, Some(source), context).ensure()?;
    context.stop.check()?;
    machine.start()?;
    folders.keep();
    state.phase = LivePhase::Pulling;
    // The machine runs. From here on nothing is undone.
    if let Err(error) = file.save(state) {
        context.monitor.warn(&error.to_string());
    }
    supervised(state, context).start(context.monitor);
    Ok(machine)
}

fn server<'a>(state: &'a LiveState, source: Option<&LiveSource<'a>>, context: &LiveContext<'a>) -> PointServer<'a> {
    let repo = source.map(|source| source.repo);
    PointServer { folder: context.folder, runtime: context.runtime, state, repo, stop: context.stop }
}

fn supervised<'a>(state: &'a LiveState, context: &LiveContext<'a>) -> Supervised<'a> {
    Supervised { folder: context.folder, runtime: context.runtime, state, service: context.service }
}

/// Creates an image without data on top of the served disk. The image records which chunks are zeros, so that QEMU need
/// not read them through the server.
fn empty_image(disk: &PlannedDisk, socket: &Path) -> Result<PartialFile> {
    let path = &disk.real_path;
    let layout = Layout::overlay(disk.geometry(), &disk.map);
    let mut image = PartialFile::create(&Destination::new(path))?;
    if let Some(owner) = disk.owner {
        image.give_to(owner, path)?;
    }
    let written = layout
        .write_metadata(image.file())
        .and_then(|()| layout.write_backing(image.file(), &nbd_uri(socket, &disk.disk)));
    written.map_err(Error::io("write", path))?;
    Ok(image)
}

/// The user and group that a machine's QEMU runs as.
fn owner_of(machine: &Machine) -> Result<(u32, u32)> {
    let definition: Definition = machine.definition(Which::Live)?;
    Ok(QemuUser::of(machine, &definition, definition.disks.iter())?.owner)
}

/// Copies the missing data and ends the restore. `source` is the repository, if it is open.
fn finish(
    machine: &Machine,
    state: &LiveState,
    file: LiveFile,
    source: Option<&LiveSource>,
    context: &LiveContext,
) -> Result<()> {
    let server = server(state, source, context);
    let pulled = pull::pull_all(machine, (state, &file), &server, state.limit_read, context.monitor, context.stop);
    if let Err(error) = pulled {
        if context.stop.requested() || matches!(error, Error::LiveRestoreStopped { .. }) {
            let held = file.save(&LiveState { held: true, ..state.clone() });
            held.unwrap_or_else(|error| context.monitor.warn(&error.to_string()));
        }
        return Err(error);
    }
    let xml = machine.definition_xml(Which::Inactive, true)?;
    let back = with_settings(&xml, &state.settings).map_err(capture::Error::from)?;
    machine.redefine(&back)?;
    settle(machine, state.autostart, context.monitor);
    for disk in &state.disks {
        match std::fs::remove_file(&disk.aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                context.monitor.warn(&format!("{}: {error}", disk.aside.display()));
            }
            _ => {}
        }
    }
    end(state, file, source, context)
}

/// Ends the server and the supervisor, and removes the state of the restore.
fn end(state: &LiveState, file: LiveFile, source: Option<&LiveSource>, context: &LiveContext) -> Result<()> {
    // The supervisor and the server both take a moment to exit. This waits for both in parallel.
    let supervisor = supervised(state, context).ask_to_end(context.monitor);
    // The lock prevents a restart of the server before the state file is removed.
    let alone = context.folder.lock_server(&state.uuid, &state.machine, context.stop)?;
    server::end(context.runtime, state)?;
    let permit = source.and_then(|source| Some((source.repo, source.permit.clone()?)));
    let released = permit.is_some_and(|(repo, permit)| Pinner::with(repo, permit).release(&state.id).is_ok());
    if !released {
        server::release_point(context.runtime, state, context.monitor);
    }
    file.remove(state)?;
    drop(alone);
    supervisor::wait_for_end(supervisor);
    Ok(())
}

/// Restores what the live restore replaced and removes its state. The machine must be off.
fn give_up(
    hypervisor: &Hypervisor,
    state: &LiveState,
    file: LiveFile,
    source: Option<&LiveSource>,
    context: &LiveContext,
) -> Result<()> {
    undo::undo(hypervisor, state)?;
    end(state, file, source, context)
}

/// Whether the server of a live restore runs.
pub(crate) fn is_served(runtime: &RuntimeDirs, state: &LiveState) -> Result<bool> {
    Ok(server::running(runtime, state)?.is_some())
}

/// Whether a supervisor restarts the server of a live restore when it exits.
pub(crate) fn is_supervised(folder: &LiveFolder, state: &LiveState) -> bool {
    folder.supervisor(&state.uuid).is_some()
}

/// Locks the state file of a machine's unfinished restore.
fn take(machine: &str, context: &LiveContext) -> Result<(LiveState, LiveFile)> {
    let none = || Error::NoLiveRestore { machine: machine.to_owned() };
    let found = context.folder.find(machine)?.ok_or_else(none)?;
    let file = context.folder.lock(&found.uuid, &found.machine)?;
    // The restore may have ended in the meantime.
    let state = file.load()?.ok_or_else(none)?;
    let limit_read = context.limit_read.or(state.limit_read);
    Ok((LiveState { limit_read, ..state }, file))
}

/// What continues a live restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContinuedBy {
    Person,
    /// The supervisor. It does not continue what a person stopped, except after a reboot of the host.
    Supervisor,
}

/// Continues a restore that was interrupted by a crash, a reboot or an error. Its server is restarted, and so is the
/// machine if it is off. Returns the state of the restore.
pub(crate) fn continue_live(
    machine: &str,
    by: ContinuedBy,
    connect: &dyn Fn(&str) -> capture::Result<Hypervisor>,
    context: &LiveContext,
) -> Result<LiveState> {
    let (found, file) = take(machine, context)?;
    let may_start = by == ContinuedBy::Person || found.boot != boot_id();
    if found.held && !may_start {
        return Err(Error::LiveRestoreBusy { machine: found.machine });
    }
    let state = LiveState { process: ServerProcess::this(), boot: boot_id(), held: false, ..found };
    let hypervisor = connect(&state.connect)?;
    if state.phase == LivePhase::Placing && !has_begun(&hypervisor, &state)? {
        give_up(&hypervisor, &state, file, None, context)?;
        return Err(Error::LiveRestoreUndone { machine: state.machine });
    }
    let machine = hypervisor.machine(&state.uuid)?;
    durable::end_pause(&machine, &state)?;
    let state = LiveState { phase: LivePhase::Pulling, owner: Some(owner_of(&machine)?), paused: false, ..state };
    file.save(&state)?;
    server(&state, None, context).ensure()?;
    if may_start && !machine.is_running()? {
        durable::put_back_on_point(&machine, &state)?;
        machine.start()?;
    }
    supervised(&state, context).start(context.monitor);
    finish(&machine, &state, file, None, context)?;
    Ok(state)
}

/// Whether the machine was started just before the state file could record it.
fn has_begun(hypervisor: &Hypervisor, state: &LiveState) -> Result<bool> {
    match plan::existing(hypervisor, &state.uuid)? {
        Some(machine) => Ok(machine.is_running()?),
        None => Ok(false),
    }
}

/// Aborts the restore of a machine, which must be off, and restores the images and the definition that it replaced.
pub(crate) fn abort_live(
    machine: &str,
    connect: &dyn Fn(&str) -> capture::Result<Hypervisor>,
    context: &LiveContext,
) -> Result<LiveState> {
    let (state, file) = take(machine, context)?;
    let hypervisor = connect(&state.connect)?;
    give_up(&hypervisor, &state, file, None, context)?;
    Ok(state)
}
