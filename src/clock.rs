//! Local time, including times that occur twice or not at all when clocks change.

use chrono::{DateTime, Duration, NaiveDateTime, Offset, TimeZone, Timelike};

/// Clocks may differ by this much without being wrong.
pub(crate) const CLOCK_SKEW: Duration = Duration::minutes(5);

/// Larger clock changes than this are not daylight saving time, as in cron(8).
pub(crate) const LARGEST_CHANGE_MINUTES: i64 = 180;

/// Returns the moments at which a clock shows a local time, in order: none if the time is skipped, two if it occurs
/// twice. chrono's `Local` gets this conversion wrong for the first minute of an hour that is skipped or repeated. Its
/// conversion from a moment to a local time is correct.
pub(crate) fn moments_of<Z: TimeZone>(zone: &Z, local: NaiveDateTime) -> Vec<DateTime<Z>> {
    let offsets = [-1, 1].map(|days| zone.offset_from_utc_datetime(&(local + Duration::days(days))).fix());
    let moments = offsets.map(|offset| zone.from_utc_datetime(&(local - offset)));
    let mut moments: Vec<_> = moments.into_iter().filter(|moment| moment.naive_local() == local).collect();
    moments.sort();
    moments.dedup();
    moments
}

/// Returns the last moment at which a clock shows this local time or an earlier one: the second occurrence of a
/// repeated time, or the end of the minute before the gap for a skipped time. Returns None if there is no such moment
/// within three hours.
pub(crate) fn last_moment_until<Z: TimeZone>(zone: &Z, local: NaiveDateTime) -> Option<DateTime<Z>> {
    moments_of(zone, local).pop().or_else(|| {
        let end_of_minute = local.with_second(59)?.with_nanosecond(999_999_999)?;
        (1..=LARGEST_CHANGE_MINUTES)
            .find_map(|minutes| moments_of(zone, end_of_minute - Duration::minutes(minutes)).pop())
    })
}
