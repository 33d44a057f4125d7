//! The machines of this host: which are backed up, and back up now; and one machine with its points.

use super::overview::{MachineStatus, filter_form, machines};
use crate::console::answers::{not_found, refused};
use crate::console::html;
use crate::console::pages::jobs;
use crate::console::visit::Visit;
use crate::record::{Disk, Point, Record};
use axum::Extension;
use axum::extract::Path;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

/// `GET /machines`
pub(super) async fn list(Extension(visit): Extension<Visit>) -> Html<String> {
    let again = visit.query.is_set("again");
    let toolbox = &visit.console.toolbox;
    let (vms, disks, status) = tokio::join!(
        toolbox.look_up(&["vms"], again),
        toolbox.look_up(&["disks"], again),
        toolbox.look_up(&["status"], again)
    );
    let known = machines(&status.records);
    let filter = visit.query.get("q").unwrap_or_default().to_lowercase();
    let disks: Vec<&Disk> = disks_of(&disks.records).collect();
    let mut rows = Vec::new();
    for record in vms.records.iter() {
        let Record::Machine(machine) = record else { continue };
        if !machine.machine.to_lowercase().contains(&filter) {
            continue;
        }
        let own = disks.iter().filter(|disk| disk.machine == machine.machine);
        let standing = known.iter().find(|known| known.name() == machine.machine);
        let name = machine.machine.as_str();
        rows.push(vec![
            html! {
                @if visit.may_change() {
                    label class="check" { input type="checkbox" name="m" value=(name); span class="vh" { (name) } } " "
                }
                a class="brk" href={"/machines/" (html::segment(name))} { (name) }
                span class="two" { (machine.state) }
            },
            html! { (selected(&visit, standing)) },
            html! { ul { @for disk in own { (disk_line(&visit, disk)) } } },
            html! { (machine.agent) },
        ]);
    }
    let heads = [
        visit.say("Machine", "Machine"),
        visit.say("Backed up", "Sauvegardée"),
        visit.say("Disks", "Disques"),
        visit.say("Guest agent", "Agent invité"),
    ];
    let none = visit.say("libvirt knows no machine.", "libvirt ne connaît aucune machine.");
    let body = html! {
        (html::head(
            visit.say("Machines", "Machines"),
            visit.say(
                "Which machines and disks are backed up, and why one is not.",
                "Quelles machines et quels disques sont sauvegardés, et pourquoi un ne l’est pas.",
            ),
        ))
        (filter_form(&visit, "all-machines"))
        (html::failures(&visit, &vms))
        form method="post" action="/backup" class="sec" {
            (html::form_token(&visit))
            @if rows.is_empty() { p { (none) } }
            @else {
                div id="all-machines" {
                    (html::table(visit.say("All machines", "Toutes les machines"), &heads, rows))
                }
            }
            @if visit.may_change() { (end_of_form(&visit)) }
        }
        (html::age(&visit, &vms))
        (html::command(&visit, &["disks"]))
    };
    html::page(&visit, visit.say("Machines", "Machines"), false, body).await
}

/// The buttons below the list: back up, select, leave out.
fn end_of_form(visit: &Visit) -> Markup {
    html! {
        div class="formend" {
            h2 { (visit.say("The ticked machines", "Les machines cochées")) }
            div class="row" {
                label class="check" {
                    input type="checkbox" name="full" value="1"; span { (visit.say("Read in full", "Lire en entier")) }
                }
                label class="check" {
                    input type="checkbox" name="verify" value="1";
                    span { (visit.say("Verify the new points", "Vérifier les nouveaux points")) }
                }
                div class="field" {
                    label for="limit" { (visit.say("Read limit per second", "Limite de lecture par seconde")) }
                    input id="limit" name="limit_read" class="w-s" placeholder="50M";
                }
            }
            div class="row" {
                button type="submit" class="pri" { (visit.say("Back up now", "Sauvegarder maintenant")) }
                button type="submit" formaction="/selection" name="set" value="true" {
                    (visit.say("Select for backups", "Choisir pour les sauvegardes"))
                }
                button type="submit" formaction="/selection" name="set" value="false" {
                    (visit.say("Leave out", "Laisser de côté"))
                }
            }
        }
        div class="formend" {
            h2 { (visit.say("A pattern", "Un motif")) }
            div class="row" {
                div class="field" {
                    label for="pattern" { (visit.say("Names, with * and ?", "Noms, avec * et ?")) }
                    input id="pattern" name="pattern" class="w-m mono" placeholder="web*";
                }
                button type="submit" formaction="/selection" name="set" value="true" {
                    (visit.say("Select for backups", "Choisir pour les sauvegardes"))
                }
            }
        }
    }
}

