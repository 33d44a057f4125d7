//! Ctrl-C and SIGTERM at every stage: an orderly end with exit code 130 or 143, and nothing is left behind.
//!
//! A command is held in the middle of its work by stopping QEMU (SIGSTOP), which then does not respond.

// A test panics if a result is not what it expects.

use std::fs;
use std::time::Duration;

use crate::support::call::Running;
use crate::support::{Disk, Env, Machine, process, wait_until};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const BOTH: [(Signal, i32); 2] = [(Signal::INT, 130), (Signal::TERM, 143)];

/// Creates a machine with so much data that no backup of it finishes immediately.
fn machine<'e>(env: &'e Env, name: &str) -> Machine<'e> {
    let machine = env.machine(name).disk(Disk::raw(64 * MIB)).disk(Disk::qcow2(MIB)).start_paused();
    let mut noise = vec![0; 48 << 20];
    StdRng::seed_from_u64(1).fill_bytes(&mut noise);
    machine.write_bytes("vda", 0, &noise);
    machine
}

/// A process that is stopped until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn process(pid: i32) -> Stopped {
        let pid = Pid::from_raw(pid).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Waits until kvmb (and no longer the shell that executes it) handles SIGINT.
fn wait_until_it_handles_signals(pid: i32) {
    wait_until("it handles signals", Duration::from_secs(60), || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let is_kvmb = status.lines().next() == Some("Name:\tkvmb");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
        is_kvmb && u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << (Signal::INT.as_raw() - 1)) != 0
    });
}

fn locks(env: &Env) -> usize {
    fs::read_dir(env.path("repo/locks")).map_or(0, Iterator::count)
}

fn wait_until_it_has_a_lock(env: &Env, running: &mut Running) {
    wait_until("it has locked the repository", Duration::from_secs(60), || locks(env) > 0 || running.has_ended());
}

/// Fails if a run has left a job, a server, a file, a lock or a point behind.
fn assert_clean(env: &Env, machines: &[&Machine], points: usize) {
    env.assert_nothing_left();
    assert_eq!(locks(env), 0, "a lock is left in the repository");
    for machine in machines {
        assert!(!machine.is_captured(), "a job is left");
        assert_eq!(machine.status(), "prelaunch");
        // Only a stored point has a checkpoint.
        assert!(machine.checkpoints().len() <= points, "{:?}", machine.checkpoints());
    }
    let output = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok();
    assert_eq!(output.records().len(), points, "{output}");
}

#[test]
fn stage_waiting_for_records_ends_on_a_signal() {
    let env = Env::new("waiting");
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let commands = ["disks", "snapshot", "hash", "push", "verify", "restore", "backup"];
    let started = commands.into_iter().enumerate().map(|(at, command)| {
        // A fifo that is open for writing has no end.
        let script = format!("mkfifo fifo-{command}; exec kvmb {command} <>fifo-{command}");
        let running = env.sh(&script).env("KVMB_REPO", env.repo()).limit(Duration::from_secs(20)).spawn();
        wait_until_it_handles_signals(running.pid());
        running.signal(BOTH[at % 2].0);
        (command, BOTH[at % 2].1, running)
    });
    for (command, code, running) in started.collect::<Vec<_>>() {
        let output = running.wait().assert_code(code);
        let failure = output.record_of("failure");
        assert_eq!((&failure["command"], &failure["code"]), (&json!(command), &json!("interrupted")));
        output.assert_stderr_has("kvmb: error: interrupted");
    }
    assert_clean(&env, &[], 0);
}

/// Ctrl-C while the first stage after `snapshot` reads a disk: all stages must end, and `release` must learn about it.
#[test]
fn ctrl_c_in_a_pipe_leaves_nothing_behind() {
    let env = Env::new("ctrl-c");
    let vm1 = machine(&env, "kvmb-test-vm1");
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let qemu = vm1.qemu_pid().unwrap();
    for (stages, reader) in
        [("kvmb hash | kvmb push -r $R | kvmb release", "kvmb hash"), ("kvmb push -r $R | kvmb release", "kvmb push")]
    {
        let script =
            format!("{{ kvmb snapshot kvmb-test-vm1 -r $R >captured; kill -STOP {qemu}; cat captured; }} | {stages}");
        let running = env.sh(&script).spawn();
        wait_until("a stage reads the capture", Duration::from_secs(60), || {
            let programs = process::of(&env.path(""));
            let reader = programs.iter().find(|program| program.command_line.starts_with(reader));
            let Some(files) = reader.and_then(|reader| fs::read_dir(format!("/proc/{}/fd", reader.pid)).ok()) else {
                return false;
            };
            let mut files = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
            files.any(|file| file.ends_with("lock") && file.starts_with(env.runtime_dir()))
        });
        running.interrupt();
        drop(Stopped(Pid::from_raw(qemu).unwrap()));
        running.wait().assert_code(130);
        assert_clean(&env, &[&vm1], 0);
    }
}

