//! Schedules: an editor with a description and the next runs, the installed schedules, and forms to install and remove.
//!
//! The editor is a separate GET form, so that the page shows exactly what will be installed.

mod editor;
mod installed;
mod places;

use super::results;
use super::setting_words::words;
use crate::console::answers::refused;
use crate::console::html;
use crate::console::toolbox::Answer;
use crate::console::visit::{Fields, Visit};
use crate::record::{Action, Record, Time};
use axum::Extension;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use installed::{InstalledBackup, text};
use maud::{Markup, html};
use places::PLACES;

/// Two hours of grace after the longest time between two runs, as in `status`.
const GRACE_SECONDS: f64 = 7200.0;

const DAY_SECONDS: f64 = 86_400.0;

/// The value of the field for the machines that selects those of the installed schedule.
const NAMED: &str = "named";

/// `GET /schedule`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    show(&visit, &Fields::default(), None).await
}

/// Returns the first action of an answer.
fn action(answer: &Answer) -> Option<&Action> {
    answer.records.iter().find_map(|record| match record {
        Record::Action(action) => Some(action),
        _ => None,
    })
}

/// Returns the page; `form` and `failed` belong to a failed installation.
async fn show(visit: &Visit, form: &Fields, failed: Option<&Answer>) -> Html<String> {
    let toolbox = &visit.console.toolbox;
    let again = visit.query.is_set("again");
    let installed = toolbox.look_up(&["schedule", "show"], again).await;
    let expression_of = |is_drill: bool| {
        installed.records.iter().find_map(|record| match record {
            Record::Action(action) if text(action, "drill_command").is_some() == is_drill => text(action, "cron"),
            _ => None,
        })
    };
    let (at_work, drill) = (expression_of(false), expression_of(true));
    let wanted = form.get("cron").map(str::to_owned).or_else(|| editor::expression(&visit.query));
    let wanted = wanted.or_else(|| at_work.map(str::to_owned));
    let described = match &wanted {
        Some(cron) => toolbox.look_up(&["schedule", "describe", "--", cron], false).await,
        None => toolbox.look_up(&["schedule", "describe"], false).await,
    };
    let meant = action(&described);
    let cron = meant.map(|action| action.target.clone()).or(wanted).unwrap_or_default();
    let title = visit.say("Schedule", "Planification");
    let body = html! {
        (html::head(title, visit.say("When backups run.", "Quand les sauvegardes ont lieu.")))
        (html::failures(visit, &installed))
        @if let Some(failed) = failed { (html::failures(visit, failed)) }
        div class="split wide-l" {
            section class="sec" {
                h2 { (visit.say("When", "Quand")) }
                (editor::form(visit, &cron, &described))
                @match meant {
                    Some(meant) => (meaning(visit, meant)),
                    None => {}
                }
            }
            section class="sec" {
                h2 { (visit.say("Installed", "Installé")) }
                @for record in installed.records.iter() {
                    @if let Record::Action(action) = record { (at_place(visit, action)) }
                }
                (html::age(visit, &installed))
                (html::command(visit, &["schedule", "show"]))
            }
        }
        @if let Some(meant) = meant.filter(|_| visit.may_change()) {
            (install_form(visit, meant, drill, &installed, form, failed))
        }
    };
    html::page(visit, title, html::PageUpdates::None, body).await
}

/// Describes an expression and its next runs.
fn meaning(visit: &Visit, action: &Action) -> Markup {
    let gap = action.extra.get("longest_gap_seconds").and_then(|seconds| seconds.as_f64());
    html! {
        div class="panel" {
            output class="words" { (description(visit, action)) }
            p class="sub" {
                code { (action.target) } " "
                (visit.say("The next ten runs:", "Les dix prochaines exécutions\u{a0}:"))
            }
            (runs(visit, action))
        }
        @if let Some(gap) = gap.filter(|gap| *gap > DAY_SECONDS) {
            @let (gap, overdue) = (visit.language.duration(gap), visit.language.duration(gap + GRACE_SECONDS));
            div class="note warn" {
                (html::icon("warn"))
                p {
                    (visit.language.say(
                        format!("The longest time between two runs is {gap}. A point counts as overdue after \
                         {overdue}."),
                        format!(
                            "Le plus long temps entre deux exécutions est {gap}. Un point est en retard après \
                             {overdue}."
                        ),
                    ))
                }
            }
        }
        (html::command(visit, &["schedule", "describe", &action.target]))
    }
}

