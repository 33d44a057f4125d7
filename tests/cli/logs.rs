//! The log: what a run records for later.

// A test panics if a result is not what it expects.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{Disk, Env, parts, wait_until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Splits a log line: time, level, run, message.
fn split(line: &str) -> (&str, &str, &str, &str) {
    let (time, rest) = line.split_once(" - ").unwrap_or_else(|| panic!("{line}"));
    let (level, rest) = rest.split_once(" - ").unwrap_or_else(|| panic!("{line}"));
    let (run, message) =
        rest.strip_prefix('[').and_then(|rest| rest.split_once("] ")).unwrap_or_else(|| panic!("{line}"));
    (time, level, run, message)
}

#[test]
fn backup_logs_one_line_per_machine_in_kvm_backup_format() {
    let env = Env::new("log");
    for name in ["kvmb-test-a", "kvmb-test-b"] {
        env.machine(name).disk(Disk::qcow2(2 * MIB)).disk(Disk::raw(MIB)).define();
    }
    env.sh("kvmb init -r $R").run().assert_ok();
    let output = env.sh("kvmb backup --all -r $R").env("TZ", "Asia/Kolkata").run().assert_ok();
    let wall = chrono::Utc::now().naive_utc() + chrono::Duration::minutes(330);
    let all = lines(&env.log_file());
    let of_backup: Vec<&String> = all.iter().filter(|line| split(line).2 == split(all.last().unwrap()).2).collect();
    let runs: BTreeSet<&str> = all.iter().map(|line| split(line).2).collect();
    assert_eq!(runs.len(), 2, "{all:#?}");
    for line in &of_backup {
        let (time, level, ..) = split(line);
        let time = chrono::NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S,%3f").unwrap();
        // Local time, which differs from that of the host.
        assert!((wall - time).num_seconds().abs() < 120, "{line}");
        // The consequence of a first checkpoint is explained once.
        let wanted = if line.contains("has a libvirt checkpoint now") { "WARNING" } else { "INFO" };
        assert_eq!(level, wanted, "{line}");
    }
    for point in output.records_of("point") {
        let sum =
            |key: &str| point["disks"].as_array().unwrap().iter().map(|disk| disk[key].as_u64().unwrap()).sum::<u64>();
        let wanted = [
            format!("machine={}", point["machine"].as_str().unwrap()),
            format!("point={}", point["point"].as_str().unwrap()),
            format!("read_bytes={}", sum("read_bytes")),
            format!("new_bytes={}", sum("new_bytes")),
            format!("stored_bytes={}", sum("stored_bytes")),
            format!("duration_seconds={}", point["duration_seconds"]),
        ];
        let found =
            of_backup.iter().filter(|line| wanted.iter().all(|word| line.split(' ').any(|w| w == word))).count();
        assert_eq!(found, 1, "{wanted:?} in {of_backup:#?}");
    }
    assert!(split(of_backup[0]).3.ends_with(" backup begins"), "{of_backup:#?}");
    assert!(split(of_backup.last().unwrap()).3.starts_with("kvmb backup ends: done exit_code=0 "), "{of_backup:#?}");

    // Failures have a code and a hint; commands that only read are not logged.
    let before = lines(&env.log_file()).len();
    env.kvmb(["points", "-r", &env.repo()]).run().assert_ok();
    env.kvmb(["vms"]).run().assert_ok();
    assert_eq!(lines(&env.log_file()).len(), before);
    env.kvmb(["backup", "nobody", "-r", &env.repo()]).run().assert_code(1);
    let all = lines(&env.log_file());
    let failed = all.iter().find(|line| split(line).1 == "ERROR").expect("an error");
    assert!(failed.contains("machine=nobody code=not_found"), "{failed}");
    assert!(all.last().unwrap().contains("kvmb backup ends: failed exit_code=1"), "{all:#?}");
}

#[test]
fn json_log_lines_carry_the_fields_of_the_point() {
    let env = Env::new("json");
    env.machine("kvmb-test-a").disk(Disk::qcow2(MIB)).define();
    let script = "kvmb init -r $R && kvmb backup --all -r $R --log-format json --log-file own.log";
    let point = env.sh(script).run().assert_ok().record_of("point");
    let all: Vec<Value> = lines(&env.path("own.log")).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stored = all.iter().find(|line| line["point"] == point["point"]).unwrap();
    assert_eq!(
        (&stored["level"], &stored["command"], &stored["machine"]),
        (&json!("INFO"), &json!("backup"), &json!("kvmb-test-a"))
    );
    assert_eq!(stored["duration_seconds"], point["duration_seconds"]);
    assert!(stored["stored_bytes"].is_u64() && stored["run"].as_str().unwrap().len() == 8, "{stored}");
    assert!(
        all.iter().all(|line| chrono::DateTime::parse_from_rfc3339(line["time"].as_str().unwrap()).is_ok()),
        "{all:#?}"
    );
}

