//! One restore point: its disks, its state, and what can be done with it.

use crate::console::answers::{not_found, redirect, refused};
use crate::console::html;
use crate::console::pages::jobs;
use crate::console::visit::Visit;
use crate::record::{Point, Record};
use axum::Extension;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use maud::html;

/// The point with this id.
pub(super) async fn find(visit: &Visit, id: &str) -> Option<Point> {
    for again in [false, true] {
        let answer = visit.console.toolbox.look_up(&["points"], again).await;
        let found = answer.records.iter().find_map(|record| match record {
            Record::Point(point) if point.point == id => Some(point.clone()),
            _ => None,
        });
        if found.is_some() {
            return found;
        }
    }
    None
}

/// `GET /points/ID`
pub(super) async fn page(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some(point) = find(&visit, &id).await else { return not_found(&visit).await };
    let language = visit.language;
    let title = format!("{}, {}", point.machine, language.moment(point.captured_at));
    let row = |disk: &crate::record::PointDisk| {
        vec![
            html! { (disk.disk) },
            html! { (language.bytes(disk.capacity_bytes)) },
            html! { (language.bytes(disk.read_bytes)) span class="two" { (disk.read_mode) } },
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
    let pin = match point.pinned {
        true => {
            (visit.say("Remove the protection", "Retirer la protection"), vec!["pin", "--undo", point.point.as_str()])
        }
        false => (visit.say("Protect from pruning", "Protéger du nettoyage"), vec!["pin", point.point.as_str()]),
    };
    let undo = if point.pinned { "1" } else { "" };
    let body = html! {
        nav class="crumbs" aria-label=(visit.say("Breadcrumb", "Fil d’Ariane")) {
            ol {
                li { a href="/machines" { (visit.say("Machines", "Machines")) } }
                li { a href={"/machines/" (html::segment(&point.machine))} { (point.machine) } }
                li aria-current="page" { (html::short(&point.point)) }
            }
        }
        div class="head" {
            div {
                h1 { (title) }
                p class="sub" { (html::point_state(&visit, &point)) }
            }
            div class="acts row" {
                a class="btn" href={"/restore/" (html::segment(&point.point)) "/where"} {
                    (html::icon("restore")) (visit.say("Restore", "Restaurer"))
                }
            }
        }
        @for damage in &point.damage {
            div class="note crit" {
                (html::icon("crit"))
                p class="brk" { (damage.disk.as_deref().unwrap_or("-")) ": " (damage.error) }
            }
        }
        @for left_out in &point.left_out {
            div class="note warn" {
                (html::icon("warn"))
                p class="brk" {
                    (visit.say("Not in the point: ", "Absent du point : "))
                    (left_out.disk.as_deref().or(left_out.part.as_deref()).unwrap_or("-")) ": " (left_out.reason)
                }
            }
        }
        dl class="facts" {
            dt { "ID" } dd { code class="brk" { (point.point) } }
            dt { (visit.say("Repository", "Dépôt")) } dd { (point.repo) }
            dt { (visit.say("Host", "Hôte")) } dd { (point.host) }
            @if let Some(at) = point.verified_at {
                dt { (visit.say("Verified", "Vérifié")) } dd { (language.moment(at)) }
            }
        }
        (html::table(visit.say("Disks", "Disques"), &heads, point.disks.iter().map(row).collect()))
        section class="sec" {
            h2 { (visit.say("Verify", "Vérifier")) }
            p { (visit.say("Reads every chunk back from the repository.", "Relit chaque bloc depuis le dépôt.")) }
            (html::action(
                &visit,
                "/points/verify",
                &[("p", &point.point)],
                visit.say("Verify this point", "Vérifier ce point"),
                &["verify", &point.point],
            ))
        }
        section class="sec" {
            h2 { (visit.say("Protect", "Protéger")) }
            (html::action(&visit, "/points/pin", &[("p", &point.point), ("undo", undo)], pin.0, &pin.1))
        }
    };
    html::page(&visit, &title, false, body).await.into_response()
}

/// The points that a form names; they must be ids, so that nothing else can be named.
fn named(visit: &Visit) -> Option<Vec<String>> {
    let ids: Vec<String> = visit.form.all("p").map(str::to_owned).collect();
    let is_id = |id: &String| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (!ids.is_empty() && ids.iter().all(is_id)).then_some(ids)
}

/// `POST /points/verify`
pub(super) async fn verify(Extension(visit): Extension<Visit>) -> Response {
    let Some(ids) = named(&visit) else { return not_found(&visit).await };
    let back = format!("/points/{}", ids[0]);
    let words: Vec<String> = ["verify".to_owned()].into_iter().chain(ids).collect();
    jobs::start(&visit, &words, &back).await
}

/// `POST /points/pin`
pub(super) async fn pin(Extension(visit): Extension<Visit>) -> Response {
    let Some(ids) = named(&visit) else { return not_found(&visit).await };
    let back = format!("/points/{}", ids[0]);
    let mut words = vec!["pin".to_owned()];
    words.extend(visit.form.is_set("undo").then(|| "--undo".to_owned()));
    words.extend(ids);
    let answer = visit.console.toolbox.act(&words).await;
    if let Some(failure) = answer.failures().next() {
        return refused(&visit, visit.say("Not changed", "Inchangé"), &failure.error, &back).await;
    }
    // A point that is protected has another id.
    let new = answer.records.iter().find_map(|record| match record {
        Record::Action(action) => Some(action.target.clone()),
        _ => None,
    });
    redirect(&new.map_or(back, |id| format!("/points/{}", html::segment(&id))))
}