fn description(visit: &Visit, action: &Action) -> String {
    let words = visit.language.of_command(text(action, "description").unwrap_or_default());
    let mut letters = words.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn runs(visit: &Visit, action: &Action) -> Markup {
    let runs = action.extra.get("next_runs").and_then(|runs| runs.as_array());
    let runs = runs.into_iter().flatten().filter_map(|run| Some((run.as_str()?, run.as_str()?.parse::<Time>().ok()?)));
    html! {
        ol class="runs" { @for (text, run) in runs { li { time datetime=(text) { (visit.language.moment(run)) } } } }
    }
}

/// Returns an installed schedule, and the button that removes it.
fn at_place(visit: &Visit, action: &Action) -> Markup {
    let machines = match action.extra.get("machines") {
        Some(serde_json::Value::Array(names)) => {
            names.iter().filter_map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
        }
        other => other.and_then(|word| word.as_str()).unwrap_or_default().to_owned(),
    };
    let drill = text(action, "drill_command");
    let place = PLACES.iter().find(|place| place.target == action.target);
    let removal: Vec<&str> = ["schedule", "remove"]
        .into_iter()
        .chain(place.map(|place| place.flag).filter(|flag| !flag.is_empty()))
        .collect();
    html! {
        div class="panel" {
            p {
                b class="brk" { (action.target) }
                @if drill.is_some() { " · " (visit.say("Drills", "Essais de démarrage")) }
            }
            @if text(action, "cron").is_none() {
                p class="sub brk" { (visit.language.of_command(&action.reason)) }
            } @else {
                p { (description(visit, action)) " " code { (text(action, "cron").unwrap_or_default()) } }
                dl class="facts" {
                    @if !machines.is_empty() {
                        dt { (visit.say("Machines", "Machines")) }
                        dd class="brk" { (which(visit, &machines)) }
                    }
                    @if let Some(repo) = text(action, "repo") {
                        dt { (visit.say("Repository", "Dépôt")) }
                        dd class="brk" { (repo) }
                    }
                    dt { (visit.say("Next runs", "Prochaines exécutions")) }
                    dd { (runs(visit, action)) }
                }
                @if let Some(command) = text(action, "backup_command").or(drill) { (html::line(command)) }
            }
            @if let Some(place) = place.filter(|_| drill.is_none() && action.extra.contains_key("entry")) {
                (html::action(
                    visit,
                    "/schedule/remove",
                    &[("place", place.flag)],
                    visit.say("Remove the schedule", "Retirer la planification"),
                    &removal,
                ))
            }
        }
    }
}

fn which(visit: &Visit, machines: &str) -> String {
    match machines {
        "all" => visit.say("all", "toutes").to_owned(),
        "selected_vms" => visit.say("those of selected_vms", "celles de selected_vms").to_owned(),
        names => names.to_owned(),
    }
}

fn install_form(
    visit: &Visit,
    meant: &Action,
    drill: Option<&str>,
    installed: &Answer,
    form: &Fields,
    failed: Option<&Answer>,
) -> Markup {
    let is_new = failed.is_none();
    let (backups, is_any_edited) = InstalledBackup::all(installed);
    let known = backups.first();
    let place = match is_new {
        true => known.map_or(PLACES[0].flag, |known| known.place),
        false => form.get("place").unwrap_or_default(),
    };
    // An installed schedule is kept unless its fields are changed.
    let shown = known.filter(|_| is_new).map(InstalledBackup::form);
    let form = shown.as_ref().unwrap_or(form);
    let others = known.map(InstalledBackup::others).unwrap_or_default();
    let names = known.map(|known| known.names.join(", ")).unwrap_or_default();
    let error = |word: &str| {
        let failures = failed.into_iter().flat_map(|answer| answer.failures());
        failures.map(|failure| failure.error.clone()).find(|error| error.contains(word))
    };
    let (delay, sample, wrong_drill) = (error("--random-delay"), error("--verify-sample"), error("--drill"));
    // An installed drill is kept unless the field is cleared.
    let drill = drill.filter(|_| is_new).or(form.get("drill")).unwrap_or_default();
    let value = |name: &str| form.get(name).unwrap_or_default().to_owned();
    let checked = |name: &str| form.is_set(name);
    let name = |key: &str| words(key).map(|words| words.name(visit.language)).unwrap_or_default();
    html! {
        form method="post" action="/schedule/install" class="sec formend" {
            (html::form_token(visit))
            h2 { (visit.say("Install", "Installer")) ": " (description(visit, meant)) }
            input type="hidden" name="cron" value=(meant.target);
            div class="fields" {
                fieldset class="opts" {
                    legend { (visit.say("Where it is installed", "Où l’installer")) }
                    @for of in &PLACES {
                        label class="check" {
                            input type="radio" name="place" value=(of.flag) checked[place == of.flag];
                            span {
                                (visit.language.say(of.english, of.french)) " "
                                span class="help" { (visit.language.say(of.english_help, of.french_help)) }
                            }
                        }
                    }
                }
                fieldset class="opts" {
                    legend { (visit.say("Machines", "Machines")) }
                    @for (value, english, french) in
                        [("", "those of selected_vms", "celles de selected_vms"), ("all", "all", "toutes")] {
                        label class="check" {
                            input type="radio" name="machines" value=(value)
                                checked[form.get("machines").unwrap_or_default() == value];
                            span { (visit.language.say(english, french)) }
                        }
                    }
                    @if !names.is_empty() {
                        label class="check" {
                            input type="radio" name="machines" value=(NAMED)
                                checked[form.get("machines") == Some(NAMED)];
                            span class="brk" { (visit.say("as installed: ", "comme installé\u{a0}: ")) (names) }
                        }
                    }
                }
                fieldset class="opts" {
                    legend { (visit.say("After each backup", "Après chaque sauvegarde")) }
                    label class="check" {
                        input type="checkbox" name="verify" value="1" checked[checked("verify")];
                        span { (name("verify")) " " span class="help" { "--verify" } }
                    }
                    label class="check" {
                        input type="checkbox" name="prune" value="1" checked[checked("prune")];
                        span {
                            (visit.say("Remove old points by the rules", "Supprimer les vieux points selon les règles"))
                            " " span class="help" { "--prune" }
                        }
                    }
                }
                (option_field(visit, "random_delay", &value("random_delay"), delay.as_deref(),
                    visit.say("Random delay", "Délai aléatoire"),
                    visit.say("spreads hosts that share a server, for example 15m",
                        "répartit les hôtes d’un même serveur, par exemple 15m")))
                (option_field(visit, "sample", &value("sample"), sample.as_deref(), name("verify_sample"),
                    visit.say("share of the repository to read back, for example 5%",
                        "part du dépôt à relire, par exemple 5%")))
                (option_field(visit, "drill", drill, wrong_drill.as_deref(),
                    visit.say("Drills", "Essais de démarrage"),
                    visit.say("when three machines at a time are booted from their points, for example weekly",
                        "quand trois machines à la fois sont démarrées depuis leurs points, par exemple weekly")))
            }
            @if !others.is_empty() {
                label class="check" {
                    input type="checkbox" name="keep" value="1" checked[checked("keep")];
                    span {
                        (visit.say(
                            "Keep the other options of the installed schedule",
                            "Garder les autres options de la planification installée",
                        ))
                        " "
                        code class="brk" { (shlex::try_join(others.iter().map(String::as_str)).unwrap_or_default()) }
                    }
                }
            }
            @if is_any_edited {
                div class="note warn" {
                    (html::icon("warn"))
                    p { (visit.say(
                        "The command of an installed schedule was edited by hand. Installing at the same place \
                         replaces it.",
                        "La commande d’une planification installée a été modifiée à la main. Installer au même endroit \
                         la remplace.",
                    )) }
                }
            }
            div class="row" {
                button type="submit" class="pri" { (visit.say("Install", "Installer")) }
                button type="submit" name="dry" value="1" {
                    (visit.say("Show what would be installed", "Montrer ce qui serait installé"))
                }
            }
            (html::line(&visit.console.toolbox.command_line(&install_words(form, &meant.target, place, drill, known))))
        }
    }
}

fn option_field(visit: &Visit, name: &str, value: &str, error: Option<&str>, label: &str, help: &str) -> Markup {
    html! {
        div class="field" {
            label for=(name) { (label) }
            input id=(name) name=(name) type="text" class="w-s mono" value=(value) autocomplete="off"
                aria-invalid=[error.map(|_| "true")]
                aria-describedby={(name) "-h" @if error.is_some() { " " (name) "-e" }};
            span class="help" id={(name) "-h"} { (help) }
            @if let Some(error) = error {
                p class="err" id={(name) "-e"} {
                    (html::icon("crit")) span class="brk" { (visit.language.of_command(error)) }
                }
            }
        }
    }
}

/// Returns the command line of a form. Machines and options that only the installed schedule has are taken from there:
/// a browser must not choose options of a command that runs as root.
fn install_words(
    form: &Fields,
    cron: &str,
    place: &str,
    drill: &str,
    installed: Option<&InstalledBackup>,
) -> Vec<String> {
    let mut words = vec!["schedule".to_owned(), "install".to_owned(), format!("--cron={cron}")];
    words.extend(Some(place).filter(|place| !place.is_empty()).map(str::to_owned));
    words.extend((form.get("machines") == Some("all")).then(|| "--all".to_owned()));
    words.extend(form.get("random_delay").map(|delay| format!("--random-delay={}", delay.trim())));
    words.extend(form.is_set("prune").then(|| "--prune".to_owned()));
    words.extend((!drill.trim().is_empty()).then(|| format!("--drill={}", drill.trim())));
    let kept = installed.filter(|_| form.is_set("keep"));
    words.extend(kept.into_iter().flat_map(|kept| kept.locations.iter().cloned()));
    let named = installed.filter(|_| form.get("machines") == Some(NAMED));
    words.extend(named.into_iter().flat_map(|named| named.names.iter().cloned()));
    let sample = form.get("sample").map(|share| format!("--verify-sample={}", share.trim()));
    let options = form.is_set("verify").then(|| "--verify".to_owned()).into_iter().chain(sample);
    let options: Vec<String> = options.chain(kept.into_iter().flat_map(|kept| kept.options.iter().cloned())).collect();
    if !options.is_empty() {
        words.push("--".into());
        words.extend(options);
    }
    words
}

/// Returns the flag of the location that a form names; unknown ones are not passed on.
fn place(visit: &Visit) -> &'static str {
    let wanted = visit.form.get("place").unwrap_or_default();
    PLACES.iter().find(|place| place.flag == wanted).map_or("", |place| place.flag)
}

