//! What `serve` and `mount` share: a point, its disks on a private socket, and the state file with which `release`
//! finds a background server.

use crate::capture::RuntimeDirs;
use crate::capture::process::ServerProcess;
use crate::capture::runtime::SERVED_SOCKET;
use crate::cli::context::Context;
use crate::cli::detach;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::{About, Session};
use crate::ops::manifest::ManifestDisk;
use crate::ops::points::{self, OpenPoint, PointName};
use crate::ops::repo_lock::lock_and_list;
use crate::ops::serve::registry::ServedState;
use crate::ops::serve::socket::PrivateSocket;
use crate::ops::serve::{ServeRequest, ServedPoint, SocketFolder, new_socket_folder};
use crate::record::Damage;
use crate::repo::{RepoLock, Repository};
use chrono::{DateTime, FixedOffset, Local};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to serve, and how.
pub(super) struct ServingRequest<'a> {
    /// The point, as given by the user.
    pub(super) point: &'a str,
    /// Only these disks; empty means all.
    pub(super) disks: &'a [String],
    /// The path of the socket, if it is not in kvmb's private folder.
    pub(super) socket: Option<&'a Path>,
    /// The user and group of the socket, if it is for another user.
    pub(super) owner: Option<(u32, u32)>,
    /// Whether writes are accepted; they are discarded at the end.
    pub(super) writable: bool,
    /// How long a background server waits for clients; None means to serve in the foreground.
    pub(super) lease: Option<Duration>,
}

/// The state of the caller's own part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServingPhase {
    /// Not everything is ready yet.
    Preparing,
    /// Everything is ready.
    Ready,
    /// The server should end.
    End,
}

/// A point whose disks are served.
pub(super) struct Serving {
    point: OpenPoint,
    disks: Vec<ManifestDisk>,
    served: ServedPoint,
    // Dropped in this order: the state file, the socket, its folder, the lock.
    entry: Option<ServerFile>,
    socket: PrivateSocket,
    _folder: Option<SocketFolder>,
    _lock: Option<RepoLock>,
}

impl Serving {
    /// Opens the point and listens. Clients are served by [`Serving::run`].
    pub(super) fn open(
        context: &Context,
        repo: Repository,
        request: ServingRequest<'_>,
        session: &mut Session,
    ) -> Result<Serving, CliError> {
        let (lock, snapshots) = lock_and_list(&repo, &context.monitor, &context.stop)?;
        let (found, damaged) = points::of_snapshots(snapshots);
        let index = points::load_index_for_reading(&repo, &context.monitor)?;
        let name = PointName::parse(request.point, Local::now());
        let found = points::find_surely(&repo, &found, &damaged, &name)?;
        let point = points::open_with_damage(&repo, &index, &found)?;
        let disks = chosen(&point, request.disks, session)?;

        let runtime = context.runtime()?;
        let overlays = request.writable.then(|| runtime.scratch_folder());
        let wanted: Vec<&ManifestDisk> = disks.iter().collect();
        let serve = ServeRequest { disks: &wanted, overlays };
        let served = ServedPoint::new(&repo, index, &point, serve, &context.stop)?;
        let id = format!("s-{:08x}", rand::random::<u32>());
        let folder = request.socket.is_none().then(|| new_socket_folder(&runtime, &id)).transpose()?;
        let path = match (request.socket, &folder) {
            (Some(path), _) => path.to_owned(),
            (None, Some(folder)) => folder.path().join(SERVED_SOCKET),
            (None, None) => PathBuf::new(),
        };
        let path = std::path::absolute(&path).map_err(crate::ops::Error::io("find", &path))?;
        let socket = PrivateSocket::bind(&path, request.owner)?;
        let entry = match request.lease {
            None => None,
            Some(lease) => {
                let state = ServedState {
                    id,
                    machine: point.manifest.machine.clone(),
                    point: point.id.to_string(),
                    repo: repo.url(),
                    socket: path,
                    process: ServerProcess::this(),
                    lease_ends_at: end_of(lease),
                };
                state.save(&runtime)?;
                Some(ServerFile { runtime, state, lease })
            }
        };
        Ok(Serving { point, disks, served, entry, socket, _folder: folder, _lock: lock })
    }

    pub(super) fn point(&self) -> &OpenPoint {
        &self.point
    }

    /// Returns the disks that are served.
    pub(super) fn disks(&self) -> &[ManifestDisk] {
        &self.disks
    }

    /// Returns the path of the socket.
    pub(super) fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// Returns the id with which `release` stops a background server.
    pub(super) fn served(&self) -> Option<&str> {
        self.entry.as_ref().map(|entry| entry.state.id.as_str())
    }

