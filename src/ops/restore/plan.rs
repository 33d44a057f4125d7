//! Plans restores: everything that will be written is decided before anything is changed.

use super::host::{self, Missing};
use super::place::{Placing, resolved};
use super::planned::{PlannedDisk, PlannedFile, TargetKind};
use super::preconditions::{refuse_replacing, refuse_without_room};
use super::request::{ImageFormat, RestoreRequest};
use super::small_files::SmallFiles;
use super::{notes, trust};
use crate::capture::domain_xml::rewrite::Rewritten;
use crate::capture::machine::Which;
use crate::capture::{
    self, Changes, DefinedDisk, Definition, DiskSource, Hypervisor, Machine, NewDisk, NewDiskKind, rewrite_with_notes,
};
use crate::ops::manifest::ManifestDisk;
use crate::ops::points::OpenPoint;
use crate::ops::{Error, Result};
use crate::record::Action;
use crate::repo::{Index, Repository};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Everything that a restore will write.
#[derive(Debug)]
pub(crate) struct RestorePlan {
    /// The machine's new name.
    pub(crate) machine: String,
    /// The machine's new UUID.
    pub(crate) uuid: String,
    pub(crate) disks: Vec<PlannedDisk>,
    pub(crate) files: Vec<PlannedFile>,
    /// The new definition.
    pub(crate) definition: String,
    /// The file that the definition is written to if it is not passed to libvirt.
    pub(crate) definition_file: Option<PathBuf>,
    /// Whether to define the machine in libvirt.
    pub(crate) define: bool,
    /// Whether to start the machine.
    pub(crate) start: bool,
    /// Whether existing files may be replaced.
    pub(crate) overwrite: bool,
    /// Whether a managed save image may be removed.
    pub(crate) discard_saved_memory: bool,
    /// Whether the machine starts with the host; `None` leaves this unchanged.
    pub(crate) autostart: Option<bool>,
    /// Differences from the machine that was backed up, one sentence each.
    pub(crate) notes: Vec<String>,
    /// What the machine needs and this host lacks.
    pub(crate) missing: Vec<Missing>,
}

impl RestorePlan {
    /// The devices that are written in place. An interruption leaves them incomplete.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Path> {
        self.disks.iter().filter(|disk| disk.kind == TargetKind::Device).map(|disk| disk.path.as_path())
    }
}

