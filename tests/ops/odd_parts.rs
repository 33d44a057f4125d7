//! Unusual parts of machines: which ones a backup omits without failing, which ones make it incomplete, and which ones
//! it stores and restores - TPM state in a single file, firmware variables on a device or on the network, files that
//! the definition refers to.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::backups::{MIB, backup, init, new_folder, noise, text};
use crate::support::storage::{LoopDevice, NetworkStorage};
use crate::support::{Disk, Env, Machine, Output, set_mode};
use serde_json::{Value, json};

fn file(env: &Env, name: &str, seed: u64, length: u64) -> PathBuf {
    let path = env.path(name);
    fs::write(&path, noise(seed, length)).unwrap();
    set_mode(&path, 0o644);
    path
}

fn back_up(env: &Env, name: &str) -> Output {
    env.kvmb(["backup", name, "-r", &env.repo()]).run()
}

fn restore(env: &Env, args: &[&str]) -> Output {
    env.kvmb(["restore", "-r", &env.repo()]).args(args).run()
}

/// Returns the omissions of a point: disk or part, and reason.
fn left_out(point: &Value) -> Vec<(String, String)> {
    let list = point["left_out"].as_array().cloned().unwrap_or_default();
    let name = |entry: &Value| entry["disk"].as_str().or(entry["part"].as_str()).unwrap().to_owned();
    let mut list: Vec<_> = list.iter().map(|entry| (name(entry), text(entry, "reason").to_owned())).collect();
    list.sort();
    list
}

/// Creates a machine that is off, with an image of root, and a changed definition.
fn defined<'e>(env: &'e Env, change: impl FnOnce(String) -> String) -> Machine<'e> {
    let machine = env.machine("vm1").disk(Disk::qcow2(MIB)).define();
    set_mode(machine.image("vda"), 0o600);
    machine.write("vda", 0, MIB / 2, 0x11);
    env.define_xml(&change(machine.definition()));
    machine
}

