//! What can go wrong on the way to a server, before or while a file is asked for.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

/// Why a server cannot be used. `server` is always `host:port` as it was dialled.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `~/.ssh/config` or a file that it includes cannot be read.
    #[error("{}: {reason}", path.display())]
    SshConfig { path: PathBuf, reason: String },
    /// The name has no address.
    #[error("cannot find the address of {host}: {source}")]
    Resolve {
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    #[error("cannot connect to {server}: {source}")]
    Unreachable {
        server: String,
        /// Why, for the last of its addresses.
        source: io::Error,
    },
    /// What answers speaks no SSH, or no common method was found.
    #[error("cannot open an SSH connection to {server}: {reason}")]
    Handshake {
        server: String,
        /// What the protocol said.
        reason: String,
    },
    #[error("the connection to {server} was lost: {reason}")]
    Lost { server: String, reason: String },
    /// Nothing came for too long.
    #[error("{server} has not responded for {} s", after.as_secs())]
    Silent { server: String, after: Duration },
    /// The server shows signs of life, but what was asked of it does not get on.
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
    /// No known_hosts file has the server, and nobody said that its key is right.
    #[error("the host key of {server} is not known: {algorithm} {fingerprint}{}", authorities(*certified))]
    HostKeyUnknown {
        server: String,
        algorithm: String,
        /// Its SHA-256, as OpenSSH prints it.
        fingerprint: String,
        /// Whether `@cert-authority` lines would cover the server.
        certified: bool,
    },
    /// The server shows another key than known_hosts has.
    #[error(
        "THE HOST KEY OF {server} HAS CHANGED: it shows {algorithm} {fingerprint}, but {}:{line} has another key. \
         Someone may be intercepting the connection, or the server was reinstalled",
        path.display()
    )]
    HostKeyChanged {
        server: String,
        /// The name that known_hosts has it under.
        name: String,
        /// The shown key's type.
        algorithm: String,
        /// Its SHA-256.
        fingerprint: String,
        path: PathBuf,
        /// The line of the key that was expected.
        line: usize,
    },
    /// The server shows a key that is marked as stolen.
    #[error("THE HOST KEY OF {server} IS REVOKED: {algorithm} {fingerprint} is marked @revoked in \
        {}:{line}", path.display())]
    HostKeyRevoked {
        server: String,
        algorithm: String,
        /// Its SHA-256.
        fingerprint: String,
        path: PathBuf,
        line: usize,
    },
    /// A secret could not be read.
    #[error("{0}")]
    Secret(String),
    /// The server does not let us in.
    #[error("{server} refused the login of {user}; tried: {}; the server offers: {offered}", tried_list(tried))]
    Login {
        server: String,
        user: String,
        /// What was tried, in order, each with what became of it.
        tried: Vec<String>,
        /// The methods that the server would take.
        offered: String,
    },
    /// Logged in, but there is no SFTP.
    #[error("{server} accepted the login of {user} but does not offer SFTP: {reason}")]
    NoSftp { server: String, user: String, reason: String },
}

impl Error {
    /// Whether the same may go well a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable { source, .. } => source.kind() != ErrorKind::PermissionDenied,
            // A server that is starting, or has too many guests at the door, ends the handshake in the middle.
            Error::Lost { .. } | Error::Silent { .. } | Error::Stuck { .. } | Error::Handshake { .. } => true,
            // A name that does not exist will not exist in a minute; a resolver that cannot be reached says so.
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

/// The result of work with a server.
pub(crate) type Result<T> = std::result::Result<T, Error>;
