//! Describes expressions in words: `every night at 02:30`, `Monday to Friday at 06:00 and 18:00`.

use super::Cron;
use super::cron::Times;
use super::field::Values;
use std::collections::BTreeSet;

/// If there are more times of day than this, they are not listed.
const MOST_TIMES: usize = 6;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Starts on Monday, so that a weekend is a range.
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Cron {
    /// Returns when it runs, in words.
    pub(crate) fn words(&self) -> String {
        self.times().map_or_else(|| "at each start of the host".to_owned(), words_of)
    }
}

fn words_of(times: &Times) -> String {
    let months = match times.months.numbers.len() {
        12 => String::new(),
        _ => format!(" in {}", list(times.months.numbers.iter().map(|month| MONTHS[*month as usize - 1]))),
    };
    let days = days(times);
    let (rhythm, clock) = (rhythm(times), clock(times));
    let when = match (rhythm, days) {
        (Some(rhythm), None) => rhythm,
        (Some(rhythm), Some(days)) => format!("{rhythm}, {days}"),
        (None, None) if is_night(times) => format!("every night {clock}"),
        (None, None) => format!("every day {clock}"),
        (None, Some(days)) => format!("{days} {clock}"),
    };
    when + &months
}

/// Returns whether all times are between 21:00 and 06:00.
fn is_night(times: &Times) -> bool {
    times.hours.numbers.iter().all(|hour| *hour < 6 || *hour >= 21)
}

/// Describes times that recur at equal intervals all day.
fn rhythm(times: &Times) -> Option<String> {
    let (minutes, hours) = (&times.minutes.numbers, &times.hours.numbers);
    let first_minute = minutes.first()?;
    match (step(minutes, 60), step(hours, 24)) {
        (Some(1), Some(1)) => Some("every minute".into()),
        (Some(step), Some(1)) => Some(format!("every {step} minutes")),
        _ if minutes.len() > 1 => None,
        (_, Some(1)) if *first_minute == 0 => Some("every hour".into()),
        (_, Some(1)) => Some(format!("every hour at minute {first_minute}")),
        (_, Some(step)) if hours.len() > 2 && *first_minute == 0 => Some(format!("every {step} hours")),
        (_, Some(step)) if hours.len() > 2 => Some(format!("every {step} hours at minute {first_minute}")),
        _ => None,
    }
}

/// Returns the interval of numbers that divide a circle evenly, starting at 0.
fn step(numbers: &BTreeSet<u32>, circle: u32) -> Option<u32> {
    let count = u32::try_from(numbers.len()).ok().filter(|count| *count > 1 && circle.is_multiple_of(*count))?;
    let step = circle / count;
    numbers.iter().enumerate().all(|(at, number)| *number == at as u32 * step).then_some(step)
}

/// Describes the times of day.
fn clock(times: &Times) -> String {
    let (minutes, hours) = (&times.minutes.numbers, &times.hours.numbers);
    if minutes.len() * hours.len() <= MOST_TIMES {
        let times = hours.iter().flat_map(|hour| minutes.iter().map(move |minute| format!("{hour:02}:{minute:02}")));
        return format!("at {}", list(times));
    }
    let of_minutes = match (minutes.len(), step(minutes, 60)) {
        (60, _) => "every minute".to_owned(),
        (_, Some(step)) => format!("every {step} minutes"),
        (1, _) => format!("at minute {}", list(minutes)),
        _ => format!("at minutes {}", list(minutes)),
    };
    let (first, last) = (hours.first().unwrap_or(&0), hours.last().unwrap_or(&23));
    match (hours.len(), last - first) {
        (24, _) => of_minutes,
        (count, span) if count as u32 == span + 1 => format!("{of_minutes} from {first:02}:00 to {last:02}:59"),
        _ => format!("{of_minutes} of the hours {}", list(hours)),
    }
}

/// Describes the days, or returns `None` for every day.
fn days(times: &Times) -> Option<String> {
    let of_month = (!is_all(&times.days_of_month, 31)).then(|| days_of_month(&times.days_of_month.numbers));
    let of_week = (!is_all(&times.days_of_week, 7)).then(|| weekdays(&times.days_of_week.numbers));
    match (of_month, of_week) {
        (None, None) => None,
        (None, Some(of_week)) => Some(of_week),
        (Some(of_month), None) => Some(format!("on {of_month}")),
        (Some(of_month), Some(of_week)) if times.either_day() => Some(format!("on {of_month} and {of_week}")),
        (Some(of_month), Some(of_week)) => Some(format!("{of_week} if it is {of_month}")),
    }
}

fn is_all(values: &Values, count: usize) -> bool {
    values.numbers.len() == count
}

fn days_of_month(numbers: &BTreeSet<u32>) -> String {
    match numbers.len() {
        1 => format!("day {} of the month", list(numbers)),
        _ => format!("days {} of the month", list(numbers)),
    }
}

fn weekdays(numbers: &BTreeSet<u32>) -> String {
    let from_monday: BTreeSet<u32> = numbers.iter().map(|day| (day + 6) % 7).collect();
    let names = || from_monday.iter().map(|day| WEEKDAYS[*day as usize]);
    match (from_monday.first(), from_monday.last(), from_monday.len()) {
        (_, _, 1) => format!("every {}", list(names())),
        (Some(first), Some(last), 3..) if *last as usize - *first as usize + 1 == from_monday.len() => {
            format!("{} to {}", WEEKDAYS[*first as usize], WEEKDAYS[*last as usize])
        }
        _ => format!("every {}", list(names())),
    }
}

/// `a, b and c`.
fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match &items[..] {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_described_in_words() {
        for (expression, words) in [
            ("30 2 * * *", "every night at 02:30"),
            ("0 12 * * *", "every day at 12:00"),
            ("30 2 * * 1-5", "Monday to Friday at 02:30"),
            ("0 6,18 * * sat,sun", "every Saturday and Sunday at 06:00 and 18:00"),
            ("0 2 * * 7", "every Sunday at 02:00"),
            ("0 2 * * 5-7", "Friday to Sunday at 02:00"),
            ("0 2 * * 0,2,4", "every Tuesday, Thursday and Sunday at 02:00"),
            ("@hourly", "every hour"),
            ("15 * * * *", "every hour at minute 15"),
            ("*/15 * * * *", "every 15 minutes"),
            ("* * * * *", "every minute"),
            ("0 */6 * * *", "every 6 hours"),
            ("20 */6 * * 1-5", "every 6 hours at minute 20, Monday to Friday"),
            ("0 */12 * * *", "every day at 00:00 and 12:00"),
            ("*/20 9-17 * * mon-fri", "Monday to Friday every 20 minutes from 09:00 to 17:59"),
            ("5,7 0-9/2 * * *", "every day at minutes 5 and 7 of the hours 0, 2, 4, 6 and 8"),
            ("0 3 1 * *", "on day 1 of the month at 03:00"),
            ("0 3 1,15 * *", "on days 1 and 15 of the month at 03:00"),
            ("0 3 1 * fri", "on day 1 of the month and every Friday at 03:00"),
            ("0 3 */15 * fri", "every Friday if it is days 1, 16 and 31 of the month at 03:00"),
            ("0 3 1 1,7 *", "on day 1 of the month at 03:00 in January and July"),
            ("@yearly", "on day 1 of the month at 00:00 in January"),
            ("@reboot", "at each start of the host"),
        ] {
            assert_eq!(expression.parse::<Cron>().unwrap().words(), words, "{expression}");
        }
    }
}
