//! The space that each machine uses in a repository.

use super::points::lineage::{Lineage, Origin, lineages};
use super::points::{self, PointRef};
use super::{Error, Result, Stop};
use crate::record::{self, Time};
use crate::repo::{DamagedSnapshot, Id, Index, RepoUsage, Repository};
use chrono::TimeDelta;
use std::collections::{BTreeSet, HashSet};

/// The period whose points determine the growth.
const GROWTH_PERIOD: TimeDelta = TimeDelta::days(30);

/// The minimum period for calculating a daily growth.
const SHORTEST_PERIOD: TimeDelta = TimeDelta::days(1);

/// The content of a repository.
pub(crate) struct Stats {
    /// The machines, the largest first.
    pub(crate) machines: Vec<record::Usage>,
    /// The repository as a whole.
    pub(crate) total: record::Usage,
    /// Snapshot files that cannot be read. The data that they need counts as unused.
    pub(crate) damaged: Vec<DamagedSnapshot>,
    /// Points whose description cannot be read, with the machine's name. The data that they need counts as unused.
    pub(crate) unreadable: Vec<(String, Error)>,
}

/// A point and its description.
struct Described {
    point: PointRef,
    origin: Origin,
    capacity_bytes: u64,
    stored_bytes: u64,
}

/// Reads the snapshots, the points and every tree. The caller must hold a lock since before the index was loaded.
pub(crate) fn stats(repo: &Repository, index: &Index, stop: &Stop) -> Result<Stats> {
    let (found, damaged) = points::list(repo)?;
    let known: HashSet<Id> = found.iter().map(|point| point.id).collect();
    let (described, unreadable) = describe(repo, index, found, stop)?;
    let machines = lineages(described.iter().map(|described| (&described.point, &described.origin)));
    let by_machine: Vec<Vec<&Described>> = machines
        .iter()
        .map(|machine| described.iter().filter(|described| machine.has(&described.origin)).collect())
        .collect();
    let mut groups: Vec<Vec<Id>> = by_machine
        .iter()
        .map(|points| points.iter().map(|described| described.point.snapshot.tree).collect())
        .collect();
    // Snapshots of restic in the same repository may share blobs, which are then not unused.
    let foreign = repo.snapshots()?.snapshots.into_iter().filter(|stored| !known.contains(&stored.id));
    groups.push(foreign.map(|stored| stored.snapshot.tree).collect());
    let usage = RepoUsage::of(repo, index, &groups, &stop.flag())?;
    stop.check()?;
    let url = repo.url();
    let mut records: Vec<record::Usage> = machines
        .iter()
        .zip(&by_machine)
        .zip(&usage.groups)
        .filter_map(|((machine, points), usage)| {
            let mut record = of_machine(machine, points)?;
            record.repo.clone_from(&url);
            record.stored_bytes = usage.stored_bytes;
            record.own_bytes = Some(usage.own_bytes);
            record.shared_bytes = Some(usage.stored_bytes - usage.own_bytes);
            Some(record)
        })
        .collect();
    records.sort_by(|a, b| (b.stored_bytes, &a.machine, &a.hosts).cmp(&(a.stored_bytes, &b.machine, &b.hosts)));
    let total = of_repository(url, &records, &usage);
    Ok(Stats { machines: records, total, damaged, unreadable })
}

type Unreadable = Vec<(String, Error)>;

/// Reads the description of each point.
fn describe(
    repo: &Repository,
    index: &Index,
    found: Vec<PointRef>,
    stop: &Stop,
) -> Result<(Vec<Described>, Unreadable)> {
    let (mut described, mut unreadable) = (Vec::new(), Vec::new());
    for point in found {
        stop.check()?;
        match points::read_manifest(repo, index, &point) {
            Ok(manifest) => described.push(Described {
                origin: Origin::of(&manifest),
                capacity_bytes: manifest.disks.iter().map(|disk| disk.capacity_bytes).sum(),
                stored_bytes: manifest.disks.iter().map(|disk| disk.stored_bytes).sum(),
                point,
            }),
            Err(error @ Error::BadPoint { .. }) => unreadable.push((point.machine().to_owned(), error)),
            Err(error) => return Err(error),
        }
    }
    Ok((described, unreadable))
}

/// The record of a machine with these points, oldest first. Its sizes are not filled in.
fn of_machine(machine: &Lineage, points: &[&Described]) -> Option<record::Usage> {
    let newest = points.last()?;
    let stored: Vec<(Time, u64)> =
        points.iter().map(|described| (described.point.snapshot.time, described.stored_bytes)).collect();
    Some(record::Usage {
        machine: Some(newest.point.machine().to_owned()),
        uuid: Some(machine.uuid.clone()),
        hosts: machine.hosts.iter().cloned().collect(),
        points: points.len(),
        captured_at: Some(newest.point.snapshot.time),
        capacity_bytes: newest.capacity_bytes,
        growth_bytes_per_day: growth(&stored),
        ..record::Usage::default()
    })
}

fn of_repository(repo: String, machines: &[record::Usage], usage: &RepoUsage) -> record::Usage {
    let hosts: BTreeSet<&String> = machines.iter().flat_map(|machine| &machine.hosts).collect();
    let growth: Vec<f64> = machines.iter().filter_map(|machine| machine.growth_bytes_per_day).collect();
    record::Usage {
        repo,
        hosts: hosts.into_iter().cloned().collect(),
        points: machines.iter().map(|machine| machine.points).sum(),
        captured_at: machines.iter().filter_map(|machine| machine.captured_at).max(),
        capacity_bytes: machines.iter().map(|machine| machine.capacity_bytes).sum(),
        stored_bytes: usage.stored_bytes,
        unused_bytes: Some(usage.unused_bytes),
        growth_bytes_per_day: (!growth.is_empty()).then(|| growth.iter().sum()),
        ..record::Usage::default()
    }
}

/// Returns the average daily growth of the last weeks from the points' times and new bytes, oldest first. The bytes of
/// the first point are not counted, because they were added before its time.
fn growth(points: &[(Time, u64)]) -> Option<f64> {
    let (newest, _) = points.last()?;
    let first = points.iter().position(|(time, _)| *newest - *time <= GROWTH_PERIOD)?;
    let ((begin, _), later) = points[first..].split_first()?;
    let period = *newest - *begin;
    if period < SHORTEST_PERIOD {
        return None;
    }
    let added: u64 = later.iter().map(|(_, stored_bytes)| stored_bytes).sum();
    Some((added as f64 / (period.num_seconds() as f64 / 86_400.0)).round())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_daily_average_of_the_last_month() {
        let at = |hours: i64| "2026-11-01T00:00:00Z".parse::<Time>().unwrap() + TimeDelta::hours(hours);
        assert_eq!(growth(&[]), None);
        assert_eq!(growth(&[(at(0), 1000)]), None);
        assert_eq!(growth(&[(at(0), 1000), (at(23), 10)]), None);
        assert_eq!(growth(&[(at(0), 1000), (at(24), 10)]), Some(10.0));
        assert_eq!(growth(&[(at(0), 1000), (at(36), 10), (at(48), 30)]), Some(20.0));
        // Points older than a month are not counted, and neither is the first one after them.
        let old = [(at(-40 * 24), 5000), (at(0), 1000), (at(10 * 24), 100)];
        assert_eq!(growth(&old), Some(10.0));
        assert_eq!(growth(&[(at(0), 1000), (at(40 * 24), 100)]), None);
    }
}
