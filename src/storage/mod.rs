//! Storage for the files of a repository.
//!
//! A repository consists of a few folders of immutable files. [`Storage`] is the whole interface to the layers above.
//! It is small on purpose, so that a decorator (retry, limit) or a test (record, delay, corrupt) can be inserted. Every
//! implementation and every decorator passes the same conformance suite.

mod action;
mod dial;
pub mod http;
pub(crate) mod limit;
pub(crate) mod local;
pub mod rest;
pub(crate) mod retry;
pub mod s3;
pub mod sftp;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod url;

pub use action::FileAction;
pub use limit::LimitStorage;
pub use local::LocalStorage;
pub use retry::{RetryPolicy, RetryStorage};
pub(crate) use url::{AccessContext, open};

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// The kind of a file, which determines its folder. The names on disk are restic's (`doc/design.rst`, "Repository
/// Format").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// `config`, the only file without a name.
    Config,
    /// `keys/<id>`
    Key,
    /// `locks/<id>`
    Lock,
    /// `snapshots/<id>`
    Snapshot,
    /// `index/<id>`
    Index,
    /// `data/<first two hex digits>/<id>`
    Pack,
}

impl FileKind {
    /// All kinds, `Config` first.
    pub const ALL: [FileKind; 6] =
        [FileKind::Config, FileKind::Key, FileKind::Lock, FileKind::Snapshot, FileKind::Index, FileKind::Pack];

    /// Returns the folder of files of this kind (for [`FileKind::Config`] the file itself).
    pub fn folder(self) -> &'static str {
        match self {
            FileKind::Config => "config",
            FileKind::Key => "keys",
            FileKind::Lock => "locks",
            FileKind::Snapshot => "snapshots",
            FileKind::Index => "index",
            FileKind::Pack => "data",
        }
    }

    /// Returns the maximum length of a file of this kind. A longer one is damaged, or made up by a malicious server,
    /// and must not fill our memory. Indexes of a million blobs and snapshots with thousands of paths are far shorter.
    pub(crate) fn longest_bytes(self) -> u64 {
        match self {
            FileKind::Config | FileKind::Key | FileKind::Lock => 64 << 10,
            FileKind::Snapshot => 64 << 20,
            FileKind::Index => 512 << 20,
            // Offsets in a pack have 32 bits.
            FileKind::Pack => 1 << 32,
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileKind::Config => "config",
            FileKind::Key => "key",
            FileKind::Lock => "lock",
            FileKind::Snapshot => "snapshot",
            FileKind::Index => "index",
            FileKind::Pack => "pack",
        })
    }
}

/// A file in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// The file's name without its folder: 64 hex digits in an undamaged repository.
    pub name: String,
    /// The stored size, of encrypted and possibly compressed data.
    pub size_bytes: u64,
}

