//! The log: a filter, pages, and new lines as they arrive.

use super::paging::paging;
use crate::console::dates::day_of;
use crate::console::html;
use crate::console::toolbox::Answer;
use crate::console::visit::Visit;
use crate::record::{Log, Record};
use axum::Extension;
use axum::response::Html;
use chrono::{Datelike, Local, Timelike};
use maud::{Markup, html};
use std::time::Duration;

/// The number of lines on a page.
const PAGE: usize = 200;

/// Maximum number of pages; older lines can be found with a filter.
const MOST_PAGES: usize = 50;

/// The levels, with their labels.
const LEVELS: [(&str, &str, &str); 4] = [
    ("debug", "debug and above", "détails et plus"),
    ("info", "info and above", "normal et plus"),
    ("warning", "warnings and errors", "avertissements et erreurs"),
    ("error", "errors", "erreurs"),
];

/// `GET /log?q=&level=&job=`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let is_first = page_number(&visit) == 1;
    let updates = if is_first { html::PageUpdates::Scripts } else { html::PageUpdates::None };
    let (q, job) = (visit.query.get("q").unwrap_or_default(), visit.query.get("job").unwrap_or_default());
    let level = visit.query.get("level").unwrap_or_default();
    let body = html! {
        (html::head(
            visit.say("Log", "Journal"),
            visit.say(
                "The log of all runs, newest line first.",
                "Ce que chaque exécution a dit, le plus récent d’abord.",
            ),
        ))
        form method="get" class="filter row" role="search" aria-label=(visit.say("Filter", "Filtre")) {
            div class="field" {
                label for="q" { (visit.say("Contains", "Contient")) }
                input type="search" id="q" name="q" value=(q);
            }
            div class="field" {
                label for="level" { (visit.say("Level", "Niveau")) }
                select id="level" name="level" {
                    option value="" { (visit.say("all", "tous")) }
                    @for (value, english, french) in LEVELS {
                        option value=(value) selected[value == level] { (visit.say(english, french)) }
                    }
                }
            }
            div class="field" {
                label for="job" { (visit.say("Job", "Tâche")) }
                input id="job" name="job" class="w-s mono" value=(job) placeholder="5f0c2a9e";
            }
            button type="submit" { (visit.say("Apply", "Appliquer")) }
        }
        (lines(&visit, Duration::ZERO).await)
        (html::line(&visit.console.toolbox.command_line(&shown_words(&visit))))
    };
    html::page(&visit, visit.say("Log", "Journal"), updates, body).await
}

fn page_number(visit: &Visit) -> usize {
    visit.query.get("page").and_then(|page| page.parse().ok()).unwrap_or(1).clamp(1, MOST_PAGES)
}

/// Returns the command line that a person would type.
fn shown_words(visit: &Visit) -> Vec<String> {
    let mut words = words_of(visit);
    words.push("--follow".into());
    words
}

fn words_of(visit: &Visit) -> Vec<String> {
    let mut words = vec!["log".to_owned()];
    let is_run = |job: &&str| job.len() == 8 && job.bytes().all(|byte| byte.is_ascii_hexdigit());
    match visit.query.get("job").map(str::trim).filter(is_run) {
        Some(job) => words.push(job.to_owned()),
        None => words.push("--all".to_owned()),
    }
    let level = visit.query.get("level").filter(|level| LEVELS.iter().any(|(known, ..)| known == level));
    words.extend(level.map(|level| format!("--level={level}")));
    words.extend(visit.query.get("q").map(|text| format!("--grep={text}")));
    words
}

/// Returns the log lines of an answer, oldest first.
pub(super) fn lines_of(answer: &Answer) -> impl DoubleEndedIterator<Item = &Log> {
    answer.records.iter().filter_map(|record| match record {
        Record::Log(line) => Some(line),
        _ => None,
    })
}

/// Returns the part of the page that changes. The lines are at most `age` old.
pub(super) async fn lines(visit: &Visit, age: Duration) -> Markup {
    let page = page_number(visit);
    let mut words = words_of(visit);
    // One more line, to know whether there is another page.
    words.push(format!("--limit={}", page * PAGE + 1));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer = visit.console.toolbox.look_up_within(&words, age).await;
    let all: Vec<&Log> = lines_of(&answer).rev().collect();
    let has_more = all.len() > page * PAGE && page < MOST_PAGES;
    let shown: Vec<&Log> = all.into_iter().skip((page - 1) * PAGE).take(PAGE).collect();
    let job = visit.query.get("job").unwrap_or_default();
    let is_wrong = !job.is_empty() && !words.contains(&job);
    html! {
        div id="live-log" class="sec" {
            @if is_wrong {
                div class="note warn" role="alert" {
                    (html::icon("warn"))
                    p { (visit.say(
                        "The ID of a job has 8 hexadecimal digits. All jobs are shown.",
                        "L’identifiant d’une tâche a 8 chiffres hexadécimaux. Toutes les tâches sont montrées.",
                    )) }
                }
            }
            @if answer.failures().any(|failure| failure.code != "not_found") { (html::failures(visit, &answer)) }
            @if shown.is_empty() {
                p { (visit.say("No line matches.", "Aucune ligne ne correspond.")) }
                p {
                    (visit.say(
                        "Runs under systemd log to the journal:",
                        "Sous systemd, le journal du système les a\u{a0}:",
                    ))
                }
                (html::line("journalctl -t kvmb"))
            } @else { (list(visit, &shown, true)) }
            (paging(visit, page, if has_more { page + 1 } else { page }))
        }
    }
}

/// Returns lines of the log. `of_all` adds the run of each line.
pub(super) fn list(visit: &Visit, lines: &[&Log], of_all: bool) -> Markup {
    let label = visit.say("Lines of the log", "Lignes du journal");
    html! {
        div role="region" tabindex="0" aria-label=(label) class=(if of_all { "log whole" } else { "log" }) {
            ol {
                @for (at, line) in lines.iter().enumerate() {
                    @let day = day_of(line.logged_at);
                    @if of_all && (at == 0 || day_of(lines[at - 1].logged_at) != day) {
                        li class="day" { b { (visit.language.day(day)) " " (day.year()) } }
                    }
                    (one(visit, line, of_all))
                }
            }
        }
    }
}

fn one(visit: &Visit, line: &Log, of_all: bool) -> Markup {
    let time = line.logged_at.with_timezone(&Local);
    let clock = format!("{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second());
    let (class, level) = match line.level.as_str() {
        "ERROR" => ("lv crit", visit.say("error", "erreur")),
        "WARNING" => ("lv warn", visit.say("warning", "attention")),
        "INFO" => ("lv", visit.say("info", "info")),
        _ => ("lv quiet", visit.say("debug", "détail")),
    };
    html! {
        li {
            time datetime=(line.logged_at.to_rfc3339()) title=(visit.language.moment(line.logged_at)) { (clock) }
            span class=(class) { (level) }
            span class="brk" {
                @if of_all {
                    a href={"/jobs/" (html::segment(&line.run))} { code { (line.run) } } " "
                }
                (line.message)
            }
        }
    }
}
