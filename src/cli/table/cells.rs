//! Formatting of cells: sizes, ages, times and names for people.

use crate::record::{Action, Check, Record, Source, Time, steers_terminal};
use crate::units::in_units;
use std::time::Duration;

/// The kind of table that a record belongs to. Consecutive records of the same kind share a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableKind<'r> {
    /// A check of a machine's backups, by `status`.
    MachineStatus,
    /// A point that `prune` keeps or removes.
    Forget,
    /// The result of `prune`, shown as a sentence.
    PruneResult,
    /// An installed schedule.
    Schedule,
    /// A change of a schedule, shown as a sentence.
    ScheduleChange,
    /// A file of a point.
    GuestFile,
    /// Any other record, by its type.
    Other(&'r str),
}

pub(super) fn kind(record: &Record) -> TableKind<'_> {
    match record {
        Record::Check(check) if check.check == "backup" => TableKind::MachineStatus,
        Record::Action(action) if action.action == "forget" => TableKind::Forget,
        Record::Action(action) if action.action == "prune" => TableKind::PruneResult,
        Record::Action(action) if action.action == "schedule" => match action.extra.contains_key("machines") {
            true => TableKind::Schedule,
            false => TableKind::ScheduleChange,
        },
        Record::File(file) if file.machine.is_some() => TableKind::GuestFile,
        other => TableKind::Other(other.kind()),
    }
}

pub(super) fn as_action(record: &Record) -> Option<&Action> {
    match record {
        Record::Action(action) => Some(action),
        _ => None,
    }
}

/// Whether the machine of a `status` check is being backed up.
pub(super) fn is_running(check: &Check) -> bool {
    check.extra.contains_key("running_pid")
}

/// Returns the first eight digits of an id, and other text unchanged.
pub(super) fn short_id(text: &str) -> &str {
    match text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => &text[..8],
        false => text,
    }
}

/// Describes the consistency of a point.
pub(super) fn consistency(word: &str) -> &str {
    match word {
        "filesystem" => "frozen",
        "crash" => "crash-consistent",
        other => other,
    }
}

pub(super) fn address(source: &Source) -> String {
    match source {
        Source::File { path } | Source::Block { path } | Source::Dir { path } | Source::VhostUser { path } => {
            path.clone()
        }
        Source::Network { protocol, name, .. } => format!("{protocol}:{name}"),
        Source::Volume { pool, volume } => format!("{pool}/{volume}"),
        Source::Nvme { address } => address.clone(),
        Source::None {} => "-".into(),
        Source::Unknown => "?".into(),
    }
}

/// Formats a size with binary units, as `qemu-img info` and `lsblk` do.
pub(crate) fn bytes(count: u64) -> String {
    in_units(count)
}

/// Formats the time from `then` to `now` in its largest unit.
pub(crate) fn age(now: Time, then: Time) -> String {
    let seconds = (now - then).num_seconds();
    match seconds {
        i64::MIN..=-1 => "in the future".into(),
        0..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min", seconds / 60),
        3600..=172_799 => format!("{} h", seconds / 3600),
        _ => match seconds / 86_400 {
            days @ ..=20 => format!("{days} days"),
            days @ ..=59 => format!("{} weeks", days / 7),
            days @ ..=729 => format!("{} months", days / 30),
            days => format!("{} years", days / 365),
        },
    }
}

/// Formats a duration.
pub(crate) fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..=9 => format!("{:.1} s", length.as_secs_f64()),
        10..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Formats a local time with the day of the week, which people remember best.
pub(crate) fn moment(time: Time) -> String {
    time.with_timezone(&chrono::Local).format("%a %Y-%m-%d %H:%M:%S").to_string()
}

/// Replaces characters that could control a terminal: names of machines are not trusted.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if steers_terminal(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_formatted_with_one_suitable_unit() {
        let now: Time = "2026-11-20T12:00:00+01:00".parse().unwrap();
        let cases = [("2026-11-20T11:59:30+01:00", "30 s"), ("2026-11-20T09:00:00+00:00", "2 h")];
        for (then, text) in cases {
            assert_eq!(age(now, then.parse().unwrap()), text);
        }
        let days = |days: i64| age(now, now - chrono::TimeDelta::days(days));
        let ages = [2, 10, 20, 21, 59, 60, 400, 729, 730].map(days);
        assert_eq!(
            ages,
            ["2 days", "10 days", "20 days", "3 weeks", "8 weeks", "2 months", "13 months", "24 months", "2 years"]
        );
        assert_eq!(age(now, "2026-11-20T12:00:01+01:00".parse().unwrap()), "in the future");
    }

    #[test]
    fn durations_are_formatted_with_suitable_precision() {
        let texts =
            [0, 1_260, 9_999, 10_000, 59_999, 61_000, 3_600_000, 7_500_000].map(Duration::from_millis).map(duration);
        assert_eq!(texts, ["0.0 s", "1.3 s", "10.0 s", "10 s", "59 s", "1 min 1 s", "1 h 0 min", "2 h 5 min"]);
    }

    #[test]
    fn control_characters_in_names_are_replaced() {
        assert_eq!(printable("vm\x1b[2J\n"), "vm\u{fffd}[2J\u{fffd}");
    }
}
