//! What a restore will write, decided before anything is touched.

pub use super::small_files::PlannedFile;

use super::small_files::SmallFiles;
use super::trust;
use crate::capture::{self, Changes, Definition, DiskSource, Hypervisor, Machine, NewDisk, NewDiskKind, rewrite};
use crate::ops::chunk_map::{ChunkMap, Geometry, MappedChunk};
use crate::ops::points::OpenPoint;
use crate::ops::{Error, Result};
use crate::record::Action;
use crate::repo::{Index, Repository};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// An image format that can be restored to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes as the guest sees them.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl ImageFormat {
    /// QEMU's name for it, which is its extension as well.
    pub fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        }
    }
}

/// What the user asked for.
#[derive(Debug, Default, Clone)]
pub struct RestoreRequest {
    /// Another name for the machine, which then gets a new UUID and new MAC addresses.
    pub as_name: Option<String>,
    /// The folder for all images.
    pub into: Option<PathBuf>,
    /// A file or device for one disk.
    pub to: BTreeMap<String, PathBuf>,
    /// Only these disks, and no definition; empty means all.
    pub only_disks: Vec<String>,
    /// The format of new images; none keeps the machine's.
    pub format: Option<ImageFormat>,
    /// Whether libvirt gets the definition.
    pub define: bool,
    /// The URI of the libvirt that gets it, which has a place of its own for a TPM's state.
    pub connect: Option<String>,
    /// Whether the machine is started in the end.
    pub start: bool,
    /// Whether what exists may be replaced.
    pub overwrite: bool,
}

/// Whether a disk goes to a file or to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A file, made anew.
    File,
    /// A block device, written in place.
    Device,
}

/// One disk of the plan.
#[derive(Debug)]
pub struct PlannedDisk {
    /// Its target name.
    pub disk: String,
    /// The file or device.
    pub path: PathBuf,
    /// Which of the two.
    pub kind: TargetKind,
    /// The format that is written.
    pub format: ImageFormat,
    /// The size that the guest sees.
    pub capacity_bytes: u64,
    /// The size of chunks.
    pub chunk_bytes: u32,
    /// The chunks.
    pub map: ChunkMap,
    /// Whether what is there may be replaced.
    pub overwrite: bool,
}

impl PlannedDisk {
    /// How the disk is cut.
    pub fn geometry(&self) -> Geometry {
        Geometry { capacity_bytes: self.capacity_bytes, chunk_bytes: self.chunk_bytes }
    }

    /// Its chunks that are not zero, together where they lie together: from which byte of the disk, and how much.
    pub fn data_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let geometry = self.geometry();
        let mut data = self.map.runs().filter(|(_, chunk, _)| *chunk != MappedChunk::Zero).peekable();
        std::iter::from_fn(move || {
            let (first, _, mut count) = data.next()?;
            while let Some((_, _, more)) = data.next_if(|(next, ..)| *next == first + count) {
                count += more;
            }
            let (start, end) = (geometry.offset(first), geometry.offset(first + count).min(self.capacity_bytes));
            Some((start, end - start))
        })
    }

    /// What it will take on the host, about.
    pub fn data_bytes(&self) -> u64 {
        self.data_ranges().map(|(_, length)| length).sum()
    }
}

/// All that will be written.
#[derive(Debug)]
pub struct RestorePlan {
    /// The machine's name from now on.
    pub machine: String,
    /// Its UUID from now on.
    pub uuid: String,
    /// The disks.
    pub disks: Vec<PlannedDisk>,
    /// The small files.
    pub files: Vec<PlannedFile>,
    /// The definition as it will be.
    pub definition: String,
    /// Where the definition is written to, when libvirt does not get it.
    pub definition_file: Option<PathBuf>,
    /// Whether libvirt gets it.
    pub define: bool,
    /// Whether the machine is started.
    pub start: bool,
    /// Whether what exists may be replaced.
    pub overwrite: bool,
}

