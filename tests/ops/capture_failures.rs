//! Changes to a machine between and during backups: it is migrated, saved, started or reverted, or a disk is added. The
//! next point is correct without manual intervention.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::chains::*;
use crate::support::change::{bitmaps, run};
use crate::support::storage::{LoopDevice, NetworkStorage};
use crate::support::{Disk, DiskModel, Env, process, wait_until};

// --- other hosts

#[test]
fn machine_moved_to_another_host_and_back_continues_its_chain() {
    let (here, there) = (Env::new("this host"), Env::new("another host"));
    let repo = init(&here);
    let machine = two_disks(&here, "vm");
    let first = backup(&machine, &repo);
    machine.stop();
    // Shared storage: the images are the same, and the other libvirt does not know any checkpoint.
    let disks = ["vda", "vdb"].map(|disk| Disk::existing(machine.image(disk), "qcow2"));
    let mut builder = there.machine("vm").uuid(machine.uuid());
    for disk in disks {
        builder = builder.disk(disk);
    }
    let moved = builder.start_paused();
    assert_eq!(ours(&moved).len(), 0);
    moved.write("vda", MIB, 512, 0x33);
    let point = verified(&moved, &repo);
    assert_eq!(point["parent"], first["point"]);
    assert_changed(&point, "vda", CHUNK);
    assert_changed(&point, "vdb", 0);
    moved.write("vdb", MIB, 512, 0x44);
    let second = verified(&moved, &repo);
    assert_changed(&second, "vdb", CHUNK);
    assert_eq!(ours(&moved).len(), 1);
    // Back again: this libvirt knows a checkpoint whose bitmap is lost, but not the current one.
    moved.stop();
    machine.believe_image("vda");
    machine.believe_image("vdb");
    machine.start_paused();
    machine.write("vda", 5 * MIB, 512, 0x55);
    let point = verified(&machine, &repo);
    assert_eq!(point["parent"], second["point"]);
    assert_changed(&point, "vda", CHUNK);
    assert_changed(&point, "vdb", 0);
    assert_eq!(ours(&machine).len(), 1);
    machine.stop();
    for disk in ["vda", "vdb"] {
        assert_eq!(bitmaps(machine.image(disk)), ours(&machine), "{disk}");
    }
    finish(&here, &[&repo]);
    there.assert_nothing_left();
}

#[test]
fn machine_with_images_copied_to_another_host_is_read_in_full_once() {
    let (here, there) = (Env::new("this host"), Env::new("another host"));
    let repo = init(&here);
    let machine = here.machine("vm").disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    backup(&machine, &repo);
    machine.stop();
    let copy = there.disks().join("copied.qcow2");
    fs::copy(machine.image("vda"), &copy).expect("copy");
    let moved = there.machine("vm").uuid(machine.uuid()).disk(Disk::existing(&copy, "qcow2")).start_paused();
    moved.write("vda", MIB, 512, 0x33);
    assert_full(&verified(&moved, &repo), "vda", "the image is not the one of the parent point");
    moved.write("vda", MIB, 512, 0x34);
    assert_changed(&verified(&moved, &repo), "vda", CHUNK);
    assert_eq!(ours(&moved).len(), 1);
    moved.stop();
    assert_eq!(bitmaps(&copy), ours(&moved));
    finish(&here, &[&repo]);
}

// --- saved and reverted

