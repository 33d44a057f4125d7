//! Errors of a repository.

use std::sync::Arc;

use super::{BlobKind, Id, LockInfo};
use crate::storage::{self, FileAction, FileKind};

/// An error of the repository layer. Files are identified by kind and name.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// There is no `config`.
    #[error("no repository in {url}")]
    NoRepository { url: String },
    /// There is a `config`, but no keys and no data.
    #[error("the repository in {url} is incomplete: its creation was interrupted")]
    Unfinished { url: String },
    /// There are keys or data, but no `config`.
    #[error("the config file of the repository in {url} is missing")]
    ConfigMissing { url: String },
    /// A repository was to be created where there is something already.
    #[error("{url} already contains a repository or parts of one ({found} files)")]
    AlreadyExists { url: String, found: FileKind },
    /// A repository format that kvmb does not support.
    #[error("the repository in {url} has format version {version}; kvmb reads and writes version 2")]
    UnsupportedVersion { url: String, version: u32 },
    /// The password opens no key.
    #[error("wrong password for the repository in {url}{}", unreadable_keys(damaged))]
    WrongPassword {
        url: String,
        /// Damaged keys, which were not tried.
        damaged: Vec<Id>,
    },
    /// There is no key, or none that is intact.
    #[error("no usable key in {url}{}", unreadable_keys(damaged))]
    NoKey {
        url: String,
        /// The damaged keys.
        damaged: Vec<Id>,
    },
    /// A file of the repository is damaged.
    #[error("{kind} {name} is damaged: {flaw}")]
    Damaged {
        /// The kind of file.
        kind: FileKind,
        /// Its name ("config" for the config).
        name: String,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// The blob is not in any index.
    #[error("{kind} blob {id} is missing: it is not in any index")]
    BlobMissing { kind: BlobKind, id: Id },
    /// A required blob is in a pack that is missing or truncated.
    #[error("pack {id}, which contains {kind} blob {blob}, is missing or truncated")]
    PackLost { id: Id, blob: Id, kind: BlobKind },
    /// The contents of a blob do not match its id.
    #[error("{kind} blob {id} in pack {pack} is damaged: {flaw}")]
    BlobDamaged {
        kind: BlobKind,
        id: Id,
        pack: Id,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// A blob could not be read from the pack that it is in.
    #[error("{kind} blob {id}: {source}")]
    BlobUnreadable { kind: BlobKind, id: Id, pack: Id, source: storage::Error },
    /// A tree is intact but invalid.
    #[error("tree {id} cannot be read: {reason}")]
    TreeMalformed { id: Id, reason: String },
    /// A tree that restic could not read was to be written.
    #[error("cannot write a tree with the entry {name:?}: {reason}")]
    BadNode { name: String, reason: &'static str },
    /// A blob does not fit into the format's 32-bit lengths.
    #[error("a {kind} blob of {size_bytes} bytes is larger than the format allows")]
    BlobTooLarge { kind: BlobKind, size_bytes: u64 },
    /// Another process holds a conflicting lock.
    #[error("the repository in {url} is locked {holder}")]
    Locked {
        url: String,
        /// The holder of the lock.
        holder: Box<LockInfo>,
    },
    /// The repository existed and has disappeared.
    #[error("the repository in {url} is no longer there")]
    RepositoryGone { url: String },
    /// A removed index file is still listed, or a new one is not. Removing packs might then lose data.
    #[error("the list of index files in {url} does not show {change} of {id}; no pack was removed")]
    IndexOutdated {
        url: String,
        id: Id,
        /// "the removal" or "the creation"
        change: &'static str,
    },
    /// Our lock was removed, or was not refreshed for so long that others may ignore it.
    #[error("the lock on the repository in {url} was lost: {reason}")]
    LockLost { url: String, reason: String },
    /// Compression failed.
    #[error("cannot compress: {0}")]
    Compress(#[source] std::io::Error),
    /// Encryption failed.
    #[error("cannot encrypt: {0}")]
    Encrypt(String),
    /// The key cannot be derived from the password.
    #[error("cannot derive a key from the password: scrypt refuses its parameters")]
    KeyDerivation,
    /// The system has no random numbers for a key.
    #[error("cannot get random numbers from the system: {0}")]
    Random(#[source] std::io::Error),
    /// A background write failed. Every later call on the same writer returns this error.
    #[error(transparent)]
    Writer(Arc<Error>),
    /// The system cannot start another thread.
    #[error("cannot start a thread: {0}")]
    NoThread(#[source] std::io::Error),
    /// A worker thread panicked.
    #[error("a worker thread of the repository ended unexpectedly")]
    WorkerGone,
}

/// What is wrong with a damaged file or blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The storage lists the file, but reports that it does not exist.
    #[error("the storage lists it, but does not find it")]
    ListedOnly,
    /// The hash of the content differs from the name.
    #[error("its content does not match its name")]
    NotItsName,
    /// The MAC is wrong: the data was changed, or sealed with another repository's key.
    #[error("its authentication code is wrong")]
    Unauthentic,
    /// The file or blob is shorter than any valid one.
    #[error("it is too short")]
    TooShort,
    /// The data cannot be decompressed.
    #[error("it cannot be decompressed")]
    NotDecompressable,
    /// The length differs from that in the index.
    #[error("it has {actual_bytes} bytes instead of {wanted_bytes}")]
    WrongLength {
        /// The length in the index.
        wanted_bytes: u64,
        /// The actual length.
        actual_bytes: u64,
    },
    /// The file is longer than any valid one of its kind.
    #[error("it has more than {longest_bytes} bytes")]
    TooLong {
        /// The maximum length.
        longest_bytes: u64,
    },
    /// An encoding that this version does not know.
    #[error("it is encoded in an unknown way ({0:#04x})")]
    UnknownEncoding(u8),
    /// The JSON is not of the expected form.
    #[error("{0}")]
    NotJson(String),
    /// The header of a pack is invalid.
    #[error("its header is invalid")]
    BadHeader,
}

impl Error {
    /// Returns the original error if it occurred in the background, and the error itself otherwise.
    pub(crate) fn root(&self) -> &Error {
        match self {
            Error::Writer(inner) => inner.root(),
            other => other,
        }
    }

    /// Returns whether the storage was unreachable. The error then says nothing about the repository.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self.root(), Error::Storage(error) if error.is_unreachable())
    }

    /// Returns whether a file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.root(), Error::Storage(error) if error.is_not_found())
    }

    /// Returns whether the storage refused to remove a file.
    pub fn is_refused_removal(&self) -> bool {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self.root(), Error::Storage(storage::Error::Io { action: FileAction::Remove, source, .. })
            if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
    }

    /// Returns whether the data that was read is damaged.
    pub(super) fn is_mismatch(&self) -> bool {
        match self {
            Error::Damaged { .. } | Error::BlobDamaged { .. } => true,
            Error::BlobUnreadable { source, .. } | Error::Storage(source) => {
                matches!(source, storage::Error::TooShort { .. })
            }
            _ => false,
        }
    }

    /// Converts an error of reading a whole file: a file that is too long is damaged.
    pub(super) fn unread(error: storage::Error) -> Error {
        match error {
            storage::Error::TooLong { kind, name, longest_bytes, .. } => {
                Error::damaged(kind, name, Flaw::TooLong { longest_bytes })
            }
            other => other.into(),
        }
    }

    pub(super) fn damaged(kind: FileKind, name: impl ToString, flaw: Flaw) -> Error {
        Error::Damaged { kind, name: name.to_string(), flaw }
    }
}

fn unreadable_keys(damaged: &[Id]) -> String {
    if damaged.is_empty() {
        return String::new();
    }
    let ids: Vec<_> = damaged.iter().map(Id::short).collect();
    format!(" (damaged: {})", ids.join(", "))
}

/// The result of a call on a repository.
pub type Result<T> = std::result::Result<T, Error>;
