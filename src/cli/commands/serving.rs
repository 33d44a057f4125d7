//! What `serve` and `mount` share: a point, its disks behind a private socket, and the entry by which `release` finds a
//! server that runs in the background.

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
use crate::ops::serve::{DiskView, ServeRequest, ServedPoint, SocketFolder, new_socket_folder};
use crate::record::Damage;
use crate::repo::{RepoLock, Repository};
use chrono::{DateTime, FixedOffset, Local};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is to be served, and how.
pub(super) struct ServingRequest<'a> {
    /// The point, as the user names it.
    pub(super) point: &'a str,
    /// Only these disks; empty means all.
    pub(super) disks: &'a [String],
    /// Another place for the socket than kvmb's private folder.
    pub(super) socket: Option<&'a Path>,
    /// The user and group of the socket, if it is for another user.
    pub(super) owner: Option<(u32, u32)>,
    /// Whether writes are accepted, and forgotten in the end.
    pub(super) writable: bool,
    pub(super) view: DiskView,
    /// How long a server in the background waits for clients; none serves in the foreground.
    pub(super) lease: Option<Duration>,
}

/// What whoever serves a point sees of his own part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServingPhase {
    /// Not everything is there yet.
    Preparing,
    /// All is there.
    Ready,
    /// It is over.
    End,
}

/// A point that clients can connect to.
pub(super) struct Serving {
    point: OpenPoint,
    disks: Vec<ManifestDisk>,
    served: ServedPoint,
    // Dropped in this order: the entry, the socket, its folder, the lock.
    entry: Option<ServerFile>,
    socket: PrivateSocket,
    _folder: Option<SocketFolder>,
    _lock: Option<RepoLock>,
}

impl Serving {
    /// Opens the point, and listens. Clients are answered by [`Serving::run`].
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
        let serve = ServeRequest { disks: &wanted, overlays, view: request.view };
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

    /// The point.
    pub(super) fn point(&self) -> &OpenPoint {
        &self.point
    }

    /// Its disks that are served.
    pub(super) fn disks(&self) -> &[ManifestDisk] {
        &self.disks
    }

    /// Where clients connect.
    pub(super) fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// What `release` ends it by, if it runs in the background.
    pub(super) fn served(&self) -> Option<&str> {
        self.entry.as_ref().map(|entry| entry.state.id.as_str())
    }

    /// Serves until the program is interrupted, the lease is over or `look` ends it; it is called some ten times a
    /// second. From the first time that it says [`ServingPhase::Ready`], the program is in the background if that was
    /// asked for.
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
                    // Whoever reads the records is to begin now, not when the server has ended.
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

/// The disks to be served; one whose content is lost is a failure, and the others are served.
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

/// The errors that occurred while it was read.
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

/// The file by which `release` finds a server in the background; removed with it.
struct ServerFile {
    runtime: RuntimeDirs,
    state: ServedState,
    lease: Duration,
}

impl ServerFile {
    /// Whether the server goes on: its lease is renewed while somebody is connected.
    fn goes_on(&mut self, is_in_use: bool) -> bool {
        let now = Local::now().fixed_offset();
        if !is_in_use {
            return self.state.lease_ends_at > now;
        }
        let renewed = end_of(self.lease);
        // Every look would be a file written ten times a second.
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
