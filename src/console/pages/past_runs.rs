//! The last runs, from the records of `kvmb status --runs`: a strip of nights for each machine, and plots of all runs.

use super::machine_status::MachineStatus;
use super::plots::{Plot, PlotUnit, Series, hatching};
use crate::console::visit::Visit;
use crate::record::{Check, Time};
use chrono::{Local, NaiveDate, TimeDelta};
use maud::{Markup, html};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The number of days in a strip.
const NIGHTS: i64 = 14;

/// The number of runs in a plot.
const MOST_RUNS: usize = 30;

/// A run of one machine, from a record.
#[derive(Debug, Clone, Deserialize)]
struct ListedRun {
    run: String,
    began_at: Time,
    ended_at: Time,
    result: String,
    code: Option<String>,
    new_bytes: u64,
    stored_bytes: u64,
}

/// The size of a repository, from a record.
#[derive(Debug, Deserialize)]
struct ListedSize {
    at: Time,
    stored_bytes: u64,
}

fn list<T: for<'d> Deserialize<'d>>(check: &Check, key: &str) -> Vec<T> {
    let values = check.extra.get(key).and_then(|value| value.as_array()).into_iter().flatten();
    values.filter_map(|value| T::deserialize(value).ok()).collect()
}

/// The result of a night, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Night {
    NoRun,
    Stored,
    WithWarning,
    Failed,
}

impl ListedRun {
    fn night(&self) -> Night {
        match (self.result.as_str(), &self.code) {
            ("done", None) => Night::Stored,
            ("done" | "busy", _) => Night::WithWarning,
            _ => Night::Failed,
        }
    }
}

/// Returns the results of the last nights, newest last. If there are several runs in a day, the last one counts.
fn nights(runs: &[ListedRun], today: NaiveDate) -> Vec<Night> {
    let day = |run: &ListedRun| run.ended_at.with_timezone(&Local).date_naive();
    let of_day = |ago: i64| {
        let wanted = today - TimeDelta::days(ago);
        runs.iter().rev().find(|run| day(run) == wanted).map_or(Night::NoRun, ListedRun::night)
    };
    (0..NIGHTS).rev().map(of_day).collect()
}

/// Returns the last nights of a machine: a full mark for success, a half one for a warning, a cross for a failure, a
/// dot if nothing ran.
pub(super) fn strip(visit: &Visit, machine: &MachineStatus<'_>) -> Markup {
    let runs: Vec<ListedRun> = list(machine.0, "runs");
    if runs.is_empty() {
        return html! { "-" };
    }
    let nights = nights(&runs, Local::now().date_naive());
    let count = |wanted: Night| nights.iter().filter(|night| **night == wanted).count();
    let (stored, warned, failed) = (count(Night::Stored), count(Night::WithWarning), count(Night::Failed));
    let words = visit.language.say(
        format!("{NIGHTS} nights: {stored} stored, {warned} with a warning, {failed} failed"),
        format!("{NIGHTS} nuits : {stored} stockées, {warned} avec avertissement, {failed} échouées"),
    );
    let short = visit.language.say(
        format!("{} of {} stored", stored + warned, nights.len() - count(Night::NoRun)),
        format!("{} sur {} stockées", stored + warned, nights.len() - count(Night::NoRun)),
    );
    html! {
        svg class="strip" width="97" height="14" viewBox="0 0 97 14" role="img" aria-label=(words) {
            @for (at, night) in nights.iter().enumerate() {
                @let x = at * 7;
                @match night {
                    Night::Stored => rect class="y" x=(x) y="1" width="5" height="12" {},
                    Night::WithWarning => {
                        rect class="w" x={(x) ".5"} y="1.5" width="4" height="11" {}
                        rect class="y" x=(x) y="7" width="5" height="6" {}
                    },
                    Night::Failed => path class="x" d={"M" (x) ".2 4.5l4.6 5m0-5l-4.6 5"} {},
                    Night::NoRun => circle class="z" cx={(x) ".5"} cy="7" r="1.2" {},
                }
            }
        }
        span class="two" { (short) }
    }
}

/// The totals of a run over all of its machines.
#[derive(Debug)]
struct DayTotals {
    began_at: Time,
    ended_at: Time,
    new_bytes: u64,
    stored_bytes: u64,
}

