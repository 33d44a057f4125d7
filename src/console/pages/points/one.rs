//! One restore point: its disks, its state, its damage, its copies.

use super::actions::{copy_words, pin_words, verify_words};
use super::list;
use super::lookup::{find, missing};
use crate::console::html;
use crate::console::pages::drills::{self, Wish};
use crate::console::pages::fields::{FieldErrors, Form};
use crate::console::pages::repos::{KnownPoints, damaged_points};
use crate::console::visit::{Fields, Visit};
use crate::record::{Damage, Point, PointDisk, Record};
use axum::Extension;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

/// How many past verifications are searched for the damaged ranges of a point.
const MOST_SEARCHED: usize = 5;

/// `GET /points/ID`
pub(in crate::console) async fn page(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some((mut point, known)) = find(&visit, &id).await else { return missing(&visit, &id).await };
    let damaged = damaged_points(&visit).await;
    if damaged.contains(&point.point) && point.damage.is_empty() {
        point.damage = damage_found(&visit, &point.point).await;
    }
    let language = visit.language;
    let title = format!("{}, {}", point.machine, language.moment(point.captured_at));
    let body = html! {
        nav class="crumbs" aria-label=(visit.say("Breadcrumb", "Fil d’Ariane")) {
            ol {
                li { a href="/machines" { (visit.say("Machines", "Machines")) } }
                li { a class="brk" href={"/machines/" (html::segment(&point.machine))} { (point.machine) } }
                li aria-current="page" { (html::short(&point.point)) }
            }
        }
        div class="head" {
            div {
                h1 class="brk" { (title) }
                p class="sub" { (list::state(&visit, &point, &damaged)) }
                p { (known.repos.label(&visit, &point.repo)) }
            }
            div class="acts row" {
                a class="btn" href={"/restore/" (html::segment(&point.point)) "/where"} {
                    (html::icon("restore")) (visit.say("Restore", "Restaurer"))
                }
            }
        }
        (damage_note(&visit, &point, &known, &damaged))
        @for left_out in &point.left_out {
            div class="note warn" {
                (html::icon("warn"))
                p class="brk" {
                    (visit.say("Not in the point: ", "Absent du point\u{a0}: "))
                    (left_out.disk.as_deref().or(left_out.part.as_deref()).unwrap_or("-")) ": " (left_out.reason)
                }
            }
        }
        div class="split" {
            section class="sec" {
                h2 { (visit.say("Details", "Détails")) }
                (facts(&visit, &point, &known))
            }
            section class="sec" {
                h2 { (visit.say("Actions", "Actions")) }
                (actions(&visit, &point, &known))
            }
        }
        section class="sec" id="drill" {
            h2 { (visit.say("Drill", "Essai de démarrage")) }
            p { (visit.say(
                "Boots a copy of the machine from this point in isolation, and reports how far it gets. The copy is \
                 removed afterwards.",
                "Démarre une copie de la machine depuis ce point, isolée, et dit jusqu’où elle va. Rien n’en reste.",
            )) }
            (drills::form(&visit, &Wish::Point(&known.repos, &point)))
        }
        section class="sec" {
            h2 { (visit.say("Disks", "Disques")) }
            @if point.disks.is_empty() {
                p { (visit.say("This machine has no disk in the point.", "Le point n’a aucun disque.")) }
            } @else { (disks(&visit, &point)) }
        }
        @if !point.disks.is_empty() {
            section class="sec" id="files" {
                h2 { (visit.say("Files of the guest", "Fichiers de l’invité")) }
                p { (visit.say(
                    "Look at, find and download single files without restoring the machine.",
                    "Regardez, cherchez et téléchargez des fichiers sans restaurer la machine.",
                )) }
                p {
                    a class="btn" href={"/points/" (html::segment(&point.point)) "/files"} {
                        (html::icon("folder")) (visit.say("Browse the files", "Parcourir les fichiers"))
                    }
                }
            }
        }
        @if !point.files.is_empty() {
            section class="sec" { h2 { (visit.say("Files beside the disks", "Fichiers à côté des disques")) }
                (files(&visit, &point)) }
        }
        @if !point.damage.is_empty() {
            section class="sec" id="damage" {
                h2 { (visit.say("Damage", "Dommages")) }
                (ranges(&visit, &point.damage))
            }
        }
        (known.sources(&visit))
    };
    html::page(&visit, &title, html::PageUpdates::None, body).await.into_response()
}

