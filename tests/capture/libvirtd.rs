//! Kills a real libvirtd: between backups, during a job, while one is being started, and after the point is stored. The
//! machine never suffers, and the next backup is correct - or says exactly what an administrator has to do.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::support::chains::*;
use crate::support::{Env, Machine, Output, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

#[test]
fn libvirtd_killed_between_backups_does_not_break_the_chain() {
    let env = Env::with_libvirtd("libvirtd killed between");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    verified(&machine, &repo);
    env.kill_libvirtd();
    machine.write("vda", 0, 512, 0x33);
    let failure = try_backup(&machine, &repo, &[]).assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "connection");
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("check that libvirtd is running")), "{failure}");
    env.start_libvirtd();
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    // libvirtd is down while the machine stops and starts. The bitmaps are in the images.
    machine.stop();
    env.kill_libvirtd();
    env.start_libvirtd();
    machine.start_paused();
    machine.write("vdb", MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "vdb", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn libvirtd_killed_during_a_job_loses_at_most_that_run() {
    let env = Env::with_libvirtd("libvirtd killed meanwhile");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    verified(&machine, &repo);

    // It is down when the last byte is read, for longer than the run waits: no point is stored, and there is no damage.
    machine.write("vda", 2 * MIB, 4 * MIB, 0x33);
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    env.kill_libvirtd();
    let failure = go_on(run).assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "connection");
    assert!(machine.is_captured(), "QEMU goes on with the job that nobody ended");
    env.start_libvirtd();
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_as_usual(&machine);

    // It is back before that: the run notices nothing.
    machine.write("vda", 2 * MIB, 4 * MIB, 0x44);
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    env.kill_libvirtd();
    env.start_libvirtd();
    let point = go_on(run).assert_ok().record_of("point");
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_restores(&env, &repo, &point, &machine.models());
    assert_as_usual(&machine);

    // kvmb is killed too: the next command ends the job that libvirtd finds again.
    machine.write("vda", 6 * MIB, 4 * MIB, 0x55);
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    run.kill();
    run.wait();
    env.kill_libvirtd();
    env.start_libvirtd();
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_as_usual(&machine);
    finish(&env, &[&repo]);
}

#[test]
fn libvirtd_killed_after_commit_leaves_checkpoint_to_the_next_run() {
    let env = Env::with_libvirtd("libvirtd killed after");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let first = verified(&machine, &repo);
    machine.write("vda", 2 * MIB, 4 * MIB, 0x33);
    let run = stopped_at(&machine, &repo, "CommitNoted", &[]).unwrap_or_else(|output| panic!("{output}"));
    env.kill_libvirtd();
    let output = go_on(run).assert_ok().assert_stderr_has("the next run cleans it up");
    let second = output.record_of("point");
    assert_eq!(second["parent"], first["point"]);
    env.start_libvirtd();
    assert_eq!(ours(&machine).len(), 2, "the superseded one is left, and no more");
    machine.write("vda", 0, 512, 0x44);
    let third = verified(&machine, &repo);
    assert_eq!(third["parent"], second["point"]);
    assert_changed(&third, "vda", CHUNK);
    assert_as_usual(&machine);
    finish(&env, &[&repo]);
}

#[test]
fn libvirtd_killed_during_begin_leaves_a_stuck_job_that_is_reported() {
    let env = Env::with_libvirtd("libvirtd wedged");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    verified(&machine, &repo);
    machine.write("vda", 2 * MIB, 4 * MIB, 0x33);

    // QEMU does not respond, so libvirtd is killed after it has recorded that a job begins, but not which one.
    let run = stopped_at(&machine, &repo, "CaptureNoted", &[]).unwrap_or_else(|output| panic!("{output}"));
    let qemu = Pid::from_raw(machine.qemu_pid().expect("on")).expect("a process");
    kill_process(qemu, Signal::STOP).expect("stop");
    run.signal(Signal::CONT);
    let status = env.libvirt_root().join("run/libvirt/qemu/vm.xml");
    wait_until("libvirtd has noted the job", Duration::from_secs(60), || {
        fs::read_to_string(&status).is_ok_and(|xml| xml.contains("async='backup'"))
    });
    env.kill_libvirtd();
    kill_process(qemu, Signal::CONT).expect("go on");
    let failure = run.wait().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "connection", "{failure}");
    env.start_libvirtd();

    for _ in 0..2 {
        let output = try_backup(&machine, &repo, &[]);
        // The start of a job looks the same, so kvmb waits as long as for any other job: 30 s.
        assert!(output.took < Duration::from_secs(60), "it waited for what never ends: {output}");
        assert_is_wedged(&output);
        assert_eq!(machine.status(), "prelaunch", "the machine was stopped to heal libvirt");
    }
    // The hint of the message fixes it, and the chain continues.
    stop_and_restart(&machine);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_as_usual(&machine);
    finish(&env, &[&repo]);
}

