//! The history of a repository as a whole: its prunes, and its free space over time.

use super::{LONGEST_ERROR_CHARS, RunOutcome, VERSION};
use crate::record::Time;
use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The number of days for which the free space is kept.
const MOST_DAYS: usize = 35;

/// The number of repository sizes kept.
const MOST_SIZES: usize = 60;

/// The minimum time span for estimating growth per month.
const SHORTEST_GROWTH: TimeDelta = TimeDelta::days(3);

/// The number of samples needed to distinguish growth from chance.
const FEWEST_SAMPLES: usize = 4;

/// The history of one repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RepoMemory {
    /// The version of the file.
    pub(super) version: u32,
    pub(crate) repo: String,
    /// The time of its first record.
    pub(crate) since: Time,
    /// The last prune of all machines, whatever its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_prune: Option<PruneRun>,
    /// The last successful one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_successful_prune: Option<PruneRun>,
    /// Free space of the file system, one sample a day, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) free_space: Vec<FreeSpace>,
    /// The size of the repository after each run that stored something, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sizes: Vec<RepoSize>,
}

/// A prune of a repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PruneRun {
    /// The run's id, as in the log.
    pub(crate) run: String,
    /// The command: `prune` or `backup`.
    pub(crate) command: String,
    pub(crate) ended_at: Time,
    pub(crate) result: RunOutcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// The free space at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FreeSpace {
    pub(crate) at: Time,
    /// Free bytes of the file system.
    pub(crate) free_bytes: u64,
}

/// The size of the repository at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RepoSize {
    pub(crate) at: Time,
    /// The size of all blobs in its index.
    pub(crate) stored_bytes: u64,
}

impl RepoMemory {
    pub(super) fn new(repo: &str, now: Time) -> RepoMemory {
        RepoMemory {
            version: VERSION,
            repo: repo.to_owned(),
            since: now,
            last_prune: None,
            last_successful_prune: None,
            free_space: Vec::new(),
            sizes: Vec::new(),
        }
    }

    /// Records a prune of all machines.
    pub(crate) fn note_prune(&mut self, mut run: PruneRun) {
        run.error = run.error.map(|error| error.chars().take(LONGEST_ERROR_CHARS).collect());
        if run.result == RunOutcome::Done {
            self.last_successful_prune = Some(run.clone());
        }
        self.last_prune = Some(run);
    }

    /// Records the free space. The last sample of a day replaces the others of that day.
    pub(crate) fn note_free_space(&mut self, at: Time, free_bytes: u64) {
        let is_same_day = |known: &FreeSpace| known.at.date_naive() == at.date_naive();
        self.free_space.retain(|known| !is_same_day(known) && known.at <= at);
        self.free_space.push(FreeSpace { at, free_bytes });
        let too_many = self.free_space.len().saturating_sub(MOST_DAYS);
        self.free_space.drain(..too_many);
    }

    /// Records the size of the repository.
    pub(crate) fn note_size(&mut self, at: Time, stored_bytes: u64) {
        self.sizes.push(RepoSize { at, stored_bytes });
        let too_many = self.sizes.len().saturating_sub(MOST_SIZES);
        self.sizes.drain(..too_many);
    }

    /// Returns the average number of bytes per second by which the free space shrinks, or `None` if it does not, or if
    /// the samples are too few or span too short a time.
    ///
    /// It is the slope of a linear regression, so that a prune does not appear as the end of all growth, nor the backup
    /// before it as a flood.
    pub(crate) fn growth(&self) -> Option<f64> {
        let (first, last) = (self.free_space.first()?, self.free_space.last()?);
        if self.free_space.len() < FEWEST_SAMPLES || last.at - first.at < SHORTEST_GROWTH {
            return None;
        }
        let samples = || {
            let seconds = |sample: &FreeSpace| (sample.at - first.at).num_seconds() as f64;
            self.free_space.iter().map(move |sample| (seconds(sample), sample.free_bytes as f64))
        };
        let count = self.free_space.len() as f64;
        let (mean_time, mean_free) = (
            samples().map(|(time, _)| time).sum::<f64>() / count,
            samples().map(|(_, free)| free).sum::<f64>() / count,
        );
        let covariance: f64 = samples().map(|(time, free)| (time - mean_time) * (free - mean_free)).sum();
        let variance: f64 = samples().map(|(time, _)| (time - mean_time).powi(2)).sum();
        let growth = -covariance / variance;
        (growth.is_finite() && growth > 0.0).then_some(growth)
    }

    /// Returns the time until `free_bytes` are used up at the present growth, or `None` if the growth is unknown.
    pub(crate) fn time_until_full(&self, free_bytes: u64) -> Option<Duration> {
        Duration::try_from_secs_f64(free_bytes as f64 / self.growth()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: TimeDelta = TimeDelta::days(1);

    fn start() -> Time {
        "2026-11-01T02:00:00+01:00".parse().unwrap()
    }

    fn memory(free: &[u64]) -> RepoMemory {
        let mut memory = RepoMemory::new("/backup", start());
        for (day, free_bytes) in free.iter().enumerate() {
            memory.note_free_space(start() + DAY * day as i32, *free_bytes);
        }
        memory
    }

    fn days_left(memory: &RepoMemory, free_bytes: u64) -> Option<u64> {
        memory.time_until_full(free_bytes).map(|time| (time.as_secs_f64() / 86400.0).round() as u64)
    }

    #[test]
    fn time_to_full_is_extrapolated_from_steady_growth() {
        assert_eq!(days_left(&memory(&[1000, 990, 980, 970, 960]), 960), Some(96));
        // A weekly prune frees what it can.
        let weeks: Vec<u64> = (0..28).map(|day| 10_000 - day * 20 - day % 7 * 30).collect();
        let left = days_left(&memory(&weeks), 9000).unwrap();
        assert!((350..550).contains(&left), "{left}");
    }

    #[test]
    fn time_to_full_is_unknown_without_enough_samples_or_growth() {
        assert_eq!(days_left(&memory(&[]), 1), None);
        assert_eq!(days_left(&memory(&[9, 8, 7]), 7), None);
        assert_eq!(days_left(&memory(&[9, 9, 9, 9, 9]), 9), None);
        assert_eq!(days_left(&memory(&[5, 6, 7, 8, 9]), 9), None);
    }

    #[test]
    fn free_space_history_has_one_sample_a_day_up_to_its_limit() {
        let mut memory = memory(&(0..100).map(|day| 1000 - day).collect::<Vec<_>>());
        assert_eq!(memory.free_space.len(), MOST_DAYS);
        let last = memory.free_space.last().unwrap().at;
        memory.note_free_space(last + TimeDelta::hours(3), 7);
        assert_eq!((memory.free_space.len(), memory.free_space.last().unwrap().free_bytes), (MOST_DAYS, 7));
        // A clock that was ahead and has been corrected.
        memory.note_free_space(last - DAY * 10, 8);
        assert_eq!(memory.free_space.len(), MOST_DAYS - 10);
    }
}
