//! The commands in the documentation run as printed.
//!
//! Every line of the `sh` blocks in README.md and docs is run once, in the order of the pages, on a host prepared for
//! them (`documents/world`, `documents/machines`), and must succeed. [`WAYS`] has the preparations of lines, and the
//! lines that cannot run there, with the reason. All calls of kvmb in them are accepted by the parser.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{Env, parts};

/// How to run a line.
enum Way {
    /// After this command.
    After(&'static str),
    /// Until it prints something; then it is ended with Ctrl-C.
    UntilCtrlC,
    /// Not at all, for this reason.
    Not(#[expect(unused, reason = "for the reader")] &'static str),
}
use Way::{After, Not, UntilCtrlC};

/// The lines that need special treatment: a whole line, or a part of it with `…` for the rest. All entries that match
/// are applied, in this order.
const WAYS: [(&str, Way); 47] = [
    ("make …", Not("builds kvmb; tests/project/packaging.rs installs it and makes its package")),
    ("cargo …", Not("builds the benchmarks of kvmb")),
    ("git checkout …", Not("is for a checkout of the sources")),
    ("sudo …", Not("installs packages; tests/project/packaging.rs does that on a clean system")),
    ("kvmb restore", Not("asks on a terminal; tests/cli/restore_dialog.rs answers")),
    ("…kvmb drill…", Not("boots guests; tests/ops/drill.rs does")),
    ("…s3:https…", Not("needs a bucket with a certificate; tests/storage has them")),
    ("…rest:https…", Not("needs a REST server with a certificate; tests/storage has them")),
    ("aws …", Not("is another tool, for a bucket")),
    ("… 5f0c2a9e", Not("the id of an example; tests/cli/jobs.rs has real ones")),
    ("kvmb ui install", Not("needs systemd; tests/cli/console has its units")),
    ("…--systemd…", Not("needs systemd; tests/schedule has its units")),
    ("guestfish …", Not("boots the machine of libguestfs; tests/ops/files has it")),
    ("… --luks-key-file …", Not("needs a LUKS volume; tests/ops/files has them")),
    ("apt-get …", Not("installs packages; tests/project/packaging.rs does that on a clean system")),
    ("kvmb restore --continue vm1", Not("needs a restore that was interrupted; tests/ops/live.rs has them")),
    ("kvmb restore --abort vm1", Not("needs a restore that was interrupted; tests/ops/live.rs has them")),
    ("kvmb ui", UntilCtrlC),
    ("kvmb ui --read-only", UntilCtrlC),
    ("kvmb serve vm1@latest", UntilCtrlC),
    ("kvmb log --follow", UntilCtrlC),
    ("kvmb mount vm1@latest /mnt", UntilCtrlC),
    ("kvmb mount vm1@latest /mnt", After("rm -rf /mnt/*")),
    // A repository in the working directory stands for any repository.
    ("… -r R…", After("export KVMB_PASSWORD_FILE=/root/kvmb.pass; [ -e R ] || kvmb init -q -r R")),
    ("kvmb key export …", After("mkdir /mnt/usb")),
    ("kvmb files ls vm1", After(OLD_POINTS)),
    ("kvmb config …", After(CONFIGURATION)),
    ("kvmb remote …", After(CONFIGURATION)),
    ("kvmb remote test", After(EMPTY_FOLDER)),
    ("kvmb schedule install --replace-old", After(CONFIGURATION)),
    ("kvmb backup", After(CONFIGURATION)),
    ("kvmb backup", After("kvmb key export default.key; new-server-repository /backup/kvm default.key")),
    ("kvmb backup --all --prune", After(RULES)),
    ("restic …", After("export RESTIC_PASSWORD_FILE=/root/kvmb.pass")),
    ("restic -r /backup/kvm snapshots…", After("new-local-repository")),
    ("kvmb init -r /backup/kvm …", After("rm -rf /backup/kvm")),
    ("kvmb init -r sftp://kvm@backup.example.com//srv/kvm …", After("rm -rf /srv/kvm/*")),
    ("kvmb init -r sftp://kvm@backup.example.com//backup/kvm", After(EMPTY_FOLDER)),
    ("kvmb points vm1 | kvmb push -r /mnt/usb/kvm …", After("kvmb init -q -r /mnt/usb/kvm --password-file usb.pass")),
    ("chmod 600 kvmb.key", After("kvmb key export kvmb.key; chmod 644 kvmb.key")),
    ("kvmb points -r sftp://kvm@backup.example.com//srv/kvm …", After("new-server-repository /srv/kvm")),
    ("kvmb points -r sftp://kvm@backup.example.com//backup/kvm …", After("new-server-repository /backup/kvm")),
    ("kvmb restore vm1 --overwrite…", After("virsh -q destroy vm1 || true")),
    ("kvmb restore vm1@2026-11-20 …", After("forget-machine vm1-copy")),
    ("kvmb restore vm1 -r sftp:…", After("forget-machine vm1")),
    ("nbdcopy …", After("kvmb serve vm1 --socket /run/vda.sock --detach")),
    ("kvmb prune …", After("kvmb release --all")),
];

/// Points in the default repository that are older than those in the documentation.
const OLD_POINTS: &str = "faketime '2026-11-19 12:00' kvmb backup vm1 win1 -q";

/// What the first pages have done before the others.
const BEFORE: &str = "faketime '2026-11-19 12:00' kvmb backup vm1 win1; kvmb backup vm1";

/// The file of docs/configuration.md.
const CONFIGURATION: &str = "cp /run/config.json /etc/kvmb";

/// A password, and an empty folder on the server.
const EMPTY_FOLDER: &str = "export KVMB_PASSWORD_FILE=/root/kvmb.pass; rm -rf /backup/kvm";

/// A file with retention rules.
const RULES: &str = r#"echo '{"retention": {"local": {"keep_daily": 7}}}' >/etc/kvmb/config.json"#;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A line of a page.
struct Line {
    page: String,
    /// The lines of its block that set variables for it.
    exports: String,
    command: String,
}

fn read(page: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(page)).unwrap()
}

/// Returns README.md and the pages of docs, in the order of their names, French ones last.
fn pages() -> Vec<String> {
    let names = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    let names = names.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_string_lossy()));
    let mut pages: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    pages.extend(["README.md", "README.fr.md"].map(str::to_owned));
    pages.sort_by_key(|name| (name.ends_with(".fr.md"), name.clone()));
    pages
}

