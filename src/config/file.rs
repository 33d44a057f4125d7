//! Where the configuration is looked for, and who may read and write it.
//!
//! Whoever can write it makes kvmb run commands (hooks), and that is often root: such a file is refused. So is one that
//! other users can read and that has a command in it which prints a password.

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

/// The configuration of a user, below the home folder: the place of kvm_backup.
const OF_USER: &str = ".kvm_backup_config.json";

/// The same, below the folder of configurations.
pub(crate) const OF_USER_XDG: &str = "kvmb/config.json";

/// The configuration of the host.
pub(crate) const OF_HOST: &str = "/etc/kvmb/config.json";

/// How long one that is a pipe may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Larger ones are taken for a slip.
const LARGEST_BYTES: u64 = 16 << 20;

/// A configuration and where it came from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loaded {
    /// What applies.
    pub(crate) config: Config,
    /// The file; none if there is none.
    pub(crate) file: Option<PathBuf>,
    /// What the file says.
    pub(crate) said: Value,
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that was named is not there.
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
        /// Why.
        source: std::io::Error,
    },
    /// It belongs to a third party.
    #[error("configuration file {} belongs to user {owner}, who could make kvmb run commands", .path.display())]
    ForeignOwner {
        /// The file.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
    },
    /// Others may write it.
    #[error("configuration file {} is writable by other users (mode {mode:04o}), who could make kvmb run \
        commands", .path.display())]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Everybody may read it, and it has a secret.
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
    /// It is no JSON object.
    #[error("configuration file {} is not valid JSON: {reason}", .path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// Why not, and where.
        reason: String,
    },
    /// Keys or values in it are wrong.
    #[error("configuration file {} has {} errors", .path.display(), .faults.len())]
    Faults {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: Vec<KeyError>,
    },
}

impl Error {
    /// The file that it is about.
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

/// Reads the file that was named; else that of the user, whose home folder and folder of configurations
/// (`$XDG_CONFIG_HOME`, `~/.config`) these are; else that of the host. Without any of them, all is as by default.
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
        // Not meant for this user, who can still do without.
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
    // Of the open file: nobody can put another in its place between the look and the reading.
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
        // A pipe, of a shell's '<(…)' perhaps: somebody has to write to it.
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

/// The value of a key, as `ssh.port`.
pub(crate) fn value_of<'a>(document: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(document, |value, step| value.get(step))
}
