//! A machine that is off is read exactly as QEMU would open it, with minimal privileges.
//!
//! Images have the owner and mode with which libvirt leaves them: root, 0600.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::chains::*;
use crate::support::change::run;
use crate::support::storage::{LoopDevice, NetworkStorage};
use crate::support::{Disk, DiskModel, Env, set_mode, wait_until_it_listens};

/// Creates a raw file of noise with mode 0600.
fn noise(path: PathBuf, mib: u64) -> PathBuf {
    let mut bytes = vec![0; (mib * MIB) as usize];
    let mut state = mib + path.as_os_str().len() as u64;
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 33) as u8;
    }
    fs::write(&path, bytes).expect("write");
    set_mode(&path, 0o600);
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Returns the content that QEMU sees with these image options.
fn seen(options: &str) -> DiskModel {
    let raw = tempfile::NamedTempFile::new().expect("a file");
    run("qemu-img", &["convert", "-U", "-O", "raw", &format!("json:{options}"), text(raw.path())]);
    DiskModel::from_image(raw.path(), "raw")
}

fn disk_xml(target: &str, format: &str, inside: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/>{inside}<target dev='{target}' \
         bus='virtio'/></disk>"
    )
}

/// Returns the daemon processes of captures, by their command lines.
fn daemons(env: &Env) -> Vec<i32> {
    let processes = crate::support::process::of(&env.path(""));
    processes.iter().filter(|p| p.is("qemu-storage-daemon")).map(|p| p.pid).collect()
}

