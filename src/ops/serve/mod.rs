//! Serves a point's disks read-only over NBD, so that they can be read, copied, mounted and booted without a restore.
//!
//! | file | content |
//! | --- | --- |
//! | `chunk_cache.rs` | verified chunks, read ahead, bounded in memory |
//! | `chunk_buffers.rs` | the memory of the chunks |
//! | `read_ahead.rs` | detection of sequential readers |
//! | `blob_runs.rs` | the positions of the blobs on a disk |
//! | `point_disk.rs` | a disk of the point as an export |
//! | `socket.rs` | a private socket |
//! | `registry.rs` | the detached servers of this host |
//!
//! No byte is sent before its chunk was verified. Damage is an I/O error (EIO) for exactly the affected range.

mod blob_runs;
mod chunk_buffers;
mod chunk_cache;
mod point_disk;
mod read_ahead;
pub(crate) mod registry;
pub(crate) mod socket;

use super::chunk_map::Geometry;
use super::manifest::ManifestDisk;
use super::points::OpenPoint;
use super::{Error, Result, Stop};
use crate::capture::RuntimeDirs;
use crate::capture::runtime::{SERVED_SOCKET, nbd_uri};
use crate::nbd::{Export, Exports, Overlay, Server};
use crate::record::{self, Damage};
use crate::repo::{Index, Repository};
use chunk_cache::ChunkCache;
use point_disk::{DamageLog, ServedDisk};
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

/// What to serve of a point.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServeRequest<'a> {
    pub(crate) disks: &'a [&'a ManifestDisk],
    /// The folder for written data, which is discarded when the server ends. Without one the disks are read-only.
    pub(crate) overlays: Option<&'a Path>,
}

/// Disks of a point whose verified bytes can be read in this process.
pub(in crate::ops) struct PointDisks {
    /// The disks with their names.
    pub(in crate::ops) disks: Vec<(String, Arc<dyn Export>)>,
    damage: Arc<DamageLog>,
}

impl PointDisks {
    /// Prepares disks of a point, which share a cache. A disk whose list of chunks is lost is an error.
    pub(in crate::ops) fn open(
        repo: &Repository,
        index: Arc<Index>,
        point: &OpenPoint,
        wanted: &[&ManifestDisk],
        stop: &Stop,
    ) -> Result<PointDisks> {
        let cache = Arc::new(ChunkCache::new(repo.clone(), index, stop.clone()));
        let damage = Arc::<DamageLog>::default();
        let mut disks = Vec::new();
        for (number, disk) in wanted.iter().enumerate() {
            let geometry = Geometry { capacity_bytes: disk.capacity_bytes, chunk_bytes: disk.chunk_bytes };
            let map = point.chunk_map(disk)?;
            let name = &disk.disk;
            let description =
                format!("{name} of {}, {}", point.manifest.machine, point.manifest.captured_at.to_rfc3339());
            let export = ServedDisk::new((number, name), description, geometry, &map, (&cache, &damage));
            disks.push((name.clone(), Arc::new(export) as Arc<dyn Export>));
        }
        Ok(PointDisks { disks, damage })
    }

    /// Returns the damage found since the last call.
    pub(in crate::ops) fn take_damage(&self) -> Vec<Damage> {
        self.damage.take()
    }
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
        let PointDisks { disks, damage } = PointDisks::open(repo, index, point, request.disks, stop)?;
        let mut exports = Exports::default();
        for (name, mut export) in disks {
            if let Some(folder) = request.overlays {
                export = Arc::new(Overlay::new(export, overlay_file(folder)?));
            }
            exports.insert(&name, export);
        }
        Ok(ServedPoint { server: Server::new(exports, stop.flag()), damage })
    }

    /// Serves until `stop` is raised or `look` returns false. `look` is called about ten times a second with the damage
    /// found since the last call, and with whether a client is connected.
    pub(crate) fn run(&self, socket: &PrivateSocket, mut look: impl FnMut(Vec<Damage>, bool) -> bool) -> Result<()> {
        let served = self.server.run(&socket.listener, || look(self.damage.take(), self.server.connections() > 0));
        look(self.damage.take(), false);
        served.map_err(Error::io("listen on", socket.path()))
    }
}

/// Creates a file without a name, which disappears with the process.
fn overlay_file(folder: &Path) -> Result<fs::File> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    tempfile::tempfile_in(folder).map_err(Error::io("create a file in", folder))
}

/// The folder of one server's socket. Dropping it removes the folder.
#[derive(Debug)]
pub(crate) struct SocketFolder(PathBuf);

impl SocketFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        // 'release' may have removed it already.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Creates a folder for the socket of one server. Every user may traverse the folder; the socket itself is private.
pub(crate) fn new_socket_folder(runtime: &RuntimeDirs, id: &str) -> Result<SocketFolder> {
    clear_abandoned(runtime);
    let folder = runtime.socket_folder().join(id);
    fs::DirBuilder::new().mode(0o711).create(&folder).map_err(Error::io("create", &folder))?;
    Ok(SocketFolder(folder))
}

/// Removes the socket folders of servers that were killed.
pub(crate) fn clear_abandoned(runtime: &RuntimeDirs) {
    let entries = fs::read_dir(runtime.socket_folder()).into_iter().flatten().flatten();
    for folder in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("s-")) {
        // A folder without a socket is just being created.
        if socket::is_abandoned(&folder.path().join(SERVED_SOCKET)) {
            let _ = fs::remove_dir_all(folder.path());
        }
    }
}

/// The record of a served disk.
pub(crate) fn to_record(point: &OpenPoint, disk: &ManifestDisk, socket: &Path, served: Option<&str>) -> record::Disk {
    let manifest = &point.manifest;
    record::Disk {
        connect: manifest.connect.clone(),
        machine: manifest.machine.clone(),
        uuid: manifest.uuid.clone(),
        disk: disk.disk.clone(),
        source: disk.source.clone(),
        format: "raw".to_owned(),
        capacity_bytes: Some(disk.capacity_bytes),
        included: true,
        point: Some(point.id.to_string()),
        served: served.map(str::to_owned),
        nbd: Some(nbd_uri(socket, &disk.disk)),
        captured_at: Some(manifest.captured_at),
        consistency: Some(manifest.consistency.clone()),
        ..record::Disk::default()
    }
}