#[test]
fn default_log_file_is_the_host_or_user_log() {
    let env = Env::new("places");
    // A private view of /var/log, so that the host's own log is unchanged.
    let of_host = "mount -t tmpfs none /var/log && kvmb init -r $R --dry-run && cat /var/log/kvm_backup.log && stat -c \
        %a /var/log/kvm_backup.log";
    let in_private = |script: &str| {
        let call = env.program("unshare").args(["-m", "sh", "-c", script]).env("R", env.repo());
        call.env("KVMB_LOG_FILE", "").run().assert_ok()
    };
    let output = in_private(of_host);
    assert!(output.stdout().contains(" - INFO - ") && output.stdout().ends_with("640\n"), "{output}");
    let read_only = "mount -t tmpfs -o ro none /var/log && kvmb init -r $R --dry-run";
    in_private(read_only);
    assert!(lines(&env.path("data/kvmb.log"))[0].contains("init begins"));
    // The log in the home folder, where older versions wrote it, is continued.
    fs::write(env.path("home/kvm_backup.log"), "").unwrap();
    in_private(read_only);
    assert!(lines(&env.path("home/kvm_backup.log"))[0].contains("init begins"));
    fs::remove_file(env.path("home/kvm_backup.log")).unwrap();
    // If neither can be written, a warning is printed, but the command does not fail.
    let output = in_private("mount -t tmpfs -o ro none /var/log && KVMB_DATA_DIR=/proc/none kvmb init -r $R --dry-run");
    output.assert_stderr_has("kvmb: warning: logging is disabled: cannot write /proc/none/kvmb.log");
    // Also for the configured log.
    env.configure(&json!({"log": {"file": env.path("configured.log")}}));
    in_private("kvmb init -r $R --dry-run");
    assert_eq!(lines(&env.path("configured.log")).len(), 2);
}

#[test]
fn log_rotation_bounds_files_under_concurrent_writers() {
    let env = Env::new("rotation");
    env.configure(&json!({"log": {"max_size": "1K", "keep": 3}}));
    let script = "for i in 1 2 3 4; do (for j in 1 2 3 4 5; do kvmb release kvmb-test-none-$i-$j >/dev/null 2>&1; \
        done) & done; wait";
    env.sh(script).run().assert_ok();
    let names: BTreeSet<String> = fs::read_dir(env.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("kvmb.log"))
        .collect();
    assert!(
        names.iter().all(|name| ["kvmb.log", "kvmb.log.1", "kvmb.log.2", "kvmb.log.3"].contains(&name.as_str())),
        "{names:?}"
    );
    assert!(names.len() >= 3, "{names:?}");
    for name in &names {
        let path = env.path(name);
        assert!(fs::metadata(&path).unwrap().len() < 4096, "{name}");
        // Every line is complete.
        lines(&path).iter().for_each(|line| assert_eq!(split(line).2.len(), 8, "{line}"));
    }
}

#[test]
fn hostile_names_cannot_forge_log_lines_and_secrets_are_not_logged() {
    let env = Env::new("hostile");
    let name = "x\n2025-01-01 00:00:00,000 - INFO - [00000000] all is well\u{1b}[2J\u{202e}";
    env.kvmb(["backup", name, "-r", &env.repo()]).run().assert_code(1);
    let all = lines(&env.log_file());
    assert!(all.iter().all(|line| !line.starts_with("2025-01-01")), "{all:#?}");
    assert!(!all.concat().contains(['\u{1b}', '\u{202e}']), "{all:#?}");
    // Passwords, from whichever source.
    let secret = "hunter2-secret";
    env.configure(&json!({"password_command": format!("echo {secret}")}));
    let call = || env.kvmb(["-vv", "init", "-r", &env.repo()]).without_env("KVMB_PASSWORD_FILE");
    call().run().assert_ok();
    call().env("KVMB_PASSWORD", format!("{secret}2")).run();
    call().env("KVMB_PASSWORD_COMMAND", format!("echo {secret}3; exit 1")).run();
    env.kvmb(["init", "-r", &format!("sftp://user:{secret}@host//x")]).run().assert_code(2);
    assert!(!lines(&env.log_file()).concat().contains(secret), "{:#?}", lines(&env.log_file()));
}

