//! The rules of pipelines: what passes through them, and what remains if any part fails.
//!
//! Every script runs under plain `sh`, whose exit code is that of the last stage: without `pipefail`, only the records
//! report earlier failures.

// A test panics if a result is not what it expects.

use std::fs;
use std::time::Duration;

use crate::support::{Disk, Env, Machine, Output, wait_until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Starts a machine with a qcow2 and a raw disk of odd sizes, both with data.
fn running<'e>(env: &'e Env, name: &str) -> Machine<'e> {
    let machine = env.machine(name).disk(Disk::qcow2(6 * MIB + 512)).disk(Disk::raw(3 * MIB + 1536)).start_paused();
    fill(&machine);
    machine
}

/// The same, but shut off.
fn off<'e>(env: &'e Env, name: &str) -> Machine<'e> {
    let machine = env.machine(name).disk(Disk::qcow2(6 * MIB + 512)).disk(Disk::raw(3 * MIB + 1536)).define();
    fill(&machine);
    machine
}

fn fill(machine: &Machine) {
    // Every machine has different data.
    let seed = machine.uuid().bytes().fold(1, u8::wrapping_add).max(1);
    machine.write("vda", MIB / 2, 2 * MIB, seed);
    machine.write("vda", 6 * MIB, 512, 0x22);
    machine.write("vdb", 3 * MIB + 512, 1024, seed);
}

/// Creates an empty repository.
fn init(env: &Env) {
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
}

/// Adds a stage that passes on this many lines and then kills its program with `kill -9`: `dying 1 kvmb hash`.
fn add_dying_stage(env: &Env) {
    let script = r#"#!/bin/sh
lines=$1; shift
exec 3<&0
mkfifo "$TMPDIR/dying.$$"
"$@" <&3 3<&- >"$TMPDIR/dying.$$" &
exec 3<&- 4<"$TMPDIR/dying.$$"
while [ "$lines" -gt 0 ] && IFS= read -r line <&4; do
    printf '%s\n' "$line"
    lines=$((lines - 1))
done
kill -9 $!
kill -9 $$
"#;
    let path = env.path("bin/dying");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Returns the points in the repository, each of which must be complete.
fn points(env: &Env) -> Vec<Value> {
    let output = env.sh("kvmb points -r $R").run().assert_ok();
    if !output.records().is_empty() {
        env.sh("kvmb verify --all -r $R").run().assert_ok();
    }
    output.records_of("point")
}

/// Returns the codes of the failures in a pipeline's output, with their machines.
fn failures(output: &Output) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    output.records_of("failure").iter().map(|f| (text(&f["machine"]), text(&f["code"]))).collect()
}

fn assert_untouched(machine: &Machine, definition: &str) {
    assert_eq!(machine.definition(), definition, "the definition has changed");
    // The newest point's checkpoint, if there is one.
    assert!(machine.checkpoints().len() <= 1, "a checkpoint is left: {:?}", machine.checkpoints());
    if machine.qemu_pid().is_some() {
        assert!(!machine.is_captured(), "a job is left");
        assert_eq!(machine.status(), "prelaunch");
    }
}

