//! Words that must not be in any text for people, and hints that work when they are pasted.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Words that must not be used, and their replacements.
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
    ("tell", "report, show, warn"),
    ("hit", "affected, damaged"),
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
    ("dear", "expensive"),
    ("in vain", "without success"),
    ("so many", "this number of, N"),
    ("makes no sense", "is invalid"),
    ("make no sense", "are invalid"),
    ("is had", "is available"),
    ("be had", "be available, be read"),
    ("came to nothing", "failed"),
    ("what it came to", "the result"),
    ("names no", "does not name a"),
    ("how far they come", "how far they get"),
    ("how far it comes", "how far it gets"),
    ("is the longest ago", "least recently"),
    ("the peers", "other tools"),
    ("is no text", "is not UTF-8"),
    ("is believed", "is trusted"),
    ("never believed", "authenticated"),
    ("made to harm", "malicious"),
    ("what is written is locked", "new files are locked"),
    ("lock what is written", "lock files"),
    ("forgotten", "discarded"),
    ("the most memory", "maximum memory"),
    ("went well", "succeeded"),
    ("on a stop", "on stop"),
    ("goes on by itself", "continues automatically"),
    ("made up for", "caught up"),
    ("what is enough", "goal, required rung"),
    ("come as far", "reach"),
    ("came as far", "reached"),
];

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns a text in lower case, with single spaces and without code markers.
fn plain(text: &str) -> String {
    let text = text.replace(['`', '*'], "").to_lowercase();
    format!(" {} ", text.split(|c: char| !c.is_alphanumeric() && !"'-".contains(c)).collect::<Vec<_>>().join(" "))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn user_facing_texts_have_no_banned_words() {
    let mut texts: Vec<(String, String)> = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "example_config.json",
        "config.schema.json",
        "Makefile",
    ]
    .map(|path| (path.to_owned(), source(path)))
    .into();
    for folder in ["docs", "man", "completions", "tests/project/snapshots"] {
        let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("a folder");
        let files = entries.map(|entry| entry.expect("an entry")).filter(|entry| entry.path().is_file());
        texts.extend(files.map(|entry| {
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
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

#[test]
fn english_spelling_is_correct() {
    crate::support::parts::require(&["codespell"]);
    let files = ["README.md", "CHANGELOG.md", "docs", "example_config.json", "src", ".ci", "Makefile"];
    let output = Command::new("codespell")
        // Words of the code and of other programs.
        .args([
            "--ignore-words-list",
            "crate,fo,te,ser,nd,ba,bu,ot,tim,unx,fpr,timout,keep-alives,hda,\
            adresses,bloc,connexion,copie,formend,limite,mot,raison,restauration,\
            adresse,celles,espace,exemple,lien,processus,remplace,reste,servent,wronly",
        ])
        // French files.
        .args(["--skip", "src/console/french/*,src/console/pages/setting_words.rs,docs/guide.fr.md"])
        .args(files)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("codespell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Returns the prose of a French page, and the comments in its code, without code, links and paths.
fn french_prose(page: &str) -> String {
    let blocks = page.split("```").enumerate().map(|(at, part)| match at % 2 {
        0 => part.split('`').step_by(2).collect::<Vec<_>>().join(" "),
        _ => part.lines().filter_map(|line| Some(line.split_once(" # ")?.1)).collect::<Vec<_>>().join("\n"),
    });
    let text = blocks.collect::<Vec<_>>().join("\n");
    let is_prose = |word: &&str| !word.contains("](") && !word.contains(|c: char| "/_".contains(c) || c.is_numeric());
    let lines = text.lines().map(|line| line.split(' ').filter(is_prose).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

/// The French pages.
const FRENCH_PAGES: [&str; 2] = ["README.fr.md", "docs/guide.fr.md"];

#[test]
fn french_punctuation_uses_non_breaking_spaces() {
    for page in FRENCH_PAGES {
        let prose = french_prose(&source(page));
        for mark in [" : ", " ; ", " ! ", " ? ", " % ", "« ", " » "] {
            let line = prose.lines().find(|line| format!("{line} ").contains(mark));
            assert_eq!(line, None, "{page}: write U+00A0 before a colon and U+202F elsewhere, not '{mark}'");
        }
    }
}

#[test]
fn french_spelling_is_correct() {
    crate::support::parts::require(&["aspell"]);
    let known = source("tests/project/french_words.txt");
    let known: Vec<&str> = known.lines().collect();
    let mut aspell = Command::new("aspell")
        .args(["--lang=fr", "--encoding=utf-8", "list"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("aspell");
    // The misspelt word shows that the dictionary works.
    let text = FRENCH_PAGES.map(|page| french_prose(&source(page))).join("\n") + "\nortografe\n";
    aspell.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("write");
    let output = aspell.wait_with_output().expect("aspell");
    assert!(output.status.success(), "is the package aspell-fr installed? as root run: .ci/install-parts");
    let output = String::from_utf8(output.stdout).expect("UTF-8");
    let mut unknown: Vec<&str> = output.lines().filter(|word| !known.contains(&word.to_lowercase().as_str())).collect();
    unknown.dedup();
    assert_eq!(unknown, ["ortografe"], "fix them, or add them to tests/project/french_words.txt");
}
