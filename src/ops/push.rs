//! A captured machine into a repository: the one storage path.
//!
//! The order of the last steps is the promise (design: "The commit order"): packs, then index, then the snapshot file,
//! each durable before the next. The snapshot file is the commit; what stands before it can only be waste.

use super::manifest::{DEFINITION, MANIFEST, Manifest, ManifestDisk, ManifestFile, Role, VERSION};
use super::points::{self, MACHINE_TAG, OpenPoint, TAG, disk_file};
use super::scratch_watch::watched;
use super::store_disk::{CHUNK_BYTES, DiskTask, StoredDisk, store_disk};
use super::{Error, Monitor, Result, Stop};
use crate::capture::state::FileRole;
use crate::capture::{CaptureFile, CaptureState, CapturedDisk, Definition};
use crate::nbd::{NbdUri, UriError};
use crate::record;
use crate::repo::{
    BlobKind, Content, Id, Index, LockMode, Node, Repository, Snapshot, Writer, WriterOptions, write_tree,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a push waits for a repository that somebody prunes.
pub const LOCK_WAIT: Duration = Duration::from_secs(60);

/// The largest blob that a small file is cut into.
const SMALL_FILE_BLOB_BYTES: usize = 4 << 20;

/// What is pushed.
#[derive(Debug)]
pub struct PushRequest<'a> {
    /// The capture, which the caller holds locked.
    pub file: &'a CaptureFile,
    /// Its state.
    pub capture: &'a CaptureState,
    /// The SHA-256 of whole disks that came along, by target.
    pub sha256: BTreeMap<String, String>,
}

/// Called when the last byte of the last disk was read: the job may end.
pub type AfterRead<'a> = &'a mut dyn FnMut() -> Result<()>;

/// Stores a capture as a point.
pub fn push(
    repo: &Repository,
    request: &PushRequest,
    monitor: &dyn Monitor,
    stop: &Stop,
    after_read: AfterRead,
) -> Result<record::Point> {
    let (capture, host) = (request.capture, super::discover::host_name());
    // A prune beside us would take what we reuse: lock first, then read the index.
    let lock = repo.lock(LockMode::Shared, LOCK_WAIT)?;
    let index = Arc::new(repo.load_index()?);
    let parent = parent_point(repo, &index, &capture.uuid)?;
    let definition = Definition::parse(&capture.definition_xml).map_err(crate::capture::Error::from)?;

    let writer = Writer::new(repo, Arc::clone(&index), WriterOptions::default());
    let stored = watched(capture, stop, |stop| {
        capture
            .disks
            .iter()
            .map(|disk| read_disk(capture, disk, parent.as_ref(), &writer, monitor, stop))
            .collect::<Result<Vec<_>>>()
    })?;
    after_read()?;

    let mut folder = Folder::new(&writer, capture.captured_at);
    let mut disks = Vec::new();
    for (disk, (chunk_bytes, one)) in capture.disks.iter().zip(stored) {
        folder.add_disk(&disk.target, chunk_bytes, &one, parent.as_ref())?;
        let described = definition.disk(&disk.target);
        disks.push(ManifestDisk {
            disk: disk.target.clone(),
            capacity_bytes: one.capacity_bytes,
            chunk_bytes,
            format: disk.format.clone(),
            source: described.map_or(record::Source::Unknown, |d| super::discover::source(&d.source)),
            layers: disk.image.iter().filter_map(|layer| serde_json::to_value(layer).ok()).collect(),
            read_mode: super::discover::read_mode(disk.read_mode).into(),
            read_mode_reason: disk.read_mode_reason.clone(),
            read_bytes: one.read_bytes,
            new_bytes: one.new_bytes,
            stored_bytes: one.stored_bytes,
            sha256: request.sha256.get(&disk.target).cloned(),
        });
    }
    let mut files = Vec::new();
    for copy in &capture.copies {
        let path = request.file.folder().join(&copy.name);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let (role, name) = match copy.role {
            FileRole::Nvram => (Role::Nvram, "nvram"),
            FileRole::Kernel => (Role::Kernel, "kernel"),
            FileRole::Initrd => (Role::Initrd, "initrd"),
        };
        folder.add_file(name, &bytes)?;
        let path = copy.origin.to_string_lossy().into_owned();
        files.push(ManifestFile { name: name.into(), role, path, size_bytes: bytes.len() as u64 });
    }
    folder.add_file(DEFINITION, capture.definition_xml.as_bytes())?;
    let elapsed = chrono::Utc::now().signed_duration_since(capture.captured_at);
    let manifest = Manifest {
        version: VERSION,
        program: program(),
        machine: capture.machine.clone(),
        uuid: capture.uuid.clone(),
        host: host.clone(),
        connect: capture.connect.clone(),
        captured_at: capture.captured_at,
        consistency: capture.consistency.as_str().to_owned(),
        checkpoint: capture.checkpoint.clone(),
        parent: parent.as_ref().map(|parent| parent.id.to_string()),
        duration_seconds: (elapsed.num_milliseconds().max(0) as f64) / 1000.0,
        disks,
        files,
    };
    folder.add_file(MANIFEST, &manifest.to_json())?;
    let tree = folder.finish(&capture.machine)?;

    writer.finish()?;
    lock.check()?;
    stop.check()?;
    let mut snapshot = Snapshot::new(tree, vec![format!("/{}", capture.machine)]);
    snapshot.time = capture.captured_at;
    snapshot.parent = parent.as_ref().map(|parent| parent.id);
    snapshot.hostname = host;
    snapshot.tags = vec![TAG.into(), format!("{MACHINE_TAG}{}", capture.machine)];
    snapshot.program_version = program();
    let id = repo.save_snapshot(&snapshot)?;
    request.file.commit(&id.to_string())?;
    let point = OpenPoint {
        id,
        snapshot,
        manifest,
        files: BTreeMap::new(),
        disk_trees: BTreeMap::new(),
        broken: BTreeMap::new(),
    };
    let mut record = point.to_record(repo);
    record.capture = Some(capture.id.clone());
    Ok(record)
}

