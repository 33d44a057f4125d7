//! The doctor: problems that would prevent backups, and how to fix them.

use crate::console::answers::redirect;
use crate::console::html;
use crate::console::visit::Visit;
use crate::record::{Check, Record};
use axum::Extension;
use axum::response::{Html, Response};
use maud::html;

/// `GET /doctor`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let answer = visit.console.toolbox.look_up(&["doctor"], visit.query.is_set("again")).await;
    let checks = answer.records.iter().filter_map(|record| match record {
        Record::Check(check) => Some(check),
        _ => None,
    });
    let (fine, mut problems): (Vec<&Check>, Vec<&Check>) = checks.partition(|check| check.status == "ok");
    // Worst first; otherwise in the order of the command.
    problems.sort_by_key(|check| match check.status.as_str() {
        "critical" => 0,
        "warning" => 1,
        _ => 2,
    });
    let (all, bad, good) = (fine.len() + problems.len(), problems.len(), fine.len());
    let sub = match bad {
        0 => visit.language.say(format!("{all} checks, no problem."), format!("{all} contrôles, aucun problème.")),
        _ => visit
            .language
            .say(format!("{all} checks, {bad} with a problem."), format!("{all} contrôles, {bad} à regarder.")),
    };
    let title = visit.say("Doctor", "Diagnostic");
    let body = html! {
        (html::head(title, &sub))
        @if visit.may_change() {
            form method="post" action="/doctor/check" class="row" {
                (html::form_token(&visit))
                button type="submit" { (visit.say("Check again", "Contrôler de nouveau")) }
            }
        }
        (html::command(&visit, &["doctor"]))
        (html::failures(&visit, &answer))
        @if bad > 0 {
            section class="sec" {
                h2 { (visit.say("To look at", "À regarder")) }
                (html::checks(&visit, problems.into_iter()))
            }
        }
        @if good > 0 {
            section class="sec" {
                h2 { (visit.say("In order", "En ordre")) }
                details open[bad == 0] {
                    summary {
                        (visit.language.say(
                            format!("{good} checks found nothing wrong"),
                            format!("{good} contrôles n’ont rien trouvé"),
                        ))
                    }
                    (html::checks(&visit, fine.into_iter()))
                }
            }
        }
        (html::age(&visit, &answer))
    };
    html::page(&visit, title, html::PageUpdates::None, body).await
}

/// `POST /doctor/check`
pub(super) async fn check(Extension(visit): Extension<Visit>) -> Response {
    visit.console.toolbox.look_up(&["doctor"], true).await;
    redirect("/doctor")
}