/// Returns the lines of the `sh` blocks of all pages, without comments, each once, for the first page that has it.
fn lines() -> Vec<Line> {
    let mut seen = BTreeSet::new();
    let mut lines = Vec::new();
    for page in pages() {
        for block in read(&page).split("```sh\n").skip(1) {
            let mut exports = String::new();
            let block = block.split("```").next().unwrap_or_default().replace("\\\n", "");
            for line in block.lines().map(str::trim_start) {
                let command = line.split(" #").next().unwrap_or_default().trim_end().to_owned();
                if command.starts_with("export ") {
                    writeln!(exports, "{command}").unwrap();
                } else if seen.insert(command.clone()) {
                    lines.push(Line { page: page.clone(), exports: exports.clone(), command });
                }
            }
        }
    }
    assert!(lines.len() > 80, "only {} lines were found", lines.len());
    lines
}

/// Whether a pattern of [`WAYS`] matches a command.
fn means(pattern: &str, command: &str) -> bool {
    let part = pattern.trim_matches('…');
    match (pattern.starts_with('…'), pattern.ends_with('…')) {
        (true, true) => command.contains(part),
        (true, false) => command.ends_with(part),
        (false, true) => command.starts_with(part),
        (false, false) => command == part,
    }
}

/// Returns the script for a line; None for one that cannot run.
fn script(line: &Line) -> Option<String> {
    let mut script = String::new();
    let mut until_ctrl_c = false;
    for (_, way) in WAYS.iter().filter(|(pattern, _)| means(pattern, &line.command)) {
        match way {
            After(first) => writeln!(script, "{{ {first}\n}} || exit 99").unwrap(),
            UntilCtrlC => until_ctrl_c = true,
            Not(_) => return None,
        }
    }
    script.push_str(&line.exports);
    match until_ctrl_c {
        false => writeln!(script, "{}", line.command).unwrap(),
        true => writeln!(script, "until-ctrl-c {}", line.command).unwrap(),
    }
    Some(script)
}

