//! The pages, one file each, and their routes.

mod backup;
mod backup_form;
mod doctor;
mod drills;
mod fields;
mod job;
mod job_progress;
pub(super) mod jobs;
mod launch;
mod log;
mod machine;
mod machine_status;
mod machine_table;
mod machines;
pub(super) mod overview;
mod paging;
mod past_runs;
mod plots;
mod point_files;
mod points;
mod repos;
mod restore;
mod results;
mod retention;
mod rules;
mod schedule;
mod selection;
mod server_address;
mod setting_words;
mod settings;
pub(super) mod target;

use super::answers::{not_found, redirect};
use super::events;
use super::visit::Visit;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};

pub(super) fn router() -> Router {
    Router::new()
        .route("/", get(overview::page))
        .route("/machines", get(machines::list))
        .route("/machines/{name}", get(machine::page))
        .route("/machines/{name}/drill", get(drills::page))
        .route("/machines/{name}/drill/screenshot", get(drills::screenshot_of_machine))
        .route("/machines/{name}/drill/console", get(drills::console_of_machine))
        .route("/backup", post(backup::start))
        .route("/drill", post(drills::start))
        .route("/machines/disks", post(selection::choose_disks))
        .route("/selection", post(selection::select))
        .route("/points/{id}", get(points::page))
        .route("/points/{id}/files", get(point_files::page))
        .route("/points/{id}/download", post(point_files::download))
        .route("/points/{id}/copy-files", post(point_files::copy))
        .route("/points/verify", post(points::actions::verify))
        .route("/points/pin", post(points::actions::pin))
        .route("/points/copy", post(points::actions::copy))
        .route("/restore", get(restore::choose))
        .route("/restore/{id}/where", get(restore::place))
        .route("/restore/{id}/review", get(restore::review))
        .route("/restore/{id}/start", post(restore::start))
        .route("/live-restores/{name}", get(restore::unfinished))
        .route("/live-restores/{name}/continue", post(restore::resume))
        .route("/live-restores/{name}/abort", post(restore::abort))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(job::page))
        .route("/jobs/{id}/again", post(job::again))
        .route("/jobs/{id}/cancel", post(job::cancel))
        .route("/jobs/{id}/drills/{number}/screenshot", get(drills::screenshot_of_job))
        .route("/jobs/{id}/drills/{number}/console", get(drills::console_of_job))
        .route("/log", get(log::page))
        .route("/server", get(target::page))
        .route("/server/test", post(target::test))
        .route("/server/trust", post(target::trust))
        .route("/server/setup", post(target::set_up))
        .route("/server/init", post(target::create))
        .route("/schedule", get(schedule::page))
        .route("/schedule/install", post(schedule::install))
        .route("/schedule/remove", post(schedule::remove))
        .route("/retention", get(retention::page))
        .route("/retention/preview", post(retention::preview))
        .route("/prune", post(retention::prune))
        .route("/settings", get(settings::page))
        .route("/settings/review", post(settings::review))
        .route("/settings/write", post(settings::write))
        .route("/doctor", get(doctor::page))
        .route("/doctor/check", post(doctor::check))
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
