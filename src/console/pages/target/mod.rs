//! The backup server: its address, the step-by-step test of the connection, the host key to confirm, and the set-up of
//! a login key.
//!
//! All actions use the address in the form, saved or not: it is part of every command line.

mod fields;
mod steps;

use super::results;
use super::server_address::{Address, FIELDS, text_of};
use super::settings::{field, find, settings_of};
use crate::console::answers::redirect;
use crate::console::followed::Followed;
use crate::console::html;
use crate::console::visit::{Fields, Visit};
use crate::record::{Record, Setting};
use axum::Extension;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use fields::{FINGERPRINT, FieldError, PASSWORD, error_line, error_of, hidden_address};
use maud::{Markup, html};
use std::sync::Arc;

/// Configuration keys that belong to the server, in addition to its address.
const MORE: [&str; 3] = ["ssh.identity_file", "remote_password_file", "ssh.connections"];

/// `GET /server`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let form = visit.console.server_test().map(|test| test.form.clone());
    show(&visit, form.as_ref(), &[]).await
}

/// Returns the page, with the address of `form` or else that of the configuration.
async fn show(visit: &Visit, form: Option<&Fields>, errors: &[FieldError]) -> Html<String> {
    let answer = visit.console.toolbox.look_up(&["config", "show"], true).await;
    let settings = settings_of(&answer);
    let test = visit.console.server_test();
    let values = |key: &str| match form {
        Some(form) => form.all(&format!("k.{key}")).next().unwrap_or_default().to_owned(),
        None => find(&settings, key).map(|setting| text_of(&setting.value)).unwrap_or_default(),
    };
    let address = Address::of(&values);
    let is_running = test.as_ref().is_some_and(|test| !test.has_ended());
    let title = visit.say("Backup server", "Serveur de sauvegarde");
    let body = html! {
        (html::head(
            title,
            visit.say(
                "Points are copied there after each backup. The server needs SSH with SFTP, and nothing else.",
                "Les points y sont copiés après chaque sauvegarde. Le serveur a besoin de SSH avec SFTP, et de rien \
                 d’autre.",
            ),
        ))
        (html::failures(visit, &answer))
        (address_form(visit, &settings, &values, errors))
        @if let Some(test) = &test { (steps::section(visit, test, errors)) }
        @if let Ok(address) = &address { (key_section(visit, address, &values, errors)) }
    };
    html::page(visit, title, html::PageUpdates::of_job(is_running), body).await
}

/// Returns the form that tests and saves the address.
fn address_form(visit: &Visit, settings: &[Setting], values: &dyn Fn(&str) -> String, errors: &[FieldError]) -> Markup {
    let address = Address::of(values);
    html! {
        form method="post" action="/server/test" class="sec" {
            (html::form_token(visit))
            input type="hidden" name="back" value="/server";
            fieldset class="sec" {
                legend class="vh" { (visit.say("Address", "Adresse")) }
                div class="fields" {
                    @for of in &FIELDS {
                        @let (id, error) = (format!("f-{}", of.key), error_of(errors, of.key));
                        @let saved = find(settings, of.key).map(|setting| text_of(&setting.value)).unwrap_or_default();
                        div class="field" {
                            label for=(id) { (visit.language.say(of.english, of.french)) }
                            input type="hidden" name={"b." (of.key)} value=(saved);
                            input id=(id) name={"k." (of.key)} type="text" class={"mono " (of.class)}
                                value=(values(of.key)) readonly[!visit.may_change()] autocomplete="off"
                                spellcheck="false" inputmode=[(of.key == "ssh.port").then_some("numeric")]
                                aria-invalid=[error.map(|_| "true")]
                                aria-describedby={(id) "-h" @if error.is_some() { " " (id) "-e" }};
                            span class="help" id={(id) "-h"} {
                                (visit.language.say(of.english_help, of.french_help))
                            }
                            (error_line(&id, error))
                        }
                    }
                }
            }
            @if visit.may_change() {
                details {
                    summary { (visit.say("Key and password files", "Fichiers de clé et de mot de passe")) }
                    div class="fields" {
                        @for setting in MORE.iter().filter_map(|key| find(settings, key)) {
                            (field(visit, setting, &[]))
                        }
                    }
                }
                div class="row" {
                    button type="submit" class="pri" { (visit.say("Test connection", "Tester la connexion")) }
                    button type="submit" formaction="/settings/review" { (visit.say("Save", "Enregistrer")) }
                    @if let Ok(address) = &address {
                        span class="sub brk" {
                            (visit.say("Address for kvmb and restic: ", "Adresse pour kvmb et restic\u{a0}: "))
                            code { (address.url()) }
                        }
                    }
                }
            }
            @if let Ok(address) = &address { (html::command(visit, &["remote", "test", "-r", &address.url()])) }
        }
    }
}