#[test]
fn machine_with_managed_save_is_busy_and_continues_after_resume() {
    let env = Env::with_libvirtd("managed save");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start();
    machine.write("vda", 0, 8 * MIB, 0x11);
    verified(&machine, &repo);
    machine.write("vda", MIB, 512, 0x22);
    machine.disconnect();
    env.virsh(&["managedsave", machine.uuid()]);
    wait_until("QEMU is gone", std::time::Duration::from_secs(60), || !machine.is_on());
    // The saved memory, which is not in a point, contains data that is not on the disks.
    let failure = try_backup(&machine, &repo, &[]).assert_code(5).record_of("failure");
    assert_eq!(failure["code"], "busy", "{failure}");
    for command in ["virsh start vm", "virsh managedsave-remove vm"] {
        assert!(failure["hint"].as_str().unwrap().contains(command), "{failure}");
    }
    // Restored, but not running yet: QEMU has not activated its images, and libvirt's errors are misleading.
    machine.start_paused();
    try_backup(&machine, &repo, &[]).assert_code(1).assert_stderr_has("resume it first");
    assert_eq!(ours(&machine).len(), 1, "a checkpoint was lost to false errors");
    env.virsh(&["resume", machine.uuid()]);
    machine.write("vda", 3 * MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "changed");
    assert_eq!(ours(&machine).len(), 1);
    assert_eq!(machine.status(), "running");
    finish(&env, &[&repo]);
}

#[test]
fn machine_saved_to_a_file_has_crash_consistent_points() {
    let env = Env::with_libvirtd("saved");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start();
    machine.write("vda", 0, 8 * MIB, 0x11);
    machine.disconnect();
    let file = env.path("disks/saved").display().to_string();
    env.virsh(&["save", "vm", &file]);
    let output = try_backup(&machine, &repo, &[]).assert_ok().assert_stderr_has("vm was saved while it was running");
    assert_eq!(output.record_of("point")["consistency"], "crash", "{output}");
    // libvirt then does not know that the file is out of date.
    machine.start_paused();
    machine.stop();
    assert_eq!(backup(&machine, &repo)["consistency"], "offline");
    finish(&env, &[&repo]);
}

#[test]
fn revert_to_an_external_snapshot_yields_a_correct_next_point() {
    let env = Env::new("external revert");
    let repo = init(&env);
    let mut machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    verified(&machine, &repo);
    let overlay = env.disks().join("overlay.qcow2").display().to_string();
    let spec = format!("vda,snapshot=external,file={overlay}");
    env.virsh(&["snapshot-create-as", "vm", "before", "--disk-only", "--diskspec", &spec]);
    machine.moved_to("vda", overlay.as_ref());
    machine.write("vda", 2 * MIB, MIB, 0x22);
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "the image is not the one of the parent point");
    machine.write("vda", 3 * MIB, MIB, 0x33);
    verified(&machine, &repo);
    machine.stop();
    env.virsh(&["snapshot-revert", "vm", "before"]);
    let now = env.disks_of("vm").remove(0);
    machine.put_disk("vda", &now.image, &now.format, DiskModel::new(16 * MIB));
    machine.believe_image("vda");
    assert_eq!(machine.model("vda").read(2 * MIB, 1), [0x11], "it was not reverted: this test shows nothing");
    verified(&machine, &repo);
    machine.start_paused();
    machine.write("vda", 5 * MIB, 512, 0x44);
    verified(&machine, &repo);
    machine.write("vda", 5 * MIB, 512, 0x45);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

// --- during the backup

#[test]
fn machine_started_during_its_backup_is_captured_as_running() {
    let env = Env::with_libvirtd("started meanwhile");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    // Before its images are open they are not locked, so the machine can be started.
    for (step, pattern) in [("LeftoversCleared", 0x33), ("CaptureNoted", 0x44)] {
        machine.stop();
        machine.write("vda", 2 * MIB, MIB, pattern);
        let run = stopped_at(&machine, &repo, step, &[]).unwrap_or_else(|output| panic!("{output}"));
        machine.start_paused();
        machine.write("vdb", MIB, 512, pattern);
        let point = go_on(run).assert_ok().record_of("point");
        assert_ne!(point["consistency"], "offline");
        assert_changed(&point, "vda", CHUNK);
        assert_changed(&point, "vdb", CHUNK);
        assert_restores(&env, &repo, &point, &machine.models());
        assert_eq!(ours(&machine).len(), 1);
    }
    finish(&env, &[&repo]);
}

