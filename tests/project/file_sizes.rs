//! Files and lines have a readable size: at most 700 lines of at most 120 columns.
//!
//! A row of a table, a drawing and data (XML, JSON, shell) in a raw string may be wider.

use std::fs;
use std::path::{Path, PathBuf};

use crate::architecture::{assert_none, root};

const MOST_LINES: usize = 700;
const MOST_COLUMNS: usize = 120;

/// The beginning and the end of raw strings.
const RAW_STRINGS: [(&str, &str); 2] = [(" r#\"", "\"#"), (" r\"", "\"")];

#[test]
fn no_file_and_no_line_is_too_long() {
    let files = rust_files(&root());
    assert!(files.len() > 300, "only {} files found", files.len());
    let mut faults = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("UTF-8");
        let name = file.strip_prefix(root()).expect("below the root").display();
        let count = text.lines().count();
        if count > MOST_LINES {
            faults.push(format!("{name}: {count} lines; make it two files, each with a subject"));
        }
        for number in wide_lines(&text) {
            faults.push(format!("{name}:{number}: more than {MOST_COLUMNS} columns"));
        }
    }
    assert_none(&faults);
}

/// Code in the documentation is never compiled, because Cargo.toml disables documentation tests.
#[test]
fn blocks_in_doc_comments_are_marked_as_text() {
    let mut faults = Vec::new();
    for file in rust_files(&root().join("src")) {
        let (text, mut in_block) = (fs::read_to_string(&file).expect("UTF-8"), false);
        for (index, line) in text.lines().enumerate() {
            let trimmed = line.trim_start();
            let comment = trimmed.strip_prefix("//!").or(trimmed.strip_prefix("///")).map(str::trim);
            if let Some(kind) = comment.and_then(|comment| comment.strip_prefix("```")) {
                if !in_block && kind != "text" {
                    faults.push(format!("{}:{}: a block that is not «text»", file.display(), index + 1));
                }
                in_block = !in_block;
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn tables_drawings_and_data_may_be_wide() {
    let wide = "x".repeat(MOST_COLUMNS + 1);
    let counted = |line: &str| wide_lines(line).len();
    assert_eq!(counted(&format!("    // {wide}")), 1);
    assert_eq!(counted(&format!("let it = \"{wide}\";")), 1);
    assert_eq!(counted(&format!("//! | {wide} |")), 0);
    assert_eq!(counted(&format!("let it = r#\"{wide}\"#;")), 0);
    assert_eq!(counted(&format!("//! ```text\n//! {wide}\n//! ```\n//! {wide}")), 1);
    assert_eq!(counted(&format!("let it = r\"\n<disk {wide}/>\n\";\n// {wide}")), 1);
}

/// Returns the numbers of the lines that are too wide.
fn wide_lines(text: &str) -> Vec<usize> {
    let (mut found, mut in_drawing) = (Vec::new(), false);
    // The end of the raw string that contains this line.
    let mut closing: Option<&str> = None;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let comment = trimmed.strip_prefix("//!").or(trimmed.strip_prefix("///")).map(str::trim_start);
        if comment.is_some_and(|comment| comment.starts_with("```")) {
            in_drawing = !in_drawing;
        }
        let is_row = comment.is_some_and(|comment| comment.starts_with('|'));
        let opened = RAW_STRINGS.iter().find_map(|(open, close)| Some((line.rsplit_once(open)?.1, *close)));
        let is_free = is_row || in_drawing || closing.is_some() || opened.is_some();
        if line.chars().count() > MOST_COLUMNS && !is_free {
            found.push(index + 1);
        }
        closing = match (opened, closing) {
            (Some((rest, close)), _) => (!rest.contains(close)).then_some(close),
            (None, Some(close)) => (!trimmed.contains(close)).then_some(close),
            (None, None) => None,
        };
    }
    found
}

/// Returns every source file of the project, without build results.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable")) {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            if name != "target" && name != ".git" && name != "corpus" {
                found.extend(rust_files(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
