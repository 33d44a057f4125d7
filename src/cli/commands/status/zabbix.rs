//! JSON for Zabbix: low-level discovery, and one object with the values of all machines for dependent items.
//!
//! A machine is identified by `{#ID}`, its UUID, so that no name can break a JSONPath.

use super::gather::StatusReport;
use super::judge::{MachineFacts, Standing, rank, status_of};
use super::nagios::number;
use crate::record::{Check, Status, without_steering};
use serde_json::{Map, Value, json};

/// Returns the machines for low-level discovery.
pub(crate) fn discovery(report: &StatusReport) -> String {
    let one = |facts: &MachineFacts| {
        json!({
            "{#ID}": id(facts),
            "{#MACHINE}": facts.machine,
            "{#UUID}": facts.uuid.as_deref().unwrap_or_default(),
            "{#REPO}": report.repo,
            "{#HOST}": facts.newest.as_ref().map(|newest| newest.host.as_str()).unwrap_or_default(),
            "{#STANDING}": facts.standing.word(),
        })
    };
    line(report.machines.iter().map(|(facts, _)| one(facts)).collect())
}

/// Returns the values.
pub(crate) fn values(report: &StatusReport) -> String {
    let all = report.machines.iter().map(|(_, check)| check).chain(&report.others);
    let worst = all.map(status_of).max_by_key(|status| rank(*status)).unwrap_or(Status::Ok);
    let machines = report.machines.iter().map(|(facts, check)| (id(facts), value(check)));
    // If both repositories have the same check, the worse one is kept.
    let mut others: Vec<&Check> = report.others.iter().collect();
    others.sort_by_key(|check| rank(status_of(check)));
    let others = others.into_iter().map(|check| (check.check.clone(), value(check)));
    line(json!({
        "status": number(worst),
        "repo": report.repo,
        "machines": machines.collect::<Map<_, _>>(),
        "checks": others.collect::<Map<_, _>>(),
    }))
}

/// Returns a check with its status as a number.
fn value(check: &Check) -> Value {
    let mut value = Map::from_iter([
        ("target".to_owned(), json!(check.target)),
        ("status".to_owned(), json!(number(status_of(check)))),
        ("detail".to_owned(), json!(check.detail)),
    ]);
    value.extend(check.extra.clone());
    value.into()
}

/// Returns the UUID, or a substitute if it is unknown because no such machine was ever seen.
fn id(facts: &MachineFacts) -> String {
    let plain = |name: &str| -> String {
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
    };
    let id = facts.uuid.clone().unwrap_or_else(|| plain(&facts.machine));
    match &facts.newest {
        // Machines of two hosts may have the same UUID.
        Some(newest) if facts.standing == Standing::Stored => format!("{id}_{}", plain(&newest.host)),
        _ => id,
    }
}

fn line(value: Value) -> String {
    without_steering(value.to_string()) + "\n"
}
