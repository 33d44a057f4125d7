//! The output of commands in French: texts of checks, reasons of actions and words of schedules.
//!
//! A table has each text as a template, in which `{}` stands for the variable parts. Those are translated too, so that
//! `every {} at {}` needs no entry for each day of the week. A text that does not match any template stays unchanged:
//! names, codes, paths and command lines are never translated.

mod texts;

use texts::{LISTS, TEXTS};

/// Maximum nesting of texts; deeper texts do not come from kvmb.
const DEEPEST: u32 = 6;

/// Returns a command's text in French, or unchanged.
pub(super) fn french(text: &str) -> String {
    translated(text, DEEPEST).unwrap_or_else(|| text.to_owned())
}

fn translated(text: &str, depth: u32) -> Option<String> {
    if text.is_empty() || depth == 0 {
        return None;
    }
    if let Some(size) = size(text) {
        return Some(size);
    }
    let of_text = TEXTS.iter().find_map(|(english, french)| {
        let values = captures(english, text)?.into_iter();
        let values = values.map(|value| translated(value, depth - 1).unwrap_or_else(|| value.to_owned()));
        Some(filled(french, values.collect()))
    });
    let of_list = || {
        LISTS.iter().find_map(|(english, french)| {
            let values = captures(english, text)?.into_iter();
            let known = values
                .map(|value| translated(value, depth - 1).or_else(|| (!value.contains(' ')).then(|| value.to_owned())));
            Some(filled(french, known.collect::<Option<_>>()?))
        })
    };
    of_text.or_else(of_list)
}

/// Fills the placeholders of a template with these values.
fn filled(template: &str, values: Vec<String>) -> String {
    let mut values = values.into_iter();
    let mut parts = template.split("{}");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(&values.next().unwrap_or_default());
        text.push_str(part);
    }
    text
}

/// Returns the text for each `{}` of a template, if the text matches it.
fn captures<'t>(template: &str, text: &'t str) -> Option<Vec<&'t str>> {
    let mut literals = template.split("{}");
    let mut rest = text.strip_prefix(literals.next()?)?;
    let mut found = Vec::new();
    let mut literals = literals.peekable();
    while let Some(literal) = literals.next() {
        let at = match literals.peek() {
            // The last literal must be at the end of the text.
            None => rest.ends_with(literal).then(|| rest.len() - literal.len())?,
            Some(_) => rest.find(literal)?,
        };
        if at == 0 {
            return None;
        }
        found.push(&rest[..at]);
        rest = &rest[at + literal.len()..];
    }
    rest.is_empty().then_some(found)
}

/// Translates a size, a rate or a time: `1.4 GiB` becomes `1,4 Gio`.
fn size(text: &str) -> Option<String> {
    const UNITS: [(&str, &str); 9] = [
        ("B", "o"),
        ("KiB", "Kio"),
        ("MiB", "Mio"),
        ("GiB", "Gio"),
        ("TiB", "Tio"),
        ("PiB", "Pio"),
        ("s", "s"),
        ("min", "min"),
        ("h", "h"),
    ];
    let (number, unit) = text.split_once(' ')?;
    number.parse::<f64>().ok()?;
    let (unit, rate) = unit.strip_suffix("/s").map_or((unit, ""), |unit| (unit, "/s"));
    let (_, french) = UNITS.iter().find(|(english, _)| *english == unit)?;
    Some(format!("{}\u{202f}{french}{rate}", number.replace('.', ",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_output_is_translated_into_french() {
        for (english, expected) in [
            ("every night at 02:30", "chaque nuit à 02:30"),
            ("Monday to Friday at 02:30", "du lundi au vendredi à 02:30"),
            ("every Saturday and Sunday at 06:00 and 18:00", "chaque samedi et dimanche à 06:00 et 18:00"),
            ("every Tuesday, Thursday and Sunday at 02:00", "chaque mardi, jeudi et dimanche à 02:00"),
            (
                "every 6 hours at minute 20, Monday to Friday",
                "toutes les 6 heures à la minute 20, du lundi au vendredi",
            ),
            ("on day 1 of the month at 03:00 in January and July", "le 1 du mois à 03:00 en janvier et juillet"),
            ("on day 1 of the month and every Friday at 03:00", "le 1 du mois et chaque vendredi à 03:00"),
            (
                "Monday to Friday every 20 minutes from 09:00 to 17:59",
                "du lundi au vendredi, toutes les 20 minutes de 09:00 à 17:59",
            ),
            ("every hour", "chaque heure"),
            ("12.5 GiB free", "12,5\u{202f}Gio libres"),
            (
                "one connection: upload 34.1 MiB/s, download 1.2 GiB/s",
                "une connexion : envoi 34,1\u{202f}Mio/s, réception 1,2\u{202f}Gio/s",
            ),
            ("remove: no rule keeps it", "part : aucune règle ne le garde"),
            ("keep: daily, weekly (oldest of all)", "reste : quotidien, hebdomadaire (le plus ancien)"),
            ("the newest point is 5 h old", "le point le plus récent a 5\u{202f}h"),
            (
                "the newest point is 3 days old; no point has ever been verified; the last run, 2 h ago, was \
                 interrupted",
                "le point le plus récent a 3 jours\u{202f}; aucun point n’a jamais été vérifié\u{202f}; la dernière \
                 exécution, il y a 2\u{202f}h, a été interrompue",
            ),
            (
                "the last drill, 6 weeks ago: no disk has a boot loader",
                "le dernier essai de démarrage, il y a 6 semaines : aucun disque n’a de chargeur d’amorçage",
            ),
            (
                "the guest agent answered after 12.5 s (Debian GNU/Linux 12 (bookworm))",
                "l’agent invité a répondu après 12,5\u{202f}s (Debian GNU/Linux 12 (bookworm))",
            ),
            (
                "its restore of 2026-11-29 21:30 is not finished; it still reads from the repository",
                "sa restauration du 2026-11-29 21:30 n’est pas terminée\u{202f}; elle lit encore dans le dépôt",
            ),
            (
                "12.5 GiB free, full in about 1 day at the present growth of 9.0 GiB a day",
                "12,5\u{202f}Gio libres, plein dans 1 jour environ à la croissance actuelle de 9,0\u{202f}Gio par jour",
            ),
            (
                "silent: no new point of any machine for 9 days",
                "silencieux : aucun nouveau point d’aucune machine depuis 9 jours",
            ),
            (
                "run 'kvmb verify --all' to see what is affected",
                "lancez 'kvmb verify --all' pour voir ce qui est touché",
            ),
        ] {
            let expected = expected.replace(" :", "\u{a0}:");
            assert_eq!(french(english), expected, "{english}");
        }
        for other in ["", "read: x; y", "vm1", "/var/lib/kvmb/repo", "a b c", " GiB", "kvmb backup vm1", "at "] {
            assert_eq!(french(other), other);
        }
    }

    #[test]
    fn translations_keep_placeholders_and_are_unique() {
        let count = |text: &str| text.matches("{}").count();
        for (at, (english, french)) in TEXTS.iter().enumerate() {
            assert_eq!(count(english), count(french), "{english}");
            assert!(!english.starts_with("{}{}") && *english != "{}", "{english}");
            assert!(!TEXTS[..at].iter().any(|(before, _)| before == english), "{english} stands twice");
            for mark in [" :", " ;", " ?", " !", " %", "« ", " »"] {
                assert!(!french.contains(mark), "{french} has a plain blank beside punctuation");
            }
        }
    }
}