/// Runs a real systemd-journald in a private view of the system, and `$1` with standard error connected to it.
const IN_JOURNAL: &str = r#"
set -e
mount -t tmpfs none /run
mount -t tmpfs none /var/log
mkdir -p /run/systemd/journal /run/log/journal
/lib/systemd/systemd-journald &
journald=$!
trap 'kill $journald; wait $journald || true' EXIT
i=0
until [ -S /run/systemd/journal/stdout ] && [ -S /run/systemd/journal/socket ]; do
  i=$((i + 1)); [ $i -lt 200 ] || exit 9; sleep 0.05; done
systemd-cat --identifier=unit sh -c "$1"
journalctl --sync 2>/dev/null || sleep 1
journalctl --directory=/run/log/journal --output=json --no-pager
"#;

#[test]
fn journal_entries_have_fields_under_systemd() {
    parts::require(&["systemd-cat", "journalctl", "unshare"]);
    let env = Env::new("journal");
    env.machine("kvmb-test-a").disk(Disk::qcow2(MIB)).define();
    env.sh("kvmb init -r $R").run().assert_ok();
    let call = env.program("unshare").args(["-m", "sh", "-c", IN_JOURNAL, "sh"]);
    let output = call
        .arg("kvmb backup kvmb-test-a nobody -r $R >/dev/null || true")
        .env("R", env.repo())
        .env("KVMB_LOG_FILE", "")
        .run();
    let entries: Vec<Value> = output.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ours: Vec<&Value> = entries.iter().filter(|entry| entry["COMMAND"] == "backup").collect();
    let stored = ours.iter().find(|entry| entry["F_POINT"].is_string()).unwrap_or_else(|| panic!("{output}"));
    assert_eq!((&stored["F_MACHINE"], &stored["SYSLOG_IDENTIFIER"]), (&json!("kvmb-test-a"), &json!("kvmb")));
    assert!(ours.iter().all(|entry| entry["RUN"] == stored["RUN"]), "{output}");
    // An error has its priority, and is not reported twice.
    let errors: Vec<&Value> =
        entries.iter().filter(|entry| entry["MESSAGE"].as_str().is_some_and(|text| text.contains("nobody"))).collect();
    assert_eq!(errors.len(), 1, "{output}");
    assert_eq!(errors[0]["PRIORITY"], "3", "{output}");
}

#[test]
fn log_shows_one_run_by_its_id() {
    let env = Env::new("log of a run");
    env.machine("kvmb-test-a").disk(Disk::qcow2(MIB)).define();
    let show = |args: &[&str]| env.kvmb([&["log"], args].concat()).run();
    show(&[]).assert_code(1).assert_stderr_has("no run in ").assert_stderr_has("journalctl -t kvmb");
    env.sh("kvmb init -r $R").run().assert_ok();
    env.sh("kvmb backup --all -r $R").run().assert_ok();
    env.sh("kvmb backup kvmb-test-none -r $R").run().assert_code(1);
    let all = lines(&env.log_file());
    let run_of = |words: &str| split(all.iter().find(|line| line.contains(words)).expect(words)).2;
    for words in ["was backed up", "kvmb-test-none"] {
        let run = run_of(words);
        let wanted: Vec<&str> = all.iter().map(String::as_str).filter(|line| split(line).2 == run).collect();
        assert!(wanted.len() >= 3, "{all:#?}");
        let output = show(&[run]).assert_ok();
        assert_eq!(output.stdout().lines().collect::<Vec<_>>(), wanted);
        // Without an id, the last run is shown.
        let is_last = all.last().unwrap() == wanted.last().unwrap();
        assert_eq!(show(&[]).assert_ok().stdout() == output.stdout(), is_last);
    }
    // The status of a machine names its last run.
    env.configure(&json!({"repo": env.repo(), "hooks": {"before_machine": [{"command": ["false"]}]}}));
    env.kvmb(["backup", "kvmb-test-a"]).run().assert_code(1);
    let checks = env.kvmb(["status"]).run().assert_ok().records_of("check");
    let check = checks.iter().find(|check| check["check"] == "backup").unwrap();
    let run = check["last_run"].as_str().unwrap();
    assert_eq!(check["hint"], format!("kvmb log {run}"));
    assert!(show(&[run]).assert_ok().stdout().contains("hook"), "{check}");
    show(&["00000000"]).assert_code(1).assert_stderr_has("journalctl -t kvmb RUN=00000000");
    show(&["../x"]).assert_code(2);
}