/// Plans a restore and refuses to overwrite what must not be overwritten. Without a hypervisor, storage pools are not
/// available, and resources missing on this host are not reported.
pub(crate) fn plan(
    repo: &Repository,
    index: &Index,
    point: &OpenPoint,
    request: &RestoreRequest,
    hypervisor: Option<&Hypervisor>,
) -> Result<RestorePlan> {
    let into = request.into.as_ref().map(|folder| std::path::absolute(folder).map_err(Error::io("find", folder)));
    let with_files = request.with_files.as_ref();
    let with_files = with_files.map(|folder| std::path::absolute(folder).map_err(Error::io("find", folder)));
    let renamed = present_name(point, request, hypervisor)?;
    let as_name = request.as_name.clone().filter(|_| renamed.is_none());
    let request =
        &RestoreRequest { into: into.transpose()?, with_files: with_files.transpose()?, as_name, ..request.clone() };
    let (xml, is_live) = point.definition_of_disks(repo, index)?;
    let definition = Definition::parse(&xml).map_err(capture::Error::from)?;
    trust::check(point, &xml, &definition, request)?;
    let name = renamed.or_else(|| request.as_name.clone());
    let machine = name.clone().unwrap_or_else(|| point.manifest.machine.clone());
    let subject = format!("point {}", point.id.short());
    for disk in request.only_disks.iter().chain(request.to.keys()) {
        if !point.manifest.disks.iter().any(|known| known.disk == *disk) {
            return Err(Error::NoSuchDisk { subject, disk: disk.clone() });
        }
    }

    let is_wanted = |disk: &&ManifestDisk| request.only_disks.is_empty() || request.only_disks.contains(&disk.disk);
    let mut disks = Vec::new();
    for disk in point.manifest.disks.iter().filter(is_wanted) {
        let planned = plan_disk(point, disk, definition.disk(&disk.disk), &machine, request, hypervisor)?;
        refuse_replacing(&planned)?;
        disks.push(planned);
    }
    refuse_without_room(&disks)?;

    let whole = request.only_disks.is_empty();
    let define = request.define && whole;
    if let Some(machine_type) = request.machine_type.as_deref().filter(|_| define) {
        host::refuse_other_family(&xml, &machine, machine_type)?;
    }
    if disks.is_empty() && !define && request.into.is_none() {
        return Err(Error::Nowhere { machine });
    }
    let uuid = match &request.as_name {
        Some(_) => uuid::Uuid::new_v4().to_string(),
        None => point.manifest.uuid.clone(),
    };
    let beside = disks.first().and_then(|disk| disk.path.parent()).map(Path::to_owned);
    let small = SmallFiles { request, definition: &definition, machine: &machine, uuid: &uuid, define, beside };
    let (mut files, mut moved) = match whole {
        true => small.plan(&point.manifest)?,
        false => (Vec::new(), Changes::default()),
    };
    if let Some(folder) = request.with_files.as_deref().filter(|_| whole) {
        let read = |name: &str| point.read_file(repo, index, name);
        let (outside, moved_files) = small.plan_outside(&point.manifest, folder, &read)?;
        files.extend(outside);
        moved.files = moved_files;
    }

    let changes = Changes {
        name,
        uuid: request.as_name.as_ref().map(|_| uuid.clone()),
        new_macs: request.as_name.is_some(),
        own_resources: request.as_name.is_some(),
        disks: disks.iter().map(new_disk).collect(),
        unmoved: disks.iter().filter(|disk| disk.is_unmoved).map(|disk| disk.disk.clone()).collect(),
        emulator: request.emulator.clone(),
        machine_type: request.machine_type.clone(),
        networks: request.networks.clone(),
        bridges: request.bridges.clone(),
        ..moved
    };
    let written = files.iter().map(|file| file.path.clone()).collect();
    let (rewritten, missing) =
        for_this_host(&xml, changes, &machine, point, &disks, &written, request, hypervisor.filter(|_| define))?;
    if let Some(missing) = missing.iter().find(|missing| define && (request.start || missing.prevents_definition)) {
        let (what, solve) = (missing.what.clone(), missing.solve.clone());
        return Err(Error::MissingHere { machine, what, solve, is_start: request.start });
    }
    let folder = request.into.as_deref().or(small.beside.as_deref()).filter(|_| whole && !define);
    let definition_file = folder.map(|folder| folder.join(format!("{machine}.xml")));
    if let Some(path) = definition_file.as_ref().filter(|path| path.exists() && !request.overwrite) {
        return Err(Error::Exists { path: path.clone() });
    }
    let mut notes = notes::of_images(point, &definition, &disks);
    if whole {
        notes.extend(notes::of_machine(point, is_live, request));
        notes.extend(rewritten.notes);
    }
    let small_files = files.iter().map(|file| (&*file.name, &file.path));
    let definition = definition_file.iter().map(|path| ("domain.xml", path));
    refuse_two_in_one_place(disks.iter().map(|disk| (&*disk.disk, &disk.path)).chain(small_files).chain(definition))?;
    Ok(RestorePlan {
        machine,
        uuid,
        disks,
        files,
        definition: rewritten.xml,
        definition_file,
        define,
        start: request.start && define,
        overwrite: request.overwrite,
        discard_saved_memory: request.discard_saved_memory,
        // A copy next to the original starts with the host only if the user requests it.
        autostart: point.manifest.autostart.filter(|_| request.as_name.is_none()),
        notes,
        missing,
    })
}

