//! The overview: the state in one sentence, problems with their fixes, and every machine.

pub(super) use super::machine_status::{MachineStatus, machines};
use super::{drills, jobs, machine_table, past_runs, restore};
use crate::console::html;
use crate::console::visit::Visit;
use crate::record::{Check, Record};
use axum::Extension;
use axum::response::Html;
use maud::{Markup, html};

/// Maximum number of problems listed; the table has all of them.
const MOST_PROBLEMS: usize = 20;

/// `GET /`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let answer = visit.console.toolbox.status(visit.query.is_set("again")).await;
    let (machines, others) = (machines(&answer.records), others(&answer.records));
    let body = html! {
        (state_part(&visit, &machines, &others))
        (jobs::running_note(&visit).await)
        (html::failures(&visit, &answer))
        (machine_table::section(&visit, &machines))
        (html::age(&visit, &answer))
        (past_runs::plots(&visit, &machines, &others))
        (drills::section(&visit, &machines))
        @if !others.is_empty() {
            section class="sec" {
                h2 { (visit.say("Repositories and host", "Dépôts et hôte")) }
                (html::checks(&visit, others.iter().copied()))
            }
        }
        (html::command(&visit, &["status"]))
    };
    html::page(&visit, visit.say("Overview", "Vue d’ensemble"), html::PageUpdates::Scripts, body).await
}

/// Returns the checks that are not about machines.
fn others(records: &[Record]) -> Vec<&Check> {
    let checks = records.iter().filter_map(|record| match record {
        Record::Check(check) if check.check != "backup" => Some(check),
        _ => None,
    });
    checks.collect()
}

