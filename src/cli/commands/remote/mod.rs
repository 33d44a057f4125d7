//! `kvmb remote`

mod server;
mod setup;
mod test;

use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use clap::Args;

/// Set up and test a backup server (SSH).
///
/// The server needs only SSH with SFTP. Default: the backup_host of the configuration.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvmb remote setup -r sftp://kvm@backup.example.com//srv/kvm     once, on a terminal
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
