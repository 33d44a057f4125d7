//! `kvmb verify`

use crate::cli::args::repo::RepoArgs;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::history_recorder::HistoryRecorder;
use crate::cli::input::stdin_records;
use crate::cli::session::{About, Session};
use crate::cli::terminal::stderr::report;
use crate::ops::points::{self, PointName, PointRef};
use crate::ops::repo_lock::lock_for_reading;
use crate::ops::verify::{Verifier, VerifyDepth};
use crate::ops::verify_sampling::SampleCursor;
use crate::record::{Check, Point, Record, Status};
use crate::repo::{self, DamagedSnapshot, Id, Index, RepoLock, Repository};
use crate::units::Share;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Verify points by reading them back from the repository.
///
/// Every chunk is read and its SHA-256 is compared. Prints each 'point' record with 'verified' (how it was
/// verified, or false) and 'damage' (the affected disks and ranges). Exits with code 4 if damage is found.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb verify vm1@latest -r /backup/kvm
  kvmb verify --all -r /backup/kvm --sample 5%
  kvmb points vm1 -r /backup/kvm | kvmb verify -r /backup/kvm --quick")]
pub(crate) struct VerifyArgs {
    /// Points: an ID or the beginning of one, NAME@latest, NAME@2026-11-20, NAME@-2h. Without points, 'point'
    /// records are read from standard input.
    #[arg(value_name = "POINT", add = complete::points())]
    points: Vec<String>,

    /// Verify every point in the repository.
    #[arg(long, conflicts_with = "points")]
    all: bool,

    /// Verify only this share of the chunks (example: 5%). Each run continues where the previous one ended.
    #[arg(long, value_name = "P%", value_parser = percent)]
    sample: Option<f64>,

    /// Do not read chunks. Check only the structure, the index, and that every pack exists and has the right size.
    #[arg(long, conflicts_with = "sample")]
    quick: bool,

    #[command(flatten)]
    repo: RepoArgs,
}

fn percent(text: &str) -> Result<f64, String> {
    let share = text.parse::<Share>().ok().filter(|share| share.0 > 0.0);
    share.map(|share| share.0).ok_or_else(|| "expected a share above 0% and up to 100%".to_owned())
}

/// Selects all points of a repository.
const ALL: &str = "--all";

/// A repository that was opened for a command, with its lock.
struct OpenRepository {
    repo: Repository,
    index: Arc<Index>,
    points: Vec<PointRef>,
    damaged: Vec<DamagedSnapshot>,
    damaged_indexes: Vec<(Id, repo::Error)>,
    _lock: Option<RepoLock>,
}

fn open(context: &Context, repo: Repository) -> Result<OpenRepository, CliError> {
    let lock = lock_for_reading(&repo, &context.monitor, &context.stop)?;
    repo.check_key()?;
    let (index, damaged_indexes) = repo.reload_index_with_damage()?;
    // Verify the repository itself, not the cache.
    let repo = repo.uncached();
    let (points, damaged) = points::list(&repo)?;
    Ok(OpenRepository { repo, index, points, damaged, damaged_indexes, _lock: lock })
}

impl VerifyArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let mut wanted: BTreeMap<String, Vec<Point>> = BTreeMap::new();
        if self.points.is_empty() && !self.all {
            for record in stdin_records("verify", "points", &["point"], &context.stop)? {
                match record? {
                    Record::Point(point) => {
                        let url = if self.repo.is_named() { self.repo.url()? } else { point.repo.clone() };
                        wanted.entry(url).or_default().push(point);
                    }
                    Record::Failure(failure) => session.pass_failure(failure),
                    other => session.pass(&other),
                }
            }
            for (url, points) in wanted {
                let repo = RepoArgs { repo: Some(url), ..self.repo.clone() };
                match repo.open(context).and_then(|repo| open(context, repo)) {
                    Ok(open) => self.verify_records(context, &open, points, session)?,
                    Err(error) => session.fail(About::default(), error),
                }
            }
            return Ok(());
        }
        let open = open(context, self.repo.open(context)?)?;
        if self.all {
            let points = all_points(&open, session);
            if points.is_empty() && open.damaged.is_empty() {
                context.note(
                    &format!("nothing to verify: no points in {}", open.repo.url()),
                    "run 'kvmb backup NAME' to make the first one",
                );
            }
            return self.verify_points(context, &open, ALL, points, true, session);
        }
        let (mut chosen, mut names) = (Vec::new(), self.points.clone());
        names.sort();
        for name in &self.points {
            let name = PointName::parse(name, chrono::Local::now());
            match points::find_surely(&open.repo, &open.points, &open.damaged, &name) {
                Ok(point) => chosen.push((point, None)),
                Err(error) => session.fail(About::default(), error),
            }
        }
        let are_all = chosen.len() == names.len();
        self.verify_points(context, &open, &names.join(" "), chosen, are_all, session)
    }

    fn verify_records(
        &self,
        context: &Context,
        open: &OpenRepository,
        records: Vec<Point>,
        session: &mut Session,
    ) -> Result<(), CliError> {
        let machines: BTreeSet<String> = records.iter().map(|record| record.machine.clone()).collect();
        let (mut chosen, mut are_all) = (Vec::new(), true);
        for record in records {
            let name = PointName::Plain(record.point.clone());
            match points::find_surely(&open.repo, &open.points, &open.damaged, &name) {
                Ok(point) => chosen.push((point, Some(record))),
                Err(error) => {
                    session.fail(About { machine: Some(record.machine), ..About::default() }, error);
                    are_all = false;
                }
            }
        }
        let selection = format!("points of {}", Vec::from_iter(machines).join(" "));
        self.verify_points(context, open, &selection, chosen, are_all, session)
    }

    /// Verifies points to the requested depth. `selection` names them, for the next sample; `are_all` says whether none
    /// of them is missing.
    fn verify_points(
        &self,
        context: &Context,
        open: &OpenRepository,
        selection: &str,
        points: Vec<VerifyItem>,
        are_all: bool,
        session: &mut Session,
    ) -> Result<(), CliError> {
        let round = self.sample.map(|share| SampleCursor::go_on(&open.repo, selection, share));
        let depth = match &round {
            Some(round) => VerifyDepth::Sample(round.sector()),
            None if self.quick => VerifyDepth::Quick,
            None => VerifyDepth::Full,
        };
        let checked = verify_each(context, open, depth, points, Show::All, session)?;
        if let Some(round) = round.filter(|_| are_all && checked.is_complete) {
            round.done(&context.monitor);
        }
        Ok(())
    }
}

