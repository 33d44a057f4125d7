//! Unfinished live restores: resume or abort them.

use crate::console::answers::not_found;
use crate::console::html;
use crate::console::pages::fields::typed_name;
use crate::console::pages::launch;
use crate::console::visit::Visit;
use crate::record::{Check, Record};
use axum::Extension;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

/// The beginning of the hint of a check for one that must be resumed. While its data is being copied, nothing is
/// needed.
const CONTINUE: &str = "kvmb restore --continue";

/// Whether a check is about a live restore that somebody must resume.
pub(in crate::console) fn is_unfinished(check: &Check) -> bool {
    check.check == "restore" && check.hint.as_deref().is_some_and(|hint| hint.starts_with(CONTINUE))
}

/// Returns the check of a machine's unfinished live restore. `again` asks for the current state.
pub(in crate::console) async fn find(visit: &Visit, machine: &str, again: bool) -> Option<Check> {
    let status = visit.console.toolbox.status(again).await;
    status.records.iter().find_map(|record| match record {
        Record::Check(check) if is_unfinished(check) && check.target == machine => Some(check.clone()),
        _ => None,
    })
}

/// Returns the path of the page of an unfinished live restore.
fn path_of(machine: &str) -> String {
    format!("/live-restores/{}", html::segment(machine))
}

/// Returns the note on a machine's page about its unfinished live restore, if these records contain one.
pub(in crate::console) fn note(visit: &Visit, records: &[Record], machine: &str) -> Markup {
    let check = records.iter().find_map(|record| match record {
        Record::Check(check) if is_unfinished(check) && check.target == machine => Some(check),
        _ => None,
    });
    html! {
        @if let Some(check) = check {
            div class="note warn" {
                (html::icon("warn"))
                div { p class="brk" { (visit.language.of_command(&check.detail)) } (ways(visit, machine)) }
            }
        }
    }
}

/// Returns the options: resume with one click, or abort on a page that asks for confirmation.
pub(in crate::console) fn ways(visit: &Visit, machine: &str) -> Markup {
    html! {
        (go_on(visit, machine))
        p {
            a href=(path_of(machine)) {
                (visit.say("Abort, or read what happens", "Abandonner, ou lire ce qui se passe"))
            }
        }
    }
}

/// Describes what happens to a machine during a live restore if kvmb or this host stops.
pub(in crate::console) fn if_it_stops(visit: &Visit, machine: &str) -> Markup {
    html! {
        div class="note" {
            (html::icon("machine"))
            div {
                p class="brk" { (visit.language.say(
                    format!(
                        "{machine} runs while its data is copied, and reads the rest from the repository. If the \
                         copying stops, the machine keeps running. If this host stops, the machine cannot start until \
                         the restore is continued. What the machine has written is kept, and so are the old images \
                         until the end."
                    ),
                    format!(
                        "{machine} tourne pendant que ses données sont copiées, et lit le reste dans le dépôt. Si la \
                         copie s’arrête, la machine continue. Si cet hôte s’arrête, la machine ne démarre pas avant \
                         que la restauration soit continuée. Ce que la machine a écrit est gardé, et les anciennes \
                         images aussi, jusqu’à la fin."
                    ),
                )) }
                p {
                    (visit.say(
                        "To continue an interrupted restore:", "Pour continuer une restauration interrompue\u{a0}:",
                    ))
                }
                (html::command(visit, &["restore", "--continue", "--", machine]))
            }
        }
    }
}

fn go_on(visit: &Visit, machine: &str) -> Markup {
    html::action(
        visit,
        &format!("{}/continue", path_of(machine)),
        &[],
        visit.say("Continue the restore", "Continuer la restauration"),
        &["restore", "--continue", "--", machine],
    )
}

/// `GET /live-restores/NAME`
pub(in crate::console) async fn page(Extension(visit): Extension<Visit>, Path(name): Path<String>) -> Response {
    match find(&visit, &name, true).await {
        Some(check) => show(&visit, &check, None).await.into_response(),
        None => not_found(&visit).await,
    }
}

/// Returns the page; `error` is the error of the typed name.
async fn show(visit: &Visit, check: &Check, error: Option<&str>) -> Html<String> {
    let machine = check.target.as_str();
    let title =
        visit.language.say(format!("Unfinished restore of {machine}"), format!("Restauration inachevée de {machine}"));
    let (class, shape) = if check.status == "critical" { ("note crit", "crit") } else { ("note warn", "warn") };
    let body = html! {
        (html::head(&title, ""))
        div class=(class) { (html::icon(shape)) p class="brk" { (visit.language.of_command(&check.detail)) } }
        (if_it_stops(visit, machine))
        section class="sec" {
            h2 { (visit.say("Continue", "Continuer")) }
            p { (visit.say(
                "Starts the server of the point and the machine if they are not running. Then copies the rest.",
                "Relance le serveur du point s’il ne tourne pas, et la machine si elle est éteinte. Copie ensuite le \
                 reste.",
            )) }
            (go_on(visit, machine))
        }
        section class="sec" {
            h2 { (visit.say("Abort", "Abandonner")) }
            p { (visit.say(
                "The previous images and definition are restored. Everything that the machine has written since the \
                 restore is lost. The machine must be off.",
                "Les images et la définition d’avant la restauration reviennent. Ce que la machine a écrit depuis est \
                 perdu. La machine doit être éteinte.",
            )) }
            @if visit.may_change() {
                form method="post" action={(path_of(machine)) "/abort"} class="sec" {
                    (html::form_token(visit))
                    (typed_name(visit.say(
                        "Type the name of the machine to abort its restore: ",
                        "Tapez le nom de la machine pour abandonner sa restauration\u{a0}: ",
                    ), machine, error))
                    div class="row" {
                        button type="submit" class="danger" {
                            (visit.say("Abort the restore", "Abandonner la restauration"))
                        }
                        a class="btn" href="/" { (visit.say("Back", "Retour")) }
                    }
                }
            }
            (html::command(visit, &["restore", "--abort", "--", machine]))
        }
    };
    html::page(visit, &title, html::PageUpdates::None, body).await
}

/// `POST /live-restores/NAME/continue`
pub(in crate::console) async fn resume(Extension(visit): Extension<Visit>, Path(name): Path<String>) -> Response {
    run(&visit, &name, "--continue").await
}

/// `POST /live-restores/NAME/abort`
pub(in crate::console) async fn abort(Extension(visit): Extension<Visit>, Path(name): Path<String>) -> Response {
    let Some(check) = find(&visit, &name, true).await else { return not_found(&visit).await };
    if visit.form.get("confirm") != Some(name.as_str()) {
        let error = visit.say("This is not the name of the machine.", "Ce n’est pas le nom de la machine.");
        return (StatusCode::UNPROCESSABLE_ENTITY, show(&visit, &check, Some(error)).await).into_response();
    }
    run(&visit, &name, "--abort").await
}

async fn run(visit: &Visit, machine: &str, option: &str) -> Response {
    if find(visit, machine, true).await.is_none() {
        return not_found(visit).await;
    }
    let words = ["restore", option, "--", machine].map(str::to_owned);
    launch::start(visit, &words, &path_of(machine)).await
}
