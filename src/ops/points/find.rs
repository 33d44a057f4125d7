//! Resolves the name of a point that a user specifies.

use super::lineage::{Origin, lineages};
use super::open::read_origin;
use super::point_ref::{PointRef, is_point};
use crate::clock::{CLOCK_SKEW, last_moment_until};
use crate::glob::{self, is_glob};
use crate::ops::inventory::host_name;
use crate::ops::{Error, Result};
use crate::repo::{DamagedSnapshot, Id, Repository};
use crate::suggest::similar_names;
use crate::units::ShortDuration;
use chrono::{DateTime, Duration, FixedOffset, Local, NaiveDate, NaiveDateTime};
use std::collections::{BTreeMap, BTreeSet};

/// How a user names a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PointName {
    /// An id or its beginning, or a machine's name, which means its newest point.
    Plain(String),
    /// The newest point of a machine at or before a moment. `None` means its newest point.
    At { machine: String, moment: Option<DateTime<FixedOffset>> },
}

impl PointName {
    /// Parses `ID`, `NAME`, `NAME@latest`, `NAME@yesterday`, `NAME@2026-11-20`, `NAME@2026-11-20T14:30`, `NAME@-2h`.
    /// Times without an offset are local, and a date means the end of that day. Text after an `@` that is not a time is
    /// part of the name.
    pub(crate) fn parse(text: &str, now: DateTime<Local>) -> PointName {
        if let Some((machine, time)) = text.rsplit_once('@')
            && !machine.is_empty()
        {
            if time == "latest" {
                return PointName::At { machine: machine.to_owned(), moment: None };
            }
            if let Some(moment) = parse_moment(time, now) {
                return PointName::At { machine: machine.to_owned(), moment: Some(moment) };
            }
        }
        PointName::Plain(text.to_owned())
    }
}

fn parse_moment(text: &str, now: DateTime<Local>) -> Option<DateTime<FixedOffset>> {
    let local = |naive| last_moment_until(&Local, naive).map(|moment| moment.fixed_offset());
    if let Some(span) = text.strip_prefix('-') {
        let ago = Duration::from_std(span.parse::<ShortDuration>().ok()?.0).ok()?;
        return Some((now - ago).fixed_offset());
    }
    let date = match text {
        "today" => Some(now.date_naive()),
        "yesterday" => now.date_naive().pred_opt(),
        text => NaiveDate::parse_from_str(text, "%Y-%m-%d").ok(),
    };
    if let Some(date) = date {
        return local(date.and_hms_nano_opt(23, 59, 59, 999_999_999)?);
    }
    if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
        // Records have whole milliseconds, and a time without a fraction means the whole second.
        let nanoseconds = moment.timestamp_subsec_nanos();
        let rest = match nanoseconds {
            0 => 999_999_999,
            _ if nanoseconds % 1_000_000 == 0 => 999_999,
            _ => 0,
        };
        return Some(moment + Duration::nanoseconds(rest));
    }
    for form in ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"] {
        if let Ok(naive) = NaiveDateTime::parse_from_str(text, form) {
            // Tables show no fractions of a second, and a time from a table must find its point.
            return local(naive + Duration::nanoseconds(999_999_999));
        }
    }
    for form in ["%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"] {
        if let Ok(naive) = NaiveDateTime::parse_from_str(text, form) {
            // "14:30" means the whole minute, so it includes a point of 14:30:20.
            return local(naive + Duration::seconds(59) + Duration::nanoseconds(999_999_999));
        }
    }
    None
}

/// Returns the only point that `name` means. A machine's name means the machine of this host. If this host has none
/// with that name and several others do, the error is [`Error::AmbiguousMachine`].
pub(crate) fn find(repo: &Repository, points: &[PointRef], name: &PointName) -> Result<PointRef> {
    let missing = |wanted: String| {
        let error = no_such_point(repo, points.iter().map(PointRef::machine), wanted);
        with_known_times(error, points)
    };
    match name {
        PointName::At { machine, moment } => newest_named(repo, points, machine, *moment)?.ok_or_else(|| {
            missing(match moment {
                Some(moment) => format!("{machine}@{}", moment.to_rfc3339()),
                None => format!("{machine}@latest"),
            })
        }),
        PointName::Plain(text) => {
            if let Some(point) = newest_named(repo, points, text, None)? {
                return Ok(point);
            }
            let looks_like_id = text.len() >= 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
            let beginning = text.to_ascii_lowercase();
            let begins = |id: &Id| looks_like_id && id.to_string().starts_with(&beginning);
            let mut matching: Vec<&PointRef> = points.iter().filter(|point| begins(&point.id)).collect();
            if matching.is_empty() {
                matching =
                    points.iter().filter(|point| point.snapshot.original.is_some_and(|id| begins(&id))).collect();
            }
            match matching[..] {
                [] => Err(without_tag(repo, begins).unwrap_or_else(|| missing(text.clone()))),
                [point] => Ok(point.clone()),
                _ => Err(Error::AmbiguousPoint { wanted: text.clone(), count: matching.len() }),
            }
        }
    }
}

