//! Where the files of a repository live.
//!
//! A repository is a handful of folders of immutable files. [`Storage`] is all that the layers above know of the place:
//! it is small on purpose, so that a decorator (retry, limit) or a test (record, delay, corrupt) can stand in between.
//! Every implementation and every decorator passes the same conformance suite.

mod action;
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

/// What kind of file: decides the folder. The names on disk are restic's
/// (`doc/design.rst`, "Repository Format").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// `config`, the one file that has no name of its own.
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
    /// Every kind, `Config` first.
    pub const ALL: [FileKind; 6] =
        [FileKind::Config, FileKind::Key, FileKind::Lock, FileKind::Snapshot, FileKind::Index, FileKind::Pack];

    /// The folder that holds files of this kind (for [`FileKind::Config`] the file itself).
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

    /// A file of this kind that is longer is none of a repository: whoever has damaged it, or a server that makes it
    /// up, must not fill our memory. Lists of a million blobs and snapshots with thousands of paths are far shorter.
    pub(crate) fn longest_bytes(self) -> u64 {
        match self {
            FileKind::Config | FileKind::Key | FileKind::Lock => 64 << 10,
            FileKind::Snapshot => 64 << 20,
            FileKind::Index => 512 << 20,
            // Offsets in it have 32 bits.
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

/// A file as [`Storage::list`] found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// The file's name without its folder: 64 hex digits in a healthy repository.
    pub name: String,
    /// As stored: encrypted, and compressed where it is.
    pub size_bytes: u64,
}

/// What can go wrong with one file, or with the place as a whole.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that means no place.
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
        /// What was asked for.
        kind: FileKind,
        name: String,
    },
    /// A file was to be created, and one of that name exists.
    #[error("{kind} {name} exists in {url}")]
    Exists {
        url: String,
        /// What was to be created.
        kind: FileKind,
        name: String,
    },
    /// The file is shorter than what was asked of it.
    #[error("{kind} {name} in {url} ends before byte {wanted_bytes}")]
    TooShort {
        url: String,
        kind: FileKind,
        name: String,
        /// Where the read should have ended.
        wanted_bytes: u64,
    },
    /// The file is longer than any of its kind ([`FileKind::longest_bytes`]).
    #[error("{kind} {name} in {url} is longer than {longest_bytes} bytes")]
    TooLong {
        url: String,
        /// What was to be read.
        kind: FileKind,
        name: String,
        /// What it may have at most.
        longest_bytes: u64,
    },
    /// The place is full, or the user's share of it.
    #[error("{} for {} in {url}", shortage(source), path.display())]
    NoSpace {
        url: String,
        /// The file that did not fit.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server that the place is on, or the way to it.
    #[error("{source}")]
    Server { url: String, source: Box<sftp::Error> },
    /// The same for a server that speaks HTTP, or what it refused.
    #[error("{source}")]
    Http {
        /// The repository's address.
        url: String,
        source: Box<http::Error>,
    },
    /// A call failed, of this host's system or of the server's.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: FileAction,
        /// The file or folder.
        path: PathBuf,
        source: std::io::Error,
    },
    /// The connection stayed bad.
    #[error("{source}{}", given_up(*after))]
    GaveUp {
        /// What the last try came to.
        source: Box<Error>,
        /// How long it was tried.
        after: Duration,
    },
    /// Told to stop while waiting to try again.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A file of this kind must not be so long.
    pub(in crate::storage) fn too_long(url: String, kind: FileKind, name: &str) -> Error {
        Error::TooLong { url, kind, name: name.to_owned(), longest_bytes: kind.longest_bytes() }
    }

    /// Whether the file was simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }

    /// Whether the place could not be reached, so that nothing is known of its files.
    pub(crate) fn is_unreachable(&self) -> bool {
        match self {
            Error::Server { .. } | Error::GaveUp { .. } | Error::Interrupted => true,
            Error::Http { source, .. } => source.is_unreachable(),
            _ => self.is_transient(),
        }
    }

    /// Whether this may come of a request or an answer that was changed on the way.
    pub(in crate::storage) fn is_doubtful(&self, transit: Transit) -> bool {
        match self {
            Error::Http { source, .. } => match transit {
                Transit::Unprotected => source.is_doubtful(),
                _ => source.is_rejected_upload(),
            },
            _ => false,
        }
    }

    /// Whether the server does not let us do it.
    fn is_denial(&self) -> bool {
        matches!(self, Error::Http { source, .. } if source.is_denial())
    }

    /// Whether the same call may succeed a moment later: a connection that was lost, a server that was busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Server { source, .. } => source.is_transient(),
            Error::Http { source, .. } => source.is_transient(),
            // A mounted file system of a server has such errors too.
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

