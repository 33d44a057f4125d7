//! Tests with selected dates, and properties for any dates. `tests/retention.rs` compares the results with restic's.

use super::*;
use chrono::{FixedOffset, LocalResult};
use proptest::prelude::*;

/// Central European time as it is in 2026: summer from 29 March to 25 October, both at 1:00 UTC.
#[derive(Debug, Clone, Copy)]
struct Berlin;

impl TimeZone for Berlin {
    type Offset = FixedOffset;

    fn from_offset(_: &FixedOffset) -> Self {
        Berlin
    }

    fn offset_from_local_date(&self, _: &NaiveDate) -> LocalResult<FixedOffset> {
        unreachable!("the offset of a date is never needed")
    }

    fn offset_from_local_datetime(&self, _: &NaiveDateTime) -> LocalResult<FixedOffset> {
        unreachable!("the wall's time is ambiguous: nobody asks for its offset")
    }

    fn offset_from_utc_date(&self, _: &NaiveDate) -> FixedOffset {
        unreachable!("the offset of a date is never needed")
    }

    fn offset_from_utc_datetime(&self, utc: &NaiveDateTime) -> FixedOffset {
        let at = |month, day| NaiveDate::from_ymd_opt(2026, month, day).unwrap().and_hms_opt(1, 0, 0).unwrap();
        let is_summer = (at(3, 29)..at(10, 25)).contains(utc);
        FixedOffset::east_opt(if is_summer { 7200 } else { 3600 }).unwrap()
    }
}

fn time(text: &str) -> Time {
    DateTime::parse_from_rfc3339(text).unwrap()
}

fn now() -> Time {
    time("2030-01-01T00:00:00+01:00")
}

fn candidate(machine: &str, taken_at: Time) -> Candidate {
    Candidate {
        machine: machine.to_owned(),
        taken_at,
        is_pinned: false,
        is_restoring: false,
        is_damaged: false,
        awaits_copy: false,
        outlives_machine: false,
        lacks: BTreeSet::new(),
    }
}

fn policy(rules: &str) -> Policy {
    let mut policy = Policy::default();
    for rule in rules.split_whitespace() {
        let (name, value) = rule.split_once('=').unwrap();
        match name {
            "last" => policy.keep_last = value.parse().unwrap(),
            "hourly" => policy.keep_hourly = value.parse().unwrap(),
            "daily" => policy.keep_daily = value.parse().unwrap(),
            "weekly" => policy.keep_weekly = value.parse().unwrap(),
            "monthly" => policy.keep_monthly = value.parse().unwrap(),
            "yearly" => policy.keep_yearly = value.parse().unwrap(),
            "within" => policy.keep_within = Some(value.parse().unwrap()),
            other => panic!("no rule {other}"),
        }
    }
    policy
}

/// Checks one line per point, oldest first: its time, and the reasons why it is kept.
#[track_caller]
fn check(rules: &str, table: &[(&str, &str)]) {
    let points: Vec<Candidate> = table.iter().map(|(at, _)| candidate("vm", time(at))).collect();
    let verdicts = judge(&policy(rules), &points, now(), &Berlin);
    for ((at, expected), verdict) in table.iter().zip(verdicts) {
        let words: Vec<&str> = verdict.reasons.iter().map(|reason| reason.word()).collect();
        let expected = if expected.is_empty() { "expired" } else { expected };
        assert_eq!(words.join(" "), expected, "{rules}: {at}");
        assert_eq!(verdict.keep, expected != "expired", "{rules}: {at}");
    }
}

#[test]
fn monthly_keeps_the_last_point_of_each_month() {
    check(
        "monthly=3",
        &[
            ("2026-01-15T02:00:00+01:00", ""),
            ("2026-01-31T23:59:59+01:00", ""),
            ("2026-02-01T00:00:00+01:00", ""),
            ("2026-02-28T23:59:59+01:00", "monthly"),
            ("2026-03-30T02:00:00+02:00", ""),
            ("2026-03-31T02:00:00+02:00", "monthly"),
            ("2026-04-01T02:00:00+02:00", "monthly"),
        ],
    );
}

