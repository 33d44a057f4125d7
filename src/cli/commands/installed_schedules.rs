//! The schedules of this host: what they run next, for which machines, into which repository.

use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::ops::Monitor;
use crate::ops::points::name_matches;
use crate::record::Time;
use crate::schedule::{self, Cron, Installed, ScheduleLocation};
use chrono::Local;
use clap::ArgMatches;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// A schedule that is installed.
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub(crate) cron: Cron,
    /// Its command as it is installed.
    pub(crate) full_command: String,
    takes: Takes,
    /// Whether it boots points instead of making them.
    pub(crate) is_drill: bool,
    /// The repository that it names.
    pub(crate) repo: Option<String>,
    /// Its command, without what makes it wait and be modest.
    pub(crate) command: String,
}

/// The machines of a schedule.
#[derive(Debug, PartialEq, Eq)]
enum Takes {
    /// Every one; so does an entry that nobody can read any more.
    All,
    /// Those with these names, or whose names fit these globs.
    Named(Vec<String>),
    /// Those of the configuration.
    Configured,
}

/// What is scheduled, everywhere.
pub(crate) fn installed() -> Result<Vec<(ScheduleLocation, Installed)>, CliError> {
    let mut found = Vec::new();
    for place in ScheduleLocation::ALL {
        match place.installed() {
            Ok(installed) => found.extend(installed.map(|installed| (place, installed))),
            // No cron, no crontab.
            Err(schedule::Error::NoProgram { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// The jobs of a place: its backup, or what somebody has made of it, and its drill.
pub(crate) fn jobs_of(
    place: ScheduleLocation,
    installed: &Installed,
    grammar: fn() -> clap::Command,
) -> Vec<Scheduled> {
    let jobs = installed.jobs.iter().map(|job| scheduled(place, job.clone(), grammar()));
    jobs.enumerate().filter(|(at, job)| *at == 0 || job.is_drill).map(|(_, job)| job).collect()
}

/// All schedules of backups; what cannot be looked at is reported.
pub(crate) fn all(context: &Context) -> Vec<Scheduled> {
    let found = installed().unwrap_or_else(|error| {
        context.monitor.warn(&format!("cannot read the schedule: {error}"));
        Vec::new()
    });
    found
        .into_iter()
        .flat_map(|(place, installed)| jobs_of(place, &installed, context.grammar))
        .filter(|job| !job.is_drill)
        .collect()
}

/// A schedule that is installed, from its expression and its command.
fn scheduled(place: ScheduleLocation, (cron, command): (Cron, String), grammar: clap::Command) -> Scheduled {
    let (mut takes, mut repo, mut is_drill) = (Takes::All, None, false);
    match subcommand_of(place, &command, grammar) {
        Some((name, backup)) if name == "backup" => {
            let names: Vec<String> = backup.get_many("names").into_iter().flatten().cloned().collect();
            takes = match names.is_empty() {
                _ if backup.get_flag("all") => Takes::All,
                true => Takes::Configured,
                false => Takes::Named(names),
            };
            repo = backup.get_one("repo").cloned();
        }
        Some((name, drill)) if name == "drill" => {
            repo = drill.get_one("repo").cloned();
            is_drill = true;
        }
        _ => {}
    }
    let words = kvmb_words(place, &command).unwrap_or_default();
    let shown = shlex::try_join(words.iter().map(String::as_str)).ok().filter(|shown| !shown.is_empty());
    Scheduled { cron, takes, is_drill, repo, full_command: command.clone(), command: shown.unwrap_or(command) }
}

/// The words of `kvmb backup` or `kvmb drill` in the command of an entry, behind all that makes it wait and be modest.
fn kvmb_words(place: ScheduleLocation, command: &str) -> Option<Vec<String>> {
    let words = shlex::split(command)?;
    // A variable may end in the same word.
    let is_kvmb = |word: &String| !word.contains('=') && Path::new(word).file_name().is_some_and(|name| name == "kvmb");
    let start = words.iter().position(is_kvmb)?;
    let words = words.into_iter().skip(start).filter(|word| word != ">/dev/null");
    let words = words.map(|word| match place {
        ScheduleLocation::Systemd => word.replace("$$", "$").replace("%%", "%"),
        ScheduleLocation::User | ScheduleLocation::System => word,
    });
    Some(words.collect())
}

/// What kvmb is to do in the command of an entry, and its arguments.
fn subcommand_of(place: ScheduleLocation, command: &str, grammar: clap::Command) -> Option<(String, ArgMatches)> {
    let words = kvmb_words(place, command)?;
    grammar.try_get_matches_from(words).ok()?.remove_subcommand()
}

impl Scheduled {
    /// Whether its runs take a machine; `configured` says whether those of the configuration do.
    pub(crate) fn takes(&self, machine: &str, configured: bool) -> bool {
        match &self.takes {
            Takes::All => true,
            Takes::Named(names) => names.iter().any(|name| name_matches(name, machine)),
            Takes::Configured => configured,
        }
    }

    /// The names and globs that it names itself; none where it takes all, or what the configuration says.
    pub(crate) fn names(&self) -> &[String] {
        match &self.takes {
            Takes::Named(names) => names,
            Takes::All | Takes::Configured => &[],
        }
    }

    /// Its machines for a record: their names and globs, `all`, or `selected_vms` for those of the configuration.
    pub(crate) fn machines(&self) -> Value {
        match &self.takes {
            Takes::All => json!("all"),
            Takes::Named(names) => json!(names),
            Takes::Configured => json!("selected_vms"),
        }
    }

    /// Whether it takes every machine.
    pub(crate) fn takes_all(&self) -> bool {
        self.takes == Takes::All
    }

    /// When it runs next.
    pub(crate) fn next_run(&self) -> Option<Time> {
        self.cron.next_runs(&Local::now(), 1).first().map(chrono::DateTime::fixed_offset)
    }

    /// The longest time between two of its runs.
    pub(crate) fn longest_gap(&self) -> Option<Duration> {
        self.cron.longest_gap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(place: ScheduleLocation, command: &str) -> Scheduled {
        scheduled(place, ("0 2 * * *".parse().unwrap(), command.to_owned()), crate::cli::command())
    }

    #[test]
    fn the_machines_of_an_entry_are_read_from_its_command() {
        let cron = "/usr/bin/flock -n -o -E 5 /var/lib/kvmb/schedule.lock /usr/bin/nice /usr/bin/ionice -c 3 \
                    /usr/bin/env KVMB_RUNTIME_DIR=/run/kvmb /usr/bin/kvmb --config /etc/kvmb/config.json backup -r \
                    /backup/kvm vm1 'web*' 'a b' >/dev/null";
        let found = read(ScheduleLocation::User, cron);
        assert_eq!(
            (found.names(), found.repo.as_deref()),
            (&["vm1", "web*", "a b"].map(String::from)[..], Some("/backup/kvm"))
        );
        assert!(found.takes("web7", false) && !found.takes("vm2", true));
        let found = read(ScheduleLocation::Systemd, "/usr/bin/kvmb backup --verify \"it$$is 5%%\"");
        assert!(found.takes("it$is 5%", false));
        assert!(read(ScheduleLocation::System, "/usr/bin/kvmb backup --all >/dev/null").takes_all());
        let found = read(ScheduleLocation::User, "/usr/bin/kvmb backup >/dev/null");
        assert!(found.takes("vm1", true) && !found.takes("vm1", false) && !found.takes_all());
        // What somebody has made something else of may take any.
        for command in ["/root/backup.sh", "kvmb backup 'unclosed", "kvmb vms", "kvmb backup --no-such-flag"] {
            assert!(read(ScheduleLocation::User, command).takes("vm1", false), "{command}");
        }
    }

    #[test]
    fn a_drill_is_known_by_its_command_and_other_lines_are_not_jobs() {
        let job = |command: &str| ("0 2 * * *".parse().unwrap(), command.to_owned());
        let installed = Installed {
            entry: String::new(),
            jobs: vec![
                job("/usr/bin/flock /var/lib/kvmb/schedule.lock /usr/bin/kvmb backup drill >/dev/null"),
                job("/root/report.sh"),
                job("/usr/bin/nice /usr/bin/kvmb -c qemu:///system drill -r /backup/kvm --all --sample 3 >/dev/null"),
            ],
        };
        let jobs = jobs_of(ScheduleLocation::User, &installed, crate::cli::command);
        let shown: Vec<_> = jobs.iter().map(|job| (job.is_drill, job.repo.as_deref(), job.command.as_str())).collect();
        assert_eq!(
            shown,
            [
                (false, None, "/usr/bin/kvmb backup drill"),
                (true, Some("/backup/kvm"), "/usr/bin/kvmb -c qemu:///system drill -r /backup/kvm --all --sample 3"),
            ]
        );
    }
}
