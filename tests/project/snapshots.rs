//! What the program says, pinned: a change of a word is a change of a file that a reviewer sees.
//!
//! The long help texts are pinned by the manual pages in man/, the short ones and the error messages here. After a
//! change: `make generated`, or KVMB_UPDATE_SNAPSHOTS=1 with the tests of this file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::messages;
use chrono::{Local, TimeZone};
use kvmb::cli::failure::CliError;
use kvmb::cli::table::{self, TableOptions, View};
use kvmb::record::Record;

/// Compares a text with the file that pins it, or writes that file.
#[track_caller]
fn assert_pinned(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/project/snapshots").join(name);
    if std::env::var_os("KVMB_UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, text).expect("write");
        return;
    }
    let pinned = fs::read_to_string(&path).unwrap_or_default();
    let mut differences = Vec::new();
    let (mut old, mut new) = (pinned.lines(), text.lines());
    loop {
        match (old.next(), new.next()) {
            (None, None) => break,
            (old, new) if old == new => {}
            (old, new) => differences.push(format!("- {}\n+ {}", old.unwrap_or("(end)"), new.unwrap_or("(end)"))),
        }
    }
    assert!(
        differences.is_empty(),
        "{} no longer says what the program says; if it should: make generated\n{}",
        path.display(),
        differences[..differences.len().min(10)].join("\n")
    );
}

/// What `kvmb … -h` prints.
fn short_help(words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvmb"));
    let output = command.args(words).arg("-h").env_remove("COLUMNS").output().expect("kvmb");
    assert!(output.status.success(), "kvmb {} -h: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Adds the help of a command and of those below it.
fn collect(command: &clap::Command, words: &[&str], pages: &mut BTreeMap<String, String>) {
    if !command.is_hide_set() {
        pages.insert(words.join(" "), short_help(words));
        for below in command.get_subcommands() {
            collect(below, &[words, &[below.get_name()]].concat(), pages);
        }
    }
}

#[test]
fn the_short_help_texts_are_pinned() {
    let mut pages = BTreeMap::new();
    collect(&kvmb::cli::command(), &[], &mut pages);
    assert!(pages.len() > 25, "{:?}", pages.keys());
    // What every command has is shown once, with the program itself.
    let own = |words: &str, page: &str| match page.split_once("Global options:\n") {
        Some((before, after)) if !words.is_empty() => {
            before.to_owned() + after.split_once("\n\n").map_or("", |(_, rest)| rest)
        }
        _ => page.to_owned(),
    };
    let pages = pages.iter().map(|(words, page)| format!("$ kvmb {words} -h\n{}\n", own(words, page).trim_end()));
    assert_pinned("help.txt", &pages.collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_error_messages_with_their_codes_and_hints_are_pinned() {
    let errors = messages::of_the_command_line();
    let text = |error: &CliError| {
        let hint = error.hint.as_ref().map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
        format!("{}: {}\n{hint}", error.code.word(), error.message)
    };
    assert_pinned("messages.txt", &errors.iter().map(text).collect::<String>());
}

#[test]
fn the_tables_are_pinned_in_narrow_and_wide_terminals() {
    let now = Local.with_ymd_and_hms(2026, 11, 20, 12, 0, 0).unwrap().fixed_offset();
    let records = messages::of_records(now);
    for width in [80, 160] {
        let options = TableOptions { width: Some(width), ..TableOptions::default() };
        let points: Vec<Record> = records.iter().filter(|record| record.kind() == "point").cloned().collect();
        let of_a_backup = table::render(&points, now, TableOptions { view: View::Backup, ..options });
        let text = format!("{}\n{of_a_backup}", table::render(&records, now, options));
        assert_pinned(&format!("tables-{width}.txt"), &text);
    }
}
