//! Processes, distinguished from later ones with the same number.

use chrono::{DateTime, FixedOffset, Local};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;

/// A process, distinguished from later ones with its number: a `qemu-storage-daemon` that we started (under `timeout`,
/// whose number this is), or the owner of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerProcess {
    pub(crate) pid: u32,
    /// Its start time in the kernel's ticks, which tells it from a later process with the same number.
    pub(crate) started_ticks: u64,
}

impl ServerProcess {
    pub(crate) fn this() -> ServerProcess {
        let pid = std::process::id();
        ServerProcess { pid, started_ticks: start_ticks(pid).unwrap_or(0) }
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.started_ticks)
    }

    /// Sends it SIGTERM, unless it is gone, or this process.
    pub(crate) fn ask_to_end(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid
            && self.is_alive()
            && self.pid != std::process::id()
        {
            // It may end just now.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// A backup that is running: the process that a capture belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningBackup {
    /// The process.
    pub pid: u32,
    /// When it began with the machine.
    pub since: DateTime<FixedOffset>,
}

impl fmt::Display for RunningBackup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.since.with_timezone(&Local);
        let is_today = since.date_naive() == Local::now().date_naive();
        let form = if is_today { "%H:%M" } else { "%Y-%m-%d %H:%M" };
        write!(f, "process {} since {}", self.pid, since.format(form))
    }
}

/// When a process started: field 22 of its `stat`, counted after the name in parentheses. A zombie has ended.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if fields.next() == Some("Z") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_distinguished_from_one_that_is_gone() {
        assert!(ServerProcess::this().is_alive());
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = ServerProcess { pid: child.id(), started_ticks: start_ticks(child.id()).unwrap() };
        let another = ServerProcess { started_ticks: process.started_ticks + 1, ..process.clone() };
        assert!(process.is_alive() && !another.is_alive());
        child.kill().unwrap();
        // Waited for, or still a zombie: it has ended.
        child.wait().unwrap();
        assert!(!process.is_alive());
    }
}