/// The current name of the point's machine, if it equals the requested name. Restoring under this name does not make a
/// copy.
fn present_name(
    point: &OpenPoint,
    request: &RestoreRequest,
    hypervisor: Option<&Hypervisor>,
) -> Result<Option<String>> {
    let (Some(hypervisor), Some(name)) = (hypervisor, &request.as_name) else { return Ok(None) };
    let is_same = |found: &Machine| found.name() == name && found.uuid().eq_ignore_ascii_case(&point.manifest.uuid);
    Ok(existing(hypervisor, name)?.filter(is_same).map(|_| name.clone()))
}

/// Plans the target and the format of one disk.
fn plan_disk(
    point: &OpenPoint,
    disk: &ManifestDisk,
    described: Option<&DefinedDisk>,
    machine: &str,
    request: &RestoreRequest,
    hypervisor: Option<&Hypervisor>,
) -> Result<PlannedDisk> {
    let own_format = match described.and_then(|disk| disk.format.as_deref()) {
        Some("qcow2") => ImageFormat::Qcow2,
        _ => ImageFormat::Raw,
    };
    let format = request.format.unwrap_or(own_format);
    let (capacity_bytes, chunk_bytes) = (disk.capacity_bytes, disk.chunk_bytes);
    let placing = Placing { request, hypervisor, machine, disk: &disk.disk, described, capacity_bytes, format };
    let place = placing.place()?;
    // The image format of the definition applies to files. A device only gets a format other than raw if it had it
    // before or the user requests it.
    let was_device = place.is_unmoved
        || described.is_some_and(|disk| matches!(disk.source, DiskSource::Block { .. } | DiskSource::Volume { .. }));
    let format = match place.kind {
        TargetKind::Device if request.format.is_none() && !was_device => ImageFormat::Raw,
        _ => format,
    };
    Ok(PlannedDisk {
        disk: disk.disk.clone(),
        path: place.path,
        real_path: place.real_path,
        kind: place.kind,
        is_unmoved: place.is_unmoved,
        volume: place.volume,
        format,
        capacity_bytes,
        chunk_bytes,
        map: point.chunk_map(disk)?,
        overwrite: request.overwrite,
        // At another path, the definition does not determine the owner.
        owner: disk.owner.filter(|_| place.is_unmoved),
    })
}

/// Rewrites the definition for this host. Also returns what this host lacks.
#[allow(clippy::too_many_arguments)]
fn for_this_host(
    xml: &str,
    mut changes: Changes,
    machine: &str,
    point: &OpenPoint,
    disks: &[PlannedDisk],
    written: &BTreeSet<PathBuf>,
    request: &RestoreRequest,
    hypervisor: Option<&Hypervisor>,
) -> Result<(Rewritten, Vec<Missing>)> {
    loop {
        let rewritten = rewrite_with_notes(xml, &changes).map_err(capture::Error::from)?;
        let missing = match hypervisor {
            Some(hypervisor) => host::missing(&rewritten.xml, machine, point, disks, written, hypervisor)?,
            None => Vec::new(),
        };
        let media: BTreeSet<String> = missing.iter().filter_map(|missing| missing.medium_of.clone()).collect();
        if !request.drop_missing_media || media.is_subset(&changes.eject) {
            return Ok((rewritten, missing));
        }
        changes.eject.extend(media);
    }
}

fn new_disk(disk: &PlannedDisk) -> (String, NewDisk) {
    let kind = match disk.kind {
        TargetKind::File => NewDiskKind::File,
        TargetKind::Device => NewDiskKind::Block,
    };
    (disk.disk.clone(), NewDisk { path: disk.path.clone(), kind, format: disk.format.name().to_owned() })
}

/// Refuses a plan in which two items (name, path) would be written to the same file or device.
fn refuse_two_in_one_place<'a>(things: impl Iterator<Item = (&'a str, &'a PathBuf)>) -> Result<()> {
    let mut taken: BTreeMap<PathBuf, &str> = BTreeMap::new();
    for (name, path) in things {
        if let Some(other) = taken.insert(resolved(path), name) {
            let reason = format!("{other} would be written there as well");
            return Err(Error::BadTarget { disk: name.to_owned(), path: path.clone(), reason });
        }
    }
    Ok(())
}

