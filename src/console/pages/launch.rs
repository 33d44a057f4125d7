//! Starts jobs.

use crate::console::answers::redirect;
use crate::console::html;
use crate::console::visit::Visit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;

/// Starts a command as a job, and redirects to its page. If the same command is already running, redirects to that job.
pub(super) async fn start(visit: &Visit, words: &[String], back: &str) -> Response {
    match visit.console.toolbox.start(words).await {
        Ok(job) => redirect(&format!("/jobs/{}", html::segment(&job))),
        Err(answer) => {
            let title = visit.say("Not started", "Non lancée");
            let body = html! {
                (html::head(title, ""))
                (html::records(visit, &answer.records))
                (html::line(&visit.console.toolbox.command_line(words)))
                p { a class="btn" href=(back) { (visit.say("Back", "Retour")) } }
            };
            let page = html::page(visit, title, html::PageUpdates::None, body).await;
            (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
        }
    }
}