/// `POST /schedule/install`
pub(super) async fn install(Extension(visit): Extension<Visit>) -> Response {
    let field = |name: &str| visit.form.get(name).unwrap_or_default().trim();
    let place = place(&visit);
    let mut backups = InstalledBackup::all(&visit.console.toolbox.look_up(&["schedule", "show"], true).await).0;
    // The one that will be replaced, or else the one that the page has shown.
    let at = backups.iter().position(|known| known.place == place).unwrap_or(0);
    let known = (at < backups.len()).then(|| backups.swap_remove(at));
    let is_named = visit.form.get("machines") == Some(NAMED);
    if is_named && known.as_ref().is_none_or(|known| known.names.is_empty()) {
        let reason = visit.say(
            "The installed schedule no longer lists machines. Choose the machines again.",
            "La planification installée ne nomme plus de machines. Choisissez-les de nouveau.",
        );
        return refused(&visit, visit.say("Schedule", "Planification"), reason, "/schedule?again=1").await;
    }
    let mut words = install_words(&visit.form, field("cron"), place, field("drill"), known.as_ref());
    if visit.form.is_set("dry") {
        words.insert(2, "--dry-run".into());
    }
    let answer = visit.console.toolbox.act(&words).await;
    if answer.exit_code != Some(0) {
        return (StatusCode::UNPROCESSABLE_ENTITY, show(&visit, &visit.form, Some(&answer)).await).into_response();
    }
    results::show(&visit, visit.say("Schedule", "Planification"), &words, &answer, "/schedule").await
}

/// `POST /schedule/remove`
pub(super) async fn remove(Extension(visit): Extension<Visit>) -> Response {
    let flag = Some(place(&visit)).filter(|flag| !flag.is_empty()).map(str::to_owned);
    let words: Vec<String> = ["schedule".to_owned(), "remove".to_owned()].into_iter().chain(flag).collect();
    let answer = visit.console.toolbox.act(&words).await;
    results::show(&visit, visit.say("Schedule", "Planification"), &words, &answer, "/schedule").await
}
