//! The overview: whether all is well in one sentence, problems with their fixes, and every machine.

use crate::console::html;
use crate::console::pages::jobs;
use crate::console::visit::Visit;
use crate::record::{Check, Record, Time};
use axum::Extension;
use axum::response::Html;
use maud::{Markup, html};

/// A machine as `status` sees it.
pub(super) struct MachineStatus<'r>(pub(super) &'r Check);

impl<'r> MachineStatus<'r> {
    pub(super) fn text(&self, key: &str) -> Option<&'r str> {
        self.0.extra.get(key).and_then(|value| value.as_str())
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.0.extra.get(key).and_then(serde_json::Value::as_f64)
    }

    pub(super) fn time(&self, key: &str) -> Option<Time> {
        self.text(key)?.parse().ok()
    }

    pub(super) fn name(&self) -> &'r str {
        &self.0.target
    }

    /// Whether it is to be backed up.
    pub(super) fn counts(&self) -> bool {
        matches!(self.text("standing"), Some("selected" | "missing"))
    }

    fn urgency(&self) -> u8 {
        match (self.counts(), self.0.status.as_str()) {
            (false, _) => 4,
            (_, "critical") => 0,
            (_, "warning") => 1,
            (_, "ok") => 3,
            _ => 2,
        }
    }
}

/// The checks of machines among records.
pub(super) fn machines(records: &[Record]) -> Vec<MachineStatus<'_>> {
    let checks = records.iter().filter_map(|record| match record {
        Record::Check(check) if check.check == "backup" => Some(MachineStatus(check)),
        _ => None,
    });
    checks.collect()
}

/// `GET /`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let answer = visit.console.toolbox.look_up(&["status"], visit.query.is_set("again")).await;
    let mut shown = machines(&answer.records);
    let all = shown.len();
    let others: Vec<&Check> = answer
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Check(check) if check.check != "backup" => Some(check),
            _ => None,
        })
        .collect();
    let filter = visit.query.get("q").unwrap_or_default().to_lowercase();
    let state = visit.query.get("state").unwrap_or_default();
    let is_shown = |machine: &MachineStatus| {
        let text = format!("{} {} {}", machine.name(), machine.0.status, machine.0.detail).to_lowercase();
        filter.split_whitespace().all(|word| text.contains(word)) && (state.is_empty() || machine.0.status == state)
    };
    let problems: Vec<&Check> = shown
        .iter()
        .filter(|machine| machine.counts())
        .map(|machine| machine.0)
        .chain(others.iter().copied())
        .collect();
    let problems: Vec<&Check> = problems.into_iter().filter(|check| check.status != "ok").collect();
    let body = html! {
        (verdict(&visit, &shown, &others))
        (jobs::running_note(&visit).await)
        (html::failures(&visit, &answer))
        @if !problems.is_empty() {
            section class="sec" {
                div class="sechead" { h2 { (visit.say("Problems", "Problèmes")) } p class="sub" { (problems.len()) } }
                ol class="problems" { @for check in &problems { (problem(&visit, check)) } }
            }
        }
        section class="sec" {
            div class="sechead" {
                h2 { (visit.say("Machines", "Machines")) }
                div class="right row" { (filter_form(&visit, "machines")) }
            }
            ({
                shown.retain(is_shown);
                sort(&mut shown, visit.query.get("sort").unwrap_or_default());
                table(&visit, &shown, all)
            })
            (html::age(&visit, &answer))
        }
        @if !others.is_empty() {
            section class="sec" {
                h2 { (visit.say("Repositories and host", "Dépôts et hôte")) }
                (html::checks(&visit, others.iter().copied()))
            }
        }
        (html::command(&visit, &["status"]))
    };
    html::page(&visit, visit.say("Overview", "Vue d’ensemble"), true, body).await
}

fn sort(shown: &mut [MachineStatus<'_>], by: &str) {
    shown.sort_by(|a, b| a.name().cmp(b.name()));
    let oldest_first = |key: &'static str| move |machine: &MachineStatus<'_>| machine.time(key);
    match by {
        "name" => {}
        "newest" => shown.sort_by_key(oldest_first("captured_at")),
        "last" => shown.sort_by_key(oldest_first("last_run_at")),
        "verified" => shown.sort_by_key(oldest_first("verified_at")),
        "next" => shown.sort_by_key(oldest_first("next_run_at")),
        _ => shown.sort_by_key(MachineStatus::urgency),
    }
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
        (_, 0, bad) => language.tell(
            format!("Every machine has a restore point. {bad} of {all} need attention."),
            format!("Chaque machine a un point de restauration. {bad} sur {all} demandent attention."),
        ),
        (_, without, _) => language.tell(
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
                } @else if let Some(next) = machines.iter().filter_map(|machine| machine.time("next_run_at")).min() {
                    (visit.say("Next run: ", "Prochaine exécution : ")) (language.moment(next)) "."
                } @else {
                    (visit.say("No run is scheduled: ", "Aucune exécution n’est planifiée : "))
                    a href="/schedule" { (visit.say("Schedule", "Planification")) } "."
                }
            }
        }
    }
}

