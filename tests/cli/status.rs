//! `kvmb status`: what it reports, when it warns, and the formats for monitoring systems.

// A test panics if a result is not what it expects.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::support::{Call, Disk, Env, Output, parts};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A name with special characters for shells, Nagios, Prometheus, JSON and terminals. libvirt's QEMU driver accepts
/// neither line ends nor slashes.
const HOSTILE: &str = "it's \"a=b\" | \\ , ; {x} $(touch pwned) ü\u{202e}";

/// Prepares machines that are off, and a repository.
fn prepared(title: &str, machines: &[&str]) -> Env {
    let env = Env::new(title);
    for name in machines {
        env.machine(name).disk(Disk::qcow2(MIB)).define();
    }
    env.sh("kvmb init -r $R").run().assert_ok();
    env.configure(&json!({"repo": env.repo()}));
    env
}

fn status(env: &Env, args: &[&str]) -> Output {
    status_call(env, args).run()
}

fn status_call(env: &Env, args: &[&str]) -> Call {
    env.kvmb([&["status"], args].concat())
}

fn backup(env: &Env, name: &str) -> Value {
    env.kvmb(["backup", name]).run().assert_ok().record_of("point")
}

/// Returns the check of a machine or of something else.
#[track_caller]
fn check(output: &Output, kind: &str, target: &str) -> Value {
    let checks = output.records_of("check");
    let found = checks.into_iter().find(|check| check["check"] == kind && check["target"] == target);
    found.unwrap_or_else(|| panic!("no {kind} {target}: {output}"))
}

#[track_caller]
fn assert_machine(output: &Output, name: &str, status: &str, words: &str) {
    let check = check(output, "backup", name);
    assert_eq!(check["status"], status, "{check}");
    assert!(check["detail"].as_str().unwrap().contains(words), "{check}");
}

#[test]
fn machine_is_critical_without_a_backup_or_with_an_old_point() {
    let env = prepared("status age", &["vm1", "vm2"]);
    let output = status(&env, &[]).assert_code(1);
    assert_machine(&output, "vm1", "critical", "never backed up");
    assert_eq!(check(&output, "backup", "vm1")["hint"], "kvmb backup vm1");
    let point = backup(&env, "vm1");
    let output = status(&env, &[]).assert_code(1);
    assert_machine(&output, "vm1", "ok", "the newest point is 0 s old".split('0').next().unwrap());
    assert_machine(&output, "vm2", "critical", "never backed up");
    let vm1 = check(&output, "backup", "vm1");
    assert_eq!((&vm1["newest_point"], &vm1["captured_at"]), (&point["point"], &point["captured_at"]));
    assert_eq!(
        (&vm1["last_result"], &vm1["points"], &vm1["standing"]),
        (&json!("done"), &json!(1), &json!("selected"))
    );
    assert_eq!((&vm1["warning_seconds"], &vm1["critical_seconds"]), (&json!(26 * 3600), &json!(50 * 3600)));
    assert_eq!(vm1["stored_bytes"], point["disks"][0]["stored_bytes"]);
    // Only what was requested, by name, glob or UUID.
    let output = status(&env, &["vm1"]).assert_ok();
    assert_eq!(output.records_of("check").iter().filter(|check| check["check"] == "backup").count(), 1);
    status(&env, &["v*1"]).assert_ok();
    status(&env, &[point["uuid"].as_str().unwrap()]).assert_ok();
    assert_machine(
        &status(&env, &["vm9"]).assert_code(1),
        "vm9",
        "critical",
        "never backed up; the machine does not exist",
    );
    // Thresholds from a flag and from the configuration.
    assert_machine(&status(&env, &["vm1", "--warning", "0s"]).assert_code(1), "vm1", "critical", "old");
    assert_machine(&status(&env, &["vm1", "--warning", "0s", "--critical", "1h"]).assert_ok(), "vm1", "warning", "old");
    status(&env, &["vm1", "--warning", "2h", "--critical", "1h"]).assert_code(2);
    env.configure(&json!({"repo": env.repo(), "backup_freq": "@hourly"}));
    assert_eq!(check(&status(&env, &["vm1"]), "backup", "vm1")["warning_seconds"], 3 * 3600);
    env.configure(&json!({"repo": env.repo(), "status": {"warning": "1h", "critical": "5h", "verify_warning": "6h"}}));
    let vm1 = check(&status(&env, &["vm1"]).assert_ok(), "backup", "vm1");
    let limits =
        ["warning_seconds", "critical_seconds", "verify_warning_seconds"].map(|key| vm1[key].as_u64().unwrap() / 3600);
    assert_eq!(limits, [1, 5, 6]);
    env.configure(&json!({"status": {"warning": "6h", "critical": "5h"}}));
    status(&env, &[]).assert_code(2).assert_stderr_has("\"status.warning\" must not be longer than status.critical");
}

