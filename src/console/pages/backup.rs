//! The page that starts a backup.

use super::backup_form::{FIELDS, words_of};
use super::fields::FieldErrors;
use super::{launch, machine, machines};
use crate::console::answers::redirect;
use crate::console::html;
use crate::console::pages::results;
use crate::console::visit::Visit;
use axum::Extension;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// `POST /backup`
pub(super) async fn start(Extension(visit): Extension<Visit>) -> Response {
    let words = words_of(&visit.form);
    if words.last().is_some_and(|word| word == "--") {
        let errors = FieldErrors::one("", visit.say("Tick at least one machine.", "Cochez au moins une machine."));
        return again(&visit, &errors).await;
    }
    if let Some(job) = visit.console.toolbox.same_job(&words).await {
        return redirect(&format!("/jobs/{}", html::segment(&job)));
    }
    // Check the options with a dry run before starting a job, so that errors are shown at their fields.
    let has_options = words[1] != "--" || visit.form.is_set("dry_run");
    if has_options {
        let dry: Vec<&str> = ["backup", "--dry-run"].into_iter().chain(words[1..].iter().map(String::as_str)).collect();
        let answer = visit.console.toolbox.look_up(&dry, true).await;
        let errors = FieldErrors::of_answer(&answer, &FIELDS);
        if answer.exit_code == Some(2) && !errors.is_empty() {
            return again(&visit, &errors).await;
        }
        if visit.form.is_set("dry_run") {
            let dry: Vec<String> = dry.into_iter().map(str::to_owned).collect();
            let title = visit.say("What would be backed up", "Ce qui serait sauvegardé");
            return results::show(&visit, title, &dry, &answer, &back(&visit)).await;
        }
    }
    launch::start(&visit, &words, &back(&visit)).await
}

/// Returns the page that has the form.
fn back(visit: &Visit) -> String {
    match visit.form.get("of") {
        Some(name) => format!("/machines/{}", html::segment(name)),
        None => "/machines".to_owned(),
    }
}

/// Returns the page with the form again, with its values.
async fn again(visit: &Visit, errors: &FieldErrors) -> Response {
    let page = match visit.form.get("of") {
        Some(name) => machine::show(visit, name, errors).await,
        None => Some(machines::show(visit, errors).await),
    };
    match page {
        Some(page) => (StatusCode::UNPROCESSABLE_ENTITY, page).into_response(),
        None => crate::console::answers::not_found(visit).await,
    }
}
