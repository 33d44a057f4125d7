//! The program's texts, pinned: a changed word is a changed file that a reviewer sees.
//!
//! The long help texts are pinned by the manual pages in man/; the short ones and the error messages, here. After a
//! change, run `make generated`, or the tests of this file with KVMB_UPDATE_SNAPSHOTS=1.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::messages;
use chrono::{Local, TimeZone};
use kvmb::cli::failure::CliError;
use kvmb::cli::table::{self, TableOptions, View};
use kvmb::record::Record;
use serde_json::Value;

/// Compares a text with the file that pins it, or writes that file.
#[track_caller]
fn assert_pinned(name: &str, text: &str) {
    assert_file(&format!("tests/project/snapshots/{name}"), text);
}

/// The same for any file of the source tree.
#[track_caller]
fn assert_file(path: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
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

/// Returns the output of `kvmb … -h`.
fn short_help(words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvmb"));
    let output = command.args(words).arg("-h").env_remove("COLUMNS").output().expect("kvmb");
    assert!(output.status.success(), "kvmb {} -h: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Adds the help of a command and of its subcommands.
fn collect(command: &clap::Command, words: &[&str], pages: &mut BTreeMap<String, String>) {
    if !command.is_hide_set() {
        pages.insert(words.join(" "), short_help(words));
        for below in command.get_subcommands() {
            collect(below, &[words, &[below.get_name()]].concat(), pages);
        }
    }
}

#[test]
fn short_help_texts_match_the_snapshot() {
    let mut pages = BTreeMap::new();
    collect(&kvmb::cli::command(), &[], &mut pages);
    assert!(pages.len() > 25, "{:?}", pages.keys());
    // Options of every command are shown once, with the program itself.
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
fn error_messages_codes_and_hints_match_the_snapshot() {
    let errors = messages::of_the_command_line();
    let text = |error: &CliError| {
        let hint = error.hint.as_ref().map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
        format!("{}: {}\n{hint}", error.code.word(), error.message)
    };
    assert_pinned("messages.txt", &errors.iter().map(text).collect::<String>());
}

#[test]
fn tables_match_the_snapshots_in_narrow_and_wide_terminals() {
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

/// Returns the kind of a value according to a JSON Schema.
fn kind_of(schema: &Value) -> String {
    let one = |name: &str| match (name, schema["format"].as_str()) {
        ("string", Some("date-time")) => "time".to_owned(),
        ("array", _) => format!("list of {}", kind_of(&schema["items"])),
        ("boolean", _) => "true or false".to_owned(),
        (name, _) => name.to_owned(),
    };
    match &schema["type"] {
        Value::String(name) => one(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null").map(one).unwrap(),
        _ if schema.get("oneOf").or(schema.get("anyOf")).is_some() => "object".to_owned(),
        _ => "any".to_owned(),
    }
}

/// Writes the table of the fields of an object, and of nested objects.
fn fields_table(schema: &Value, page: &mut String) {
    page.push_str("| field | kind | meaning |\n| --- | --- | --- |\n");
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let words = |field: &Value| field["description"].as_str().unwrap_or_default().replace('\n', " ");
    let mut below = Vec::new();
    for (name, field) in schema["properties"].as_object().expect("fields") {
        if let Some(fixed) = field["const"].as_str() {
            page.push_str(&format!("| `{name}` | string | `{fixed}` |\n"));
            continue;
        }
        let optional = if required.contains(&name.as_str()) { "" } else { ", may be missing" };
        page.push_str(&format!("| `{name}` | {}{optional} | {} |\n", kind_of(field), words(field)));
        let objects = |field: &Value| {
            let alternatives = field.get("oneOf").or(field.get("anyOf")).and_then(Value::as_array);
            let all = alternatives.cloned().unwrap_or_else(|| vec![field.clone()]);
            all.into_iter().filter(|schema| schema.get("properties").is_some()).collect::<Vec<_>>()
        };
        let inner = [objects(field), objects(&field["items"])].concat();
        below.extend(inner.into_iter().map(|schema| (name.clone(), schema)));
    }
    for (name, schema) in below {
        page.push_str(&format!("\n`{name}`: {}\n\n", words(&schema)));
        fields_table(&schema, page);
    }
}

/// The beginning of docs/records.md.
const RECORDS_PAGE: &str = "\
# Records

*[README](../README.md) · [Reference](reference.md)*

Every command prints records: JSON objects, one a line, with `type` first. Sizes end in `_bytes`; times end in
`_at` and are RFC 3339 with offset. A reader ignores fields and types that it does not know. `kvmb schema records`
prints the JSON Schema of this page, which is made from it.
";

#[test]
fn records_page_matches_the_json_schema() {
    let output = Command::new(env!("CARGO_BIN_EXE_kvmb")).args(["schema", "records"]).output().expect("kvmb");
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut page = RECORDS_PAGE.to_owned();
    for (kind, schema) in schema["definitions"].as_object().expect("definitions") {
        let words = schema["description"].as_str().expect("words").replace("\n\n", "\n").replace('\n', "\n\n");
        page.push_str(&format!("\n## {kind}\n\n{words}\n\n"));
        fields_table(schema, &mut page);
    }
    assert_file("docs/records.md", &page);
}
