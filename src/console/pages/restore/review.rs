//! The third step: a review of what will be written and what is missing on this host, and the start.

use super::unfinished::if_it_stops;
use super::words::{self, BRIDGE, FIELDS, NETWORK, Wanted};
use super::{heading, place, steps};
use crate::console::answers::redirect;
use crate::console::html;
use crate::console::pages::fields::{FieldErrors, Form, query_of, typed_name, with_query};
use crate::console::pages::launch;
use crate::console::pages::points::lookup::{find, missing};
use crate::console::pages::repos::KnownPoints;
use crate::console::toolbox::Answer;
use crate::console::visit::{Fields, Visit};
use crate::record::{Action, Point, Record};
use axum::Extension;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

/// Fields that do not describe the restore.
const OWN: [&str; 2] = ["csrf", "confirm"];

/// `GET /restore/ID/review`
pub(in crate::console) async fn page(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some((point, known)) = find(&visit, &id).await else { return missing(&visit, &id).await };
    let fields = visit.query.clone();
    if fields.get("where") == Some("single") {
        return redirect(&format!("/points/{}/files", html::segment(&point.point)));
    }
    show(&visit, &point, &known, &fields, None).await
}

/// Returns the page for these fields; `error` is the error of the typed name.
async fn show(visit: &Visit, point: &Point, known: &KnownPoints, fields: &Fields, error: Option<&str>) -> Response {
    let words = match words::of_form(visit, point, &known.repos, fields) {
        Ok(words) => words,
        Err(errors) => {
            let visit = Visit { query: fields.clone(), ..visit.clone() };
            let page = place::show(&visit, point, known, &errors).await;
            return (StatusCode::UNPROCESSABLE_ENTITY, page).into_response();
        }
    };
    let dry: Vec<&str> = ["restore", "--dry-run"].into_iter().chain(words[1..].iter().map(String::as_str)).collect();
    let answer = visit.console.toolbox.look_up(&dry, true).await;
    // Show a usage error at its field.
    if answer.exit_code == Some(2) {
        let errors = FieldErrors::of_answer(&answer, &FIELDS);
        let visit = Visit { query: fields.clone(), ..visit.clone() };
        let page = place::show(&visit, point, known, &errors).await;
        return (StatusCode::UNPROCESSABLE_ENTITY, page).into_response();
    }
    let is_possible = answer.exit_code == Some(0);
    let kept: Vec<(&str, &str)> = fields.iter().filter(|(name, _)| !OWN.contains(name)).collect();
    let path = format!("/restore/{}", html::segment(&point.point));
    let back = with_query(&format!("{path}/where"), &query_of(kept.iter().copied()));
    let overwrites = words::overwrites(fields);
    let title = heading(visit, point);
    let body = html! {
        (html::head(&title, ""))
        p { (known.repos.label(visit, &point.repo)) }
        (steps(visit, 2))
        @if overwrites { (warning(visit, point)) }
        @if words::is_live(fields) { (if_it_stops(visit, &point.machine)) }
        (what_is_written(visit, &answer))
        (what_is_missing(visit, &answer))
        (fixes(visit, &answer, fields, &kept, &format!("{path}/review")))
        @if is_possible && visit.may_change() {
            form method="post" action={(path) "/start"} class="formend" {
                (html::form_token(visit))
                @for (name, value) in &kept { input type="hidden" name=(name) value=(value); }
                h2 { (visit.say("Restore", "Restaurer")) }
                @if overwrites {
                    (typed_name(visit.say(
                        "Type the name of the machine to overwrite it: ",
                        "Tapez le nom de la machine pour l’écraser\u{a0}: ",
                    ), &point.machine, error))
                }
                div class="row" {
                    button type="submit" class=(if overwrites { "danger" } else { "pri" }) {
                        (button(visit, point, fields))
                    }
                    a class="btn" href=(back) { (visit.say("Back", "Retour")) }
                }
            }
        } @else {
            @if !is_possible {
                p { (visit.say(
                    "This cannot be restored. Change the destination, or fix the problems listed above.",
                    "Rien ne peut être restauré ainsi. Changez la destination, ou corrigez ce qui est indiqué.",
                )) }
            }
            p { a class="btn" href=(back) { (visit.say("Back", "Retour")) } }
        }
        (html::line(&visit.console.toolbox.command_line(&words)))
    };
    let page = html::page(visit, &title, html::PageUpdates::None, body).await;
    match (is_possible, error) {
        (true, None) => page.into_response(),
        _ => (StatusCode::UNPROCESSABLE_ENTITY, page).into_response(),
    }
}