/// Returns the newest runs, newest last.
fn sums(machines: &[MachineStatus<'_>]) -> Vec<DayTotals> {
    let mut by_run = BTreeMap::<String, DayTotals>::new();
    for run in machines.iter().flat_map(|machine| list::<ListedRun>(machine.0, "runs")) {
        let ListedRun { run, began_at, ended_at, new_bytes, stored_bytes, .. } = run;
        let sum = by_run.entry(run).or_insert(DayTotals { began_at, ended_at, new_bytes: 0, stored_bytes: 0 });
        sum.began_at = sum.began_at.min(began_at);
        sum.ended_at = sum.ended_at.max(ended_at);
        sum.new_bytes += new_bytes;
        sum.stored_bytes += stored_bytes;
    }
    let mut sums: Vec<DayTotals> = by_run.into_values().collect();
    sums.sort_by_key(|sum| sum.ended_at);
    sums.drain(..sums.len().saturating_sub(MOST_RUNS));
    sums
}

/// Returns labels for moments: days, or times if all are on the same day.
fn labels(visit: &Visit, moments: &[Time]) -> Vec<String> {
    let local: Vec<_> = moments.iter().map(|at| at.with_timezone(&Local)).collect();
    let is_one_day = local.first().map(|at| at.date_naive()) == local.last().map(|at| at.date_naive());
    let label = |at: &chrono::DateTime<Local>| match is_one_day {
        true => at.format("%H:%M").to_string(),
        false => at.format(visit.say("%-d %b", "%d/%m")).to_string(),
    };
    local.iter().map(label).collect()
}

/// Returns the plots: bytes and duration of each run, and the size of each repository.
pub(super) fn plots<'r>(visit: &Visit, machines: &[MachineStatus<'r>], others: &[&'r Check]) -> Markup {
    let sums = sums(machines);
    let repositories: Vec<(&str, Vec<ListedSize>)> = others
        .iter()
        .filter(|check| check.check == "repository")
        .map(|check| (check.target.as_str(), list(check, "sizes")))
        .filter(|(_, sizes)| !sizes.is_empty())
        .collect();
    if sums.is_empty() && repositories.is_empty() {
        return html! {};
    }
    let run_labels = labels(visit, &sums.iter().map(|sum| sum.ended_at).collect::<Vec<_>>());
    let of_sums = |of: fn(&DayTotals) -> f64| sums.iter().map(of).collect::<Vec<f64>>();
    let bytes = [
        Series { name: visit.say("new", "nouveau"), values: of_sums(|sum| sum.new_bytes as f64) },
        Series { name: visit.say("stored", "stocké"), values: of_sums(|sum| sum.stored_bytes as f64) },
    ];
    let seconds = [Series {
        name: visit.say("duration", "durée"),
        values: of_sums(|sum| (sum.ended_at - sum.began_at).num_milliseconds().max(0) as f64 / 1000.0),
    }];
    let axis = visit.say("Run", "Exécution");
    html! {
        section class="sec" {
            h2 { (visit.say("Over time", "Évolution")) }
            (hatching())
            div class="plots" {
                @if !sums.is_empty() {
                    ({
                        let title = visit.say("New and stored bytes of each run", "Octets nouveaux et stockés");
                        let (labels, series) = (&run_labels, &bytes);
                        Plot { id: "plot-bytes", title, axis, labels, series, unit: PlotUnit::Bytes }.bars(visit)
                    })
                    ({
                        let title = visit.say("Duration of each run", "Durée de chaque exécution");
                        let (labels, series) = (&run_labels, &seconds);
                        Plot { id: "plot-duration", title, axis, labels, series, unit: PlotUnit::Seconds }.line(visit)
                    })
                }
                @for (at, (repo, sizes)) in repositories.iter().enumerate() {
                    ({
                        let newest = &sizes[sizes.len().saturating_sub(MOST_RUNS)..];
                        let values = newest.iter().map(|size| size.stored_bytes as f64).collect();
                        let series = [Series { name: visit.say("size", "taille"), values }];
                        let labels = labels(visit, &newest.iter().map(|size| size.at).collect::<Vec<_>>());
                        let title = visit.language.say(
                            format!("Size of the repository {repo}"),
                            format!("Taille du dépôt {repo}"),
                        );
                        let id = format!("plot-size-{at}");
                        let plot = Plot {
                            id: &id, title: &title, axis, labels: &labels, series: &series, unit: PlotUnit::Bytes,
                        };
                        plot.line(visit)
                    })
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::Datelike;

    fn run(day: u32, result: &str, code: Option<&str>) -> ListedRun {
        let ended_at = Local::now().with_timezone(&Local).date_naive().with_day(1);
        let noon = ended_at.unwrap().and_hms_opt(12, 0, 0).unwrap() + TimeDelta::days(i64::from(day) - 1);
        let ended_at = noon.and_local_timezone(Local).unwrap().fixed_offset();
        let (run, result, code) = (day.to_string(), result.to_owned(), code.map(str::to_owned));
        ListedRun { run, began_at: ended_at, ended_at, result, code, new_bytes: 0, stored_bytes: 0 }
    }

    #[test]
    fn last_run_of_each_day_is_shown_and_days_without_runs_are_empty() {
        let runs = [
            run(2, "failed", None),
            run(2, "done", None),
            run(3, "done", Some("freeze")),
            run(4, "done", None),
            run(4, "failed", Some("no_space")),
        ];
        let nights = nights(&runs, run(5, "", None).ended_at.date_naive());
        assert_eq!(nights.len(), 14);
        assert!(nights[..10].iter().all(|night| *night == Night::NoRun));
        assert_eq!(nights[10..], [Night::Stored, Night::WithWarning, Night::Failed, Night::NoRun]);
    }
}