#[test]
fn parts_left_out_by_rule_are_reported_without_failing_the_backup() {
    let env = Env::new("left out by rule");
    init(&env);
    let large = env.path("large.bin");
    File::create(&large).and_then(|file| file.set_len(65 << 20)).unwrap();
    let at = |name: &str| env.path(name).display().to_string();
    let devices = format!(
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='sda' bus='sata'/><readonly/></disk>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}' startupPolicy='optional'/>\
         <target dev='sdb' bus='sata'/></disk>\
         <interface type='user'><model type='virtio'/><rom file='{}'/></interface>\
         <filesystem type='mount' accessmode='mapped'><source dir='{}'/><target dir='a'/></filesystem>\
         <filesystem type='mount' accessmode='mapped'><source dir='/srv'/><target dir='b'/></filesystem></devices>",
        at("gone.iso"),
        at("gone.qcow2"),
        at("gone.rom"),
        at("shared")
    );
    let arguments = format!(
        "<qemu:arg value='-drive'/><qemu:arg value='file={},if=none,id=extra,format=raw'/>\
         <qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/x,file={}'/></qemu:commandline>",
        at("extra.img"),
        large.display()
    );
    File::create(env.path("extra.img")).and_then(|file| file.set_len(MIB)).unwrap();
    let machine = defined(&env, |xml| xml.replace("</devices>", &devices).replace("</qemu:commandline>", &arguments));
    let point = back_up(&env, "vm1").assert_ok().record_of("point");
    let reasons = left_out(&point);
    let expected = [
        ("drive", "not a disk of the definition"),
        ("fw_cfg", "65.00 MiB"),
        ("option_rom", "No such file"),
        ("sda", "cdrom, its medium is missing"),
        ("sdb", "optional, its image is missing"),
        ("shared_folder", "a folder of the host"),
        ("shared_folder", "a folder of the host"),
    ];
    assert_eq!(reasons.len(), expected.len(), "{point:#}");
    for ((name, reason), (known, words)) in reasons.iter().zip(expected) {
        assert!(name == known && reason.contains(words), "{name}: {reason}");
    }
    let listed = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().record_of("point");
    assert_eq!(listed["left_out"], point["left_out"]);
    let table = env.kvmb(["points", "-o", "table", "-r", &env.repo()]).run().assert_ok();
    assert_eq!(table.stdout().matches("shared_folder").count(), 1, "{table}");

    // `disks`, `doctor` and a dry run report it in advance.
    let disks = env.kvmb(["disks", "vm1"]).run().assert_ok();
    for words in [&at("extra.img"), &large.display().to_string(), &at("gone.rom"), &at("shared")] {
        assert!(disks.stderr().contains(words), "no {words}: {disks}");
    }
    let optional = disks.records().into_iter().find(|disk| disk["disk"] == "sdb").unwrap();
    assert_eq!(
        (&optional["included"], &optional["skip_reason"]),
        (&json!(false), &json!("optional, its image is missing"))
    );
    let doctor = env.kvmb(["doctor", "vm1"]).run().assert_ok();
    let parts = doctor.records_of("check").into_iter().filter(|check| check["check"] == "part");
    assert_eq!(parts.filter(|check| check["status"] == "warning").count(), 5, "{doctor}");
    let planned = env.kvmb(["backup", "vm1", "-n", "-r", &env.repo()]).run().assert_ok().record_of("action");
    assert_eq!(planned["skipped"].as_array().unwrap().len(), expected.len(), "{planned}");

    // An optional disk that exists is backed up like any other.
    crate::support::change::run("qemu-img", &["create", "-q", "-f", "qcow2", &at("gone.qcow2"), "1M"]);
    set_mode(&env.path("gone.qcow2"), 0o600);
    let point = back_up(&env, "vm1").assert_ok().record_of("point");
    assert_eq!(point["disks"].as_array().unwrap().len(), 2, "{point}");
    // If a non-optional disk is missing, only this machine's backup fails.
    let other = env.machine("other").disk(Disk::qcow2(MIB)).define();
    fs::rename(machine.image("vda"), env.path("away")).unwrap();
    let failed = back_up(&env, "vm1").assert_code(1);
    assert!(failed.records_of("point").is_empty(), "{failed}");
    let both = env.kvmb(["backup", "--all", "-r", &env.repo()]).run().assert_code(3);
    assert_eq!(both.record_of("point")["machine"], other.name());
    assert_eq!(env.kvmb(["points", "vm1", "-r", &env.repo()]).run().assert_ok().records().len(), 2);
    env.assert_nothing_left();
}

#[test]
fn disk_attached_for_the_next_start_is_reported_as_left_out() {
    let env = Env::new("next start");
    init(&env);
    let machine = env.machine("vm1").disk(Disk::qcow2(MIB)).start_paused();
    crate::support::change::run("qemu-img", &["create", "-q", "-f", "qcow2", &env.repo_named("later.qcow2"), "1M"]);
    let source = env.repo_named("later.qcow2");
    env.virsh(&["attach-disk", "vm1", &source, "vdb", "--config", "--subdriver", "qcow2"]);
    let point = backup(&machine);
    assert_eq!(left_out(&point), [("vdb".to_owned(), "not attached to the running machine".to_owned())]);
    env.assert_nothing_left();
}

