//! Live restores: the machine runs immediately on its served point, and its data follows. No failure loses data that
//! the guest has written, or the images that the restore replaced.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::backups::{MIB, backup, init, names_in, noise, stopped_at, text};
use crate::support::call::{Call, Running};
use crate::support::guest::Ext4;
use crate::support::storage::LoopDevice;
use crate::support::{Disk, DiskModel, Env, FreezeMode, Machine, Output, process, wait_until};
use kvmb::failpoint::Failpoint;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// Creates a machine that is off, with data on two qcow2 disks, one of which has its own error policy, and makes a
/// point of it.
fn machine_with_a_point(env: &Env) -> Machine<'_> {
    let machine = env
        .machine("vm1")
        .disk(Disk::qcow2(24 * MIB).driver("error_policy='enospace'"))
        .disk(Disk::qcow2(8 * MIB))
        .define();
    machine.write_bytes("vda", MIB, &noise(1, 16 * MIB));
    machine.write_bytes("vdb", 512, &noise(2, 4 * MIB));
    init(env);
    backup(&machine);
    machine
}

fn live(env: &Env, args: &[&str]) -> Call {
    env.kvmb(["restore", "vm1", "-r", &env.repo(), "--overwrite", "--live"]).args(args)
}

/// Continues the restore, no longer slowly.
fn resume(env: &Env) -> Call {
    env.kvmb(["restore", "--continue", "vm1", "--limit-read", "1G"])
}

/// Starts a live restore with a running machine and slow copying.
fn slow(env: &Env) -> Running {
    running(live(env, &["--limit-read", "1M"]))
}

fn running(call: Call) -> Running {
    let mut running = call.spawn();
    wait_until("the machine runs", LIMIT, || {
        assert!(!running.has_ended(), "{}", running.stderr_so_far());
        running.stderr_so_far().contains("is running after")
    });
    running
}

/// Returns the process that serves the point.
fn server(env: &Env) -> i32 {
    let states = names_in(&env.runtime_dir()).into_iter().filter(|name| name.starts_with("served-"));
    let paths: Vec<PathBuf> = states.map(|name| env.runtime_dir().join(name)).collect();
    assert_eq!(paths.len(), 1, "{paths:?}");
    let state: Value = serde_json::from_slice(&fs::read(&paths[0]).expect("read")).expect("JSON");
    i32::try_from(state["process"]["pid"].as_i64().expect("a pid")).expect("a pid")
}

/// Returns the process that monitors the server after the restore has ended.
fn supervisor(machine: &Machine) -> i32 {
    let name = format!("data/live-restores/{}.supervisor.lock", machine.uuid());
    let process = || serde_json::from_slice::<Value>(&fs::read(machine.env().path(&name)).ok()?).ok();
    wait_until("there is a supervisor", LIMIT, || process().is_some());
    i32::try_from(process().expect("a process")["pid"].as_i64().expect("a pid")).expect("a pid")
}

fn state_path(machine: &Machine) -> PathBuf {
    machine.env().path(format!("data/live-restores/{}.json", machine.uuid()))
}

/// Returns the state of a machine's live restore.
fn state_of(machine: &Machine) -> Value {
    serde_json::from_slice(&fs::read(state_path(machine)).expect("read")).expect("JSON")
}

/// Kills everything at once, like a crash of the host.
fn lose_all(machine: &Machine, restore: Running) {
    let env = machine.env();
    process::kill(supervisor(machine));
    restore.kill();
    restore.wait();
    process::kill(server(env));
    machine.kill();
    for folder in [env.runtime_dir(), env.path("run/kvmb-nbd")] {
        fs::remove_dir_all(folder).expect("remove");
    }
}

/// Returns the check of the restore in the output of `status` or `doctor`.
#[track_caller]
fn restore_check(output: &Output) -> Value {
    output.records_of("check").into_iter().find(|check| check["check"] == "restore").expect("a check")
}

fn is_served(env: &Env) -> bool {
    names_in(&env.runtime_dir()).iter().any(|name| name.starts_with("served-"))
}