#[test]
fn log_is_filtered_limited_and_followed() {
    let env = Env::new("log filter");
    env.kvmb(["init", "-r", &env.repo(), "--log-file", "other.log"]).run().assert_ok();
    for text in ["text", "json"] {
        env.kvmb(["backup", "kvmb-test-none", "-r", &env.repo(), "--log-format", text]).run().assert_code(1);
    }
    let runs: Vec<Value> = env.kvmb(["log", "--all", "--json"]).run().assert_ok().records();
    let id = |at: usize| runs[at]["run"].as_str().unwrap().to_owned();
    let (first, last) = (id(0), id(runs.len() - 1));
    assert_ne!(first, last, "{runs:#?}");
    let records = |args: &[&str]| env.kvmb(["log", "--json"]).args(args).run().assert_ok().records();
    assert!(records(&[&first]).iter().all(|line| line["type"] == "log" && line["run"] == first.as_str()));
    assert!(records(&[]).iter().all(|line| line["run"] == last.as_str()));
    // Both formats of a line have the same content.
    let messages = |run: &str| {
        let lines = records(&[run, "--level", "error"]);
        lines.iter().map(|line| line["message"].as_str().unwrap().replace('"', "")).collect::<Vec<_>>()
    };
    assert_eq!(messages(&first), messages(&last));
    assert!(messages(&first).iter().any(|message| message.contains("machine=kvmb-test-none")), "{runs:#?}");
    assert_eq!(records(&["--all", "--limit", "2"]), runs[runs.len() - 2..]);
    let few = records(&["--all", "--grep", "BACKUP BEGINS"]);
    assert_eq!(few.len(), 2, "{few:#?}");
    assert!(records(&[&first, "--grep", "no such text"]).is_empty());
    // Lines are printed unchanged unless records are requested.
    let output = env.kvmb(["log", &first, "--limit", "1"]).run().assert_ok();
    assert!(split(output.stdout().trim_end()).3.starts_with("kvmb backup ends"), "{output}");
    env.kvmb(["log", &first, "--all"]).run().assert_code(2);
    env.kvmb(["log", "ffffffff", "--json"]).run().assert_code(1).assert_stderr_has("no run ffffffff");

    let followed = env.kvmb(["log", "--follow", "--limit", "0", "--grep", "begins"]).spawn();
    let begun = || followed.stdout_so_far().matches("release begins").count();
    // The command may still be starting; after its first line it must not miss any.
    wait_until("a line is followed", Duration::from_secs(60), || {
        env.kvmb(["release", "kvmb-test-none"]).run().assert_ok();
        begun() > 0
    });
    let seen = begun();
    env.kvmb(["release", "kvmb-test-none"]).run().assert_ok();
    wait_until("the next one, too", Duration::from_secs(60), || begun() > seen);
    followed.interrupt();
    followed.wait();
}

#[test]
fn full_disk_under_the_log_is_reported_once_and_fails_no_command() {
    let env = Env::new("log without room");
    let output = env.sh("kvmb init -r $R --log-file /dev/full").run().assert_ok();
    let told = "the log of this run is incomplete: cannot write /dev/full: No space left on device";
    assert_eq!(output.stderr().matches(told).count(), 1, "{output}");
    let quiet = env.sh("kvmb -q verify --all -r $R --log-file /dev/full").run().assert_ok();
    assert_eq!(quiet.stderr(), "");
}

#[test]
fn named_pipe_as_a_log_is_refused_by_writers_and_readers() {
    let env = Env::new("log pipe");
    env.program("mkfifo").args(["log"]).run().assert_ok();
    let pipe = env.path("log").display().to_string();
    env.sh("kvmb init -r $R").env("KVMB_LOG_FILE", &pipe).run().assert_ok().assert_stderr_has("logging is disabled");
    for args in [&["log"][..], &["log", "--all"], &["log", "--follow"]] {
        env.kvmb(args).env("KVMB_LOG_FILE", &pipe).run().assert_code(1).assert_stderr_has("not a regular file");
    }
}