#[test]
fn tpm_state_in_a_single_file_is_stored_and_restored() {
    let env = Env::new("TPM file");
    init(&env);
    let state = file(&env, "vm1.tpm", 1, 8192);
    set_mode(&state, 0o600);
    let tpm = |path: &Path| {
        let path = path.display();
        format!(
            "<tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='file' path='{path}'/></backend>\
             </tpm></devices>"
        )
    };
    let machine = defined(&env, |xml| xml.replace("</devices>", &tpm(&state)));
    let definition = machine.definition();
    let point = back_up(&env, "vm1").assert_ok().record_of("point");
    assert_eq!(point["files"], json!([{ "part": "tpm", "path": state.display().to_string(), "size_bytes": 8192 }]));
    // libvirt removes it with the definition.
    env.virsh(&["undefine", "--checkpoints-metadata", "vm1"]);
    assert!(!state.exists());
    fs::remove_file(machine.image("vda")).unwrap();
    restore(&env, &["vm1"]).assert_ok();
    assert_eq!(fs::read(&state).unwrap(), noise(1, 8192));
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(machine.definition(), definition);
    // In another place, the definition refers to the new file.
    let into = new_folder(&env, "into");
    restore(&env, &["vm1", "--as", "vm2", "--into", &into.display().to_string()]).assert_ok();
    assert_eq!(fs::read(into.join("vm2.tpm")).unwrap(), noise(1, 8192));
    assert!(env.virsh(&["dumpxml", "vm2"]).contains(&format!("type='file' path='{}'", into.join("vm2.tpm").display())));
    // It is missing: the point has the disk, and the exit code says that it is incomplete. A symbolic link of another
    // user is not followed.
    fs::remove_file(&state).unwrap();
    symlink(env.path("password"), &state).unwrap();
    std::os::unix::fs::lchown(&state, Some(65534), None).unwrap();
    let output = back_up(&env, "vm1").assert_code(3);
    assert_eq!(left_out(&output.record_of("point"))[0].0, "tpm");
    env.assert_nothing_left();
}

#[test]
fn tpm_state_on_a_block_device_is_restored_to_the_device() {
    let env = Env::new("TPM device");
    init(&env);
    let backing = file(&env, "tpm.img", 1, MIB);
    let device = LoopDevice::on(&backing);
    let tpm = format!(
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='file' path='{}'/></backend></tpm>\
         </devices>",
        device.path
    );
    let machine = defined(&env, |xml| xml.replace("</devices>", &tpm));
    let definition = machine.definition();
    back_up(&env, "vm1").assert_ok();
    fs::write(&backing, noise(2, MIB)).unwrap();
    restore(&env, &["vm1", "--overwrite"]).assert_ok();
    assert_eq!(fs::read(&backing).unwrap(), noise(1, MIB));
    assert_eq!(machine.definition(), definition);
    env.assert_nothing_left();
}

#[test]
fn firmware_variables_on_a_device_or_nbd_are_restored_in_place() {
    let env = Env::new("NVRAM places");
    init(&env);
    let code = file(&env, "code.fd", 1, 4096);
    let os = |nvram: &str| format!("<loader readonly='yes' type='pflash'>{}</loader>{nvram}</os>", code.display());
    let (backing, served) = (file(&env, "vars.img", 2, MIB), file(&env, "served.img", 3, MIB));
    let device = LoopDevice::on(&backing);
    let socket = env.path("qmp/vars.sock");
    let server = NetworkStorage::of(&served, &socket);
    let named = file(&env, "named.fd", 4, 4096);
    let machine = defined(&env, |xml| xml);
    let plain = machine.definition();
    let places = [
        (format!("<nvram type='block'><source dev='{}'/></nvram>", device.path), &backing, 2, MIB),
        (
            format!(
                "<nvram type='network'><source protocol='nbd' name=''><host transport='unix' socket='{}'/></source>\
                 </nvram>",
                socket.display()
            ),
            &served,
            3,
            MIB,
        ),
        (format!("<nvram type='file'><source file='{}'/></nvram>", named.display()), &named, 4, 4096),
    ];
    for (nvram, content, seed, length) in places {
        env.define_xml(&plain.replace("</os>", &os(&nvram)));
        let definition = machine.definition();
        let point = back_up(&env, "vm1").assert_ok().record_of("point");
        assert_eq!(
            (&point["files"][0]["part"], &point["files"][0]["size_bytes"]),
            (&json!("nvram"), &json!(length)),
            "{nvram}"
        );
        let dumped = env.restic(env.repo()).dump(text(&point, "point"), "/vm1/nvram");
        assert_eq!(dumped, noise(seed, length), "{nvram}");
        // Existing content is replaced only with --overwrite.
        fs::write(content, noise(9, length)).unwrap();
        restore(&env, &["vm1"]).assert_code(1);
        assert_eq!(fs::read(content).unwrap(), noise(9, length), "{nvram}");
        restore(&env, &["vm1", "--overwrite"]).assert_ok();
        assert_eq!(fs::read(content).unwrap(), noise(seed, length), "{nvram}");
        assert_eq!(machine.definition(), definition, "{nvram}");
        // A copy has them in its own file.
        let into = new_folder(&env, "copy");
        restore(&env, &["vm1", "--as", "vm2", "--into", &into.display().to_string()]).assert_ok();
        assert_eq!(fs::read(into.join("vm2_VARS.fd")).unwrap(), noise(seed, length), "{nvram}");
        let copy = env.virsh(&["dumpxml", "vm2"]);
        assert!(copy.contains(&into.join("vm2_VARS.fd").display().to_string()), "{copy}");
        env.virsh(&["undefine", "--keep-nvram", "vm2"]);
    }
    // A missing device is not created as a file.
    let path = device.path.clone();
    env.define_xml(&plain.replace("</os>", &os(&format!("<nvram type='block'><source dev='{path}'/></nvram>"))));
    back_up(&env, "vm1").assert_ok();
    let elsewhere = "/dev/kvmb-test-no-such-device";
    let moved = plain.replace("</os>", &os(&format!("<nvram type='block'><source dev='{elsewhere}'/></nvram>")));
    env.define_xml(&moved);
    let output = back_up(&env, "vm1").assert_code(3);
    assert_eq!(left_out(&output.record_of("point"))[0].0, "nvram");
    assert!(!Path::new(elsewhere).exists());
    drop(server);
    env.assert_nothing_left();
}

