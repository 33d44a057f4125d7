//! Handling of Ctrl-C and other signals: the first one requests an orderly end.

use crate::cli::failure::exit_code::ExitCode;
use crate::ops::Stop;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// The signal that was received, for the exit code.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(|| Arc::new(AtomicUsize::new(0)));

/// Makes SIGINT and SIGTERM raise `stop` from now on. SIGHUP does not end a run, because `restic unlock` sends it to
/// check whether the holder of a lock is alive. Nor does SIGXFSZ: writing beyond the limit of `ulimit -f` fails
/// instead.
pub(crate) fn install(stop: &Stop) -> std::io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(signal, Arc::clone(&SIGNAL), signal as usize)?;
        signal_hook::flag::register(signal, stop.flag())?;
    }
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    Ok(())
}

/// Returns the exit code of an interrupted command; None if there was no signal.
pub(crate) fn exit_code() -> Option<ExitCode> {
    match SIGNAL.load(Ordering::Relaxed) as i32 {
        0 => None,
        SIGTERM => Some(ExitCode::Terminated),
        _ => Some(ExitCode::Interrupted),
    }
}
