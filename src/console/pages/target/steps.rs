//! The steps of a test: the completed, running and pending ones, and the host key that the user must confirm.

use super::fields::{FINGERPRINT, FieldError, error_line, error_of, hidden_address};
use crate::console::followed::Followed;
use crate::console::html;
use crate::console::visit::Visit;
use crate::record::{Check, Record};
use maud::{Markup, html};

/// The steps, in the order of the command: its word, and descriptions in English and French.
const STEPS: [(&str, &str, &str); 7] = [
    ("reach", "name and connection", "nom et connexion"),
    ("host_key", "host key", "clé d’hôte"),
    ("login", "login", "identification"),
    ("path", "folder", "dossier"),
    ("space", "space", "espace"),
    ("speed", "speed", "débit"),
    ("clock", "clock", "horloge"),
];

fn text<'c>(check: &'c Check, key: &str) -> &'c str {
    check.extra.get(key).and_then(|value| value.as_str()).unwrap_or_default()
}

/// Returns the fingerprint of the key that is waiting for confirmation.
pub(super) fn shown_key(test: &Followed) -> Option<String> {
    test.records().iter().find_map(|record| match record {
        Record::Check(check) if text(check, "host_key_state") == "unknown" => {
            Some(text(check, "fingerprint").to_owned())
        }
        _ => None,
    })
}

/// Returns a running or finished test.
pub(super) fn section(visit: &Visit, test: &Followed, errors: &[FieldError]) -> Markup {
    let records = test.records();
    let checks: Vec<&Check> = records
        .iter()
        .filter_map(|record| match record {
            Record::Check(check) => Some(check),
            _ => None,
        })
        .collect();
    let is_over = test.has_ended();
    let at = STEPS.iter().position(|(step, ..)| !checks.iter().any(|check| check.check == *step));
    let key = shown_key(test);
    html! {
        section class="sec" id="live-test" {
            div class="sechead" {
                h2 { (visit.say("Test", "Test")) }
                p class="sub" {
                    (visit.say("started ", "commencé "))
                    (visit.language.ago_seconds(test.started.elapsed().as_secs()))
                }
            }
            (verdict(visit, &checks, is_over, key.is_some()))
            ol class="checks" {
                @for (number, (step, english, french)) in STEPS.iter().enumerate() {
                    @let name = visit.language.say(english, french);
                    @match checks.iter().find(|check| check.check == *step) {
                        Some(check) if check.detail == "not tried" => (waiting(visit, name, key.is_some())),
                        Some(check) => (found(visit, test, name, check, errors)),
                        None if !is_over && at == Some(number) => li {
                            span class="st run" { (html::icon("run")) (visit.language.state("running")) }
                            span { (name) }
                            div {}
                        },
                        None => (waiting(visit, name, !is_over)),
                    }
                }
            }
            @for record in &records { @if let Record::Failure(failure) = record { (html::failed(visit, failure)) } }
            (html::line(&visit.console.toolbox.command_line(&test.words)))
            @if !is_over {
                p class="tiny" { a href="/server" { (visit.say("Refresh", "Actualiser")) } }
            }
        }
    }
}

/// Returns a step that has not been tried, because it is pending or because an earlier one failed.
fn waiting(visit: &Visit, name: &str, waits: bool) -> Markup {
    html! {
        li {
            span class="st quiet" {
                (html::icon("off"))
                @if waits { (visit.say("waiting", "en attente")) } @else { (visit.say("not tried", "non essayé")) }
            }
            span { (name) }
            div {}
        }
    }
}

/// Describes the state of the test in a sentence.
fn verdict(visit: &Visit, checks: &[&Check], is_over: bool, waits: bool) -> Markup {
    let has = |status: &str| checks.iter().any(|check| check.status == status);
    let (class, shape, sentence) = match (is_over, waits) {
        (_, true) => (
            "warn",
            "warn",
            visit.say(
                "The test waits for you: confirm the host key.",
                "Le test vous attend\u{a0}: confirmez la clé d’hôte.",
            ),
        ),
        (false, _) => ("run", "run", visit.say("The test is running.", "Le test est en cours.")),
        (true, _) if has("critical") || checks.is_empty() => (
            "crit",
            "crit",
            visit.say("A backup to this server would fail.", "Une sauvegarde vers ce serveur échouerait."),
        ),
        (true, _) if has("warning") => (
            "warn",
            "warn",
            visit.say("The server works, with a warning.", "Le serveur fonctionne, avec un avertissement."),
        ),
        _ => {
            ("ok", "ok", visit.say("A backup to this server would work.", "Une sauvegarde vers ce serveur marcherait."))
        }
    };
    html! { p class={"note " (class)} role="status" { (html::icon(shape)) span { b { (sentence) } } } }
}

