//! Everything that the documentation and the help texts mention exists, and everything that exists is documented.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvmb::cli::environment::VARIABLES;
use kvmb::cli::failure::Code;
use kvmb::cli::failure::exit_code::ExitCode;
use serde_json::Value;

const README: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
const REFERENCE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md"));
const HOOKS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/hooks.md"));
const FRENCH: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.fr.md"));
const GUIDE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guide.fr.md"));
const CONFIGURATION: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md"));
const RETENTION: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/retention.md"));
const MONITORING: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/monitoring.md"));
const CHANGELOG: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/CHANGELOG.md"));

/// Returns every page for users, by path.
fn pages() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("docs").path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let all = ["README.md", "README.fr.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
        .map(|name| root.join(name))
        .into_iter()
        .chain(docs);
    let name = |path: &Path| path.strip_prefix(root).expect("below the root").display().to_string();
    all.map(|path| (name(&path), fs::read_to_string(&path).expect("UTF-8"))).collect()
}

/// Returns the output of `kvmb … --help`.
fn help(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kvmb")).args(words).arg("--help").output().expect("kvmb");
    assert!(output.status.success(), "kvmb {} --help: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Returns the commands in a help text, which may be in groups.
fn commands(help: &str) -> Vec<String> {
    let lists = help.split("ommands:\n").skip(1).filter_map(|rest| rest.split("\n\n").next());
    let words = lists.flat_map(str::lines).filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Returns every command, with its words, and its help.
fn all() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut open = vec![Vec::<String>::new()];
    while let Some(words) = open.pop() {
        let text = help(&words.iter().map(String::as_str).collect::<Vec<_>>());
        open.extend(commands(&text).into_iter().map(|command| [words.clone(), vec![command]].concat()));
        all.insert(words.join(" "), text);
    }
    all
}

/// Returns the flags that a help text lists, such as `-r` and `--repo`, without those in the examples.
fn flags(help: &str) -> BTreeSet<String> {
    let options = help.split_once("\nExamples:").map_or(help, |(options, _)| options);
    let lines = options.lines().map(str::trim_start).filter(|line| line.starts_with('-') && !line.starts_with("- "));
    let words = lines.flat_map(|line| line.split([' ', ',', '=']));
    words.filter(|word| word.starts_with('-')).map(|word| word.trim_end_matches('.').to_owned()).collect()
}

/// Returns the code in a text: blocks and words. Elsewhere, kvmb is the name of the program.
fn code(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for (at, part) in text.split("```").enumerate() {
        match at % 2 {
            1 => parts.push(part.to_owned()),
            _ => parts.extend(part.split('`').skip(1).step_by(2).map(str::to_owned)),
        }
    }
    parts
}

/// Returns the calls of kvmb in code, including those after another stage, in quotes, and in a substitution.
fn calls(text: &str) -> Vec<String> {
    let mut calls = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("kvmb ") {
        let before = rest[..at].chars().next_back();
        rest = &rest[at..];
        // A separate word, not a part of a path or a name, and not prose.
        if before.is_none_or(|c| " `'\n({".contains(c)) {
            let end = rest.find(['\n', '`', '|', ';', '#', ')']).unwrap_or(rest.len());
            calls.push(rest[..end].trim().to_owned());
        }
        rest = &rest["kvmb".len()..];
    }
    calls
}

/// Checks a call against the help. Returns whether it was one.
fn check(call: &str, all: &BTreeMap<String, String>, place: &str) -> bool {
    let words: Vec<&str> =
        call.split_whitespace().skip(1).map(|word| word.trim_matches(['\'', '"', ',', '.', ':'])).collect();
    // `kvmb -c URI vms`
    let global = flags(&all[""]);
    let mut at = 0;
    while words.get(at).is_some_and(|word| word.starts_with('-')) {
        assert!(global.contains(words[at]), "{place}: no flag {} in: {call}", words[at]);
        at += if words[at].starts_with("-c") { 2 } else { 1 };
    }
    let Some(command) = words.get(at) else { return false };
    let Some(text) = all.get(*command) else { return false };
    let mut known = flags(text);
    if let Some(text) = words.get(at + 1).and_then(|next| all.get(&format!("{command} {next}"))) {
        known = flags(text);
    }
    // Words after -- belong to another command.
    for word in
        words[at..].iter().take_while(|word| **word != "--").filter(|word| word.starts_with('-') && word.len() > 1)
    {
        let flag = word.split('=').next().unwrap_or(word);
        assert!(known.contains(flag), "{place}: no flag {flag} in: {call}");
    }
    true
}

#[test]
fn every_command_and_flag_in_the_documents_exists() {
    let all = all();
    let mut count = 0;
    let pages = pages();
    for (place, text) in &pages {
        for call in code(text).iter().flat_map(|code| calls(code)).filter(|call| !call.contains("COMMAND")) {
            assert!(check(&call, &all, place), "{place}: no such command: {call}");
            count += 1;
        }
    }
    assert!(count > 40, "only {count} calls were found");
    // A flag alone, such as `--scratch DIR`, must belong to some command.
    let everything: BTreeSet<String> = all.values().flat_map(|text| flags(text)).collect();
    for (place, text) in pages.iter().filter(|(place, _)| *place != "CHANGELOG.md") {
        for code in code(text).iter().filter(|code| code.starts_with('-')) {
            let flag = code.split([' ', '|']).next().unwrap_or(code);
            assert!(everything.contains(flag) || flag == "-vv", "{place}: no command has {flag}");
        }
    }
}

/// Returns GitHub's anchor for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || "- _".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_resolves_and_readme_contents_are_complete() {
    let headings = |text: &str| -> BTreeSet<String> {
        let outside_of_code = text.split("```").step_by(2).collect::<String>();
        outside_of_code.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect()
    };
    let pages = pages();
    for (page, text) in &pages {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("https://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match (file.strip_prefix("../"), Path::new(page).parent()) {
                _ if file.is_empty() => page.clone(),
                (Some(above), _) => above.to_owned(),
                (None, Some(folder)) => folder.join(file).display().to_string(),
                (None, None) => file.to_owned(),
            };
            if target.ends_with(".png") {
                let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join(&target);
                let size = fs::metadata(&picture).unwrap_or_else(|error| panic!("{page}: {link}: {error}")).len();
                assert!(size <= 120 << 10, "{page}: {link} has {size} bytes");
                continue;
            }
            let there = pages.get(&target).unwrap_or_else(|| panic!("{page}: {link} leads nowhere"));
            assert!(heading.is_empty() || headings(there).contains(heading), "{page}: {link} leads nowhere");
        }
    }
    for page in pages.keys().filter(|page| page.starts_with("docs/")) {
        assert!(README.contains(&format!("]({page})")), "README.md has no link to {page}");
    }
    for (page, other) in [(README, "README.fr.md"), (FRENCH, "README.md")] {
        assert!(page.lines().take(5).any(|line| line.contains(&format!("]({other})"))), "no link to {other}");
    }
    for page in [README, FRENCH] {
        let (contents, _) = page.split_once("\n## ").expect("a section");
        for heading in headings(page) {
            assert!(contents.contains(&format!("(#{heading})")), "{heading} is not in the contents");
        }
    }
}

