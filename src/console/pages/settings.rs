//! The configuration: every key as a field, and the change as a diff before it is written.

use super::results;
use super::setting_words::{GROUPS, words};
use crate::console::answers::redirect;
use crate::console::html;
use crate::console::toolbox::Answer;
use crate::console::visit::Visit;
use crate::record::{Record, Setting};
use axum::Extension;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};
use serde_json::Value;

/// Prefix of the fields with values.
const FIELD: &str = "k.";

/// Prefix of the fields with the previous values.
const BEFORE: &str = "b.";

/// Keys that only the file may set, with all keys below and above them.
const FIXED: [&str; 4] = ["hooks", "drill.check", "drill.expect", "ssh.password_command"];

/// Whether a browser must not change a key: commands that run as root can be set only in the file.
fn is_fixed(key: &str) -> bool {
    let is_below = |key: &str, parent: &str| key.strip_prefix(parent).is_some_and(|rest| rest.starts_with('.'));
    key.ends_with("password_command")
        || ["$schema", "selected_vms", "excluded_disks"].contains(&key)
        || FIXED.iter().any(|fixed| key == *fixed || is_below(key, fixed) || is_below(fixed, key))
}

/// Returns the settings of an answer of `config show`.
pub(super) fn settings_of(answer: &Answer) -> Vec<Setting> {
    let settings = answer.records.iter().filter_map(|record| match record {
        Record::Setting(setting) => Some(setting.clone()),
        _ => None,
    });
    settings.collect()
}

/// The text of a field for an empty string; an empty field means that the key is not set.
const EMPTY: &str = "\"\"";

/// Formats a value for a field.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.is_empty() => EMPTY.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// An error, and the key to whose field it belongs.
pub(super) type FieldError = (String, String);

/// `GET /settings`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    show(&visit, &[]).await
}

async fn show(visit: &Visit, errors: &[FieldError]) -> Html<String> {
    let answer = visit.console.toolbox.look_up(&["config", "show"], true).await;
    let settings = settings_of(&answer);
    let file = settings.iter().find(|setting| setting.source == "file").and_then(|setting| setting.origin.clone());
    let body = html! {
        (html::head(
            visit.say("Configuration", "Configuration"),
            visit.say(
                "An option takes precedence over a variable, a variable over the file, the file over the default.",
                "Une option l’emporte sur une variable, celle-ci sur le fichier, et lui sur la valeur par défaut.",
            ),
        ))
        @if let Some(file) = file { p class="sub brk" { code { (file) } } }
        (html::failures(visit, &answer))
        (error_list(visit, &settings, errors))
        form method="post" action="/settings/review" class="sec" {
            (html::form_token(visit))
            @for group in GROUPS {
                @let keys = group.keys.iter().map(|words| words.key);
                @let shown: Vec<&Setting> = keys.filter_map(|key| find(&settings, key)).collect();
                @if !shown.is_empty() {
                    fieldset class="panel" id=(group.id) {
                        legend { (visit.language.say(group.english, group.french)) }
                        div class="fields" { @for setting in shown { (field(visit, setting, errors)) } }
                    }
                }
            }
            // Keys that this page does not know yet.
            @let others: Vec<&Setting> = settings.iter()
                .filter(|setting| words(&setting.key).is_none() && setting.key != "$schema").collect();
            @if !others.is_empty() {
                fieldset class="panel" id="others" {
                    legend { (visit.say("More", "Autres")) }
                    div class="fields" { @for setting in others { (field(visit, setting, errors)) } }
                }
            }
            @if visit.may_change() {
                div class="row" {
                    button type="submit" class="pri" { (visit.say("Review the change", "Voir le changement")) }
                    a class="btn" href="/settings" { (visit.say("Discard", "Abandonner")) }
                    span class="sub" {
                        (visit.say(
                            "Nothing is written before you have seen the change.",
                            "Rien n’est écrit avant que vous ayez vu le changement.",
                        ))
                    }
                }
            }
        }
        (html::command(visit, &["config", "show", "--all"]))
    };
    html::page(visit, visit.say("Configuration", "Configuration"), html::PageUpdates::None, body).await
}

/// Returns the setting with this key.
pub(super) fn find<'s>(settings: &'s [Setting], key: &str) -> Option<&'s Setting> {
    settings.iter().find(|setting| setting.key == key)
}

