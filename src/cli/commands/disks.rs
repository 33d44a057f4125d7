//! `kvmb disks`

use crate::capture::{Hypervisor, Machine};
use crate::cli::args::machine;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::input::stdin_records;
use crate::cli::session::{About, Session};
use crate::ops::snapshot::EXCLUDED_BY_CONFIGURATION;
use crate::ops::{Monitor, inventory};
use crate::record::{Disk, Record};
use std::io::IsTerminal;

/// List the disks of machines.
///
/// Prints a 'disk' record for each; the record of a disk that a backup excludes - a CD-ROM, a floppy, a passed-through
/// device, a disk in excluded_disks of the configuration - contains the reason. Other parts of a machine that a backup
/// would lack - firmware variables that cannot be read, a drive on QEMU's command line - are listed on standard error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb disks vm1
  kvmb vms 'web*' | kvmb disks
  kvmb disks vm1 | kvmb hash")]
pub(crate) struct DisksArgs {
    /// Machine names or globs. Without names, 'machine' records are read from standard input; on a terminal, all
    /// machines are listed.
    #[arg(value_name = "NAME", add = complete::machines())]
    names: Vec<String>,
}

impl DisksArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if !self.names.is_empty() || std::io::stdin().is_terminal() {
            let hypervisor = context.hypervisor(None)?;
            let machines = match &self.names[..] {
                [] => machine::all(&hypervisor, context)?,
                names => machine::find(&hypervisor, names, session),
            };
            let listed: Vec<_> = machines.iter().map(|machine| list(&hypervisor, machine)).collect();
            drop(machines);
            hypervisor.close();
            listed.into_iter().for_each(|one| print(one, context, session));
            return Ok(());
        }
        for record in stdin_records("disks", "machines", &["machine"], &context.stop)? {
            match record? {
                Record::Machine(record) => {
                    let listed = of_record(context, &record);
                    print(listed, context, session);
                }
                Record::Failure(failure) => session.pass_failure(failure),
                other => session.pass(&other),
            }
            if session.is_pointless() {
                break;
            }
        }
        Ok(())
    }
}

type ListedMachine = (About, Result<Inventory, CliError>);

/// The disks of a machine, and what else a backup of it would lack, one sentence each.
struct Inventory {
    disks: Vec<Disk>,
    left_out: Vec<String>,
}

fn list(hypervisor: &Hypervisor, machine: &Machine) -> ListedMachine {
    let about = About::machine(hypervisor.uri(), machine.name());
    (about, inventory_of(hypervisor, machine))
}

fn inventory_of(hypervisor: &Hypervisor, machine: &Machine) -> Result<Inventory, CliError> {
    let disks = inventory::disks(hypervisor, machine)?;
    let mut left_out = Vec::new();
    // The files of another host cannot be inspected.
    if hypervisor.is_local() {
        let (missing, outside) = machine.missing_parts()?;
        let name = machine.name();
        let required = missing
            .iter()
            .map(|part| format!("a backup of {name} would lack its {}: {}", part.role.words(), part.reason));
        let others = outside.iter().map(|file| {
            let part = file.part.replace('_', " ");
            format!("a backup of {name} leaves out the {part} {}: {}", file.origin.display(), file.reason)
        });
        left_out.extend(required.chain(others));
    }
    Ok(Inventory { disks, left_out })
}

/// Opens libvirt for this machine only: the previous stage may still need it.
fn of_record(context: &Context, record: &crate::record::Machine) -> ListedMachine {
    let about = About::machine(&record.connect, &record.machine);
    let listed = context.hypervisor(Some(&record.connect)).and_then(|hypervisor| {
        let machine = hypervisor.machine(&record.uuid)?;
        inventory_of(&hypervisor, &machine)
    });
    (about, listed)
}

fn print((about, listed): ListedMachine, context: &Context, session: &mut Session) {
    match listed {
        Ok(Inventory { disks, left_out }) => {
            for mut disk in disks {
                if disk.included && context.excluded_disks(&disk.machine).contains(&disk.disk) {
                    disk.included = false;
                    disk.skip_reason = Some(EXCLUDED_BY_CONFIGURATION.to_owned());
                }
                session.done(Record::Disk(disk));
            }
            left_out.iter().for_each(|sentence| context.monitor.warn(sentence));
        }
        Err(error) => session.fail(about, error),
    }
}
