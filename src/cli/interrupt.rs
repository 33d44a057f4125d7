//! Ctrl-C and friends: the first asks for an orderly end.

use crate::cli::exit_code::ExitCode;
use crate::ops::Stop;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// Which signal came, for the exit code.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(|| Arc::new(AtomicUsize::new(0)));

/// Raises `stop` at SIGINT, SIGTERM and SIGHUP from now on.
pub fn install(stop: &Stop) -> std::io::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_usize(signal, Arc::clone(&SIGNAL), signal as usize)?;
        signal_hook::flag::register(signal, stop.flag())?;
    }
    Ok(())
}

/// What an interrupted command exits with; none if no signal came.
pub fn exit_code() -> Option<ExitCode> {
    match SIGNAL.load(Ordering::Relaxed) as i32 {
        0 => None,
        SIGTERM | SIGHUP => Some(ExitCode::Terminated),
        _ => Some(ExitCode::Interrupted),
    }
}
