//! Determines which points belong to one machine.
//!
//! A UUID alone does not identify a machine: a definition that is copied to another host keeps its UUID. Therefore a
//! machine is its UUID on a host. A machine that moved is recognized by its chain: its first point on the new host
//! continues a point of the old host, by bitmaps in the images, and the old host has no later points except those that
//! came back in the same way.
//!
//! ```text
//!  moved:   host a  a1 ← a2                     moved twice:  a1 ← a2       a3          copied:  a1 ← a2 ← a3
//!           host b         ↖ b1 ← b2                               ↖ b1 ↙                             ↖ b1 ← b2
//! ```
//! In the third picture the images were copied with their bitmaps and both machines continued. They are two machines,
//! and neither may cause points of the other to be removed. The evidence is in the manifests: `parent`, and
//! `earlier_hosts`, which records the move and its time for when the points that showed it are gone. If the evidence is
//! lost nevertheless, they count as two machines, and retention keeps more than necessary.

use crate::ops::manifest::{EarlierHost, Manifest};
use crate::ops::points::PointRef;
use crate::record::Time;
use crate::repo::Id;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The machine of a point, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) uuid: String,
    /// The host that the machine was on.
    pub(crate) host: String,
    /// The hosts that it was on before.
    earlier_hosts: Vec<EarlierHost>,
    /// The point that this one continues.
    parent: Option<Id>,
    taken_at: Time,
}

impl Origin {
    /// The origin of a machine that was never on another host.
    #[cfg(test)]
    pub(crate) fn new(uuid: &str, host: &str, taken_at: Time) -> Origin {
        let (uuid, host) = (uuid.to_owned(), host.to_owned());
        Origin { uuid, host, earlier_hosts: Vec::new(), parent: None, taken_at }
    }

    /// Reads the origin from a manifest.
    pub(crate) fn of(manifest: &Manifest) -> Origin {
        Origin {
            uuid: manifest.uuid.clone(),
            host: manifest.host.clone(),
            earlier_hosts: manifest.earlier_hosts.clone(),
            parent: manifest.parent.as_ref().and_then(|id| id.parse().ok()),
            taken_at: manifest.captured_at,
        }
    }
}

/// A machine and the hosts on which it was backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lineage {
    pub(crate) uuid: String,
    pub(crate) hosts: BTreeSet<String>,
}

impl Lineage {
    /// Whether a point belongs to this machine.
    pub(crate) fn has(&self, origin: &Origin) -> bool {
        self.uuid == origin.uuid && self.hosts.contains(&origin.host)
    }
}

/// Groups points by machine; each point belongs to exactly one. `points` must include all points of the repository,
/// with any name, because they are the evidence.
pub(crate) fn lineages<'a>(points: impl IntoIterator<Item = (&'a PointRef, &'a Origin)>) -> Vec<Lineage> {
    let mut machines: BTreeMap<&str, Vec<&Origin>> = BTreeMap::new();
    let mut hosts: HashMap<Id, &str> = HashMap::new();
    for (point, origin) in points {
        machines.entry(&origin.uuid).or_default().push(origin);
        hosts.extend([Some(point.id), point.snapshot.original].into_iter().flatten().map(|id| (id, &*origin.host)));
    }
    machines.into_iter().flat_map(|(uuid, origins)| of_one_uuid(uuid, &origins, &hosts)).collect()
}

