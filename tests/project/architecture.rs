//! Rules that the compiler does not check: which layers may import each other, which code may use the terminal, and
//! where `unsafe` may be.
//!
//! The layers, lowest first; a layer may import only the layers that are listed for it:
//!
//! | layer | may import | why |
//! | --- | --- | --- |
//! | `record`, `nbd` | nothing | independent layers that can be replaced or tested separately |
//! | `storage` | `bounded`, `glob`, `rate_limiter`, `atomic_file`, `direct_file` | another such layer; uploads may be
//! limited |
//! | `glob`, `suggest` | nothing | matching of names and suggestions, the same everywhere |
//! | `filesystems` | `suggest` | it parses hostile bytes, and reads only what it is given |
//! | `confined` | `filesystems` | the process that parses, and its requests |
//! | `units` | nothing | how people write numbers, the same everywhere |
//! | `clock` | nothing | local time, the same for schedules and for names of points |
//! | `atomic_file`, `direct_file` | nothing | files that others may read at any time, and large files |
//! | `rate_limiter` | nothing | the same limits for disks and uploads |
//! | `failpoint` | nothing | names that the tests share with `capture`, `repo` and `ops` |
//! | `capture` | `nbd`, `failpoint`, `atomic_file`, `glob`, `suggest` | another such layer; its jobs use NBD |
//! | `repo` | `storage`, `failpoint`, `atomic_file` | a repository does not know what it stores, or its source |
//! | `retention`, `schedule`, `log`, `history` | `units`, `clock`, `record`, `atomic_file` | pure rules, or a single
//! external thing each |
//! | `config` | `units`, `retention`, `schedule` | the file contains rules, it does not apply them |
//! | `ops` | all of these but `config`, `schedule`, `log` | the workflows do not use a terminal or a configuration file
//! |
//! | `console` | `record`, `glob` | it runs commands and reads their records, like any other program |
//! | `fuzzing` | the parsers | the fuzz targets are outside of the crate |
//! | `cli` | everything | only it uses the terminal, the environment and the configuration |

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Layer → the other layers that it may import.
const LAYERS: &[(&str, &[&str])] = &[
    ("record", &[]),
    ("bounded", &[]),
    ("helper_thread", &[]),
    ("glob", &[]),
    ("suggest", &[]),
    ("rate_limiter", &[]),
    ("storage", &["bounded", "helper_thread", "glob", "rate_limiter", "atomic_file", "direct_file"]),
    ("nbd", &[]),
    ("filesystems", &["suggest"]),
    ("confined", &["filesystems"]),
    ("units", &[]),
    ("clock", &[]),
    ("atomic_file", &[]),
    ("direct_file", &[]),
    ("failpoint", &[]),
    ("capture", &["bounded", "nbd", "failpoint", "atomic_file", "glob", "suggest", "units"]),
    ("repo", &["storage", "helper_thread", "failpoint", "atomic_file"]),
    ("retention", &["record", "units"]),
    ("schedule", &["bounded", "units", "clock", "atomic_file", "suggest"]),
    ("log", &["record", "atomic_file"]),
    ("history", &["record", "atomic_file"]),
    ("config", &["bounded", "units", "retention", "schedule", "suggest"]),
    (
        "ops",
        &[
            "record",
            "bounded",
            "helper_thread",
            "glob",
            "suggest",
            "units",
            "clock",
            "failpoint",
            "rate_limiter",
            "storage",
            "nbd",
            "filesystems",
            "confined",
            "capture",
            "repo",
            "retention",
            "history",
            "atomic_file",
            "direct_file",
        ],
    ),
    ("fuzzing", &["storage", "nbd", "filesystems", "repo", "capture", "schedule", "config"]),
    ("console", &["record", "glob"]),
    (
        "cli",
        &[
            "console",
            "record",
            "bounded",
            "helper_thread",
            "glob",
            "suggest",
            "units",
            "failpoint",
            "rate_limiter",
            "storage",
            "nbd",
            "capture",
            "repo",
            "retention",
            "schedule",
            "log",
            "history",
            "atomic_file",
            "config",
            "filesystems",
            "confined",
            "ops",
        ],
    ),
];

/// The only file that may write to standard output.
const STDOUT_WRITER: &str = "cli/output.rs";

