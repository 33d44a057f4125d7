//! Errors of servers that are reached over HTTP, and of the connection to them.

use crate::storage::action::FileAction;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

/// Why a server cannot be used. `server` is the `host:port` that was connected to, or the path of a socket.
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
    /// An environment variable does not name a usable proxy.
    #[error("cannot use the proxy of {variable}: {reason}")]
    BadProxy { variable: String, reason: &'static str },
    /// The proxy does not connect to the server.
    #[error("the proxy {proxy} does not connect to {server}{}", answer_of_proxy(*status))]
    Proxy {
        server: String,
        /// `host:port`
        proxy: String,
        /// The HTTP status of its response, if there was one.
        status: Option<u16>,
    },
    /// The name cannot be resolved.
    #[error("cannot find the address of {server}")]
    Resolve {
        server: String,
        /// Whether the resolver was unavailable; otherwise the name does not exist.
        is_temporary: bool,
    },
    /// No connection can be established.
    #[error("cannot connect to {server}: {source}")]
    Unreachable {
        server: String,
        /// The error for the last of its addresses.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {server} was lost: {reason}")]
    Lost { server: String, reason: String },
    /// An upload was altered in transit.
    #[error("an upload to {server} was corrupted on the way ({reason})")]
    Corrupted { server: String, reason: String },
    /// The server sent nothing for too long.
    #[error("{server} has not responded for {} s", after.as_secs())]
    Silent {
        server: String,
        /// For how long.
        after: Duration,
    },
    /// The server's certificate is invalid, or not issued by a trusted authority.
    #[error("the certificate of {server} cannot be verified: {reason}")]
    Certificate { server: String, reason: String, flaw: CertificateFlaw },
    /// The server requires a client certificate, or a different one.
    #[error("{server} does not accept the certificate of this host: {reason}")]
    ClientCertificate { server: String, reason: String },
    /// TLS failed.
    #[error("cannot open a TLS connection to {server}: {reason}")]
    Tls { server: String, reason: String },
    /// The response violates the protocol.
    #[error("{server} sent an invalid answer: {reason}")]
    Protocol { server: String, reason: String },
    /// The server refused the login.
    #[error("{server} refused the login: {reason}")]
    Login { server: String, reason: String },
    /// An object storage requires keys.
    #[error("no access key for {server} was given")]
    NoKeys { server: String },
    /// An object storage does not accept the keys.
    #[error("{server} refused the access key: {reason}")]
    Keys { server: String, reason: String },
    /// A signature is only valid for a short time.
    #[error("the clock of this host and that of {server} differ by minutes")]
    Clock { server: String },
    /// The bucket cannot lock objects.
    #[error("the bucket {bucket} cannot lock objects: Object Lock is not enabled")]
    NoObjectLock { bucket: String },
    /// The server, or a proxy before it, does not find a folder that every repository has.
    #[error("cannot list {path}: the server does not find it")]
    NoFolder {
        /// The address of the folder.
        path: String,
    },
    /// The server accepts the login but denies this request.
    #[error("cannot {action} {path}: the server denies it ({reason})")]
    Denied {
        /// The action, such as "write".
        action: String,
        /// The address of the file.
        path: String,
        reason: String,
    },
    /// A reverse proxy in front of the server limits the size of uploads.
    #[error("cannot write {path}: the reverse proxy of the server rejects uploads of this size (status 413)")]
    TooLarge {
        /// The address of the file.
        path: String,
    },
    /// The server cannot or will not do it.
    #[error("cannot {action} {path}: {reason}")]
    Refused {
        /// The action, such as "write".
        action: String,
        /// The address of the file.
        path: String,
        /// The HTTP status.
        status: u16,
        reason: String,
    },
}

/// What is wrong with a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateFlaw {
    /// It has expired or is not yet valid.
    OutOfDate,
    /// It is for another name.
    OtherName,
    /// Anything else; usually, no trusted authority issued it.
    Untrusted,
}

impl Error {
    /// Returns whether a retry may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Resolve { is_temporary, .. } => *is_temporary,
            Error::Unreachable { source, .. } => source.kind() != ErrorKind::PermissionDenied,
            Error::Lost { .. } | Error::Corrupted { .. } | Error::Silent { .. } => true,
            // A proxy's 4xx refusal of the login or the target is permanent.
            Error::Proxy { status, .. } => !status.is_some_and(|status| (400..500).contains(&status)),
            // The server is busy, or a gateway cannot reach it.
            Error::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Returns whether a bit error in a request or response can cause this.
    pub(crate) fn is_doubtful(&self) -> bool {
        matches!(
            self,
            Error::Protocol { .. }
                | Error::Login { .. }
                | Error::Keys { .. }
                | Error::Clock { .. }
                | Error::Denied { .. }
                | Error::NoFolder { .. }
                | Error::Refused { .. }
        )
    }

    /// Returns whether an upload may have been altered in transit: rest-server then just answers "bad request".
    pub(crate) fn is_rejected_upload(&self) -> bool {
        matches!(self, Error::Refused { action, status: 400, .. } if *action == FileAction::Write.to_string())
    }

    /// Returns whether the server denies the request, which it usually does for good reasons.
    pub(crate) fn is_denial(&self) -> bool {
        matches!(self, Error::Denied { .. })
    }

    /// Returns whether nothing is known about the server's files, because it is unreachable or refused the login.
    pub fn is_unreachable(&self) -> bool {
        !matches!(
            self,
            Error::Denied { .. } | Error::TooLarge { .. } | Error::Refused { .. } | Error::NoObjectLock { .. }
        ) || self.is_transient()
    }
}

fn answer_of_proxy(status: Option<u16>) -> String {
    status.map(|status| format!(": status {status}")).unwrap_or_default()
}

/// The result of an operation on a server.
pub(crate) type Result<T> = std::result::Result<T, Error>;
