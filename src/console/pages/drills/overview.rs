//! Drills on the overview page: the last one of each machine, most urgent first, and the form for the next ones.

use super::form::{Wish, form};
use super::outcome::{Drilled, height};
use crate::console::html;
use crate::console::pages::machine_status::MachineStatus;
use crate::console::visit::Visit;
use maud::{Markup, html};

/// Maximum number of machines listed; the machines' own pages show all.
const MOST_LISTED: usize = 20;

fn has_points(machine: &MachineStatus<'_>) -> bool {
    machine.time("captured_at").is_some()
}

/// Returns the section, or nothing if there is nothing to boot.
pub(in crate::console) fn section(visit: &Visit, machines: &[MachineStatus<'_>]) -> Markup {
    if !machines.iter().any(has_points) {
        return html! {};
    }
    html! {
        section class="sec" id="drills" {
            h2 { (visit.say("Drills", "Essais de démarrage")) }
            (last_ones(visit, machines))
            (form(visit, &Wish::Sample))
        }
    }
}

/// Returns the part that changes when a job has ended: the last drill of each machine.
pub(in crate::console) fn last_ones(visit: &Visit, machines: &[MachineStatus<'_>]) -> Markup {
    let with_points: Vec<_> = machines.iter().filter(|machine| has_points(machine)).collect();
    let mut drilled: Vec<Drilled> = with_points.iter().filter_map(|machine| Drilled::last(machine)).collect();
    let urgency = |status: &str| match status {
        "critical" => 0,
        "ok" => 2,
        _ => 1,
    };
    drilled.sort_by(|a, b| (urgency(&a.status), a.at, &a.machine).cmp(&(urgency(&b.status), b.at, &b.machine)));
    let booted = drilled.iter().filter(|drilled| drilled.status == "ok").count();
    let (count, more) = (with_points.len(), drilled.len().saturating_sub(MOST_LISTED));
    let heads = [
        visit.say("Machine", "Machine"),
        visit.say("Last drill", "Dernier essai"),
        visit.say("Reached", "Étape atteinte"),
        visit.say("When", "Quand"),
        visit.say("What was seen", "Constat"),
    ];
    let row = |drilled: &Drilled| {
        vec![
            html! {
                a class="brk" href={"/machines/" (html::segment(&drilled.machine)) "/drill"} { (drilled.machine) }
            },
            html! { (html::state(visit.language, &drilled.status)) },
            html! { (height(visit, drilled)) },
            html! { (visit.language.ago(drilled.at)) },
            html! { span class="brk" { (visit.language.of_command(&drilled.detail)) } },
        ]
    };
    let caption = visit.say("Last drills, most urgent first", "Derniers essais, les plus urgents d’abord");
    html! {
        div id="live-drills" class="sec" {
            p {
                (visit.language.say(
                    format!("{booted} of {count} machines reached their goal in their last drill."),
                    format!("{booted} machines sur {count} sont allées assez loin à leur dernier essai."),
                ))
            }
            @if !drilled.is_empty() {
                (html::table(caption, &heads, drilled.iter().take(MOST_LISTED).map(row).collect()))
            }
            @if more > 0 {
                p { (visit.language.say(
                    format!("{more} more are on the pages of the machines."),
                    format!("{more} autres sont sur les pages des machines."),
                )) }
            }
        }
    }
}

/// Returns the options after a drill that failed or is overdue: another one with one click, and the output of the last
/// one.
pub(in crate::console) fn ways(visit: &Visit, machine: &MachineStatus<'_>) -> Markup {
    let (name, drilled) = (machine.name(), Drilled::last(machine).is_some());
    let again = visit.say("Boot the point again", "Démarrer de nouveau le point");
    html! {
        (html::action(
            visit,
            "/drill",
            &[("m", name)],
            if drilled { again } else { visit.say("Boot the point", "Démarrer le point") },
            &["drill", "--", name],
        ))
        @if drilled {
            p {
                a href={"/machines/" (html::segment(name)) "/drill"} {
                    (visit.say("Look at its screen and its log", "Voir son écran et son journal"))
                }
            }
        }
    }
}
