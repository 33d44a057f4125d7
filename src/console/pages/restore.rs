//! The restore wizard: machine and point, where, what will be written, and the start.

use crate::console::answers::{not_found, refused};
use crate::console::html;
use crate::console::pages::jobs;
use crate::console::pages::points::find;
use crate::console::visit::Visit;
use crate::record::{Point, Record};
use axum::Extension;
use axum::extract::Path;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};
use std::collections::BTreeMap;

/// The steps, and which of them this is.
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

/// `GET /restore?machine=`
pub(super) async fn choose(Extension(visit): Extension<Visit>) -> Html<String> {
    let answer = visit.console.toolbox.look_up(&["points"], visit.query.is_set("again")).await;
    let mut by_machine = BTreeMap::<&str, Vec<&Point>>::new();
    for record in answer.records.iter().rev() {
        if let Record::Point(point) = record {
            by_machine.entry(&point.machine).or_default().push(point);
        }
    }
    let chosen = visit.query.get("machine").and_then(|name| Some((name, by_machine.get(name)?)));
    let language = visit.language;
    let body = html! {
        (html::head(visit.say("Restore a machine", "Restaurer une machine"), ""))
        (steps(&visit, 0))
        (html::failures(&visit, &answer))
        form method="get" action="/restore" class="row" {
            div class="field" {
                label for="machine" { (visit.say("Machine", "Machine")) }
                select id="machine" name="machine" class="w-m" {
                    @for name in by_machine.keys() {
                        option value=(name) selected[chosen.is_some_and(|(chosen, _)| chosen == *name)] { (name) }
                    }
                }
            }
            button type="submit" { (visit.say("Show its points", "Montrer ses points")) }
        }
        @if by_machine.is_empty() { p { (visit.say("There is no point yet.", "Il n’y a encore aucun point.")) } }
        @if let Some((name, points)) = chosen {
            section class="sec" {
                h2 { (name) }
                (html::table(
                    visit.say("Points, newest first", "Points, les plus récents d’abord"),
                    &[
                        visit.say("Captured", "Capture"),
                        visit.say("State", "État"),
                        visit.say("Repository", "Dépôt"),
                    ],
                    points.iter().map(|point| vec![
                        html! {
                            a href={"/restore/" (html::segment(&point.point)) "/where"} {
                                (language.moment(point.captured_at))
                            }
                            span class="two" { code { (html::short(&point.point)) } }
                        },
                        html::point_state(&visit, point),
                        html! { (point.repo) },
                    ]).collect(),
                ))
            }
        }
        (html::age(&visit, &answer))
    };
    html::page(&visit, visit.say("Restore", "Restaurer"), false, body).await
}

/// `GET /restore/ID/where`
pub(super) async fn place(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some(point) = find(&visit, &id).await else { return not_found(&visit).await };
    let title = heading(&visit, &point);
    let copy = format!("{}-restored", point.machine);
    let body = html! {
        (html::head(&title, &point.repo))
        (steps(&visit, 1))
        form method="get" action={"/restore/" (html::segment(&id)) "/review"} class="sec" {
            fieldset class="opts" {
                legend { (visit.say("Where to", "Où")) }
                (choice("copy", true, visit.say("Beside, as another machine", "À côté, sous un autre nom"), visit.say(
                    "A new machine with its own UUID and MAC addresses. Nothing that exists is changed.",
                    "Une nouvelle machine, avec un UUID et des adresses MAC à elle. Rien d’existant n’est modifié.",
                ), html! {
                    div class="field" {
                        label for="as" { (visit.say("Name", "Nom")) }
                        input id="as" name="as" class="w-m mono" value=(copy);
                    }
                    div class="field" {
                        label for="into" { (visit.say("Folder for the disks", "Dossier des disques")) }
                        input id="into" name="into" class="mono" value="/var/lib/libvirt/images";
                    }
                }))
                (choice("place", false, visit.say("In its place", "À sa place"), visit.say(
                    "Replaces the machine and its disks. It must be off.",
                    "Remplace la machine et ses disques. Elle doit être éteinte.",
                ), html! {}))
                (choice("files", false, visit.say("Disks only", "Les disques seulement"), visit.say(
                    "Writes disk images and the definition as files. libvirt gets no machine.",
                    "Écrit les images et la définition comme fichiers. libvirt ne reçoit aucune machine.",
                ), html! {
                    div class="field" {
                        label for="folder" { (visit.say("Folder", "Dossier")) }
                        input id="folder" name="folder" class="mono" placeholder="/srv/restore";
                    }
                    @for disk in &point.disks {
                        label class="check" {
                            input type="checkbox" name="disk" value=(disk.disk);
                            span { (disk.disk) ", " (visit.language.bytes(disk.capacity_bytes)) }
                        }
                    }
                }))
            }
            label class="check" {
                input type="checkbox" name="start" value="1";
                span { (visit.say("Start the machine afterwards", "Démarrer la machine ensuite")) }
            }
            div class="row" {
                button type="submit" class="pri" {
                    (visit.say("Review what will be written", "Voir ce qui sera écrit"))
                }
                a class="btn" href="/restore" { (visit.say("Back", "Retour")) }
            }
        }
    };
    html::page(&visit, &title, false, body).await.into_response()
}

