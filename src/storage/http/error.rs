//! What can go wrong on the way to a server that speaks HTTP, and what its refusals mean.

use crate::storage::action::FileAction;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

/// Why a server cannot be used. `server` is `host:port` as it was dialled, or the path of a socket.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A secret could not be read.
    #[error("{0}")]
    Secret(String),
    /// A file with certificates cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// A file has no certificate, or no key.
    #[error("{}: {reason}", path.display())]
    BadFile { path: PathBuf, reason: String },
    /// A variable that names no proxy which can be used.
    #[error("cannot use the proxy of {variable}: {reason}")]
    BadProxy { variable: String, reason: &'static str },
    /// A proxy does not lead to the server.
    #[error("the proxy {proxy} does not connect to {server}{}", answer_of_proxy(*status))]
    Proxy {
        server: String,
        /// `host:port`
        proxy: String,
        /// What it answered, if it did.
        status: Option<u16>,
    },
    /// The name has no address.
    #[error("cannot find the address of {server}")]
    Resolve { server: String },
    /// Nobody answers there.
    #[error("cannot connect to {server}: {source}")]
    Unreachable {
        server: String,
        /// Why, for the last of its addresses.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {server} was lost: {reason}")]
    Lost { server: String, reason: String },
    /// What was sent arrived as something else.
    #[error("an upload to {server} was corrupted on the way ({reason})")]
    Corrupted { server: String, reason: String },
    /// Nothing came for too long.
    #[error("{server} has not responded for {} s", after.as_secs())]
    Silent {
        server: String,
        /// For how long.
        after: Duration,
    },
    /// The server is not who it should be, or nobody vouches for it.
    #[error("the certificate of {server} cannot be verified: {reason}")]
    Certificate { server: String, reason: String },
    /// The server wants a certificate, or another one.
    #[error("{server} does not accept the certificate of this host: {reason}")]
    ClientCertificate { server: String, reason: String },
    /// No encrypted connection.
    #[error("cannot open a TLS connection to {server}: {reason}")]
    Tls { server: String, reason: String },
    /// What answers does not speak the protocol.
    #[error("{server} sent an invalid answer: {reason}")]
    Protocol { server: String, reason: String },
    /// The server does not let us in.
    #[error("{server} refused the login: {reason}")]
    Login { server: String, reason: String },
    /// An object storage cannot be asked without keys.
    #[error("no access key for {server} was given")]
    NoKeys { server: String },
    /// An object storage does not know the keys.
    #[error("{server} refused the access key: {reason}")]
    Keys { server: String, reason: String },
    /// A signature of another time is worth nothing.
    #[error("the clock of this host and that of {server} differ by minutes")]
    Clock { server: String },
    /// What is written there cannot be locked.
    #[error("the bucket {bucket} cannot lock objects: Object Lock is not enabled")]
    NoObjectLock { bucket: String },
    /// The server lets us in, and does not let us do this.
    #[error("cannot {action} {path}: the server denies it ({reason})")]
    Denied {
        /// As "write".
        action: String,
        /// The address of the file.
        path: String,
        reason: String,
    },
    /// The server cannot or will not do it.
    #[error("cannot {action} {path}: {reason}")]
    Refused {
        /// As "write".
        action: String,
        /// The address of the file.
        path: String,
        /// The HTTP status.
        status: u16,
        reason: String,
    },
}

impl Error {
    /// Whether the same may go well a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable { source, .. } => source.kind() != ErrorKind::PermissionDenied,
            Error::Lost { .. } | Error::Corrupted { .. } | Error::Silent { .. } => true,
            // Of the proxy: who asks, and for what, it refuses for good.
            Error::Proxy { status, .. } => !status.is_some_and(|status| (400..500).contains(&status)),
            // Too busy, or behind a gateway that cannot reach it.
            Error::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether a wrong bit in a request or in an answer can look like this.
    pub(crate) fn is_doubtful(&self) -> bool {
        matches!(
            self,
            Error::Protocol { .. }
                | Error::Login { .. }
                | Error::Keys { .. }
                | Error::Clock { .. }
                | Error::Denied { .. }
                | Error::Refused { .. }
        )
    }

    /// Whether contents may have arrived as others: rest-server says no more than "bad request" then.
    pub(crate) fn is_rejected_upload(&self) -> bool {
        matches!(self, Error::Refused { action, status: 400, .. } if *action == FileAction::Write.to_string())
    }

    /// Whether the server says no, as it does for good reasons more often than for bad ones.
    pub(crate) fn is_denial(&self) -> bool {
        matches!(self, Error::Denied { .. })
    }

    /// Whether nothing is known of its files: the server was not reached, or does not let us in.
    pub fn is_unreachable(&self) -> bool {
        !matches!(self, Error::Denied { .. } | Error::Refused { .. } | Error::NoObjectLock { .. })
            || self.is_transient()
    }
}

fn answer_of_proxy(status: Option<u16>) -> String {
    status.map(|status| format!(": status {status}")).unwrap_or_default()
}

/// The result of work with a server.
pub(crate) type Result<T> = std::result::Result<T, Error>;
