//! When backups run by themselves: cron expressions, and the places where a schedule is entered.
//!
//! | module | what |
//! | --- | --- |
//! | `field`, `cron`, `gap`, `words` | what crontab(5) expressions mean; pure |
//! | `entry` | the line that cron runs |
//! | `crontab` | a user's crontab, of which nothing but our lines is touched |
//! | `systemd`, `units` | a service and its timer; how units are installed |
//! | `place` | these places, side by side |

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

/// Writes a file that everybody may read.
fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    atomic_file::write(path, text.as_bytes(), 0o644).map_err(Error::io("write", path))
}
