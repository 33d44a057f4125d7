//! What the storage layer needs to know about this host and its user. It does not read the environment or prompt
//! itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use zeroize::Zeroizing;

/// The default maximum number of connections to one server. A server allows at most 2 MiB in flight per connection, so
/// high-latency links need several. Each may hold a pack in memory.
pub const CONNECTIONS: usize = 6;

/// How to reach servers.
#[derive(Debug, Clone)]
pub struct SshContext {
    /// The folder that contains `.ssh`.
    pub home: Option<PathBuf>,
    /// The user to log in as if neither the address nor `ssh_config` names one.
    pub user: String,
    /// The folder of `ssh_config` and `ssh_known_hosts`.
    pub system_folder: PathBuf,
    /// The socket of the ssh-agent, if one runs.
    pub agent_socket: Option<PathBuf>,
    /// Returns a variable of the environment, for `${NAME}` in `ssh_config`.
    pub variable: fn(&str) -> Option<String>,
    /// kvmb's own key, which `remote setup` generates; used if it exists.
    pub own_key: Option<PathBuf>,
    /// The source of secrets.
    pub credentials: Arc<dyn Credentials>,
    /// Set when the program is ending: then timeouts are short.
    pub stop: Arc<AtomicBool>,
    /// The timeouts.
    pub timeouts: SshTimeouts,
    /// The maximum number of connections to one server.
    pub connections: usize,
}

impl SshContext {
    /// Creates a context with the usual paths and timeouts, and without credentials.
    pub fn new(user: impl Into<String>) -> SshContext {
        SshContext {
            home: None,
            user: user.into(),
            system_folder: PathBuf::from("/etc/ssh"),
            agent_socket: None,
            variable: |_| None,
            own_key: None,
            credentials: Arc::new(Nobody),
            stop: Arc::default(),
            timeouts: SshTimeouts::default(),
            connections: CONNECTIONS,
        }
    }
}

/// Timeouts. `ConnectTimeout`, `ServerAliveInterval` and `ServerAliveCountMax` of `ssh_config` override `connect`,
/// `keep_alive` and `silence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SshTimeouts {
    /// For the connection, and for each step of the login.
    pub(crate) connect: Duration,
    /// For any sign of life while a request is pending. A server answers keep-alives while its disk is busy, so this
    /// measures the network and the server, not the disk.
    pub silence: Duration,
    /// For progress of a server that shows signs of life: a reply, or bytes in either direction (see
    /// [`super::progress`]). Its disk, or the process that serves files, may be stuck.
    pub progress: Duration,
    /// The interval between keep-alives.
    pub keep_alive: Duration,
    /// For any sign of life when the program is ending: enough to clean up over a working network.
    pub(crate) ending: Duration,
}

impl Default for SshTimeouts {
    fn default() -> Self {
        SshTimeouts {
            connect: Duration::from_secs(20),
            silence: Duration::from_secs(60),
            progress: Duration::from_secs(120),
            keep_alive: Duration::from_secs(15),
            ending: Duration::from_secs(3),
        }
    }
}

/// A password or passphrase. It is wiped when dropped and never shown.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }

    pub(in crate::storage) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Provides secrets, and may ask the user. `Ok(None)` means that there is no such secret, and other methods are tried.
/// The error is shown to the user as it is.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// Returns the password of an account, `user@host`.
    fn password(&self, account: &str) -> Result<Option<Secret>, String>;

    /// Returns the passphrase of a key file.
    fn passphrase(&self, key_file: &Path) -> Result<Option<Secret>, String>;

    /// Returns the answer to a question of the server. `hidden` requests that the input is not shown.
    fn answer(&self, account: &str, question: &str, hidden: bool) -> Result<Option<Secret>, String>;

    /// Called when the last answer was wrong. Returns whether to ask again: a person mistypes, a file does not.
    fn was_wrong(&self) -> bool {
        false
    }

    /// Returns whether to accept an unknown host key.
    fn accepts(&self, key: &ShownKey) -> Result<bool, String>;
}

/// A server's host key, for the user to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownKey {
    pub(crate) server: String,
    /// The key's type, such as `ssh-ed25519`.
    pub algorithm: String,
    /// Its SHA-256 fingerprint, as OpenSSH prints it.
    pub fingerprint: String,
    /// The known_hosts file that it will be added to.
    pub(crate) known_hosts: PathBuf,
}

/// Provides no secrets and accepts no keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nobody;

impl Credentials for Nobody {
    fn password(&self, _account: &str) -> Result<Option<Secret>, String> {
        Ok(None)
    }

    fn passphrase(&self, _key_file: &Path) -> Result<Option<Secret>, String> {
        Ok(None)
    }

    fn answer(&self, _account: &str, _question: &str, _hidden: bool) -> Result<Option<Secret>, String> {
        Ok(None)
    }

    fn accepts(&self, _key: &ShownKey) -> Result<bool, String> {
        Ok(false)
    }
}