fn selected(visit: &Visit, status: Option<&MachineStatus<'_>>) -> Markup {
    match status {
        Some(status) if status.counts() => html! {
            span class="st ok" { (html::icon("ok")) (visit.say("yes", "oui")) }
            span class="two brk" { (status.0.detail) }
        },
        _ => html! { span class="st quiet" { (html::icon("off")) (visit.say("no", "non")) } },
    }
}

fn disks_of(records: &[Record]) -> impl Iterator<Item = &Disk> {
    records.iter().filter_map(|record| match record {
        Record::Disk(disk) => Some(disk),
        _ => None,
    })
}

fn disk_line(visit: &Visit, disk: &Disk) -> Markup {
    let size = disk.capacity_bytes.map(|bytes| visit.language.bytes(bytes)).unwrap_or_else(|| "?".into());
    html! {
        li {
            (disk.disk) " " (size)
            @if let Some(reason) = &disk.skip_reason {
                span class="quiet brk" { " " (visit.say("left out: ", "laissé de côté : ")) (reason) }
            }
        }
    }
}

/// `POST /backup`
pub(super) async fn back_up(Extension(visit): Extension<Visit>) -> Response {
    let names: Vec<String> = visit.form.all("m").filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        let message = visit.say("Tick at least one machine.", "Cochez au moins une machine.");
        return refused(&visit, visit.say("Nothing to back up", "Rien à sauvegarder"), message, "/machines").await;
    }
    let mut words = vec!["backup".to_owned()];
    for (field, flag) in [("full", "--full"), ("verify", "--verify")] {
        words.extend(visit.form.is_set(field).then(|| flag.to_owned()));
    }
    words.extend(visit.form.get("limit_read").map(|limit| format!("--limit-read={limit}")));
    words.push("--".into());
    words.extend(names);
    jobs::start(&visit, &words, "/machines").await
}

/// `GET /machines/NAME`
pub(super) async fn one(Extension(visit): Extension<Visit>, Path(name): Path<String>) -> Response {
    let again = visit.query.is_set("again");
    let toolbox = &visit.console.toolbox;
    let (disks, status, points) = tokio::join!(
        toolbox.look_up(&["disks"], again),
        toolbox.look_up(&["status"], again),
        toolbox.look_up(&["points"], again)
    );
    let known = machines(&status.records);
    let machine = known.iter().find(|machine| machine.name() == name);
    let own: Vec<&Disk> = disks_of(&disks.records).filter(|disk| disk.machine == name).collect();
    let points_of: Vec<&Point> = points
        .records
        .iter()
        .rev()
        .filter_map(|record| match record {
            Record::Point(point) if point.machine == name => Some(point),
            _ => None,
        })
        .collect();
    if machine.is_none() && own.is_empty() && points_of.is_empty() {
        return not_found(&visit).await;
    }
    let body = html! {
        nav class="crumbs" aria-label=(visit.say("Breadcrumb", "Fil d’Ariane")) {
            ol { li { a href="/machines" { (visit.say("Machines", "Machines")) } } li aria-current="page" { (name) } }
        }
        (html::head(&name, ""))
        @if let Some(machine) = machine { (html::checks(&visit, [machine.0].into_iter())) }
        section class="sec" {
            h2 { (visit.say("Back up", "Sauvegarder")) }
            (html::action(
                &visit,
                "/backup",
                &[("m", &name)],
                visit.say("Back up now", "Sauvegarder maintenant"),
                &["backup", "--", &name],
            ))
        }
        @if !own.is_empty() {
            section class="sec" {
                h2 { (visit.say("Disks", "Disques")) }
                ul { @for disk in &own { (disk_line(&visit, disk)) } }
            }
        }
        section class="sec" {
            h2 { (visit.say("Restore points", "Points de restauration")) }
            @if points_of.is_empty() { p { (visit.say("None yet.", "Aucun.")) } }
            @else { (html::points(&visit, points_of.iter().copied())) }
            (html::failures(&visit, &points))
        }
        (html::age(&visit, &points))
        (html::command(&visit, &["points", "--", &name]))
    };
    html::page(&visit, &name, false, body).await.into_response()
}
