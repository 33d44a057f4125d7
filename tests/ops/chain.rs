//! Incrementals through every accident of a machine's life: each case is shown by restoring the point and comparing
//! every byte with what was written, and by how each disk was read.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::chains::*;
use crate::support::change::{bitmaps, copy_image, run};
use crate::support::{Disk, Env};
use rustix::process::Signal;

const SCSI: &str = "<controller type='scsi' model='virtio-scsi'/>";

// --- checkpoints and repositories

#[test]
fn two_repositories_do_not_disturb_each_other() {
    let env = Env::new("two repositories");
    let (a, b) = (init_at(&env, "a"), init_at(&env, "b"));
    let machine = two_disks(&env, "vm");
    let mut points = Vec::new();
    let first = proven(&machine, &a);
    assert_full(&first, "vda", "first backup of the machine in this repository");
    points.push((&a, first, machine.models()));
    let first = proven(&machine, &b);
    assert_full(&first, "vda", "first backup of the machine in this repository");
    points.push((&b, first, machine.models()));
    for round in 0..3_u8 {
        machine.write("vda", 2 * MIB, 64 * 1024, 0x30 + round);
        let point = backup(&machine, &a);
        // What the other backup read and its write of the round before are changes here all the same.
        let before = u64::from(round > 0);
        assert_changed(&point, "vda", CHUNK + before * CHUNK);
        assert_changed(&point, "vdb", before * CHUNK);
        points.push((&a, point, machine.models()));
        machine.write("vda", 10 * MIB, 64 * 1024, 0x40 + round);
        let point = backup(&machine, &b);
        assert_changed(&point, "vda", 2 * CHUNK);
        points.push((&b, point, machine.models()));
        machine.write("vdb", u64::from(round) * MIB, 512, 0x50 + round);
        // One a repository: what is superseded is gone.
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
fn checkpoints_and_bitmaps_of_others_are_left_alone_and_go_on_recording() {
    let env = Env::new("foreign");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).define();
    machine.write("vda", 0, 8 * MIB, 0x11);
    run("qemu-img", &["bitmap", "--add", &machine.image("vda").display().to_string(), "of-another-tool"]);
    machine.start_paused();
    let foreign = |name: &str| env.virsh(&["checkpoint-create-as", machine.uuid(), name, "--diskspec", "vda"]);
    foreign("virtnbdbackup.0");
    proven(&machine, &repo);
    foreign("kvmbackup-mine");
    for round in 0..3_u8 {
        machine.write("vda", u64::from(round) * MIB, 64 * 1024, 0x60 + round);
        assert_changed(&proven(&machine, &repo), "vda", CHUNK);
        assert_eq!(ours(&machine).len(), 1);
    }
    let mut names = machine.checkpoints();
    names.retain(|name| !name.starts_with("kvmb-"));
    assert_eq!(names, ["kvmbackup-mine", "virtnbdbackup.0"]);
    for name in ["virtnbdbackup.0", "kvmbackup-mine"] {
        let xml = env.virsh(&["checkpoint-dumpxml", machine.uuid(), name, "--size", "--no-domain"]);
        // Three clusters of 64 KiB changed since.
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
fn a_checkpoint_that_somebody_deleted_costs_one_full_read() {
    let env = Env::new("deleted checkpoint");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    env.virsh(&["checkpoint-delete", machine.uuid(), &ours(&machine)[0]]);
    machine.write("vda", 0, 512, 0x33);
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "cannot be used");
    assert_eq!(disk_of(&point, "vda")["new_bytes"], MIB, "what is known is not stored again");
    machine.write("vdb", 0, 512, 0x44);
    assert_changed(&proven(&machine, &repo), "vdb", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn a_parent_point_that_was_deleted_is_not_continued() {
    let env = Env::new("deleted parent");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let first = backup(&machine, &repo);
    machine.write("vda", 0, 512, 0x33);
    let before = machine.models();
    let second = backup(&machine, &repo);
    machine.write("vda", 5 * MIB, 512, 0x44);
    env.restic(&*repo).call(["forget", "--prune", id_of(&second)]).run().assert_ok();
    let third = proven(&machine, &repo);
    assert_full(&third, "vda", "cannot be used");
    assert_full(&third, "vdb", "cannot be used");
    // All points gone.
    env.restic(&*repo).call(["forget", "--prune", id_of(&first), id_of(&third)]).run().assert_ok();
    assert_full(&proven(&machine, &repo), "vda", "first backup of the machine in this repository");
    machine.write("vda", 6 * MIB, 512, 0x55);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    assert!(before["vda"] != machine.model("vda"));
    finish(&env, &[&repo]);
}

#[test]
fn a_copy_of_the_repository_and_a_second_password_are_the_same_chain_as_far_as_it_goes() {
    let env = Env::new("repository copy");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    let copy = env.repo_named("copy");
    run("cp", &["-a", &repo, &copy]);
    machine.write("vda", 0, 512, 0x33);
    // The copy has the parent: it can be continued there just as well.
    assert_changed(&proven(&machine, &copy), "vda", CHUNK);
    machine.write("vda", 3 * MIB, 512, 0x34);
    // That superseded the original's checkpoint.
    assert_full(&proven(&machine, &repo), "vda", "cannot be used");
    machine.write("vda", 4 * MIB, 512, 0x35);
    assert_full(&proven(&machine, &copy), "vda", "cannot be used");
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

// --- disks

#[test]
fn a_raw_disk_is_read_in_full_and_the_qcow2_beside_it_is_not() {
    let env = Env::new("raw beside qcow2");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).disk(Disk::raw(8 * MIB + 512)).start_paused();
    machine.write("vda", 0, 12 * MIB, 0x11);
    machine.write("vdb", 0, 8 * MIB + 512, 0x22);
    proven(&machine, &repo);
    for round in 0..2_u8 {
        machine.write("vda", MIB, 4096, 0x33 + round);
        machine.write("vdb", 8 * MIB, 512, 0x44 + round);
        let point = proven(&machine, &repo);
        assert_changed(&point, "vda", CHUNK);
        assert_full(&point, "vdb", "no dirty bitmap from the parent point");
        assert_eq!(disk_of(&point, "vdb")["read_bytes"], 8 * MIB + 512);
        assert_eq!(disk_of(&point, "vdb")["new_bytes"], 512);
    }
    machine.stop();
    machine.write("vdb", 0, 512, 0x55);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_full(&point, "vdb", "no dirty bitmap from the parent point");
    finish(&env, &[&repo]);
}

#[test]
fn a_disk_whose_chunks_get_another_size_is_read_in_full_once() {
    let env = Env::new("chunk size");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    machine.write("vda", 20 * MIB + 4096, 512, 0x33);
    proven(&machine, &repo);
    for size in ["512K", "4M", "1M"] {
        machine.write("vda", 3 * MIB, 512, 0x44);
        let output = try_backup(&machine, &repo, &["--chunk-size", size]).assert_ok();
        let point = output.record_of("point");
        assert_full(&point, "vda", "the chunk size has changed");
        assert_full(&point, "vdb", "the chunk size has changed");
        assert_restores(&env, &repo, &point, &machine.models());
        // Without being told again, that size stays.
        machine.write("vda", 5 * MIB, 512, 0x55);
        let point = proven(&machine, &repo);
        let disk = disk_of(&point, "vda");
        assert_eq!(disk["read_mode"], "changed", "{disk:#}");
        let chunk = match size {
            "512K" => MIB / 2,
            "4M" => 4 * MIB,
            _ => MIB,
        };
        let read = disk["read_bytes"].as_u64().expect("read_bytes");
        assert!((chunk..=3 * chunk).contains(&read), "{size}: {read}");
        assert_eq!(
            try_backup(&machine, &repo, &["--chunk-size", size]).assert_ok().record_of("point")["disks"][0]["read_mode"],
            "changed"
        );
    }
    try_backup(&machine, &repo, &["--chunk-size", "3M"]).assert_code(2).assert_stderr_has("512K, 1M, 2M or 4M");
    // A machine that is off, with a chain of another size.
    machine.stop();
    let point = try_backup(&machine, &repo, &["--chunk-size", "2M"]).assert_ok().record_of("point");
    assert_full(&point, "vda", "the chunk size has changed");
    assert_restores(&env, &repo, &point, &machine.models());
    finish(&env, &[&repo]);
}

#[test]
fn an_old_qcow2_and_one_with_a_raw_data_file_keep_no_bitmaps_and_disturb_nobody() {
    let env = Env::new("no bitmaps");
    let repo = init(&env);
    let with_data_file = env.disks().join("data-file.qcow2");
    let data = env.disks().join("data.raw");
    let options = format!("data_file={},data_file_raw=on", data.display());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &with_data_file.display().to_string(), "8M"]);
    let machine = env
        .machine("vm")
        .disk(Disk::qcow2(16 * MIB))
        .disk(Disk::qcow2(8 * MIB).option("compat=0.10"))
        .disk(Disk::existing(&with_data_file, "qcow2"))
        .start_paused();
    for (at, disk) in ["vda", "vdb", "vdc"].into_iter().enumerate() {
        machine.write(disk, 0, 6 * MIB, 0x11 * (at as u8 + 1));
    }
    proven(&machine, &repo);
    machine.write("vda", MIB, 512, 0x44);
    machine.write("vdb", MIB, 512, 0x44);
    machine.write("vdc", MIB, 512, 0x44);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_full(&point, "vdb", "no dirty bitmap from the parent point");
    assert_full(&point, "vdc", "no dirty bitmap from the parent point");
    machine.stop();
    // Somebody writes to the data file itself: no bitmap of the image could know.
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x77 2M 1M", &data.display().to_string()]);
    let mut models = machine.models();
    models.get_mut("vdc").expect("vdc").fill(2 * MIB, MIB, 0x77);
    let point = backup(&machine, &repo);
    assert_full(&point, "vdc", "no dirty bitmap from the parent point");
    assert_restores(&env, &repo, &point, &models);
    finish(&env, &[&repo]);
}

#[test]
fn a_disk_that_comes_or_goes_does_not_break_the_chain_of_the_others() {
    let env = Env::new("hot-plug");
    let repo = init(&env);
    let mut machine = env.machine("vm").devices_xml(SCSI).disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write("vda", 0, 12 * MIB, 0x11);
    proven(&machine, &repo);
    machine.attach("sda", Disk::qcow2(8 * MIB).bus("scsi"));
    machine.write("sda", 0, 4 * MIB, 0x22);
    machine.write("vda", 0, 512, 0x33);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_full(&point, "sda", "not in the parent point");
    machine.write("sda", MIB, 512, 0x44);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "sda", CHUNK);
    machine.detach("sda");
    machine.write("vda", 2 * MIB, 512, 0x55);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    // A new image in the old one's place, in the same file even.
    machine.attach("sda", Disk::qcow2(8 * MIB).bus("scsi"));
    machine.write("sda", 2 * MIB, MIB, 0x66);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_full(&point, "sda", "not in the parent point");
    // Gone and exchanged between two backups.
    machine.detach("sda");
    machine.attach("sda", Disk::qcow2(8 * MIB).bus("scsi"));
    machine.write("sda", 5 * MIB, MIB, 0x77);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_full(&point, "sda", "cannot be used");
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn an_excluded_disk_that_comes_back_is_read_in_full() {
    let env = Env::new("excluded");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    machine.write("vdb", MIB, 512, 0x33);
    let mut only_vda = machine.models();
    only_vda.remove("vdb");
    let point = backup_with(&machine, &repo, &["--exclude-disk", "vdb"]);
    assert_restores(&env, &repo, &point, &only_vda);
    machine.write("vda", MIB, 512, 0x44);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_full(&point, "vdb", "not in the parent point");
    assert_changed(&proven(&machine, &repo), "vdb", 0);
    finish(&env, &[&repo]);
}

#[test]
fn a_grown_and_a_shrunk_disk() {
    let env = Env::new("resized");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB + 512)).start_paused();
    machine.write("vda", 0, 16 * MIB + 512, 0x11);
    proven(&machine, &repo);
    machine.resize("vda", 24 * MIB + 1024);
    machine.write("vda", 20 * MIB, 512, 0x22);
    let point = proven(&machine, &repo);
    // Beyond the last whole chunk of before, all is new: one with the old end, one with the write.
    assert_changed(&point, "vda", 2 * CHUNK);
    // Whole clusters: what is left of a cut one would come back when the disk grows.
    machine.resize("vda", 10 * MIB + 65536);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", 65536);
    machine.write("vda", MIB, 512, 0x33);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    machine.stop();
    machine.resize("vda", 12 * MIB);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn a_disk_that_was_shrunk_and_grown_back_is_read_in_full() {
    let env = Env::new("shrunk and grown back");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write("vda", 0, 16 * MIB, 0x11);
    // The audit's random sample could find it by luck: it is switched off.
    let proven = |reason: Option<&str>| {
        let point = backup_with(&machine, &repo, &["--audit", "0%"]);
        assert_restores(&env, &repo, &point, &machine.models());
        match reason {
            Some(reason) => assert_full(&point, "vda", reason),
            None => assert_changed(&point, "vda", 0),
        }
    };
    proven(Some("first backup of the machine"));
    machine.resize("vda", 8 * MIB);
    machine.resize("vda", 16 * MIB);
    proven(Some("the disk was shrunk in between"));
    proven(None);
    // Within the last chunk that has anything.
    machine.resize("vda", 7 * MIB + 512 * 1024);
    machine.resize("vda", 16 * MIB);
    let output = try_backup(&machine, &repo, &["--audit", "0%"]).assert_code(4);
    let point = output.record_of("point");
    assert_full(&point, "vda", "marked clean had changed");
    assert_restores(&env, &repo, &point, &machine.models());
    // Cut at one place, written to behind it.
    machine.resize("vda", 3 * MIB);
    machine.resize("vda", 16 * MIB);
    machine.write("vda", 6 * MIB, MIB, 0x22);
    proven(Some("the disk was shrunk in between"));
    // And while it is off.
    machine.stop();
    machine.resize("vda", 2 * MIB);
    machine.resize("vda", 16 * MIB);
    proven(Some("the disk was shrunk in between"));
    machine.start_paused();
    machine.write("vda", MIB, 512, 0x33);
    proven(Some("the disk was shrunk in between"));
    proven(None);
    finish(&env, &[&repo]);
}

#[test]
fn two_disks_that_swap_their_targets_are_read_in_full() {
    let env = Env::new("swapped");
    let repo = init(&env);
    let mut machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    machine.write("vdb", 0, 8 * MIB, 0x22);
    proven(&machine, &repo);
    machine.stop();
    let (a, b) = (machine.image("vda").to_owned(), machine.image("vdb").to_owned());
    let (model_a, model_b) = (machine.model("vda"), machine.model("vdb"));
    let names = [a.display().to_string(), b.display().to_string()];
    machine.redefine(|xml| xml.replace(&names[0], "@").replace(&names[1], &names[0]).replace("@", &names[1]));
    machine.put_disk("vda", &b, "qcow2", model_b);
    machine.put_disk("vdb", &a, "qcow2", model_a);
    machine.start_paused();
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "the image is not the one of the parent point");
    assert_full(&point, "vdb", "the image is not the one of the parent point");
    machine.write("vda", 0, 512, 0x33);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn an_image_replaced_by_another_with_the_same_bitmap_is_read_in_full() {
    let env = Env::new("replaced");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    machine.write("vdb", 0, 8 * MIB, 0x22);
    backup(&machine, &repo);
    machine.stop();
    let (a, b) = (machine.image("vda").to_owned(), machine.image("vdb").to_owned());
    let number = fs::metadata(&a).expect("stat").ino();
    // Most file systems give the number of the file that went to the one that comes.
    fs::remove_file(&a).expect("remove");
    fs::copy(&b, &a).expect("copy");
    let same_number = fs::metadata(&a).expect("stat").ino() == number;
    machine.believe_image("vda");
    assert!(machine.model("vda") == machine.model("vdb"));
    let point = backup_with(&machine, &repo, &["--audit", "0%"]);
    let reason = if same_number { "the image is not the one" } else { "the image is not the one of" };
    assert_full(&point, "vda", reason);
    assert_changed(&point, "vdb", 0);
    assert_restores(&env, &repo, &point, &machine.models());
    finish(&env, &[&repo]);
}

#[test]
fn a_backing_file_that_was_changed_or_exchanged_makes_the_disk_read_in_full() {
    let env = Env::new("backing file");
    let repo = init(&env);
    let image = |name: &str| env.disks().join(name).display().to_string();
    for (name, pattern) in [("base.qcow2", "0x11"), ("other.qcow2", "0x22")] {
        run("qemu-img", &["create", "-q", "-f", "qcow2", &image(name), "8M"]);
        run("qemu-io", &["-f", "qcow2", "-c", &format!("write -P {pattern} 0 8M"), &image(name)]);
    }
    let base = env.disks().join("base.qcow2");
    let machine =
        env.machine("vm").disk(Disk::qcow2(8 * MIB).backing(&base, "qcow2")).disk(Disk::qcow2(4 * MIB)).start_paused();
    machine.write("vdb", 0, 4 * MIB, 0x77);
    machine.write("vda", 0, MIB, 0x33);
    proven(&machine, &repo);
    machine.write("vda", MIB, 512, 0x44);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    machine.stop();
    assert_changed(&proven(&machine, &repo), "vda", 0);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 0x55 4M 1M", &image("base.qcow2")]);
    machine.believe_image("vda");
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "a backing file has changed");
    assert_changed(&point, "vdb", 0);
    machine.start_paused();
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "a backing file has changed");
    machine.write("vda", 2 * MIB, 512, 0x66);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    machine.stop();
    run(
        "qemu-img",
        &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &image("other.qcow2"), &image("vm-vda.qcow2")],
    );
    machine.believe_image("vda");
    machine.start_paused();
    assert_full(&proven(&machine, &repo), "vda", "a backing file has changed");
    finish(&env, &[&repo]);
}