/// Runs kvmb with its clock shifted by this offset. libvirt, which has its own threads, is excluded.
fn ahead(env: &Env, offset: &str, args: &[&str]) -> Output {
    let call = status_call(env, &[args, &["-c", "qemu+unix:///system?socket=/nowhere"]].concat());
    call.env("LD_PRELOAD", crate::support::faketime::library()).env("FAKETIME", offset).run()
}

#[test]
fn point_age_turns_warning_then_critical_over_days() {
    let env = prepared("status days", &["vm1"]);
    backup(&env, "vm1");
    assert_machine(&ahead(&env, "+25h", &[]).assert_ok(), "vm1", "ok", "the newest point is 25 h old");
    assert_machine(&ahead(&env, "+27h", &[]).assert_ok(), "vm1", "warning", "27 h old");
    assert_machine(&ahead(&env, "+3d", &[]).assert_code(1), "vm1", "critical", "3 days old");
    let month = ahead(&env, "+31d", &["--warning", "40d"]).assert_ok();
    assert_machine(&month, "vm1", "warning", "no point has ever been verified");
    assert_machine(&ahead(&env, "-2h", &[]).assert_ok(), "vm1", "warning", "dated in the future; check the clocks");
    // With a schedule that sets the thresholds.
    env.configure(&json!({"repo": env.repo(), "backup_freq": "0 2 * * sun"}));
    assert_machine(&ahead(&env, "+6d", &[]).assert_ok(), "vm1", "ok", "6 days old");
    ahead(&env, "+8d", &["--nagios"]).assert_code(1);
}

#[test]
fn failed_run_is_reported_until_one_succeeds() {
    let env = prepared("status failed", &["vm1"]);
    backup(&env, "vm1");
    let hooks = json!({"before_machine": [{"command": ["false"]}]});
    env.configure(&json!({"repo": env.repo(), "hooks": hooks}));
    env.kvmb(["backup", "vm1"]).run().assert_code(1);
    let output = status(&env, &[]).assert_ok();
    assert_machine(&output, "vm1", "warning", "failed: the hook before_machine");
    let vm1 = check(&output, "backup", "vm1");
    assert_eq!((&vm1["last_result"], &vm1["last_code"]), (&json!("failed"), &json!("hook")));
    assert!(vm1["last_run_at"].as_str() > vm1["last_success_at"].as_str(), "{vm1}");
    // The same in a pipeline.
    env.configure(&json!({"repo": env.repo()}));
    env.sh("kvmb snapshot vm1 -r $R | kvmb push -r $R | kvmb release").run().assert_ok();
    let output = status(&env, &[]).assert_ok();
    assert_machine(&output, "vm1", "ok", "");
    assert_eq!(check(&output, "backup", "vm1")["points"], 2);
    env.assert_nothing_left();
}

#[test]
fn verification_depth_and_damage_are_remembered_until_repaired() {
    let env = prepared("status verified", &["vm1"]);
    backup(&env, "vm1");
    let verified = |args: &[&str]| {
        let vm1 = check(&status(&env, args).assert_ok(), "backup", "vm1");
        (vm1["verified_depth"].clone(), vm1["status"].clone())
    };
    assert_eq!(verified(&["--verify-warning", "0s"]), (Value::Null, json!("warning")));
    assert_eq!(verified(&[]), (Value::Null, json!("ok")));
    for (flags, depth) in [(&["--quick"][..], "quick"), (&["--sample", "50%"], "sample"), (&[], "full")] {
        env.kvmb([&["verify", "vm1"], flags].concat()).run().assert_ok();
        assert_eq!(verified(&[]), (json!(depth), json!("ok")));
    }
    assert_eq!(verified(&["--verify-warning", "0s"]), (json!("full"), json!("warning")));
    env.kvmb(["backup", "vm1", "--verify"]).run().assert_ok();

    let keep = env.path("kept");
    env.sh(&format!("cp -a $R {}", keep.display())).run().assert_ok();
    let spoil = "for p in $(find $R/data -type f); do chmod u+w $p; printf bad | dd of=$p bs=1 seek=40 conv=notrunc \
        status=none; done";
    env.sh(spoil).run().assert_ok();
    env.kvmb(["verify", "--all"]).run().assert_code(4);
    let mend = format!("rm -rf $R; cp -a {} $R", keep.display());
    env.sh(&mend).run().assert_ok();
    let output = status(&env, &[]).assert_code(4);
    assert_machine(&output, "vm1", "critical", "2 points are damaged");
    assert_eq!(check(&output, "backup", "vm1")["damaged_points"].as_array().unwrap().len(), 2);
    status(&env, &["--nagios"]).assert_code(2);
    // A quick verification does not clear what a full one found.
    env.kvmb(["verify", "--all", "--quick"]).run().assert_ok();
    status(&env, &[]).assert_code(4);
    env.kvmb(["verify", "--all"]).run().assert_ok();
    assert_machine(&status(&env, &[]).assert_ok(), "vm1", "ok", "");
    // An unreadable snapshot file is damage too, although its machine is unknown. If this host has a cached copy, only
    // --no-cache notices the damage.
    env.sh(
        "f=$(ls $R/snapshots/* | head -n 1); chmod u+w $f; printf bad | dd of=$f bs=1 seek=40 conv=notrunc status=none",
    )
    .run()
    .assert_ok();
    assert_machine(&status(&env, &[]).assert_ok(), "vm1", "ok", "");
    let output = status(&env, &["--no-cache"]).assert_code(4);
    assert_machine(&output, "vm1", "ok", "");
    let repository = check(&output, "repository", &env.repo());
    assert_eq!(
        (&repository["status"], &repository["detail"]),
        (&json!("critical"), &json!("1 snapshot files cannot be read"))
    );
    env.sh(&mend).run().assert_ok();
    // The description of the newest point is lost.
    env.sh(spoil).run().assert_ok();
    assert_machine(&status(&env, &["--no-cache"]).assert_code(4), "vm1", "critical", "damaged");
}

