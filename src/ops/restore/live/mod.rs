//! Live restores: the machine runs at once on overlays of its served point, and its disks are restored meanwhile.
//!
//! ```text
//!  state file ─┬─ files ─ overlays ─ definition ─ server ─ start ───┬─ the machine moves to the images
//!              └─ images next to the old ones, as in any restore ───┘    ─ overlays, old images, server removed
//! ```
//! Until the machine has moved, it needs the server of its point. If the server exits, it is restarted while the
//! machine waits. If this process exits, the server and the machine continue under the supervisor, and another process
//! can continue the restore from the state file. The definition names the server's socket, so libvirt refuses to start
//! the machine without the server.

pub(crate) mod confinement;
mod data;
mod server;
pub(crate) mod state;
pub(crate) mod supervisor;
mod switch;
mod undo;
mod watch;

use super::disk_copy::RestoreSource;
use super::plan::{self, RestorePlan};
use super::planned::{PlannedDisk, PlannedFile, TargetKind};
use super::qcow2::Layout;
use super::settle::{refresh_pools, settle};
use super::small_file::{NewFolders, SmallFile, place_of};
use crate::atomic_file;
use crate::capture::domain_xml::rewrite::served::on_served_point;
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
use crate::repo::{Index, Permit, RepoLock, Repository};
use chrono::Local;
use confinement::MissingRule;
use data::Writer;
use server::PointServer;
use state::{LiveDisk, LiveFile, LiveFolder, LivePhase, LiveState, ReplacedFile, ServerAccess, boot_id};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use supervisor::{HostService, Supervised};
use switch::is_on_overlay;
use watch::Watch;

/// The maximum size of a small file that is kept until a restore is over.
const LARGEST_FILE_BYTES: u64 = 256 << 20;

/// The first version of libvirt that copies a disk and passes on all writes at the same time
/// (`VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES`).
const LIBVIRT_NEEDED: (u32, u32, u32) = (8, 0, 0);

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

/// The opened point of a restore that is continued.
pub(crate) struct LivePoint {
    pub(crate) repo: Repository,
    pub(crate) index: Arc<Index>,
    pub(crate) point: OpenPoint,
    /// The lock; `None` for a read-only repository.
    pub(crate) lock: Option<RepoLock>,
}

impl LiveSource<'_> {
    fn data(&self) -> RestoreSource<'_> {
        RestoreSource { repo: self.repo, index: self.index, point: self.point }
    }
}

impl LivePoint {
    fn source(&self, state: &LiveState) -> LiveSource<'_> {
        LiveSource {
            repo: &self.repo,
            index: &self.index,
            point: &self.point,
            access: state.access.clone(),
            permit: self.lock.as_ref().map(RepoLock::permit),
            began: Instant::now(),
        }
    }
}

