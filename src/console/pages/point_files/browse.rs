//! The file browser: the file systems of a point, one folder, or the results of a search.

use super::place::{FilePlace, Filesystems, SYSTEM, field_of, name_of};
use super::{page_of, words};
use crate::console::html;
use crate::console::pages::fields::{FieldErrors, Form, query_of, with_query};
use crate::console::pages::paging::paging;
use crate::console::pages::points::lookup::{find, missing};
use crate::console::pages::repos::Repos;
use crate::console::toolbox::Answer;
use crate::console::visit::{Fields, Visit};
use crate::record::{File, Filesystem, Point, Record, steers_terminal};
use axum::Extension;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

/// Maximum number of files of a folder or a search; the command line shows all.
const MOST_FILES: usize = 5000;

/// The number of files on a page.
const PAGE: usize = 200;

/// `GET /points/ID/files?part=&path=&find=`
pub(in crate::console) async fn page(Extension(visit): Extension<Visit>, Path(id): Path<String>) -> Response {
    let Some((point, known)) = find(&visit, &id).await else { return missing(&visit, &id).await };
    let repos = &known.repos;
    let overview = words(repos, &point, "ls", &[], &[]);
    let borrowed: Vec<&str> = overview.iter().map(String::as_str).collect();
    let answer = visit.console.toolbox.look_up(&borrowed, false).await;
    let filesystems = Filesystems::of(&answer.records);
    let place = FilePlace::of(&visit.query, &filesystems);
    let name = visit.query.get("find");
    let title = visit.say("Files", "Fichiers");
    let heading = visit.language.say(format!("Files of {}", point.machine), format!("Fichiers de {}", point.machine));
    let body = html! {
        nav class="crumbs" aria-label=(visit.say("Breadcrumb", "Fil d’Ariane")) {
            ol {
                li { a class="brk" href={"/machines/" (html::segment(&point.machine))} { (point.machine) } }
                li { a href={"/points/" (html::segment(&point.point))} { (html::short(&point.point)) } }
                li aria-current="page" { (title) }
            }
        }
        div class="head" {
            div {
                h1 class="brk" { (heading) }
                p class="sub" { (visit.language.moment(point.captured_at)) ", " (visit.say(
                    "read from the point, without restoring it", "lus dans le point, sans le restaurer",
                )) }
                p { (repos.label(&visit, &point.repo)) }
            }
        }
        (html::failures(&visit, &answer))
        @match &place {
            Some(place) => {
                (form(&visit, &point, place, &filesystems))
                (folder(&visit, &point, repos, place, name).await)
            },
            None => p { (visit.say(
                "No file system of this point can be read here.",
                "Aucun système de fichiers du point n’est lisible ici.",
            )) },
        }
        section class="sec" {
            h2 { (visit.say("File systems", "Systèmes de fichiers")) }
            (overview_table(&visit, &point, &filesystems))
            (html::line(&visit.console.toolbox.command_line(&overview)))
        }
    };
    html::page(&visit, &format!("{title}, {}", point.machine), html::PageUpdates::None, body).await.into_response()
}

/// Returns a name of the guest, isolated from the surrounding text and without control characters.
fn shown(name: &str) -> Markup {
    let name = name.replace(steers_terminal, "\u{fffd}");
    html! { bdi class="brk" { (name) } }
}

/// Returns the form for the folder and the search text.
fn form(visit: &Visit, point: &Point, place: &FilePlace, known: &Filesystems<'_>) -> Markup {
    let label = |filesystem: &Filesystem| {
        let size = visit.language.bytes(filesystem.size_bytes);
        format!("{}: {}, {size}", filesystem.filesystem, filesystem.format)
    };
    html! {
        form method="get" action=(page_of(point)) class="filter" role="search"
            aria-label=(visit.say("Files", "Fichiers")) {
            div class="field" {
                label for="part" { (visit.say("File system", "Système de fichiers")) }
                select id="part" name="part" class="w-m" {
                    @if let Some(system) = known.system() {
                        option value=(SYSTEM) selected[place.part == SYSTEM] {
                            (system.replace(steers_terminal, "\u{fffd}"))
                        }
                    }
                    @for filesystem in known.readable() {
                        option value=(filesystem.filesystem) selected[place.part == filesystem.filesystem] {
                            (label(filesystem))
                        }
                    }
                }
            }
            div class="field" {
                label for="path" { (visit.say("Path", "Chemin")) }
                input id="path" name="path" class="mono" value=(place.path) autocomplete="off" spellcheck="false";
            }
            div class="field" {
                label for="find" { (visit.say("Find a name below", "Chercher un nom dessous")) }
                input type="search" id="find" name="find" class="w-m" autocomplete="off" spellcheck="false"
                    value=(visit.query.get("find").unwrap_or_default());
            }
            button type="submit" { (visit.say("Show", "Montrer")) }
        }
    }
}

