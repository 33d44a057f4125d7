//! Actions on a point: verify, pin, copy.

use super::lookup::{find, missing};
use crate::console::answers::{not_found, redirect, refused};
use crate::console::html;
use crate::console::pages::launch;
use crate::console::pages::repos::{KnownPoints, Repos};
use crate::console::visit::Visit;
use crate::record::{Point, Record};
use axum::Extension;
use axum::response::Response;

/// Returns the command line that verifies a point; `depth` is `full` or `quick`.
pub(super) fn verify_words(repos: &Repos, point: &Point, depth: &str) -> Vec<String> {
    let mut words = vec!["verify".to_owned()];
    words.extend((depth == "quick").then(|| "--quick".to_owned()));
    words.extend(repos.options(&point.repo));
    words.push(point.point.clone());
    words
}

/// Returns the command line that pins a point, or removes its pin.
pub(super) fn pin_words(repos: &Repos, point: &Point) -> Vec<String> {
    let mut words = vec!["pin".to_owned()];
    words.extend(point.pinned.then(|| "--undo".to_owned()));
    words.extend(repos.options(&point.repo));
    words.push(point.point.clone());
    words
}

/// Returns the command line that copies a point to the other repository; None if there is no other one.
pub(super) fn copy_words(repos: &Repos, point: &Point) -> Option<Vec<String>> {
    let mut words = vec!["push".to_owned()];
    words.extend(repos.copy_options(&point.repo, repos.other(&point.repo)?));
    words.push(point.point.clone());
    Some(words)
}

/// Returns the point that a form refers to.
async fn named(visit: &Visit) -> Option<(Point, KnownPoints)> {
    find(visit, visit.form.get("p")?).await
}

async fn absent(visit: &Visit) -> Response {
    missing(visit, visit.form.get("p").unwrap_or_default()).await
}

fn page_of(point: &Point) -> String {
    format!("/points/{}", html::segment(&point.point))
}

/// `POST /points/verify`
pub(in crate::console) async fn verify(Extension(visit): Extension<Visit>) -> Response {
    let Some((point, known)) = named(&visit).await else { return absent(&visit).await };
    let words = verify_words(&known.repos, &point, visit.form.get("depth").unwrap_or("full"));
    launch::start(&visit, &words, &page_of(&point)).await
}

/// `POST /points/copy`
pub(in crate::console) async fn copy(Extension(visit): Extension<Visit>) -> Response {
    let Some((point, known)) = named(&visit).await else { return absent(&visit).await };
    match copy_words(&known.repos, &point) {
        Some(words) => launch::start(&visit, &words, &page_of(&point)).await,
        None => not_found(&visit).await,
    }
}

/// `POST /points/pin`
pub(in crate::console) async fn pin(Extension(visit): Extension<Visit>) -> Response {
    let Some((mut point, known)) = named(&visit).await else { return absent(&visit).await };
    // Do what the form requested, even if the pin has changed meanwhile.
    point.pinned = visit.form.is_set("undo");
    let answer = visit.console.toolbox.act(&pin_words(&known.repos, &point)).await;
    if let Some(failure) = answer.failures().next() {
        return refused(&visit, visit.say("Not changed", "Inchangé"), &failure.error, &page_of(&point)).await;
    }
    // Pinning a point changes its id.
    let new = answer.records.iter().find_map(|record| match record {
        Record::Action(action) => Some(action.target.clone()),
        _ => None,
    });
    redirect(&new.map_or_else(|| page_of(&point), |id| format!("/points/{}", html::segment(&id))))
}