fn problem(visit: &Visit, check: &Check) -> Markup {
    let is_machine = check.check == "backup";
    html! {
        li {
            div { (html::state(visit.language, &check.status)) }
            div {
                h3 class="brk" {
                    @if is_machine { a href={"/machines/" (html::segment(&check.target))} { (check.target) } }
                    @else { (check.check) " " (check.target) }
                }
                p class="sub brk" { (check.detail) }
            }
            div class="fix" {
                @if is_machine && MachineStatus(check).text("standing") == Some("selected") {
                    @let name = check.target.as_str();
                    (html::action(
                        visit,
                        "/backup",
                        &[("m", name)],
                        visit.say("Back up now", "Sauvegarder maintenant"),
                        &["backup", "--", name],
                    ))
                } @else if let Some(hint) = &check.hint { (html::hint_of(hint)) }
            }
        }
    }
}

/// The form that filters a table.
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

fn table(visit: &Visit, machines: &[MachineStatus<'_>], all: usize) -> Markup {
    let language = visit.language;
    let caption = language.tell(
        format!("{} of {all} machines, most urgent first unless sorted", machines.len()),
        format!("{} machines sur {all}, les plus urgentes d’abord sauf autre tri", machines.len()),
    );
    let heads = [
        ("name", visit.say("Machine", "Machine")),
        ("state", visit.say("State", "État")),
        ("newest", visit.say("Newest point", "Point le plus récent")),
        ("age", visit.say("Age against limit", "Âge et limite")),
        ("last", visit.say("Last run", "Dernière exécution")),
        ("verified", visit.say("Verified", "Vérifié")),
        ("next", visit.say("Next run", "Prochaine exécution")),
    ];
    let class = if machines.len() > 50 { "stack dense" } else { "tight stack" };
    html! {
        div class="scroll" role="region" tabindex="0" aria-label=(caption) {
            table role="table" class=(class) id="machines" {
                caption { (caption) }
                thead role="rowgroup" {
                    tr role="row" {
                        @for (key, head) in heads {
                            th scope="col" role="columnheader" {
                                @if key == "age" { (head) } @else { a href={"?sort=" (key)} { (head) } }
                            }
                        }
                    }
                }
                tbody role="rowgroup" { @for machine in machines { (row(visit, machine, &heads)) } }
            }
        }
    }
}

fn row(visit: &Visit, machine: &MachineStatus<'_>, heads: &[(&str, &str); 7]) -> Markup {
    let language = visit.language;
    let none = || html! { "-" };
    html! {
        tr role="row" {
            th scope="row" role="rowheader" {
                a class="brk" href={"/machines/" (html::segment(machine.name()))} { (machine.name()) }
            }
            td role="cell" data-l=(heads[1].1) {
                @if machine.counts() { (html::state(language, &machine.0.status)) }
                @else { span class="quiet" { (visit.say("not selected", "non choisie")) } }
            }
            td role="cell" data-l=(heads[2].1) {
                @if let Some(at) = machine.time("captured_at") { (language.moment(at)) }
                @else { (visit.say("none", "aucun")) }
            }
            td role="cell" data-l=(heads[3].1) { (age_bar(visit, machine)) }
            td role="cell" data-l=(heads[4].1) {
                @match (machine.text("last_result"), machine.time("last_run_at")) {
                    (Some(result), Some(at)) => {
                        (html::state(language, result)) span class="two" { (language.ago(at)) }
                    },
                    _ => (none()),
                }
            }
            td role="cell" data-l=(heads[5].1) {
                @if let Some(at) = machine.time("verified_at") {
                    (language.ago(at)) span class="two" { (machine.text("verified_depth").unwrap_or_default()) }
                } @else { (none()) }
            }
            td role="cell" data-l=(heads[6].1) {
                @if let Some(at) = machine.time("next_run_at") { (language.moment(at)) } @else { (none()) }
            }
        }
    }
}

/// The age of the newest point against its limits: the first tick is overdue, the end far overdue.
fn age_bar(visit: &Visit, machine: &MachineStatus<'_>) -> Markup {
    let (Some(age), Some(limit)) = (machine.number("age_seconds"), machine.number("warning_seconds")) else {
        return html! { "-" };
    };
    let end = machine.number("critical_seconds").unwrap_or(limit * 2.0).max(1.0);
    let at = |seconds: f64| format!("{:.1}", (seconds / end * 92.0).clamp(0.0, 92.0));
    let (language, overdue) = (visit.language, age > limit);
    let words = language.tell(
        format!("{} of {}", language.duration(age), language.duration(limit)),
        format!("{} sur {}", language.duration(age), language.duration(limit)),
    );
    html! {
        svg class="mini" width="92" height="12" viewBox="0 0 92 12" aria-hidden="true" focusable="false" {
            rect class="trk" x="0" y="3" width="92" height="6" {}
            rect class="b1" x="0" y="3" width=(at(age.min(limit))) height="6" {}
            @if overdue {
                rect class="over" fill="none" x=(at(limit)) y="3" width=(at(age.min(end) - limit)) height="6" {}
            }
            path class="lim" d={"M" (at(limit)) " 0v12M91.25 2v8"} {}
        }
        span class="two" {
            @if overdue { b { (words) " " (visit.say("overdue", "en retard")) } } @else { (words) }
        }
    }
}