#[test]
fn release_finishes_even_when_interrupted() {
    let env = Env::new("release");
    let vm1 = env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).start_paused();
    let script = "{ kvmb snapshot kvmb-test-vm1; until [ -e go ]; do sleep 0.02; done; } | kvmb release";
    let running = env.sh(script).spawn();
    wait_until("the capture is open", Duration::from_secs(60), || vm1.is_captured());
    let release = || process::of(&env.path("")).into_iter().find(|process| process.command_line == "kvmb release");
    let pid = release().expect("the last stage").pid;
    wait_until_it_handles_signals(pid);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    fs::write(env.path("go"), "").unwrap();
    running.wait().assert_ok();
    assert!(!vm1.is_captured());
    env.assert_nothing_left();
}

#[test]
fn interrupted_snapshot_closes_its_captures() {
    let env = Env::new("snapshot");
    let (vm1, vm2) = (
        env.machine("kvmb-test-vm1").disk(Disk::qcow2(MIB)).start_paused(),
        env.machine("kvmb-test-vm2").disk(Disk::qcow2(MIB)).start_paused(),
    );
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    for (signal, code) in BOTH {
        let held = Stopped::process(vm2.qemu_pid().unwrap());
        let running = env.kvmb(["snapshot", vm1.name(), vm2.name()]).spawn();
        wait_until("the first machine is captured", Duration::from_secs(60), || {
            running.stdout_so_far().contains("kvmb-test-vm1")
        });
        running.signal(signal);
        drop(held);
        let output = running.wait().assert_code(code);
        let failed: Vec<Value> = output.records_of("failure").iter().map(|f| f["machine"].clone()).collect();
        assert!(failed.contains(&json!(vm1.name())) && failed.contains(&json!(vm2.name())), "{output}");
        assert_clean(&env, &[&vm1, &vm2], 0);
    }
}

#[test]
fn hash_and_push_are_interrupted_in_the_middle_of_a_disk() {
    let env = Env::new("reading");
    let vm1 = machine(&env, "kvmb-test-vm1");
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let captured = env.kvmb(["snapshot", vm1.name()]).run().assert_ok();
    for (signal, code) in BOTH {
        for command in ["hash", "push"] {
            let held = Stopped::process(vm1.qemu_pid().unwrap());
            let mut running = env.kvmb([command]).env("KVMB_REPO", env.repo()).stdin(&captured.stdout).spawn();
            match command {
                "hash" => wait_until_it_handles_signals(running.pid()),
                _ => wait_until_it_has_a_lock(&env, &mut running),
            }
            running.signal(signal);
            // It does not wait for a response of QEMU.
            let output = running.wait().assert_code(code);
            drop(held);
            let failure = &output.records_of("failure")[0];
            assert_eq!(failure["capture"], captured.records()[0]["capture"], "release must hear of it: {output}");
            assert_eq!(locks(&env), 0);
        }
    }
    // The capture is still valid.
    let output = env.sh("kvmb hash | kvmb push -r $R | kvmb release | kvmb verify -r $R").stdin(&captured.stdout).run();
    let output = output.assert_ok();
    assert_eq!(output.record_of("point")["disks"][0]["sha256"], vm1.model("vda").sha256());
    assert_clean(&env, &[&vm1], 1);
}

