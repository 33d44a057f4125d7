//! One field of a cron expression: a list of numbers, ranges and steps, with the syntax of Vixie's cron.
//!
//! | form | means |
//! | --- | --- |
//! | `*` | every value |
//! | `5`, `mon` | that value; months and days of the week have names, in any case |
//! | `1-5`, `mon-fri` | a range, both ends included |
//! | `*/15`, `1-30/2` | every nth value, counted from the first |
//! | `1,2,10-20/5` | all of these |

use super::error::{CronError, CronField};
use std::collections::BTreeSet;

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl CronField {
    /// Returns the smallest and the largest number.
    pub(crate) fn bounds(self) -> (u32, u32) {
        match self {
            CronField::Minute => (0, 59),
            CronField::Hour => (0, 23),
            CronField::DayOfMonth => (1, 31),
            CronField::Month => (1, 12),
            CronField::DayOfWeek => (0, 7),
        }
    }

    /// Returns the names of the numbers, from the smallest on.
    fn names(self) -> &'static [&'static str] {
        match self {
            CronField::Month => &MONTHS,
            CronField::DayOfWeek => &WEEKDAYS,
            _ => &[],
        }
    }

    fn number(self, text: &str) -> Result<u32, CronError> {
        let (low, high) = self.bounds();
        if let Some(at) = self.names().iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(low + at as u32);
        }
        let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        match number {
            Some(number) if (low..=high).contains(&number) => Ok(number),
            Some(_) => Err(self.error(text, format!("it goes from {low} to {high}"))),
            None if text.is_empty() => Err(self.error(text, "a number is missing".into())),
            None => Err(self.error(text, self.rule_of_names(text))),
        }
    }

    fn rule_of_names(self, text: &str) -> String {
        let (low, high) = self.bounds();
        let lower = text.to_ascii_lowercase();
        // Guess "monday" and "sept" by their beginning.
        let near = self.names().iter().find(|name| lower.starts_with(**name));
        match (near, self.names()) {
            (Some(name), _) => format!("names have three letters: '{name}'"),
            (None, []) => format!("it is a number from {low} to {high}"),
            (None, [first, .., last]) => {
                format!("it is a number from {low} to {high}, or a name from {first} to {last}")
            }
            (None, [only]) => format!("it is {only}"),
        }
    }

    fn error(self, value: &str, rule: String) -> CronError {
        CronError::Field { field: self, value: value.to_owned(), rule }
    }
}

/// The values of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Values {
    /// The matching numbers; Sunday is 0.
    pub(crate) numbers: BTreeSet<u32>,
    /// Whether the field begins with `*`, even as `*/2`. If one of the two fields of days does, cron requires both to
    /// match instead of either. If the hour or minute does, cron treats it as a pattern instead of a fixed time when
    /// clocks change.
    pub(crate) starred: bool,
}

impl Values {
    pub(crate) fn parse(field: CronField, text: &str) -> Result<Values, CronError> {
        let mut numbers = BTreeSet::new();
        for part in text.split(',') {
            add(field, part, &mut numbers)?;
        }
        if field == CronField::DayOfWeek && numbers.remove(&7) {
            numbers.insert(0);
        }
        Ok(Values { numbers, starred: text.starts_with('*') })
    }
}

/// Adds the numbers of one part of a list.
fn add(field: CronField, part: &str, numbers: &mut BTreeSet<u32>) -> Result<(), CronError> {
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    let (first, last) = match range.split_once('-') {
        _ if range == "*" => field.bounds(),
        Some((first, last)) => (field.number(first)?, field.number(last)?),
        None if step.is_some() => {
            return Err(field.error(part, format!("a step needs a range before it, as in '*/{}'", step.unwrap_or("2"))));
        }
        None => {
            numbers.insert(field.number(range)?);
            return Ok(());
        }
    };
    if first > last {
        let hint = match field {
            // Saturday to Sunday, for weeks that begin on Monday.
            CronField::DayOfWeek if last == 0 => "; as the end of a range Sunday is 7",
            _ => "",
        };
        return Err(field.error(part, format!("a range goes from the smaller to the larger{hint}")));
    }
    let step = match step.map(str::parse::<usize>) {
        None => 1,
        Some(Ok(step @ 1..)) => step,
        Some(_) => return Err(field.error(part, "a step is a number above 0".into())),
    };
    numbers.extend((first..=last).step_by(step));
    Ok(())
}
