//! Retention: which points to keep, by restic's policy rules, and which points no policy may remove.
//!
//! Pure: takes points with their times and returns a verdict for each. Points are grouped by machine, and each group is
//! judged separately, newest point first.
//!
//! | rule | keeps |
//! | --- | --- |
//! | `keep_last` | the newest n points |
//! | `keep_hourly` … `keep_yearly` | the newest point of each of the newest n hours, days, weeks (Monday to Sunday), months or years *that have a point*; while some of the n are left, the oldest point of all as well |
//! | `keep_within` | every point newer than this long before the newest point |
//!
//! A point that is dated in the future was made, or is judged, by a clock that is wrong. It is kept, and all rules
//! ignore it, so that it does not displace a point with a correct date.
//!
//! A point that leaves out a disk, or another part of the machine, does not displace points that have it: for each such
//! part, the rules are also applied to the points that do not leave it out, as if there were no others. Otherwise a
//! backup of one disk could expire all points of the others.
//!
//! A point is kept if any rule keeps it. `0` is a rule that keeps nothing, and a policy without other rules is no
//! policy: nothing is removed. Except for points dated in the future and parts that are left out, all of this matches
//! what `restic forget` does with the options of the same names, even where it may surprise:
//!
//! - The hour, day … of a point is that of the local clock when and where it was taken, as its time and offset say.
//! - `keep_within` counts back on the calendar of the local time zone: `1d` before noon is noon of the day before, even
//!   if daylight saving time began in between. One month before 31 March is 3 March (2 March in leap years), because 31
//!   February means the second or third day after the end of February. (If the offset of the newest point is not that
//!   of the local time zone, or is zero, its own offset is used.)
//! - Only the choice of points dated in the future depends on the current time: while no new points are made, no point
//!   expires.
//!
//! For two tiers, [`await_copy`] says which points the second one still has to receive.

mod second_tier;

pub(crate) use second_tier::{FirstTierPoint, await_copy};

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Duration, NaiveDate, NaiveDateTime, Offset, TimeZone, Timelike, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::record::Time;

/// Which points to keep; a point stays if any of the rules keeps it. No rule at all: every point stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Keep the last N points.
    #[serde(skip_serializing_if = "Keep::is_nothing")]
    pub(crate) keep_last: Keep,
    /// Keep the last point of each of the last N hours that have points.
    #[serde(skip_serializing_if = "Keep::is_nothing")]
    pub(crate) keep_hourly: Keep,
    /// Keep the last point of each of the last N days that have points.
    #[serde(skip_serializing_if = "Keep::is_nothing")]
    pub(crate) keep_daily: Keep,
    /// Keep the last point of each of the last N weeks (Monday to Sunday) that have points.
    #[serde(skip_serializing_if = "Keep::is_nothing")]
    pub(crate) keep_weekly: Keep,
    /// Keep the last point of each of the last N months that have points.
    #[serde(skip_serializing_if = "Keep::is_nothing")]
    pub(crate) keep_monthly: Keep,
    /// Keep the last point of each of the last N years that have points.
    #[serde(skip_serializing_if = "Keep::is_nothing")]
    pub(crate) keep_yearly: Keep,
    /// Keep every point newer than this long before the newest one: "30d", "1y6m", "12h".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep_within: Option<CalendarSpan>,
}

impl Policy {
    /// Whether no rule keeps anything. Nothing is removed then.
    pub(crate) fn is_empty(&self) -> bool {
        self.counts().iter().all(|(_, keep)| keep.is_nothing()) && self.span().is_none()
    }

    fn counts(&self) -> [(Rule, Keep); 6] {
        [
            (Rule::Last, self.keep_last),
            (Rule::Hourly, self.keep_hourly),
            (Rule::Daily, self.keep_daily),
            (Rule::Weekly, self.keep_weekly),
            (Rule::Monthly, self.keep_monthly),
            (Rule::Yearly, self.keep_yearly),
        ]
    }

    /// Returns the span, unless it is empty: an empty span is no rule, like a count of 0.
    fn span(&self) -> Option<CalendarSpan> {
        self.keep_within.filter(|span| *span != CalendarSpan::default())
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts().into_iter().filter(|(_, keep)| !keep.is_nothing());
        let mut rules: Vec<String> = counts.map(|(rule, keep)| format!("keep-{rule} {keep}")).collect();
        rules.extend(self.span().map(|span| format!("keep-within {span}")));
        f.write_str(&rules.join(", "))
    }
}

/// The number of points that a rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// This number of points.
    Count(u32),
    /// All points: `"unlimited"`.
    Unlimited,
}

