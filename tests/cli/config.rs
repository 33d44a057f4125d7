//! The configuration: its location, its meaning, its precedence, and its errors.

// A test panics if a result is not what it expects.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::support::{Disk, Env, Output, PASSWORD, parts};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn setting(output: &Output, key: &str) -> (Value, String) {
    let records = output.records();
    let found = records.iter().find(|record| record["key"] == key).unwrap_or_else(|| panic!("no {key}: {output}"));
    (found["value"].clone(), found["source"].as_str().unwrap().to_owned())
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Returns the machines of the points that a backup made or would make.
fn machines(output: &Output) -> Vec<String> {
    let name = |record: &Value| ["machine", "target"].iter().find_map(|key| record[key].as_str().map(str::to_owned));
    let mut names: Vec<String> =
        output.records().iter().filter(|record| record["type"] != "failure").filter_map(name).collect();
    names.sort();
    names
}

#[test]
fn flag_overrides_variable_overrides_file_overrides_default() {
    let env = Env::new("precedence");
    let show = |args: &[&str]| env.kvmb([&["config", "show"], args].concat());
    let plain = show(&[]).without_env("LIBVIRT_DEFAULT_URI").run().assert_ok();
    assert_eq!(setting(&plain, "jobs"), (json!(1), "default".into()));
    assert_eq!(setting(&plain, "lease"), (json!("6h"), "default".into()));
    assert_eq!(setting(&plain, "backup_freq"), (json!("0 2 * * *"), "default".into()));
    assert_eq!(setting(&plain, "backup_host"), (Value::Null, "default".into()));
    assert_eq!(setting(&plain, "scratch").1, "environment");

    assert_eq!(setting(&plain, "repo"), (json!(env.path("data/repo")), "default".into()));
    // A table has the keys that are set and the paths; with --all, all keys.
    let table = |args: &[&str]| show(&[&["-o", "table"], args].concat()).run().assert_ok().stdout().to_owned();
    assert!(table(&[]).contains("repo ") && !table(&[]).contains("backup_freq"), "{}", table(&[]));
    assert!(table(&["--all"]).contains("backup_freq"));

    env.configure(&json!({"connect": "test:///default", "repo": "/of/the/file", "jobs": 4, "log": {"format": "json"}}));
    let file = env.config_file().display().to_string();
    let from_file = show(&[]).run().assert_ok();
    assert_eq!(setting(&from_file, "jobs"), (json!(4), "file".into()));
    assert_eq!(from_file.records().iter().find(|record| record["key"] == "jobs").unwrap()["origin"], file);
    assert_eq!(setting(&from_file, "connect"), (json!("test:///default"), "file".into()));
    assert_eq!(setting(&from_file, "log.format"), (json!("json"), "file".into()));
    assert_eq!(setting(&show(&[]).env("KVMB_REPO", "/of/env").run(), "repo"), (json!("/of/env"), "environment".into()));
    // An empty variable counts as unset.
    assert_eq!(setting(&show(&[]).env("KVMB_REPO", "").run(), "repo"), (json!("/of/the/file"), "file".into()));
    assert_eq!(setting(&show(&["-c", "test:///x"]).run(), "connect"), (json!("test:///x"), "flag".into()));

    // The same precedence applies when the setting is used.
    let target = |call: crate::support::Call| call.run().assert_ok().record_of("action")["target"].clone();
    assert_eq!(target(env.kvmb(["init", "--dry-run"])), "/of/the/file");
    assert_eq!(target(env.kvmb(["init", "--dry-run"]).env("KVMB_REPO", "/of/env")), "/of/env");
    assert_eq!(target(env.kvmb(["init", "--dry-run", "-r", "/of/flag"]).env("KVMB_REPO", "/of/env")), "/of/flag");
    assert_eq!(target(env.kvmb(["init", "--dry-run"]).env("KVMB_REPO", "")), "/of/the/file");
    let machine = &env.kvmb(["vms"]).run().assert_ok().records()[0];
    assert_eq!((&machine["connect"], &machine["machine"]), (&json!("test:///default"), &json!("test")));
}

