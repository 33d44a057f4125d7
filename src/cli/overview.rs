//! The commands in groups, as shown by `kvmb` and `kvmb --help`.

use clap::{Arg, Command};

/// The groups. Commands that are not listed belong to the last one.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "Everyday commands",
        &[
            "backup", "restore", "points", "verify", "drill", "status", "ui", "jobs", "log", "files", "serve", "mount",
            "pin",
        ],
    ),
    ("Repository commands", &["init", "stats", "prune", "unlock", "key"]),
    ("Set-up commands", &["doctor", "remote", "schedule", "config", "schema", "completions", "man"]),
    ("Pipeline commands", &["vms", "disks", "snapshot", "hash", "push", "release"]),
];

/// Commands that never use libvirt themselves.
const WITHOUT_LIBVIRT: [&str; 13] = [
    "files",
    "hash",
    "push",
    "points",
    "pin",
    "unlock",
    "init",
    "key",
    "stats",
    "remote",
    "schema",
    "completions",
    "man",
];

/// Commands that do not print records and keep no log.
const WITHOUT_RECORDS: [&str; 2] = ["completions", "schema"];

/// Maximum line width of the overview.
const WIDTH: usize = 79;

/// The column at which descriptions begin.
const INDENT: usize = 15;

/// Returns the command line with its commands in groups, and hides general options where they have no effect. Those are
/// still accepted, so that a script can pass the same options to every command.
pub(crate) fn arranged(command: Command) -> Command {
    let globals: Vec<Arg> = command.get_arguments().map(|arg| arg.clone().hide(true)).collect();
    let command = command.mut_subcommands(|below| {
        let hidden = hidden_globals(below.get_name());
        let is_meant = |arg: &&Arg| hidden.contains(&arg.get_id().as_str());
        below.args(globals.iter().filter(is_meant).cloned().collect::<Vec<_>>())
    });
    let groups = groups(&command);
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}\n{HEAD}Global options:{END}\n\
         {{options}}{{after-help}}"
    );
    command.help_template(template)
}

/// Returns what `kvmb` without arguments prints.
pub(crate) fn overview(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    format!(
        "{about}\n\n{HEAD}Usage:{END} {BOLD}kvmb{END} COMMAND [OPTIONS] [ARGUMENTS]\n\n{}\n\
         Run 'kvmb COMMAND --help' to read about a command, 'kvmb --help' for the\n\
         options of all commands, and 'man kvmb' for the manual.\n",
        groups(command)
    )
}

const HEAD: &str = "\u{1b}[1m\u{1b}[4m";
const BOLD: &str = "\u{1b}[1m";
const END: &str = "\u{1b}[0m";

fn groups(command: &Command) -> String {
    let visible: Vec<&Command> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    let is_grouped = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let last = GROUPS.len() - 1;
    let mut text = String::new();
    for (number, (head, names)) in GROUPS.iter().enumerate() {
        text.push_str(&format!("{HEAD}{head}:{END}\n"));
        let named = names.iter().filter_map(|name| visible.iter().find(|command| command.get_name() == *name));
        let others = visible.iter().filter(|command| number == last && !is_grouped(command.get_name()));
        named.chain(others).for_each(|command| text.push_str(&line(command)));
        if number < last {
            text.push('\n');
        }
    }
    text
}

/// Returns the line of a command, wrapped with an indent.
fn line(command: &Command) -> String {
    let name = command.get_name();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut text = format!("  {BOLD}{name}{END}{:1$}", "", INDENT.saturating_sub(2 + name.len()));
    let mut column = INDENT;
    for (number, word) in about.split(' ').enumerate() {
        if number > 0 && column + 1 + word.chars().count() > WIDTH {
            text.push_str(&format!("\n{:INDENT$}", ""));
            column = INDENT;
        } else if number > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.chars().count();
    }
    text.push('\n');
    text
}

/// Returns the general options that have no effect on a command and its subcommands.
fn hidden_globals(name: &str) -> Vec<&'static str> {
    let mut hidden = Vec::new();
    if WITHOUT_LIBVIRT.contains(&name) {
        hidden.push("connect");
    }
    if WITHOUT_RECORDS.contains(&name) {
        hidden.extend(["output", "json", "config", "log_file", "log_format", "quiet", "verbose"]);
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_is_in_the_overview_once() {
        let command = crate::cli::command();
        let text = overview(&command);
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            let start = format!("\n  {BOLD}{}{END} ", below.get_name());
            assert_eq!(text.matches(&start).count(), 1, "{}: {text}", below.get_name());
        }
        let plain = text.replace(HEAD, "").replace(BOLD, "").replace(END, "");
        assert!(plain.lines().all(|line| line.chars().count() <= 80), "{plain}");
    }

    #[test]
    fn hidden_option_is_accepted() {
        let matches = crate::cli::command().try_get_matches_from(["kvmb", "points", "-c", "qemu:///system"]).unwrap();
        assert_eq!(matches.get_one::<String>("connect").map(String::as_str), Some("qemu:///system"));
    }
}
