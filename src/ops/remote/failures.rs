//! Failures of the connection to a server, and on the server.

use crate::ops::Error;
use crate::repo;
use crate::storage::sftp::fault::SftpFault;
use crate::storage::sftp::{self, SftpAddress};
use crate::storage::{self, FileAction};

/// A failure to connect to the server.
pub(super) fn unreachable_host(target: &SftpAddress) -> impl Fn(sftp::Error) -> Error {
    move |source| {
        let error = storage::Error::Server { url: target.to_string(), source: Box::new(source) };
        repo::Error::Storage(error).into()
    }
}

/// A host key that was not accepted.
pub(crate) struct RefusedKey<'a> {
    /// `unknown`, `changed` or `revoked`.
    pub(crate) state: &'static str,
    pub(crate) algorithm: &'a str,
    /// The SHA-256 of the key.
    pub(crate) fingerprint: &'a str,
}

/// Returns the host key that caused a failure.
pub(crate) fn refused_key(error: &Error) -> Option<RefusedKey<'_>> {
    let Error::Repo(error) = error else { return None };
    let repo::Error::Storage(storage::Error::Server { source, .. }) = &**error else { return None };
    let (state, algorithm, fingerprint) = match &**source {
        sftp::Error::HostKeyUnknown { algorithm, fingerprint, .. } => ("unknown", algorithm, fingerprint),
        sftp::Error::HostKeyChanged { algorithm, fingerprint, .. } => ("changed", algorithm, fingerprint),
        sftp::Error::HostKeyRevoked { algorithm, fingerprint, .. } => ("revoked", algorithm, fingerprint),
        _ => return None,
    };
    Some(RefusedKey { state, algorithm, fingerprint })
}

/// A failed operation on a file of the server.
pub(super) fn failed(target: &SftpAddress, action: FileAction, path: &str) -> impl Fn(SftpFault) -> Error {
    let path = path.to_owned();
    move |fault| repo::Error::Storage(fault.explain(&target.to_string(), action, &path)).into()
}
