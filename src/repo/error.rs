//! Errors of a repository.

use std::sync::Arc;

use super::{BlobKind, Id, LockInfo};
use crate::storage::{self, FileAction, FileKind};

/// An error of the repository layer. It names what it is about by kind and id.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The place of the files failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// There is no `config` there.
    #[error("no repository in {url}")]
    NoRepository { url: String },
    /// A `config` without keys and data.
    #[error("the repository in {url} is incomplete: its creation was interrupted")]
    Unfinished { url: String },
    /// Keys and data are there, the `config` is not.
    #[error("the config file of the repository in {url} is missing")]
    ConfigMissing { url: String },
    /// A new repository was wanted where there is something already.
    #[error("{url} already contains a repository or parts of one ({found} files)")]
    AlreadyExists { url: String, found: FileKind },
    /// A repository format that we do not write.
    #[error("the repository in {url} has format version {version}; kvmb reads and writes version 2")]
    UnsupportedVersion { url: String, version: u32 },
    /// No key opens with this password.
    #[error("wrong password for the repository in {url}{}", unreadable_keys(damaged))]
    WrongPassword {
        url: String,
        /// Keys that were not tried, because they are damaged.
        damaged: Vec<Id>,
    },
    /// There is not one key, or not one that is whole.
    #[error("no usable key in {url}{}", unreadable_keys(damaged))]
    NoKey {
        url: String,
        /// Those that are damaged.
        damaged: Vec<Id>,
    },
    /// A file of the repository is not what it should be.
    #[error("{kind} {name} is damaged: {flaw}")]
    Damaged {
        /// What kind of file.
        kind: FileKind,
        /// Its name (`config` has the name "config").
        name: String,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// No index names this blob.
    #[error("{kind} blob {id} is missing: it is not in any index")]
    BlobMissing { kind: BlobKind, id: Id },
    /// A needed blob is in a pack that is not there, or too short for it.
    #[error("pack {id}, which contains {kind} blob {blob}, is missing or truncated")]
    PackLost { id: Id, blob: Id, kind: BlobKind },
    /// A blob is not what its name says.
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
    /// A tree is whole but makes no sense.
    #[error("tree {id} cannot be read: {reason}")]
    TreeMalformed { id: Id, reason: String },
    /// A tree that restic could not read was about to be written.
    #[error("cannot write a tree with the entry {name:?}: {reason}")]
    BadNode { name: String, reason: &'static str },
    /// A blob does not fit into the format's 32-bit lengths.
    #[error("a {kind} blob of {size_bytes} bytes is larger than the format allows")]
    BlobTooLarge { kind: BlobKind, size_bytes: u64 },
    /// Somebody else is at it.
    #[error("the repository in {url} is locked {holder}")]
    Locked {
        url: String,
        /// By whom, since when.
        holder: Box<LockInfo>,
    },
    /// The repository was there and is not any more.
    #[error("the repository in {url} is no longer there")]
    RepositoryGone { url: String },
    /// Our lock is gone, or was not refreshed for so long that others may ignore it.
    #[error("the lock on the repository in {url} was lost: {reason}")]
    LockLost { url: String, reason: String },
    /// The compressor gave up.
    #[error("cannot compress: {0}")]
    Compress(#[source] std::io::Error),
    /// The cipher gave up.
    #[error("cannot encrypt: {0}")]
    Encrypt(String),
    /// No key can be derived from a password.
    #[error("cannot derive a key from the password: scrypt refuses its parameters")]
    KeyDerivation,
    /// The system has no random numbers for a key.
    #[error("cannot get random numbers from the system: {0}")]
    Random(#[source] std::io::Error),
    /// Writing in the background failed; every later call on the same writer says so.
    #[error(transparent)]
    Writer(Arc<Error>),
    /// The system has no thread left for us.
    #[error("cannot start a thread: {0}")]
    NoThread(#[source] std::io::Error),
    /// A worker thread died.
    #[error("a worker thread of the repository ended unexpectedly")]
    WorkerGone,
}

/// What is wrong with a damaged file or blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The content does not hash to the name.
    #[error("its content does not match its name")]
    NotItsName,
    /// The message authentication code is wrong: other bytes, or another repository's key.
    #[error("its authentication code is wrong")]
    Unauthentic,
    /// Too short to be anything.
    #[error("it is too short")]
    TooShort,
    /// It does not decompress.
    #[error("it cannot be decompressed")]
    NotDecompressable,
    /// It is not as long as the index says.
    #[error("it has {actual_bytes} bytes instead of {wanted_bytes}")]
    WrongLength {
        /// What the index says.
        wanted_bytes: u64,
        /// What was found.
        actual_bytes: u64,
    },
    /// There is more than any file of its kind has.
    #[error("it has more than {longest_bytes} bytes")]
    TooLong {
        /// What it may have at most.
        longest_bytes: u64,
    },
    /// An encoding that this version does not know.
    #[error("it is encoded in an unknown way ({0:#04x})")]
    UnknownEncoding(u8),
    /// It is not the JSON that is expected.
    #[error("{0}")]
    NotJson(String),
    /// The header of a pack makes no sense.
    #[error("its header is invalid")]
    BadHeader,
}

impl Error {
    /// The error itself, where it happened in the background.
    pub(crate) fn root(&self) -> &Error {
        match self {
            Error::Writer(inner) => inner.root(),
            other => other,
        }
    }

    /// Whether the place of the files could not be reached: then this says nothing about what is there.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self.root(), Error::Storage(error) if error.is_unreachable())
    }

    /// Whether a file was looked for that is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self.root(), Error::Storage(error) if error.is_not_found())
    }

    /// Whether the place of the files does not let us remove one.
    pub fn is_refused_removal(&self) -> bool {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self.root(), Error::Storage(storage::Error::Io { action: FileAction::Remove, source, .. })
            if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
    }

    /// Whether what was read is not what should be there.
    pub(super) fn is_mismatch(&self) -> bool {
        match self {
            Error::Damaged { .. } | Error::BlobDamaged { .. } => true,
            Error::BlobUnreadable { source, .. } | Error::Storage(source) => {
                matches!(source, storage::Error::TooShort { .. })
            }
            _ => false,
        }
    }

    /// A whole file could not be read: one that is too long is damaged.
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
