//! Incremental backups of disks that are added, removed, resized, swapped or changed behind kvmb's back: each test
//! restores the point, compares every byte, and checks how each disk was read.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use crate::support::chains::*;
use crate::support::change::run;
use crate::support::{Disk, Env};
use serde_json::Value;

const SCSI: &str = "<controller type='scsi' model='virtio-scsi'/>";

#[test]
fn raw_disk_is_read_in_full_beside_an_incremental_qcow2() {
    let env = Env::new("raw beside qcow2");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).disk(Disk::raw(8 * MIB + 512)).start_paused();
    machine.write("vda", 0, 12 * MIB, 0x11);
    machine.write("vdb", 0, 8 * MIB + 512, 0x22);
    verified(&machine, &repo);
    for round in 0..2_u8 {
        machine.write("vda", MIB, 4096, 0x33 + round);
        machine.write("vdb", 8 * MIB, 512, 0x44 + round);
        let point = verified(&machine, &repo);
        assert_changed(&point, "vda", CHUNK);
        assert_full(&point, "vdb", "no dirty bitmap from the parent point");
        assert_eq!(disk_of(&point, "vdb")["read_bytes"], 8 * MIB + 512);
        assert_eq!(disk_of(&point, "vdb")["new_bytes"], 512);
    }
    machine.stop();
    machine.write("vdb", 0, 512, 0x55);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_full(&point, "vdb", "no dirty bitmap from the parent point");
    finish(&env, &[&repo]);
}

#[test]
fn chunk_size_change_causes_one_full_read() {
    let env = Env::new("chunk size");
    let repo = init(&env);
    let machine = two_disks(&env, "vm");
    machine.write("vda", 20 * MIB + 4096, 512, 0x33);
    verified(&machine, &repo);
    for size in ["512K", "4M", "1M"] {
        machine.write("vda", 3 * MIB, 512, 0x44);
        let output = try_backup(&machine, &repo, &["--chunk-size", size]).assert_ok();
        let point = output.record_of("point");
        assert_full(&point, "vda", "the chunk size has changed");
        assert_full(&point, "vdb", "the chunk size has changed");
        assert_restores(&env, &repo, &point, &machine.models());
        // Without the option, that size is kept.
        machine.write("vda", 5 * MIB, 512, 0x55);
        let point = verified(&machine, &repo);
        let disk = disk_of(&point, "vda");
        assert_eq!(disk["read_mode"], "changed", "{disk:#}");
        let chunk = match size {
            "512K" => MIB / 2,
            "4M" => 4 * MIB,
            _ => MIB,
        };
        let read = disk["read_bytes"].as_u64().expect("read_bytes");
        assert!((chunk..=3 * chunk).contains(&read), "{size}: {read}");
        let next = try_backup(&machine, &repo, &["--chunk-size", size]).assert_ok().record_of("point");
        assert_eq!(next["disks"][0]["read_mode"], "changed");
    }
    try_backup(&machine, &repo, &["--chunk-size", "3M"]).assert_code(2).assert_stderr_has("512K, 1M, 2M or 4M");
    // A machine that is off, with a chain of another chunk size.
    machine.stop();
    let point = try_backup(&machine, &repo, &["--chunk-size", "2M"]).assert_ok().record_of("point");
    assert_full(&point, "vda", "the chunk size has changed");
    assert_restores(&env, &repo, &point, &machine.models());
    finish(&env, &[&repo]);
}

#[test]
fn large_disk_gets_larger_chunks_unless_its_chain_has_others() {
    let env = Env::new("large chunks");
    let (repo, old) = (init(&env), env.repo_named("old"));
    env.kvmb(["init", "-r", &old]).run().assert_ok();
    let machine = env.machine("vm").disk(Disk::qcow2(65 << 30)).start_paused();
    let read = |point: &Value| disk_of(point, "vda")["read_bytes"].as_u64().expect("read_bytes");
    machine.write("vda", 12 * MIB, 512, 0x11);
    let first = try_backup(&machine, &old, &["--chunk-size", "1M"]).assert_ok().record_of("point");
    assert_eq!((read(&first), read(&backup(&machine, &repo))), (MIB, 2 * MIB));
    machine.write("vda", 32 * MIB, 3 * MIB, 0x22);
    // The last clean chunk is read as well.
    for (repo, chunks, chunk) in [(&old, 3, MIB), (&repo, 2, 2 * MIB)] {
        let point = try_backup(&machine, repo, &["--audit", "0%"]).assert_ok().record_of("point");
        assert_eq!(disk_of(&point, "vda")["read_mode"], "changed", "{point:#}");
        assert!((chunks * chunk..=(chunks + 1) * chunk).contains(&read(&point)), "{point:#}");
        env.kvmb(["verify", "--all", "-r", repo]).run().assert_ok();
    }
    finish(&env, &[&repo, &old]);
}

