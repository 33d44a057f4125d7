//! `kvmb serve`

use crate::capture::offline::qemu_user::named_owner;
use crate::capture::process::ServerProcess;
use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::duration;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::detach;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::{About, Session};
use crate::ops::manifest::ManifestDisk;
use crate::ops::points::{self, OpenPoint, PointName};
use crate::ops::repo_lock::lock_for_reading;
use crate::ops::serve::registry::ServedState;
use crate::ops::serve::socket::PrivateSocket;
use crate::ops::serve::{ServeRequest, ServedPoint, new_socket_folder, to_record};
use crate::record::{Damage, Record};
use chrono::{DateTime, FixedOffset, Local};
use std::path::PathBuf;
use std::time::Duration;

/// Serve the disks of a restore point over NBD, without restoring it.
///
/// Prints a 'disk' record with an NBD URI ('nbd') for each disk, and serves until Ctrl-C: read-only, each chunk
/// verified before a byte of it leaves. What is damaged reads as an I/O error, and is reported. Any NBD client can
/// read: nbdinfo, nbdcopy, qemu-img, QEMU, guestfish.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb serve vm1@latest -r /backup/kvm
  kvmb serve vm1 --detach --json | jq -r .nbd | xargs -n 1 nbdinfo
  kvmb serve vm1@2026-11-20 --disk vda --socket /run/vda.sock
  nbdcopy 'nbd+unix:///vda?socket=/run/vda.sock' vda.img
  kvmb release vm1                                ends what was detached")]
pub(crate) struct ServeArgs {
    /// A point: an id or its beginning, NAME, NAME@latest, NAME@2026-11-20, NAME@-2h.
    #[arg(value_name = "POINT", add = complete::points())]
    point: String,

    /// Serve only this disk (repeatable).
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<String>,

    /// Listen on this Unix socket instead of one in kvmb's private folder.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Give the socket to this user, for QEMU to open: libvirt-qemu:kvm. Others cannot connect (mode 0600).
    #[arg(long, value_name = "USER:GROUP", value_parser = owner)]
    owner: Option<(u32, u32)>,

    /// Accept writes, and forget them when the server ends.
    #[arg(long)]
    writable: bool,

    /// Serve in the background, until 'kvmb release' or the end of the lease.
    #[arg(long)]
    detach: bool,

    /// How long a detached server waits for clients: 6h unless set. While one is connected, the time does not run.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "6h", hide_default_value = true,
        requires = "detach")]
    lease: Duration,

    #[command(flatten)]
    repo: RepoArgs,
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    named_owner(text).ok_or_else(|| "a user and a group of this host, as libvirt-qemu:kvm".to_owned())
}

impl ServeArgs {
    /// Whether the process is to leave its terminal.
    pub(crate) fn wants_to_detach(&self) -> bool {
        self.detach
    }

    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let repo = self.repo.open(context)?;
        let _lock = lock_for_reading(&repo, &context.monitor, &context.stop)?;
        let index = points::load_index_for_reading(&repo, &context.monitor)?;
        let (found, damaged) = points::list(&repo)?;
        let name = PointName::parse(&self.point, Local::now());
        let found = points::find_surely(&repo, &found, &damaged, &name)?;
        let point = points::open_with_damage(&repo, &index, &found)?;
        let disks = self.chosen(&point, session)?;

        let runtime = context.runtime()?;
        let overlays = self.writable.then(|| runtime.scratch_folder());
        let request = ServeRequest { disks: &disks, overlays };
        let served = ServedPoint::new(&repo, index, &point, request, &context.stop)?;
        let id = format!("s-{:08x}", rand::random::<u32>());
        let folder = self.socket.is_none().then(|| new_socket_folder(&runtime, &id)).transpose()?;
        let path = self.socket.clone().or_else(|| Some(folder.as_ref()?.path().join("nbd"))).unwrap_or_default();
        let path = std::path::absolute(&path).map_err(crate::ops::Error::io("find", &path))?;
        let socket = PrivateSocket::bind(&path, self.owner)?;
        let mut registered = Registered(None);
        if self.detach {
            let state = ServedState {
                id: id.clone(),
                machine: point.manifest.machine.clone(),
                point: point.id.to_string(),
                repo: repo.url(),
                socket: path.clone(),
                process: ServerProcess::this(),
                lease_ends_at: end_of(self.lease),
            };
            state.save(&runtime)?;
            registered.0 = Some((runtime.clone(), state));
        }
        for disk in &disks {
            let served = self.detach.then_some(id.as_str());
            session.done(Record::Disk(to_record(&point, disk, &path, served)));
        }
        // Whoever reads the records is to begin now, not when the server has ended.
        session.end_output();
        if self.detach {
            detach::leave_terminal(session.outcome());
        }
        let machine = point.manifest.machine.clone();
        served.run(&socket, |damage, is_in_use| {
            damage.into_iter().for_each(|damage| report(session, &machine, damage));
            registered.goes_on(is_in_use, self.lease)
        })?;
        Ok(())
    }

    /// The disks to be served; one whose content is lost is a failure, and the others are served.
    fn chosen<'p>(&self, point: &'p OpenPoint, session: &mut Session) -> Result<Vec<&'p ManifestDisk>, CliError> {
        let has = |name: &String| point.manifest.disks.iter().any(|disk| disk.disk == *name);
        if let Some(unknown) = self.disks.iter().find(|name| !has(name)) {
            let known: Vec<&str> = point.manifest.disks.iter().map(|disk| disk.disk.as_str()).collect();
            let message = format!("point {} has no disk {unknown}; it has {}", point.id.short(), known.join(", "));
            return Err(CliError::new(Code::NotFound, message));
        }
        let wanted =
            point.manifest.disks.iter().filter(|disk| self.disks.is_empty() || self.disks.contains(&disk.disk));
        let mut chosen = Vec::new();
        for disk in wanted {
            match point.broken.get(&disk.disk) {
                None => chosen.push(disk),
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
}

/// What was met while somebody read it.
fn report(session: &mut Session, machine: &str, damage: Damage) {
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

/// The file by which `release` finds a detached server; removed with it.
struct Registered(Option<(crate::capture::RuntimeDirs, ServedState)>);

impl Registered {
    /// Whether the server goes on: its lease is renewed while somebody is connected.
    fn goes_on(&mut self, is_in_use: bool, lease: Duration) -> bool {
        let Some((runtime, state)) = &mut self.0 else { return true };
        let now = Local::now().fixed_offset();
        if !is_in_use {
            return state.lease_ends_at > now;
        }
        let renewed = end_of(lease);
        // Every look would be a file written ten times a second.
        let step = chrono::TimeDelta::from_std((lease / 4).min(Duration::from_secs(30))).unwrap_or_default();
        if renewed - state.lease_ends_at >= step {
            state.lease_ends_at = renewed;
            if let Err(error) = state.save(runtime) {
                tracing::warn!("the lease of server {} cannot be renewed: {error}", state.id);
            }
        }
        true
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some((runtime, state)) = &self.0
            && let Err(error) = state.clear(runtime)
        {
            tracing::warn!("{error}");
        }
    }
}
