//! The frame of every page, and parts that several pages share. Every value is escaped where it is inserted.

use super::language::Language;
use super::state::Console;
use super::toolbox::Answer;
use super::visit::Visit;
use crate::record::{Action, Check, Failure, Job, Point, Record};
use axum::http::StatusCode;
use axum::response::Html;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The characters to escape in a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The style of the login page, which cannot load the style sheet. The content security policy has its hash.
pub(super) const LOGIN_STYLE: &str = "body{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;\
    padding:0 1rem;color:#14181c;background:#f6f7f8}code{font-family:ui-monospace,monospace;overflow-wrap:anywhere}\
    input{font:inherit;width:100%;box-sizing:border-box;padding:.4rem;margin:.25rem 0 .75rem}button{font:inherit;\
    padding:.4rem 1rem}.err{color:#ab1d1c}@media(prefers-color-scheme:dark){body{color:#e9ecef;background:#111417}\
    a{color:#8db5ff}.err{color:#ff9a91}}";

/// The pages of the menu: path, English and French name, icon.
const MENU: [(&str, &str, &str, &str); 10] = [
    ("/", "Overview", "Vue d’ensemble", "view"),
    ("/machines", "Machines", "Machines", "machine"),
    ("/restore", "Restore", "Restaurer", "restore"),
    ("/jobs", "Jobs", "Tâches", "jobs"),
    ("/log", "Log", "Journal", "log"),
    ("/server", "Backup server", "Serveur de sauvegarde", "server"),
    ("/schedule", "Schedule", "Planification", "clock"),
    ("/retention", "Retention", "Rétention", "off"),
    ("/settings", "Configuration", "Configuration", "sliders"),
    ("/doctor", "Doctor", "Diagnostic", "pulse"),
];

