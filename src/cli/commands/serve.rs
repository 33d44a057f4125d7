//! `kvmb serve`

use super::serving::{Serving, ServingPhase, ServingRequest};
use crate::capture::offline::qemu_user::named_owner;
use crate::capture::share_freed_memory;
use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::duration;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use crate::ops::serve::to_record;
use crate::record::Record;
use std::path::PathBuf;
use std::time::Duration;

/// Serve the disks of a restore point over NBD, without restoring it.
///
/// Prints a 'disk' record with an NBD URI ('nbd') for each disk, and serves until Ctrl-C: read-only, each chunk is
/// verified before it is sent. Reading damaged data fails with an I/O error and is reported. Any NBD client can be
/// used: nbdinfo, nbdcopy, qemu-img, QEMU, guestfish.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb serve vm1@latest -r /backup/kvm
  kvmb serve vm1 --detach --json | jq -r .nbd | xargs -n 1 nbdinfo
  kvmb serve vm1@2026-11-20 --disk vda --socket /run/vda.sock
  nbdcopy 'nbd+unix:///vda?socket=/run/vda.sock' vda.img
  kvmb release vm1                                end the detached server")]
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

    /// Make this user and group the owner of the socket, so that QEMU can open it: libvirt-qemu:kvm. Other users cannot
    /// connect (mode 0600).
    #[arg(long, value_name = "USER:GROUP", value_parser = owner)]
    owner: Option<(u32, u32)>,

    /// Accept writes, and discard them when the server ends.
    #[arg(long)]
    writable: bool,

    /// Serve in the background, until 'kvmb release' or until the lease expires.
    #[arg(long)]
    detach: bool,

    /// How long a detached server stays open without a connected client. Default: 6h.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "6h", hide_default_value = true,
        requires = "detach")]
    lease: Duration,

    /// The key of the repository comes through standard input.
    #[arg(long, hide = true)]
    handed_key: bool,

    #[command(flatten)]
    repo: RepoArgs,
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    named_owner(text).ok_or_else(|| "expected a user and a group of this host, such as libvirt-qemu:kvm".to_owned())
}

impl ServeArgs {
    /// Whether the process should detach from its terminal.
    pub(crate) fn wants_to_detach(&self) -> bool {
        self.detach
    }

    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        share_freed_memory();
        let request = ServingRequest {
            point: &self.point,
            disks: &self.disks,
            socket: self.socket.as_deref(),
            owner: self.owner,
            writable: self.writable,
            lease: self.detach.then_some(self.lease),
        };
        let repo = match self.handed_key {
            true => self.repo.open_with_handed_key(context)?,
            false => self.repo.open(context)?,
        };
        let serving = Serving::open(context, repo, request, session)?;
        for disk in serving.disks() {
            session.done(Record::Disk(to_record(serving.point(), disk, serving.socket(), serving.served())));
        }
        serving.run(session, |_| ServingPhase::Ready)
    }
}