/// An error about one file, or about the storage as a whole.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is invalid.
    #[error("{url:?} is not a valid repository address: {reason}")]
    BadUrl {
        /// The address, without a password.
        url: String,
        reason: String,
    },
    /// There is no such file.
    #[error("{kind} {name} does not exist in {url}")]
    NotFound {
        url: String,
        /// The kind of file.
        kind: FileKind,
        name: String,
    },
    /// A file was to be created exclusively, but exists.
    #[error("{kind} {name} exists in {url}")]
    Exists {
        url: String,
        /// The kind of file.
        kind: FileKind,
        name: String,
    },
    /// The file ends before the requested range does.
    #[error("{kind} {name} in {url} ends before byte {wanted_bytes}")]
    TooShort {
        url: String,
        kind: FileKind,
        name: String,
        /// The end of the requested range.
        wanted_bytes: u64,
    },
    /// The file is longer than any valid one of its kind ([`FileKind::longest_bytes`]).
    #[error("{kind} {name} in {url} is longer than {longest_bytes} bytes")]
    TooLong {
        url: String,
        /// The kind of file.
        kind: FileKind,
        name: String,
        /// The maximum length.
        longest_bytes: u64,
    },
    /// The storage is full, or the user's quota is exceeded.
    #[error("{} for {} in {url}", shortage(source), path.display())]
    NoSpace {
        url: String,
        /// The file that did not fit.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The SSH server or the connection to it failed.
    #[error("{source}")]
    Server { url: String, source: Box<sftp::Error> },
    /// The same for a server over HTTP, including its refusals.
    #[error("{source}")]
    Http {
        /// The address of the repository.
        url: String,
        source: Box<http::Error>,
    },
    /// A system call failed, on this host or on the server.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: FileAction,
        /// The file or folder.
        path: PathBuf,
        source: std::io::Error,
    },
    /// The connection did not recover within the time for retries.
    #[error("{source}{}", given_up(*after))]
    GaveUp {
        /// The error of the last attempt.
        source: Box<Error>,
        /// How long it was tried.
        after: Duration,
    },
    /// The program was interrupted while waiting for a retry.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Returns the error for a file that is too long for its kind.
    pub(in crate::storage) fn too_long(url: String, kind: FileKind, name: &str) -> Error {
        Error::TooLong { url, kind, name: name.to_owned(), longest_bytes: kind.longest_bytes() }
    }

    /// Returns whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }

    /// Returns whether the storage was unreachable, so that nothing is known about its files.
    pub(crate) fn is_unreachable(&self) -> bool {
        match self {
            Error::Server { .. } | Error::GaveUp { .. } | Error::Interrupted => true,
            Error::Http { source, .. } => source.is_unreachable(),
            Error::Io { source, .. } if is_own_limit(source) => true,
            _ => self.is_transient(),
        }
    }

    /// Returns whether a request or response that was altered in transit may have caused this.
    pub(in crate::storage) fn is_doubtful(&self, transit: Transit) -> bool {
        match self {
            Error::Http { source, .. } => match transit {
                Transit::Unprotected => source.is_doubtful(),
                _ => source.is_rejected_upload(),
            },
            _ => false,
        }
    }

    /// Returns whether the server denied the request.
    fn is_denial(&self) -> bool {
        matches!(self, Error::Http { source, .. } if source.is_denial())
    }

    /// Returns whether a retry may succeed a moment later, because a connection was lost or a server was busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Server { source, .. } => source.is_transient(),
            Error::Http { source, .. } => source.is_transient(),
            // A mounted network file system has such errors, too.
            Error::Io { source, .. } => matches!(
                source.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::NotConnected
                    | ErrorKind::BrokenPipe
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::NetworkDown
                    | ErrorKind::TimedOut
                    | ErrorKind::Interrupted
                    | ErrorKind::StaleNetworkFileHandle
            ),
            Error::BadUrl { .. }
            | Error::NotFound { .. }
            | Error::Exists { .. }
            | Error::TooShort { .. }
            | Error::TooLong { .. }
            | Error::NoSpace { .. }
            | Error::GaveUp { .. }
            | Error::Interrupted => false,
        }
    }
}

/// Returns whether a call failed at a limit of this process or host, which says nothing about the file.
fn is_own_limit(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let number = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM].iter().any(|limit| number == Some(limit.raw_os_error()))
}

/// Formats how long it was tried; empty if there was only one attempt.
fn given_up(after: Duration) -> String {
    match after.as_secs() {
        0 => String::new(),
        seconds => format!("; gave up after {seconds} s"),
    }
}

/// Returns which resource is exhausted: the user's quota, or the space of the file system.
fn shortage(source: &std::io::Error) -> &'static str {
    if source.kind() == ErrorKind::QuotaExceeded { "disk quota exceeded" } else { "no space left" }
}

/// The path between this host and a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transit {
    /// The storage is a folder of this host.
    Local,
    /// A network with a protocol that detects alterations.
    Protected,
    /// A network without such a protocol: HTTP without TLS.
    Unprotected,
}

/// The result of a call on a [`Storage`].
pub type Result<T> = std::result::Result<T, Error>;

/// Called before this number of bytes is written. Returns whether to continue.
pub(crate) type Gate<'a> = &'a (dyn Fn(usize) -> bool + Sync);

