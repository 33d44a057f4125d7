//! Words that nothing that people read may have, and hints that work when they are pasted.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::messages;

/// Words of the project's first dialect, and what to write instead.
const BANNED: &[(&str, &str)] = &[
    ("prove", "verify"),
    ("proves", "verifies"),
    ("proven", "verified"),
    ("proof", "verification"),
    ("mend", "fix"),
    ("mends", "fixes"),
    ("anew", "again"),
    ("hither", "here"),
    ("make room", "free some space"),
    ("stands in the way", "problem that would prevent a backup"),
    ("stand in the way", "problem that would prevent a backup"),
    ("told to stop", "interrupted"),
    ("is told of", "is reported"),
    ("tells of", "reports"),
    ("tell of", "report"),
    ("cannot be asked", "is unreachable"),
    ("a clock is wrong", "check the clocks"),
    ("of the future", "dated in the future"),
    ("did not tell of", "missed"),
    ("lied about", "missed"),
    ("make friends", "set up and test"),
    ("takes away", "removes"),
    ("taken away", "removed"),
    ("take away", "remove"),
    ("by themselves", "scheduled"),
    ("with these go", "the usual word order"),
    ("told", "reported"),
    ("tells", "reports"),
    ("mended", "fixed"),
    ("rehearsal", "dry run"),
    ("forerunner", "predecessor"),
    ("befriend", "set up"),
    ("vouch", "verify"),
    ("no point needs", "unused data"),
    ("say what would be done", "show what would be done without doing it"),
    ("although the configuration says so", "even if the configuration enables it"),
    ("twice still more", "repeat for more"),
    ("have this line added", "ask the administrator to add this line"),
    ("is hit", "is affected, is damaged"),
    ("are hit", "are affected, are damaged"),
];

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A text with single spaces, in lower case, and without what marks words as code.
fn plain(text: &str) -> String {
    let text = text.replace(['`', '*'], "").to_lowercase();
    format!(" {} ", text.split(|c: char| !c.is_alphanumeric() && !"'-".contains(c)).collect::<Vec<_>>().join(" "))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn nothing_that_people_read_has_a_word_of_the_old_dialect() {
    let mut texts: Vec<(String, String)> =
        ["README.md", "CHANGELOG.md", "example_config.json", "config.schema.json", "Makefile"]
            .map(|path| (path.to_owned(), source(path)))
            .into();
    for folder in ["docs", "man", "completions", "tests/project/snapshots"] {
        let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("a folder");
        texts.extend(entries.map(|entry| {
            let path = format!("{folder}/{}", entry.expect("an entry").file_name().to_string_lossy());
            let text = source(&path);
            (path, text)
        }));
    }
    let mut found = Vec::new();
    for (path, text) in &texts {
        let text = format!(" {} ", plain(text));
        for (word, better) in BANNED {
            if let Some(at) = text.find(&format!(" {word} ")) {
                let context: String = text[at..].chars().take(60).collect();
                found.push(format!("{path}: …{context}…: write '{better}', not '{word}'"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The commands of kvmb that a hint quotes, or ends with.
fn commands(hint: &str) -> Vec<String> {
    let quoted = hint.split('\'').skip(1).filter(|part| part.starts_with("kvmb ")).map(str::to_owned);
    let at_the_end = hint.rsplit_once(": kvmb ").map(|(_, rest)| format!("kvmb {rest}")).into_iter();
    quoted.chain(at_the_end).filter(|command| !command.contains('|')).collect()
}

#[test]
fn every_command_in_a_hint_is_one_that_kvmb_understands() {
    let errors = messages::of_the_command_line();
    let hints = errors.iter().filter_map(|error| error.hint.as_deref());
    let found: Vec<String> = hints.flat_map(commands).collect();
    assert!(found.len() > 20, "{found:?}");
    for command in found {
        let words = shlex::split(&command).unwrap_or_else(|| panic!("{command}: quotes"));
        let taken = kvmb::cli::command().try_get_matches_from(words);
        assert!(taken.is_ok(), "{command}: {}", taken.unwrap_err());
    }
}

#[test]
fn the_spelling_is_right() {
    crate::support::parts::require(&["codespell"]);
    let files = ["README.md", "CHANGELOG.md", "docs", "example_config.json", "src", ".ci", "Makefile"];
    let output = Command::new("codespell")
        // Words of the code and of other programs.
        .args([
            "--ignore-words-list",
            "crate,fo,te,ser,nd,ba,bu,ot,tim,unx,fpr,timout,keep-alives,hda,\
            adresses,bloc,connexion,copie,formend,limite,mot,raison,restauration",
        ])
        .args(files)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("codespell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