/// The only file that may use `unsafe`.
const UNSAFE_FILE: &str = "capture/ffi.rs";

#[test]
fn layers_import_only_permitted_layers() {
    let mut faults = Vec::new();
    for file in sources() {
        let Some(layer) = file.layer() else {
            continue;
        };
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            faults.push(format!(
                "{}: the module {layer} has no place in LAYERS of tests/project/architecture.rs",
                file.name
            ));
            continue;
        };
        for imported in imports(&file.code, file.depth()) {
            let known = LAYERS.iter().any(|(name, _)| *name == imported);
            if known && imported != layer && !allowed.contains(&imported.as_str()) {
                faults.push(format!("{}: {layer} must not import {imported}", file.name));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn only_the_output_module_writes_to_stdout_and_only_cli_to_stderr() {
    let mut faults = Vec::new();
    for file in sources() {
        let words = words(&file.code);
        let stdout = ["println!", "print!", "stdout()"].iter().find(|word| words.contains(**word));
        if let Some(word) = stdout
            && file.name != STDOUT_WRITER
        {
            faults.push(format!("{}: {word} (only {STDOUT_WRITER} writes records)", file.name));
        }
        let stderr = ["eprintln!", "eprint!", "stderr()", "dbg!"].iter().find(|word| words.contains(**word));
        if let Some(word) = stderr
            && file.layer().is_some_and(|layer| !["cli", "log"].contains(&layer))
        {
            faults.push(format!("{}: {word} (only cli knows the terminal)", file.name));
        }
    }
    assert_none(&faults);
}

#[test]
fn unsafe_code_is_in_one_file() {
    let faults: Vec<String> = sources()
        .iter()
        .filter(|file| file.name != UNSAFE_FILE && words(&file.code).contains("unsafe"))
        .map(|file| format!("{}: unsafe code belongs into {UNSAFE_FILE}", file.name))
        .collect();
    assert_none(&faults);
}

#[test]
fn every_source_file_opens_with_a_module_doc() {
    let faults: Vec<String> = sources()
        .iter()
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| format!("{}: does not open with a //! doc", file.name))
        .collect();
    assert_none(&faults);
}

#[test]
fn no_file_is_named_utils_or_helpers() {
    let drawers = ["utils", "util", "misc", "common", "helpers", "helper"];
    let faults: Vec<String> = sources()
        .iter()
        .filter(|file| file.name.split(['/', '.']).any(|part| drawers.contains(&part)))
        .map(|file| format!("{}: name it by its subject", file.name))
        .collect();
    assert_none(&faults);
}

#[test]
fn there_are_at_most_eight_test_programs() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version=1"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let targets = metadata["packages"].as_array().into_iter().flatten().flat_map(|p| p["targets"].as_array().unwrap());
    let programs: Vec<&str> =
        targets.filter(|target| target["kind"][0] == "test").filter_map(|target| target["name"].as_str()).collect();
    assert!((1..=8).contains(&programs.len()), "each links the test support once more; use a module: {programs:?}");
}

#[test]
fn module_map_in_lib_rs_names_existing_modules() {
    let root = root();
    let library = fs::read_to_string(root.join("src/lib.rs")).expect("src/lib.rs");
    let map: String = library.lines().filter_map(|line| line.strip_prefix("//!")).collect::<Vec<_>>().join("\n");
    let mut faults = Vec::new();
    for name in map.split('`').skip(1).step_by(2) {
        let is_path = name.contains('/') || name.ends_with(".rs");
        let is_module = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        let there = if is_path {
            root.join(name).exists() || root.join("src").join(name).exists()
        } else {
            // `kvmb` and other programs may be mentioned too.
            !is_module
                || !LAYERS.iter().any(|(layer, _)| *layer == name)
                || root.join("src").join(name).exists()
                || root.join("src").join(format!("{name}.rs")).exists()
        };
        if !there {
            faults.push(format!("src/lib.rs names `{name}`, which does not exist"));
        }
    }
    assert_none(&faults);
}

#[test]
fn import_parser_reads_all_forms_of_paths() {
    let code = code_of(
        r##"
        use crate::{nbd::{self, wire}, repo, storage::Storage};
        use crate::record;
        fn f() { let c = 'a'; crate::ops::run("crate::cli"); /* crate::config */ } // crate::log
        use super::super::capture::Machine;
        use super::neighbour;
        const TEXT: &str = r#"crate::schedule "quoted" "#;
        fn g<'a>(x: &'a str) -> &'a str { crate::retention::rule(x) }
        "##,
    );
    let found: Vec<String> = imports(&code, 2).into_iter().collect();
    assert_eq!(found, ["capture", "nbd", "ops", "record", "repo", "retention", "storage"]);
    assert!(words("x eprintln!(\"\") unsafe_code io::stdout().lock()").contains("stdout()"));
    assert!(!words("x eprintln!(\"\") unsafe_code command.stdout(Stdio::null())").contains("stdout()"));
    assert!(!words("x eprintln!(\"\") unsafe_code").contains("println!"));
    assert!(!words("x eprintln!(\"\") unsafe_code").contains("unsafe"));
}

