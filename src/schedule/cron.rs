//! crontab(5) expressions, with the semantics of Vixie's cron (Debian's, and cronie).
//!
//! The `cron` crate finds the dates, but its syntax differs: it has a field of seconds, counts Sunday as 1, and
//! requires a day to match *both* the day of the month and the day of the week. So an expression is parsed here and
//! translated for the crate - into two of its schedules if either day is sufficient.
//!
//! The behaviour of cron when clocks change (by less than three hours; after larger changes it just uses the new time):
//!
//! | | an hour is skipped | an hour occurs twice |
//! | --- | --- | --- |
//! | minute and hour fixed: `30 2 * * *` | runs as soon as the skipped hour is over | runs the first time only |
//! | either begins with `*`: `*/30 * * * *` | times in it are skipped | runs both times |

use super::error::{CronError, CronField, NICKNAMES};
use super::field::Values;
use crate::clock::{LARGEST_CHANGE_MINUTES, moments_of};
use crate::suggest::nearest_word;
use chrono::{DateTime, Duration, NaiveDateTime, TimeZone, Utc};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A crontab(5) expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Cron {
    expression: String,
    /// `None` for `@reboot`.
    times: Option<Times>,
}

/// The matching times and days.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Times {
    pub(crate) minutes: Values,
    pub(crate) hours: Values,
    pub(crate) days_of_month: Values,
    pub(crate) months: Values,
    pub(crate) days_of_week: Values,
    /// The translation for the crate; two schedules if either day is sufficient.
    schedules: Vec<cron::Schedule>,
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Cron, CronError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let expression = words.join(" ");
        let fields = match words[..] {
            ["@reboot"] => return Ok(Cron { expression, times: None }),
            [word] if word.starts_with('@') => {
                let known = NICKNAMES.iter().find(|(name, _)| *name == word);
                known.map(|(_, fields)| *fields).ok_or_else(|| unknown_nickname(word))?
            }
            _ => expression.as_str(),
        };
        let times = Some(Times::parse(fields)?);
        Ok(Cron { expression, times })
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expression)
    }
}

fn unknown_nickname(word: &str) -> CronError {
    let nearest = nearest_word(word, NICKNAMES.map(|(name, _)| name));
    CronError::Nickname { word: word.to_owned(), nearest }
}

impl Cron {
    /// Returns the next times after `after`. Fewer than `count` only for `@reboot`, or at the end of the crate's
    /// calendar (2100).
    pub fn next_runs<Z: TimeZone>(&self, after: &DateTime<Z>, count: usize) -> Vec<DateTime<Z>> {
        let Some(times) = &self.times else { return Vec::new() };
        let zone = after.timezone();
        // A skipped time runs after the change, so a local time before `after` may run after it.
        let from = after.naive_local() - Duration::minutes(LARGEST_CHANGE_MINUTES);
        let (mut found, mut waiting) = (Vec::new(), BTreeSet::new());
        for local in times.local_times(from) {
            let moments = times.moments(&zone, local);
            // No later local time runs before the first run of this one, but its second run may come later.
            if let Some(first) = moments.first() {
                while waiting.first().is_some_and(|known| known < first) && found.len() < count {
                    found.extend(waiting.pop_first());
                }
            }
            if found.len() >= count {
                break;
            }
            waiting.extend(moments.into_iter().filter(|moment| moment > after));
        }
        let missing = count - found.len();
        found.extend(waiting.into_iter().take(missing));
        found
    }

    /// Returns the fields, or `None` for `@reboot`.
    pub(super) fn times(&self) -> Option<&Times> {
        self.times.as_ref()
    }
}

