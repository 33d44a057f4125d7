//! Running and past jobs of this host, and one of them.

use crate::console::answers::{not_found, redirect, refused};
use crate::console::html;
use crate::console::visit::Visit;
use crate::record::{Job, Record};
use axum::Extension;
use axum::extract::Path;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

/// So many past jobs are listed.
const MOST_PAST: usize = 100;

/// `GET /jobs`
pub(super) async fn list(Extension(visit): Extension<Visit>) -> Html<String> {
    let (jobs, language) = (visit.console.toolbox.jobs().await, visit.language);
    let past: Vec<&Job> = jobs.iter().filter(|job| job.status != "running").take(MOST_PAST).collect();
    let row = |job: &&Job| {
        vec![
            html! {
                a href={"/jobs/" (html::segment(&job.job))} { (language.moment(job.began_at)) }
                span class="two" { (language.duration(job.duration_seconds)) }
            },
            html! { code class="brk" { (html::job_line(job)) } },
            html! { (job.user) span class="two" { (origin(&visit, &job.origin)) } },
            html! { (html::state(language, &job.status)) },
            html! { span class="brk" { (job.error.as_deref().unwrap_or("-")) } },
        ]
    };
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
                "Les tâches en cours et passées de cet hôte : de la console, de cron, de systemd et des shells.",
            ),
        ))
        section class="sec" {
            h2 { (visit.say("Running", "En cours")) }
            (running_panels(&visit, &jobs))
        }
        section class="sec" {
            h2 { (visit.say("Past", "Passées")) }
            @if past.is_empty() { p { (visit.say("None yet.", "Aucune.")) } }
            @else { (html::table(visit.say("Past jobs, newest first", "Tâches passées, les plus récentes d’abord"),
                &heads, past.iter().map(row).collect())) }
        }
        (html::command(&visit, &["jobs"]))
    };
    html::page(&visit, visit.say("Jobs", "Tâches"), true, body).await
}

