//! The form that starts a drill: of a point, of a machine, or of the machines that were drilled least recently.

use crate::console::answers::not_found;
use crate::console::html;
use crate::console::pages::fields::{FieldErrors, Form};
use crate::console::pages::launch;
use crate::console::pages::points::lookup::{find, missing};
use crate::console::pages::repos::Repos;
use crate::console::visit::{Fields, Visit};
use crate::record::{Point, Record};
use axum::Extension;
use axum::response::Response;
use maud::{Markup, html};

/// The number of machines that a drill from the overview boots.
const SAMPLE: &str = "3";

/// The rungs that can be required.
const RUNGS: [&str; 3] = ["started", "console", "agent"];

/// The fields with values, and their options.
const FIELDS: [(&str, &str); 5] = [
    ("memory", "--memory"),
    ("timeout", "--timeout"),
    ("vcpus", "--vcpus"),
    ("expect", "--expect"),
    ("check", "--check"),
];

/// What to boot.
pub(in crate::console) enum Wish<'w> {
    /// This point of this repository.
    Point(&'w Repos, &'w Point),
    /// The newest point of a machine.
    Machine(&'w str),
    /// The newest points of the machines that were drilled least recently.
    Sample,
}

impl Wish<'_> {
    /// Returns the command line, with the options of a form.
    fn words(&self, form: &Fields) -> Vec<String> {
        let mut words = vec!["drill".to_owned()];
        // A command that must succeed is a rung itself.
        let until = form.get("until").filter(|rung| RUNGS.contains(rung) && !form.is_set("check"));
        words.extend(until.map(|rung| format!("--until={rung}")));
        for (field, option) in FIELDS {
            words.extend(form.get(field).map(|value| format!("{option}={value}")));
        }
        match self {
            Wish::Point(repos, point) => {
                words.extend(repos.options(&point.repo));
                words.push(point.point.clone());
            }
            Wish::Machine(name) => words.extend(["--".to_owned(), (*name).to_owned()]),
            Wish::Sample => words.extend(["--all".to_owned(), format!("--sample={SAMPLE}")]),
        }
        words
    }

    /// Returns the hidden field that says what to boot.
    fn field(&self) -> (&'static str, &str) {
        match self {
            Wish::Point(_, point) => ("p", &point.point),
            Wish::Machine(name) => ("m", name),
            Wish::Sample => ("sample", SAMPLE),
        }
    }

    fn button(&self, visit: &Visit) -> &'static str {
        match self {
            Wish::Point(..) => visit.say("Boot this point", "Démarrer ce point"),
            Wish::Machine(_) => visit.say("Boot the newest point", "Démarrer le point le plus récent"),
            Wish::Sample => visit.say("Boot three machines", "Démarrer trois machines"),
        }
    }
}

/// Returns the form and the equivalent command line. In read-only mode there is no form.
pub(in crate::console) fn form(visit: &Visit, wish: &Wish<'_>) -> Markup {
    let (nothing, none) = (Fields::default(), FieldErrors::default());
    let form = Form { typed: &nothing, errors: &none };
    let (name, value) = wish.field();
    html! {
        @if visit.may_change() {
            form method="post" action="/drill" class="sec" {
                (html::form_token(visit))
                input type="hidden" name=(name) value=(value);
                div class="row" {
                    (rungs(visit, &form))
                    button type="submit" { (wish.button(visit)) }
                }
                p class="help" {
                    (visit.say(
                        "A machine with a command in drill.check must pass it, whatever is chosen here. A text in \
                         drill.expect must appear as well: ",
                        "Une machine qui a une commande dans drill.check doit la réussir, quel que soit ce choix. Un \
                         texte dans drill.expect doit venir aussi\u{a0}: ",
                    ))
                    a href="/settings" { (visit.say("Configuration", "Configuration")) } "."
                }
                (more(visit, &form))
            }
        }
        (html::line(&visit.console.toolbox.command_line(&wish.words(&nothing))))
    }
}

