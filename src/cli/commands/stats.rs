//! `kvmb stats`

use crate::cli::args::repo::RepoArgs;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::{About, Session};
use crate::ops::points;
use crate::ops::repo_lock::lock_for_reading;
use crate::ops::stats::{Stats, stats};
use crate::record::{Record, Usage};
use crate::repo::DamagedSnapshot;

/// Show the space that each machine takes in a repository.
///
/// Prints a 'usage' record for each machine, the largest first, and one for the repository as a whole. STORED is the
/// data that the points of a machine need, compressed and encrypted; SHARED is the part of it that other machines need
/// as well, and OWN the part that is freed when all points of the machine are removed. GROWTH is what its points of the
/// last 30 days added per day.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb stats -r /backup/kvm
  kvmb stats 'web*' -r /backup/kvm
  kvmb stats --json | jq -r 'select(.machine) | [.own_bytes, .machine] | @tsv' | sort -rn")]
pub(crate) struct StatsArgs {
    /// Machine names or globs. Default: all machines, and the repository as a whole.
    #[arg(value_name = "NAME", add = complete::point_machines())]
    names: Vec<String>,

    #[command(flatten)]
    repo: RepoArgs,
}

impl StatsArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let repo = self.repo.open(context)?;
        let _lock = lock_for_reading(&repo, &context.monitor, &context.stop)?;
        let index = points::load_whole_index(&repo, &context.monitor)?;
        let Stats { machines, total, damaged, unreadable } = stats(&repo, &index, &context.stop)?;
        let name_of = |usage: &Usage| usage.machine.clone().unwrap_or_default();
        let all: Vec<String> = machines.iter().map(name_of).collect();
        for name in self.names.iter().filter(|name| !all.iter().any(|known| points::name_matches(name, known))) {
            let error = points::no_such_point(&repo, all.iter().map(String::as_str), name.clone());
            session.fail(About { machine: Some(name.clone()), ..About::default() }, error);
        }
        let is_wanted = |usage: &Usage| {
            self.names.is_empty() || self.names.iter().any(|name| points::name_matches(name, &name_of(usage)))
        };
        for usage in machines.into_iter().filter(is_wanted) {
            session.done(Record::Usage(usage));
        }
        if self.names.is_empty() {
            session.done(Record::Usage(total));
        }
        for (machine, error) in unreadable {
            session.fail(About { machine: Some(machine), ..About::default() }, error);
        }
        for DamagedSnapshot { id, error } in damaged {
            let message = format!("snapshot {id} cannot be read: {error}");
            session.fail(About::default(), CliError::new(Code::Damage, message));
        }
        Ok(())
    }
}
