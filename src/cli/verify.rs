//! `kvmb verify`

use crate::cli::Context;
use crate::cli::complete;
use crate::cli::failure::{CliError, Code};
use crate::cli::input::stdin_records;
use crate::cli::remember::Remember;
use crate::cli::repo_args::RepoArgs;
use crate::cli::session::{About, Session, report};
use crate::ops::points::{self, PointName, PointRef};
use crate::ops::verify::{Depth, Verifier};
use crate::record::{Point, Record};
use crate::repo::{self, DamagedSnapshot, Id, Index, RepoLock, Repository};
use crate::units::Share;
use std::collections::BTreeMap;

/// Prove restore points: read them back from the repository and compare every SHA-256.
///
/// Prints each 'point' record with 'verified' (how it was proven, or false) and 'damage': the disks and ranges that are hit. Exit
/// code 4 when there is damage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb verify vm1@latest -r /backup/kvm
  kvmb verify --all -r /backup/kvm --sample 5%
  kvmb points vm1 -r /backup/kvm | kvmb verify -r /backup/kvm --quick")]
pub struct VerifyArgs {
    /// Points: an id or its beginning, NAME@latest, NAME@2026-11-20, NAME@-2h; none reads 'point' records from standard input.
    #[arg(value_name = "POINT", add = complete::points())]
    points: Vec<String>,

    /// Every point in the repository.
    #[arg(long, conflicts_with = "points")]
    all: bool,

    /// Read only this share of the chunks, chosen anew each time: 5%.
    #[arg(long, value_name = "P%", value_parser = percent)]
    sample: Option<f64>,

    /// Read no chunks: structure, index, and the presence and length of every pack.
    #[arg(long, conflicts_with = "sample")]
    quick: bool,

    #[command(flatten)]
    repo: RepoArgs,
}

fn percent(text: &str) -> Result<f64, String> {
    let share = text.parse::<Share>().ok().filter(|share| share.0 > 0.0);
    share.map(|share| share.0).ok_or_else(|| "a share above 0% and up to 100%".to_owned())
}

/// A repository that was opened for a command, with its lock held.
struct Open {
    repo: Repository,
    index: Index,
    points: Vec<PointRef>,
    damaged: Vec<DamagedSnapshot>,
    damaged_indexes: Vec<(Id, repo::Error)>,
    _lock: Option<RepoLock>,
}

fn open(context: &Context, repo: &RepoArgs) -> Result<Open, CliError> {
    let repo = repo.open(context)?;
    let lock = points::lock_for_reading(&repo, &context.monitor, &context.stop)?;
    let (index, damaged_indexes) = repo.load_index_with_damage()?;
    let (points, damaged) = points::list(&repo)?;
    Ok(Open { repo, index, points, damaged, damaged_indexes, _lock: lock })
}

impl VerifyArgs {
    pub fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let mut wanted: BTreeMap<String, Vec<Point>> = BTreeMap::new();
        if self.points.is_empty() && !self.all {
            for record in stdin_records("verify", "points", &context.stop)? {
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
                match open(context, &repo) {
                    Ok(open) => self.verify_records(context, &open, points, session)?,
                    Err(error) => session.fail(About::default(), error),
                }
            }
            return Ok(());
        }
        let open = open(context, &self.repo)?;
        let mut chosen: Vec<PointRef> = Vec::new();
        if self.all {
            chosen = open.points.clone();
            for DamagedSnapshot { id, error } in &open.damaged {
                let message = format!("snapshot {id} cannot be read: {error}");
                session.fail(About::default(), CliError::new(Code::Damage, message));
            }
            for (_, error) in &open.damaged_indexes {
                session.fail(About::default(), CliError::new(Code::Damage, error.to_string()));
            }
        }
        for name in &self.points {
            match points::find_surely(
                &open.repo,
                &open.points,
                &open.damaged,
                &PointName::parse(name, chrono::Local::now()),
            ) {
                Ok(point) => chosen.push(point),
                Err(error) => session.fail(About::default(), error),
            }
        }
        let mut prover = Prover::new(context, &open, self.depth())?;
        for point in chosen {
            prover.verify(&point, None, session)?;
            if session.is_pointless() {
                break;
            }
        }
        Ok(())
    }

    fn depth(&self) -> Depth {
        match (self.quick, self.sample) {
            (true, _) => Depth::Quick,
            (false, Some(fraction)) => Depth::Sample(fraction),
            (false, None) => Depth::Full,
        }
    }

    fn verify_records(
        &self,
        context: &Context,
        open: &Open,
        records: Vec<Point>,
        session: &mut Session,
    ) -> Result<(), CliError> {
        let mut prover = Prover::new(context, open, self.depth())?;
        for record in records {
            match points::find_surely(&open.repo, &open.points, &open.damaged, &PointName::Plain(record.point.clone()))
            {
                Ok(point) => prover.verify(&point, Some(record), session)?,
                Err(error) => session.fail(About { machine: Some(record.machine), ..About::default() }, error),
            }
        }
        Ok(())
    }
}

/// Proves points, one after the other, and notes what that came to.
struct Prover<'a> {
    context: &'a Context,
    depth: Depth,
    verifier: Verifier<'a>,
    history: Remember<'a>,
}

impl<'a> Prover<'a> {
    fn new(context: &'a Context, open: &'a Open, depth: Depth) -> Result<Prover<'a>, CliError> {
        let verifier = Verifier::new(&open.repo, &open.index, depth)?;
        Ok(Prover { context, depth, verifier, history: Remember::of(context, &open.repo.url()) })
    }

    /// Proves one point. `came` is the record that asked for it: what it said beyond ours is passed on.
    fn verify(&mut self, point: &PointRef, came: Option<Point>, session: &mut Session) -> Result<(), CliError> {
        let proven = match self.verifier.verify(point, &self.context.monitor, &self.context.stop) {
            Ok(proven) => proven,
            Err(error @ crate::ops::Error::Interrupted) => return Err(error.into()),
            Err(error) => {
                session.fail(About { machine: Some(point.machine().to_owned()), ..About::default() }, error);
                return Ok(());
            }
        };
        self.history.verification(&proven, self.depth);
        let printed = match came {
            Some(came) => Point { verified: proven.verified.clone(), damage: proven.damage.clone(), ..came },
            None => proven.clone(),
        };
        if proven.damage.is_empty() {
            session.done(Record::Point(printed));
            return Ok(());
        }
        for damage in proven.damage.iter().take(10) {
            let place = match (&damage.disk, damage.offset_bytes, damage.length_bytes) {
                (Some(disk), Some(offset), Some(length)) => {
                    format!(", disk {disk}, bytes {offset} to {}", offset + length)
                }
                _ => String::new(),
            };
            let (id, machine) = (point.id.short(), point.machine());
            report(&format!("point {id} of {machine} is damaged{place}: {}", damage.error), None);
        }
        session.pass(&Record::Point(printed));
        session.damage();
        Ok(())
    }
}
