//! Which server is meant, and how to get there.

use crate::cli::args::repo::{OWN_FOLDER, RepoArgs};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::ssh_access;
use crate::storage::sftp::{SftpAddress, SshContext};
use clap::Args;

/// The server that is meant.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Accept the host key with this SHA-256 fingerprint, and add it to known_hosts.
    ///
    /// Run 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on the server to show its fingerprint.
    #[arg(long, value_name = "FINGERPRINT")]
    pub(super) accept_host_key: Option<String>,

    #[command(flatten)]
    pub(super) repo: RepoArgs,
}

/// The server, and how to get there.
pub(super) struct Server {
    pub(super) target: SftpAddress,
    pub(super) ssh_context: SshContext,
    /// The repository's folder in the target, should that hold other things.
    pub(super) below: Option<&'static str>,
}

impl ServerArgs {
    /// What is known of the server.
    pub(super) fn open(&self, context: &Context) -> Result<Server, CliError> {
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
        let ssh_context =
            ssh_access::ssh_context(context, self.repo.ssh_password_file.as_deref(), self.accept_host_key.as_deref())?;
        let is_configured =
            configured.is_some_and(|configured| SftpAddress::parse(&configured).as_ref() == Ok(&target));
        Ok(Server { target, ssh_context, below: is_configured.then_some(OWN_FOLDER) })
    }
}
