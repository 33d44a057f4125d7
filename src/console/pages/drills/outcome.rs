//! The result of a drill, from a record of `kvmb drill` or `kvmb status`.

use super::kept::{Kept, end_of};
use crate::console::html;
use crate::console::pages::machine_status::MachineStatus;
use crate::console::visit::Visit;
use crate::record::{Check, Record, Time};
use chrono::Local;
use maud::{Markup, html};
use serde_json::Value;
use std::path::PathBuf;

/// The result of a drill.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::console) struct Drilled {
    pub(in crate::console) machine: String,
    /// `ok`, `critical` or `unknown`.
    pub(super) status: String,
    pub(super) detail: String,
    /// The highest rung that was reached, and the seconds until then.
    rung: Option<String>,
    rung_seconds: Option<f64>,
    point: Option<String>,
    /// The time when it ended.
    pub(super) at: Time,
    /// The operating system that the agent reported.
    system: Option<String>,
    /// Whether the machine ran with hardware acceleration, if known.
    accelerated: Option<bool>,
    /// The files with the guest's console output and its screen.
    log: Option<PathBuf>,
    screenshot: Option<PathBuf>,
}

impl Drilled {
    /// Returns the last drill of a machine.
    pub(in crate::console) fn last(machine: &MachineStatus<'_>) -> Option<Drilled> {
        let text = |key: &str| machine.text(key).map(str::to_owned);
        Some(Drilled {
            machine: machine.name().to_owned(),
            status: text("drill_status")?,
            detail: text("drill_detail").unwrap_or_default(),
            rung: text("drill_rung"),
            rung_seconds: machine.number("drill_rung_seconds"),
            point: text("drill_point"),
            at: machine.time("drill_at")?,
            system: None,
            accelerated: None,
            log: text("drill_log").map(PathBuf::from),
            screenshot: text("drill_screenshot").map(PathBuf::from),
        })
    }

    /// Returns the drill that a command reported; it has ended by then.
    fn reported(check: &Check, at: Time) -> Option<Drilled> {
        let value = |key: &str| check.extra.get(key);
        let text = |key: &str| value(key).and_then(Value::as_str).map(str::to_owned);
        (check.check == "drill").then(|| Drilled {
            machine: check.target.clone(),
            status: check.status.clone(),
            detail: check.detail.clone(),
            rung: text("rung"),
            rung_seconds: value("rung_seconds").and_then(Value::as_f64),
            point: text("point"),
            at,
            system: text("system"),
            accelerated: value("accelerated").and_then(Value::as_bool),
            log: text("log").map(PathBuf::from),
            screenshot: text("screenshot").map(PathBuf::from),
        })
    }

    pub(super) fn kept_log(&self) -> Option<Kept<'_>> {
        self.log.as_deref().map(|path| Kept { path, not_after: self.at })
    }

    pub(super) fn kept_screenshot(&self) -> Option<Kept<'_>> {
        self.screenshot.as_deref().map(|path| Kept { path, not_after: self.at })
    }
}

/// Returns the drills that a job has reported. `ended_at` is the end of the job. A machine's files are those of its
/// last drill.
pub(in crate::console) fn of_job(printed: &[Record], ended_at: Option<Time>) -> Vec<Drilled> {
    let at = ended_at.unwrap_or_else(|| Local::now().fixed_offset());
    let mut all: Vec<Drilled> = Vec::new();
    for record in printed {
        let Record::Check(check) = record else { continue };
        let Some(drilled) = Drilled::reported(check, at) else { continue };
        for earlier in all.iter_mut().filter(|earlier| earlier.log.is_some() && earlier.log == drilled.log) {
            (earlier.log, earlier.screenshot) = (None, None);
        }
        all.push(drilled);
    }
    all
}

/// Describes a rung.
fn rung(visit: &Visit, word: &str) -> String {
    let known = match word {
        "started" => visit.say("started", "démarrée"),
        "console" => visit.say("signs of life", "activité de l’invité"),
        "agent" => visit.say("guest agent", "agent invité"),
        "check" => visit.say("command", "commande"),
        other => return other.to_owned(),
    };
    known.to_owned()
}