#[test]
fn commands_take_their_options_from_the_config_file() {
    let env = Env::new("flags");
    env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).define();
    env.configure(&json!({
        "repo": env.repo(), "password_file": env.password_file(), "jobs": 64, "freeze": "required",
        "freeze_timeout": "5s",
        "lease": "30m", "scratch": env.scratch_dir(), "audit": "1.5%", "chunk_size": "2M",
        "compression": "max", "threads": 3, "full_every": "2w", "key_cache": "2d",
        "verify": true,
        "log": {"file": env.path("own.log"), "format": "json", "max_size": "1M", "keep": 2}
    }));
    let bare = |args: &[&str]| {
        let call = env.kvmb(args).without_env("KVMB_PASSWORD_FILE").without_env("KVMB_LOG_FILE");
        call.without_env("KVMB_SCRATCH").run()
    };
    bare(&["init"]).assert_ok();
    let point = bare(&["backup", "kvmb-test-vm1"]).assert_ok().record_of("point");
    assert_eq!(point["repo"], env.repo());
    assert_eq!(point["verified"], "full");
    let line = fs::read_to_string(env.path("own.log")).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["command"], "init");
    let point = bare(&["backup", "kvmb-test-vm1", "--no-verify"]).assert_ok().record_of("point");
    assert!(point.get("verified").is_none(), "{point}");
    let disk = bare(&["snapshot", "kvmb-test-vm1"]).assert_ok().record_of("disk");
    assert!(disk["parent"].is_string(), "{disk}");
    bare(&["release", "--all"]).assert_ok();
    env.assert_nothing_left();
}

#[test]
fn config_file_is_searched_in_five_places_in_order() {
    let env = Env::new("places");
    let write = |path: &Path, jobs: u64| fs::write(path, json!({ "jobs": jobs }).to_string()).unwrap();
    let home = env.path("home/.kvm_backup_config.json");
    write(&home, 3);
    write(&env.path("named.json"), 5);
    write(&env.path("variable.json"), 6);
    // The host's configuration, in a private view of /etc.
    let script = "mount -t tmpfs none /etc && mkdir /etc/kvmb && echo '{\"jobs\": 4}' >/etc/kvmb/config.json && exec \
        kvmb config show";
    let with_host = || env.program("unshare").args(["-m", "sh", "-c", script]).env("KVMB_CONFIG", "");
    let jobs = |output: Output| setting(&output.assert_ok(), "jobs").0;
    assert_eq!(jobs(with_host().run()), 3);
    let new_style = env.path("home/.config/kvmb/config.json");
    fs::create_dir_all(new_style.parent().unwrap()).unwrap();
    write(&new_style, 7);
    // The path of kvm_backup still takes precedence.
    assert_eq!(jobs(with_host().run()), 3);
    fs::remove_file(&home).unwrap();
    assert_eq!(jobs(with_host().run()), 7);
    let elsewhere = env.path("xdg/kvmb/config.json");
    fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
    write(&elsewhere, 8);
    assert_eq!(jobs(with_host().env("XDG_CONFIG_HOME", env.path("xdg")).run()), 8);
    fs::remove_file(&new_style).unwrap();
    assert_eq!(jobs(with_host().run()), 4);
    let named = |call: crate::support::Call| call.env("KVMB_CONFIG", "variable.json").run();
    assert_eq!(jobs(named(env.kvmb(["config", "show"]))), 6);
    assert_eq!(jobs(named(env.kvmb(["config", "show", "--config", "named.json"]))), 5);
    // A file that is named must exist.
    let output = env.kvmb(["vms", "--config", "nowhere.json"]).run().assert_code(2);
    assert_eq!(output.record_of("failure")["code"], "usage");
    output.assert_stderr_has("configuration file nowhere.json does not exist");
}

