//! Opens points: their description and the content of their disks.

use super::lineage::Origin;
use super::point_ref::{PINNED_TAG, PointRef};
use crate::capture::{self, Definition};
use crate::ops::chunk_map::{ChunkMap, Geometry, ZeroIds};
use crate::ops::manifest::{DEFINITION, LIVE_DEFINITION, MANIFEST, Manifest, ManifestDisk};
use crate::ops::pieces::ranges_of_text;
use crate::ops::{Error, Monitor, Result};
use crate::record;
use crate::repo::{self, Content, Id, Index, NodeKind, Repository, Snapshot, read_tree};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The maximum size of a small file (manifest, definition, firmware variables) that is read into memory.
const LARGEST_SMALL_FILE_BYTES: u64 = 256 << 20;

/// An opened point: its description and the content of its disks.
#[derive(Debug)]
pub(crate) struct OpenPoint {
    pub(crate) id: Id,
    pub(crate) snapshot: Snapshot,
    /// `point.json`.
    pub(crate) manifest: Manifest,
    /// All files of the point's folder and its subfolders except the disks, by their path within the point: the size
    /// and the content.
    pub(crate) files: BTreeMap<String, (u64, Content)>,
    /// The chunks of the disks.
    maps: BTreeMap<String, (Geometry, ChunkMap)>,
    /// The tree of each disk's folder, for a later point in which it is unchanged.
    pub(crate) disk_trees: BTreeMap<String, Id>,
    /// Disks whose content is lost, and why. Only [`open_with_damage`] returns such points.
    pub(crate) broken: BTreeMap<String, String>,
}

/// Loads the index as far as it is readable. Lost entries show up as damage of the affected points.
pub(crate) fn load_index_for_reading(repo: &Repository, monitor: &dyn Monitor) -> Result<Arc<Index>> {
    with_warnings(repo.load_index_with_damage()?, monitor)
}

/// Loads the index from all index files of the repository, without the copy on this host. Used to check every blob.
pub(crate) fn load_whole_index(repo: &Repository, monitor: &dyn Monitor) -> Result<Arc<Index>> {
    with_warnings(repo.reload_index_with_damage()?, monitor)
}

fn with_warnings((index, damaged): repo::IndexWithDamage, monitor: &dyn Monitor) -> Result<Arc<Index>> {
    for (_, error) in damaged {
        monitor.warn(&error.to_string());
    }
    Ok(index)
}

/// Reads only the manifest of a point.
pub(crate) fn read_manifest(repo: &Repository, index: &Index, point: &PointRef) -> Result<Manifest> {
    if let Some(known) = known_manifest(repo, point) {
        return Ok(known);
    }
    let (description, json) = read_description(repo, index, point)?;
    repo.keep_note(point.id, json);
    Ok(description.manifest)
}

/// The manifest of a point, if this host has cached it.
pub(crate) fn known_manifest(repo: &Repository, point: &PointRef) -> Option<Manifest> {
    Manifest::parse(&repo.note_of(&point.id)?).ok()
}

