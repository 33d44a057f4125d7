//! The goal of a drill, and its result.

use super::verdict::Rung;
use crate::capture::transient::Screenshot;
use crate::ops::points::OpenPoint;
use crate::record::{Check, Damage, Status, time_value};
use serde_json::{Value, json};
use std::time::Duration;

/// The parameters of a drill.
#[derive(Debug, Clone)]
pub(crate) struct DrillRequest {
    /// The rung to reach; `None` derives it from the other parameters.
    pub(crate) until: Option<Rung>,
    /// The time limit; `None` uses a default that depends on whether KVM is available.
    pub(crate) limit: Option<Duration>,
    /// The maximum memory and number of processors.
    pub(crate) memory_bytes: u64,
    pub(crate) vcpus: u32,
    /// A command that must succeed.
    pub(crate) check: Option<String>,
    /// Whether the command runs on this host instead of in the guest.
    pub(crate) is_check_of_host: bool,
    /// A text that must appear on the console.
    pub(crate) expect: Option<String>,
}

impl DrillRequest {
    /// The rung to reach.
    pub(super) fn target(&self) -> Rung {
        match (&self.check, self.until, &self.expect) {
            (Some(_), ..) => Rung::Check,
            (None, Some(rung), _) => rung,
            (None, None, Some(_)) => Rung::Console,
            (None, None, None) => Rung::Agent,
        }
    }

    /// Whether the user set a goal. It is then a failure not to reach it.
    pub(super) fn is_explicit(&self) -> bool {
        self.until.is_some() || self.check.is_some() || self.expect.is_some()
    }
}

/// The result of a drill.
#[derive(Debug, Clone)]
pub(crate) struct DrillResult {
    pub(crate) status: Status,
    pub(crate) detail: String,
    /// The rungs that were reached, with the seconds since the start.
    pub(crate) rungs: Vec<(Rung, f64)>,
    /// The seconds from the start to the end.
    pub(crate) seconds: f64,
    /// Whether hardware virtualization was used.
    pub(crate) is_accelerated: bool,
    /// How often the guest restarted.
    pub(super) reboots: u32,
    /// The operating system and mount points, as reported by the agent.
    pub(super) system: Option<String>,
    pub(super) mount_points: Vec<String>,
    /// The output of the command.
    pub(super) check_output: Option<String>,
    /// What the test machine lacks compared with the original.
    pub(super) notes: Vec<String>,
    /// The parts of the point that could not be read.
    pub(super) damage: Vec<Damage>,
    /// The output of the serial ports.
    pub(crate) console: Vec<u8>,
    /// The last screenshot.
    pub(crate) screenshot: Option<Screenshot>,
}

impl DrillResult {
    /// The highest rung and the time at which it was reached.
    pub(crate) fn highest(&self) -> Option<(Rung, f64)> {
        self.rungs.iter().copied().max_by_key(|(rung, _)| *rung)
    }

    /// Converts the result to a record. The caller adds the paths of the log and the screenshot.
    pub(crate) fn to_check(&self, point: &OpenPoint, repo: &str) -> Check {
        let manifest = &point.manifest;
        let mut check = Check::new("drill", &manifest.machine, self.status, &self.detail);
        let mut add = |name: &str, value: Value| drop(check.extra.insert(name.to_owned(), value));
        add("machine", manifest.machine.clone().into());
        add("uuid", manifest.uuid.clone().into());
        add("repo", repo.into());
        add("point", point.id.to_string().into());
        add("captured_at", time_value(manifest.captured_at));
        if let Some((rung, seconds)) = self.highest() {
            add("rung", rung.word().into());
            add("rung_seconds", seconds.into());
        }
        for (rung, seconds) in &self.rungs {
            add(&format!("{}_seconds", rung.word()), (*seconds).into());
        }
        add("duration_seconds", self.seconds.into());
        add("accelerated", self.is_accelerated.into());
        if self.reboots > 0 {
            add("reboots", self.reboots.into());
        }
        let texts = [("system", &self.system), ("check_output", &self.check_output)];
        for (name, text) in texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
            add(name, text.clone().into());
        }
        for (name, list) in [("mount_points", &self.mount_points), ("notes", &self.notes)] {
            if !list.is_empty() {
                add(name, json!(list));
            }
        }
        if !self.damage.is_empty() {
            add("damage", json!(self.damage));
        }
        check
    }
}
