//! The newest points of each machine in a repository, for quick queries.
//!
//! A machine is identified by its UUID, which is in a point's manifest; name and host are in the snapshot, which is
//! cheaper to read. So only the manifest of the newest point of each name on each host is read, and older ones only if
//! another machine took over the name. Manifests that this host has cached are not read again, and the index is loaded
//! only if a manifest must be read from the repository. No lock is taken: the results are only reported, and a prune
//! may run concurrently.
//!
//! A point that is dated in the future was made by a clock that was wrong. It is the newest point only if the machine
//! has no other: otherwise it would hide for years that no points are made any more.

use super::inventory::host_name;
use super::manifest::Manifest;
use super::points::{self, PointRef};
use super::{Error, Monitor, Result};
use crate::ops::points::lineage::{Lineage, Origin, lineages};
use crate::record::Time;
use crate::repo::{DamagedSnapshot, Id, Index, Repository};
use chrono::TimeDelta;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// How far the clocks of hosts may differ before a point is considered to be dated in the future.
pub(crate) const CLOCK_TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// The newest point of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Newest {
    /// The machine's name in that point.
    pub(crate) machine: String,
    pub(crate) uuid: String,
    /// The host that the point was taken on.
    pub(crate) host: String,
    pub(crate) point: String,
    /// The moment of the capture.
    pub(crate) captured_at: Time,
    /// The number of points of that host with the machine's name.
    pub(crate) points: usize,
    /// The number of those that are dated in the future.
    pub(crate) future_points: usize,
}

/// The points of a repository by the names of their machines.
pub(crate) struct LatestPoints<'r> {
    repo: &'r Repository,
    monitor: &'r dyn Monitor,
    /// Later points are dated in the future.
    latest_time: Time,
    /// `None` until a manifest must be read.
    index: Option<Arc<Index>>,
    /// The points of each name on each host, oldest first.
    by_name: BTreeMap<(String, String), Vec<PointRef>>,
    /// The origins read from manifests; `None` for damaged ones.
    origins: HashMap<Id, Option<Origin>>,
    /// Snapshot files that cannot be read.
    pub(crate) damaged: Vec<DamagedSnapshot>,
    /// Points whose manifest cannot be read, with the machine's name.
    pub(crate) unreadable: Vec<(String, String)>,
}