/// A storage for repository files. All methods may be called by several threads at once.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Returns the repository's address as a user would write it, without secrets.
    fn url(&self) -> String;

    /// Creates the folders of an empty repository. Existing ones are kept.
    fn create_layout(&self) -> Result<()>;

    /// Lists the files of one kind, in no particular order, without temporary files of unfinished writes.
    ///
    /// A missing folder is an error, because it means more than "no files". The exception is `locks`, which tools that
    /// copy repositories leave out when it is empty: it is then considered empty.
    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>>;

    /// Returns whether [`Storage::list_several`] takes no longer than one listing.
    fn lists_several_at_once(&self) -> bool {
        false
    }

    /// Like [`Storage::list`], for several kinds except packs.
    fn list_several(&self, kinds: &[FileKind]) -> Result<Vec<Vec<FileInfo>>> {
        kinds.iter().map(|kind| self.list(*kind)).collect()
    }

    /// Reads the config and lists files of these kinds. An error of the config takes precedence.
    fn read_config_and_list(&self, kinds: &[FileKind]) -> Result<(Vec<u8>, Vec<Vec<FileInfo>>)> {
        Ok((self.read(FileKind::Config, "")?, self.list_several(kinds)?))
    }

    /// Returns the size of a file, or [`Error::NotFound`].
    fn size(&self, kind: FileKind, name: &str) -> Result<u64>;

    /// Returns when a file was last written, by the clock of this host, or `None` if the storage has its own clock.
    fn modified_at(&self, _kind: FileKind, _name: &str) -> Result<Option<SystemTime>> {
        Ok(None)
    }

    /// Reads a whole file. Returns [`Error::TooLong`] if it is longer than any valid one of its kind.
    fn read(&self, kind: FileKind, name: &str) -> Result<Vec<u8>>;

    /// Reads `length` bytes from `offset`. Returns [`Error::TooShort`] if the file ends before that.
    fn read_range(&self, kind: FileKind, name: &str, offset: u64, length: usize) -> Result<Vec<u8>>;

    /// Writes a file. It is complete and durable (synced, renamed, folder synced) when the call returns, and not
    /// visible under its name before. An existing file is replaced: names are hashes of the contents.
    fn write(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()>;

    /// Like [`Storage::write`], but calls `gate` before each piece is sent, which may block, and with 0 before the file
    /// becomes visible. If it returns `false`, the write ends with [`Error::Interrupted`]. A storage that can only
    /// write in one piece calls it once.
    fn write_gated(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate) -> Result<()> {
        match gate(contents.len()) {
            true => self.write(kind, name, contents),
            false => Err(Error::Interrupted),
        }
    }

    /// Like [`Storage::write`], but fails with [`Error::Exists`] if the file exists: of several creators exactly one
    /// succeeds. Only on a file system without hard links may a reader see an incomplete file.
    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()>;

    /// Removes a file if it has exactly these contents; otherwise it stays. Returns whether it was removed.
    ///
    /// The file may be absent for a moment while it is compared, so this is only for files that nobody needs yet.
    fn remove_exact(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<bool>;

    /// Durably removes a file. Returns [`Error::NotFound`] if it does not exist.
    fn remove(&self, kind: FileKind, name: &str) -> Result<()>;

    /// Returns the best number of files for one call of [`Storage::remove_many`].
    fn removal_batch(&self) -> usize {
        1
    }

    /// Removes several files like [`Storage::remove`], ignoring missing ones. If it fails, some of them may be removed.
    fn remove_many(&self, kind: FileKind, names: &[String]) -> Result<()> {
        names.iter().try_for_each(|name| match self.remove(kind, name) {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        })
    }

    /// Makes the existence or removal of a file durable, after a write or removal whose result is unknown. (If the file
    /// exists, its contents are already durable.)
    fn sync_folder(&self, kind: FileKind, name: &str) -> Result<()>;

    /// Removes the remains of killed writers: unfinished files that cannot have an active writer. Never removes a file
    /// that [`Storage::list`] returns. A storage without such remains does nothing.
    fn remove_leftovers(&self) -> Result<()> {
        Ok(())
    }

    /// Announces the number of files that will soon be read or written at once, so that the storage can prepare for it.
    fn warm_up(&self, _files: usize) {}

    /// Returns the best number of files to read or write in parallel. It is larger for a remote storage than for a
    /// disk.
    fn parallel(&self) -> usize {
        2
    }

    /// Returns whether a listing contains every file whose write has returned, and none whose removal has, by any
    /// process.
    fn sees_writes_at_once(&self) -> bool {
        false
    }

    /// Returns the path between this host and the storage.
    fn transit(&self) -> Transit {
        Transit::Local
    }

    /// Returns whether the place contains other things, but neither a repository nor the remains of one. Only a
    /// server's folder is ever checked for this.
    fn is_taken(&self) -> Result<bool> {
        Ok(false)
    }

    /// Returns how long new files are locked against removal and changes, if that is configured.
    fn lock_period(&self) -> Option<Duration> {
        None
    }

    /// Returns whether the storage can lock files.
    fn can_lock(&self) -> Result<bool> {
        Ok(false)
    }

    /// Returns until when a file is locked against removal and changes, or `None` if it is not.
    fn locked_until(&self, _kind: FileKind, _name: &str) -> Result<Option<SystemTime>> {
        Ok(None)
    }

    /// Extends a file's lock to [`Storage::lock_period`] from now, unless at least half of that period is left. Returns
    /// until when it is locked.
    fn extend_lock(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.locked_until(kind, name)
    }

    /// Returns the free space for new files, if the storage reports it.
    fn free_bytes(&self) -> Result<Option<u64>>;
}