/// Returns the images of a page, by their paths from the top.
fn pictures(page: &str) -> BTreeSet<String> {
    let links = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let pictures = links.filter(|link| link.ends_with(".png"));
    pictures.map(|link| format!("docs/{}", link.trim_start_matches("docs/"))).collect()
}

/// Returns the blocks of one language in a page.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    page.split(&format!("```{language}\n")).skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

#[test]
fn readme_is_short_and_has_two_pictures_and_one_table() {
    for (page, name) in [(README, "README.md"), (FRENCH, "README.fr.md")] {
        assert!(page.len() < 20_000, "{name} has {} bytes: move what is not for the start to docs", page.len());
        let pictures = pictures(page);
        assert_eq!(
            pictures.iter().map(String::as_str).collect::<Vec<_>>(),
            ["docs/images/console-overview.png", "docs/images/console-restore.png"],
            "{name}"
        );
        assert_eq!(blocks(page, "text").len(), 1, "{name}: the third picture is a table");
    }
}

#[test]
fn every_picture_is_shown_by_a_page_and_made_by_the_makefile() {
    let shown: BTreeSet<String> = pages().values().flat_map(|page| pictures(page)).collect();
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images")).expect("docs/images");
    let files = files.map(|entry| format!("docs/images/{}", entry.expect("a file").file_name().to_string_lossy()));
    assert_eq!(shown, files.collect());
    let makefile = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/Makefile"));
    let names = makefile.lines().find_map(|line| line.strip_prefix("PICTURES := ")).expect("PICTURES");
    let made = names.split(' ').map(|name| format!("docs/images/console-{name}.png"));
    assert_eq!(shown, made.collect());
}

