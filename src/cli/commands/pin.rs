//! `kvmb pin`

use crate::cli::args::repo::RepoArgs;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::input::stdin_records;
use crate::cli::session::{About, Session};
use crate::ops::pin::Pinner;
use crate::ops::points::{self, PointName};
use crate::record::{Action, Record, time_value};
use crate::repo::Repository;
use chrono::Local;
use serde_json::json;

/// Protect points from pruning.
///
/// Neither 'kvmb prune' nor 'restic forget --keep-tag pinned' removes a pinned point. A pin is a tag of the restic
/// snapshot, so the point gets a new ID; the old ID still works. Prints a 'pin' or 'unpin' record for each point.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb pin vm1@latest -r /backup/kvm            before an upgrade
  kvmb pin --undo vm1@2026-11-20 -r /backup/kvm
  kvmb backup vm1 -r /backup/kvm | kvmb pin -r /backup/kvm")]
pub(crate) struct PinArgs {
    /// Points: an ID or the beginning of one, NAME@latest, NAME@2026-11-20, NAME@-2h. Without points, 'point'
    /// records are read from standard input.
    #[arg(value_name = "POINT", add = complete::points())]
    points: Vec<String>,

    /// Remove the pin, so that the retention rules apply again.
    ///
    /// A point that is not pinned may be kept for a live restore, because a machine runs on it. Use this if that
    /// restore will never be continued, because its host is gone.
    #[arg(long)]
    undo: bool,

    /// Release the points that were kept for this live restore. kvmb does so itself when the restore has ended.
    #[arg(long, value_name = "ID", hide = true, requires = "undo", conflicts_with_all = ["points", "dry_run"])]
    restoring: Option<String>,

    /// Show what would be done without doing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,
}

impl PinArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if let Some(restore) = &self.restoring {
            return Ok(Pinner::open(&self.repo.open(context)?, &context.stop)?.release(restore)?);
        }
        let mut names = self.points.clone();
        if names.is_empty() {
            for record in stdin_records(session.command(), "points", &["point"], &context.stop)? {
                match record? {
                    Record::Point(point) => names.push(point.point),
                    Record::Failure(failure) => session.pass_failure(failure),
                    other => session.pass(&other),
                }
            }
        }
        let repo = self.repo.open(context)?;
        let pinner = Pinner::open(&repo, &context.stop)?;
        for name in names {
            context.stop.check()?;
            match self.pin(&repo, &pinner, &name) {
                Ok(record) => session.done(record),
                Err(error) => session.fail(About::default(), error),
            }
        }
        Ok(())
    }

    fn pin(&self, repo: &Repository, pinner: &Pinner, name: &str) -> Result<Record, CliError> {
        let (found, damaged) = points::list(repo)?;
        let point = points::find_surely(repo, &found, &damaged, &PointName::parse(name, Local::now()))?;
        let wanted = !self.undo;
        let is_restoring = point.is_restoring();
        let changed = point.is_pinned() != wanted || (!wanted && is_restoring);
        let id = match self.dry_run {
            true => point.id,
            false => pinner.set(&point, wanted)?,
        };
        let reason = match (changed, wanted) {
            (true, true) => "protected from pruning",
            (true, false) if !point.is_pinned() => "no longer kept for a live restore",
            (true, false) if is_restoring => "no longer pinned; kept until the live restore of a machine has ended",
            (true, false) => "no longer protected from pruning",
            (false, true) => "already pinned",
            (false, false) => "not pinned",
        };
        let fields = json!({
            "machine": point.machine(),
            "captured_at": time_value(point.snapshot.time),
            "repo": repo.url(),
            "previous": point.id.to_string(),
        });
        Ok(Record::Action(Action {
            action: if wanted { "pin" } else { "unpin" }.into(),
            target: id.to_string(),
            changed,
            reason: reason.into(),
            dry_run: self.dry_run,
            extra: fields.as_object().cloned().unwrap_or_default(),
        }))
    }
}
