//! Checks for people: problems first, a count of the rest, and a summary.

use super::cells::{TableKind, is_running, kind};
use super::layout::TableOptions;
use super::render;
use crate::record::{Check, Record, Status, Time};

/// Renders records with the checks among them sorted, worst first. Unless `with_ok`, checks without problems are only
/// counted.
pub(crate) fn render_checks(records: &[Record], now: Time, options: TableOptions, with_ok: bool) -> String {
    let mut shown: Vec<&Record> = records.iter().filter(|record| with_ok || !is_ok(record)).collect();
    // The checks of machines have their own table.
    shown.sort_by_key(|record| (is_of_machine(record), std::cmp::Reverse(severity(record))));
    let shown: Vec<Record> = shown.into_iter().cloned().collect();
    let mut text = render(&shown, now, options);
    if let Some(summary) = summary(records, with_ok) {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&summary);
        text.push('\n');
    }
    text
}

fn as_check(record: &Record) -> Option<&Check> {
    match record {
        Record::Check(check) => Some(check),
        _ => None,
    }
}

/// Whether this is a check without problems that needs no line; a running backup is always shown.
fn is_ok(record: &Record) -> bool {
    as_check(record).is_some_and(|check| check.status == Status::Ok.as_str() && !is_running(check))
}

fn is_of_machine(record: &Record) -> bool {
    kind(record) != TableKind::MachineStatus
}

fn severity(record: &Record) -> usize {
    let order = [Status::Ok, Status::Unknown, Status::Warning, Status::Critical];
    let status = |check: &Check| order.iter().position(|status| status.as_str() == check.status);
    as_check(record).and_then(status).unwrap_or(0)
}

/// Returns "1 critical, 2 warnings; 9 checks ok"; None if there are no checks.
fn summary(records: &[Record], with_ok: bool) -> Option<String> {
    let checks: Vec<&Record> = records.iter().filter(|record| as_check(record).is_some()).collect();
    if checks.is_empty() {
        return None;
    }
    let count = |status: Status| {
        checks.iter().filter(|record| as_check(record).is_some_and(|check| check.status == status.as_str())).count()
    };
    let number = |count: usize, one: &str, many: &str| {
        (count > 0).then(|| format!("{count} {}", if count == 1 { one } else { many }))
    };
    let problems: Vec<String> = [
        number(count(Status::Critical), "critical", "critical"),
        number(count(Status::Warning), "warning", "warnings"),
        number(count(Status::Unknown), "unknown", "unknown"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let running = checks.iter().filter(|record| as_check(record).is_some_and(is_running)).count();
    let (machines, others): (Vec<&&Record>, Vec<&&Record>) =
        checks.iter().filter(|record| is_ok(record)).partition(|record| kind(record) == TableKind::MachineStatus);
    let well: Vec<String> = [number(machines.len(), "machine", "machines"), number(others.len(), "check", "checks")]
        .into_iter()
        .flatten()
        .collect();
    let mut problems = if problems.is_empty() { "no problems".to_owned() } else { problems.join(", ") };
    let running = number(running, "machine is being backed up", "machines are being backed up");
    problems.extend(running.map(|running| format!("; {running}")));
    Some(match (well.is_empty(), with_ok) {
        (true, _) => problems,
        (false, true) => format!("{problems}; {} ok", well.join(" and ")),
        (false, false) => format!("{problems}; {} ok (--all lists them)", well.join(" and ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(with_ok: bool) -> String {
        let check = |check: &str, target: &str, status| Record::Check(Check::new(check, target, status, "detail"));
        let records = [
            check("qemu", "host", Status::Ok),
            check("scratch", "web1", Status::Warning),
            check("backup", "web1", Status::Ok),
            check("disk", "web1/vda", Status::Critical),
        ];
        render_checks(&records, chrono::Local::now().fixed_offset(), TableOptions::default(), with_ok)
    }

    #[test]
    fn problems_are_listed_first_and_ok_checks_are_counted() {
        let text = rendered(false);
        let (critical, warning) = (text.find("web1/vda").unwrap(), text.find("scratch").unwrap());
        assert!(critical < warning && !text.contains("qemu"), "{text}");
        assert!(text.ends_with("\n\n1 critical, 1 warning; 1 machine and 1 check ok (--all lists them)\n"), "{text}");
        let text = rendered(true);
        assert!(text.contains("qemu") && text.ends_with("1 machine and 1 check ok\n"), "{text}");
        assert!(text.find("scratch").unwrap() < text.find("qemu").unwrap(), "{text}");
    }

    #[test]
    fn summary_without_checks_is_empty() {
        assert_eq!(render_checks(&[], chrono::Local::now().fixed_offset(), TableOptions::default(), false), "");
    }
}