/// Returns the damaged ranges of a point, from the newest verification that found any.
async fn damage_found(visit: &Visit, id: &str) -> Vec<Damage> {
    let jobs = visit.console.toolbox.jobs().await;
    for job in jobs.iter().filter(|job| job.status == "damage").take(MOST_SEARCHED) {
        let answer = visit.console.toolbox.look_up(&["jobs", "show", &job.job], false).await;
        let found = answer.records.iter().find_map(|record| match record {
            Record::Point(point) if point.point == id && !point.damage.is_empty() => Some(point.damage.clone()),
            _ => None,
        });
        if let Some(damage) = found {
            return damage;
        }
    }
    Vec::new()
}

/// Returns a warning if a point is damaged, and where there is an intact copy.
fn damage_note(visit: &Visit, point: &Point, known: &KnownPoints, damaged: &[String]) -> Markup {
    if !damaged.contains(&point.point) && point.damage.is_empty() {
        return html! {};
    }
    let twin = known.repos.other(&point.repo).and_then(|other| known.twin(point, other));
    html! {
        div class="note crit" {
            (html::icon("crit"))
            div {
                p {
                    b { (visit.say("This point is damaged.", "Ce point est endommagé.")) } " "
                    (visit.say(
                        "kvmb never returns wrong data: a restore of this point stops at the damage.",
                        "kvmb ne rend jamais de données fausses\u{a0}: une restauration s’arrête au dommage.",
                    ))
                }
                @if !point.damage.is_empty() {
                    p { a href="#damage" { (visit.say("Show the damaged ranges", "Voir les zones endommagées")) } }
                }
                @if let Some(twin) = twin.filter(|twin| !damaged.contains(&twin.point)) {
                    p {
                        a class="btn" href={"/points/" (html::segment(&twin.point))} {
                            (visit.say("Open the copy in the other repository", "Ouvrir la copie de l’autre dépôt"))
                        }
                    }
                } @else {
                    p {
                        (visit.say(
                            "Back up the machine again, and verify:",
                            "Sauvegardez de nouveau, et vérifiez\u{a0}:",
                        ))
                    }
                    (html::command(visit, &["backup", "--full", "--verify", "--", &point.machine]))
                }
            }
        }
    }
}

fn facts(visit: &Visit, point: &Point, known: &KnownPoints) -> Markup {
    let language = visit.language;
    html! {
        dl class="facts" {
            dt { (visit.say("Captured", "Capturé")) } dd { (language.moment(point.captured_at)) }
            dt { (visit.say("Consistency", "Cohérence")) } dd { (html::consistency(visit, &point.consistency)) }
            dt { "ID" } dd { code class="brk" { (point.point) } }
            dt { (visit.say("Repository", "Dépôt")) } dd { (known.repos.label(visit, &point.repo)) }
            dt { (visit.say("Host", "Hôte")) } dd class="brk" { (point.host) }
            @if let Some(parent) = &point.parent {
                dt { (visit.say("Continues", "Suite de")) }
                dd { a class="mono" href={"/points/" (html::segment(parent))} { (html::short(parent)) } }
            }
            @if let Some(seconds) = point.duration_seconds {
                dt { (visit.say("Took", "Durée")) } dd { (language.duration(seconds)) }
            }
            dt { (visit.say("Verified", "Vérifié")) }
            dd {
                @match (list::depth(visit, point), point.verified_at) {
                    (Some(depth), Some(at)) => { (depth) ", " (language.moment(at)) },
                    (Some(depth), None) => (depth),
                    _ => (visit.say("never", "jamais")),
                }
            }
            @if let Some(other) = known.repos.other(&point.repo) {
                dt { (visit.say("Other repository", "Autre dépôt")) }
                dd {
                    (known.repos.label(visit, other)) ": "
                    @match known.twin(point, other) {
                        Some(twin) => a href={"/points/" (html::segment(&twin.point))} {
                            (visit.say("has this point", "a ce point"))
                        },
                        None => (visit.say("does not have this point", "n’a pas ce point")),
                    }
                }
            }
        }
    }
}

