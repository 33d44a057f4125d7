//! Copies the data of a machine that runs on its point to the machine's own disks, disk by disk.

use super::durable::{begin_writing, needs_server, write_out};
use super::server::PointServer;
use super::state::{LiveDisk, LiveFile, LiveState};
use crate::capture::Machine;
use crate::capture::machine::{MachineState, PausedReason, Which};
use crate::failpoint::{self, Failpoint};
use crate::ops::{Error, Monitor, Progress, Result, Stop};
use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

/// The interval between checks of a copy. It is short at first, so that a small disk is not delayed, and then grows.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_INTERVAL: Duration = Duration::from_millis(200);

/// How often a copy may fail without progress.
const FRUITLESS_TRIES: u32 = 5;

/// Copies everything that the machine still needs the server for.
pub(super) fn pull_all(
    machine: &Machine,
    (state, file): (&LiveState, &LiveFile),
    server: &PointServer,
    limit_read: Option<u32>,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<()> {
    for disk in &state.disks {
        let label = format!("{}/{}", state.machine, disk.disk);
        let progress = monitor.start("copying", &label, disk.capacity_bytes);
        DiskPull { machine, state, server, disk, limit_read, monitor, stop }.run(&*progress)?;
        failpoint::hit(Failpoint::RestorePulled);
        write_out(machine, &disk.path, (state, file), monitor, stop)?;
    }
    Ok(())
}

struct DiskPull<'a> {
    machine: &'a Machine,
    state: &'a LiveState,
    server: &'a PointServer<'a>,
    disk: &'a LiveDisk,
    limit_read: Option<u32>,
    monitor: &'a dyn Monitor,
    stop: &'a Stop,
}

impl DiskPull<'_> {
    fn run(&self, progress: &dyn Progress) -> Result<()> {
        let (mut shown, mut furthest, mut tries) = (0, 0, 0);
        let LiveDisk { disk, path, .. } = self.disk;
        let image = File::open(path).map_err(Error::io("open", path))?;
        let began = Instant::now();
        let pause = || thread::sleep((began.elapsed() / 16).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL));
        loop {
            self.stop.check()?;
            if self.server.ensure()? {
                self.monitor
                    .warn(&format!("the server of {}'s point had ended and was started again", self.machine.name()));
            }
            self.keep_running()?;
            if let Some(job) = self.machine.pull_progress(disk)? {
                if job.done_bytes > furthest {
                    (furthest, tries) = (job.done_bytes, 0);
                }
                if job.done_bytes > shown {
                    progress.advance(job.done_bytes - shown);
                    shown = job.done_bytes;
                }
                begin_writing(&image);
                pause();
                continue;
            }
            if !needs_server(self.machine, Which::Live, disk, self.state)?
                && !needs_server(self.machine, Which::Inactive, disk, self.state)?
            {
                return Ok(());
            }
            tries += 1;
            match self.machine.begin_pull(disk, self.limit_read) {
                Ok(()) if tries > FRUITLESS_TRIES => {
                    return Err(Error::PullFailed { machine: self.state.machine.clone(), disk: disk.clone() });
                }
                Ok(()) => {}
                // The previous job, or the machine, may just be ending.
                Err(error) if tries <= FRUITLESS_TRIES => tracing::debug!("{error}"),
                Err(error) => return Err(error.into()),
            }
            // A job that is just ending is given time to end.
            if tries > 1 { thread::sleep(LONGEST_INTERVAL) } else { pause() }
        }
    }

    /// Resumes a machine that is paused because its point was not served.
    fn keep_running(&self) -> Result<()> {
        match self.machine.state()? {
            MachineState::Off | MachineState::Crashed => {
                Err(Error::LiveRestoreStopped { machine: self.state.machine.clone() })
            }
            MachineState::Paused(PausedReason::IoError) => Ok(self.machine.resume_stopped()?),
            _ => Ok(()),
        }
    }
}