#[test]
fn documented_pipes_back_up_verify_and_restore() {
    let env = Env::new("pipes");
    let (vm1, vm2) = (running(&env, "kvmb-test-vm1"), off(&env, "kvmb-test-vm2"));
    let definitions = [vm1.definition(), vm2.definition()];
    init(&env);

    // Without a capture: the disk of a stopped machine does not change; that of a running one may, and the record says
    // so.
    let moving =
        env.sh("kvmb disks kvmb-test-vm1 | kvmb hash").run().assert_ok().assert_stderr_has("without a capture");
    for disk in moving.records() {
        assert_eq!(disk["consistency"], "moving");
        // QEMU may still have a part of a qcow2 image in memory.
        let sha256 = vm1.model(disk["disk"].as_str().unwrap()).sha256();
        assert!(disk["sha256"] == sha256.as_str() || disk["format"] == "qcow2" && disk["sha256"].is_string(), "{disk}");
    }
    assert_eq!(moving.records().len(), 2);
    let still = env.sh("kvmb disks kvmb-test-vm2 | kvmb hash").run().assert_ok();
    for disk in still.records() {
        assert_eq!(disk["consistency"], "offline");
        assert_eq!(disk["sha256"], vm2.model(disk["disk"].as_str().unwrap()).sha256());
    }
    assert_eq!(still.records().len(), 2);
    // The hash of a raw image is that of sha256sum; a file is hashed as it is.
    let file = env.kvmb(["hash"]).arg(vm2.image("vdb")).run().assert_ok().record_of("file");
    assert_eq!(file["sha256"], vm2.model("vdb").sha256());
    assert_eq!(file["size_bytes"], 3 * MIB + 1536);

    // One machine, then several in one stream, running and shut off.
    for names in ["kvmb-test-vm1", "'kvmb-test-*'"] {
        let script =
            format!("kvmb snapshot {names} -r $R | kvmb hash | kvmb push -r $R | kvmb release | kvmb verify -r $R");
        let output = env.sh(&script).run().assert_ok();
        for point in output.records() {
            let vm = if point["machine"] == vm1.name() { &vm1 } else { &vm2 };
            assert_eq!(point["type"], "point");
            assert_eq!(point["uuid"], vm.uuid());
            assert_eq!(point["verified"], "full");
            assert_eq!(point["consistency"], if point["machine"] == vm1.name() { "crash" } else { "offline" });
            for disk in point["disks"].as_array().unwrap() {
                let model = vm.model(disk["disk"].as_str().unwrap());
                assert_eq!(
                    (&disk["sha256"], &disk["capacity_bytes"]),
                    (&json!(model.sha256()), &json!(model.capacity_bytes()))
                );
            }
        }
        env.assert_nothing_left();
    }
    assert_eq!(points(&env).len(), 3);
    let all = env.sh("kvmb backup --all --jobs 2 --verify -r $R").run().assert_ok();
    assert_eq!(all.records_of("point").len(), 2);
    let filtered = env.sh("kvmb vms | grep 'shut off' | kvmb backup -r $R").run().assert_ok();
    assert_eq!(filtered.record_of("point")["machine"], vm2.name());

    let restored = env
        .sh("kvmb restore kvmb-test-vm1@latest -r $R --as kvmb-test-copy --into $PWD/disks --start")
        .run()
        .assert_ok();
    assert_eq!(restored.record_of("point")["restored_to"]["machine"], "kvmb-test-copy");
    // The machine runs. A single call, so that libvirt has reconnected to it before the destroy.
    env.virsh(&["qemu-monitor-command kvmb-test-copy --hmp 'info status'; destroy kvmb-test-copy"]);
    for disk in env.disks_of("kvmb-test-copy") {
        vm1.model(&disk.target).assert_image_equals(&disk.image, &disk.format);
    }
    // The emergency procedure of the README: restic alone.
    let restic = env.restic(env.repo());
    let tag = ["--tag", "machine=kvmb-test-vm2"];
    let dump = |path: &str| restic.call(["dump", "latest"]).args(tag).arg(path).run().assert_ok();
    assert!(dump("/kvmb-test-vm2/domain.xml").stdout().contains(vm2.uuid()));
    fs::write(env.path("vda.raw"), dump("/kvmb-test-vm2/vda/vda.raw").stdout).unwrap();
    vm2.model("vda").assert_image_equals(&env.path("vda.raw"), "raw");
    restic.call(["restore", "latest", "--target", "emergency"]).args(tag).run().assert_ok();
    vm2.model("vdb").assert_image_equals(&env.path("emergency/kvmb-test-vm2/vdb/vdb.raw"), "raw");
    // With input from a list.
    fs::create_dir(env.path("rescue")).unwrap();
    let rescued =
        env.sh("kvmb points -r $R | tail -n 1 | kvmb restore -r $R --into rescue --no-define").run().assert_ok();
    assert_eq!(rescued.records_of("point").len(), 1);
    assert!(env.path("rescue/kvmb-test-vm2.xml").exists());

    for (vm, definition) in [&vm1, &vm2].into_iter().zip(&definitions) {
        assert_untouched(vm, definition);
    }
    env.restic(env.repo()).check();
    env.assert_nothing_left();
}