#[test]
fn unreachable_repository_is_never_ok() {
    let env = prepared("status unreachable", &["vm1", "vm2"]);
    backup(&env, "vm1");
    fs::rename(env.repo(), env.path("elsewhere")).unwrap();
    let output = status(&env, &[]).assert_code(1);
    assert_eq!(check(&output, "repository", &env.repo())["status"], "critical");
    assert_machine(&output, "vm1", "unknown", "according to this host, the newest point is");
    assert_machine(
        &output,
        "vm2",
        "critical",
        "the repository is unreachable; according to this host, never backed up",
    );
    assert_eq!(check(&output, "backup", "vm1")["known_from"], "history");
    assert_machine(
        &status(&env, &["--warning", "0s"]).assert_code(1),
        "vm1",
        "critical",
        "the repository is unreachable",
    );
    status(&env, &["--nagios"]).assert_code(2);
    // A failed run is recorded too.
    env.kvmb(["backup", "vm1"]).run().assert_code(1);
    assert_machine(&status(&env, &[]).assert_code(1), "vm1", "warning", "the last run,");
    fs::rename(env.path("elsewhere"), env.repo()).unwrap();
    assert_machine(&status(&env, &["vm1"]).assert_ok(), "vm1", "warning", "failed");
    // Without the server, there is no long wait.
    let output = status(&env, &["-r", "sftp://127.0.0.1:1//nowhere", "--retry-for", "1s"]).assert_code(1);
    assert_machine(
        &output,
        "vm1",
        "critical",
        "the repository is unreachable; according to this host, never backed up",
    );
    assert!(output.took.as_secs() < 60, "{output}");
    // Without libvirt, machines with points are still known.
    let output = status(&env, &["-c", "qemu+unix:///system?socket=/nowhere"]).assert_code(0);
    assert_machine(&output, "vm1", "warning", "failed");
    assert!(output.stdout().contains("cannot list the machines"), "{output}");
}

#[test]
fn expected_machines_follow_the_configured_selection() {
    let env = prepared("status selection", &["vm1", "vm2", "vm3"]);
    for name in ["vm1", "vm2", "vm3"] {
        backup(&env, name);
    }
    env.virsh(&["undefine", "vm3", "--checkpoints-metadata"]);
    let select = |selected: Value| env.configure(&json!({"repo": env.repo(), "selected_vms": selected}));
    let standing = |output: &Output, name: &str| check(output, "backup", name)["standing"].clone();
    select(json!({"vm*": true, "vm2": false}));
    let output = status(&env, &["--warning", "0s", "--critical", "1h"]).assert_ok();
    assert_machine(&output, "vm1", "warning", "old");
    assert_machine(&output, "vm2", "ok", "not selected for backup");
    assert_machine(&output, "vm3", "ok", "the machine no longer exists");
    assert_eq!(["vm1", "vm2", "vm3"].map(|name| standing(&output, name)), ["selected", "left_out", "gone"]);
    // A machine that is named is expected to exist.
    select(json!({"vm1": true, "vm3": true, "vm4": true}));
    let output = status(&env, &[]).assert_code(1);
    assert_machine(&output, "vm3", "warning", "the machine does not exist");
    assert_machine(&output, "vm4", "critical", "never backed up");
    // Another machine with the same name has no backup.
    env.virsh(&["undefine", "vm1", "--checkpoints-metadata"]);
    let again = env.machine("vm1").disk(Disk::qcow2(MIB).file_name("new.qcow2")).define();
    drop(again);
    select(json!({"vm1": true}));
    let output = status(&env, &["vm1"]).assert_code(1);
    assert!(output.stdout().contains("never backed up"), "{output}");
}