/// The icons: name and shape.
const ICONS: [(&str, &str); 20] = [
    ("clock", r#"<circle cx="8" cy="8" r="6.25"/><path d="M8 4.5V8l2.5 1.7"/>"#),
    (
        "crit",
        r#"<path d="M5.4 1.75h5.2l3.65 3.65v5.2l-3.65 3.65H5.4L1.75 10.6V5.4Z"/><path d="m5.9 5.9 4.2 4.2m0-4.2-4.2 4.2"/>"#,
    ),
    ("down", r#"<path d="M8 2v8M4.5 7 8 10.5 11.5 7M2.5 13.5h11"/>"#),
    ("file", r#"<path d="M3.5 1.75h6l3 3v9.5h-9zM9.5 1.75v3h3"/>"#),
    ("folder", r#"<path d="M1.75 3.25h4.5l1.5 2h6.5v8H1.75z"/>"#),
    ("jobs", r#"<path d="M2 3.5h7M2 8h5M2 12.5h7M10 5.5l4 2.5-4 2.5z"/>"#),
    ("link", r#"<path d="M3.5 1.75h6l3 3v9.5h-9zM6 11l4-4M7 7h3v3"/>"#),
    ("log", r#"<path d="M3 1.75h10v12.5H3zM5.5 5h5M5.5 8h5M5.5 11h3"/>"#),
    ("machine", r#"<path d="M1.75 2.75h12.5v8H1.75zM5.5 13.5h5M8 10.75v2.75"/>"#),
    ("menu", r#"<path d="M2 4h12M2 8h12M2 12h12"/>"#),
    ("off", r#"<circle cx="8" cy="8" r="6.25" stroke-dasharray="2.5 2"/>"#),
    ("ok", r#"<circle cx="8" cy="8" r="6.25"/><path d="m5.2 8.2 2 2 3.7-4.2"/>"#),
    ("pin", r#"<path d="M8 9.5V14M4.5 9.5h7L10 6.5v-4H6v4Z"/>"#),
    ("pulse", r#"<path d="M1.5 8.5h3l2-5 3 9.5 2-4.5h3"/>"#),
    ("restore", r#"<path d="M2.5 8a5.5 5.5 0 1 1 1.9 4.2M2.5 12.5V8.8h3.7M8 5v3.2l2 1.3"/>"#),
    ("run", r#"<path d="M14.2 8A6.2 6.2 0 1 1 8 1.8"/><path d="M8 4.5V8l2.2 1.5"/>"#),
    ("server", r#"<path d="M2 2.5h12v4.5H2zM2 9h12v4.5H2zM4.5 4.75h.1M4.5 11.25h.1M8 4.75h3.5M8 11.25h3.5"/>"#),
    (
        "sliders",
        r#"<path d="M2 4.5h6M12 4.5h2M2 11.5h2M8 11.5h6"/><circle cx="10" cy="4.5" r="1.8"/><circle cx="6" cy="11.5" r="1.8"/>"#,
    ),
    ("view", r#"<path d="M2 2.5h5v5H2zM9 2.5h5v3H9zM9 8h5v5.5H9zM2 10h5v3.5H2z"/>"#),
    ("warn", r#"<path d="M8 2 14.5 13.5H1.5Z"/><path d="M8 6.5v3M8 11.6v.1"/>"#),
];

/// Escapes a name as a path segment.
pub(super) fn segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

/// Returns an icon. It is hidden from screen readers, because the text beside it says the same.
pub(super) fn icon(name: &str) -> Markup {
    html! { svg class="i" aria-hidden="true" focusable="false" width="16" height="16" { use href={"#i-" (name)} {} } }
}

fn sprite() -> Markup {
    html! {
        svg class="sprite" aria-hidden="true" focusable="false" width="0" height="0" {
            @for (name, shape) in ICONS {
                symbol id={"i-" (name)} viewBox="0 0 16 16" { (PreEscaped(shape)) }
            }
        }
    }
}

/// Returns the page parameter of the live stream. The lines of the log depend on the filter as well.
fn live_page(visit: &Visit) -> &str {
    if visit.path == "/log" { &visit.address } else { &visit.path }
}

/// How an open page is kept up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageUpdates {
    None,
    /// By scripts only: reloading the page would discard what was typed or selected.
    Scripts,
    /// By scripts, or by reloading the page in browsers without them.
    ScriptsOrReload,
}

impl PageUpdates {
    /// Returns the updates of a page that shows a job.
    pub(super) fn of_job(is_running: bool) -> PageUpdates {
        if is_running { PageUpdates::ScriptsOrReload } else { PageUpdates::None }
    }
}

/// Returns a page.
pub(super) async fn page(visit: &Visit, title: &str, updates: PageUpdates, body: Markup) -> Html<String> {
    let running = visit.console.toolbox.jobs().await.iter().filter(|job| job.status == "running").count();
    let host = &visit.console.options.host;
    let other = match visit.language {
        Language::English => ("fr", "Français"),
        Language::French => ("en", "English"),
    };
    let is_current = |path: &str| match path {
        "/" => visit.path == "/",
        path => visit.path == path || visit.path.starts_with(&format!("{path}/")),
    };
    let markup = html! {
        (DOCTYPE)
        html lang=(visit.language.code()) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · kvmb " (host) }
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/style.css";
                script src="/console.js" defer {}
                @if updates == PageUpdates::ScriptsOrReload { noscript { meta http-equiv="refresh" content="3"; } }
            }
            body data-live=[(updates != PageUpdates::None).then(|| live_page(visit))] {
                a class="skip" href="#main" { (visit.say("Skip to content", "Aller au contenu")) }
                (sprite())
                div class="frame" {
                    header class="top" {
                        div { a class="brand" href="/" { "kvmb" } " " span class="host" { (host) } }
                        button type="button" class="menu" popovertarget="nav" { (icon("menu")) "Menu" }
                    }
                    nav class="side" id="nav" popover="auto" aria-label="Console" {
                        @for items in [&MENU[..5], &MENU[5..9], &MENU[9..]] {
                            ul {
                                @for (path, english, french, shape) in items {
                                    li {
                                        a href=(path) aria-current=[is_current(path).then_some("page")] {
                                            (icon(shape)) (visit.language.say(english, french))
                                            @if *path == "/jobs" { (running_count(visit, running)) }
                                        }
                                    }
                                }
                            }
                        }
                        div class="foot" {
                            @if !visit.may_change() {
                                p { (visit.say("Read-only", "Lecture seule")) }
                            }
                            a href={"/language?to=" (other.0) "&back=" (segment(&visit.address))} lang=(other.0)
                                hreflang=(other.0) { (other.1) }
                            form method="post" action="/logout" {
                                (form_token(visit))
                                button type="submit" class="plain small" {
                                    (visit.say("End session", "Fermer la session"))
                                }
                            }
                            p { "kvmb " (env!("CARGO_PKG_VERSION")) }
                        }
                    }
                    main id="main" { (body) }
                }
            }
        }
    };
    Html(markup.into_string())
}

/// Returns the number of running jobs, for the menu.
pub(super) fn running_count(visit: &Visit, running: usize) -> Markup {
    html! {
        span class="count" id="live-count" {
            @if running > 0 { (running) " " (visit.say("running", "en cours")) }
        }
    }
}

/// Returns the page for requests without a session.
pub(super) fn login(console: &Console, language: Language, message: Option<&str>) -> Html<String> {
    let say = |english, french| language.say(english, french);
    let command = if console.is_of_system() { "sudo kvmb ui --url" } else { "kvmb ui" };
    let title = format!("{} · kvmb {}", say("Link needed", "Lien nécessaire"), console.options.host);
    let content = html! {
        main id="main" {
            p { "kvmb · " (console.options.host) }
            h1 { (say("Open the console with its link", "Ouvrez la console par son lien")) }
            p {
                code { (command) }
                (say(
                    " prints a link that works once. Open that link, or paste it here. There is no password.",
                    " affiche un lien qui sert une fois. Ouvrez-le, ou collez-le ici, sans mot de passe.",
                ))
            }
            form method="post" action="/login" {
                label for="token" { (say("Link or token", "Lien ou jeton")) }
                input id="token" name="token" type="text" autocomplete="off" spellcheck="false" required
                    aria-invalid=[message.map(|_| "true")] aria-describedby=[message.map(|_| "error")];
                @if let Some(message) = message { p class="err" id="error" role="alert" { (message) } }
                button type="submit" { (say("Open the console", "Ouvrir la console")) }
            }
            @if !console.is_of_system() {
                p {
                    (say(
                        "No link at hand? Stop the console with Ctrl-C and start it again; it prints a \
                         new one:",
                        "Pas de lien\u{202f}? Arrêtez la console par Ctrl-C et relancez-la\u{202f}; \
                         elle en affiche \
                         un autre\u{a0}:",
                    ))
                    " " code { (command) }
                }
            }
        }
    };
    bare(language, &title, &html! {}, &content)
}

/// Returns a page without navigation, for requests without a session or those that are refused.
fn bare(language: Language, title: &str, head: &Markup, content: &Markup) -> Html<String> {
    let markup = html! {
        (DOCTYPE)
        html lang=(language.code()) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                (head)
                title { (title) }
                style { (PreEscaped(LOGIN_STYLE)) }
            }
            body { (content) }
        }
    };
    Html(markup.into_string())
}

/// Returns the page that leads from a link on another site to the overview.
pub(super) fn entered(language: Language) -> Html<String> {
    let head = html! { meta http-equiv="refresh" content="0; url=/"; };
    let content = html! { main { p { a href="/" { (language.say("Open the console", "Ouvrir la console")) } } } };
    bare(language, "kvmb", &head, &content)
}

/// Returns the response to a refused request.
pub(super) fn refusal(console: &Console, language: Language, status: StatusCode, reason: &str) -> Html<String> {
    let title = format!("{} · kvmb {}", status.as_u16(), console.options.host);
    let content = html! {
        main {
            h1 { (language.say("Refused", "Refusé")) }
            p class="err" { (reason) }
            p { a href="/" { (language.say("Back to the overview", "Retour à la vue d’ensemble")) } }
        }
    };
    bare(language, &title, &html! {}, &content)
}

/// Returns the hidden field that every form must have.
pub(super) fn form_token(visit: &Visit) -> Markup {
    html! { input type="hidden" name="csrf" value=(visit.form_token); }
}

/// Returns a form with one button and hidden fields, and the equivalent command line. In read-only mode there is no
/// form.
pub(super) fn action(visit: &Visit, to: &str, fields: &[(&str, &str)], button: &str, words: &[&str]) -> Markup {
    html! {
        @if visit.may_change() {
            form method="post" action=(to) {
                (form_token(visit))
                @for (name, value) in fields { input type="hidden" name=(name) value=(value); }
                button type="submit" { (button) }
            }
        }
        (command(visit, words))
    }
}

/// Returns a command line for copying.
pub(super) fn command(visit: &Visit, words: &[&str]) -> Markup {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    line(&visit.console.toolbox.command_line(&words))
}

/// Returns a shell line for copying.
pub(super) fn line(text: &str) -> Markup {
    html! { div class="cmd" { code { (text) } } }
}

/// Returns a state: an icon and a word.
pub(super) fn state(language: Language, word: &str) -> Markup {
    let (class, shape) = match word {
        "ok" | "done" => ("ok", "ok"),
        "warning" | "partial" | "busy" => ("warn", "warn"),
        "critical" | "failed" | "damage" | "damaged" | "lost" => ("crit", "crit"),
        "running" => ("run", "run"),
        "interrupted" => ("quiet", "off"),
        _ => ("unk", "off"),
    };
    html! { span class={"st " (class)} { (icon(shape)) (language.state(word)) } }
}

/// Returns the heading of a page.
pub(super) fn head(title: &str, sub: &str) -> Markup {
    html! { div class="head" { div { h1 { (title) } @if !sub.is_empty() { p class="sub" { (sub) } } } } }
}

/// Returns the age of an answer, and a link that reloads the page with a new one.
pub(super) fn age(visit: &Visit, answer: &Answer) -> Markup {
    let kept = visit.query.iter().filter(|(name, _)| *name != "again");
    let kept: String = kept.map(|(name, value)| format!("{}={}&", segment(name), segment(value))).collect();
    let seconds = answer.at.elapsed().as_secs_f64();
    let length = visit.language.duration(seconds);
    html! {
        p class="tiny" {
            @if seconds < 2.0 { (visit.say("As of now.", "À l’instant.")) }
            @else { (visit.language.say(format!("As of {length} ago."), format!("Il y a {length}."))) }
            " " a href={ "?" (kept) "again=1" } { (visit.say("Refresh", "Actualiser")) }
        }
    }
}

/// Returns the failures of an answer, each with its hint.
pub(super) fn failures(visit: &Visit, answer: &Answer) -> Markup {
    html! { @for failure in answer.failures() { (failed(visit, failure)) } }
}

pub(super) fn failed(visit: &Visit, failure: &Failure) -> Markup {
    html! {
        div class="note crit" role="alert" {
            (icon("crit"))
            div {
                p {
                    @if let Some(machine) = &failure.machine { b { (machine) } ": " }
                    code { (failure.code) } ": "
                    span class="brk" { (visit.language.of_command(&failure.error)) }
                }
                @if let Some(hint) = &failure.hint {
                    p class="brk" {
                        (visit.say("What to do: ", "Que faire\u{a0}: ")) (visit.language.of_command(hint))
                    }
                }
            }
        }
    }
}

/// Returns a list of checks.
pub(super) fn checks<'r>(visit: &Visit, checks: impl Iterator<Item = &'r Check>) -> Markup {
    html! {
        ul class="checks" {
            @for check in checks {
                li {
                    (state(visit.language, &check.status))
                    span class="brk" {
                        (visit.language.of_command(&check.check)) " " span class="two" { (check.target) }
                    }
                    div {
                        span class="brk" { (visit.language.of_command(&check.detail)) }
                        @if let Some(hint) = &check.hint { (hint_of(&visit.language.of_command(hint))) }
                    }
                }
            }
        }
    }
}

/// Returns a hint. If it is a command line or ends with one, that can be copied.
pub(super) fn hint_of(hint: &str) -> Markup {
    const PROGRAMS: [&str; 13] = [
        "kvmb ",
        "virsh ",
        "systemctl ",
        "chmod ",
        "sudo ",
        "virt-xml ",
        "apt-get ",
        "mkdir ",
        "restic ",
        "ssh-keygen ",
        "apt ",
        "journalctl ",
        "qemu-img ",
    ];
    let is_command = |text: &str| PROGRAMS.iter().any(|program| text.starts_with(program));
    if is_command(hint) {
        return line(hint);
    }
    match hint.rsplit_once(": ") {
        // A hint with two commands remains a sentence.
        Some((words, command)) if is_command(command) && !words.contains(": ") => html! {
            p class="brk" { (words) ":" }
            (line(command))
        },
        _ => html! { p class="brk" { (hint) } },
    }
}

/// Returns a table with these heads and rows, which turns into blocks on a small screen.
pub(super) fn table(caption: &str, heads: &[&str], rows: Vec<Vec<Markup>>) -> Markup {
    html! {
        div class="scroll" role="region" tabindex="0" aria-label=(caption) {
            table role="table" class="stack" {
                caption { (caption) }
                thead role="rowgroup" {
                    tr role="row" { @for head in heads { th scope="col" role="columnheader" { (head) } } }
                }
                tbody role="rowgroup" {
                    @for row in rows {
                        tr role="row" {
                            @for (at, cell) in row.into_iter().enumerate() {
                                @if at == 0 { th scope="row" role="rowheader" { (cell) } }
                                @else { td role="cell" data-l=(heads.get(at).copied().unwrap_or_default()) { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns records of any mix, each kind in its own format.
pub(super) fn records(visit: &Visit, records: &[Record]) -> Markup {
    let of = |record: &Record| record.kind().to_owned();
    html! {
        @for run in records.chunk_by(|a, b| of(a) == of(b)) {
            @match &run[0] {
                Record::Check(_) => (checks(visit, run.iter().filter_map(|record| match record {
                    Record::Check(check) => Some(check),
                    _ => None,
                }))),
                Record::Action(_) => (actions(visit, run.iter().filter_map(|record| match record {
                    Record::Action(action) => Some(action),
                    _ => None,
                }))),
                Record::Point(_) => (points(visit, run.iter().filter_map(|record| match record {
                    Record::Point(point) => Some(point),
                    _ => None,
                }))),
                Record::Failure(_) => @for record in run {
                    @if let Record::Failure(failure) = record { (failed(visit, failure)) }
                },
                _ => @for record in run { pre class="block" { (record.to_line()) } },
            }
        }
    }
}

/// Returns changes that were made, or would be made.
fn actions<'r>(visit: &Visit, actions: impl Iterator<Item = &'r Action>) -> Markup {
    let changed = |action: &Action| match (action.changed, action.dry_run) {
        (true, true) => visit.say("would be changed", "serait changé"),
        (true, false) => visit.say("changed", "changé"),
        (false, _) => visit.say("unchanged", "inchangé"),
    };
    let row = |action: &Action| {
        let disk = action.extra.get("disk").and_then(|disk| disk.as_str()).unwrap_or_default();
        vec![
            html! { (action.action) " " (disk) },
            html! { span class="brk mono" { (action.target) } },
            html! { (changed(action)) },
            html! { span class="brk" { (visit.language.of_command(&action.reason)) } },
        ]
    };
    let heads = [
        visit.say("Action", "Action"),
        visit.say("Target", "Cible"),
        visit.say("Changed", "Changement"),
        visit.say("Reason", "Raison"),
    ];
    table(visit.say("What happens", "Ce qui se passe"), &heads, actions.map(row).collect())
}

/// Returns restore points, each with a link.
pub(super) fn points<'r>(visit: &Visit, points: impl Iterator<Item = &'r Point>) -> Markup {
    let language = visit.language;
    let row = |point: &Point| {
        let sum = |of: fn(&crate::record::PointDisk) -> u64| language.bytes(point.disks.iter().map(of).sum());
        vec![
            html! {
                a href={"/points/" (segment(&point.point))} { (language.moment(point.captured_at)) }
                span class="two" { code { (short(&point.point)) } }
            },
            html! { (point.machine) },
            html! { (point_state(visit, point)) },
            html! { (sum(|disk| disk.capacity_bytes)) },
            html! { (sum(|disk| disk.stored_bytes)) },
            html! { span class="brk" { (point.repo) } },
        ]
    };
    let heads = [
        visit.say("Captured", "Capture"),
        visit.say("Machine", "Machine"),
        visit.say("State", "État"),
        visit.say("Size", "Taille"),
        visit.say("Stored", "Stocké"),
        visit.say("Repository", "Dépôt"),
    ];
    table(visit.say("Restore points", "Points de restauration"), &heads, points.map(row).collect())
}

/// Returns the state of a point: damaged, verified, pinned.
pub(super) fn point_state(visit: &Visit, point: &Point) -> Markup {
    let verified = point.verified.as_ref().and_then(|verified| verified.as_str());
    html! {
        @if !point.damage.is_empty() || point.verified == Some(false.into()) { (state(visit.language, "damaged")) }
        @else if verified.is_some() { span class="st ok" { (icon("ok")) (visit.say("verified", "vérifié")) } }
        @else { span class="quiet" { (visit.say("not verified", "non vérifié")) } }
        @if point.pinned { " " span class="tag" { (visit.say("pinned", "protégé")) } }
        span class="two" { (consistency(visit, &point.consistency)) }
    }
}

/// Describes the consistency of a point.
pub(super) fn consistency(visit: &Visit, word: &str) -> String {
    match word {
        "filesystem" => visit.say("file systems frozen", "systèmes de fichiers figés").to_owned(),
        "crash" => visit.say("crash-consistent", "cohérent comme après une panne").to_owned(),
        "offline" => visit.say("machine was off", "machine éteinte").to_owned(),
        other => other.to_owned(),
    }
}

/// Returns the first eight digits of an id.
pub(super) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// Returns the command line of a job.
pub(super) fn job_line(job: &Job) -> String {
    let words = job.arguments.iter().map(String::as_str).filter(|word| *word != "--json" && *word != "--");
    ["kvmb"].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// Returns the progress of a job, from 0 to 100.
pub(super) fn percent(done: u64, total: u64) -> u64 {
    u64::try_from(u128::from(done) * 100 / u128::from(total.max(1))).unwrap_or(100).min(100)
}

/// Returns a diff, line by line.
pub(super) fn diff(visit: &Visit, text: &str) -> Markup {
    let lines = text.lines().skip_while(|line| line.starts_with("--- ") || line.starts_with("+++ "));
    html! {
        @let label = visit.say("Change of the file", "Changement du fichier");
        div class="diff" role="region" tabindex="0" aria-label=(label) {
            ol {
                @for line in lines {
                    @match line.as_bytes().first() {
                        Some(b'+') => li class="add" {
                            span class="vh" { (visit.say("added: ", "ajouté : ")) } (line)
                        },
                        Some(b'-') => li class="del" {
                            span class="vh" { (visit.say("removed: ", "retiré : ")) } (line)
                        },
                        _ => li class="at" { (line) },
                    }
                }
            }
        }
    }
}