#[test]
fn tables_in_the_pages_match_the_printed_tables() {
    let printed = include_str!("snapshots/tables-80.txt");
    for (page, name) in [
        (README, "README.md"),
        (FRENCH, "README.fr.md"),
        (RETENTION, "docs/retention.md"),
        (MONITORING, "docs/monitoring.md"),
    ] {
        let tables = blocks(page, "text");
        assert_eq!(tables.len(), 1, "{name}");
        for table in tables {
            assert!(printed.contains(table), "{name} shows what kvmb does not print:\n{table}");
        }
    }
}

#[test]
fn english_and_french_pages_show_the_same_configuration() {
    let configuration = |text: &str| -> Value {
        serde_json::from_str(blocks(text, "json").first().expect("a configuration")).expect("JSON")
    };
    assert_eq!(configuration(CONFIGURATION), configuration(GUIDE));
    for key in configuration(GUIDE).as_object().expect("keys").keys() {
        assert!(GUIDE.contains(&format!("| `{key}` |")), "docs/guide.fr.md does not name {key}");
    }
}

#[test]
fn english_and_french_readme_have_the_same_commands_and_links() {
    // Everything except prose: commands without comments, flags, links to pages, images, sections.
    let shell = |page: &str| -> Vec<String> {
        let lines = blocks(page, "sh").into_iter().flat_map(str::lines);
        lines.map(|line| line.split("  #").next().unwrap_or_default().trim().to_owned()).collect()
    };
    assert_eq!(shell(README), shell(FRENCH));
    let words = |page: &str| -> BTreeSet<String> {
        let outside = page.split("```").step_by(2).collect::<String>();
        outside.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    assert_eq!(words(README), words(FRENCH));
    let links = |page: &str| -> BTreeSet<String> {
        let links = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        // The French edition also has links to sections of the guide.
        let links = links.filter(|link| !link.starts_with(['#', 'R']) && !link.starts_with("docs/guide.fr.md#"));
        links.map(str::to_owned).collect()
    };
    assert_eq!(links(README), links(FRENCH));
    let sections = |page: &str| page.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(sections(README), sections(FRENCH));
}

#[test]
fn every_command_is_in_readme_and_the_changelog() {
    let all = all();
    assert!(all.len() >= 15, "{:?}", all.keys());
    for command in all.keys().filter(|command| !command.is_empty()) {
        assert!(README.contains(&format!("`kvmb {command}`")), "README.md does not name kvmb {command}");
        let first = command.split(' ').next().unwrap_or(command);
        assert!(CHANGELOG.contains(&format!("`kvmb {first}`")), "CHANGELOG.md does not name kvmb {first}");
    }
}

#[test]
fn every_help_example_uses_existing_commands_and_flags() {
    let all = all();
    for (command, text) in &all {
        let (_, examples) = text.split_once("\nExamples:\n").unwrap_or_default();
        let leaf = command.split(' ').count() == 1 && !command.is_empty();
        assert!(!leaf || !examples.is_empty(), "kvmb {command} --help has no examples");
        let examples = examples.split("\n\n").next().unwrap_or_default();
        for call in calls(examples) {
            assert!(check(&call, &all, &format!("kvmb {command} --help")), "no such command: {call}");
        }
    }
}

#[test]
fn every_flag_in_the_help_is_described_and_accepted() {
    let value = |command: &str, flag: &str| match flag {
        "--sample" if command == "drill" => "3",
        "--until" => "agent",
        "--check-in" => "host",
        "--jobs" | "--threads" | "--limit" | "--runs" | "--vcpus" => "2",
        "--listen" => "127.0.0.1:0",
        "--progress" => "none",
        "--freeze" | "--color" => "never",
        "--warning" | "--critical" | "--verify-warning" | "--drill-max-age" | "--freeze-timeout" | "--lease"
        | "--full-every" | "--key-cache" | "--lock-for" | "--retry-for" | "--random-delay" | "--within" | "--idle"
        | "--timeout" => "30s",
        "--cron" | "--drill" => "@daily",
        "--chunk-size" => "2M",
        "--compression" => "max",
        "--limit-read" | "--limit-upload" | "--size" | "--memory" => "10M",
        "--sample" | "--verify-sample" | "--audit" | "--max-unused" => "5%",
        "--keep-within" | "--newer" => "30d",
        flag if flag.starts_with("--keep-") => "7",
        "--log-format" => "text",
        "--level" => "warning",
        "--zabbix" => "values",
        "--to" | "--luks-key-file" => "vda=/x",
        "--owner" => "root:root",
        "SHELL" => "bash",
        "--format" | "--output" => {
            if flag == "--output" {
                "json"
            } else {
                "raw"
            }
        }
        _ => "x",
    };
    for (command, text) in all() {
        if commands(&text).is_empty() {
            let lines: Vec<&str> = text.lines().collect();
            for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with('-')) {
                let Some(flag) = line.trim().split([' ', ',']).find(|word| word.starts_with("--")) else { continue };
                let flag = flag.trim_end_matches('.');
                let told = lines.get(at + 1).is_some_and(|next| !next.trim().is_empty());
                assert!(told, "kvmb {command} {flag} has no words");
                // Together with --help, which takes precedence once everything before it is valid.
                let mut call: Vec<&str> = command.split(' ').collect();
                call.push(flag);
                if line.contains('<') {
                    call.push(value(&command, flag));
                }
                help(&call);
            }
        }
    }
}

