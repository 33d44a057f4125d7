//! The machines that are being backed up now, from the open captures of this host, and their progress, from its jobs.

use crate::capture::{CaptureFile, RunningBackup};
use crate::cli::context::Context;
use crate::cli::folders::state_folder;
use crate::history::jobs::Jobs;
use crate::record::Job;

/// A running backup of a machine.
#[derive(Debug, Clone)]
pub(crate) struct RunningNow {
    machine: String,
    uuid: String,
    /// The process that makes the backup.
    pub(crate) backup: RunningBackup,
    /// The id of its job.
    pub(crate) job: Option<String>,
    /// How much of the machine has been read, and how much there is to read.
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
}

impl RunningNow {
    /// Whether this is a backup of a machine whose UUID may be unknown.
    pub(crate) fn is_of(&self, machine: &str, uuid: Option<&str>) -> bool {
        uuid.map_or(self.machine == machine, |uuid| self.uuid == uuid)
    }

    /// Describes the backup: `being backed up by process 1234 since 19:38, 34 % read`.
    pub(crate) fn words(&self) -> String {
        let percent = (u128::from(self.done_bytes) * 100).checked_div(self.total_bytes.into());
        let percent = percent.map(|percent| format!(", {percent} % read")).unwrap_or_default();
        format!("being backed up by {}{percent}", self.backup)
    }
}

/// Returns the running backups. Ignores everything that cannot be read.
pub(crate) fn running(context: &Context) -> Vec<RunningNow> {
    let files = context.runtime().ok().and_then(|runtime| CaptureFile::open_all(&runtime).ok()).unwrap_or_default();
    let states = files.iter().filter_map(|file| file.load().ok());
    let backups: Vec<_> = states.filter_map(|state| Some((state.running_backup()?, state))).collect();
    if backups.is_empty() {
        return Vec::new();
    }
    let jobs = state_folder().ok().and_then(|folder| Jobs::of(&folder).all().ok()).unwrap_or_default();
    let running = |(backup, state): (RunningBackup, crate::capture::CaptureState)| {
        let job = jobs.iter().find(|job| job.status == "running" && job.pid == backup.pid);
        let (done_bytes, total_bytes) = job.map_or((0, 0), |job| progress(job, &state.machine));
        let job = job.map(|job| job.job.clone());
        let (machine, uuid) = (state.machine, state.uuid);
        RunningNow { machine, uuid, backup, job, done_bytes, total_bytes }
    };
    backups.into_iter().map(running).collect()
}

/// Returns the progress of a job with the current disks of a machine.
fn progress(job: &Job, machine: &str) -> (u64, u64) {
    let is_of_machine = |label: &str| label.rsplit_once('/').is_some_and(|(name, _)| name == machine);
    let steps = job.steps.iter().filter(|step| is_of_machine(&step.label));
    steps.fold((0, 0), |(done, total), step| (done + step.done_bytes, total + step.total_bytes))
}
