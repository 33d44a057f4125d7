//! `kvmb release`

use crate::capture::{CaptureFile, ClosedCapture, RuntimeDirs};
use crate::cli::capture_stream::CaptureStream;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::input::stdin_records;
use crate::cli::session::{About, Session};
use crate::cli::terminal::stderr::say;
use crate::ops::Stop;
use crate::ops::drill::leftovers::DrillState;
use crate::ops::release::release;
use crate::ops::serve::registry::ServedState;
use crate::record::{Action, Record};
use crate::{capture, ops};
use serde_json::json;
use std::collections::BTreeSet;

/// Close open captures, and servers started with 'serve --detach'.
///
/// Stops the backup job or the qemu-storage-daemon of a capture and removes its sockets and scratch files. If no
/// point was stored from the capture, its checkpoint is rolled back. With names, prints an 'action' record for
/// each. In a pipe, prints the records that it reads. Does nothing if no capture is open.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb release vm1
  trap 'kvmb release vm1' EXIT
  kvmb snapshot vm1 | kvmb push -r /backup/kvm | kvmb release")]
pub(crate) struct ReleaseArgs {
    /// Machines or captures (c-1a2b3c4d). Without names, records are read from standard input.
    #[arg(value_name = "NAME", add = complete::captures())]
    names: Vec<String>,

    /// Close all captures of this host, and remove the leftovers of killed drills.
    #[arg(long, conflicts_with = "names")]
    all: bool,

