//! `kvmb completions`

use crate::cli::complete::{SHELLS, VARIABLE};
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use clap::ValueEnum;

/// Generate the shell completion script.
///
/// The names of machines, points and disks are looked up when you press Tab. Packages install the scripts for you.
/// Otherwise, add the line for your shell from the examples to its start-up file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  source <(kvmb completions bash)                          in ~/.bashrc
  source <(kvmb completions zsh)                           in ~/.zshrc, behind compinit
  kvmb completions fish > ~/.config/fish/completions/kvmb.fish")]
pub(crate) struct CompletionsArgs {
    /// Shell.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    fn name(self) -> &'static str {
        match self {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
        }
    }
}

impl CompletionsArgs {
    pub(crate) fn run(self, session: &mut Session) -> Result<(), CliError> {
        let shell = self.shell.name();
        let writer = SHELLS.completer(shell).ok_or_else(|| CliError::failed(format!("{shell} is not known")))?;
        let mut script = Vec::new();
        let written = writer.write_registration(VARIABLE, "kvmb", "kvmb", "kvmb", &mut script);
        written.map_err(|error| CliError::failed(format!("no script for {shell}: {error}")))?;
        session.text(&script);
        Ok(())
    }
}
