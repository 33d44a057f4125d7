//! Looks up one point, or says why it was not found.

use crate::console::answers::not_found;
use crate::console::html;
use crate::console::pages::repos::KnownPoints;
use crate::console::visit::Visit;
use crate::record::Point;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;

/// Whether a text is a valid point id. Nothing else may be passed on to commands.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the point with this id, and all known points.
pub(in crate::console) async fn find(visit: &Visit, id: &str) -> Option<(Point, KnownPoints)> {
    if !is_id(id) {
        return None;
    }
    for again in [false, true] {
        let known = KnownPoints::of(visit, again).await;
        let found = known.newest_first().into_iter().find(|point| point.point == id).cloned();
        if let Some(point) = found {
            return Some((point, known));
        }
    }
    None
}

/// Returns the response for a point that was not found: it does not exist, or a repository cannot be read.
pub(in crate::console) async fn missing(visit: &Visit, id: &str) -> Response {
    if !is_id(id) {
        return not_found(visit).await;
    }
    let known = KnownPoints::of(visit, false).await;
    if !known.is_any_unreadable() {
        return not_found(visit).await;
    }
    let title = visit.say("The point cannot be looked up", "Le point est introuvable pour l’instant");
    let body = html! {
        (html::head(title, ""))
        (known.failures(visit))
        (known.sources(visit))
    };
    (StatusCode::SERVICE_UNAVAILABLE, html::page(visit, title, html::PageUpdates::None, body).await).into_response()
}
