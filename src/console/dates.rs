//! Names of days and months, and words for the states of machines.

use super::french::french;
use super::language::Language;
use chrono::{Datelike, Local, Month, NaiveDate};

use crate::record::Time;

impl Language {
    /// Returns the name of a month, from 1 to 12.
    fn month(self, month: u32) -> String {
        let english =
            u8::try_from(month).ok().and_then(|month| Month::try_from(month).ok()).map_or("", |month| month.name());
        match self {
            Language::English => english.to_owned(),
            Language::French => french(english),
        }
    }

    /// Returns the days of a week from Monday on: short forms and names.
    pub(super) fn week(self) -> [(&'static str, &'static str); 7] {
        match self {
            Language::English => [
                ("Mo", "Monday"),
                ("Tu", "Tuesday"),
                ("We", "Wednesday"),
                ("Th", "Thursday"),
                ("Fr", "Friday"),
                ("Sa", "Saturday"),
                ("Su", "Sunday"),
            ],
            Language::French => [
                ("lu", "lundi"),
                ("ma", "mardi"),
                ("me", "mercredi"),
                ("je", "jeudi"),
                ("ve", "vendredi"),
                ("sa", "samedi"),
                ("di", "dimanche"),
            ],
        }
    }

    /// Formats a month and its year.
    pub(super) fn month_of_year(self, year: i32, month: u32) -> String {
        format!("{} {year}", self.month(month))
    }

    /// Formats a day without its year.
    pub(super) fn day(self, day: NaiveDate) -> String {
        let first = if self == Language::French && day.day() == 1 { "er" } else { "" };
        format!("{}{first} {}", day.day(), self.month(day.month()))
    }

    pub(super) fn points(self, count: usize) -> String {
        let plural = if count == 1 || (count == 0 && self == Language::French) { "" } else { "s" };
        format!("{count} point{plural}")
    }

    pub(super) fn machines(self, count: usize) -> String {
        let plural = if count == 1 || (count == 0 && self == Language::French) { "" } else { "s" };
        format!("{count} machine{plural}")
    }

    /// Translates the state of a machine, which is given in virsh's words.
    pub(super) fn machine_state(self, word: &str) -> String {
        let (english, french) = match word {
            "running" => ("running", "en marche"),
            "shut off" => ("off", "éteinte"),
            "paused" => ("paused", "en pause"),
            "crashed" => ("crashed", "plantée"),
            other => (other, other),
        };
        self.say(english.to_owned(), french.to_owned())
    }

    /// Describes whether the guest agent of a machine responds.
    pub(super) fn agent(self, word: &str) -> String {
        let (english, french) = match word {
            "connected" => ("agent answers", "l’agent répond"),
            "disconnected" => ("agent does not answer", "l’agent ne répond pas"),
            "none" => ("no agent", "sans agent"),
            other => (other, other),
        };
        self.say(english.to_owned(), french.to_owned())
    }
}

/// Returns the day of a moment in the local time zone of this host.
pub(super) fn day_of(time: Time) -> NaiveDate {
    time.with_timezone(&Local).date_naive()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Language::{English, French};

    #[test]
    fn days_and_counts_are_formatted_by_language() {
        let day = |day| NaiveDate::from_ymd_opt(2026, 8, day).unwrap();
        assert_eq!((English.day(day(1)), French.day(day(1))), ("1 August".into(), "1er août".into()));
        assert_eq!(French.day(day(2)), "2 août");
        assert_eq!(English.month_of_year(2026, 12), "December 2026");
        assert_eq!((French.points(0), English.points(0)), ("0 point".into(), "0 points".into()));
        assert_eq!((French.points(2), English.points(1)), ("2 points".into(), "1 point".into()));
    }
}
