//! `kvmb remote`

mod setup;
mod test;

use crate::cli::Context;
use crate::cli::failure::CliError;
use crate::cli::repo_args::{OWN_FOLDER, RepoArgs};
use crate::cli::session::Session;
use crate::cli::ssh_access;
use crate::storage::sftp::{SftpAddress, SshContext};
use clap::Args;

/// Set up and test a backup server (SSH).
///
/// The server needs only SSH with SFTP. Default: the backup_host of the configuration.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvmb remote setup -r sftp://kvm@backup.example.com//srv/kvm     once, on a terminal
  kvmb remote test -r sftp://kvm@backup.example.com//srv/kvm")]
pub struct RemoteArgs {
    #[command(subcommand)]
    command: RemoteCommand,
}

#[derive(Debug, clap::Subcommand)]
enum RemoteCommand {
    Setup(setup::SetupArgs),
    Test(test::TestArgs),
}

impl RemoteArgs {
    pub fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        match self.command {
            RemoteCommand::Setup(args) => args.run(context, session),
            RemoteCommand::Test(args) => args.run(context, session),
        }
    }
}

/// The server that is meant.
#[derive(Debug, Args)]
struct ServerArgs {
    /// Accept the host key with this SHA-256 fingerprint, and add it to known_hosts.
    ///
    /// Run 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on the server to show its fingerprint.
    #[arg(long, value_name = "FINGERPRINT")]
    accept_host_key: Option<String>,

    #[command(flatten)]
    repo: RepoArgs,
}

/// The server, and how to get there.
struct Server {
    target: SftpAddress,
    access: SshContext,
    /// The repository's folder in the target, should that hold other things.
    below: Option<&'static str>,
}

impl ServerArgs {
    fn open(&self, context: &Context) -> Result<Server, CliError> {
        let configured = context.config().remote_url();
        // Without -r and its variable, it is the configuration's first repository, which may be a folder.
        let is_named = self.repo.is_named() && self.repo.repo != context.config().primary_repo();
        let url = match configured.clone().filter(|_| !is_named) {
            Some(configured) => configured,
            None => self.repo.url()?,
        };
        if !url.starts_with("sftp:") {
            return Err(CliError::usage(format!("{url} is not a repository on a server"))
                .hint("specify it with -r sftp://user@host//folder"));
        }
        // The storage knows what is no address, and does not repeat a password.
        context.storage(&url, self.repo.ssh_password_file.as_deref())?;
        let target = SftpAddress::parse(&url).map_err(CliError::usage)?;
        let access =
            ssh_access::access(context, self.repo.ssh_password_file.as_deref(), self.accept_host_key.as_deref())?;
        let is_configured =
            configured.is_some_and(|configured| SftpAddress::parse(&configured).as_ref() == Ok(&target));
        Ok(Server { target, access, below: is_configured.then_some(OWN_FOLDER) })
    }
}
