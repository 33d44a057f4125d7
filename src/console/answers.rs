//! Responses that many pages use: redirects, not found, refused.

use super::html;
use super::visit::Visit;
use axum::http::StatusCode;
use axum::http::header::{self, HeaderValue};
use axum::response::{IntoResponse, Response};
use maud::html;

/// Redirects the browser to another page of the console.
pub(super) fn redirect(to: &str) -> Response {
    match HeaderValue::from_str(to) {
        Ok(to) => (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Returns the response for a missing page.
pub(super) async fn not_found(visit: &Visit) -> Response {
    let title = visit.say("Not found", "Introuvable");
    let body = html! {
        (html::head(title, ""))
        p { a href="/" { (visit.say("Back to the overview", "Retour à la vue d’ensemble")) } }
    };
    (StatusCode::NOT_FOUND, html::page(visit, title, html::PageUpdates::None, body).await).into_response()
}

/// Returns a page that says why nothing was done.
pub(super) async fn refused(visit: &Visit, title: &str, message: &str, back: &str) -> Response {
    let body = html! {
        (html::head(title, ""))
        div class="note crit" role="alert" { (html::icon("crit")) div { p { (message) } } }
        p { a href=(back) { (visit.say("Back", "Retour")) } }
    };
    (StatusCode::UNPROCESSABLE_ENTITY, html::page(visit, title, html::PageUpdates::None, body).await).into_response()
}
