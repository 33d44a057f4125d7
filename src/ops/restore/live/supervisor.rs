//! Keeps the point of a machine served after the restoring process has ended. The supervisor is a separate process and,
//! under systemd, a unit that starts with the host.
//!
//! ```text
//!  the restore runs ───────────────────→ nothing to do
//!     └ it has ended ┬ the server does not run ─→ restart it
//!                    ├ stopped by a person ─────→ resume the machine if it is paused by an I/O error
//!                    ├ killed or failed ────────→ `kvmb restore --continue`, repeated until it succeeds
//!                    ├ the host was rebooted ───→ the same, which also starts the machine
//!                    └ all data is copied ──────→ the supervisor exits
//! ```
//! A machine of the embedded driver belongs to one program, so there the copy is only continued after a reboot. The
//! supervisor never opens libvirt itself: the embedded driver stays open until its process exits, and excludes all
//! other processes.

use super::server::{self, PointServer};
use super::state::{LiveFolder, LivePhase, LiveState, boot_id};
use crate::capture::machine::{MachineState, PausedReason};
use crate::capture::process::ServerProcess;
use crate::capture::{self, Hypervisor, RuntimeDirs};
use crate::ops::{Error, Monitor, Result, Stop, guard};
use rustix::event::{Timespec, poll};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often to check the restore.
const INTERVAL: Duration = Duration::from_millis(200);

/// How often to check a machine that may be paused because of an I/O error.
const RESUME_INTERVAL: Duration = Duration::from_secs(30);

/// The maximum delay before the next attempt to continue a restore, for example while its repository is unreachable.
/// Each attempt is a job in the history.
const LONGEST_CONTINUE_INTERVAL: Duration = Duration::from_secs(300);

/// The delay before a failed step is repeated.
const RETRY: Duration = Duration::from_secs(5);

/// How long a machine must run until it counts as resumed. Requests that failed before may pause it once more.
const SETTLED: Duration = Duration::from_secs(2);

/// How long resuming is repeated.
const RESUME_LIMIT: Duration = Duration::from_secs(20);

/// The time limit for a supervisor to exit.
const ENDING_LIMIT: Duration = Duration::from_secs(10);

/// Lets the host start a supervisor now and at every boot until it is removed.
pub(crate) trait HostService {
    /// Starts the supervisor of this machine's restore. Returns false if the host does not start services for it.
    fn install(&self, machine: &str, uuid: &str, connect: &str) -> std::result::Result<bool, String>;

    /// Ends and removes the supervisor, if there is one.
    fn remove(&self, uuid: &str) -> std::result::Result<(), String>;
}

/// The live restore to supervise.
pub(super) struct Supervised<'a> {
    pub(super) folder: &'a LiveFolder,
    pub(super) runtime: &'a RuntimeDirs,
    pub(super) state: &'a LiveState,
    pub(super) service: &'a dyn HostService,
}

impl Supervised<'_> {
    /// Starts the supervisor unless there is one. The restore also works without it, but a person must then continue it
    /// after an interruption.
    pub(super) fn start(&self, monitor: &dyn Monitor) {
        let Some(program) = guard::program() else { return };
        if self.folder.supervisor(&self.state.uuid).is_some() {
            return;
        }
        match self.service.install(&self.state.machine, &self.state.uuid, &self.state.connect) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => monitor.warn(&format!("the restore does not go on by itself after a reboot: {error}")),
        }
        let mut command = command(program, self.runtime, &self.state.uuid);
        match command.spawn() {
            // Reaps the child, which would otherwise be a zombie until this process exits.
            Ok(mut child) => drop(thread::Builder::new().spawn(move || child.wait())),
            Err(source) => monitor.warn(&Error::NotStarted { program: "kvmb guard", source }.to_string()),
        }
    }

    /// Asks the supervisor to exit and removes its unit, because all data is copied or the restore was aborted. Returns
    /// the supervisor's process, if there is one.
    pub(super) fn ask_to_end(&self, monitor: &dyn Monitor) -> Option<ServerProcess> {
        if let Err(error) = self.service.remove(&self.state.uuid) {
            monitor.warn(&format!("the service of the restore is still there: {error}"));
        }
        let process = self.folder.supervisor(&self.state.uuid)?;
        process.ask_to_end();
        Some(process)
    }
}

/// Waits for a supervisor that was asked to exit.
pub(super) fn wait_for_end(supervisor: Option<ServerProcess>) {
    if let Some(process) = supervisor {
        process.wait_for_end(ENDING_LIMIT);
    }
}