#[test]
fn backup_verify_and_restore_are_interrupted_cleanly() {
    let env = Env::new("backup");
    let vm1 = machine(&env, "kvmb-test-vm1");
    let definition = vm1.definition();
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let pipe = "kvmb snapshot kvmb-test-vm1 -r $R | kvmb hash | kvmb push -r $R | kvmb release";
    for (signal, code) in BOTH {
        for script in ["exec kvmb backup kvmb-test-vm1 -r $R", pipe] {
            let running = env.sh(script).spawn();
            wait_until("the capture is open", Duration::from_secs(60), || vm1.is_captured());
            let held = Stopped::process(vm1.qemu_pid().unwrap());
            // The signal goes to the whole process group, as from a terminal, and also ends the pipeline's shell.
            running.signal(signal);
            drop(held);
            let output = running.wait().assert_code(code);
            if script != pipe {
                output.assert_stderr_has("interrupted; 0 of 1 machines backed up");
            }
            assert_clean(&env, &[&vm1], 0);
        }
    }
    assert_eq!(vm1.definition(), definition);
    let kept = env.kvmb(["backup", vm1.name(), "-r", &env.repo()]).run().assert_ok();
    assert_eq!(kept.records_of("point").len(), 1);
    env.restic(env.repo()).check();

    // During verification, and during a restore.
    for (signal, code) in BOTH {
        let mut running = env.kvmb(["verify", "--all", "-r", &env.repo()]).spawn();
        wait_until_it_has_a_lock(&env, &mut running);
        running.signal(signal);
        running.wait().assert_code(code);

        let arguments = ["restore", vm1.name(), "-r", &env.repo(), "--as", "kvmb-test-copy", "--into"];
        let running = env.kvmb(arguments).arg(env.disks()).args(["--format", "qcow2"]).spawn();
        let files = || fs::read_dir(env.disks()).expect("a folder").flatten().map(|entry| entry.file_name());
        wait_until("an image is written", Duration::from_secs(60), || {
            files().any(|name| name.to_string_lossy().ends_with(".partial"))
        });
        let held = Stopped::process(running.pid());
        running.signal(signal);
        drop(held);
        let output = running.wait().assert_code(code);
        output.assert_stderr_has("hint: existing images and the definition are unchanged");
        assert_eq!(files().count(), 2, "a half image is left");
        env.try_virsh(&["domid", "kvmb-test-copy"]).assert_code(1);
        assert_clean(&env, &[&vm1], 1);
    }
}

/// Reading secrets, keys or state from a named pipe without a writer is ended by a signal, and by its time limit.
#[test]
fn named_pipes_in_place_of_files_cannot_block_exit() {
    let env = Env::new("pipes");
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    env.sh("mkfifo -m 600 fifo").run().assert_ok();
    let fifo = env.path("fifo");
    let slow = "sleep 600";
    let points = || env.kvmb(["points", "-r", &env.repo()]);
    let hash = || env.kvmb(["hash"]).arg(&fifo);
    let waiting: [&dyn Fn() -> crate::support::Call; 4] = [
        &|| points().env("KVMB_PASSWORD_FILE", &fifo),
        &|| points().without_env("KVMB_PASSWORD_FILE").env("KVMB_PASSWORD_COMMAND", slow),
        &hash,
        // Before the configuration is read, a signal has its default effect.
        &|| points().env("KVMB_CONFIG", &fifo),
    ];
    for (at, call) in waiting.iter().enumerate() {
        let (signal, code) = BOTH[at % 2];
        let running = call().spawn();
        match at {
            3 => wait_until("it runs", Duration::from_secs(60), || !process::of(&env.path("")).is_empty()),
            _ => wait_until_it_handles_signals(running.pid()),
        }
        running.signal(signal);
        let output = running.wait();
        assert_eq!(output.code(), code, "{output}");
        assert!(output.took < Duration::from_secs(30), "{output}");
    }

    env.configure(&json!({ "limits": { "password": "1s" } }));
    for call in &waiting[..2] {
        let output = call().run().assert_code(1);
        assert_eq!(output.record_of("failure")["code"], "timeout", "{output}");
    }
    env.assert_nothing_left();

    // A writer exists, as with a shell's '<(…)'.
    let running = points().env("KVMB_PASSWORD_FILE", &fifo).spawn();
    fs::write(&fifo, format!("{}\n", crate::support::PASSWORD)).unwrap();
    running.wait().assert_ok();

    // Files that are never pipes are refused at once.
    env.sh("mkdir -p run/kvmb/c-12345678 home/.ssh; mkfifo run/kvmb/c-12345678/state.json home/.ssh/known_hosts; rm \
        repo/config; mkfifo repo/config")
        .run()
        .assert_ok();
    env.kvmb(["release", "c-12345678"])
        .limit(Duration::from_secs(20))
        .run()
        .assert_code(1)
        .assert_stderr_has("regular");
    points().limit(Duration::from_secs(20)).run().assert_code(1).assert_stderr_has("regular");
    let url = "sftp://kvm@127.0.0.1:1//srv/kvm";
    let output = env.kvmb(["points", "-r", url]).limit(Duration::from_secs(20)).run().assert_code(1);
    output.assert_stderr_has("known_hosts").assert_stderr_has("regular");
}