/// Runs the lines of these pages on their own host, after the command `first`.
fn run(first: &str, is_wanted: impl Fn(&str) -> bool) {
    parts::require(&["unshare", "sshd", "sfdisk", "mkfs.ext4", "mkntfs", "ntfs-3g", "useradd", "faketime", "jq"]);
    let env = Env::new("documents");
    let folder = env.path("documents");
    fs::create_dir_all(folder.join("lines")).unwrap();
    let machines = read("tests/project/documents/machines");
    fs::write(folder.join("machines"), format!("{machines}{first}\n")).unwrap();
    let configuration = read("docs/configuration.md");
    let configuration = configuration.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
    fs::write(folder.join("config.json"), configuration.expect("a configuration")).unwrap();
    let mut run = Vec::new();
    for line in lines().into_iter().filter(|line| is_wanted(&line.page)) {
        if let Some(script) = script(&line) {
            fs::write(folder.join(format!("lines/{:03}", run.len())), script).unwrap();
            run.push(line);
        }
    }
    env.program("unshare")
        .args(["--mount", "--pid", "--net", "--fork", "--kill-child"])
        .arg(Path::new(ROOT).join("tests/project/documents/world"))
        .arg(&folder)
        .arg(env!("CARGO_BIN_EXE_kvmb"))
        .limit(Duration::from_secs(560))
        .run()
        .assert_ok();
    let mut failures = String::new();
    for (at, Line { page, command, .. }) in run.iter().enumerate() {
        let said = |what: &str| fs::read_to_string(folder.join(format!("lines/{at:03}.{what}"))).unwrap_or_default();
        if said("code") != "0\n" {
            writeln!(failures, "{page}: {command}\nexit code {}{}", said("code"), said("output")).unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(run.len() > 10, "only {} lines were run", run.len());
}

#[test]
fn commands_in_readme_and_the_first_pages_run_as_printed() {
    run("", |page| !page.ends_with(".fr.md") && page < "docs/o");
}

#[test]
fn commands_in_the_other_pages_run_as_printed() {
    run(BEFORE, |page| !page.ends_with(".fr.md") && page > "docs/o");
}

#[test]
fn commands_in_the_french_pages_run_as_printed() {
    run(BEFORE, |page| page.ends_with(".fr.md"));
}

#[test]
fn every_exception_matches_a_command_in_the_documents() {
    let lines = lines();
    for (pattern, _) in &WAYS {
        assert!(lines.iter().any(|line| means(pattern, &line.command)), "no page has {pattern}");
    }
}

/// Returns the calls of kvmb in a line, each as a shell passes it.
fn calls(line: &str) -> Vec<Vec<String>> {
    let words = shlex::split(&line.replace("; ", " ; ")).unwrap_or_else(|| panic!("no words of a shell: {line}"));
    let stages = words.split(|word| ["|", ";"].contains(&word.as_str()));
    // Redirections belong to the shell.
    let stages = stages.map(|stage| stage.iter().take_while(|word| !word.contains('>')).cloned().collect::<Vec<_>>());
    stages.filter(|stage| stage.first().is_some_and(|program| program == "kvmb")).collect()
}

#[test]
fn every_call_in_the_documents_is_accepted_by_the_parser() {
    let mut count = 0;
    for Line { page, command, .. } in lines() {
        for call in calls(&command) {
            if let Err(error) = kvmb::cli::command().try_get_matches_from(call) {
                panic!("{page}: {command}: {error}");
            }
            count += 1;
        }
    }
    assert!(count > 80, "only {count} calls were parsed");
}
