//! English and French: words, numbers, sizes and dates.
//!
//! Both versions of a text stand side by side where it is used, so that neither is missed. Codes and names are never
//! translated.

use super::french::french;
use crate::record::Time;
use chrono::{Datelike, Local, Timelike};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    English,
    French,
}

use Language::{English, French};

impl Language {
    /// Returns the language with this code.
    pub(super) fn of_code(code: &str) -> Option<Language> {
        match code {
            "en" => Some(English),
            "fr" => Some(French),
            _ => None,
        }
    }

    /// Returns the preferred language from an `Accept-Language` header.
    pub(super) fn accepted(header: &str) -> Language {
        let weighed = header.split(',').filter_map(|part| {
            let (name, weight) = part.split_once(";q=").unwrap_or((part, "1"));
            let code = name.trim().split('-').next()?.to_ascii_lowercase();
            Some((Language::of_code(&code)?, weight.trim().parse::<f32>().unwrap_or(0.0)))
        });
        // The first of equal weights wins.
        let best = weighed.fold(None, |best: Option<(Language, f32)>, (language, weight)| match best {
            Some((_, heaviest)) if heaviest >= weight => best,
            _ if weight > 0.0 => Some((language, weight)),
            _ => best,
        });
        best.map_or(English, |(language, _)| language)
    }

    pub(super) fn code(self) -> &'static str {
        match self {
            English => "en",
            French => "fr",
        }
    }

    /// Returns the text in this language.
    pub(super) fn say<T>(self, english: T, french: T) -> T {
        match self {
            English => english,
            French => french,
        }
    }

    /// Translates the output of a command, as far as its texts are known.
    pub(super) fn of_command(self, text: &str) -> String {
        match self {
            English => text.to_owned(),
            French => french(text),
        }
    }

    /// Formats a size with binary units, as restic does.
    pub(super) fn bytes(self, bytes: u64) -> String {
        let units = match self {
            English => ["B", "KiB", "MiB", "GiB", "TiB", "PiB"],
            French => ["o", "Kio", "Mio", "Gio", "Tio", "Pio"],
        };
        let (mut value, mut unit) = (bytes as f64, 0);
        while value >= 1024.0 && unit + 1 < units.len() {
            (value, unit) = (value / 1024.0, unit + 1);
        }
        let number = if unit == 0 || value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") };
        match self {
            English => format!("{number} {}", units[unit]),
            French => format!("{}\u{202f}{}", number.replace('.', ","), units[unit]),
        }
    }

    /// Formats a percentage, from 0 to 100.
    pub(super) fn percent(self, percent: u64) -> String {
        self.say(format!("{percent} %"), format!("{percent}\u{202f}%"))
    }

    /// Formats a duration with its two largest units.
    pub(super) fn duration(self, seconds: f64) -> String {
        let seconds = seconds.max(0.0).round() as u64;
        let day = self.say("d", "j");
        let length = match seconds {
            0..60 => format!("{seconds} s"),
            60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
            3600..172_800 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
            _ => format!("{} {day} {} h", seconds / 86_400, seconds / 3600 % 24),
        };
        // French has a narrow space between number and unit; between the two parts there is a plain space.
        self.say(length.clone(), french_units(&length))
    }

    /// Formats a moment in the local time of the host.
    pub(super) fn moment(self, time: Time) -> String {
        let time = time.with_timezone(&Local);
        let (day, month) = (time.weekday().num_days_from_monday() as usize, time.month0() as usize);
        let clock = format!("{:02}:{:02}", time.hour(), time.minute());
        match self {
            English => {
                let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
                let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
                format!("{} {} {} {}, {clock}", days[day], time.day(), months[month], time.year())
            }
            French => {
                let days = ["lun.", "mar.", "mer.", "jeu.", "ven.", "sam.", "dim."];
                let months = [
                    "janv.", "févr.", "mars", "avril", "mai", "juin", "juil.", "août", "sept.", "oct.", "nov.", "déc.",
                ];
                let first = if time.day() == 1 { "er" } else { "" };
                format!("{} {}{first} {} {}, {clock}", days[day], time.day(), months[month], time.year())
            }
        }
    }

    /// Formats how long ago a moment was.
    pub(super) fn ago(self, time: Time) -> String {
        let seconds = (Local::now().fixed_offset() - time).num_seconds();
        self.ago_seconds(u64::try_from(seconds).unwrap_or(0))
    }

    /// Like `ago`, for a number of seconds.
    pub(super) fn ago_seconds(self, seconds: u64) -> String {
        let length = match seconds {
            0..60 => format!("{seconds} s"),
            60..3600 => format!("{} min", seconds / 60),
            3600..172_800 => format!("{} h", seconds / 3600),
            _ => format!("{} {}", seconds / 86_400, self.say("days", "jours")),
        };
        let length = self.say(length.clone(), length.replace(' ', "\u{202f}"));
        self.say(format!("{length} ago"), format!("il y a {length}"))
    }

    /// Returns the word for the state of a check, a job or a run.
    pub(super) fn state(self, word: &str) -> String {
        let french = match word {
            "ok" => "bon",
            "warning" => "attention",
            "critical" => "critique",
            "unknown" => "inconnu",
            "running" => "en cours",
            "done" => "terminé",
            "failed" => "échoué",
            "partial" => "partiel",
            "damage" | "damaged" => "endommagé",
            "busy" => "occupé",
            "interrupted" => "interrompu",
            "lost" => "perdu",
            other => other,
        };
        self.say(word.to_owned(), french.to_owned())
    }
}

/// Replaces the space between each number and its unit with a narrow one: `2 min 5 s`.
fn french_units(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    words.chunks(2).map(|pair| pair.join("\u{202f}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferred_accepted_language_is_chosen() {
        for (header, language) in [
            ("", English),
            ("fr-CH, fr;q=0.9, en;q=0.8", French),
            ("en-GB,fr;q=0.9", English),
            ("de, fr;q=0.5", French),
            ("fr;q=0, en", English),
            ("en;q=0.3, fr;q=0.7", French),
            (";;;,,q=", English),
        ] {
            assert_eq!(Language::accepted(header), language, "{header}");
        }
    }

    #[test]
    fn numbers_are_formatted_by_language() {
        assert_eq!(English.bytes(1_500_000_000), "1.4 GiB");
        assert_eq!(French.bytes(1_500_000_000), "1,4\u{202f}Gio");
        assert_eq!(English.bytes(1023), "1023 B");
        assert_eq!(French.percent(62), "62\u{202f}%");
        assert_eq!(English.duration(3725.0), "1 h 2 min");
        assert_eq!(French.duration(200_000.0), "2\u{202f}j 7\u{202f}h");
    }
}