/// Refuses to overwrite a running machine and, without `--overwrite`, an existing one. A machine whose images are all
/// gone, as after the loss of a file system, may be restored, because nothing of it is overwritten.
pub(crate) fn refuse_running(hypervisor: &Hypervisor, plan: &RestorePlan) -> Result<()> {
    let names = [&plan.machine, &plan.uuid];
    for name in names.into_iter().filter(|_| plan.define) {
        let Some(found) = existing(hypervisor, name)? else { continue };
        if !found.uuid().eq_ignore_ascii_case(&plan.uuid) {
            return Err(Error::NameTaken { machine: found.name().to_owned(), uuid: found.uuid().to_owned() });
        }
        if found.name() != plan.machine {
            let present = found.name().to_owned();
            return Err(Error::Renamed { machine: plan.machine.clone(), present });
        }
        if found.is_running()? {
            return Err(Error::MachineRunning { machine: found.name().to_owned() });
        }
        if !plan.overwrite && !has_lost_its_images(&found)? {
            return Err(Error::MachineExists { machine: found.name().to_owned() });
        }
    }
    refuse_disks_of_others(hypervisor, plan)?;
    if !plan.discard_saved_memory
        && let Some(machine) = with_saved_memory(hypervisor, plan)?.first()
    {
        return Err(Error::SavedMemory { machine: machine.name().to_owned() });
    }
    Ok(())
}

/// Refuses to overwrite a disk of another machine, or an image that one is based on. In its own place, a machine may
/// share a disk with others, for example with its standby, but new content in a template would destroy its clones.
fn refuse_disks_of_others(hypervisor: &Hypervisor, plan: &RestorePlan) -> Result<()> {
    let replaced: BTreeMap<&PathBuf, &PlannedDisk> =
        plan.disks.iter().filter(|disk| disk.real_path.exists()).map(|disk| (&disk.real_path, disk)).collect();
    if replaced.is_empty() {
        return Ok(());
    }
    let find = |path: PathBuf| replaced.get(&resolved(&path)).copied();
    for machine in hypervisor.machines(&[])? {
        if machine.uuid().eq_ignore_ascii_case(&plan.uuid) {
            continue;
        }
        // A machine that is gone by now has no disks.
        let Ok(definition) = machine.definition(Which::Inactive) else { continue };
        for disk in &definition.disks {
            let path_of = |source: &DiskSource| machine.resolve(source).ok()?.path().cloned();
            let Some(image) = path_of(&disk.source) else { continue };
            let own = find(image).filter(|replaced| !replaced.is_unmoved);
            let below = machine.paths_below(&definition, disk).unwrap_or_else(|error| {
                tracing::debug!("{error}");
                disk.backing.iter().filter_map(|layer| path_of(&layer.source)).collect()
            });
            let (found, reason) = match own {
                Some(own) => (own, format!("it is a disk of {}", machine.name())),
                None => match below.into_iter().find_map(find) {
                    Some(below) => (below, format!("disk {} of {} is based on it", disk.target, machine.name())),
                    None => continue,
                },
            };
            return Err(Error::BadTarget { disk: found.disk.clone(), path: found.path.clone(), reason });
        }
    }
    Ok(())
}

/// Whether none of a machine's disks exists any more.
fn has_lost_its_images(machine: &Machine) -> Result<bool> {
    let definition = machine.definition(Which::Inactive)?;
    let mut disks = definition.disks.iter().filter(|disk| disk.exclusion().is_none()).peekable();
    let is_gone = |disk: &DefinedDisk| match &disk.source {
        DiskSource::File { path } | DiskSource::Block { path } => !path.exists(),
        DiskSource::Volume { .. } => {
            !machine.resolve(&disk.source).is_ok_and(|source| source.path().is_some_and(|p| p.exists()))
        }
        _ => false,
    };
    Ok(disks.peek().is_some() && disks.all(is_gone))
}

