//! The output of a monitoring plugin: <https://www.monitoring-plugins.org/doc/guidelines.html>.
//!
//! ```text
//! KVMB WARNING - web: the newest point is 30 h old|'web_age'=108000s;93600;180000;0 'db_age'=…
//! [WARNING] web: the newest point is 30 h old
//! [OK] db: the newest point is 6 h old
//! ```

use super::gather::StatusReport;
use super::judge::{MachineFacts, Standing, host_of, rank, status_of};
use crate::cli::failure::exit_code::PluginState;
use crate::cli::failure::hint::pasteable;
use crate::record::{Check, Status};
use std::fmt::Write;

/// Returns what the plugin prints, and its state.
pub(crate) fn text(report: &StatusReport) -> (PluginState, String) {
    let checks: Vec<&Check> = report.machines.iter().map(|(_, check)| check).chain(&report.others).collect();
    let worst = checks.iter().map(|check| status_of(check)).max_by_key(|status| rank(*status)).unwrap_or(Status::Ok);
    let bad: Vec<String> = checks
        .iter()
        .filter(|check| worst != Status::Ok && status_of(check) == worst)
        .map(|check| format!("{}: {}", subject(check), check.detail))
        .collect();
    let summary = if bad.is_empty() { all_well(report) } else { bad.join(", ") };
    let mut text = first_line(worst, &summary);
    let data = performance_data(report);
    if !data.is_empty() {
        text.push('|');
        text.push_str(&data.join(" "));
    }
    text.push('\n');
    for check in checks {
        let hint = check.hint.as_ref().map(|hint| format!(" ({})", pasteable(hint, None))).unwrap_or_default();
        let line = format!("[{}] {}: {}{hint}", word(status_of(check)), subject(check), check.detail);
        text.push_str(&plain(&line));
        text.push('\n');
    }
    (state(worst), text)
}

/// Returns the output for an error that prevents all checks.
pub(crate) fn unknown(why: &str) -> String {
    first_line(Status::Unknown, why) + "\n"
}

fn first_line(status: Status, words: &str) -> String {
    plain(&format!("KVMB {} - {words}", word(status)))
}

/// Returns the subject of a check: the machine, with its host in a status of all hosts.
fn subject(check: &Check) -> String {
    let is_of_all_hosts = check.extra.get("standing").is_some_and(|standing| standing == Standing::Stored.word());
    match host_of(check).filter(|_| is_of_all_hosts) {
        Some(host) => format!("{host}/{}", check.target),
        None => check.target.clone(),
    }
}

fn all_well(report: &StatusReport) -> String {
    let counted: Vec<_> = report.machines.iter().filter(|(facts, _)| facts.standing.counts()).collect();
    let oldest = counted.iter().filter_map(|(facts, _)| facts.newest.as_ref()).min_by_key(|newest| newest.captured_at);
    let machines = if counted.len() == 1 { "1 machine".to_owned() } else { format!("{} machines", counted.len()) };
    match oldest {
        Some(oldest) => {
            let age = crate::cli::table::age(report.at, oldest.captured_at.min(report.at));
            format!("{machines}, oldest latest point is {age} old")
        }
        None => machines,
    }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "OK",
        Status::Warning => "WARNING",
        Status::Critical => "CRITICAL",
        Status::Unknown => "UNKNOWN",
    }
}

/// Converts a status into a plugin state.
pub(crate) fn state(status: Status) -> PluginState {
    match status {
        Status::Ok => PluginState::Ok,
        Status::Warning => PluginState::Warning,
        Status::Critical => PluginState::Critical,
        Status::Unknown => PluginState::Unknown,
    }
}

/// Returns `'label'=value[unit];[warn];[crit];[min]` for each machine that should have fresh points.
fn performance_data(report: &StatusReport) -> Vec<String> {
    let mut data = Vec::new();
    let (warning, critical) = (report.thresholds.warning.as_secs(), report.thresholds.critical.as_secs());
    for (facts, _) in report.machines.iter().filter(|(facts, _)| facts.standing.counts()) {
        let name = &name_in_data(facts);
        let mut age = label(name, "age");
        // U: unknown.
        let _ = match facts.age(report.at) {
            Some(age_now) => write!(age, "{}s", age_now.as_secs()),
            None => write!(age, "U"),
        };
        data.push(format!("{age};{warning};{critical};0"));
        if let Some(run) = facts.memory.as_ref().and_then(|memory| memory.last_success.as_ref()) {
            data.push(format!("{}{:.3}s;;;0", label(name, "duration"), run.duration_seconds()));
            data.push(format!("{}{}B;;;0", label(name, "read"), run.read_bytes));
            data.push(format!("{}{}B;;;0", label(name, "stored"), run.stored_bytes));
        }
    }
    data
}

/// Returns the prefix of a machine's labels.
fn name_in_data(facts: &MachineFacts) -> String {
    match &facts.newest {
        Some(newest) if facts.standing == Standing::Stored => format!("{}/{}", newest.host, facts.machine),
        _ => facts.machine.clone(),
    }
}

/// Returns a quoted label and `=`. It must not contain `=` and `|`; quotes are doubled.
fn label(machine: &str, what: &str) -> String {
    let safe = |c: char| if c.is_control() || "=|".contains(c) { '_' } else { c };
    let name: String = machine.chars().map(safe).collect();
    format!("'{}_{what}'=", name.replace('\'', "''"))
}

/// Returns the text in one line and without `|`, which would start the performance data.
fn plain(text: &str) -> String {
    crate::cli::table::printable(text).replace('|', "¦")
}

/// Returns a status as a number, as Nagios defines it.
pub(super) fn number(status: Status) -> u8 {
    state(status) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_in_names_are_escaped_in_perfdata() {
        assert_eq!(label("it's a=b|c\n", "age"), "'it''s a_b_c__age'=");
        assert_eq!(unknown("a|b\nc"), "KVMB UNKNOWN - a¦b\u{fffd}c\n");
    }
}
