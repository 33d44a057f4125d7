//! Restores on a changed host: devices, networks, media, pools and secrets are missing or have other names, memory is
//! saved, and file systems are mounted too late.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;

use serde_json::Value;

use crate::support::backups::{MIB, backup, init, names_in, new_folder, noise, text};
use crate::support::call::Call;
use crate::support::storage::LoopDevice;
use crate::support::{Disk, DiskModel, Env, set_mode};

fn restore(env: &Env, args: &[&str]) -> Call {
    env.kvmb(["restore", "-r", &env.repo(), "vm"]).args(args)
}

/// Returns what this host lacks for a restore: item, hint.
fn missing(env: &Env, args: &[&str]) -> Vec<(String, String)> {
    let actions = restore(env, &[args, &["--dry-run", "--overwrite"]].concat()).run().assert_ok().records_of("action");
    let word = |action: &Value, field: &str| action[field].as_str().map(str::to_owned);
    let lacks = |action: &Value| {
        let what = word(action, "reason")?.strip_prefix("not on this host: ")?.to_owned();
        Some((what, word(action, "hint").expect("a hint")))
    };
    actions.iter().filter_map(lacks).collect()
}

#[track_caller]
fn assert_lacks(found: &[(String, String)], things: &[(&str, &str)]) {
    for (what, solve) in things {
        let there = found.iter().find(|(found, _)| found.contains(what));
        let (_, hint) = there.unwrap_or_else(|| panic!("{what} is not among {found:#?}"));
        assert!(hint.contains(solve), "{what}: {hint}");
    }
    assert_eq!(found.len(), things.len(), "{found:#?}");
}

#[test]
fn missing_host_resources_are_listed_first_and_can_be_mapped() {
    let env = Env::new("other names");
    init(&env);
    let iso = env.disks().join("install.iso");
    fs::write(&iso, noise(1, 4096)).unwrap();
    let devices = format!(
        "<disk type='file' device='cdrom'><source file='{}'/><target dev='sda' bus='sata'/><readonly/></disk>\
         <interface type='network'><source network='lan-old'/><model type='virtio'/></interface>\
         <interface type='bridge'><source bridge='br-old'/><model type='virtio'/></interface>\
         <hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>\
         <address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>\
         <tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm99'/></backend></tpm>",
        iso.display()
    );
    let machine = env.machine("vm").disk(Disk::qcow2(2 * MIB)).devices_xml(&devices).define();
    machine.write("vda", 0, MIB, 0x11);
    backup(&machine);
    fs::remove_file(&iso).unwrap();
    let gone = [
        ("install.iso of drive sda", "--drop-missing-media"),
        ("network 'lan-old'", "--network lan-old=NEW"),
        ("bridge br-old", "--bridge br-old=NEW"),
        ("mediated device c2177883", "mdevctl"),
        ("device /dev/tpm99", "virsh edit vm"),
    ];
    assert_lacks(&missing(&env, &[]), &gone);
    // libvirt would refuse to start it, which is reported before anything is written.
    let before = fs::read(machine.image("vda")).unwrap();
    let output = restore(&env, &["--overwrite", "--start"]).run().assert_code(1);
    assert!(text(&output.record_of("failure"), "error").contains("install.iso"), "{output}");
    assert!(fs::read(machine.image("vda")).unwrap() == before, "the image was replaced");
    let mapped = ["--drop-missing-media", "--network", "lan-old=lan-new", "--bridge", "br-old=br-new"];
    let left =
        [("network 'lan-new'", "--network lan-new=NEW"), ("bridge br-new", "--bridge br-new=NEW"), gone[3], gone[4]];
    assert_lacks(&missing(&env, &mapped), &left);
    let output = restore(&env, &mapped).arg("--overwrite").run().assert_ok();
    output.assert_stderr_has("this host does not have the network 'lan-new'");
    let definition = machine.definition();
    for (there, words) in [(true, "network='lan-new'"), (true, "bridge='br-new'"), (false, "install.iso")] {
        assert_eq!(definition.contains(words), there, "{words}: {definition}");
    }
    machine.assert_image_equals_model("vda");
    env.assert_nothing_left();
}