/// Fails if this plan cannot be carried out as a live restore.
pub(crate) fn check(plan: &RestorePlan, hypervisor: &Hypervisor, runtime: &RuntimeDirs) -> Result<()> {
    for disk in &plan.disks {
        if disk.kind == TargetKind::Device {
            let (reason, solve) = ("it goes to a block device", "choose a folder for images: --into DIR");
            return Err(Error::NotLive { subject: format!("disk {}", disk.disk), reason, solve });
        }
    }
    if let Some(file) = plan.files.iter().find(|file| file.network.is_some() || file.is_on_device) {
        let (subject, solve) = (file.name.clone(), "omit --live");
        return Err(Error::NotLive { subject, reason: "it is not a file of this host", solve });
    }
    if hypervisor.libvirt_version()? < LIBVIRT_NEEDED {
        let (subject, solve) = (plan.machine.clone(), "omit --live");
        return Err(Error::NotLive { subject, reason: "libvirt is older than version 8.0", solve });
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
    let undone = |error, state: &LiveState, file| {
        // The first error is the cause. If the undo fails too, the state file records what is left to undo.
        if let Err(undone) = give_up(&hypervisor, state, file, Some(source), context) {
            monitor.warn(&format!("{}: what the restore replaced is not back yet: {undone}", plan.machine));
        }
        if stop.requested() { Error::Interrupted } else { error }
    };
    if let Err(error) = data::create_files(&mut state).and_then(|()| file.save(&state)) {
        return Err(undone(error, &state, file));
    }
    let (disks, halt) = (state.disks.clone(), Stop::default());
    let (machine, file, running_seconds) = thread::scope(|scope| {
        let mut writer = None;
        let mut write = || {
            writer
                .get_or_insert_with(|| Writer::spawn(scope, source.data(), &disks, context.limit_read, monitor, &halt));
        };
        // Over a network, the copy would fill the link on which the server logs in.
        if Path::new(&source.repo.url()).is_absolute() {
            write();
        }
        let machine = match place(source, plan, &hypervisor, context, (&mut state, &file), &mut write) {
            Ok(machine) => machine,
            Err(error) => {
                drop(writer.map(Writer::end));
                return Err(undone(error, &state, file));
            }
        };
        let running_seconds = source.began.elapsed().as_secs_f64();
        on_running(running_seconds);
        move_over(&machine, &state, &file, writer.map(|writer| (source, writer)), context)?;
        Ok((machine, file, running_seconds))
    })?;
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
    let disk = |disk: &PlannedDisk| {
        let beside = |part| disk.real_path.with_file_name(format!(".kvmb-live-{id}-{}.{part}", disk.disk));
        LiveDisk {
            disk: disk.disk.clone(),
            path: disk.real_path.clone(),
            format: disk.format,
            capacity_bytes: disk.capacity_bytes,
            owner: disk.owner,
            overlay: beside("overlay"),
            data: beside("data"),
            inode: None,
            aside: beside("kept"),
            had_image: disk.real_path.exists(),
        }
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

/// Creates what the machine needs, and starts it on its point. As soon as the point is served, calls `on_served`.
fn place(
    source: &LiveSource,
    plan: &RestorePlan,
    hypervisor: &Hypervisor,
    context: &LiveContext,
    (state, file): (&mut LiveState, &LiveFile),
    on_served: &mut dyn FnMut(),
) -> Result<Machine> {
    if plan.discard_saved_memory {
        plan::discard_saved_memory(hypervisor, plan)?;
    }
    let overlays = state.disks.iter().map(|disk| (disk.disk.clone(), disk.overlay.clone())).collect();
    let (xml, settings) = on_served_point(&plan.definition, &state.socket, &overlays).map_err(capture::Error::from)?;
    state.settings = settings;
    file.save(state)?;
    for (disk, live) in plan.disks.iter().zip(&state.disks) {
        create_overlay(disk, live, &state.socket)?;
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
    on_served();
    context.stop.check()?;
    machine.start()?;
    folders.keep();
    state.phase = LivePhase::Copying;
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

/// Creates the empty image on top of a served disk.
fn create_overlay(disk: &PlannedDisk, live: &LiveDisk, socket: &Path) -> Result<()> {
    let file = data::new_file(&live.overlay, disk.owner)?;
    let layout = Layout::overlay(disk.geometry());
    let written = layout
        .write_metadata(&file)
        .and_then(|()| layout.write_backing(&file, &nbd_uri(socket, &disk.disk)))
        .and_then(|()| file.sync_all());
    written.map_err(Error::io("write", &live.overlay))
}

/// The user and group that a machine's QEMU runs as.
fn owner_of(machine: &Machine) -> Result<(u32, u32)> {
    let definition: Definition = machine.definition(Which::Live)?;
    Ok(QemuUser::of(machine, &definition, definition.disks.iter())?.owner)
}

/// Waits until the images are written, if they are not yet, and moves the machine to them.
fn move_over(
    machine: &Machine,
    state: &LiveState,
    file: &LiveFile,
    writing: Option<(&LiveSource, Writer)>,
    context: &LiveContext,
) -> Result<()> {
    let LiveContext { monitor, stop, .. } = *context;
    let server = server(state, writing.as_ref().map(|(source, _)| *source), context);
    let watch = Watch { machine, state, server, monitor, stop };
    let written = writing.map_or(Ok(()), |(_, writer)| {
        let watched = watch.until(|| Ok(writer.is_finished()));
        let written = writer.end();
        watched.and(written)
    });
    let moved = written.and_then(|()| state.disks.iter().try_for_each(data::place)).and_then(|()| {
        failpoint::hit(Failpoint::RestoreCopied);
        switch::switch(&watch, file)
    });
    if let Err(error) = &moved
        && (stop.requested() || matches!(error, Error::LiveRestoreStopped { .. }))
    {
        let held = file.save(&LiveState { held: true, ..state.clone() });
        held.unwrap_or_else(|error| monitor.warn(&error.to_string()));
    }
    moved
}

/// Removes what a machine on its own disks no longer needs.
fn finish(
    machine: &Machine,
    state: &LiveState,
    file: LiveFile,
    source: Option<&LiveSource>,
    context: &LiveContext,
) -> Result<()> {
    settle(machine, state.autostart, context.monitor);
    for path in state.disks.iter().flat_map(|disk| [&disk.overlay, &disk.aside]) {
        data::remove(path).unwrap_or_else(|error| context.monitor.warn(&error.to_string()));
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
///
/// `open` opens the point. It is not called if its data is on this host already.
pub(crate) fn continue_live(
    machine: &str,
    by: ContinuedBy,
    connect: &dyn Fn(&str) -> capture::Result<Hypervisor>,
    open: &dyn Fn(&LiveState) -> Result<LivePoint>,
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
    switch::end_pause(&machine, &state)?;
    let mut state = LiveState { phase: LivePhase::Copying, owner: Some(owner_of(&machine)?), paused: false, ..state };
    let is_running = machine.is_running()?;
    let which = if is_running { Which::Live } else { Which::Inactive };
    let mut needs_server = false;
    for disk in &mut state.disks {
        match is_on_overlay(&machine, which, disk)? {
            true => needs_server = true,
            // What the guest has written since is in that image only.
            false => disk.set_moved(),
        }
    }
    data::create_files(&mut state)?;
    file.save(&state)?;
    let is_written = state.disks.iter().all(LiveDisk::is_placed);
    let point = if is_written { None } else { Some(open(&state)?) };
    let source = point.as_ref().map(|point| point.source(&state));
    let halt = Stop::default();
    thread::scope(|scope| {
        let writing = source.as_ref().map(|source| {
            let writer = Writer::spawn(scope, source.data(), &state.disks, state.limit_read, context.monitor, &halt);
            (source, writer)
        });
        if needs_server {
            server(&state, source.as_ref(), context).ensure()?;
        }
        if may_start && !is_running {
            machine.start()?;
        }
        supervised(&state, context).start(context.monitor);
        move_over(&machine, &state, &file, writing, context)
    })?;
    finish(&machine, &state, file, source.as_ref(), context)?;
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
