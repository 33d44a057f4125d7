//! The backup server: what is configured, and the test of the connection.

use super::results;
use super::settings::{form, settings_of};
use crate::console::html;
use crate::console::visit::Visit;
use axum::Extension;
use axum::response::{Html, Response};
use maud::html;

/// The keys of the server.
const KEYS: [&str; 6] =
    ["backup_host", "backup_user", "backup_path", "ssh.port", "ssh.identity_file", "remote_password_file"];

/// `GET /server`
pub(super) async fn page(Extension(visit): Extension<Visit>) -> Html<String> {
    let answer = visit.console.toolbox.look_up(&["config", "show"], true).await;
    let settings = settings_of(&answer);
    let has_host = settings.iter().any(|setting| setting.key == "backup_host" && !setting.value.is_null());
    let body = html! {
        (html::head(
            visit.say("Backup server", "Serveur de sauvegarde"),
            visit.say(
                "A server with SSH that keeps the repository, or a second copy of it.",
                "Un serveur SSH qui garde le dépôt, ou une deuxième copie.",
            ),
        ))
        (html::failures(&visit, &answer))
        @if has_host {
            section class="sec" {
                h2 { (visit.say("Test the connection", "Tester la connexion")) }
                p {
                    (visit.say(
                        "Name, connection, host key, login, folder, space, speed, clock: step by step.",
                        "Nom, connexion, clé d’hôte, accès, dossier, place, débit, horloge : pas à pas.",
                    ))
                }
                (html::action(
                    &visit,
                    "/server/test",
                    &[],
                    visit.say("Test connection", "Tester la connexion"),
                    &["remote", "test"],
                ))
                p {
                    (visit.say(
                        "The first time, set up the host key and a key for logins in a terminal:",
                        "La première fois, installez la clé d’hôte et une clé d’accès dans un terminal :",
                    ))
                }
                (html::command(&visit, &["remote", "setup"]))
            }
        }
        (form(&visit, &settings, &KEYS, &[]))
    };
    html::page(&visit, visit.say("Backup server", "Serveur de sauvegarde"), false, body).await
}

/// `POST /server/test`
pub(super) async fn test(Extension(visit): Extension<Visit>) -> Response {
    let words = ["remote", "test"].map(str::to_owned);
    let answer = visit.console.toolbox.act(&words).await;
    results::show(&visit, visit.say("Test of the connection", "Test de la connexion"), &words, &answer, "/server").await
}