#[test]
fn leap_day_is_a_separate_day_of_february() {
    check(
        "daily=3 monthly=2",
        &[
            ("2028-02-27T02:00:00+01:00", ""),
            ("2028-02-28T02:00:00+01:00", "daily"),
            ("2028-02-29T02:00:00+01:00", ""),
            ("2028-02-29T22:00:00+01:00", "daily monthly"),
            ("2028-03-01T02:00:00+01:00", "daily monthly"),
        ],
    );
    // One year before a leap day is 1 March, because 29 February does not exist.
    check(
        "within=1y",
        &[
            ("2027-02-28T02:00:01+01:00", ""),
            ("2027-03-01T02:00:00+01:00", ""),
            ("2027-03-01T02:00:01+01:00", "within"),
            ("2028-02-29T02:00:00+01:00", "within"),
        ],
    );
}

#[test]
fn month_span_overflows_in_a_shorter_month() {
    check(
        "within=1m",
        &[
            ("2027-03-02T12:00:00+01:00", ""),
            ("2027-03-03T12:00:00+01:00", ""),
            ("2027-03-03T12:00:01+01:00", "within"),
            ("2027-03-31T12:00:00+01:00", "within"),
        ],
    );
    // 31 days before the end of January, and across the turn of the year.
    check(
        "within=13m",
        &[
            ("2025-12-31T12:00:00+01:00", ""),
            ("2025-12-31T12:00:01+01:00", "within"),
            ("2027-01-31T12:00:00+01:00", "within"),
        ],
    );
}

#[test]
fn day_spans_follow_local_time_when_summer_time_begins() {
    // The 29th has 23 hours: one day before 12:00 is still 12:00 local time, but hours are hours.
    let table = |at_noon, after_noon| {
        [
            ("2026-03-28T12:00:00+01:00", at_noon),
            ("2026-03-28T12:30:00+01:00", after_noon),
            ("2026-03-29T12:00:00+02:00", "within"),
        ]
    };
    check("within=1d", &table("", "within"));
    check("within=24h", &table("within", "within"));
    check("within=23h", &table("", "within"));
    // 2:30 does not exist on that day and means 3:30.
    check(
        "within=1d",
        &[
            ("2026-03-29T03:30:00+02:00", ""),
            ("2026-03-29T03:31:00+02:00", "within"),
            ("2026-03-30T02:30:00+02:00", "within"),
        ],
    );
    check(
        "hourly=3",
        &[
            ("2026-03-29T00:30:00+01:00", ""),
            ("2026-03-29T01:00:00+01:00", ""),
            ("2026-03-29T01:59:00+01:00", "hourly"),
            ("2026-03-29T03:01:00+02:00", "hourly"),
            ("2026-03-29T04:00:00+02:00", "hourly"),
        ],
    );
}

#[test]
fn repeated_hour_counts_once_when_summer_time_ends() {
    // The hour from two to three occurs twice, and counts as one; the day has 25 hours.
    check(
        "hourly=2 daily=2",
        &[
            ("2026-10-24T23:59:00+02:00", "daily"),
            ("2026-10-25T00:30:00+02:00", ""),
            ("2026-10-25T02:30:00+02:00", ""),
            ("2026-10-25T02:15:00+01:00", "hourly"),
            ("2026-10-25T23:30:00+01:00", "hourly daily"),
        ],
    );
    let table = |before_noon| {
        [
            ("2026-10-24T11:30:00+02:00", ""),
            ("2026-10-24T12:30:00+02:00", before_noon),
            ("2026-10-24T13:30:00+02:00", "within"),
            ("2026-10-25T12:00:00+01:00", "within"),
        ]
    };
    check("within=1d", &table("within"));
    check("within=24h", &table(""));
    // 2:30 occurs twice, and means the second one.
    check(
        "within=1d",
        &[
            ("2026-10-25T02:30:00+02:00", ""),
            ("2026-10-25T02:30:00+01:00", ""),
            ("2026-10-25T02:31:00+01:00", "within"),
            ("2026-10-26T02:30:00+01:00", "within"),
        ],
    );
}

