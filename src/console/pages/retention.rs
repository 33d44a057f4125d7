//! Retention: which points stay, which go, and why; and prune now.

use crate::console::html;
use crate::console::pages::jobs;
use crate::console::visit::Visit;
use crate::record::{Action, Record, Time};
use axum::Extension;
use axum::response::{Html, Response};
use maud::{Markup, html};

/// `GET /retention`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let again = visit.query.is_set("again");
    let answer = visit.console.toolbox.look_up(&["prune", "--dry-run"], again).await;
    let actions: Vec<&Action> = answer
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Action(action) => Some(action),
            _ => None,
        })
        .collect();
    let points: Vec<&&Action> = actions.iter().filter(|action| action.action == "forget").collect();
    let going = points.iter().filter(|action| action.changed).count();
    let language = visit.language;
    let text = |action: &Action, key: &str| {
        action.extra.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
    };
    let row = |action: &&&Action| -> Vec<Markup> {
        let captured: Option<Time> = text(action, "captured_at").parse().ok();
        vec![
            html! { (text(action, "machine")) },
            html! { @if let Some(at) = captured { (language.moment(at)) } },
            html! {
                @if action.changed { b { (visit.say("goes", "part")) } } @else { (visit.say("stays", "reste")) }
            },
            html! { span class="brk" { (action.reason) } },
        ]
    };
    let heads = [
        visit.say("Machine", "Machine"),
        visit.say("Captured", "Capture"),
        visit.say("Decision", "Décision"),
        visit.say("Why", "Pourquoi"),
    ];
    let body = html! {
        (html::head(
            visit.say("Retention", "Rétention"),
            visit.say(
                "What the rules of the configuration keep. This is a preview: nothing is removed.",
                "Ce que gardent les règles de la configuration. Ceci est un aperçu : rien n’est supprimé.",
            ),
        ))
        (html::failures(&visit, &answer))
        p {
            (language.tell(
                format!("{going} of {} points would go. ", points.len()),
                format!("{going} points sur {} partiraient. ", points.len()),
            ))
            a href="/settings#retention" { (visit.say("Change the rules", "Changer les règles")) }
        }
        @if !points.is_empty() {
            (html::table(visit.say("Every point", "Chaque point"), &heads, points.iter().map(row).collect()))
        }
        @for action in actions.iter().filter(|action| action.action == "prune") {
            p class="sub brk" { (action.reason) }
        }
        @if going > 0 {
            (html::action(
                &visit,
                "/prune",
                &[],
                &language.tell(format!("Remove {going} points"), format!("Supprimer {going} points")),
                &["prune"],
            ))
        }
        (html::age(&visit, &answer))
        (html::command(&visit, &["prune", "--dry-run"]))
    };
    html::page(&visit, visit.say("Retention", "Rétention"), false, body).await
}

/// `POST /prune`
pub(super) async fn prune(Extension(visit): Extension<Visit>) -> Response {
    jobs::start(&visit, &["prune".to_owned()], "/retention").await
}