    /// Serves until the program is interrupted, the lease expires or `look` ends it. `look` is called about ten times
    /// per second. When it first returns [`ServingPhase::Ready`], the program moves to the background if that was
    /// requested.
    pub(super) fn run(
        mut self,
        session: &mut Session,
        mut look: impl FnMut(&mut Session) -> ServingPhase,
    ) -> Result<(), CliError> {
        let (machine, entry) = (self.point.manifest.machine.clone(), &mut self.entry);
        let mut is_ready = false;
        let mut goes_on = |session: &mut Session, is_in_use| match look(session) {
            ServingPhase::End => false,
            ServingPhase::Preparing => true,
            ServingPhase::Ready => {
                if !std::mem::replace(&mut is_ready, true) {
                    // The reader of the records should start now, not when the server ends.
                    session.end_output();
                    if entry.is_some() {
                        detach::leave_terminal(session.outcome());
                    }
                }
                entry.as_mut().is_none_or(|entry| entry.goes_on(is_in_use))
            }
        };
        if goes_on(session, false) {
            self.served.run(&self.socket, |damage, is_in_use| {
                damage.into_iter().for_each(|damage| report(session, &machine, damage));
                goes_on(session, is_in_use)
            })?;
        }
        Ok(())
    }
}

/// Returns the disks to be served. A disk whose content is lost is recorded as a failure, and the others are served.
fn chosen(point: &OpenPoint, names: &[String], session: &mut Session) -> Result<Vec<ManifestDisk>, CliError> {
    let has = |name: &String| point.manifest.disks.iter().any(|disk| disk.disk == *name);
    if let Some(unknown) = names.iter().find(|name| !has(name)) {
        let known: Vec<&str> = point.manifest.disks.iter().map(|disk| disk.disk.as_str()).collect();
        let message = format!("point {} has no disk {unknown}; it has {}", point.id.short(), known.join(", "));
        return Err(CliError::new(Code::NotFound, message));
    }
    let wanted = point.manifest.disks.iter().filter(|disk| names.is_empty() || names.contains(&disk.disk));
    let mut chosen = Vec::new();
    for disk in wanted {
        match point.broken.get(&disk.disk) {
            None => chosen.push(disk.clone()),
            Some(reason) => {
                let machine = Some(point.manifest.machine.clone());
                let about = About { machine, disk: Some(disk.disk.clone()), ..About::default() };
                session.fail(about, CliError::new(Code::Damage, reason.clone()));
            }
        }
    }
    if chosen.is_empty() {
        return Err(CliError::new(Code::Damage, format!("no disk of point {} can be served", point.id.short())));
    }
    Ok(chosen)
}

/// Reports damage that was found while reading.
pub(super) fn report(session: &mut Session, machine: &str, damage: Damage) {
    let (offset, length) = (damage.offset_bytes.unwrap_or_default(), damage.length_bytes.unwrap_or_default());
    let message = format!("bytes {offset} to {} cannot be read: {}", offset + length, damage.error);
    let about = About { machine: Some(machine.to_owned()), disk: damage.disk, ..About::default() };
    session.fail(
        about,
        CliError::new(Code::Damage, message).hint("run 'kvmb verify --all' to see which points are affected"),
    );
}

fn end_of(lease: Duration) -> DateTime<FixedOffset> {
    let lease = chrono::TimeDelta::from_std(lease).unwrap_or(chrono::TimeDelta::days(36500));
    (Local::now() + lease).fixed_offset()
}

/// The state file with which `release` finds a background server; removed when the server ends.
struct ServerFile {
    runtime: RuntimeDirs,
    state: ServedState,
    lease: Duration,
}

impl ServerFile {
    /// Whether the server continues. Its lease is renewed while a client is connected.
    fn goes_on(&mut self, is_in_use: bool) -> bool {
        let now = Local::now().fixed_offset();
        if !is_in_use {
            return self.state.lease_ends_at > now;
        }
        let renewed = end_of(self.lease);
        // Renew in steps, so that the file is not written ten times per second.
        let step = chrono::TimeDelta::from_std((self.lease / 4).min(Duration::from_secs(30))).unwrap_or_default();
        if renewed - self.state.lease_ends_at >= step {
            self.state.lease_ends_at = renewed;
            if let Err(error) = self.state.save(&self.runtime) {
                tracing::warn!("the lease of server {} cannot be renewed: {error}", self.state.id);
            }
        }
        true
    }
}

impl Drop for ServerFile {
    fn drop(&mut self) {
        if let Err(error) = self.state.clear(&self.runtime) {
            tracing::warn!("{error}");
        }
    }
}
