//! One file a page, and which path leads to which.

mod doctor;
pub(super) mod jobs;
mod machines;
mod overview;
mod points;
mod restore;
mod results;
mod retention;
mod schedule;
mod settings;
mod target;

use super::answers::{not_found, redirect};
use super::events;
use super::visit::Visit;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};

/// All pages.
pub(super) fn router() -> Router {
    Router::new()
        .route("/", get(overview::page))
        .route("/machines", get(machines::list))
        .route("/machines/{name}", get(machines::one))
        .route("/backup", post(machines::back_up))
        .route("/selection", post(settings::select))
        .route("/points/{id}", get(points::page))
        .route("/points/verify", post(points::verify))
        .route("/points/pin", post(points::pin))
        .route("/restore", get(restore::choose))
        .route("/restore/{id}/where", get(restore::place))
        .route("/restore/{id}/review", get(restore::review))
        .route("/restore/{id}/start", post(restore::start))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(jobs::page))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/server", get(target::page))
        .route("/server/test", post(target::test))
        .route("/schedule", get(schedule::page))
        .route("/schedule/install", post(schedule::install))
        .route("/schedule/remove", post(schedule::remove))
        .route("/retention", get(retention::page))
        .route("/prune", post(retention::prune))
        .route("/settings", get(settings::page))
        .route("/settings/review", post(settings::review))
        .route("/settings/write", post(settings::write))
        .route("/doctor", get(doctor::page))
        .route("/events", get(events::stream))
        .route("/logout", post(log_out))
        .route("/style.css", get(|| asset("text/css; charset=utf-8", include_str!("../assets/style.css"))))
        .route("/console.js", get(|| asset("text/javascript; charset=utf-8", include_str!("../assets/console.js"))))
        .route("/icon.svg", get(|| asset("image/svg+xml", include_str!("../assets/icon.svg"))))
        .fallback(nothing)
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "private, max-age=60")], text).into_response()
}

async fn log_out(Extension(visit): Extension<Visit>) -> Response {
    visit.end_session();
    visit.console.announce();
    redirect("/login")
}

async fn nothing(Extension(visit): Extension<Visit>) -> Response {
    not_found(&visit).await
}
