//! Records as tables that a tired person can read.

use crate::record::{Check, Disk, Record, Source, Status, Time, steers_terminal};
use comfy_table::{CellAlignment, Table, presets};

/// Renders records of any mix: one table for each run of the same type; what `status` says of machines is one of its own.
pub fn render(records: &[Record], now: Time) -> String {
    let mut text = String::new();
    for run in records.chunk_by(|a, b| a.kind() == b.kind() && is_of_machine(a) == is_of_machine(b)) {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&table(run, now));
    }
    text
}

/// Whether this is how the backups of a machine stand.
fn is_of_machine(record: &Record) -> bool {
    matches!(record, Record::Check(check) if check.check == "backup")
}

/// Whether these are points of more than one host.
fn are_of_several_hosts(records: &[Record]) -> bool {
    let mut hosts = records.iter().filter_map(|record| match record {
        Record::Point(point) => Some(&point.host),
        _ => None,
    });
    let first = hosts.next();
    hosts.any(|host| Some(host) != first)
}

fn table(records: &[Record], now: Time) -> String {
    let with_host = are_of_several_hosts(records);
    let (header, numeric): (&[&str], &[usize]) = match &records[0] {
        Record::Machine(_) => (&["MACHINE", "STATE", "VCPUS", "MEMORY", "DISKS", "AGENT"], &[2, 3]),
        Record::Disk(_) => (&["MACHINE", "DISK", "FORMAT", "CAPACITY", "ON HOST", "SOURCE", "NOTE"], &[3, 4]),
        Record::File(_) => (&["SHA-256", "SIZE", "FILE"], &[1]),
        Record::Point(_) if with_host => {
            (&["POINT", "MACHINE", "HOST", "CAPTURED", "AGE", "DISKS", "SIZE", "NEW", "STATE"], &[4, 5, 6, 7])
        }
        Record::Point(_) => (&["POINT", "MACHINE", "CAPTURED", "AGE", "DISKS", "SIZE", "NEW", "STATE"], &[3, 4, 5, 6]),
        Record::Action(_) => (&["ACTION", "TARGET", "CHANGED", "REASON"], &[]),
        Record::Check(_) if is_of_machine(&records[0]) => {
            (&["MACHINE", "STATUS", "NEWEST POINT", "LAST RUN", "VERIFIED", "NEXT RUN", "NOTE"], &[])
        }
        Record::Check(_) => (&["CHECK", "TARGET", "STATUS", "DETAIL"], &[]),
        Record::Setting(_) => (&["KEY", "VALUE", "SOURCE", "FROM"], &[]),
        // What failed is on standard error already.
        Record::Failure(_) => return String::new(),
        Record::Other(_) => (&["RECORD"], &[]),
    };
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().copied());
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    for column in numeric {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for record in records {
        let mut cells = row(record, now);
        if let Record::Point(point) = record
            && with_host
        {
            cells.insert(2, point.host.clone());
        }
        table.add_row(cells.into_iter().map(|cell| printable(&cell)));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn row(record: &Record, now: Time) -> Vec<String> {
    match record {
        Record::Machine(m) => vec![
            m.machine.clone(),
            m.state.clone(),
            m.vcpus.to_string(),
            bytes(m.memory_bytes),
            m.disks.join(" "),
            m.agent.clone(),
        ],
        Record::Disk(d) => vec![
            d.machine.clone(),
            d.disk.clone(),
            d.format.clone(),
            d.capacity_bytes.map(bytes).unwrap_or_else(|| "?".into()),
            d.allocated_bytes.map(bytes).unwrap_or_else(|| "?".into()),
            d.path.clone().unwrap_or_else(|| address(&d.source)),
            disk_note(d),
        ],
        Record::File(f) => vec![f.sha256.clone(), bytes(f.size_bytes), f.path.clone()],
        Record::Point(p) => vec![
            p.point.chars().take(8).collect(),
            p.machine.clone(),
            moment(p.captured_at),
            age(now, p.captured_at),
            p.disks.len().to_string(),
            bytes(p.disks.iter().map(|d| d.capacity_bytes).sum()),
            bytes(p.disks.iter().map(|d| d.stored_bytes).sum()),
            point_state(p),
        ],
        Record::Action(a) => vec![
            a.action.clone(),
            a.target.clone(),
            match (a.changed, a.dry_run) {
                (true, true) => "would".into(),
                (true, false) => "yes".into(),
                (false, _) => "no".into(),
            },
            a.reason.clone(),
        ],
        Record::Check(c) if is_of_machine(record) => status_of_machine(c, now),
        Record::Check(c) => vec![
            c.check.clone(),
            c.target.clone(),
            c.status.clone(),
            match &c.hint {
                Some(hint) => format!("{} ({hint})", c.detail),
                None => c.detail.clone(),
            },
        ],
        Record::Setting(s) => vec![
            s.key.clone(),
            s.value.as_str().map_or_else(|| s.value.to_string(), str::to_owned),
            s.source.clone(),
            s.origin.clone().unwrap_or_default(),
        ],
        Record::Failure(_) => vec![],
        Record::Other(_) => vec![record.to_line()],
    }
}

fn status_of_machine(check: &Check, now: Time) -> Vec<String> {
    let text = |key: &str| check.extra.get(key).and_then(|value| value.as_str());
    let time = |key: &str| text(key)?.parse::<Time>().ok();
    let ago = |key: &str| time(key).map(|then| age(now, then));
    let is_well = check.status == Status::Ok.as_str() && text("standing") == Some("selected");
    let status = if is_well { check.status.clone() } else { check.status.to_uppercase() };
    let join = |a: Option<&str>, b: Option<String>| match (a, b) {
        (Some(a), Some(b)) => format!("{a}, {b} ago"),
        _ => "-".into(),
    };
    vec![
        check.target.clone(),
        if text("standing") == Some("gone") || text("standing") == Some("left_out") { "-".into() } else { status },
        time("captured_at").map_or_else(|| "none".into(), |then| format!("{} old", age(now, then.min(now)))),
        join(text("last_result"), ago("last_run_at")),
        join(text("verified_depth"), ago("verified_at")),
        time("next_run_at").map_or_else(|| "-".into(), |next| short_moment(now, next)),
        match (is_well, &check.hint) {
            (true, _) => String::new(),
            (false, Some(hint)) => format!("{} ({hint})", check.detail),
            (false, None) => check.detail.clone(),
        },
    ]
}

/// A moment of the next days in local time, and no more of it than is needed.
fn short_moment(now: Time, then: Time) -> String {
    let then = then.with_timezone(&chrono::Local);
    let form = if (then.fixed_offset() - now).num_days() < 6 { "%a %H:%M" } else { "%Y-%m-%d %H:%M" };
    then.format(form).to_string()
}

fn address(source: &Source) -> String {
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

fn disk_note(disk: &Disk) -> String {
    let mut notes = Vec::new();
    match &disk.skip_reason {
        Some(reason) => notes.push(format!("excluded: {reason}")),
        None if !disk.included => notes.push("left out".into()),
        None => {}
    }
    notes.extend(disk.capture.as_ref().map(|id| format!("captured {id}")));
    notes.extend(disk.consistency.clone());
    notes.extend(disk.read_mode.as_ref().map(|mode| format!("reads {mode}")));
    notes.extend(disk.sha256.as_ref().map(|sum| format!("sha256 {sum}")));
    notes.join(", ")
}

fn point_state(point: &crate::record::Point) -> String {
    if !point.damage.is_empty() {
        return format!("DAMAGED ({} places)", point.damage.len());
    }
    let mut words = vec![point.consistency.clone()];
    words.extend(point.pinned.then(|| "pinned".to_owned()));
    let left_out = point.left_out.iter().filter_map(|left_out| left_out.disk.as_ref().or(left_out.part.as_ref()));
    let left_out: Vec<&str> = left_out.map(String::as_str).collect();
    if !left_out.is_empty() {
        words.push(format!("without {}", left_out.join(" ")));
    }
    match &point.verified {
        Some(serde_json::Value::String(how)) => words.push(format!("verified ({how})")),
        Some(serde_json::Value::Bool(false)) => words.push("not verified".into()),
        _ => {}
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

/// A size for people: binary units, as `qemu-img info` and `lsblk` print them.
pub fn bytes(count: u64) -> String {
    match count {
        0..=1023 => format!("{count} B"),
        _ => indicatif::BinaryBytes(count).to_string(),
    }
}

/// The time from `then` to `now` in its largest unit.
pub fn age(now: Time, then: Time) -> String {
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

/// A moment in local time, with the day of the week: what somebody remembers of it.
pub fn moment(time: Time) -> String {
    time.with_timezone(&chrono::Local).format("%a %Y-%m-%d %H:%M:%S").to_string()
}

/// Text with nothing in it that could steer a terminal: a machine's name is not trusted.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if steers_terminal(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_well() {
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
    fn a_hostile_name_cannot_steer_the_terminal() {
        assert_eq!(printable("vm\x1b[2J\n"), "vm\u{fffd}[2J\u{fffd}");
    }
}
