//! The meaning of cron expressions, compared with another implementation (`croner`) for random expressions and moments.

// A test panics if a result is not what it expects.

use std::str::FromStr;

use chrono::{DateTime, Duration, FixedOffset, MappedLocalTime, NaiveDate, NaiveDateTime, Offset, TimeZone, Utc};
use croner::parser::{CronParser, Seconds, Year};
use kvmb::schedule::Cron;
use proptest::prelude::*;

/// Returns the other implementation. It combines days of the month and of the week like Vixie cron: with "and" if one
/// of them *begins* with a star (including `*/2`), which it has to be configured for.
fn croner(expression: &str) -> croner::Cron {
    let fields: Vec<&str> = expression.split(' ').collect();
    let starred = fields[2].starts_with('*') || fields[4].starts_with('*');
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).dom_and_dow(starred).build();
    parser.parse(expression).unwrap_or_else(|error| panic!("croner refuses {expression}: {error}"))
}

fn both<Z: TimeZone>(expression: &str, after: &DateTime<Z>, count: usize) -> (Vec<String>, Vec<String>) {
    let show = |time: &DateTime<Z>| format!("{} ({})", time.naive_local(), time.offset().fix());
    let ours = Cron::from_str(expression).unwrap().next_runs(after, count);
    let theirs = croner(expression).iter_after(after.clone()).take(count).collect::<Vec<_>>();
    (ours.iter().map(show).collect(), theirs.iter().map(show).collect())
}

/// A part of a list: a number or a range, with or without a step.
fn part(low: u32, high: u32, names: &'static [&'static str]) -> impl Strategy<Value = String> {
    let named = move |number: u32, by_name: bool| match names.get((number - low) as usize) {
        Some(name) if by_name => (*name).to_owned(),
        _ => number.to_string(),
    };
    prop_oneof![
        4 => (low..=high, any::<bool>()).prop_map(move |(number, by_name)| named(number, by_name)),
        2 => (low..=high, low..=high, any::<bool>()).prop_map(move |(a, b, by_name)| {
            // The name of a range's end: Sunday is 7 there, but its name means 0.
            format!("{}-{}", named(a.min(b), by_name), a.max(b))
        }),
        1 => (low..=high, low..=high, 1u32..=9).prop_map(|(a, b, step)| format!("{}-{}/{step}", a.min(b), a.max(b))),
    ]
}

fn field(low: u32, high: u32, names: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("*".to_owned()),
        1 => (2u32..=9).prop_map(|step| format!("*/{step}")),
        4 => proptest::collection::vec(part(low, high, names), 1..4).prop_map(|parts| parts.join(",")),
    ]
}

const MONTHS: &[&str] = &["jan", "FEB", "Mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "MON", "Tue", "wed", "thu", "fri", "sat"];

fn expression() -> impl Strategy<Value = String> {
    (field(0, 59, &[]), field(0, 23, &[]), field(1, 31, &[]), field(1, 12, MONTHS), field(0, 7, WEEKDAYS))
        .prop_map(|(a, b, c, d, e)| format!("{a} {b} {c} {d} {e}"))
}

/// Any moment of the years 2000 to 2060, with second resolution.
fn moment() -> impl Strategy<Value = NaiveDateTime> {
    (946_684_800i64..2_840_140_800).prop_map(|seconds| DateTime::from_timestamp(seconds, 0).unwrap().naive_utc())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, ..ProptestConfig::default() })]

    #[test]
    fn random_expressions_match_croner(expression in expression(), after in moment()) {
        // A day that never occurs is an error for kvmb, and an endless search for croner.
        prop_assume!(Cron::from_str(&expression).is_ok());
        let (ours, theirs) = both(&expression, &after.and_utc(), 4);
        prop_assert_eq!(ours, theirs, "{}", expression);
    }

    #[test]
    fn runs_around_clock_changes_match_croner(
        minute in prop_oneof![(0u32..60).prop_map(|n| n.to_string()), (7u32..40).prop_map(|n| format!("*/{n}"))],
        hour in prop_oneof![3 => (0u32..5).prop_map(|n| n.to_string()), 1 => Just("*".to_owned())],
        change in prop_oneof![Just(SPRING), Just(AUTUMN)],
        before_minutes in -300i64..600,
    ) {
        // croner treats a list of hours or minutes as a pattern, cron treats it as fixed times; no lists here.
        let expression = format!("{minute} {hour} * * *");
        let after = (local(change) - Duration::minutes(before_minutes)).and_utc().with_timezone(&Paris);
        let (ours, theirs) = both(&expression, &after, 6);
        prop_assert_eq!(ours, theirs, "{} after {}", expression, after.naive_local());
    }
}

