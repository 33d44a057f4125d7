//! The schedules of this host: when they run next, for which machines, and into which repository.

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

/// An installed schedule.
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub(crate) cron: Cron,
    /// Its command as installed.
    pub(crate) full_command: String,
    takes: Takes,
    /// Whether it drills (boots points) instead of backing up.
    pub(crate) is_drill: bool,
    /// The repository that it names.
    pub(crate) repo: Option<String>,
    /// Its command without the wrapper that locks and lowers priorities.
    pub(crate) command: String,
}

/// The machines of a schedule.
#[derive(Debug, PartialEq, Eq)]
enum Takes {
    /// All machines. This is also assumed for an entry that can no longer be parsed.
    All,
    /// Those whose names match these names or globs.
    Named(Vec<String>),
    /// Those that the configuration selects.
    Configured,
}

/// Returns all installed schedules of all locations.
pub(crate) fn installed() -> Result<Vec<(ScheduleLocation, Installed)>, CliError> {
    let mut found = Vec::new();
    for place in ScheduleLocation::ALL {
        match place.installed() {
            Ok(installed) => found.extend(installed.map(|installed| (place, installed))),
            // Without cron there is no crontab.
            Err(schedule::Error::NoProgram { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Returns the jobs of a location: its backup, or whatever the entry was edited into, and its drill.
pub(crate) fn jobs_of(
    place: ScheduleLocation,
    installed: &Installed,
    grammar: fn() -> clap::Command,
) -> Vec<Scheduled> {
    let jobs = installed.jobs.iter().map(|job| scheduled(place, job.clone(), grammar()));
    jobs.enumerate().filter(|(at, job)| *at == 0 || job.is_drill).map(|(_, job)| job).collect()
}

/// Returns all backup schedules, and reports those that cannot be read.
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

/// Builds a schedule from its expression and its command.
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

/// Returns the words of `kvmb backup` or `kvmb drill` in the command of an entry, without the wrapper.
fn kvmb_words(place: ScheduleLocation, command: &str) -> Option<Vec<String>> {
    let words = shlex::split(command)?;
    // The value of a variable may end in `/kvmb` too.
    let is_kvmb = |word: &String| !word.contains('=') && Path::new(word).file_name().is_some_and(|name| name == "kvmb");
    let start = words.iter().position(is_kvmb)?;
    let words = words.into_iter().skip(start).filter(|word| word != ">/dev/null");
    let words = words.map(|word| match place {
        ScheduleLocation::Systemd => word.replace("$$", "$").replace("%%", "%"),
        ScheduleLocation::User | ScheduleLocation::System => word,
    });
    Some(words.collect())
}

/// Parses an entry's command: the kvmb subcommand and its arguments.
fn subcommand_of(place: ScheduleLocation, command: &str, grammar: clap::Command) -> Option<(String, ArgMatches)> {
    let words = kvmb_words(place, command)?;
    grammar.try_get_matches_from(words).ok()?.remove_subcommand()
}

impl Scheduled {
    /// Whether its runs include a machine. `configured` says whether the configuration selects the machine.
    pub(crate) fn takes(&self, machine: &str, configured: bool) -> bool {
        match &self.takes {
            Takes::All => true,
            Takes::Named(names) => names.iter().any(|name| name_matches(name, machine)),
            Takes::Configured => configured,
        }
    }

    /// Returns the names and globs that it lists; empty if it takes all or those that the configuration selects.
    pub(crate) fn names(&self) -> &[String] {
        match &self.takes {
            Takes::Named(names) => names,
            Takes::All | Takes::Configured => &[],
        }
    }

    /// Returns its machines for a record: names and globs, `all`, or `selected_vms` for those that the configuration
    /// selects.
    pub(crate) fn machines(&self) -> Value {
        match &self.takes {
            Takes::All => json!("all"),
            Takes::Named(names) => json!(names),
            Takes::Configured => json!("selected_vms"),
        }
    }

    /// Whether it includes every machine.
    pub(crate) fn takes_all(&self) -> bool {
        self.takes == Takes::All
    }

    /// Returns the time of its next run.
    pub(crate) fn next_run(&self) -> Option<Time> {
        self.cron.next_runs(&Local::now(), 1).first().map(chrono::DateTime::fixed_offset)
    }

    /// Returns the longest time between two of its runs.
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
    fn machines_of_a_schedule_are_read_from_its_command() {
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
        // An entry that was edited into something else may back up any machine.
        for command in ["/root/backup.sh", "kvmb backup 'unclosed", "kvmb vms", "kvmb backup --no-such-flag"] {
            assert!(read(ScheduleLocation::User, command).takes("vm1", false), "{command}");
        }
    }

    #[test]
    fn drills_are_detected_by_command_and_foreign_lines_are_skipped() {
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
