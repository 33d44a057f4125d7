//! A running job: its progress, and the button that cancels it.

use crate::console::html;
use crate::console::visit::Visit;
use crate::record::Job;
use maud::{Markup, html};

/// Describes where a job was started.
pub(super) fn origin(visit: &Visit, origin: &str) -> String {
    match origin {
        "console" => visit.say("in the console", "dans la console").to_owned(),
        "shell" => visit.say("in a shell", "dans un shell").to_owned(),
        "cron" => visit.say("by cron", "par cron").to_owned(),
        "systemd" => visit.say("by systemd", "par systemd").to_owned(),
        other => other.to_owned(),
    }
}

/// Describes the progress of a job.
pub(super) fn progress_words(visit: &Visit, job: &Job) -> String {
    let language = visit.language;
    if job.command == "drill" {
        return visit.say("booting", "démarrage").to_owned();
    }
    if job.total_bytes == 0 {
        return visit.say("preparing", "préparation").to_owned();
    }
    let percent = html::percent(job.done_bytes, job.total_bytes);
    let (done, total) = (language.bytes(job.done_bytes), language.bytes(job.total_bytes));
    let mut words = language.say(
        format!("{} of {total} ({done} done)", language.percent(percent)),
        format!("{} de {total} ({done} faits)", language.percent(percent)),
    );
    if let Some(rate) = job.bytes_per_second.filter(|rate| *rate >= 1.0) {
        words += &format!(", {}/s", language.bytes(rate as u64));
    }
    if let Some(left) = job.left_seconds {
        let left = language.duration(left);
        words += &language.say(format!(", about {left} left"), format!(", encore environ {left}"));
    }
    words
}

/// Translates the verb of a step.
fn verb(visit: &Visit, verb: &str) -> String {
    let french = match verb {
        "reading" => "lecture de",
        "copying" => "copie de",
        "restoring" => "restauration de",
        "verifying" => "vérification de",
        "pruning" => "nettoyage de",
        "hashing" => "empreinte de",
        "moving" => "déplacement de",
        other => other,
    };
    visit.language.say(verb.to_owned(), french.to_owned())
}

/// Whether a job restores a machine that runs before its data is restored.
pub(super) fn is_live_restore(job: &Job) -> bool {
    let is_live = |word: &String| word == "--live" || word == "--continue";
    job.command == "restore" && job.arguments.iter().any(is_live)
}

/// Returns the machine whose data a running live restore copies; None before the machine runs.
pub(super) fn running_on_its_point(job: &Job) -> Option<&str> {
    let step = job.steps.first().filter(|_| is_live_restore(job))?;
    step.label.rsplit_once('/').map(|(machine, _)| machine)
}

fn what_cancel_does(visit: &Visit, job: &Job) -> String {
    let continues = job.arguments.iter().any(|word| word == "--continue");
    match running_on_its_point(job) {
        Some(machine) => visit.language.say(
            format!(
                "Cancel stops only the copying: {machine} keeps running and reads the rest from the repository. \
                 Afterwards, continue or abort the restore."
            ),
            format!(
                "Annuler n’arrête que la copie\u{a0}: {machine} continue et lit le reste dans le dépôt. Ensuite, \
                 continuez la restauration ou abandonnez-la."
            ),
        ),
        None if is_live_restore(job) && !continues => visit.language.say(
            "Cancelling before the machine runs restores the old images and the old definition.".to_owned(),
            "Annuler avant que la machine tourne remet les anciennes images et l’ancienne définition.".to_owned(),
        ),
        None if continues => visit.language.say(
            "Cancel leaves the restore as it is. Afterwards, continue or abort it.".to_owned(),
            "Annuler laisse la restauration telle quelle. Ensuite, continuez-la ou abandonnez-la.".to_owned(),
        ),
        None => visit.language.say(
            "Cancel does what Ctrl-C does: the job cleans up and exits.".to_owned(),
            "Annuler fait ce que fait Ctrl-C\u{a0}: la tâche range et s’arrête.".to_owned(),
        ),
    }
}

/// Returns the panel of a running job: its progress, and the button that cancels it.
pub(super) fn panel(visit: &Visit, job: &Job) -> Markup {
    let language = visit.language;
    let percent = html::percent(job.done_bytes, job.total_bytes).to_string();
    let (began, user, from) = (language.moment(job.began_at), &job.user, origin(visit, &job.origin));
    html! {
        div class="panel" {
            div class="jobline" {
                div {
                    h2 class="brk" {
                        (html::icon("run")) " " a href={"/jobs/" (html::segment(&job.job))} { (html::job_line(job)) }
                    }
                    p class="sub" {
                        (progress_words(visit, job)) ". "
                        (language.say(
                            format!("Started {began} {from} by {user}."),
                            format!("Lancée {began} {from} par {user}."),
                        ))
                    }
                }
                @if visit.may_change() {
                    form method="post" action={"/jobs/" (html::segment(&job.job)) "/cancel"} {
                        (html::form_token(visit))
                        @let cancel = visit.say("Cancel", "Annuler");
                        button type="submit" aria-label={(cancel) " " (html::job_line(job))} { (cancel) }
                    }
                }
            }
            progress max="100" value=(percent) aria-label=(visit.say("Progress", "Progression")) {
                (language.percent(html::percent(job.done_bytes, job.total_bytes)))
            }
            @if !job.steps.is_empty() {
                (html::table(visit.say("Running now", "En ce moment"), &[
                    visit.say("What", "Quoi"), visit.say("Progress", "Progression"), visit.say("Done", "Fait"),
                ], job.steps.iter().map(|step| {
                    let percent = html::percent(step.done_bytes, step.total_bytes);
                    vec![
                        html! { span class="brk" { (verb(visit, &step.verb)) " " (step.label) } },
                        html! {
                            progress max="100" value=(percent) aria-label=(step.label) { (language.percent(percent)) }
                        },
                        html! { (language.bytes(step.done_bytes)) " / " (language.bytes(step.total_bytes)) },
                    ]
                }).collect()))
            }
            p class="help" {
                (what_cancel_does(visit, job))
            }
            (html::command(visit, &["jobs", "cancel", &job.job]))
        }
    }
}
