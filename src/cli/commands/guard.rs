//! `kvmb guard`, which kvmb starts by itself: the guard of a capture.

use crate::capture::detach_from_terminal;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::ops::guard::{Errand, do_errand, run};

/// Guard a capture: renew its lease while it is read, end it when the scratch space runs low or the lease is over.
///
/// kvmb starts this by itself for each capture. It ends with the capture.
#[derive(Debug, clap::Args)]
pub(crate) struct GuardArgs {
    /// The capture.
    #[arg(value_name = "CAPTURE")]
    capture: String,

    /// End its job and exit.
    #[arg(long, conflicts_with = "release")]
    drain: bool,

    /// End it for good and exit.
    #[arg(long)]
    release: bool,
}

impl GuardArgs {
    pub(crate) fn run(self, context: &Context) -> Result<(), CliError> {
        let runtime = context.runtime()?;
        match (self.drain, self.release) {
            (true, _) => do_errand(&runtime, &self.capture, Errand::Drain)?,
            (_, true) => do_errand(&runtime, &self.capture, Errand::Release)?,
            (false, false) => {
                detach_from_terminal();
                run(&runtime, &self.capture, &context.stop)?;
            }
        }
        Ok(())
    }
}