/// How long it was tried; nothing where the first try was the only one.
fn given_up(after: Duration) -> String {
    match after.as_secs() {
        0 => String::new(),
        seconds => format!("; gave up after {seconds} s"),
    }
}

/// What there is none of: the file system may have room that the user may not have.
fn shortage(source: &std::io::Error) -> &'static str {
    if source.kind() == ErrorKind::QuotaExceeded { "disk quota exceeded" } else { "no space left" }
}

/// What lies between this host and a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transit {
    /// Nothing: the place is a folder of this host.
    Local,
    /// A network, on which nothing can be changed without being noticed.
    Protected,
    /// A network on which anything can be changed: HTTP without TLS.
    Unprotected,
}

/// The result of a call on a [`Storage`].
pub type Result<T> = std::result::Result<T, Error>;

/// Called before this number of bytes is written: whether they may be.
pub(crate) type Gate<'a> = &'a (dyn Fn(usize) -> bool + Sync);

/// A place for repository files. All calls may come from several threads at once.
pub trait Storage: Send + Sync + fmt::Debug {
    /// The repository's address as a user would write it, without any secret.
    fn url(&self) -> String;

    /// Makes the folders of an empty repository; what is there already stays.
    fn create_layout(&self) -> Result<()>;

    /// The files of one kind, in no order. Temporary files of unfinished writes are not listed.
    ///
    /// A folder that is missing is an error, for it says more than "no files"; only `locks`, which tools that copy
    /// repositories leave out when it is empty, then counts as empty.
    fn list(&self, kind: FileKind) -> Result<Vec<FileInfo>>;

    /// Whether [`Storage::list_several`] takes no longer than one list.
    fn lists_several_at_once(&self) -> bool {
        false
    }

    /// As [`Storage::list`] for several kinds, none of them packs.
    fn list_several(&self, kinds: &[FileKind]) -> Result<Vec<Vec<FileInfo>>> {
        kinds.iter().map(|kind| self.list(*kind)).collect()
    }

    /// The config, and such lists beside it. What is wrong with the config comes first.
    fn read_config_and_list(&self, kinds: &[FileKind]) -> Result<(Vec<u8>, Vec<Vec<FileInfo>>)> {
        Ok((self.read(FileKind::Config, "")?, self.list_several(kinds)?))
    }

    /// The size of one file, or [`Error::NotFound`].
    fn size(&self, kind: FileKind, name: &str) -> Result<u64>;

    /// When a file was last written, by the clock of this host; none where the place has a clock of its own.
    fn modified_at(&self, _kind: FileKind, _name: &str) -> Result<Option<SystemTime>> {
        Ok(None)
    }

    /// A whole file; one that is longer than any of its kind is [`Error::TooLong`].
    fn read(&self, kind: FileKind, name: &str) -> Result<Vec<u8>>;

    /// `length` bytes from `offset`; fewer than that is [`Error::TooShort`].
    fn read_range(&self, kind: FileKind, name: &str, offset: u64, length: usize) -> Result<Vec<u8>>;