#[test]
fn stopped_machine_can_start_after_its_backup_was_killed() {
    let env = Env::new("starts after a kill");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    machine.stop();
    for step in ["Begun", "FirstChunk", "AllRead"] {
        let run = stopped_at(&machine, &repo, step, &["--jobs", "2"]).unwrap_or_else(|output| panic!("{output}"));
        process::kill(run.pid());
        run.wait();
        wait_until("nobody has its images open", Duration::from_secs(60), || machine.servers().is_empty());
    }
    machine.start_paused();
    machine.write("vda", MIB, 512, 0x33);
    verified(&machine, &repo);
    machine.stop();
    // A capture for other commands outlives the command that opened it.
    env.kvmb(["snapshot", "vm"]).run().assert_ok();
    assert!(!machine.servers().is_empty());
    let output = env.kvmb(["doctor", "vm"]).run();
    let job = output.records_of("check").into_iter().find(|check| check["check"] == "job").expect("a check");
    assert!(job["detail"].as_str().expect("detail").contains("the machine cannot start meanwhile"), "{output}");
    assert_eq!((&job["status"], &job["hint"]), (&"warning".into(), &"kvmb release vm".into()), "{output}");
    env.kvmb(["release", "vm"]).run().assert_ok();
    assert!(machine.servers().is_empty());
    finish(&env, &[&repo]);
}

