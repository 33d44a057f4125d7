//! The options of `kvmb backup` as fields.

use super::fields::Form;
use crate::console::visit::{Fields, Visit};
use maud::{Markup, html};

/// The fields with values, and their options.
pub(super) const FIELDS: [(&str, &str); 16] = [
    ("freeze", "--freeze"),
    ("jobs", "--jobs"),
    ("limit_read", "--limit-read"),
    ("limit_upload", "--limit-upload"),
    ("full_every", "--full-every"),
    ("verify_sample", "--verify-sample"),
    ("audit", "--audit"),
    ("chunk_size", "--chunk-size"),
    ("compression", "--compression"),
    ("threads", "--threads"),
    ("freeze_timeout", "--freeze-timeout"),
    ("scratch", "--scratch"),
    ("copy_to", "--copy-to"),
    ("retry_for", "--retry-for"),
    ("disk", "--disk"),
    ("exclude_disk", "--exclude-disk"),
];

/// The checkboxes, and their options.
const BOXES: [(&str, &str); 1] = [("full", "--full")];

/// Choices between the configured value, yes and no.
const SWITCHES: [(&str, &str, &str); 2] = [("verify", "--verify", "--no-verify"), ("prune", "--prune", "--no-prune")];

/// Returns the command line of a form. The machines follow after `--`.
pub(super) fn words_of(form: &Fields) -> Vec<String> {
    let mut words = vec!["backup".to_owned()];
    for (field, option) in BOXES {
        words.extend(form.is_set(field).then(|| option.to_owned()));
    }
    for (field, yes, no) in SWITCHES {
        match form.get(field) {
            Some("yes" | "1") => words.push(yes.to_owned()),
            Some("no") => words.push(no.to_owned()),
            _ => {}
        }
    }
    if form.is_set("no_copy") {
        words.push("--copy-to=".to_owned());
    }
    for (field, option) in FIELDS {
        let values = form.get(field).unwrap_or_default();
        match field {
            "disk" | "exclude_disk" => {
                let disks = values.split([' ', ',']).filter(|disk| !disk.is_empty());
                words.extend(disks.map(|disk| format!("{option}={disk}")));
            }
            "copy_to" if form.is_set("no_copy") => {}
            _ if !values.is_empty() => words.push(format!("{option}={}", values.trim())),
            _ => {}
        }
    }
    words.push("--".into());
    words.extend(form.all("m").filter(|name| !name.is_empty()).map(str::to_owned));
    words
}

/// Returns the options of a backup as fields.
pub(super) fn options(visit: &Visit, form: &Form<'_>) -> Markup {
    let configured = visit.say("as configured", "selon la configuration");
    let switch = |yes, no| [("", configured), ("yes", yes), ("no", no)];
    let (yes, no) = (visit.say("yes", "oui"), visit.say("no", "non"));
    html! {
        div class="row" {
            (form.check("full", visit.say("Read every disk in full", "Lire chaque disque en entier"), "--full"))
            (form.text_at("limit", "limit_read", [
                visit.say("Read limit per second", "Limite de lecture par seconde"), "--limit-read", "200M", "",
            ]))
        }
        details open[!form.errors.is_empty()] {
            summary {
                (visit.say(
                    "More options: verify, freeze, copy, limits, disks",
                    "Autres options\u{a0}: vérification, gel, copie, limites, disques",
                ))
            }
            div class="fields" {
                div class="opts" {
                    (form.check("dry_run", visit.say(
                        "Show what would be done without doing it", "Montrer ce qui serait fait sans le faire",
                    ), "--dry-run"))
                    (form.check("no_copy", visit.say(
                        "Do not copy to the second repository", "Ne pas copier vers le deuxième dépôt",
                    ), "--copy-to="))
                }
                (form.select("verify", visit.say("Verify each new point", "Vérifier chaque nouveau point"),
                    "--verify, --no-verify", &switch(yes, no)))
                (form.select("prune", visit.say(
                    "Prune by the retention rules afterwards", "Nettoyer ensuite selon les règles de rétention",
                ), "--prune, --no-prune", &switch(yes, no)))
                (form.select("freeze", visit.say(
                    "Freeze file systems", "Figer les systèmes de fichiers",
                ), "--freeze", &[
                    ("", configured),
                    ("auto", visit.say("if the agent answers", "si l’agent répond")),
                    ("never", visit.say("never", "jamais")),
                    ("required", visit.say("always, or fail", "toujours, sinon échouer")),
                ]))
                (form.text("freeze_timeout", visit.say("Wait for the agent", "Attendre l’agent"),
                    "--freeze-timeout", "30s"))
                (form.text("disk", visit.say("Only these disks", "Seulement ces disques"), "--disk", "vda vdb"))
                (form.text("exclude_disk", visit.say("Not these disks", "Sans ces disques"), "--exclude-disk", "vdb"))
                (form.text("jobs", visit.say("Machines at the same time", "Machines à la fois"), "--jobs", "1"))
                (form.text("limit_upload", visit.say("Upload limit per second", "Limite d’envoi par seconde"),
                    "--limit-upload", "10M"))
                (form.text("copy_to", visit.say("Copy to this repository", "Copier vers ce dépôt"), "--copy-to",
                    "sftp://user@host//folder"))
                (form.text("verify_sample", visit.say(
                    "Verify a share of the repository", "Vérifier une part du dépôt",
                ), "--verify-sample", "5%"))
                (form.text("full_every", visit.say("Read in full every", "Lire en entier tous les"),
                    "--full-every", "30d"))
                (form.text("audit", visit.say("Audit of unchanged data", "Contrôle des données inchangées"),
                    "--audit", "0.1%"))
                (form.text("chunk_size", visit.say("Chunk size", "Taille des morceaux"), "--chunk-size", "1M"))
                (form.select("compression", visit.say("Compression", "Compression"), "--compression", &[
                    ("", configured),
                    ("off", visit.say("off", "aucune")),
                    ("fastest", visit.say("fastest", "la plus rapide")),
                    ("auto", visit.say("by measurement", "selon les temps mesurés")),
                    ("better", visit.say("better", "plus forte")),
                    ("max", visit.say("maximum", "maximale")),
                ]))
                (form.text("threads", visit.say("Threads that compress", "Degré de parallélisme"),
                    "--threads", "2"))
                (form.text("scratch", visit.say("Scratch folder", "Dossier temporaire"), "--scratch",
                    "/var/lib/kvmb/scratch"))
                (form.text("retry_for", visit.say("Retry a lost connection for", "Réessayer une connexion pendant"),
                    "--retry-for", "15m"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_form_becomes_arguments_with_names_after_two_hyphens() {
        let words = |form: &str| words_of(&Fields::parse(form)).join(" ");
        assert_eq!(words("m=a&m=--all&m="), "backup -- a --all");
        assert_eq!(words("m=a&full=1&verify=yes&prune=no&freeze="), "backup --full --verify --no-prune -- a");
        assert_eq!(
            words("m=a&exclude_disk=vdb%2C+vdc&limit_read=+5M+&copy_to=/x"),
            "backup --limit-read=5M --copy-to=/x --exclude-disk=vdb --exclude-disk=vdc -- a"
        );
        assert_eq!(words("m=a&copy_to=/x&no_copy=1"), "backup --copy-to= -- a");
    }
}
