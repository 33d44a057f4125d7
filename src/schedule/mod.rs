//! When backups run by themselves: cron expressions, and the places where a schedule is entered.
//!
//! | module | what |
//! | --- | --- |
//! | `field`, `cron` | what crontab(5) expressions mean; pure |
//! | `entry` | the line that cron runs |
//! | `crontab` | a user's crontab, of which nothing but our lines is touched |
//! | `systemd` | a service and its timer |
//! | `place` | these places, side by side |

mod cron;
mod crontab;
mod entry;
mod error;
mod field;
mod place;
mod systemd;

pub use cron::{Cron, CronError};
pub use entry::Job;
pub use error::Error;
pub use field::Field;
pub use place::{Change, Installed, Place, old_entries, remove_old_entries};

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a file that everybody may read: whole, or not at all.
fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    // cron and systemd pass over names that begin with a dot.
    let mut file = tempfile::Builder::new()
        .prefix(".kvmb-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(Error::io("write", path))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all());
    written.map_err(Error::io("write", path))?;
    file.persist(path).map_err(|error| Error::io("write", path)(error.error))?;
    Ok(())
}