#[test]
fn every_block_graph_is_read_as_qemu_opens_it() {
    let env = Env::new("graphs");
    let repo = init(&env);
    let path = |name: &str| env.disks().join(name);
    let base = noise(path("base.raw"), 4);
    let network = noise(path("network.raw"), 4);
    let storage = NetworkStorage::of(&network, &env.path("qmp/network.sock"));
    let overlay = |name: &str, backing: &str| {
        let image = path(name);
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", text(&image), "4M"]);
        set_mode(&image, 0o600);
        image
    };
    let mut xml = String::new();
    let mut wanted = BTreeMap::new();
    let mut add = |target: &str, format: &str, inside: String, model: DiskModel| {
        xml += &disk_xml(target, format, &inside);
        wanted.insert(target.to_owned(), model);
    };
    let whole = || DiskModel::from_image(&base, "raw");
    let source = |path: &Path| format!("<source file='{}'/>", text(path));
    let spellings = [
        ("vda", "base.raw".to_owned()),
        ("vdb", format!("file:{}", text(&base))),
        (
            "vdc",
            format!("json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}", text(&base)),
        ),
        ("vdd", format!("json:{{\"driver\":\"file\",\"filename\":\"{}\"}}", text(&base))),
    ];
    for (target, spelling) in spellings {
        add(target, "qcow2", source(&overlay(&format!("{target}.qcow2"), &spelling)), whole());
    }
    let on_network = overlay("vde.qcow2", &format!("nbd+unix:///?socket={}", text(&env.path("qmp/network.sock"))));
    add("vde", "qcow2", source(&on_network), DiskModel::from_image(&network, "raw"));
    for (target, format) in [("vdf", "vdi"), ("vdh", "vmdk"), ("vdi", "qed"), ("vdj", "vpc")] {
        let image = path(&format!("{target}.{format}"));
        run("qemu-img", &["convert", "-f", "raw", "-O", format, text(&base), text(&image)]);
        set_mode(&image, 0o600);
        let model = DiskModel::from_image(&image, format);
        add(target, format, source(&image), model);
    }
    // A part of a file that is itself an image.
    let inner = path("inner.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&base), text(&inner)]);
    let box_ = path("box.img");
    let image = fs::read(&inner).expect("read");
    fs::write(&box_, [vec![0xee; MIB as usize], image.clone(), vec![0xee; 512]].concat()).expect("write");
    set_mode(&box_, 0o600);
    let slice = format!(
        "<source file='{}'><slices><slice type='storage' offset='{MIB}' size='{}'/></slices></source>",
        text(&box_),
        image.len()
    );
    add("vdk", "qcow2", slice, whole());
    // The definition names other files than the headers do.
    let other = noise(path("other.raw"), 4);
    let top = overlay("vdl.qcow2", "/nowhere/gone.raw");
    let chain = format!(
        "{}<backingStore type='file'><format type='raw'/><source file='{}'/><backingStore/></backingStore>",
        source(&top),
        text(&other)
    );
    add("vdl", "qcow2", chain, DiskModel::from_image(&other, "raw"));
    let alone = overlay("vdm.qcow2", "/nowhere/gone.raw");
    let nothing =
        format!(r#"{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}},"backing":null}}"#, text(&alone));
    add("vdm", "qcow2", format!("{}<backingStore/>", source(&alone)), seen(&nothing));
    let machine = env.machine("vm").devices_xml(&xml).define();
    let point = backup(&machine, &repo);
    assert_restores(&env, &repo, &point, &wanted);
    // The overlays have bitmaps, and their headers are otherwise unchanged.
    let info = run("qemu-img", &["info", "-f", "qcow2", text(&path("vdl.qcow2"))]);
    assert!(info.contains("/nowhere/gone.raw") && info.contains("kvmb-"), "{info}");
    drop(storage);
    env.assert_nothing_left();
}

#[test]
fn root_owned_images_are_read_as_qemu_user_with_one_capability() {
    let env = Env::new("as user");
    let image = noise(env.disks().join("root.raw"), 4);
    let behind = noise(env.disks().join("behind.raw"), 4);
    let device = LoopDevice::on(&behind);
    run("chown", &["root:disk", &device.path]);
    run("chmod", &["0660", &device.path]);
    let block = format!(
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{}'/><target dev='vdb' \
         bus='virtio'/></disk>",
        &device.path
    );
    let files = disk_xml("vda", "raw", &format!("<source file='{}'/>", text(&image)));
    env.machine("vm").devices_xml(&format!("{files}{block}")).define();
    let capture = env.kvmb(["snapshot", "vm"]).run().assert_ok();
    let [daemon] = daemons(&env)[..] else { panic!("one process for all disks: {:?}", daemons(&env)) };
    let status = fs::read_to_string(format!("/proc/{daemon}/status")).expect("status");
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim().to_owned();
    assert!(!field("Uid:").starts_with('0'), "{status}");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000004", "{status}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    let hashes = env.kvmb(["hash"]).stdin(&capture.stdout).run().assert_ok();
    for (disk, file) in hashes.records().iter().zip([&image, &behind]) {
        let sum = run("sha256sum", &[text(file)]);
        assert_eq!(disk["sha256"].as_str(), sum.split_whitespace().next(), "{disk}");
    }
    env.kvmb(["release", "vm"]).run().assert_ok();
    env.assert_nothing_left();
}

#[test]
fn files_named_only_in_headers_need_qemu_user_permissions() {
    let env = Env::new("header refers");
    let repo = init(&env);
    let path = |name: &str| env.disks().join(name);
    let (top, data) = (path("top.qcow2"), path("data.raw"));
    let option = format!("data_file={}", text(&data));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &option, text(&top), "4M"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 0x33 1M 1M", text(&top)]);
    let flat = path("flat.vmdk");
    run("qemu-img", &["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", text(&flat), "4M"]);
    run("qemu-io", &["-f", "vmdk", "-c", "write -P 0x44 2M 1M", text(&flat)]);
    let extent = path("flat-flat.vmdk");
    let of = |image: &Path| format!("<source file='{}'/>", text(image));
    env.machine("data").devices_xml(&disk_xml("vda", "qcow2", &of(&top))).define();
    env.machine("extents").devices_xml(&disk_xml("vda", "vmdk", &of(&flat))).define();
    let given = format!(
        "<source file='{}'><dataStore type='file'><format type='raw'/><source file='{}'/></dataStore></source>",
        text(&top),
        text(&data)
    );
    env.machine("given").devices_xml(&disk_xml("vda", "qcow2", &given)).define();
    set_mode(&top, 0o600);
    set_mode(&flat, 0o644);
    let backup = |machine: &str| env.kvmb(["backup", "-r", &repo, machine]).run();
    let restored = |machine: &str, image: &Path, format: &str| {
        let point = backup(machine).assert_ok().record_of("point");
        let model = DiskModel::from_image(image, format);
        assert_restores(&env, &repo, &point, &BTreeMap::from([("vda".to_owned(), model)]));
    };
    for mode in [0o600, 0o644] {
        [&data, &extent].map(|file| set_mode(file, mode)).iter().for_each(drop);
        for (machine, image, format) in [("data", &top, "qcow2"), ("extents", &flat, "vmdk")] {
            if mode == 0o644 {
                restored(machine, image, format);
                continue;
            }
            let output = backup(machine).assert_code(1);
            let failure = output.record_of("failure");
            assert_eq!(failure["code"], "permission", "{output}");
            assert!(failure["hint"].as_str().expect("a hint").contains("header refers"), "{output}");
            // Also without a capture.
            let disks = env.kvmb(["disks", machine]).run().assert_ok();
            let output = env.kvmb(["hash"]).stdin(&disks.stdout).run().assert_code(1);
            assert_eq!(output.record_of("failure")["code"], "permission", "{output}");
        }
        // The definition says that the file belongs to the machine.
        restored("given", &top, "qcow2");
    }
    env.assert_nothing_left();
}

#[test]
fn luks_passphrases_from_libvirt_or_file_stay_off_command_lines() {
    let env = Env::with_libvirtd("secrets");
    let repo = init(&env);
    let base = noise(env.disks().join("plain.raw"), 4);
    let key = env.path("tmp/key");
    fs::write(&key, "open sesame").expect("write");
    set_mode(&key, 0o600);
    let object = format!("secret,id=k,file={}", text(&key));
    let luks = env.disks().join("vda.luks");
    let inside = env.disks().join("vdb.qcow2");
    let convert = |format: &str, options: &str, image: &Path| {
        run(
            "qemu-img",
            &["convert", "--object", &object, "-f", "raw", "-O", format, "-o", options, text(&base), text(image)],
        );
        set_mode(image, 0o600);
    };
    let quick = "iter-time=10";
    convert("luks", &format!("key-secret=k,{quick}"), &luks);
    convert("qcow2", &format!("encrypt.format=luks,encrypt.key-secret=k,encrypt.{quick}"), &inside);
    let secret = |private: &str, usage: &str| {
        let xml = env.path("tmp/secret.xml");
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a UUID").trim().to_owned();
        let secret = format!(
            "<secret ephemeral='no' private='{private}'><uuid>{uuid}</uuid><usage type='volume'>\
             <volume>{usage}</volume></usage></secret>"
        );
        fs::write(&xml, secret).expect("write");
        env.virsh(&["secret-define", text(&xml)]);
        env.virsh(&["secret-set-value", &uuid, "--file", text(&key), "--plain"]);
        uuid
    };
    let (public, private) = (secret("no", "public"), secret("yes", "private"));
    let source = |image: &Path, secret: &str| {
        format!(
            "<source file='{}'><encryption format='luks'><secret type='passphrase' {secret}/></encryption></source>",
            text(image)
        )
    };
    let xml = |secret: &str| {
        disk_xml("vda", "raw", &source(&luks, secret)) + &disk_xml("vdb", "qcow2", &source(&inside, secret))
    };
    env.machine("public").devices_xml(&xml(&format!("uuid='{public}'"))).define();
    env.machine("usage").devices_xml(&xml("usage='public'")).define();
    env.machine("private").devices_xml(&xml(&format!("uuid='{private}'"))).define();
    let plain = || DiskModel::from_image(&base, "raw");
    let wanted = || BTreeMap::from([("vda".to_owned(), plain()), ("vdb".to_owned(), plain())]);
    for machine in ["public", "usage"] {
        let point = env.kvmb(["backup", "-r", &repo, machine]).run().assert_ok().record_of("point");
        assert_restores(&env, &repo, &point, &wanted());
    }
    let output = env.kvmb(["backup", "-r", &repo, "private"]).run().assert_code(1);
    let failure = output.record_of("failure");
    assert_eq!(failure["code"], "permission", "{output}");
    assert!(failure["hint"].as_str().expect("a hint").contains("--luks-key-file vda=FILE"), "{output}");
    let files = ["vda", "vdb"].map(|disk| format!("{disk}={}", text(&key)));
    let keys = ["--luks-key-file", &files[0], "--luks-key-file", &files[1]];
    let other = env.password_file().display().to_string();
    let wrong = ["--luks-key-file", &files[0], "--luks-key-file", &format!("vdb={other}")];
    let failure = env.kvmb(["backup", "-r", &repo, "private"]).args(wrong).run().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "wrong_password", "{failure}");
    assert!(failure["hint"].as_str().expect("a hint").contains("--luks-key-file DISK=FILE"), "{failure}");
    env.kvmb(["snapshot", "private"]).args(keys).run().assert_ok();
    for daemon in daemons(&env) {
        let line = fs::read_to_string(format!("/proc/{daemon}/cmdline")).expect("cmdline");
        assert!(line.contains("\"secret\"") && !line.contains("sesame"), "{line}");
    }
    let left: Vec<_> = run("find", &[text(&env.path("run")), "-name", "*.secret"]).lines().map(str::to_owned).collect();
    assert!(left.is_empty(), "{left:?}");
    env.kvmb(["release", "private"]).run().assert_ok();
    let point = env.kvmb(["backup", "-r", &repo, "private"]).args(keys).run().assert_ok().record_of("point");
    assert_restores(&env, &repo, &point, &wanted());
    env.assert_nothing_left();
}

#[test]
fn missing_storage_daemon_error_names_the_package() {
    let env = Env::new("no daemon");
    let repo = init(&env);
    env.machine("vm").disk(Disk::raw(MIB)).define();
    let output = env.kvmb_without(&["qemu-storage-daemon"], ["backup", "-r", &repo, "vm"]).run().assert_code(1);
    let failure = output.record_of("failure");
    assert_eq!(failure["code"], "unsupported", "{output}");
    assert!(failure["hint"].as_str().expect("a hint").contains("apt install qemu-"), "{output}");
    env.assert_nothing_left();
}

#[test]
fn image_held_by_a_writer_is_busy_and_the_process_is_named() {
    let env = Env::new("held");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).define();
    let socket = env.path("tmp/writer.sock");
    let image = text(machine.image("vda")).to_owned();
    let mut writer = std::process::Command::new("qemu-nbd")
        .args(["--persistent", "--format=qcow2", "--socket", text(&socket), &image])
        .spawn()
        .expect("qemu-nbd");
    wait_until_it_listens(&socket);
    let output = try_backup(&machine, &repo, &[]).assert_code(5);
    let failure = output.record_of("failure");
    assert_eq!(failure["code"], "busy", "{output}");
    let error = failure["error"].as_str().expect("an error");
    assert!(error.contains(&format!("qemu-nbd (process {})", writer.id())), "{error}");
    writer.kill().and_then(|()| writer.wait()).expect("end");
    verified(&machine, &repo);
    finish(&env, &[&repo]);
}

