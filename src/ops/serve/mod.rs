//! A point's disks, read-only over NBD: what can be read, copied, mounted and booted without restoring it.
//!
//! | file | what |
//! | --- | --- |
//! | `chunk_cache.rs` | verified chunks, read ahead, bounded in memory |
//! | `point_disk.rs` | a disk of the point as an export |
//! | `socket.rs` | a private socket |
//! | `registry.rs` | the detached servers of this host |
//!
//! No byte leaves before the chunk that it is in was verified. What is damaged is an I/O error (EIO) for exactly that
//! range.

mod chunk_cache;
mod point_disk;
pub(crate) mod registry;
pub(crate) mod socket;

use super::chunk_map::Geometry;
use super::manifest::ManifestDisk;
use super::points::OpenPoint;
use super::{Error, Result, Stop};
use crate::capture::RuntimeDirs;
use crate::capture::runtime::nbd_uri;
use crate::nbd::{Export, Exports, Overlay, Server};
use crate::record::{self, Damage};
use crate::repo::{Index, Repository};
use chunk_cache::ChunkCache;
use point_disk::{DamageLog, PointDisk};
use socket::PrivateSocket;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A point that is ready to be served.
#[derive(Debug)]
pub(crate) struct ServedPoint {
    server: Server,
    damage: Arc<DamageLog>,
}

/// What is served of a point.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServeRequest<'a> {
    pub(crate) disks: &'a [&'a ManifestDisk],
    /// Where what is written goes until the server ends: a folder. Without one nothing can be written.
    pub(crate) overlays: Option<&'a Path>,
}

impl ServedPoint {
    /// Prepares disks of a point. A disk whose list of chunks is lost is an error.
    pub(crate) fn new(
        repo: &Repository,
        index: Arc<Index>,
        point: &OpenPoint,
        request: ServeRequest<'_>,
        stop: &Stop,
    ) -> Result<ServedPoint> {
        let cache = Arc::new(ChunkCache::new(repo.clone(), index, stop.clone()));
        let damage = Arc::<DamageLog>::default();
        let mut exports = Exports::default();
        for disk in request.disks {
            let geometry = Geometry { capacity_bytes: disk.capacity_bytes, chunk_bytes: disk.chunk_bytes };
            let map = point.chunk_map(disk)?;
            let name = &disk.disk;
            let description =
                format!("{name} of {}, {}", point.manifest.machine, point.manifest.captured_at.to_rfc3339());
            let mut export: Arc<dyn Export> =
                Arc::new(PointDisk::new(name, description, geometry, &map, (&cache, &damage)));
            if let Some(folder) = request.overlays {
                export = Arc::new(Overlay::new(export, overlay_file(folder)?));
            }
            exports.insert(name, export);
        }
        Ok(ServedPoint { server: Server::new(exports, stop.flag()), damage })
    }

    /// Serves until `stop` is raised, or `look` returns false: it is called some ten times a second, with the damage
    /// that was met since the last time, and whether anybody is connected.
    pub(crate) fn run(&self, socket: &PrivateSocket, mut look: impl FnMut(Vec<Damage>, bool) -> bool) -> Result<()> {
        let served = self.server.run(&socket.listener, || look(self.damage.take(), self.server.connections() > 0));
        look(self.damage.take(), false);
        served.map_err(Error::io("listen on", socket.path()))
    }
}

/// A file without a name, which is gone with the process.
fn overlay_file(folder: &Path) -> Result<fs::File> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    tempfile::tempfile_in(folder).map_err(Error::io("create a file in", folder))
}

/// The folder of one server's socket, removed with it.
#[derive(Debug)]
pub(crate) struct SocketFolder(PathBuf);

impl SocketFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        // 'release' may have been faster.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes a folder for the socket of one server, which everybody can pass: the socket itself is private.
pub(crate) fn new_socket_folder(runtime: &RuntimeDirs, id: &str) -> Result<SocketFolder> {
    let folder = runtime.socket_folder().join(id);
    fs::DirBuilder::new().mode(0o711).create(&folder).map_err(Error::io("create", &folder))?;
    Ok(SocketFolder(folder))
}

/// The record of a served disk.
pub(crate) fn to_record(point: &OpenPoint, disk: &ManifestDisk, socket: &Path, served: Option<&str>) -> record::Disk {
    let manifest = &point.manifest;
    record::Disk {
        connect: manifest.connect.clone(),
        machine: manifest.machine.clone(),
        uuid: manifest.uuid.clone(),
        state: String::new(),
        disk: disk.disk.clone(),
        source: disk.source.clone(),
        path: None,
        format: "raw".to_owned(),
        bus: None,
        capacity_bytes: Some(disk.capacity_bytes),
        allocated_bytes: None,
        included: true,
        skip_reason: None,
        capture: None,
        capture_disks: None,
        batch: None,
        batch_machines: None,
        point: Some(point.id.to_string()),
        served: served.map(str::to_owned),
        nbd: Some(nbd_uri(socket, &disk.disk)),
        captured_at: Some(manifest.captured_at),
        consistency: Some(manifest.consistency.clone()),
        checkpoint: None,
        parent: None,
        read_mode: None,
        read_mode_reason: None,
        sha256: None,
        extra: Default::default(),
    }
}
