//! Errors of the connection to a server.

use super::proxy::ProxyProblem;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

/// Why a server cannot be used. `server` is always the `host:port` that was connected to.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `~/.ssh/config` or a file that it includes cannot be read.
    #[error("{}: {reason}", path.display())]
    SshConfig { path: PathBuf, reason: String },
    /// The name cannot be resolved.
    #[error("cannot find the address of {host}: {source}")]
    Resolve {
        host: String,
        /// The resolver's error.
        source: io::Error,
    },
    #[error("cannot connect to {server}: {source}")]
    Unreachable {
        server: String,
        /// The error for the last of its addresses.
        source: io::Error,
    },
    /// The peer does not speak SSH, or no common algorithm was found.
    #[error("cannot open an SSH connection to {server}: {reason}")]
    Handshake {
        server: String,
        /// The error of the SSH layer.
        reason: String,
    },
    /// The server sent a text instead of its SSH identification, and closed the connection: sshd does so beyond its
    /// limits of connections.
    #[error("{server} refused the connection: {said}")]
    TurnedAway {
        server: String,
        /// The beginning of the text.
        said: String,
    },
    #[error("the connection to {server} was lost: {reason}")]
    Lost { server: String, reason: String },
    /// `ProxyJump` or `ProxyCommand` does not lead to the server.
    #[error("cannot reach {server} through its proxy: {said}")]
    Proxy {
        server: String,
        problem: ProxyProblem,
        /// The last lines that the proxy printed.
        said: String,
    },
    /// The server sent nothing for too long.
    #[error("{server} has not responded for {} s", after.as_secs())]
    Silent { server: String, after: Duration },
    /// The server answers keep-alives, but a request makes no progress.
    #[error("{server} is connected but has made no progress for {} s", after.as_secs())]
    Stuck { server: String, after: Duration },
    /// A known_hosts file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    KnownHosts {
        /// "read" or "write".
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The server is in no known_hosts file, and its key was not confirmed.
    #[error("the host key of {server} is not known: {algorithm} {fingerprint}{}", authorities(*certified))]
    HostKeyUnknown {
        server: String,
        algorithm: String,
        /// Its SHA-256 fingerprint, as OpenSSH prints it.
        fingerprint: String,
        /// Whether `@cert-authority` lines would cover the server.
        certified: bool,
    },
    /// The server's key differs from the one in known_hosts.
    #[error(
        "THE HOST KEY OF {server} HAS CHANGED: it shows {algorithm} {fingerprint}, but {}:{line} has another key. \
         Someone may be intercepting the connection, or the server was reinstalled",
        path.display()
    )]
    HostKeyChanged {
        server: String,
        /// The name of the server in known_hosts.
        name: String,
        /// The type of the server's key.
        algorithm: String,
        /// Its SHA-256 fingerprint.
        fingerprint: String,
        path: PathBuf,
        /// The line of the key that was expected.
        line: usize,
    },
    /// The server's key is marked as revoked.
    #[error("THE HOST KEY OF {server} IS REVOKED: {algorithm} {fingerprint} is marked @revoked in \
        {}:{line}", path.display())]
    HostKeyRevoked {
        server: String,
        algorithm: String,
        /// Its SHA-256 fingerprint.
        fingerprint: String,
        path: PathBuf,
        line: usize,
    },
    /// A secret could not be read.
    #[error("{0}")]
    Secret(String),
    /// The server refused the login.
    #[error("{server} refused the login of {user}; tried: {}; the server offers: {offered}", tried_list(tried))]
    Login {
        server: String,
        user: String,
        /// What was tried, in order, each with the reason why it failed.
        tried: Vec<String>,
        /// The methods that the server accepts.
        offered: String,
    },
    /// The login succeeded, but the server does not offer SFTP.
    #[error("{server} accepted the login of {user} but does not offer SFTP: {reason}")]
    NoSftp { server: String, user: String, reason: String },
}

impl Error {
    /// Returns whether a retry may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable { source, .. } => source.kind() != ErrorKind::PermissionDenied,
            // A server that is starting, or has too many unauthenticated connections, aborts the handshake.
            Error::Lost { .. } | Error::Silent { .. } | Error::Stuck { .. } => true,
            Error::Handshake { .. } | Error::TurnedAway { .. } => true,
            // An unreachable resolver may recover; a name that does not exist stays unknown.
            Error::Resolve { source, .. } => source.to_string().contains("Temporary failure"),
            _ => false,
        }
    }
}

fn tried_list(tried: &[String]) -> String {
    if tried.is_empty() { "nothing (no key and no password available)".to_owned() } else { tried.join(", ") }
}

fn authorities(certified: bool) -> &'static str {
    if certified { " (known_hosts has a @cert-authority for it, but kvmb does not read host certificates)" } else { "" }
}

/// The result of an operation on a server.
pub(crate) type Result<T> = std::result::Result<T, Error>;
