//! The command line that is being typed, as far as it can be understood.

use crate::cli::args::global::Global;
use crate::cli::args::repo::RepoArgs;
use crate::cli::settings::{self, Settings};
use clap::{ArgMatches, Args, FromArgMatches};
use std::ffi::OsString;
use std::sync::OnceLock;

/// The whole command line as clap knows it, which is above this: whoever has the shell answered says what it is.
static GRAMMAR: OnceLock<fn() -> clap::Command> = OnceLock::new();

/// Sets what lines are read by.
pub(super) fn set_grammar(grammar: fn() -> clap::Command) {
    // Set once in the life of the process.
    let _ = GRAMMAR.set(grammar);
}

/// What lines are read by.
pub(super) fn grammar() -> Option<fn() -> clap::Command> {
    GRAMMAR.get().copied()
}

/// What stands on the line already.
#[derive(Debug)]
pub(crate) struct CompletionLine {
    matches: ArgMatches,
    settings: Settings,
}

impl CompletionLine {
    /// Reads the words after `--`, but for the one that is being completed: it is no whole word yet.
    pub(crate) fn read() -> Option<CompletionLine> {
        let mut words: Vec<OsString> = std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
        let index = std::env::var("_CLAP_COMPLETE_INDEX").ok().and_then(|index| index.parse().ok());
        words.truncate(index.unwrap_or(words.len().saturating_sub(1)));
        CompletionLine::parse(words)
    }

    fn parse(words: Vec<OsString>) -> Option<CompletionLine> {
        // What is missing is still to be typed.
        let read = |parser: clap::Command| parser.ignore_errors(true).try_get_matches_from(&words).ok();
        let parser = settings::without_empty_variables(grammar()?());
        let first = read(parser.clone())?;
        // One that is refused will be reported when the line is run.
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

    /// The values of an argument, none if the command does not have it.
    pub(crate) fn values(&self, id: &str) -> Vec<String> {
        let values = self.matches.try_get_many::<String>(id);
        values.ok().flatten().map(|values| values.cloned().collect()).unwrap_or_default()
    }

    /// The repository that the line and the environment name.
    pub(crate) fn repo(&self) -> Option<RepoArgs> {
        let known = RepoArgs::augment_args(clap::Command::new("")).get_arguments().all(|arg| {
            // A command without a repository does not know its flags.
            self.matches.try_contains_id(arg.get_id().as_str()).is_ok()
        });
        known.then(|| RepoArgs::from_arg_matches(&self.matches).ok()).flatten()
    }

    /// The global flags, with no question asked of whoever is typing.
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
    fn what_stands_on_the_line_is_understood_before_it_is_whole() {
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