fn command(program: &Path, runtime: &RuntimeDirs, uuid: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["guard", "--live", uuid]).env("KVMB_RUNTIME_DIR", runtime.state_folder()).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a supervisor until the restore ends. Returns at once if there is another supervisor.
pub(crate) fn run(folder: &LiveFolder, runtime: &RuntimeDirs, uuid: &str, stop: &Stop) -> Result<()> {
    let Some(_only_one) = folder.lock_supervisor(uuid)? else { return Ok(()) };
    let now = Instant::now();
    let mut supervisor = Supervisor {
        folder,
        runtime,
        stop,
        child: None,
        next_try: now,
        next_resume: now,
        continue_interval: RESUME_INTERVAL,
    };
    while !stop.requested() {
        let Some(state) = folder.load(uuid)? else { return Ok(()) };
        if let Err(error) = supervisor.look(&state)
            && !stop.requested()
        {
            tracing::warn!("{}: {error}", state.machine);
            supervisor.next_try = Instant::now() + RETRY;
        }
        // A signal that ends the process also ends this wait.
        let _ = poll(&mut [], Timespec::try_from(INTERVAL).ok().as_ref());
    }
    Ok(())
}

struct Supervisor<'a> {
    folder: &'a LiveFolder,
    runtime: &'a RuntimeDirs,
    stop: &'a Stop,
    /// The child that was started last.
    child: Option<Child>,
    next_try: Instant,
    next_resume: Instant,
    /// The delay between the next attempt to continue the restore and the one after it.
    continue_interval: Duration,
}

impl Supervisor<'_> {
    fn look(&mut self, state: &LiveState) -> Result<()> {
        if let Some(child) = &mut self.child {
            if matches!(child.try_wait(), Ok(None)) {
                return Ok(());
            }
            self.child = None;
        }
        if state.process.is_alive() || state.phase != LivePhase::Copying || Instant::now() < self.next_try {
            return Ok(());
        }
        if state.boot != boot_id() {
            self.next_try = self.next_continue();
            return self.continue_restore(state);
        }
        let server = PointServer { folder: self.folder, runtime: self.runtime, state, repo: None, stop: self.stop };
        if server.ensure()? || Instant::now() >= self.next_resume {
            if state.held || state.connect.starts_with("qemu:///embed") {
                self.next_resume = Instant::now() + RESUME_INTERVAL;
                return self.resume(&state.uuid);
            }
            self.next_resume = self.next_continue();
            return self.continue_restore(state);
        }
        Ok(())
    }

    /// Returns the time of the next attempt if the restore is continued now. The delay grows with each attempt.
    fn next_continue(&mut self) -> Instant {
        let interval = self.continue_interval;
        self.continue_interval = (interval * 2).min(LONGEST_CONTINUE_INTERVAL);
        Instant::now() + interval
    }

    /// Lets a child, which opens libvirt, resume the machine.
    fn resume(&mut self, uuid: &str) -> Result<()> {
        let Some(program) = guard::program() else { return Ok(()) };
        let mut command = command(program, self.runtime, uuid);
        command.arg("--resume");
        self.child = Some(command.spawn().map_err(|source| Error::NotStarted { program: "kvmb guard", source })?);
        Ok(())
    }

    fn continue_restore(&mut self, state: &LiveState) -> Result<()> {
        let Some(mut command) = server::plain_command(self.runtime) else { return Ok(()) };
        command.args(["restore", "--json", "--quiet"]);
        if let Some(config) = &state.access.config {
            command.arg("--config").arg(config);
        }
        // Errors go to the journal.
        command.args(["--continue", &state.uuid, "--unattended"]).stderr(Stdio::inherit());
        self.child = Some(command.spawn().map_err(|source| Error::NotStarted { program: "kvmb restore", source })?);
        Ok(())
    }
}

/// Resumes a machine that is paused because its point was not served.
pub(crate) fn resume(
    folder: &LiveFolder,
    uuid: &str,
    connect: &dyn Fn(&str) -> capture::Result<Hypervisor>,
    stop: &Stop,
) -> Result<()> {
    let Some(state) = folder.load(uuid)? else { return Ok(()) };
    let machine = connect(&state.connect)?.machine(uuid)?;
    let deadline = Instant::now() + RESUME_LIMIT;
    let mut running_since = None;
    while Instant::now() < deadline {
        stop.check()?;
        match machine.state()? {
            MachineState::Paused(PausedReason::IoError) => {
                machine.resume_stopped()?;
                running_since = Some(Instant::now());
            }
            // The machine was not paused, or has been running long enough.
            _ if running_since.is_none_or(|since| since.elapsed() >= SETTLED) => return Ok(()),
            _ => {}
        }
        thread::sleep(INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_has_one_supervisor() {
        let folder = tempfile::tempdir().unwrap();
        let folder = LiveFolder::below(folder.path());
        assert!(folder.supervisor("a").is_none());
        drop(folder.lock("a", "vm").unwrap());
        let only = folder.lock_supervisor("a").unwrap();
        assert!(only.is_some() && folder.lock_supervisor("a").unwrap().is_none());
        assert!(folder.supervisor("a").unwrap().is_alive());
    }
}
