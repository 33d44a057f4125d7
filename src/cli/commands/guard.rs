//! `kvmb guard`, which kvmb starts itself: the guard of a capture, and the supervisor of a live restore.

use crate::capture::detach_from_terminal;
use crate::cli::commands::restore_live::live_folder;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::ops::guard::{Errand, do_errand, run};
use crate::ops::restore::live::supervisor;

/// Guard a capture: renew its lease while it is being read, and close it when the scratch space runs low or the lease
/// expires.
///
/// kvmb starts this process for each capture, and it ends with the capture. With --live, it keeps the point of a live
/// restore available, and ends with the restore.
#[derive(Debug, clap::Args)]
pub(crate) struct GuardArgs {
    /// The capture, or with --live the UUID of the machine.
    #[arg(value_name = "CAPTURE")]
    capture: String,

    /// Guard a live restore.
    #[arg(long, conflicts_with_all = ["drain", "release"])]
    live: bool,

    /// Resume the machine that is waiting for its point, and exit.
    #[arg(long, requires = "live")]
    resume: bool,

    /// End its job and exit.
    #[arg(long, conflicts_with = "release")]
    drain: bool,

    /// End it permanently and exit.
    #[arg(long)]
    release: bool,
}

impl GuardArgs {
    pub(crate) fn run(self, context: &Context) -> Result<(), CliError> {
        let runtime = context.runtime()?;
        if self.live {
            let (folder, stop) = (live_folder()?, &context.stop);
            let connect = |uri: &str| context.open_hypervisor(Some(uri));
            if self.resume {
                supervisor::resume(&folder, &self.capture, &connect, stop)?;
            } else {
                detach_from_terminal();
                supervisor::run(&folder, &runtime, &self.capture, stop)?;
            }
            return Ok(());
        }
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
