//! A machine's status, as reported by `kvmb status`.

use crate::record::{Check, Record, Time};

pub(super) struct MachineStatus<'r>(pub(super) &'r Check);

impl<'r> MachineStatus<'r> {
    pub(super) fn text(&self, key: &str) -> Option<&'r str> {
        self.0.extra.get(key).and_then(|value| value.as_str())
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.0.extra.get(key).and_then(serde_json::Value::as_f64)
    }

    pub(super) fn time(&self, key: &str) -> Option<Time> {
        self.text(key)?.parse().ok()
    }

    pub(super) fn name(&self) -> &'r str {
        &self.0.target
    }

    /// Whether it should be backed up.
    pub(super) fn counts(&self) -> bool {
        matches!(self.text("standing"), Some("selected" | "missing"))
    }

    /// Returns the rank by urgency; the most urgent is 0.
    pub(super) fn urgency(&self) -> u8 {
        match (self.counts(), self.0.status.as_str()) {
            (false, _) => 4,
            (_, "critical") => 0,
            (_, "warning") => 1,
            (_, "ok") => 3,
            _ => 2,
        }
    }

    /// Returns the age of the newest point relative to its limit; without a point, the limit is used up.
    pub(super) fn share_of_limit(&self) -> f64 {
        match (self.number("age_seconds"), self.number("warning_seconds")) {
            (Some(age), Some(limit)) => age / limit.max(1.0),
            _ if self.counts() => f64::INFINITY,
            _ => 0.0,
        }
    }

    /// Whether its most urgent problem is a drill that failed or is overdue.
    pub(super) fn wants_drill(&self) -> bool {
        self.0.hint.as_deref().is_some_and(|hint| hint.starts_with("kvmb drill "))
    }

    /// Whether a backup may fix one of its problems.
    pub(super) fn wants_backup(&self) -> bool {
        // The state has a word of its own if there is a problem with its points or its last run.
        !self.wants_drill() || self.word() != self.0.status
    }

    /// Returns the most informative word for its state.
    pub(super) fn word(&self) -> &'r str {
        let failed = self.text("last_result").filter(|result| *result != "done");
        match self.0.status.as_str() {
            "ok" => "ok",
            _ if self.0.extra.contains_key("damaged_points") => "damaged",
            _ if self.time("captured_at").is_none() => "no point",
            _ if self.share_of_limit() > 1.0 => "overdue",
            status => failed.unwrap_or(status),
        }
    }
}

/// Returns the checks of machines among records.
pub(super) fn machines(records: &[Record]) -> Vec<MachineStatus<'_>> {
    let checks = records.iter().filter_map(|record| match record {
        Record::Check(check) if check.check == "backup" => Some(MachineStatus(check)),
        _ => None,
    });
    checks.collect()
}
