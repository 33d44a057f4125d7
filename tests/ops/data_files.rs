//! qcow2 images with an external raw data file: any program can write to that file, which no dirty bitmap records. So
//! incremental reads are used only within the lifetime of one QEMU process.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::chains::*;
use crate::support::change::run;
use crate::support::{Disk, Env, Machine};

const STARTED: &str = "the machine was started, or the disk attached, after the parent point";
const OFF: &str = "while the machine is off, other programs can write";

/// Creates an 8 MiB image with a data file, and returns both paths.
fn image_with_data_file(env: &Env, name: &str) -> (PathBuf, PathBuf) {
    let (image, data) = (env.disks().join(format!("{name}.qcow2")), env.disks().join(format!("{name}.raw")));
    let options = format!("data_file={},data_file_raw=on", data.display());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &image.display().to_string(), "8M"]);
    (image, data)
}

/// Creates a machine with two disks with data files: only the image's header names that of `vda`; that of `vdb` is in
/// the definition too.
fn machine(env: &Env) -> (Machine<'_>, [PathBuf; 2]) {
    let (first, first_data) = image_with_data_file(env, "first");
    let (second, second_data) = image_with_data_file(env, "second");
    let store =
        format!("<dataStore type='file'><format type='raw'/><source file='{}'/></dataStore>", second_data.display());
    let machine = env
        .machine("vm")
        .disk(Disk::existing(&first, "qcow2"))
        .disk(Disk::existing(&second, "qcow2").source_xml(&store))
        .start_paused();
    machine.write("vda", 0, 6 * MIB, 0x11);
    machine.write("vdb", 0, 6 * MIB, 0x22);
    (machine, [first_data, second_data])
}

/// Writes 1 MiB to a data file, like a program that does not know the image.
fn write_past_the_image(machine: &Machine, target: &str, data: &Path, pattern: u8) {
    let command = format!("write -P {pattern:#x} 2M 1M");
    run("qemu-io", &["-f", "raw", "-c", &command, &data.display().to_string()]);
    machine.change(target, |model| model.fill(2 * MIB, MIB, pattern));
}

#[test]
fn data_file_disks_are_read_in_full_after_each_qemu_start() {
    let env = Env::new("data files");
    let repo = init(&env);
    let (machine, data) = machine(&env);
    verified(&machine, &repo);
    for round in 0..2_u8 {
        machine.write("vda", MIB, 512, 0x44 + round);
        machine.write("vdb", 3 * MIB, 512, 0x55 + round);
        let point = verified(&machine, &repo);
        assert_changed(&point, "vda", CHUNK);
        assert_changed(&point, "vdb", CHUNK);
    }
    // No program that honours QEMU's locks can write meanwhile.
    for data in &data {
        let written = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 1M"]).arg(data).output().unwrap();
        assert!(!written.status.success() && String::from_utf8_lossy(&written.stderr).contains("lock"), "{written:?}");
    }

    // Off, with a backup meanwhile.
    machine.stop();
    write_past_the_image(&machine, "vda", &data[0], 0x77);
    write_past_the_image(&machine, "vdb", &data[1], 0x78);
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", OFF);
    assert_full(&point, "vdb", OFF);
    machine.start_paused();
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", "");
    assert_full(&point, "vdb", "");
    assert_changed(&verified(&machine, &repo), "vda", 0);

    // Off between two backups of the running machine.
    machine.stop();
    write_past_the_image(&machine, "vda", &data[0], 0x88);
    write_past_the_image(&machine, "vdb", &data[1], 0x89);
    machine.start_paused();
    let point = verified(&machine, &repo);
    assert_full(&point, "vda", STARTED);
    assert_full(&point, "vdb", STARTED);
    machine.write("vda", 5 * MIB, 512, 0x99);
    let point = verified(&machine, &repo);
    assert_changed(&point, "vda", CHUNK);
    assert_changed(&point, "vdb", 0);
    assert_eq!(ours(&machine).len(), 1);

    finish(&env, &[&repo]);
}

#[test]
fn data_file_disk_detached_in_between_is_read_in_full() {
    let env = Env::new("data file detached");
    let repo = init(&env);
    let (image, data) = image_with_data_file(&env, "plugged");
    let disk = || Disk::existing(&image, "qcow2").bus("scsi");
    let controller = "<controller type='scsi' model='virtio-scsi'/>";
    let mut machine =
        env.machine("vm").devices_xml(controller).disk(Disk::qcow2(8 * MIB)).disk(disk().target("sda")).start_paused();
    machine.write("sda", 0, 6 * MIB, 0x11);
    verified(&machine, &repo);
    machine.detach("sda");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x66 4M 1M", &data.display().to_string()]);
    machine.attach("sda", disk());
    let point = verified(&machine, &repo);
    assert_full(&point, "sda", STARTED);
    assert_changed(&point, "vda", 0);
    machine.write("sda", MIB, 512, 0x77);
    assert_changed(&verified(&machine, &repo), "sda", CHUNK);
    finish(&env, &[&repo]);
}
