//! Bringing a machine back: the one restore path.
//!
//! The order is: plan (nothing is touched), write every image under a temporary name, prove it complete, put the images
//! in their places, then the firmware variables, and last the definition. Until the definition is in, everything is
//! undone when something fails. A running machine is never written over.

pub mod plan;
pub mod target;

use super::chunk_map::{Chunk, ChunkMap, Geometry};
use super::points::OpenPoint;
use super::{Error, Monitor, Progress, Result, Stop};
use crate::capture::{self, Hypervisor};
use crate::record::{self, Damage, RestoredDisk, RestoredTo};
use crate::repo::{Id, Index, Repository, read_blobs};
use plan::{Plan, PlannedDisk};
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use target::{Placed, Target};

/// Carries a plan out.
///
/// `connect` opens the hypervisor; it is called late, and not at all when the plan defines nothing.
pub fn restore(
    repo: &Repository,
    index: &Index,
    point: &OpenPoint,
    plan: &Plan,
    connect: &dyn Fn() -> capture::Result<Hypervisor>,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<record::Point> {
    let mut written = Vec::new();
    for disk in &plan.disks {
        let target = Target::create(disk)?;
        write_disk(repo, index, point, disk, &target, monitor, stop)?;
        written.push(target.finish()?);
    }
    stop.check()?;
    let mut small_files = Vec::new();
    for file in &plan.files {
        let bytes = point.read_file(repo, index, &file.name)?;
        small_files.push(SmallFile::create(&file.path, &bytes, plan.overwrite)?);
    }
    if let Some(path) = &plan.definition_file {
        small_files.push(SmallFile::create(path, plan.definition.as_bytes(), plan.overwrite)?);
    }

    // From here on things change places; each guard puts back what it moved unless it is told to keep it.
    let mut placed: Vec<Placed> = Vec::new();
    for target in written {
        placed.push(target.place()?);
    }
    let mut placed_files = Vec::new();
    for file in small_files {
        placed_files.push(file.place()?);
    }
    let mut restored = RestoredTo {
        machine: None,
        uuid: None,
        definition: plan.definition_file.as_ref().map(|path| path.to_string_lossy().into_owned()),
        disks: plan
            .disks
            .iter()
            .map(|disk| RestoredDisk {
                disk: disk.disk.clone(),
                path: disk.path.to_string_lossy().into_owned(),
                format: disk.format.name().to_owned(),
                capacity_bytes: disk.capacity_bytes,
            })
            .collect(),
        started: false,
    };
    let mut machine = None;
    if plan.define {
        let hypervisor = connect()?;
        plan::refuse_running(&hypervisor, plan)?;
        let defined = hypervisor.define(&plan.definition)?;
        plan::drop_checkpoints(&defined)?;
        restored.machine = Some(defined.name().to_owned());
        restored.uuid = Some(defined.uuid().to_owned());
        machine = Some((hypervisor, defined));
    }
    placed.into_iter().for_each(Placed::keep);
    placed_files.into_iter().for_each(Placed::keep);
    if plan.start
        && let Some((_, defined)) = &machine
    {
        defined.start()?;
        restored.started = true;
    }
    let mut record = point.to_record(repo);
    record.restored_to = Some(restored);
    Ok(record)
}

/// Reads every chunk of a disk, each with its SHA-256 compared, and writes it where it belongs.
fn write_disk(
    repo: &Repository,
    index: &Index,
    point: &OpenPoint,
    disk: &PlannedDisk,
    target: &Target,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<()> {
    let geometry = disk.geometry();
    let label = format!("{}/{}", point.manifest.machine, disk.disk);
    let progress = monitor.start("restoring", &label, geometry.capacity_bytes);
    let (mut places, zero_bytes) = places(&disk.map, geometry, target)?;
    progress.advance(zero_bytes);
    places.sort_unstable();
    let mut ids: Vec<Id> = places.iter().map(|(id, _)| *id).collect();
    ids.dedup();

    let trouble = Mutex::new((Vec::new(), None));
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8);
    read_blobs(repo, index, ids, threads, &stop.flag(), |id, blob| {
        let result = match blob {
            Ok(bytes) => write_chunk(&id, bytes, &places, geometry, target, &*progress),
            Err(error) => Ok(damage(&id, &error.to_string(), &places, geometry, disk)),
        };
        let mut trouble = trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match result {
            Ok(damage) => trouble.0.extend(damage),
            Err(error) => {
                trouble.1.get_or_insert(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    stop.check()?;
    let (mut damage, error) = trouble.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(error) = error {
        return Err(error);
    }
    if damage.is_empty() {
        return Ok(());
    }
    damage.sort_by_key(|place| place.offset_bytes);
    Err(Error::Damaged { point: point.id.to_string(), damage })
}

/// Where each blob goes, as (id, chunk index); the zeros are dealt with on the spot. Also how many bytes those were.
fn places(map: &ChunkMap, geometry: Geometry, target: &Target) -> Result<(Vec<(Id, u64)>, u64)> {
    let (mut places, mut zero_bytes) = (Vec::new(), 0);
    for (first, chunk, count) in map.runs() {
        match chunk {
            Chunk::Blob(id) => places.extend((first..first + count).map(|index| (id, index))),
            Chunk::Zero => {
                let offset = geometry.offset(first);
                let length = geometry.offset(first + count).min(geometry.capacity_bytes) - offset;
                target.write_zeros(offset, length)?;
                zero_bytes += length;
            }
        }
    }
    Ok((places, zero_bytes))
}

fn places_of<'a>(id: &'a Id, places: &'a [(Id, u64)]) -> impl Iterator<Item = u64> + 'a {
    let start = places.partition_point(|(other, _)| other < id);
    places[start..].iter().take_while(move |(other, _)| other == id).map(|(_, index)| *index)
}

fn write_chunk(
    id: &Id,
    bytes: &[u8],
    places: &[(Id, u64)],
    geometry: Geometry,
    target: &Target,
    progress: &dyn Progress,
) -> Result<Vec<Damage>> {
    let mut wrong = Vec::new();
    for index in places_of(id, places) {
        if geometry.length(index) == bytes.len() as u64 {
            target.write(geometry.offset(index), bytes)?;
            progress.advance(bytes.len() as u64);
        } else {
            wrong.push(Damage {
                disk: Some(target.disk().to_owned()),
                offset_bytes: Some(geometry.offset(index)),
                length_bytes: Some(geometry.length(index)),
                file: None,
                error: format!("chunk {} has the wrong length", id.short()),
            });
        }
    }
    Ok(wrong)
}

fn damage(id: &Id, error: &str, places: &[(Id, u64)], geometry: Geometry, disk: &PlannedDisk) -> Vec<Damage> {
    places_of(id, places)
        .map(|index| Damage {
            disk: Some(disk.disk.clone()),
            offset_bytes: Some(geometry.offset(index)),
            length_bytes: Some(geometry.length(index)),
            file: None,
            error: error.to_owned(),
        })
        .collect()
}

/// A definition or the firmware's variables, written beside their place first.
struct SmallFile {
    temporary: tempfile::TempPath,
    path: PathBuf,
    overwrite: bool,
}

impl SmallFile {
    fn create(path: &Path, bytes: &[u8], overwrite: bool) -> Result<SmallFile> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = tempfile::Builder::new()
            .prefix(".kvmb-")
            .suffix(".partial")
            .make_in(folder, |path| options.open(path))
            .map_err(Error::io("write", path))?;
        let (mut file, temporary) = file.into_parts();
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", path))?;
        Ok(SmallFile { temporary, path: path.to_owned(), overwrite })
    }

    fn place(self) -> Result<Placed> {
        Placed::put(self.temporary, &self.path, self.overwrite)
    }
}
