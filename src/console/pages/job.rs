//! One job: its progress, its result, its output and its log.

use super::drills;
use super::job_progress::{is_live_restore, origin, panel, running_on_its_point};
use super::launch::start;
use super::{log, restore};
use crate::console::answers::{not_found, redirect, refused};
use crate::console::html;
use crate::console::toolbox::Answer;
use crate::console::visit::Visit;
use crate::record::{Job, Log, Point, Record, RestoredTo};
use axum::Extension;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use chrono::Local;
use maud::{Markup, html};
use std::time::Duration;

/// Maximum number of records on the page of a job, because a job may verify thousands of points.
const MOST_RESULTS: usize = 500;

/// The number of log lines on the page of a job.
const LOG_LINES: &str = "200";

/// Maximum age of the log lines and the results of a running job.
const OF_RUNNING: Duration = Duration::from_secs(3);

/// Answers about a job that ended longer ago than this are final.
const SETTLED_SECONDS: i64 = 60;

/// Commands that can be repeated without harm: they add points or only read.
const HARMLESS: [&str; 4] = ["backup", "verify", "push", "drill"];

/// `GET /jobs/ID`
pub(super) async fn page(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    match one(&visit, &id).await {
        Some((job, part)) => {
            let is_running = job.status == "running";
            let title = visit.language.say(format!("Job {}", job.job), format!("Tâche {}", job.job));
            let body = html! {
                nav class="crumbs" aria-label=(visit.say("Breadcrumb", "Fil d’Ariane")) {
                    ol {
                        li { a href="/jobs" { (visit.say("Jobs", "Tâches")) } }
                        li aria-current="page" { (job.job) }
                    }
                }
                (part)
            };
            html::page(&visit, &title, html::PageUpdates::of_job(is_running), body).await.into_response()
        }
        None => not_found(&visit).await,
    }
}

/// Returns a job, and the part of its page that changes.
pub(super) async fn one(visit: &Visit, id: &str) -> Option<(Job, Markup)> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let toolbox = &visit.console.toolbox;
    // While a job runs, the shared command reports its progress; its output may be slightly older.
    let followed = toolbox.jobs().await.into_iter().find(|job| job.job == id && job.status == "running");
    let words = ["jobs", "show", id];
    let answer = match &followed {
        Some(_) => toolbox.look_up_within(&words, OF_RUNNING).await,
        None => toolbox.look_up(&words, false).await,
    };
    let (first, printed) = answer.records.split_first()?;
    let Record::Job(shown) = first else { return None };
    let is_running = shown.status == "running";
    let job = followed.as_ref().filter(|_| is_running).unwrap_or(shown);
    let words = ["log", &job.job, "--limit", LOG_LINES];
    // Answers from the time when the job ran lack its last lines; this discards them.
    if !is_running {
        toolbox.jobs().await;
    }
    let is_settled = job.ended_at.is_some_and(|at| (Local::now().fixed_offset() - at).num_seconds() > SETTLED_SECONDS);
    let lines = match is_running {
        true => toolbox.look_up_within(&words, OF_RUNNING).await,
        false => toolbox.look_up(&words, !is_settled).await,
    };
    let part = html! {
        div id="live-job" class="sec" {
            div class="head" {
                div {
                    h1 class="brk" { (html::job_line(job)) }
                    p class="sub" role="status" { (html::state(visit.language, &job.status)) }
                }
            }
            @if is_running {
                (panel(visit, job))
                @if let Some(machine) = running_on_its_point(job) { (restore::if_it_stops(visit, machine)) }
            } @else {
                (how_it_ended(visit, job))
                @if let Some(machine) = stopped(visit, job, printed).await {
                    section class="sec" {
                        h2 class="brk" {
                            (visit.say("The restore is not finished", "La restauration n’est pas terminée"))
                        }
                        (restore::ways(visit, &machine))
                    }
                }
            }
            @for restored in restored(printed) { (next_step(visit, restored)) }
            @for (number, drilled) in drills::of_job(printed, job.ended_at).iter().enumerate() {
                section class="sec" {
                    h2 class="brk" {
                        (visit.say("Drill of ", "Essai de démarrage de "))
                        a href={"/machines/" (html::segment(&drilled.machine)) "/drill"} { (drilled.machine) }
                    }
                    (drills::panel(visit, drilled, &format!("/jobs/{}/drills/{number}", job.job)).await)
                }
            }
            @if !printed.is_empty() {
                (results(visit, job, printed))
            }
            (messages(visit, job, &lines))
            section class="sec" {
                h2 { (visit.say("Command line", "Ligne de commande")) }
                (html::line(&command_line(job)))
                @if !is_running && can_run_again(job) && visit.may_change() {
                    form method="post" action={"/jobs/" (html::segment(&job.job)) "/again"} {
                        (html::form_token(visit))
                        button type="submit" { (visit.say("Do it again", "Recommencer")) }
                    }
                }
            }
        }
    };
    Some((job.clone(), part))
}

