//! Retention: the rules of each repository, a preview of which points they keep and remove, and a button to prune now.
//!
//! The preview uses the rules in the form, whether they are saved or not. Pruning removes what the preview showed,
//! because the button's form contains the same rules.

use super::server_address::{Address, text_of};
use super::setting_words::words as words_of;
use super::settings::settings_of;
use crate::console::html;
use crate::console::pages::jobs;
use crate::console::toolbox::Answer;
use crate::console::visit::Visit;
use crate::record::{Action, Record, Setting, Time};
use axum::Extension;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};
use std::time::Duration;

/// The rules: configuration key and flag of the command.
const RULES: [(&str, &str); 7] = [
    ("keep_last", "--keep-last"),
    ("keep_hourly", "--keep-hourly"),
    ("keep_daily", "--keep-daily"),
    ("keep_weekly", "--keep-weekly"),
    ("keep_monthly", "--keep-monthly"),
    ("keep_yearly", "--keep-yearly"),
    ("keep_within", "--keep-within"),
];

/// Maximum age of a preview.
const PREVIEW: Duration = Duration::from_secs(20);

/// Maximum number of points shown.
const MOST_ROWS: usize = 500;

/// A repository that has its own rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Local,
    Remote,
}

impl Tier {
    fn word(self) -> &'static str {
        match self {
            Tier::Local => "local",
            Tier::Remote => "remote",
        }
    }

    fn key(self, rule: &str) -> String {
        format!("retention.{}.{rule}", self.word())
    }
}

/// The repository that the page shows, and its rules from the form.
struct Choice {
    tier: Tier,
    /// The server's address, if backups are copied there.
    server: Option<String>,
    /// Whether there is a local repository.
    has_local: bool,
    /// The rules and the values in their fields.
    values: Vec<(&'static str, String)>,
}

impl Choice {
    fn of(visit: &Visit, settings: &[Setting]) -> Choice {
        let setting = |key: &str| {
            let found = settings.iter().find(|setting| setting.key == key);
            found.map(|setting| text_of(&setting.value)).unwrap_or_default()
        };
        let server = Address::of(&setting).ok().map(|address| address.url());
        // An empty "repo" in the file means that backups go directly to the server.
        let has_local = !settings.iter().any(|known| known.key == "repo" && known.value == "");
        let wanted = visit.form.get("repo").or(visit.query.get("repo"));
        let tier = match wanted {
            Some("remote") if server.is_some() => Tier::Remote,
            _ if !has_local => Tier::Remote,
            _ => Tier::Local,
        };
        let is_given = visit.form.is_set("repo");
        let values = RULES.map(|(rule, _)| {
            let key = tier.key(rule);
            let typed = visit.form.all(&format!("k.{key}")).next().unwrap_or_default().trim().to_owned();
            (rule, if is_given { typed } else { setting(&key) })
        });
        Choice { tier, server, has_local, values: values.to_vec() }
    }

    /// Returns the command line of `prune` with the rules of the form.
    fn words(&self, is_dry: bool) -> Vec<String> {
        let mut words = vec!["prune".to_owned()];
        words.extend(is_dry.then(|| "--dry-run".to_owned()));
        if let (Tier::Remote, Some(url)) = (self.tier, &self.server) {
            words.push(format!("--repo={url}"));
        }
        let rules = self.values.iter().zip(RULES).filter(|((_, value), _)| !value.is_empty());
        words.extend(rules.map(|((_, value), (_, flag))| format!("{flag}={value}")));
        words
    }

    /// Whether the form has any rule. Without one, `prune` would apply those of the configuration instead.
    fn has_rules(&self) -> bool {
        self.values.iter().any(|(_, value)| !value.is_empty())
    }
}

/// `GET /retention`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    show(&visit).await.1
}

/// `POST /retention/preview`
pub(super) async fn preview(Extension(visit): Extension<Visit>) -> Response {
    show(&visit).await.into_response()
}

