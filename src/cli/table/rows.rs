//! Which columns a record has, and what is in them.

use super::cells::{
    RecordKind, address, age, as_action, bytes, consistency, duration, kind, moment, printable, short_id,
};
use super::layout::{Column, Row, View};
use super::schedules;
use crate::record::{Action, Check, Disk, Job, Point, Record, Status, Time};
use std::time::Duration;

/// The columns and rows of records of one kind.
pub(super) fn of(records: &[&Record], view: View, now: Time) -> (Vec<Column>, Vec<Row>) {
    let with_host = are_of_several_hosts(records);
    let mut rows: Vec<Row> = match kind(records[0]) {
        RecordKind::Forget => forgets(records, now),
        RecordKind::Other("point") if view == View::Backup => return backups(records),
        RecordKind::Schedule => records.iter().map(|record| schedules::row(record, now)).collect(),
        _ => records.iter().map(|record| row(record, now, with_host)).collect(),
    };
    rows.iter_mut().for_each(|row| row.make_printable(printable));
    (columns(records[0], with_host), rows)
}

/// Whether these are points of more than one host.
fn are_of_several_hosts(records: &[&Record]) -> bool {
    let mut hosts = records.iter().filter_map(|record| match record {
        Record::Point(point) => Some(&point.host),
        _ => None,
    });
    let first = hosts.next();
    hosts.any(|host| Some(host) != first)
}

/// A number says how early a column is left out where the terminal is too narrow: 1 goes first.
fn columns(record: &Record, with_host: bool) -> Vec<Column> {
    let (text, number) = (Column::text, Column::number);
    match record {
        Record::Machine(_) => vec![
            text("MACHINE"),
            text("STATE"),
            number("VCPUS").optional(1),
            number("MEMORY").optional(3),
            text("DISKS"),
            text("AGENT").optional(2),
        ],
        Record::Disk(_) => vec![
            text("MACHINE"),
            text("DISK"),
            text("FORMAT").optional(2),
            number("CAPACITY"),
            number("ON HOST").optional(1),
            text("SOURCE").optional(3),
            text("NOTE"),
        ],
        Record::File(_) => vec![text("SHA-256"), number("SIZE").optional(1), text("FILE")],
        Record::Point(_) => {
            let mut columns = vec![
                text("POINT"),
                text("MACHINE"),
                text("CAPTURED"),
                number("AGE").optional(4),
                number("DISKS").optional(1),
                number("SIZE").optional(2),
                number("NEW").optional(3),
                text("STATE"),
                text("VERIFIED").optional(5),
            ];
            if with_host {
                columns.insert(2, text("HOST"));
            }
            columns
        }
        Record::Action(action) if action.action == "forget" => vec![
            text("POINT"),
            text("MACHINE"),
            text("CAPTURED"),
            number("AGE").optional(1),
            text("ACTION"),
            text("REASON"),
        ],
        Record::Action(_) if kind(record) == RecordKind::Schedule => schedules::columns(),
        Record::Action(_) => vec![text("ACTION"), text("TARGET"), text("CHANGED"), text("REASON")],
        Record::Check(_) if kind(record) == RecordKind::MachineStatus => vec![
            text("MACHINE"),
            text("STATUS"),
            text("NEWEST POINT"),
            text("LAST RUN").optional(3),
            text("VERIFIED").optional(2),
            text("NEXT RUN").optional(1),
            text("NOTE"),
        ],
        Record::Check(_) => vec![text("CHECK"), text("TARGET"), text("STATUS"), text("DETAIL")],
        Record::Setting(_) => vec![text("KEY"), text("VALUE"), text("SOURCE"), text("FROM").optional(1)],
        Record::Job(_) => vec![
            text("JOB"),
            text("COMMAND").optional(3),
            text("STATUS"),
            text("BEGAN"),
            number("TOOK").optional(4),
            number("DONE").optional(5),
            text("USER").optional(1),
            text("FROM").optional(2),
            text("ERROR").optional(6),
        ],
        Record::Failure(_) => vec![],
        Record::Other(_) => vec![text("RECORD")],
    }
}

