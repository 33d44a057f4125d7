//! What a repository holds of each machine, for a look at it that has to be quick.
//!
//! A machine is known by its UUID, which stands in a point's manifest; the name is a tag of the snapshot, which costs
//! nothing. So the manifests that are read are those of the newest point under each name, and older ones only where
//! another machine had the name later. No lock is taken: nothing is handed out, and a prune beside it may go on.

use super::points::{self, PointRef};
use super::{Error, Monitor, Result};
use crate::record::Time;
use crate::repo::{DamagedSnapshot, Id, Index, Repository};
use std::collections::{BTreeMap, HashMap};

/// The newest point of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    /// The machine's name in it.
    pub machine: String,
    /// Its UUID.
    pub uuid: String,
    /// The host that it was taken on.
    pub host: String,
    /// The point's id.
    pub point: String,
    /// The moment that it is of.
    pub captured_at: Time,
    /// How many points have the machine's name.
    pub points: usize,
}

/// What identifies a point's machine.
#[derive(Debug, Clone)]
struct Owner {
    uuid: String,
    host: String,
}

/// The points of a repository by the names of their machines.
#[derive(Debug)]
pub struct Stored<'r> {
    repo: &'r Repository,
    index: Index,
    /// Each name's points, oldest first.
    by_name: BTreeMap<String, Vec<PointRef>>,
    /// What was read of manifests; none of those that are damaged.
    owners: HashMap<Id, Option<Owner>>,
    /// Snapshot files that cannot be read.
    pub damaged: Vec<DamagedSnapshot>,
    /// Points whose manifest cannot be read, with the machine's name.
    pub unreadable: Vec<(String, String)>,
}

impl<'r> Stored<'r> {
    /// Looks at the snapshots.
    pub fn look(repo: &'r Repository, monitor: &dyn Monitor) -> Result<Stored<'r>> {
        let index = points::load_index_for_reading(repo, monitor)?;
        let (all, damaged) = points::list(repo)?;
        let mut by_name: BTreeMap<String, Vec<PointRef>> = BTreeMap::new();
        for point in all {
            by_name.entry(point.machine().to_owned()).or_default().push(point);
        }
        Ok(Stored { repo, index, by_name, owners: HashMap::new(), damaged, unreadable: Vec::new() })
    }

    /// Whether there is such a point, or was before it was pinned or copied.
    pub fn has(&self, point: &str) -> bool {
        let Ok(id) = point.parse::<Id>() else { return false };
        self.by_name.values().flatten().any(|known| known.is_or_was(&id))
    }

    /// The newest point of a machine: by its UUID, first under its name, then under any other.
    pub fn newest_of(&mut self, name: &str, uuid: &str) -> Result<Option<Newest>> {
        if let Some(found) = self.newest_under(name, Some(uuid))? {
            return Ok(Some(found));
        }
        let newest = self.newest_of_all()?.into_iter().filter(|newest| newest.uuid == uuid);
        Ok(newest.max_by_key(|newest| newest.captured_at))
    }

    /// The newest point under every name.
    pub fn newest_of_all(&mut self) -> Result<Vec<Newest>> {
        let names: Vec<String> = self.by_name.keys().cloned().collect();
        let mut all = Vec::new();
        for name in names {
            all.extend(self.newest_under(&name, None)?);
        }
        Ok(all)
    }

    /// The newest point that can be read under a name, of this machine if one is named.
    fn newest_under(&mut self, name: &str, uuid: Option<&str>) -> Result<Option<Newest>> {
        let Some(points) = self.by_name.get(name).cloned() else { return Ok(None) };
        for point in points.iter().rev() {
            let Some(owner) = self.owner(point)? else { continue };
            if uuid.is_none_or(|uuid| uuid == owner.uuid) {
                return Ok(Some(Newest {
                    machine: name.to_owned(),
                    uuid: owner.uuid,
                    host: owner.host,
                    point: point.id.to_string(),
                    captured_at: point.snapshot.time,
                    points: points.len(),
                }));
            }
        }
        Ok(None)
    }

    fn owner(&mut self, point: &PointRef) -> Result<Option<Owner>> {
        if let Some(known) = self.owners.get(&point.id) {
            return Ok(known.clone());
        }
        let mut read = points::read_manifest(self.repo, &self.index, point);
        if matches!(read, Err(Error::BadPoint { .. })) {
            // A prune may have moved what it is made of.
            (self.index, _) = self.repo.load_index_with_damage()?;
            read = points::read_manifest(self.repo, &self.index, point);
        }
        let owner = match read {
            Ok(manifest) => Some(Owner { uuid: manifest.uuid, host: manifest.host }),
            Err(Error::BadPoint { .. }) if !points::list(self.repo)?.0.iter().any(|known| known.id == point.id) => None,
            Err(Error::BadPoint { .. }) => {
                self.unreadable.push((point.machine().to_owned(), point.id.to_string()));
                None
            }
            Err(other) => return Err(other),
        };
        self.owners.insert(point.id, owner.clone());
        Ok(owner)
    }
}