/// Reads one disk into the repository; also the size of its chunks.
fn read_disk(
    capture: &CaptureState,
    disk: &CapturedDisk,
    parent: Option<&OpenPoint>,
    writer: &Writer,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<(u32, StoredDisk)> {
    let uri: NbdUri = disk
        .nbd_uri
        .parse()
        .map_err(|error: UriError| Error::DiskMap { disk: disk.target.clone(), reason: error.to_string() })?;
    let progress = monitor.start("reading", &format!("{}/{}", capture.machine, disk.target), disk.capacity_bytes);
    let chunk_bytes =
        parent.and_then(|point| manifest_disk(point, &disk.target)).map_or(CHUNK_BYTES, |d| d.chunk_bytes);
    let task = DiskTask { disk: &disk.target, uri: &uri, chunk_bytes, bitmap: None, parent: None };
    Ok((chunk_bytes, store_disk(&task, writer, &*progress, stop)?))
}

/// Who wrote a point.
fn program() -> String {
    concat!("kvmb ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// The newest readable point of a machine, by its UUID: names change.
fn parent_point(repo: &Repository, index: &Index, uuid: &str) -> Result<Option<OpenPoint>> {
    let (points, _) = points::list(repo)?;
    for point in points.iter().rev() {
        // A damaged point is no base; verify reports it.
        if let Ok(opened) = points::open(repo, index, point)
            && opened.manifest.uuid == uuid
        {
            return Ok(Some(opened));
        }
    }
    Ok(None)
}

fn manifest_disk<'a>(point: &'a OpenPoint, disk: &str) -> Option<&'a ManifestDisk> {
    point.manifest.disks.iter().find(|known| known.disk == disk)
}

/// The machine's folder in the making.
struct Folder<'a> {
    writer: &'a Writer,
    time: record::Time,
    nodes: Vec<Node>,
}

impl<'a> Folder<'a> {
    fn new(writer: &'a Writer, time: record::Time) -> Folder<'a> {
        Folder { writer, time, nodes: Vec::new() }
    }

    fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut content = Content::default();
        for piece in bytes.chunks(SMALL_FILE_BLOB_BYTES) {
            content.push(self.writer.put(BlobKind::Data, piece)?.id);
        }
        self.nodes.push(Node::file(name, self.time, bytes.len() as u64, content));
        Ok(())
    }

    /// A disk that is as it was in the parent keeps the parent's folder, so that it costs no new tree.
    fn add_disk(
        &mut self,
        disk: &str,
        chunk_bytes: u32,
        stored: &StoredDisk,
        parent: Option<&OpenPoint>,
    ) -> Result<()> {
        use super::chunk_map::{Geometry, ZeroIds};
        let geometry = Geometry { capacity_bytes: stored.capacity_bytes, chunk_bytes };
        let content = stored.map.to_content(geometry, ZeroIds::of(geometry));
        let unchanged = parent
            .filter(|p| {
                p.files.get(&disk_file(disk)).is_some_and(|(size, c)| *size == stored.capacity_bytes && *c == content)
            })
            .and_then(|p| p.disk_trees.get(disk).copied());
        let subtree = match unchanged {
            Some(tree) => tree,
            None => {
                let file = Node::file(format!("{disk}.raw"), self.time, stored.capacity_bytes, content);
                write_tree(self.writer, &[file])?
            }
        };
        self.nodes.push(Node::dir(disk, self.time, subtree));
        Ok(())
    }

    fn finish(mut self, machine: &str) -> Result<Id> {
        self.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let folder = write_tree(self.writer, &self.nodes)?;
        Ok(write_tree(self.writer, &[Node::dir(machine, self.time, folder)])?)
    }
}
