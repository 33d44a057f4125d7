//! What a repository holds of each machine, for a look at it that has to be quick.
//!
//! A machine is known by its UUID, which stands in a point's manifest; name and host are in the snapshot, and cost
//! nothing. So the manifests that are read are those of the newest point of each name on each host, and older ones only
//! where another machine had the name later. No lock is taken: nothing is handed out, and a prune beside it may go on.

use super::inventory::host_name;
use super::points::{self, PointRef};
use super::{Error, Monitor, Result};
use crate::ops::points::lineage::Origin;
use crate::record::Time;
use crate::repo::{DamagedSnapshot, Id, Index, Repository};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The newest point of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Newest {
    /// The machine's name in it.
    pub(crate) machine: String,
    pub(crate) uuid: String,
    /// The host that it was taken on.
    pub(crate) host: String,
    /// The point's id.
    pub(crate) point: String,
    /// The moment that it is of.
    pub(crate) captured_at: Time,
    /// How many points of that host have the machine's name.
    pub(crate) points: usize,
}

/// The points of a repository by the names of their machines.
#[derive(Debug)]
pub(crate) struct LatestPoints<'r> {
    repo: &'r Repository,
    index: Arc<Index>,
    /// The points of each name on each host, oldest first.
    by_name: BTreeMap<(String, String), Vec<PointRef>>,
    /// What was read of manifests; none of those that are damaged.
    origins: HashMap<Id, Option<Origin>>,
    /// Snapshot files that cannot be read.
    pub(crate) damaged: Vec<DamagedSnapshot>,
    /// Points whose manifest cannot be read, with the machine's name.
    pub(crate) unreadable: Vec<(String, String)>,
}

impl<'r> LatestPoints<'r> {
    /// Looks at the snapshots.
    pub(crate) fn look(repo: &'r Repository, monitor: &dyn Monitor) -> Result<LatestPoints<'r>> {
        let index = points::load_index_for_reading(repo, monitor)?;
        let (all, damaged) = points::list(repo)?;
        let mut by_name: BTreeMap<_, Vec<PointRef>> = BTreeMap::new();
        for point in all {
            let name = (point.machine().to_owned(), point.snapshot.hostname.clone());
            by_name.entry(name).or_default().push(point);
        }
        Ok(LatestPoints { repo, index, by_name, origins: HashMap::new(), damaged, unreadable: Vec::new() })
    }

    /// Whether there is such a point, or was before it was pinned or copied.
    pub(crate) fn has(&self, point: &str) -> bool {
        let Ok(id) = point.parse::<Id>() else { return false };
        self.by_name.values().flatten().any(|known| known.is_or_was(&id))
    }

    /// The newest point of a machine of this host: by its UUID, first under its name, then under any other. Points of
    /// other hosts count only where this one has none: another host may have another machine with the same UUID, and
    /// this one may have come from there.
    pub(crate) fn newest_of(&mut self, name: &str, uuid: &str) -> Result<Option<Newest>> {
        let this_host = host_name();
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            self.by_name.keys().cloned().partition(|(_, host)| *host == this_host);
        for names in [here, elsewhere] {
            let (its, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|(machine, _)| machine == name);
            // Under another name only the newest is looked at: one that was renamed has that.
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

    /// The newest point of every name on every host.
    pub(crate) fn newest_of_all(&mut self) -> Result<Vec<Newest>> {
        let names: Vec<(String, String)> = self.by_name.keys().cloned().collect();
        let mut all = Vec::new();
        for name in &names {
            all.extend(self.newest_under(name, None)?);
        }
        Ok(all)
    }

    /// The newest point that can be read of a name on a host, of this machine if one is named.
    fn newest_under(&mut self, name: &(String, String), uuid: Option<&str>) -> Result<Option<Newest>> {
        let Some(points) = self.by_name.get(name).cloned() else { return Ok(None) };
        for point in points.iter().rev() {
            let Some(origin) = self.origin(point)? else { continue };
            if uuid.is_none_or(|uuid| uuid == origin.uuid) {
                return Ok(Some(Newest {
                    machine: name.0.clone(),
                    uuid: origin.uuid,
                    host: origin.host,
                    point: point.id.to_string(),
                    captured_at: point.snapshot.time,
                    points: points.len(),
                }));
            }
        }
        Ok(None)
    }

    fn origin(&mut self, point: &PointRef) -> Result<Option<Origin>> {
        if let Some(known) = self.origins.get(&point.id) {
            return Ok(known.clone());
        }
        let mut read = points::read_manifest(self.repo, &self.index, point);
        if matches!(read, Err(Error::BadPoint { .. })) {
            // A prune may have moved what it is made of.
            (self.index, _) = self.repo.load_index_with_damage()?;
            read = points::read_manifest(self.repo, &self.index, point);
        }
        let origin = match read {
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
}
