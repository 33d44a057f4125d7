//! `kvmb snapshot`

use crate::capture::{self, CaptureFile, CloseRequest, RuntimeDirs, close_capture};
use crate::cli::args::capture::CaptureArgs;
use crate::cli::args::machine::{self, Selection};
use crate::cli::args::repo::RepoArgs;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::dry_run::{NO_DISK_TO_CAPTURE, show_dry_run};
use crate::cli::failure::CliError;
use crate::cli::session::{About, Session};
use crate::ops::locked_repo::LockedRepo;
use crate::ops::snapshot::{is_without_disks, snapshot};
use crate::ops::{Monitor, inventory};
use crate::record::{Action, Disk, Record};
use serde_json::json;
use std::time::Duration;

/// Open a capture: all disks of a machine at one instant, readable over NBD.
///
/// No libvirt snapshot is created and no disk is changed. A running machine gets a libvirt backup job (pull mode), a
/// stopped machine a read-only qemu-storage-daemon. The capture stays open until 'kvmb release' or until its lease
/// expires. With -r it continues the chain in that repository: a checkpoint is created, and only the changes have to be
/// read. Prints a 'disk' record with an NBD URI for each captured disk. A machine without disks has nothing to capture;
/// an 'action' record reports this.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb snapshot vm1 -r /backup/kvm | kvmb hash | kvmb push -r /backup/kvm | kvmb release
  trap 'kvmb release vm1' EXIT; kvmb snapshot vm1 --json > disks.jsonl
  kvmb disks vm1 | jq -c 'select(.disk == \"vda\")' | kvmb snapshot
  nbdcopy \"$(kvmb snapshot vm1 --disk vda --json | jq -r .nbd)\" vda.raw; kvmb release vm1")]
pub(crate) struct SnapshotArgs {
    /// Machine names or globs. Without names, 'machine' or 'disk' records are read from standard input.
    #[arg(value_name = "NAME", add = complete::machines())]
    names: Vec<String>,

    /// Show what would be captured without doing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,

    #[command(flatten)]
    capture: CaptureArgs,
}

impl SnapshotArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let selections = selections(context, &self.names, session)?;
        if self.dry_run {
            show_dry_run(context, selections, &self.capture, None, session);
            return Ok(());
        }
        // Report a wrong repository or password before touching a machine.
        let open = match self.repo.is_named() {
            true => Some(LockedRepo::shared(&self.repo.open(context)?, &context.stop)?),
            false => None,
        };
        let runtime = context.runtime()?;
        let batch = format!("b-{:08x}", rand::random::<u32>());
        let batch_machines = selections.len();
        let mut opened_ones: Vec<About> = Vec::new();
        for selection in selections {
            let mut about =
                About { connect: selection.connect.clone(), machine: Some(selection.name.clone()), ..About::default() };
            let opened = (|| -> Result<Opened, CliError> {
                crate::ops::Stop::check(&context.stop)?;
                let hypervisor = context.hypervisor(selection.connect.as_deref())?;
                let machine = hypervisor.machine(&selection.machine)?;
                about = About::machine(hypervisor.uri(), machine.name());
                let request = self.capture.request(context, &selection)?;
                if is_without_disks(&machine, &request)? {
                    let (connect, uuid) = (hypervisor.uri(), machine.uuid());
                    let extra =
                        json!({ "connect": connect, "uuid": uuid, "batch": batch, "batch_machines": batch_machines });
                    return Ok(Opened::Nothing(Action {
                        action: "snapshot".into(),
                        target: machine.name().to_owned(),
                        changed: false,
                        reason: NO_DISK_TO_CAPTURE.to_owned(),
                        dry_run: false,
                        extra: extra.as_object().cloned().unwrap_or_default(),
                    }));
                }
                let state = snapshot(&runtime, &machine, &request, open.as_ref().map(LockedRepo::view))?;
                for missing in &state.missing {
                    let (machine, part) = (&state.machine, missing.role.words());
                    context.monitor.warn(&format!("{machine} is captured without its {part}: {}", missing.reason));
                }
                Ok(Opened::Disks(inventory::captured(&state)?))
            })();
            match opened {
                Ok(Opened::Nothing(action)) => session.done(Record::Action(action)),
                Ok(Opened::Disks(disks)) => {
                    let capture = disks.first().and_then(|disk| disk.capture.clone());
                    opened_ones.push(About { capture, ..about });
                    for disk in disks {
                        let (batch, batch_machines) = (Some(batch.clone()), Some(batch_machines));
                        session.done(Record::Disk(Disk { batch, batch_machines, ..disk }));
                    }
                }
                Err(error) => session.fail(about, error),
            }
        }
        if context.stop.requested() {
            end_all(&runtime, opened_ones, session);
        }
        Ok(())
    }
}

/// The result of opening a machine.
enum Opened {
    /// The captured disks.
    Disks(Vec<Disk>),
    /// The machine has no disks to capture.
    Nothing(Action),
}

/// Closes the captures of an interrupted run, unless a later stage still reads them; that stage will close them.
fn end_all(runtime: &RuntimeDirs, opened: Vec<About>, session: &mut Session) {
    let request = CloseRequest { wait: Duration::from_secs(5), ..CloseRequest::default() };
    for about in opened {
        let file = about.capture.as_ref().map(|id| CaptureFile::open(runtime, id));
        let ended = file.map(|file| file.and_then(|file| close_capture(runtime, None, file, &request)));
        match ended {
            Some(Ok(_)) => session.fail(about, crate::ops::Error::Interrupted),
            Some(Err(capture::Error::Held { .. } | capture::Error::NoSuchCapture { .. })) | None => {}
            Some(Err(error)) => session.fail(about, error),
        }
    }
}

/// Returns the machines that were named, or else those on standard input. Closes libvirt before it returns.
pub(crate) fn selections(
    context: &Context,
    names: &[String],
    session: &mut Session,
) -> Result<Vec<Selection>, CliError> {
    if names.is_empty() {
        return machine::from_stdin(context, session);
    }
    let hypervisor = context.hypervisor(None)?;
    let machines = machine::find(&hypervisor, names, session);
    Ok(machine::select(&hypervisor, &machines))
}
