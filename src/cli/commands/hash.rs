//! `kvmb hash`

use crate::capture::{CaptureFile, CaptureState, DiskRequest, OpenRequest, RuntimeDirs, open_capture};
use crate::cli::args::capture::LimitReadArgs;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::input::stdin_records;
use crate::cli::session::{About, Session};
use crate::nbd::{NbdUri, UriError};
use crate::ops::guard::guarded;
use crate::ops::hash::{hash_export, hash_file};
use crate::ops::offline_watch::while_unchanged;
use crate::ops::release::release;
use crate::ops::{Monitor, Stop};
use crate::rate_limiter::RateLimiter;
use crate::record::{Disk, Record};
use std::path::PathBuf;
use std::time::Duration;

/// Compute the SHA-256 of each disk as the guest sees it.
///
/// Reads 'disk' records from standard input and prints them with 'sha256'. For a raw image this is what sha256sum
/// prints; the same content gives the same checksum in any image format, so that it can be compared before a
/// backup, in the repository and after a restore. The whole disk is read. Without a capture, the disk of a running
/// machine may change during the read; such a record has the consistency 'moving'. With FILE arguments, prints
/// 'file' records with the SHA-256 of the files themselves.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb disks vm1 | kvmb hash
  kvmb snapshot vm1 | kvmb hash | kvmb push -r /backup/kvm | kvmb release
  kvmb hash /var/lib/libvirt/images/vm1.raw")]
pub(crate) struct HashArgs {
    /// Files to hash. Without files, 'disk' records are read from standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    #[command(flatten)]
    limit: LimitReadArgs,
}

impl HashArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        for file in &self.files {
            match hash_file(file, &context.monitor, &context.stop) {
                Ok(record) => session.done(Record::File(record)),
                Err(error) => session.fail(About::default(), error),
            }
        }
        if !self.files.is_empty() {
            return Ok(());
        }
        let (runtime, rate_limit) = (context.runtime()?, self.limit.rate_limit(context));
        for record in stdin_records("hash", "files or disks", &["disk"], &context.stop)? {
            match record? {
                Record::Disk(disk) if disk.included => {
                    let mut disk = disk;
                    let about = About {
                        disk: Some(disk.disk.clone()),
                        capture: disk.capture.clone(),
                        ..About::machine(&disk.connect, &disk.machine)
                    };
                    match add_hash(context, &runtime, rate_limit.as_ref(), &mut disk) {
                        Ok(()) => session.done(Record::Disk(disk)),
                        Err(error) => session.fail(about, error),
                    }
                }
                Record::Failure(failure) => session.pass_failure(failure),
                other => session.pass(&other),
            }
            if session.is_pointless() {
                break;
            }
        }
        Ok(())
    }
}

fn add_hash(
    context: &Context,
    runtime: &RuntimeDirs,
    rate_limit: Option<&RateLimiter>,
    disk: &mut Disk,
) -> Result<(), CliError> {
    let label = format!("{}/{}", disk.machine, disk.disk);
    let mut state = None;
    let mut own = None;
    let (uri, held): (String, Option<CaptureFile>) = match (&disk.nbd, &disk.capture) {
        (Some(nbd), Some(capture)) => {
            let file = CaptureFile::open(runtime, capture)?;
            file.lock_shared()?;
            state = Some(file.load()?);
            (nbd.clone(), Some(file))
        }
        (Some(nbd), None) => (nbd.clone(), None),
        (None, _) => {
            let moving = disk.state != crate::capture::machine::MachineState::Off.as_str();
            if moving {
                context.monitor.warn(&format!(
                    "{label} is being hashed without a capture, and the machine may write to it meanwhile"
                ));
            }
            disk.consistency = Some(if moving { "moving" } else { "offline" }.into());
            let opened = open(context, runtime, disk, moving)?;
            let uri = opened.disk(&disk.disk).map(|disk| disk.nbd_uri.clone()).unwrap_or_default();
            own = Some(opened);
            (uri, None)
        }
    };
    let uri: NbdUri = uri.parse().map_err(|error: UriError| CliError::usage(format!("{label}: {error}")))?;
    let captured_bytes = state.as_ref().or(own.as_ref()).and_then(|state| Some(state.disk(&disk.disk)?.capacity_bytes));
    let hash = |stop: &Stop| hash_export(&uri, captured_bytes, &label, &disk.disk, rate_limit, &context.monitor, stop);
    let hashed = match (&state, &held, &own) {
        (Some(state), Some(file), _) => guarded(file, state, &context.stop, |stop| while_unchanged(state, stop, hash)),
        (_, _, Some(own)) => {
            let hashed = while_unchanged(own, &context.stop, hash);
            release(runtime, None, CaptureFile::open(runtime, &own.id)?)?;
            hashed
        }
        _ => hash(&context.stop),
    };
    let (sha256, size_bytes) = hashed?;
    disk.sha256 = Some(sha256);
    disk.capacity_bytes = Some(size_bytes);
    Ok(())
}

/// Opens a disk that is not part of a capture: with a capture that this process owns or, with `moving`, by its images
/// while the machine runs.
fn open(context: &Context, runtime: &RuntimeDirs, disk: &Disk, moving: bool) -> Result<CaptureState, CliError> {
    /// Arbitrarily long: the capture ends with this process anyway.
    const LEASE: Duration = Duration::from_secs(30 * 24 * 3600);
    let hypervisor = context.hypervisor(Some(&disk.connect))?;
    let wanted = DiskRequest::full(&disk.disk);
    let request = OpenRequest { disks: vec![wanted], owned: true, moving, lease: LEASE, ..OpenRequest::default() };
    let state = open_capture(runtime, &hypervisor.machine(&disk.uuid)?, &request)?;
    hypervisor.close();
    Ok(state)
}