#[test]
fn unknown_emulator_and_machine_type_are_reported_and_replaceable() {
    let env = Env::new("other distribution");
    init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(2 * MIB)).define();
    machine.write("vda", 0, MIB, 0x11);
    let own = machine.definition();
    let element = |from: &str, to: &str| own.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    let (machine_type, emulator) = (element("machine='", "'"), element("<emulator>", "</emulator>"));

    // libvirt does not accept such a definition here, so it is inserted into the capture of another machine.
    let captured = env.kvmb(["snapshot", "-r", &env.repo(), "vm"]).run().assert_ok();
    let captures = fs::read_dir(env.runtime_dir()).unwrap();
    let state = captures.map(|entry| entry.unwrap().path().join("state.json")).find(|path| path.exists()).unwrap();
    let known = fs::read_to_string(&state).unwrap();
    let foreign = known.replace(&format!("machine='{machine_type}'"), "machine='pc-q35-rhel9.6.0'");
    let foreign = foreign.replace(&format!("<emulator>{emulator}<"), "<emulator>/usr/libexec/qemu-kvm<");
    assert_ne!(known, foreign);
    fs::write(&state, foreign).unwrap();
    let pushed = env.kvmb(["push", "-r", &env.repo()]).stdin(captured.stdout()).run().assert_ok();
    env.kvmb(["release"]).stdin(pushed.stdout()).run().assert_ok();

    env.virsh(&["undefine", "--checkpoints-metadata", "vm"]);
    fs::remove_file(machine.image("vda")).unwrap();
    let hint = format!("--emulator {emulator}");
    let failure = restore(&env, &["--dry-run"]).run().assert_code(1).record_of("failure");
    assert!(text(&failure, "error").contains("/usr/libexec/qemu-kvm"), "{failure}");
    assert!(text(&failure, "hint").contains(&hint), "{failure}");
    let failure = restore(&env, &["--emulator", &emulator]).run().assert_code(1).record_of("failure");
    assert!(text(&failure, "error").contains("machine type pc-q35-rhel9.6.0"), "{failure}");
    assert!(text(&failure, "hint").contains("--machine-type q35"), "{failure}");
    assert!(!machine.image("vda").exists(), "an image was written for nothing");

    restore(&env, &["--emulator", &emulator, "--machine-type", "q35"]).run().assert_ok();
    machine.assert_image_equals_model("vda");
    let definition = machine.definition();
    for words in ["machine='pc-q35-", &format!("<emulator>{emulator}</emulator>")] {
        assert!(definition.contains(words), "{words}: {definition}");
    }
    env.assert_nothing_left();
}

#[test]
fn machine_type_of_another_family_is_refused_before_writing() {
    let env = Env::new("other family");
    init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(2 * MIB)).define();
    backup(&machine);
    let folder = new_folder(&env, "into").display().to_string();
    let other = if machine.definition().contains("machine='pc-q35-") { ("pc", "q35") } else { ("q35", "pc") };
    for dry_run in [None, Some("--dry-run")] {
        let call = restore(&env, &["--as", "copy", "--into", &folder, "--machine-type", other.0]).args(dry_run);
        let failure = call.run().assert_code(1).record_of("failure");
        assert!(text(&failure, "hint").contains(&format!("--machine-type {}", other.1)), "{failure:#}");
    }
    assert!(names_in(Path::new(&folder)).is_empty());
    restore(&env, &["--as", "copy", "--into", &folder, "--machine-type", other.1]).run().assert_ok();
}

#[test]
fn missing_or_too_small_target_device_is_refused() {
    let env = Env::new("devices");
    init(&env);
    let group = tempfile::Builder::new().prefix("kvmb-test-").tempdir_in("/dev").unwrap();
    let volume = group.path().join("vm1");
    let device = |name: &str, mib: u64| {
        let file = env.path(name);
        fs::File::create(&file).and_then(|file| file.set_len(mib * MIB)).unwrap();
        LoopDevice::on(&file)
    };
    let (first, small, large) = (device("first", 4), device("small", 2), device("large", 8));
    let content = noise(7, 4 * MIB);
    fs::write(&first.path, &content).unwrap();
    symlink(&first.path, &volume).unwrap();
    let disk = format!(
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        volume.display()
    );
    let machine = env.machine("vm").devices_xml(&disk).define();
    let definition = machine.definition();
    backup(&machine);
    env.virsh(&["undefine", "vm"]);
    fs::remove_file(&volume).unwrap();
    let failure = restore(&env, &["--overwrite"]).run().assert_code(1).record_of("failure");
    assert!(text(&failure, "error").contains(volume.to_str().unwrap()), "{failure}");
    assert!(text(&failure, "hint").contains("--into"), "{failure}");
    assert_eq!(names_in(group.path()), [""; 0], "a file was made in /dev");
    symlink(&small.path, &volume).unwrap();
    let failure = restore(&env, &["--overwrite"]).run().assert_code(1).record_of("failure");
    assert!(text(&failure, "error").contains("2.00 MiB"), "{failure}");
    fs::remove_file(&volume).unwrap();
    symlink(&large.path, &volume).unwrap();
    restore(&env, &["--overwrite"]).run().assert_ok();
    assert!(fs::read(&large.path).unwrap()[..content.len()] == content, "other bytes came back");
    assert_eq!(machine.definition(), definition);
    env.assert_nothing_left();
}