#[test]
fn killed_stage_commits_no_partial_point_and_fails_the_pipe() {
    let env = Env::new("killed");
    add_dying_stage(&env);
    let (vm1, vm2) = (running(&env, "kvmb-test-vm1"), off(&env, "kvmb-test-vm2"));
    let definitions = [vm1.definition(), vm2.definition()];
    init(&env);
    let stages = [
        "kvmb snapshot kvmb-test-vm1 kvmb-test-vm2 -r $R",
        "kvmb hash",
        "kvmb push -r $R",
        "kvmb release",
        "kvmb verify -r $R",
    ];
    let mut known = 0;
    for (at, stage) in stages.iter().enumerate() {
        // Before its first record, between the disks of the first machine, between the machines.
        let moments: &[usize] = match at {
            0 => &[1, 2],
            1 => &[0, 1, 2],
            _ => &[1],
        };
        for lines in moments {
            let mut stages = stages.map(str::to_owned);
            stages[at] = format!("dying {lines} {stage}");
            // The next stage must report it, even if it is the last one.
            let case = stages[..(at + 2).min(5)].join(" | ");
            let output = env.sh(&case).run();
            assert_ne!(output.code(), 0, "{case}\n{output}");
            // `release` closes what the pipeline could not.
            env.kvmb(["release", vm1.name(), vm2.name()]).run().assert_ok();
            env.assert_nothing_left();
            assert!(!vm1.is_captured(), "{case}");
            // Complete machines may be stored, partial ones may not.
            let points = env.sh("kvmb points -r $R").run().assert_ok().records_of("point");
            assert!(points.len() <= known + 2, "{case}");
            assert!(points.iter().all(|point| point["disks"].as_array().unwrap().len() == 2), "{case}");
            known = points.len();
        }
    }
    assert_eq!(points(&env).len(), known);
    for (vm, definition) in [&vm1, &vm2].into_iter().zip(&definitions) {
        assert_untouched(vm, definition);
    }
    let after = env.sh("kvmb backup --all -r $R").run().assert_ok();
    assert_eq!(after.records_of("point").len(), 2);
    env.restic(env.repo()).check();
}

#[test]
fn exit_trap_releases_captures_of_a_failed_script() {
    let env = Env::new("trap");
    let vm1 = running(&env, "kvmb-test-vm1");
    let definition = vm1.definition();
    let script = "trap 'kvmb release kvmb-test-vm1 >released' EXIT; kvmb snapshot kvmb-test-vm1 >captured; exit 7";
    env.sh(script).run().assert_code(7);
    let released: Value = serde_json::from_slice(&fs::read(env.path("released")).unwrap()).unwrap();
    assert_eq!((&released["action"], &released["changed"]), (&json!("release"), &json!(true)));
    assert_untouched(&vm1, &definition);
    env.assert_nothing_left();
    // With --dry-run, it closes nothing.
    let output = env.sh("kvmb snapshot kvmb-test-vm1 | kvmb release --dry-run").run().assert_ok();
    let capture = output.records()[0]["capture"].as_str().unwrap().to_owned();
    assert!(vm1.is_captured());
    let output = env.kvmb(["release", "--dry-run", &capture]).run().assert_ok();
    assert_eq!(output.record_of("action")["dry_run"], true);
    assert!(vm1.is_captured());
    env.kvmb(["release", "--all"]).run().assert_ok();
    assert_untouched(&vm1, &definition);
    env.assert_nothing_left();
}

