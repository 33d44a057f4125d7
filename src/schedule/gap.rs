//! The maximum time between two runs, which defines "too long ago" for scheduled backups.

use super::Cron;
use super::cron::Times;
use chrono::{Datelike, Days, NaiveDate};
use std::time::Duration;

/// In this number of years every date falls on every day of the week.
const YEARS: i32 = 28;

impl Cron {
    /// Returns the maximum time between two runs if clocks never change, or `None` for `@reboot`.
    pub(crate) fn longest_gap(&self) -> Option<Duration> {
        let minutes = self.times()?.longest_gap_minutes();
        Some(Duration::from_secs(minutes * 60))
    }
}

impl Times {
    fn is_day(&self, day: NaiveDate) -> bool {
        let of_month = self.days_of_month.numbers.contains(&day.day());
        let of_week = self.days_of_week.numbers.contains(&day.weekday().num_days_from_sunday());
        let fits = if self.either_day() { of_month || of_week } else { of_month && of_week };
        fits && self.months.numbers.contains(&day.month())
    }

    fn longest_gap_minutes(&self) -> u64 {
        const DAY: u64 = 24 * 60;
        let hours = self.hours.numbers.iter();
        let times: Vec<u64> = hours
            .flat_map(|hour| self.minutes.numbers.iter().map(move |minute| u64::from(hour * 60 + minute)))
            .collect();
        let (Some(first), Some(last)) = (times.first(), times.last()) else { return 0 };
        let within = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let days = (0..).map_while(|days| NaiveDate::from_ymd_opt(2000, 1, 1)?.checked_add_days(Days::new(days)));
        let days = days.take_while(|day| day.year() < 2000 + YEARS).enumerate();
        let days: Vec<u64> = days.filter(|(_, day)| self.is_day(*day)).map(|(number, _)| number as u64).collect();
        let between = days.windows(2).map(|pair| (pair[1] - pair[0]) * DAY + first - last).max();
        // A combination of date and day of the week that occurs only once in all these years.
        within.max(between.unwrap_or(YEARS as u64 * 366 * DAY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, TimeDelta};

    #[test]
    fn longest_gap_includes_nights_and_weekends() {
        const HOUR: u64 = 3600;
        for (expression, seconds) in [
            ("0 2 * * *", 24 * HOUR),
            ("@hourly", HOUR),
            ("*/15 9-17 * * *", 15 * HOUR + 15 * 60),
            ("0 2 * * 1-5", 72 * HOUR),
            ("0 2 * * 7", 7 * 24 * HOUR),
            ("@monthly", 31 * 24 * HOUR),
            ("0 2 1,15 * fri", 7 * 24 * HOUR),
            ("0 2 29 feb *", (3 * 365 + 366) * 24 * HOUR),
        ] {
            let gap = expression.parse::<Cron>().unwrap().longest_gap().unwrap();
            assert_eq!(gap.as_secs(), seconds, "{expression}");
        }
        assert_eq!("@reboot".parse::<Cron>().unwrap().longest_gap(), None);
    }

    #[test]
    fn longest_gap_matches_the_computed_runs() {
        for expression in ["7,40 3,22 * * *", "0 */5 * * 2,4", "30 1 10-20/3 * *", "0 0 1 jan,jul *"] {
            let cron: Cron = expression.parse().unwrap();
            let start = DateTime::UNIX_EPOCH + TimeDelta::days(365 * 40);
            let runs = cron.next_runs(&start, 200);
            let longest = runs.windows(2).map(|pair| (pair[1] - pair[0]).num_seconds()).max().unwrap();
            assert_eq!(cron.longest_gap().unwrap().as_secs(), longest as u64, "{expression}");
        }
    }
}
