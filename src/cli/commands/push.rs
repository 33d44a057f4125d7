//! `kvmb push`

use crate::capture::{CaptureFile, CaptureState, RuntimeDirs};
use crate::cli::args::capture::{AuditArgs, ChunkArgs, CompressionArgs, LimitReadArgs, ThreadsArgs};
use crate::cli::args::copy::CopyFromArgs;
use crate::cli::args::object_lock::LockForArgs;
use crate::cli::args::repo::RepoArgs;
use crate::cli::capture_stream::CaptureStream;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::history_recorder::HistoryRecorder;
use crate::cli::input::stdin_records;
use crate::cli::object_locks::extend_for_new_points;
use crate::cli::session::{About, Session};
use crate::ops::Error;
use crate::ops::copy::transfer::Copier;
use crate::ops::locked_repo::LockedRepo;
use crate::ops::points::{self, PointName, PointRef};
use crate::ops::push::{PushRequest, Trust, push};
use crate::rate_limiter::RateLimiter;
use crate::record::{Action, Disk, Point, Record, Time};
use crate::repo::Repository;
use chrono::Local;
use serde_json::json;
use std::collections::BTreeMap;

/// Store captured machines in a repository, or copy points from another one.
///
/// Reads 'disk' records of captures from standard input and prints a 'point' record for each machine once all disks
/// of its capture have arrived. Does not need libvirt. The captures stay open until 'kvmb release' closes them.
///
/// Also reads 'point' records and copies those points from the repository that holds them. Only missing data is
/// transferred, and it is verified during the copy. A point that has been copied before is reported as already there.
/// If points are named, they are copied from --from-repo, and standard input is not read.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb snapshot vm1 -r /backup/kvm | kvmb push -r /backup/kvm | kvmb release
  kvmb snapshot 'web*' | kvmb hash | kvmb push -r /backup/kvm | kvmb release | kvmb verify
  kvmb push 4f2a91c7 --from-repo /backup/kvm -r /mnt/usb/kvm
  kvmb points vm1 -r /backup/kvm | kvmb push -r /mnt/usb/kvm --from-password-file kvm.pass")]
pub(crate) struct PushArgs {
    /// Points to copy: an ID or the beginning of one, NAME@latest, NAME@2026-11-20, NAME@-2h. Without points, records
    /// are read from standard input.
    #[arg(value_name = "POINT")]
    points: Vec<String>,

    /// Show what would be stored without storing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,

    #[command(flatten)]
    lock: LockForArgs,

    #[command(flatten)]
    audit: AuditArgs,

    #[command(flatten)]
    chunks: ChunkArgs,

    #[command(flatten)]
    compression: CompressionArgs,

    #[command(flatten)]
    threads: ThreadsArgs,

    #[command(flatten)]
    limit: LimitReadArgs,

    #[command(flatten)]
    from: CopyFromArgs,
}

impl PushArgs {
    pub(crate) fn run(mut self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        self.lock.apply(context, &mut self.repo, None)?;
        session.keep_records();
        if !self.points.is_empty() {
            return self.copy_named(context, session);
        }
        let records = stdin_records("push", "disk or point records", &["disk", "point"], &context.stop)?;
        let mut stage = Stage {
            context,
            args: &self,
            trust: self.audit.trust(),
            rate_limit: self.limit.rate_limit(context),
            dry_run: self.dry_run,
            stream: CaptureStream::default(),
            runtime: None,
            repo: None,
            copiers: BTreeMap::new(),
            stored: 0,
        };
        let mut broken = None;
        for record in records {
            let taken = match record {
                Ok(record) => stage.take(record, session),
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                // Still report what has arrived, so that `release` closes the captures.
                broken = Some(error);
                break;
            }
        }
        let repo = stage.finish(session);
        if let Some(repo) = repo {
            extend_for_new_points(context, &repo, session)?;
        }
        broken.map_or(Ok(()), Err)
    }
}

