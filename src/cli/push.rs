//! `kvmb push`

use crate::capture::{CaptureFile, Runtime};
use crate::cli::Context;
use crate::cli::capture_args::{AuditArgs, LimitReadArgs};
use crate::cli::capture_stream::CaptureStream;
use crate::cli::failure::{CliError, Code};
use crate::cli::input::stdin_records;
use crate::cli::repo_args::RepoArgs;
use crate::cli::session::{About, Session};
use crate::ops::Error;
use crate::ops::open_repo::OpenRepo;
use crate::ops::push::{PushRequest, Trust, push};
use crate::pace::Pace;
use crate::record::{Disk, Point, Record};
use crate::repo::Repository;

/// Store captured machines in the repository.
///
/// Reads 'disk' records of captures from standard input and prints a 'point' record for each machine, once all disks of
/// its capture have come. Needs no libvirt. The captures stay open: 'kvmb release' ends them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb snapshot vm1 -r /backup/kvm | kvmb push -r /backup/kvm | kvmb release
  kvmb snapshot 'web*' | kvmb hash | kvmb push -r /backup/kvm | kvmb release | kvmb verify")]
pub struct PushArgs {
    #[command(flatten)]
    repo: RepoArgs,

    #[command(flatten)]
    audit: AuditArgs,

    #[command(flatten)]
    limit: LimitReadArgs,
}

impl PushArgs {
    pub fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let records = stdin_records("push", "disk records", &context.stop)?;
        let mut stream = CaptureStream::default();
        // Opened at the first complete machine; when that fails, every machine fails, and `release` hears of each.
        let mut place: Option<Result<(Runtime, Repository), CliError>> = None;
        let mut broken = None;
        let pace = self.limit.pace(context);
        for record in records {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    // What has come is told of all the same, so that `release` ends it.
                    broken = Some(error);
                    break;
                }
            };
            match record {
                Record::Disk(disk) if !disk.included => session.pass(&Record::Disk(disk)),
                Record::Disk(disk) => {
                    let Some(capture) = disk.capture.clone() else {
                        let about =
                            About { disk: Some(disk.disk.clone()), ..About::machine(&disk.connect, &disk.machine) };
                        session.fail(about, Error::NotCaptured { machine: disk.machine, disk: disk.disk });
                        continue;
                    };
                    if let Some(disks) = stream.add(&capture, disk) {
                        self.push_machine(context, &capture, disks, &stream, pace.as_ref(), &mut place, session);
                    }
                }
                Record::Point(_) => {
                    let error = CliError::usage("a point record came where disk records were expected");
                    broken = Some(error.hint("put 'kvmb push' behind 'kvmb snapshot'"));
                    break;
                }
                Record::Failure(failure) => {
                    stream.note_failure(&failure);
                    session.pass_failure(failure);
                }
                other => session.pass(&other),
            }
        }
        for (capture, disks) in stream.incomplete() {
            let Some(first) = disks.first() else { continue };
            let about = About { capture: Some(capture.clone()), ..About::machine(&first.connect, &first.machine) };
            let expected = first.capture_disks.unwrap_or(disks.len());
            session.fail(about, Error::CaptureIncomplete { capture, arrived: disks.len(), expected });
        }
        broken.map_or(Ok(()), Err)
    }

    fn push_machine(
        &self,
        context: &Context,
        capture: &str,
        disks: Vec<Disk>,
        stream: &CaptureStream,
        pace: Option<&Pace>,
        place: &mut Option<Result<(Runtime, Repository), CliError>>,
        session: &mut Session,
    ) {
        let Some(first) = disks.first() else { return };
        let (batch, batch_machines) = (first.batch.clone(), first.batch_machines);
        let about = About { capture: Some(capture.to_owned()), ..About::machine(&first.connect, &first.machine) };
        if stream.has_failed(&first.connect, &first.machine) {
            let error = CliError::new(Code::Incomplete, "an earlier stage failed for this machine: nothing is stored");
            return session.fail(about, error);
        }
        let opened = place.get_or_insert_with(|| Ok((context.runtime()?, self.repo.open_or_create_default(context)?)));
        let pushed = match opened {
            Ok((runtime, repo)) => {
                push_capture(context, runtime, repo, (self.audit.trust(), pace), capture, disks).map_err(CliError::from)
            }
            Err(error) => Err(CliError { code: error.code, message: error.message.clone(), hint: error.hint.clone() }),
        };
        match pushed {
            Ok(point) => session.stored(Point { batch, batch_machines, ..point }),
            Err(error) => session.fail(about, error),
        }
    }
}

fn push_capture(
    context: &Context,
    runtime: &Runtime,
    repo: &Repository,
    (trust, pace): (Trust, Option<&Pace>),
    capture: &str,
    disks: Vec<Disk>,
) -> Result<Point, Error> {
    let file = CaptureFile::open(runtime, capture)?;
    file.lock_shared()?;
    let state = file.load()?;
    if state.is_expired() {
        let (capture, machine, lease_ends_at) = (state.id, state.machine, state.lease_ends_at);
        return Err(Error::CaptureExpired { capture, machine, lease_ends_at });
    }
    // The records say which disks came; what and where they are, the capture's own state says.
    if let Some(missing) = state.disks.iter().find(|disk| !disks.iter().any(|came| came.disk == disk.target)) {
        tracing::debug!("disk {} of {capture} did not come", missing.target);
        let (arrived, expected) = (disks.len(), state.disks.len());
        return Err(Error::CaptureIncomplete { capture: state.id, arrived, expected });
    }
    let sha256 = disks.into_iter().filter_map(|disk| Some((disk.disk, disk.sha256?))).collect();
    let request = PushRequest { file: &file, capture: &state, sha256, trust, pace };
    let open = OpenRepo::shared(repo, &context.stop)?;
    push(&open, &request, &context.monitor, &context.stop, &mut || Ok(()))
}
