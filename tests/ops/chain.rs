//! Incremental backups through all kinds of incidents: each test restores the point, compares every byte with what was
//! written, and checks how each disk was read.

use std::fs;

use crate::support::chains::*;
use crate::support::change::{bitmaps, run};
use crate::support::{Disk, Env};

/// How much is read of a chunk that is stored in pieces.
const PIECE: u64 = 64 * 1024;

// --- checkpoints and repositories

#[test]
fn two_repositories_keep_independent_chains() {
    let env = Env::new("two repositories");
    let (a, b) = (init_at(&env, "a"), init_at(&env, "b"));
    let machine = two_disks(&env, "vm");
    let mut points = Vec::new();
    let first = verified(&machine, &a);
    assert_full(&first, "vda", "first backup of the machine in this repository");
    points.push((&a, first, machine.models()));
    let first = verified(&machine, &b);
    assert_full(&first, "vda", "first backup of the machine in this repository");
    points.push((&b, first, machine.models()));
    for round in 0..3_u8 {
        machine.write("vda", 2 * MIB, 64 * 1024, 0x30 + round);
        let point = backup(&machine, &a);
        // The data that the other backup read and wrote in the previous round counts as changed here too.
        let before = u64::from(round > 0);
        // From its second change on, a chunk is read in pieces.
        let changed = [CHUNK, PIECE + CHUNK, 2 * PIECE];
        assert_changed(&point, "vda", changed[usize::from(round)]);
        assert_changed(&point, "vdb", before * CHUNK);
        points.push((&a, point, machine.models()));
        machine.write("vda", 10 * MIB, 64 * 1024, 0x40 + round);
        let point = backup(&machine, &b);
        assert_changed(&point, "vda", if round == 0 { 2 * CHUNK } else { 2 * PIECE });
        points.push((&b, point, machine.models()));
        machine.write("vdb", u64::from(round) * MIB, 512, 0x50 + round);
        // One per repository: the superseded checkpoint is deleted.
        assert_eq!(ours(&machine).len(), 2);
    }
    for (repo, point, models) in &points {
        assert_restores(&env, repo, point, models);
    }
    let parents: Vec<_> = points.iter().filter(|(repo, ..)| **repo == a).map(|(_, point, _)| point).collect();
    for pair in parents.windows(2) {
        assert_eq!(pair[1]["parent"], pair[0]["point"], "the chain of a repository is its own");
    }
    finish(&env, &[&a, &b]);
}

#[test]
fn foreign_checkpoints_and_bitmaps_are_kept_and_keep_recording() {
    let env = Env::new("foreign");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).define();
    machine.write("vda", 0, 8 * MIB, 0x11);
    run("qemu-img", &["bitmap", "--add", &machine.image("vda").display().to_string(), "of-another-tool"]);
    machine.start_paused();
    let foreign = |name: &str| env.virsh(&["checkpoint-create-as", machine.uuid(), name, "--diskspec", "vda"]);
    foreign("virtnbdbackup.0");
    verified(&machine, &repo);
    foreign("kvmbackup-mine");
    for round in 0..3_u8 {
        machine.write("vda", u64::from(round) * MIB, 64 * 1024, 0x60 + round);
        assert_changed(&verified(&machine, &repo), "vda", CHUNK);
        assert_eq!(ours(&machine).len(), 1);
    }
    let mut names = machine.checkpoints();
    names.retain(|name| !name.starts_with("kvmb-"));
    assert_eq!(names, ["kvmbackup-mine", "virtnbdbackup.0"]);
    for name in ["virtnbdbackup.0", "kvmbackup-mine"] {
        let xml = env.virsh(&["checkpoint-dumpxml", machine.uuid(), name, "--size", "--no-domain"]);
        // Three clusters of 64 KiB have changed since.
        assert!(xml.contains("size='196608'"), "{name} does not record any more: {xml}");
    }
    machine.stop();
    let kept = bitmaps(machine.image("vda"));
    for name in ["of-another-tool", "virtnbdbackup.0", "kvmbackup-mine"] {
        assert!(kept.iter().any(|kept| kept == name), "{name} is not in {kept:?}");
    }
    finish(&env, &[&repo]);
}