/// Returns a warning that changes since the point will be lost, and how to keep them.
fn warning(visit: &Visit, point: &Point) -> Markup {
    let machine = &point.machine;
    html! {
        div class="note warn" {
            (html::icon("warn"))
            div {
                p class="brk" { (visit.language.say(
                    format!("Everything that {machine} wrote after this point will be lost. To keep it, back it up \
                        first:"),
                    format!(
                        "Ce que {machine} a écrit après ce point sera perdu. Pour le garder, sauvegardez d’abord\u{a0}:"
                    ),
                )) }
                (html::action(
                    visit,
                    "/backup",
                    &[("m", machine)],
                    visit.say("Back up first", "Sauvegarder d’abord"),
                    &["backup", "--", machine],
                ))
            }
        }
    }
}

fn actions(answer: &Answer) -> impl Iterator<Item = &Action> {
    answer.records.iter().filter_map(|record| match record {
        Record::Action(action) => Some(action),
        _ => None,
    })
}

/// Describes what would happen to a target.
fn what_happens(visit: &Visit, action: &Action) -> String {
    let ends = |words: &str| action.reason.ends_with(words);
    let (english, french) = match () {
        () if ends("would be replaced") => ("is replaced", "est remplacé"),
        () if ends("would be created") => ("is created", "est créé"),
        () if ends("would be written") => ("is written", "est écrit"),
        () if ends("would be defined and started") => ("is defined and started", "est définie et démarrée"),
        () if ends("would be defined") => ("is defined", "est définie"),
        () => return action.reason.clone(),
    };
    visit.say(english, french).to_owned()
}

fn what_is_written(visit: &Visit, answer: &Answer) -> Markup {
    let language = visit.language;
    let row = |action: &Action| {
        let text = |key: &str| action.extra.get(key).and_then(|value| value.as_str()).unwrap_or_default();
        let size = action.extra.get("capacity_bytes").and_then(serde_json::Value::as_u64);
        vec![
            html! { code class="brk" { (action.target) } },
            html! { (text("disk")) @if !text("format").is_empty() { span class="two" { (text("format")) } } },
            html! { (size.map_or_else(|| "-".to_owned(), |size| language.bytes(size))) },
            html! { span class="brk" { (what_happens(visit, action)) } },
        ]
    };
    let heads = [
        visit.say("File, device or machine", "Fichier, périphérique ou machine"),
        visit.say("Disk", "Disque"),
        visit.say("Size", "Taille"),
        visit.say("What happens", "Ce qui se passe"),
    ];
    let rows: Vec<Vec<Markup>> = actions(answer).filter(|action| action.changed).map(row).collect();
    html! {
        section class="sec" {
            h2 { (visit.say("What will be written", "Ce qui sera écrit")) }
            @if !rows.is_empty() { (html::table(visit.say("What will be written", "Ce qui sera écrit"), &heads, rows)) }
            (html::failures(visit, answer))
        }
    }
}

fn what_is_missing(visit: &Visit, answer: &Answer) -> Markup {
    let missing: Vec<&Action> = actions(answer).filter(|action| !action.changed).collect();
    let hint = |action: &&Action| action.extra.get("hint").and_then(|hint| hint.as_str()).map(str::to_owned);
    html! {
        @if !missing.is_empty() || !answer.warnings.is_empty() {
            section class="sec" {
                h2 { (visit.say("What differs or is missing on this host", "Ce qui diffère ou manque sur cet hôte")) }
                @for action in &missing {
                    div class="note warn" {
                        (html::icon("warn"))
                        div {
                            p class="brk" { (action.reason) }
                            @if let Some(hint) = hint(action) { (html::hint_of(&hint)) }
                        }
                    }
                }
                @for warning in answer.warnings.iter() {
                    div class="note warn" { (html::icon("warn")) p class="brk" { (warning) } }
                }
            }
        }
    }
}

