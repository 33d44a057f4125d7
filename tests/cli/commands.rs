//! All commands: each has a description and an example, has a dry run if it changes something, and suggests corrections
//! for misspelt words.

// A test panics if a result is not what it expects.

use std::collections::BTreeSet;

use crate::support::{Disk, Env};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// The commands that change nothing; all others have --dry-run.
const READERS: [&str; 24] = [
    "drill",
    "schema records",
    "stats",
    "files ls",
    "files find",
    "files cat",
    "files tar",
    "mount",
    "vms",
    "disks",
    "hash",
    "verify",
    "points",
    "doctor",
    "completions",
    "config show",
    "config check",
    "config schema",
    "schedule show",
    "remote test",
    "log",
    "jobs show",
    "schedule describe",
    "serve",
];

/// Returns every command that can be run, with its words.
fn leaves() -> Vec<(Vec<String>, Command)> {
    let mut root = kvmb::cli::command();
    root.build();
    let mut open: Vec<(Vec<String>, Command)> = vec![(Vec::new(), root)];
    let mut leaves = Vec::new();
    while let Some((words, command)) = open.pop() {
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            open.push(([words.clone(), vec![below.get_name().to_owned()]].concat(), below.clone()));
        }
        if !command.has_subcommands() {
            leaves.push((words, command));
        }
    }
    leaves
}

#[test]
fn every_command_has_help_and_an_example() {
    let leaves = leaves();
    assert!(leaves.len() > 12, "{leaves:?}");
    for (words, command) in leaves {
        let name = words.join(" ");
        assert!(command.get_about().is_some(), "kvmb {name} says nothing");
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(examples.contains(&format!("kvmb {name}")), "kvmb {name} has no example of itself");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            assert!(argument.get_help().is_some(), "kvmb {name}: {} has no words", argument.get_id());
        }
    }
}

#[test]
fn dry_run_exists_exactly_on_commands_that_change_something() {
    for (words, command) in leaves() {
        let name = words.join(" ");
        let can = command.get_arguments().any(|argument| argument.get_long() == Some("dry-run"));
        let reads = READERS.contains(&name.as_str());
        assert_eq!(
            can, !reads,
            "kvmb {name}: --dry-run is for what changes something, and only for that (see READERS)"
        );
    }
}

/// Swaps the last two adjacent letters that differ.
fn misspelt(word: &str) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    let last = (1..letters.len()).rev().find(|at| letters[at - 1] != letters[*at]).expect("two letters");
    letters.swap(last - 1, last);
    letters.into_iter().collect()
}

/// Returns clap's suggestions for an invalid command line.
fn suggestions(words: &[&str]) -> (ErrorKind, Vec<String>) {
    let error = kvmb::cli::command().try_get_matches_from(words).unwrap_err();
    let mut all = Vec::new();
    for (kind, value) in error.context() {
        match (kind, value) {
            (ContextKind::SuggestedArg | ContextKind::SuggestedSubcommand, ContextValue::String(word)) => {
                all.push(word.clone());
            }
            (ContextKind::SuggestedArg | ContextKind::SuggestedSubcommand, ContextValue::Strings(words)) => {
                all.extend(words.clone());
            }
            _ => {}
        }
    }
    (error.kind(), all)
}

#[test]
fn misspelt_commands_and_flags_get_suggestions() {
    for (words, command) in leaves() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (last, before) = words.split_last().unwrap();
        let wrong = misspelt(last);
        let (kind, suggested) = suggestions(&[&["kvmb"], before, &[wrong.as_str()]].concat());
        assert_eq!(kind, ErrorKind::InvalidSubcommand, "kvmb {wrong}");
        // Three letters in another order are too ambiguous.
        assert!(last.len() < 4 || suggested.contains(&(*last).to_owned()), "kvmb {wrong}: {suggested:?}");
        let known: BTreeSet<&str> = command.get_arguments().filter_map(|argument| argument.get_long()).collect();
        for argument in command.get_arguments().filter(|argument| !matches!(argument.get_action(), ArgAction::Help)) {
            let Some(long) = argument.get_long().filter(|long| long.len() > 3) else { continue };
            let wrong = misspelt(long);
            if known.contains(wrong.as_str()) || wrong == long {
                continue;
            }
            let flag = format!("--{wrong}");
            let (kind, suggested) = suggestions(&[&["kvmb"], &words[..], &[flag.as_str()]].concat());
            assert_eq!(kind, ErrorKind::UnknownArgument, "kvmb {} {flag}", words.join(" "));
            assert!(
                suggested.iter().any(|word| word.contains(&format!("--{long}"))),
                "{words:?} {flag}: {suggested:?}"
            );
        }
    }
}

