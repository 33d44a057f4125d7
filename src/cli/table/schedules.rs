//! Schedules: installed ones as `systemctl list-timers` shows timers, changes of them as sentences.

use super::cells::{age, as_action, moment, printable};
use super::layout::{Column, Row};
use crate::record::{Action, Record, Time};

pub(super) fn columns() -> Vec<Column> {
    vec![
        Column::text("NEXT"),
        Column::text("LEFT"),
        Column::text("WHERE"),
        Column::text("MACHINES").optional(3),
        Column::text("REPOSITORY").optional(2),
        Column::text("COMMAND").optional(1),
    ]
}

/// The row of a schedule that is installed.
pub(super) fn row(record: &Record, now: Time) -> Row {
    let Some(action) = as_action(record) else { return Row::new(Vec::new()) };
    let next = next_run(action);
    let text = |key: &str| action.extra.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let machines = match action.extra.get("machines") {
        Some(serde_json::Value::Array(names)) => {
            names.iter().filter_map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
        }
        _ => text("machines"),
    };
    Row::new(vec![
        next.map(moment).unwrap_or_default(),
        next.map(|next| left(now, next)).unwrap_or_default(),
        action.target.clone(),
        machines,
        text("repo"),
        text("backup_command"),
    ])
}

/// What happened to a schedule, or that there is none; with the text that would be installed.
pub(super) fn sentence(action: &Action, now: Time) -> String {
    let mut text = printable(&format!("{}: {}", action.target, action.reason)) + "\n";
    if action.dry_run && action.changed {
        let entry = action.extra.get("entry").and_then(|entry| entry.as_str()).unwrap_or_default();
        text.extend(entry.trim_end().lines().map(|line| format!("{}\n", printable(line))));
    }
    if let Some(next) = next_run(action) {
        text.push_str(&format!("next run: {}, in {}\n", moment(next), left(now, next)));
    }
    text
}

fn next_run(action: &Action) -> Option<Time> {
    action.extra.get("next_runs")?.as_array()?.first()?.as_str()?.parse().ok()
}

/// The time that is left, in its largest unit.
fn left(now: Time, next: Time) -> String {
    age(next, now)
}