fn of_one_uuid(uuid: &str, origins: &[&Origin], hosts: &HashMap<Id, &str>) -> Vec<Lineage> {
    // The hosts that the machine came from, according to a point, and when it left them.
    let came_from = |origin: &Origin| -> BTreeMap<String, Time> {
        let parent = origin.parent.and_then(|parent| hosts.get(&parent)).filter(|host| **host != origin.host);
        let mut left: BTreeMap<String, Time> =
            parent.map(|host| ((*host).to_owned(), origin.taken_at)).into_iter().collect();
        left.extend(origin.earlier_hosts.iter().map(|earlier| (earlier.host.clone(), earlier.left_at)));
        left
    };
    let claims: Vec<(&Origin, BTreeMap<String, Time>)> =
        origins.iter().map(|origin| (*origin, came_from(origin))).collect();
    let all: BTreeSet<&String> = origins.iter().map(|origin| &origin.host).collect();
    let mut lineages: Vec<Lineage> = Vec::new();
    for host in all {
        let heirs: Vec<(&String, Time)> =
            claims.iter().filter_map(|(origin, left)| Some((&origin.host, *left.get(host)?))).collect();
        let left_at = heirs.iter().map(|(_, left_at)| *left_at).min();
        // Later points on the old host must be of a machine that came back.
        let has_moved = left_at.is_some_and(|left_at| {
            let came_back = |left: &BTreeMap<String, Time>| {
                heirs.iter().any(|(heir, _)| left.get(*heir).is_some_and(|returned_at| *returned_at >= left_at))
            };
            let mut later = claims.iter().filter(|(origin, _)| origin.host == *host && origin.taken_at > left_at);
            later.all(|(_, left)| came_back(left))
        });
        let mut hosts = BTreeSet::from([host.clone()]);
        if has_moved {
            hosts.extend(heirs.into_iter().map(|(heir, _)| heir.clone()));
        }
        let (joined, others): (Vec<_>, Vec<_>) =
            lineages.into_iter().partition(|lineage| !lineage.hosts.is_disjoint(&hosts));
        hosts.extend(joined.into_iter().flat_map(|lineage| lineage.hosts));
        lineages = others;
        lineages.push(Lineage { uuid: uuid.to_owned(), hosts });
    }
    lineages.sort_by(|a, b| a.hosts.cmp(&b.hosts));
    lineages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Snapshot;

    type TestPoint = (&'static str, u32, Option<usize>, &'static [(&'static str, u32)]);

    fn day(day: u32) -> Time {
        format!("2026-11-{day:02}T02:00:00Z").parse().unwrap()
    }

    /// Converts points, given as (host, day, number of the parent, earlier hosts with the days of the moves), to
    /// machines, given as their hosts.
    fn machines(points: &[TestPoint]) -> Vec<String> {
        let id = |number: usize| Id::hash(&number.to_be_bytes());
        let one = |(number, (host, at, parent, earlier)): (usize, &TestPoint)| {
            let earlier = earlier.iter().map(|(host, at)| EarlierHost { host: (*host).into(), left_at: day(*at) });
            let origin =
                Origin { earlier_hosts: earlier.collect(), parent: parent.map(id), ..Origin::new("u", host, day(*at)) };
            (PointRef { id: id(number), snapshot: Snapshot::new(id(0), vec!["/vm".into()]) }, origin)
        };
        let points: Vec<(PointRef, Origin)> = points.iter().enumerate().map(one).collect();
        let found = lineages(points.iter().map(|(point, origin)| (point, origin)));
        found.into_iter().map(|lineage| Vec::from_iter(lineage.hosts).join(" ")).collect()
    }

    #[test]
    fn same_uuid_on_two_hosts_is_two_machines() {
        assert_eq!(machines(&[("a", 1, None, &[]), ("b", 2, None, &[]), ("a", 3, Some(0), &[])]), ["a", "b"]);
    }

    #[test]
    fn moved_machine_remains_one_machine() {
        assert_eq!(machines(&[("a", 1, None, &[]), ("b", 2, Some(0), &[]), ("b", 3, None, &[])]), ["a b"]);
        // There and back again, and then to a third host.
        let there_and_back = [
            ("a", 1, None, &[][..]),
            ("b", 2, Some(0), &[("a", 2)]),
            ("a", 3, Some(1), &[("b", 3)]),
            ("a", 4, None, &[("b", 3)]),
            ("c", 5, Some(3), &[("a", 5), ("b", 3)]),
        ];
        assert_eq!(machines(&there_and_back), ["a b c"]);
        // The evidence was pruned, but the manifest records the move.
        assert_eq!(machines(&[("a", 1, None, &[]), ("b", 3, None, &[("a", 2)])]), ["a b"]);
    }

    #[test]
    fn copied_machine_that_continues_beside_the_original_is_separate() {
        let copied = [
            ("a", 1, None, &[][..]),
            ("b", 2, Some(0), &[("a", 2)]),
            ("a", 3, Some(0), &[]),
            ("b", 4, Some(1), &[("a", 2)]),
        ];
        assert_eq!(machines(&copied), ["a", "b"]);
        // The same with pruned points.
        assert_eq!(machines(&copied[2..]), ["a", "b"]);
        // The copy moved, and the original had itself come from another host.
        let moved = ("c", 5, Some(3), &[("b", 5), ("a", 2)][..]);
        assert_eq!(machines(&[&copied[..], &[moved]].concat()), ["a", "b c"]);
        let original = ("a", 6, None, &[("z", 1)][..]);
        assert_eq!(machines(&[&copied[..], &[original]].concat()), ["a", "b"]);
    }
}