#[test]
fn connection_without_machines_is_not_ok_if_the_host_has_points() {
    let env = prepared("status empty", &["vm1"]);
    backup(&env, "vm1");
    let other = format!("qemu:///embed?root={}", env.path("other").display());
    fs::create_dir(env.path("other")).unwrap();
    let output = status(&env, &["-c", &other]).assert_ok();
    assert_machine(&output, "vm1", "ok", "the machine no longer exists");
    let connection = output.records_of("check").into_iter().find(|check| check["check"] == "connection").unwrap();
    assert_eq!(connection["status"], "unknown", "{output}");
    assert_eq!(connection["detail"], format!("{other} has no machines, but this host has points"));
    status(&env, &["-c", &other, "--nagios"]).assert_code(3);
    // Without points there is nothing to lose.
    let empty = prepared("status fresh", &[]);
    assert!(!status(&empty, &["-c", &other]).stdout().contains("\"connection\""));
}

#[test]
fn second_repository_is_checked_for_copies() {
    let env = prepared("status copies", &["vm1"]);
    let second = env.repo_named("second");
    env.sh("kvmb init -r second").run().assert_ok();
    backup(&env, "vm1");
    let args = ["--copy-to", second.as_str()];
    let output = status(&env, &args).assert_code(1);
    let copy = check(&output, "copy", &second);
    assert_eq!((&copy["status"], &copy["detail"]), (&json!("critical"), &json!("no copy of vm1")));
    env.kvmb(["backup", "vm1", "--copy-to", &second]).run().assert_ok();
    let copy = check(&status(&env, &args).assert_ok(), "copy", &second);
    assert_eq!((&copy["status"], &copy["machines"]), (&json!("ok"), &json!(1)));
    assert!(copy["age_seconds"].is_u64(), "{copy}");
    // The copy is damaged, the first repository is not.
    let snapshot = fs::read_dir(env.path("second/snapshots")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&snapshot).unwrap();
    fs::write(&snapshot, &whole[1..]).unwrap();
    let output = status(&env, &args).assert_code(4);
    assert_machine(&output, "vm1", "ok", "");
    let copy = check(&output, "copy", &second);
    let detail = copy["detail"].as_str().unwrap();
    assert!(copy["status"] == "critical" && detail.contains("1 snapshot files cannot be read"), "{copy}");
    fs::write(&snapshot, &whole).unwrap();
    // If it is unreachable, the history is used.
    fs::rename(&second, env.path("away")).unwrap();
    let copy = check(&status(&env, &args).assert_ok(), "copy", &second);
    assert_eq!(copy["status"], "unknown", "{copy}");
    assert!(copy["detail"].as_str().unwrap().contains("the newest copy of vm1 is"), "{copy}");
}

#[test]
fn unexported_key_is_a_warning() {
    let env = Env::new("status key");
    env.machine("vm1").disk(Disk::qcow2(MIB)).define();
    let home = |words: &[&str]| env.kvmb(words).without_env("KVMB_PASSWORD_FILE").run();
    // Nothing exists yet: no repository, no key, and no missing password.
    let output = home(&["status"]).assert_code(1);
    assert_machine(&output, "vm1", "critical", "never backed up");
    let missing = check(&output, "repository", &env.path("data/repo").display().to_string());
    assert_eq!(missing["detail"], "no repository yet", "{output}");
    assert_eq!(missing["hint"], "run 'kvmb backup NAME' to make the first one, or choose a repository with -r URL");
    home(&["backup", "vm1"]).assert_ok();
    let repo = env.path("data/repo").display().to_string();
    assert_eq!(check(&home(&["status"]).assert_ok(), "key", &repo)["status"], "warning");
    home(&["status", "--nagios"]).assert_code(1);
    home(&["key", "export", "exported"]).assert_ok();
    assert_eq!(check(&home(&["status"]).assert_ok(), "key", &repo)["status"], "ok");
    home(&["status", "--nagios"]).assert_ok();
}