fn actions(visit: &Visit, point: &Point, known: &KnownPoints) -> Markup {
    let line = |words: &[String]| html::line(&visit.console.toolbox.command_line(words));
    let (nothing, none) = (Fields::default(), FieldErrors::default());
    let form = Form { typed: &nothing, errors: &none };
    let pin = match point.pinned {
        true => visit.say("Remove the pin", "Retirer la protection"),
        false => visit.say("Pin: protect from pruning", "Protéger du nettoyage"),
    };
    html! {
        @if visit.may_change() {
            form method="post" action="/points/verify" class="row" {
                (html::form_token(visit))
                input type="hidden" name="p" value=(point.point);
                (form.select("depth", visit.say("Verify", "Vérifier"), "", &[
                    ("full", visit.say("in full: read every chunk", "en entier\u{a0}: relire chaque bloc")),
                    ("quick", visit.say("quickly: structure and sizes", "rapidement\u{a0}: structure et tailles")),
                ]))
                button type="submit" { (visit.say("Verify this point", "Vérifier ce point")) }
            }
        }
        (line(&verify_words(&known.repos, point, "full")))
        @if visit.may_change() {
            form method="post" action="/points/pin" {
                (html::form_token(visit))
                input type="hidden" name="p" value=(point.point);
                @if point.pinned { input type="hidden" name="undo" value="1"; }
                button type="submit" { (pin) }
            }
        }
        (line(&pin_words(&known.repos, point)))
        @if let (Some(words), Some(other)) = (copy_words(&known.repos, point), known.repos.other(&point.repo)) {
            @if known.twin(point, other).is_none() {
                @if visit.may_change() {
                    form method="post" action="/points/copy" {
                        (html::form_token(visit))
                        input type="hidden" name="p" value=(point.point);
                        button type="submit" {
                            (visit.say("Copy to the other repository", "Copier vers l’autre dépôt"))
                        }
                    }
                }
                (line(&words))
            }
        }
        p { (visit.say("Make the disks available over NBD:", "Rendre les disques lisibles par NBD\u{a0}:")) }
        (line(&["serve".to_owned()].into_iter().chain(known.repos.options(&point.repo))
            .chain([point.point.clone()]).collect::<Vec<_>>()))
    }
}

fn disks(visit: &Visit, point: &Point) -> Markup {
    let language = visit.language;
    let is_damaged = |disk: &PointDisk| point.damage.iter().any(|damage| damage.disk.as_ref() == Some(&disk.disk));
    let row = |disk: &PointDisk| {
        let mode = match disk.read_mode.as_str() {
            "changed" => visit.say("only changes", "seulement les changements"),
            "full" => visit.say("in full", "en entier"),
            other => other,
        };
        vec![
            html! { (disk.disk) @if is_damaged(disk) { " " (html::state(language, "damaged")) } },
            html! { (language.bytes(disk.capacity_bytes)) },
            html! {
                (language.bytes(disk.read_bytes))
                span class="two" { (mode) @if let Some(reason) = &disk.read_mode_reason { ": " (reason) } }
            },
            html! { (language.bytes(disk.new_bytes)) },
            html! { (language.bytes(disk.stored_bytes)) },
            html! { code class="brk" { (disk.sha256.as_deref().unwrap_or("-")) } },
        ]
    };
    let heads = [
        visit.say("Disk", "Disque"),
        visit.say("Size", "Taille"),
        visit.say("Read", "Lu"),
        visit.say("New", "Nouveau"),
        visit.say("Stored", "Stocké"),
        "SHA-256",
    ];
    let caption = visit.say("Disks of this point", "Disques de ce point");
    html::table(caption, &heads, point.disks.iter().map(row).collect())
}

fn files(visit: &Visit, point: &Point) -> Markup {
    let row = |file: &crate::record::PointFile| {
        vec![
            html! { (file.part) },
            html! { code class="brk" { (file.path) } },
            html! { (visit.language.bytes(file.size_bytes)) },
        ]
    };
    let heads = [visit.say("Part", "Partie"), visit.say("Path", "Chemin"), visit.say("Size", "Taille")];
    html::table(visit.say("Files of this point", "Fichiers de ce point"), &heads, point.files.iter().map(row).collect())
}

fn ranges(visit: &Visit, damage: &[Damage]) -> Markup {
    let language = visit.language;
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| language.bytes(bytes));
    let row = |damage: &Damage| {
        let end = damage.offset_bytes.zip(damage.length_bytes).map(|(from, length)| from.saturating_add(length));
        vec![
            html! { (damage.disk.as_deref().unwrap_or("-")) },
            html! { (size(damage.offset_bytes)) },
            html! { (size(end)) },
            html! { (size(damage.length_bytes)) },
            html! { span class="brk" { (damage.error) @if let Some(file) = &damage.file { " (" (file) ")" } } },
        ]
    };
    let heads = [
        visit.say("Disk", "Disque"),
        visit.say("From", "De"),
        visit.say("To", "À"),
        visit.say("Length", "Longueur"),
        visit.say("What was found", "Constat"),
    ];
    html::table(visit.say("Damaged ranges", "Zones endommagées"), &heads, damage.iter().map(row).collect())
}