/// A point to verify, and the record that requested it, whose additional fields are passed on.
type VerifyItem = (PointRef, Option<Point>);

/// Returns every point of a repository, and reports the unreadable ones.
fn all_points(open: &OpenRepository, session: &mut Session) -> Vec<VerifyItem> {
    for DamagedSnapshot { id, error } in &open.damaged {
        let message = format!("snapshot {id} cannot be read: {error}");
        session.fail(About::default(), CliError::new(Code::Damage, message));
    }
    for (_, error) in &open.damaged_indexes {
        session.fail(About::default(), CliError::new(Code::Damage, error.to_string()));
    }
    open.points.iter().map(|point| (point.clone(), None)).collect()
}

/// Verifies the next sample of all points of a repository and prints a check with the result. Prints only points that
/// are affected by damage.
pub(crate) fn verify_sample(
    context: &Context,
    repo: &Repository,
    share: f64,
    session: &mut Session,
) -> Result<(), CliError> {
    let open = open(context, repo.clone())?;
    let unreadable = open.damaged.len() + open.damaged_indexes.len();
    let points = all_points(&open, session);
    let count = points.len();
    let round = SampleCursor::go_on(&open.repo, ALL, share);
    let checked = verify_each(context, &open, VerifyDepth::Sample(round.sector()), points, Show::Damaged, session)?;
    let percent = share * 100.0;
    let (status, detail) = match (checked.damaged, checked.is_complete) {
        (0, true) if unreadable == 0 => (Status::Ok, format!("verified {percent}% of the chunks of {count} points")),
        (0, false) if unreadable == 0 => (Status::Unknown, format!("not all of {count} points could be checked")),
        (damaged, _) => (Status::Critical, format!("{damaged} of {count} points are damaged")),
    };
    let check = Check::new("sample", repo.url(), status, detail);
    session.check(match status {
        Status::Critical => check.hint("run 'kvmb verify --all' to see everything that is affected"),
        _ => check,
    });
    if checked.is_complete {
        round.done(&context.monitor);
    }
    Ok(())
}

/// Which points to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    All,
    Damaged,
}

/// The result of verifying points.
struct VerifyTotals {
    /// The number of points affected by damage.
    damaged: usize,
    /// Whether every point was verified.
    is_complete: bool,
}

/// Verifies points, one after the other, and records the results.
fn verify_each(
    context: &Context,
    open: &OpenRepository,
    depth: VerifyDepth,
    points: Vec<VerifyItem>,
    show: Show,
    session: &mut Session,
) -> Result<VerifyTotals, CliError> {
    let mut verifier = Verifier::new(&open.repo, &open.index, depth)?;
    let history = HistoryRecorder::of(context, &open.repo.url());
    let mut all = VerifyTotals { damaged: 0, is_complete: true };
    let count = points.len();
    context.monitor.expect("points", count);
    for (done, (point, came)) in points.into_iter().enumerate() {
        let checked = match verifier.verify(&point, &context.monitor, &context.stop) {
            Ok(checked) => checked,
            Err(error @ crate::ops::Error::Interrupted) => {
                return Err(CliError::from(error).hint(what_was_verified(done, count, depth)));
            }
            Err(error) => {
                session.fail(About { machine: Some(point.machine().to_owned()), ..About::default() }, error);
                all.is_complete = false;
                continue;
            }
        };
        context.monitor.one_done();
        history.verification(&checked, depth);
        all.damaged += usize::from(!checked.damage.is_empty());
        show_verified(checked, came, show, session);
        if session.is_pointless() {
            all.is_complete = false;
            break;
        }
    }
    Ok(all)
}

/// Returns the message after an interrupted verification.
fn what_was_verified(done: usize, count: usize, depth: VerifyDepth) -> String {
    let next = match depth {
        VerifyDepth::Sample(_) => "the next run verifies the same sample",
        VerifyDepth::Full | VerifyDepth::Quick => "run the command again to verify the others",
    };
    format!("{done} of {count} points verified; {next}")
}

fn show_verified(checked: Point, came: Option<Point>, show: Show, session: &mut Session) {
    let (point, machine) = (checked.point.get(..8).unwrap_or_default().to_owned(), checked.machine.clone());
    let printed = match came {
        Some(came) => {
            let Point { verified, verified_at, damage, .. } = checked;
            Point { verified, verified_at, damage, ..came }
        }
        None => checked,
    };
    if printed.damage.is_empty() {
        if show == Show::All {
            session.done(Record::Point(printed));
        }
        return;
    }
    for damage in printed.damage.iter().take(10) {
        let place = match (&damage.disk, damage.offset_bytes, damage.length_bytes) {
            (Some(disk), Some(offset), Some(length)) => format!(", disk {disk}, bytes {offset} to {}", offset + length),
            _ => String::new(),
        };
        report(&format!("point {point} of {machine} is damaged{place}: {}", damage.error), None);
    }
    session.pass(&Record::Point(printed));
    session.damage();
}