/// Describes the rung that was reached, and the time until then.
pub(super) fn height(visit: &Visit, drilled: &Drilled) -> String {
    match (&drilled.rung, drilled.rung_seconds) {
        (Some(word), Some(seconds)) => {
            let (word, time) = (rung(visit, word), visit.language.duration(seconds));
            visit.language.say(format!("{word} after {time}"), format!("{word} après {time}"))
        }
        (Some(word), None) => rung(visit, word),
        (None, _) => "-".to_owned(),
    }
}

/// Returns a line with the state, the rung and the time.
pub(in crate::console) fn line(visit: &Visit, drilled: &Drilled) -> Markup {
    html! {
        (html::state(visit.language, &drilled.status)) " "
        (height(visit, drilled)) ", " (visit.language.ago(drilled.at))
    }
}

/// Returns the result as a table of facts.
fn facts(visit: &Visit, drilled: &Drilled) -> Markup {
    let language = visit.language;
    let (class, shape) = match drilled.status.as_str() {
        "ok" => ("note ok", "ok"),
        "critical" => ("note crit", "crit"),
        _ => ("note warn", "warn"),
    };
    html! {
        div class=(class) { (html::icon(shape)) p class="brk" { (language.of_command(&drilled.detail)) } }
        dl class="facts" {
            dt { (visit.say("Result", "Résultat")) } dd { (html::state(language, &drilled.status)) }
            dt { (visit.say("Reached", "Étape atteinte")) }
            dd { (drilled.rung.as_deref().map_or_else(|| "-".to_owned(), |word| rung(visit, word))) }
            @if let Some(seconds) = drilled.rung_seconds {
                dt { (visit.say("Recovery time", "Temps de reprise")) } dd { (language.duration(seconds)) }
            }
            dt { (visit.say("When", "Quand")) } dd { (language.moment(drilled.at)) }
            @if let Some(point) = &drilled.point {
                dt { (visit.say("Point", "Point")) }
                dd { a class="mono" href={"/points/" (html::segment(point))} { (html::short(point)) } }
            }
            @if let Some(system) = &drilled.system {
                dt { (visit.say("System", "Système")) } dd class="brk" { (system) }
            }
            @if drilled.accelerated == Some(false) {
                dt { "KVM" } dd { (visit.say("no: the machine was emulated", "non\u{a0}: la machine était émulée")) }
            }
        }
    }
}

/// Returns the result with the guest's output. Its files are served below the address `path`.
pub(in crate::console) async fn panel(visit: &Visit, drilled: &Drilled, path: &str) -> Markup {
    let console = match drilled.kept_log() {
        Some(kept) => kept.bytes().await.map(|bytes| end_of(&bytes)),
        None => None,
    };
    let has_screen = match drilled.kept_screenshot() {
        Some(kept) => kept.picture().await.is_some(),
        None => false,
    };
    let machine = &drilled.machine;
    html! {
        (facts(visit, drilled))
        @if has_screen {
            figure class="screen" {
                img src={(path) "/screenshot"} alt=(visit.language.say(
                    format!("Screen of {machine} at the end of the drill"),
                    format!("Écran de {machine} à la fin de l’essai"),
                ));
                figcaption class="sub" { (visit.say("The screen at the end", "L’écran à la fin")) }
            }
        } @else { p { (visit.say("There is no picture of the screen.", "Il n’y a pas d’image de l’écran.")) } }
        @if let Some((shown, is_cut)) = console {
            h3 { (visit.say("Serial console", "Console série")) }
            @if shown.is_empty() {
                p { (visit.say("The guest wrote nothing to it.", "L’invité n’y a rien écrit.")) }
            } @else {
                @if is_cut { p { (visit.say("The end of it:", "La fin\u{a0}:")) } }
                pre class="block tall" tabindex="0" role="region" aria-label={
                    (visit.say("Serial console of ", "Console série de ")) (machine)
                } { (shown) }
                p { a href={(path) "/console"} {
                    (visit.say("Download all of it", "Tout télécharger"))
                } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn overwritten_drill_files_belong_only_to_the_latest_drill() {
        let drill = |log: &str| {
            let check =
                json!({ "type": "check", "check": "drill", "target": "a", "status": "ok", "detail": "", "log": log });
            Record::parse(&check.to_string()).unwrap()
        };
        let all = of_job(&[drill("/1"), drill("/2"), drill("/1")], None);
        let logs: Vec<_> = all.iter().map(|drilled| drilled.log.clone()).collect();
        assert_eq!(logs, [None, Some("/2".into()), Some("/1".into())]);
    }
}
