//! Changes of the rules that select machines and disks. Each change is shown before it is written.

use super::fields::FieldErrors;
use super::settings::review_of;
use super::{machine, machines};
use crate::console::answers::{not_found, redirect};
use crate::console::html;
use crate::console::visit::Visit;
use axum::Extension;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

/// `POST /selection`: rules for machines.
pub(super) async fn select(Extension(visit): Extension<Visit>) -> Response {
    if let Some(pattern) = visit.form.get("pattern").filter(|_| visit.form.is_set("preview")) {
        return redirect(&format!("/machines?pattern={}#rules", html::segment(pattern)));
    }
    let value = if visit.form.get("set") == Some("true") { "true" } else { "false" };
    let names = visit.form.all("m").chain(visit.form.get("pattern")).filter(|name| !name.is_empty());
    let mut changes: Vec<String> = match visit.form.is_set("set") {
        true => names.map(|name| format!("selected_vms.{name}={value}")).collect(),
        false => Vec::new(),
    };
    changes.extend(visit.form.get("unset").map(|name| format!("--unset=selected_vms.{name}")));
    if changes.is_empty() {
        let sentence = visit.say("Tick a machine, or type a pattern.", "Cochez une machine, ou tapez un motif.");
        let field = if visit.form.is_set("of") { "" } else { "pattern" };
        return with_errors(&visit, &FieldErrors::one(field, sentence)).await;
    }
    propose(&visit, &changes, "pattern").await
}

/// `POST /machines/disks`: the disks of one machine.
pub(super) async fn choose_disks(Extension(visit): Extension<Visit>) -> Response {
    let Some(machine) = visit.form.get("of").map(str::to_owned) else { return not_found(&visit).await };
    let chosen: Vec<&str> = visit.form.all("d").collect();
    let excluded: Vec<&str> = visit.form.all("all").filter(|disk| !chosen.contains(disk)).collect();
    let change = match excluded.is_empty() {
        true => format!("--unset=excluded_disks.{machine}"),
        false => format!("excluded_disks.{machine}={}", Value::from(excluded)),
    };
    propose(&visit, &[change], "").await
}

/// Shows the change of the file; errors are shown at the field.
async fn propose(visit: &Visit, changes: &[String], field: &str) -> Response {
    let (unset, set): (Vec<&String>, Vec<&String>) = changes.iter().partition(|word| word.starts_with("--unset="));
    let dry = ["config", "set", "--dry-run"].into_iter().chain(unset.into_iter().map(String::as_str));
    let dry: Vec<&str> = match set.is_empty() {
        true => dry.collect(),
        false => dry.chain(["--"]).chain(set.into_iter().map(String::as_str)).collect(),
    };
    let answer = visit.console.toolbox.look_up(&dry, true).await;
    let mut errors = FieldErrors::default();
    answer.failures().for_each(|failure| errors.add(field, failure.error.clone()));
    if !errors.is_empty() {
        return with_errors(visit, &errors).await;
    }
    let back = match visit.form.get("of") {
        Some(name) => format!("/machines/{}", html::segment(name)),
        None => "/machines".to_owned(),
    };
    review_of(visit, changes, &back).await
}

async fn with_errors(visit: &Visit, errors: &FieldErrors) -> Response {
    let page = match visit.form.get("of") {
        Some(name) => machine::show(visit, name, errors).await,
        None => Some(machines::show(visit, errors).await),
    };
    match page {
        Some(page) => (StatusCode::UNPROCESSABLE_ENTITY, page).into_response(),
        None => redirect("/machines"),
    }
}
