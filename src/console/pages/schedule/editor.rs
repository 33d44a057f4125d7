//! The editor of a cron expression: common schedules for people who do not know cron, and the five fields.

use crate::console::html;
use crate::console::toolbox::Answer;
use crate::console::visit::{Fields, Visit};
use maud::{Markup, html};

/// The fields of an expression: form field, English and French name, and the name in error messages.
const FIELDS: [(&str, &str, &str, &str); 5] = [
    ("minute", "Minute", "Minute", "minute"),
    ("hour", "Hour", "Heure", "hour"),
    ("day", "Day", "Jour", "day of the month"),
    ("month", "Month", "Mois", "month"),
    ("weekday", "Weekday", "Jour de semaine", "day of the week"),
];

/// Common schedules, as links.
const COMMON: [(&str, &str, &str); 5] = [
    ("0 2 * * *", "Every night", "Chaque nuit"),
    ("30 2 * * 1-5", "Weekdays", "Jours ouvrés"),
    ("0 2 * * 0", "Sundays", "Le dimanche"),
    ("0 */6 * * *", "Every 6 hours", "Toutes les 6 heures"),
    ("@hourly", "Every hour", "Chaque heure"),
];

const WEEKDAYS: [(&str, &str, &str); 7] = [
    ("1", "Monday", "lundi"),
    ("2", "Tuesday", "mardi"),
    ("3", "Wednesday", "mercredi"),
    ("4", "Thursday", "jeudi"),
    ("5", "Friday", "vendredi"),
    ("6", "Saturday", "samedi"),
    ("0", "Sunday", "dimanche"),
];

/// Returns the expression of the editor's fields; None if there are none.
pub(super) fn expression(fields: &Fields) -> Option<String> {
    if let Some(cron) = fields.get("cron") {
        return Some(cron.trim().to_owned());
    }
    let text = |name: &str, default: &str| fields.get(name).map_or(default, str::trim).to_owned();
    let time = text("time", "02:00");
    // Anything that is not a time is left for cron's parser to refuse.
    let (hour, minute) = time.split_once(':').unwrap_or((&time, "0"));
    let number = |text: &str| text.parse::<u32>().map_or_else(|_| text.to_owned(), |number| number.to_string());
    let clock = format!("{} {}", number(minute), number(hour));
    match fields.get("rhythm")? {
        "daily" => Some(format!("{clock} * * *")),
        "working" => Some(format!("{clock} * * 1-5")),
        "weekly" => Some(format!("{clock} * * {}", text("on", "0"))),
        "monthly" => Some(format!("{clock} {} * *", text("date", "1"))),
        "hours" => Some(format!("0 */{} * * *", text("hours", "6"))),
        _ => Some(FIELDS.map(|(name, ..)| text(name, "*")).join(" ")),
    }
}