fn choice(value: &str, checked: bool, title: &str, help: &str, more: Markup) -> Markup {
    html! {
        div class="choice" {
            label {
                input type="radio" name="where" value=(value) checked[checked];
                b { (title) }
                span class="help" { (help) }
            }
            div class="more" { (more) }
        }
    }
}

fn heading(visit: &Visit, point: &Point) -> String {
    let at = visit.language.moment(point.captured_at);
    visit.language.tell(format!("Restore {}, {at}", point.machine), format!("Restaurer {}, {at}", point.machine))
}

/// The command line that a form asks for, without the program; none if it asks for nothing sensible.
fn words_of<'f>(point: &Point, get: impl Fn(&str) -> Option<&'f str>, disks: &[String]) -> Option<Vec<String>> {
    let mut words = vec!["restore".to_owned()];
    match get("where")? {
        "copy" => {
            words.push(format!("--as={}", get("as")?));
            words.push(format!("--into={}", get("into")?));
        }
        "place" => words.push("--overwrite".into()),
        "files" => {
            words.push(format!("--into={}", get("folder")?));
            words.push("--no-define".into());
            words.extend(disks.iter().map(|disk| format!("--disk={disk}")));
        }
        _ => return None,
    }
    if get("start").is_some() && get("where") != Some("files") {
        words.push("--start".into());
    }
    words.extend(["--".to_owned(), point.point.clone()]);
    Some(words)
}

