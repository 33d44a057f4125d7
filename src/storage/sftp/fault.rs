//! What a server's answer "no" means, and what it looks like to the layers above.

use super::Error;
use crate::storage;
use std::io::ErrorKind;
use std::path::PathBuf;

/// Why a call failed.
#[derive(Debug)]
pub enum Fault {
    /// The connection is gone.
    Server(Error),
    /// The server answered, and the answer is no.
    Refused(Refusal),
}

/// A server's no, as SFTP version 3 can say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such file or folder.
    NotFound,
    /// Not permitted.
    Permission,
    /// The server does not know this call.
    Unsupported,
    /// No room. OpenSSH says [`Refusal::Other`] instead.
    NoSpace,
    /// No room for this user. OpenSSH says [`Refusal::Other`] here too.
    Quota,
    /// Nothing can be written there. No server says so; the file system's flags do.
    ReadOnly,
    /// Anything else; OpenSSH has one word, "Failure", for a full disk, a quota, a file that exists and much more.
    Other(String),
}

impl Refusal {
    /// The meaning of a status code, with the words that the server sends along. Codes above 8 are of later versions of SFTP,
    /// but some servers use them all the same.
    pub fn of_status(code: u32, words: &str) -> Refusal {
        match code {
            2 | 10 => Refusal::NotFound,
            3 | 12 => Refusal::Permission,
            8 => Refusal::Unsupported,
            14 => Refusal::NoSpace,
            15 => Refusal::Quota,
            // ProFTPD and others send the system's words.
            _ if words.contains("No space left") => Refusal::NoSpace,
            _ if words.to_lowercase().contains("quota exceeded") => Refusal::Quota,
            _ if words.is_empty() => Refusal::Other(format!("failure {code}")),
            _ => Refusal::Other(words.to_owned()),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refusal::NotFound => "no such file or folder",
            Refusal::Permission => "permission denied",
            Refusal::Unsupported => "the server does not support this",
            Refusal::NoSpace => "no space left",
            Refusal::Quota => "the quota leaves no room",
            Refusal::ReadOnly => "read-only file system",
            Refusal::Other(words) => words,
        })
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Server(error)
    }
}

impl Fault {
    /// Whether the server said that there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Fault::Refused(Refusal::NotFound))
    }

    /// The storage's error for it. `path` is what the message names.
    pub fn explain(self, url: &str, action: &'static str, path: &str) -> storage::Error {
        let refusal = match self {
            Fault::Server(error) => return storage::Error::Server { url: url.to_owned(), source: Box::new(error) },
            Fault::Refused(refusal) => refusal,
        };
        let kind = match refusal {
            Refusal::NotFound => ErrorKind::NotFound,
            Refusal::Permission => ErrorKind::PermissionDenied,
            Refusal::Unsupported => ErrorKind::Unsupported,
            Refusal::NoSpace => ErrorKind::StorageFull,
            Refusal::Quota => ErrorKind::QuotaExceeded,
            Refusal::ReadOnly => ErrorKind::ReadOnlyFilesystem,
            Refusal::Other(_) => ErrorKind::Other,
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
