//! A machine that is off and changes while it is read: no point mixes two moments.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::chains::*;
use crate::support::change::copy_image;
use crate::support::storage::{LoopDevice, NetworkStorage};
use crate::support::{Disk, DiskModel, Env, Output, process, wait_until, wait_until_it_listens};
use serde_json::Value;

/// Creates a raw file filled with one byte.
fn raw_file(path: PathBuf, mib: u64, pattern: u8) -> PathBuf {
    fs::write(&path, vec![pattern; (mib * MIB) as usize]).expect("write");
    crate::support::set_mode(&path, 0o666);
    path
}

/// Writes into a file or device without QEMU, like a program that ignores image locks.
fn write_past_locks(path: &Path, offset: u64, length: u64, pattern: u8) {
    let file = File::options().write(true).open(path).expect("open");
    file.write_all_at(&vec![pattern; length as usize], offset).and_then(|()| file.sync_all()).expect("write");
}

/// Fails unless the run warned about the change and captured again, and the point equals the current disk.
#[track_caller]
fn assert_captured_again(env: &Env, repo: &str, output: Output, disk: &Path, format: &str) -> Value {
    let output = output.assert_ok().assert_stderr_has("capturing it again");
    let point = output.record_of("point");
    assert_restores(env, repo, &point, &BTreeMap::from([("vda".to_owned(), DiskModel::from_image(disk, format))]));
    point
}

/// Fails unless the pipeline stored nothing because of the change.
#[track_caller]
fn assert_refused(env: &Env, repo: &str, output: Output, words: &str) {
    let output = output.assert_code(1);
    let failure = output.record_of("failure");
    assert_eq!(failure["code"], "changed", "{output}");
    assert!(failure["error"].as_str().expect("an error").contains(words), "{output}");
    let points = env.kvmb(["points", "-r", repo]).run().assert_ok();
    assert_eq!(points.records().len(), 0, "{points}");
}

// --- storage without image locks

#[test]
fn network_disk_is_captured_again_if_its_machine_starts_meanwhile() {
    let env = Env::with_libvirtd("network storage");
    let repo = init(&env);
    let image = raw_file(env.disks().join("network.img"), 8, 0x11);
    let storage = NetworkStorage::of(&image, &env.path("qmp/network.sock"));
    let machine = env.machine("vm").devices_xml(&storage.disk_xml("vda")).define();
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    env.virsh(&["start", "--paused", "vm"]);
    storage.write(0, 8 * MIB, 0x22);
    let point = assert_captured_again(&env, &repo, go_on(run), &image, "raw");
    assert_eq!(point["consistency"], "crash", "it runs");
    // Started and stopped: only the reason for being off has changed.
    env.virsh(&["destroy", "vm"]);
    env.kill_libvirtd();
    env.start_libvirtd();
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    env.virsh(&["start", "--paused", "vm"]);
    storage.write(0, 6 * MIB, 0x33);
    env.virsh(&["destroy", "vm"]);
    let point = assert_captured_again(&env, &repo, go_on(run), &image, "raw");
    assert_eq!(point["consistency"], "offline");
    // Without a change nothing is captured again, and the size is known although libvirt does not report it.
    let output = try_backup(&machine, &repo, &[]).assert_ok();
    assert_eq!(output.stderr(), "", "{output}");
    let disks = env.kvmb(["snapshot", "vm"]).run().assert_ok();
    assert_eq!(disks.record_of("disk")["capacity_bytes"], 8 * MIB);
    env.kvmb(["release", "vm"]).run().assert_ok();
    drop(storage);
    finish(&env, &[&repo]);
}

#[test]
fn push_refuses_a_network_disk_whose_machine_was_started() {
    let env = Env::new("network pipe");
    let repo = init(&env);
    let image = raw_file(env.disks().join("network.img"), 4, 0x11);
    let storage = NetworkStorage::of(&image, &env.path("qmp/network.sock"));
    let machine = env.machine("vm").devices_xml(&storage.disk_xml("vda")).define();
    let snapshot = || env.kvmb(["snapshot", "-r", &repo, "vm"]).run().assert_ok();
    let push = |captured: &Output| env.kvmb(["push", "-r", &repo]).stdin(captured.stdout()).run();
    let release = || env.kvmb(["release", "vm"]).run().assert_ok();
    // The machine runs.
    let captured = snapshot();
    env.virsh(&["start", "--paused", "vm"]);
    storage.write(MIB, MIB, 0x22);
    assert_refused(&env, &repo, push(&captured), "was started");
    machine.virsh_settled("destroy vm").assert_ok();
    release();
    // The machine ran, as libvirt's log shows.
    let captured = snapshot();
    env.virsh(&["start --paused vm; destroy vm"]);
    assert_refused(&env, &repo, push(&captured), "it was started and stopped");
    release();
    // A failed start does not count.
    let captured = snapshot();
    let moved = env.path("qmp/moved.sock");
    fs::rename(env.path("qmp/network.sock"), &moved).expect("rename");
    env.try_virsh(&["start", "--paused", "vm"]).assert_code(1);
    fs::rename(&moved, env.path("qmp/network.sock")).expect("rename");
    let point = push(&captured).assert_ok().record_of("point");
    let disk = BTreeMap::from([("vda".to_owned(), DiskModel::from_image(&image, "raw"))]);
    assert_restores(&env, &repo, &point, &disk);
    release();
    drop(storage);
    finish(&env, &[&repo]);
}

