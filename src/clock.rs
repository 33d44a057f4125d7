//! What a clock on the wall shows, and when: a time may come twice, or not at all, where clocks change.

use chrono::{DateTime, Duration, NaiveDateTime, Offset, TimeZone, Timelike};

/// Larger changes of the clock than this are no daylight saving time, as cron(8) has it.
pub(crate) const LARGEST_CHANGE_MINUTES: i64 = 180;

/// The moments when a clock shows a time, in order: none where it is skipped, two where it comes twice. What chrono's
/// `Local` says of this is wrong for the first minute of an hour that is skipped or comes twice; the other way, from a
/// moment to a time, it is right.
pub(crate) fn moments_of<Z: TimeZone>(zone: &Z, local: NaiveDateTime) -> Vec<DateTime<Z>> {
    let offsets = [-1, 1].map(|days| zone.offset_from_utc_datetime(&(local + Duration::days(days))).fix());
    let moments = offsets.map(|offset| zone.from_utc_datetime(&(local - offset)));
    let mut moments: Vec<_> = moments.into_iter().filter(|moment| moment.naive_local() == local).collect();
    moments.sort();
    moments.dedup();
    moments
}

/// The last moment when a clock shows this time or an earlier one of that day: the second one of a time that comes
/// twice, and of a time that is skipped the end of the minute before the gap. None if there is no such moment within
/// three hours.
pub(crate) fn last_moment_until<Z: TimeZone>(zone: &Z, local: NaiveDateTime) -> Option<DateTime<Z>> {
    moments_of(zone, local).pop().or_else(|| {
        let end_of_minute = local.with_second(59)?.with_nanosecond(999_999_999)?;
        (1..=LARGEST_CHANGE_MINUTES)
            .find_map(|minutes| moments_of(zone, end_of_minute - Duration::minutes(minutes)).pop())
    })
}
