//! Completing in a shell: what `KVMB_COMPLETE=SHELL kvmb -- WORDS…` answers.
//!
//! The scripts that `kvmb completions` prints call kvmb back at every press of the key, so that names are those of this moment.
//! Whoever presses it waits for us: every look-up has a bound, and what does not answer, or needs a question or a network, is
//! left out without a word. Nothing is ever printed but candidates.

mod candidates;
mod line;
mod scripts;

pub use candidates::{captures, connections, disk_paths, disks, machine_disks, machines, point_machines, points};

use crate::cli::exit_code::ExitCode;
use crate::cli::output;
use clap_complete::CompleteEnv;
use clap_complete::env::{Fish, Shells};
use std::fs::File;

/// The variable in which the shell's script asks.
pub const VARIABLE: &str = "KVMB_COMPLETE";

/// The shells that scripts are written for.
pub const SHELLS: Shells<'static> = Shells(&[&scripts::BASH, &scripts::ZSH, &Fish]);

/// Answers a shell, if one asks.
pub fn answer() -> Option<ExitCode> {
    std::env::var_os(VARIABLE).filter(|shell| !shell.is_empty() && shell != "0")?;
    // Whatever a library has to say would stand in the middle of the line that is being typed.
    if let Ok(nowhere) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stderr(nowhere);
    }
    crate::capture::quiet_libvirt_log();
    let folder = std::env::current_dir().ok();
    let asked =
        CompleteEnv::with_factory(crate::cli::command).var(VARIABLE).bin("kvmb").completer("kvmb").shells(SHELLS);
    let answered = asked.try_complete(std::env::args_os(), folder.as_deref());
    output::flush();
    Some(if answered.is_ok() { ExitCode::Done } else { ExitCode::Failed })
}