/// Parses performance data according to the guidelines: `'label'=value[unit];[warn];[crit];[min];[max]`.
fn performance_data(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut label = String::new();
        rest = rest.strip_prefix('\'').unwrap_or_else(|| panic!("no quote: {rest}"));
        loop {
            let end = rest.find('\'').unwrap_or_else(|| panic!("an open quote: {text}"));
            label.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            match rest.strip_prefix('\'') {
                Some(after) => rest = after,
                None => break,
            }
            label.push('\'');
        }
        assert!(!label.contains(['=', '|']), "{label}");
        rest = rest.strip_prefix('=').unwrap_or_else(|| panic!("no value: {rest}"));
        let (data, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after.trim_start();
        let mut fields = data.split(';').map(str::to_owned);
        let value = fields.next().unwrap();
        let digits = value.trim_end_matches(['s', 'B']);
        assert!(value == "U" || digits.parse::<f64>().is_ok(), "{value}");
        let limits: Vec<String> = fields.collect();
        assert!(
            limits.len() <= 4 && limits.iter().all(|limit| limit.is_empty() || limit.parse::<f64>().is_ok()),
            "{data}"
        );
        found.insert(label, (value, limits));
    }
    found
}

#[test]
fn nagios_output_has_valid_lines_and_plugin_exit_codes() {
    let env = prepared("status nagios", &[HOSTILE, "vm1"]);
    let answer = |args: &[&str], code: i32| {
        let output = status(&env, &[&["--nagios"], args].concat()).assert_code(code);
        let text = output.stdout().to_owned();
        let (first, long) = text.split_once('\n').expect("a line");
        assert!(!long.contains('|'), "{text}");
        let (words, data) = first.split_once('|').unwrap_or((first, ""));
        (words.to_owned(), performance_data(data), long.to_owned())
    };
    let (words, data, long) = answer(&["vm1"], 2);
    assert_eq!(words, "KVMB CRITICAL - vm1: never backed up");
    assert_eq!(data["vm1_age"], ("U".into(), ["93600", "180000", "0"].map(String::from).to_vec()));
    assert!(long.starts_with("[CRITICAL] vm1: never backed up (kvmb backup vm1)\n[OK] "), "{long}");
    env.kvmb(["backup", "--all"]).run().assert_ok();
    let (words, data, long) = answer(&[], 0);
    assert!(words.starts_with("KVMB OK - 2 machines, oldest latest point is "), "{words}");
    assert_eq!(data.len(), 8);
    let hostile = HOSTILE.replace(['=', '|'], "_");
    assert!(data[&format!("{hostile}_age")].0.ends_with('s'), "{data:?}");
    assert!(data[&format!("{hostile}_stored")].0.ends_with('B'), "{data:?}");
    assert_eq!(long.lines().count(), 3);
    assert!(!long.contains('\u{202e}'));
    let (words, ..) = answer(&["vm1", "--warning", "0s", "--critical", "1h"], 1);
    assert!(words.starts_with("KVMB WARNING - vm1: the newest point is"), "{words}");
    answer(&["vm1", "--critical", "0s"], 2);
    // Wrong usage is "unknown", reported on standard output for Nagios.
    for args in
        [&["--no-such-flag"][..], &["--warning", "soon"], &["--warning", "2h", "--critical", "1h"], &["--prometheus"]]
    {
        let (words, ..) = answer(args, 3);
        assert!(words.starts_with("KVMB UNKNOWN - "), "{words}");
    }
    let none = status_call(&env, &["--nagios"]).without_env("KVMB_PASSWORD_FILE").run().assert_code(3);
    assert!(none.stdout().starts_with("KVMB UNKNOWN - no password"), "{none}");
    env.configure(&json!({"repos": 1}));
    let (words, ..) = answer(&[], 3);
    assert!(words.contains("\"repos\" is unknown"), "{words}");
    env.kvmb(["vms", "--nagios"]).run().assert_code(2);
    assert!(!env.path("pwned").exists());
}

/// Returns the samples of metrics: name with labels → value.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(key, value)| (key.to_owned(), value.parse().unwrap()))
        .collect()
}

