//! Watches a drill reach its rungs one after the other, and detects failures.

use super::console::ConsoleText;
use super::definition::Prepared;
use super::guest::{self, CommandResult, GuestFacts};
use super::result::{DrillRequest, DrillResult};
use super::verdict::{self, Observation, Rung};
use crate::bounded::{self, Group};
use crate::capture::transient::{Screenshot, TransientMachine};
use crate::capture::{self, Hypervisor};
use crate::failpoint::{self, Failpoint};
use crate::ops::{Result, Stop};
use crate::record::{Damage, Status};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often to check the machine.
const TICK: Duration = Duration::from_millis(200);

/// How often to check the screen.
const SCREEN_TICK: Duration = Duration::from_secs(5);

/// How often to query the agent, and to repeat a command that failed.
const AGENT_TICK: Duration = Duration::from_secs(1);
const CHECK_TICK: Duration = Duration::from_secs(3);

/// The end of a drill.
struct DrillVerdict {
    status: Status,
    detail: String,
}

/// A machine under observation.
pub(super) struct DrillWatch<'a> {
    pub(super) hypervisor: &'a Hypervisor,
    pub(super) request: &'a DrillRequest,
    pub(super) prepared: &'a Prepared,
    pub(super) limit: Duration,
    pub(super) console: &'a ConsoleText,
    pub(super) firmware: &'a ConsoleText,
    pub(super) damage: &'a Mutex<Vec<Damage>>,
    pub(super) stop: &'a Stop,
}

/// The observations so far.
struct DrillProgress {
    began: Instant,
    rungs: Vec<(Rung, f64)>,
    facts: GuestFacts,
    check: Option<CommandResult>,
    screen: Screen,
    agent_at: Instant,
    check_at: Instant,
    is_expectation_met: bool,
}

/// The screen, and whether it changed while disks were read.
#[derive(Default)]
struct Screen {
    last: Option<Screenshot>,
    looked_at: Option<Instant>,
    moved_bytes: u64,
    is_alive: bool,
}

impl Screen {
    fn look(&mut self, machine: &TransientMachine, disks: &[String]) {
        if self.looked_at.is_some_and(|at| at.elapsed() < SCREEN_TICK) {
            return;
        }
        self.looked_at = Some(Instant::now());
        // The machine may have no screen, or may just be ending.
        let (Ok(screen), Ok(moved_bytes)) = (machine.screenshot(), machine.moved_bytes(disks)) else { return };
        let has_changed = self.last.as_ref().is_some_and(|last| last.bytes != screen.bytes);
        if has_changed && moved_bytes > self.moved_bytes && self.moved_bytes > 0 {
            self.is_alive = true;
        }
        if self.moved_bytes == 0 || has_changed {
            self.moved_bytes = moved_bytes;
        }
        self.last = Some(screen);
    }
}

impl DrillProgress {
    fn has(&self, rung: Rung) -> bool {
        self.rungs.iter().any(|(reached, _)| *reached == rung)
    }

    fn reach(&mut self, rung: Rung, on_rung: &dyn Fn(Rung)) {
        if !self.has(rung) {
            let seconds = self.began.elapsed().as_millis() as f64 / 1000.0;
            self.rungs.push((rung, seconds));
            on_rung(rung);
        }
    }
}

