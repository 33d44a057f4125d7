//! The French pages of the server, the schedule, the retention rules, the configuration and the doctor contain no
//! English.

use super::client::open;
use crate::support::{Disk, Env};

/// Words that cannot occur in French text, nor alone as a name or command.
const ENGLISH: [&str; 39] = [
    "the", "of", "and", "is", "are", "was", "with", "not", "this", "that", "for", "from", "to", "every", "each", "new",
    "next", "show", "save", "back", "run", "runs", "keep", "key", "keys", "folder", "user", "name", "after", "before",
    "without", "empty", "default", "file", "day", "days", "week", "free", "its",
];

/// Removes the XML that a text contains.
fn without_xml(text: &str) -> String {
    let rest = text.split("&lt;").enumerate();
    rest.map(|(at, part)| if at == 0 { part } else { part.split_once("&gt;").map_or(part, |(_, after)| after) })
        .collect()
}

/// Returns the visible text of a page, without input, names and output of programs.
fn text(page: &str) -> String {
    let (_, main) = page.split_once("<main id=\"main\">").expect("main");
    let mut text = String::new();
    let mut rest = main;
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        text.push(' ');
        let tag = after.split(['>', ' ']).next().unwrap_or_default();
        // The whole content of these elements is for programs.
        let end = match tag {
            "code" | "pre" | "svg" => format!("</{tag}>"),
            _ => ">".to_owned(),
        };
        let (inside, after) = after.split_once(&*end).unwrap_or((after, ""));
        for attribute in ["aria-label=\"", "placeholder=\"", "title=\""] {
            if let Some((_, value)) = inside.split_once(attribute).filter(|_| !["code", "pre", "svg"].contains(&tag)) {
                text.push_str(value.split('"').next().unwrap_or_default());
                text.push(' ');
            }
        }
        rest = after;
    }
    text
}

/// Returns the words of a text that are English and not French.
fn english_words(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-' && c != '/' && c != '.');
    words.filter(|word| ENGLISH.contains(&word.to_lowercase().as_str())).collect()
}

#[test]
fn french_setup_pages_contain_no_english_words() {
    let env = Env::new("console french");
    let _machine = env.machine("kvmb-test-vm1").disk(Disk::qcow2(1 << 20)).disk(Disk::raw(1 << 20)).define();
    let mut console = open(&env, &[]);
    console.language = "fr";
    for path in [
        "/server",
        "/schedule",
        "/schedule?cron=*%2F20%209-17%20*%20*%20mon-fri",
        "/schedule?cron=0%203%201%20*%20fri",
        "/retention",
        "/settings",
        "/doctor",
    ] {
        let page = console.get(path).assert_status(200);
        let text = without_xml(&text(&page.body));
        assert!(text.contains('é'), "{text}");
        let found = english_words(&text);
        assert!(found.is_empty(), "{path}: {found:?} in {text}");
        for wrong in [" GiB", " MiB", " KiB", " :", " ;", " ?", " !", " %"] {
            assert!(!text.contains(wrong), "{path}: {wrong:?} in {text}");
        }
    }
}

#[test]
fn english_words_on_a_page_are_found() {
    let text = text("<main id=\"main\"><p>Of: <code>of</code>the <b aria-label=\"next,\">la</b></p></main>");
    assert_eq!(english_words(&without_xml(&text)), ["Of", "the", "next"]);
}