/// Returns the part that changes when a job has ended: the sentence and the problems.
fn state_part(visit: &Visit, machines: &[MachineStatus<'_>], others: &[&Check]) -> Markup {
    let counted = machines.iter().filter(|machine| machine.counts()).map(|machine| machine.0);
    let mut problems: Vec<&Check> =
        counted.chain(others.iter().copied()).filter(|check| check.status != "ok").collect();
    problems.sort_by_key(|check| (check.status != "critical", check.check != "backup"));
    html! {
        div id="live-state" class="sec" {
            (verdict(visit, machines, others))
            @if !problems.is_empty() {
                section class="sec" {
                    div class="sechead" {
                        h2 { (visit.say("Problems", "Problèmes")) }
                        p class="sub" { (problems.len()) }
                    }
                    ol class="problems" {
                        @for check in problems.iter().take(MOST_PROBLEMS) { (problem(visit, check)) }
                    }
                    @if problems.len() > MOST_PROBLEMS {
                        p { a href="?sort=state" {
                            (visit.language.say(
                                format!("{} more are in the table below", problems.len() - MOST_PROBLEMS),
                                format!("{} autres sont dans le tableau", problems.len() - MOST_PROBLEMS),
                            ))
                        } }
                    }
                }
            }
        }
    }
}

/// Returns the parts of the overview that change when a job has ended: their ids and their HTML.
pub(in crate::console) async fn live_parts(visit: &Visit) -> [(String, String); 2] {
    let answer = visit.console.toolbox.status(false).await;
    let (machines, others) = (machines(&answer.records), others(&answer.records));
    let parts =
        [("live-state", state_part(visit, &machines, &others)), ("live-drills", drills::last_ones(visit, &machines))];
    parts.map(|(id, part)| (id.to_owned(), part.into_string()))
}

fn verdict(visit: &Visit, machines: &[MachineStatus<'_>], others: &[&Check]) -> Markup {
    let counted = machines.iter().filter(|machine| machine.counts());
    let (mut all, mut without, mut bad) = (0, 0, 0);
    for machine in counted {
        all += 1;
        without += usize::from(machine.time("captured_at").is_none());
        bad += usize::from(machine.0.status != "ok");
    }
    let unreachable = others.iter().any(|check| check.check == "repository" && check.status == "critical");
    let is_unknown = all == 0 && others.iter().any(|check| check.check == "connection" && check.status != "ok");
    let (class, shape) = match (all, without, bad) {
        _ if unreachable => ("crit", "crit"),
        (0, ..) => ("unk", "off"),
        (_, 1.., _) => ("crit", "crit"),
        (_, _, 1..) => ("warn", "warn"),
        _ => ("ok", "ok"),
    };
    let language = visit.language;
    let words = match (all, without, bad) {
        _ if unreachable => visit.say("The repository is not available.", "Le dépôt n’est pas disponible.").to_owned(),
        _ if is_unknown => {
            visit.say("The machines cannot be listed.", "La liste des machines est indisponible.").to_owned()
        }
        (0, ..) => visit.say("No machine is backed up yet.", "Aucune machine n’est encore sauvegardée.").to_owned(),
        (_, 0, 0) => {
            visit.say("Every machine has a restore point.", "Chaque machine a un point de restauration.").to_owned()
        }
        (_, 0, 1) => language.say(
            format!("Every machine has a restore point. 1 of {all} needs attention."),
            format!("Chaque machine a un point de restauration. 1 sur {all} demande attention."),
        ),
        (_, 0, bad) => language.say(
            format!("Every machine has a restore point. {bad} of {all} need attention."),
            format!("Chaque machine a un point de restauration. {bad} sur {all} demandent attention."),
        ),
        (_, 1, _) => language.say(
            format!("1 of {all} machines has no restore point."),
            format!("1 machine sur {all} n’a pas de point de restauration."),
        ),
        (_, without, _) => language.say(
            format!("{without} of {all} machines have no restore point."),
            format!("{without} machines sur {all} n’ont pas de point de restauration."),
        ),
    };
    html! {
        div class="verdict" {
            svg class={"i " (class)} aria-hidden="true" focusable="false" width="16" height="16" {
                use href={"#i-" (shape)} {}
            }
            h1 { (words) }
            p {
                @if is_unknown {
                    (visit.say("See the problems below.", "Voir les problèmes plus bas."))
                } @else if all == 0 {
                    (visit.say("Choose them under ", "Choisissez-les sous "))
                    a href="/machines" { (visit.say("Machines", "Machines")) } "."
                } @else { (second_line(visit, machines, all)) }
            }
        }
    }
}

/// Returns what was verified, when the last run ended, and when the next one starts.
fn second_line(visit: &Visit, machines: &[MachineStatus<'_>], all: usize) -> Markup {
    let language = visit.language;
    let is_verified = |machine: &&MachineStatus<'_>| {
        let age = machine.number("verified_age_seconds");
        age.is_some_and(|age| age <= machine.number("verify_warning_seconds").unwrap_or(f64::INFINITY))
    };
    let verified = machines.iter().filter(|machine| machine.counts()).filter(is_verified).count();
    let last = machines.iter().filter_map(|machine| machine.time("last_run_at")).max();
    html! {
        (language.say(
            format!("{verified} of {all} have a recently verified point. "),
            format!("{verified} sur {all} ont un point vérifié récemment. "),
        ))
        @if let Some(last) = last {
            (visit.say("The last run ended ", "La dernière exécution s’est terminée ")) (language.ago(last)) ". "
        }
        @if let Some(next) = machines.iter().filter_map(|machine| machine.time("next_run_at")).min() {
            (visit.say("Next run: ", "Prochaine exécution : ")) (language.moment(next)) "."
        } @else {
            (visit.say("No run is scheduled: ", "Aucune exécution n’est planifiée : "))
            a href="/schedule" { (visit.say("Schedule", "Planification")) } "."
        }
    }
}

fn problem(visit: &Visit, check: &Check) -> Markup {
    let is_machine = check.check == "backup";
    html! {
        li {
            div {
                @if is_machine { (machine_table::state(visit, &MachineStatus(check))) }
                @else { (html::state(visit.language, &check.status)) }
            }
            div {
                h3 class="brk" {
                    @if is_machine { a href={"/machines/" (html::segment(&check.target))} { (check.target) } }
                    @else { (visit.language.of_command(&check.check)) " " (check.target) }
                }
                p class="sub brk" { (visit.language.of_command(&check.detail)) }
            }
            div class="fix" {
                @let machine = MachineStatus(check);
                @let wants_drill = is_machine && machine.wants_drill();
                @if wants_drill { (drills::ways(visit, &machine)) }
                @if is_machine && machine.text("standing") == Some("selected") && machine.wants_backup() {
                    @let name = check.target.as_str();
                    (html::action(
                        visit,
                        "/backup",
                        &[("m", name)],
                        visit.say("Back up now", "Sauvegarder maintenant"),
                        &["backup", "--", name],
                    ))
                } @else if restore::is_unfinished(check) { (restore::ways(visit, &check.target)) }
                @else if wants_drill {}
                @else if let Some(hint) = &check.hint { (html::hint_of(&visit.language.of_command(hint))) }
            }
        }
    }
}

/// Returns the form that filters a table.
pub(super) fn filter_form(visit: &Visit, table: &str) -> Markup {
    html! {
        form method="get" class="filter" role="search" aria-label=(visit.say("Filter", "Filtre")) {
            div class="field" {
                label for="q" { (visit.say("Filter", "Filtre")) }
                @let typed = visit.query.get("q").unwrap_or_default();
                input type="search" id="q" name="q" data-filters=(table) value=(typed);
            }
            button type="submit" { (visit.say("Apply", "Appliquer")) }
        }
    }
}