#[test]
fn disk_attached_during_a_backup_is_in_the_next_point() {
    let env = Env::with_libvirtd("plugged meanwhile");
    let repo = init(&env);
    let scsi = "<controller type='scsi' model='virtio-scsi'/>";
    let mut machine = env.machine("vm").devices_xml(scsi).disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    backup(&machine, &repo);
    machine.write("vda", MIB, MIB, 0x22);
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    let before = machine.models();
    machine.attach("sda", Disk::qcow2(8 * MIB).bus("scsi"));
    machine.write("sda", 0, MIB, 0x33);
    let point = go_on(run).assert_ok().record_of("point");
    assert_changed(&point, "vda", CHUNK);
    assert_restores(&env, &repo, &point, &before);
    machine.write("vda", 3 * MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_full(&point, "sda", "not in the parent point");
    // Detaching a disk fails in libvirt while its backup runs.
    let run = stopped_at(&machine, &repo, "FirstChunk", &["--full"]).unwrap_or_else(|output| panic!("{output}"));
    let pulled = env.try_virsh(&["detach-disk", "--live", "--config", machine.uuid(), "vda"]);
    assert_ne!(pulled.code(), 0, "{pulled}");
    go_on(run).assert_ok();
    machine.write("sda", 0, 512, 0x55);
    assert_changed(&verified(&machine, &repo), "sda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn scratch_files_of_a_killed_run_are_removed_by_the_next_run() {
    let env = Env::new("full of leftovers");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(128 * MIB)).start_paused();
    machine.write("vda", 0, 100 * MIB, 0x11);
    let scratch = env.tmpfs("small-scratch", 300 * MIB);
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let args = ["--scratch", &scratch.path().display().to_string()];
    let run = stopped_at(&machine, &repo, "FirstChunk", &args).unwrap_or_else(|output| panic!("{output}"));
    machine.write("vda", 0, 100 * MIB, 0x22);
    process::kill(run.pid());
    run.wait();
    // Enough space for a backup, but only after the leftovers are removed.
    scratch.fill_up_to(80 * MIB);
    let point = backup_with(&machine, &repo, &args);
    assert_restores(&env, &repo, &point, &machine.models());
    assert_eq!(ours(&machine).len(), 1);
    drop(scratch);
    finish(&env, &[&repo]);
}

// --- disks that are not files

#[test]
fn block_and_network_disks_are_read_in_full() {
    let env = Env::new("block and network");
    let repo = init(&env);
    let (block, network) = (env.disks().join("block.img"), env.disks().join("network.img"));
    for image in [&block, &network] {
        fs::File::create(image).and_then(|file| file.set_len(4 * MIB)).expect("an image");
        fs::set_permissions(image, fs::Permissions::from_mode(0o666)).expect("chmod");
    }
    let device = LoopDevice::on(&block);
    let storage = NetworkStorage::of(&network, &env.path("qmp/network.sock"));
    let machine = env
        .machine("vm")
        .disk(Disk::qcow2(16 * MIB))
        .devices_xml(&device.disk_xml("vdb"))
        .devices_xml(&storage.disk_xml("vdc"))
        .start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    for round in 0..2_u8 {
        // The host writes to the device, as another node of a cluster might; otherwise nothing does.
        let device = fs::OpenOptions::new().write(true).open(&device.path).expect("the device");
        device.write_all_at(&vec![0x21 + round; MIB as usize], 0).and_then(|()| device.sync_all()).expect("write");
        storage.write(MIB, MIB, 0x31 + round);
        machine.write("vda", MIB, 512, 0x41 + round);
        let point = backup(&machine, &repo);
        let mut models = machine.models();
        models.insert("vdb".to_owned(), DiskModel::from_image(&block, "raw"));
        models.insert("vdc".to_owned(), DiskModel::from_image(&network, "raw"));
        assert_restores(&env, &repo, &point, &models);
        if round > 0 {
            assert_changed(&point, "vda", CHUNK);
            assert_full(&point, "vdb", "no dirty bitmap from the parent point");
            assert_full(&point, "vdc", "no dirty bitmap from the parent point");
        }
        assert_eq!(ours(&machine).len(), 1);
    }
    machine.stop();
    drop(storage);
    finish(&env, &[&repo]);
}

#[test]
fn device_that_another_machine_writes_to_is_neither_changed_nor_read_nor_overwritten() {
    let env = Env::new("device in use");
    let repo = init(&env);
    let file = env.disks().join("block.img");
    fs::File::create(&file).and_then(|file| file.set_len(8 * MIB)).expect("an image");
    let device = LoopDevice::on(&file);
    run("qemu-img", &["create", "-q", "-f", "qcow2", &device.path, "4M"]);
    let xml = device.disk_xml("vda").replace("type='raw'", "type='qcow2'");
    let machine = env.machine("vm").devices_xml(&xml).define();
    // libvirt gives each QEMU a device node of its own, so that image locks do not exclude each other.
    let node = env.path("node").display().to_string();
    run("mknod", &[&node, "b", "7", device.path.trim_start_matches("/dev/loop")]);
    let other = || {
        let mut other = Command::new("qemu-io");
        other.args(["-f", "qcow2", &node]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut other = other.spawn().expect("qemu-io");
        let mut prompt = [0; 8];
        other.stdout.as_mut().expect("stdout").read_exact(&mut prompt).expect("the prompt");
        other
    };
    let end = |mut other: Child| {
        drop(other.stdin.take());
        other.wait().expect("qemu-io");
    };

    let open = other();
    let refused = try_backup(&machine, &repo, &[]).assert_code(5).assert_stderr_has("qemu-io (process");
    assert_eq!(refused.record_of("failure")["code"], "busy");
    end(open);
    assert!(!run("qemu-img", &["info", &device.path]).contains("kvmb-"), "its writer does not know the bitmap");

    backup(&machine, &repo);
    let has_bitmap = || run("qemu-img", &["info", &device.path]).contains("kvmb-");
    assert!(has_bitmap());
    let open = other();
    env.kvmb(["restore", "vm", "-r", &repo, "--overwrite"]).run().assert_code(5).assert_stderr_has("qemu-io (process");
    env.kvmb(["restore", "vm", "-r", &repo, "--overwrite", "--no-define", "--disk", "vda"]).run().assert_code(5);
    end(open);
    assert!(has_bitmap(), "it was overwritten");

    // Its bitmap is marked as in use, as if it were open on another host.
    let mut killed = other();
    killed.kill().and_then(|()| killed.wait()).expect("kill");
    let before = run("qemu-img", &["info", &device.path]);
    assert!(before.contains("in-use"), "{before}");
    assert_full(&backup(&machine, &repo), "vda", "was not closed properly");
    assert_eq!(run("qemu-img", &["info", &device.path]), before);
}
