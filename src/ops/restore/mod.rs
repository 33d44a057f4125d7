//! Restores machines. All restores use this code path, or [`live`].
//!
//! A restore makes a plan (nothing is changed), writes every image under a temporary name, verifies that it is
//! complete, moves the images to their places, writes the firmware variables, and finally defines the machine. If a
//! step before that fails, everything is undone. A running machine is never overwritten.

mod disk_copy;
mod host;
pub(crate) mod live;
mod notes;
mod place;
pub(crate) mod plan;
mod planned;
mod preconditions;
mod qcow2;
mod request;
mod settle;
mod small_file;
mod small_files;
pub(crate) mod target;
mod trust;

use super::points::OpenPoint;
use super::{Error, Monitor, Result, Stop};
use crate::capture::{self, Hypervisor};
use crate::failpoint::{self, Failpoint};
use crate::record::{self, RestoredTo};
use crate::repo::{Index, Repository};
use disk_copy::{DiskCopy, RestoreSource};
use plan::RestorePlan;
use planned::{PlannedDisk, TargetKind};
use settle::{refresh_pools, settle};
use small_file::{NewFolders, SmallFile};
use std::collections::BTreeSet;
use target::{Placed, TargetDisk, WrittenDisk};

pub(crate) use request::{ImageFormat, RestoreRequest};

/// Carries out a plan.
///
/// `connect` opens the hypervisor. It is called late, and not at all if the plan defines nothing.
pub(crate) fn restore(
    repo: &Repository,
    index: &Index,
    point: &OpenPoint,
    plan: &RestorePlan,
    connect: &dyn Fn() -> capture::Result<Hypervisor>,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<record::Point> {
    // Ctrl-C on a terminal also reaches helper programs, whose errors are then only a consequence.
    let meant = |error| if stop.requested() { Error::Interrupted } else { error };
    for note in &plan.notes {
        monitor.warn(note);
    }
    for missing in &plan.missing {
        monitor.warn(&format!("this host does not have {}: {}", missing.what, missing.solve));
    }
    let volumes = NewVolumes::create(plan, connect)?;
    let folders = NewFolders::create(&plan.files)?;
    let discard_saved_memory = || match plan.discard_saved_memory {
        true => plan::discard_saved_memory(&connect()?, plan),
        false => Ok(()),
    };
    let source = RestoreSource { repo, index, point };
    let files = write_all(&source, plan, &discard_saved_memory, monitor, stop).map_err(meant)?;
    stop.check()?;
    failpoint::hit(Failpoint::RestoreWritten);

    // From here on files are replaced. Each guard restores what it replaced unless it is told to keep it.
    discard_saved_memory()?;
    let hypervisor = if plan.define { Some(connect()?) } else { None };
    if let Some(hypervisor) = &hypervisor {
        plan::refuse_running(hypervisor, plan)?;
    }
    let place = |file: Finished| {
        let placed = file.place(connect);
        failpoint::hit(Failpoint::RestorePlacedFirst);
        placed
    };
    let placed = files.into_iter().map(place).collect::<Result<Vec<Placed>>>()?;
    failpoint::hit(Failpoint::RestorePlaced);
    let machine = match hypervisor {
        Some(hypervisor) => Some((hypervisor.define(&plan.definition)?, hypervisor)),
        None => None,
    };
    failpoint::hit(Failpoint::RestoreDefined);
    placed.into_iter().for_each(Placed::keep);
    folders.keep();
    volumes.keep();
    failpoint::hit(Failpoint::RestoreKept);

    let mut restored = RestoredTo {
        machine: None,
        uuid: None,
        definition: plan.definition_file.as_ref().map(|path| path.to_string_lossy().into_owned()),
        disks: plan.disks.iter().map(PlannedDisk::to_record).collect(),
        started: false,
        live: None,
    };
    if let Some((defined, hypervisor)) = &machine {
        settle(defined, plan.autostart, monitor);
        refresh_pools(hypervisor, &plan.disks, monitor);
        restored.machine = Some(defined.name().to_owned());
        restored.uuid = Some(defined.uuid().to_owned());
        if plan.start {
            if let Err(error) = defined.start() {
                monitor.warn(&format!("{} was restored and defined, but does not start", defined.name()));
                return Err(error.into());
            }
            restored.started = true;
        }
    }
    let mut record = point.to_record(repo);
    record.restored_to = Some(restored);
    Ok(record)
}

/// Volumes that libvirt created for this restore. Dropping this removes them.
struct NewVolumes<'a> {
    made: Vec<(&'a str, &'a str)>,
    hypervisor: Option<Hypervisor>,
}