#[test]
fn old_qcow2_version_is_read_in_full_without_bitmaps() {
    let env = Env::new("no bitmaps");
    let repo = init(&env);
    let machine =
        env.machine("vm").disk(Disk::qcow2(16 * MIB)).disk(Disk::qcow2(8 * MIB).option("compat=0.10")).start_paused();
    for (at, disk) in ["vda", "vdb"].into_iter().enumerate() {
        machine.write(disk, 0, 6 * MIB, 0x11 * (at as u8 + 1));
    }
    verified(&machine, &repo);
    machine.write("vda", MIB, 512, 0x44);
    machine.write("vdb", MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_full(&point, "vdb", "no dirty bitmap from the parent point");
    finish(&env, &[&repo]);
}

#[test]
fn corrupt_image_is_read_in_full_until_after_its_repair() {
    let env = Env::new("corrupt");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).disk(Disk::qcow2(MIB)).start_paused();
    machine.write("vda", 0, 3 * MIB, 0x11);
    verified(&machine, &repo);
    machine.stop();
    assert_changed(&verified(&machine, &repo), "vda", 0);

    // The corrupt bit, which QEMU sets when it finds a damaged table.
    let mut header = fs::OpenOptions::new().write(true).open(machine.image("vda")).unwrap();
    header.seek(SeekFrom::Start(79)).unwrap();
    header.write_all(&[2]).unwrap();
    let doctor = env.kvmb(["doctor", "vm"]).run().assert_code(1);
    let check = doctor.records().into_iter().find(|check| check["target"] == "vm/vda").unwrap();
    assert_eq!(check["status"], "critical", "{check}");
    let output = env.kvmb(["backup", "vm", "-r", &repo]).run().assert_ok();
    let output = output.assert_stderr_has("the image is marked as corrupt");
    assert_full(&output.record_of("point"), "vda", "the image is marked as corrupt");
    assert_changed(&output.record_of("point"), "vdb", 0);

    // No bitmap records the changes of the repair, which the hint's command makes.
    let hint = check["hint"].as_str().unwrap();
    env.sh(&hint[hint.find("qemu-img").unwrap()..]).run().assert_ok();
    machine.start_paused();
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "found its dirty bitmap to be wrong");
    assert_changed(&point, "vdb", 0);
    machine.write("vda", MIB, 512, 0x22);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);

    // The file is not an image, so starting the machine would not help.
    machine.stop();
    fs::write(machine.image("vdb"), b"").unwrap();
    let failure = env.kvmb(["backup", "vm", "-r", &repo]).run().assert_code(1).record_of("failure");
    assert!(failure["hint"].as_str().unwrap().contains("qemu-img info"), "{failure}");
    finish(&env, &[&repo]);
}

#[test]
fn truncated_image_is_reported_and_read_in_full() {
    let env = Env::new("cut off");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).disk(Disk::qcow2(MIB)).define();
    machine.write("vda", 0, 3 * MIB, 0x11);
    // Like a copy that was interrupted.
    fs::OpenOptions::new().write(true).open(machine.image("vda")).unwrap().set_len(2 * MIB).unwrap();
    let backup = || {
        let output = env.kvmb(["backup", "vm", "-r", &repo]).run().assert_ok();
        let output = output.assert_stderr_has("vm-vda.qcow2: the image is cut off");
        let point = output.record_of("point");
        assert_full(&point, "vda", "the image is cut off");
        point
    };
    backup();
    assert_changed(&backup(), "vdb", 0);
    machine.start_paused();
    assert_changed(&backup(), "vdb", 0);
    finish(&env, &[&repo]);
}