#[test]
fn weeks_begin_on_monday_and_cross_the_turn_of_the_year() {
    // 2026 ends on a Thursday: its last week is the 53rd and ends on 3 January 2027.
    check(
        "weekly=2 yearly=2",
        &[
            ("2026-12-27T02:00:00+01:00", "weekly"),
            ("2026-12-28T02:00:00+01:00", ""),
            ("2026-12-31T02:00:00+01:00", "yearly"),
            ("2027-01-01T02:00:00+01:00", ""),
            ("2027-01-03T02:00:00+01:00", "weekly yearly"),
        ],
    );
}

#[test]
fn empty_days_do_not_count_and_the_oldest_point_fills_the_rest() {
    check(
        "daily=3",
        &[
            ("2026-01-01T01:00:00+01:00", ""),
            ("2026-01-01T02:00:00+01:00", "daily"),
            ("2026-06-01T02:00:00+02:00", "daily"),
            ("2026-11-01T01:00:00+01:00", ""),
            ("2026-11-01T02:00:00+01:00", "daily"),
        ],
    );
    check(
        "daily=4",
        &[
            ("2026-01-01T01:00:00+01:00", "daily"),
            ("2026-01-01T01:30:00+01:00", ""),
            ("2026-01-01T02:00:00+01:00", "daily"),
            ("2026-06-01T02:00:00+02:00", "daily"),
            ("2026-11-01T02:00:00+01:00", "daily"),
        ],
    );
}

#[test]
fn days_follow_the_time_zone_of_each_point() {
    check(
        "daily=9",
        &[("2026-05-01T20:00:00-05:00", "daily"), ("2026-05-02T02:00:00Z", ""), ("2026-05-02T04:30:00+02:00", "daily")],
    );
}

#[test]
fn unlimited_keeps_everything_and_zero_is_no_rule() {
    check("daily=unlimited", &[("1999-05-01T20:00:00Z", "daily"), ("2026-05-02T02:00:00Z", "daily")]);
    check("daily=0 within=0h", &[("1999-05-01T20:00:00Z", "no_policy"), ("2026-05-02T02:00:00Z", "no_policy")]);
}

#[test]
fn future_points_are_kept_and_take_no_slot() {
    let days = ["2026-05-01T02:00:00Z", "2026-05-02T02:00:00Z", "2026-05-05T02:00:00Z", "2036-05-05T02:00:00Z"];
    let points = days.map(|at| candidate("vm", time(at)));
    let words = |rules: &str, now: &str, points: &[Candidate]| -> Vec<String> {
        let verdicts = judge(&policy(rules), points, time(now), &Berlin);
        let words = |verdict: &RetentionDecision| {
            verdict.reasons.iter().map(|reason| reason.word()).collect::<Vec<_>>().join(" ")
        };
        verdicts.iter().map(words).collect()
    };
    let in_may = "2026-05-05T03:00:00Z";
    assert_eq!(words("last=1", in_may, &points), ["expired", "expired", "last", "future"]);
    assert_eq!(words("last=2", in_may, &points), ["expired", "last", "last", "future"]);
    assert_eq!(words("yearly=1", in_may, &points), ["expired", "expired", "yearly", "future"]);
    assert_eq!(words("within=4d", in_may, &points), ["expired", "within", "within", "future"]);
    // Once its time has come, it is treated like any other.
    assert_eq!(words("last=2", "2036-05-05T02:00:00Z", &points), ["expired", "expired", "last", "last"]);
    // It does not count as the last good one either, and a clock that is years behind removes nothing.
    let damaged = points.clone().map(|point| Candidate { is_damaged: point.taken_at > time(days[1]), ..point });
    assert_eq!(words("daily=1", in_may, &damaged), ["expired", "last_good", "daily", "future"]);
    assert_eq!(words("last=1", "2020-01-01T00:00:00Z", &points), ["future"; 4]);
}