fn row(record: &Record, now: Time, with_host: bool) -> Row {
    let size = |size: Option<u64>| size.map(bytes).unwrap_or_else(|| "?".into());
    match record {
        Record::Machine(m) => Row::new(vec![
            m.machine.clone(),
            m.state.clone(),
            m.vcpus.to_string(),
            bytes(m.memory_bytes),
            m.disks.join(" "),
            m.agent.clone(),
        ]),
        Record::Disk(d) => Row::new(vec![
            d.machine.clone(),
            d.disk.clone(),
            d.format.clone(),
            size(d.capacity_bytes),
            size(d.allocated_bytes),
            d.path.clone().unwrap_or_else(|| address(&d.source)),
            disk_note(d),
        ]),
        Record::File(f) => Row::new(vec![f.sha256.clone(), bytes(f.size_bytes), f.path.clone()]),
        Record::Point(point) => {
            let mut cells = point_cells(point, now);
            if with_host {
                cells.insert(2, point.host.clone());
            }
            Row::new(cells)
        }
        Record::Action(a) => Row::new(vec![
            a.action.clone(),
            short_id(&a.target).to_owned(),
            match (a.changed, a.dry_run) {
                (true, true) => "would".into(),
                (true, false) => "yes".into(),
                (false, _) => "no".into(),
            },
            a.reason.clone(),
        ]),
        Record::Check(c) if kind(record) == RecordKind::MachineStatus => status_of_machine(c, now),
        Record::Check(c) => {
            Row::new(vec![c.check.clone(), c.target.clone(), c.status.clone(), c.detail.clone()]).note(c.hint.clone())
        }
        Record::Setting(s) => Row::new(vec![
            s.key.clone(),
            s.value.as_str().map_or_else(|| s.value.to_string(), str::to_owned),
            s.source.clone(),
            s.origin.clone().unwrap_or_default(),
        ]),
        Record::Job(job) => Row::new(vec![
            job.job.clone(),
            job.arguments.join(" "),
            job.status.clone(),
            moment(job.began_at),
            Duration::try_from_secs_f64(job.duration_seconds).map(duration).unwrap_or_default(),
            progress(job),
            job.user.clone(),
            job.origin.clone(),
            job.error.clone().unwrap_or_else(|| "-".into()),
        ]),
        Record::Failure(_) => Row::new(vec![]),
        Record::Other(_) => Row::new(vec![record.to_line()]),
    }
}

/// The points that a backup made, and what that took.
fn backups(records: &[&Record]) -> (Vec<Column>, Vec<Row>) {
    let columns = vec![
        Column::text("POINT"),
        Column::text("MACHINE"),
        Column::text("READ MODE"),
        Column::number("READ"),
        Column::number("STORED"),
        Column::number("DURATION").optional(1),
        Column::text("STATE"),
    ];
    let points = records.iter().filter_map(|record| match record {
        Record::Point(point) => Some(point),
        _ => None,
    });
    let row = |point: &Point| {
        let took = point.duration_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let (mode, read, stored, took) = match &point.copied {
            Some(copied) => ("copy".to_owned(), "-".to_owned(), copied.stored_bytes, None),
            None => (read_mode(point), bytes(point.read_bytes), point.stored_bytes, took),
        };
        let mut state = point_state(point);
        if point.verified.as_ref().is_some_and(|verified| *verified != serde_json::Value::Bool(false)) {
            state.push_str(", verified");
        }
        Row::new(vec![
            short_id(&point.point).to_owned(),
            point.machine.clone(),
            mode,
            read,
            bytes(stored),
            took.map(duration).unwrap_or_default(),
            state,
        ])
    };
    let mut rows: Vec<Row> = points.map(row).collect();
    rows.iter_mut().for_each(|row| row.make_printable(printable));
    (columns, rows)
}

/// `full`, `changed`, or how many of the disks were read in full.
fn read_mode(point: &Point) -> String {
    let full = point.disks.iter().filter(|disk| disk.read_mode == "full").count();
    match point.disks.first() {
        None => "-".into(),
        Some(first) if point.disks.iter().all(|disk| disk.read_mode == first.read_mode) => first.read_mode.clone(),
        Some(_) => format!("{full} of {} full", point.disks.len()),
    }
}

/// How far a job has come.
fn progress(job: &Job) -> String {
    match (job.status.as_str(), job.total_bytes) {
        (_, 0) => "-".into(),
        ("running", total) => {
            let percent = u128::from(job.done_bytes) * 100 / u128::from(total);
            format!("{} ({percent} %)", bytes(job.done_bytes))
        }
        _ => bytes(job.done_bytes),
    }
}

/// What `prune` does with each point, the points of a machine together.
fn forgets(records: &[&Record], now: Time) -> Vec<Row> {
    let text = |action: &Action, key: &str| action.extra.get(key)?.as_str().map(str::to_owned);
    let mut actions: Vec<&Action> = records.iter().filter_map(|record| as_action(record)).collect();
    actions.sort_by_cached_key(|action| {
        let captured: Option<Time> = text(action, "captured_at").and_then(|time| time.parse().ok());
        (text(action, "machine"), text(action, "host"), captured)
    });
    let row = |action: &Action| {
        let captured: Option<Time> = text(action, "captured_at").and_then(|time| time.parse().ok());
        let reason = action.reason.split_once(": ").map_or(action.reason.as_str(), |(_, why)| why);
        Row::new(vec![
            short_id(&action.target).to_owned(),
            text(action, "machine").unwrap_or_default(),
            captured.map(moment).unwrap_or_default(),
            captured.map(|captured| age(now, captured)).unwrap_or_default(),
            if action.changed { "remove" } else { "keep" }.to_owned(),
            reason.to_owned(),
        ])
    };
    actions.into_iter().map(row).collect()
}

