//! Schedules: installed ones as `systemctl list-timers` shows timers, and changes as sentences.

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

/// Returns the row of an installed schedule.
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
    let command = if action.extra.contains_key("drill_command") { "drill_command" } else { "backup_command" };
    Row::new(vec![
        next.map(moment).unwrap_or_default(),
        next.map(|next| left(now, next)).unwrap_or_default(),
        action.target.clone(),
        machines,
        text("repo"),
        text(command),
    ])
}

/// Describes a change of a schedule, or that there is none, with the text that would be installed.
pub(super) fn sentence(action: &Action, now: Time) -> String {
    let mut text = printable(&format!("{}: {}", action.target, action.reason)) + "\n";
    if action.dry_run && action.changed {
        let entry = action.extra.get("entry").and_then(|entry| entry.as_str()).unwrap_or_default();
        text.extend(entry.trim_end().lines().map(|line| format!("{}\n", printable(line))));
    }
    // For an expression that is not installed, all requested runs are shown.
    let shown = if action.extra.contains_key("entry") { 1 } else { usize::MAX };
    for next in next_runs(action).take(shown) {
        text.push_str(&format!("next run: {}, in {}\n", moment(next), left(now, next)));
    }
    let drill = action.extra.get("drill").and_then(|drill| drill.get("next_runs"));
    if let Some(next) = times(drill).next() {
        text.push_str(&format!("next drill: {}, in {}\n", moment(next), left(now, next)));
    }
    text
}

fn next_runs(action: &Action) -> impl Iterator<Item = Time> {
    times(action.extra.get("next_runs"))
}

fn times(runs: Option<&serde_json::Value>) -> impl Iterator<Item = Time> {
    let runs = runs.and_then(|runs| runs.as_array());
    runs.into_iter().flatten().filter_map(|run| run.as_str()?.parse().ok())
}

fn next_run(action: &Action) -> Option<Time> {
    next_runs(action).next()
}

/// Formats the time until `next` in its largest unit.
fn left(now: Time, next: Time) -> String {
    age(next, now)
}