#[test]
fn attaching_or_detaching_a_disk_keeps_the_other_chains() {
    let env = Env::new("hot-plug");
    let repo = init(&env);
    let mut machine = env.machine("vm").devices_xml(SCSI).disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write("vda", 0, 12 * MIB, 0x11);
    verified(&machine, &repo);
    machine.attach("sda", Disk::qcow2(8 * MIB).bus("scsi"));
    machine.write("sda", 0, 4 * MIB, 0x22);
    machine.write("vda", 0, 512, 0x33);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_full(&point, "sda", "not in the parent point");
    machine.write("sda", MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_changed(&point, "sda", CHUNK);
    machine.detach("sda");
    machine.write("vda", 2 * MIB, 512, 0x55);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    assert_eq!(ours(&machine).len(), 1);
    // A new image replaces the old one, even in the same file.
    machine.attach("sda", Disk::qcow2(8 * MIB).bus("scsi"));
    machine.write("sda", 2 * MIB, MIB, 0x66);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_full(&point, "sda", "not in the parent point");
    // Removed and replaced between two backups.
    machine.detach("sda");
    machine.attach("sda", Disk::qcow2(8 * MIB).bus("scsi"));
    machine.write("sda", 5 * MIB, MIB, 0x77);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 0);
    assert_full(&point, "sda", "cannot be used");
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn disk_included_again_after_exclusion_is_read_in_full() {
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
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_full(&point, "vdb", "not in the parent point");
    assert_changed(&verified(&machine, &repo), "vdb", 0);
    finish(&env, &[&repo]);
}

#[test]
fn grown_or_shrunk_disk_is_read_incrementally() {
    let env = Env::new("resized");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB + 512)).start_paused();
    machine.write("vda", 0, 16 * MIB + 512, 0x11);
    verified(&machine, &repo);
    machine.resize("vda", 24 * MIB + 1024);
    machine.write("vda", 20 * MIB, 512, 0x22);
    let point = verified(&machine, &repo);
    // Everything after the last complete chunk of before is new: the chunk with the old end, and the one with the
    // write.
    assert_changed(&point, "vda", 2 * CHUNK);
    // Whole clusters, because the rest of a truncated one would reappear when the disk grows.
    machine.resize("vda", 10 * MIB + 65536);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", 65536);
    machine.write("vda", MIB, 512, 0x33);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    machine.stop();
    machine.resize("vda", 12 * MIB);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn disk_shrunk_and_grown_back_is_read_in_full() {
    let env = Env::new("shrunk and grown back");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(16 * MIB)).start_paused();
    machine.write("vda", 0, 16 * MIB, 0x11);
    // The audit's random sample might detect it, so it is disabled.
    let verified = |reason: Option<&str>| {
        let point = backup_with(&machine, &repo, &["--audit", "0%"]);
        assert_restores(&env, &repo, &point, &machine.models());
        match reason {
            Some(reason) => assert_full(&point, "vda", reason),
            None => assert_changed(&point, "vda", 0),
        }
    };
    verified(Some("first backup of the machine"));
    machine.resize("vda", 8 * MIB);
    machine.resize("vda", 16 * MIB);
    verified(Some("the disk was shrunk in between"));
    verified(None);
    // Within the last chunk with data.
    machine.resize("vda", 7 * MIB + 512 * 1024);
    machine.resize("vda", 16 * MIB);
    let output = try_backup(&machine, &repo, &["--audit", "0%"]).assert_code(4);
    let point = output.record_of("point");
    assert_full(&point, "vda", "marked clean had changed");
    assert_restores(&env, &repo, &point, &machine.models());
    // Truncated, and written to beyond that.
    machine.resize("vda", 3 * MIB);
    machine.resize("vda", 16 * MIB);
    machine.write("vda", 6 * MIB, MIB, 0x22);
    verified(Some("the disk was shrunk in between"));
    // The same while the machine is off.
    machine.stop();
    machine.resize("vda", 2 * MIB);
    machine.resize("vda", 16 * MIB);
    verified(Some("the disk was shrunk in between"));
    machine.start_paused();
    machine.write("vda", MIB, 512, 0x33);
    verified(Some("the disk was shrunk in between"));
    verified(None);
    finish(&env, &[&repo]);
}

#[test]
fn disks_with_swapped_targets_are_read_in_full() {
    let env = Env::new("swapped");
    let repo = init(&env);
    let mut machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    machine.write("vdb", 0, 8 * MIB, 0x22);
    verified(&machine, &repo);
    machine.stop();
    let (a, b) = (machine.image("vda").to_owned(), machine.image("vdb").to_owned());
    let (model_a, model_b) = (machine.model("vda"), machine.model("vdb"));
    let names = [a.display().to_string(), b.display().to_string()];
    machine.redefine(|xml| xml.replace(&names[0], "@").replace(&names[1], &names[0]).replace("@", &names[1]));
    machine.put_disk("vda", &b, "qcow2", model_b);
    machine.put_disk("vdb", &a, "qcow2", model_a);
    machine.start_paused();
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "the image is not the one of the parent point");
    assert_full(&point, "vdb", "the image is not the one of the parent point");
    machine.write("vda", 0, 512, 0x33);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}

