//! Processes, distinguished from later ones with the same PID.

use chrono::{DateTime, FixedOffset, Local};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How often to check a process whose exit the kernel cannot report.
const WITHOUT_HANDLE: Duration = Duration::from_millis(20);

/// A process, distinguished from later ones with the same PID: a `qemu-storage-daemon` that kvmb started (under
/// `timeout`, whose PID this is), or the owner of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerProcess {
    pub(crate) pid: u32,
    /// The start time in clock ticks, which distinguishes it from later processes with the same PID.
    pub(crate) started_ticks: u64,
}

impl ServerProcess {
    pub(crate) fn this() -> ServerProcess {
        let pid = std::process::id();
        ServerProcess { pid, started_ticks: start_ticks(pid).unwrap_or(0) }
    }

    /// Whether the process still runs.
    pub(crate) fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.started_ticks)
    }

    /// Sends SIGTERM to the process unless it is gone or is this process.
    pub(crate) fn ask_to_end(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid
            && self.is_alive()
            && self.pid != std::process::id()
        {
            // The process may just be exiting.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits for the process to exit, at most for `limit`. Returns whether it has exited.
    pub(crate) fn wait_for_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let handle = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        while self.is_alive() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            match (&handle, Timespec::try_from(left)) {
                // A signal to this process ends the wait early.
                (Some(handle), Ok(left)) => {
                    let _ = poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&left));
                }
                // The kernel is too old for pidfds.
                _ => thread::sleep(WITHOUT_HANDLE.min(left)),
            }
        }
        true
    }
}

/// A running backup: the process that owns a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningBackup {
    /// The process id.
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

/// Returns the start time of a process: field 22 of its `stat`, counted after the name in parentheses. `None` for a
/// zombie.
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
    fn ended_and_reused_process_ids_are_not_alive() {
        assert!(ServerProcess::this().is_alive());
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = ServerProcess { pid: child.id(), started_ticks: start_ticks(child.id()).unwrap() };
        let another = ServerProcess { started_ticks: process.started_ticks + 1, ..process.clone() };
        assert!(process.is_alive() && !another.is_alive());
        assert!(!process.wait_for_end(Duration::from_millis(1)) && another.wait_for_end(Duration::ZERO));
        child.kill().unwrap();
        // The process is a zombie or was reaped. Both count as exited.
        assert!(process.wait_for_end(Duration::from_secs(60)) && !process.is_alive());
        child.wait().unwrap();
        assert!(!process.is_alive());
    }
}
