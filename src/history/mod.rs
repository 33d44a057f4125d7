//! The history of backups on this host: the result of the last run of each machine, and when its points were verified.
//! It records what a repository cannot, such as failed runs, and is used while a repository is unreachable.
//!
//! | module | what |
//! | --- | --- |
//! | [`jobs`] | the runs of this host, running and past |
//! | [`repo_memory`] | the repository as a whole: its prunes, its free space |
//! | [`store`] | the files |
//!
//! It is not authoritative: it may be deleted at any time, and a backup never fails because of it.

pub(crate) mod jobs;
pub(crate) mod repo_memory;
pub(crate) mod store;

pub(crate) use repo_memory::{PruneRun, RepoMemory};
pub(crate) use store::{Error, History};

use crate::record::Time;
use serde::{Deserialize, Serialize};

/// The version of the files that this program writes; others are not read.
const VERSION: u32 = 1;

/// Longer error messages are truncated.
const LONGEST_ERROR_CHARS: usize = 1000;

/// The number of runs kept for a machine: the newest ones, and the last one of each earlier day.
const MOST_RUNS_IN_ROW: usize = 16;
const MOST_RUNS: usize = 60;

/// The number of damaged points kept for a machine, the newest ones.
const MOST_DAMAGED_POINTS: usize = 32;

/// The number of verified points kept for a machine, the newest ones.
const MOST_VERIFIED_POINTS: usize = 256;

/// The history of one machine in one repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MachineMemory {
    /// The version of the file.
    version: u32,
    pub(crate) repo: String,
    /// The machine's name at the last run.
    pub(crate) machine: String,
    pub(crate) uuid: String,
    /// The time of its first record.
    pub(crate) since: Time,
    /// The newest point that was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) newest_point: Option<KnownPoint>,
    /// The last run, whatever its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_run: Option<MachineRun>,
    /// The last successful run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_success: Option<MachineRun>,
    /// Runs, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) runs: Vec<PastRun>,
    /// The last verification that found a point intact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verified: Option<Verification>,
    /// The deepest verification of each point, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) verified_points: Vec<Verification>,
    /// The last drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_drill: Option<DrillRun>,
    /// The points that were found damaged, and not intact since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) damaged: Vec<Verification>,
}

/// A point and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownPoint {
    pub(crate) point: String,
    /// When the point was captured.
    pub(crate) captured_at: Time,
}

/// The result of one run for one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MachineRun {
    /// The run's id, as in the log.
    pub(crate) run: String,
    /// `backup` or `push`.
    pub(crate) command: String,
    /// When the work on the machine began.
    pub(crate) began_at: Time,
    pub(crate) ended_at: Time,
    pub(crate) result: RunOutcome,
    /// The code of the failure; if the machine was stored, the code of what its point lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    /// The failure, or what the point lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The point that was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) point: Option<KnownPoint>,
    /// The bytes that were read from its disks.
    #[serde(default)]
    pub(crate) read_bytes: u64,
    /// The bytes among them that were new to the repository.
    #[serde(default)]
    pub(crate) new_bytes: u64,
    /// Space used by the new data.
    #[serde(default)]
    pub(crate) stored_bytes: u64,
}

/// The part of a run that is kept when more runs have followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PastRun {
    /// The run's id, as in the log.
    pub(crate) run: String,
    /// When the work on the machine began.
    pub(crate) began_at: Time,
    pub(crate) ended_at: Time,
    pub(crate) result: RunOutcome,
    /// As in [`MachineRun`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    #[serde(default)]
    pub(crate) new_bytes: u64,
    #[serde(default)]
    pub(crate) stored_bytes: u64,
}

impl PastRun {
    fn of(run: &MachineRun) -> PastRun {
        PastRun {
            run: run.run.clone(),
            began_at: run.began_at,
            ended_at: run.ended_at,
            result: run.result,
            code: run.code.clone(),
            new_bytes: run.new_bytes,
            stored_bytes: run.stored_bytes,
        }
    }
}

/// The result of a run, in the words that hooks get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RunOutcome {
    /// The machine was stored.
    Done,
    Failed,
    /// Damage was found in the new point or in an earlier one.
    Damage,
    /// Another run held the machine or the repository.
    Busy,
    Interrupted,
}

impl RunOutcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            RunOutcome::Done => "done",
            RunOutcome::Failed => "failed",
            RunOutcome::Damage => "damage",
            RunOutcome::Busy => "busy",
            RunOutcome::Interrupted => "interrupted",
        }
    }
}

/// The depth of a verification, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VerifiedDepth {
    Quick,
    /// Only a sample of the chunks.
    Sample,
    Full,
}

