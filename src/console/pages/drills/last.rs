//! The last drill of a machine with its output, and the form for another one.

use super::form::{Wish, form};
use super::outcome::{Drilled, panel};
use crate::console::answers::not_found;
use crate::console::html;
use crate::console::pages::machine_status::machines;
use crate::console::visit::Visit;
use axum::Extension;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use maud::html;

/// `GET /machines/NAME/drill`
pub(in crate::console) async fn page(Extension(visit): Extension<Visit>, Path(name): Path<String>) -> Response {
    let status = visit.console.toolbox.status(visit.query.is_set("again")).await;
    let checks = machines(&status.records);
    let Some(machine) = checks.iter().find(|machine| machine.name() == name) else { return not_found(&visit).await };
    let address = format!("/machines/{}", html::segment(&name));
    let title = visit.language.say(format!("Drill of {name}"), format!("Essai de démarrage de {name}"));
    let body = html! {
        nav class="crumbs" aria-label=(visit.say("Breadcrumb", "Fil d’Ariane")) {
            ol {
                li { a href="/machines" { (visit.say("Machines", "Machines")) } }
                li { a class="brk" href=(address) { (name) } }
                li aria-current="page" { (visit.say("Drill", "Essai de démarrage")) }
            }
        }
        div class="head" {
            div {
                h1 class="brk" { (title) }
                p class="sub" {
                    (visit.say(
                        "A copy of the machine boots from a point, in isolation. Only what is shown here is kept.",
                        "Une copie de la machine démarre depuis un point, isolée. Il n’en reste que ce qui est \
                         montré ici.",
                    ))
                }
            }
        }
        section class="sec" {
            h2 { (visit.say("Last drill", "Dernier essai")) }
            @match Drilled::last(machine) {
                Some(drilled) => (panel(&visit, &drilled, &format!("{address}/drill")).await),
                None => p { (visit.say(
                    "No point of this machine has ever been booted.",
                    "Aucun point de cette machine n’a jamais été démarré.",
                )) },
            }
        }
        @if machine.time("captured_at").is_some() {
            section class="sec" {
                h2 { (visit.say("Boot it again", "Démarrer de nouveau")) }
                (form(&visit, &Wish::Machine(&name)))
            }
        }
        (html::age(&visit, &status))
    };
    html::page(&visit, &title, html::PageUpdates::None, body).await.into_response()
}