impl Keep {
    /// Whether the rule is disabled.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Keep::Count(0)
    }

    /// Decrements the count.
    fn take(&mut self) {
        if let Keep::Count(left) = self {
            *left = left.saturating_sub(1);
        }
    }
}

impl Default for Keep {
    fn default() -> Self {
        Keep::Count(0)
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keep::Count(count) => count.fmt(f),
            Keep::Unlimited => f.write_str("unlimited"),
        }
    }
}

/// A text that is not a number of points.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number of points: expected a whole number or \"unlimited\"")]
pub(crate) struct ParseKeepError(String);

impl FromStr for Keep {
    type Err = ParseKeepError;

    fn from_str(text: &str) -> Result<Keep, ParseKeepError> {
        match text {
            "unlimited" => Ok(Keep::Unlimited),
            number => number.parse().map(Keep::Count).map_err(|_| ParseKeepError(text.to_owned())),
        }
    }
}

impl Serialize for Keep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Keep::Count(count) => serializer.serialize_u32(*count),
            Keep::Unlimited => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Keep, D::Error> {
        struct KeepVisitor;
        impl de::Visitor<'_> for KeepVisitor {
            type Value = Keep;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of points or \"unlimited\"")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Keep, E> {
                let too_large = |_| E::invalid_value(de::Unexpected::Unsigned(number), &self);
                u32::try_from(number).map(Keep::Count).map_err(too_large)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Keep, E> {
                match text {
                    "unlimited" => Ok(Keep::Unlimited),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(KeepVisitor)
    }
}

impl JsonSchema for Keep {
    fn schema_name() -> Cow<'static, str> {
        "Keep".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of points, or \"unlimited\".",
            "anyOf": [{ "type": "integer", "minimum": 0, "maximum": u32::MAX }, { "const": "unlimited" }]
        })
    }
}

/// A duration on the calendar, in restic's notation: `1y6m7d12h` (`m` are months; `w`, weeks).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CalendarSpan {
    months: u32,
    days: u32,
    hours: u32,
}

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: expected numbers with y, m (months), w, d or h, such as 30d or 1y6m")]
pub(crate) struct ParseSpanError(String);

impl FromStr for CalendarSpan {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<CalendarSpan, ParseSpanError> {
        let bad = || ParseSpanError(text.to_owned());
        let mut span = CalendarSpan::default();
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let (number, unit) = rest.split_at(digits);
            // Ten thousand of any unit is plenty and rules out overflow.
            let number: u32 = number.parse().ok().filter(|n| *n <= 10_000).ok_or_else(bad)?;
            let unit = unit.chars().next().ok_or_else(bad)?;
            match unit {
                'y' => span.months += number * 12,
                'm' => span.months += number,
                'w' => span.days += number * 7,
                'd' => span.days += number,
                'h' => span.hours += number,
                _ => return Err(bad()),
            }
            rest = &rest[digits + 1..];
            if span.months > 120_000 || span.days > 4_000_000 || span.hours > 90_000_000 {
                return Err(bad());
            }
        }
        Ok(span)
    }
}

impl fmt::Display for CalendarSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.months / 12, 'y'), (self.months % 12, 'm'), (self.days, 'd'), (self.hours, 'h')];
        if *self == CalendarSpan::default() {
            return f.write_str("0h");
        }
        parts.iter().filter(|(number, _)| *number > 0).try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

impl Serialize for CalendarSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CalendarSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CalendarSpan, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for CalendarSpan {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A length of time: numbers with y, m (months), w, d or h, such as \"30d\" or \"1y6m\".",
            "type": "string",
            "pattern": "^([0-9]+[ymwdh])+$"
        })
    }
}

impl CalendarSpan {
    /// Returns the moment this long before `time`.
    fn before(self, time: Time, zone: &impl TimeZone) -> Option<DateTime<Utc>> {
        let local = time.naive_local();
        let months = i64::from(local.year()) * 12 + i64::from(local.month0()) - i64::from(self.months);
        let year = i32::try_from(months.div_euclid(12)).ok()?;
        let first = NaiveDate::from_ymd_opt(year, u32::try_from(months.rem_euclid(12)).ok()? + 1, 1)?;
        // Count from the first of the month, so that 31 February becomes a day in March.
        let date = first.checked_add_signed(Duration::days(i64::from(local.day0()) - i64::from(self.days)))?;
        let wanted = date.and_time(local.time());
        let own = *time.offset();
        let is_local = own.local_minus_utc() != 0 && zone.offset_from_utc_datetime(&time.naive_utc()).fix() == own;
        let utc = if is_local { to_utc(wanted, zone) } else { wanted - own };
        Some(utc.and_utc() - Duration::hours(i64::from(self.hours)))
    }
}

