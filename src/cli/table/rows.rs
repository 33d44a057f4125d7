//! The columns of each kind of record, and their content.

use super::cells::{
    TableKind, address, age, as_action, bytes, consistency, duration, is_running, kind, moment, printable, short_id,
};
use super::layout::{Column, Row, View};
use super::schedules;
use crate::record::{Action, Check, Disk, File, Job, Point, Record, Status, Time, Usage};
use std::time::Duration;

/// Returns the columns and rows of records of one kind.
pub(super) fn of(records: &[&Record], view: View, now: Time) -> (Vec<Column>, Vec<Row>) {
    let with_host = are_of_several_hosts(records);
    let mut rows: Vec<Row> = match kind(records[0]) {
        TableKind::Forget => forgets(records, now),
        TableKind::Other("point") if view == View::Backup => return backups(records),
        TableKind::Schedule => records.iter().map(|record| schedules::row(record, now)).collect(),
        _ => records.iter().map(|record| row(record, now, with_host)).collect(),
    };
    rows.iter_mut().for_each(|row| row.make_printable(printable));
    (columns(records[0], with_host), rows)
}

/// Whether to add a column for the host: for points of several hosts, and for the machines of `status --all-hosts`.
fn are_of_several_hosts(records: &[&Record]) -> bool {
    let mut hosts = records.iter().filter_map(|record| match record {
        Record::Point(point) => Some(&point.host),
        _ => None,
    });
    let first = hosts.next();
    hosts.any(|host| Some(host) != first)
        || records.iter().any(|record| matches!(record, Record::Check(check) if is_of_all_hosts(check)))
}

/// Whether a machine's check is from `status --all-hosts`.
fn is_of_all_hosts(check: &Check) -> bool {
    check.extra.get("standing").is_some_and(|standing| standing == "stored")
}

/// Returns the columns of a record's kind. The rank says which columns are omitted first if the terminal is too narrow:
/// 1 is the first.
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
        Record::File(_) if kind(record) == TableKind::GuestFile => vec![
            text("MODE").optional(3),
            text("OWNER").optional(2),
            number("SIZE"),
            text("MODIFIED").optional(1),
            text("PATH"),
        ],
        Record::Filesystem(_) => vec![
            text("FILE SYSTEM"),
            text("FORMAT"),
            number("SIZE").optional(3),
            text("LABEL").optional(2),
            text("MOUNT POINT"),
            text("SYSTEM").optional(4),
            text("NOTE").optional(1),
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
        Record::Action(_) if kind(record) == TableKind::Schedule => schedules::columns(),
        Record::Action(_) => vec![text("ACTION"), text("TARGET"), text("CHANGED"), text("REASON")],
        Record::Check(_) if kind(record) == TableKind::MachineStatus => {
            let mut columns = vec![
                text("MACHINE"),
                text("STATUS"),
                text("NEWEST POINT"),
                text("LAST RUN").optional(3),
                text("VERIFIED").optional(2),
                text("NEXT RUN").optional(1),
                text("NOTE"),
            ];
            if with_host {
                columns.insert(1, text("HOST"));
            }
            columns
        }
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
        Record::Log(_) => vec![text("TIME"), text("LEVEL"), text("RUN"), text("MESSAGE")],
        Record::Usage(_) => vec![
            text("MACHINE"),
            text("HOST").optional(3),
            number("POINTS").optional(1),
            number("SIZE").optional(2),
            number("STORED"),
            number("OWN"),
            number("SHARED").optional(4),
            number("GROWTH"),
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
        Record::File(f) if kind(record) == TableKind::GuestFile => Row::new(guest_file_cells(f)),
        Record::Filesystem(f) => Row::new(vec![
            f.filesystem.clone(),
            f.format.clone(),
            bytes(f.size_bytes),
            f.label.clone().unwrap_or_default(),
            f.mount_point.clone().unwrap_or_default(),
            f.system.clone().unwrap_or_default(),
            f.error.clone().unwrap_or_else(|| if f.readable { String::new() } else { "cannot be read".into() }),
        ]),
        Record::File(f) => Row::new(vec![f.sha256.clone().unwrap_or_default(), bytes(f.size_bytes), f.path.clone()]),
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
        Record::Check(c) if kind(record) == TableKind::MachineStatus => status_of_machine(c, now, with_host),
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
        Record::Log(line) => {
            Row::new(vec![moment(line.logged_at), line.level.clone(), line.run.clone(), line.message.clone()])
        }
        Record::Usage(usage) => usage_row(usage),
        Record::Failure(_) => Row::new(vec![]),
        Record::Other(_) => Row::new(vec![record.to_line()]),
    }
}

/// Returns the table of points that a backup created, with statistics.
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

/// Returns `full`, `changed`, or how many of the disks were read in full.
fn read_mode(point: &Point) -> String {
    let full = point.disks.iter().filter(|disk| disk.read_mode == "full").count();
    match point.disks.first() {
        None => "-".into(),
        Some(first) if point.disks.iter().all(|disk| disk.read_mode == first.read_mode) => first.read_mode.clone(),
        Some(_) => format!("{full} of {} full", point.disks.len()),
    }
}

