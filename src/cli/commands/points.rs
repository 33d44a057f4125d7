//! `kvmb points`

use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::duration;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::history_recorder::HistoryRecorder;
use crate::cli::session::{About, Session};
use crate::ops::points;
use crate::ops::repo_lock::lock_and_list;
use crate::record::Record;
use crate::repo::{DamagedSnapshot, Id};
use chrono::Local;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// List the restore points in a repository, oldest first.
///
/// Prints a 'point' record for each.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb points -r /backup/kvm
  kvmb points vm1 'web*' -r /backup/kvm
  kvmb points --latest
  kvmb points --within 24h --json | jq -r .machine
  kvmb points --json | jq -r .point | xargs kvmb verify")]
pub(crate) struct PointsArgs {
    /// Machine names or globs. Default: all machines.
    #[arg(value_name = "NAME", add = complete::point_machines())]
    names: Vec<String>,

    /// Only points captured within this time (example: 12h, 7d).
    #[arg(long, value_name = "TIME", value_parser = duration)]
    within: Option<Duration>,

    /// Only the latest point of each machine.
    #[arg(long)]
    latest: bool,

    #[command(flatten)]
    repo: RepoArgs,
}

impl PointsArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let repo = self.repo.open(context)?;
        let (_lock, snapshots) = lock_and_list(&repo, &context.monitor, &context.stop)?;
        let (found, damaged) = points::of_snapshots(snapshots);
        let mut index = None;
        for name in &self.names {
            if !found.iter().any(|point| points::name_matches(name, point.machine())) {
                let error = points::no_such_point(&repo, found.iter().map(|point| point.machine()), name.clone());
                session.fail(About { machine: Some(name.clone()), ..About::default() }, error);
            }
        }
        let verified = HistoryRecorder::of(context, &repo.url()).verified_points();
        // The list is sorted by time: the last point of a machine is its latest.
        let latest: BTreeMap<(&str, &str), &Id> =
            found.iter().map(|point| ((point.machine(), point.snapshot.hostname.as_str()), &point.id)).collect();
        let latest: BTreeSet<Id> = latest.into_values().copied().collect();
        let oldest = self.within.map(|within| Local::now() - within);
        let is_empty = found.is_empty() && damaged.is_empty();
        let mut any = false;
        for point in found {
            let wanted = |name: &String| points::name_matches(name, point.machine());
            let is_named = self.names.is_empty() || self.names.iter().any(wanted);
            if self.latest && !latest.contains(&point.id) {
                continue;
            }
            if !is_named || oldest.is_some_and(|oldest| point.snapshot.time < oldest) {
                continue;
            }
            any = true;
            let mut read = || match points::known_manifest(&repo, &point) {
                Some(manifest) => Ok(manifest),
                None => {
                    let index = match &mut index {
                        Some(index) => index,
                        none => none.insert(points::load_index_for_reading(&repo, &context.monitor)?),
                    };
                    points::read_manifest(&repo, index, &point)
                }
            };
            match read() {
                Ok(manifest) => {
                    let mut record = points::to_record(&repo, &point.id, &point.snapshot, &manifest);
                    if let Some(known) = verified.get(&record.point) {
                        record.verified = Some(known.depth.word().into());
                        record.verified_at = Some(known.at);
                    }
                    session.done(Record::Point(record));
                }
                Err(error) => {
                    let about = About { machine: Some(point.machine().to_owned()), ..About::default() };
                    session.fail(about, error);
                }
            }
            if session.is_pointless() {
                break;
            }
        }
        for DamagedSnapshot { id, error } in damaged {
            let message = format!("snapshot {id} cannot be read: {error}");
            session.fail(About::default(), CliError::new(Code::Damage, message));
        }
        match self.within {
            _ if is_empty && self.names.is_empty() => {
                context.note(&format!("no points in {}", repo.url()), "run 'kvmb backup NAME' to make the first one");
            }
            Some(_) if !any && !is_empty => {
                context.note(&format!("no points in {} within that time", repo.url()), "choose a longer --within");
            }
            _ => {}
        }
        Ok(())
    }
}
