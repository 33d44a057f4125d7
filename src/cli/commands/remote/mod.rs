//! `kvmb remote`

mod http_setup;
mod http_test;
mod server;
mod setup;
mod test;

pub(in crate::cli::commands) use http_test::of_object_lock;

use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use clap::Args;

/// Set up and test a backup server.
///
/// A server needs only SSH with SFTP. REST servers and buckets are supported as well. Default: the backup_host of the
/// configuration.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvmb remote setup -r sftp://kvm@backup.example.com//srv/kvm     once, on a terminal
  kvmb remote setup -r s3:https://s3.example.com/bucket/kvm       keeps the access key for scheduled backups
  kvmb remote test -r sftp://kvm@backup.example.com//srv/kvm")]
pub(crate) struct RemoteArgs {
    #[command(subcommand)]
    command: RemoteCommand,
}

#[derive(Debug, clap::Subcommand)]
enum RemoteCommand {
    Setup(setup::SetupArgs),
    Test(test::TestArgs),
}

impl RemoteArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        match self.command {
            RemoteCommand::Setup(args) => args.run(context, session),
            RemoteCommand::Test(args) => args.run(context, session),
        }
    }
}