#[test]
fn backup_and_hash_of_a_slice_read_only_the_slice() {
    let env = Env::new("slice on");
    let repo = init(&env);
    let whole = noise(env.disks().join("box.img"), 8);
    let inside = format!(
        "<source file='{}'><slices><slice type='storage' offset='{MIB}' size='{}'/></slices></source>",
        text(&whole),
        4 * MIB
    );
    let machine = env.machine("vm").devices_xml(&disk_xml("vda", "raw", &inside)).start_paused();
    let part = env.disks().join("part.raw");
    fs::write(&part, &fs::read(&whole).expect("read")[MIB as usize..5 * MIB as usize]).expect("write");
    let wanted = BTreeMap::from([("vda".to_owned(), DiskModel::from_image(&part, "raw"))]);
    let point = backup(&machine, &repo);
    assert_eq!(disk_of(&point, "vda")["capacity_bytes"], 4 * MIB);
    assert_restores(&env, &repo, &point, &wanted);
    // The same for `hash`, with the machine on or off.
    let sum = run("sha256sum", &[text(&part)]);
    for (is_on, consistency) in [(true, "moving"), (false, "offline")] {
        if !is_on {
            machine.stop();
        }
        let disks = env.kvmb(["disks", "vm"]).run().assert_ok();
        let disk = env.kvmb(["hash"]).stdin(&disks.stdout).run().assert_ok().record_of("disk");
        assert_eq!(disk["consistency"], consistency, "{disk}");
        assert_eq!(disk["sha256"].as_str(), sum.split_whitespace().next(), "{disk}");
    }
    env.assert_nothing_left();
}