#[test]
fn libvirtd_killed_at_any_moment_of_begin_is_recovered_or_reported() {
    let env = Env::with_libvirtd("libvirtd killed in begin");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    verified(&machine, &repo);
    for delay in [28, 36, 44, 56] {
        machine.write("vda", 2 * MIB, MIB, delay);
        let run = stopped_at(&machine, &repo, "CaptureNoted", &[]).unwrap_or_else(|output| panic!("{output}"));
        run.signal(Signal::CONT);
        thread::sleep(Duration::from_millis(delay.into()));
        env.kill_libvirtd();
        // The backup has finished before the kill, or has failed.
        run.wait();
        env.start_libvirtd();
        let output = try_backup(&machine, &repo, &[]);
        if output.code() == 0 {
            assert_restores(&env, &repo, &output.record_of("point"), &machine.models());
        } else {
            assert_is_wedged(&output);
            stop_and_restart(&machine);
            verified(&machine, &repo);
        }
        assert_as_usual(&machine);
    }
    machine.write("vdb", 0, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "vdb", CHUNK);
    finish(&env, &[&repo]);
}

/// A process that is stopped until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn qemu_of(machine: &Machine) -> Stopped {
        let pid = Pid::from_raw(machine.qemu_pid().expect("on")).expect("a process");
        kill_process(pid, Signal::STOP).expect("stop");
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn hung_qemu_is_reported_and_other_machines_are_backed_up() {
    let env = Env::with_libvirtd("hung qemu");
    let repo = init(&env);
    let (hung, well) = (two_disks(&env, "a-hung"), two_disks(&env, "b-well"));
    env.configure(&json!({ "limits": { "libvirt": "5s" } }));
    let all = ["a-hung", "b-well"];
    let of = |records: &[Value], machine: &str| records.iter().filter(|record| record["machine"] == machine).count();
    {
        let _stopped = Stopped::qemu_of(&hung);
        for jobs in ["1", "2"] {
            let output = env.kvmb(["backup", "-r", &repo, "--jobs", jobs]).args(all).run().assert_code(3);
            assert_eq!(output.record_of("failure")["code"], "timeout", "{output}");
            assert_eq!(output.record_of("failure")["machine"], "a-hung", "{output}");
            assert_eq!(output.record_of("point")["machine"], "b-well", "{output}");
        }
        // Other commands that use libvirt have the same limit, and report the other machine.
        let captured = env.kvmb(["snapshot"]).args(all).run().assert_code(3);
        assert_eq!(captured.record_of("failure")["code"], "timeout", "{captured}");
        assert_eq!(of(&captured.records_of("disk"), "b-well"), 2, "{captured}");
        env.kvmb(["release", "b-well"]).run().assert_ok();
        let output = env.kvmb(["disks"]).args(all).run();
        assert_eq!(of(&output.records_of("disk"), "b-well"), 2, "{output}");
        let output = env.kvmb(["vms"]).args(all).run();
        assert_eq!(of(&output.records_of("machine"), "b-well"), 1, "{output}");
        let output = env.kvmb(["doctor"]).args(all).run();
        assert!(output.records_of("check").iter().any(|check| check["target"] == "b-well/vda"), "{output}");
    }
    for machine in [&hung, &well] {
        verified(machine, &repo);
        assert_as_usual(machine);
    }
    finish(&env, &[&repo]);
}