#[test]
fn prometheus_metrics_are_valid_and_written_after_every_run() {
    parts::require(&["promtool"]);
    let env = prepared("status prometheus", &[HOSTILE, "vm1", "vm2"]);
    let second = env.repo_named("second");
    env.sh("kvmb init -r second").run().assert_ok();
    env.kvmb(["backup", "vm1", HOSTILE, "--copy-to", &second]).run().assert_ok();
    env.kvmb(["verify", "vm1"]).run().assert_ok();
    let output = status(&env, &["--prometheus", "--copy-to", &second]).assert_ok();
    let checked = env.program("promtool").args(["check", "metrics"]).stdin(&output.stdout).run().assert_ok();
    assert_eq!((checked.stdout(), checked.stderr()), ("", ""));
    let found = samples(output.stdout());
    let point =
        |name: &str| found.iter().find(|(key, _)| key.starts_with(name)).unwrap_or_else(|| panic!("{name}: {output}"));
    let hostile = HOSTILE.replace('\\', r"\\").replace('"', "\\\"");
    let (key, value) = point(&format!("kvmb_machine_newest_point_timestamp_seconds{{machine=\"{hostile}\",uuid="));
    assert!(key.ends_with(&format!(",repo=\"{}\"}}", env.repo())), "{key}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - value).abs() < 300.0, "{value}");
    assert_eq!(*point("kvmb_machine_status{machine=\"vm2\"").1, 2.0);
    assert_eq!(*point("kvmb_machine_last_run_success{machine=\"vm1\"").1, 1.0);
    assert!(*point("kvmb_machine_last_success_duration_seconds{machine=\"vm1\"").1 > 0.0);
    point("kvmb_copy_newest_point_timestamp_seconds{machine=\"vm1\"");
    point("kvmb_machine_last_verification_timestamp_seconds{machine=\"vm1\"");
    assert!(!found.keys().any(|key| key.starts_with("kvmb_machine_newest_point_timestamp_seconds{machine=\"vm2\"")));

    // The alerting rules of the documentation are valid.
    let page = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring.md")).unwrap();
    let rules = page.split_once("```yaml\ngroups:").expect("rules").1.split("```").next().unwrap();
    fs::write(env.path("rules.yml"), format!("groups:{rules}")).unwrap();
    env.program("promtool").args(["check", "rules", "rules.yml"]).run().assert_ok();
    let names = rules.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| word.starts_with("kvmb_"));
    names.for_each(|name| assert!(output.stdout().contains(&format!("# TYPE {name} gauge")), "{name}"));

    // Into a file that others may read, without leaving other files.
    fs::create_dir(env.path("textfile")).unwrap();
    let file = env.path("textfile/kvmb.prom");
    let path = file.display().to_string();
    let action = status_call(&env, &["--textfile", &path, "--dry-run"]).run().assert_ok().record_of("action");
    assert_eq!((&action["target"], &action["dry_run"]), (&path.as_str().into(), &true.into()), "{action}");
    assert_eq!(fs::read_dir(env.path("textfile")).unwrap().count(), 0);
    status(&env, &["--prometheus", "--dry-run"]).assert_code(2);
    let output = status_call(&env, &["--textfile", &path]).run().assert_ok();
    assert!(output.stdout.is_empty(), "{output}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    status(&env, &["--textfile", "/no/such/folder/x.prom"]).assert_code(1);
    fs::remove_file(&file).unwrap();

    let selected = json!({"vm1": true, "vm2": true});
    let configure = |repo: &str| {
        let status = json!({"prometheus_textfile": file});
        env.configure(&json!({"repo": repo, "selected_vms": selected, "status": status}));
    };
    let success = || samples(&fs::read_to_string(&file).unwrap());
    let value =
        |found: &BTreeMap<String, f64>, name: &str| *found.iter().find(|(key, _)| key.starts_with(name)).unwrap().1;
    configure(&env.repo());
    env.kvmb(["backup"]).run().assert_ok();
    let found = success();
    assert_eq!(value(&found, "kvmb_machine_last_run_success{machine=\"vm2\""), 1.0);
    assert_eq!(value(&found, "kvmb_repository_reachable"), 1.0);
    let folder = fs::read_dir(env.path("textfile")).unwrap().count();
    assert_eq!(folder, 1);
    // First vm2 cannot be backed up, then no machine can.
    let mut images = fs::read_dir(env.disks()).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(images.find(|path| path.to_string_lossy().contains("vm2")).expect("an image")).unwrap();
    env.kvmb(["backup"]).run().assert_code(3);
    let found = success();
    assert_eq!(value(&found, "kvmb_machine_last_run_success{machine=\"vm2\""), 0.0);
    assert_eq!(value(&found, "kvmb_machine_last_run_success{machine=\"vm1\""), 1.0);
    fs::rename(env.repo(), env.path("away")).unwrap();
    env.kvmb(["backup"]).run().assert_code(1);
    let found = success();
    assert_eq!(value(&found, "kvmb_repository_reachable"), 0.0);
    assert_eq!(value(&found, "kvmb_machine_last_run_success{machine=\"vm1\""), 0.0);
    assert_eq!(value(&found, "kvmb_machine_known_from_repository{machine=\"vm1\""), 0.0);
    // A metrics file that cannot be written is not a failure.
    fs::rename(env.path("away"), env.repo()).unwrap();
    fs::remove_dir_all(env.path("textfile")).unwrap();
    env.kvmb(["backup", "vm1"]).run().assert_ok().assert_stderr_has("the metrics in");
}

#[test]
fn zabbix_discovers_machines_and_their_values() {
    let env = prepared("status zabbix", &[HOSTILE, "vm1"]);
    let point = backup(&env, HOSTILE);
    let json = |what: &str| -> Value {
        let output = status(&env, &["--zabbix", what]).assert_ok();
        serde_json::from_str(output.stdout()).unwrap_or_else(|error| panic!("{error}: {output}"))
    };
    let discovered = json("discovery");
    assert_eq!(discovered.as_array().unwrap().len(), 2);
    let values = json("values");
    for machine in discovered.as_array().unwrap() {
        let id = machine["{#ID}"].as_str().unwrap();
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)), "{id}");
        let value = &values["machines"][id];
        assert_eq!(value["target"], machine["{#MACHINE}"]);
        let is_stored = machine["{#UUID}"] == point["uuid"];
        assert_eq!(value["status"], if is_stored { 0 } else { 2 });
        assert_eq!(value["age_seconds"].is_u64(), is_stored, "{value}");
    }
    assert_eq!(values["status"], 2);
    assert_eq!(values["checks"]["repository"]["status"], 0);
}