    /// Show what would be done without doing it.
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl ReleaseArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let runtime = context.runtime()?;
        if self.all {
            for file in CaptureFile::open_all(&runtime)? {
                let name = file.id().to_owned();
                self.release_file(&runtime, &name, file, session);
            }
            for state in ServedState::releasable(&runtime)? {
                self.release_named(&runtime, &state.id, session);
            }
            for state in DrillState::abandoned(&runtime)? {
                self.clear_drill(context, &runtime, &state, session);
            }
        } else if self.names.is_empty() {
            self.release_stream(&runtime, session)?;
        } else {
            for name in &self.names {
                self.release_named(&runtime, name, session);
            }
        }
        if !self.dry_run {
            capture::close::clear_stateless(&runtime)?;
            ops::serve::clear_abandoned(&runtime);
        }
        Ok(())
    }

    fn release_named(&self, runtime: &RuntimeDirs, name: &str, session: &mut Session) {
        match CaptureFile::open(runtime, name) {
            Ok(file) => self.release_file(runtime, name, file, session),
            Err(capture::Error::NoSuchCapture { .. }) => match self.end_served(runtime, name) {
                Ok(0) => session.done(self.action(name, false, "no open capture and no served point", None)),
                Ok(_) if self.dry_run => session.done(self.action(name, true, "its server would be stopped", None)),
                Ok(_) => session.done(self.action(name, true, "the server of its point was stopped", None)),
                Err(error) => session.fail(About { machine: Some(name.to_owned()), ..About::default() }, error),
            },
            Err(error) => session.fail(About { machine: Some(name.to_owned()), ..About::default() }, error),
        }
    }

    fn release_file(&self, runtime: &RuntimeDirs, name: &str, file: CaptureFile, session: &mut Session) {
        if self.dry_run {
            return session.done(self.action(name, true, &format!("capture {} would be closed", file.id()), None));
        }
        // Its backup will close it; waiting for that would mean waiting for the whole backup.
        if let Some(state) = file.load().ok().filter(|state| state.running_backup().is_some()) {
            let (machine, by) = (state.machine.clone(), state.running_backup());
            let held = capture::Error::Held { machine, capture: state.id, until: None, by };
            return session.fail(About { machine: Some(state.machine), ..About::default() }, held);
        }
        if file.is_in_use() {
            say(&format!("kvmb: capture {} is being read; waiting up to 10 seconds", file.id()));
        }
        match release(runtime, None, file) {
            Ok(closed) => {
                let reason = match &closed.committed_point {
                    Some(_) => "the capture was closed; its point is stored",
                    None => "the capture was closed; no point was stored from it",
                };
                session.done(self.action(name, true, reason, Some(&closed)));
            }
            Err(error) => session.fail(About { machine: Some(name.to_owned()), ..About::default() }, error),
        }
    }

    /// Removes the leftovers of a killed drill, through the drill's own libvirt connection.
    fn clear_drill(&self, context: &Context, runtime: &RuntimeDirs, state: &DrillState, session: &mut Session) {
        let name = state.drill_machine();
        if self.dry_run {
            return session.done(self.action(&name, true, "the leftovers of a killed drill would be removed", None));
        }
        let cleared = context
            .hypervisor(Some(&state.connect))
            .and_then(|hypervisor| state.clear(&hypervisor, runtime).map_err(CliError::from));
        match cleared {
            Ok(()) => session.done(self.action(&name, true, "the leftovers of a killed drill were removed", None)),
            Err(error) => session.fail(About { machine: Some(state.machine.clone()), ..About::default() }, error),
        }
    }

    /// Stops the detached servers that match a name, and returns how many there are.
    fn end_served(&self, runtime: &RuntimeDirs, name: &str) -> ops::Result<usize> {
        let served = ServedState::named(runtime, name)?;
        if !self.dry_run {
            served.iter().try_for_each(|state| state.end(runtime))?;
        }
        Ok(served.len())
    }

    fn action(&self, target: &str, changed: bool, reason: &str, closed: Option<&ClosedCapture>) -> Record {
        let extra = closed.map(|closed| {
            json!({
                "capture": closed.capture,
                "machine": closed.machine,
                "point": closed.committed_point,
                "deleted_checkpoints": closed.deleted_checkpoints,
                "resumed": closed.resumed,
            })
        });
        Record::Action(Action {
            action: "release".into(),
            target: target.to_owned(),
            changed,
            reason: reason.to_owned(),
            dry_run: self.dry_run,
            extra: extra.and_then(|extra| extra.as_object().cloned()).unwrap_or_default(),
        })
    }

    /// In a pipeline: closes each capture once all of its disks have arrived, and then passes their records on. Other
    /// records are passed on at once.
    fn release_stream(&self, runtime: &RuntimeDirs, session: &mut Session) -> Result<(), CliError> {
        let (mut stream, mut served) = (CaptureStream::default(), BTreeSet::new());
        let mut broken = None;
        // Even if interrupted, read the previous stages' output to its end: their open captures must be closed.
        for record in stdin_records("release", "captures", &["disk", "point"], &Stop::default())? {
            match record {
                Ok(Record::Disk(disk)) => match disk.capture.clone() {
                    None => {
                        served.extend(disk.served.clone());
                        session.pass(&Record::Disk(disk));
                    }
                    Some(capture) => {
                        if let Some(disks) = stream.add(&capture, disk) {
                            self.end(runtime, &capture, session);
                            disks.into_iter().for_each(|disk| session.pass(&Record::Disk(disk)));
                        }
                    }
                },
                Ok(Record::Point(point)) => {
                    if let Some(capture) = &point.capture {
                        self.end(runtime, capture, session);
                    }
                    session.done(Record::Point(point));
                }
                Ok(Record::Action(action)) => {
                    // A dry run of `push` stores nothing, but the previous stage's capture is open.
                    if let Some(capture) = action.extra.get("capture").and_then(|id| id.as_str()) {
                        self.end(runtime, capture, session);
                    }
                    session.pass(&Record::Action(action));
                }
                Ok(Record::Failure(failure)) => {
                    if let Some(capture) = &failure.capture {
                        self.end(runtime, capture, session);
                    }
                    session.pass_failure(failure);
                }
                Ok(other) => session.pass(&other),
                Err(error) => {
                    // Captures that arrived before the broken line are closed anyway.
                    broken = Some(error);
                    break;
                }
            }
        }
        // Until its output ends, the previous stage may still read other disks of the same point.
        for id in served {
            if let Err(error) = self.end_served(runtime, &id) {
                session.fail(About::default(), error);
            }
        }
        for (capture, disks) in stream.incomplete() {
            self.end(runtime, &capture, session);
            disks.into_iter().for_each(|disk| session.pass(&Record::Disk(disk)));
        }
        broken.map_or(Ok(()), Err)
    }

    fn end(&self, runtime: &RuntimeDirs, capture: &str, session: &mut Session) {
        if self.dry_run {
            return;
        }
        let ended = match CaptureFile::open(runtime, capture) {
            Ok(file) => release(runtime, None, file).map(drop),
            Err(capture::Error::NoSuchCapture { .. }) => Ok(()),
            Err(error) => Err(ops::Error::from(error)),
        };
        if let Err(error) = ended {
            session.fail(About { capture: Some(capture.to_owned()), ..About::default() }, error);
        }
    }
}
