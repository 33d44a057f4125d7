//! The result page of a command that a form has run, with a link back.

use crate::console::html;
use crate::console::toolbox::Answer;
use crate::console::visit::Visit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;

/// Shows the records of an answer. The status of a failed one is 422, so that no client takes it for a success.
pub(super) async fn show(visit: &Visit, title: &str, words: &[String], answer: &Answer, back: &str) -> Response {
    let is_done = answer.exit_code == Some(0);
    let body = html! {
        (html::head(title, ""))
        @if is_done {
            div class="note ok" { (html::icon("ok")) p role="status" { (visit.say("Done.", "Fait.")) } }
        }
        (html::records(visit, &answer.records))
        @for warning in answer.warnings.iter() {
            div class="note warn" { (html::icon("warn")) p class="brk" { (warning) } }
        }
        (html::line(&visit.console.toolbox.command_line(words)))
        p { a class="btn" href=(back) { (visit.say("Back", "Retour")) } }
    };
    let status = if is_done { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    (status, html::page(visit, title, html::PageUpdates::None, body).await).into_response()
}