impl PushArgs {
    /// Copies the points that the command line names.
    fn copy_named(&self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let source = self.from.named_source(context, &self.repo)?.ok_or_else(|| {
            CliError::usage("no repository to copy from")
                .hint("use --from-repo URL for the repository that has the points, and -r URL for the other one")
        })?;
        let from = source.open(context)?;
        let (known, damaged) = points::list(&from)?;
        let mut wanted = Vec::new();
        for name in &self.points {
            match points::find_surely(&from, &known, &damaged, &PointName::parse(name, Local::now())) {
                Ok(point) => wanted.push(point),
                Err(error) => session.fail(About::default(), error),
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        if self.dry_run {
            let url = self.repo.url()?;
            let action = |point: &PointRef| copy_dry_run(url.clone(), point.id.to_string(), point.machine());
            wanted.iter().for_each(|point| session.done(Record::Action(action(point))));
            return Ok(());
        }
        let to = self.repo.open_or_create_default(context)?;
        let history = HistoryRecorder::of(context, &to.url());
        let mut copier = Copier::open(&from, &to, self.compression.compression, &context.monitor, &context.stop)?;
        for point in wanted {
            let began_at = HistoryRecorder::now();
            let copied = copier.find(&point.id.to_string());
            let copied = copied.and_then(|found| copier.copy(&found, &context.monitor, &context.stop));
            match copied {
                Ok(copy) => {
                    history.run(&copy.machine, &copy.uuid, began_at, Ok(&copy));
                    session.done(Record::Point(copy));
                }
                Err(error @ Error::Interrupted) => return Err(error.into()),
                Err(error) => {
                    let about = About { machine: Some(point.machine().to_owned()), ..About::default() };
                    session.fail(about, error);
                }
            }
        }
        extend_for_new_points(context, &to, session)
    }
}

/// Returns the record of a dry run for a copy.
fn copy_dry_run(url: String, point: String, machine: &str) -> Action {
    let extra = json!({ "repo": url, "point": point });
    Action {
        action: "push".into(),
        target: machine.to_owned(),
        changed: true,
        reason: format!("the point would be copied to {url} if it is not there yet"),
        dry_run: true,
        extra: extra.as_object().cloned().unwrap_or_default(),
    }
}

/// The stage of a pipeline that stores.
struct Stage<'a> {
    context: &'a Context,
    args: &'a PushArgs,
    trust: Trust,
    rate_limit: Option<RateLimiter>,
    dry_run: bool,
    stream: CaptureStream,
    /// Opened at the first complete machine. If that fails, every machine fails, and `release` receives a record for
    /// each.
    runtime: Option<Result<RuntimeDirs, CliError>>,
    repo: Option<Result<Repository, CliError>>,
    /// By source repository.
    copiers: BTreeMap<String, Result<Copier, CliError>>,
    /// The number of points stored or copied.
    stored: usize,
}

impl Stage<'_> {
    /// Handles a record. An error ends the stage.
    fn take(&mut self, record: Record, session: &mut Session) -> Result<(), CliError> {
        match record {
            Record::Disk(disk) if disk.included => self.take_disk(disk, session),
            Record::Point(point) if self.dry_run => session.done(Record::Action(self.copy_dry_run(point)?)),
            Record::Point(point) => {
                let about = About { machine: Some(point.machine.clone()), ..About::default() };
                let (machine, uuid, began_at) = (point.machine.clone(), point.uuid.clone(), HistoryRecorder::now());
                let copied = self.copy(point);
                self.remember(&machine, &uuid, began_at, copied.as_ref());
                match copied {
                    Ok(copy) => {
                        self.stored += 1;
                        session.done(Record::Point(copy));
                    }
                    Err(error) if error.code == Code::Interrupted => return Err(error.hint(self.what_is_kept())),
                    Err(error) => session.fail(about, error),
                }
            }
            Record::Failure(failure) => {
                self.stream.note_failure(&failure);
                session.pass_failure(failure);
            }
            other => session.pass(&other),
        }
        Ok(())
    }

    fn take_disk(&mut self, disk: Disk, session: &mut Session) {
        let Some(capture) = disk.capture.clone() else {
            let about = About { disk: Some(disk.disk.clone()), ..About::machine(&disk.connect, &disk.machine) };
            return session.fail(about, Error::NotCaptured { machine: disk.machine, disk: disk.disk });
        };
        if let Some(disks) = self.stream.add(&capture, disk) {
            self.push_machine(&capture, disks, session);
        }
    }

    /// Reports captures that arrived incomplete. Returns the repository, if it was opened.
    fn finish(self, session: &mut Session) -> Option<Repository> {
        for (capture, disks) in self.stream.incomplete() {
            let Some(first) = disks.first() else { continue };
            let about = About { capture: Some(capture.clone()), ..About::machine(&first.connect, &first.machine) };
            let expected = first.capture_disks.unwrap_or(disks.len());
            session.fail(about, Error::CaptureIncomplete { capture, arrived: disks.len(), expected });
        }
        self.repo.and_then(Result::ok)
    }

    fn push_machine(&mut self, capture: &str, disks: Vec<Disk>, session: &mut Session) {
        let Some(first) = disks.first() else { return };
        let (batch, batch_machines) = (first.batch.clone(), first.batch_machines);
        let about = About { capture: Some(capture.to_owned()), ..About::machine(&first.connect, &first.machine) };
        if self.stream.has_failed(&first.connect, &first.machine) {
            let error = CliError::new(
                Code::Incomplete,
                "an earlier command in the pipe failed for this machine; nothing was stored",
            );
            return session.fail(about, error);
        }
        if self.dry_run {
            return match self.show_dry_run(capture, disks) {
                Ok(action) => session.done(Record::Action(action)),
                Err(error) => session.fail(about, error),
            };
        }
        let (machine, uuid, began_at) = (first.machine.clone(), first.uuid.clone(), HistoryRecorder::now());
        let pushed = self.push_capture(capture, disks);
        self.remember(&machine, &uuid, began_at, pushed.as_ref());
        match pushed {
            Ok(point) => {
                self.stored += 1;
                session.stored(Point { batch, batch_machines, ..point.clone() });
                // The point's record has already told `release` which capture to close.
                session.report_shortcomings(About { capture: None, ..about }, &point);
            }
            Err(error) if error.code == Code::Interrupted => session.fail(about, error.hint(self.what_is_kept())),
            Err(error) => session.fail(about, error),
        }
    }