/// `GET /restore/ID/review`
pub(super) async fn review(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some(point) = find(&visit, &id).await else { return not_found(&visit).await };
    let back = format!("/restore/{}/where", html::segment(&id));
    let disks: Vec<String> = visit.query.all("disk").map(str::to_owned).collect();
    let Some(words) = words_of(&point, |name| visit.query.get(name), &disks) else {
        let message = visit.say("A name or a folder is missing.", "Il manque un nom ou un dossier.");
        return refused(&visit, visit.say("Nothing to restore", "Rien à restaurer"), message, &back).await;
    };
    let dry: Vec<&str> = ["restore", "--dry-run"].into_iter().chain(words[1..].iter().map(String::as_str)).collect();
    let answer = visit.console.toolbox.look_up(&dry, true).await;
    let is_possible = answer.exit_code == Some(0);
    let overwrites = visit.query.get("where") == Some("place");
    let title = heading(&visit, &point);
    let body = html! {
        (html::head(&title, &point.repo))
        (steps(&visit, 2))
        @if overwrites {
            div class="note warn" {
                (html::icon("warn"))
                div {
                    p { (visit.language.tell(
                        format!("What {} wrote after this point is lost. To keep it, back it up first:", point.machine),
                        format!(
                            "Ce que {} a écrit après ce point sera perdu. Pour le garder, sauvegardez d’abord :",
                            point.machine
                        ),
                    )) }
                    (html::action(
                        &visit,
                        "/backup",
                        &[("m", &point.machine)],
                        visit.say("Back up first", "Sauvegarder d’abord"),
                        &["backup", "--", &point.machine],
                    ))
                }
            }
        }
        section class="sec" {
            h2 { (visit.say("What will be written", "Ce qui sera écrit")) }
            (html::records(&visit, &answer.records))
        }
        @if !answer.warnings.is_empty() {
            section class="sec" {
                h2 { (visit.say("What differs or is missing on this host", "Ce qui diffère ou manque sur cet hôte")) }
                @for warning in answer.warnings.iter() {
                    div class="note warn" { (html::icon("warn")) p class="brk" { (warning) } }
                }
            }
        }
        @if is_possible && visit.may_change() {
            form method="post" action={"/restore/" (html::segment(&id)) "/start"} class="formend" {
                (html::form_token(&visit))
                @for (name, value) in visit.query.iter() { input type="hidden" name=(name) value=(value); }
                h2 { (visit.say("Restore", "Restaurer")) }
                @if overwrites { (confirmation(&visit, &point, None)) }
                div class="row" {
                    button type="submit" class=(if overwrites { "danger" } else { "pri" }) {
                        (button(&visit, &point, overwrites))
                    }
                    a class="btn" href=(back) { (visit.say("Back", "Retour")) }
                }
            }
        } @else { p { a href=(back) { (visit.say("Back", "Retour")) } } }
        (html::line(&visit.console.toolbox.command_line(&words)))
    };
    html::page(&visit, &title, false, body).await.into_response()
}

fn button(visit: &Visit, point: &Point, overwrites: bool) -> String {
    let machine = &point.machine;
    match overwrites {
        true => visit.language.tell(format!("Overwrite {machine}"), format!("Écraser {machine}")),
        false => visit.language.tell(format!("Restore {machine}"), format!("Restaurer {machine}")),
    }
}

fn confirmation(visit: &Visit, point: &Point, error: Option<&str>) -> Markup {
    html! {
        div class="field" {
            label for="confirm" {
                (visit.say(
                    "Type the name of the machine to overwrite it: ",
                    "Tapez le nom de la machine pour l’écraser : ",
                ))
                code { (point.machine) }
            }
            input id="confirm" name="confirm" class="w-m mono" required autocomplete="off" spellcheck="false"
                aria-invalid=[error.map(|_| "true")] aria-describedby=[error.map(|_| "confirm-e")];
            @if let Some(error) = error { p class="err" id="confirm-e" { (html::icon("crit")) span { (error) } } }
        }
    }
}

/// `POST /restore/ID/start`
pub(super) async fn start(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some(point) = find(&visit, &id).await else { return not_found(&visit).await };
    let back = format!("/restore/{}/where", html::segment(&id));
    let disks: Vec<String> = visit.form.all("disk").map(str::to_owned).collect();
    let Some(words) = words_of(&point, |name| visit.form.get(name), &disks) else {
        return not_found(&visit).await;
    };
    let overwrites = visit.form.get("where") == Some("place");
    if overwrites && visit.form.get("confirm") != Some(point.machine.as_str()) {
        let error = visit.say("This is not the name of the machine.", "Ce n’est pas le nom de la machine.");
        let title = heading(&visit, &point);
        let body = html! {
            (html::head(&title, &point.repo))
            (steps(&visit, 2))
            form method="post" action={"/restore/" (html::segment(&id)) "/start"} class="formend" {
                (html::form_token(&visit))
                @for (name, value) in visit.form.iter().filter(|(name, _)| !["csrf", "confirm"].contains(name)) {
                    input type="hidden" name=(name) value=(value);
                }
                (confirmation(&visit, &point, Some(error)))
                div class="row" {
                    button type="submit" class="danger" { (button(&visit, &point, true)) }
                    a class="btn" href=(back) { (visit.say("Back", "Retour")) }
                }
            }
        };
        let page = html::page(&visit, &title, false, body).await;
        return (axum::http::StatusCode::UNPROCESSABLE_ENTITY, page).into_response();
    }
    jobs::start(&visit, &words, &back).await
}