async fn show(visit: &Visit) -> (StatusCode, Html<String>) {
    let toolbox = &visit.console.toolbox;
    let config = toolbox.look_up(&["config", "show"], false).await;
    let settings = settings_of(&config);
    let choice = Choice::of(visit, &settings);
    let words = choice.words(true);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer = match choice.has_rules() {
        // What is pruned next must be what is shown.
        true => {
            let age = if visit.query.is_set("again") { Duration::ZERO } else { PREVIEW };
            Some(toolbox.look_up_within(&words, age).await)
        }
        false => None,
    };
    let is_wrong = |failure: &&crate::record::Failure| failure.code == "usage";
    let error =
        answer.as_ref().and_then(|answer| answer.failures().find(is_wrong)).map(|failure| failure.error.clone());
    let title = visit.say("Retention", "Rétention");
    let body = html! {
        (html::head(
            title,
            visit.say(
                "Which points are kept. A point is kept if any rule keeps it. This is a preview: nothing is removed.",
                "Quels points restent. Un point reste si une règle le garde. Ceci est un aperçu\u{a0}: rien n’est \
                 supprimé.",
            ),
        ))
        (html::failures(visit, &config))
        (tabs(visit, &choice))
        (rules_form(visit, &choice, &settings, error.as_deref()))
        @match &answer {
            Some(answer) => {
                @if error.is_none() { (html::failures(visit, answer)) }
                (decisions(visit, &choice, answer))
                (html::age(visit, answer))
                (html::command(visit, &words))
            }
            None => p {
                (visit.say(
                    "Without rules no point is removed.",
                    "Sans règles, aucun point n’est supprimé.",
                ))
            }
        }
    };
    let status = if error.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    (status, html::page(visit, title, html::PageUpdates::None, body).await)
}

/// Returns tabs for the repositories, each of which has its own rules.
fn tabs(visit: &Visit, choice: &Choice) -> Markup {
    let tab = |tier: Tier, name: &str| {
        html! {
            a href={"/retention?repo=" (tier.word())} aria-current=[(choice.tier == tier).then_some("true")] { (name) }
        }
    };
    html! {
        nav class="tabs" aria-label=(visit.say("Repository", "Dépôt")) {
            @if choice.has_local { (tab(Tier::Local, visit.say("Local repository", "Dépôt local"))) }
            @if choice.server.is_some() { (tab(Tier::Remote, visit.say("Backup server", "Serveur de sauvegarde"))) }
        }
        @if let (Tier::Remote, Some(url)) = (choice.tier, &choice.server) { p class="sub brk" { code { (url) } } }
    }
}