#[test]
fn incomplete_or_failed_machines_are_left_out_of_the_pipe() {
    let env = Env::new("left out");
    let (vm1, vm2) = (running(&env, "kvmb-test-vm1"), off(&env, "kvmb-test-vm2"));
    init(&env);

    // A disk is missing.
    let filter = r#"sed '/kvmb-test-vm1.*"disk":"vdb"/d'"#;
    let output = env.sh(&format!("kvmb snapshot 'kvmb-test-*' | {filter} | kvmb push -r $R | kvmb release")).run();
    assert_eq!(failures(&output), [(vm1.name().to_owned(), "incomplete".to_owned())], "{output}");
    assert!(output.records_of("failure")[0]["capture"].as_str().unwrap().starts_with("c-"));
    assert_eq!(output.record_of("point")["machine"], vm2.name());
    let output = output.assert_code(3);
    assert!(!vm1.is_captured(), "release did not hear of it: {output}");
    env.assert_nothing_left();

    // A machine is missing: a filter is treated like a killed stage.
    let output = env.sh("kvmb snapshot 'kvmb-test-*' | grep kvmb-test-vm2 | kvmb push -r $R | kvmb release").run();
    assert_eq!(failures(&output), [(String::new(), "incomplete".to_owned())], "{output}");
    output.assert_code(3).assert_stderr_has("only 1 of 2 captured machines arrived");
    env.kvmb(["release", vm1.name()]).run().assert_ok();
    env.assert_nothing_left();

    // A failure of the first stage reaches the last one; the others continue.
    let output = env
        .sh("kvmb snapshot kvmb-test-none kvmb-test-vm2 | kvmb hash | kvmb push -r $R | kvmb release | kvmb verify -r \
            $R")
        .run()
        .assert_code(3);
    let failure = output.record_of("failure");
    assert_eq!((&failure["command"], &failure["code"]), (&json!("snapshot"), &json!("not_found")));
    assert_eq!(output.record_of("point")["verified"], "full");
    env.sh("kvmb vms kvmb-test-none | kvmb disks | kvmb snapshot | kvmb push -r $R | kvmb release")
        .run()
        .assert_code(1);

    // A failure in the stream excludes its machine, at any stage.
    let failure = json!({"type": "failure", "command": "mine", "machine": vm1.name(), "code": "failed", "error": "no"});
    let script =
        format!("{{ echo '{failure}'; kvmb snapshot 'kvmb-test-*'; }} | kvmb hash | kvmb push -r $R | kvmb release");
    let output = env.sh(&script).run().assert_code(3);
    assert_eq!(output.record_of("point")["machine"], vm2.name());
    assert_eq!(output.records_of("failure").len(), 2, "{output}");
    env.assert_nothing_left();
    let script = format!("{{ kvmb vms; echo '{failure}'; }} | kvmb backup -r $R");
    let output = env.sh(&script).run().assert_code(3);
    assert_eq!(output.record_of("point")["machine"], vm2.name());
    assert!(!points(&env).iter().any(|point| point["machine"] == vm1.name()));

    // Disks without a capture cannot be pushed.
    let output = env.sh("kvmb disks kvmb-test-vm1 | kvmb push -r $R").run().assert_code(1);
    assert_eq!(failures(&output), vec![(vm1.name().to_owned(), "not_captured".to_owned()); 2]);
    assert!(output.records_of("failure")[0]["hint"].as_str().unwrap().contains("kvmb snapshot"));

    // A wrong password: every machine fails, and release receives each failure.
    fs::write(env.path("wrong"), "wrong\n").unwrap();
    fs::set_permissions(env.path("wrong"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let output = env
        .sh("kvmb snapshot 'kvmb-test-*' | kvmb push -r $R --password-file wrong | kvmb release")
        .run()
        .assert_code(1);
    let wrong = |vm: &Machine| (vm.name().to_owned(), "wrong_password".to_owned());
    assert_eq!(failures(&output), [wrong(&vm1), wrong(&vm2)]);
    assert!(!vm1.is_captured());
    env.assert_nothing_left();
    // With -r, snapshot reports it before any machine is touched.
    let output = env.sh("kvmb snapshot kvmb-test-vm1 -r $R --password-file wrong").run().assert_code(1);
    assert_eq!(failures(&output), [(String::new(), "wrong_password".to_owned())]);
    env.assert_nothing_left();
}

#[test]
fn stage_input_is_parsed_passed_through_or_refused() {
    let env = Env::new("input");
    let vm1 = off(&env, "kvmb-test-vm1");
    init(&env);

    // Without names and records: a broken first stage must not look like success.
    for command in [
        "disks",
        "snapshot",
        "hash",
        "push -r $R",
        "release",
        "verify -r $R",
        "restore -r $R --into . --no-define",
        "backup -r $R",
    ] {
        for nothing in ["", "\n\n", "[]\n"] {
            let output = env.sh(&format!("kvmb {command}")).stdin(nothing).run().assert_code(2);
            assert_eq!(output.record_of("failure")["code"], "usage", "{command}: {output}");
        }
        // Invalid JSON, an object that is not a record, missing fields, binary data, a truncated line.
        for garbage in ["nonsense\n", "{}\n", "{\"type\":\"disk\"}\n", "\u{0}\u{1}\n", "{\"type\":\"machine\",\"mach"] {
            let output = env.sh(&format!("kvmb {command}")).stdin(garbage).run().assert_code(2);
            let error = output.record_of("failure")["error"].as_str().unwrap().to_owned();
            assert!(error.starts_with("line 1 of standard input: "), "{command}: {error}");
        }
    }
    // A missing stage must not look like success either.
    for (script, only) in [
        ("kvmb vms | kvmb push -r $R", "no 'disk' or 'point' records, only 'machine'"),
        ("kvmb vms | kvmb hash", "no 'disk' records, only 'machine'"),
        ("kvmb disks kvmb-test-vm1 | kvmb verify -r $R", "no 'point' records, only 'disk'"),
        ("kvmb disks kvmb-test-vm1 | kvmb restore -r $R --into . --no-define", "no 'point' records, only 'disk'"),
        ("kvmb vms | kvmb release", "no 'disk' or 'point' records, only 'machine'"),
        ("kvmb hash password | kvmb snapshot", "no 'machine' or 'disk' records, only 'file'"),
    ] {
        let output = env.sh(script).run().assert_code(2).assert_stderr_has(only);
        assert_eq!(output.record_of("failure")["code"], "usage", "{output}");
    }
    env.sh("kvmb hash").stdin(b"\xff\xfe\n").run().assert_code(2).assert_stderr_has("not UTF-8");
    env.sh("false | kvmb snapshot | kvmb hash | kvmb push -r $R | kvmb release | kvmb verify -r $R")
        .run()
        .assert_code(2);
    let output = env.sh("{ kvmb snapshot kvmb-test-vm1; echo nonsense; } | kvmb push -r $R | kvmb release").run();
    assert_eq!(output.record_of("point")["machine"], vm1.name());
    assert_eq!(failures(&output), [(String::new(), "usage".to_owned())]);
    output.assert_code(3);
    env.assert_nothing_left();
    let output =
        env.sh("{ kvmb snapshot kvmb-test-vm1 | head -n 1; echo nonsense; } | kvmb push -r $R | kvmb release").run();
    assert_eq!(failures(&output)[0], (vm1.name().to_owned(), "incomplete".to_owned()), "{output}");
    output.assert_code(1);
    env.assert_nothing_left();

    // With names, standard input is not read, whatever it contains.
    for command in ["disks kvmb-test-vm1", "release kvmb-test-vm1", "hash password", "verify kvmb-test-vm1 -r $R"] {
        env.sh(&format!("kvmb {command}")).stdin("nonsense\n").run().assert_ok();
    }

    // An array is equivalent to lines.
    let array = env.sh("kvmb vms -o json | kvmb disks -o json | kvmb hash -o json").run().assert_ok();
    let lines = env.sh("kvmb vms | kvmb disks | kvmb hash").run().assert_ok();
    assert_eq!(serde_json::from_str::<Vec<Value>>(array.stdout()).unwrap(), lines.records());
    let script = "kvmb snapshot kvmb-test-vm1 -o json | kvmb push -r $R -o json | kvmb release -o json";
    let output = env.sh(script).run().assert_ok();
    assert_eq!(serde_json::from_str::<Vec<Value>>(output.stdout()).unwrap()[0]["type"], "point");

    // Unknown fields and unknown types are passed on by every stage.
    let mark = r#"sed 's/^{"type":"disk",/&"x_mine":{"deep":[1,null]},/'"#;
    let comet = r#"{"type":"comet","tail":[1.5,{"a":null}]}"#;
    let output =
        env.sh(&format!("{{ kvmb disks kvmb-test-vm1 | {mark}; echo '{comet}'; }} | kvmb hash")).run().assert_ok();
    assert!(output.records_of("disk").iter().all(|disk| disk["x_mine"] == json!({"deep": [1, null]})), "{output}");
    assert_eq!(output.record_of("comet").to_string(), comet);
    for command in ["hash", "disks", "push -r $R", "release", "verify -r $R", "snapshot", "backup -r $R"] {
        let output = env.sh(&format!("kvmb {command}")).stdin(format!("{comet}\n")).run().assert_ok();
        assert_eq!(output.stdout().trim_end(), comet, "{command}");
    }
    let mark = r#"sed 's/^{"type":"point",/&"x_mine":7,/'"#;
    let point = env.sh(&format!("kvmb points -r $R | tail -n 1 | {mark} | kvmb release | kvmb verify -r $R"));
    assert_eq!(point.run().assert_ok().record_of("point")["x_mine"], 7);
    env.assert_nothing_left();
}

#[test]
fn closed_output_ends_readers_silently_and_completes_backups() {
    let env = Env::new("closed");
    let (vm1, vm2) = (off(&env, "kvmb-test-vm1"), off(&env, "kvmb-test-vm2"));
    init(&env);
    env.sh("kvmb backup --all -r $R").run().assert_ok();
    // `code` is the exit code of kvmb itself.
    let closed = |command: &str| {
        let output = env.sh(&format!("{{ kvmb {command}; echo $? >code; }} | true")).run().assert_ok();
        let code = fs::read_to_string(env.path("code")).unwrap();
        (code.trim().to_owned(), output.stderr().to_owned())
    };
    for command in [
        "vms",
        "disks 'kvmb-test-*'",
        "hash password password",
        "points -r $R",
        "verify --all -r $R",
        "--help",
        "vms -o table",
    ] {
        assert_eq!(closed(command), ("0".to_owned(), String::new()), "{command}");
    }
    let before = points(&env).len();
    assert_eq!(closed("backup --all -r $R"), ("0".to_owned(), String::new()));
    assert_eq!(points(&env).len(), before + 2, "a backup must be finished");
    assert_eq!(closed("snapshot kvmb-test-vm1 kvmb-test-vm2").0, "0");
    assert_eq!(env.kvmb(["release", vm1.name(), vm2.name()]).run().assert_ok().records().len(), 2);
    env.assert_nothing_left();
    env.sh("kvmb vms | kvmb disks | head -n 1").run().assert_ok();
    env.sh("kvmb snapshot 'kvmb-test-*' | kvmb push -r $R | kvmb release | head -n 1").run().assert_ok();
    env.assert_nothing_left();

    // A closed standard error does not stop a backup; a full disk behind standard output does.
    let code = env.sh("{ kvmb vms none; echo $? >code; } 2>&1 >/dev/null | true").run().code();
    assert_eq!((code, fs::read_to_string(env.path("code")).unwrap().trim()), (0, "1"));
    let script =
        "unset KVMB_PASSWORD_FILE; { kvmb backup kvmb-test-vm1 kvmb-test-none; echo $? >code; } 2>&1 >points | true";
    env.sh(script).env("KVMB_DATA_DIR", env.path("data")).run().assert_ok();
    assert_eq!(fs::read_to_string(env.path("code")).unwrap().trim(), "3");
    assert!(fs::read_to_string(env.path("points")).unwrap().starts_with("{\"type\":\"failure\""));
    env.sh("kvmb vms >/dev/full")
        .run()
        .assert_code(1)
        .assert_stderr_has("cannot write to standard output: No space left");
    env.assert_nothing_left();
}

#[test]
fn capture_is_held_until_released_or_its_lease_ends() {
    let env = Env::new("lease");
    let (vm1, vm2) = (running(&env, "kvmb-test-vm1"), off(&env, "kvmb-test-vm2"));
    init(&env);

    let capture = env.kvmb(["snapshot", vm1.name()]).run().assert_ok().records()[0]["capture"].clone();
    let capture = capture.as_str().unwrap();
    for command in ["snapshot", "backup"] {
        let output = env.kvmb([command, vm1.name(), "-r", &env.repo()]).run().assert_code(5);
        let failure = output.record_of("failure");
        assert_eq!(failure["code"], "busy");
        assert!(failure["error"].as_str().unwrap().contains(capture), "{output}");
        assert!(failure["hint"].as_str().unwrap().contains("kvmb release"), "{output}");
    }
    // The others continue.
    let output = env.kvmb(["backup", vm1.name(), vm2.name(), "-r", &env.repo()]).run().assert_code(3);
    assert_eq!(output.record_of("point")["machine"], vm2.name());
    // By its id; releasing it again by name is harmless.
    let action = env.kvmb(["release", capture]).run().assert_ok().record_of("action");
    assert_eq!((&action["changed"], &action["machine"]), (&json!(true), &json!(vm1.name())));
    assert_eq!(env.kvmb(["release", vm1.name()]).run().assert_ok().record_of("action")["changed"], false);
    assert_eq!(env.kvmb(["release", capture]).run().assert_ok().record_of("action")["changed"], false);
    env.assert_nothing_left();

    // An expired lease: the guard closes the capture, and its disks can no longer be pushed.
    let disks = env.kvmb(["snapshot", vm1.name(), "--lease", "1s"]).run().assert_ok();
    wait_until("the guard has ended the capture", Duration::from_secs(60), || {
        !vm1.is_captured() && env.leftovers().is_empty()
    });
    let output = env.kvmb(["push", "-r", &env.repo()]).stdin(&disks.stdout).run().assert_code(1);
    assert_eq!(failures(&output), [(vm1.name().to_owned(), "not_found".to_owned())]);
    output.assert_stderr_has("or its lease expired");
    env.kvmb(["backup", vm1.name(), "-r", &env.repo()]).run().assert_ok();
    env.assert_nothing_left();
    // The old records are invalid now.
    for command in ["hash", "push"] {
        let call = env.kvmb([command]).env("KVMB_REPO", env.repo());
        let output = call.stdin(&disks.stdout).run().assert_code(1);
        assert!(failures(&output).iter().all(|(_, code)| code == "not_found"), "{output}");
    }

    // A forgotten capture of a machine that is off expires, so that the machine can start.
    env.kvmb(["snapshot", vm2.name(), "--lease", "1s"]).run().assert_ok();
    let servers = || env.leftovers().iter().any(|left| left.contains("qemu-storage-daemon"));
    wait_until("the servers have ended", Duration::from_secs(60), || !servers());
    vm2.start_paused();
    vm2.stop();
    env.kvmb(["release", "--all"]).run().assert_ok();
    env.assert_nothing_left();
}

#[test]
fn concurrent_backups_of_one_machine_do_not_interfere() {
    let env = Env::new("at once");
    let vm1 = running(&env, "kvmb-test-vm1");
    init(&env);
    let script =
        "kvmb backup kvmb-test-vm1 -r $R & kvmb backup kvmb-test-vm1 -r $R; echo $? >one; wait $!; echo $? >two";
    let output = env.sh(script).run().assert_ok();
    let code = |file: &str| fs::read_to_string(env.path(file)).unwrap().trim().to_owned();
    let codes = [code("one"), code("two")];
    // Either one after the other, or one finds the machine busy.
    assert!(codes.contains(&"0".to_owned()), "{codes:?}: {output}");
    assert!(codes.iter().all(|code| code == "0" || code == "5"), "{codes:?}: {output}");
    assert_eq!(points(&env).len(), codes.iter().filter(|code| *code == "0").count());
    assert!(!vm1.is_captured());
    env.assert_nothing_left();
}