/// Decides everything, and refuses what must not be written over.
pub fn plan(repo: &Repository, index: &Index, point: &OpenPoint, request: &RestoreRequest) -> Result<RestorePlan> {
    let into = request.into.as_ref().map(|folder| std::path::absolute(folder).map_err(Error::io("find", folder)));
    let request = &RestoreRequest { into: into.transpose()?, ..request.clone() };
    let xml = point.definition(repo, index)?;
    let definition = Definition::parse(&xml).map_err(capture::Error::from)?;
    trust::check(point, &definition, request)?;
    let machine = request.as_name.clone().unwrap_or_else(|| point.manifest.machine.clone());
    let subject = format!("point {}", point.id.short());
    for disk in request.only_disks.iter().chain(request.to.keys()) {
        if !point.manifest.disks.iter().any(|known| known.disk == *disk) {
            return Err(Error::NoSuchDisk { subject, disk: disk.clone() });
        }
    }

    let mut disks = Vec::new();
    for disk in &point.manifest.disks {
        if !request.only_disks.is_empty() && !request.only_disks.contains(&disk.disk) {
            continue;
        }
        let described = definition.disk(&disk.disk);
        let format = request.format.unwrap_or(match described.and_then(|disk| disk.format.as_deref()) {
            Some("qcow2") => ImageFormat::Qcow2,
            _ => ImageFormat::Raw,
        });
        let (path, kind) = place(request, &machine, &disk.disk, described.map(|disk| &disk.source), format)?;
        let format = if kind == TargetKind::Device { ImageFormat::Raw } else { format };
        let map = point.chunk_map(disk)?;
        let (capacity_bytes, chunk_bytes) = (disk.capacity_bytes, disk.chunk_bytes);
        let planned = PlannedDisk {
            disk: disk.disk.clone(),
            path,
            kind,
            format,
            capacity_bytes,
            chunk_bytes,
            map,
            overwrite: request.overwrite,
        };
        refuse_replacing(&planned)?;
        disks.push(planned);
    }
    refuse_without_room(&disks)?;

    let whole = request.only_disks.is_empty();
    let define = request.define && whole;
    let uuid = match &request.as_name {
        Some(_) => uuid::Uuid::new_v4().to_string(),
        None => point.manifest.uuid.clone(),
    };
    let beside = disks.first().and_then(|disk| disk.path.parent()).map(Path::to_owned);
    let small = SmallFiles { request, definition: &definition, machine: &machine, uuid: &uuid, define, beside };
    let (files, moved) = match whole {
        true => small.plan(&point.manifest)?,
        false => (Vec::new(), Changes::default()),
    };

    let changes = Changes {
        name: request.as_name.clone(),
        uuid: request.as_name.as_ref().map(|_| uuid.clone()),
        new_macs: request.as_name.is_some(),
        disks: disks.iter().map(new_disk).collect(),
        ..moved
    };
    let rewritten = rewrite(&xml, &changes).map_err(capture::Error::from)?;
    let folder = request.into.as_deref().or(small.beside.as_deref()).filter(|_| whole && !define);
    let definition_file = folder.map(|folder| folder.join(format!("{machine}.xml")));
    if let Some(path) = definition_file.as_ref().filter(|path| path.exists() && !request.overwrite) {
        return Err(Error::Exists { path: path.clone() });
    }
    let small_files = files.iter().map(|file| (&*file.name, &file.path));
    let definition = definition_file.iter().map(|path| ("domain.xml", path));
    refuse_two_in_one_place(disks.iter().map(|disk| (&*disk.disk, &disk.path)).chain(small_files).chain(definition))?;
    Ok(RestorePlan {
        machine,
        uuid,
        disks,
        files,
        definition: rewritten,
        definition_file,
        define,
        start: request.start && define,
        overwrite: request.overwrite,
    })
}

fn new_disk(disk: &PlannedDisk) -> (String, NewDisk) {
    let kind = match disk.kind {
        TargetKind::File => NewDiskKind::File,
        TargetKind::Device => NewDiskKind::Block,
    };
    (disk.disk.clone(), NewDisk { path: disk.path.clone(), kind, format: disk.format.name().to_owned() })
}

/// The file or device that a disk goes to.
fn place(
    request: &RestoreRequest,
    machine: &str,
    disk: &str,
    described: Option<&DiskSource>,
    format: ImageFormat,
) -> Result<(PathBuf, TargetKind)> {
    let path = match (request.to.get(disk), &request.into, described) {
        (Some(path), ..) => std::path::absolute(path).map_err(Error::io("find", path))?,
        (None, Some(folder), _) => folder.join(format!("{machine}-{disk}.{}", format.name())),
        (None, None, Some(DiskSource::File { path } | DiskSource::Block { path })) if request.as_name.is_none() => {
            path.clone()
        }
        (None, None, _) => {
            let reason = match request.as_name {
                Some(_) => "a machine under another name needs images of its own",
                None => "its image was not a file or device of this host",
            };
            return Err(Error::BadTarget { disk: disk.to_owned(), path: PathBuf::new(), reason: reason.into() });
        }
    };
    let path = resolved(&path);
    let kind = match fs::metadata(&path) {
        Ok(found) if found.file_type().is_block_device() => TargetKind::Device,
        Ok(found) if !found.is_file() => {
            let reason = "it is neither a file nor a block device".into();
            return Err(Error::BadTarget { disk: disk.to_owned(), path, reason });
        }
        _ => TargetKind::File,
    };
    refuse_without_folder(&path)?;
    Ok((path, kind))
}

