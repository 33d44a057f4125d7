//! The installed schedule of backups, as the form shows it. Whoever changes the time of a schedule keeps its machines
//! and options.

use super::places::PLACES;
use crate::console::pages::fields::query_of;
use crate::console::toolbox::Answer;
use crate::console::visit::Fields;
use crate::record::{Action, Record};

/// Options of `schedule install` that locate the repository and its password; they have a value.
const LOCATIONS: [&str; 10] = [
    "-r",
    "--repo",
    "--password-file",
    "--ssh-password-file",
    "--cacert",
    "--tls-client-cert",
    "--limit-upload",
    "--retry-for",
    "--cache-dir",
    "--key-cache",
];

/// An installed schedule.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct InstalledBackup {
    /// The flag of its location.
    pub(super) place: &'static str,
    /// The names and globs that it lists.
    pub(super) names: Vec<String>,
    takes_all: bool,
    verify: bool,
    prune: bool,
    sample: String,
    random_delay: String,
    /// Options that the form does not have: those of `schedule install`, and those of `backup`.
    pub(super) locations: Vec<String>,
    pub(super) options: Vec<String>,
}

impl InstalledBackup {
    /// Returns the backups that are scheduled, and whether there are others whose commands were edited by hand.
    pub(super) fn all(installed: &Answer) -> (Vec<InstalledBackup>, bool) {
        let actions = installed.records.iter().filter_map(|record| match record {
            Record::Action(action) if action.extra.contains_key("backup_command") => Some(action),
            _ => None,
        });
        let (mut known, mut is_any_edited) = (Vec::new(), false);
        for action in actions {
            match InstalledBackup::of(action) {
                Some(backup) => known.push(backup),
                None => is_any_edited = true,
            }
        }
        (known, is_any_edited)
    }

    /// Parses the command of a schedule; None if `schedule install` has not written it.
    fn of(action: &Action) -> Option<InstalledBackup> {
        let place = PLACES.iter().find(|place| place.target == action.target)?.flag;
        let words = shlex::split(text(action, "backup_command")?)?;
        let start = words.iter().position(|word| word == "backup")? + 1;
        let mut rest = &words[start..];
        let mut found = InstalledBackup { place, ..InstalledBackup::default() };
        match action.extra.get("machines")? {
            serde_json::Value::Array(names) => {
                found.names = names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
                rest = rest.strip_suffix(&found.names[..])?;
            }
            machines if machines == "all" => {
                found.takes_all = true;
                rest = rest.strip_suffix(&["--all".to_owned()])?;
            }
            _ => {}
        }
        let mut words = rest.iter();
        while let Some(word) = words.next() {
            let (option, value) = match word.split_once('=').filter(|_| word.starts_with("--")) {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            match option {
                "--verify" => found.verify = true,
                "--prune" => found.prune = true,
                "--verify-sample" => found.sample = value.or_else(|| words.next().cloned())?,
                "--no-cache" => found.locations.push(word.clone()),
                _ if LOCATIONS.contains(&option) => {
                    found.locations.extend([option.to_owned(), value.or_else(|| words.next().cloned())?]);
                }
                _ => found.options.push(word.clone()),
            }
        }
        found.random_delay = text(action, "entry").and_then(random_delay).unwrap_or_default();
        Some(found)
    }

    /// Returns the fields of the form with its values.
    pub(super) fn form(&self) -> Fields {
        let machines = match (self.takes_all, self.names.is_empty()) {
            (true, _) => "all",
            (false, false) => "named",
            (false, true) => "",
        };
        let set = |is_set: bool| if is_set { "1" } else { "" };
        let fields = [
            ("machines", machines),
            ("verify", set(self.verify)),
            ("prune", set(self.prune)),
            ("sample", &self.sample),
            ("random_delay", &self.random_delay),
            ("keep", set(!self.others().is_empty())),
        ];
        Fields::parse(&query_of(fields.into_iter()))
    }

    /// Returns its options that the form does not have.
    pub(super) fn others(&self) -> Vec<String> {
        [&self.locations[..], &self.options[..]].concat()
    }
}

/// Returns the random delay of an entry of a crontab, or of the units of systemd.
fn random_delay(entry: &str) -> Option<String> {
    let digits = |mark: &str| {
        let rest = entry.split_once(mark)?.1;
        let end = rest.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(rest.len());
        (end > 0).then(|| format!("{}s", &rest[..end]))
    };
    digits("\nRandomizedDelaySec=").or_else(|| digits("shuf -i 0-"))
}

/// Returns the text of a field that only some actions have.
pub(super) fn text<'a>(action: &'a Action, key: &str) -> Option<&'a str> {
    action.extra.get(key).and_then(|value| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(machines: serde_json::Value, command: &str, entry: &str) -> Option<InstalledBackup> {
        let line = json!({"type": "action", "action": "schedule", "target": "crontab", "changed": false, "reason": "",
            "machines": machines, "backup_command": command, "entry": entry});
        match Record::parse(&line.to_string()).unwrap() {
            Record::Action(action) => InstalledBackup::of(&action),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn installed_command_becomes_the_values_of_the_form() {
        let entry = "0 2 * * * /usr/bin/sleep \"$(/usr/bin/shuf -i 0-900 -n 1)\"; /usr/bin/kvmb backup >/dev/null\n";
        let command = "/usr/bin/kvmb --config /etc/kvmb/config.json backup -r /srv/kvm --password-file=/etc/pw --prune \
                       --verify --limit-read=10M --verify-sample 5% --full-every 30d 'web*' vm1";
        let found = of(json!(["web*", "vm1"]), command, entry).unwrap();
        assert_eq!(found.names, ["web*", "vm1"]);
        assert_eq!(found.locations, ["-r", "/srv/kvm", "--password-file", "/etc/pw"]);
        assert_eq!(found.options, ["--limit-read=10M", "--full-every", "30d"]);
        let form = Fields::parse("machines=named&verify=1&prune=1&sample=5%25&random_delay=900s&keep=1");
        assert_eq!(found.form(), form);
        let found = of(json!("all"), "/usr/bin/kvmb backup --all", "").unwrap();
        assert_eq!((found.form().get("machines"), found.others().len()), (Some("all"), 0));
        assert_eq!(of(json!("selected_vms"), "kvmb backup", "").unwrap().form().get("machines"), None);
        assert_eq!(random_delay("[Timer]\nOnCalendar=*\nRandomizedDelaySec=60s\n").as_deref(), Some("60s"));
    }

    #[test]
    fn command_that_was_edited_by_hand_is_not_taken_for_an_installed_one() {
        for (machines, command) in [
            (json!("all"), "/root/backup.sh"),
            (json!("all"), "/usr/bin/kvmb backup --all --verify"),
            (json!(["vm1"]), "/usr/bin/kvmb backup vm1 --verify"),
        ] {
            assert_eq!(of(machines, command, ""), None, "{command}");
        }
    }
}
