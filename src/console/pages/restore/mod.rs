//! The restore wizard: machine and point, target, review, start.

mod choose;
mod place;
mod review;
mod unfinished;
mod words;

pub(super) use choose::page as choose;
pub(super) use place::page as place;
pub(super) use review::{page as review, start};
pub(super) use unfinished::{abort, find, if_it_stops, is_unfinished, note, page as unfinished, resume, ways};

use crate::console::visit::Visit;
use crate::record::Point;
use maud::{Markup, html};

/// Returns the list of steps, with the current one marked.
fn steps(visit: &Visit, current: usize) -> Markup {
    let names = [
        visit.say("Machine and point", "Machine et point"),
        visit.say("Where", "Où"),
        visit.say("Review", "Vérification"),
        visit.say("Restore", "Restauration"),
    ];
    html! {
        nav aria-label=(visit.say("Steps", "Étapes")) {
            ol class="steps" {
                @for (at, name) in names.into_iter().enumerate() {
                    li class=[(at < current).then_some("done")] aria-current=[(at == current).then_some("step")] {
                        (name)
                    }
                }
            }
        }
    }
}

fn heading(visit: &Visit, point: &Point) -> String {
    let at = visit.language.moment(point.captured_at);
    visit.language.say(format!("Restore {}, {at}", point.machine), format!("Restaurer {}, {at}", point.machine))
}