impl<'r> LatestPoints<'r> {
    /// Lists the snapshots.
    pub(crate) fn look(repo: &'r Repository, monitor: &'r dyn Monitor, now: Time) -> Result<LatestPoints<'r>> {
        let (all, damaged) = points::list(repo)?;
        let mut by_name: BTreeMap<_, Vec<PointRef>> = BTreeMap::new();
        for point in all {
            let name = (point.machine().to_owned(), point.snapshot.hostname.clone());
            by_name.entry(name).or_default().push(point);
        }
        let (origins, unreadable) = (HashMap::new(), Vec::new());
        let latest_time = now + CLOCK_TOLERANCE;
        Ok(LatestPoints { repo, monitor, latest_time, index: None, by_name, origins, damaged, unreadable })
    }

    /// Whether the repository has a point with this id, or had it before the point was pinned or copied.
    pub(crate) fn has(&self, point: &str) -> bool {
        let Ok(id) = point.parse::<Id>() else { return false };
        self.by_name.values().flatten().any(|known| known.is_or_was(&id))
    }

    /// Returns the newest point of a machine of this host, identified by its UUID: first among the points with its
    /// name, then among all others. Points of other hosts are considered only if this host has none: another host may
    /// have a different machine with the same UUID, but the machine may also have moved here from there.
    pub(crate) fn newest_of(&mut self, name: &str, uuid: &str) -> Result<Option<Newest>> {
        let this_host = host_name();
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            self.by_name.keys().cloned().partition(|(_, host)| *host == this_host);
        for names in [here, elsewhere] {
            let (its, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|(machine, _)| machine == name);
            // Under other names only the newest point is checked, which is enough for a machine that was renamed.
            for (names, wanted) in [(its, Some(uuid)), (others, None)] {
                let mut found = Vec::new();
                for name in &names {
                    found.extend(self.newest_under(name, wanted)?);
                }
                let found = found.into_iter().filter(|newest| newest.uuid == uuid);
                if let Some(newest) = found.max_by_key(|newest| newest.captured_at) {
                    return Ok(Some(newest));
                }
            }
        }
        Ok(None)
    }

    /// Returns the newest point of every name on every host.
    pub(crate) fn newest_of_all(&mut self) -> Result<Vec<Newest>> {
        let names: Vec<(String, String)> = self.by_name.keys().cloned().collect();
        let mut all = Vec::new();
        for name in &names {
            all.extend(self.newest_under(name, None)?);
        }
        Ok(all)
    }

    /// Returns the newest point of every machine on every host. A machine is identified by its UUID and host. A machine
    /// that moved, as its chain shows, counts as one, on the host of its newest point.
    pub(crate) fn newest_of_each_machine(&mut self) -> Result<Vec<Newest>> {
        let mut newest: BTreeMap<(String, String), Newest> = BTreeMap::new();
        for found in self.newest_of_all()? {
            let machine = (found.uuid.clone(), found.host.clone());
            match newest.get_mut(&machine) {
                Some(known) if known.captured_at >= found.captured_at => known.points += found.points,
                Some(known) => *known = Newest { points: known.points + found.points, ..found },
                None => drop(newest.insert(machine, found)),
            }
        }
        let mut hosts: BTreeMap<&str, usize> = BTreeMap::new();
        newest.keys().for_each(|(uuid, _)| *hosts.entry(uuid).or_default() += 1);
        let on_several: BTreeSet<String> =
            hosts.into_iter().filter(|(_, count)| *count > 1).map(|(uuid, _)| uuid.to_owned()).collect();
        for lineage in self.lineages_of(&on_several)? {
            let its: Vec<(String, String)> =
                lineage.hosts.iter().map(|host| (lineage.uuid.clone(), host.clone())).collect();
            let found: Vec<Newest> = its.iter().filter_map(|machine| newest.remove(machine)).collect();
            let points = found.iter().map(|newest| newest.points).sum();
            if let Some(latest) = found.into_iter().max_by_key(|newest| newest.captured_at) {
                newest.insert((latest.uuid.clone(), latest.host.clone()), Newest { points, ..latest });
            }
        }
        Ok(newest.into_values().collect())
    }

    /// Returns which hosts the machines with these UUIDs were on. This reads the manifests of all their points.
    fn lineages_of(&mut self, uuids: &BTreeSet<String>) -> Result<Vec<Lineage>> {
        if uuids.is_empty() {
            return Ok(Vec::new());
        }
        let points: Vec<PointRef> = self.by_name.values().flatten().cloned().collect();
        let mut origins = Vec::new();
        for point in &points {
            origins.extend(self.origin(point)?.filter(|origin| uuids.contains(&origin.uuid)).map(|its| (point, its)));
        }
        Ok(lineages(origins.iter().map(|(point, origin)| (*point, origin))))
    }

    /// Returns the newest readable point of a name on a host; with `uuid`, the newest one of that machine. Points that
    /// are dated in the future are the last resort.
    fn newest_under(&mut self, name: &(String, String), uuid: Option<&str>) -> Result<Option<Newest>> {
        let Some(points) = self.by_name.get(name).cloned() else { return Ok(None) };
        let (past, future): (Vec<&PointRef>, Vec<&PointRef>) =
            points.iter().partition(|point| point.snapshot.time <= self.latest_time);
        for point in past.into_iter().rev().chain(future.iter().copied().rev()) {
            let Some(origin) = self.origin(point)? else { continue };
            if uuid.is_none_or(|uuid| uuid == origin.uuid) {
                return Ok(Some(Newest {
                    machine: name.0.clone(),
                    uuid: origin.uuid,
                    host: origin.host,
                    point: point.id.to_string(),
                    captured_at: point.snapshot.time,
                    points: points.len(),
                    future_points: future.len(),
                }));
            }
        }
        Ok(None)
    }

    fn origin(&mut self, point: &PointRef) -> Result<Option<Origin>> {
        if let Some(known) = self.origins.get(&point.id) {
            return Ok(known.clone());
        }
        let origin = match self.manifest(point) {
            Ok(manifest) => Some(Origin::of(&manifest)),
            Err(Error::BadPoint { .. }) if !points::list(self.repo)?.0.iter().any(|known| known.id == point.id) => None,
            Err(Error::BadPoint { .. }) => {
                self.unreadable.push((point.machine().to_owned(), point.id.to_string()));
                None
            }
            Err(other) => return Err(other),
        };
        self.origins.insert(point.id, origin.clone());
        Ok(origin)
    }

    fn manifest(&mut self, point: &PointRef) -> Result<Manifest> {
        if let Some(known) = points::known_manifest(self.repo, point) {
            return Ok(known);
        }
        if let Some(index) = &self.index {
            match points::read_manifest(self.repo, index, point) {
                // A prune may have moved the manifest's blobs. The index is loaded again.
                Err(Error::BadPoint { .. }) => {}
                read => return read,
            }
        }
        let index = self.index.insert(points::load_index_for_reading(self.repo, self.monitor)?);
        points::read_manifest(self.repo, index, point)
    }
}