#[test]
fn line_break_in_a_machine_name_does_not_break_any_format() {
    parts::require(&["promtool"]);
    let env = prepared("status lines", &[]);
    // Not every driver refuses such a name.
    let domain = "<domain type='test'><name>a&#10;b|'c</name><memory>1024</memory><os><type>hvm</type></os></domain>";
    fs::write(env.path("node.xml"), format!("<node>{domain}</node>")).unwrap();
    let uri = format!("test://{}", env.path("node.xml").display());
    let ask = |face: &[&str], code: i32| status(&env, &[&["-c", &uri], face].concat()).assert_code(code);
    assert_machine(&ask(&[], 1), "a\nb|'c", "critical", "never");
    // The table of machines, a hint on its own line, and a summary; with --all, the other checks too.
    assert_eq!(ask(&["-o", "table"], 1).stdout().lines().count(), 5);
    assert_eq!(ask(&["-o", "table", "--all"], 1).stdout().lines().count(), 8);
    let nagios = ask(&["--nagios"], 2);
    assert_eq!((nagios.stdout().lines().count(), nagios.stdout().matches('|').count()), (3, 1), "{nagios}");
    let data = nagios.stdout().lines().next().unwrap().split_once('|').unwrap().1.to_owned();
    assert!(performance_data(&data).contains_key("a_b_'c_age"), "{data}");
    let metrics = ask(&["--prometheus"], 0);
    assert!(metrics.stdout().contains("kvmb_machine_status{machine=\"a\\nb|'c\","), "{metrics}");
    env.program("promtool").args(["check", "metrics"]).stdin(&metrics.stdout).run().assert_ok();
    let discovered: Value = serde_json::from_str(ask(&["--zabbix", "discovery"], 0).stdout()).unwrap();
    assert_eq!(discovered[0]["{#MACHINE}"], "a\nb|'c");
}

#[test]
fn terminal_table_shows_only_problems_unless_all_is_given() {
    let env = prepared("status table", &["vm1", "vm2"]);
    backup(&env, "vm1");
    let problems = env.pty(["status"]).wait().assert_code(1);
    assert!(problems.stdout().contains("vm2") && !problems.stdout().contains("vm1"), "{problems}");
    assert!(problems.stdout().contains("1 critical; 1 machine and "), "{problems}");
    let screen = env.pty(["status", "--all"]).wait().assert_code(1);
    let screen = screen.stdout();
    for words in
        ["MACHINE", "NEWEST POINT", "LAST RUN", "NEXT RUN", "vm1", " old", "done, ", "CRITICAL", "never backed up"]
    {
        assert!(screen.contains(words), "{words}: {screen}");
    }
}

/// Replaces the folder of crontabs with a private one, then runs a command.
const WITH_CRONTAB: &str = r#"
    mount --bind "$1" /var/spool/cron/crontabs || exit 99
    mount -t tmpfs none /etc/cron.d || exit 99
    shift
    exec "$@""#;

