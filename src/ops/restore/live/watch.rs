//! Keeps a machine going that runs on its point.

use super::server::PointServer;
use super::state::LiveState;
use crate::capture::Machine;
use crate::capture::machine::{MachineState, PausedReason};
use crate::ops::{Error, Monitor, Result, Stop};
use std::thread;
use std::time::{Duration, Instant};

/// The interval between looks. It is short at first, so that a small disk is not delayed, and then grows.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_INTERVAL: Duration = Duration::from_millis(200);

/// A machine on its point.
pub(super) struct Watch<'a> {
    pub(super) machine: &'a Machine,
    pub(super) state: &'a LiveState,
    pub(super) server: PointServer<'a>,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) stop: &'a Stop,
}

impl Watch<'_> {
    /// Looks after the machine until `is_over` returns true.
    pub(super) fn until(&self, mut is_over: impl FnMut() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !is_over()? {
            self.look()?;
            thread::sleep((began.elapsed() / 16).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL));
        }
        Ok(())
    }

    /// Restarts the server if it has exited, and resumes the machine if that paused it.
    fn look(&self) -> Result<()> {
        self.stop.check()?;
        if self.server.ensure()? {
            self.monitor
                .warn(&format!("the server of {}'s point had ended and was started again", self.machine.name()));
        }
        match self.machine.state()? {
            MachineState::Off | MachineState::Crashed => {
                Err(Error::LiveRestoreStopped { machine: self.state.machine.clone() })
            }
            MachineState::Paused(PausedReason::IoError) => Ok(self.machine.resume_stopped()?),
            _ => Ok(()),
        }
    }
}
