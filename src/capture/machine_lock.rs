//! Lets one command at a time open or clean up captures of a machine.

use crate::capture::error::{Error, Result};
use crate::capture::machine::Machine;
use crate::capture::runtime::RuntimeDirs;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::Duration;

/// How long to wait for another command that is busy with the same machine. Opening a capture takes seconds at most.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Serializes opening and clearing captures of one machine.
pub(super) fn lock_machine(runtime: &RuntimeDirs, machine: &Machine) -> Result<File> {
    let path = runtime.machine_lock(machine.uuid());
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    let wait = machine.limits().wait(LOCK_WAIT);
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if !wait.is_over() => {
                wait.check_stop()?;
                thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::BeingOpened { machine: machine.name().to_owned() });
            }
            Err(error) => return Err(Error::io("lock", &path)(error.into())),
        }
    }
}