/// Returns the option that finds names containing this text, or matching it if it is a pattern.
fn name_option(text: &str) -> String {
    if text.contains(['*', '?']) {
        return format!("--name={text}");
    }
    let special = |character| matches!(character, '[' | ']' | '\\');
    let escaped: String =
        text.chars().flat_map(|sign| special(sign).then_some('\\').into_iter().chain([sign])).collect();
    format!("--name=*{escaped}*")
}

/// Returns the folder or the search results, with the buttons for its files.
async fn folder(visit: &Visit, point: &Point, repos: &Repos, place: &FilePlace, name: Option<&str>) -> Markup {
    let path = [place.argument()];
    let command = match name {
        Some(name) => words(repos, point, "find", &[name_option(name)], &path),
        None => words(repos, point, "ls", &[], &path),
    };
    let (answer, is_complete) = visit.console.toolbox.first_records(&command, MOST_FILES).await;
    let mut files = files_of(&answer);
    sort(&mut files, visit.query.get("sort").unwrap_or_default());
    let pages = files.len().div_ceil(PAGE).max(1);
    let page = visit.query.get("page").and_then(|page| page.parse().ok()).unwrap_or(1usize).clamp(1, pages);
    let shown: Vec<&File> = files.iter().skip((page - 1) * PAGE).take(PAGE).copied().collect();
    let action = |what: &str| format!("/points/{}/{what}", html::segment(&point.point));
    html! {
        section class="sec" {
            (breadcrumb(visit, point, place))
            (html::failures(visit, &answer))
            @if !is_complete {
                div class="note warn" {
                    (html::icon("warn"))
                    p { (visit.say(
                        "There is more than is shown. Search in a folder further down, or run the command below.",
                        "Tout n’est pas montré. Cherchez dans un dossier plus bas, ou lancez la commande ci-dessous.",
                    )) }
                }
            }
            @if shown.is_empty() {
                @if answer.failures().next().is_none() {
                    p { @if name.is_some() { (visit.say("Nothing was found.", "Rien n’a été trouvé.")) }
                        @else { (visit.say("This folder is empty.", "Ce dossier est vide.")) } }
                }
            } @else {
                // The buttons in the rows belong to this form: in the form with the checkboxes, Enter would press the
                // first of them.
                form method="post" action=(action("download")) id="one" {
                    (html::form_token(visit))
                    input type="hidden" name="part" value=(place.part);
                }
                form method="post" action=(action("download")) class="sec" {
                    (html::form_token(visit))
                    input type="hidden" name="part" value=(place.part);
                    input type="hidden" name="path" value=(field_of(&place.path));
                    (table(visit, point, place, &shown, files.len(), name.is_some()))
                    (paging(visit, page, pages))
                    (end_of_form(visit, &action("copy-files")))
                }
            }
            (html::line(&visit.console.toolbox.command_line(&command)))
        }
    }
}

fn files_of(answer: &Answer) -> Vec<&File> {
    let files = answer.records.iter().filter_map(|record| match record {
        Record::File(file) => Some(file),
        _ => None,
    });
    files.collect()
}

fn is_kind(file: &File, kind: &str) -> bool {
    file.kind.as_deref() == Some(kind)
}

/// Sorts files that are already sorted by name; folders first.
fn sort(files: &mut [&File], by: &str) {
    match by {
        "size" => files.sort_by_key(|file| std::cmp::Reverse(file.size_bytes)),
        "time" => files.sort_by_key(|file| std::cmp::Reverse(file.modified_at)),
        _ => files.sort_by_key(|file| !is_kind(file, "directory")),
    }
}