/// Returns the section that sets up a login key.
fn key_section(visit: &Visit, address: &Address, values: &dyn Fn(&str) -> String, errors: &[FieldError]) -> Markup {
    let (account, error) = (address.account(), error_of(errors, PASSWORD));
    html! {
        section class="sec" {
            h2 { (visit.say("Key for scheduled backups", "Clé pour les sauvegardes planifiées")) }
            @if visit.may_change() {
                form method="post" action="/server/setup" class="sec" {
                    (html::form_token(visit))
                    (hidden_address(values))
                    p class="sub" {
                        (visit.say(
                            "Makes a key of kvmb’s own and adds it to authorized_keys of the account, restricted to \
                             SFTP. Scheduled backups log in with it.",
                            "Crée une clé propre à kvmb et l’ajoute à authorized_keys du compte, limitée à SFTP. Les \
                             sauvegardes planifiées s’en servent.",
                        ))
                    }
                    div class="field" {
                        label for=(PASSWORD) {
                            (visit.say("Password of ", "Mot de passe de ")) span class="brk" { (account) }
                        }
                        input id=(PASSWORD) name=(PASSWORD) type="password" class="w-m" autocomplete="off"
                            aria-invalid=[error.map(|_| "true")]
                            aria-describedby={"p-h" @if error.is_some() { " " (PASSWORD) "-e" }};
                        span class="help" id="p-h" {
                            (visit.say(
                                "Used once, for this login, and not stored. Leave it empty if a key or an agent \
                                 already logs in.",
                                "Sert une fois, pour cet accès, et n’est pas enregistré. Laissez vide si une clé ou \
                                 un agent suffit déjà.",
                            ))
                        }
                        (error_line(PASSWORD, error))
                    }
                    div class="row" {
                        button type="submit" class="pri" { (visit.say("Set up the key", "Installer la clé")) }
                        button type="submit" name="dry" value="1" {
                            (visit.say("Show the line for the administrator", "Montrer la ligne pour l’administrateur"))
                        }
                    }
                }
            }
            (html::command(visit, &["remote", "setup", "-r", &address.url()]))
        }
    }
}

/// Returns the address of a form, or else the page with the errors at its fields.
async fn address_of(visit: &Visit) -> Result<Address, Response> {
    let value = |key: &str| visit.form.all(&format!("k.{key}")).next().unwrap_or_default().trim().to_owned();
    match Address::of(&value) {
        Ok(address) => Ok(address),
        Err(errors) => {
            let errors: Vec<FieldError> = errors
                .iter()
                .map(|(key, message)| (*key, visit.language.say(message.0, message.1).to_owned()))
                .collect();
            Err(refused(visit, &errors).await)
        }
    }
}

async fn refused(visit: &Visit, errors: &[FieldError]) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, show(visit, Some(&visit.form), errors).await).into_response()
}

/// Returns the fields that may be shown again: never a password.
fn kept(visit: &Visit) -> Fields {
    visit.form.only(|name| name.starts_with("k."))
}