/// Returns the errors, each with a link to its field.
fn error_list(visit: &Visit, settings: &[Setting], errors: &[FieldError]) -> Markup {
    html! {
        @if !errors.is_empty() {
            div class="note crit" role="alert" {
                (html::icon("crit"))
                div {
                    p { b { (visit.say("Nothing was written.", "Rien n’a été écrit.")) } }
                    ul class="errs" {
                        @for (key, error) in errors {
                            li class="brk" {
                                @if find(settings, key).is_some() { a href={"#f-" (key)} { (key) } ": " (error) }
                                @else { (error) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the field of a key: its names, its value and where that comes from, its description, and its errors.
pub(super) fn field(visit: &Visit, setting: &Setting, errors: &[FieldError]) -> Markup {
    let (key, is_fixed) = (setting.key.as_str(), is_fixed(&setting.key) || !visit.may_change());
    let error = errors.iter().find(|(known, _)| known == key).map(|(_, error)| error.as_str());
    let typed = visit.form.all(&format!("{FIELD}{key}")).next().map(str::to_owned);
    // A default is shown as a placeholder, not as a value.
    let current = if setting.source == "default" { String::new() } else { text_of(&setting.value) };
    let shown = typed.unwrap_or_else(|| current.clone());
    let (known, id) = (words(key), format!("f-{key}"));
    let english = setting.schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let help = known.and_then(|words| words.help(visit.language)).unwrap_or(english);
    let (choices, name) = (choices(&setting.schema), format!("{FIELD}{key}"));
    let described = match error {
        Some(_) => format!("{id}-h {id}-e"),
        None => format!("{id}-h"),
    };
    let invalid = error.map(|_| "true");
    html! {
        div class="field" {
            @let label = known.map_or(key, |words| words.name(visit.language));
            @if is_fixed { span class="lbl" { (label) } } @else { label for=(id) { (label) } }
            span class="help" { code { (key) } " " span class="tag" { (source(visit, setting)) } }
            @if is_fixed { code class="brk" id=(id) { (text_of(&setting.value)) } }
            @else {
                input type="hidden" name={(BEFORE) (key)} value=(current);
                @if choices.is_empty() {
                    input id=(id) name=(name) type="text" class={"mono" @if is_number(&setting.schema) { " w-s" }}
                        value=(shown) placeholder=(text_of(&setting.value)) autocomplete="off" spellcheck="false"
                        inputmode=[is_number(&setting.schema).then_some("numeric")]
                        aria-invalid=[invalid] aria-describedby=(described);
                } @else {
                    select id=(id) name=(name) class="w-m" aria-invalid=[invalid] aria-describedby=(described) {
                        option value="" selected[shown.is_empty()] {
                            (visit.say("default", "par défaut"))
                            @if setting.source == "default" && !setting.value.is_null() {
                                " (" (choice(visit, &text_of(&setting.value))) ")"
                            }
                        }
                        @for value in &choices {
                            option value=(value) selected[shown == *value] { (choice(visit, value)) }
                        }
                    }
                }
            }
            span class="help" id={(id) "-h"} { (help) }
            @if let Some(error) = error {
                p class="err" id={(id) "-e"} { (html::icon("crit")) span class="brk" { (error) } }
            }
        }
    }
}

/// Returns the values of a key that has only a few.
fn choices(schema: &Value) -> Vec<String> {
    let has_type = |wanted: &str| match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == wanted),
        kind => kind.is_some_and(|kind| kind == wanted),
    };
    if has_type("boolean") {
        return vec!["true".into(), "false".into()];
    }
    let parts = ["anyOf", "oneOf"].iter().filter_map(|kind| schema.get(kind)?.as_array()).flatten();
    let mut values = Vec::new();
    for part in parts {
        match part.get("const").and_then(Value::as_str) {
            Some(value) => values.push(value.to_owned()),
            None if part.get("type").is_some_and(|kind| kind == "null") => {}
            None if part.get("oneOf").is_some() => values.extend(choices(part)),
            // A value that must be typed.
            None => return Vec::new(),
        }
    }
    values
}

fn is_number(schema: &Value) -> bool {
    let is = |schema: &Value| match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "integer"),
        kind => kind.is_some_and(|kind| kind == "integer"),
    };
    is(schema) || schema.get("anyOf").and_then(Value::as_array).is_some_and(|parts| parts.iter().any(is))
}

fn choice(visit: &Visit, value: &str) -> String {
    match value {
        "true" => visit.say("yes", "oui").to_owned(),
        "false" => visit.say("no", "non").to_owned(),
        other => other.to_owned(),
    }
}

fn source(visit: &Visit, setting: &Setting) -> String {
    let origin = setting.origin.as_deref().unwrap_or_default();
    match setting.source.as_str() {
        "file" => visit.say("file", "fichier").to_owned(),
        "default" => visit.say("default", "par défaut").to_owned(),
        "flag" => format!("{} {origin}", visit.say("option", "option")),
        "environment" => format!("{} {origin}", visit.say("variable", "variable")),
        other => other.to_owned(),
    }
}

/// Returns the changes of a form, as words of `config set`.
fn changes(visit: &Visit) -> Vec<String> {
    let mut words = Vec::new();
    for (name, value) in visit.form.iter() {
        let Some(key) = name.strip_prefix(FIELD).filter(|key| !is_fixed(key)) else { continue };
        let before = visit.form.get(&format!("{BEFORE}{key}")).unwrap_or_default();
        match value.trim() {
            same if same == before => {}
            "" => words.push(format!("--unset={key}")),
            EMPTY => words.push(format!("{key}=")),
            new => words.push(format!("{key}={new}")),
        }
    }
    words
}

/// Returns the page that a form came from.
fn back_of(visit: &Visit) -> &str {
    let known = ["/machines", "/server", "/retention", "/schedule"];
    let is_known = |back: &&str| known.contains(back) || back.starts_with("/machines/");
    visit.form.get("back").filter(is_known).unwrap_or("/settings")
}

/// `POST /settings/review`
pub(super) async fn review(Extension(visit): Extension<Visit>) -> Response {
    let changes = changes(&visit);
    let back = back_of(&visit);
    if changes.is_empty() {
        return redirect(back);
    }
    review_of(&visit, &changes, back).await
}

/// Shows the diff of the changes; nothing is written yet.
pub(super) async fn review_of(visit: &Visit, changes: &[String], back: &str) -> Response {
    let (unset, set): (Vec<String>, Vec<String>) =
        changes.iter().cloned().partition(|word| word.starts_with("--unset="));
    let mut words = vec!["config".to_owned(), "set".to_owned()];
    words.extend(unset);
    if !set.is_empty() {
        words.push("--".into());
        words.extend(set);
    }
    let dry: Vec<&str> =
        ["config", "set", "--dry-run"].into_iter().chain(words[2..].iter().map(String::as_str)).collect();
    let answer = visit.console.toolbox.look_up(&dry, true).await;
    let action = answer.records.iter().find_map(|record| match record {
        Record::Action(action) => Some(action),
        _ => None,
    });
    let Some(action) = action else {
        // Show the error at the field that it names.
        let errors: Vec<FieldError> = answer
            .failures()
            .map(|failure| {
                let key = failure.error.split('"').nth(1).unwrap_or_default().to_owned();
                (key, failure.error.clone())
            })
            .collect();
        return (StatusCode::UNPROCESSABLE_ENTITY, show(visit, &errors).await).into_response();
    };
    let text = |key: &str| action.extra.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    let title = visit.say("Review the change", "Vérifier le changement");
    let count = changes.len();
    let sub = visit.language.say(
        format!("{count} {} of {}", if count == 1 { "key" } else { "keys" }, action.target),
        format!("{count} {} de {}", if count == 1 { "clé" } else { "clés" }, action.target),
    );
    let body = html! {
        (html::head(title, &sub))
        @if action.changed { (html::diff(visit, text("diff"))) }
        @else { p { (visit.say("The file already has these values.", "Le fichier dit déjà cela.")) } }
        @if action.changed && visit.may_change() {
            form method="post" action="/settings/write" class="sec" {
                (html::form_token(visit))
                input type="hidden" name="sha256" value=(text("file_sha256"));
                input type="hidden" name="back" value=(back);
                @for word in &words[2..] { input type="hidden" name="word" value=(word); }
                div class="row" {
                    button type="submit" class="pri" { (visit.say("Write the file", "Écrire le fichier")) }
                    a class="btn" href=(back) { (visit.say("Back", "Retour")) }
                }
                p class="help" {
                    (visit.say(
                        "The file is replaced as a whole. If somebody has changed it since this page was made, \
                         nothing is written.",
                        "Le fichier est remplacé d’un coup. Si quelqu’un l’a changé depuis cette page, rien n’est \
                         écrit.",
                    ))
                }
            }
        } @else { p { a class="btn" href=(back) { (visit.say("Back", "Retour")) } } }
        (html::line(&visit.console.toolbox.command_line(&words)))
    };
    html::page(visit, title, html::PageUpdates::None, body).await.into_response()
}

/// `POST /settings/write`
pub(super) async fn write(Extension(visit): Extension<Visit>) -> Response {
    let given: Vec<String> = visit.form.all("word").map(str::to_owned).collect();
    let is_allowed = |word: &String| match word.strip_prefix("--unset=") {
        Some(key) => !is_fixed(key),
        None if word == "--" => true,
        None => word.split_once('=').is_some_and(|(key, _)| !key.starts_with('-') && !is_fixed(key)),
    };
    if given.is_empty() || !given.iter().all(is_allowed) {
        return redirect("/settings");
    }
    let sum = visit.form.get("sha256").unwrap_or_default();
    let mut words = vec!["config".to_owned(), "set".to_owned(), format!("--if-sha256={sum}")];
    words.extend(given);
    let answer = visit.console.toolbox.act(&words).await;
    results::show(&visit, visit.say("Configuration", "Configuration"), &words, &answer, back_of(&visit)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_commands_cannot_be_set_through_keys_above_or_below() {
        for key in ["hooks", "hooks.after_run", "drill", "drill.check", "drill.check.vm1", "ssh", "password_command"] {
            assert!(is_fixed(key), "{key}");
        }
        for key in ["drill.until", "ssh.port", "selected_vms.hooks", "excluded_disks.vm1", "jobs", "drill_check"] {
            assert!(!is_fixed(key), "{key}");
        }
    }
}