impl VerifiedDepth {
    /// Returns the word used in a point's `verified`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            VerifiedDepth::Quick => "quick",
            VerifiedDepth::Sample => "sample",
            VerifiedDepth::Full => "full",
        }
    }
}

/// A verification of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verification {
    pub(crate) point: String,
    /// When it was verified, or found damaged.
    pub(crate) at: Time,
    /// How deep it went.
    pub(crate) depth: VerifiedDepth,
}

/// The result of a drill of a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DrillRun {
    /// The run's id, as in the log.
    pub(crate) run: String,
    /// The point that was booted.
    pub(crate) point: KnownPoint,
    pub(crate) began_at: Time,
    pub(crate) ended_at: Time,
    /// `ok`, `critical` or `unknown`.
    pub(crate) status: String,
    pub(crate) detail: String,
    /// The highest rung, and the seconds until it was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rung: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rung_seconds: Option<f64>,
    /// The guest's output, and the last screenshot: files on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) screenshot: Option<String>,
}

impl MachineRun {
    /// Returns how long the run took.
    pub(crate) fn duration_seconds(&self) -> f64 {
        (self.ended_at - self.began_at).num_milliseconds().max(0) as f64 / 1000.0
    }
}

impl MachineMemory {
    fn new(repo: &str, uuid: &str, now: Time) -> MachineMemory {
        MachineMemory {
            version: VERSION,
            repo: repo.to_owned(),
            machine: String::new(),
            uuid: uuid.to_owned(),
            since: now,
            newest_point: None,
            last_run: None,
            last_success: None,
            runs: Vec::new(),
            verified: None,
            verified_points: Vec::new(),
            last_drill: None,
            damaged: Vec::new(),
        }
    }

    pub(crate) fn note_run(&mut self, mut run: MachineRun) {
        run.error = run.error.map(|error| error.chars().take(LONGEST_ERROR_CHARS).collect());
        // An older point may be copied after a newer one.
        let is_newer =
            |point: &&KnownPoint| self.newest_point.as_ref().is_none_or(|known| known.captured_at <= point.captured_at);
        if let Some(point) = run.point.as_ref().filter(is_newer) {
            self.newest_point = Some(point.clone());
        }
        if run.result == RunOutcome::Done {
            self.last_success = Some(run.clone());
        }
        self.runs.push(PastRun::of(&run));
        self.forget_runs();
        self.last_run = Some(run);
    }

    /// Keeps only the last run of each older day, so that a machine that is backed up every hour has a longer history.
    fn forget_runs(&mut self) {
        let day = |run: &PastRun| run.ended_at.with_timezone(&chrono::Local).date_naive();
        let days: Vec<_> = self.runs.iter().map(day).collect();
        let newest = self.runs.len().saturating_sub(MOST_RUNS_IN_ROW);
        let mut at = 0..;
        self.runs.retain(|_| {
            let at = at.next().unwrap_or_default();
            at >= newest || days.get(at + 1) != days.get(at)
        });
        let too_many = self.runs.len().saturating_sub(MOST_RUNS);
        self.runs.drain(..too_many);
    }

    /// Records that a point was found intact. Damage that a deeper verification found stays.
    pub(crate) fn note_whole(&mut self, verification: Verification) {
        self.damaged.retain(|damage| damage.point != verification.point || damage.depth > verification.depth);
        let known = self.verified_points.iter().position(|known| known.point == verification.point);
        if known.is_none_or(|at| self.verified_points[at].depth <= verification.depth) {
            known.map(|at| self.verified_points.remove(at));
            self.verified_points.push(verification.clone());
            let too_many = self.verified_points.len().saturating_sub(MOST_VERIFIED_POINTS);
            self.verified_points.drain(..too_many);
        }
        // A check of the structure does not replace the record that the data was read.
        let is_shallow = verification.depth == VerifiedDepth::Quick;
        if !(is_shallow && self.verified.as_ref().is_some_and(|known| known.depth > VerifiedDepth::Quick)) {
            self.verified = Some(verification);
        }
    }

    pub(crate) fn note_drill(&mut self, mut drill: DrillRun) {
        drill.detail = drill.detail.chars().take(LONGEST_ERROR_CHARS).collect();
        self.last_drill = Some(drill);
    }

    /// Records that a point was found damaged.
    pub(crate) fn note_damage(&mut self, verification: Verification) {
        self.verified_points.retain(|known| known.point != verification.point);
        self.damaged.retain(|damage| damage.point != verification.point);
        self.damaged.push(verification);
        let too_many = self.damaged.len().saturating_sub(MOST_DAMAGED_POINTS);
        self.damaged.drain(..too_many);
    }
}
