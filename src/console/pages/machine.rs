//! One machine: its state, its disks, its points.

use super::backup_form;
use super::drills::{self, Drilled, Wish};
use super::fields::{FieldErrors, Form, none_yet};
use super::machines::{disks_of, is_taken};
use super::overview::{MachineStatus, machines};
use super::points::{calendar, list};
use super::repos::{KnownPoints, damaged_points};
use super::restore;
use super::rules::{Rules, disks_form};
use crate::console::answers::not_found;
use crate::console::html;
use crate::console::pages::jobs;
use crate::console::visit::Visit;
use crate::record::{Disk, Machine, Point, Record};
use axum::Extension;
use axum::extract::Path;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

/// `GET /machines/NAME`
pub(super) async fn page(Extension(visit): Extension<Visit>, Path(name): Path<String>) -> Response {
    match show(&visit, &name, &FieldErrors::default()).await {
        Some(page) => page.into_response(),
        None => not_found(&visit).await,
    }
}

/// Returns the page of a machine, with the errors of a form; None if the machine is unknown.
pub(super) async fn show(visit: &Visit, name: &str, errors: &FieldErrors) -> Option<Html<String>> {
    let again = visit.query.is_set("again");
    let toolbox = &visit.console.toolbox;
    let (vms, disks, status, known, rules, damaged) = tokio::join!(
        toolbox.look_up(&["vms"], again),
        toolbox.look_up(&["disks", "*"], again),
        toolbox.status(again),
        KnownPoints::of(visit, again),
        Rules::of(visit, true),
        damaged_points(visit),
    );
    let checks = machines(&status.records);
    let check = checks.iter().find(|machine| machine.name() == name);
    let machine = vms.records.iter().find_map(|record| match record {
        Record::Machine(machine) if machine.machine == name => Some(machine),
        _ => None,
    });
    let own: Vec<&Disk> = disks_of(&disks.records).filter(|disk| disk.machine == name).collect();
    let points: Vec<&Point> = known.newest_first().into_iter().filter(|point| point.machine == name).collect();
    if check.is_none() && machine.is_none() && points.is_empty() {
        return None;
    }
    let language = visit.language;
    let state =
        |machine: &Machine| format!("{}, {}", language.machine_state(&machine.state), language.agent(&machine.agent));
    let gone = visit.say("libvirt does not know this machine.", "libvirt ne connaît pas cette machine.");
    let body = html! {
        nav class="crumbs" aria-label=(visit.say("Breadcrumb", "Fil d’Ariane")) {
            ol { li { a href="/machines" { (visit.say("Machines", "Machines")) } } li aria-current="page" { (name) } }
        }
        div class="head" {
            div {
                h1 class="brk" { (name) }
                p class="sub" { (machine.map_or_else(|| gone.to_owned(), state)) }
            }
            @if let Some(newest) = points.first() {
                div class="acts row" {
                    a class="btn" href={"/restore/" (html::segment(&newest.point)) "/where"} {
                        (html::icon("restore")) (visit.say("Restore", "Restaurer"))
                    }
                }
            }
        }
        (jobs::running_note(visit).await)
        (restore::note(visit, &status.records, name))
        (errors.above(&backup_form::FIELDS))
        @if let Some(check) = check { (html::checks(visit, [check.0].into_iter())) }
        @if machine.is_some() {
            section class="sec" {
                h2 { (visit.say("Back up", "Sauvegarder")) }
                (back_up(visit, name, errors))
            }
            section class="sec" {
                h2 { (visit.say("Selection", "Choix")) }
                (selection(visit, name, is_taken(&checks, name), &rules))
                @if !own.is_empty() { (disks_form(visit, &rules, name, &own)) }
            }
        }
        section class="sec" {
            h2 { (visit.say("Restore points", "Points de restauration")) }
            @if points.is_empty() {
                (none_yet(visit, visit.say("None yet.", "Aucun pour l’instant."), &["backup", "--", name]))
            } @else {
                div class="split wide-l" {
                    (list::list(visit, &calendar::of_day(&visit.query, &points), &known.repos, &damaged, |point| {
                        format!("/points/{}", html::segment(&point.point))
                    }))
                    div class="sec" { (calendar::calendar(visit, &points)) }
                }
            }
            (known.failures(visit))
        }
        @if let Some(check) = check.filter(|_| !points.is_empty()) { (drill(visit, check)) }
        (known.sources(visit))
    };
    Some(html::page(visit, name, html::PageUpdates::ScriptsOrReload, body).await)
}

fn back_up(visit: &Visit, name: &str, errors: &FieldErrors) -> Markup {
    html! {
        @if visit.may_change() {
            form method="post" action="/backup" class="sec" {
                (html::form_token(visit))
                input type="hidden" name="m" value=(name);
                input type="hidden" name="of" value=(name);
                (backup_form::options(visit, &Form { typed: &visit.form, errors }))
                div class="row" {
                    button type="submit" class="pri" { (visit.say("Back up now", "Sauvegarder maintenant")) }
                }
            }
        }
        (html::command(visit, &["backup", "--", name]))
    }
}

/// Returns the result of its last drill, and the form for another one.
fn drill(visit: &Visit, machine: &MachineStatus<'_>) -> Markup {
    html! {
        section class="sec" id="drill" {
            h2 { (visit.say("Drill", "Essai de démarrage")) }
            p {
                (visit.say(
                    "Boots a copy from the newest point in isolation, and reports how far it gets.",
                    "Démarre une copie depuis le point le plus récent, isolée, et dit jusqu’où elle va.",
                ))
            }
            @match Drilled::last(machine) {
                Some(drilled) => p {
                    (visit.say("Last drill: ", "Dernier essai\u{a0}: ")) (drills::line(visit, &drilled)) ". "
                    a href={"/machines/" (html::segment(machine.name())) "/drill"} {
                        (visit.say("Screen and console", "Écran et console"))
                    }
                },
                None => p { (visit.say("None yet.", "Aucun pour l’instant.")) },
            }
            (drills::form(visit, &Wish::Machine(machine.name())))
        }
    }
}

/// Returns whether and why backups include the machine, and the button that changes that.
fn selection(visit: &Visit, name: &str, is_taken: bool, rules: &Rules) -> Markup {
    let (set, button) = match is_taken {
        true => ("false", visit.say("Leave out", "Laisser de côté")),
        false => ("true", visit.say("Select for backups", "Choisir pour les sauvegardes")),
    };
    html! {
        p {
            @if is_taken { span class="st ok" { (html::icon("ok")) (visit.say("backed up", "sauvegardée")) } }
            @else { span class="st quiet" { (html::icon("off")) (visit.say("not backed up", "non sauvegardée")) } }
            " " span class="brk" { (rules.reason(visit, name)) }
        }
        @if visit.may_change() {
            form method="post" action="/selection" {
                (html::form_token(visit))
                input type="hidden" name="m" value=(name);
                input type="hidden" name="of" value=(name);
                button type="submit" name="set" value=(set) { (button) }
            }
        }
        (html::command(visit, &["config", "set", "--", &format!("selected_vms.{name}={set}")]))
    }
}
