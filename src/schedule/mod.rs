//! Scheduled backups: cron expressions, and the places in which a schedule is installed.
//!
//! | module | contents |
//! | --- | --- |
//! | `field`, `cron`, `gap`, `words` | the meaning of crontab(5) expressions; no I/O |
//! | `entry` | the line that cron runs |
//! | `crontab` | a user's crontab, in which only kvmb's lines are changed |
//! | `systemd`, `units` | a service and its timer; installation of units |
//! | `place` | the common interface of these places |

mod cron;
mod crontab;
mod entry;
mod error;
mod field;
mod gap;
mod place;
mod systemd;
pub(crate) mod units;
mod words;

pub use cron::Cron;
#[cfg(any(test, feature = "testing"))]
pub(crate) use crontab::Crontab;
pub(crate) use entry::{JobKind, ScheduledJob};
pub(crate) use error::CronError;
pub use error::Error;
pub(crate) use place::{Installed, ScheduleLocation, old_entries, remove_old_entries};

use crate::atomic_file;
use std::path::Path;

/// The words by which kvmb recognizes its own files: "Created by 'kvmb …'", in version 0.1 "Made by 'kvmb …'".
const OWN_WORDS: &str = " by 'kvmb ";

/// Refuses to change a file with this text if kvmb did not create it.
fn check_own(path: &Path, text: &str) -> Result<(), Error> {
    match text.contains(OWN_WORDS) || text.trim().is_empty() {
        true => Ok(()),
        false => Err(Error::Foreign { path: path.to_owned() }),
    }
}

/// Writes a world-readable file.
fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    atomic_file::write(path, text.as_bytes(), 0o644).map_err(Error::io("write", path))
}
