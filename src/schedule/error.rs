//! Errors of schedules.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An error of a schedule.
#[allow(missing_docs, reason = "the messages say what the fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the entry requires does not exist.
    #[error("{name} was not found in PATH")]
    NoProgram { name: &'static str },
    /// A line of a crontab or of a unit cannot contain this.
    #[error("a schedule entry cannot contain {what}")]
    Unspeakable { what: String },
    /// cron would truncate the command.
    #[error("the command has {bytes} bytes; cron accepts at most {most}")]
    TooLong {
        /// The length of the command.
        bytes: usize,
        /// The maximum length.
        most: usize,
    },
    /// The markers in a crontab do not come in pairs.
    #[error("line {line} of the crontab, {text:?}, has no matching marker line")]
    Unpaired {
        /// The line number, from 1.
        line: usize,
        text: String,
    },
    /// `crontab -l` does not show the crontab unchanged.
    #[error("the crontab contains carriage returns, which 'crontab -l' does not show")]
    CarriageReturns,
    #[error("{program} failed: {message}")]
    Program {
        /// The program with its arguments.
        program: String,
        message: String,
    },
    /// `/etc/cron.allow` or `/etc/cron.deny` excludes this user.
    #[error("this user must not use cron: {message}")]
    Excluded {
        /// What crontab(1) says.
        message: String,
    },
    /// A program did not end in time.
    #[error("{program} did not end within {} s", after.as_secs())]
    TimedOut {
        program: &'static str,
        /// The timeout.
        after: Duration,
    },
    /// The program was interrupted by the user or the system.
    #[error("interrupted")]
    Interrupted,
    /// Another run of kvmb has been changing the crontab for too long.
    #[error("another run of kvmb is changing the crontab: {} is locked", folder.display())]
    Locked { folder: PathBuf },
    /// Another program changed the crontab at the same time.
    #[error("another program changed the crontab at the same time")]
    Changed,
    /// A file in kvmb's place was created by somebody else.
    #[error("{} was not created by kvmb", path.display())]
    Foreign { path: PathBuf },
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

/// Why a text is not a valid cron expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    #[error(
        "it has {found} fields; expected 5 (minute, hour, day of the month, month, day of the week), or @daily and \
         similar"
    )]
    FieldCount {
        /// The actual number of fields.
        found: usize,
    },
    /// A field is invalid.
    #[error("invalid {field} '{value}': {rule}")]
    Field {
        field: CronField,
        /// The invalid part of the field.
        value: String,
        rule: String,
    },
    /// An unknown `@` word.
    #[error("'{word}' is not a valid time: cron accepts \
        {}{}", NICKNAMES.map(|(name, _)| name).join(", "), nearest.map(|name| format!("; did you mean \
        {name}?")).unwrap_or_default())]
    Nickname {
        word: String,
        /// A similar valid word.
        nearest: Option<&'static str>,
    },
    /// The date never occurs.
    #[error("this date never occurs")]
    Never,
}

/// The expressions for `@` words; `@reboot` has none.
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
