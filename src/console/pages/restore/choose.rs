//! The first step: the machine, and one of its points.

use super::steps;
use crate::console::html;
use crate::console::pages::fields::none_yet;
use crate::console::pages::points::{calendar, list};
use crate::console::pages::repos::{KnownPoints, damaged_points};
use crate::console::visit::Visit;
use crate::record::{Point, Record};
use axum::Extension;
use axum::response::Html;
use maud::{Markup, html};
use std::collections::BTreeSet;

/// `GET /restore?machine=&repo=`
pub(in crate::console) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let again = visit.query.is_set("again");
    let (known, vms, damaged) = tokio::join!(
        KnownPoints::of(&visit, again),
        visit.console.toolbox.look_up(&["vms"], again),
        damaged_points(&visit)
    );
    let all = known.newest_first();
    let here: BTreeSet<&str> = vms
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Machine(machine) => Some(machine.machine.as_str()),
            _ => None,
        })
        .collect();
    let machines: BTreeSet<&str> = all.iter().map(|point| point.machine.as_str()).collect();
    let chosen = visit.query.get("machine").filter(|name| machines.contains(name));
    let repo = visit.query.get("repo");
    let is_chosen =
        |point: &&&Point| Some(point.machine.as_str()) == chosen && repo.is_none_or(|repo| point.repo == repo);
    let points: Vec<&Point> = all.iter().filter(is_chosen).copied().collect();
    let body = html! {
        (html::head(visit.say("Restore a machine", "Restaurer une machine"), ""))
        (steps(&visit, 0))
        (known.failures(&visit))
        @if machines.is_empty() && known.is_any_unreadable() {
            // The failure says why.
        } @else if machines.is_empty() {
            (none_yet(&visit, visit.say("There is no point yet.", "Il n’y a encore aucun point."), &["backup", "NAME"]))
        } @else { (filter(&visit, &machines, &here, &all)) }
        @if let Some(name) = chosen {
            section class="sec" {
                h2 class="brk" { (name) }
                @if points.is_empty() {
                    p { (visit.say("No point of it in this repository.", "Aucun point dans ce dépôt.")) }
                } @else {
                    div class="split wide-l" {
                        (list::list(&visit, &calendar::of_day(&visit.query, &points), &known.repos, &damaged, |point| {
                            format!("/restore/{}/where", html::segment(&point.point))
                        }))
                        div class="sec" { (calendar::calendar(&visit, &points)) }
                    }
                }
            }
        }
        (known.sources(&visit))
    };
    html::page(&visit, visit.say("Restore", "Restaurer"), html::PageUpdates::None, body).await
}

fn filter(visit: &Visit, machines: &BTreeSet<&str>, here: &BTreeSet<&str>, points: &[&Point]) -> Markup {
    let (chosen, repo) = (visit.query.get("machine"), visit.query.get("repo"));
    let repos: BTreeSet<&str> = points.iter().map(|point| point.repo.as_str()).collect();
    html! {
        form method="get" action="/restore" class="row" {
            div class="field" {
                label for="machine" { (visit.say("Machine", "Machine")) }
                select id="machine" name="machine" class="w-m" {
                    @for name in machines {
                        option value=(name) selected[chosen == Some(name)] {
                            (name)
                            @if !here.is_empty() && !here.contains(name) {
                                (visit.say(" (no longer exists here)", " (n’existe plus ici)"))
                            }
                        }
                    }
                }
            }
            @if repos.len() > 1 {
                div class="field" {
                    label for="repo" { (visit.say("Repository", "Dépôt")) }
                    select id="repo" name="repo" {
                        option value="" { (visit.say("all", "tous")) }
                        @for url in repos { option value=(url) selected[repo == Some(url)] { (url) } }
                    }
                }
            }
            button type="submit" { (visit.say("Show its points", "Montrer ses points")) }
        }
    }
}
