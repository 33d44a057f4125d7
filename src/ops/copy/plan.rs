//! The points of a first repository that a second one has or still needs, determined without reading data.
//!
//! `backup` copies the points that await their copy, and `prune` keeps them. Both use this module, so `prune` never
//! removes a point that the next backup would copy, and `backup` never copies a point again that the second
//! repository's retention removed.

use crate::ops::Result;
use crate::ops::points::lineage::{Lineage, Origin};
use crate::ops::points::{self, PointRef};
use crate::record::Time;
use crate::repo::{Id, Repository, Snapshot};
use crate::retention::{FirstTierPoint, Policy, await_copy};
use std::collections::{HashMap, HashSet};

/// The points of a second repository.
#[derive(Debug, Clone, Default)]
pub(crate) struct Copies {
    points: Vec<PointRef>,
    /// Indexed by the id of the original and by the point's own id.
    by_id: HashMap<Id, Vec<PointRef>>,
}

impl Copies {
    /// Lists the points of a repository. Points with an unreadable snapshot file are left out.
    pub(crate) fn list(second: &Repository) -> Result<Copies> {
        Ok(Copies::of(points::list(second)?.0))
    }

    pub(crate) fn of(points: impl IntoIterator<Item = PointRef>) -> Copies {
        let mut copies = Copies::default();
        points.into_iter().for_each(|point| copies.add(point));
        copies
    }

    /// Adds a point that is newer than all others, or a copy.
    pub(crate) fn add(&mut self, point: PointRef) {
        for id in point.snapshot.original.into_iter().chain([point.id]) {
            self.by_id.entry(id).or_default().push(point.clone());
        }
        self.points.push(point);
    }

    /// Returns the point that is identical to this one, regardless of later tags such as pins.
    pub(crate) fn copy_of(&self, point: &PointRef) -> Option<&PointRef> {
        let same = |a: &Snapshot, b: &Snapshot| {
            (a.time, a.tree, &a.hostname, &a.paths) == (b.time, b.tree, &b.hostname, &b.paths)
        };
        self.by_id.get(&persistent_id(point))?.iter().find(|other| same(&other.snapshot, &point.snapshot))
    }

    /// Which of a machine's points in the first repository await their copy. `here` holds all of them, oldest first.
    /// `policy` is the second repository's. `origin_there` reads which machine a point of the second repository belongs
    /// to, if that is readable, and is only called if the answer matters.
    pub(crate) fn await_copy(
        &self,
        (machine, here): (&Lineage, &[&PointRef]),
        policy: &Policy,
        now: Time,
        mut origin_there: impl FnMut(&PointRef) -> Result<Option<Origin>>,
    ) -> Result<Vec<bool>> {
        let first_tier: Vec<FirstTierPoint> = here
            .iter()
            .map(|point| FirstTierPoint {
                taken_at: point.snapshot.time,
                is_pinned: point.is_pinned(),
                is_copied: self.copy_of(point).is_some(),
            })
            .collect();
        let names: HashSet<&str> = here.iter().map(|point| point.machine()).collect();
        let copies: HashSet<Id> = here.iter().filter_map(|point| Some(self.copy_of(point)?.id)).collect();
        // Points with the same name may belong to another machine.
        let is_unknown = |point: &&PointRef| names.contains(point.machine()) && !copies.contains(&point.id);
        let mut unknown = self.points.iter().filter(is_unknown);
        let mut known = Vec::new();
        let awaiting = |only_there: &[Time]| await_copy(policy, &first_tier, only_there, now, &chrono::Local);
        loop {
            // Points of unknown origin need not be read if they would not change the result.
            let rest = unknown.clone().map(|point| point.snapshot.time);
            let if_all_count = awaiting(&known.iter().copied().chain(rest).collect::<Vec<Time>>());
            let if_none_counts = awaiting(&known);
            match unknown.next() {
                Some(next) if if_all_count != if_none_counts => {
                    if origin_there(next)?.is_some_and(|origin| machine.has(&origin)) {
                        known.push(next.snapshot.time);
                    }
                }
                _ => return Ok(if_none_counts),
            }
        }
    }
}

/// The id that all copies of a point share: that of the original.
pub(crate) fn persistent_id(point: &PointRef) -> Id {
    point.snapshot.original.unwrap_or(point.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::points::{MACHINE_TAG, TAG};
    use chrono::DateTime;

    fn id(number: u8) -> Id {
        Id::hash(&[number])
    }

    fn point(day: u32, hour: u32, number: u8) -> PointRef {
        let mut snapshot = Snapshot::new(id(0), vec!["/vm1".into()]);
        snapshot.time = DateTime::parse_from_rfc3339(&format!("2026-05-{day:02}T{hour:02}:00:00Z")).unwrap();
        snapshot.tags = vec![TAG.into(), format!("{MACHINE_TAG}vm1")];
        PointRef { id: id(number), snapshot }
    }

    fn copy(of: &PointRef, number: u8) -> PointRef {
        let snapshot = Snapshot { original: Some(of.id), ..of.snapshot.clone() };
        PointRef { id: id(number), snapshot }
    }

    /// Returns which points await their copy, and how many points there had their origin read.
    fn await_copy(copies: &Copies, here: &[&PointRef], machine_there: &str, policy: &str) -> (Vec<bool>, usize) {
        let (policy, now) = (serde_json::from_str(policy).unwrap(), point(31, 0, 0).snapshot.time);
        let mut asked = 0;
        let vm1 = Lineage { uuid: "vm1's UUID".into(), hosts: ["here".to_owned()].into() };
        let (uuid, host) = machine_there.split_once(" on ").unwrap_or((machine_there, "here"));
        let awaits = copies.await_copy((&vm1, here), &policy, now, |_| {
            asked += 1;
            Ok(Some(Origin::new(uuid, host, now)))
        });
        (awaits.unwrap(), asked)
    }

    #[test]
    fn copies_of_another_machine_of_the_same_name_do_not_count() {
        let (morning, evening) = (point(9, 8, 1), point(9, 20, 2));
        let here = [&morning, &evening];
        let mut copies = Copies::default();
        copies.add(point(7, 8, 11));
        copies.add(point(8, 8, 12));
        copies.add(copy(&evening, 13));
        // The morning's point is the oldest of all, unless those of the days before belong to the machine.
        let daily = r#"{"keep_daily":30}"#;
        assert_eq!(
            await_copy(&copies, &here, "vm1's UUID", daily),
            (vec![false, false], 1),
            "one that is older is enough"
        );
        for another in ["another's UUID", "vm1's UUID on another host"] {
            assert_eq!(await_copy(&copies, &here, another, daily), (vec![true, false], 2), "{another}");
        }
        // No origin is read where it does not matter.
        assert_eq!(await_copy(&copies, &here, "", r#"{"keep_last":1}"#), (vec![false, false], 0));
        assert_eq!(await_copy(&copies, &here, "", "{}"), (vec![true, false], 0));
        assert_eq!(await_copy(&copies, &[&evening], "", daily), (vec![false], 0));
    }

    #[test]
    fn copy_is_recognised_despite_changed_tags() {
        let original = point(1, 8, 1);
        let mut copies = Copies::default();
        copies.add(copy(&original, 11));
        let mut pinned = copy(&original, 2);
        pinned.snapshot.tags.push("pinned".into());
        assert_eq!(copies.copy_of(&pinned).map(|copy| copy.id), Some(id(11)));
        // A point that restic rewrote is a different one.
        let mut rewritten = copy(&original, 3);
        rewritten.snapshot.tree = id(9);
        assert!(copies.copy_of(&rewritten).is_none());
    }
}