fn breadcrumb(visit: &Visit, point: &Point, place: &FilePlace) -> Markup {
    let link = |path: &str| with_query(&page_of(point), &place.at(path).query());
    let folders = place.folders();
    let root = if place.part == SYSTEM { "/".to_owned() } else { format!("{}:", place.part) };
    html! {
        nav class="crumbs" aria-label=(visit.say("Folder", "Dossier")) {
            ol {
                @if folders.is_empty() { li aria-current="page" { (root) } }
                @else { li { a href=(link("/")) { (root) } } }
                @for (at, (name, path)) in folders.iter().enumerate() {
                    @if at + 1 == folders.len() { li aria-current="page" { (shown(name)) } }
                    @else { li { a href=(link(path)) { (shown(name)) } } }
                }
            }
        }
    }
}

fn table(visit: &Visit, point: &Point, place: &FilePlace, shown: &[&File], count: usize, is_search: bool) -> Markup {
    let language = visit.language;
    let path = place.argument().replace(steers_terminal, "\u{fffd}");
    let caption = match is_search {
        true => language.say(format!("{count} found in {path}"), format!("{count} trouvés dans {path}")),
        false => language.say(format!("{count} in {path}"), format!("{count} dans {path}")),
    };
    let heads = [
        visit.say("Name", "Nom"),
        visit.say("Size", "Taille"),
        visit.say("Modified", "Modifié"),
        visit.say("Kind", "Genre"),
        visit.say("Owner, mode", "Propriétaire, droits"),
        visit.say("Action", "Action"),
    ];
    let rows = shown.iter().map(|file| row(visit, point, place, file, is_search)).collect();
    let sorted = visit.query.get("sort").unwrap_or_default();
    let link = |sort: &str| {
        let kept = visit.query.iter().filter(|(name, _)| !["page", "sort"].contains(name));
        with_query(&page_of(point), &query_of(kept.chain([("sort", sort)])))
    };
    html! {
        (html::table(&caption, &heads, rows))
        p class="tiny" {
            (visit.say("Sort by", "Trier par")) ":"
            @for (sort, word) in [
                ("", visit.say("name", "nom")),
                ("size", visit.say("size", "taille")),
                ("time", visit.say("time", "date")),
            ] {
                " " @if sort == sorted { b { (word) } } @else { a href=(link(sort)) { (word) } }
            }
        }
    }
}

fn row(visit: &Visit, point: &Point, place: &FilePlace, file: &File, is_search: bool) -> Vec<Markup> {
    let path = place.path_of(&file.path);
    let name = if is_search { path.strip_prefix(place.path.as_str()).unwrap_or(path) } else { name_of(path) };
    let name = if name.is_empty() { path } else { name.trim_start_matches('/') };
    let leads_on = is_kind(file, "directory") || is_kind(file, "symlink");
    let is_file = is_kind(file, "file") || is_kind(file, "symlink");
    // A name that is not UTF-8 can be downloaded only as part of its folder.
    let has_text = !file.path.contains('\u{fffd}');
    let plain = name.replace(steers_terminal, "\u{fffd}");
    let link = || with_query(&page_of(point), &place.at(path).query());
    let shape = match file.kind.as_deref() {
        Some("directory") => "folder",
        Some("symlink") => "link",
        _ => "file",
    };
    vec![
        html! {
            @if has_text {
                label class="check" {
                    input type="checkbox" name="f" value=(field_of(path));
                    span class="vh" { (visit.say("Select ", "Choisir ")) (plain) }
                } " "
            }
            (html::icon(shape)) " "
            @if leads_on && has_text { a href=(link()) { (shown(name)) } } @else { (shown(name)) }
        },
        html! { @if is_kind(file, "file") { (visit.language.bytes(file.size_bytes)) } @else { "-" } },
        html! { @match file.modified_at { Some(time) => (visit.language.moment(time)), None => "-" } },
        html! {
            (kind(visit, file))
            @if let Some(target) = &file.target { span class="two" { "→ " (shown(target)) } }
        },
        html! {
            @if let (Some(uid), Some(gid)) = (file.uid, file.gid) { (uid) ":" (gid) " " }
            @if let Some(mode) = &file.mode { code { (mode) } } @else { "-" }
        },
        html! {
            @if !has_text { (visit.say("Download its folder.", "Téléchargez son dossier.")) }
            @else {
                button type="submit" form="one" class="small" name=(if is_file { "file" } else { "tree" })
                    value=(field_of(path)) {
                    (html::icon("down")) (visit.say("Download", "Télécharger"))
                    span class="vh" { " " (plain) }
                }
            }
        },
    ]
}

