//! Copying the data of a machine that runs on its point to its own disks, several disks at once.

use super::server::PointServer;
use super::state::LiveState;
use crate::capture::domain_xml::rewrite::served::sockets_below;
use crate::capture::machine::{MachineState, PausedReason, Which};
use crate::capture::{self, LibvirtErrorKind, Machine, PullProgress};
use crate::ops::{Error, Monitor, Progress, Result, Stop};
use std::thread;
use std::time::{Duration, Instant};

/// A copy is looked at often in the beginning, so that a small disk costs no wait, then less often, and often again
/// when its end is near.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_INTERVAL: Duration = Duration::from_millis(200);

/// So often a copy may fail without having come any further.
const FRUITLESS_TRIES: u32 = 5;

/// So many disks of a machine are copied at once: what is read ahead for them fits into the memory of the server.
const DISKS_AT_ONCE: usize = 4;

/// Copies all that the machine still needs the server for. A limit holds for all disks together: then they are copied
/// one after the other.
pub(super) fn pull_all(
    machine: &Machine,
    state: &LiveState,
    server: &PointServer,
    limit_read: Option<u32>,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<()> {
    let at_once = if limit_read.is_some() { 1 } else { DISKS_AT_ONCE };
    let (mut waiting, mut pulls) = (state.disks.iter(), Vec::<DiskPull>::new());
    loop {
        for disk in waiting.by_ref().take(at_once - pulls.len()) {
            let progress = monitor.start("copying", &format!("{}/{}", state.machine, disk.disk), disk.capacity_bytes);
            pulls.push(DiskPull::new(machine, state, &disk.disk, limit_read, progress));
        }
        let Some(next_look) = pulls.iter().map(|pull| pull.next_look).min() else { return Ok(()) };
        thread::sleep(next_look.saturating_duration_since(Instant::now()));
        stop.check()?;
        if server.ensure()? {
            monitor.warn(&format!("the server of {}'s point had ended and was started again", machine.name()));
        }
        keep_running(machine, state)?;
        let mut at = 0;
        while let Some(pull) = pulls.get_mut(at) {
            if pull.next_look <= Instant::now() && pull.look()? == PullState::Done {
                pulls.remove(at);
            } else {
                at += 1;
            }
        }
    }
}

/// A machine that waits because its point was not served goes on.
fn keep_running(machine: &Machine, state: &LiveState) -> Result<()> {
    match machine.state()? {
        MachineState::Off | MachineState::Crashed => Err(Error::LiveRestoreStopped { machine: state.machine.clone() }),
        MachineState::Paused(PausedReason::IoError) => match machine.resume() {
            // It was resumed already, or waits again.
            Err(error) if error.meaning() == LibvirtErrorKind::InvalidState => Ok(()),
            resumed => Ok(resumed?),
        },
        _ => Ok(()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PullState {
    Copying,
    Done,
}

struct DiskPull<'a> {
    machine: &'a Machine,
    state: &'a LiveState,
    disk: &'a str,
    limit_read: Option<u32>,
    progress: Box<dyn Progress>,
    began: Instant,
    next_look: Instant,
    shown_bytes: u64,
    furthest_bytes: u64,
    /// How often it was begun since it came further.
    tries: u32,
}

impl<'a> DiskPull<'a> {
    fn new(
        machine: &'a Machine,
        state: &'a LiveState,
        disk: &'a str,
        limit_read: Option<u32>,
        progress: Box<dyn Progress>,
    ) -> DiskPull<'a> {
        let now = Instant::now();
        DiskPull {
            machine,
            state,
            disk,
            limit_read,
            progress,
            began: now,
            next_look: now,
            shown_bytes: 0,
            furthest_bytes: 0,
            tries: 0,
        }
    }

    /// Looks how far it has come, and begins it where it does not run.
    fn look(&mut self) -> Result<PullState> {
        if let Some(job) = self.machine.pull_progress(self.disk)? {
            if job.done_bytes > self.furthest_bytes {
                (self.furthest_bytes, self.tries) = (job.done_bytes, 0);
            }
            if job.done_bytes > self.shown_bytes {
                self.progress.advance(job.done_bytes - self.shown_bytes);
                self.shown_bytes = job.done_bytes;
            }
            self.next_look = Instant::now() + interval(self.began.elapsed(), job);
            return Ok(PullState::Copying);
        }
        if !needs_server(self.machine, Which::Live, self.disk, self.state)?
            && !needs_server(self.machine, Which::Inactive, self.disk, self.state)?
        {
            return Ok(PullState::Done);
        }
        self.tries += 1;
        match self.machine.begin_pull(self.disk, self.limit_read) {
            Ok(()) if self.tries > FRUITLESS_TRIES => {
                return Err(Error::PullFailed { machine: self.state.machine.clone(), disk: self.disk.to_owned() });
            }
            Ok(()) => {}
            // Its job ends just now, or the machine does.
            Err(error) if self.tries <= FRUITLESS_TRIES => tracing::debug!("{error}"),
            Err(error) => return Err(error.into()),
        }
        // What ends just now gets the time to.
        self.next_look = Instant::now() + if self.tries > 1 { LONGEST_INTERVAL } else { SHORTEST_INTERVAL };
        Ok(PullState::Copying)
    }
}

/// When to look next at a copy that has come so far in this time.
fn interval(elapsed: Duration, job: PullProgress) -> Duration {
    let left_bytes = job.total_bytes.saturating_sub(job.done_bytes);
    let left = elapsed.as_secs_f64() * left_bytes as f64 / job.done_bytes.max(1) as f64;
    let half_of_it = Duration::try_from_secs_f64(left / 2.0).unwrap_or(LONGEST_INTERVAL);
    (elapsed / 16).min(half_of_it).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

/// Whether a disk of the machine, as it runs or as it would start, needs the point.
pub(super) fn needs_server(machine: &Machine, which: Which, disk: &str, state: &LiveState) -> capture::Result<bool> {
    let definition = machine.definition(which)?;
    Ok(sockets_below(&definition).any(|(name, socket)| name == disk && *socket == state.socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_looked_at_often_in_the_beginning_and_towards_its_end() {
        let look = |elapsed_ms, done_bytes| {
            let job = PullProgress { done_bytes, total_bytes: 1000 };
            interval(Duration::from_millis(elapsed_ms), job).as_millis()
        };
        assert_eq!([look(0, 0), look(100, 100), look(100, 0)], [10; 3]);
        assert_eq!([look(1600, 100), look(60_000, 500)], [100, 200]);
        assert_eq!([look(60_000, 998), look(60_000, 1000)], [60, 10]);
    }
}
