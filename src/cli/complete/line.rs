//! The command line that is being typed, parsed as far as possible.

use crate::cli::args::global::Global;
use crate::cli::args::repo::RepoArgs;
use crate::cli::settings::{self, Settings};
use clap::{ArgMatches, Args, FromArgMatches};
use std::ffi::OsString;
use std::sync::OnceLock;

/// The grammar of the command line, which is defined in a higher layer and set by the caller that answers the shell.
static GRAMMAR: OnceLock<fn() -> clap::Command> = OnceLock::new();

/// Sets the grammar.
pub(super) fn set_grammar(grammar: fn() -> clap::Command) {
    // Set only once per process.
    let _ = GRAMMAR.set(grammar);
}

/// Returns the grammar.
pub(super) fn grammar() -> Option<fn() -> clap::Command> {
    GRAMMAR.get().copied()
}

/// The words that are already on the line.
#[derive(Debug)]
pub(crate) struct CompletionLine {
    matches: ArgMatches,
    settings: Settings,
}

impl CompletionLine {
    /// Parses the words after `--`, except the last one, which is still being completed.
    pub(crate) fn read() -> Option<CompletionLine> {
        let mut words: Vec<OsString> = std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
        let index = std::env::var("_CLAP_COMPLETE_INDEX").ok().and_then(|index| index.parse().ok());
        words.truncate(index.unwrap_or(words.len().saturating_sub(1)));
        CompletionLine::parse(words)
    }

    fn parse(words: Vec<OsString>) -> Option<CompletionLine> {
        // Missing arguments are still to be typed.
        let read = |parser: clap::Command| parser.ignore_errors(true).try_get_matches_from(&words).ok();
        let parser = settings::without_empty_variables(grammar()?());
        let first = read(parser.clone())?;
        // An invalid configuration is reported when the line is run.
        let loaded = Global::from_arg_matches(&first).ok()?.load_config().unwrap_or_default();
        let mut matches = read(settings::with_defaults(parser, &loaded))?;
        let settings = Settings::new(loaded, &matches);
        while let Some((_, deeper)) = matches.remove_subcommand() {
            matches = deeper;
        }
        Some(CompletionLine { matches, settings })
    }

    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
    }

    /// Returns the values of an argument; empty if the command does not have it.
    pub(crate) fn values(&self, id: &str) -> Vec<String> {
        let values = self.matches.try_get_many::<String>(id);
        values.ok().flatten().map(|values| values.cloned().collect()).unwrap_or_default()
    }

    /// Returns the repository that the line and the environment name.
    pub(crate) fn repo(&self) -> Option<RepoArgs> {
        let known = RepoArgs::augment_args(clap::Command::new("")).get_arguments().all(|arg| {
            // A command without a repository does not know its flags.
            self.matches.try_contains_id(arg.get_id().as_str()).is_ok()
        });
        known.then(|| RepoArgs::from_arg_matches(&self.matches).ok()).flatten()
    }

    /// Returns the global flags, with prompts disabled.
    pub(crate) fn global(&self) -> Option<Global> {
        let global = Global::from_arg_matches(&self.matches).ok()?;
        Some(Global { quiet: true, ..global })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> CompletionLine {
        set_grammar(crate::cli::command);
        CompletionLine::parse(text.split(' ').map(OsString::from).collect()).unwrap()
    }

    #[test]
    fn incomplete_command_line_is_parsed() {
        let typed = line("kvmb -c qemu:///session restore vm1 -r /backup --password-file /key --disk");
        assert_eq!(typed.values("point"), ["vm1"]);
        let repo = typed.repo().unwrap();
        assert_eq!(repo.repo.as_deref(), Some("/backup"));
        assert_eq!(repo.password_file.as_deref(), Some(std::path::Path::new("/key")));
        let global = typed.global().unwrap();
        assert_eq!(global.connect.as_deref(), Some("qemu:///session"));
        assert!(global.quiet);
        assert!(line("kvmb vms").repo().is_none());
        assert_eq!(line("kvmb key export --repo /backup").repo().unwrap().repo.as_deref(), Some("/backup"));
        assert!(line("kvmb nonsense --nonsense").repo().is_none());
    }
}