#[test]
fn every_config_error_is_reported_with_key_rule_and_suggestion() {
    let env = Env::new("faults");
    env.configure(&json!({
        "backup_host": "back_up", "backup_path": "backup/kvm", "backupfreq": "@daily", "ssh": {"port": "22"},
        "lease": "6 hours", "log": {"max_size": "10 MB"}, "freeze": "Never", "selected_vms": {"vm1": "true"}
    }));
    let output = env.kvmb(["backup", "vm1"]).run().assert_code(2);
    let failures = output.records();
    let has = |words: [&str; 4]| {
        let found = failures.iter().any(|failure| {
            let text = format!("{} {}", failure["error"].as_str().unwrap(), failure["hint"].as_str().unwrap());
            failure["code"] == "usage" && words.iter().all(|word| text.contains(word))
        });
        assert!(found, "{words:?} in {output}");
    };
    has(["\"backup_host\"", "\"back_up\"", "a host name", "did you mean \"back-up\"?"]);
    has(["\"backup_path\"", "\"backup/kvm\"", "an absolute path", "did you mean \"/backup/kvm\"?"]);
    has(["\"backupfreq\"", "is unknown", "", "did you mean backup_freq?"]);
    has(["\"ssh.port\"", "\"22\"", "a whole number from 1 to 65535", "did you mean 22?"]);
    has(["\"lease\"", "\"6 hours\"", "90s, 30m, 2h, 3d, 1w", "did you mean \"6h\"?"]);
    has(["\"log.max_size\"", "\"10 MB\"", "512K, 10M", "did you mean \"10M\"?"]);
    has(["\"freeze\"", "\"Never\"", "\"auto\", \"never\", \"required\"", "did you mean \"never\"?"]);
    has(["\"selected_vms.vm1\"", "\"true\"", "true or false", "did you mean true?"]);
    assert_eq!(failures.len(), 8, "{output}");

    // The same errors as checks; once they are fixed, the check succeeds.
    let output = env.kvmb(["config", "check"]).run().assert_code(2);
    assert_eq!(output.records().len(), 8);
    assert!(output.records().iter().all(|check| check["type"] == "check" && check["status"] == "critical"), "{output}");
    env.configure(&json!({"backup_freq": "@daily", "selected_vms": {"vm1": true}}));
    let check = env.kvmb(["config", "check"]).run().assert_ok().record_of("check");
    assert_eq!((&check["status"], &check["detail"]), (&json!("ok"), &json!("2 keys, no problems")));
    // Files and programs that may exist later cause a warning.
    env.configure(&json!({"password_file": "/no/such", "hooks": {"after_run": [{"command": ["no-such-program"]}]}}));
    let output = env.kvmb(["config", "check"]).run().assert_ok();
    let warnings: Vec<Value> = output.records().iter().map(|check| check["status"].clone()).collect();
    assert_eq!(warnings, ["warning", "warning"], "{output}");
    // Help needs no configuration, and an error in the JSON has a position.
    fs::write(env.config_file(), "{\"jobs\": 1,\n}").unwrap();
    env.kvmb(["backup", "--help"]).run().assert_ok();
    env.kvmb(["config", "schema"]).run().assert_ok();
    env.kvmb(["vms"]).run().assert_code(2).assert_stderr_has("line 2 column 1");
    // With a duplicate key, the last line would silently decide whether the machine is backed up.
    fs::write(env.config_file(), r#"{"//": 1, "//": 2, "selected_vms": {"vm1": true, "vm1": false}}"#).unwrap();
    env.kvmb(["vms"]).run().assert_code(2).assert_stderr_has("the key \"selected_vms.vm1\" appears more than once");
    // Windows calls UTF-16 "Unicode".
    fs::write(env.config_file(), b"\xff\xfe{\0}\0").unwrap();
    env.kvmb(["vms"]).run().assert_code(2).assert_stderr_has("is not valid JSON: it is not UTF-8");
}

#[test]
fn config_writable_by_others_or_with_readable_secrets_is_refused() {
    let env = Env::new("modes");
    let show = || env.kvmb(["config", "show"]).run();
    let file = env.config_file();
    for bad in [0o602, 0o620, 0o666] {
        mode(&file, bad);
        show().assert_code(2).assert_stderr_has("writable by other users").assert_stderr_has("hint: chmod go-w");
    }
    mode(&file, 0o644);
    show().assert_ok();
    chown(&file, Some(65534), None).unwrap();
    show().assert_code(2).assert_stderr_has("belongs to user 65534");
    chown(&file, Some(0), None).unwrap();

    for secret in [json!({"password_command": "echo hunter2"}), json!({"ssh": {"password_command": "echo hunter2"}})] {
        env.configure(&secret);
        let output = show().assert_ok();
        assert!(!output.stdout().contains("hunter2") && output.stdout().contains("(hidden)"), "{output}");
        mode(&file, 0o640);
        show().assert_ok();
        mode(&file, 0o644);
        let output =
            show().assert_code(2).assert_stderr_has("readable by other users").assert_stderr_has("hint: chmod 600");
        assert!(!output.stderr().contains("hunter2"), "{output}");
    }
    env.configure(&json!({}));
    let output = env.kvmb(["config", "show"]).env("KVMB_PASSWORD_COMMAND", "echo hunter2").run().assert_ok();
    assert!(!output.stdout().contains("hunter2"), "{output}");
    assert_eq!(setting(&output, "password_command"), (json!("(hidden)"), "environment".into()));
}

#[test]
fn backup_without_names_takes_the_selected_machines() {
    let env = Env::new("selected");
    for name in ["kvmb-test-a", "kvmb-test-b", "kvmb-test-web1", "kvmb-test-web2"] {
        env.machine(name).disk(Disk::qcow2(MIB)).define();
    }
    env.sh("kvmb init -r $R").run().assert_ok();
    let repo = env.repo();
    let backup = |script: &str| env.sh(script).env("KVMB_REPO", &repo).run();
    // Without a selection, a call without names and records is a usage error.
    backup("kvmb backup --dry-run </dev/null").assert_code(2);
    env.configure(
        &json!({"selected_vms": {"kvmb-test-a": true, "kvmb-test-b": false, "kvmb-test-web*": true, "*-web2": false}}),
    );
    assert_eq!(machines(&backup("kvmb backup").assert_ok()), ["kvmb-test-a", "kvmb-test-web1"]);
    for nothing in ["</dev/null", "<&-"] {
        let output = backup(&format!("kvmb backup --dry-run {nothing}")).assert_ok();
        assert_eq!(machines(&output), ["kvmb-test-a", "kvmb-test-web1"], "{nothing}");
    }
    // Names and records take precedence.
    assert_eq!(machines(&backup("kvmb backup --dry-run kvmb-test-b").assert_ok()), ["kvmb-test-b"]);
    assert_eq!(machines(&backup("kvmb vms kvmb-test-b | kvmb backup --dry-run").assert_ok()), ["kvmb-test-b"]);
    assert_eq!(machines(&backup("kvmb backup --dry-run --all").assert_ok()).len(), 4);
    // Failures are records too: a broken first stage is not replaced by the configuration.
    let output = backup("kvmb vms nobody | kvmb backup --dry-run").assert_code(1);
    assert_eq!(machines(&output), Vec::<String>::new());
    // A machine that no longer exists is reported.
    env.configure(&json!({"selected_vms": {"kvmb-test-a": true, "kvmb-test-gone": true}}));
    let output = backup("kvmb backup --dry-run").assert_code(3);
    assert_eq!(output.record_of("failure")["machine"], "kvmb-test-gone");
    env.configure(&json!({"selected_vms": {"kvmb-test-a": false}}));
    backup("kvmb backup").assert_code(2).assert_stderr_has("selected_vms of the configuration selects none");
}

#[test]
fn password_variables_override_the_configured_password_file() {
    let env = Env::new("password");
    env.sh("kvmb init -r $R").run().assert_ok();
    let points = |repo: String| {
        let call = env.kvmb(["points", "-r", &repo]).without_env("KVMB_PASSWORD_FILE");
        call.env("KVMB_REPO", "")
    };
    points(env.repo()).run().assert_code(2).assert_stderr_has("no password");
    env.configure(&json!({"password_file": env.password_file()}));
    points(env.repo()).run().assert_ok();
    let command = format!("echo {PASSWORD}");
    env.configure(&json!({ "password_command": command }));
    points(env.repo()).run().assert_ok();
    env.configure(&json!({"password_command": "exit 3"}));
    points(env.repo()).run().assert_code(1).assert_stderr_has("password_command of the configuration failed");
    // Every variable takes precedence over the file, whose password is wrong here.
    fs::write(env.path("wrong"), "wrong\n").unwrap();
    mode(&env.path("wrong"), 0o600);
    env.configure(&json!({"password_file": env.path("wrong")}));
    points(env.repo()).run().assert_code(1);
    points(env.repo()).env("KVMB_PASSWORD", PASSWORD).run().assert_ok();
    points(env.repo()).env("KVMB_PASSWORD_COMMAND", &command).run().assert_ok();
    points(env.repo()).env("KVMB_PASSWORD_FILE", env.password_file()).run().assert_ok();
    points(env.repo())
        .args(["--password-file"])
        .arg(env.password_file())
        .env("KVMB_PASSWORD", "wrong")
        .run()
        .assert_ok();
}

/// Returns every key below an object of the schema, such as `ssh.port`.
fn keys(prefix: &str, schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (key, inner) in schema["properties"].as_object().unwrap() {
        assert!(inner["description"].is_string(), "{prefix}{key} has no words");
        match inner.get("properties") {
            Some(_) => found.extend(keys(&format!("{prefix}{key}."), inner)),
            None => found.push(format!("{prefix}{key}")),
        }
    }
    found
}

#[test]
fn example_config_is_complete_and_valid_under_the_schema() {
    parts::require(&["python3"]);
    let env = Env::new("example");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("example_config.json");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.schema.json");
    let schema = env.kvmb(["config", "schema"]).run().assert_ok();
    let is_new = fs::read_to_string(&shipped).unwrap() == schema.stdout();
    assert!(is_new, "config.schema.json is not what the program says any more: make generated");

    fs::copy(&example, env.config_file()).unwrap();
    mode(&env.config_file(), 0o600);
    let show = env.kvmb(["config", "show"]).run().assert_ok();
    let document: Value = serde_json::from_str(&fs::read_to_string(&example).unwrap()).unwrap();
    // Alternatives to keys that the example has.
    let left_out = ["password_command", "ssh.password_file", "ssh.password_command", "http.password_command"];
    let schema: Value = serde_json::from_str(schema.stdout()).unwrap();
    let keys = keys("", &schema);
    assert!(keys.len() > 30, "{keys:?}");
    // A policy does not need all rules.
    let is_policy = |key: &str| key.starts_with("retention.") && !key.ends_with(".keep_daily");
    for key in keys.iter().filter(|key| !left_out.contains(&key.as_str()) && !is_policy(key)) {
        let found = key.split('.').try_fold(&document, |value, step| value.get(step));
        assert!(found.is_some(), "example_config.json does not have {key}");
        let (_, source) = setting(&show, key);
        assert!(["file", "environment"].contains(&source.as_str()), "{key}: {source}");
    }

    // Another implementation checks the schema and what it refuses.
    let judge = "import json, sys, jsonschema\n\
        schema = json.load(open(sys.argv[1]))\n\
        jsonschema.Draft7Validator.check_schema(schema)\n\
        print(len(list(jsonschema.Draft7Validator(schema).iter_errors(json.load(open(sys.argv[2]))))))";
    let faults = |file: &Path| -> usize {
        let call = env.program("/usr/bin/python3").args(["-c", judge]).arg(&shipped).arg(file);
        call.run().assert_ok().stdout().trim().parse().unwrap()
    };
    assert_eq!(faults(&example), 0);
    for (document, expected) in [
        (json!({"bakup_host": "x"}), 1),
        (json!({"jobs": 65, "lease": "6 hours", "ssh": {"prot": 1}}), 3),
        (json!({"freeze": "Never", "selected_vms": {"vm1": 1}, "hooks": {"after_run": [{"command": "x"}]}}), 3),
        (json!({"backup_host": "", "backup_user": "", "backup_path": "", "//": 1, "ssh": {"//x": 1}}), 0),
    ] {
        fs::write(env.path("document.json"), document.to_string()).unwrap();
        assert_eq!(faults(&env.path("document.json")), expected, "{document}");
        let code = if expected > 0 { 2 } else { 0 };
        env.kvmb(["config", "check", "--config", "document.json"]).run().assert_code(code);
    }
}
