//! The goal of a drill, and its result.

use super::verdict::Rung;
use crate::capture::transient::Screenshot;
use crate::ops::points::OpenPoint;
use crate::record::{Check, Damage, Status, time_value};
use serde_json::{Value, json};
use std::time::Duration;

/// What is asked of a drill.
#[derive(Debug, Clone)]
pub(crate) struct DrillRequest {
    /// The rung that is enough; none leaves that to what is asked for.
    pub(crate) until: Option<Rung>,
    /// How long it may take; none leaves that to whether KVM helps.
    pub(crate) limit: Option<Duration>,
    /// The most memory and processors.
    pub(crate) memory_bytes: u64,
    pub(crate) vcpus: u32,
    /// A command that is to succeed.
    pub(crate) check: Option<String>,
    /// Whether it runs on this host instead of in the guest.
    pub(crate) is_check_of_host: bool,
    /// A text that is to come on the console.
    pub(crate) expect: Option<String>,
}

impl DrillRequest {
    /// The rung that is enough.
    pub(super) fn target(&self) -> Rung {
        match (&self.check, self.until, &self.expect) {
            (Some(_), ..) => Rung::Check,
            (None, Some(rung), _) => rung,
            (None, None, Some(_)) => Rung::Console,
            (None, None, None) => Rung::Agent,
        }
    }

    /// Whether somebody said what is to be reached: then it is a failure if it is not.
    pub(super) fn is_explicit(&self) -> bool {
        self.until.is_some() || self.check.is_some() || self.expect.is_some()
    }
}

/// What a drill came to.
#[derive(Debug, Clone)]
pub(crate) struct DrillResult {
    pub(crate) status: Status,
    pub(crate) detail: String,
    /// The rungs that were reached, with the seconds from the start.
    pub(crate) rungs: Vec<(Rung, f64)>,
    /// The seconds from the start to the end.
    pub(crate) seconds: f64,
    /// Whether the processor ran it.
    pub(crate) is_accelerated: bool,
    /// How often the guest was restarted.
    pub(super) reboots: u32,
    /// What the agent said of the guest.
    pub(super) system: Option<String>,
    pub(super) mount_points: Vec<String>,
    /// What the command printed.
    pub(super) check_output: Option<String>,
    /// What the machine does not have that the original has.
    pub(super) notes: Vec<String>,
    /// What of the point could not be read.
    pub(super) damage: Vec<Damage>,
    /// What it wrote to its serial ports.
    pub(crate) console: Vec<u8>,
    /// The last picture of its screen.
    pub(crate) screenshot: Option<Screenshot>,
}

impl DrillResult {
    /// The highest rung, and when it was reached.
    pub(crate) fn highest(&self) -> Option<(Rung, f64)> {
        self.rungs.iter().copied().max_by_key(|(rung, _)| *rung)
    }

    /// The record; where the log and the picture were kept the caller adds.
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
