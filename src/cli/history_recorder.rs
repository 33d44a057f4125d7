//! Records the results of commands in this host's history, for `kvmb status`. A history that cannot be written does not
//! stop a command.

use crate::cli::context::Context;
use crate::cli::failure::exit_code::ExitCode;
use crate::cli::failure::{CliError, Code};
use crate::cli::folders::state_folder;
use crate::history::{
    self, DrillRun, History, KnownPoint, MachineMemory, MachineRun, PruneRun, RepoMemory, RunOutcome, Verification,
    VerifiedDepth,
};
use crate::ops::manifest::Manifest;
use crate::ops::verify;
use crate::record::{Check, Point, Time};
use crate::repo::Repository;
use chrono::Local;
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct HistoryRecorder<'c> {
    context: &'c Context,
    history: Option<History>,
}

impl<'c> HistoryRecorder<'c> {
    /// Opens the history of the repository with this address, in the form of [`crate::storage::Storage::url`].
    pub(crate) fn of(context: &'c Context, repo: &str) -> HistoryRecorder<'c> {
        let history = match state_folder() {
            Ok(folder) => Some(History::of(&folder, repo)),
            Err(error) => {
                tracing::warn!("cannot record the history: {error}");
                None
            }
        };
        HistoryRecorder { context, history }
    }

    /// Returns the current time, for [`HistoryRecorder::run`].
    pub(crate) fn now() -> Time {
        Local::now().fixed_offset()
    }

    /// Records the result of a machine's backup or copy that began at this time.
    pub(crate) fn run(&self, machine: &str, uuid: &str, began_at: Time, result: Result<&Point, &CliError>) {
        let total = |of: fn(&Point) -> u64| result.map_or(0, of);
        let known = |point: &Point| KnownPoint { point: point.point.clone(), captured_at: point.captured_at };
        // A point that was found damaged when it was read back cannot be restored.
        let stored = result.ok().filter(|point| point.damage.is_empty());
        let error = match result {
            Ok(point) => CliError::of_missing_parts(point),
            Err(error) => Some(error.clone()),
        };
        let run = MachineRun {
            run: self.context.run.id.clone(),
            command: self.context.run.command.to_owned(),
            began_at,
            ended_at: HistoryRecorder::now(),
            result: outcome(result),
            code: error.as_ref().map(|error| error.code.word().to_owned()),
            error: error.as_ref().map(|error| error.message.clone()),
            point: stored.map(known),
            read_bytes: total(|point| point.read_bytes),
            new_bytes: total(|point| point.new_bytes),
            stored_bytes: total(|point| point.stored_bytes),
        };
        self.change(machine, uuid, |memory| memory.note_run(run));
    }

    /// Records the result of a verification.
    pub(crate) fn verification(&self, point: &Point, depth: verify::VerifyDepth) {
        let depth = match depth {
            verify::VerifyDepth::Quick => VerifiedDepth::Quick,
            verify::VerifyDepth::Sample(_) => VerifiedDepth::Sample,
            verify::VerifyDepth::Full => VerifiedDepth::Full,
        };
        let verification = Verification { point: point.point.clone(), at: HistoryRecorder::now(), depth };
        let is_whole = point.damage.is_empty();
        let note = |memory: &mut MachineMemory| {
            if is_whole { memory.note_whole(verification) } else { memory.note_damage(verification) }
        };
        // If a point's description is lost, only the name of its machine is known.
        let by_name = || {
            let known = self.history.iter().flat_map(|history| history.all().0);
            known.filter(|memory| memory.machine == point.machine).map(|memory| memory.uuid).next()
        };
        let uuid = if point.uuid.is_empty() { by_name() } else { Some(point.uuid.clone()) };
        if let Some(uuid) = uuid {
            self.change(&point.machine, &uuid, note);
        }
    }

    /// Records the result of a drill that began at this time.
    pub(crate) fn drill(&self, manifest: &Manifest, point: &str, began_at: Time, check: &Check) {
        let text = |name: &str| check.extra.get(name).and_then(|value| value.as_str()).map(str::to_owned);
        let drill = DrillRun {
            run: self.context.run.id.clone(),
            point: KnownPoint { point: point.to_owned(), captured_at: manifest.captured_at },
            began_at,
            ended_at: HistoryRecorder::now(),
            status: check.status.clone(),
            detail: check.detail.clone(),
            rung: text("rung"),
            rung_seconds: check.extra.get("rung_seconds").and_then(|seconds| seconds.as_f64()),
            log: text("log"),
            screenshot: text("screenshot"),
        };
        self.change(&manifest.machine, &manifest.uuid, |memory| memory.note_drill(drill));
    }

    /// Returns when the last drill of each machine ended, by the machine's name.
    pub(crate) fn last_drills(&self) -> BTreeMap<String, Time> {
        let memories = self.history.iter().flat_map(|history| history.all().0);
        memories.filter_map(|memory| Some((memory.machine, memory.last_drill?.ended_at))).collect()
    }

    /// Records the result of a prune of all machines.
    pub(crate) fn prune(&self, error: Option<&CliError>) {
        let run = PruneRun {
            run: self.context.run.id.clone(),
            command: self.context.run.command.to_owned(),
            ended_at: HistoryRecorder::now(),
            result: error.map_or(RunOutcome::Done, outcome_of_error),
            error: error.map(|error| error.message.clone()),
        };
        self.change_repo(|memory| memory.note_prune(run));
    }

    /// Records the free space of the repository's file system, if the storage can report it.
    pub(crate) fn free_space(&self, repo: &Repository) {
        match repo.storage().free_bytes() {
            Ok(None) => {}
            Ok(Some(free_bytes)) => {
                self.change_repo(|memory| memory.note_free_space(HistoryRecorder::now(), free_bytes));
            }
            Err(error) => tracing::debug!("{}: free space: {error}", repo.url()),
        }
    }

    /// Records the size of the repository. The run itself has already loaded the index, so only new parts are read.
    pub(crate) fn size(&self, repo: &Repository) {
        match repo.load_index() {
            Ok(index) => {
                let stored_bytes = index.stored_bytes();
                self.change_repo(|memory| memory.note_size(HistoryRecorder::now(), stored_bytes));
            }
            Err(error) => tracing::debug!("{}: size: {error}", repo.url()),
        }
    }

    fn change_repo(&self, change: impl FnOnce(&mut RepoMemory)) {
        let Some(history) = &self.history else { return };
        if let Err(error) = history.change_repo(HistoryRecorder::now(), change) {
            tracing::warn!("cannot record the history: {error}");
        }
    }

    /// Returns the deepest known verification of each point, by the point's id.
    pub(crate) fn verified_points(&self) -> BTreeMap<String, Verification> {
        let memories = self.history.iter().flat_map(|history| history.all().0);
        memories.flat_map(|memory| memory.verified_points).map(|known| (known.point.clone(), known)).collect()
    }

    fn change(&self, machine: &str, uuid: &str, change: impl FnOnce(&mut MachineMemory)) {
        let Some(history) = &self.history else { return };
        match history.change(machine, uuid, HistoryRecorder::now(), change) {
            Ok(()) => {}
            // libvirt did not know the UUID either.
            Err(history::Error::NoUuid { .. }) => {}
            Err(error) => tracing::warn!(machine, "cannot record the history: {error}"),
        }
    }
}

fn outcome(result: Result<&Point, &CliError>) -> RunOutcome {
    match result {
        Ok(point) if !point.is_damage_known() => RunOutcome::Done,
        Ok(_) => RunOutcome::Damage,
        Err(error) => outcome_of_error(error),
    }
}

fn outcome_of_error(error: &CliError) -> RunOutcome {
    match error.code.exit_code() {
        _ if error.code == Code::Interrupted => RunOutcome::Interrupted,
        ExitCode::Damage => RunOutcome::Damage,
        ExitCode::Busy => RunOutcome::Busy,
        _ => RunOutcome::Failed,
    }
}