/// The days on which clocks change in Paris in 2027.
const SPRING: (u32, u32) = (3, 28);
const AUTUMN: (u32, u32) = (10, 31);

/// Returns 01:00 UTC on a day of 2027.
fn local((month, day): (u32, u32)) -> NaiveDateTime {
    NaiveDate::from_ymd_opt(2027, month, day).unwrap().and_hms_opt(1, 0, 0).unwrap()
}

/// Paris in 2027, with the two clock changes of that year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Paris;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ParisOffset(FixedOffset);

impl Offset for ParisOffset {
    fn fix(&self) -> FixedOffset {
        self.0
    }
}

impl std::fmt::Display for ParisOffset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl TimeZone for Paris {
    type Offset = ParisOffset;

    fn from_offset(_: &ParisOffset) -> Paris {
        Paris
    }

    fn offset_from_local_date(&self, date: &NaiveDate) -> MappedLocalTime<ParisOffset> {
        self.offset_from_local_datetime(&date.and_hms_opt(0, 0, 0).unwrap())
    }

    fn offset_from_local_datetime(&self, time: &NaiveDateTime) -> MappedLocalTime<ParisOffset> {
        let fits = |hours: i64| {
            let offset = self.offset_from_utc_datetime(&(*time - Duration::hours(hours)));
            (offset.0.local_minus_utc() == hours as i32 * 3600).then_some(offset)
        };
        match (fits(2), fits(1)) {
            (Some(summer), Some(winter)) => MappedLocalTime::Ambiguous(summer, winter),
            (Some(only), None) | (None, Some(only)) => MappedLocalTime::Single(only),
            (None, None) => MappedLocalTime::None,
        }
    }

    fn offset_from_utc_date(&self, date: &NaiveDate) -> ParisOffset {
        self.offset_from_utc_datetime(&date.and_hms_opt(0, 0, 0).unwrap())
    }

    fn offset_from_utc_datetime(&self, time: &NaiveDateTime) -> ParisOffset {
        let summer = (local(SPRING)..local(AUTUMN)).contains(time);
        ParisOffset(FixedOffset::east_opt(if summer { 7200 } else { 3600 }).unwrap())
    }
}

#[test]
fn when_clocks_change_fixed_times_run_once_and_patterns_follow_the_clock() {
    let runs = |expression: &str, day: (u32, u32), count: usize| {
        let midnight = (local(day) - Duration::hours(2)).and_utc().with_timezone(&Paris);
        let runs = Cron::from_str(expression).unwrap().next_runs(&midnight, count);
        runs.iter().map(|run| run.format("%d %H:%M%:z").to_string()).collect::<Vec<_>>()
    };
    // The hour from 2:00 to 3:00 does not exist on that day.
    assert_eq!(runs("30 2 * * *", SPRING, 2), ["28 03:00+02:00", "29 02:30+02:00"]);
    assert_eq!(runs("0,30 2,3 * * *", SPRING, 3), ["28 03:00+02:00", "28 03:30+02:00", "29 02:00+02:00"]);
    assert_eq!(runs("30 * * * *", SPRING, 4), ["28 00:30+01:00", "28 01:30+01:00", "28 03:30+02:00", "28 04:30+02:00"]);
    // The hour from 2:00 to 3:00 occurs twice on that day.
    assert_eq!(runs("30 2 * * *", AUTUMN, 2), ["31 02:30+02:00", "01 02:30+01:00"]);
    assert_eq!(
        runs("*/30 2 * * *", AUTUMN, 5),
        ["31 02:00+02:00", "31 02:30+02:00", "31 02:00+01:00", "31 02:30+01:00", "01 02:00+01:00"]
    );
    // After the first occurrence, the fixed time is done for the day, and the pattern is not.
    let second_round = DateTime::parse_from_rfc3339("2027-10-31T02:10:00+01:00").unwrap().with_timezone(&Paris);
    let next =
        |expression: &str| Cron::from_str(expression).unwrap().next_runs(&second_round, 1)[0].with_timezone(&Utc);
    assert_eq!(next("30 2 * * *").to_rfc3339(), "2027-11-01T01:30:00+00:00");
    assert_eq!(next("30 * * * *").to_rfc3339(), "2027-10-31T01:30:00+00:00");
}