/// Returns the command line of a job, for pasting into a shell.
fn command_line(job: &Job) -> String {
    let words = job.arguments.iter().map(String::as_str).filter(|word| *word != "--json");
    shlex::try_join(["kvmb"].into_iter().chain(words)).unwrap_or_default()
}

/// Describes what the end of a job means.
fn end_in_words(visit: &Visit, job: &Job) -> &'static str {
    match (job.status.as_str(), job.exit_code) {
        ("lost", _) => visit.say(
            "The process disappeared without a result. The next run cleans up after it.",
            "Le processus a disparu sans résultat. La prochaine exécution rangera après lui.",
        ),
        (_, Some(0)) => visit.say("Everything was done.", "Tout a été fait."),
        (_, Some(1)) => {
            visit.say("It failed. The failures are listed below.", "Échec. La cause est indiquée plus bas.")
        }
        (_, Some(2)) => visit.say(
            "The command line or the configuration is wrong. Nothing was done.",
            "La ligne de commande ou la configuration est fausse. Rien n’a été fait.",
        ),
        (_, Some(3)) => visit.say(
            "Partially done. The failures are listed below; the rest is complete.",
            "Fait en partie. Ce qui a échoué est indiqué plus bas\u{202f}; le reste est fait.",
        ),
        (_, Some(4)) => visit.say(
            "Damage was found. The affected points are listed below.",
            "Des dommages ont été trouvés. Les points touchés sont indiqués plus bas.",
        ),
        (_, Some(5)) => visit.say(
            "Another run was active. Try again when it has finished.",
            "Une autre exécution était au travail. Réessayez quand elle sera finie.",
        ),
        (_, Some(130 | 143)) if is_live_restore(job) => visit.say(
            "It was interrupted. A machine that runs on its point keeps running, and still needs the repository.",
            "Interrompue. Une machine qui tourne sur son point continue, et a besoin du dépôt.",
        ),
        (_, Some(130 | 143)) => visit.say(
            "It was interrupted, and has cleaned up. What was stored is used by the next run.",
            "Interrompue, et tout est rangé. Ce qui était stocké sert à la prochaine exécution.",
        ),
        _ => visit.say("It has ended.", "Elle est finie."),
    }
}

fn how_it_ended(visit: &Visit, job: &Job) -> Markup {
    let language = visit.language;
    let (class, shape) = match job.status.as_str() {
        "done" => ("note ok", "ok"),
        "failed" | "damage" => ("note crit", "crit"),
        _ => ("note warn", "warn"),
    };
    html! {
        div class=(class) {
            (html::icon(shape))
            div {
                p { (end_in_words(visit, job)) }
                @if let Some(error) = job.error.as_ref().filter(|_| job.failures > 0) { p class="brk" { (error) } }
            }
        }
        dl class="facts" {
            dt { (visit.say("Started", "Début")) } dd { (language.moment(job.began_at)) }
            @if let Some(at) = job.ended_at { dt { (visit.say("Ended", "Fin")) } dd { (language.moment(at)) } }
            dt { (visit.say("Took", "Durée")) } dd { (language.duration(job.duration_seconds)) }
            dt { (visit.say("Read", "Lu")) } dd { (language.bytes(job.done_bytes)) }
            dt { (visit.say("Started by", "Lancée par")) } dd { (job.user) ", " (origin(visit, &job.origin)) }
            @if let Some(code) = job.exit_code {
                dt { (visit.say("Exit code", "Code de retour")) } dd { (code) }
            }
        }
    }
}

/// Returns the output of a job, failures first.
fn results(visit: &Visit, job: &Job, printed: &[Record]) -> Markup {
    let is_failure = |record: &&Record| matches!(record, Record::Failure(_));
    let (failures, others) = (printed.iter().filter(is_failure), printed.iter().filter(|record| !is_failure(record)));
    let shown: Vec<Record> = failures.chain(others).take(MOST_RESULTS).cloned().collect();
    html! {
        section class="sec" {
            h2 { (visit.say("Results", "Résultats")) }
            (html::records(visit, &shown))
            @if printed.len() > shown.len() {
                p { (visit.language.say(
                    format!("These are {} of {} results. All of them:", shown.len(), printed.len()),
                    format!("Voici {} résultats sur {}. Pour les voir tous\u{a0}:", shown.len(), printed.len()),
                )) }
                (html::command(visit, &["jobs", "show", &job.job]))
            }
        }
    }
}

/// Returns the machine whose live restore this job did not finish, if it is still unfinished.
async fn stopped(visit: &Visit, job: &Job, printed: &[Record]) -> Option<String> {
    let failed = printed.iter().find_map(|record| match record {
        Record::Failure(failure) => failure.machine.as_deref(),
        _ => None,
    });
    let machine = failed.filter(|_| is_live_restore(job))?;
    restore::find(visit, machine, false).await.map(|check| check.target)
}

/// Returns the restored points and where they are now.
fn restored(printed: &[Record]) -> impl Iterator<Item = (&Point, &RestoredTo)> {
    printed.iter().filter_map(|record| match record {
        Record::Point(point) => Some((point, point.restored_to.as_ref()?)),
        _ => None,
    })
}

