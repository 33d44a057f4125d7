//! Ctrl-C and friends: the first asks for an orderly end.

use crate::cli::failure::exit_code::ExitCode;
use crate::ops::Stop;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// Which signal came, for the exit code.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(|| Arc::new(AtomicUsize::new(0)));

/// Raises `stop` at SIGINT and SIGTERM from now on. SIGHUP does not end a run: `restic unlock` sends it to see whether
/// the holder of a lock lives. Nor does SIGXFSZ: to write a file beyond the limit of `ulimit -f` fails instead.
pub(crate) fn install(stop: &Stop) -> std::io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(signal, Arc::clone(&SIGNAL), signal as usize)?;
        signal_hook::flag::register(signal, stop.flag())?;
    }
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    Ok(())
}

/// What an interrupted command exits with; none if no signal came.
pub(crate) fn exit_code() -> Option<ExitCode> {
    match SIGNAL.load(Ordering::Relaxed) as i32 {
        0 => None,
        SIGTERM => Some(ExitCode::Terminated),
        _ => Some(ExitCode::Interrupted),
    }
}
