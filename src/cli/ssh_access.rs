//! Settings for SSH servers, and the credentials and answers for them.

use crate::cli::args::repo::{RepoArgs, storage_error};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::folders::{self, data_folder};
use crate::cli::http_access::{http_context, s3_options};
use crate::cli::table::printable;
use crate::cli::terminal::prompt;
use crate::cli::terminal::secret;
use crate::cli::terminal::stderr::say;
use crate::config::Ssh;
use crate::repo::Password;
use crate::storage::sftp::{Credentials, Secret, ShownKey, SshContext};
use crate::storage::{AccessContext, Storage};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError};

use std::time::Duration;

/// Returns the settings for SSH. Without `password_file`, a password comes from the variables, then from the
/// configuration, then from the user. `accepted` is the fingerprint of a host key that the user has accepted.
pub(crate) fn ssh_context(
    context: &Context,
    password_file: Option<&Path>,
    accepted: Option<&str>,
) -> Result<SshContext, CliError> {
    let mut ssh_context = SshContext::new(user_name());
    ssh_context.home = folders::home();
    ssh_context.agent_socket = secret::variable("SSH_AUTH_SOCK").map(PathBuf::from);
    ssh_context.variable = |name| std::env::var(name).ok();
    let ssh = &context.config().ssh;
    ssh_context.own_key = Some(match &ssh.identity_file {
        Some(file) => file.value().0.clone(),
        None => own_key()?,
    });
    if let Some(connections) = ssh.connections {
        ssh_context.connections = usize::try_from(connections.get()).unwrap_or(ssh_context.connections);
    }
    if let Some(timeout) = &ssh.progress_timeout {
        ssh_context.timeouts.progress = timeout.value().0;
    }
    ssh_context.stop = context.stop.flag();
    ssh_context.credentials = Arc::new(TerminalCredentials {
        file: password_file.filter(|file| !file.as_os_str().is_empty()).map(Path::to_owned),
        config: ssh.clone(),
        given: OnceLock::new(),
        accepted: accepted.map(bare),
        can_answer: prompt::possible(context),
        limit: context.password_limit(),
    });
    Ok(ssh_context)
}

/// Returns a fingerprint without `SHA256:` and padding.
fn bare(fingerprint: &str) -> String {
    let fingerprint = fingerprint.trim();
    fingerprint.strip_prefix("SHA256:").unwrap_or(fingerprint).trim_end_matches('=').to_owned()
}

/// Returns the current user's name. Looks it up by user ID, because variables may be stale after a change of user.
fn user_name() -> String {
    let number = rustix::process::geteuid().as_raw();
    let named = uzers::get_user_by_uid(number).map(|user| user.name().to_string_lossy().into_owned());
    named
        .or_else(|| secret::variable("USER"))
        .or_else(|| secret::variable("LOGNAME"))
        .unwrap_or_else(|| number.to_string())
}

/// Returns the path of kvmb's own SSH key.
fn own_key() -> Result<PathBuf, CliError> {
    Ok(data_folder()?.join("ssh/id_ed25519"))
}

/// Credentials that were provided in advance, or that the user types at a terminal.
#[derive(Debug)]
struct TerminalCredentials {
    file: Option<PathBuf>,
    /// The SHA-256 fingerprint of an accepted host key, without prefix.
    accepted: Option<String>,
    config: Ssh,
    /// The secret from a file, command or variable. Read once, and only when it is needed.
    given: OnceLock<Option<Password>>,
    can_answer: bool,
    /// Time limit for reading a secret from a command or a file.
    limit: Duration,
}

impl TerminalCredentials {
    fn given(&self) -> Result<Option<Secret>, String> {
        let given = match self.given.get() {
            Some(given) => given,
            None => {
                let read = self.read().map_err(|error| error.message)?;
                self.given.get_or_init(|| read)
            }
        };
        Ok(given.as_ref().map(|password| Secret::new(String::from_utf8_lossy(password.as_bytes()).into_owned())))
    }