/// Describes what was restored, and what to do next.
fn next_step(visit: &Visit, (point, to): (&Point, &RestoredTo)) -> Markup {
    let language = visit.language;
    let row = |disk: &crate::record::RestoredDisk| {
        vec![
            html! { (disk.disk) },
            html! { code class="brk" { (disk.path) } },
            html! { (disk.format) },
            html! { (language.bytes(disk.capacity_bytes)) },
        ]
    };
    let heads = [
        visit.say("Disk", "Disque"),
        visit.say("Now in", "Maintenant dans"),
        visit.say("Format", "Format"),
        visit.say("Size", "Taille"),
    ];
    let virsh = |words: &[&str]| {
        let words = ["virsh"].into_iter().chain(words.iter().copied());
        html::line(&shlex::try_join(words).unwrap_or_default())
    };
    html! {
        section class="sec" {
            h2 { (visit.say("Restored", "Restauré")) }
            @if !to.disks.is_empty() {
                (html::table(visit.say("Restored disks", "Disques restaurés"), &heads,
                    to.disks.iter().map(row).collect()))
            }
            @match (&to.machine, &to.definition) {
                (Some(name), _) if to.started => p class="brk" {
                    (language.say(format!("{name} is running."), format!("{name} est en marche.")))
                    @if let Some(live) = &to.live {
                        @let ran = language.duration(live.running_seconds);
                        @let done = language.duration(live.done_seconds);
                        " " (language.say(
                            format!("It ran after {ran}, and all its data was on this host after {done}."),
                            format!(
                                "Elle tournait après {ran}, et toutes ses données étaient sur cet hôte après {done}."
                            ),
                        ))
                    }
                },
                (Some(name), _) => {
                    p { (visit.say("Next step: start the machine, and look at it.",
                        "Étape suivante\u{a0}: démarrez la machine, et regardez-la.")) }
                    (virsh(&["start", "--", name]))
                    p { a class="brk" href={"/machines/" (html::segment(name))} { (name) } }
                },
                (None, Some(file)) => {
                    p class="brk" { (language.say(
                        format!("The definition of {} is in {file}. Next step: define the machine.", point.machine),
                        format!(
                            "La définition de {} est dans {file}. Étape suivante\u{a0}: la définir.",
                            point.machine
                        ),
                    )) }
                    (virsh(&["define", "--", file]))
                },
                (None, None) => p { (visit.say(
                    "The disks are restored. The definition of the machine is unchanged.",
                    "Les disques sont restaurés. La définition de la machine est inchangée.",
                )) },
            }
        }
    }
}

/// Returns a job's warnings, and its complete log.
fn messages(visit: &Visit, job: &Job, answer: &Answer) -> Markup {
    let lines: Vec<&Log> = log::lines_of(answer).collect();
    let warnings: Vec<&&Log> = lines.iter().filter(|line| line.level == "WARNING").collect();
    html! {
        @if !warnings.is_empty() {
            section class="sec" {
                h2 { (visit.say("Warnings", "Avertissements")) }
                @for warning in warnings {
                    div class="note warn" {
                        (html::icon("warn")) p class="brk" { (visit.language.of_command(&warning.message)) }
                    }
                }
            }
        }
        section class="sec" {
            h2 { (visit.say("Log", "Journal")) }
            @if lines.is_empty() {
                p { (visit.say(
                    "The log has no line of this job. A run under systemd logs to the journal:",
                    "Le journal n’a aucune ligne de cette tâche. Sous systemd, voir le journal du système\u{a0}:",
                )) }
                (html::line(&format!("journalctl -t kvmb RUN={}", job.job)))
            } @else {
                (log::list(visit, &lines, false))
                p {
                    a href={"/log?job=" (html::segment(&job.job))} {
                        (visit.say("Filter these lines", "Filtrer ces lignes"))
                    }
                }
            }
            (html::command(visit, &["log", &job.job]))
        }
    }
}

/// Whether the same command can be run again: it does no harm, and no argument is hidden.
fn can_run_again(job: &Job) -> bool {
    let is_hidden = |word: &String| word.contains("***") || word.contains("(hidden)");
    // A drill may run a command on this host, which must not be started from the console.
    let is_of_host = |word: &String| word.starts_with("--check-in");
    HARMLESS.contains(&job.command.as_str()) && !job.arguments.iter().any(|word| is_hidden(word) || is_of_host(word))
}

/// `POST /jobs/ID/again`
pub(super) async fn again(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some((job, _)) = one(&visit, &id).await else { return not_found(&visit).await };
    if !can_run_again(&job) {
        return not_found(&visit).await;
    }
    // The console adds its own arguments again.
    let toolbox = &visit.console.toolbox;
    let words: Vec<String> = job.arguments.iter().filter(|word| !toolbox.is_own_argument(word)).cloned().collect();
    start(&visit, &words, &format!("/jobs/{}", html::segment(&job.job))).await
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
