//! `kvmb disks`

use crate::capture::{Hypervisor, Machine};
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::input::stdin_records;
use crate::cli::machine_args;
use crate::cli::session::{About, Session};
use crate::ops::inventory;
use crate::record::Record;

/// List the disks of machines.
///
/// Prints a 'disk' record for each disk. For devices that are not backed up, such as CD-ROM drives, floppy drives
/// and passed-through devices, the record gives the reason.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb disks vm1
  kvmb vms 'web*' | kvmb disks
  kvmb disks vm1 | kvmb hash")]
pub struct DisksArgs {
    /// Machine names or globs. Without names, 'machine' records are read from standard input.
    #[arg(value_name = "NAME", add = complete::machines())]
    names: Vec<String>,
}

impl DisksArgs {
    pub fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if !self.names.is_empty() {
            let hypervisor = context.hypervisor(None)?;
            let machines = machine_args::find(&hypervisor, &self.names, session);
            let listed: Vec<_> = machines.iter().map(|machine| list(&hypervisor, machine)).collect();
            drop(machines);
            hypervisor.close();
            listed.into_iter().for_each(|one| print(one, session));
            return Ok(());
        }
        for record in stdin_records("disks", "machines", &context.stop)? {
            match record? {
                Record::Machine(record) => {
                    let listed = of_record(context, &record);
                    print(listed, session);
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

type Listed = (About, Result<Vec<crate::record::Disk>, CliError>);

fn list(hypervisor: &Hypervisor, machine: &Machine) -> Listed {
    let about = About::machine(hypervisor.uri(), machine.name());
    (about, inventory::disks(hypervisor, machine).map_err(CliError::from))
}

/// Opens libvirt for this one machine only: the stage before may still need it.
fn of_record(context: &Context, record: &crate::record::Machine) -> Listed {
    let about = About::machine(&record.connect, &record.machine);
    let listed = context.hypervisor(Some(&record.connect)).and_then(|hypervisor| {
        let machine = hypervisor.machine(&record.uuid)?;
        Ok(inventory::disks(&hypervisor, &machine)?)
    });
    (about, listed)
}

fn print((about, listed): Listed, session: &mut Session) {
    match listed {
        Ok(disks) => disks.into_iter().for_each(|disk| session.done(Record::Disk(disk))),
        Err(error) => session.fail(about, error),
    }
}
