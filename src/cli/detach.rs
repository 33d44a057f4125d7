//! Commands that go on in the background: one process becomes two. The first waits until the second says that it is
//! ready, and ends with its exit code.
//!
//! ```text
//! kvmb serve --detach ─ fork ─┬─ waits for the exit code ──────────────── ends
//!                             └─ opens the repository, asks for the password, prints the records, ready ─ serves …
//! ```

use crate::capture::fork;
use crate::cli::failure::exit_code::{Exit, ExitCode};
use rustix::process::{WaitOptions, waitpid};
use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::sync::{Mutex, PoisonError};

/// Where the process that waits gets the exit code.
static READY: Mutex<Option<PipeWriter>> = Mutex::new(None);

/// Makes two processes of this one, which has a single thread; the first gets how the second began, and is to end with
/// it.
pub(crate) fn split() -> io::Result<Option<Exit>> {
    let (mut read_end, write_end) = io::pipe()?;
    let Some(child) = fork()? else {
        drop(read_end);
        *READY.lock().unwrap_or_else(PoisonError::into_inner) = Some(write_end);
        return Ok(None);
    };
    drop(write_end);
    let mut code = [0];
    if read_end.read(&mut code)? == 1 {
        return Ok(Some(Exit::from(code[0])));
    }
    // It has ended before it was ready.
    let status = waitpid(Some(child), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status());
    let number = status.and_then(|status| u8::try_from(status).ok());
    Ok(Some(number.map_or(Exit::Code(ExitCode::Failed), Exit::from)))
}

/// Says that the second process is ready, and leaves the terminal and the pipes of the first.
pub(crate) fn leave_terminal(code: ExitCode) {
    let Some(mut ready) = READY.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // Fails for the leader of a session, which this is not.
    let _ = rustix::process::setsid();
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        // A stream that cannot be replaced stays what it is.
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    // If nobody waits any more, nobody misses it.
    let _ = ready.write_all(&[code as u8]);
}