/// The one name of a file: links are followed, so that the image behind one is replaced and not the link, and so that two
/// names of one place are seen to be the same. What does not exist yet has its folder's one name.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

pub(super) fn refuse_without_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if folder.is_dir() {
        return Ok(());
    }
    // Not made: it may be the folder of a disk that is not mounted, or mistyped.
    Err(Error::NoFolder { path: folder.to_owned() })
}

/// Refuses when two of the things to be written (name, path) would end in one file or device.
fn refuse_two_in_one_place<'a>(things: impl Iterator<Item = (&'a str, &'a PathBuf)>) -> Result<()> {
    let mut taken: BTreeMap<PathBuf, &str> = BTreeMap::new();
    for (name, path) in things {
        if let Some(other) = taken.insert(resolved(path), name) {
            let reason = format!("{other} goes there as well");
            return Err(Error::BadTarget { disk: name.to_owned(), path: path.clone(), reason });
        }
    }
    Ok(())
}

fn refuse_replacing(disk: &PlannedDisk) -> Result<()> {
    let there = disk.path.exists();
    if there && !disk.overwrite {
        return Err(Error::Exists { path: disk.path.clone() });
    }
    if there {
        refuse_in_use(&disk.disk, &disk.path)?;
    }
    Ok(())
}

/// Refuses an image that a QEMU has open.
pub(super) fn refuse_in_use(disk: &str, path: &Path) -> Result<()> {
    if in_use_by_qemu(path)? {
        return Err(Error::ImageInUse { disk: disk.to_owned(), path: path.to_owned() });
    }
    Ok(())
}

/// Whether a QEMU holds its image locks (open file description locks from byte 100 on, `block/file-posix.c`): true for
/// whatever started it, libvirt or not. Found out by taking a lock on the whole file for a moment: a QEMU that starts in
/// that moment fails to, which is what must happen to it.
fn in_use_by_qemu(path: &Path) -> Result<bool> {
    let file = File::options().read(true).write(true).open(path).map_err(Error::io("open", path))?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
        Err(error) => Err(Error::io("test the lock of", path)(error.into())),
    }
}

/// Refuses when a file system has not the room for what goes to it.
fn refuse_without_room(disks: &[PlannedDisk]) -> Result<()> {
    let mut wanted: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for disk in disks.iter().filter(|disk| disk.kind == TargetKind::File) {
        let folder = disk.path.parent().unwrap_or(Path::new("/")).to_owned();
        let device = fs::metadata(&folder).map_err(Error::io("read", &folder))?.dev();
        wanted.entry(device).or_insert((folder, 0)).1 += disk.data_bytes();
    }
    for (path, wanted_bytes) in wanted.into_values() {
        let found = rustix::fs::statvfs(&path).map_err(|error| Error::io("measure", &path)(error.into()))?;
        let free_bytes = found.f_bavail * found.f_frsize;
        if free_bytes < wanted_bytes {
            return Err(Error::NoRoom { path, free_bytes, wanted_bytes });
        }
    }
    Ok(())
}

/// Refuses to touch a machine that runs, and - without `--overwrite` - one that exists.
pub fn refuse_running(hypervisor: &Hypervisor, plan: &RestorePlan) -> Result<()> {
    for name in [&plan.machine, &plan.uuid] {
        let Some(found) = existing(hypervisor, name)? else { continue };
        if !found.uuid().eq_ignore_ascii_case(&plan.uuid) {
            return Err(Error::NameTaken { machine: found.name().to_owned(), uuid: found.uuid().to_owned() });
        }
        if found.is_running()? {
            return Err(Error::MachineRunning { machine: found.name().to_owned() });
        }
        if !plan.overwrite {
            return Err(Error::MachineExists { machine: found.name().to_owned() });
        }
    }
    Ok(())
}

fn existing(hypervisor: &Hypervisor, name: &str) -> Result<Option<Machine>> {
    match hypervisor.machine(name) {
        Ok(machine) => Ok(Some(machine)),
        Err(capture::Error::NoSuchMachine { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Makes libvirt forget the checkpoints of ours: the images with their bitmaps are gone.
pub fn drop_checkpoints(machine: &Machine) -> Result<()> {
    for name in machine.checkpoints()? {
        if name.starts_with("kvmb-") {
            machine.forget_checkpoint(&name)?;
        }
    }
    Ok(())
}

impl RestorePlan {
    /// The plan as the records of `--dry-run`.
    pub fn actions(&self) -> Vec<Action> {
        let action = |target: String, reason: String, extra: serde_json::Value| Action {
            action: "restore".into(),
            target,
            changed: true,
            reason,
            dry_run: true,
            extra: extra.as_object().cloned().unwrap_or_default(),
        };
        let mut actions = Vec::new();
        for disk in &self.disks {
            let verb = if disk.path.exists() { "replaced" } else { "created" };
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
