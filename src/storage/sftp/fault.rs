//! Refusals of a server, and how they are reported to the layers above.

use super::Error;
use crate::storage::{self, FileAction};
use std::io::ErrorKind;
use std::path::PathBuf;

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum SftpFault {
    /// The connection is gone.
    Server(Error),
    /// The server refused the call.
    Refused(SftpStatus),
}

/// The reason for a refusal, as far as SFTP version 3 can express it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SftpStatus {
    /// There is no such file or folder.
    NotFound,
    Permission,
    /// The server does not support this call.
    Unsupported,
    /// The call is invalid for the server or its file system. OpenSSH maps EINVAL to this.
    Invalid,
    /// The disk is full. OpenSSH reports this as [`SftpStatus::Other`].
    NoSpace,
    /// The user's quota is exceeded. OpenSSH reports this as [`SftpStatus::Other`], too.
    Quota,
    /// The file system is read-only. No server reports this; the flags of the file system do.
    ReadOnly,
    /// Not a reply of the server: the caller's gate stopped the write.
    Stopped,
    /// Anything else. OpenSSH reports a full disk, a quota, an existing file and much more as "Failure".
    Other(String),
}

impl SftpStatus {
    /// Converts a status code, with the message that the server sends along. Codes above 8 belong to later versions of
    /// SFTP, but some servers send them all the same.
    pub(crate) fn of_status(code: u32, words: &str) -> SftpStatus {
        match code {
            2 | 10 => SftpStatus::NotFound,
            3 | 12 => SftpStatus::Permission,
            5 => SftpStatus::Invalid,
            8 => SftpStatus::Unsupported,
            14 => SftpStatus::NoSpace,
            15 => SftpStatus::Quota,
            // ProFTPD and others send the system's error message.
            _ if words.contains("No space left") => SftpStatus::NoSpace,
            _ if words.to_lowercase().contains("quota exceeded") => SftpStatus::Quota,
            _ if words.is_empty() => SftpStatus::Other(format!("failure {code}")),
            _ => SftpStatus::Other(words.to_owned()),
        }
    }

    /// Returns whether this is the answer of a file system that cannot sync folders, rather than of a failing disk:
    /// ENOENT, EINVAL, or an unsupported operation.
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
    /// Returns whether the server reported that the file does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, SftpFault::Refused(SftpStatus::NotFound))
    }

    /// Converts the fault to an error of the storage. `path` appears in the message.
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