#[test]
fn what_was_data_and_reads_as_zero_now_is_a_change() {
    let env = Env::new("zeroed");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(24 * MIB)).start_paused();
    machine.write("vda", 0, 20 * MIB, 0x11);
    proven(&machine, &repo);
    machine.zero_keeping("vda", 2 * MIB, MIB);
    machine.zero("vda", 4 * MIB, MIB);
    machine.discard("vda", 6 * MIB, MIB);
    machine.write("vda", 8 * MIB, MIB, 0);
    // Across the borders of chunks, and less than a cluster.
    machine.zero_keeping("vda", 10 * MIB + 300 * 1024, MIB);
    machine.discard("vda", 13 * MIB + 512 * 1024, MIB);
    machine.zero("vda", 16 * MIB + 512, 1024);
    let point = proven(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "changed");
    assert!(disk_of(&point, "vda")["read_bytes"].as_u64() < Some(10 * MIB));
    machine.stop();
    machine.zero("vda", 17 * MIB, 2 * MIB);
    let point = proven(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "changed");
    machine.start_paused();
    machine.write("vda", 17 * MIB, 512, 0x22);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}

// --- machines

#[test]
fn a_machine_undefined_redefined_and_renamed_goes_on_where_it_was() {
    let env = Env::new("redefined");
    let repo = init(&env);
    let mut machine = two_disks(&env, "vm");
    let first = backup(&machine, &repo);
    machine.stop();
    // The checkpoint's definition is lost, its bitmaps are alive.
    machine.redefine(|xml| xml);
    assert_eq!(ours(&machine).len(), 0);
    machine.start_paused();
    machine.write("vda", 0, 512, 0x33);
    let point = proven(&machine, &repo);
    assert_eq!(point["parent"], first["point"]);
    assert_changed(&point, "vda", CHUNK);
    assert_changed(&point, "vdb", 0);
    assert_eq!(ours(&machine).len(), 1);
    // Undefined while it runs: it goes on without a definition of its own until it is defined again.
    machine.redefine(|xml| xml);
    machine.write("vdb", 0, 512, 0x44);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "vdb", CHUNK);
    // While it is off, no checkpoint is needed at all.
    machine.stop();
    machine.redefine(|xml| xml);
    machine.write("vdb", 2 * MIB, 512, 0x55);
    assert_changed(&proven(&machine, &repo), "vdb", CHUNK);
    // Renamed: the UUID is what counts.
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
fn one_lost_bitmap_of_a_lost_checkpoint_costs_only_its_disk() {
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
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "cannot be used");
    assert_changed(&point, "vdb", CHUNK);
    // The same with a checkpoint that libvirt knows.
    let checkpoint = checkpoint_in(&env, &repo, &point).expect("a checkpoint");
    machine.stop();
    run("qemu-img", &["bitmap", "--remove", &machine.image("vdb").display().to_string(), &checkpoint]);
    machine.start_paused();
    machine.write("vda", 0, 512, 0x44);
    let point = proven(&machine, &repo);
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
fn a_clone_with_its_bitmaps_begins_a_chain_of_its_own() {
    let env = Env::new("cloned");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    backup(&machine, &repo);
    machine.stop();
    let copy = copy_image(machine.image("vda"), "clone.qcow2");
    let clone = env.machine("clone").disk(Disk::existing(&copy, "qcow2")).start_paused();
    clone.write("vda", 0, 512, 0x22);
    assert_full(&proven(&clone, &repo), "vda", "first backup of the machine in this repository");
    clone.write("vda", MIB, 512, 0x33);
    assert_changed(&proven(&clone, &repo), "vda", CHUNK);
    machine.start_paused();
    machine.write("vda", 2 * MIB, 512, 0x44);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn a_machine_restored_in_place_from_an_older_point_is_right_in_the_next() {
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
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "cannot be used");
    machine.write("vda", 9 * MIB, 512, 0x55);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn external_snapshots_and_blockcommit() {
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
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "the image is not the one of the parent point");
    assert_changed(&point, "vdb", 0);
    // The bitmap of before was in what is now the backing file, and was deleted there.
    machine.write("vda", 3 * MIB, 512, 0x45);
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "a backing file has changed");
    assert_changed(&point, "vdb", 0);
    machine.write("vda", 3 * MIB, 512, 0x46);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    machine.write("vda", 4 * MIB, 512, 0x46);
    commit();
    machine.moved_to("vda", &base);
    machine.write("vda", 5 * MIB, 512, 0x47);
    let point = proven(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "full");
    assert_changed(&point, "vdb", 0);
    machine.write("vda", 6 * MIB, 512, 0x48);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    // Come and gone between two backups: the bitmap was carried along, or the disk is read in full.
    machine.write("vda", 7 * MIB, 512, 0x49);
    let second = env.disks().join("second.qcow2");
    snapshot("two", &second);
    machine.moved_to("vda", &second);
    machine.write("vda", 8 * MIB, 512, 0x4a);
    commit();
    machine.moved_to("vda", &base);
    machine.write("vda", 9 * MIB, 512, 0x4b);
    proven(&machine, &repo);
    machine.write("vda", 10 * MIB, 512, 0x4c);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn a_revert_to_an_internal_snapshot_is_refused_while_bitmaps_exist_or_right_in_the_next_point() {
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
    let point = proven(&machine, &repo);
    if reverted.status.success() {
        assert_full(&point, "vda", "");
    }
    machine.start_paused();
    machine.write("vda", 4 * MIB, 512, 0x44);
    proven(&machine, &repo);
    // And by libvirt, of a running machine, with its memory.
    env.virsh(&["snapshot-create-as", "vm", "live"]);
    machine.write("vda", 5 * MIB, 512, 0x55);
    proven(&machine, &repo);
    machine.write("vda", 6 * MIB, 512, 0x66);
    env.try_virsh(&["snapshot-revert", "vm", "live", "--paused"]);
    machine.disconnect();
    if machine.is_on() {
        env.virsh(&["destroy", "vm"]);
    }
    machine.believe_image("vda");
    proven(&machine, &repo);
    machine.start_paused();
    machine.write("vda", 7 * MIB, 512, 0x77);
    proven(&machine, &repo);
    machine.write("vda", 7 * MIB, 512, 0x78);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

// --- killed, stopped, started

#[test]
fn after_a_crash_of_qemu_the_disks_are_read_in_full_once() {
    let env = Env::new("QEMU killed");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    // Made in this session: gone with it.
    backup(&machine, &repo);
    machine.write("vda", 0, MIB, 0x33);
    machine.kill();
    machine.believe_image("vda");
    machine.believe_image("vdb");
    let point = proven(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "full");
    machine.start_paused();
    machine.write("vda", 3 * MIB, 512, 0x44);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    machine.stop();
    machine.start_paused();
    // Older than this session: left inconsistent in the file.
    machine.write("vda", 4 * MIB, 512, 0x55);
    machine.kill();
    machine.believe_image("vda");
    machine.believe_image("vdb");
    machine.start_after_its_end();
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "");
    machine.write("vdb", 0, 512, 0x66);
    assert_changed(&proven(&machine, &repo), "vdb", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    machine.stop();
    for disk in ["vda", "vdb"] {
        assert_eq!(bitmaps(machine.image(disk)).len(), 1, "{disk} has bitmaps left");
    }
    finish(&env, &[&repo]);
}

#[test]
fn a_machine_that_is_stopped_during_its_backup_is_captured_as_one_that_is_off() {
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
    assert_changed(&proven(&machine, &repo), "vda", 8 * CHUNK);
    // Stopped when all was read: the point is stored, and its checkpoint is good.
    machine.write("vda", 3 * MIB, 512, 0x45);
    let run = stopped_at(&machine, &repo, "JobEnded", &[]).unwrap_or_else(|output| panic!("{output}"));
    machine.quit();
    let point = go_on(run).assert_ok().record_of("point");
    assert_restores(&env, &repo, &point, &machine.models());
    assert_eq!(ours(&machine).len(), 1);
    assert_eq!(bitmaps(machine.image("vda")), ours(&machine));
    machine.start_after_its_end();
    machine.write("vda", 4 * MIB, 512, 0x46);
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn a_qemu_killed_during_the_backup_costs_a_full_read() {
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
    assert_changed(&proven(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn a_machine_cannot_start_in_the_middle_of_its_backup_and_can_after_it() {
    let env = Env::new("started meanwhile");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    machine.stop();
    machine.write("vda", 2 * MIB, 4 * MIB, 0x33);
    let captured = env.kvmb(["snapshot", "-r", &repo, "vm"]).run().assert_ok();
    env.try_virsh(&["start", "--paused", "vm"]).assert_code(1).assert_stderr_has("lock");
    // Somebody else finds the capture in the way.
    try_backup(&machine, &repo, &[]).assert_code(5);
    let pushed = env.kvmb(["push", "-r", &repo]).stdin(captured.stdout()).run().assert_ok();
    env.kvmb(["release"]).stdin(pushed.stdout()).run().assert_ok();
    let point = pushed.record_of("point");
    assert_changed(&point, "vda", 4 * CHUNK);
    assert_restores(&env, &repo, &point, &machine.models());
    machine.start_paused();
    machine.write("vda", 3 * MIB, 512, 0x44);
    assert_changed(&proven(&machine, &repo), "vda", 4 * CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn a_run_that_was_killed_does_not_hold_the_machine_until_its_lease_ends() {
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
    assert_changed(&proven(&machine, &repo), "vda", 4 * CHUNK);
    assert!(!machine.is_captured());
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

// --- machines that are off

#[test]
fn a_machine_that_is_off_is_read_by_its_bitmaps_and_goes_on_when_it_starts_again() {
    let env = Env::new("off");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let first = backup(&machine, &repo);
    let checkpoint = checkpoint_in(&env, &repo, &first);
    machine.write("vda", 0, 512, 0x33);
    machine.stop();
    // With changes: no checkpoint of its own.
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_eq!(checkpoint_in(&env, &repo, &point), None);
    assert_eq!(ours(&machine), checkpoint.clone().into_iter().collect::<Vec<_>>());
    machine.start_paused();
    machine.write("vda", 5 * MIB, 512, 0x44);
    let point = proven(&machine, &repo);
    assert_eq!(point["parent"], first["point"], "the point that the checkpoint was made with");
    assert_changed(&point, "vda", 2 * CHUNK);

    // Without changes: each inherits the checkpoint, and any of them can be continued.
    let checkpoint = checkpoint_in(&env, &repo, &point);
    machine.stop();
    let mut parents = vec![point];
    for _ in 0..3 {
        let point = proven(&machine, &repo);
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
    let point = proven(&machine, &repo);
    assert_eq!(point["parent"], last["point"]);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "vdb", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn off_with_changes_and_its_parent_pruned_it_begins_anew() {
    let env = Env::new("off and pruned");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let first = backup(&machine, &repo);
    machine.write("vda", 0, 512, 0x33);
    machine.stop();
    let second = backup(&machine, &repo);
    env.restic(&*repo).call(["forget", "--prune", id_of(&first)]).run().assert_ok();
    let third = proven(&machine, &repo);
    assert_full(&third, "vda", "first backup of the machine in this repository");
    // A new chain was begun, the old bitmap is gone.
    let checkpoint = checkpoint_in(&env, &repo, &third).expect("a checkpoint");
    assert_eq!(ours(&machine), std::slice::from_ref(&checkpoint));
    assert_eq!(bitmaps(machine.image("vda")), [checkpoint]);
    machine.start_paused();
    machine.write("vda", 4 * MIB, 512, 0x44);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_eq!(point["parent"], third["point"]);
    env.restic(&*repo).call(["forget", "--prune", id_of(&second)]).run().assert_ok();
    finish(&env, &[&repo]);
}

#[test]
fn a_chain_can_be_started_while_the_machine_is_off() {
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
    let point = proven(&machine, &a);
    assert_full(&point, "vda", "first backup of the machine in this repository");
    assert_eq!(ours(&machine), bitmaps(machine.image("vda")));
    assert_eq!(ours(&machine).len(), 1);
    assert_eq!(checkpoint_in(&env, &a, &point), ours(&machine).first().cloned());
    // Continued off …
    machine.write("vda", 0, 512, 0x33);
    assert_changed(&proven(&machine, &a), "vda", CHUNK);
    // … another repository begins its own …
    proven(&machine, &b);
    assert_eq!(ours(&machine).len(), 2);
    // … and both are continued when it runs.
    machine.start_paused();
    machine.write("vda", 3 * MIB, 512, 0x44);
    let point = proven(&machine, &a);
    assert_changed(&point, "vda", 2 * CHUNK);
    assert_full(&point, "vdb", "no dirty bitmap from the parent point");
    assert_full(&point, "vdc", "no dirty bitmap from the parent point");
    assert_changed(&proven(&machine, &b), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 2);
    machine.stop();
    // A disk that is new joins in: all disks get the new bitmap, and the old one goes.
    let mut machine = machine;
    machine.attach("vdd", Disk::qcow2(4 * MIB));
    machine.write("vdd", 0, MIB, 0x55);
    let point = proven(&machine, &a);
    assert_changed(&point, "vda", 0);
    assert_full(&point, "vdd", "not in the parent point");
    assert_eq!(ours(&machine).len(), 2);
    assert_eq!(bitmaps(machine.image("vda")).len(), 2);
    machine.start_paused();
    machine.write("vdd", MIB, 512, 0x66);
    let point = proven(&machine, &a);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "vdd", CHUNK);
    finish(&env, &[&a, &b]);
}

#[test]
fn an_image_that_somebody_else_has_open_gets_no_bitmap() {
    let env = Env::new("open elsewhere");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).disk(Disk::qcow2(4 * MIB)).define();
    machine.write("vda", 0, 8 * MIB, 0x11);
    // Another reader, which allows no writer.
    let socket = env.path("tmp/other.sock").display().to_string();
    let pid_file = env.path("tmp/other.pid");
    let pid_file_text = pid_file.display().to_string();
    let image = machine.image("vda").display().to_string();
    run("qemu-nbd", &["-r", "-t", "--fork", "-k", &socket, "--pid-file", &pid_file_text, "-f", "qcow2", &image]);
    let point = proven(&machine, &repo);
    let other: i32 = fs::read_to_string(&pid_file).expect("pid").trim().parse().expect("pid");
    crate::support::process::kill(other);
    crate::support::wait_until("the reader is gone", std::time::Duration::from_secs(5), || {
        machine.servers().is_empty()
    });
    assert_eq!(bitmaps(machine.image("vda")).len(), 0);
    assert_eq!(bitmaps(machine.image("vdb")).len(), 1);
    assert_full(&point, "vda", "first backup of the machine");
    machine.start_paused();
    machine.write("vdb", 0, 512, 0x22);
    let point = proven(&machine, &repo);
    assert_full(&point, "vda", "no dirty bitmap from the parent point");
    assert_changed(&point, "vdb", CHUNK);
    finish(&env, &[&repo]);
}

// --- bitmaps that lie

#[test]
fn full_finds_what_changed_behind_the_bitmaps_back_and_heals_it() {
    let env = Env::new("full finds lies");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let parent = backup(&machine, &repo);
    lie(&machine, &repo, &parent, 5 * MIB + 4096, 8192);
    machine.start_paused();
    // Not seen without luck: the sample has only the last chunk in it.
    machine.write("vda", 2 * MIB, 512, 0x77);
    let output = try_backup(&machine, &repo, &["--full"]).assert_code(4);
    let point = output.record_of("point");
    assert_full(&point, "vda", "asked for");
    assert_full(&point, "vdb", "asked for");
    let damage = point["chain_damage"].as_array().expect("damage");
    assert_eq!(damage.len(), 1, "{point:#}");
    assert_eq!(damage[0]["disk"], "vda");
    assert_eq!(damage[0]["offset_bytes"], 5 * MIB);
    assert_eq!(damage[0]["length_bytes"], MIB);
    assert_restores(&env, &repo, &point, &machine.models());
    // Healed: the next continues from the new point.
    machine.write("vda", 3 * MIB, 512, 0x78);
    let point = proven(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    let output = try_backup(&machine, &repo, &["--full"]).assert_ok();
    assert!(output.record_of("point").get("chain_damage").is_none());
    finish(&env, &[&repo]);
}

#[test]
fn an_audit_of_everything_finds_it_too_and_reads_in_full() {
    let env = Env::new("audit finds lies");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let parent = backup(&machine, &repo);
    lie(&machine, &repo, &parent, 5 * MIB + 4096, 8192);
    machine.start_paused();
    let output = try_backup(&machine, &repo, &["--audit", "100%"]).assert_code(4);
    let point = output.record_of("point");
    assert_full(&point, "vda", "marked clean had changed");
    assert_eq!(point["chain_damage"][0]["offset_bytes"], 5 * MIB);
    assert_eq!(disk_of(&point, "vdb")["read_mode"], "changed");
    assert_eq!(disk_of(&point, "vdb")["read_bytes"], 4 * MIB, "everything that is not zero is audited");
    assert_restores(&env, &repo, &point, &machine.models());
    try_backup(&machine, &repo, &["--audit", "100%"]).assert_ok();
    finish(&env, &[&repo]);
}

#[test]
fn a_thousandth_of_what_is_unchanged_is_audited_unless_told_otherwise() {
    let env = Env::new("audit by default");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(600 * MIB)).start_paused();
    machine.write("vda", 0, 600 * MIB, 0x11);
    backup_with(&machine, &repo, &["--chunk-size", "512K"]);
    // Of 1,200 chunks; the last one is always in it, and may be one that was drawn.
    for (args, least, most) in [(&["--audit", "0%"][..], 1, 1), (&[], 2, 3), (&["--audit", "1%"], 12, 13)] {
        let disk = disk_of(&backup_with(&machine, &repo, args), "vda");
        let chunks = disk["read_bytes"].as_u64().expect("read_bytes") / (512 << 10);
        assert!((least..=most).contains(&chunks), "{args:?}: {chunks} chunks were read");
    }
    finish(&env, &[&repo]);
}

#[test]
fn a_bitmap_that_was_caught_lying_is_never_believed_again() {
    let env = Env::new("lies while off");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    let parent = backup(&machine, &repo);
    lie(&machine, &repo, &parent, 5 * MIB + 4096, 8192);
    // Off: the point that finds it makes no checkpoint of its own.
    let point = try_backup(&machine, &repo, &["--full"]).assert_code(4).record_of("point");
    assert_restores(&env, &repo, &point, &machine.models());
    let point = backup_with(&machine, &repo, &["--audit", "0%"]);
    assert_restores(&env, &repo, &point, &machine.models());
    assert_full(&point, "vda", "found its dirty bitmap to be wrong");
    assert_changed(&point, "vdb", 0);
    assert_eq!(ours(&machine).len(), 1);
    machine.start_paused();
    machine.write("vda", MIB, 512, 0x44);
    let point = backup_with(&machine, &repo, &["--audit", "0%"]);
    assert_restores(&env, &repo, &point, &machine.models());
    assert_changed(&point, "vda", CHUNK);
    finish(&env, &[&repo]);
}

/// Changes the disk without its bitmap knowing: written while the machine is off, the bitmap then cleared by hand.
fn lie(machine: &crate::support::Machine, repo: &str, parent: &serde_json::Value, offset: u64, length: u64) {
    let checkpoint = checkpoint_in(machine.env(), repo, parent).expect("a checkpoint");
    machine.stop();
    machine.write("vda", offset, length, 0x99);
    run("qemu-img", &["bitmap", "--clear", &machine.image("vda").display().to_string(), &checkpoint]);
}

#[test]
fn full_every_reads_everything_when_it_is_due() {
    let env = Env::new("full every");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    backup(&machine, &repo);
    assert_changed(&backup_with(&machine, &repo, &["--full-every", "1d"]), "vda", 0);
    machine.write("vda", MIB, 512, 0x33);
    crate::support::wait_until("a second is over", std::time::Duration::from_secs(5), {
        let start = std::time::Instant::now();
        move || start.elapsed() > std::time::Duration::from_secs(1)
    });
    let point = backup_with(&machine, &repo, &["--full-every", "1s"]);
    assert_full(&point, "vda", "due for a full read");
    assert_restores(&env, &repo, &point, &machine.models());
    // It was: the clock begins anew.
    assert_changed(&backup_with(&machine, &repo, &["--full-every", "1d"]), "vda", 0);
    finish(&env, &[&repo]);
}

// --- several at once

#[test]
fn of_several_machines_at_once_one_that_fails_does_not_stop_the_others() {
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