#[test]
fn next_run_and_machines_come_from_the_installed_schedule() {
    parts::require(&["crontab", "unshare"]);
    let env = prepared("status schedule", &["vm1", "vm2", "web1"]);
    let spool = env.path("spool");
    fs::create_dir(&spool).unwrap();
    fs::set_permissions(&spool, fs::Permissions::from_mode(0o1730)).unwrap();
    let host = |words: &[&str]| {
        let call = env.program("unshare").args(["--mount", "/bin/sh", "-c", WITH_CRONTAB, "inside"]);
        call.arg(&spool).args(words).run()
    };
    let action = host(&["kvmb", "schedule", "install", "--cron", "30 1 * * 6", "vm1", "web*"]).assert_ok();
    let next = action.record_of("action")["next_runs"][0].clone();
    backup(&env, "web1");
    let output = host(&["kvmb", "status"]).assert_code(1);
    let machines = output.records_of("check").into_iter().filter(|check| check["check"] == "backup").count();
    assert_eq!(machines, 2, "{output}");
    assert_machine(&output, "vm1", "critical", "never");
    let web1 = check(&output, "backup", "web1");
    let time = |value: &Value| chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
    assert_eq!((web1["status"].as_str(), time(&web1["next_run_at"])), (Some("ok"), time(&next)));
    assert_eq!(web1["warning_seconds"], (7 * 24 + 2) * 3600);
    // The schedule uses another repository than the one that is checked.
    host(&["kvmb", "schedule", "install", "--cron", "@daily", "-r", "/other", "--all"]).assert_ok();
    let output = host(&["kvmb", "status"]).assert_code(1);
    let hint = check(&output, "repository", &env.repo())["hint"].as_str().unwrap().to_owned();
    assert!(hint.contains("'kvmb status -r /other'"), "{hint}");
    assert!(check(&output, "backup", "vm2")["next_run_at"].is_string(), "{output}");
}

/// Returns the files of the history.
fn history(env: &Env) -> Vec<(PathBuf, Value)> {
    let folders = fs::read_dir(env.path("data/history")).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    let of_machines = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    of_machines.map(|path| (path.clone(), serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())).collect()
}

#[test]
fn history_is_recorded_and_write_failure_does_not_stop_a_backup() {
    let env = Env::new("status history");
    let name = "..;$(touch pwned) \"it's\" \\ , =|ü";
    env.machine(name).disk(Disk::qcow2(MIB)).define();
    env.sh("kvmb init -r $R").run().assert_ok();
    let point = env.kvmb(["backup", name, "-r", &env.repo(), "--verify"]).run().assert_ok().record_of("point");
    let [(path, memory)] = &history(&env)[..] else { panic!("one file") };
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = path.parent().unwrap();
    assert_eq!((mode(path), mode(folder), mode(folder.parent().unwrap())), (0o600, 0o700, 0o700));
    assert_eq!(path.file_stem().unwrap().to_str(), point["uuid"].as_str());
    assert_eq!((&memory["machine"], &memory["repo"]), (&point["machine"], &point["repo"]));
    assert_eq!(memory["last_run"]["result"], "done");
    assert_eq!(memory["newest_point"]["point"], point["point"]);
    assert_eq!(memory["verified"]["depth"], "full");
    // A failed run does not erase earlier results.
    env.kvmb(["backup", name, "-r", &env.repo_named("none")]).run().assert_code(1);
    let files = history(&env);
    assert_eq!(files.len(), 2);
    let failed = files.iter().map(|(_, memory)| memory).find(|memory| memory["last_run"]["result"] == "failed");
    assert_eq!(failed.unwrap()["last_run"]["code"], "no_repository");
    // The history can be neither written nor read.
    fs::remove_dir_all(env.path("data/history")).unwrap();
    fs::write(env.path("data/history"), "").unwrap();
    env.kvmb(["backup", name, "-r", &env.repo()]).run().assert_ok();
    assert!(fs::read_to_string(env.log_file()).unwrap().contains("cannot record the history"));
    assert!(!env.path("pwned").exists());
}

#[test]
fn last_runs_and_sizes_are_shown_with_the_runs_option() {
    let env = prepared("runs", &["kvmb-test-vm1"]);
    for _ in 0..3 {
        backup(&env, "kvmb-test-vm1");
    }
    let plain = status(&env, &[]).assert_ok();
    assert!(check(&plain, "backup", "kvmb-test-vm1").get("runs").is_none());
    let output = status(&env, &["--runs", "2"]).assert_ok();
    let machine = check(&output, "backup", "kvmb-test-vm1");
    let runs = machine["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &runs[1]["run"], &runs[1]["result"]), (2, &machine["last_run"], &"done".into()));
    assert_eq!(runs[1]["stored_bytes"], machine["stored_bytes"]);
    let repository = check(&output, "repository", &env.repo());
    let sizes: Vec<u64> =
        repository["sizes"].as_array().unwrap().iter().map(|size| size["stored_bytes"].as_u64().unwrap()).collect();
    assert!(sizes.len() == 2 && sizes[0] > 0 && sizes.is_sorted(), "{sizes:?}");
}
