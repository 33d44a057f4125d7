//! Answers completion requests of a shell.

use super::{line, scripts};
use crate::cli::failure::exit_code::ExitCode;
use crate::cli::output;
use clap_complete::CompleteEnv;
use clap_complete::env::{Fish, Shells};
use std::fs::File;

/// The variable with which the shell's script requests completions.
pub(crate) const VARIABLE: &str = "KVMB_COMPLETE";

/// The supported shells.
pub(crate) const SHELLS: Shells<'static> = Shells(&[&scripts::BASH, &scripts::ZSH, &Fish]);

/// Answers a completion request, if there is one.
pub(crate) fn answer(grammar: fn() -> clap::Command) -> Option<ExitCode> {
    std::env::var_os(VARIABLE).filter(|shell| !shell.is_empty() && shell != "0")?;
    // Messages of libraries would appear in the line that is being typed.
    if let Ok(nowhere) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stderr(nowhere);
    }
    line::set_grammar(grammar);
    crate::capture::quiet_libvirt_log();
    let folder = std::env::current_dir().ok();
    let asked = CompleteEnv::with_factory(grammar).var(VARIABLE).bin("kvmb").completer("kvmb").shells(SHELLS);
    let answered = asked.try_complete(std::env::args_os(), folder.as_deref());
    output::flush();
    Some(if answered.is_ok() { ExitCode::Done } else { ExitCode::Failed })
}
