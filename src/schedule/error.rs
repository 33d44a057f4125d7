//! What can go wrong with a schedule.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the entry needs is not there.
    #[error("{name} was not found on the path")]
    NoProgram {
        /// Its name.
        name: &'static str,
    },
    /// Something that a line of a crontab or of a unit cannot hold.
    #[error("an entry cannot hold {what}")]
    Unspeakable {
        /// What.
        what: String,
    },
    /// A command that cron would cut off.
    #[error("the command has {bytes} bytes, and cron takes {most}")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        most: usize,
    },
    /// The markers in a crontab do not come in pairs.
    #[error("line {line} of the crontab, {text:?}, has lost its other half")]
    Unpaired {
        /// Where, from 1.
        line: usize,
        /// The marker.
        text: String,
    },
    /// `crontab -l` shows this crontab otherwise than it is.
    #[error("the crontab has lines that end in a carriage return, which crontab does not show as they are")]
    CarriageReturns,
    /// A program failed.
    #[error("{program} failed: {message}")]
    Program {
        /// Which, with its arguments.
        program: String,
        /// What it said.
        message: String,
    },
    /// Somebody else changed the crontab at the same time.
    #[error("the crontab was changed by somebody else at the same time")]
    Changed,
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}