#[test]
fn exit_and_failure_codes_in_the_reference_match_the_program() {
    let rows = |heading: &str| -> Vec<(String, String)> {
        let (_, rest) = REFERENCE.split_once(heading).expect(heading);
        let rows = rest.lines().skip_while(|line| !line.starts_with("| --- |")).skip(1);
        rows.take_while(|line| line.starts_with('|'))
            .map(|line| {
                let cells: Vec<&str> =
                    line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
                (cells[0].to_owned(), cells[1].to_owned())
            })
            .collect()
    };
    let exit = ExitCode::ALL.map(|(code, words)| ((code as u8).to_string(), words.to_owned()));
    assert_eq!(rows("## Exit codes"), exit);
    let failures = Code::ALL.map(|(_, word, words)| (word.to_owned(), words.to_owned()));
    assert_eq!(rows("The `code` of a failure:"), failures);
}

/// Returns every source file of the program.
fn sources() -> Vec<PathBuf> {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut files = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("src") {
            let path = entry.expect("src").path();
            match path.is_dir() {
                true => open.push(path),
                false => files.push(path),
            }
        }
    }
    files
}

#[test]
fn environment_variables_match_the_reference_and_the_sources() {
    let names = |text: &str| -> BTreeSet<String> {
        let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
        text.split(|c| !is_name(c)).filter(|word| word.starts_with("KVMB_")).map(str::to_owned).collect()
    };
    // Hooks have their own variables.
    let of_hooks = names(&fs::read_to_string("src/cli/hooks.rs").expect("UTF-8"));
    let (_, table) = HOOKS.split_once("A hook gets these environment variables.").expect("a table");
    let documented = names(table);
    assert_eq!(documented, of_hooks.into_iter().filter(|name| !name.contains("PASSWORD")).collect::<BTreeSet<_>>());
    let elsewhere = |path: &PathBuf| !["cli/environment.rs", "cli/hooks.rs"].iter().any(|file| path.ends_with(file));
    let source = sources().into_iter().filter(elsewhere);
    let read: BTreeSet<String> = source
        .flat_map(|path| names(&fs::read_to_string(&path).expect("UTF-8")))
        // Those of the tests are not for users.
        .filter(|name| name.len() > 5 && !name.starts_with("KVMB_TEST_"))
        .collect();
    assert_eq!(
        VARIABLES.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(),
        read,
        "see src/cli/environment.rs"
    );
    let (_, table) = REFERENCE.split_once("## Variables").expect("a table");
    assert_eq!(read, names(table.split("\n## ").next().unwrap_or_default()), "docs/reference.md and the sources");
    for (name, meaning) in VARIABLES {
        assert!(
            REFERENCE.contains(&format!("| `{name}` | {meaning} |")),
            "docs/reference.md says something else of {name}"
        );
    }
}