    /// Returns the message after an interrupted run.
    fn what_is_kept(&self) -> String {
        let stored = match self.stored {
            0 => "no point was stored".to_owned(),
            1 => "1 point was stored and is complete".to_owned(),
            count => format!("{count} points were stored and are complete"),
        };
        format!("{stored}; data that is already in the repository is used by the next run")
    }

    /// Records the result in the history.
    fn remember(&self, machine: &str, uuid: &str, began_at: Time, result: Result<&Point, &CliError>) {
        // An invalid address has no history.
        if let Ok(storage) = self.args.repo.storage(self.context) {
            HistoryRecorder::of(self.context, &storage.url()).run(machine, uuid, began_at, result);
        }
    }

    fn push_capture(&mut self, capture: &str, disks: Vec<Disk>) -> Result<Point, CliError> {
        let (context, args) = (self.context, self.args);
        let runtime = self.runtime.get_or_insert_with(|| context.runtime()).as_ref().map_err(CliError::clone)?;
        let repo = self.repo.get_or_insert_with(|| args.repo.open_or_create_default(context));
        let repo = repo.as_ref().map_err(CliError::clone)?;
        let (file, state) = whole_capture(runtime, capture, &disks)?;
        let sha256 = disks.into_iter().filter_map(|disk| Some((disk.disk, disk.sha256?))).collect();
        let (trust, rate_limit, chunk_size) = (self.trust, self.rate_limit.as_ref(), self.args.chunks.chunk_size);
        let request = PushRequest {
            file: &file,
            capture: &state,
            sha256,
            trust,
            rate_limit,
            chunk_size,
            compression: self.args.compression.compression,
            parallelism: self.args.threads.parallelism(1),
        };
        let open = LockedRepo::shared(repo, &context.stop)?;
        Ok(push(&open, &request, &context.monitor, &context.stop, &mut || Ok(()))?)
    }

    /// Copies a point. The capture and the run that its record names are passed on, for `release` and for the last
    /// stage.
    fn copy(&mut self, came: Point) -> Result<Point, CliError> {
        let (context, args) = (self.context, self.args);
        let source = args.from.source(context, &args.repo, &came.repo)?;
        let repo = self.repo.get_or_insert_with(|| args.repo.open_or_create_default(context));
        let repo = repo.as_ref().map_err(CliError::clone)?;
        let (compression, monitor) = (args.compression.compression, &context.monitor);
        let open = || Ok(Copier::open(&source.open(context)?, repo, compression, monitor, &context.stop)?);
        let copier = self.copiers.entry(source.url()?).or_insert_with(open).as_mut().map_err(|error| error.clone())?;
        let copy = copier.copy(&copier.find(&came.point)?, &context.monitor, &context.stop)?;
        let Point { capture, batch, batch_machines, extra, .. } = came;
        Ok(Point { capture, batch, batch_machines, extra, ..copy })
    }

    fn copy_dry_run(&self, point: Point) -> Result<Action, CliError> {
        Ok(copy_dry_run(self.args.repo.url()?, point.point, &point.machine))
    }

    fn show_dry_run(&self, capture: &str, disks: Vec<Disk>) -> Result<Action, CliError> {
        let (_, state) = whole_capture(&self.context.runtime()?, capture, &disks)?;
        let url = self.args.repo.url()?;
        let targets: Vec<String> = disks.into_iter().map(|disk| disk.disk).collect();
        let plural = if targets.len() == 1 { "" } else { "s" };
        let extra = json!({ "connect": state.connect, "repo": url, "capture": state.id, "disks": targets });
        Ok(Action {
            action: "push".into(),
            target: state.machine,
            changed: true,
            reason: format!("{} disk{plural} would be stored in {url}", targets.len()),
            dry_run: true,
            extra: extra.as_object().cloned().unwrap_or_default(),
        })
    }
}

/// Locks a capture and returns it if it can be stored: its lease has not expired, and none of its disks is missing.
fn whole_capture(runtime: &RuntimeDirs, capture: &str, disks: &[Disk]) -> Result<(CaptureFile, CaptureState), Error> {
    let file = CaptureFile::open(runtime, capture)?;
    file.lock_shared()?;
    let state = file.load()?;
    if state.is_expired() {
        let (capture, machine, lease_ends_at) = (state.id, state.machine, state.lease_ends_at);
        return Err(Error::CaptureExpired { capture, machine, lease_ends_at });
    }
    // The records say which disks arrived; the capture's own state says what they are and where.
    if let Some(missing) = state.disks.iter().find(|disk| !disks.iter().any(|came| came.disk == disk.target)) {
        tracing::debug!("disk {} of {capture} did not arrive", missing.target);
        let (arrived, expected) = (disks.len(), state.disks.len());
        return Err(Error::CaptureIncomplete { capture: state.id, arrived, expected });
    }
    Ok((file, state))
}