fn found(visit: &Visit, test: &Followed, name: &str, check: &Check, errors: &[FieldError]) -> Markup {
    let values = |key: &str| test.form.all(&format!("k.{key}")).next().unwrap_or_default().to_owned();
    let is_to_confirm = text(check, "host_key_state") == "unknown";
    let can_be_made = check.check == "path" && check.hint.as_deref().is_some_and(|hint| hint.starts_with("kvmb init "));
    html! {
        li {
            @if is_to_confirm { span class="st warn" { (html::icon("warn")) (visit.say("confirm", "à confirmer")) } }
            @else { (html::state(visit.language, &check.status)) }
            span { (name) }
            div {
                @if is_to_confirm { (confirm(visit, test, check, errors)) }
                @else {
                    p class="brk" { (visit.language.of_command(&check.detail)) }
                    @if let Some(hint) = &check.hint { (html::hint_of(&visit.language.of_command(hint))) }
                    @if can_be_made && visit.may_change() {
                        form method="post" action="/server/init" {
                            (html::form_token(visit))
                            (hidden_address(&values))
                            button type="submit" { (visit.say("Create the repository", "Créer le dépôt")) }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the form with the unknown host key, for the user to compare.
fn confirm(visit: &Visit, test: &Followed, check: &Check, errors: &[FieldError]) -> Markup {
    let (algorithm, fingerprint) = (text(check, "algorithm"), text(check, "fingerprint"));
    let error = error_of(errors, FINGERPRINT);
    let values = |key: &str| test.form.all(&format!("k.{key}")).next().unwrap_or_default().to_owned();
    let mut words = test.words.clone();
    words.push(format!("--accept-host-key={fingerprint}"));
    html! {
        p {
            b {
                (visit.say(
                    "This host has not seen the server before. Compare its fingerprint before you log in.",
                    "Cet hôte n’a encore jamais vu ce serveur. Comparez son empreinte avant d’y entrer.",
                ))
            }
        }
        p class="sub" {
            (visit.say("Key as the server shows it: ", "Clé que montre le serveur\u{a0}: ")) code { (algorithm) }
        }
        p class="finger" { (fingerprint) }
        p class="sub" {
            (visit.say(
                "Ask whoever runs the server for the output of this command there:",
                "Demandez à l’administrateur du serveur le résultat de cette commande\u{a0}:",
            ))
        }
        (html::line("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"))
        @if visit.may_change() {
            form method="post" action="/server/trust" class="opts" {
                (html::form_token(visit))
                (hidden_address(&values))
                input type="hidden" name="shown" value=(fingerprint);
                div class="field" {
                    label for=(FINGERPRINT) {
                        (visit.say(
                            "Fingerprint that the administrator gave you",
                            "Empreinte donnée par l’administrateur",
                        ))
                    }
                    input id=(FINGERPRINT) name=(FINGERPRINT) type="text" class="mono" autocomplete="off"
                        spellcheck="false" placeholder="SHA256:…" aria-invalid=[error.map(|_| "true")]
                        aria-describedby={"fp-h" @if error.is_some() { " " (FINGERPRINT) "-e" }};
                    span class="help" id="fp-h" {
                        (visit.say(
                            "kvmb compares the two and goes on only when they are equal.",
                            "kvmb compare les deux et ne continue que si elles sont égales.",
                        ))
                    }
                    (error_line(FINGERPRINT, error))
                }
                div class="row" {
                    button type="submit" class="pri" { (visit.say("Compare and continue", "Comparer et continuer")) }
                    button type="submit" name="trust" value="seen" {
                        (visit.say("I have compared it: trust this key", "Je l’ai comparée\u{a0}: faire confiance"))
                    }
                }
            }
        }
        (html::line(&visit.console.toolbox.command_line(&words)))
    }
}
