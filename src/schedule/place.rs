//! The places in which a schedule can be installed.

use super::crontab::{self, Crontab};
use super::entry::{JobKind, read_line};
use super::systemd::{self, Units};
use super::{Cron, Error, ScheduledJob};
use crate::atomic_file;
use std::fs;
use std::path::Path;

/// The system-wide file for cron.
const SYSTEM_FILE: &str = "/etc/cron.d/kvmb";

/// The beginning of that file; cron's own path is short.
const SYSTEM_HEAD: &str = "\
# Created by 'kvmb schedule install --system', removed by 'kvmb schedule remove --system'.
SHELL=/bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
";

/// A place for a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScheduleLocation {
    /// The crontab of the user that kvmb runs as.
    User,
    /// `/etc/cron.d/kvmb`.
    System,
    Systemd,
}

/// An installed schedule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Installed {
    /// Its text: the crontab entry, or the units.
    pub(crate) entry: String,
    /// The jobs with their schedules: the backup, then the drill, if there is one. Empty if the text was changed beyond
    /// recognition.
    pub(crate) jobs: Vec<(Cron, String)>,
}

/// The result of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScheduleChange {
    /// The new text.
    pub(crate) entry: String,
    /// Whether it differs from the old one.
    pub(crate) changed: bool,
}

impl ScheduleLocation {
    pub(crate) const ALL: [ScheduleLocation; 3] =
        [ScheduleLocation::User, ScheduleLocation::System, ScheduleLocation::Systemd];

    /// Returns the name of the place for display.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ScheduleLocation::User => "crontab",
            ScheduleLocation::System => SYSTEM_FILE,
            ScheduleLocation::Systemd => systemd::TIMER,
        }
    }

    /// Returns the name of the place of its drill for display.
    pub(crate) fn drill_name(self) -> &'static str {
        match self {
            ScheduleLocation::Systemd => systemd::DRILL_TIMER,
            ScheduleLocation::User | ScheduleLocation::System => self.name(),
        }
    }

    /// Returns the installed schedule.
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

    /// Installs these jobs, replacing existing ones.
    pub(crate) fn install(self, jobs: &[ScheduledJob], dry_run: bool) -> Result<ScheduleChange, Error> {
        match self {
            ScheduleLocation::User => {
                let entry = crontab_lines(jobs, None)?;
                let [before, after] = crontab::change(dry_run, |before| before.with_entry(&entry))?;
                Ok(ScheduleChange { entry, changed: before != after })
            }
            ScheduleLocation::System => {
                let entry = format!("{SYSTEM_HEAD}{}\n", crontab_lines(jobs, Some("root"))?);
                let changed = read_own_system_file()?.as_ref() != Some(&entry);
                if changed && !dry_run {
                    super::write_file(Path::new(SYSTEM_FILE), &entry)?;
                }
                Ok(ScheduleChange { entry, changed })
            }
            ScheduleLocation::Systemd => {
                let wanted =
                    jobs.iter().map(|job| Ok((job.kind, Units::new(job)?))).collect::<Result<Vec<_>, Error>>()?;
                // All of them first: a refusal leaves everything as it is.
                JobKind::ALL.into_iter().try_for_each(Units::check_own)?;
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

    /// Removes the schedule, and returns whether there was one.
    pub(crate) fn remove(self, dry_run: bool) -> Result<bool, Error> {
        match self {
            ScheduleLocation::User => {
                let [before, after] = crontab::change(dry_run, Crontab::without_entry)?;
                Ok(before != after)
            }
            ScheduleLocation::System => {
                let path = Path::new(SYSTEM_FILE);
                let there = read_own_system_file()?.is_some();
                if there && !dry_run {
                    fs::remove_file(path).map_err(Error::io("remove", path))?;
                }
                Ok(there)
            }
            ScheduleLocation::Systemd => {
                JobKind::ALL.into_iter().try_for_each(Units::check_own)?;
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

/// Removes the entries of kvmb's predecessor from the user's crontab, unless this is a dry run.
pub(crate) fn remove_old_entries(dry_run: bool) -> Result<(), Error> {
    crontab::change(dry_run, |before| Ok(before.without_old_entries())).map(drop)
}

/// Returns the entries of kvmb's predecessor in the user's crontab.
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

/// As [`read_system_file`], and refuses a file that kvmb did not create.
fn read_own_system_file() -> Result<Option<String>, Error> {
    let text = read_system_file()?;
    text.iter().try_for_each(|text| super::check_own(Path::new(SYSTEM_FILE), text))?;
    Ok(text)
}

/// Returns the lines of jobs for a crontab, without the last newline.
fn crontab_lines(jobs: &[ScheduledJob], user: Option<&str>) -> Result<String, Error> {
    let lines = jobs.iter().map(|job| job.crontab_line(user)).collect::<Result<Vec<_>, _>>()?;
    Ok(lines.join("\n"))
}

/// Parses the jobs in the lines of a crontab, ignoring variables and comments.
fn read_lines(lines: &str, with_user: bool) -> Vec<(Cron, String)> {
    lines.lines().filter_map(|line| read_line(line, with_user)).collect()
}

fn text_of(units: &Units) -> String {
    format!("{}\n{}", units.timer, units.service)
}
