//! Serves the serial console and the screen of a drill unchanged. The path of a file comes from a record of this host,
//! never from the request.

use super::outcome::{Drilled, of_job};
use crate::console::answers::not_found;
use crate::console::pages::machine_status::machines;
use crate::console::visit::Visit;
use crate::record::Record;
use axum::Extension;
use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};

/// A kind of file that a drill has kept.
enum Piece {
    Screenshot,
    Console,
}

/// `GET /machines/NAME/drill/screenshot`
pub(in crate::console) async fn screenshot_of_machine(
    Extension(visit): Extension<Visit>,
    Path(name): Path<String>,
) -> Response {
    serve(&visit, last_of(&visit, &name).await, Piece::Screenshot).await
}

/// `GET /machines/NAME/drill/console`
pub(in crate::console) async fn console_of_machine(
    Extension(visit): Extension<Visit>,
    Path(name): Path<String>,
) -> Response {
    serve(&visit, last_of(&visit, &name).await, Piece::Console).await
}

/// `GET /jobs/ID/drills/NUMBER/screenshot`
pub(in crate::console) async fn screenshot_of_job(
    Extension(visit): Extension<Visit>,
    Path((id, number)): Path<(String, usize)>,
) -> Response {
    serve(&visit, reported_by(&visit, &id, number).await, Piece::Screenshot).await
}

/// `GET /jobs/ID/drills/NUMBER/console`
pub(in crate::console) async fn console_of_job(
    Extension(visit): Extension<Visit>,
    Path((id, number)): Path<(String, usize)>,
) -> Response {
    serve(&visit, reported_by(&visit, &id, number).await, Piece::Console).await
}

/// Returns the last drill of a machine.
pub(super) async fn last_of(visit: &Visit, name: &str) -> Option<Drilled> {
    let status = visit.console.toolbox.status(false).await;
    machines(&status.records).iter().find(|machine| machine.name() == name).and_then(Drilled::last)
}

/// Returns the drill with this number among those that a job has reported.
async fn reported_by(visit: &Visit, id: &str, number: usize) -> Option<Drilled> {
    if !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let answer = visit.console.toolbox.look_up(&["jobs", "show", id], false).await;
    let Some((Record::Job(job), printed)) = answer.records.split_first() else { return None };
    of_job(printed, job.ended_at).into_iter().nth(number)
}

async fn serve(visit: &Visit, drilled: Option<Drilled>, piece: Piece) -> Response {
    let bytes = match (&drilled, &piece) {
        (None, _) => None,
        (Some(drilled), Piece::Screenshot) => match drilled.kept_screenshot() {
            Some(kept) => kept.picture().await,
            None => None,
        },
        (Some(drilled), Piece::Console) => match drilled.kept_log() {
            Some(kept) => kept.bytes().await,
            None => None,
        },
    };
    match (bytes, piece) {
        (None, _) => not_found(visit).await,
        (Some(bytes), Piece::Screenshot) => ([(header::CONTENT_TYPE, "image/png")], bytes).into_response(),
        // Make the browser save the file instead of showing it.
        (Some(bytes), Piece::Console) => (
            [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CONTENT_DISPOSITION, "attachment; filename=\"console.log\""),
            ],
            bytes,
        )
            .into_response(),
    }
}