#[test]
fn block_device_written_during_backup_is_captured_again() {
    let env = Env::new("block meanwhile");
    let repo = init(&env);
    let file = raw_file(env.disks().join("block.img"), 8, 0x11);
    let device = LoopDevice::on(&file);
    let machine = env.machine("vm").devices_xml(&device.disk_xml("vda")).define();
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    write_past_locks(Path::new(&device.path), 0, 7 * MIB, 0x22);
    assert_captured_again(&env, &repo, go_on(run), &file, "raw");
    let output = try_backup(&machine, &repo, &[]).assert_ok();
    assert_eq!(output.stderr(), "", "{output}");
    finish(&env, &[&repo]);
}

// --- programs that do not use locks

#[test]
fn image_written_or_replaced_during_backup_is_captured_again() {
    let env = Env::new("written meanwhile");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::raw(8 * MIB)).define();
    machine.write("vda", 0, 8 * MIB, 0x11);
    let image = machine.image("vda").to_owned();
    let at_first_chunk = || stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    let run = at_first_chunk();
    write_past_locks(&image, 0, 6 * MIB, 0x22);
    assert_captured_again(&env, &repo, go_on(run), &image, "raw");
    // A different file with the same size and time.
    let run = at_first_chunk();
    let other = copy_image(&image, "other.raw");
    write_past_locks(&other, 2 * MIB, MIB, 0x33);
    let time = fs::metadata(&image).and_then(|found| found.modified()).expect("stat");
    File::options().write(true).open(&other).and_then(|file| file.set_modified(time)).expect("touch");
    fs::rename(&other, &image).expect("rename");
    assert_captured_again(&env, &repo, go_on(run), &image, "raw");
    // Once everything has been read, later changes do not matter.
    let before = DiskModel::from_image(&image, "raw");
    let run = stopped_at(&machine, &repo, "AllRead", &[]).unwrap_or_else(|output| panic!("{output}"));
    write_past_locks(&image, 0, MIB, 0x44);
    let output = go_on(run).assert_ok();
    assert_eq!(output.stderr(), "", "{output}");
    assert_restores(&env, &repo, &output.record_of("point"), &BTreeMap::from([("vda".to_owned(), before)]));
    let points = env.kvmb(["points", "-r", &repo]).run().assert_ok();
    assert_eq!(points.records().len(), 3, "what was torn is no point");
    finish(&env, &[&repo]);
}

#[test]
fn constantly_written_disk_fails_as_changed_after_one_retry() {
    let env = Env::new("never still");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::raw(32 * MIB)).define();
    machine.write("vda", 0, 32 * MIB, 0x11);
    let other = env.machine("other").disk(Disk::raw(MIB)).define();
    let (image, done) = (machine.image("vda").to_owned(), AtomicBool::new(false));
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                write_past_locks(&image, 0, 512, 0x22);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let output = env.kvmb(["backup", "-r", &repo, "vm", "other"]).run();
        done.store(true, Ordering::Relaxed);
        output
    });
    let output = output.assert_code(3);
    let failure = output.record_of("failure");
    assert_eq!((&failure["machine"], &failure["code"]), (&"vm".into(), &"changed".into()), "{output}");
    assert_eq!(output.stderr().matches("capturing it again").count(), 1, "{output}");
    assert_eq!(output.record_of("point")["machine"], other.name());
    finish(&env, &[&repo]);
}

#[test]
fn changed_backing_data_or_header_is_captured_again() {
    let env = Env::new("layers meanwhile");
    let repo = init(&env);
    let base = raw_file(env.disks().join("base.raw"), 8, 0x11);
    let data = env.disks().join("data.raw");
    let raw_data = format!("data_file={},data_file_raw=on", data.display());
    let machine = env
        .machine("vm")
        .disk(Disk::qcow2(8 * MIB).backing(&base, "raw"))
        .disk(Disk::qcow2(8 * MIB).option(&raw_data))
        .disk(Disk::qcow2(8 * MIB))
        .define();
    machine.write("vdb", 0, 4 * MIB, 0x22);
    machine.write("vdc", 0, 4 * MIB, 0x33);
    let header = machine.image("vdc").to_owned();
    for (path, offset) in [(&base, 5 * MIB), (&data, MIB), (&header, 95)] {
        let run = stopped_at(&machine, &repo, "FirstChunk", &["--full"]).unwrap_or_else(|output| panic!("{output}"));
        let before = fs::metadata(path).and_then(|found| found.modified()).expect("stat");
        let mut old = [0; 1];
        let file = File::options().read(true).write(true).open(path).expect("open");
        file.read_exact_at(&mut old, offset).expect("read");
        match path == &header {
            // A bit of the autoclear features in the header, with the time restored.
            true => {
                file.write_all_at(&[old[0] ^ 0x80], offset).expect("write");
                file.set_modified(before).expect("touch");
            }
            false => write_past_locks(path, offset, 512, 0x44),
        }
        let output = go_on(run).assert_ok().assert_stderr_has("capturing it again");
        assert!(output.stderr().contains(&path.display().to_string()), "{output}");
    }
    finish(&env, &[&repo]);
}