fn origin(visit: &Visit, origin: &str) -> String {
    match origin {
        "console" => visit.say("console", "console").to_owned(),
        "shell" => visit.say("shell", "shell").to_owned(),
        other => other.to_owned(),
    }
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

/// What the overview says of running jobs.
pub(super) async fn running_note(visit: &Visit) -> Markup {
    note(visit, &visit.console.toolbox.jobs().await)
}

fn note(visit: &Visit, jobs: &[Job]) -> Markup {
    html! {
        div id="live-note" class="sec" {
            @for job in jobs.iter().filter(|job| job.status == "running") {
                p class="note run" {
                    (html::icon("run"))
                    span {
                        a href={"/jobs/" (html::segment(&job.job))} { (html::job_line(job)) } ": "
                        (progress_words(visit, job))
                    }
                }
            }
        }
    }
}

/// How far a job has come, in words.
fn progress_words(visit: &Visit, job: &Job) -> String {
    let language = visit.language;
    if job.total_bytes == 0 {
        return visit.say("preparing", "préparation").to_owned();
    }
    let percent = html::percent(job.done_bytes, job.total_bytes);
    let (done, total) = (language.bytes(job.done_bytes), language.bytes(job.total_bytes));
    let mut words = language.tell(
        format!("{} of {total} ({done} done)", language.percent(percent)),
        format!("{} de {total} ({done} faits)", language.percent(percent)),
    );
    if let Some(rate) = job.bytes_per_second.filter(|rate| *rate >= 1.0) {
        words += &format!(", {}/s", language.bytes(rate as u64));
    }
    if let Some(left) = job.left_seconds {
        let left = language.duration(left);
        words += &language.tell(format!(", about {left} left"), format!(", encore environ {left}"));
    }
    words
}

fn panel(visit: &Visit, job: &Job) -> Markup {
    let language = visit.language;
    let percent = html::percent(job.done_bytes, job.total_bytes).to_string();
    html! {
        div class="panel" {
            div class="jobline" {
                div {
                    h3 { (html::icon("run")) " " a href={"/jobs/" (html::segment(&job.job))} { (html::job_line(job)) } }
                    p class="sub" {
                        (progress_words(visit, job)) ". "
                        (language.tell(
                            format!("Started {} by {} ({}).", language.moment(job.began_at), job.user, job.origin),
                            format!("Lancée {} par {} ({}).", language.moment(job.began_at), job.user, job.origin),
                        ))
                    }
                }
                @if visit.may_change() {
                    form method="post" action={"/jobs/" (html::segment(&job.job)) "/cancel"} {
                        (html::form_token(visit))
                        button type="submit" { (visit.say("Cancel", "Annuler")) }
                    }
                }
            }
            progress max="100" value=(percent) aria-label=(visit.say("Progress", "Progression")) { (percent) " %" }
            @if !job.steps.is_empty() {
                (html::table(visit.say("In hand", "En ce moment"), &[
                    visit.say("What", "Quoi"), visit.say("Progress", "Progression"), visit.say("Done", "Fait"),
                ], job.steps.iter().map(|step| {
                    let percent = html::percent(step.done_bytes, step.total_bytes).to_string();
                    vec![
                        html! { (step.verb) " " (step.label) },
                        html! { progress max="100" value=(percent) aria-label=(step.label) { (percent) " %" } },
                        html! { (language.bytes(step.done_bytes)) " / " (language.bytes(step.total_bytes)) },
                    ]
                }).collect()))
            }
            p class="help" {
                (visit.say(
                    "Cancel does what Ctrl-C does: the job cleans up and ends.",
                    "Annuler fait ce que fait Ctrl-C : la tâche range et s’arrête.",
                ))
            }
            (html::command(visit, &["jobs", "cancel", &job.job]))
        }
    }
}

/// `GET /jobs/ID`
pub(super) async fn page(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    match one(&visit, &id).await {
        Some((job, part)) => {
            let is_running = job.status == "running";
            let title = visit.language.tell(format!("Job {}", job.job), format!("Tâche {}", job.job));
            let body = html! {
                nav class="crumbs" aria-label=(visit.say("Breadcrumb", "Fil d’Ariane")) {
                    ol {
                        li { a href="/jobs" { (visit.say("Jobs", "Tâches")) } }
                        li aria-current="page" { (job.job) }
                    }
                }
                (part)
            };
            html::page(&visit, &title, is_running, body).await.into_response()
        }
        None => not_found(&visit).await,
    }
}

/// A job, and the part of its page that changes.
async fn one(visit: &Visit, id: &str) -> Option<(Job, Markup)> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let answer = visit.console.toolbox.look_up(&["jobs", "show", id], false).await;
    let (first, printed) = answer.records.split_first()?;
    let Record::Job(job) = first else { return None };
    let (language, is_running) = (visit.language, job.status == "running");
    let part = html! {
        div id="live-job" class="sec" {
            div class="head" {
                div {
                    h1 class="brk" { (html::job_line(job)) }
                    p class="sub" role="status" { (html::state(language, &job.status)) }
                }
            }
            @if is_running { (panel(visit, job)) }
            @else {
                dl class="facts" {
                    dt { (visit.say("Started", "Début")) } dd { (language.moment(job.began_at)) }
                    dt { (visit.say("Took", "Durée")) } dd { (language.duration(job.duration_seconds)) }
                    dt { (visit.say("Read", "Lu")) } dd { (language.bytes(job.done_bytes)) }
                    dt { (visit.say("Started by", "Lancée par")) } dd { (job.user) ", " (origin(visit, &job.origin)) }
                    @if let Some(code) = job.exit_code {
                        dt { (visit.say("Exit code", "Code de retour")) } dd { (code) }
                    }
                }
                @if job.status == "lost" {
                    div class="note warn" {
                        (html::icon("warn"))
                        p { (visit.say(
                            "The process is gone and left no result. The next run cleans up after it.",
                            "Le processus a disparu sans résultat. La prochaine exécution rangera après lui.",
                        )) }
                    }
                }
            }
            @if !printed.is_empty() {
                h2 { (visit.say("Results", "Résultats")) }
                (html::records(visit, printed))
            }
        }
    };
    Some((job.clone(), part))
}

/// `POST /jobs/ID/cancel`
pub(super) async fn cancel(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let to = format!("/jobs/{}", html::segment(&id));
    if one(&visit, &id).await.is_none() {
        return not_found(&visit).await;
    }
    let words = ["jobs", "cancel", &id].map(str::to_owned);
    let answer = visit.console.toolbox.act(&words).await;
    match answer.failures().next() {
        Some(failure) => refused(&visit, visit.say("Not cancelled", "Non annulée"), &failure.error, &to).await,
        None => redirect(&to),
    }
}

/// The parts of a page that change while it is open: their ids and their HTML.
pub(in crate::console) async fn live_parts(visit: &Visit, page: &str) -> Vec<(String, String)> {
    let part = |id: &str, html: Markup| (id.to_owned(), html.into_string());
    match page.strip_prefix("/jobs/") {
        Some(id) => one(visit, id).await.map(|(_, markup)| part("live-job", markup)).into_iter().collect(),
        None if page == "/jobs" => {
            vec![part("live-jobs", running_panels(visit, &visit.console.toolbox.jobs().await))]
        }
        None if page == "/" => vec![part("live-note", running_note(visit).await)],
        None => Vec::new(),
    }
}

/// Starts a command that becomes a job, and goes to its page.
pub(super) async fn start(visit: &Visit, words: &[String], back: &str) -> Response {
    match visit.console.toolbox.start(words).await {
        Ok(job) => redirect(&format!("/jobs/{}", html::segment(&job))),
        Err(answer) => {
            let title = visit.say("Not started", "Non lancée");
            let body = html! {
                (html::head(title, ""))
                (html::records(visit, &answer.records))
                (html::line(&visit.console.toolbox.command_line(words)))
                p { a href=(back) { (visit.say("Back", "Retour")) } }
            };
            let page = html::page(visit, title, false, body).await;
            (axum::http::StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
        }
    }
}
