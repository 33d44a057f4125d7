//! The configuration: every key as a field, the change as a diff before it is written.

use super::results;
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

/// What the names of fields with values begin with.
const FIELD: &str = "k.";

/// What the names of fields with the values before begin with.
const BEFORE: &str = "b.";

/// What commands cannot be set to through a browser: what runs as root stays in the file.
fn is_fixed(key: &str) -> bool {
    key.starts_with("hooks.")
        || key.ends_with("password_command")
        || ["$schema", "hooks", "selected_vms", "ssh"].contains(&key)
}

/// The settings of an answer of `config show`.
pub(super) fn settings_of(answer: &Answer) -> Vec<Setting> {
    let settings = answer.records.iter().filter_map(|record| match record {
        Record::Setting(setting) => Some(setting.clone()),
        _ => None,
    });
    settings.collect()
}

/// A value as it stands in a field.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `GET /settings`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    show(&visit, &[]).await
}

async fn show(visit: &Visit, errors: &[(String, String)]) -> Html<String> {
    let answer = visit.console.toolbox.look_up(&["config", "show"], true).await;
    let settings = settings_of(&answer);
    let body = html! {
        (html::head(
            visit.say("Configuration", "Configuration"),
            visit.say(
                "An option takes precedence over a variable, a variable over the file, the file over the default.",
                "Une option l’emporte sur une variable, celle-ci sur le fichier, et lui sur la valeur par défaut.",
            ),
        ))
        (html::failures(visit, &answer))
        @for (key, error) in errors.iter().filter(|(key, _)| !settings.iter().any(|setting| setting.key == *key)) {
            div class="note crit" role="alert" { (html::icon("crit")) p class="brk" { (key) ": " (error) } }
        }
        (form(visit, &settings, &[], errors))
        (html::command(visit, &["config", "show"]))
    };
    html::page(visit, visit.say("Configuration", "Configuration"), false, body).await
}

/// The form for these keys, or all.
pub(super) fn form(visit: &Visit, settings: &[Setting], only: &[&str], errors: &[(String, String)]) -> Markup {
    let shown: Vec<&Setting> =
        settings.iter().filter(|setting| only.is_empty() || only.contains(&setting.key.as_str())).collect();
    let group = |setting: &&Setting| setting.key.split_once('.').map_or("", |(group, _)| group).to_owned();
    html! {
        form method="post" action="/settings/review" class="sec" {
            (html::form_token(visit))
            @for run in shown.chunk_by(|a, b| group(a) == group(b)) {
                @let name = group(&run[0]);
                fieldset class="panel" id=[(!name.is_empty()).then_some(name.as_str())] {
                    legend { @if name.is_empty() { (visit.say("General", "Général")) } @else { (name) } }
                    div class="fields" { @for setting in run { (field(visit, setting, errors)) } }
                }
            }
            @if visit.may_change() {
                div class="row" {
                    button type="submit" class="pri" { (visit.say("Review the change", "Voir le changement")) }
                }
            }
        }
    }
}

fn field(visit: &Visit, setting: &Setting, errors: &[(String, String)]) -> Markup {
    let (key, is_fixed) = (setting.key.as_str(), is_fixed(&setting.key) || !visit.may_change());
    let error = errors.iter().find(|(known, _)| known == key).map(|(_, error)| error.as_str());
    let typed = visit.form.get(&format!("{FIELD}{key}")).map(str::to_owned);
    // A default is shown as what would be there, not as a value.
    let current = if setting.source == "default" { String::new() } else { text_of(&setting.value) };
    let id = format!("f-{key}");
    html! {
        div class="field" {
            label for=(id) { code { (key) } " " span class="tag" { (source(visit, &setting.source)) } }
            @if is_fixed { code class="brk" id=(id) { (text_of(&setting.value)) } }
            @else {
                input type="hidden" name={(BEFORE) (key)} value=(current);
                input id=(id) name={(FIELD) (key)} class="mono" value=(typed.unwrap_or(current.clone()))
                    placeholder=(text_of(&setting.value)) aria-invalid=[error.map(|_| "true")]
                    aria-describedby=[error.map(|_| format!("{id}-e"))];
                @if let Some(error) = error {
                    p class="err" id={(id) "-e"} { (html::icon("crit")) span { (error) } }
                }
            }
        }
    }
}

fn source(visit: &Visit, word: &str) -> String {
    match word {
        "file" => visit.say("file", "fichier").to_owned(),
        "default" => visit.say("default", "par défaut").to_owned(),
        "flag" => visit.say("option", "option").to_owned(),
        "environment" => visit.say("variable", "variable").to_owned(),
        other => other.to_owned(),
    }
}

/// What a form changes: words of `config set`.
fn changes(visit: &Visit) -> Vec<String> {
    let mut words = Vec::new();
    for (name, value) in visit.form.iter() {
        let Some(key) = name.strip_prefix(FIELD).filter(|key| !is_fixed(key)) else { continue };
        let before = visit.form.get(&format!("{BEFORE}{key}")).unwrap_or_default();
        match value.trim() {
            same if same == before => {}
            "" => words.push(format!("--unset={key}")),
            new => words.push(format!("{key}={new}")),
        }
    }
    words
}

/// `POST /settings/review`
pub(super) async fn review(Extension(visit): Extension<Visit>) -> Response {
    let changes = changes(&visit);
    if changes.is_empty() {
        return redirect("/settings");
    }
    review_of(&visit, &changes, "/settings").await
}

/// `POST /selection`
pub(super) async fn select(Extension(visit): Extension<Visit>) -> Response {
    let value = if visit.form.get("set") == Some("true") { "true" } else { "false" };
    let names = visit.form.all("m").chain(visit.form.get("pattern")).filter(|name| !name.is_empty());
    let changes: Vec<String> = names.map(|name| format!("selected_vms.{name}={value}")).collect();
    if changes.is_empty() {
        return redirect("/machines");
    }
    review_of(&visit, &changes, "/machines").await
}

/// Shows the difference that changes make; nothing is written yet.
async fn review_of(visit: &Visit, changes: &[String], back: &str) -> Response {
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
        // The error stands at the field that it names.
        let errors: Vec<(String, String)> = answer
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
    let body = html! {
        (html::head(title, &action.target))
        @if action.changed { (html::diff(visit, text("diff"))) }
        @else { p { (visit.say("The file already says so.", "Le fichier dit déjà cela.")) } }
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
            }
        } @else { p { a class="btn" href=(back) { (visit.say("Back", "Retour")) } } }
        (html::line(&visit.console.toolbox.command_line(&words)))
    };
    html::page(visit, title, false, body).await.into_response()
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
    let back = if visit.form.get("back") == Some("/machines") { "/machines" } else { "/settings" };
    results::show(&visit, visit.say("Configuration", "Configuration"), &words, &answer, back).await
}