impl<'a> NewVolumes<'a> {
    fn create(plan: &'a RestorePlan, connect: &dyn Fn() -> capture::Result<Hypervisor>) -> Result<NewVolumes<'a>> {
        let mut volumes = NewVolumes { made: Vec::new(), hypervisor: None };
        for disk in &plan.disks {
            let Some(volume) = disk.volume.as_ref().filter(|volume| volume.is_new_device) else { continue };
            let hypervisor = match volumes.hypervisor.take() {
                Some(hypervisor) => hypervisor,
                None => connect()?,
            };
            let made = hypervisor.create_volume(&volume.pool, &volume.volume, disk.length_bytes());
            volumes.hypervisor = Some(hypervisor);
            made?;
            volumes.made.push((&volume.pool, &volume.volume));
        }
        Ok(volumes)
    }

    fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for NewVolumes<'_> {
    fn drop(&mut self) {
        for (pool, volume) in &self.made {
            if let Some(Err(error)) = self.hypervisor.as_ref().map(|hypervisor| hypervisor.delete_volume(pool, volume))
            {
                tracing::warn!("{error}");
            }
        }
    }
}

/// A complete and durable file that is not in its place yet.
enum Finished {
    Disk(WrittenDisk),
    Small(SmallFile),
}

impl Finished {
    fn place(self, connect: &dyn Fn() -> capture::Result<Hypervisor>) -> Result<Placed> {
        match self {
            Finished::Disk(written) => written.place(),
            Finished::Small(file) => file.place(connect),
        }
    }
}

/// Writes everything under temporary names. Devices are written in place, so they come last, after everything that can
/// be verified was verified, and after `before_devices`.
fn write_all(
    source: &RestoreSource,
    plan: &RestorePlan,
    before_devices: &dyn Fn() -> Result<()>,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<Vec<Finished>> {
    let (devices, images): (Vec<_>, Vec<_>) = plan.disks.iter().partition(|disk| disk.kind == TargetKind::Device);
    let folders = images.iter().filter_map(|disk| disk.real_path.parent()).collect::<BTreeSet<_>>();
    for left in folders.into_iter().flat_map(target::sweep) {
        let left = left.display();
        monitor.warn(&format!("an interrupted restore left {left}: remove it when the old image is no longer needed"));
    }

    let mut finished = Vec::new();
    for disk in images {
        let target = TargetDisk::create(disk)?;
        DiskCopy::new(source, disk, monitor, stop).write(&target)?;
        finished.push(Finished::Disk(target.finish()?));
    }
    for file in &plan.files {
        let bytes = source.point.read_file(source.repo, source.index, &file.name)?;
        finished.push(Finished::Small(SmallFile::create(file, bytes, plan.overwrite)?));
    }
    if let Some(path) = &plan.definition_file {
        let bytes = plan.definition.as_bytes();
        finished.push(Finished::Small(SmallFile::create_private(path, bytes, plan.overwrite)?));
    }
    for disk in &devices {
        DiskCopy::new(source, disk, monitor, stop).verify()?;
    }
    if !devices.is_empty() {
        before_devices()?;
    }
    for disk in devices {
        let target = TargetDisk::create(disk)?;
        DiskCopy::new(source, disk, monitor, stop).write(&target).inspect_err(|_| {
            monitor.warn(&format!("{} was being written and holds a part of the disk", disk.path.display()));
        })?;
        finished.push(Finished::Disk(target.finish()?));
    }
    Ok(finished)
}