impl DrillWatch<'_> {
    /// Starts the machine, watches it and ends it.
    pub(super) fn run(&self, on_rung: impl Fn(Rung)) -> Result<DrillResult> {
        let now = Instant::now();
        let mut progress = DrillProgress {
            began: now,
            rungs: Vec::new(),
            facts: GuestFacts::default(),
            check: None,
            screen: Screen::default(),
            agent_at: now,
            check_at: now,
            is_expectation_met: self.request.expect.is_none(),
        };
        let started = self.hypervisor.start_transient(&self.prepared.xml);
        failpoint::hit(Failpoint::DrillCreated);
        let (verdict, reboots) = match started.and_then(|machine| machine.run().map(|()| machine)) {
            Ok(machine) => {
                let verdict = self.climb(&machine, &mut progress, &on_rung)?;
                progress.screen.looked_at = None;
                progress.screen.look(&machine, &[]);
                (verdict, machine.reboots())
            }
            Err(capture::Error::Interrupted) => return Err(crate::ops::Error::Interrupted),
            Err(error) => {
                let detail = format!("the machine cannot be started: {error}");
                (DrillVerdict { status: Status::Critical, detail }, 0)
            }
        };
        let damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(DrillResult {
            status: verdict.status,
            detail: verdict.detail,
            rungs: progress.rungs,
            seconds: progress.began.elapsed().as_millis() as f64 / 1000.0,
            is_accelerated: self.prepared.is_accelerated,
            reboots,
            system: progress.facts.system,
            mount_points: progress.facts.mount_points,
            check_output: progress.check.map(|check| check.output).filter(|output| !output.is_empty()),
            notes: self.prepared.notes.clone(),
            damage,
            console: self.console.bytes(),
            screenshot: progress.screen.last,
        })
    }

    fn climb(
        &self,
        machine: &TransientMachine,
        progress: &mut DrillProgress,
        on_rung: &dyn Fn(Rung),
    ) -> Result<DrillVerdict> {
        progress.reach(Rung::Started, on_rung);
        failpoint::hit(Failpoint::DrillRuns);
        loop {
            self.stop.check()?;
            let (console, firmware) = (self.console.text(), self.firmware.text());
            let damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let observation = Observation {
                state: machine.state()?,
                reboots: machine.reboots(),
                console: &console,
                firmware: &firmware,
                damage: &damage,
            };
            if let Some(detail) = verdict::failure(&observation) {
                return Ok(DrillVerdict { status: Status::Critical, detail });
            }
            self.look(machine, progress, &console, on_rung)?;
            if self.has_arrived(progress) {
                let detail = self.words_of_success(progress);
                return Ok(DrillVerdict { status: Status::Ok, detail });
            }
            if progress.began.elapsed() >= self.limit {
                return Ok(self.out_of_time(progress));
            }
            thread::sleep(TICK);
        }
    }

    /// Checks for the next rungs.
    fn look(
        &self,
        machine: &TransientMachine,
        progress: &mut DrillProgress,
        console: &str,
        on_rung: &dyn Fn(Rung),
    ) -> Result<()> {
        if let Some(text) = &self.request.expect {
            progress.is_expectation_met |= verdict::has_text(console, text);
        }
        if !progress.has(Rung::Console) {
            let disks: Vec<String> = self.prepared.disks.iter().map(|disk| disk.disk.clone()).collect();
            progress.screen.look(machine, &disks);
            if progress.screen.is_alive || verdict::is_of_a_guest(console) {
                progress.reach(Rung::Console, on_rung);
            }
        }
        let is_agent_due = progress.agent_at.elapsed() >= AGENT_TICK && self.prepared.has_agent_channel;
        if is_agent_due && self.request.target() >= Rung::Agent && !progress.has(Rung::Agent) {
            progress.agent_at = Instant::now();
            if guest::answers(machine) {
                progress.reach(Rung::Agent, on_rung);
                progress.facts = guest::facts(machine);
            }
        }
        self.check(machine, progress, on_rung)
    }

    /// Runs the check command if there is one and it is due.
    fn check(&self, machine: &TransientMachine, progress: &mut DrillProgress, on_rung: &dyn Fn(Rung)) -> Result<()> {
        let Some(command) = &self.request.check else { return Ok(()) };
        let needed = match self.request.is_check_of_host && !self.prepared.has_agent_channel {
            true => Rung::Console,
            false => Rung::Agent,
        };
        let is_due = progress.check.is_none() || progress.check_at.elapsed() >= CHECK_TICK;
        if !progress.has(needed) || !is_due || progress.has(Rung::Check) {
            return Ok(());
        }
        let left = self.limit.saturating_sub(progress.began.elapsed()).max(AGENT_TICK);
        let result = match self.request.is_check_of_host {
            true => Some(self.run_on_host(command, left)),
            // The agent may disappear during the call; the command is then repeated.
            false => guest::run(machine, &progress.facts, command, left)
                .unwrap_or_else(|error| Some(CommandResult { is_success: false, output: error.to_string() })),
        };
        self.stop.check()?;
        progress.check_at = Instant::now();
        let result = result.unwrap_or(CommandResult { is_success: false, output: "it did not end in time".to_owned() });
        if result.is_success {
            progress.reach(Rung::Check, on_rung);
        }
        progress.check = Some(result);
        Ok(())
    }

    fn run_on_host(&self, command: &str, limit: Duration) -> CommandResult {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        shell.env("DRILL_MACHINE", &self.prepared.name).env("DRILL_CONNECT", self.hypervisor.uri());
        match bounded::output(shell, Group::Own, limit, &self.stop.flag()) {
            Ok(output) => {
                let text = [output.stdout, output.stderr].concat();
                CommandResult::new(output.status.code().map(i64::from), &String::from_utf8_lossy(&text))
            }
            Err(error) => CommandResult { is_success: false, output: error.to_string() },
        }
    }

    fn has_arrived(&self, progress: &DrillProgress) -> bool {
        progress.has(self.request.target()) && progress.is_expectation_met
    }

    fn words_of_success(&self, progress: &DrillProgress) -> String {
        let seconds = progress.rungs.last().map_or(0.0, |(_, seconds)| *seconds);
        let what = match self.request.target() {
            Rung::Started => "started",
            Rung::Console if self.request.expect.is_some() => "the expected text appeared",
            Rung::Console => "the guest wrote to its console",
            Rung::Agent => "the guest agent answered",
            Rung::Check => "the command succeeded",
        };
        match &progress.facts.system {
            Some(system) => format!("{what} after {seconds:.1} s ({system})"),
            None => format!("{what} after {seconds:.1} s"),
        }
    }

    /// The verdict if the time is over.
    fn out_of_time(&self, progress: &DrillProgress) -> DrillVerdict {
        let limit = format!("in {} s", self.limit.as_secs());
        let critical = |detail: String| DrillVerdict { status: Status::Critical, detail };
        match (&progress.check, &self.request.expect) {
            (Some(check), _) => return critical(format!("the command did not succeed {limit}: {}", check.output)),
            (None, Some(text)) if !progress.is_expectation_met => {
                return critical(format!("the console did not show {text:?} {limit}"));
            }
            _ => {}
        }
        let agent = match self.prepared.has_agent_channel {
            true => format!("no agent answered {limit}"),
            false => "no agent answered: the machine has no channel for one".to_owned(),
        };
        if !progress.has(Rung::Console) {
            let detail = format!("the guest showed no sign of life {limit}");
            let status = if self.request.is_explicit() { Status::Critical } else { Status::Unknown };
            return DrillVerdict { status, detail };
        }
        match self.request.is_explicit() {
            true => critical(agent),
            false => DrillVerdict { status: Status::Unknown, detail: agent },
        }
    }
}