impl Times {
    fn parse(text: &str) -> Result<Times, CronError> {
        let words: Vec<&str> = text.split(' ').collect();
        let [minute, hour, day_of_month, month, day_of_week] = words[..] else {
            let found = words.iter().filter(|word| !word.is_empty()).count();
            return Err(CronError::FieldCount { found });
        };
        let mut times = Times {
            minutes: Values::parse(CronField::Minute, minute)?,
            hours: Values::parse(CronField::Hour, hour)?,
            days_of_month: Values::parse(CronField::DayOfMonth, day_of_month)?,
            months: Values::parse(CronField::Month, month)?,
            days_of_week: Values::parse(CronField::DayOfWeek, day_of_week)?,
            schedules: Vec::new(),
        };
        times.schedules = times.in_the_terms_of_the_crate();
        // From this start, the calendar has every combination of date and day of the week.
        let start = DateTime::UNIX_EPOCH + Duration::days(365 * 30 + 7);
        let comes = times.local_times(start.naive_utc()).next().is_some();
        if comes { Ok(times) } else { Err(CronError::Never) }
    }

    /// Returns whether a day matches by the day of the month *or* of the week: when neither begins with `*`.
    pub(crate) fn either_day(&self) -> bool {
        !self.days_of_month.starred && !self.days_of_week.starred
    }

    fn in_the_terms_of_the_crate(&self) -> Vec<cron::Schedule> {
        let list = |values: &Values, add: u32| {
            values.numbers.iter().map(|number| (number + add).to_string()).collect::<Vec<_>>().join(",")
        };
        let (days_of_month, days_of_week) = (list(&self.days_of_month, 0), list(&self.days_of_week, 1));
        let days = match self.either_day() {
            true => vec![(days_of_month, "*".to_owned()), ("*".to_owned(), days_of_week)],
            false => vec![(days_of_month, days_of_week)],
        };
        let schedule = |(day_of_month, day_of_week): (String, String)| {
            let (minutes, hours, months) = (list(&self.minutes, 0), list(&self.hours, 0), list(&self.months, 0));
            let text = format!("0 {minutes} {hours} {day_of_month} {months} {day_of_week}");
            cron::Schedule::from_str(&text).unwrap_or_else(|error| {
                unreachable!("lists of numbers within bounds are in the crate's language: {error}")
            })
        };
        days.into_iter().map(schedule).collect()
    }