#[test]
fn image_replaced_by_one_with_the_same_bitmap_is_read_in_full() {
    let env = Env::new("replaced");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    machine.write("vdb", 0, 8 * MIB, 0x22);
    backup(&machine, &repo);
    machine.stop();
    let (a, b) = (machine.image("vda").to_owned(), machine.image("vdb").to_owned());
    let number = fs::metadata(&a).expect("stat").ino();
    // Most file systems reuse the inode number of a removed file for the next one.
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
fn image_copied_while_its_machine_is_off_is_read_in_full_once() {
    let env = Env::new("copied off");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(8 * MIB)).disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 8 * MIB, 0x11);
    machine.write("vdb", 0, 8 * MIB, 0x22);
    backup(&machine, &repo);
    machine.stop();
    // To other storage and back, as rsync does: the copy has the same bitmaps.
    let (image, copy) = (machine.image("vda").to_owned(), env.disks().join("copy.qcow2"));
    fs::copy(&image, &copy).expect("copy");
    fs::rename(&copy, &image).expect("rename");
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "the image is not the one of the parent point");
    assert_changed(&point, "vdb", 0);
    machine.write("vda", 3 * MIB, 512, 0x33);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    machine.start_paused();
    machine.write("vda", 5 * MIB, 512, 0x44);
    machine.write("vdb", 5 * MIB, 512, 0x44);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vdb", CHUNK);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "changed");
    assert_eq!(ours(&machine).len(), 1);
    finish(&env, &[&repo]);
}

#[test]
fn relative_backing_file_names_keep_the_chain() {
    let env = Env::new("relative names");
    let repo = init(&env);
    let image = |name: &str| env.disks().join(name).display().to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &image("base.qcow2"), "4M"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 0x11 0 4M", &image("base.qcow2")]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "./base.qcow2", "-F", "qcow2", &image("mid.qcow2")]);
    let middle = env.disks().join("mid.qcow2");
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB).backing(&middle, "qcow2")).define();
    let name = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "./mid.qcow2", &image("vm-vda.qcow2")];
    run("qemu-img", &name);
    machine.write("vda", MIB, 512, 0x22);
    verified(&machine, &repo);
    // For a running machine, libvirt joins the names differently from kvmb for a machine that is off.
    machine.start_paused();
    assert_eq!(disk_of(&verified(&machine, &repo), "vda")["read_mode"], "changed");
    machine.stop();
    assert_eq!(disk_of(&verified(&machine, &repo), "vda")["read_mode"], "changed");
    finish(&env, &[&repo]);
}

#[test]
fn changed_or_replaced_backing_file_causes_a_full_read() {
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
    verified(&machine, &repo);
    machine.write("vda", MIB, 512, 0x44);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    machine.stop();
    assert_changed(&verified(&machine, &repo), "vda", 0);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 0x55 4M 1M", &image("base.qcow2")]);
    machine.believe_image("vda");
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "a backing file has changed");
    assert_changed(&point, "vdb", 0);
    // A new bitmap was started while the machine was off.
    machine.start_paused();
    assert_changed(&verified(&machine, &repo), "vda", 0);
    machine.write("vda", 2 * MIB, 512, 0x66);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    machine.stop();
    run(
        "qemu-img",
        &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &image("other.qcow2"), &image("vm-vda.qcow2")],
    );
    machine.believe_image("vda");
    machine.start_paused();
    assert_full(&verified(&machine, &repo), "vda", "a backing file has changed");
    finish(&env, &[&repo]);
}

#[test]
fn zeroed_and_discarded_data_is_read_as_changed() {
    let env = Env::new("zeroed");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(24 * MIB)).start_paused();
    machine.write("vda", 0, 20 * MIB, 0x11);
    verified(&machine, &repo);
    machine.zero_keeping("vda", 2 * MIB, MIB);
    machine.zero("vda", 4 * MIB, MIB);
    machine.discard("vda", 6 * MIB, MIB);
    machine.write("vda", 8 * MIB, MIB, 0);
    // Across chunk boundaries, and less than a cluster.
    machine.zero_keeping("vda", 10 * MIB + 300 * 1024, MIB);
    machine.discard("vda", 13 * MIB + 512 * 1024, MIB);
    machine.zero("vda", 16 * MIB + 512, 1024);
    let point = verified(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "changed");
    assert!(disk_of(&point, "vda")["read_bytes"].as_u64() < Some(10 * MIB));
    machine.stop();
    machine.zero("vda", 17 * MIB, 2 * MIB);
    let point = verified(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["read_mode"], "changed");
    machine.start_paused();
    machine.write("vda", 17 * MIB, 512, 0x22);
    assert_changed(&verified(&machine, &repo), "vda", CHUNK);
    finish(&env, &[&repo]);
}