/// Returns the editor with an expression and its errors.
pub(super) fn form(visit: &Visit, cron: &str, described: &Answer) -> Markup {
    let words: Vec<&str> = cron.split_whitespace().collect();
    let values: [&str; 5] = match words[..] {
        [minute, hour, day, month, weekday] => [minute, hour, day, month, weekday],
        _ => ["", "", "", "", ""],
    };
    let error = described.failures().next().map(|failure| {
        let error = failure.error.rsplit_once("': invalid ").map(|(_, rest)| format!("invalid {rest}"));
        error.unwrap_or_else(|| failure.error.rsplit_once("]': ").map_or(&*failure.error, |(_, rest)| rest).to_owned())
    });
    let is_wrong = |name: &str| error.as_deref().is_some_and(|error| error.starts_with(&format!("invalid {name} ")));
    let rhythm = visit.query.get("rhythm").unwrap_or("cron");
    let time = visit.query.get("time").unwrap_or("02:00");
    let choice = |value: &str, words: (&'static str, &'static str), more: Markup| {
        html! {
            div class="choice" {
                label {
                    input type="radio" name="rhythm" value=(value) checked[rhythm == value];
                    span { (visit.language.say(words.0, words.1)) }
                }
                @if !more.0.is_empty() { div class="more row" { (more) } }
            }
        }
    };
    html! {
        nav class="tabs" aria-label=(visit.say("Common times", "Moments courants")) {
            @for (expression, english, french) in COMMON {
                a href={"/schedule?cron=" (html::segment(expression))}
                    aria-current=[(expression == cron).then_some("true")] { (visit.language.say(english, french)) }
            }
        }
        form method="get" action="/schedule" class="sec" {
            fieldset class="opts" {
                legend { (visit.say("How often", "À quel rythme")) }
                (choice("daily", ("every day", "chaque jour"), html! {}))
                (choice("working", ("Monday to Friday", "du lundi au vendredi"), html! {}))
                (choice("weekly", ("once a week", "une fois par semaine"), html! {
                    label for="on" { (visit.say("on", "le")) }
                    select id="on" name="on" class="w-m" {
                        @for (value, english, french) in WEEKDAYS {
                            option value=(value) selected[visit.query.get("on").unwrap_or("0") == value] {
                                (visit.language.say(english, french))
                            }
                        }
                    }
                }))
                (choice("monthly", ("once a month", "une fois par mois"), html! {
                    label for="date" { (visit.say("on day", "le")) }
                    input id="date" name="date" type="number" min="1" max="28" class="w-s"
                        value=(visit.query.get("date").unwrap_or("1"));
                }))
                (choice("hours", ("several times a day", "plusieurs fois par jour"), html! {
                    label for="hours" { (visit.say("every", "toutes les")) }
                    select id="hours" name="hours" class="w-s" {
                        @for hours in ["1", "2", "3", "4", "6", "8", "12"] {
                            option value=(hours) selected[visit.query.get("hours").unwrap_or("6") == hours] {
                                (hours) " h"
                            }
                        }
                    }
                }))
                (choice("cron", ("as in crontab(5)", "comme dans crontab(5)"), html! {
                    div class="cron" {
                        @for ((name, english, french, word), value) in FIELDS.iter().zip(values) {
                            div class="field" {
                                label for=(name) { (visit.language.say(english, french)) }
                                input id=(name) name=(name) type="text" value=(value) placeholder="*"
                                    autocomplete="off" aria-invalid=[is_wrong(word).then_some("true")]
                                    aria-describedby=[is_wrong(word).then_some("cron-e")];
                            }
                        }
                    }
                }))
            }
            div class="field" {
                label for="time" { (visit.say("Time of day", "Heure")) }
                input id="time" name="time" type="time" class="w-m" value=(time);
                span class="help" {
                    (visit.say(
                        "for daily, weekly and monthly schedules; in the time zone of this host",
                        "pour les rythmes par jour, semaine et mois\u{202f}; à l’heure de cet hôte",
                    ))
                }
            }
            @if let Some(error) = &error {
                p class="err" id="cron-e" role="alert" {
                    (html::icon("crit"))
                    span class="brk" { code { (cron) } ": " (visit.language.of_command(error)) }
                }
            }
            div class="row" {
                button type="submit" { (visit.say("Show words and next runs", "Montrer le sens et les exécutions")) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_choices_become_cron_expressions() {
        for (query, expected) in [
            ("", None),
            ("again=1", None),
            ("cron=@daily", Some("@daily")),
            ("rhythm=daily&time=02:30", Some("30 2 * * *")),
            ("rhythm=working&time=00:05", Some("5 0 * * 1-5")),
            ("rhythm=weekly&time=23:00&on=6", Some("0 23 * * 6")),
            ("rhythm=monthly&date=15", Some("0 2 15 * *")),
            ("rhythm=hours&hours=4", Some("0 */4 * * *")),
            ("rhythm=cron&minute=*/5&hour=&day=&month=1&weekday=mon", Some("*/5 * * 1 mon")),
            ("rhythm=daily&time=x", Some("0 x * * *")),
        ] {
            assert_eq!(expression(&Fields::parse(query)).as_deref(), expected, "{query}");
        }
    }
}
