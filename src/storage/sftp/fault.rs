//! What a server's answer "no" means, and what it looks like to the layers above.

use super::Error;
use crate::storage::{self, FileAction};
use std::io::ErrorKind;
use std::path::PathBuf;

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum SftpFault {
    /// The connection is gone.
    Server(Error),
    /// The server answered, and the answer is no.
    Refused(SftpStatus),
}

/// A server's no, as SFTP version 3 can say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SftpStatus {
    /// There is no such file or folder.
    NotFound,
    Permission,
    /// The server does not know this call.
    Unsupported,
    /// The call makes no sense to the server or its file system: OpenSSH says so of EINVAL.
    Invalid,
    /// No room. OpenSSH says [`SftpStatus::Other`] instead.
    NoSpace,
    /// No room for this user. OpenSSH says [`SftpStatus::Other`] here too.
    Quota,
    /// Nothing can be written there. No server says so; the file system's flags do.
    ReadOnly,
    /// None of the server's: the writer's gate said no.
    Stopped,
    /// Anything else; OpenSSH has one word, "Failure", for a full disk, a quota, a file that exists and much more.
    Other(String),
}

impl SftpStatus {
    /// The meaning of a status code, with the words that the server sends along. Codes above 8 are of later versions of
    /// SFTP, but some servers use them all the same.
    pub(crate) fn of_status(code: u32, words: &str) -> SftpStatus {
        match code {
            2 | 10 => SftpStatus::NotFound,
            3 | 12 => SftpStatus::Permission,
            5 => SftpStatus::Invalid,
            8 => SftpStatus::Unsupported,
            14 => SftpStatus::NoSpace,
            15 => SftpStatus::Quota,
            // ProFTPD and others send the system's words.
            _ if words.contains("No space left") => SftpStatus::NoSpace,
            _ if words.to_lowercase().contains("quota exceeded") => SftpStatus::Quota,
            _ if words.is_empty() => SftpStatus::Other(format!("failure {code}")),
            _ => SftpStatus::Other(words.to_owned()),
        }
    }

    /// Whether this answers the sync of a folder that the server's file system cannot sync, and does not speak of a
    /// disk that fails: ENOENT, EINVAL, or an operation that is not supported.
    pub(crate) fn cannot_sync_folders(&self) -> bool {
        match self {
            SftpStatus::NotFound | SftpStatus::Unsupported | SftpStatus::Invalid => true,
            SftpStatus::Other(words) => {
                ["not supported", "unsupported", "Invalid argument"].iter().any(|w| words.contains(w))
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for SftpStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SftpStatus::NotFound => "no such file or folder",
            SftpStatus::Permission => "permission denied",
            SftpStatus::Unsupported => "the server does not support this",
            SftpStatus::Invalid => "the server rejects the request as invalid",
            SftpStatus::NoSpace => "no space left",
            SftpStatus::Quota => "disk quota exceeded",
            SftpStatus::ReadOnly => "read-only file system",
            SftpStatus::Stopped => "interrupted",
            SftpStatus::Other(words) => words,
        })
    }
}

impl From<Error> for SftpFault {
    fn from(error: Error) -> SftpFault {
        SftpFault::Server(error)
    }
}

impl SftpFault {
    /// Whether the server said that there is no such file.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, SftpFault::Refused(SftpStatus::NotFound))
    }

    /// The storage's error for it. `path` is what the message names.
    pub(crate) fn explain(self, url: &str, action: FileAction, path: &str) -> storage::Error {
        let refusal = match self {
            SftpFault::Server(error) => return storage::Error::Server { url: url.to_owned(), source: Box::new(error) },
            SftpFault::Refused(SftpStatus::Stopped) => return storage::Error::Interrupted,
            SftpFault::Refused(refusal) => refusal,
        };
        let kind = match refusal {
            SftpStatus::NotFound => ErrorKind::NotFound,
            SftpStatus::Permission => ErrorKind::PermissionDenied,
            SftpStatus::Unsupported => ErrorKind::Unsupported,
            SftpStatus::Invalid => ErrorKind::InvalidInput,
            SftpStatus::NoSpace => ErrorKind::StorageFull,
            SftpStatus::Quota => ErrorKind::QuotaExceeded,
            SftpStatus::ReadOnly => ErrorKind::ReadOnlyFilesystem,
            SftpStatus::Stopped => ErrorKind::Interrupted,
            SftpStatus::Other(_) => ErrorKind::Other,
        };
        let path = PathBuf::from(path);
        match kind {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                storage::Error::NoSpace { url: url.to_owned(), path, source: kind.into() }
            }
            _ => {
                let source = std::io::Error::new(kind, format!("the server says: {refusal}"));
                storage::Error::Io { action, path, source }
            }
        }
    }
}