/// `POST /server/test`
pub(super) async fn test(Extension(visit): Extension<Visit>) -> Response {
    match address_of(&visit).await {
        Ok(address) => {
            visit.console.test_server(words(&["remote", "test", "-r", &address.url()]), kept(&visit));
            redirect("/server")
        }
        Err(page) => page,
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// `POST /server/trust`: the user has compared the fingerprint and trusts this key of the server.
pub(super) async fn trust(Extension(visit): Extension<Visit>) -> Response {
    let address = match address_of(&visit).await {
        Ok(address) => address,
        Err(page) => return page,
    };
    let shown = visit.form.get("shown").unwrap_or_default();
    // Only a key that the server has shown to this console can be trusted.
    if shown.is_empty()
        || visit.console.server_test().and_then(|test| steps::shown_key(&test)).as_deref() != Some(shown)
    {
        let message = visit.say(
            "The server shows another key now. Test the connection again.",
            "Le serveur montre maintenant une autre clé. Testez de nouveau la connexion.",
        );
        return refused(&visit, &[(FINGERPRINT, message.to_owned())]).await;
    }
    if visit.form.get("trust") != Some("seen") {
        let typed = visit.form.get(FINGERPRINT).unwrap_or_default().trim();
        if bare(typed) != bare(shown) {
            let message = match typed.is_empty() {
                true => visit.say("Enter the fingerprint.", "Entrez l’empreinte."),
                false => visit.say(
                    "It is not the fingerprint that the server shows. Do not trust this key.",
                    "Ce n’est pas l’empreinte que montre le serveur. Ne faites pas confiance à cette clé.",
                ),
            };
            return refused(&visit, &[(FINGERPRINT, message.to_owned())]).await;
        }
    }
    let accept = format!("--accept-host-key={shown}");
    visit.console.test_server(words(&["remote", "test", "-r", &address.url(), &accept]), kept(&visit));
    redirect("/server")
}

/// Returns a fingerprint without prefix and padding.
fn bare(fingerprint: &str) -> &str {
    let fingerprint = fingerprint.strip_prefix("SHA256:").unwrap_or(fingerprint);
    fingerprint.trim_end_matches('=')
}

/// `POST /server/setup`: passes the password to the command through a pipe, where nobody else can see it.
pub(super) async fn set_up(Extension(visit): Extension<Visit>) -> Response {
    let address = match address_of(&visit).await {
        Ok(address) => address,
        Err(page) => return page,
    };
    let url = address.url();
    let (title, is_dry) =
        (visit.say("Key for scheduled backups", "Clé pour les sauvegardes planifiées"), visit.form.is_set("dry"));
    // Show what a person would type; the command would then prompt for the password.
    let mut shown = words(&["remote", "setup", "-r", &url]);
    shown.extend(is_dry.then(|| "--dry-run".to_owned()));
    let mut run = shown.clone();
    let password = visit.form.get(PASSWORD).filter(|password| !password.contains(['\n', '\r']));
    if password.is_some() {
        run.push("--ssh-password-file=/dev/stdin".into());
    }
    let answer = visit.console.toolbox.act_with(&run, password).await;
    if let Some(failure) = answer.failures().find(|failure| failure.code == "login") {
        return refused(&visit, &[(PASSWORD, visit.language.of_command(&failure.error))]).await;
    }
    let is_done = answer.exit_code == Some(0);
    let line = answer.records.iter().find_map(|record| match record {
        Record::Action(action) => action.extra.get("authorized_keys_line")?.as_str(),
        _ => None,
    });
    let form = kept(&visit);
    let values = |key: &str| form.all(&format!("k.{key}")).next().unwrap_or_default().to_owned();
    let body = html! {
        (html::head(title, ""))
        @if is_done && !is_dry {
            div class="note ok" {
                (html::icon("ok"))
                p role="status" { (visit.say("Done. This host logs in without a password.", "Fait. Cet hôte \
                 entre sans mot de passe.")) }
            }
        }
        (html::records(&visit, &answer.records))
        @if let Some(line) = line {
            details open[is_dry] {
                summary { (visit.say("Line for authorized_keys", "Ligne pour authorized_keys")) }
                pre class="block" tabindex="0" role="region"
                    aria-label=(visit.say("Line for authorized_keys", "Ligne pour authorized_keys")) { (line) }
            }
        }
        @for warning in answer.warnings.iter() {
            div class="note warn" { (html::icon("warn")) p class="brk" { (warning) } }
        }
        (html::line(&visit.console.toolbox.command_line(&shown)))
        form method="post" action="/server/test" class="row" {
            (html::form_token(&visit))
            (hidden_address(&values))
            button type="submit" class="pri" { (visit.say("Test connection", "Tester la connexion")) }
            a class="btn" href="/server" { (visit.say("Back", "Retour")) }
        }
    };
    let status = if is_done { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    (status, html::page(&visit, title, html::PageUpdates::None, body).await).into_response()
}

/// `POST /server/init`: creates the repository on the server.
pub(super) async fn create(Extension(visit): Extension<Visit>) -> Response {
    match address_of(&visit).await {
        Ok(address) => {
            let words = words(&["init", "-r", &address.url()]);
            let answer = visit.console.toolbox.act(&words).await;
            let title = visit.say("Create the repository", "Créer le dépôt");
            results::show(&visit, title, &words, &answer, "/server").await
        }
        Err(page) => page,
    }
}

/// Returns the parts of this page that change while a test runs.
pub(in crate::console) fn live_parts(visit: &Visit, page: &str) -> Vec<(String, String)> {
    let test: Option<Arc<Followed>> = (page == "/server").then(|| visit.console.server_test()).flatten();
    test.map(|test| ("live-test".to_owned(), steps::section(visit, &test, &[]).into_string())).into_iter().collect()
}