    /// Writes a file that is complete and durable (synced, renamed, folder synced) when the call returns, and not
    /// visible under its name before. Writing a name that exists replaces it: names are hashes of the content.
    fn write(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()>;

    /// The same through a gate, which is asked before each piece of that many bytes goes out, and may take its time.
    /// Before the file gets its name it is asked once more, about nothing. Where it says no, writing ends with
    /// [`Error::Interrupted`]. A place that can only write in one go asks once.
    fn write_gated(&self, kind: FileKind, name: &str, contents: &[u8], gate: Gate) -> Result<()> {
        match gate(contents.len()) {
            true => self.write(kind, name, contents),
            false => Err(Error::Interrupted),
        }
    }

    /// As [`Storage::write`], but fails with [`Error::Exists`] where the name is taken: of several creators exactly one
    /// succeeds. Only where the file system has no hard links may a reader see the beginning of the file first.
    fn create(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<()>;

    /// Removes a file if it has exactly these contents; otherwise it stays. Returns whether it was removed.
    ///
    /// The file may be absent for a moment while it is compared, so this is only for files that nobody needs yet.
    fn remove_exact(&self, kind: FileKind, name: &str, contents: &[u8]) -> Result<bool>;

    /// Removes a file, durably as it was written; one that is not there is [`Error::NotFound`].
    fn remove(&self, kind: FileKind, name: &str) -> Result<()>;

    /// How many files are best removed by one call of [`Storage::remove_many`].
    fn removal_batch(&self) -> usize {
        1
    }

    /// Removes several files, as [`Storage::remove`] does; those that are not there are no error. Where it fails, some
    /// of them may be gone.
    fn remove_many(&self, kind: FileKind, names: &[String]) -> Result<()> {
        names.iter().try_for_each(|name| match self.remove(kind, name) {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        })
    }

    /// Makes durable that a file of this name is there, or is not: the end of a write or of a removal, for one whose
    /// end nobody heard of. (What is there under its name has durable contents already.)
    fn sync_folder(&self, kind: FileKind, name: &str) -> Result<()>;

    /// Removes what killed writers left behind: unfinished files that no living writer can have. It never removes a
    /// file that [`Storage::list`] lists. A place that leaves nothing behind has nothing to do.
    fn remove_leftovers(&self) -> Result<()> {
        Ok(())
    }

    /// Announces the number of files that will soon be read or written at once, so that the storage can prepare for it.
    fn warm_up(&self, _files: usize) {}

    /// How many files are best read or written at the same time: over a distance more than on a disk.
    fn parallel(&self) -> usize {
        2
    }

    /// Whether whoever lists a folder sees each file whose write or removal has returned, whoever wrote it.
    fn sees_writes_at_once(&self) -> bool {
        false
    }

    /// What lies between here and the place.
    fn transit(&self) -> Transit {
        Transit::Local
    }

    /// Whether the place holds other things, and neither a repository nor the remains of one. Only a server's folder is
    /// ever looked at so.
    fn is_taken(&self) -> Result<bool> {
        Ok(false)
    }

    /// How long a file stays locked from its writing on, if that is asked for: nobody can remove or change it then.
    fn lock_period(&self) -> Option<Duration> {
        None
    }

    /// Whether the place can lock files.
    fn can_lock(&self) -> Result<bool> {
        Ok(false)
    }

    /// Until when nobody can remove or change a file; none if anybody can.
    fn locked_until(&self, _kind: FileKind, _name: &str) -> Result<Option<SystemTime>> {
        Ok(None)
    }

    /// Locks a file as if it were written now, unless it stays locked for half of [`Storage::lock_period`] in any case.
    /// Returns until when it is locked.
    fn extend_lock(&self, kind: FileKind, name: &str) -> Result<Option<SystemTime>> {
        self.locked_until(kind, name)
    }

    /// Room left for new files, if the place can tell.
    fn free_bytes(&self) -> Result<Option<u64>>;
}
