//! Running and past jobs of this host.

pub(super) use super::launch::start;

use super::job_progress::{origin, panel, progress_words};
use super::paging::paging;
use super::{job, log};
use crate::console::html;
use crate::console::visit::{Fields, Visit};
use crate::record::Job;
use axum::Extension;
use axum::response::Html;
use maud::{Markup, html};
use std::time::Duration;

/// The number of past jobs on a page.
const PAGE: usize = 50;

/// Maximum age of the lines of an open log.
const LIVE_LOG: Duration = Duration::from_secs(2);

/// The states of past jobs that the filter offers.
const STATES: [&str; 7] = ["done", "partial", "failed", "damage", "busy", "interrupted", "lost"];

/// `GET /jobs?q=&state=`
pub(super) async fn list(Extension(visit): Extension<Visit>) -> Html<String> {
    let jobs = visit.console.toolbox.jobs().await;
    let filter = visit.query.get("q").unwrap_or_default().to_lowercase();
    let state = visit.query.get("state").unwrap_or_default();
    let is_shown = |job: &&Job| {
        let text = format!("{} {} {} {}", html::job_line(job), job.user, job.origin, job.job).to_lowercase();
        let has_words = filter.split_whitespace().all(|word| text.contains(word));
        job.status != "running" && has_words && (state.is_empty() || job.status == state)
    };
    let past: Vec<&Job> = jobs.iter().filter(is_shown).collect();
    let pages = past.len().div_ceil(PAGE).max(1);
    let page = visit.query.get("page").and_then(|page| page.parse().ok()).unwrap_or(1usize).clamp(1, pages);
    let shown = past.iter().skip((page - 1) * PAGE).take(PAGE);
    let heads = [
        visit.say("Started", "Début"),
        visit.say("Job", "Tâche"),
        visit.say("Started by", "Lancée par"),
        visit.say("Result", "Résultat"),
        visit.say("Last failure", "Dernier échec"),
    ];
    let body = html! {
        (html::head(
            visit.say("Jobs", "Tâches"),
            visit.say(
                "Running and past jobs of this host: those of the console, of cron, of systemd and of shells.",
                "Les tâches en cours et passées de cet hôte\u{a0}: de la console, de cron, de systemd et des shells.",
            ),
        ))
        section class="sec" {
            h2 { (visit.say("Running", "En cours")) }
            (running_panels(&visit, &jobs))
        }
        section class="sec" {
            div class="sechead" { h2 { (visit.say("Past", "Passées")) } (filter_form(&visit)) }
            @if past.is_empty() { p { (visit.say("None.", "Aucune.")) } }
            @else {
                (html::table(visit.say("Past jobs, newest first", "Tâches passées, les plus récentes d’abord"), &heads,
                    shown.map(|job| row(&visit, job)).collect()))
                (paging(&visit, page, pages))
            }
        }
        p { a href="/log" { (visit.say("The log of all runs", "Le journal de toutes les exécutions")) } }
        (html::command(&visit, &["jobs"]))
    };
    html::page(&visit, visit.say("Jobs", "Tâches"), html::PageUpdates::Scripts, body).await
}

fn filter_form(visit: &Visit) -> Markup {
    let state = visit.query.get("state").unwrap_or_default();
    html! {
        form method="get" class="filter row" role="search" aria-label=(visit.say("Filter", "Filtre")) {
            div class="field" {
                label for="q" { (visit.say("Filter", "Filtre")) }
                input type="search" id="q" name="q" value=(visit.query.get("q").unwrap_or_default());
            }
            div class="field" {
                label for="state" { (visit.say("Result", "Résultat")) }
                select id="state" name="state" {
                    option value="" { (visit.say("all", "tous")) }
                    @for known in STATES {
                        option value=(known) selected[known == state] { (visit.language.state(known)) }
                    }
                }
            }
            button type="submit" { (visit.say("Apply", "Appliquer")) }
        }
    }
}

fn row(visit: &Visit, job: &Job) -> Vec<Markup> {
    let language = visit.language;
    vec![
        html! {
            a href={"/jobs/" (html::segment(&job.job))} { (language.moment(job.began_at)) }
            span class="two" { (language.duration(job.duration_seconds)) }
        },
        html! { code class="brk" { (html::job_line(job)) } },
        html! { span class="brk" { (job.user) } span class="two" { (origin(visit, &job.origin)) } },
        html! { (html::state(language, &job.status)) },
        html! { span class="brk" { (job.error.as_deref().unwrap_or("-")) } },
    ]
}

fn running_panels(visit: &Visit, jobs: &[Job]) -> Markup {
    let running: Vec<&Job> = jobs.iter().filter(|job| job.status == "running").collect();
    html! {
        div id="live-jobs" class="sec" {
            @for job in &running { (panel(visit, job)) }
            @if running.is_empty() { p { (visit.say("No job is running.", "Aucune tâche en cours.")) } }
        }
    }
}

/// Returns the note about running jobs for other pages.
pub(super) async fn running_note(visit: &Visit) -> Markup {
    note(visit, &visit.console.toolbox.jobs().await)
}

fn note(visit: &Visit, jobs: &[Job]) -> Markup {
    html! {
        div id="live-note" class="sec" {
            @for job in jobs.iter().filter(|job| job.status == "running") {
                p class="note run" {
                    (html::icon("run"))
                    span class="brk" {
                        a href={"/jobs/" (html::segment(&job.job))} { (html::job_line(job)) } ": "
                        (progress_words(visit, job))
                    }
                }
            }
        }
    }
}

/// Returns the parts of a page that change while it is open: their ids and their HTML. `page` is its path with its
/// query.
pub(in crate::console) async fn live_parts(visit: &Visit, page: &str) -> Vec<(String, String)> {
    let part = |id: &str, html: Markup| vec![(id.to_owned(), html.into_string())];
    let (path, query) = page.split_once('?').unwrap_or((page, ""));
    if let Some(id) = path.strip_prefix("/jobs/") {
        return job::one(visit, id).await.map(|(_, markup)| part("live-job", markup)).unwrap_or_default();
    }
    match path {
        "/jobs" => part("live-jobs", running_panels(visit, &visit.console.toolbox.jobs().await)),
        "/log" => {
            let visit = Visit { query: Fields::parse(query), ..visit.clone() };
            part("live-log", log::lines(&visit, LIVE_LOG).await)
        }
        path if path == "/" || path == "/machines" || path.starts_with("/machines/") => {
            part("live-note", running_note(visit).await)
        }
        _ => Vec::new(),
    }
}