/// Returns an error if the id belongs to a snapshot that is not a point.
fn without_tag(repo: &Repository, is_meant: impl Fn(&Id) -> bool) -> Option<Error> {
    let mut untagged = repo.snapshots().ok()?.snapshots.into_iter().filter(|stored| !is_point(&stored.snapshot));
    let meant = untagged.find(|stored| is_meant(&stored.id))?;
    let machine = match &meant.snapshot.paths[..] {
        [path] => path.strip_prefix('/').filter(|name| !name.contains(['/', ','])).map(str::to_owned),
        _ => None,
    };
    Some(Error::NotAPoint { snapshot: meant.id.short(), repo: repo.url(), machine })
}

/// Returns the newest point of a machine at or before `moment`. Without a moment, the newest that is not dated in the
/// future, or if all are, the newest.
fn newest_named(
    repo: &Repository,
    points: &[PointRef],
    machine: &str,
    moment: Option<DateTime<FixedOffset>>,
) -> Result<Option<PointRef>> {
    let named: Vec<&PointRef> = points.iter().filter(|point| point.machine() == machine).collect();
    let mut newest_first = of_one_machine(repo, named, machine)?.into_iter().rev();
    if let Some(moment) = moment {
        return Ok(newest_first.find(|point| point.snapshot.time <= moment).cloned());
    }
    let now = Local::now() + CLOCK_SKEW;
    let newest = newest_first.clone().next();
    Ok(newest_first.find(|point| point.snapshot.time <= now).or(newest).cloned())
}

/// Returns the points of the machine that is meant, among the points with its name, oldest first.
fn of_one_machine<'p>(repo: &Repository, named: Vec<&'p PointRef>, machine: &str) -> Result<Vec<&'p PointRef>> {
    let is_of_one_host = named.windows(2).all(|pair| pair[0].snapshot.hostname == pair[1].snapshot.hostname);
    if is_of_one_host {
        return Ok(named);
    }
    // Whether it is a single machine that moved is only recorded in the manifests.
    let (index, _) = repo.load_index_with_damage()?;
    let mut origins = Vec::new();
    for point in &named {
        origins.push(read_origin(repo, &index, point)?);
    }
    let known = named.iter().zip(&origins).filter_map(|(point, origin)| Some((*point, origin.as_ref()?)));
    let machines = lineages(known);
    let hosts_of = |(point, origin): (&'p PointRef, Option<Origin>)| {
        let its = origin.as_ref().and_then(|origin| machines.iter().find(|machine| machine.has(origin)));
        // A point with a damaged manifest may belong to any machine of its host.
        let hosts = its.map_or_else(|| BTreeSet::from([point.snapshot.hostname.clone()]), |its| its.hosts.clone());
        (point, hosts)
    };
    let groups: Vec<(&PointRef, BTreeSet<String>)> = named.into_iter().zip(origins).map(hosts_of).collect();
    let this_host = host_name();
    let is_here = groups.iter().any(|(_, hosts)| hosts.contains(&this_host));
    let first = groups.first().map(|(_, hosts)| hosts.clone()).unwrap_or_default();
    match is_here {
        true => {
            let here = groups.into_iter().filter(|(_, hosts)| hosts.contains(&this_host));
            Ok(here.map(|(point, _)| point).collect())
        }
        false if groups.iter().all(|(_, hosts)| *hosts == first) => {
            Ok(groups.into_iter().map(|(point, _)| point).collect())
        }
        false => {
            // The newest point of each machine, for the error message.
            let newest: BTreeMap<BTreeSet<String>, &PointRef> =
                groups.into_iter().map(|(point, hosts)| (hosts, point)).collect();
            let describe = |(hosts, point): (BTreeSet<String>, &PointRef)| {
                (
                    Vec::from_iter(hosts).join(", "),
                    format!("{} of {}", point.id.short(), point.snapshot.time.to_rfc3339()),
                )
            };
            let machine = machine.to_owned();
            Err(Error::AmbiguousMachine { machine, newest: newest.into_iter().map(describe).collect() })
        }
    }
}