#[test]
fn deleted_checkpoint_costs_one_full_read() {
    let env = Env::new("deleted checkpoint");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    env.virsh(&["checkpoint-delete", machine.uuid(), &ours(&machine)[0]]);
    machine.write("vda", 0, 512, 0x33);
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "cannot be used");
    assert_eq!(disk_of(&point, "vda")["new_bytes"], MIB, "what is known is not stored again");
    machine.write("vdb", 0, 512, 0x44);
    assert_changed(&verified(&machine, &repo), "vdb", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn deleted_parent_point_is_not_continued() {
    let env = Env::new("deleted parent");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let first = backup(&machine, &repo);
    machine.write("vda", 0, 512, 0x33);
    let before = machine.models();
    let second = backup(&machine, &repo);
    machine.write("vda", 5 * MIB, 512, 0x44);
    env.restic(&*repo).call(["forget", "--prune", id_of(&second)]).run().assert_ok();
    let third = verified(&machine, &repo);
    assert_full(&third, "vda", "cannot be used");
    assert_full(&third, "vdb", "cannot be used");
    // All points are removed.
    env.restic(&*repo).call(["forget", "--prune", id_of(&first), id_of(&third)]).run().assert_ok();
    assert_full(&verified(&machine, &repo), "vda", "first backup of the machine in this repository");
    machine.write("vda", 6 * MIB, 512, 0x55);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    assert!(before["vda"] != machine.model("vda"));
    finish(&env, &[&repo]);
}

#[test]
fn repository_copy_and_second_password_continue_the_same_chain() {
    let env = Env::new("repository copy");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    let copy = env.repo_named("copy");
    run("cp", &["-a", &repo, &copy]);
    machine.write("vda", 0, 512, 0x33);
    // The copy has the parent, so the chain can continue there as well.
    assert_changed(&verified(&machine, &copy), "vda", CHUNK);
    machine.write("vda", 3 * MIB, 512, 0x34);
    // This superseded the original's checkpoint.
    assert_full(&verified(&machine, &repo), "vda", "cannot be used");
    machine.write("vda", 4 * MIB, 512, 0x35);
    assert_full(&verified(&machine, &copy), "vda", "cannot be used");
    assert_eq!(ours(&machine).len(), 1);

    let password = env.path("second-password");
    fs::write(&password, "another one\n").expect("write");
    run("chmod", &["600", &password.display().to_string()]);
    env.restic(&*copy).call(["key", "add", "--new-password-file"]).arg(&password).run().assert_ok();
    machine.write("vda", 6 * MIB, 512, 0x36);
    let output = env.kvmb(["backup", "-r", &copy, "--password-file"]).arg(&password).arg("vm").run().assert_ok();
    assert_changed(&output.record_of("point"), "vda", CHUNK);
    assert_restores(&env, &copy, &output.record_of("point"), &machine.models());
    finish(&env, &[&repo, &copy]);
}

// --- several backups at once

#[test]
fn one_failing_machine_does_not_stop_parallel_backups() {
    let env = Env::new("jobs");
    let repo = init(&env);
    let machines: Vec<_> = ["vm1", "vm2", "vm3"]
        .into_iter()
        .map(|name| {
            let machine = env.machine(name).disk(Disk::qcow2(8 * MIB)).start_paused();
            machine.write("vda", 0, 4 * MIB, 0x11);
            machine
        })
        .collect();
    let broken = env.machine("broken").disk(Disk::qcow2(MIB)).define();
    fs::remove_file(broken.image("vda")).expect("remove");
    for round in 0..2_u8 {
        let output = env.kvmb(["backup", "-r", &repo, "--jobs", "4", "--all"]).run().assert_code(3);
        assert_eq!(output.record_of("failure")["machine"], "broken");
        let points = output.records_of("point");
        assert_eq!(points.len(), 3);
        for machine in &machines {
            let point = points.iter().find(|point| point["machine"] == machine.name()).expect("a point");
            match round {
                0 => assert_full(point, "vda", "first backup of the machine"),
                _ => assert_changed(point, "vda", CHUNK),
            }
            assert_restores(&env, &repo, point, &machine.models());
            machine.write("vda", MIB, 512, 0x44);
        }
    }
    finish(&env, &[&repo]);
}