/// Returns fields for missing parts that the dry run reported: other networks, media to omit, files of the point.
fn fixes(visit: &Visit, answer: &Answer, fields: &Fields, kept: &[(&str, &str)], to: &str) -> Markup {
    let of_actions = actions(answer).filter_map(|action| action.extra.get("hint")?.as_str());
    let of_failures = answer.failures().flat_map(|failure| [failure.hint.as_deref(), Some(failure.error.as_str())]);
    let wanted = Wanted::of(of_actions.chain(of_failures.flatten()));
    // Values that were given before can be changed.
    let given = |prefix: &str| -> Vec<String> {
        fields.iter().filter_map(|(name, _)| name.strip_prefix(prefix).map(str::to_owned)).collect()
    };
    let joined = |names: &[String], prefix: &str| {
        let mut all = [names, &given(prefix)].concat();
        all.sort();
        all.dedup();
        all
    };
    let (networks, bridges) = (joined(&wanted.networks, NETWORK), joined(&wanted.bridges, BRIDGE));
    let is_asked = |is_wanted: bool, field: &str| is_wanted || fields.is_set(field);
    let (media, files) =
        (is_asked(wanted.drop_missing_media, "drop_missing_media"), is_asked(wanted.with_files, "with_files"));
    let memory = is_asked(wanted.discard_saved_memory, "discard_saved_memory");
    if wanted.is_nothing() && networks.is_empty() && bridges.is_empty() && !media && !files && !memory {
        return html! {};
    }
    let none = FieldErrors::default();
    let form = Form { typed: fields, errors: &none };
    let is_here = |name: &str| {
        name.starts_with(NETWORK)
            || name.starts_with(BRIDGE)
            || ["drop_missing_media", "with_files", "discard_saved_memory"].contains(&name)
    };
    let other = |old: &str| visit.language.say(format!("Instead of {old}"), format!("À la place de {old}"));
    html! {
        form method="get" action=(to) class="panel" {
            h2 { (visit.say("Fix it here", "Y remédier ici")) }
            @for (name, value) in kept.iter().filter(|(name, _)| !is_here(name)) {
                input type="hidden" name=(name) value=(value);
            }
            div class="fields" {
                @for network in &networks {
                    (form.text(&format!("{NETWORK}{network}"), &other(network), "--network", "default"))
                }
                @for bridge in &bridges {
                    (form.text(&format!("{BRIDGE}{bridge}"), &other(bridge), "--bridge", "br0"))
                }
                @if files {
                    (form.text("with_files", visit.say(
                        "Folder for the files of the point", "Dossier pour les fichiers du point",
                    ), "--with-files", "/var/lib/libvirt/kvmb-files"))
                }
                @if media {
                    (form.check("drop_missing_media", visit.say(
                        "Leave drives empty whose medium is missing",
                        "Laisser vides les lecteurs dont le support manque",
                    ), "--drop-missing-media"))
                }
                @if memory {
                    (form.check("discard_saved_memory", visit.say(
                        "Discard the saved memory of the machine", "Abandonner la mémoire enregistrée de la machine",
                    ), "--discard-saved-memory"))
                }
            }
            div class="row" {
                button type="submit" { (visit.say("Check again", "Regarder de nouveau")) }
            }
        }
    }
}

fn button(visit: &Visit, point: &Point, fields: &Fields) -> String {
    let (machine, language) = (&point.machine, visit.language);
    match (fields.get("where"), words::overwrites(fields)) {
        (Some("disks"), true) => {
            language.say(format!("Overwrite disks of {machine}"), format!("Écraser des disques de {machine}"))
        }
        (Some("live"), true) => {
            language.say(format!("Overwrite and start {machine}"), format!("Écraser et démarrer {machine}"))
        }
        (_, true) => language.say(format!("Overwrite {machine}"), format!("Écraser {machine}")),
        (_, false) => language.say(format!("Restore {machine}"), format!("Restaurer {machine}")),
    }
}

/// `POST /restore/ID/start`
pub(in crate::console) async fn start(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some((point, known)) = find(&visit, &id).await else { return missing(&visit, &id).await };
    let fields = visit.form.clone();
    let overwrites = words::overwrites(&fields);
    if overwrites && visit.form.get("confirm") != Some(point.machine.as_str()) {
        let error = visit.say("This is not the name of the machine.", "Ce n’est pas le nom de la machine.");
        return show(&visit, &point, &known, &fields, Some(error)).await;
    }
    match words::of_form(&visit, &point, &known.repos, &fields) {
        Ok(words) => {
            let kept = fields.iter().filter(|(name, _)| !OWN.contains(name));
            let back = with_query(&format!("/restore/{}/where", html::segment(&id)), &query_of(kept));
            launch::start(&visit, &words, &back).await
        }
        Err(errors) => {
            let visit = Visit { query: fields, ..visit.clone() };
            let page = place::show(&visit, &point, &known, &errors).await;
            (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
        }
    }
}
