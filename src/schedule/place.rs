//! The places that a schedule can be in.

use super::crontab::{self, Crontab};
use super::entry::read_line;
use super::systemd::{self, Units};
use super::{Cron, Error, ScheduledJob};
use crate::atomic_file;
use std::fs;
use std::path::Path;

/// The file for cron that the whole system shares.
const SYSTEM_FILE: &str = "/etc/cron.d/kvmb";

/// What comes before the entry in that file; cron's own path is short.
const SYSTEM_HEAD: &str = "\
# Created by 'kvmb schedule install --system', removed by 'kvmb schedule remove --system'.
SHELL=/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
";

/// Where a schedule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScheduleLocation {
    /// The crontab of the user that kvmb runs as.
    User,
    /// `/etc/cron.d/kvmb`.
    System,
    /// A systemd timer.
    Systemd,
}

/// A schedule that is there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Installed {
    /// Its text: the entry, or the units.
    pub(crate) entry: String,
    /// When it runs, and what; none where somebody has changed it beyond recognition.
    pub(crate) job: Option<(Cron, String)>,
}

/// What a change makes of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScheduleChange {
    /// What the place holds then.
    pub(crate) entry: String,
    /// Whether that is other than before.
    pub(crate) changed: bool,
}

impl ScheduleLocation {
    /// All of them.
    pub(crate) const ALL: [ScheduleLocation; 3] =
        [ScheduleLocation::User, ScheduleLocation::System, ScheduleLocation::Systemd];

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ScheduleLocation::User => "crontab",
            ScheduleLocation::System => SYSTEM_FILE,
            ScheduleLocation::Systemd => systemd::TIMER,
        }
    }

    /// The schedule that is there.
    pub(crate) fn installed(self) -> Result<Option<Installed>, Error> {
        match self {
            ScheduleLocation::User => {
                let entry = crontab::read()?.entry()?;
                Ok(entry.map(|entry| Installed { job: read_lines(&entry, false), entry }))
            }
            ScheduleLocation::System => {
                let entry = read_system_file()?;
                Ok(entry.map(|entry| Installed { job: read_lines(&entry, true), entry }))
            }
            ScheduleLocation::Systemd => {
                Ok(Units::read()?.map(|units| Installed { job: units.job(), entry: text_of(&units) }))
            }
        }
    }

    /// Puts a job there, in the place of the one that may be there.
    pub(crate) fn install(self, job: &ScheduledJob, dry_run: bool) -> Result<ScheduleChange, Error> {
        match self {
            ScheduleLocation::User => {
                let entry = job.crontab_line(None)?;
                let [before, after] = crontab::change(dry_run, |before| before.with_entry(&entry))?;
                Ok(ScheduleChange { entry, changed: before != after })
            }
            ScheduleLocation::System => {
                let entry = format!("{SYSTEM_HEAD}{}\n", job.crontab_line(Some("root"))?);
                let changed = read_system_file()?.as_ref() != Some(&entry);
                if changed && !dry_run {
                    super::write_file(Path::new(SYSTEM_FILE), &entry)?;
                }
                Ok(ScheduleChange { entry, changed })
            }
            ScheduleLocation::Systemd => {
                let units = Units::new(job)?;
                let changed = Units::read()?.as_ref() != Some(&units) || !systemd::is_enabled();
                if changed && !dry_run {
                    units.install()?;
                }
                Ok(ScheduleChange { entry: text_of(&units), changed })
            }
        }
    }

    /// Takes away what is there; whether anything was.
    pub(crate) fn remove(self, dry_run: bool) -> Result<bool, Error> {
        match self {
            ScheduleLocation::User => {
                let [before, after] = crontab::change(dry_run, Crontab::without_entry)?;
                Ok(before != after)
            }
            ScheduleLocation::System => {
                let path = Path::new(SYSTEM_FILE);
                let there = path.exists();
                if there && !dry_run {
                    fs::remove_file(path).map_err(Error::io("remove", path))?;
                }
                Ok(there)
            }
            ScheduleLocation::Systemd => {
                let there = Units::read()?.is_some();
                if there && !dry_run {
                    Units::remove()?;
                }
                Ok(there)
            }
        }
    }
}

/// The entries of kvmb's forerunner in the user's crontab; taken out of it unless this is a rehearsal.
pub(crate) fn remove_old_entries(dry_run: bool) -> Result<(), Error> {
    crontab::change(dry_run, |before| Ok(before.without_old_entries())).map(drop)
}

/// The entries of kvmb's forerunner in the user's crontab.
pub(crate) fn old_entries() -> Result<Vec<String>, Error> {
    Ok(crontab::read()?.old_entries())
}

fn read_system_file() -> Result<Option<String>, Error> {
    match atomic_file::read_to_string(Path::new(SYSTEM_FILE)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", Path::new(SYSTEM_FILE))(error)),
    }
}

/// The job in the lines of a crontab: variables and comments are none.
fn read_lines(lines: &str, with_user: bool) -> Option<(Cron, String)> {
    lines.lines().find_map(|line| read_line(line, with_user))
}

fn text_of(units: &Units) -> String {
    format!("{}\n{}", units.timer, units.service)
}
