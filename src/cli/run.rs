//! One invocation of the program.

use crate::cli::output::ClosedPipe;
use std::time::Instant;

/// One invocation of the program.
#[derive(Debug)]
pub(crate) struct Run {
    /// Its id, which is in every line of the log.
    pub(crate) id: String,
    pub(crate) command: &'static str,
    pub(crate) began: Instant,
    /// Whether it is logged: it changes or verifies something.
    pub(crate) keeps_log: bool,
}

impl Run {
    pub(super) fn begin(command: &'static str, effect: ClosedPipe) -> Run {
        let keeps_log = (effect == ClosedPipe::Changes && command != "man") || command == "verify";
        Run { id: format!("{:08x}", rand::random::<u32>()), command, began: Instant::now(), keeps_log }
    }
}
