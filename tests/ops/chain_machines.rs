//! Incremental backups of machines that are renamed, cloned, reverted, killed, stopped and started: each test restores
//! the point, compares every byte, and checks how each disk was read.

use std::fs;

use crate::support::chains::*;
use crate::support::change::{bitmaps, copy_image, run};
use crate::support::{Disk, Env};
use rustix::process::Signal;

// --- machines

#[test]
fn undefined_redefined_or_renamed_machine_continues_its_chain() {
    let env = Env::new("redefined");
    let repo = init(&env);
    let mut machine = two_disks(&env, "vm");
    let first = backup(&machine, &repo);
    machine.stop();
    // The checkpoint's definition is lost, but its bitmaps still exist.
    machine.redefine(|xml| xml);
    assert_eq!(ours(&machine).len(), 0);
    machine.start_paused();
    machine.write("vda", 0, 512, 0x33);
    let point = verified(&machine, &repo);
    assert_eq!(point["parent"], first["point"]);
    assert_changed(&point, "vda", CHUNK);
    assert_changed(&point, "vdb", 0);
    assert_eq!(ours(&machine).len(), 1);
    // Undefined while it runs: it continues as a transient machine until it is defined again.
    machine.redefine(|xml| xml);
    machine.write("vdb", 0, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "vdb", CHUNK);
    // While it is off, no checkpoint is needed.
    machine.stop();
    machine.redefine(|xml| xml);
    machine.write("vdb", 2 * MIB, 512, 0x55);
    assert_changed(&verified(&machine, &repo), "vdb", CHUNK);
    // Renamed: machines are identified by UUID.
    machine.redefine(|xml| xml.replace("<name>vm</name>", "<name>renamed</name>"));
    machine.start_paused_as("renamed");
    machine.write("vda", 3 * MIB, 512, 0x66);
    let point = env.kvmb(["backup", "-r", &repo, "renamed"]).run().assert_ok().record_of("point");
    assert_changed(&point, "vda", CHUNK);
    assert_changed(&point, "vdb", CHUNK);
    assert_restores(&env, &repo, &point, &machine.models());
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn lost_bitmap_costs_a_full_read_of_only_its_disk() {
    let env = Env::new("one lost bitmap");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let point = backup(&machine, &repo);
    let checkpoint = checkpoint_in(&env, &repo, &point).expect("a checkpoint");
    machine.stop();
    run("qemu-img", &["bitmap", "--remove", &machine.image("vda").display().to_string(), &checkpoint]);
    machine.redefine(|xml| xml);
    machine.start_paused();
    machine.write("vdb", 0, 512, 0x33);
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "cannot be used");
    assert_changed(&point, "vdb", CHUNK);
    // The same with a checkpoint that libvirt knows.
    let checkpoint = checkpoint_in(&env, &repo, &point).expect("a checkpoint");
    machine.stop();
    run("qemu-img", &["bitmap", "--remove", &machine.image("vdb").display().to_string(), &checkpoint]);
    machine.start_paused();
    machine.write("vda", 0, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_full(&point, "vdb", "cannot be used");
    assert_eq!(ours(&machine).len(), 1);
    machine.stop();
    for disk in ["vda", "vdb"] {
        assert_eq!(bitmaps(machine.image(disk)).len(), 1, "{disk} has bitmaps left");
    }
    finish(&env, &[&repo]);
}

#[test]
fn clone_with_its_bitmaps_starts_its_own_chain() {
    let env = Env::new("cloned");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    backup(&machine, &repo);
    machine.stop();
    let copy = copy_image(machine.image("vda"), "clone.qcow2");
    let clone = env.machine("clone").disk(Disk::existing(&copy, "qcow2")).start_paused();
    clone.write("vda", 0, 512, 0x22);
    assert_full(&verified(&clone, &repo), "vda", "first backup of the machine in this repository");
    clone.write("vda", MIB, 512, 0x33);
    assert_changed(&verified(&clone, &repo), "vda", CHUNK);
    machine.start_paused();
    machine.write("vda", 2 * MIB, 512, 0x44);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn in_place_restore_of_an_older_point_yields_a_correct_next_point() {
    let env = Env::new("restored in place");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let old = backup(&machine, &repo);
    let then = machine.models();
    machine.write("vda", 0, 4 * MIB, 0x33);
    backup(&machine, &repo);
    machine.stop();
    env.kvmb(["restore", "-r", &repo, "--overwrite", "--", id_of(&old)]).run().assert_ok();
    assert_eq!(ours(&machine).len(), 0);
    machine.believe_image("vda");
    machine.believe_image("vdb");
    assert!(machine.models() == then);
    machine.start_paused();
    machine.write("vda", 8 * MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "cannot be used");
    machine.write("vda", 9 * MIB, 512, 0x55);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn external_snapshot_and_blockcommit_yield_correct_points() {
    let env = Env::new("external snapshot");
    let repo = init(&env);
    let mut machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    machine.write("vda", 0, 512, 0x33);
    let base = machine.image("vda").to_owned();
    let overlay = env.disks().join("overlay.qcow2");
    let snapshot = |name: &str, overlay: &std::path::Path| {
        let spec = format!("vda,snapshot=external,file={}", overlay.display());
        env.virsh(&[
            "snapshot-create-as",
            "vm",
            name,
            "--disk-only",
            "--no-metadata",
            "--atomic",
            "--diskspec",
            &spec,
            "--diskspec",
            "vdb,snapshot=no",
        ]);
    };
    let commit = || env.virsh(&["blockcommit", "vm", "vda", "--active", "--pivot", "--wait"]);
    snapshot("one", &overlay);
    machine.moved_to("vda", &overlay);
    machine.write("vda", 2 * MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "the image is not the one of the parent point");
    assert_changed(&point, "vdb", 0);
    // The earlier bitmap was in the image that is now the backing file. kvmb deleted it there, and nothing else.
    machine.write("vda", 3 * MIB, 512, 0x45);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_changed(&point, "vdb", 0);
    machine.write("vda", 3 * MIB, 512, 0x46);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    run("touch", &[&base.display().to_string()]);
    assert_full(&verified(&machine, &repo), "vda", "a backing file has changed");
    machine.write("vda", 4 * MIB, 512, 0x46);
    commit();
    machine.moved_to("vda", &base);
    machine.write("vda", 5 * MIB, 512, 0x47);
    let point = verified(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "full");
    assert_changed(&point, "vdb", 0);
    machine.write("vda", 6 * MIB, 512, 0x48);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    // The snapshot was created and removed between two backups: either the bitmap was merged, or the disk is read in
    // full.
    machine.write("vda", 7 * MIB, 512, 0x49);
    let second = env.disks().join("second.qcow2");
    snapshot("two", &second);
    machine.moved_to("vda", &second);
    machine.write("vda", 8 * MIB, 512, 0x4a);
    commit();
    machine.moved_to("vda", &base);
    machine.write("vda", 9 * MIB, 512, 0x4b);
    verified(&machine, &repo);
    machine.write("vda", 10 * MIB, 512, 0x4c);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn machine_stopped_after_an_external_snapshot_has_no_old_bitmap_in_its_backing_file() {
    let env = Env::new("stopped after snapshot");
    let repo = init(&env);
    let mut machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    backup(&machine, &repo);
    let (base, overlay) = (machine.image("vda").to_owned(), env.disks().join("overlay.qcow2"));
    let spec = format!("vda,snapshot=external,file={}", overlay.display());
    env.virsh(&["snapshot-create-as", "vm", "one", "--disk-only", "--no-metadata", "--diskspec", &spec]);
    machine.moved_to("vda", &overlay);
    machine.write("vda", 2 * MIB, 512, 0x44);
    machine.stop();
    assert_eq!(bitmaps(&base).len(), 1, "this test shows nothing");
    assert_full(&verified(&machine, &repo), "vda", "the image is not the one of the parent point");
    assert_eq!(bitmaps(&base), [""; 0]);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    machine.start_paused();
    machine.write("vda", 3 * MIB, 512, 0x45);
    assert_changed(&verified(&machine, &repo), "vda", 2 * CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn internal_snapshot_revert_yields_a_correct_next_point() {
    let env = Env::new("internal snapshot");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).define();
    machine.write("vda", 0, 8 * MIB, 0x11);
    let image = machine.image("vda").display().to_string();
    run("qemu-img", &["snapshot", "-c", "before", &image]);
    machine.start_paused();
    machine.write("vda", 0, MIB, 0x22);
    backup(&machine, &repo);
    machine.write("vda", MIB, MIB, 0x33);
    machine.stop();
    let reverted =
        std::process::Command::new("qemu-img").args(["snapshot", "-a", "before", &image]).output().expect("qemu-img");
    machine.believe_image("vda");
    let point = verified(&machine, &repo);
    if reverted.status.success() {
        assert_full(&point, "vda", "");
    }
    machine.start_paused();
    machine.write("vda", 4 * MIB, 512, 0x44);
    verified(&machine, &repo);
    // A live snapshot by libvirt, including memory.
    env.virsh(&["snapshot-create-as", "vm", "live"]);
    machine.write("vda", 5 * MIB, 512, 0x55);
    verified(&machine, &repo);
    machine.write("vda", 6 * MIB, 512, 0x66);
    env.try_virsh(&["snapshot-revert", "vm", "live", "--paused"]);
    machine.disconnect();
    if machine.is_on() {
        env.virsh(&["destroy", "vm"]);
    }
    machine.believe_image("vda");
    verified(&machine, &repo);
    machine.start_paused();
    machine.write("vda", 7 * MIB, 512, 0x77);
    verified(&machine, &repo);
    machine.write("vda", 7 * MIB, 512, 0x78);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

// --- killed, stopped, started

#[test]
fn crashed_qemu_causes_one_full_read() {
    let env = Env::new("QEMU killed");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    // Created in this session, and lost with it.
    backup(&machine, &repo);
    machine.write("vda", 0, MIB, 0x33);
    machine.kill();
    machine.believe_image("vda");
    machine.believe_image("vdb");
    let point = verified(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "full");
    machine.start_paused();
    machine.write("vda", 3 * MIB, 512, 0x44);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    machine.stop();
    machine.start_paused();
    // Older than this session, and left inconsistent in the file.
    machine.write("vda", 4 * MIB, 512, 0x55);
    machine.kill();
    machine.believe_image("vda");
    machine.believe_image("vdb");
    machine.start_after_its_end();
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "");
    machine.write("vdb", 0, 512, 0x66);
    assert_changed(&verified(&machine, &repo), "vdb", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    machine.stop();
    for disk in ["vda", "vdb"] {
        assert_eq!(bitmaps(machine.image(disk)).len(), 1, "{disk} has bitmaps left");
    }
    finish(&env, &[&repo]);
}

#[test]
fn machine_stopped_during_its_backup_is_captured_as_off() {
    let env = Env::new("stopped meanwhile");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    machine.write("vda", 2 * MIB, 8 * MIB, 0x33);
    let run = stopped_at(&machine, &repo, "CaptureOpen", &[]).unwrap_or_else(|output| panic!("{output}"));
    machine.quit();
    let output = go_on(run).assert_ok();
    let point = output.record_of("point");
    assert_eq!(point["consistency"], "offline");
    assert_changed(&point, "vda", 8 * CHUNK);
    assert_restores(&env, &repo, &point, &machine.models());
    assert_eq!(ours(&machine).len(), 1, "the checkpoint that was made for nothing is left");
    assert_eq!(bitmaps(machine.image("vda")).len(), 1);
    machine.start_after_its_end();
    machine.write("vda", 2 * MIB, 512, 0x44);
    assert_changed(&verified(&machine, &repo), "vda", 8 * CHUNK);
    // Stopped after everything was read: the point is stored, and its checkpoint is valid.
    machine.write("vda", 3 * MIB, 512, 0x45);
    let run = stopped_at(&machine, &repo, "JobEnded", &[]).unwrap_or_else(|output| panic!("{output}"));
    machine.quit();
    let point = go_on(run).assert_ok().record_of("point");
    assert_restores(&env, &repo, &point, &machine.models());
    assert_eq!(ours(&machine).len(), 1);
    assert_eq!(bitmaps(machine.image("vda")), ours(&machine));
    machine.start_after_its_end();
    machine.write("vda", 4 * MIB, 512, 0x46);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn qemu_killed_during_a_backup_costs_a_full_read() {
    let env = Env::new("QEMU killed meanwhile");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    machine.write("vda", 2 * MIB, 8 * MIB, 0x33);
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    machine.kill();
    machine.believe_image("vda");
    machine.believe_image("vdb");
    let point = go_on(run).assert_ok().record_of("point");
    assert_eq!(disk_of(&point, "vda")["read_mode"], "full");
    assert_restores(&env, &repo, &point, &machine.models());
    machine.start_paused();
    machine.write("vda", 0, 512, 0x44);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn machine_can_start_only_after_its_capture_is_released() {
    let env = Env::new("started meanwhile");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    machine.stop();
    machine.write("vda", 2 * MIB, 4 * MIB, 0x33);
    let captured = env.kvmb(["snapshot", "-r", &repo, "vm"]).run().assert_ok();
    env.try_virsh(&["start", "--paused", "vm"]).assert_code(1).assert_stderr_has("lock");
    // Another backup finds the machine busy.
    try_backup(&machine, &repo, &[]).assert_code(5);
    let pushed = env.kvmb(["push", "-r", &repo]).stdin(captured.stdout()).run().assert_ok();
    env.kvmb(["release"]).stdin(pushed.stdout()).run().assert_ok();
    let point = pushed.record_of("point");
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_restores(&env, &repo, &point, &machine.models());
    machine.start_paused();
    machine.write("vda", 3 * MIB, 512, 0x44);
    assert_changed(&verified(&machine, &repo), "vda", 4 * CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn killed_run_is_cleared_before_its_lease_ends() {
    let env = Env::new("kvmb killed");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    machine.write("vda", 0, 4 * MIB, 0x33);
    let run = stopped_at(&machine, &repo, "FirstChunk", &[]).unwrap_or_else(|output| panic!("{output}"));
    run.kill();
    assert_eq!(run.wait().code(), 128 + Signal::KILL.as_raw());
    assert!(machine.is_captured());
    assert_eq!(ours(&machine).len(), 2);
    assert_changed(&verified(&machine, &repo), "vda", 4 * CHUNK);
    assert!(!machine.is_captured());
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

// --- machines that are off

#[test]
fn chain_continues_across_backups_of_a_stopped_machine() {
    let env = Env::new("off");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let first = backup(&machine, &repo);
    let checkpoint = checkpoint_in(&env, &repo, &first);
    machine.write("vda", 0, 512, 0x33);
    machine.stop();
    // With changes: the point has no checkpoint.
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_eq!(checkpoint_in(&env, &repo, &point), None);
    assert_eq!(ours(&machine), checkpoint.clone().into_iter().collect::<Vec<_>>());
    machine.start_paused();
    machine.write("vda", 5 * MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_eq!(point["parent"], first["point"], "the point that the checkpoint was made with");
    assert_changed(&point, "vda", 2 * CHUNK);

    // Without changes: each point inherits the checkpoint, and the chain can continue from any of them.
    let checkpoint = checkpoint_in(&env, &repo, &point);
    machine.stop();
    let mut parents = vec![point];
    for _ in 0..3 {
        let point = verified(&machine, &repo);
        assert_changed(&point, "vda", 0);
        assert_changed(&point, "vdb", 0);
        assert_eq!(checkpoint_in(&env, &repo, &point), checkpoint);
        parents.push(point);
    }
    let last = parents.pop().expect("a point");
    let ids: Vec<&str> = parents.iter().map(id_of).collect();
    env.restic(&*repo).call(["forget", "--prune"]).args(ids).run().assert_ok();
    machine.start_paused();
    machine.write("vdb", 0, 512, 0x55);
    let point = verified(&machine, &repo);
    assert_eq!(point["parent"], last["point"]);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "vdb", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn stopped_machine_with_a_pruned_parent_starts_a_new_chain() {
    let env = Env::new("off and pruned");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let first = backup(&machine, &repo);
    machine.write("vda", 0, 512, 0x33);
    machine.stop();
    let second = backup(&machine, &repo);
    env.restic(&*repo).call(["forget", "--prune", id_of(&first)]).run().assert_ok();
    let third = verified(&machine, &repo);
    assert_full(&third, "vda", "first backup of the machine in this repository");
    // A new chain has started, and the old bitmap is deleted.
    let checkpoint = checkpoint_in(&env, &repo, &third).expect("a checkpoint");
    assert_eq!(ours(&machine), std::slice::from_ref(&checkpoint));
    assert_eq!(bitmaps(machine.image("vda")), [checkpoint]);
    machine.start_paused();
    machine.write("vda", 4 * MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_eq!(point["parent"], third["point"]);
    env.restic(&*repo).call(["forget", "--prune", id_of(&second)]).run().assert_ok();
    finish(&env, &[&repo]);
}

#[test]
fn chain_can_start_while_the_machine_is_off() {
    let env = Env::new("started off");
    let (a, b) = (init_at(&env, "a"), init_at(&env, "b"));
    let machine = env
        .machine("vm")
        .disk(Disk::qcow2(16 * MIB))
        .disk(Disk::raw(4 * MIB))
        .disk(Disk::qcow2(4 * MIB).option("compat=0.10"))
        .define();
    machine.write("vda", 0, 12 * MIB, 0x11);
    machine.write("vdb", 0, MIB, 0x22);
    let point = verified(&machine, &a);
    assert_full(&point, "vda", "first backup of the machine in this repository");
    assert_eq!(ours(&machine), bitmaps(machine.image("vda")));
    assert_eq!(ours(&machine).len(), 1);
    assert_eq!(checkpoint_in(&env, &a, &point), ours(&machine).first().cloned());
    // Continued while off …
    machine.write("vda", 0, 512, 0x33);
    assert_changed(&verified(&machine, &a), "vda", CHUNK);
    // … another repository starts its own chain …
    verified(&machine, &b);
    assert_eq!(ours(&machine).len(), 2);
    // … and both continue when the machine runs.
    machine.start_paused();
    machine.write("vda", 3 * MIB, 512, 0x44);
    let point = verified(&machine, &a);
    assert_changed(&point, "vda", 2 * CHUNK);
    assert_full(&point, "vdb", "no dirty bitmap from the parent point");
    assert_full(&point, "vdc", "no dirty bitmap from the parent point");
    assert_changed(&verified(&machine, &b), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 2);
    machine.stop();
    // A new disk is added: all disks get the new bitmap, and the old one is deleted.
    let mut machine = machine;
    machine.attach("vdd", Disk::qcow2(4 * MIB));
    machine.write("vdd", 0, MIB, 0x55);
    let point = verified(&machine, &a);
    assert_changed(&point, "vda", 0);
    assert_full(&point, "vdd", "not in the parent point");
    assert_eq!(ours(&machine).len(), 2);
    assert_eq!(bitmaps(machine.image("vda")).len(), 2);
    machine.start_paused();
    machine.write("vdd", MIB, 512, 0x66);
    let point = verified(&machine, &a);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "vdd", CHUNK);
    finish(&env, &[&a, &b]);
}

#[test]
fn image_opened_by_another_process_gets_no_bitmap() {
    let env = Env::new("open elsewhere");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).disk(Disk::qcow2(4 * MIB)).define();
    machine.write("vda", 0, 8 * MIB, 0x11);
    // Another reader, which does not permit writers.
    let socket = env.path("tmp/other.sock").display().to_string();
    let pid_file = env.path("tmp/other.pid");
    let pid_file_text = pid_file.display().to_string();
    let image = machine.image("vda").display().to_string();
    run("qemu-nbd", &["-r", "-t", "--fork", "-k", &socket, "--pid-file", &pid_file_text, "-f", "qcow2", &image]);
    let point = verified(&machine, &repo);
    let other: i32 = fs::read_to_string(&pid_file).expect("pid").trim().parse().expect("pid");
    crate::support::process::kill(other);
    crate::support::wait_until("the reader is gone", std::time::Duration::from_secs(60), || {
        machine.servers().is_empty()
    });
    assert_eq!(bitmaps(machine.image("vda")).len(), 0);
    assert_eq!(bitmaps(machine.image("vdb")).len(), 1);
    assert_full(&point, "vda", "first backup of the machine");
    machine.start_paused();
    machine.write("vdb", 0, 512, 0x22);
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "no dirty bitmap from the parent point");
    assert_changed(&point, "vdb", CHUNK);
    finish(&env, &[&repo]);
}
