//! Freezes the guest's file systems, without ever hanging and without ever leaving the guest frozen.
//!
//! ```text
//!  set timeout → freeze ─ ok ────────────→ begin → thaw                 "filesystem", if the thaw confirms it
//!                       ├ the agent says no → begin                     "crash"
//!                       └ no answer ──→ thaw → begin → thaw (again)     "crash"; if the second thaw is not answered
//!                                                                       either, a thaw is due
//! ```
//! A successful freeze alone does not show that the guest was frozen at the captured moment: Windows ends a freeze
//! after ten seconds, and only the thaw reports this.
//! An agent that does not answer in time may still freeze later, so it is thawed again after the capture. A thaw that
//! is due is recorded in the capture's state, and closing the capture repeats it.

use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::domain_xml::definition::Definition;
use crate::capture::error::{LibvirtErrorKind, Result};
use crate::capture::ffi;
use crate::capture::machine::{Machine, MachineState};
use crate::capture::signals::Shield;

/// The consistency of a capture's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// The guest's file systems were frozen, so their state is as after a clean unmount.
    Filesystem,
    /// As after a power failure.
    Crash,
    /// The machine was off.
    Offline,
}

impl Consistency {
    /// The word in records and manifests.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Consistency::Filesystem => "filesystem",
            Consistency::Crash => "crash",
            Consistency::Offline => "offline",
        }
    }
}

/// Whether to freeze the guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeMode {
    /// Freeze if there is an agent. Without one, or if it fails, the capture is crash-consistent and has a note.
    Auto,
    /// Do not freeze.
    Never,
    /// Freeze, or fail without a capture.
    Required,
}

/// Whether and how long to try to freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreezeOptions {
    /// Whether to freeze.
    pub mode: FreezeMode,
    /// The time limit for an answer of the guest agent.
    pub timeout: Duration,
}

impl Default for FreezeOptions {
    fn default() -> FreezeOptions {
        FreezeOptions { mode: FreezeMode::Auto, timeout: Duration::from_secs(30) }
    }
}

/// A guest that is, or may be, frozen. Dropping this thaws it.
pub(super) struct FrozenGuest<'a> {
    machine: &'a Machine,
    thawed: bool,
    _shield: Shield,
}

/// The result of an attempt to freeze.
pub(super) enum FreezeOutcome<'a> {
    Frozen(FrozenGuest<'a>),
    /// The guest cannot be frozen, for this reason.
    NotFrozen(String),
    /// The agent was asked and did not freeze the guest.
    Refused(String),
    /// The agent froze nothing that it knows of, or did not answer and may still freeze the guest.
    Unknown(FrozenGuest<'a>, String),
}

/// Freezes the guest if possible. This never fails; it returns the reason instead.
pub(super) fn try_freeze<'a>(machine: &'a Machine, live: &Definition, timeout: Duration) -> FreezeOutcome<'a> {
    if !live.has_agent_channel {
        return FreezeOutcome::NotFrozen("the machine has no guest agent channel".to_owned());
    }
    if !live.agent_connected {
        return FreezeOutcome::NotFrozen("the guest agent is not connected".to_owned());
    }
    match machine.state() {
        Ok(MachineState::Running) => {}
        Ok(state) => return FreezeOutcome::NotFrozen(format!("the machine is {state}")),
        Err(error) => return FreezeOutcome::NotFrozen(error.to_string()),
    }
    let seconds = i32::try_from(timeout.as_secs().max(1)).unwrap_or(i32::MAX);
    if let Err(error) = machine.set_agent_timeout(seconds) {
        return FreezeOutcome::NotFrozen(error.to_string());
    }
    let guest = FrozenGuest { machine, thawed: false, _shield: Shield::raise() };
    let limit = timeout.saturating_add(machine.limits().call);
    let error = match machine.call_within(limit, || format!("freeze {}", machine.name()), ffi::freeze) {
        // Its hooks may have prepared databases for the capture, until the thaw.
        Ok(0) => return FreezeOutcome::Unknown(guest, "the guest agent has frozen no file system".to_owned()),
        Ok(_) => return FreezeOutcome::Frozen(guest),
        Err(error) => error,
    };
    match error.meaning() {
        LibvirtErrorKind::AgentFailed | LibvirtErrorKind::Unsupported => {
            guest.forget();
            FreezeOutcome::Refused(error.to_string())
        }
        _ => {
            // This is only a first attempt; it is repeated after the capture was made.
            let _ = machine.thaw_once();
            FreezeOutcome::Unknown(guest, error.to_string())
        }
    }
}

impl FrozenGuest<'_> {
    /// Thaws the guest and returns the number of thawed file systems. Fails if the guest does not confirm it after
    /// several attempts.
    pub(super) fn thaw(mut self) -> Result<u32> {
        self.thawed = true;
        let result = self.machine.thaw();
        self.restore_timeout();
        result
    }

    fn forget(mut self) {
        self.thawed = true;
        self.restore_timeout();
    }

    /// Restores libvirt's default timeout. The previous value cannot be queried.
    fn restore_timeout(&self) {
        let _ = self.machine.set_agent_timeout(ffi::AGENT_TIMEOUT_BLOCK);
    }
}

impl Drop for FrozenGuest<'_> {
    fn drop(&mut self) {
        if !self.thawed {
            if let Err(error) = self.machine.thaw() {
                tracing::error!("{error}");
            }
            self.restore_timeout();
        }
    }
}

impl Machine {
    /// Queries the time from the guest agent, to test whether it answers. This has no effect on the guest.
    pub(super) fn agent_time(&self, timeout: Duration) -> Result<()> {
        let context = || format!("ask the guest agent of {}", self.name());
        let seconds = i32::try_from(timeout.as_secs().max(1)).unwrap_or(i32::MAX);
        self.set_agent_timeout(seconds)?;
        let limit = timeout.saturating_add(self.limits().call);
        let answer = self.call_within(limit, context, |domain| domain.time(0));
        let _ = self.set_agent_timeout(ffi::AGENT_TIMEOUT_BLOCK);
        answer.map(drop)
    }

    fn set_agent_timeout(&self, seconds: i32) -> Result<()> {
        let action = || format!("limit the wait for the guest agent of {}", self.name());
        self.call(action, move |domain| ffi::set_agent_timeout(domain, seconds))
    }

    /// The call is made even if another one hangs, because the guest must not stay frozen.
    fn thaw_once(&self) -> Result<u32> {
        self.call_regardless(self.limits().call, || format!("thaw {}", self.name()), ffi::thaw)
    }

    /// Thaws the guest's file systems, with several attempts. This is harmless if they are not frozen. Returns the
    /// number of those that were.
    pub(crate) fn thaw(&self) -> Result<u32> {
        const TRIES: u32 = 3;
        let mut tried = 1;
        loop {
            match self.thaw_once() {
                Ok(thawed) => return Ok(thawed),
                Err(error)
                    if tried < TRIES
                        && matches!(
                            error.meaning(),
                            LibvirtErrorKind::AgentSilent | LibvirtErrorKind::Internal | LibvirtErrorKind::Other
                        ) =>
                {
                    tracing::warn!("{error}; trying again");
                    thread::sleep(Duration::from_millis(200));
                    tried += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