/// Converts a local time to UTC. If daylight saving time makes it ambiguous or skips it, the result is that of restic
/// (Go): the offset is first looked up as if the local time were UTC, and looked up again at the moment that results.
fn to_utc(wall: NaiveDateTime, zone: &impl TimeZone) -> NaiveDateTime {
    let offset_at = |moment: &NaiveDateTime| zone.offset_from_utc_datetime(moment).fix();
    let first = wall - offset_at(&wall);
    wall - offset_at(&first)
}

/// The properties of a point that retention needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Identifies its machine.
    pub(crate) machine: String,
    pub(crate) taken_at: Time,
    /// Whether the user wants it kept regardless of the policy.
    pub(crate) is_pinned: bool,
    /// Whether a machine runs on it until its live restore has ended.
    pub(crate) is_restoring: bool,
    /// Whether it was found damaged. Another point of the machine must then be the last good one.
    pub(crate) is_damaged: bool,
    /// Whether a second tier is configured and does not have it yet.
    pub(crate) awaits_copy: bool,
    /// Whether its machine no longer exists, and the user did not allow removing its points.
    pub(crate) outlives_machine: bool,
    /// The disks and other parts that it leaves out, and that other points of the machine have.
    pub(crate) lacks: BTreeSet<String>,
}

/// The verdict on a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetentionDecision {
    /// Whether the point is kept.
    pub(crate) keep: bool,
    /// Why; never empty.
    pub(crate) reasons: Vec<Reason>,
}

/// Why a point is kept or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A rule of the policy keeps it.
    Rule(Rule),
    /// The rule has not reached its count at the oldest point of all.
    Oldest(Rule),
    /// A rule keeps it among the points that have a part which others leave out.
    MoreComplete(Rule),
    Pinned,
    /// A machine runs on it.
    Restoring,
    /// It is the machine's newest point that is not damaged, and not dated in the future.
    LastGood,
    /// The second tier does not have it yet.
    AwaitsCopy,
    /// Its machine no longer exists.
    MachineGone,
    /// It is dated in the future.
    Future,
    /// The bucket locks it until this time.
    Locked(Time),
    /// No policy is configured.
    NoPolicy,
    /// No rule keeps it: it is removed.
    Expired,
}

/// A rule of a [`Policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// `keep_last`
    Last,
    /// `keep_hourly`
    Hourly,
    /// `keep_daily`
    Daily,
    /// `keep_weekly`
    Weekly,
    /// `keep_monthly`
    Monthly,
    /// `keep_yearly`
    Yearly,
    /// `keep_within`
    Within,
}

impl Rule {
    /// Returns the word after `keep_`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Rule::Last => "last",
            Rule::Hourly => "hourly",
            Rule::Daily => "daily",
            Rule::Weekly => "weekly",
            Rule::Monthly => "monthly",
            Rule::Yearly => "yearly",
            Rule::Within => "within",
        }
    }

    /// Returns the hour, day … that a time falls in: consecutive points with the same bucket count once. (The position
    /// makes the bucket of each point unique for [`Rule::Last`].)
    fn bucket(self, time: &Time, position: usize) -> (i32, u32) {
        match self {
            Rule::Last | Rule::Within => (0, position as u32),
            Rule::Hourly => (time.year(), time.ordinal() * 24 + time.hour()),
            Rule::Daily => (time.year(), time.ordinal()),
            Rule::Weekly => (time.iso_week().year(), time.iso_week().week()),
            Rule::Monthly => (time.year(), time.month()),
            Rule::Yearly => (time.year(), 0),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Reason {
    /// Returns the reason of a point that is kept only among those with a part that others leave out.
    fn among_more_complete(self) -> Reason {
        match self {
            Reason::Rule(rule) | Reason::Oldest(rule) => Reason::MoreComplete(rule),
            other => other,
        }
    }

    /// Returns the word for programs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Reason::Rule(rule) | Reason::Oldest(rule) | Reason::MoreComplete(rule) => rule.word(),
            Reason::Pinned => "pinned",
            Reason::Restoring => "restoring",
            Reason::LastGood => "last_good",
            Reason::AwaitsCopy => "awaits_copy",
            Reason::MachineGone => "machine_gone",
            Reason::Future => "future",
            Reason::Locked(_) => "locked",
            Reason::NoPolicy => "no_policy",
            Reason::Expired => "expired",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Rule(rule) => rule.fmt(f),
            Reason::Oldest(rule) => write!(f, "{rule} (oldest of all)"),
            Reason::MoreComplete(rule) => write!(f, "{rule} (with a part that later points leave out)"),
            Reason::Pinned => f.write_str("pinned"),
            Reason::Restoring => f.write_str("a machine runs on it until its live restore has ended"),
            Reason::LastGood => f.write_str("last good point of the machine"),
            Reason::AwaitsCopy => f.write_str("not yet in the second repository"),
            Reason::MachineGone => f.write_str("the machine no longer exists"),
            Reason::Future => f.write_str("dated in the future; check the clocks"),
            Reason::Locked(until) => write!(f, "locked until {}", until.format("%Y-%m-%d %H:%M")),
            Reason::NoPolicy => f.write_str("no retention rules"),
            Reason::Expired => f.write_str("no rule keeps it"),
        }
    }
}