fn kind(visit: &Visit, file: &File) -> String {
    let (english, french) = match file.kind.as_deref().unwrap_or_default() {
        "file" => ("file", "fichier"),
        "directory" => ("folder", "dossier"),
        "symlink" => ("link", "lien"),
        "char_device" | "block_device" => ("device", "périphérique"),
        "fifo" => ("pipe", "tube"),
        "socket" => ("socket", "socket"),
        other => return other.to_owned(),
    };
    visit.say(english, french).to_owned()
}

/// Returns the buttons for the selected files.
fn end_of_form(visit: &Visit, copy: &str) -> Markup {
    let (typed, errors) = (Fields::default(), FieldErrors::default());
    let form = Form { typed: &typed, errors: &errors };
    html! {
        div class="formend" {
            h2 { (visit.say("The ticked files", "Les fichiers cochés")) }
            div class="row" {
                button type="submit" class="pri" name="archive" value="1" {
                    (html::icon("down")) (visit.say("Download as .tar", "Télécharger en .tar"))
                }
                button type="submit" name="whole" value="1" {
                    (visit.say("Download this whole folder", "Télécharger tout ce dossier"))
                }
            }
            p class="tiny" { (visit.say(
                "Each chunk is verified on the way, and nothing is opened in the browser. A download that could not be \
                 completed fails: the log says why.",
                "Chaque bloc est vérifié en route, et rien ne s’ouvre dans le navigateur. Un téléchargement incomplet \
                 échoue\u{a0}: le journal dit pourquoi.",
            )) }
            @if visit.may_change() {
                (form.text("to", visit.say("Folder of this host", "Dossier de cet hôte"), "--to", "/root/restored"))
                (form.check("overwrite", visit.say("Replace existing files", "Remplacer les fichiers existants"),
                    "--overwrite"))
                div class="row" {
                    button type="submit" formaction=(copy) {
                        (visit.say("Copy into this folder", "Copier dans ce dossier"))
                    }
                }
            }
        }
    }
}

fn overview_table(visit: &Visit, point: &Point, known: &Filesystems<'_>) -> Markup {
    let row = |filesystem: &&Filesystem| {
        let place = FilePlace { part: filesystem.filesystem.clone(), path: "/".to_owned() };
        let link = with_query(&page_of(point), &place.query());
        let text = |text: &Option<String>| text.as_deref().map_or_else(|| html! { "-" }, shown);
        vec![
            html! {
                @if filesystem.readable { a href=(link) { (filesystem.filesystem) } }
                @else { (filesystem.filesystem) }
            },
            html! { (filesystem.format) },
            html! { (visit.language.bytes(filesystem.size_bytes)) },
            html! { (text(&filesystem.label)) },
            html! { (text(&filesystem.mount_point)) },
            html! { (text(&filesystem.system)) },
            html! {
                @if filesystem.readable { (visit.say("yes", "oui")) }
                @else {
                    (visit.say("no", "non"))
                    @if let Some(error) = &filesystem.error { span class="two brk" { (error) } }
                    @else if matches!(filesystem.format.as_str(), "crypto_LUKS" | "linux_raid_member") {
                        span class="two brk" {
                            (visit.say("on the host:", "sur l’hôte :")) " " code { "kvmb files ls --guestfish" }
                        }
                    }
                }
            },
        ]
    };
    let heads = [
        visit.say("File system", "Système de fichiers"),
        visit.say("Format", "Format"),
        visit.say("Size", "Taille"),
        visit.say("Label", "Étiquette"),
        visit.say("Mounted at", "Monté sur"),
        visit.say("Operating system", "Système d’exploitation"),
        visit.say("Readable", "Lisible"),
    ];
    html! {
        @if known.0.is_empty() {
            p { (visit.say("Nothing was found on the disks.", "Rien n’a été trouvé sur les disques.")) }
        } @else {
            (html::table(visit.say("File systems of this point", "Systèmes de fichiers de ce point"), &heads,
                known.0.iter().map(row).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_search_text_is_escaped_unless_it_is_a_pattern() {
        for (text, option) in [("a b", "--name=*a b*"), ("*.conf", "--name=*.conf"), ("[x]\\", "--name=*\\[x\\]\\\\*")]
        {
            assert_eq!(name_option(text), option);
        }
    }
}
