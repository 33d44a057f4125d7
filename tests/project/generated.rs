//! The manual pages and completion scripts in the source tree match the program, and are well-formed.

// A test panics if a result is not what it expects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::parts;
use kvmb::cli::environment::VARIABLES;
use kvmb::cli::failure::Code;
use kvmb::cli::failure::exit_code::ExitCode;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn kvmb(args: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_kvmb")).args(args).output().expect("kvmb");
    assert!(output.status.success(), "kvmb {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Returns the files of a folder by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// Returns what the program generates now, by path in the source tree.
fn generated() -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    kvmb(&["man", folder.path().to_str().unwrap()]);
    let mut all: BTreeMap<String, Vec<u8>> =
        files(folder.path()).into_iter().map(|(name, text)| (format!("man/{name}"), text)).collect();
    for (shell, file) in [("bash", "kvmb.bash"), ("zsh", "_kvmb"), ("fish", "kvmb.fish")] {
        all.insert(format!("completions/{file}"), kvmb(&["completions", shell]));
    }
    all
}

#[test]
fn manual_and_completions_are_up_to_date() {
    let mut there = BTreeMap::new();
    for folder in ["man", "completions"] {
        there.extend(files(&source(folder)).into_iter().map(|(name, text)| (format!("{folder}/{name}"), text)));
    }
    let generated = generated();
    let names: BTreeSet<&String> = there.keys().chain(generated.keys()).collect();
    let stale: Vec<&&String> = names.iter().filter(|name| there.get(**name) != generated.get(**name)).collect();
    assert!(stale.is_empty(), "not what the program says any more: {stale:?}\nwrite them anew with: make generated");
}

#[test]
fn manual_pages_have_all_sections_and_no_warnings() {
    parts::require(&["man"]);
    let folder = tempfile::tempdir().unwrap();
    kvmb(&["man", folder.path().to_str().unwrap()]);
    let pages = files(folder.path());
    assert!(pages.len() > 15, "{:?}", pages.keys());
    for name in pages.keys() {
        let output = Command::new("man")
            .args(["--warnings", "-E", "UTF-8", "-l"])
            .arg(folder.path().join(name))
            .env("LC_ALL", "C.UTF-8")
            .env("MANWIDTH", "120")
            .env_remove("MANROFFOPT")
            .output()
            .expect("man");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaints.is_empty(), "{name}: {complaints}");
        let page = String::from_utf8(output.stdout).unwrap();
        let sections: Vec<&str> =
            page.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase())).collect();
        let has_examples = !["kvmb-key-export.1", "kvmb-key-add.1"].contains(&name.as_str());
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"] {
            assert!(sections.contains(&section), "{name} has no {section}: {sections:?}");
        }
        assert!(sections.contains(&"EXAMPLES") || !has_examples, "{name}: {sections:?}");
        let has = |text: &str| page.contains(text);
        let codes = ExitCode::ALL.map(|(code, meaning)| (code as u8, meaning));
        assert!(codes.iter().all(|(code, meaning)| has(&code.to_string()) && has(meaning)), "{name}: {page}");
        if name == "kvmb.1" {
            for section in ["COMMANDS", "FAILURES", "RECORDS", "ENVIRONMENT", "FILES"] {
                assert!(sections.contains(&section), "{name} has no {section}: {sections:?}");
            }
            assert!(Code::ALL.iter().all(|(_, word, meaning)| has(word) && has(meaning)), "{page}");
            assert!(VARIABLES.iter().all(|(variable, _)| has(variable)), "{page}");
            assert!(has("disks[].stored_bytes") && has("restored_to.disks[].path"), "{page}");
        }
    }
}

#[test]
fn manual_pages_are_written_once_and_not_in_a_dry_run() {
    let folder = tempfile::tempdir().unwrap();
    let call = |flags: &[&str]| -> Vec<bool> {
        let text = String::from_utf8(kvmb(&[&["man", folder.path().to_str().unwrap()], flags].concat())).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        records.map(|record| record["changed"].as_bool().unwrap()).collect()
    };
    assert!(call(&["--dry-run"]).iter().all(|changed| *changed));
    assert!(files(folder.path()).is_empty());
    assert!(call(&[]).iter().all(|changed| *changed));
    assert!(call(&[]).iter().all(|changed| !changed));
    let page = kvmb(&["man"]);
    assert_eq!(Some(&page), files(folder.path()).get("kvmb.1"));
}
