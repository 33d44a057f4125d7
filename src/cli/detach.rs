//! Commands that continue in the background: the process forks. The parent waits until the child reports that it is
//! ready, and exits with the child's exit code.
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

/// The pipe through which the parent receives the exit code.
static READY: Mutex<Option<PipeWriter>> = Mutex::new(None);

/// Forks this process, which must have a single thread. The parent gets the child's result so far, with which it should
/// exit.
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
    // The child ended before it was ready.
    let status = waitpid(Some(child), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status());
    let number = status.and_then(|status| u8::try_from(status).ok());
    Ok(Some(number.map_or(Exit::Code(ExitCode::Failed), Exit::from)))
}

/// Reports that the child is ready, and detaches it from the terminal and from the parent's streams.
pub(crate) fn leave_terminal(code: ExitCode) {
    let Some(mut ready) = READY.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // Fails only for a process group leader, which this is not.
    let _ = rustix::process::setsid();
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        // If a stream cannot be replaced, it is kept.
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    // If the parent no longer waits, this does not matter.
    let _ = ready.write_all(&[code as u8]);
}
