//! What can go wrong with a schedule.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An error of this layer.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the entry needs is not there.
    #[error("{name} was not found in PATH")]
    NoProgram { name: &'static str },
    /// Something that a line of a crontab or of a unit cannot hold.
    #[error("a schedule entry cannot contain {what}")]
    Unspeakable { what: String },
    /// A command that cron would cut off.
    #[error("the command has {bytes} bytes; cron accepts at most {most}")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        most: usize,
    },
    /// The markers in a crontab do not come in pairs.
    #[error("line {line} of the crontab, {text:?}, has no matching marker line")]
    Unpaired {
        /// Where, from 1.
        line: usize,
        text: String,
    },
    /// `crontab -l` shows this crontab otherwise than it is.
    #[error("the crontab contains carriage returns, which 'crontab -l' does not show")]
    CarriageReturns,
    #[error("{program} failed: {message}")]
    Program {
        /// Which, with its arguments.
        program: String,
        message: String,
    },
    /// A program did not end.
    #[error("{program} did not end within {} s", after.as_secs())]
    TimedOut {
        program: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The user or the system interrupted it.
    #[error("interrupted")]
    Interrupted,
    /// Another run of kvmb has been changing the crontab for too long.
    #[error("another run of kvmb is changing the crontab: {} is locked", folder.display())]
    Locked { folder: PathBuf },
    /// Somebody else changed the crontab at the same time.
    #[error("another program changed the crontab at the same time")]
    Changed,
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// For `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CronField {
    /// 0 to 59.
    Minute,
    /// 0 to 23.
    Hour,
    /// 1 to 31.
    DayOfMonth,
    /// 1 to 12, or `jan` to `dec`.
    Month,
    /// 0 to 7, where both 0 and 7 are Sunday, or `sun` to `sat`.
    DayOfWeek,
}

impl fmt::Display for CronField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CronField::Minute => "minute",
            CronField::Hour => "hour",
            CronField::DayOfMonth => "day of the month",
            CronField::Month => "month",
            CronField::DayOfWeek => "day of the week",
        })
    }
}

/// Why a text is no cron expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    #[error(
        "it has {found} fields; expected 5 (minute, hour, day of the month, month, day of the week), or @daily and \
         similar"
    )]
    FieldCount {
        /// How many it has.
        found: usize,
    },
    /// A field that breaks a rule.
    #[error("invalid {field} '{value}': {rule}")]
    Field {
        field: CronField,
        /// The part of it that is wrong.
        value: String,
        rule: String,
    },
    /// An `@` word that cron does not know.
    #[error("'{word}' is not a valid time: cron accepts \
        {}{}", NICKNAMES.map(|(name, _)| name).join(", "), nearest.map(|name| format!("; did you mean \
        {name}?")).unwrap_or_default())]
    Nickname {
        word: String,
        /// The one that looks like it.
        nearest: Option<&'static str>,
    },
    /// A date that never comes.
    #[error("this date never occurs")]
    Never,
}

/// What stands for an expression; `@reboot` is for none.
pub(super) const NICKNAMES: [(&str, &str); 8] = [
    ("@reboot", ""),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