fn inodes(machine: &Machine) -> BTreeMap<String, u64> {
    machine.targets().into_iter().map(|t| (t.clone(), fs::metadata(machine.image(&t)).expect("stat").ino())).collect()
}

/// Fails unless the restore is complete: nothing of it is left, and the disks have exactly this content.
#[track_caller]
fn assert_done(machine: &Machine, definition: &str, disks: &BTreeMap<String, DiskModel>) {
    let env = machine.env();
    assert_eq!(env.virsh(&["dumpxml", "--inactive", machine.uuid()]), definition);
    let live = env.virsh(&["dumpxml", machine.uuid()]);
    assert!(!live.contains("nbd"), "{live}");
    assert!(machine.qemu_pid().is_some(), "it does not run");
    // Data that is only in QEMU's memory would be lost.
    machine.kill();
    for (target, model) in disks {
        model.assert_image_equals(machine.image(target), machine.format(target));
    }
    assert_nothing_left(env);
}

#[track_caller]
fn assert_nothing_left(env: &Env) {
    env.assert_nothing_left();
    let hidden: Vec<String> = names_in(&env.disks()).into_iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(hidden, [""; 0]);
    let states = env.path("data/live-restores");
    let left: Vec<String> = names_in(&states).into_iter().filter(|name| !name.ends_with(".lock")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn live_restore_starts_the_machine_and_leaves_no_server() {
    let env = Env::new("live");
    let machine = machine_with_a_point(&env);
    let (then, definition, old) = (machine.models(), machine.definition(), inodes(&machine));
    let output = live(&env, &["--progress", "jsonl"]).run().assert_ok();
    let record = output.record_of("point");
    // The move at the end has a progress of its own.
    for disk in then.keys() {
        let moving = format!("\"verb\":\"moving\",\"label\":\"vm1/{disk}\"");
        assert!(output.stderr().contains(&moving), "{output}");
    }
    let restored = &record["restored_to"];
    assert_eq!((&restored["machine"], &restored["started"]), (&"vm1".into(), &true.into()));
    let seconds = |field: &str| restored["live"][field].as_f64().expect("seconds");
    println!("running after {:.1} s, done after {:.1} s", seconds("running_seconds"), seconds("done_seconds"));
    assert!(seconds("running_seconds") <= seconds("done_seconds"));
    assert!(old.iter().all(|(target, inode)| inodes(&machine)[target] != *inode), "an old image was written to");
    assert_done(&machine, &definition, &then);
    // The chain continues after one full read.
    machine.start_after_its_end();
    let read_modes = |point: &Value| {
        let disks = point["disks"].as_array().expect("disks").clone();
        disks.iter().map(|disk| text(disk, "read_mode").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(read_modes(&backup(&machine)), ["full", "full"]);
    machine.write("vda", 0, MIB, 0x44);
    assert_eq!(read_modes(&backup(&machine)), ["changed", "changed"]);
}

#[test]
fn restarted_server_does_not_run_the_password_command_again() {
    let env = Env::new("livekey");
    let machine = machine_with_a_point(&env);
    let (then, definition) = (machine.models(), machine.definition());
    let asked = env.path("asked");
    fs::write(&asked, "").expect("write");
    let times = || fs::read_to_string(&asked).expect("read").lines().count();
    let command = format!("echo once >>'{}'; cat '{}'", asked.display(), env.path("password").display());
    let call = live(&env, &["--limit-read", "8M"]).without_env("KVMB_PASSWORD_FILE");
    let restore = running(call.env("KVMB_PASSWORD_COMMAND", &command));
    assert_eq!(times(), 1);
    process::kill(server(&env));
    restore.wait().assert_ok();
    assert_eq!(times(), 1);
    assert_done(&machine, &definition, &then);
}

#[test]
fn killed_live_restore_is_reported_and_can_be_continued() {
    let env = Env::new("livekilled");
    let machine = machine_with_a_point(&env);
    let definition = machine.definition();
    let restore = slow(&env);
    // Its first writes go to copied and to uncopied areas.
    machine.reconnect();
    machine.write("vda", 0, 2 * MIB, 0x11);
    machine.write("vda", 12 * MIB + 4096, MIB, 0x22);
    restore.kill();
    restore.wait();
    assert!(is_served(&env), "the server ended with the restore");
    machine.write("vdb", MIB, MIB, 0x33);
    machine.disconnect();

    let check = restore_check(&env.kvmb(["status", "-r", &env.repo()]).run());
    assert_eq!(text(&check, "status"), "warning");
    assert!(text(&check, "hint").ends_with(" --continue vm1"), "{check:#}");
    let busy = env.kvmb(["backup", "vm1", "-r", &env.repo()]).run().assert_code(5).record_of("failure");
    assert_eq!(text(&busy, "code"), "busy");
    let again = live(&env, &[]).run().record_of("failure");
    assert_eq!(text(&again, "code"), "running");
    // Commands that end servers ignore this one.
    env.kvmb(["release", "--all"]).run().assert_ok();
    env.kvmb(["release", "vm1"]).run().assert_ok();
    assert!(is_served(&env));

    let action = resume(&env).run().assert_ok().record_of("action");
    assert_eq!((text(&action, "action"), text(&action, "target")), ("restore", "vm1"));
    assert_done(&machine, &definition, &machine.models());
    assert_eq!(resume(&env).run().assert_code(1).record_of("failure")["code"], "not_found");
}

#[test]
fn killed_server_is_restarted_during_a_live_restore() {
    let env = Env::new("liveserver");
    let machine = machine_with_a_point(&env);
    let definition = machine.definition();
    let restore = slow(&env);
    machine.reconnect();
    let first = server(&env);
    process::kill(first);
    wait_until("another server runs", LIMIT, || is_served(&env) && server(&env) != first);
    machine.write("vda", 8 * MIB, 4 * MIB, 0x55);
    machine.disconnect();
    // Without the limit, it finishes sooner.
    restore.interrupt();
    let interrupted = restore.wait().assert_code(130);
    interrupted.assert_stderr_has("--continue vm1");
    resume(&env).run().assert_ok();
    assert_done(&machine, &definition, &machine.models());
}

#[test]
fn machine_cannot_start_without_its_point_after_a_reboot() {
    let env = Env::new("livereboot");
    let machine = machine_with_a_point(&env);
    let definition = machine.definition();
    let restore = slow(&env);
    machine.reconnect();
    machine.write("vda", 3 * MIB, 2 * MIB, 0x66);
    machine.flush("vda");
    lose_all(&machine, restore);
    let check = restore_check(&env.kvmb(["doctor"]).run());
    assert_eq!(text(&check, "status"), "critical");
    assert!(text(&check, "hint").ends_with(" --continue vm1"), "{check:#}");
    assert_ne!(env.try_virsh(&["start", machine.uuid()]).code(), 0, "it started without its point");
    assert_eq!(
        env.kvmb(["backup", "vm1", "-r", &env.repo()]).run().assert_code(5).record_of("failure")["code"],
        "busy"
    );
    resume(&env).run().assert_ok();
    assert_done(&machine, &definition, &machine.models());
}

#[test]
fn killed_server_is_restarted_after_its_restore_was_killed() {
    let env = Env::new("liveunwatched");
    let machine = machine_with_a_point(&env);
    let definition = machine.definition();
    let restore = slow(&env);
    machine.reconnect();
    let first = server(&env);
    supervisor(&machine);
    restore.kill();
    restore.wait();
    process::kill(first);
    // It reads data that has not been copied yet, so the write waits for the point.
    machine.write("vdb", MIB, 512, 0x11);
    assert_ne!(server(&env), first);
    machine.disconnect();
    let check = restore_check(&env.kvmb(["status", "-r", &env.repo()]).run());
    let said = (text(&check, "status"), text(&check, "detail").ends_with("it still reads from the repository"));
    assert_eq!(said, ("warning", true), "{check:#}");
    resume(&env).run().assert_ok();
    assert_done(&machine, &definition, &machine.models());
}

#[test]
fn supervisor_finishes_killed_but_not_interrupted_restores() {
    let env = Env::with_libvirtd("livegoeson");
    let machine = machine_with_a_point(&env);
    let definition = machine.definition();
    let state = || state_of(&machine);
    // On a host with systemd, no unit is started if a variable contains a secret.
    let restore = running(live(&env, &["--limit-read", "1M"]).env("AWS_SECRET_ACCESS_KEY", "x"));
    supervisor(&machine);
    restore.interrupt();
    restore.wait().assert_code(130);
    assert_eq!(state()["held"], Value::Bool(true));
    // With the supervisor's option, the restore is left alone.
    env.kvmb(["restore", "--continue", "vm1", "--unattended"]).run().assert_code(5);
    assert_eq!(state()["held"], Value::Bool(true));

    let continued = env.kvmb(["restore", "--continue", "vm1"]).spawn();
    let pid = i64::from(continued.pid());
    wait_until("a person continues it", LIMIT, || state()["process"]["pid"] == pid);
    assert_eq!(state()["held"], Value::Bool(false));
    continued.kill();
    continued.wait();
    wait_until("the restore is over", Duration::from_secs(120), || !state_path(&machine).exists());
    wait_until("kvmb has ended", LIMIT, || !process::of(&env.path("")).iter().any(|process| process.is("kvmb")));
    assert_done(&machine, &definition, &machine.models());
}

#[test]
fn writes_before_the_move_to_the_own_disks_survive_a_kill_of_everything() {
    for step in [Failpoint::RestoreCopied, Failpoint::RestoreSwitched] {
        let env = Env::new("livelost");
        let machine = machine_with_a_point(&env);
        let definition = machine.definition();
        let call = live(&env, &["--limit-read", "4M"]).env("KVMB_TEST_STOP_AT", step.name());
        let restore = running(call);
        machine.reconnect();
        machine.write("vda", 3 * MIB, 2 * MIB, 0x66);
        machine.write("vdb", 7 * MIB, 4096, 0x67);
        machine.flush("vda");
        machine.flush("vdb");
        wait_until("it has reached the step", LIMIT, || restore.is_stopped());
        lose_all(&machine, restore);
        resume(&env).run().assert_ok();
        assert_done(&machine, &definition, &machine.models());
    }
}

#[test]
fn disk_of_a_moved_machine_is_not_restored_again_if_it_was_replaced() {
    let env = Env::new("livemoved");
    let machine = machine_with_a_point(&env);
    let definition = machine.definition();
    let restore = stopped_at(live(&env, &[]), Failpoint::RestoreSwitched);
    lose_all(&machine, restore);
    // A person replaces an image, for example by a smaller copy.
    machine.disconnect();
    machine.write("vda", 3 * MIB, 2 * MIB, 0x66);
    let (image, copy) = (machine.image("vda"), env.disks().join("copy"));
    fs::copy(image, &copy).expect("copy");
    fs::rename(&copy, image).expect("rename");
    resume(&env).run().assert_ok();
    assert_done(&machine, &definition, &machine.models());
}

#[test]
fn detached_disk_keeps_what_was_written_until_it_is_attached_again() {
    let env = Env::new("livedetached");
    let machine = machine_with_a_point(&env);
    let definition = machine.definition();
    let restore = slow(&env);
    machine.reconnect();
    machine.write("vdb", 3 * MIB, 2 * MIB, 0x66);
    machine.flush("vdb");
    lose_all(&machine, restore);
    let served = env.path("served.xml");
    fs::write(&served, env.virsh(&["dumpxml", "--inactive", machine.uuid()])).expect("write");
    env.virsh(&["detach-disk", machine.uuid(), "vdb", "--config"]);
    resume(&env)
        .run()
        .assert_code(1)
        .assert_stderr_has("disk vdb of vm1 was detached")
        .assert_stderr_has("vdb.overlay");
    env.virsh(&["define", &served.display().to_string()]);
    resume(&env).run().assert_ok();
    assert_done(&machine, &definition, &machine.models());
}

#[test]
fn machine_does_not_move_to_an_image_that_a_person_copies_its_disk_to() {
    let env = Env::new("livecopied");
    let machine = machine_with_a_point(&env);
    let restore = slow(&env);
    restore.interrupt();
    restore.wait().assert_code(130);
    let other = env.disks().join("other.qcow2").display().to_string();
    env.virsh(&["blockcopy", machine.uuid(), "vda", &other, "--transient-job", "--wait"]);
    let restore = resume(&env).spawn();
    wait_until("it reports the copy", LIMIT, || restore.stderr_so_far().contains("copies disk vda of vm1"));
    restore.interrupt();
    restore.wait().assert_code(130);
    env.virsh(&["blockjob", machine.uuid(), "vda", "--pivot"]);
    resume(&env).run().assert_code(1).assert_stderr_has("disk vda of vm1 was detached or moved");
    machine.kill();
    // libvirt notices when it is opened.
    env.try_virsh(&["destroy", machine.uuid()]);
    env.kvmb(["restore", "--abort", "vm1"]).run().assert_ok();
    assert_nothing_left(&env);
}

#[test]
fn paused_machine_is_resumed_after_a_kill_of_its_restore() {
    let env = Env::new("livepaused");
    let machine = machine_with_a_point(&env);
    let (then, definition) = (machine.models(), machine.definition());
    let restore = stopped_at(live(&env, &[]), Failpoint::RestoreSwitched);
    restore.kill();
    restore.wait();
    assert!(env.virsh(&["domstate", machine.uuid()]).contains("paused"));
    resume(&env).run().assert_ok();
    assert!(env.virsh(&["domstate", machine.uuid()]).contains("running"));
    assert_done(&machine, &definition, &then);
}

#[test]
fn machine_that_a_person_paused_stays_paused() {
    let env = Env::new("livesuspended");
    let machine = machine_with_a_point(&env);
    let (then, definition) = (machine.models(), machine.definition());
    let restore = slow(&env);
    restore.interrupt();
    restore.wait().assert_code(130);
    env.virsh(&["suspend", machine.uuid()]);
    resume(&env).run().assert_ok();
    assert!(env.virsh(&["domstate", machine.uuid()]).contains("paused"));
    assert_done(&machine, &definition, &then);
}

#[test]
fn continued_copy_keeps_what_was_copied_and_repairs_what_was_not() {
    let env = Env::new("liveresumed");
    let machine = machine_with_a_point(&env);
    let (then, definition) = (machine.models(), machine.definition());
    let restore = slow(&env);
    let names = names_in(&env.disks()).into_iter().filter(|name| name.ends_with("-vda.data"));
    let unfinished = names.map(|name| env.disks().join(name)).next().expect("an unfinished image");
    let holes = || {
        let bytes = fs::read(&unfinished).expect("read");
        bytes.chunks(MIB as usize).filter(|chunk| chunk.iter().all(|byte| *byte == 0)).count()
    };
    let before = holes();
    wait_until("more is copied", LIMIT, || holes() + 4 <= before);
    restore.kill();
    restore.wait();
    // A torn write, as after a loss of power.
    let image = fs::File::options().read(true).write(true).open(&unfinished).expect("open");
    let last = image.metadata().expect("stat").len() - 512;
    let mut torn = vec![0; 512];
    image.read_exact_at(&mut torn, last).expect("read");
    torn.iter_mut().for_each(|byte| *byte ^= 0xff);
    image.write_all_at(&torn, last).expect("write");
    resume(&env).run().assert_ok();
    assert_done(&machine, &definition, &then);
}

#[test]
fn supervisor_finishes_the_restore_after_a_reboot() {
    let env = Env::new("livebooted");
    let machine = machine_with_a_point(&env);
    let definition = machine.definition();
    let restore = slow(&env);
    machine.reconnect();
    machine.write("vda", 3 * MIB, 2 * MIB, 0x66);
    machine.flush("vda");
    lose_all(&machine, restore);
    // The kernel reports another boot, and systemd executes the command of the unit.
    let path = state_path(&machine);
    let mut state = state_of(&machine);
    state["boot"] = "another".into();
    state["limit_read"] = Value::Null;
    fs::write(&path, state.to_string()).expect("write");
    env.kvmb(["guard", "--live", machine.uuid()]).run().assert_ok();
    assert!(!path.exists(), "the restore is not finished");
    assert_done(&machine, &definition, &machine.models());
}

/// Returns the tags of the points' snapshots other than the machine's name.
fn tags(env: &Env) -> Vec<Vec<String>> {
    let listed = env.restic(env.repo()).call(["snapshots", "--json"]).run().assert_ok();
    let snapshots: Vec<Value> = serde_json::from_str(listed.stdout()).expect("JSON");
    let words = |snapshot: &Value| -> Vec<String> {
        let tags = snapshot["tags"].as_array().expect("tags").iter().map(|tag| tag.as_str().expect("a tag").to_owned());
        tags.filter(|tag| tag != "kvmb" && !tag.starts_with("machine=")).collect()
    };
    snapshots.iter().map(words).collect()
}

#[test]
fn point_in_use_by_a_live_restore_is_not_pruned() {
    let env = Env::new("livepruned");
    let machine = machine_with_a_point(&env);
    let (then, definition) = (machine.models(), machine.definition());
    let first = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().record_of("point");
    machine.write_bytes("vda", MIB, &noise(3, 2 * MIB));
    backup(&machine);
    let restore = ["restore", text(&first, "point"), "-r", &env.repo(), "--overwrite", "--live", "--limit-read", "1M"];
    let restore = running(env.kvmb(restore));
    restore.kill();
    restore.wait();
    process::kill(server(&env));
    assert!(tags(&env)[0].iter().any(|tag| tag == "restoring"), "{:?}", tags(&env));
    let verdicts = || {
        let pruned = env.kvmb(["prune", "-r", &env.repo(), "--keep-last", "1"]).run().assert_ok();
        let forgotten = pruned.records_of("action").into_iter().filter(|action| action["action"] == "forget");
        forgotten.map(|action| action["rules"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(verdicts(), [serde_json::json!(["restoring"]), serde_json::json!(["last"])]);
    resume(&env).run().assert_ok();
    assert_done(&machine, &definition, &then);
    assert_eq!(tags(&env), [[""; 0]; 2]);
    assert!(verdicts().contains(&serde_json::json!(["expired"])), "it is still kept");
}

#[test]
fn abort_brings_back_the_old_images_and_definition() {
    let env = Env::new("liveabort");
    let machine = machine_with_a_point(&env);
    machine.write("vda", 0, 4 * MIB, 0x77);
    let changed = machine.definition().replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<");
    fs::write(env.path("changed.xml"), changed).expect("write");
    env.virsh(&["define", &env.path("changed.xml").display().to_string()]);
    let (before, old, definition) = (machine.models(), inodes(&machine), machine.definition());
    let restore = slow(&env);
    restore.interrupt();
    restore.wait().assert_code(130);
    let abort = || env.kvmb(["restore", "--abort", "vm1"]);
    assert_eq!(abort().run().assert_code(1).record_of("failure")["code"], "running");
    assert_ne!(machine.definition(), definition);
    machine.stop();
    let refused = live(&env, &[]).run().record_of("failure");
    assert_eq!(text(&refused, "code"), "busy", "{refused:#}");
    assert_eq!(tags(&env)[0].len(), 2);
    abort().run().assert_ok();
    assert_eq!(tags(&env), [[""; 0]]);
    assert_eq!((machine.definition(), inodes(&machine)), (definition, old));
    for (target, model) in &before {
        model.assert_image_equals(machine.image(target), machine.format(target));
    }
    assert_nothing_left(&env);
}

#[test]
fn restore_killed_before_machine_start_is_undone_on_continue() {
    for step in [Failpoint::RestorePlacedFirst, Failpoint::RestoreDefined] {
        let env = Env::new("liveundone");
        let machine = machine_with_a_point(&env);
        let (then, old, definition) = (machine.models(), inodes(&machine), machine.definition());
        let stopped = stopped_at(live(&env, &[]), step);
        stopped.kill();
        stopped.wait();
        let undone = resume(&env).run().assert_code(1).record_of("failure");
        assert_eq!(text(&undone, "hint"), "kvmb restore vm1 --live");
        assert_eq!((machine.definition(), inodes(&machine)), (definition, old), "{step:?}");
        for (target, model) in &then {
            model.assert_image_equals(machine.image(target), machine.format(target));
        }
        assert_nothing_left(&env);
    }
}

#[test]
fn live_restore_under_another_name_completes_or_is_aborted() {
    let env = Env::new("liveas");
    let machine = machine_with_a_point(&env);
    let folder = env.path("copies");
    fs::create_dir(&folder).expect("mkdir");
    let restore = |args: &[&str]| {
        let call = env.kvmb(["restore", "vm1", "-r", &env.repo(), "--live", "--as", "vm2", "--into"]);
        call.arg(&folder).args(args)
    };
    let restored = restore(&[]).run().assert_ok().record_of("point");
    let images = crate::support::backups::images_of(&restored);
    let destroy = "qemu-monitor-command vm2 --hmp 'info status'; destroy vm2";
    env.virsh(&[&format!("{destroy}; undefine vm2")]);
    images.iter().for_each(|(target, image)| machine.model(target).assert_image_equals(image, "qcow2"));
    images.values().for_each(|image| fs::remove_file(image).expect("remove"));
    let interrupted = running(restore(&["--limit-read", "1M"]));
    interrupted.interrupt();
    interrupted.wait().assert_code(130);
    env.virsh(&[destroy]);
    env.kvmb(["restore", "--abort", "vm2"]).run().assert_ok();
    assert_eq!(names_in(&folder), [""; 0]);
    assert_ne!(env.try_virsh(&["dominfo vm2"]).code(), 0, "its definition is still there");
    assert_nothing_left(&env);
}

#[test]
fn unsupported_live_restore_is_refused_without_changes() {
    let env = Env::new("liverefused");
    let machine = env.machine("vm1").disk(Disk::qcow2(4 * MIB)).define();
    init(&env);
    backup(&machine);
    let old = inodes(&machine);
    let file = env.path("device");
    fs::File::create_new(&file).and_then(|file| file.set_len(8 * MIB)).expect("create");
    let device = LoopDevice::on(&file);
    let to = format!("vda={}", device.path);
    for args in [&["--to", &to][..], &["--to", &to, "--dry-run"]] {
        let refused = live(&env, args).run().assert_code(1).record_of("failure");
        let hint = "choose a folder for images: --into DIR";
        assert_eq!((text(&refused, "code"), text(&refused, "hint")), ("unsupported", hint));
    }
    live(&env, &["--dry-run"]).run().assert_ok();
    let unasked = live(&env, &[]).without_env("KVMB_PASSWORD_FILE").run();
    assert_ne!(unasked.code(), 0);
    assert_eq!(inodes(&machine), old);
    for wrong in [&["vm1", "--live", "--no-define"][..], &["vm1", "--limit-read", "1M"], &["--continue"]] {
        env.kvmb(["restore", "-r", &env.repo()]).args(wrong).run().assert_code(2);
    }
    assert_eq!(env.kvmb(["restore", "--abort", "vm1"]).run().assert_code(1).record_of("failure")["code"], "not_found");
}

#[test]
fn raw_image_stays_raw_and_a_volume_of_a_pool_a_volume() {
    let env = Env::with_libvirtd("liveraw");
    let machine = env.machine("vm1").disk(Disk::raw(8 * MIB)).disk(Disk::qcow2(4 * MIB)).define();
    machine.write_bytes("vda", MIB, &noise(1, 5 * MIB));
    env.virsh(&[&format!("pool-define-as p dir --target '{}'; pool-start p", env.disks().display())]);
    let file = machine.image("vdb").file_name().expect("a name").to_string_lossy().into_owned();
    let definition = machine.definition();
    let (first, second) = definition.split_once("</disk>").expect("two disks");
    let second = second.replace("<disk type='file'", "<disk type='volume'");
    let source = format!("<source file='{}'/>", machine.image("vdb").display());
    let second = second.replace(&source, &format!("<source pool='p' volume='{file}'/>"));
    fs::write(env.path("volume.xml"), format!("{first}</disk>{second}")).expect("write");
    env.virsh(&["define", &env.path("volume.xml").display().to_string()]);
    let definition = machine.definition();
    assert!(definition.contains("<disk type='volume'") && definition.contains("type='raw'"), "{definition}");
    init(&env);
    backup(&machine);
    let then = machine.models();
    live(&env, &[]).run().assert_ok();
    assert_done(&machine, &definition, &then);
}

#[test]
fn guest_keeps_synced_files_when_server_or_restore_is_killed() {
    let env = Env::new("liveguest");
    init(&env);
    let guest = env.linux_guest_on_qcow2("vm1", FreezeMode::Normal);
    guest.wait_for_more(5);
    let before = guest.synced();
    backup(&guest);
    guest.stop();
    let began = Instant::now();
    let restore = running(live(&env, &["--limit-read", "100K"]));
    let to_running = began.elapsed();
    // Its log starts again when it boots.
    let limit = Duration::from_secs(120);
    wait_until("it writes its first file", limit, || (1..before).contains(&guest.synced()));
    println!("running after {to_running:.1?}, its first file after {:.1?}", began.elapsed());
    process::kill(server(&env));
    guest.wait_for_more(5);
    restore.kill();
    restore.wait();
    guest.wait_for_more(5);
    process::kill(server(&env));
    resume(&env).run().assert_ok();
    guest.wait_for_more(2);
    let live = env.virsh(&["dumpxml", guest.uuid()]);
    assert!(!live.contains("nbd"), "{live}");
    let synced = guest.synced();
    guest.stop();
    let raw = env.path("after.raw");
    env.program("qemu-img").args(["convert", "-O", "raw"]).arg(guest.image("vda")).arg(&raw).run().assert_ok();
    Ext4::open(&raw).assert_has_files(synced.max(before));
    assert_nothing_left(&env);
}

#[test]
fn live_restore_from_an_sftp_repository_completes() {
    let env = Env::new("livesftp");
    let sshd = env.sshd();
    sshd.trust_host_key();
    let machine = env.machine("vm1").disk(Disk::qcow2(8 * MIB)).define();
    machine.write_bytes("vda", MIB, &noise(1, 6 * MIB));
    let repo = sshd.url("repo");
    env.kvmb(["init", "-r", &repo]).run().assert_ok();
    env.kvmb(["backup", "vm1", "-r", &repo]).run().assert_ok();
    let (then, definition) = (machine.models(), machine.definition());
    env.kvmb(["restore", "vm1", "-r", &repo, "--overwrite", "--live"]).run().assert_ok();
    assert_done(&machine, &definition, &then);
}

#[test]
fn live_restore_does_not_copy_holes() {
    let env = Env::new("live sparse");
    // Copying a disk of this size completely would take many minutes.
    const SIZE: u64 = 1 << 40;
    let machine = env.machine("vm1").disk(Disk::qcow2(SIZE)).disk(Disk::qcow2(SIZE)).define();
    machine.write_bytes("vda", SIZE / 4 * 3, &noise(1, 4 * MIB));
    init(&env);
    backup(&machine);
    live(&env, &[]).limit(Duration::from_secs(120)).run().assert_ok();
    machine.stop();
    let expected = env.path("expected");
    let file = fs::File::create_new(&expected).expect("create");
    file.set_len(SIZE).expect("write");
    let assert_equals = |target| {
        let compare = env.program("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2"]);
        compare.arg(&expected).arg(machine.image(target)).run().assert_ok();
    };
    assert_equals("vdb");
    file.write_all_at(&noise(1, 4 * MIB), SIZE / 4 * 3).expect("write");
    assert_equals("vda");
}