/// Judges every point. The verdicts are in the order of the points. `zone` is the local time zone.
pub(crate) fn judge(policy: &Policy, points: &[Candidate], now: Time, zone: &impl TimeZone) -> Vec<RetentionDecision> {
    if policy.is_empty() {
        return points.iter().map(|_| RetentionDecision { keep: true, reasons: vec![Reason::NoPolicy] }).collect();
    }
    let mut reasons: Vec<Vec<Reason>> = vec![Vec::new(); points.len()];
    let mut machines: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, point) in points.iter().enumerate() {
        machines.entry(&point.machine).or_default().push(number);
    }
    for numbers in machines.into_values() {
        let (mut numbers, future): (Vec<usize>, Vec<usize>) =
            numbers.into_iter().partition(|number| points[*number].taken_at <= now);
        future.into_iter().for_each(|number| reasons[number].push(Reason::Future));
        numbers.sort_by_key(|number| std::cmp::Reverse(points[*number].taken_at));
        for (number, found) in numbers.iter().zip(judge_in_order(policy, points, &numbers, zone)) {
            reasons[*number] = found;
        }
        let lacking: BTreeSet<&String> = numbers.iter().flat_map(|number| &points[*number].lacks).collect();
        for part in lacking {
            let having: Vec<usize> =
                numbers.iter().copied().filter(|number| !points[*number].lacks.contains(part)).collect();
            for (number, found) in having.iter().zip(judge_in_order(policy, points, &having, zone)) {
                if reasons[*number].is_empty() {
                    reasons[*number] = found.into_iter().map(Reason::among_more_complete).collect();
                }
            }
        }
    }
    let verdict = |(point, mut reasons): (&Candidate, Vec<Reason>)| {
        let of_its_own = [
            (point.is_pinned, Reason::Pinned),
            (point.is_restoring, Reason::Restoring),
            (point.awaits_copy, Reason::AwaitsCopy),
            (point.outlives_machine, Reason::MachineGone),
        ];
        reasons.extend(of_its_own.into_iter().filter(|(applies, _)| *applies).map(|(_, reason)| reason));
        let keep = !reasons.is_empty();
        if !keep {
            reasons.push(Reason::Expired);
        }
        RetentionDecision { keep, reasons }
    };
    points.iter().zip(reasons).map(verdict).collect()
}

/// Returns why each of these points is kept, if there were no others. `numbers` are sorted newest first.
fn judge_in_order(policy: &Policy, points: &[Candidate], numbers: &[usize], zone: &impl TimeZone) -> Vec<Vec<Reason>> {
    let times: Vec<Time> = numbers.iter().map(|number| points[*number].taken_at).collect();
    let mut reasons = apply(policy, &times, zone);
    let last_good = numbers.iter().position(|number| !points[*number].is_damaged);
    if let Some(position) = last_good.filter(|position| reasons[*position].is_empty()) {
        reasons[position].push(Reason::LastGood);
    }
    reasons
}

/// Returns the rules that keep each of a machine's points. `times` are sorted newest first.
fn apply(policy: &Policy, times: &[Time], zone: &impl TimeZone) -> Vec<Vec<Reason>> {
    let newest = times.first();
    let cut = policy.span().map(|span| newest.and_then(|newest| span.before(*newest, zone)));
    let mut counts = policy.counts().map(|(rule, keep)| (rule, keep, None));
    let judge_one = |(position, time): (usize, &Time)| {
        let mut reasons = Vec::new();
        for (rule, left, last) in counts.iter_mut().filter(|(_, left, _)| !left.is_nothing()) {
            let bucket = Some(rule.bucket(time, position));
            if bucket != *last {
                reasons.push(Reason::Rule(*rule));
            } else if position + 1 == times.len() {
                reasons.push(Reason::Oldest(*rule));
            } else {
                continue;
            }
            *last = bucket;
            left.take();
        }
        if cut.is_some_and(|cut| cut.is_none_or(|cut| time.to_utc() > cut)) {
            reasons.push(Reason::Rule(Rule::Within));
        }
        reasons
    };
    times.iter().enumerate().map(judge_one).collect()
}

#[cfg(test)]
mod tests;
