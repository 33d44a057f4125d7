//! Determines which points of a first tier still have to be copied to a second one.
//!
//! A point that is missing there has to be copied if
//!
//! - it is newer than all copied points (except those dated in the future): copies are made oldest first, so it was
//!   never there, or
//! - the second tier's own policy would keep it, evaluated for the points of both tiers: then it was not removed by
//!   that policy. Without any rule nothing is removed there, and every missing point has to be copied.
//!
//! So points that the second tier's retention removes do not come back, and a point that was never copied is not
//! mistaken for one of those just because a newer one was copied first.

use super::{Candidate, Policy, judge};
use crate::record::Time;
use chrono::TimeZone;
use std::collections::BTreeSet;

/// A point of one machine in the first tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirstTierPoint {
    /// When it was captured.
    pub(crate) taken_at: Time,
    /// Whether the user pinned it, so that it is kept regardless of the policy.
    pub(crate) is_pinned: bool,
    /// Whether the second tier has it.
    pub(crate) is_copied: bool,
}

/// Returns which points of one machine, oldest first, have to be copied. `second` is the policy of the second tier,
/// `only_there` are the times of the machine's points that exist only in that tier, and `zone` is the local time zone.
/// An additional point there never causes another one to be copied.
pub(crate) fn await_copy(
    second: &Policy,
    here: &[FirstTierPoint],
    only_there: &[Time],
    now: Time,
    zone: &impl TimeZone,
) -> Vec<bool> {
    let candidate = |taken_at, is_pinned| Candidate {
        machine: String::new(),
        taken_at,
        is_pinned,
        is_restoring: false,
        is_damaged: false,
        awaits_copy: false,
        outlives_machine: false,
        // Only what a prune of that tier keeps by its rules for all points is copied again.
        lacks: BTreeSet::new(),
    };
    let candidates: Vec<Candidate> = (here.iter().map(|point| candidate(point.taken_at, point.is_pinned)))
        .chain(only_there.iter().map(|taken_at| candidate(*taken_at, false)))
        .collect();
    let newest_copied = here.iter().rposition(|point| point.is_copied && point.taken_at <= now);
    let verdicts = judge(second, &candidates, now, zone);
    let awaits = |(position, (point, verdict)): (usize, (&FirstTierPoint, super::RetentionDecision))| {
        !point.is_copied && (Some(position) > newest_copied || verdict.keep)
    };
    here.iter().zip(verdicts).enumerate().map(awaits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, Utc};
    use proptest::prelude::*;

    fn day(day: u32) -> Time {
        hour(day, 2)
    }

    fn hour(day: u32, hour: u32) -> Time {
        DateTime::parse_from_rfc3339(&format!("2026-05-{day:02}T{hour:02}:00:00Z")).unwrap()
    }

    fn policy(json: &str) -> Policy {
        serde_json::from_str(json).unwrap()
    }

    /// Returns the days of the points that have to be copied. `here` are the days of all points, and whether they were
    /// copied.
    fn awaiting(second: &str, here: &[(u32, bool)], only_there: &[u32]) -> Vec<u32> {
        let points: Vec<FirstTierPoint> = here
            .iter()
            .map(|(at, is_copied)| FirstTierPoint { taken_at: day(*at), is_pinned: false, is_copied: *is_copied })
            .collect();
        let only_there: Vec<Time> = only_there.iter().map(|at| day(*at)).collect();
        let awaits = await_copy(&policy(second), &points, &only_there, day(31), &Utc);
        here.iter().zip(awaits).filter(|(_, awaits)| *awaits).map(|((at, _), _)| *at).collect()
    }

    #[test]
    fn newer_copy_does_not_exempt_older_missing_points() {
        let here = [(1, false), (2, false), (3, true), (4, false)];
        assert_eq!(awaiting(r#"{"keep_daily":30}"#, &here, &[]), [1, 2, 4]);
        assert_eq!(awaiting("{}", &here, &[]), [1, 2, 4], "nothing is ever removed there");
        assert_eq!(awaiting("{}", &[(1, false), (2, false)], &[]), [1, 2]);
    }

    #[test]
    fn points_pruned_by_the_second_tier_are_not_copied_again() {
        let here = [(1, false), (2, false), (3, true), (4, true), (5, false)];
        assert_eq!(awaiting(r#"{"keep_last":3}"#, &here, &[]), [5], "3, 4 and 5 are the last three");
        assert_eq!(awaiting(r#"{"keep_last":4}"#, &here, &[]), [2, 5]);
        assert_eq!(awaiting(r#"{"keep_within":"2d"}"#, &here, &[]), [5]);
        // Newer than all copies: it was never there, regardless of the policy.
        assert_eq!(awaiting(r#"{"keep_last":1}"#, &[(1, true), (2, false), (3, false)], &[]), [2, 3]);
    }

    #[test]
    fn points_only_in_the_second_tier_are_considered() {
        // The oldest point stays while a rule has some left: here the oldest is only the second of its day.
        let at =
            |hour_of_day, is_copied| FirstTierPoint { taken_at: hour(9, hour_of_day), is_pinned: false, is_copied };
        let here = [at(2, false), at(22, true)];
        let second = policy(r#"{"keep_daily":30}"#);
        assert_eq!(await_copy(&second, &here, &[], day(31), &Utc), [true, false]);
        assert_eq!(await_copy(&second, &here, &[day(8)], day(31), &Utc), [false, false]);
    }

    #[test]
    fn pinned_points_are_copied_regardless_of_the_policy() {
        let here = [
            FirstTierPoint { taken_at: day(1), is_pinned: true, is_copied: false },
            FirstTierPoint { taken_at: day(2), is_pinned: false, is_copied: true },
        ];
        assert_eq!(await_copy(&policy(r#"{"keep_last":1}"#), &here, &[], day(31), &Utc), [true, false]);
    }

    prop_compose! {
        fn some_policy()(last in 0u32..4, daily in 0u32..5, weekly in 0u32..3, days in 0u32..20) -> Policy {
            policy(&format!(
                r#"{{"keep_last":{last},"keep_daily":{daily},"keep_weekly":{weekly},"keep_within":"{days}d"}}"#
            ))
        }
    }

    prop_compose! {
        /// Distinct hours in May, oldest first.
        fn some_points()(
            points in proptest::collection::btree_map(0u32..720, any::<(bool, bool)>(), 1..30),
        ) -> Vec<FirstTierPoint> {
            let point = |(at, (is_copied, rare)): (u32, (bool, bool))| FirstTierPoint {
                taken_at: hour(1 + at / 24, at % 24),
                is_pinned: rare && at % 5 == 0,
                is_copied,
            };
            points.into_iter().map(point).collect()
        }
    }

    proptest! {
        #[test]
        fn repeated_copying_and_pruning_of_the_second_tier_converge(second in some_policy(), points in some_points()) {
            // Copy the missing points, then prune the second tier by the same policy.
            let mut points = points;
            for round in 0..3 {
                let awaits = await_copy(&second, &points, &[], day(31), &Utc);
                prop_assert!(round == 0 || !awaits.contains(&true), "{round}: {awaits:?}");
                points.iter_mut().zip(awaits).for_each(|(point, awaits)| point.is_copied |= awaits);
                let there: Vec<usize> = (0..points.len()).filter(|at| points[*at].is_copied).collect();
                let candidates: Vec<Candidate> = there.iter().map(|at| Candidate {
                    machine: String::new(),
                    taken_at: points[*at].taken_at,
                    is_pinned: points[*at].is_pinned,
                    is_restoring: false,
                    is_damaged: false,
                    awaits_copy: false,
                    outlives_machine: false,
                    lacks: BTreeSet::new(),
                }).collect();
                for (at, verdict) in there.into_iter().zip(judge(&second, &candidates, day(31), &Utc)) {
                    points[at].is_copied = verdict.keep;
                }
            }
        }

        #[test]
        fn extra_point_in_the_second_tier_adds_no_awaiting_points(
            second in some_policy(), points in some_points(), only_there in proptest::collection::vec(0u32..720, 1..6),
        ) {
            let only_there: Vec<Time> = only_there.into_iter().map(|at| hour(1 + at / 24, at % 24)).collect();
            let more = await_copy(&second, &points, &only_there, day(31), &Utc);
            let fewer = await_copy(&second, &points, &only_there[1..], day(31), &Utc);
            for (more, fewer) in more.iter().zip(fewer) {
                prop_assert!(fewer || !more);
            }
        }
    }
}