fn rungs(visit: &Visit, form: &Form<'_>) -> Markup {
    form.select(
        "until",
        visit.say("Goal", "Ce qui suffit"),
        "--until",
        &[
            ("", visit.say("the goal of the other options", "ce que demandent les autres options")),
            ("started", visit.say("QEMU runs the machine", "QEMU fait tourner la machine")),
            ("console", visit.say("the guest shows signs of life", "l’invité se manifeste")),
            ("agent", visit.say("the guest agent answers", "l’agent invité répond")),
        ],
    )
}

fn more(visit: &Visit, form: &Form<'_>) -> Markup {
    html! {
        details {
            summary {
                (visit.say(
                    "More options: memory, time, expectations",
                    "Autres options\u{a0}: mémoire, durée, attentes",
                ))
            }
            div class="fields" {
                (form.select("memory", visit.say("Maximum memory", "Mémoire au plus"), "--memory", &[
                    ("", "2G"), ("512M", "512M"), ("1G", "1G"), ("4G", "4G"), ("8G", "8G"), ("16G", "16G"),
                ]))
                (form.select("vcpus", visit.say("Maximum processors", "Processeurs au plus"), "--vcpus", &[
                    ("", "2"), ("1", "1"), ("4", "4"), ("8", "8"),
                ]))
                (form.select("timeout", visit.say("Time limit", "Durée au plus"), "--timeout", &[
                    ("", visit.say("10m, without KVM 40m", "10m, sans KVM 40m")),
                    ("1m", "1m"), ("5m", "5m"), ("20m", "20m"), ("1h", "1h"), ("3h", "3h"),
                ]))
                (form.text("expect", visit.say("Text on the console", "Texte sur la console"), "--expect", "login:"))
                (form.text("check", visit.say(
                    "Command in the guest that must succeed", "Commande qui doit réussir dans l’invité",
                ), "--check", "systemctl is-active postgresql"))
            }
        }
    }
}

/// `POST /drill`
pub(in crate::console) async fn start(Extension(visit): Extension<Visit>) -> Response {
    let form = &visit.form;
    if let Some(id) = form.get("p") {
        let Some((point, known)) = find(&visit, id).await else { return missing(&visit, id).await };
        let back = format!("/points/{}", html::segment(&point.point));
        return launch::start(&visit, &Wish::Point(&known.repos, &point).words(form), &back).await;
    }
    if let Some(name) = form.get("m") {
        if !is_machine(&visit, name).await {
            return not_found(&visit).await;
        }
        let back = format!("/machines/{}", html::segment(name));
        return launch::start(&visit, &Wish::Machine(name).words(form), &back).await;
    }
    match form.is_set("sample") {
        true => launch::start(&visit, &Wish::Sample.words(form), "/").await,
        false => not_found(&visit).await,
    }
}

/// Whether this is the name of a machine that is backed up here.
async fn is_machine(visit: &Visit, name: &str) -> bool {
    let status = visit.console.toolbox.status(false).await;
    status
        .records
        .iter()
        .any(|record| matches!(record, Record::Check(check) if check.check == "backup" && check.target == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drill_form_becomes_arguments_without_option_injection() {
        let words = |wish: Wish<'_>, form: &str| wish.words(&Fields::parse(form)).join(" ");
        assert_eq!(words(Wish::Machine("--all"), "until="), "drill -- --all");
        assert_eq!(
            words(Wish::Machine("a"), "until=console&memory=1G&timeout=5m"),
            "drill --until=console --memory=1G --timeout=5m -- a"
        );
        assert_eq!(words(Wish::Machine("a"), "until=agent&check=id"), "drill --check=id -- a");
        assert_eq!(words(Wish::Machine("a"), "until=--check-in=host"), "drill -- a");
        assert_eq!(words(Wish::Sample, "expect=--all"), "drill --expect=--all --all --sample=3");
    }
}