/// Returns the machines that have a managed save image while one of their disks is replaced. Resuming them would
/// destroy the new data.
fn with_saved_memory(hypervisor: &Hypervisor, plan: &RestorePlan) -> Result<Vec<Machine>> {
    let written: BTreeSet<&PathBuf> = plan.disks.iter().map(|disk| &disk.real_path).collect();
    let mut found = Vec::new();
    for machine in hypervisor.machines(&[])? {
        // A machine that is gone by now, or that does not support managed save, has no saved memory.
        if !machine.has_saved_memory().unwrap_or(false) {
            continue;
        }
        let is_replaced = plan.define && machine.uuid().eq_ignore_ascii_case(&plan.uuid);
        let has_written = || -> Result<bool> {
            let definition = machine.definition(Which::Inactive)?;
            let mut paths =
                definition.disks.iter().filter_map(|disk| machine.resolve(&disk.source).ok()?.path().cloned());
            Ok(paths.any(|path| written.contains(&resolved(&path))))
        };
        if is_replaced || has_written()? {
            found.push(machine);
        }
    }
    Ok(found)
}

/// Removes the managed save images of machines whose disks are replaced.
pub(super) fn discard_saved_memory(hypervisor: &Hypervisor, plan: &RestorePlan) -> Result<()> {
    for machine in with_saved_memory(hypervisor, plan)? {
        machine.discard_saved_memory()?;
    }
    Ok(())
}

pub(super) fn existing(hypervisor: &Hypervisor, name: &str) -> Result<Option<Machine>> {
    match hypervisor.machine(name) {
        Ok(machine) => Ok(Some(machine)),
        Err(capture::Error::NoSuchMachine { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Deletes the metadata of kvmb's checkpoints, because the images with their bitmaps are gone. Returns the names of
/// other checkpoints, which are kept.
pub(super) fn drop_checkpoints(machine: &Machine) -> Result<Vec<String>> {
    let (ours, others): (Vec<String>, Vec<String>) =
        machine.checkpoints()?.into_iter().partition(|name| name.starts_with("kvmb-"));
    for name in ours {
        machine.forget_checkpoint(&name)?;
    }
    Ok(others)
}

impl RestorePlan {
    /// The plan as the records of `--dry-run`.
    pub(crate) fn actions(&self) -> Vec<Action> {
        let action = |target: String, reason: String, extra: serde_json::Value| Action {
            action: "restore".into(),
            target,
            changed: true,
            reason,
            dry_run: true,
            extra: extra.as_object().cloned().unwrap_or_default(),
        };
        let mut actions = Vec::new();
        for missing in &self.missing {
            let extra = json!({ "machine": self.machine, "hint": missing.solve });
            let reason = format!("not on this host: {}", missing.what);
            actions.push(Action { changed: false, ..action(self.machine.clone(), reason, extra) });
        }
        for disk in &self.disks {
            let verb = if disk.real_path.exists() { "replaced" } else { "created" };
            let extra =
                json!({ "disk": disk.disk, "format": disk.format.name(), "capacity_bytes": disk.capacity_bytes });
            let target = disk.path.to_string_lossy().into_owned();
            actions.push(action(target, format!("disk {} would be {verb}", disk.disk), extra));
        }
        for file in &self.files {
            let target = file.path.to_string_lossy().into_owned();
            actions.push(action(target, format!("{} would be written", file.name), json!({})));
        }
        if let Some(path) = &self.definition_file {
            let reason = "the definition would be written".into();
            actions.push(action(path.to_string_lossy().into_owned(), reason, json!({ "machine": self.machine })));
        }
        if self.define {
            let reason = if self.start { "would be defined and started" } else { "would be defined" };
            actions.push(action(
                self.machine.clone(),
                reason.into(),
                json!({ "machine": self.machine, "uuid": self.uuid }),
            ));
        }
        actions
    }
}
