//! The repositories of this host, always clearly distinguished, and their points.

use crate::console::html;
use crate::console::toolbox::Answer;
use crate::console::visit::Visit;
use crate::record::{Check, Point, Record};
use maud::{Markup, html};

/// The variable with the path of the second repository's password file.
const SECOND_PASSWORD: &str = "KVMB_COPY_TO_PASSWORD_FILE";

/// The variable with the path of the first repository's password file.
const FIRST_PASSWORD: &str = "KVMB_PASSWORD_FILE";

/// The addresses of the repositories that backups use.
#[derive(Debug, Default, Clone)]
pub(super) struct Repos {
    /// The first repository; None if unknown.
    pub(super) first: Option<String>,
    /// The second repository, with the copies.
    pub(super) second: Option<String>,
}

impl Repos {
    /// Returns the repositories that `status` checks.
    pub(super) async fn of(visit: &Visit, again: bool) -> Repos {
        let answer = visit.console.toolbox.status(again).await;
        let target = |kind: &str| {
            let is_it = |record: &Record| matches!(record, Record::Check(check) if check.check == kind);
            match answer.records.iter().find(|record| is_it(record)) {
                Some(Record::Check(Check { target, .. })) => Some(target.clone()),
                _ => None,
            }
        };
        Repos { first: target("repository"), second: target("copy") }
    }

    /// Returns their addresses, the first one first.
    pub(super) fn urls(&self) -> impl Iterator<Item = &str> {
        self.first.as_deref().into_iter().chain(self.second.as_deref())
    }

    /// Returns the options that select a repository, with its password file if the environment names one.
    pub(super) fn options(&self, url: &str) -> Vec<String> {
        let mut words = vec!["-r".to_owned(), url.to_owned()];
        if self.is_second(url) {
            words.extend(variable(SECOND_PASSWORD).map(|file| format!("--password-file={file}")));
        }
        words
    }

    /// Returns the options for a copy from one to the other.
    pub(super) fn copy_options(&self, from: &str, to: &str) -> Vec<String> {
        let mut words = self.options(to);
        words.push(format!("--from-repo={from}"));
        if variable(SECOND_PASSWORD).is_some() {
            let of_source = if self.is_second(from) { SECOND_PASSWORD } else { FIRST_PASSWORD };
            words.extend(variable(of_source).map(|file| format!("--from-password-file={file}")));
        }
        words
    }

    /// Whether this is the second repository.
    pub(super) fn is_second(&self, url: &str) -> bool {
        self.second.as_deref().is_some_and(|second| is_at(url, second))
    }

    /// Returns the other repository.
    pub(super) fn other(&self, url: &str) -> Option<&str> {
        let is_known = self.urls().any(|known| is_at(url, known));
        self.urls().find(|known| !is_at(url, known)).filter(|_| is_known)
    }

    /// Describes the role of a repository for this host.
    pub(super) fn role(&self, visit: &Visit, url: &str) -> &'static str {
        let is_remote = ["sftp:", "rest:", "s3:"].iter().any(|scheme| url.starts_with(scheme));
        match (self.is_second(url), is_remote) {
            (true, true) => visit.say("copies on the server", "copies sur le serveur"),
            (true, false) => visit.say("second repository", "deuxième dépôt"),
            (false, true) => visit.say("on the server", "sur le serveur"),
            (false, false) => visit.say("on this host", "sur cet hôte"),
        }
    }

    /// Returns the role and the address of a repository.
    pub(super) fn label(&self, visit: &Visit, url: &str) -> Markup {
        html! { span class="tag" { (self.role(visit, url)) } " " code class="brk" { (url) } }
    }
}

/// Whether a point's repository is the one at this address. A server's repository may be the folder `kvmb` below it.
fn is_at(url: &str, address: &str) -> bool {
    url == address || url.strip_suffix("/kvmb") == Some(address)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The points of all repositories.
pub(super) struct KnownPoints {
    pub(super) repos: Repos,
    /// The command line of each look-up, and its answer.
    pub(super) answers: Vec<(Vec<String>, Answer)>,
}

impl KnownPoints {
    /// Lists the points of every repository.
    pub(super) async fn of(visit: &Visit, again: bool) -> KnownPoints {
        let repos = Repos::of(visit, again).await;
        let mut commands: Vec<Vec<String>> =
            repos.urls().map(|url| ["points".to_owned()].into_iter().chain(repos.options(url)).collect()).collect();
        if commands.is_empty() {
            commands.push(vec!["points".to_owned()]);
        }
        let mut answers = Vec::new();
        for words in commands {
            let borrowed: Vec<&str> = words.iter().map(String::as_str).collect();
            let answer = visit.console.toolbox.look_up(&borrowed, again).await;
            answers.push((words, answer));
        }
        KnownPoints { repos, answers }
    }

    /// Returns all points, newest first.
    pub(super) fn newest_first(&self) -> Vec<&Point> {
        let records = self.answers.iter().flat_map(|(_, answer)| answer.records.iter());
        let points = records.filter_map(|record| match record {
            Record::Point(point) => Some(point),
            _ => None,
        });
        let mut points: Vec<&Point> = points.collect();
        points.sort_by_key(|point| std::cmp::Reverse(point.captured_at));
        points
    }

    /// Whether a repository could not be read, so that points may be missing.
    pub(super) fn is_any_unreadable(&self) -> bool {
        // Pages already say where there are no points yet.
        self.answers.iter().any(|(_, answer)| answer.failures().any(|failure| failure.code != "no_repository"))
    }

    /// Returns the failures, each with its repository.
    pub(super) fn failures(&self, visit: &Visit) -> Markup {
        html! {
            @for (words, answer) in &self.answers {
                // Pages already say where there are no points yet.
                @if answer.failures().any(|failure| failure.code != "no_repository") {
                    @if let Some(url) = words.get(2) { p { (self.repos.label(visit, url)) } }
                    (html::failures(visit, answer))
                }
            }
        }
    }

    /// Returns the age of the answers, and the command lines of the look-ups.
    pub(super) fn sources(&self, visit: &Visit) -> Markup {
        html! {
            @if let Some((_, answer)) = self.answers.iter().min_by_key(|(_, answer)| answer.at) {
                (html::age(visit, answer))
            }
            @for (words, _) in &self.answers { (html::line(&visit.console.toolbox.command_line(words))) }
        }
    }

    /// Returns the same point in another repository: both are copies of one capture.
    pub(super) fn twin<'k>(&'k self, point: &Point, repo: &str) -> Option<&'k Point> {
        let is_twin = |other: &&Point| {
            is_at(&other.repo, repo) && other.uuid == point.uuid && other.captured_at == point.captured_at
        };
        self.newest_first().into_iter().find(is_twin)
    }
}

/// Returns the ids of points that were found damaged.
pub(super) async fn damaged_points(visit: &Visit) -> Vec<String> {
    let answer = visit.console.toolbox.status(false).await;
    let of_check = |record: &Record| match record {
        Record::Check(check) => check.extra.get("damaged_points").and_then(|ids| ids.as_array().cloned()),
        _ => None,
    };
    let ids = answer.records.iter().filter_map(of_check).flatten();
    ids.filter_map(|id| id.as_str().map(str::to_owned)).collect()
}