/// Reads the origin of a point. `None` if the point is damaged, which `verify` reports.
pub(crate) fn read_origin(repo: &Repository, index: &Index, point: &PointRef) -> Result<Option<Origin>> {
    match read_manifest(repo, index, point) {
        Ok(manifest) => Ok(Some(Origin::of(&manifest))),
        Err(Error::BadPoint { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The description of a point, without the content of its disks.
#[derive(Debug)]
pub(crate) struct Description {
    /// `point.json`.
    pub(crate) manifest: Manifest,
    top: Top,
}

/// The machine's folder in a point.
#[derive(Debug)]
struct Top {
    files: FileContents,
    folders: BTreeMap<String, Id>,
}

type FileContents = BTreeMap<String, (u64, Content)>;

fn bad(point: &PointRef) -> impl Fn(String) -> Error + Copy + '_ {
    |reason| Error::BadPoint { point: point.id.to_string(), reason }
}

/// Classifies a read error as damage, unless the whole repository is unreachable.
fn unreadable(what: &str, error: repo::Error, bad: impl Fn(String) -> Error) -> Error {
    match error.is_unreachable() {
        true => error.into(),
        false => bad(format!("{what}: {error}")),
    }
}

fn read_top(repo: &Repository, index: &Index, point: &PointRef) -> Result<Top> {
    let bad = bad(point);
    let tree = |id: &Id, what: &str| read_tree(repo, index, id).map_err(|error| unreadable(what, error, bad));
    let root = tree(&point.snapshot.tree, "its root tree")?;
    let subtree = match &root.nodes[..] {
        [node] => match node.kind {
            NodeKind::Dir { subtree } => subtree,
            _ => return Err(bad("its root is not a machine's folder".into())),
        },
        _ => return Err(bad("its root is not one machine's folder".into())),
    };
    let mut top = Top { files: BTreeMap::new(), folders: BTreeMap::new() };
    for node in tree(&subtree, "the machine's folder")?.nodes {
        let name = node.name.to_string_lossy().into_owned();
        match node.kind {
            NodeKind::File { size_bytes, content } => drop(top.files.insert(name, (size_bytes, content))),
            NodeKind::Dir { subtree } => drop(top.folders.insert(name, subtree)),
            NodeKind::Other(_) => {}
        }
    }
    Ok(top)
}

/// Reads a point's manifest. Missing or inconsistent data is [`Error::BadPoint`].
pub(crate) fn describe(repo: &Repository, index: &Index, point: &PointRef) -> Result<Description> {
    Ok(read_description(repo, index, point)?.0)
}

/// Also returns the manifest as it is stored.
fn read_description(repo: &Repository, index: &Index, point: &PointRef) -> Result<(Description, Vec<u8>)> {
    let bad = bad(point);
    let top = read_top(repo, index, point)?;
    let json = read_small(repo, index, &top.files, MANIFEST, bad)?;
    let manifest = Manifest::parse(&json).map_err(|error| bad(error.to_string()))?;
    Ok((Description { manifest, top }, json))
}

/// Opens a point with this description: reads the folders of its disks.
pub(crate) fn open(repo: &Repository, index: &Index, point: &PointRef, described: Description) -> Result<OpenPoint> {
    let opened = open_described(repo, index, point, described)?;
    match opened.broken.values().next() {
        Some(reason) => Err(Error::BadPoint { point: point.id.to_string(), reason: reason.clone() }),
        None => Ok(opened),
    }
}

/// Opens a point even if it is only partly readable. A disk whose list of chunks is lost is in [`OpenPoint::broken`],
/// and [`OpenPoint::chunk_map`] returns the error for it.
pub(crate) fn open_with_damage(repo: &Repository, index: &Index, point: &PointRef) -> Result<OpenPoint> {
    open_described(repo, index, point, describe(repo, index, point)?)
}

fn open_described(repo: &Repository, index: &Index, point: &PointRef, described: Description) -> Result<OpenPoint> {
    let Description { manifest, top: Top { mut files, folders } } = described;
    let (mut disk_trees, mut maps, mut broken) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, subtree) in folders {
        match read_tree(repo, index, &subtree) {
            Ok(folder) => {
                for file in folder.nodes {
                    let NodeKind::File { size_bytes, content } = file.kind else { continue };
                    let path = format!("{name}/{}", file.name.to_string_lossy());
                    // The list of a disk is long, so it is not kept twice.
                    match manifest.disks.iter().find(|disk| disk_file(&disk.disk) == path) {
                        Some(disk) => match map_of(disk, size_bytes, &content) {
                            Ok(map) => drop(maps.insert(disk.disk.clone(), map)),
                            Err(reason) => drop(broken.insert(disk.disk.clone(), reason)),
                        },
                        None => drop(files.insert(path, (size_bytes, content))),
                    }
                }
                disk_trees.insert(name, subtree);
            }
            Err(error) if error.is_unreachable() => return Err(error.into()),
            Err(error) => drop(broken.insert(name.clone(), format!("the folder of {name}: {error}"))),
        }
    }
    for disk in manifest.disks.iter().map(|disk| &disk.disk).filter(|disk| !maps.contains_key(*disk)) {
        broken.entry(disk.clone()).or_insert_with(|| format!("{} is missing", disk_file(disk)));
    }
    Ok(OpenPoint { id: point.id, snapshot: point.snapshot.clone(), manifest, files, maps, disk_trees, broken })
}

/// Returns the chunks of a disk whose file has this size and these blobs, or why they do not match.
fn map_of(
    disk: &ManifestDisk,
    size_bytes: u64,
    content: &Content,
) -> std::result::Result<(Geometry, ChunkMap), String> {
    let name = disk_file(&disk.disk);
    if size_bytes != disk.capacity_bytes {
        return Err(format!("{name} has {size_bytes} bytes and the manifest says {}", disk.capacity_bytes));
    }
    let geometry = Geometry { capacity_bytes: disk.capacity_bytes, chunk_bytes: disk.chunk_bytes };
    let split = ranges_of_text(&disk.split_chunks, geometry.chunks())
        .ok_or_else(|| format!("the list of split chunks of {} is not valid", disk.disk))?;
    let map = ChunkMap::from_content(content, geometry, ZeroIds::of(geometry), &split);
    Ok((geometry, map.map_err(|error| format!("{name}: {error}"))?))
}

fn read_small(
    repo: &Repository,
    index: &Index,
    files: &FileContents,
    name: &str,
    bad: impl Fn(String) -> Error,
) -> Result<Vec<u8>> {
    let (size, content) = files.get(name).ok_or_else(|| bad(format!("{name} is missing")))?;
    if *size > LARGEST_SMALL_FILE_BYTES {
        return Err(bad(format!("{name} is {size} bytes long")));
    }
    let mut bytes = Vec::new();
    for id in content.iter() {
        bytes.extend(repo.read_blob(index, &id).map_err(|error| unreadable(name, error, &bad))?);
        if bytes.len() as u64 > *size {
            break;
        }
    }
    if bytes.len() as u64 != *size {
        return Err(bad(format!("{name} should have {size} bytes and has {}", bytes.len())));
    }
    Ok(bytes)
}

/// The path of a disk's file within the point.
pub(crate) fn disk_file(disk: &str) -> String {
    format!("{disk}/{disk}.raw")
}

impl OpenPoint {
    /// Reads one of the small files.
    pub(crate) fn read_file(&self, repo: &Repository, index: &Index, name: &str) -> Result<Vec<u8>> {
        let bad = |reason| Error::BadPoint { point: self.id.to_string(), reason };
        read_small(repo, index, &self.files, name, bad)
    }

    pub(crate) fn definition(&self, repo: &Repository, index: &Index) -> Result<String> {
        String::from_utf8(self.read_file(repo, index, DEFINITION)?)
            .map_err(|_| Error::BadPoint { point: self.id.to_string(), reason: format!("{DEFINITION} is not UTF-8") })
    }

    /// Returns the definition that has all disks of the point, and whether it is the one of the running machine. Only
    /// that one has disks that were attached just to the running machine.
    pub(crate) fn definition_of_disks(&self, repo: &Repository, index: &Index) -> Result<(String, bool)> {
        let inactive = self.definition(repo, index)?;
        if !self.files.contains_key(LIVE_DEFINITION) {
            return Ok((inactive, false));
        }
        let live = String::from_utf8(self.read_file(repo, index, LIVE_DEFINITION)?).map_err(|_| Error::BadPoint {
            point: self.id.to_string(),
            reason: format!("{LIVE_DEFINITION} is not UTF-8"),
        })?;
        let definition = Definition::parse(&live).map_err(capture::Error::from)?;
        match self.manifest.disks.iter().all(|disk| definition.disk(&disk.disk).is_some()) {
            true => Ok((live, true)),
            false => Ok((inactive, false)),
        }
    }

    /// Returns the chunks of one of the manifest's disks.
    pub(crate) fn chunk_map(&self, disk: &ManifestDisk) -> Result<ChunkMap> {
        let reason = match (self.broken.get(&disk.disk), self.map_of(&disk.disk)) {
            (None, Some((_, map))) => return Ok(map.clone()),
            (reason, _) => reason.cloned().unwrap_or_else(|| format!("{} is missing", disk_file(&disk.disk))),
        };
        Err(Error::BadPoint { point: self.id.to_string(), reason })
    }

    /// The geometry of a disk and its chunks, if they are known.
    pub(crate) fn map_of(&self, disk: &str) -> Option<(Geometry, &ChunkMap)> {
        self.maps.get(disk).map(|(geometry, map)| (*geometry, map))
    }

    /// The blobs of a disk. Consecutive equal ones are returned once.
    pub(crate) fn blobs_of_disk(&self, disk: &str) -> Option<impl Iterator<Item = Id> + '_> {
        let (geometry, map) = self.map_of(disk)?;
        Some(map.blobs(geometry, ZeroIds::of(geometry)).map(|(id, _)| id))
    }

    /// The blobs of all files and disks. Consecutive equal ones are returned once.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Id> + '_ {
        let of_files = self.files.values().flat_map(|(_, content)| content.runs().map(|(id, _)| id));
        of_files.chain(self.maps.keys().filter_map(|disk| self.blobs_of_disk(disk)).flatten())
    }

    /// Converts the point to a record.
    pub(crate) fn to_record(&self, repo: &Repository) -> record::Point {
        to_record(repo, &self.id, &self.snapshot, &self.manifest)
    }
}