#[test]
fn tip_for_a_value_that_begins_with_a_hyphen_works() {
    let env = Env::new("hyphen");
    let tip = "to pass '-x' as the value of '--as', use '--as=-x'";
    env.kvmb(["restore", "vm1", "--as", "-x", "-r", "/none"]).run().assert_code(2).assert_stderr_has(tip);
    env.kvmb(["restore", "vm1", "--as=-x", "-r", "/none"]).run().assert_code(1).assert_stderr_has("no repository");
    env.kvmb(["vms", "-x"]).run().assert_code(2).assert_stderr_has("use '-- -x'");
    let after_flag = env.kvmb(["restore", "vm1", "--start", "-x"]).run().assert_code(2);
    assert!(!after_flag.stderr().contains("--start="), "{after_flag}");
}

#[test]
fn misspelt_machine_names_get_suggestions() {
    let env = Env::new("typo");
    env.machine("web-1").disk(Disk::raw(MIB)).define();
    env.sh("kvmb init -r $R -q && kvmb backup web-1 -r $R -q").run().assert_ok();
    for script in [
        "kvmb disks wbe-1",
        "kvmb backup wbe-1 -r $R",
        "kvmb points wbe-1 -r $R",
        "kvmb verify wbe-1@latest -r $R",
        "kvmb restore web1 -r $R",
    ] {
        let output = env.sh(script).run().assert_code(1).assert_stderr_has("similar: web-1");
        assert_eq!(output.record_of("failure")["code"], "not_found", "{output}");
    }
    // No similar names are suggested if the name was correct.
    let output = env.sh("kvmb restore web-1@2001-01-01 -r $R").run().assert_code(1);
    assert!(!output.stderr().contains("; similar"), "{output}");
}

#[test]
fn dry_run_pipe_reports_its_actions_and_leaves_nothing() {
    let env = Env::new("rehearsal");
    env.machine("vm1").disk(Disk::qcow2(MIB)).disk(Disk::raw(MIB)).start_paused();
    env.sh("kvmb init -r $R -q").run().assert_ok();
    let rehearsed = |script: &str| env.sh(script).run().assert_ok().record_of("action");
    let action = rehearsed("kvmb snapshot vm1 --exclude-disk vdb --dry-run");
    assert_eq!(
        (&action["action"], &action["changed"], &action["dry_run"]),
        (&json!("snapshot"), &json!(true), &json!(true))
    );
    assert_eq!(action["disks"], json!(["vda"]));
    assert_eq!(action["reason"], "1 disk would be captured");
    env.assert_nothing_left();
    let action = rehearsed("kvmb snapshot vm1 -r $R | kvmb push --dry-run -r $R | kvmb release");
    assert_eq!((&action["action"], &action["target"]), (&json!("push"), &json!("vm1")));
    assert_eq!(action["disks"], json!(["vda", "vdb"]));
    assert_eq!(env.sh("kvmb points -r $R").run().assert_ok().records().len(), 0);
    // Its capture is closed, and its checkpoint deleted.
    env.assert_nothing_left();
    // A dry run also reports what cannot be stored.
    let output = env.sh("kvmb snapshot vm1 -r $R | head -n 1 | kvmb push --dry-run -r $R | kvmb release").run();
    assert_eq!(output.assert_code(1).record_of("failure")["code"], "incomplete");
    env.assert_nothing_left();
}

#[test]
fn times_in_dst_gaps_and_overlaps_resolve_to_the_right_instant() {
    let env = Env::new("clocks");
    env.sh("kvmb init -r $R -q").run().assert_ok();
    // In Paris the hour after two is skipped on 29 March, and occurs twice on 25 October.
    for (time, moment) in [
        ("2026-03-29T01:59", "2026-03-29T01:59:59.999999999+01:00"),
        ("2026-03-29T02:00", "2026-03-29T01:59:59.999999999+01:00"),
        ("2026-03-29T02:30:05", "2026-03-29T01:59:59.999999999+01:00"),
        ("2026-03-29T03:00", "2026-03-29T03:00:59.999999999+02:00"),
        ("2026-10-25T02:00", "2026-10-25T02:00:59.999999999+01:00"),
        ("2026-10-25T02:30", "2026-10-25T02:30:59.999999999+01:00"),
        ("2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00.999999999+02:00"),
        ("2026-10-25T03:00", "2026-10-25T03:00:59.999999999+01:00"),
    ] {
        let name = format!("vm1@{time}");
        let output = env.kvmb(["verify", "-r", &env.repo(), &name]).env("TZ", "Europe/Paris").run().assert_code(1);
        let error = output.record_of("failure")["error"].as_str().unwrap().to_owned();
        assert!(error.contains(&format!("vm1@{moment}")), "{time}: {error}");
    }
}