    fn read(&self) -> Result<Option<Password>, CliError> {
        if let Some(file) = &self.file {
            return secret::line_from_file(file, self.limit).map(Some);
        }
        if let Some(command) = secret::variable("KVMB_SSH_PASSWORD_COMMAND") {
            return secret::line_from_command(&command, "$KVMB_SSH_PASSWORD_COMMAND", self.limit).map(Some);
        }
        if let Some(password) = secret::variable("KVMB_SSH_PASSWORD") {
            return Ok(Some(Password::new(password)));
        }
        if let Some(file) = &self.config.password_file {
            return secret::line_from_file(&file.value().0, self.limit).map(Some);
        }
        let origin = "ssh.password_command of the configuration";
        let command = self.config.password_command.as_ref();
        command.map(|command| secret::line_from_command(command.text(), origin, self.limit)).transpose()
    }

    /// Returns the provided secret, or asks the user.
    fn secret(&self, question: &str) -> Result<Option<Secret>, String> {
        match self.given()? {
            None if self.can_answer => {
                prompt::password(question).map(|text| Some(Secret::new(text))).map_err(|error| error.message)
            }
            given => Ok(given),
        }
    }
}

impl Credentials for TerminalCredentials {
    fn password(&self, account: &str) -> Result<Option<Secret>, String> {
        self.secret(&format!("Password for {account}"))
    }

    fn passphrase(&self, key_file: &Path) -> Result<Option<Secret>, String> {
        match self.given()? {
            // As with ssh, an empty answer skips this key.
            None if self.can_answer => {
                let question = format!("Passphrase of the key {}", key_file.display());
                let typed = prompt::passphrase(&question).map_err(|error| error.message)?;
                Ok(Some(typed).filter(|typed| !typed.is_empty()).map(Secret::new))
            }
            given => Ok(given),
        }
    }

    fn answer(&self, account: &str, question: &str, hidden: bool) -> Result<Option<Secret>, String> {
        let question = format!("{account} asks: {}", printable(question));
        match hidden {
            true => self.secret(&question),
            false if self.can_answer => prompt::text(&question, "", &|_| Ok(()))
                .map(|text| Some(Secret::new(text)))
                .map_err(|error| error.message),
            false => Ok(None),
        }
    }

    fn was_wrong(&self) -> bool {
        let typed = self.can_answer && matches!(self.given(), Ok(None));
        if typed {
            say("kvmb: wrong password or passphrase; try again");
        }
        typed
    }

    fn accepts(&self, key: &ShownKey) -> Result<bool, String> {
        if let Some(accepted) = &self.accepted {
            // The user compared the key that was given; any other key must be refused.
            return Ok(*accepted == bare(&key.fingerprint));
        }
        if !self.can_answer {
            return Ok(false);
        }
        say(&format!("kvmb: the host key of {} is not known. Its {} key fingerprint is:", key.server, key.algorithm));
        say(&format!("kvmb:   {}", key.fingerprint));
        say("kvmb: compare it with the output of 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on the server");
        let question = format!("Does it match (it will be added to {})?", key.known_hosts.display());
        prompt::confirm(&question, false).map_err(|error| error.message)
    }
}

impl Context {
    /// Returns the storage of a repository address. The same address gives the same storage, which shares its
    /// connections.
    pub(crate) fn storage(&self, url: &str, repo: &RepoArgs) -> Result<Arc<dyn Storage>, CliError> {
        let mut storages = self.storages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(storage) = storages.get(url) {
            return Ok(Arc::clone(storage));
        }
        let ssh = ssh_context(self, repo.ssh_password_file.as_deref(), None)?;
        let access = AccessContext { ssh, http: http_context(self, repo), s3: s3_options(self, repo) };
        let storage = crate::storage::open(url, &access).map_err(storage_error)?;
        storages.insert(url.to_owned(), Arc::clone(&storage));
        Ok(storage)
    }
}