/// A source file of the library or the program.
pub(crate) struct Source {
    /// Its path below `src/`.
    pub(crate) name: String,
    text: String,
    /// The text without comments and string literals.
    pub(crate) code: String,
}

impl Source {
    /// Creates a fictitious file, for the tests of these tests.
    pub(crate) fn of_code(name: &str, code: &str) -> Source {
        Source { name: name.to_owned(), text: String::new(), code: code.to_owned() }
    }

    /// Returns the top-level module that it belongs to; None for `lib.rs` and `main.rs`.
    pub(crate) fn layer(&self) -> Option<&str> {
        let first = self.name.split('/').next().expect("a name");
        let layer = first.strip_suffix(".rs").unwrap_or(first);
        (!["lib", "main"].contains(&layer)).then_some(layer)
    }

    /// Returns the number of `super::` that lead from this file's module to the crate root.
    fn depth(&self) -> usize {
        let parts = self.name.split('/').count();
        if self.name.ends_with("/mod.rs") { parts - 1 } else { parts }
    }
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn sources() -> Vec<Source> {
    let top = root().join("src");
    let mut found = Vec::new();
    let mut folders = vec![top.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src").map(|entry| entry.expect("src")) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(read_source(&top, &path));
            }
        }
    }
    assert!(found.len() > 3, "no sources found");
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn read_source(top: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).expect("UTF-8");
    let name = path.strip_prefix(top).expect("below src").display().to_string();
    let code = code_of(&text);
    Source { name, text, code }
}

/// Removes comments and the content of string literals from source text.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string_hashes(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            rest[open..].find(&close).map_or(rest.len(), |end| open + end + close.len())
        } else if first == '"' {
            string_length(rest)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            // A quotation mark in a character literal.
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

/// Returns the number of `#` if a raw string starts here.
fn raw_string_hashes(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Returns the length of the string literal that starts here, including its quotation marks.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Returns the top-level modules that code names through `crate::` or through enough `super::`.
fn imports(code: &str, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let up = "super::".repeat(depth);
    for start in ["crate::", up.as_str()] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            // In a macro it would be `$crate`; in a longer path, another `super::`.
            if before.is_some_and(|c| is_word(c) || c == '$' || c == ':') {
                continue;
            }
            let after = &code[at + start.len()..];
            match after.strip_prefix('{') {
                Some(group) => found.extend(first_names(group)),
                None => found.extend(first_name(after)),
            }
        }
    }
    found
}

/// Returns the first name of each path in a `{…}` group that has just been opened.
fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut open = 1;
    let mut starts_path = true;
    for (at, character) in group.char_indices() {
        match character {
            '{' => open += 1,
            '}' => open -= 1,
            ',' if open == 1 => starts_path = true,
            c if is_word(c) && starts_path => {
                names.extend(first_name(&group[at..]));
                starts_path = false;
            }
            _ => {}
        }
        if open == 0 {
            break;
        }
    }
    names
}

fn first_name(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|c| is_word(*c)).collect();
    (!name.is_empty()).then_some(name)
}

/// Returns the words of code; a macro's `!` and a call's empty `()` belong to the word.
pub(crate) fn words(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = code;
    while let Some(start) = rest.find(is_word) {
        let word = first_name(&rest[start..]).expect("a word");
        rest = &rest[start + word.len()..];
        for end in ["!", "()"] {
            if rest.starts_with(end) {
                found.insert(format!("{word}{end}"));
            }
        }
        found.insert(word);
    }
    found
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[track_caller]
pub(crate) fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
