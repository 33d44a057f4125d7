//! The machines of this host: which ones are backed up, why, and a form to back them up now.

use super::backup_form;
use super::fields::{FieldErrors, Form};
use super::overview::{MachineStatus, filter_form, machines};
use super::rules::{Rules, rules_section};
use crate::console::html;
use crate::console::pages::jobs;
use crate::console::visit::Visit;
use crate::record::{Disk, Machine, Record};
use axum::Extension;
use axum::response::Html;
use maud::{Markup, html};

/// `GET /machines`
pub(super) async fn list(Extension(visit): Extension<Visit>) -> Html<String> {
    show(&visit, &FieldErrors::default()).await
}

/// Returns the page, with the errors of a form.
pub(super) async fn show(visit: &Visit, errors: &FieldErrors) -> Html<String> {
    let again = visit.query.is_set("again");
    let toolbox = &visit.console.toolbox;
    let (vms, disks, status, rules) = tokio::join!(
        toolbox.look_up(&["vms"], again),
        // Without names, the command would wait for records on standard input.
        toolbox.look_up(&["disks", "*"], again),
        toolbox.status(again),
        Rules::of(visit, true),
    );
    let known = machines(&status.records);
    let all: Vec<&Machine> = machines_of(&vms.records).collect();
    let names: Vec<&str> = all.iter().map(|machine| machine.machine.as_str()).collect();
    let taken = all.iter().filter(|machine| is_taken(&known, &machine.machine)).count();
    let filter = visit.query.get("q").unwrap_or_default().to_lowercase();
    let shown = all.iter().filter(|machine| machine.machine.to_lowercase().contains(&filter));
    let rows: Vec<Vec<Markup>> = shown
        .map(|machine| {
            let own = disks_of(&disks.records).filter(|disk| disk.machine == machine.machine).collect();
            row(visit, machine, own, &known, &rules)
        })
        .collect();
    let heads = [
        visit.say("Machine", "Machine"),
        visit.say("Backed up", "Sauvegardée"),
        visit.say("Disks", "Disques"),
        visit.say("Newest point", "Point le plus récent"),
    ];
    let caption = visit.language.say(
        format!("{}, {taken} backed up", visit.language.machines(all.len())),
        format!("{}, sauvegardées\u{a0}: {taken}", visit.language.machines(all.len())),
    );
    let body = html! {
        (html::head(
            visit.say("Machines", "Machines"),
            visit.say(
                "Which machines and disks are backed up, and why one is not.",
                "Quelles machines et quels disques sont sauvegardés, et pourquoi un ne l’est pas.",
            ),
        ))
        (jobs::running_note(visit).await)
        (errors.above(&backup_form::FIELDS.map(|(field, _)| (field, "")).into_iter().chain([("pattern", "")])
            .collect::<Vec<_>>()))
        (filter_form(visit, "all-machines"))
        (html::failures(visit, &vms))
        @if !all.is_empty() { (html::failures(visit, &disks)) }
        form method="post" action="/backup" class="sec" {
            (html::form_token(visit))
            @if rows.is_empty() && filter.is_empty() {
                p { (visit.say("libvirt knows no machine.", "libvirt ne connaît aucune machine.")) }
            } @else if rows.is_empty() {
                p { (visit.say("No machine matches the filter.", "Aucune machine ne correspond au filtre.")) }
            } @else {
                div id="all-machines" { (html::table(&caption, &heads, rows)) }
                @if visit.may_change() { (end_of_form(visit, errors)) }
            }
        }
        (rules_section(visit, &rules, &names, errors))
        (html::age(visit, &vms))
        (html::command(visit, &["vms"]))
        (html::command(visit, &["disks", "*"]))
    };
    html::page(visit, visit.say("Machines", "Machines"), html::PageUpdates::Scripts, body).await
}

fn row(visit: &Visit, machine: &Machine, disks: Vec<&Disk>, known: &[MachineStatus<'_>], rules: &Rules) -> Vec<Markup> {
    let (language, name) = (visit.language, machine.machine.as_str());
    let standing = known.iter().find(|known| known.name() == name);
    let is_ticked = visit.form.all("m").any(|ticked| ticked == name);
    vec![
        html! {
            @if visit.may_change() {
                label class="check" {
                    input type="checkbox" name="m" value=(name) checked[is_ticked];
                    span class="vh" { (visit.say("Select ", "Choisir ")) (name) }
                } " "
            }
            a class="brk" href={"/machines/" (html::segment(name))} { (name) }
            span class="two" { (language.machine_state(&machine.state)) ", " (language.agent(&machine.agent)) }
        },
        html! {
            @if is_taken(known, name) { span class="st ok" { (html::icon("ok")) (visit.say("yes", "oui")) } }
            @else { span class="st quiet" { (html::icon("off")) (visit.say("no", "non")) } }
            span class="two brk" { (rules.reason(visit, name)) }
        },
        html! { ul { @for disk in disks { (disk_line(visit, disk)) } } },
        html! {
            @match standing.and_then(|standing| standing.time("captured_at")) {
                Some(at) => { (language.moment(at)) span class="two" { (language.ago(at)) } },
                None => (visit.say("none", "aucun")),
            }
        },
    ]
}

/// Whether backups include a machine, according to `status`.
pub(super) fn is_taken(known: &[MachineStatus<'_>], name: &str) -> bool {
    known.iter().any(|known| known.name() == name && known.counts())
}

/// Returns the buttons below the list: back up, select, exclude.
fn end_of_form(visit: &Visit, errors: &FieldErrors) -> Markup {
    html! {
        div class="formend" {
            h2 { (visit.say("The ticked machines", "Les machines cochées")) }
            (backup_form::options(visit, &Form { typed: &visit.form, errors }))
            div class="row" {
                button type="submit" class="pri" { (visit.say("Back up now", "Sauvegarder maintenant")) }
                button type="submit" formaction="/selection" name="set" value="true" {
                    (visit.say("Select for backups", "Choisir pour les sauvegardes"))
                }
                button type="submit" formaction="/selection" name="set" value="false" {
                    (visit.say("Leave out", "Laisser de côté"))
                }
            }
            (html::command(visit, &["backup", "--", "NAME"]))
            (html::command(visit, &["config", "set", "selected_vms.NAME=true"]))
        }
    }
}

fn machines_of(records: &[Record]) -> impl Iterator<Item = &Machine> {
    records.iter().filter_map(|record| match record {
        Record::Machine(machine) => Some(machine),
        _ => None,
    })
}

/// Returns the disks among records.
pub(super) fn disks_of(records: &[Record]) -> impl Iterator<Item = &Disk> {
    records.iter().filter_map(|record| match record {
        Record::Disk(disk) => Some(disk),
        _ => None,
    })
}

fn disk_line(visit: &Visit, disk: &Disk) -> Markup {
    let size = disk.capacity_bytes.map_or_else(|| "?".to_owned(), |bytes| visit.language.bytes(bytes));
    html! {
        li {
            (disk.disk) " " (size)
            @if let Some(reason) = &disk.skip_reason {
                span class="quiet brk" { " " (visit.say("left out: ", "laissé de côté\u{a0}: ")) (reason) }
            }
        }
    }
}
