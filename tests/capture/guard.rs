//! The guard process of a capture: it renews the lease, watches the scratch space, and ends with the capture.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::chains::*;
use crate::support::{Disk, Env, Machine, process, wait_until};

/// Returns the record that the guard of the only capture has written; null before that.
fn record(env: &Env) -> Value {
    let folders = fs::read_dir(env.runtime_dir()).into_iter().flatten().flatten();
    let mut records = folders.filter_map(|folder| fs::read(folder.path().join("guard.json")).ok());
    records.next().map_or(Value::Null, |text| serde_json::from_slice(&text).expect("JSON"))
}

/// Returns the process of the only capture's guard.
pub(crate) fn guard_pid(env: &Env) -> i32 {
    let mut pid = None;
    wait_until("there is a guard", Duration::from_secs(60), || {
        let written = record(env)["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid = written.filter(|pid| is_guard(env, *pid));
        pid.is_some()
    });
    pid.expect("a guard")
}

fn is_guard(env: &Env, pid: i32) -> bool {
    process::of(&env.path("")).iter().any(|process| process.pid == pid && process.command_line.contains(" guard c-"))
}

fn guards(env: &Env) -> usize {
    process::of(&env.path("")).iter().filter(|process| process.command_line.contains(" guard c-")).count()
}

/// Creates a scratch folder of 300 MiB, before the machine is started.
fn small_scratch(env: &Env) -> (crate::support::tmpfs::Tmpfs, String) {
    let scratch = env.tmpfs("small-scratch", 300 * MIB);
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let folder = scratch.path().display().to_string();
    (scratch, folder)
}

fn noisy<'e>(env: &'e Env, name: &str) -> Machine<'e> {
    let machine = env.machine(name).disk(Disk::qcow2(320 * MIB)).start_paused();
    for at in 0..5 {
        machine.write("vda", at * 60 * MIB, 60 * MIB, 0x11);
    }
    machine
}

/// Overwrites so much data that less than 64 MiB of scratch space are left. Returns the time until the job was ended.
fn fill_scratch(machine: &Machine) -> Duration {
    for at in 0..4 {
        machine.write("vda", at * 60 * MIB, 60 * MIB, 0x22);
    }
    let began = Instant::now();
    wait_until("the job is ended", Duration::from_secs(60), || !machine.is_captured());
    began.elapsed()
}

#[test]
fn guard_ends_job_before_scratch_space_is_full_despite_slow_reader() {
    // QEMU must see the test's mounts, unlike a QEMU of libvirtd.
    let env = Env::new("guard scratch");
    let repo = init(&env);
    let (_scratch, folder) = small_scratch(&env);
    let machine = noisy(&env, "vm");
    let captured = env.kvmb(["snapshot", "vm", "--scratch", &folder]).run().assert_ok();
    let pid = guard_pid(&env);
    let hashing = env.kvmb(["hash", "--limit-read", "1M"]).stdin(captured.stdout()).spawn();
    let took = fill_scratch(&machine);
    assert!(took < Duration::from_secs(30), "the job went on for {took:?}");
    let failure = hashing.wait().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "no_space", "{failure}");
    assert_eq!(machine.status(), "prelaunch", "the guest suffered");
    // The rest cannot be read either, with the reason.
    let output = env.kvmb(["push", "-r", &repo]).stdin(captured.stdout()).run().assert_code(1);
    assert_eq!(output.record_of("failure")["code"], "no_space", "{output}");
    env.kvmb(["release", "vm"]).run().assert_ok();
    wait_until("release ends the guard", Duration::from_secs(60), || !is_guard(&env, pid));
    finish(&env, &[]);
}

#[test]
fn killed_guard_is_restarted_by_the_next_reader() {
    let env = Env::with_libvirtd("guard killed");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let captured = env.kvmb(["snapshot", "vm", "-r", &repo]).run().assert_ok();
    let first = guard_pid(&env);
    process::kill(first);
    wait_until("it is dead", Duration::from_secs(60), || !is_guard(&env, first));
    let hashed = env.kvmb(["hash", "--limit-read", "4M"]).stdin(captured.stdout()).spawn();
    let second = guard_pid(&env);
    assert_ne!(first, second);
    let hashed = hashed.wait().assert_ok();
    let pushed = env.kvmb(["push", "-r", &repo]).stdin(hashed.stdout()).run().assert_ok();
    assert_eq!(guard_pid(&env), second, "one guard is enough");
    env.kvmb(["release"]).stdin(pushed.stdout()).run().assert_ok();
    assert_restores(&env, &repo, &pushed.record_of("point"), &machine.models());
    finish(&env, &[&repo]);
}

