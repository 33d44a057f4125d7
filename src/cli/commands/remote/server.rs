//! The backup server, and the connection to it.

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

/// The server, and how to connect to it.
pub(super) struct RemoteServer {
    pub(super) target: SftpAddress,
    pub(super) ssh_context: SshContext,
    /// The repository's folder below the address, if that contains other files.
    pub(super) below: Option<&'static str>,
}

impl ServerArgs {
    /// Returns the repository if it is on an HTTP server.
    pub(super) fn over_http(&self, context: &Context) -> Result<Option<RepoArgs>, CliError> {
        let url = self.url(context)?;
        let is_http = ["rest:", "s3:"].iter().any(|scheme| url.starts_with(scheme));
        Ok(is_http.then(|| RepoArgs { repo: Some(url), ..self.repo.clone() }))
    }

    /// Returns the given address, or else that of the configuration.
    fn url(&self, context: &Context) -> Result<String, CliError> {
        let config = context.config();
        // Without -r and its variable, this is the configuration's primary repository, which may be a local folder.
        let is_named = self.repo.is_named() && self.repo.repo != config.primary_repo();
        match config.remote_url().or_else(|| config.second_repo()).filter(|_| !is_named) {
            Some(configured) => Ok(configured),
            None => self.repo.url(),
        }
    }

    /// Returns the server's address and its SSH settings.
    pub(super) fn open(&self, context: &Context) -> Result<RemoteServer, CliError> {
        let configured = context.config().remote_url();
        let url = self.url(context)?;
        if !url.starts_with("sftp:") {
            return Err(CliError::usage(format!("{url} is not a repository on a server"))
                .hint("specify it with -r sftp://user@host//folder"));
        }
        // Reports an invalid address, without repeating a password in it.
        context.storage(&url, &self.repo)?;
        let target = SftpAddress::parse(&url).map_err(CliError::usage)?;
        let ssh_context =
            ssh_access::ssh_context(context, self.repo.ssh_password_file.as_deref(), self.accept_host_key.as_deref())?;
        let is_configured =
            configured.is_some_and(|configured| SftpAddress::parse(&configured).as_ref() == Ok(&target));
        Ok(RemoteServer { target, ssh_context, below: is_configured.then_some(OWN_FOLDER) })
    }
}