    /// Returns the matching local times after `after`, in order.
    fn local_times(&self, after: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> {
        let after = after.and_utc();
        let mut streams: Vec<_> = self.schedules.iter().map(|schedule| schedule.after(&after).peekable()).collect();
        std::iter::from_fn(move || {
            let next: DateTime<Utc> = streams.iter_mut().filter_map(|stream| stream.peek().copied()).min()?;
            for stream in &mut streams {
                stream.next_if_eq(&next);
            }
            Some(next.naive_utc())
        })
    }

    /// Returns when cron runs at a local time, in order: never, once or twice.
    fn moments<Z: TimeZone>(&self, zone: &Z, local: NaiveDateTime) -> Vec<DateTime<Z>> {
        let is_pattern = self.minutes.starred || self.hours.starred;
        let mut moments = moments_of(zone, local);
        if moments.is_empty() && !is_pattern {
            let mut minutes = 1..LARGEST_CHANGE_MINUTES;
            let later =
                minutes.find_map(|minutes| moments_of(zone, local + Duration::minutes(minutes)).into_iter().next());
            moments.extend(later);
        }
        if !is_pattern {
            moments.truncate(1);
        }
        moments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(expression: &str, after: &str, count: usize) -> Vec<String> {
        let after = NaiveDateTime::parse_from_str(after, "%Y-%m-%d %H:%M").unwrap().and_utc();
        let cron = Cron::from_str(expression).unwrap();
        cron.next_runs(&after, count).iter().map(|time| time.format("%a %Y-%m-%d %H:%M").to_string()).collect()
    }

    #[test]
    fn expressions_have_crontab_semantics() {
        // 2026-11-25 is a Wednesday.
        for (expression, expected) in [
            ("0 2 * * *", ["Thu 2026-11-26 02:00", "Fri 2026-11-27 02:00"]),
            ("*/20 9-17/4 * * *", ["Wed 2026-11-25 13:00", "Wed 2026-11-25 13:20"]),
            ("0 0 * * 0", ["Sun 2026-11-29 00:00", "Sun 2026-12-06 00:00"]),
            ("0 0 * * 7", ["Sun 2026-11-29 00:00", "Sun 2026-12-06 00:00"]),
            ("0 0 * * 5-7", ["Fri 2026-11-27 00:00", "Sat 2026-11-28 00:00"]),
            ("0 0 * * MON,sat", ["Sat 2026-11-28 00:00", "Mon 2026-11-30 00:00"]),
            ("0 0 1 jan *", ["Fri 2027-01-01 00:00", "Sat 2028-01-01 00:00"]),
            // If both days are restricted, either is sufficient; if one begins with a star, both must match.
            ("0 0 1 * fri", ["Fri 2026-11-27 00:00", "Tue 2026-12-01 00:00"]),
            ("0 0 */2 * fri", ["Fri 2026-11-27 00:00", "Fri 2026-12-11 00:00"]),
            ("0 0 29 2 *", ["Tue 2028-02-29 00:00", "Sun 2032-02-29 00:00"]),
            ("@weekly", ["Sun 2026-11-29 00:00", "Sun 2026-12-06 00:00"]),
            ("@hourly", ["Wed 2026-11-25 11:00", "Wed 2026-11-25 12:00"]),
            ("  0  2\t* * *  ", ["Thu 2026-11-26 02:00", "Fri 2026-11-27 02:00"]),
        ] {
            assert_eq!(times(expression, "2026-11-25 10:00", 2), expected, "{expression}");
        }
        assert!(times("@reboot", "2026-11-25 10:00", 2).is_empty());
        assert_eq!(Cron::from_str(" 0  2 * * * ").unwrap().to_string(), "0 2 * * *");
    }

    #[test]
    fn an_error_names_the_field_and_the_rule() {
        for (expression, expected) in [
            ("60 2 * * *", "invalid minute '60': it goes from 0 to 59"),
            ("0 24 * * *", "invalid hour '24': it goes from 0 to 23"),
            ("0 2 0 * *", "invalid day of the month '0': it goes from 1 to 31"),
            ("0 2 * 13 *", "invalid month '13': it goes from 1 to 12"),
            ("0 2 * * 8", "invalid day of the week '8': it goes from 0 to 7"),
            ("0 2 * * monday", "invalid day of the week 'monday': names have three letters: 'mon'"),
            ("0 2 * foo *", "invalid month 'foo': it is a number from 1 to 12, or a name from jan to dec"),
            ("x 2 * * *", "invalid minute 'x': it is a number from 0 to 59"),
            ("+5 2 * * *", "invalid minute '+5': it is a number from 0 to 59"),
            ("1,,2 2 * * *", "invalid minute '': a number is missing"),
            ("5-1 2 * * *", "invalid minute '5-1': a range goes from the smaller to the larger"),
            (
                "0 2 * * fri-sun",
                "invalid day of the week 'fri-sun': a range goes from the smaller to the larger; as the end of a \
                 range Sunday is 7",
            ),
            ("*/0 2 * * *", "invalid minute '*/0': a step is a number above 0"),
            ("5/10 2 * * *", "invalid minute '5/10': a step needs a range before it, as in '*/10'"),
            ("0 2 L * *", "invalid day of the month 'L': it is a number from 1 to 31"),
            (
                "0 0 2 * * *",
                "it has 6 fields; expected 5 (minute, hour, day of the month, month, day of the week), or @daily and \
                 similar",
            ),
            (
                "@dayly",
                "'@dayly' is not a valid time: cron accepts @reboot, @yearly, @annually, @monthly, @weekly, @daily, \
                 @midnight, @hourly; did you mean @daily?",
            ),
            ("0 0 30 feb *", "this date never occurs"),
        ] {
            assert_eq!(Cron::from_str(expression).unwrap_err().to_string(), expected);
        }
        assert!(matches!(Cron::from_str(""), Err(CronError::FieldCount { found: 0 })));
    }
}