#[test]
fn capture_ends_when_its_lease_expires_but_not_while_read() {
    let env = Env::with_libvirtd("guard lease");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    for is_off in [false, true] {
        if is_off {
            machine.stop();
        }
        let kept = ours(&machine);
        // 20 MiB at 1 MiB/s take longer than the lease, which a busy host must not use up between the two commands.
        let captured = env.kvmb(["snapshot", "vm", "-r", &repo, "--lease", "15s"]).run().assert_ok();
        let hashed = env.kvmb(["hash", "--limit-read", "1M"]).stdin(captured.stdout()).run().assert_ok();
        assert!(hashed.took > Duration::from_secs(16), "{hashed}");
        let disks = hashed.records_of("disk");
        let vda = disks.iter().find(|disk| disk["disk"] == "vda").expect("vda");
        assert_eq!(vda["sha256"], machine.model("vda").sha256());
        wait_until("nothing is left", Duration::from_secs(60), || env.leftovers().is_empty());
        assert!(is_off || !machine.is_captured());
        assert_eq!(ours(&machine), kept, "no point was stored");
        let output = env.kvmb(["push", "-r", &repo]).stdin(hashed.stdout()).run().assert_code(1);
        assert_eq!(output.record_of("failure")["code"], "not_found", "{output}");
        let point = backup_with(&machine, &repo, &["--lease", "2s", "--limit-read", "4M"]);
        assert_restores(&env, &repo, &point, &machine.models());
    }
    machine.start_paused();
    finish(&env, &[&repo]);
}

#[test]
fn guard_of_a_killed_run_clears_up_when_the_lease_ends() {
    let env = Env::with_libvirtd("guard orphaned");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    verified(&machine, &repo);
    let kept = ours(&machine);
    machine.write("vda", 2 * MIB, 4 * MIB, 0x33);
    let run = stopped_at(&machine, &repo, "FirstChunk", &["--lease", "3s"]).unwrap_or_else(|output| panic!("{output}"));
    guard_pid(&env);
    process::kill(run.pid());
    run.wait();
    assert!(machine.is_captured());
    wait_until("the guard clears", Duration::from_secs(60), || env.leftovers().is_empty());
    assert!(!machine.is_captured());
    assert_eq!(ours(&machine), kept);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 4 * CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn guard_and_other_processes_share_the_embedded_driver() {
    let env = Env::new("guard embedded");
    let machine = two_disks(&env, "vm");
    env.kvmb(["snapshot", "vm", "--lease", "1s"]).run().assert_ok();
    let pid = guard_pid(&env);
    for _ in 0..8 {
        env.kvmb(["vms"]).run().assert_ok();
    }
    wait_until("the guard clears", Duration::from_secs(60), || env.leftovers().is_empty());
    assert!(!machine.is_captured() && !is_guard(&env, pid));
}

#[test]
fn doctor_reports_an_ended_guard() {
    let env = Env::with_libvirtd("guard doctor");
    let _machine = two_disks(&env, "vm");
    env.kvmb(["snapshot", "vm"]).run().assert_ok();
    let pid = guard_pid(&env);
    let session = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let session: Vec<&str> = session.rsplit_once(')').expect("stat").1.split_whitespace().collect();
    assert_eq!(session[3], pid.to_string(), "it is in a session of its own");
    let open: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("fd")
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .filter(|file| !file.starts_with(env.runtime_dir()) && !file.starts_with("/dev/null"))
        .collect();
    assert!(open.is_empty(), "it inherited {open:?}");
    let detail = || {
        let output = env.kvmb(["doctor", "vm"]).run();
        let job = output.records_of("check").into_iter().find(|check| check["check"] == "job");
        job.expect("a check")["detail"].as_str().expect("detail").to_owned()
    };
    assert!(!detail().contains("guard"), "{}", detail());
    process::kill(pid);
    wait_until("it is dead", Duration::from_secs(60), || guards(&env) == 0);
    assert!(detail().contains("guard process has ended"), "{}", detail());
    assert_ne!(record(&env), json!(null));
    env.kvmb(["release", "--all"]).run().assert_ok();
    finish(&env, &[]);
}

#[test]
fn slow_upload_fails_soon_after_the_guard_ends_the_job() {
    let env = Env::new("guard slow upload");
    let repo = init(&env);
    let (_scratch, folder) = small_scratch(&env);
    let machine = noisy(&env, "vm");
    for at in 0..8 {
        machine.write_bytes("vda", at * 8 * MIB, &crate::support::backups::noise(at, 8 * MIB));
    }
    let backup = ["backup", "vm", "-r", &repo, "--limit-upload", "100K", "--scratch", &folder];
    let mut running = env.kvmb(backup).spawn();
    let data = PathBuf::from(&repo).join("data");
    let uploads =
        || fs::read_dir(&data).unwrap().flatten().any(|fan| fs::read_dir(fan.path()).unwrap().next().is_some());
    wait_until("it uploads", Duration::from_secs(60), || running.has_ended() || uploads());
    fill_scratch(&machine);
    let began = Instant::now();
    let failure = running.wait().assert_code(1).record_of("failure");
    // Writing a pack would take 160 seconds.
    assert!(began.elapsed() < Duration::from_secs(80), "it took {:?} to end", began.elapsed());
    assert_eq!(failure["code"], "no_space", "{failure}");
    assert_eq!(machine.status(), "prelaunch", "the guest suffered");
    finish(&env, &[&repo]);
}