#[test]
fn image_without_relabelling_gets_its_owner_and_mode_back() {
    let env = Env::new("owner");
    init(&env);
    let disk = |name: &str, target: &str, label: &str| {
        let image = env.disks().join(name);
        fs::write(&image, noise(3, MIB)).unwrap();
        set_mode(&image, 0o640);
        chown(&image, Some(1234), Some(4321)).unwrap();
        let xml = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'>{label}</source>\
             <target dev='{target}' bus='virtio'/></disk>",
            image.display()
        );
        (image, xml)
    };
    let (kept, kept_xml) = disk("kept.raw", "vda", "<seclabel model='dac' relabel='no'/>");
    let (given, given_xml) = disk("given.raw", "vdb", "");
    let machine = env.machine("vm").devices_xml(&(kept_xml + &given_xml)).define();
    let definition = machine.definition();
    backup(&machine);
    env.virsh(&["undefine", "vm"]);
    let content = DiskModel::from_image(&kept, "raw");
    for image in [&kept, &given] {
        fs::remove_file(image).unwrap();
    }
    restore(&env, &[]).run().assert_ok();
    let looks = |image: &Path| {
        let found = fs::metadata(image).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    // QEMU opens the one as it is; libvirt changes the owner of the other at the start.
    assert_eq!(looks(&kept), (1234, 4321, 0o640));
    assert_eq!(looks(&given), (0, 0, 0o600));
    content.assert_image_equals(&kept, "raw");
    assert_eq!(machine.definition(), definition);
    // A copy is another image, whose owner libvirt changes.
    let into = new_folder(&env, "into");
    restore(&env, &["--as", "copy", "--into", into.to_str().unwrap()]).run().assert_ok();
    assert_eq!(looks(&into.join("copy-vda.raw")), (0, 0, 0o600));
    env.assert_nothing_left();
}

#[test]
fn restore_handles_saved_memory_autostart_and_missing_secrets() {
    let env = Env::with_libvirtd("saved memory");
    init(&env);
    let secret = uuid::Uuid::new_v4().to_string();
    let tpm = format!(
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend></tpm>"
    );
    env.machine("sealed").disk(Disk::raw(MIB)).devices_xml(&tpm).define();
    let output = env.kvmb(["backup", "-r", &env.repo(), "sealed"]).run();
    output.assert_ok();
    let listed = env.kvmb(["restore", "-r", &env.repo(), "sealed", "-n", "--overwrite"]).run().assert_ok();
    assert!(listed.stdout().contains(&format!("not on this host: the secret {secret}")), "{listed}");
    assert!(listed.stdout().contains("virsh secret-define"), "{listed}");

    let machine = env.machine("vm").disk(Disk::qcow2(2 * MIB)).start_paused();
    machine.write("vda", 0, MIB, 0x11);
    env.virsh(&["autostart", "vm"]);
    backup(&machine);
    let model = machine.model("vda");
    machine.write("vda", 0, MIB, 0x22);
    machine.disconnect();
    env.virsh(&["managedsave", "vm"]);
    env.virsh(&["autostart", "vm", "--disable"]);
    let before = fs::read(machine.image("vda")).unwrap();
    let failure = restore(&env, &["--overwrite"]).run().assert_code(5).record_of("failure");
    assert!(text(&failure, "hint").contains("--discard-saved-memory"), "{failure}");
    assert!(fs::read(machine.image("vda")).unwrap() == before, "the image was replaced");
    restore(&env, &["--overwrite", "--discard-saved-memory"]).run().assert_ok();
    model.assert_image_equals(machine.image("vda"), "qcow2");
    let info = env.virsh(&["dominfo", "vm"]);
    let says = |field: &str, word: &str| {
        info.lines().any(|line| line.strip_prefix(field).is_some_and(|value| value.trim() == word))
    };
    assert!(says("Managed save:", "no") && says("Autostart:", "enable"), "{info}");
    // A copy is not started automatically.
    let into = new_folder(&env, "into");
    restore(&env, &["--as", "copy", "--into", into.to_str().unwrap()]).run().assert_ok();
    assert!(env.virsh(&["dominfo", "copy"]).contains("disable"));
    env.assert_nothing_left();
}

#[test]
fn scratch_on_a_mount_hidden_from_qemu_fails_with_a_hint() {
    let env = Env::with_libvirtd("late mount");
    init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(2 * MIB)).start_paused();
    // libvirtd, and therefore QEMU, has its own mount namespace.
    let late = env.tmpfs("late", 64 * MIB);
    let folder = late.path().to_str().unwrap();
    let output = env.kvmb(["backup", "-r", &env.repo(), "--scratch", folder, "vm"]).run().assert_code(1);
    let failure = output.record_of("failure");
    assert_eq!(failure["code"], "not_found", "{failure}");
    assert!(text(&failure, "error").contains("mounted after the machine was started"), "{failure}");
    assert!(text(&failure, "hint").contains("--scratch DIR"), "{failure}");
    assert_eq!(names_in(late.path()), [""; 0]);
    backup(&machine);
    env.assert_nothing_left();
}
