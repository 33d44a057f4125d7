//! What the storage layer knows about this host and its user: it reads no environment and asks nobody by itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use zeroize::Zeroizing;

/// How many connections to one server are made at most. A server lets no more than 2 MiB be on the way on each, so over
/// a distance several are needed; each may hold a pack in memory.
pub const CONNECTIONS: usize = 6;

/// How to reach servers.
#[derive(Debug, Clone)]
pub struct SshContext {
    /// The folder that `.ssh` is in.
    pub home: Option<PathBuf>,
    /// Who logs in where neither the address nor `ssh_config` says it.
    pub user: String,
    /// The folder of `ssh_config` and `ssh_known_hosts`.
    pub system_folder: PathBuf,
    /// The socket of the ssh-agent, if one runs.
    pub agent_socket: Option<PathBuf>,
    /// kvmb's own key, which `remote setup` makes; used where it is there.
    pub own_key: Option<PathBuf>,
    /// Who knows secrets, and whom to ask.
    pub credentials: Arc<dyn Credentials>,
    /// Raised when the program shall end: then nothing is waited for much longer.
    pub stop: Arc<AtomicBool>,
    /// How long to wait for what.
    pub timeouts: SshTimeouts,
    /// The maximum number of connections to one server.
    pub connections: usize,
}

impl SshContext {
    /// With the usual paths and times, knowing nobody and no secret.
    pub fn new(user: impl Into<String>) -> SshContext {
        SshContext {
            home: None,
            user: user.into(),
            system_folder: PathBuf::from("/etc/ssh"),
            agent_socket: None,
            own_key: None,
            credentials: Arc::new(Nobody),
            stop: Arc::default(),
            timeouts: SshTimeouts::default(),
            connections: CONNECTIONS,
        }
    }
}

/// How long to wait. `ConnectTimeout`, `ServerAliveInterval` and `ServerAliveCountMax` of `ssh_config` win over the
/// first three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SshTimeouts {
    /// For a connection to come about, and for each step of the login.
    pub(crate) connect: Duration,
    /// For a sign of life while something is asked for. The server's SSH answers keep-alives while its disk is busy, so
    /// this measures the network and the server, not the disk.
    pub silence: Duration,
    /// For progress, by a server that shows signs of life: an answer, or bytes in either direction (see
    /// [`super::progress`]). Its disk, or the process that serves files, may be stuck.
    pub progress: Duration,
    /// The interval of keep-alives.
    pub keep_alive: Duration,
    /// For a sign of life once the program shall end: enough to clean up over a network that works.
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
    /// Takes the text over.
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

/// Who knows the secrets, and may ask a person. `Ok(None)` means: no such secret, go on without. The error is shown to
/// the user as it is.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// The password of an account, `user@host`.
    fn password(&self, account: &str) -> Result<Option<Secret>, String>;

    /// The passphrase of a key file.
    fn passphrase(&self, key_file: &Path) -> Result<Option<Secret>, String>;

    /// The answer to a question of the server's; `hidden` says that it must not be seen while it is typed.
    fn answer(&self, account: &str, question: &str, hidden: bool) -> Result<Option<Secret>, String>;

    /// What was answered last let nobody in. Whether to ask once more: a person mistypes, a file does not.
    fn was_wrong(&self) -> bool {
        false
    }

    /// Whether a host key that is nowhere known is the right one.
    fn accepts(&self, key: &ShownKey) -> Result<bool, String>;
}

/// A server's key, for a person to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownKey {
    pub(crate) server: String,
    /// The key's type, as `ssh-ed25519`.
    pub algorithm: String,
    /// Its SHA-256, as OpenSSH prints it.
    pub fingerprint: String,
    /// The known_hosts file that it will be noted in.
    pub(crate) known_hosts: PathBuf,
}

/// Knows nothing and accepts nothing.
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
