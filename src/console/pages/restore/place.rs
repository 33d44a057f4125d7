//! The second step: the target.

use super::words::FIELDS;
use super::{heading, steps};
use crate::console::html;
use crate::console::pages::fields::{FieldErrors, Form, choice};
use crate::console::pages::points::lookup::{find, missing};
use crate::console::pages::repos::KnownPoints;
use crate::console::visit::Visit;
use crate::record::Point;
use axum::Extension;
use axum::extract::Path;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

/// libvirt's default folder for images.
const IMAGES: &str = "/var/lib/libvirt/images";

/// `GET /restore/ID/where`
pub(in crate::console) async fn page(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some((point, known)) = find(&visit, &id).await else { return missing(&visit, &id).await };
    show(&visit, &point, &known, &FieldErrors::default()).await.into_response()
}

/// Returns the form with the values of the query and their errors.
pub(super) async fn show(visit: &Visit, point: &Point, known: &KnownPoints, errors: &FieldErrors) -> Html<String> {
    let title = heading(visit, point);
    let form = Form { typed: &visit.query, errors };
    let place = form.value("where");
    let disk_errors = errors.of("disk");
    let body = html! {
        (html::head(&title, ""))
        p { (known.repos.label(visit, &point.repo)) }
        (steps(visit, 1))
        (errors.above(&FIELDS.map(|(field, _)| (field, "")).into_iter().chain([("disk", "")]).collect::<Vec<_>>()))
        form method="get" action={"/restore/" (html::segment(&point.point)) "/review"} class="sec" {
            fieldset class="opts" {
                legend { (visit.say("Where to", "Où")) }
                (choice("copy", place.is_empty() || place == "copy",
                    visit.say("Next to the original, as another machine", "À côté, sous un autre nom"), visit.say(
                    "A new machine with its own UUID and MAC addresses. Nothing that exists is changed.",
                    "Une nouvelle machine, avec un UUID et des adresses MAC à elle. Rien d’existant n’est modifié.",
                ), html! {
                    (form.text_with("as", visit.say("Name", "Nom"), "--as", "", &format!("{}-restored", point.machine)))
                    (form.text_with("into", visit.say("Folder for the disks", "Dossier des disques"), "--into", "",
                        IMAGES))
                }))
                (choice("place", place == "place", visit.say("In its place", "À sa place"), visit.say(
                    "Replaces the machine and its disks. It must be off.",
                    "Remplace la machine et ses disques. Elle doit être éteinte.",
                ), html! {}))
                @if !point.disks.is_empty() {
                    (choice("live", place == "live", visit.say(
                        "In its place, running at once", "À sa place, en marche tout de suite",
                    ), visit.say(
                        "Replaces the machine and its disks; it must be off. It starts within seconds, and its data is \
                         copied while it runs. It needs the repository until the end.",
                        "Remplace la machine et ses disques\u{202f}; elle doit être éteinte. Elle démarre en quelques \
                         secondes, et ses données sont copiées pendant qu’elle tourne. Elle a besoin du dépôt jusqu’à \
                         la fin.",
                    ), html! {
                        (form.text("limit_read", visit.say(
                            "Copy limit per second", "Copier au plus tant par seconde",
                        ), "--limit-read", "200M"))
                    }))
                    (choice("disks", place == "disks", visit.say("Single disks", "Certains disques"), visit.say(
                        "Only the ticked disks, without the definition. Without a folder, they replace the disks of \
                         the machine, which must be off.",
                        "Seulement les disques cochés, sans la définition. Sans dossier, ils remplacent ceux de la \
                         machine, qui doit être éteinte.",
                    ), html! {
                        @for disk in &point.disks {
                            label class="check" {
                                input type="checkbox" name="disk" value=(disk.disk)
                                    checked[visit.query.all("disk").any(|ticked| ticked == disk.disk)]
                                    aria-describedby=[disk_errors.map(|_| "disk-e")];
                                span { (disk.disk) ", " (visit.language.bytes(disk.capacity_bytes)) }
                            }
                        }
                        @if let Some(error) = disk_errors {
                            p class="err" id="disk-e" { (html::icon("crit")) span { (error) } }
                        }
                        (form.text("disks_into", visit.say("Folder (empty: their original place)",
                            "Dossier, ou vide pour leur place"), "--into", "/srv/restore"))
                    }))
                }
                (choice("files", place == "files", visit.say("As files", "Comme fichiers"), visit.say(
                    "Writes disk images and the definition into a folder. libvirt gets no machine.",
                    "Écrit les images et la définition dans un dossier. libvirt ne reçoit aucune machine.",
                ), html! {
                    (form.text("folder", visit.say("Folder", "Dossier"), "--into", "/srv/restore"))
                }))
                @if !point.disks.is_empty() {
                    (choice("single", place == "single",
                        visit.say("Only single files", "Seulement des fichiers"), visit.say(
                        "Look for them in the point, then download them or copy them into a folder of this host.",
                        "Cherchez-les dans le point, puis téléchargez-les ou copiez-les dans un dossier de cet hôte.",
                    ), html! {
                        p {
                            a href={"/points/" (html::segment(&point.point)) "/files"} {
                                (visit.say("Browse the files of this point", "Parcourir les fichiers de ce point"))
                            }
                        }
                    }))
                }
            }
            div class="fields" {
                (form.check("start", visit.say(
                    "Start the machine afterwards", "Démarrer la machine ensuite",
                ), "--start"))
                (form.select("format", visit.say("Image format", "Format des images"), "--format", &[
                    ("", visit.say("as in the definition", "celui de la définition")),
                    ("qcow2", "qcow2"),
                    ("raw", "raw"),
                ]))
            }
            (kept(visit))
            div class="row" {
                button type="submit" class="pri" {
                    (visit.say("Review what will be written", "Voir ce qui sera écrit"))
                }
                a class="btn" href={"/restore?machine=" (html::segment(&point.machine))} {
                    (visit.say("Back", "Retour"))
                }
            }
        }
    };
    html::page(visit, &title, html::PageUpdates::None, body).await
}

/// Returns hidden fields that keep the values of the last step.
fn kept(visit: &Visit) -> Markup {
    let is_kept = |name: &str| {
        name.starts_with(super::words::NETWORK)
            || name.starts_with(super::words::BRIDGE)
            || ["with_files", "drop_missing_media", "discard_saved_memory"].contains(&name)
    };
    html! {
        @for (name, value) in visit.query.iter().filter(|(name, _)| is_kept(name)) {
            input type="hidden" name=(name) value=(value);
        }
    }
}
