//! When backups run: what is installed, and the forms that install and remove.

use super::results;
use crate::console::html;
use crate::console::visit::Visit;
use crate::record::{Action, Record, Time};
use axum::Extension;
use axum::response::{Html, Response};
use maud::{Markup, html};

/// `GET /schedule`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let again = visit.query.is_set("again");
    let answer = visit.console.toolbox.look_up(&["schedule", "show"], again).await;
    let body = html! {
        (html::head(
            visit.say("Schedule", "Planification"),
            visit.say("When backups run.", "Quand les sauvegardes ont lieu."),
        ))
        (html::failures(&visit, &answer))
        section class="sec" {
            h2 { (visit.say("Installed", "Installé")) }
            @for record in answer.records.iter() {
                @if let Record::Action(action) = record { (installed(&visit, action)) }
            }
            (html::age(&visit, &answer))
        }
        @if visit.may_change() { (install_form(&visit)) }
        (html::command(&visit, &["schedule", "show"]))
    };
    html::page(&visit, visit.say("Schedule", "Planification"), false, body).await
}

fn installed(visit: &Visit, action: &Action) -> Markup {
    let text = |key: &str| action.extra.get(key).and_then(|value| value.as_str());
    let runs = action.extra.get("next_runs").and_then(|runs| runs.as_array());
    let runs = runs.into_iter().flatten().filter_map(|run| run.as_str()?.parse::<Time>().ok());
    html! {
        div class="panel" {
            p { b class="brk" { (action.target) } " " span class="sub brk" { (action.reason) } }
            @if let Some(cron) = text("cron") {
                p { code { (cron) } }
                p { (visit.say("Next runs:", "Prochaines exécutions :")) }
                ol class="runs" { @for run in runs { li { (visit.language.moment(run)) } } }
            }
            @if let Some(command) = text("command") { (html::line(command)) }
        }
    }
}

const PLACES: [(&str, &str, &str); 3] = [
    ("", "the crontab of this user", "la crontab de cet utilisateur"),
    ("--system", "/etc/cron.d/kvmb", "/etc/cron.d/kvmb"),
    ("--systemd", "a systemd timer", "un timer systemd"),
];

fn install_form(visit: &Visit) -> Markup {
    html! {
        form method="post" action="/schedule/install" class="formend" {
            (html::form_token(visit))
            h2 { (visit.say("Install", "Installer")) }
            div class="field" {
                label for="cron" { (visit.say("When, as in crontab(5)", "Quand, comme dans crontab(5)")) }
                input id="cron" name="cron" class="w-m mono" placeholder="30 2 * * *";
                span class="help" {
                    (visit.say("Empty: backup_freq of the configuration.", "Vide : backup_freq de la configuration."))
                }
            }
            (places(visit, "install-place"))
            div class="row" {
                button type="submit" name="dry" value="1" {
                    (visit.say("Show what would be installed", "Montrer ce qui serait installé"))
                }
                button type="submit" class="pri" { (visit.say("Install", "Installer")) }
            }
        }
        form method="post" action="/schedule/remove" class="formend" {
            (html::form_token(visit))
            h2 { (visit.say("Remove", "Retirer")) }
            (places(visit, "remove-place"))
            button type="submit" { (visit.say("Remove the schedule", "Retirer la planification")) }
        }
    }
}

fn places(visit: &Visit, id: &str) -> Markup {
    html! {
        div class="field" {
            label for=(id) { (visit.say("Where", "Où")) }
            select id=(id) name="place" class="w-m" {
                @for (flag, english, french) in PLACES { option value=(flag) { (visit.language.say(english, french)) } }
            }
        }
    }
}

/// The flag of the place that a form names; nothing else gets through.
fn place(visit: &Visit) -> Option<String> {
    let wanted = visit.form.get("place")?;
    PLACES.iter().find(|(flag, ..)| *flag == wanted).map(|(flag, ..)| (*flag).to_owned())
}

/// `POST /schedule/install`
pub(super) async fn install(Extension(visit): Extension<Visit>) -> Response {
    let mut words = vec!["schedule".to_owned(), "install".to_owned()];
    words.extend(visit.form.get("cron").map(|cron| format!("--cron={}", cron.trim())));
    words.extend(place(&visit));
    words.extend(visit.form.is_set("dry").then(|| "--dry-run".to_owned()));
    let answer = visit.console.toolbox.act(&words).await;
    results::show(&visit, visit.say("Schedule", "Planification"), &words, &answer, "/schedule").await
}

/// `POST /schedule/remove`
pub(super) async fn remove(Extension(visit): Extension<Visit>) -> Response {
    let words: Vec<String> = ["schedule".to_owned(), "remove".to_owned()].into_iter().chain(place(&visit)).collect();
    let answer = visit.console.toolbox.act(&words).await;
    results::show(&visit, visit.say("Schedule", "Planification"), &words, &answer, "/schedule").await
}
