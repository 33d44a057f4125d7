//! `kvmb vms`

use crate::cli::args::machine;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::{About, Session};
use crate::ops::inventory;
use crate::record::Record;

/// List machines.
///
/// Prints a 'machine' record for each machine that libvirt knows, running or not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb vms
  kvmb vms 'web*' db1
  kvmb vms --json | jq -r 'select(.state == \"running\").machine'
  kvmb -c qemu:///session vms")]
pub(crate) struct VmsArgs {
    /// Machine names or globs ('web*'). Default: all machines.
    #[arg(value_name = "NAME", add = complete::machines())]
    names: Vec<String>,
}

impl VmsArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let hypervisor = context.hypervisor(None)?;
        let machines = match &self.names[..] {
            [] => machine::all(&hypervisor, context)?,
            names => machine::find(&hypervisor, names, session),
        };
        let mut records = Vec::new();
        for machine in machines {
            let about = About::machine(hypervisor.uri(), machine.name());
            match inventory::machine(&hypervisor, &machine) {
                Ok(record) => records.push(record),
                Err(error) => session.fail(about, error),
            }
        }
        // The next stage of a pipeline opens libvirt too, and the embedded driver admits only one process at a time.
        hypervisor.close();
        for record in records {
            session.done(Record::Machine(record));
        }
        Ok(())
    }
}