fn rules_form(visit: &Visit, choice: &Choice, settings: &[Setting], error: Option<&str>) -> Markup {
    html! {
        form method="post" action="/retention/preview" class="sec" {
            (html::form_token(visit))
            input type="hidden" name="repo" value=(choice.tier.word());
            input type="hidden" name="back" value="/retention";
            fieldset class="sec" {
                legend { (visit.say("Rules", "Règles")) }
                p class="help" {
                    (visit.say(
                        "Empty: the rule does not apply.",
                        "Vide\u{a0}: la règle ne s’applique pas.",
                    ))
                }
                div class="fields nums" {
                    @for ((rule, value), (_, flag)) in choice.values.iter().zip(RULES) {
                        @let key = choice.tier.key(rule);
                        @let (id, words) = (format!("f-{key}"), words_of(&key));
                        @let saved = settings.iter().find(|setting| setting.key == key)
                            .map(|setting| text_of(&setting.value)).unwrap_or_default();
                        @let error = error.filter(|error| error.contains(&format!("{flag} ")));
                        div class="field" {
                            label for=(id) {
                                @let name = words.map_or(*rule, |words| words.name(visit.language));
                                (capital(name.split_once(": ").map_or(name, |(_, name)| name)))
                            }
                            input type="hidden" name={"b." (key)} value=(saved);
                            input id=(id) name={"k." (key)} type="text" class="w-s" value=(value) autocomplete="off"
                                readonly[!visit.may_change()] aria-invalid=[error.map(|_| "true")]
                                inputmode=[(*rule != "keep_within").then_some("numeric")]
                                aria-describedby=[error.map(|_| format!("{id}-e"))];
                            @if *rule == "keep_within" {
                                span class="help" { (visit.say("for example 30d", "par exemple 30d")) }
                            }
                            @if let Some(error) = error {
                                p class="err" id={(id) "-e"} {
                                    (html::icon("crit"))
                                    span class="brk" { (visit.language.of_command(error)) }
                                }
                            }
                        }
                    }
                }
            }
            @if visit.may_change() {
                div class="row" {
                    label for="show" { (visit.say("Show", "Montrer")) }
                    select id="show" name="show" class="w-m" {
                        option value="all" { (visit.say("all points", "tous les points")) }
                        option value="goes" selected[visit.form.get("show") == Some("goes")] {
                            (visit.say("only those to be removed", "seulement ceux qui partent"))
                        }
                    }
                    button type="submit" { (visit.say("Update the preview", "Actualiser l’aperçu")) }
                    button type="submit" class="pri" formaction="/settings/review" {
                        (visit.say("Review and save the rules", "Vérifier et enregistrer les règles"))
                    }
                }
            }
        }
    }
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Returns every point with the verdict and its reason, the space that is freed, and the button that prunes.
fn decisions(visit: &Visit, choice: &Choice, answer: &Answer) -> Markup {
    let language = visit.language;
    let actions = || {
        answer.records.iter().filter_map(|record| match record {
            Record::Action(action) => Some(action),
            _ => None,
        })
    };
    let points: Vec<&Action> = actions().filter(|action| action.action == "forget").collect();
    let going = points.iter().filter(|action| action.changed).count();
    let staying = points.len() - going;
    let only_going = visit.form.get("show") == Some("goes");
    let shown: Vec<&&Action> = points.iter().filter(|action| action.changed || !only_going).take(MOST_ROWS).collect();
    let freed = actions().find(|action| action.action == "prune");
    let freed = freed.and_then(|action| action.extra.get("freed_bytes")?.as_u64()).unwrap_or_default();
    let freed = language.bytes(freed);
    let all = points.len();
    let caption = match shown.len() == all {
        true => visit.say("Every point", "Chaque point").to_owned(),
        false => language.say(format!("{} of {all} points", shown.len()), format!("{} points sur {all}", shown.len())),
    };
    let heads = [
        visit.say("Machine", "Machine"),
        visit.say("Point", "Point"),
        visit.say("Age", "Âge"),
        visit.say("Decision", "Décision"),
        visit.say("Why", "Pourquoi"),
    ];
    html! {
        @if all > 0 {
            p class="sub" {
                b {
                    (language.say(
                        format!("{staying} of {all} points are kept, {going} are removed, {freed} become free."),
                        format!("{staying} points sur {all} restent, {going} partent, {freed} se libèrent."),
                    ))
                }
            }
            (html::table(&caption, &heads, shown.into_iter().map(|action| row(visit, action)).collect()))
        }
        @if going > 0 && visit.may_change() {
            form method="post" action="/prune" class="row" {
                (html::form_token(visit))
                input type="hidden" name="repo" value=(choice.tier.word());
                @for (rule, value) in &choice.values {
                    input type="hidden" name={"k." (choice.tier.key(rule))} value=(value);
                }
                button type="submit" {
                    (language.say(
                        format!("Prune now: remove {going} points, free {freed}"),
                        format!("Purger maintenant\u{a0}: supprimer {going} points, libérer {freed}"),
                    ))
                }
            }
            (html::line(&visit.console.toolbox.command_line(&choice.words(false))))
        }
    }
}

fn row(visit: &Visit, action: &Action) -> Vec<Markup> {
    let text = |key: &str| action.extra.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    let captured: Option<Time> = text("captured_at").parse().ok();
    let why = action.reason.split_once(": ").map_or(&*action.reason, |(_, why)| why);
    vec![
        html! { span class="brk" { (text("machine")) } },
        html! {
            a href={"/points/" (html::segment(&action.target))} {
                @match captured {
                    Some(at) => (visit.language.moment(at)),
                    None => code { (html::short(&action.target)) },
                }
            }
        },
        html! { @if let Some(at) = captured { (visit.language.ago(at)) } },
        html! {
            @if action.changed {
                span class="st quiet" { (html::icon("off")) b { (visit.say("goes", "part")) } }
            } @else { span class="st ok" { (html::icon("ok")) (visit.say("stays", "reste")) } }
        },
        html! { span class="brk" { (visit.language.of_command(why)) } },
    ]
}

/// `POST /prune`
pub(super) async fn prune(Extension(visit): Extension<Visit>) -> Response {
    let config = visit.console.toolbox.look_up(&["config", "show"], false).await;
    let choice = Choice::of(&visit, &settings_of(&config));
    // Without rules, the form cannot be that of the preview.
    if !choice.has_rules() {
        return show(&visit).await.into_response();
    }
    jobs::start(&visit, &choice.words(false), "/retention").await
}