/// Converts a point to a record.
pub(crate) fn to_record(repo: &Repository, id: &Id, snapshot: &Snapshot, manifest: &Manifest) -> record::Point {
    let sum = |of: fn(&ManifestDisk) -> u64| manifest.disks.iter().map(of).sum();
    record::Point {
        point: id.to_string(),
        short_id: id.short(),
        repo: repo.url(),
        machine: manifest.machine.clone(),
        uuid: manifest.uuid.clone(),
        host: manifest.host.clone(),
        captured_at: manifest.captured_at,
        consistency: manifest.consistency.clone(),
        parent: manifest.parent.clone(),
        original: snapshot.original.map(|id| id.to_string()),
        copied: None,
        pinned: snapshot.tags.iter().any(|tag| tag == PINNED_TAG),
        capture: None,
        batch: None,
        batch_machines: None,
        disks: manifest.disks.iter().map(ManifestDisk::to_record).collect(),
        read_bytes: sum(|disk| disk.read_bytes),
        new_bytes: sum(|disk| disk.new_bytes),
        stored_bytes: sum(|disk| disk.stored_bytes),
        files: manifest.file_records(),
        left_out: manifest.left_out.clone(),
        duration_seconds: Some(manifest.duration_seconds),
        chain_damage: Vec::new(),
        damaged_points: Vec::new(),
        verified_at: None,
        verified: None,
        damage: Vec::new(),
        restored_to: None,
        extra: Default::default(),
    }
}
