//! Hints name commands, and a pasted command must work: with the repository, the connection and the configuration of
//! the command that failed.
//!
//! A hint is written with the command alone (`run 'kvmb points -r REPO' to list them`). Before it is shown, every
//! command in it gets the options of this invocation that it supports and does not have, and placeholders with known
//! values are replaced. Variables and the configuration need no option: they still apply when the command is pasted.

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

/// The options that a hint repeats: their ids in clap, and their spelling.
const REPEATED: [(&str, &str); 7] = [
    ("config", "--config"),
    ("connect", "-c"),
    ("repo", "-r"),
    ("password_file", "--password-file"),
    ("ssh_password_file", "--ssh-password-file"),
    ("cacert", "--cacert"),
    ("tls_client_cert", "--tls-client-cert"),
];

/// Placeholders for a machine's name.
const MACHINE_PLACEHOLDERS: [&str; 2] = ["MACHINE", "VM"];

/// An option of a command: its id in clap, and its spellings.
type KnownOption = (String, Vec<String>);

/// The arguments of this invocation.
#[derive(Debug, Clone)]
pub struct Invocation {
    grammar: fn() -> Command,
    given: Vec<(&'static str, String)>,
    /// The connection for virsh, which does not read the configuration of kvmb.
    virsh: Option<String>,
}

static INVOCATION: OnceLock<Invocation> = OnceLock::new();

/// Sets the arguments of this invocation, once. Before that, hints are shown as written.
pub(crate) fn set_invocation(invocation: Invocation) {
    let _ = INVOCATION.set(invocation);
}

/// Returns a hint whose commands can be pasted. `machine` is the machine that it refers to.
pub(crate) fn pasteable(hint: &str, machine: Option<&str>) -> String {
    match INVOCATION.get() {
        Some(invocation) => invocation.complete(hint, machine),
        None => hint.to_owned(),
    }
}

impl Invocation {
    /// Extracts the arguments of a command line.
    pub fn new(grammar: fn() -> Command, matches: &ArgMatches) -> Invocation {
        let mut levels = vec![matches];
        while let Some((_, below)) = levels.last().and_then(|level| level.subcommand()) {
            levels.push(below);
        }
        let value = |id: &str, is_wanted: fn(ValueSource) -> bool| {
            levels.iter().rev().find_map(|level| {
                level.try_contains_id(id).ok().filter(|known| *known)?;
                level.value_source(id).filter(|source| is_wanted(*source))?;
                Some(level.get_raw(id)?.next()?.to_string_lossy().into_owned())
            })
        };
        let given = |id: &str| value(id, |source| source == ValueSource::CommandLine);
        let pair = |(id, _): &(&'static str, &str)| Some((*id, given(id)?));
        Invocation { grammar, given: REPEATED.iter().filter_map(pair).collect(), virsh: value("connect", |_| true) }
    }

    /// Completes the commands of a hint.
    pub fn complete(&self, hint: &str, machine: Option<&str>) -> String {
        let mut text = String::new();
        let mut end = 0;
        for place in commands(hint) {
            text.push_str(&hint[end..place.start]);
            let stages = hint[place.clone()].split(" | ").map(|stage| self.complete_command(stage, machine));
            text.push_str(&stages.collect::<Vec<_>>().join(" | "));
            end = place.end;
        }
        text + &hint[end..]
    }

    fn complete_command(&self, command: &str, machine: Option<&str>) -> String {
        let mut command = command.to_owned();
        if let Some(machine) = machine {
            for placeholder in MACHINE_PLACEHOLDERS {
                command = replace_word(&command, placeholder, &quoted(machine));
            }
        }
        if let Some(rest) = command.strip_prefix("virsh ") {
            let connect = self.virsh.as_ref().filter(|_| !has_option(rest, &["-c", "--connect"]));
            return connect.map_or(command.clone(), |uri| format!("virsh -c {} {rest}", quoted(uri)));
        }
        // Without a value there is nothing to repeat: the default is right.
        command = command.replace(" -r REPO", "");
        let Some((head, accepted)) = self.subcommand(&command) else { return command };
        let rest = command[head..].to_owned();
        command.truncate(head);
        for (id, flag) in REPEATED {
            let Some((_, value)) = self.given.iter().find(|(given, _)| *given == id) else { continue };
            let Some((_, forms)) = accepted.iter().find(|(known, _)| known == id) else { continue };
            let forms: Vec<&str> = forms.iter().map(String::as_str).collect();
            if !has_option(&rest, &forms) {
                command.push_str(&format!(" {flag} {}", quoted(value)));
            }
        }
        command + &rest
    }

    /// Returns where the words of the subcommand end, and its options with their spellings.
    fn subcommand(&self, command: &str) -> Option<(usize, Vec<KnownOption>)> {
        let mut grammar = (self.grammar)();
        grammar.build();
        let mut at = &grammar;
        let mut end = "kvmb".len();
        for word in command.get(end..)?.split(' ').skip(1) {
            let Some(below) = at.find_subcommand(word) else { break };
            at = below;
            end += 1 + word.len();
        }
        let forms = |arg: &clap::Arg| {
            let short = arg.get_short().map(|short| format!("-{short}"));
            let long = arg.get_long().map(|long| format!("--{long}"));
            (arg.get_id().to_string(), short.into_iter().chain(long).collect())
        };
        (end > "kvmb".len()).then(|| (end, at.get_arguments().map(forms).collect()))
    }
}

/// Returns the ranges of kvmb and virsh commands in a hint: in quotes, or from a colon or the beginning to a semicolon
/// or the end.
pub fn commands(hint: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for program in ["kvmb ", "virsh "] {
        for (start, _) in hint.match_indices(program) {
            let before = &hint[..start];
            let end = match before.chars().next_back() {
                Some('\'') => closing_quote(hint, start),
                None => open_end(hint, start),
                Some(_) if before.ends_with(": ") => open_end(hint, start),
                Some(_) => continue,
            };
            if !found.iter().any(|other| other.contains(&start)) {
                found.push(start..end);
            }
        }
    }
    found.sort_by_key(|place| place.start);
    found
}

/// Returns the end of a quoted command. A quote after a blank or `=` starts a quoted word of the command.
fn closing_quote(hint: &str, start: usize) -> usize {
    let mut word_quote = None;
    let mut before = ' ';
    for (at, c) in hint[start..].char_indices() {
        match (word_quote, c) {
            (Some(open), c) if c == open => word_quote = None,
            (Some(_), _) => {}
            (None, '"') => word_quote = Some('"'),
            (None, '\'') if before == ' ' || before == '=' => word_quote = Some('\''),
            (None, '\'') => return start + at,
            (None, _) => {}
        }
        before = c;
    }
    hint.len()
}

/// Returns the end of an unquoted command.
fn open_end(hint: &str, start: usize) -> usize {
    let end = |mark: &str| hint[start..].find(mark).map(|at| start + at);
    [";", ", or "].into_iter().filter_map(end).min().unwrap_or(hint.len())
}

fn has_option(words: &str, forms: &[&str]) -> bool {
    words.split(' ').any(|word| forms.iter().any(|form| word == *form || word.starts_with(&format!("{form}="))))
}

fn replace_word(text: &str, word: &str, by: &str) -> String {
    text.split(' ').map(|part| if part == word { by } else { part }).collect::<Vec<_>>().join(" ")
}

/// Quotes a word for a shell, with double quotes if possible: commands in hints are enclosed in single quotes. A word
/// with a NUL byte cannot come from a command line.
fn quoted(word: &str) -> Cow<'_, str> {
    match shlex::try_quote(word) {
        Ok(Cow::Owned(_)) if !word.contains(['"', '$', '`', '\\', '!']) => Cow::Owned(format!("\"{word}\"")),
        Ok(quoted) => quoted,
        Err(_) => Cow::Borrowed(word),
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::failure::hint::*;

    fn completed(line: &[&str], hint: &str) -> String {
        let matches = crate::cli::command().try_get_matches_from(line).unwrap();
        Invocation::new(crate::cli::command, &matches).complete(hint, Some("it's"))
    }

    #[test]
    fn commands_in_hints_get_their_missing_options() {
        let line = ["kvmb", "-c", "qemu:///session", "points", "-r", "/my backups", "--config", "/c.json"];
        assert_eq!(
            completed(&line, "run 'kvmb verify --all' to see, or 'kvmb points -r REPO'; see kvmb"),
            "run 'kvmb verify --config /c.json -c qemu:///session -r \"/my backups\" --all' to see, or 'kvmb points \
             --config /c.json -c qemu:///session -r \"/my backups\"'; see kvmb"
        );
        // A shell would expand this.
        let dollar = completed(&["kvmb", "points", "-r", "/my $HOME"], "kvmb points");
        assert_eq!(dollar, "kvmb points -r '/my $HOME'");
        assert_eq!(completed(&line, "kvmb points -r /other").matches("-r").count(), 1);
        // This command has no repository.
        let disks = completed(&line, "run 'kvmb disks MACHINE' to see");
        assert_eq!(disks, "run 'kvmb disks --config /c.json -c qemu:///session \"it's\"' to see");
        assert_eq!(
            completed(&line, "resume it: virsh resume MACHINE"),
            "resume it: virsh -c qemu:///session resume \"it's\""
        );
    }

    #[test]
    fn repo_placeholder_is_dropped_without_a_repo_option() {
        let hint = "run 'kvmb points -r REPO' to list the points; 'kvmb unlock' removes stale locks";
        assert_eq!(completed(&["kvmb", "points"], hint), hint.replace(" -r REPO", ""));
    }

    #[test]
    fn commands_with_quoted_arguments_are_found_in_hints() {
        let hint = "run 'kvmb backup 'a b' -r \"it's\"' now; then: kvmb vms; not kvmb alone, or virsh";
        let found: Vec<&str> = commands(hint).into_iter().map(|place| &hint[place]).collect();
        assert_eq!(found, ["kvmb backup 'a b' -r \"it's\"", "kvmb vms"]);
    }
}