#[test]
fn begin_that_completes_after_its_limit_is_cleared_by_the_next_run() {
    let env = Env::with_libvirtd("late begin");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    verified(&machine, &repo);
    env.configure(&json!({ "limits": { "libvirt": "10s", "backup_begin": "1s" } }));
    machine.write("vda", 2 * MIB, 4 * MIB, 0x33);
    let run = stopped_at(&machine, &repo, "CaptureNoted", &[]).unwrap_or_else(|output| panic!("{output}"));
    let stopped = Stopped::qemu_of(&machine);
    let failure = go_on(run).assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "timeout", "{failure}");
    assert!(failure["error"].as_str().is_some_and(|error| error.contains("begin the backup of vm")), "{failure}");
    drop(stopped);
    env.configure(&json!({}));
    // libvirtd 11.3 crashes if a job is ended before it has finished starting; kvmb waits for that.
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_as_usual(&machine);
    finish(&env, &[&repo]);
}

#[test]
fn sigterm_ends_commands_waiting_for_a_hung_qemu() {
    let env = Env::with_libvirtd("sigterm");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    verified(&machine, &repo);
    let captured = env.kvmb(["snapshot", "vm"]).run().assert_ok();
    for command in [&["release", "vm"][..], &["backup", "vm", "-r", &repo], &["snapshot", "vm"], &["disks", "vm"]] {
        let stopped = Stopped::qemu_of(&machine);
        let mut running = env.kvmb(command).spawn();
        let waits = || {
            let tasks = fs::read_dir(format!("/proc/{}/task", running.pid())).into_iter().flatten().flatten();
            let mut names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
            names.any(|name| name.trim() == "bounded call")
        };
        // Calls that do not involve QEMU finish within milliseconds.
        wait_until("it waits for libvirt", Duration::from_secs(60), || {
            let first = waits();
            thread::sleep(Duration::from_millis(500));
            first && waits()
        });
        assert!(!running.has_ended(), "{command:?}");
        running.signal(Signal::TERM);
        let output = running.wait();
        drop(stopped);
        assert_eq!(output.code(), 143, "{output}");
        if command[0] == "release" {
            env.kvmb(["release", "vm"]).stdin(&captured.stdout).run().assert_ok();
        }
    }
    verified(&machine, &repo);
    assert_as_usual(&machine);
    finish(&env, &[&repo]);
}

/// Fails unless the run said that only an administrator can fix this, and how.
#[track_caller]
fn assert_is_wedged(output: &Output) {
    assert_eq!(output.code(), 1, "{output}");
    let failure = output.record_of("failure");
    for (field, words) in [("error", "libvirt has lost track of the backup job"), ("hint", "restart libvirtd")] {
        assert!(failure[field].as_str().is_some_and(|said| said.contains(words)), "{failure}");
    }
}

/// Fixes a libvirt that has lost track of a job, with the commands in this order.
fn stop_and_restart(machine: &Machine) {
    machine.stop();
    machine.env().kill_libvirtd();
    machine.env().start_libvirtd();
    machine.start_paused();
}

/// Fails unless there is one checkpoint, no job, and the machine is unchanged.
#[track_caller]
fn assert_as_usual(machine: &Machine) {
    assert_eq!(ours(machine).len(), 1);
    assert!(!machine.is_captured(), "a job is left");
    assert_eq!(machine.status(), "prelaunch");
}

#[test]
fn release_succeeds_when_its_checkpoint_was_deleted_externally() {
    let env = Env::with_libvirtd("checkpoint gone");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let captured = env.kvmb(["snapshot", "vm", "-r", &repo]).run().assert_ok();
    let made = ours(&machine);
    assert_eq!(made.len(), 1, "{captured}");
    machine.disconnect();
    env.virsh(&["checkpoint-delete", "vm", &made[0]]);
    env.kvmb(["release"]).stdin(captured.stdout()).run().assert_ok();
    finish(&env, &[&repo]);
}