#[test]
fn protected_points_are_kept_by_any_policy() {
    let at = |day: u32| time(&format!("2026-05-{day:02}T02:00:00+02:00"));
    let day = |day| candidate("vm", at(day));
    let points = [
        Candidate { is_pinned: true, ..day(1) },
        Candidate { is_restoring: true, ..day(1) },
        Candidate { awaits_copy: true, ..day(2) },
        Candidate { outlives_machine: true, ..candidate("gone", at(1)) },
        candidate("gone", at(2)),
        day(3),
        day(4),
        Candidate { is_damaged: true, ..day(5) },
    ];
    let verdicts = judge(&policy("last=1"), &points, now(), &Berlin);
    let reasons: Vec<Reason> = verdicts.iter().flat_map(|verdict| verdict.reasons.clone()).collect();
    assert_eq!(
        reasons,
        [
            Reason::Pinned,
            Reason::Restoring,
            Reason::AwaitsCopy,
            Reason::MachineGone,
            Reason::Rule(Rule::Last),
            Reason::Expired,
            Reason::LastGood,
            Reason::Rule(Rule::Last)
        ]
    );
    assert!(judge(&Policy::default(), &points, now(), &Berlin).iter().all(|v| v.reasons == [Reason::NoPolicy]));
}

#[test]
fn point_without_a_disk_does_not_displace_points_that_have_it() {
    let at = |day: u32, hour: u32| time(&format!("2026-05-{day:02}T{hour:02}:00:00+02:00"));
    let whole = |day, hour| candidate("vm", at(day, hour));
    let without = |part: &str, day, hour| Candidate { lacks: [part.to_owned()].into(), ..whole(day, hour) };
    // Everything is backed up at night, and one disk in addition during the day.
    let points = [
        whole(1, 2),
        without("vdb", 1, 14),
        whole(2, 2),
        without("vdb", 2, 14),
        without("vdb", 2, 15),
        without("vda", 2, 16),
        without("vdb", 3, 14),
        without("vdb", 3, 15),
    ];
    let reasons = |rules: &str, points: &[Candidate]| -> Vec<Vec<Reason>> {
        judge(&policy(rules), points, now(), &Berlin).into_iter().map(|verdict| verdict.reasons).collect()
    };
    let (expired, more) = (vec![Reason::Expired], |rule| vec![Reason::MoreComplete(rule)]);
    let last = reasons("last=1", &points);
    assert_eq!(last[5..], [more(Rule::Last), expired.clone(), vec![Reason::Rule(Rule::Last)]]);
    assert!(last[..5].iter().all(|reasons| *reasons == expired), "{last:?}");
    let daily = reasons("daily=2", &points);
    assert_eq!(daily[0], more(Rule::Daily), "the last one with vdb");
    assert_eq!(daily[1..4], [expired.clone(), expired.clone(), expired], "{daily:?}");
    assert_eq!(daily[4], more(Rule::Daily), "the last one with vda");
    assert_eq!(daily[5], [Reason::Rule(Rule::Daily)]);
    // The last good point has everything.
    let mut damaged = points.to_vec();
    damaged[5].is_damaged = true;
    assert_eq!(reasons("last=1", &damaged)[2], [Reason::LastGood]);
}