/// Returns the error that there is no such point, with names of `machines` that may have been meant.
pub(crate) fn no_such_point<'a>(repo: &Repository, machines: impl Iterator<Item = &'a str>, wanted: String) -> Error {
    let machines: BTreeSet<&str> = machines.collect();
    let (machine, _) = wanted.rsplit_once('@').unwrap_or((&wanted, ""));
    let near = match machines.contains(machine) {
        true => Vec::new(),
        false => similar_names(machine, machines),
    };
    Error::NoSuchPoint { wanted, repo: repo.url(), near, known: None }
}

/// Adds the times of the machine's points to the error, if there are any.
fn with_known_times(error: Error, points: &[PointRef]) -> Error {
    let Error::NoSuchPoint { wanted, repo, near, .. } = error else { return error };
    let machine = wanted.rsplit_once('@').map_or(wanted.as_str(), |(machine, _)| machine);
    let times = || points.iter().filter(|point| point.machine() == machine).map(|point| point.snapshot.time);
    let known = times().min().zip(times().max());
    Error::NoSuchPoint { wanted, repo, near, known }
}

/// The same as [`find`], if snapshot files are damaged: each of them could be a newer point of the requested machine,
/// so an older one is not returned. A point can still be requested by its id.
pub(crate) fn find_surely(
    repo: &Repository,
    points: &[PointRef],
    damaged: &[DamagedSnapshot],
    name: &PointName,
) -> Result<PointRef> {
    let found = find(repo, points, name);
    let unreadable = |snapshot: &DamagedSnapshot| Error::UnreadableSnapshot {
        snapshot: snapshot.id.to_string(),
        reason: snapshot.error.to_string(),
    };
    match (name, &found) {
        (PointName::Plain(text), Ok(point)) if point.machine() != text => found,
        (PointName::Plain(text), Err(_)) => {
            let prefix = text.to_ascii_lowercase();
            let meant = damaged.iter().find(|snapshot| text.len() >= 4 && snapshot.id.to_string().starts_with(&prefix));
            meant.or(damaged.first()).map_or(found, |snapshot| Err(unreadable(snapshot)))
        }
        _ => damaged.first().map_or(found, |snapshot| Err(unreadable(snapshot))),
    }
}

/// Whether a name or glob (`web*`) matches this machine.
pub(crate) fn name_matches(pattern: &str, machine: &str) -> bool {
    pattern == machine || (is_glob(pattern) && glob::matches(pattern, machine))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn point_names_are_parsed() {
        let now = Local.with_ymd_and_hms(2026, 11, 20, 15, 0, 0).unwrap();
        let at = |text: &str| match PointName::parse(text, now) {
            PointName::At { machine, moment } => {
                (machine, moment.map(|m| m.with_timezone(&Local).format("%F %T").to_string()))
            }
            PointName::Plain(text) => (text, Some("plain".into())),
        };
        let cases = [
            ("vm1@latest", "vm1", None),
            ("vm1@2026-11-20", "vm1", Some("2026-11-20 23:59:59")),
            ("vm1@2026-11-20T14:30", "vm1", Some("2026-11-20 14:30:59")),
            ("vm1@2026-11-20T14:30:05", "vm1", Some("2026-11-20 14:30:05")),
            ("vm1@today", "vm1", Some("2026-11-20 23:59:59")),
            ("vm1@yesterday", "vm1", Some("2026-11-19 23:59:59")),
            ("vm1@-2h", "vm1", Some("2026-11-20 13:00:00")),
            ("vm1@-3d", "vm1", Some("2026-11-17 15:00:00")),
            ("a@b@-3d", "a@b", Some("2026-11-17 15:00:00")),
            ("vm1", "vm1", Some("plain")),
            ("a@b", "a@b", Some("plain")),
            ("vm1@-2x", "vm1@-2x", Some("plain")),
            ("vm1@-é", "vm1@-é", Some("plain")),
            ("@latest", "@latest", Some("plain")),
        ];
        for (text, machine, moment) in cases {
            assert_eq!(at(text), (machine.to_owned(), moment.map(str::to_owned)), "{text}");
        }
    }
}