/// Creates a machine that is off and refers to files of every kind.
fn machine_with_files(env: &Env) -> Machine<'_> {
    let path = |name: &str, seed: u64| file(env, name, seed, 4096).display().to_string();
    let (loader, variables, rom) = (path("fw/code.fd", 1), path("vars.fd", 2), path("fw/net.rom", 3));
    let (table, inner, argument) = (path("fw/slic.bin", 4), path("fw/ignition", 5), path("fw/other,1", 6));
    let template = path("fw/vars-template.fd", 7);
    set_mode(&env.path("fw/ignition"), 0o600);
    defined(env, |xml| {
        xml.replace(
            "</os>",
            &format!(
                "<loader readonly='yes' type='pflash'>{loader}</loader><nvram template='{template}'>\
                 {variables}</nvram><acpi><table type='slic'>{table}</table></acpi></os>"
            ),
        )
        .replace(
            "<features>",
            &format!("<sysinfo type='fwcfg'><entry name='opt/a' file='{inner}'/></sysinfo><features>"),
        )
        .replace(
            "</devices>",
            &format!("<interface type='user'><model type='virtio'/><rom file='{rom}'/></interface></devices>"),
        )
        .replace(
            "</qemu:commandline>",
            &format!(
                "<qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/b,file={}'/></qemu:commandline>",
                argument.replace(',', ",,")
            ),
        )
    })
}

#[test]
fn uncreated_firmware_variables_warn_and_lost_ones_fail() {
    let env = Env::new("NVRAM lost");
    init(&env);
    fs::create_dir(env.path("fw")).unwrap();
    let machine = machine_with_files(&env);
    fs::remove_file(env.path("vars.fd")).unwrap();
    // There is no sign that it ever ran: libvirt would create them from the template.
    let output = back_up(&env, "vm1").assert_ok();
    output.assert_stderr_has("the point of vm1 has no firmware variables").assert_stderr_has("at the next start");
    // An earlier machine of the same name ran.
    let logs = env.libvirt_root().join("log/qemu");
    fs::create_dir_all(&logs).unwrap();
    let start = "2026-11-20 02:00:00.000+0000: starting up libvirt version: 11.3.0\nqemu -uuid";
    fs::write(logs.join("vm1.log"), format!("{start} 00000000-0000-0000-0000-000000000000 -smp 1\n")).unwrap();
    back_up(&env, "vm1").assert_ok();
    fs::write(logs.join("vm1.log"), format!("{start} {} -smp 1\n", machine.uuid())).unwrap();
    back_up(&env, "vm1").assert_code(3);
    fs::remove_file(logs.join("vm1.log")).unwrap();
    // It did run, and its log has been rotated.
    fs::write(logs.join("vm1.log.0"), "").unwrap();
    let output = back_up(&env, "vm1").assert_code(3);
    assert_eq!(left_out(&output.record_of("point"))[0].0, "nvram");
    env.assert_nothing_left();
}

