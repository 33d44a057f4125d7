//! The places that a schedule can be in.

use super::crontab::{self, Crontab};
use super::entry::{JobKind, read_line};
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
    Systemd,
}

/// A schedule that is there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Installed {
    /// Its text: the entry, or the units.
    pub(crate) entry: String,
    /// What runs, and when: the backup, then the drill, if there is one. None where somebody has changed it beyond
    /// recognition.
    pub(crate) jobs: Vec<(Cron, String)>,
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

    /// What people call the place of its drill.
    pub(crate) fn drill_name(self) -> &'static str {
        match self {
            ScheduleLocation::Systemd => systemd::DRILL_TIMER,
            ScheduleLocation::User | ScheduleLocation::System => self.name(),
        }
    }

    /// The schedule that is there.
    pub(crate) fn installed(self) -> Result<Option<Installed>, Error> {
        match self {
            ScheduleLocation::User => {
                let entry = crontab::read()?.entry()?;
                Ok(entry.map(|entry| Installed { jobs: read_lines(&entry, false), entry }))
            }
            ScheduleLocation::System => {
                let entry = read_system_file()?;
                Ok(entry.map(|entry| Installed { jobs: read_lines(&entry, true), entry }))
            }
            ScheduleLocation::Systemd => {
                let (mut entries, mut jobs) = (Vec::new(), Vec::new());
                for kind in JobKind::ALL {
                    if let Some(units) = Units::read(kind)? {
                        entries.push(text_of(&units));
                        jobs.extend(units.job());
                    }
                }
                Ok((!entries.is_empty()).then(|| Installed { entry: entries.join("\n"), jobs }))
            }
        }
    }

    /// Puts these jobs there, in the place of those that may be there.
    pub(crate) fn install(self, jobs: &[ScheduledJob], dry_run: bool) -> Result<ScheduleChange, Error> {
        match self {
            ScheduleLocation::User => {
                let entry = crontab_lines(jobs, None)?;
                let [before, after] = crontab::change(dry_run, |before| before.with_entry(&entry))?;
                Ok(ScheduleChange { entry, changed: before != after })
            }
            ScheduleLocation::System => {
                let entry = format!("{SYSTEM_HEAD}{}\n", crontab_lines(jobs, Some("root"))?);
                let changed = read_system_file()?.as_ref() != Some(&entry);
                if changed && !dry_run {
                    super::write_file(Path::new(SYSTEM_FILE), &entry)?;
                }
                Ok(ScheduleChange { entry, changed })
            }
            ScheduleLocation::Systemd => {
                let wanted =
                    jobs.iter().map(|job| Ok((job.kind, Units::new(job)?))).collect::<Result<Vec<_>, Error>>()?;
                let mut changed = false;
                for kind in JobKind::ALL {
                    let installed = Units::read(kind)?;
                    let units = wanted.iter().find(|(of, _)| *of == kind).map(|(_, units)| units);
                    if installed.as_ref() == units && (units.is_none() || systemd::is_enabled(kind)) {
                        continue;
                    }
                    changed = true;
                    match units {
                        _ if dry_run => {}
                        Some(units) => units.install(kind)?,
                        None => Units::remove(kind)?,
                    }
                }
                let entry = wanted.iter().map(|(_, units)| text_of(units)).collect::<Vec<_>>().join("\n");
                Ok(ScheduleChange { entry, changed })
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
                let mut any = false;
                for kind in JobKind::ALL {
                    let there = Units::read(kind)?.is_some();
                    if there && !dry_run {
                        Units::remove(kind)?;
                    }
                    any |= there;
                }
                Ok(any)
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

/// The lines of jobs for a crontab, without the end of the last one.
fn crontab_lines(jobs: &[ScheduledJob], user: Option<&str>) -> Result<String, Error> {
    let lines = jobs.iter().map(|job| job.crontab_line(user)).collect::<Result<Vec<_>, _>>()?;
    Ok(lines.join("\n"))
}

/// The jobs in the lines of a crontab: variables and comments are none.
fn read_lines(lines: &str, with_user: bool) -> Vec<(Cron, String)> {
    lines.lines().filter_map(|line| read_line(line, with_user)).collect()
}

fn text_of(units: &Units) -> String {
    format!("{}\n{}", units.timer, units.service)
}