#[test]
fn policy_is_parsed_from_the_configuration() {
    let read = |json: &str| serde_json::from_str::<Policy>(json);
    let json = r#"{"keep_last":3,"keep_daily":"unlimited","keep_within":"1y6m14d12h"}"#;
    assert_eq!(read(json).unwrap(), policy("last=3 daily=unlimited within=1y6m2w12h"));
    assert_eq!(serde_json::to_string(&read(json).unwrap()).unwrap(), json);
    assert_eq!(read("{}").unwrap(), Policy::default());
    assert_eq!(read(json).unwrap().to_string(), "keep-last 3, keep-daily unlimited, keep-within 1y6m14d12h");
    for bad in [
        r#"{"keep_lst":3}"#,
        r#"{"keep_last":-1}"#,
        r#"{"keep_last":1.5}"#,
        r#"{"keep_last":"3"}"#,
        r#"{"keep_last":5000000000}"#,
        r#"{"keep_within":7}"#,
        r#"{"keep_within":""}"#,
        r#"{"keep_within":"7"}"#,
        r#"{"keep_within":"d"}"#,
        r#"{"keep_within":"7x"}"#,
        r#"{"keep_within":"-7d"}"#,
        r#"{"keep_within":"7é"}"#,
        r#"{"keep_within":"99999999999d"}"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
    let schema = schemars::schema_for!(Policy).to_value();
    assert_eq!(schema["additionalProperties"], false);
    assert!(schema["properties"]["keep_within"].is_object() && schema["$defs"]["Span"]["pattern"].is_string());
}

prop_compose! {
    fn some_policy()(
        counts in proptest::array::uniform6(prop_oneof![3 => Just(0u32), 3 => 1u32..5]),
        within in proptest::option::of(0u32..90),
        unlimited in proptest::option::weighted(0.1, 0usize..6),
    ) -> Policy {
        let keep = |number: usize| match unlimited == Some(number) {
            true => Keep::Unlimited,
            false => Keep::Count(counts[number]),
        };
        Policy {
            keep_last: keep(0),
            keep_hourly: keep(1),
            keep_daily: keep(2),
            keep_weekly: keep(3),
            keep_monthly: keep(4),
            keep_yearly: keep(5),
            keep_within: within.map(|days| CalendarSpan { days, ..CalendarSpan::default() }),
        }
    }
}

prop_compose! {
    /// Minutes within two years, with the local offset; all times differ.
    fn some_points()(
        points in proptest::collection::btree_map(0i64..1_000_000, (0u8..3, any::<[bool; 4]>(), 0u8..4), 0..40),
    ) -> Vec<Candidate> {
        let start = time("2025-06-01T00:00:00Z").to_utc();
        let point = |(minutes, (machine, flags, rare)): (i64, (u8, [bool; 4], u8))| {
            let utc = start + Duration::minutes(minutes);
            Candidate {
                machine: format!("vm{machine}"),
                taken_at: utc.with_timezone(&Berlin.offset_from_utc_datetime(&utc.naive_utc())),
                is_pinned: rare == 0 && flags[0],
                is_restoring: rare == 1 && flags[0],
                is_damaged: flags[1],
                awaits_copy: rare == 0 && flags[2],
                outlives_machine: rare == 0 && flags[3],
                lacks: [(2, "vda"), (3, "vdb")].iter().filter(|(of, _)| *of == rare && flags[0])
                    .map(|(_, disk)| (*disk).to_owned()).collect(),
            }
        };
        points.into_iter().map(point).collect()
    }
}

fn kept(points: &[Candidate], verdicts: &[RetentionDecision]) -> Vec<Candidate> {
    points.iter().zip(verdicts).filter(|(_, verdict)| verdict.keep).map(|(point, _)| point.clone()).collect()
}

proptest! {
    #[test]
    fn protected_and_newest_points_are_always_kept(policy in some_policy(), points in some_points()) {
        let verdicts = judge(&policy, &points, now(), &Berlin);
        prop_assert_eq!(verdicts.len(), points.len());
        for (point, verdict) in points.iter().zip(&verdicts) {
            let of_machine = || points.iter().filter(|other| other.machine == point.machine);
            let is_newest = of_machine().all(|other| other.taken_at <= point.taken_at);
            let is_last_good = !point.is_damaged
                && of_machine().all(|other| other.is_damaged || other.taken_at <= point.taken_at);
            let must_stay = point.is_pinned || point.is_restoring || point.awaits_copy || point.outlives_machine
                || is_newest || is_last_good || policy.is_empty();
            prop_assert!(verdict.keep || !must_stay, "{:?}: {:?}", point, verdict);
            prop_assert!(!verdict.reasons.is_empty());
            prop_assert_eq!(verdict.keep, verdict.reasons != [Reason::Expired]);
        }
    }

    #[test]
    fn future_points_do_not_affect_the_others(
        policy in some_policy(), points in some_points(), now in 0i64..1_000_000,
    ) {
        let now = (time("2025-06-01T00:00:00Z").to_utc() + Duration::minutes(now)).fixed_offset();
        let (past, future): (Vec<Candidate>, Vec<Candidate>) =
            points.iter().cloned().partition(|point| point.taken_at <= now);
        let alone = judge(&policy, &past, now, &Berlin);
        let together = judge(&policy, &[past, future].concat(), now, &Berlin);
        prop_assert_eq!(&together[..alone.len()], &alone[..]);
        prop_assert!(together[alone.len()..].iter().all(|verdict| verdict.keep));
    }

    #[test]
    fn retention_is_idempotent(policy in some_policy(), points in some_points()) {
        let once = kept(&points, &judge(&policy, &points, now(), &Berlin));
        let twice = kept(&once, &judge(&policy, &once, now(), &Berlin));
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn retention_is_independent_of_order_and_other_machines(policy in some_policy(), points in some_points()) {
        let verdicts = judge(&policy, &points, now(), &Berlin);
        let reversed: Vec<Candidate> = points.iter().rev().cloned().collect();
        let mut of_reversed = judge(&policy, &reversed, now(), &Berlin);
        of_reversed.reverse();
        prop_assert_eq!(&verdicts, &of_reversed);
        let (alone, expected): (Vec<Candidate>, Vec<RetentionDecision>) =
            points.into_iter().zip(verdicts).filter(|(point, _)| point.machine == "vm0").unzip();
        prop_assert_eq!(judge(&policy, &alone, now(), &Berlin), expected);
    }

    #[test]
    fn larger_count_keeps_no_fewer_points(points in some_points(), rule in 0usize..6, count in 1u32..6) {
        let with = |count| {
            let mut policy = Policy::default();
            let keeps = [
                &mut policy.keep_last, &mut policy.keep_hourly, &mut policy.keep_daily,
                &mut policy.keep_weekly, &mut policy.keep_monthly, &mut policy.keep_yearly,
            ];
            *keeps.into_iter().nth(rule).unwrap() = Keep::Count(count);
            judge(&policy, &points, now(), &Berlin)
        };
        for (less, more) in with(count).iter().zip(with(count + 1)) {
            prop_assert!(more.keep || !less.keep);
        }
    }

    #[test]
    fn daily_keeps_the_newest_point_of_each_recent_day(points in some_points(), count in 1u32..6) {
        let policy = Policy { keep_daily: Keep::Count(count), ..Policy::default() };
        let mut days: BTreeMap<(String, NaiveDate), Time> = BTreeMap::new();
        for point in &points {
            let day = (point.machine.clone(), point.taken_at.date_naive());
            let newest = days.entry(day).or_insert(point.taken_at);
            *newest = point.taken_at.max(*newest);
        }
        for (point, verdict) in points.iter().zip(judge(&policy, &points, now(), &Berlin)) {
            let newer_days = days.keys().filter(|(m, day)| *m == point.machine && *day > point.taken_at.date_naive());
            let is_newest = days[&(point.machine.clone(), point.taken_at.date_naive())] == point.taken_at;
            let by_rule = is_newest && newer_days.count() < count as usize;
            prop_assert_eq!(verdict.reasons.contains(&Reason::Rule(Rule::Daily)), by_rule);
        }
    }

    #[test]
    fn calendar_span_round_trips(months in 0u32..30, days in 0u32..400, hours in 0u32..100) {
        let span = CalendarSpan { months, days, hours };
        prop_assert_eq!(span.to_string().parse::<CalendarSpan>().unwrap(), span);
    }

    #[test]
    fn moment_a_span_ago_is_earlier_or_out_of_range(
        seconds in -60_000_000_000i64..200_000_000_000, months in 0u32..120_000, days in 0u32..4_000_000,
    ) {
        let time = DateTime::<Utc>::from_timestamp(seconds,
            0).unwrap().with_timezone(&FixedOffset::east_opt(3600).unwrap());
        let moment = CalendarSpan { months, days, hours: 5 }.before(time, &Berlin);
        prop_assert!(moment.is_none_or(|moment| moment < time));
    }
}