#[test]
fn hash_of_an_image_written_after_capture_fails_as_changed() {
    let env = Env::new("hash meanwhile");
    let machine = env.machine("vm").disk(Disk::raw(4 * MIB)).define();
    machine.write("vda", 0, 4 * MIB, 0x11);
    let captured = env.kvmb(["snapshot", "vm"]).run().assert_ok();
    let hash = || env.kvmb(["hash"]).stdin(captured.stdout()).run();
    hash().assert_ok();
    write_past_locks(machine.image("vda"), MIB, 512, 0x22);
    let failure = hash().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "changed", "{failure}");
    env.kvmb(["release", "vm"]).run().assert_ok();
    env.assert_nothing_left();
}

// --- the definition

#[test]
fn disk_changes_in_the_definition_during_backup_are_captured_again() {
    let env = Env::with_libvirtd("edited meanwhile");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).disk(Disk::qcow2(4 * MIB)).define();
    machine.write("vda", 0, MIB, 0x11);
    let at_first_chunk =
        || stopped_at(&machine, &repo, "FirstChunk", &["--full"]).unwrap_or_else(|output| panic!("{output}"));
    // Changes that do not affect the disks are ignored.
    let run = at_first_chunk();
    env.virsh(&["desc", "vm", "--config", "a description"]);
    env.virsh(&["setmaxmem", "vm", "40M", "--config"]);
    let output = go_on(run).assert_ok();
    assert!(!output.stderr().contains("capturing it again"), "{output}");
    let run = at_first_chunk();
    env.virsh(&["detach-disk", "vm", "vdb", "--config"]);
    let output = go_on(run).assert_ok().assert_stderr_has("its definition was changed");
    let point = output.record_of("point");
    assert_eq!(point["disks"].as_array().expect("disks").len(), 1, "{point}");
    // A backup of an undefined machine is kept.
    let run = at_first_chunk();
    env.virsh(&["undefine", "vm", "--checkpoints-metadata"]);
    go_on(run).assert_ok();
    finish(&env, &[&repo]);
}

#[test]
fn push_refuses_a_capture_after_a_disk_was_detached() {
    let env = Env::new("edited in a pipe");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).disk(Disk::qcow2(4 * MIB)).define();
    let captured = env.kvmb(["snapshot", "-r", &repo, "vm"]).run().assert_ok();
    let push = || env.kvmb(["push", "-r", &repo]).stdin(captured.stdout()).run();
    env.virsh(&["detach-disk", machine.uuid(), "vdb", "--config"]);
    assert_refused(&env, &repo, push(), "its definition was changed");
    env.kvmb(["release", "vm"]).run().assert_ok();
    let captured = env.kvmb(["snapshot", "-r", &repo, "vm"]).run().assert_ok();
    env.virsh(&["desc", "vm", "--config", "a description"]);
    env.kvmb(["push", "-r", &repo]).stdin(captured.stdout()).run().assert_ok();
    env.kvmb(["release", "vm"]).run().assert_ok();
    finish(&env, &[&repo]);
}

// --- a server that does not belong to the capture

#[test]
fn server_offering_a_different_size_is_not_read() {
    let env = Env::new("another size");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::raw(4 * MIB)).define();
    machine.write("vda", 0, 4 * MIB, 0x11);
    let captured = env.kvmb(["snapshot", "-r", &repo, "vm"]).run().assert_ok();
    let uri = captured.record_of("disk")["nbd"].as_str().expect("nbd").to_owned();
    let socket = PathBuf::from(uri.split_once("socket=").expect("a socket").1);
    for server in machine.servers() {
        process::kill(server);
    }
    wait_until("the server is gone", Duration::from_secs(60), || machine.servers().is_empty());
    let _ = fs::remove_file(&socket);
    let larger = raw_file(env.disks().join("larger.img"), 5, 0x22);
    let mut server = std::process::Command::new("qemu-nbd")
        .args(["--persistent", "--shared=8", "--read-only", "--format=raw", "--export-name=vda", "--socket"])
        .args([&socket, &larger])
        .spawn()
        .expect("qemu-nbd");
    wait_until_it_listens(&socket);
    for command in [vec!["hash"], vec!["push", "-r", &repo]] {
        let output = env.kvmb(&command).stdin(captured.stdout()).run().assert_code(1);
        output.assert_stderr_has("offers 5242880 bytes, but 4194304 bytes were captured");
    }
    server.kill().and_then(|()| server.wait()).expect("kill");
    env.kvmb(["release", "vm"]).run().assert_ok();
    finish(&env, &[&repo]);
}
