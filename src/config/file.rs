//! Where the configuration file is searched for, and who may read and write it.
//!
//! Anyone who can write the file can make kvmb run commands (hooks), often as root, so a file that others can write is
//! refused. So is a file that other users can read and that contains a command which prints a password.

use super::document::{self, DocumentError};
use super::{Config, KeyError, SECRET_KEYS};
use crate::bounded;
use rustix::fs::OFlags;
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The path of a user's configuration below the home folder, as in kvm_backup.
const OF_USER: &str = ".kvm_backup_config.json";

/// The path of a user's configuration below the configuration folder.
pub(crate) const OF_USER_XDG: &str = "kvmb/config.json";

/// The configuration of the host.
pub(crate) const OF_HOST: &str = "/etc/kvmb/config.json";

/// How long reading from a pipe may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Maximum size of a configuration; a larger file is assumed to be the wrong one.
const LARGEST_BYTES: u64 = 16 << 20;

/// A configuration and its file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loaded {
    /// The effective configuration.
    pub(crate) config: Config,
    /// The file, if there is one.
    pub(crate) file: Option<PathBuf>,
    /// The content of the file.
    pub(crate) said: Value,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that was given does not exist.
    #[error("configuration file {} does not exist", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read configuration file {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file belongs to another user, who is not root.
    #[error("configuration file {} belongs to user {owner}, who could make kvmb run commands", .path.display())]
    ForeignOwner {
        /// The file.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
    },
    /// Other users can write it.
    #[error("configuration file {} is writable by other users (mode {mode:04o}), who could make kvmb run \
        commands", .path.display())]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Other users can read it, and it contains a secret.
    #[error("configuration file {} is readable by other users (mode {mode:04o}), and its key \"{key}\" may reveal a \
        password", .path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The key.
        key: &'static str,
    },
    /// The file is not a JSON object.
    #[error("configuration file {} is not valid JSON: {reason}", .path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The parser's message, with the position of the error.
        reason: String,
    },
    /// Keys or values in it are wrong.
    #[error("configuration file {} has {} errors", .path.display(), .faults.len())]
    Faults {
        /// The file.
        path: PathBuf,
        /// All of the errors.
        faults: Vec<KeyError>,
    },
}

impl Error {
    /// Returns the file that the error is about.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Error::Missing { path }
            | Error::Io { path, .. }
            | Error::ForeignOwner { path, .. }
            | Error::Writable { path, .. }
            | Error::Readable { path, .. }
            | Error::NotJson { path, .. }
            | Error::Faults { path, .. } => path,
        }
    }
}

/// Loads the file that was given; else that of the user, from the home folder or the configuration folder
/// (`$XDG_CONFIG_HOME`, `~/.config`); else that of the host. Without any of them, returns the defaults.
pub(crate) fn load(named: Option<&Path>, home: Option<&Path>, config_home: Option<&Path>) -> Result<Loaded, Error> {
    if let Some(path) = named {
        return read(path)?.ok_or_else(|| Error::Missing { path: path.to_owned() });
    }
    let of_user = [home.map(|home| home.join(OF_USER)), config_home.map(|folder| folder.join(OF_USER_XDG))];
    for path in of_user.into_iter().flatten() {
        if let Some(found) = read(&path)? {
            return Ok(found);
        }
    }
    match read(Path::new(OF_HOST)) {
        Ok(found) => Ok(found.unwrap_or_default()),
        // The host's file is not meant for this user, who can use kvmb without it.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => Ok(Loaded::default()),
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> Result<Option<Loaded>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    // Check the open file, so that nobody can replace it between the check and the reading.
    let metadata = file.metadata().map_err(io)?;
    let mode = metadata.mode() & 0o7777;
    if metadata.is_file() {
        if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) {
            return Err(Error::ForeignOwner { path: path.to_owned(), owner: metadata.uid() });
        }
        if mode & 0o022 != 0 {
            return Err(Error::Writable { path: path.to_owned(), mode });
        }
    }
    let content = match metadata.is_file() {
        true => {
            let mut content = Vec::new();
            file.take(LARGEST_BYTES).read_to_end(&mut content).map_err(io)?;
            content
        }
        // A pipe, possibly from a shell's '<(…)', needs a writer.
        false => bounded::read(path, LARGEST_BYTES, LIMIT, &bounded::ending()).map_err(io)?,
    };
    let text = String::from_utf8(content)
        .map_err(|_| Error::NotJson { path: path.to_owned(), reason: "it is not UTF-8".to_owned() })?;
    let (config, said) = document::read(&text).map_err(|refusal| match refusal {
        DocumentError::NotJson(reason) => Error::NotJson { path: path.to_owned(), reason },
        DocumentError::Faults(faults) => Error::Faults { path: path.to_owned(), faults },
    })?;
    let secret = SECRET_KEYS.into_iter().find(|key| value_of(&said, key).is_some());
    match secret {
        Some(key) if metadata.is_file() && mode & 0o004 != 0 => {
            Err(Error::Readable { path: path.to_owned(), mode, key })
        }
        _ => Ok(Some(Loaded { config, file: Some(path.to_owned()), said })),
    }
}

/// Returns the value of a key such as `ssh.port`.
pub(crate) fn value_of<'a>(document: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(document, |value, step| value.get(step))
}