#[test]
fn files_named_in_the_definition_are_stored_and_restored() {
    let env = Env::new("outside files");
    init(&env);
    fs::create_dir(env.path("fw")).unwrap();
    let machine = machine_with_files(&env);
    let definition = machine.definition();
    let point = back_up(&env, "vm1").assert_ok().record_of("point");
    assert_eq!(point.get("left_out"), None, "{point}");
    let files = point["files"].as_array().unwrap();
    let mut parts: Vec<&str> = files.iter().map(|file| text(file, "part")).collect();
    parts.sort_unstable();
    assert_eq!(parts, ["acpi_table", "fw_cfg", "fw_cfg", "loader", "nvram", "nvram_template", "option_rom"]);
    let listed = env.kvmb(["points", "vm1", "-r", &env.repo()]).run().assert_ok().record_of("point");
    assert_eq!(listed["files"], point["files"]);
    env.restic(env.repo()).check();
    env.kvmb(["verify", "vm1", "-r", &env.repo()]).run().assert_ok();

    // In place, with its files present, nothing changes.
    restore(&env, &["vm1", "--overwrite"]).assert_ok();
    assert_eq!(machine.definition(), definition);
    // They are lost: the error lists them with the option that restores them, and all of them are restored.
    fs::rename(env.path("fw"), env.path("lost")).unwrap();
    let planned = restore(&env, &["vm1", "--overwrite", "--dry-run"]).assert_ok();
    let missing = planned
        .records_of("action")
        .into_iter()
        .filter(|action| action["hint"].as_str().is_some_and(|hint| hint.contains("--with-files DIR")));
    // The template is not needed, because the variables are in the point.
    assert_eq!(missing.count(), 5, "{planned}");
    let folder = new_folder(&env, "files");
    set_mode(&folder, 0o755);
    let with_files = ["vm1", "--overwrite", "--with-files", &folder.display().to_string()];
    restore(&env, &with_files).assert_ok();
    for (name, seed) in
        [("code.fd", 1), ("net.rom", 3), ("slic.bin", 4), ("ignition", 5), ("other,1", 6), ("vars-template.fd", 7)]
    {
        assert_eq!(fs::read(folder.join(name)).unwrap(), noise(seed, 4096), "{name}");
    }
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("code.fd"), mode("ignition")), (0o644, 0o600));
    let there = format!("{}/", folder.display());
    assert_eq!(machine.definition(), definition.replace(&format!("{}/", env.path("fw").display()), &there));
    // Again: the files exist and are identical. A different one is not replaced without --overwrite.
    restore(&env, &with_files).assert_ok();
    fs::write(folder.join("net.rom"), b"another").unwrap();
    let into = new_folder(&env, "into").display().to_string();
    let beside = ["vm1", "--as", "vm2", "--into", &into, "--with-files", &folder.display().to_string()];
    restore(&env, &beside).assert_code(1).assert_stderr_has("net.rom already exists");
    // Into their original place: the definition is unchanged.
    fs::create_dir(env.path("fw")).unwrap();
    restore(&env, &["vm1", "--overwrite", "--with-files", &env.path("fw").display().to_string()]).assert_ok();
    assert_eq!(machine.definition(), definition);
    env.assert_nothing_left();
}

#[test]
fn symlink_planted_by_another_user_is_left_out() {
    let env = Env::new("planted file");
    init(&env);
    fs::create_dir(env.path("fw")).unwrap();
    machine_with_files(&env);
    let rom = env.path("fw/net.rom");
    fs::remove_file(&rom).unwrap();
    symlink(env.password_file(), &rom).unwrap();
    chown(env.path("fw"), Some(65534), None).unwrap();
    let point = back_up(&env, "vm1").assert_ok().record_of("point");
    let (part, reason) = left_out(&point).remove(0);
    assert!(part == "option_rom" && reason.contains("symbolic link"), "{part}: {reason}");
    env.assert_nothing_left();
}
