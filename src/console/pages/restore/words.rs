//! Converts the wizard's form to a command line of `kvmb restore`.

use crate::console::pages::fields::FieldErrors;
use crate::console::pages::repos::Repos;
use crate::console::visit::{Fields, Visit};
use crate::record::Point;

/// Prefixes of the fields that replace a network or a bridge.
pub(super) const NETWORK: &str = "network.";
pub(super) const BRIDGE: &str = "bridge.";

/// The fields with values, and their options.
pub(super) const FIELDS: [(&str, &str); 6] = [
    ("as", "--as"),
    ("into", "--into"),
    ("folder", "--into"),
    ("with_files", "--with-files"),
    ("format", "--format"),
    ("limit_read", "--limit-read"),
];

/// Whether a form overwrites the machine, or disks of it.
pub(super) fn overwrites(form: &Fields) -> bool {
    match form.get("where") {
        Some("place" | "live") => true,
        Some("disks") => form.get("disks_into").is_none(),
        _ => false,
    }
}

/// Whether a form requests a live restore: the machine runs before its data is restored.
pub(super) fn is_live(form: &Fields) -> bool {
    form.get("where") == Some("live")
}

/// Returns the command line of a form, without the program, or the errors of the form.
pub(super) fn of_form(visit: &Visit, point: &Point, repos: &Repos, form: &Fields) -> Result<Vec<String>, FieldErrors> {
    let mut words = vec!["restore".to_owned()];
    let mut errors = FieldErrors::default();
    let mut option = |words: &mut Vec<String>, option: &str, field: &str| match form.get(field).map(str::trim) {
        Some(value) if !value.is_empty() => words.push(format!("{option}={value}")),
        _ if field == "as" => errors.add(field, visit.say("A name is needed.", "Il faut un nom.")),
        _ => errors.add(field, visit.say("A folder is needed.", "Il faut un dossier.")),
    };
    let disks: Vec<&str> = form.all("disk").filter(|disk| !disk.is_empty()).collect();
    let defines = match form.get("where") {
        Some("copy") => {
            option(&mut words, "--as", "as");
            option(&mut words, "--into", "into");
            true
        }
        Some("place") => {
            words.push("--overwrite".into());
            true
        }
        Some("live") => {
            words.extend(["--overwrite", "--live"].map(str::to_owned));
            let limit = form.get("limit_read").map(str::trim).filter(|limit| !limit.is_empty());
            words.extend(limit.map(|limit| format!("--limit-read={limit}")));
            true
        }
        Some("disks") => {
            if disks.is_empty() {
                errors.add("disk", visit.say("Tick at least one disk.", "Cochez au moins un disque."));
            }
            words.extend(disks.iter().map(|disk| format!("--disk={disk}")));
            match form.get("disks_into").map(str::trim) {
                Some(folder) => words.push(format!("--into={folder}")),
                None => words.push("--overwrite".into()),
            }
            false
        }
        Some("files") => {
            option(&mut words, "--into", "folder");
            words.push("--no-define".into());
            false
        }
        _ => {
            errors.add("where", visit.say("Choose where to restore to.", "Choisissez où restaurer."));
            false
        }
    };
    if !errors.is_empty() {
        return Err(errors);
    }
    let is_set = |field: &str| form.is_set(field);
    let is_live = is_live(form);
    words.extend((defines && is_set("start") && !is_live).then(|| "--start".to_owned()));
    words.extend(is_set("drop_missing_media").then(|| "--drop-missing-media".to_owned()));
    words.extend((overwrites(form) && is_set("discard_saved_memory")).then(|| "--discard-saved-memory".to_owned()));
    for (field, option) in [("with_files", "--with-files"), ("format", "--format")] {
        words.extend(
            form.get(field).map(str::trim).filter(|value| !value.is_empty()).map(|value| format!("{option}={value}")),
        );
    }
    for (name, new) in form.iter().filter(|(_, new)| !new.trim().is_empty()) {
        let renamed = |prefix| name.strip_prefix(prefix);
        if let Some(old) = renamed(NETWORK) {
            words.push(format!("--network={old}={}", new.trim()));
        } else if let Some(old) = renamed(BRIDGE) {
            words.push(format!("--bridge={old}={}", new.trim()));
        }
    }
    words.extend(repos.options(&point.repo));
    words.extend(["--".to_owned(), point.point.clone()]);
    Ok(words)
}

/// The missing parts that the hints of the command name, as fields of the form.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) networks: Vec<String>,
    pub(super) bridges: Vec<String>,
    pub(super) drop_missing_media: bool,
    pub(super) with_files: bool,
    pub(super) discard_saved_memory: bool,
}

impl Wanted {
    /// Extracts the missing parts from these hints.
    pub(super) fn of<'h>(hints: impl Iterator<Item = &'h str>) -> Wanted {
        let mut wanted = Wanted::default();
        for hint in hints {
            wanted.networks.extend(old_names(hint, "--network "));
            wanted.bridges.extend(old_names(hint, "--bridge "));
            wanted.drop_missing_media |= hint.contains("--drop-missing-media");
            wanted.with_files |= hint.contains("--with-files");
            wanted.discard_saved_memory |= hint.contains("--discard-saved-memory");
        }
        for names in [&mut wanted.networks, &mut wanted.bridges] {
            names.sort();
            names.dedup();
        }
        wanted
    }

    pub(super) fn is_nothing(&self) -> bool {
        *self == Wanted::default()
    }
}

/// Returns the names in `OPTION NAME=NEW`.
fn old_names(hint: &str, option: &str) -> Vec<String> {
    let pairs = hint.split(option).skip(1).filter_map(|rest| rest.split_once("=NEW"));
    pairs.map(|(name, _)| name.to_owned()).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_of_a_failed_restore_select_form_fields() {
        let wanted = Wanted::of(
            [
                "define it with 'virsh net-define', or choose another one: --network my net=NEW",
                "create it, or choose another one: --bridge br0=NEW",
                "choose another one: --bridge br0=NEW",
                "provide it, or use --drop-missing-media",
                "install it, or restore it from the point: --with-files DIR",
            ]
            .into_iter(),
        );
        assert_eq!((wanted.networks, wanted.bridges), (vec!["my net".to_owned()], vec!["br0".to_owned()]));
        assert!(wanted.drop_missing_media && wanted.with_files && !wanted.discard_saved_memory);
        assert!(Wanted::of(["run it as root"].into_iter()).is_nothing());
    }
}