fn point_cells(point: &Point, now: Time) -> Vec<String> {
    vec![
        short_id(&point.point).to_owned(),
        point.machine.clone(),
        moment(point.captured_at),
        age(now, point.captured_at),
        point.disks.len().to_string(),
        bytes(point.disks.iter().map(|d| d.capacity_bytes).sum()),
        bytes(point.disks.iter().map(|d| d.stored_bytes).sum()),
        point_state(point),
        verified(point, now),
    ]
}

/// How a point was verified, and when.
fn verified(point: &Point, now: Time) -> String {
    match (&point.verified, point.verified_at) {
        (Some(serde_json::Value::String(how)), Some(at)) if (now - at).num_seconds() > 60 => {
            format!("{how}, {} ago", age(now, at))
        }
        (Some(serde_json::Value::String(how)), _) => how.clone(),
        (Some(serde_json::Value::Bool(false)), _) => "no".into(),
        _ => String::new(),
    }
}

fn status_of_machine(check: &Check, now: Time) -> Row {
    let text = |key: &str| check.extra.get(key).and_then(|value| value.as_str());
    let time = |key: &str| text(key)?.parse::<Time>().ok();
    let ago = |key: &str| time(key).map(|then| age(now, then));
    let is_well = check.status == Status::Ok.as_str() && text("standing") == Some("selected");
    let status = if is_well { check.status.clone() } else { check.status.to_uppercase() };
    let join = |a: Option<&str>, b: Option<String>| match (a, b) {
        (Some(a), Some(b)) => format!("{a}, {b} ago"),
        _ => "-".into(),
    };
    let cells = vec![
        check.target.clone(),
        if text("standing") == Some("gone") || text("standing") == Some("left_out") { "-".into() } else { status },
        time("captured_at").map_or_else(|| "none".into(), |then| format!("{} old", age(now, then.min(now)))),
        join(text("last_result"), ago("last_run_at")),
        join(text("verified_depth"), ago("verified_at")),
        time("next_run_at").map_or_else(|| "-".into(), |next| short_moment(now, next)),
        if is_well { "-".into() } else { check.detail.clone() },
    ];
    Row::new(cells).note(if is_well { None } else { check.hint.clone() })
}

/// A moment of the next days in local time, and no more of it than is needed.
fn short_moment(now: Time, then: Time) -> String {
    let then = then.with_timezone(&chrono::Local);
    let form = if (then.fixed_offset() - now).num_days() < 6 { "%a %H:%M" } else { "%Y-%m-%d %H:%M" };
    then.format(form).to_string()
}

fn disk_note(disk: &Disk) -> String {
    let mut notes = Vec::new();
    match &disk.skip_reason {
        Some(reason) => notes.push(format!("excluded: {reason}")),
        None if !disk.included => notes.push("left out".into()),
        None => {}
    }
    notes.extend(disk.capture.as_ref().map(|id| format!("captured {id}")));
    if disk.point.is_some() {
        notes.extend(disk.nbd.clone());
    }
    notes.extend(disk.consistency.as_deref().map(|word| consistency(word).to_owned()));
    notes.extend(disk.read_mode.as_ref().map(|mode| format!("reads {mode}")));
    notes.extend(disk.sha256.as_ref().map(|sum| format!("sha256 {sum}")));
    notes.join(", ")
}

fn point_state(point: &crate::record::Point) -> String {
    if !point.damage.is_empty() {
        let count = point.damage.len();
        return format!("DAMAGED ({count} {})", if count == 1 { "place" } else { "places" });
    }
    let mut words = vec![consistency(&point.consistency).to_owned()];
    words.extend(point.pinned.then(|| "pinned".to_owned()));
    let left_out = point.left_out.iter().filter_map(|left_out| left_out.disk.as_ref().or(left_out.part.as_ref()));
    let left_out: Vec<&str> = left_out.map(String::as_str).collect();
    if !left_out.is_empty() {
        words.push(format!("without {}", left_out.join(" ")));
    }
    match &point.copied {
        Some(copied) if copied.already_there => words.push("already there".into()),
        Some(copied) => words.push(format!("copied ({})", bytes(copied.stored_bytes))),
        None => {}
    }
    if let Some(place) = &point.restored_to {
        words.push(match &place.machine {
            Some(machine) => format!("restored as {machine}"),
            None => "restored".into(),
        });
    }
    words.join(", ")
}