/// Returns the row with the space that a machine or the repository uses.
fn usage_row(usage: &Usage) -> Row {
    let size = |size: Option<u64>| size.map(bytes).unwrap_or_default();
    let growth = usage.growth_bytes_per_day.map(|growth| format!("{} a day", bytes(growth as u64)));
    let (name, hosts) = match &usage.machine {
        Some(machine) => (machine.clone(), usage.hosts.join(" ")),
        None => ("(all)".to_owned(), usage.hosts.len().to_string()),
    };
    let unused = usage.unused_bytes.filter(|unused| *unused > 0);
    Row::new(vec![
        name,
        hosts,
        usage.points.to_string(),
        bytes(usage.capacity_bytes),
        bytes(usage.stored_bytes),
        size(usage.own_bytes),
        size(usage.shared_bytes),
        growth.unwrap_or_default(),
    ])
    .note(unused.map(|unused| format!("{} unused; 'kvmb prune' frees unused space", bytes(unused))))
}

/// Formats the progress of a job.
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

/// Returns the rows with `prune`'s verdict on each point, grouped by machine.
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

/// Formats a file as `ls -l` does.
fn guest_file_cells(file: &File) -> Vec<String> {
    let owner = match (file.uid, file.gid) {
        (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
        _ => String::new(),
    };
    let kind = file.kind.as_deref().unwrap_or_default();
    let letter = match kind {
        "directory" => 'd',
        "symlink" => 'l',
        "char_device" => 'c',
        "block_device" => 'b',
        "fifo" => 'p',
        "socket" => 's',
        _ => '-',
    };
    let mode = file.mode.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok());
    let mode = mode.map(|mode| format!("{letter}{}", permissions(mode))).unwrap_or_else(|| letter.to_string());
    let path = match &file.target {
        Some(target) => format!("{} -> {target}", file.path),
        None => file.path.clone(),
    };
    vec![
        mode,
        owner,
        if kind == "directory" { String::new() } else { bytes(file.size_bytes) },
        file.modified_at.map(moment).unwrap_or_default(),
        path,
    ]
}

/// Formats permissions as `rwxr-xr-x`, with setuid, setgid and sticky bits.
fn permissions(mode: u32) -> String {
    let letters = |shift: u32, special: bool, word: char| {
        let bits = mode >> shift;
        let execute = match (bits & 1 != 0, special) {
            (true, true) => word,
            (false, true) => word.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        };
        [if bits & 4 != 0 { 'r' } else { '-' }, if bits & 2 != 0 { 'w' } else { '-' }, execute]
    };
    let parts =
        [letters(6, mode & 0o4000 != 0, 's'), letters(3, mode & 0o2000 != 0, 's'), letters(0, mode & 0o1000 != 0, 't')];
    parts.concat().into_iter().collect()
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

/// Describes how and when a point was verified.
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

fn status_of_machine(check: &Check, now: Time, with_host: bool) -> Row {
    let text = |key: &str| check.extra.get(key).and_then(|value| value.as_str());
    let time = |key: &str| text(key)?.parse::<Time>().ok();
    let ago = |key: &str| time(key).map(|then| age(now, then));
    let is_well = check.status == Status::Ok.as_str() && matches!(text("standing"), Some("selected" | "stored"));
    let status = match is_well {
        true if is_running(check) => "running".to_owned(),
        true => check.status.clone(),
        false => check.status.to_uppercase(),
    };
    let note = match is_well {
        true if is_running(check) => check.detail.rsplit("; ").next().unwrap_or_default().to_owned(),
        true => "-".into(),
        false => check.detail.clone(),
    };
    let join = |a: Option<&str>, b: Option<String>| match (a, b) {
        (Some(a), Some(b)) => format!("{a}, {b} ago"),
        _ => "-".into(),
    };
    let mut cells = vec![
        check.target.clone(),
        if text("standing") == Some("gone") || text("standing") == Some("left_out") { "-".into() } else { status },
        time("captured_at").map_or_else(|| "none".into(), |then| format!("{} old", age(now, then.min(now)))),
        join(text("last_result"), ago("last_run_at")),
        join(text("verified_depth"), ago("verified_at")),
        time("next_run_at").map_or_else(|| "-".into(), |next| short_moment(now, next)),
        note,
    ];
    if with_host {
        cells.insert(1, text("host").unwrap_or_default().to_owned());
    }
    Row::new(cells).note(if is_well { None } else { check.hint.clone() })
}

/// Formats a local time within the next days, as briefly as possible.
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
    let mut left_out: Vec<&str> = Vec::new();
    for part in &point.left_out {
        let name = part.disk.as_deref().or(part.part.as_deref());
        left_out.extend(name.filter(|name| !left_out.contains(name)));
    }
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
