//! What would prevent backups, and how to fix it.

use crate::console::html;
use crate::console::visit::Visit;
use crate::record::{Check, Record};
use axum::Extension;
use axum::response::Html;
use maud::html;

/// `GET /doctor`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let answer = visit.console.toolbox.look_up(&["doctor"], visit.query.is_set("again")).await;
    let mut checks: Vec<&Check> = answer
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Check(check) => Some(check),
            _ => None,
        })
        .collect();
    let problems = checks.iter().filter(|check| check.status != "ok").count();
    // Problems first; otherwise in the order of the command.
    checks.sort_by_key(|check| match check.status.as_str() {
        "critical" => 0,
        "warning" => 1,
        "ok" => 3,
        _ => 2,
    });
    let sub = match problems {
        0 => visit.say("No problem was found.", "Aucun problème.").to_owned(),
        count => visit.language.tell(format!("{count} to fix"), format!("{count} à corriger")),
    };
    let body = html! {
        (html::head(visit.say("Doctor", "Diagnostic"), &sub))
        (html::failures(&visit, &answer))
        (html::checks(&visit, checks.into_iter()))
        (html::age(&visit, &answer))
        (html::command(&visit, &["doctor"]))
    };
    html::page(&visit, visit.say("Doctor", "Diagnostic"), false, body).await
}
