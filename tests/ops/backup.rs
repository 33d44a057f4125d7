//! Backups of real machines: the restored data is that of the instant of the capture, whatever the disks are.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::backups::{
    MIB, assert_restores_to, backup, caught_reading, images_of, init, names_in, new_folder, noise, restore_images, text,
};
use crate::support::guest::Ext4;
use crate::support::storage::LoopDevice;
use crate::support::{Disk, DiskModel, Env, FreezeMode, Machine};
use rustix::process::Signal;
use serde_json::Value;

/// Starts a machine with a qcow2 and a raw disk with `mib` MiB of noise each.
fn busy_machine<'e>(env: &'e Env, mib: u64) -> Machine<'e> {
    let machine = env.machine("vm1").disk(Disk::qcow2(2 * mib * MIB)).disk(Disk::raw(2 * mib * MIB)).start_paused();
    machine.write_bytes("vda", 3 * MIB + 512, &noise(1, mib * MIB));
    machine.write_bytes("vdb", MIB, &noise(2, mib * MIB));
    machine
}

#[test]
fn writes_during_a_backup_are_not_in_its_point() {
    let env = Env::new("during");
    let machine = busy_machine(&env, 48);
    init(&env);
    let before = machine.models();
    let args = ["backup", "vm1", "-r", &env.repo(), "-q"];
    let running = caught_reading(&machine, env.kvmb(args));
    // Overwrite existing and unallocated data while the capture is half read.
    for (target, seed) in [("vda", 3), ("vdb", 4)] {
        machine.write_bytes(target, 0, &noise(seed, 60 * MIB));
        machine.zero(target, 30 * MIB, 4 * MIB);
        machine.write(target, 90 * MIB, 5 * MIB, 0x77);
    }
    running.signal(Signal::CONT);
    let point = running.wait().assert_ok().record_of("point");
    assert_eq!(point["consistency"], "crash");
    assert_restores_to(&env, text(&point, "point"), &before);
    assert!(machine.checkpoints().iter().all(|name| name.starts_with("kvmb-")));
    assert_eq!(machine.status(), "prelaunch");
    env.assert_nothing_left();
    env.restic(env.repo()).check();
}

#[test]
fn read_and_upload_rates_respect_their_limits() {
    let env = Env::new("limits");
    let machine = busy_machine(&env, 4);
    init(&env);
    let seconds = |call: crate::support::Call| {
        let began = Instant::now();
        call.run().assert_ok();
        began.elapsed().as_secs_f64()
    };
    // 8 MiB on both disks together, minus the initial burst.
    let read = seconds(env.kvmb(["backup", "vm1", "-r", &env.repo(), "--limit-read", "4M"]));
    assert!(read > 1.6, "8 MiB were read in {read} seconds");
    let hashed = seconds(env.sh("kvmb snapshot vm1 | kvmb hash --limit-read 4M | kvmb release"));
    assert!(hashed > 1.6, "8 MiB were hashed in {hashed} seconds");
    machine.write_bytes("vda", 0, &noise(5, 4 * MIB));
    let uploaded = seconds(env.kvmb(["backup", "vm1", "-r", &env.repo(), "--limit-upload", "2M"]));
    assert!(uploaded > 1.6, "4 MiB were uploaded in {uploaded} seconds");
    for wrong in ["0", "fast", "1.5M"] {
        env.kvmb(["backup", "vm1", "-r", &env.repo(), "--limit-read", wrong])
            .run()
            .assert_code(2)
            .assert_stderr_has("10M");
    }
}

#[test]
fn constantly_written_machine_is_captured_at_one_instant() {
    let env = Env::new("instant");
    let machine = busy_machine(&env, 24);
    init(&env);
    let ((point, began, ended), log) = machine.while_writing(7, |writer| {
        writer.wait_for_more(20);
        let began = writer.position();
        let point = backup(&machine);
        writer.wait_for_more(20);
        (point, began, writer.position())
    });
    let images = restore_images(&env, text(&point, "point"));
    let shown: Vec<(&str, &Path, &str)> =
        images.iter().map(|(target, image)| (target.as_str(), image.as_path(), "raw")).collect();
    let (first, last) = log.assert_one_instant(&shown);
    // The writer may have been between a write and its entry in the log.
    assert!(
        began <= last + 1 && first < ended,
        "the instant {first}..{last} is not within the backup {began}..{ended}"
    );
}

/// Disks of odd sizes: empty, full, or with data at one end only.
fn odd_disks() -> (Vec<Disk>, Vec<(u64, u8)>) {
    let sizes = [512, 128 * 1024 + 512, 512 * 1024, MIB, MIB + 512, 3 * MIB + 1536];
    let (mut disks, mut plan) = (Vec::new(), Vec::new());
    for size in sizes {
        for kind in 0..4 {
            disks.push(Disk::raw(size));
            plan.push((size, kind));
        }
    }
    for kind in [1, 2] {
        disks.push(Disk::qcow2(2 * MIB + 512 * 3));
        plan.push((2 * MIB + 512 * 3, kind));
    }
    (disks, plan)
}

#[test]
fn twenty_six_disks_of_odd_sizes_restore_identically() {
    let env = Env::new("odd");
    let (disks, plan) = odd_disks();
    let machine = disks.into_iter().fold(env.machine("vm1"), |machine, disk| machine.disk(disk)).start_paused();
    for (target, (size, kind)) in machine.targets().iter().zip(&plan) {
        match kind {
            0 => {}
            1 => machine.write_bytes(target, 0, &noise(*size, *size)),
            2 => machine.write(target, size - 512, 512, 0xee),
            _ => machine.write(target, 0, 512, 0x11),
        }
    }
    init(&env);
    let output = env.sh("kvmb snapshot vm1 -r $R | kvmb hash | kvmb push -r $R | kvmb release").run().assert_ok();
    let point = output.record_of("point");
    let id = text(&point, "point");
    assert_restores_to(&env, id, &machine.models());

    // Additional checks: the hash in the pipeline, restic's dump, the model.
    let restic = env.restic(env.repo());
    let disks = point["disks"].as_array().expect("disks");
    assert_eq!(disks.len(), 26);
    for (disk, (size, _)) in disks.iter().zip(&plan) {
        let target = text(disk, "disk");
        assert_eq!(disk["capacity_bytes"], *size, "{target}");
        assert_eq!(text(disk, "sha256"), machine.model(target).sha256(), "{target}");
    }
    for (target, model) in machine.models().iter().filter(|(target, _)| "vda vdb vdf vdg vdr vdx vdz".contains(*target))
    {
        assert_eq!(restic.dump_sha256(id, &format!("/vm1/{target}/{target}.raw")), model.sha256(), "{target}");
    }
    restic.check();

    // Shut off, the same disks are read in another way, with the same result.
    machine.stop();
    let off = backup(&machine);
    assert_eq!(off["consistency"], "offline");
    assert!(off["disks"].as_array().expect("disks").iter().all(|disk| disk["new_bytes"] == 0), "{off}");
    assert_restores_to(&env, text(&off, "point"), &machine.models());
    machine.targets().iter().for_each(|target| machine.assert_image_equals_model(target));
    env.assert_nothing_left();
}

#[test]
fn odd_machine_and_file_names_are_backed_up_and_restored() {
    let env = Env::new("names");
    let name = "-kvmb test 'vm' \"é\" & <1> $(x)";
    let machine = env
        .machine(name)
        .disk(Disk::qcow2(2 * MIB).file_name("-a b'c\"é&.qcow2"))
        .disk(Disk::raw(MIB).file_name("–=,x:y.raw"))
        .start_paused();
    machine.write("vda", 0, 65536, 0x11);
    machine.write("vdb", 4096, 512, 0x22);
    init(&env);
    let live = backup(&machine);
    assert_eq!(live["machine"], name);
    assert_restores_to(&env, text(&live, "point"), &machine.models());
    machine.stop();
    backup(&machine);

    let folder = new_folder(&env, "-ein Ordner 'ü' ");
    let output = env
        .kvmb(["restore", "-r", &env.repo(), "--as=-copy of 'é' & <2>", "--into"])
        .arg(&folder)
        .args(["--", &format!("{name}@latest")])
        .run()
        .assert_ok();
    let images = images_of(&output.record_of("point"));
    machine.model("vda").assert_image_equals(&images["vda"], "qcow2");
    machine.model("vdb").assert_image_equals(&images["vdb"], "raw");
    assert_eq!(env.disks_of("-copy of 'é' & <2>").len(), 2);
    env.restic(env.repo()).check();
}

#[test]
fn backing_file_is_included_and_left_unchanged() {
    let env = Env::new("backing");
    let base_machine = env.machine("base").disk(Disk::qcow2(8 * MIB)).define();
    base_machine.write("vda", 0, 3 * MIB, 0x11);
    let base = base_machine.image("vda").to_owned();
    let before = fs::read(&base).expect("read");
    let machine = env.machine("vm1").disk(Disk::qcow2(9 * MIB).backing(&base, "qcow2")).start_paused();
    machine.write("vda", MIB, MIB, 0x22);
    machine.zero("vda", 2 * MIB, MIB / 2);
    machine.write("vda", 8 * MIB + 512, 512, 0x33);
    init(&env);
    let live = backup(&machine);
    assert_restores_to(&env, text(&live, "point"), &machine.models());
    machine.stop();
    let off = backup(&machine);
    assert_restores_to(&env, text(&off, "point"), &machine.models());
    assert_eq!(fs::read(&base).expect("read"), before, "the backing file was changed");
    machine.assert_image_equals_model("vda");
}

#[test]
fn block_device_is_backed_up_and_restored() {
    let env = Env::new("block");
    let (from, to) = (env.disks().join("from.img"), env.disks().join("to.img"));
    let mut model = DiskModel::new(6 * MIB);
    model.write(MIB, &noise(1, 2 * MIB));
    fs::write(&from, model.read(0, 6 * MIB)).expect("write");
    fs::write(&to, noise(2, 7 * MIB)).expect("write");
    let (source, target) = (LoopDevice::on(&from), LoopDevice::on(&to));
    let machine = env.machine("vm1").devices_xml(&source.disk_xml("vda")).start_paused();
    init(&env);
    let disks = BTreeMap::from([("vda".to_owned(), model.clone())]);
    let live = backup(&machine);
    assert_restores_to(&env, text(&live, "point"), &disks);
    machine.stop();
    let off = backup(&machine);
    assert_restores_to(&env, text(&off, "point"), &disks);

    // A device exists, so --overwrite is required; one that is too small is refused.
    let restore = |device: &str| {
        env.kvmb(["restore", "vm1", "-r", &env.repo(), "--no-define", "--disk", "vda", "--overwrite", "--to"])
            .arg(format!("vda={device}"))
    };
    let small = env.disks().join("small.img");
    fs::write(&small, noise(3, 5 * MIB)).expect("write");
    let small_device = LoopDevice::on(&small);
    restore(&small_device.path).run().assert_code(1).assert_stderr_has("5.00 MiB");
    assert_eq!(fs::read(&small).expect("read"), noise(3, 5 * MIB));
    env.kvmb(["restore", "vm1", "-r", &env.repo(), "--no-define", "--to", &format!("vda={}", target.path)])
        .run()
        .assert_code(1)
        .assert_stderr_has("--overwrite");
    assert_eq!(fs::read(&to).expect("read"), noise(2, 7 * MIB));
    env.sh(&format!("blockdev --setro {}", target.path)).run().assert_ok();
    restore(&target.path).run().assert_code(1).assert_stderr_has("the device is read-only");
    env.sh(&format!("blockdev --setrw {}", target.path)).run().assert_ok();
    restore(&target.path).run().assert_ok();
    let written = fs::read(&to).expect("read");
    assert!(written[..6 * MIB as usize] == model.read(0, 6 * MIB)[..], "the device does not hold the disk");
    assert!(written[6 * MIB as usize..] == noise(2, 7 * MIB)[6 * MIB as usize..], "written past the disk's end");
}

#[test]
fn nvram_kernel_and_initrd_are_backed_up_and_restored() {
    let env = Env::new("firmware");
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = env.path(name);
        fs::write(&path, bytes).expect("write");
        path
    };
    let code = file("code.fd", &noise(1, 4096));
    let variables = file("vars.fd", &noise(2, 132 * 1024 + 5));
    let kernel = file("vmlinuz", &noise(3, 100_000));
    let initrd = file("initrd", &noise(4, 50_000));
    let machine = env
        .machine("vm1")
        .os_xml(&format!(
            "<loader readonly='yes' type='pflash'>{}</loader><nvram>{}</nvram>\
             <kernel>{}</kernel><initrd>{}</initrd><cmdline>quiet</cmdline>",
            code.display(),
            variables.display(),
            kernel.display(),
            initrd.display()
        ))
        .disk(Disk::qcow2(MIB))
        .define();
    init(&env);
    let point = backup(&machine);
    env.restic(env.repo()).check();
    let dump = |name: &str| env.restic(env.repo()).dump(text(&point, "point"), &format!("/vm1/{name}"));
    assert_eq!(dump("nvram"), noise(2, 132 * 1024 + 5));
    assert_eq!(dump("kernel"), noise(3, 100_000));
    assert_eq!(dump("initrd"), noise(4, 50_000));

    // As another machine: all files are in the new folder, and the definition refers to them.
    let folder = new_folder(&env, "into");
    env.kvmb(["restore", "vm1", "-r", &env.repo(), "--as", "vm2", "--into"]).arg(&folder).run().assert_ok();
    let files: BTreeMap<&str, Vec<u8>> = BTreeMap::from([
        ("vm2_VARS.fd", noise(2, 132 * 1024 + 5)),
        ("vm2-kernel", noise(3, 100_000)),
        ("vm2-initrd", noise(4, 50_000)),
    ]);
    let definition = env.virsh(&["dumpxml", "--inactive", "vm2"]);
    for (name, content) in &files {
        let path = folder.join(name);
        assert_eq!(&fs::read(&path).expect(name), content, "{name}");
        assert!(definition.contains(&format!(">{}<", path.display())), "{name} is not in the definition: {definition}");
    }
    assert!(definition.contains(&code.display().to_string()), "the firmware itself is the host's");

    // In place, with the variables lost: they are restored to their original place; an existing kernel is the host's.
    fs::remove_file(&variables).expect("remove");
    fs::write(&kernel, b"a later kernel").expect("write");
    env.kvmb(["restore", "vm1", "-r", &env.repo(), "--overwrite"]).run().assert_ok();
    assert_eq!(fs::read(&variables).expect("read"), noise(2, 132 * 1024 + 5));
    assert_eq!(fs::read(&kernel).expect("read"), b"a later kernel");
}

#[test]
fn tpm_state_is_backed_up_and_restored() {
    let env = Env::new("tpm");
    let machine = env
        .machine("vm1")
        .devices_xml("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>")
        .disk(Disk::qcow2(MIB))
        .start_paused();
    // The embedded driver stops a machine with a TPM when the next process opens it, so the machine is off from here
    // on.
    let states = env.path("libvirt/lib/swtpm");
    let state_of = |uuid: &str| fs::read(states.join(uuid).join("tpm2/tpm2-00.permall"));
    let uuid = env.virsh(&["domuuid", "vm1"]);
    let state = state_of(&uuid).expect("swtpm has made its state");
    init(&env);
    let point = backup(&machine);
    env.restic(env.repo()).check();
    assert_eq!(env.restic(env.repo()).dump(text(&point, "point"), "/vm1/tpm/tpm2-00.permall"), state);

    // A copy has the state under its own UUID, and starts with it.
    let folder = new_folder(&env, "into");
    env.kvmb(["restore", "vm1", "-r", &env.repo(), "--as", "vm2", "--into"]).arg(&folder).run().assert_ok();
    let copy = env.virsh(&["domuuid", "vm2"]);
    assert_ne!(copy, uuid);
    assert_eq!(state_of(&copy).expect("the state of the copy"), state);
    env.virsh(&["start", "--paused", "vm2"]);
    assert_eq!(state_of(&copy).expect("the state of the copy"), state, "it was made anew");

    // Lost with its machine, it is restored with it.
    env.try_virsh(&["destroy", "vm1"]);
    env.virsh(&["undefine", "vm1", "--checkpoints-metadata"]);
    let _ = fs::remove_dir_all(states.join(&uuid));
    env.kvmb(["restore", "vm1", "-r", &env.repo(), "--overwrite"]).run().assert_ok();
    assert_eq!(state_of(&uuid).expect("the restored state"), state);

    // Without libvirt it is placed beside the images; a failed restore leaves no folder behind.
    let rescue = new_folder(&env, "rescue");
    let beside = |flags: &[&str]| {
        env.kvmb(["restore", "vm1", "-r", &env.repo(), "--no-define", "--into"]).arg(&rescue).args(flags).run()
    };
    beside(&[]).assert_ok();
    assert_eq!(fs::read(rescue.join("vm1-tpm/tpm2-00.permall")).expect("the state beside"), state);
    beside(&[]).assert_code(1);
    fs::remove_dir_all(rescue.join("vm1-tpm")).expect("remove");
    beside(&[]).assert_code(1);
    assert!(!rescue.join("vm1-tpm").exists());
}

/// Returns the space that a folder uses on disk.
fn disk_usage(folder: &Path) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir(folder).expect("read").flatten() {
        let metadata = entry.metadata().expect("stat");
        total += if metadata.is_dir() { disk_usage(&entry.path()) } else { metadata.len() };
    }
    total
}

#[test]
fn data_shared_by_two_machines_is_stored_once() {
    let env = Env::new("dedup");
    let (first, second) = (
        env.machine("vm1").disk(Disk::raw(24 * MIB)).define(),
        env.machine("vm2").disk(Disk::qcow2(40 * MIB)).define(),
    );
    for machine in [&first, &second] {
        machine.write_bytes("vda", MIB, &noise(1, 16 * MIB));
    }
    second.write_bytes("vda", 32 * MIB, &noise(2, MIB));
    init(&env);
    backup(&first);
    let after_first = disk_usage(Path::new(&env.repo()));
    let point = backup(&second);
    assert_eq!(point["disks"][0]["new_bytes"], MIB, "{point}");
    let grown = disk_usage(Path::new(&env.repo())) - after_first;
    assert!(grown < MIB + 64 * 1024, "the second machine took {grown} bytes");
    assert_restores_to(&env, "vm1", &first.models());
    assert_restores_to(&env, "vm2", &second.models());
}

#[test]
fn restic_and_kvmb_share_a_repository() {
    let env = Env::new("restic");
    let restic = env.restic(env.repo());
    restic.init();
    let folder = env.path("files");
    fs::create_dir(&folder).expect("mkdir");
    fs::write(folder.join("a"), noise(9, 300_000)).expect("write");
    restic.backup(&folder);

    let machine = env.machine("vm1").disk(Disk::qcow2(64 * MIB)).start_paused();
    machine.write_bytes("vda", 0, &noise(1, 3 * MIB));
    let first = backup(&machine);
    let first_models = machine.models();
    machine.write_bytes("vda", 50 * MIB, &noise(2, MIB));
    machine.discard("vda", 0, MIB);
    let second = backup(&machine);
    restic.backup(&folder);
    restic.check();

    // Each sees only its own points; restic sees all.
    let points = |env: &Env| env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records_of("point");
    assert_eq!(points(&env).len(), 2);
    assert_eq!(restic.snapshots().len(), 4);
    let tags: Vec<Value> = restic.snapshots().into_iter().filter(|s| s["paths"][0] == "/vm1").collect();
    assert_eq!(tags.len(), 2);
    assert!(tags.iter().all(|s| s["tags"].as_array().is_some_and(|t| t.contains(&"kvmb".into()))));

    // restic restores a disk with its holes - since version 0.15.
    let sparse = restic.call(["restore", "--help"]).run().assert_ok().stdout().contains("--sparse");
    let target = env.path("by-restic");
    let flags: &[&str] = if sparse { &["--sparse"] } else { &[] };
    restic.call(["restore", "--target"]).arg(&target).args(flags).arg(text(&first, "point")).run().assert_ok();
    let image = target.join("vm1/vda/vda.raw");
    first_models["vda"].assert_image_equals(&image, "raw");
    let allocated = fs::metadata(&image).expect("stat").blocks() * 512;
    assert!(!sparse || allocated <= 4 * MIB, "{allocated} bytes are allocated for 3 MiB of data");

    // restic removes and prunes a point; the other points, and the machine's next one, are intact.
    restic.call(["forget", "--prune", text(&first, "point")]).run().assert_ok();
    assert_eq!(points(&env).len(), 1);
    env.kvmb(["verify", "--all", "-r", &env.repo()]).run().assert_ok();
    assert_restores_to(&env, text(&second, "point"), &machine.models());
    machine.write("vda", 10 * MIB, MIB, 0x44);
    let third = backup(&machine);
    assert_restores_to(&env, text(&third, "point"), &machine.models());
    restic.check();

    // Without its tags, a snapshot is not a point; the hint restores them.
    restic.call(["tag", "--set", "weekly", text(&third, "point")]).run().assert_ok();
    let untagged = restic.snapshots().into_iter().find(|snapshot| snapshot["tags"][0] == "weekly").unwrap();
    let verify = env.kvmb(["verify", text(&untagged, "id"), "-r", &env.repo()]).run().assert_code(1);
    let hint = verify.record_of("failure")["hint"].as_str().unwrap().to_owned();
    let command = hint.split_once("restic ").and_then(|(_, rest)| rest.split_once(';')).unwrap().0;
    restic.call(command.split(' ').collect::<Vec<_>>()).run().assert_ok();
    assert_eq!(points(&env).len(), 2);
    assert_restores_to(&env, "vm1", &machine.models());

    // The other way round: restic in a repository that kvmb created.
    let own = env.repo_named("own");
    env.kvmb(["init", "-r", &own]).run().assert_ok();
    let restic = env.restic(&own);
    restic.backup(&folder);
    env.kvmb(["backup", "vm1", "-r", &own]).run().assert_ok();
    restic.check();
    let path = folder.join("a").display().to_string();
    let ids: Vec<Value> = restic.snapshots().into_iter().filter(|s| s["paths"][0] != "/vm1").collect();
    assert_eq!(restic.dump(text(&ids[0], "id"), &path), noise(9, 300_000));
}

#[test]
fn frozen_guest_is_captured_clean_and_keeps_running() {
    let env = Env::new("freeze");
    let guest = env.linux_guest("linux");
    init(&env);
    guest.wait_for_more(2);
    let synced = guest.synced();
    let point = env.kvmb(["backup", "linux", "-r", &env.repo(), "--freeze", "required"]).run().assert_ok();
    let point = point.record_of("point");
    assert_eq!(point["consistency"], "filesystem");
    guest.wait_for_more(3);
    let images = restore_images(&env, text(&point, "point"));
    let file_system = Ext4::open(&images["vda"]);
    assert!(file_system.was_clean(), "frozen, and its journal is not empty");
    file_system.assert_has_files(synced);
    // Without a freeze, the state is that after a power failure, which includes all synced files.
    let synced = guest.synced();
    let output = env.kvmb(["backup", "linux", "-r", &env.repo(), "--freeze", "never"]).run().assert_ok();
    let point = output.record_of("point");
    assert_eq!(point["consistency"], "crash");
    Ext4::open(&restore_images(&env, text(&point, "point"))["vda"]).assert_has_files(synced);
    guest.wait_for_more(2);
    env.assert_nothing_left();
}

#[test]
fn agent_hanging_in_freeze_blocks_neither_backup_nor_guest() {
    let env = Env::new("hang");
    let guest = env.linux_guest_that("linux", FreezeMode::Hangs { seconds: 6 });
    init(&env);
    let synced = guest.synced();
    let args = ["backup", "linux", "-r", &env.repo(), "--freeze-timeout", "2s", "--freeze"];
    env.kvmb(args).arg("required").run().assert_code(1).assert_stderr_has("hint");
    guest.wait_for_more(2);
    let output = env.kvmb(args).arg("auto").run().assert_ok();
    // The agent is asked to freeze once and to thaw several times; each wait is bounded.
    assert!(output.took < Duration::from_secs(60), "{output}");
    let point = output.record_of("point");
    assert_eq!(point["consistency"], "crash");
    guest.wait_for_more(5);
    Ext4::open(&restore_images(&env, text(&point, "point"))["vda"]).assert_has_files(synced);
    // The guest must not be frozen later either, when the agent responds again.
    assert!(guest.ping() || guest.ping());
    guest.wait_for_more(5);
    env.assert_nothing_left();
}

#[test]
fn agent_refusing_to_freeze_fails_only_required_freezes() {
    let env = Env::new("refuses");
    let guest = env.linux_guest_that("linux", FreezeMode::Fails);
    init(&env);
    let args = ["backup", "linux", "-r", &env.repo(), "--freeze"];
    let failure = env.kvmb(args).arg("required").run().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "freeze");
    assert!(env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records().is_empty());
    let output = env.kvmb(args).arg("auto").run().assert_ok().assert_stderr_has("warning: linux: not frozen");
    assert_eq!(output.record_of("point")["consistency"], "crash");
    guest.wait_for_more(2);
    env.assert_nothing_left();
    assert!(names_in(&env.path("tmp")).is_empty());
}

#[test]
fn left_out_disks_are_named_and_no_machines_is_an_error() {
    let env = Env::new("left out");
    init(&env);
    let none = env.kvmb(["backup", "--all", "-r", &env.repo()]).run().assert_code(2).assert_stderr_has(&env.uri());
    assert_eq!(none.record_of("failure")["code"], "usage", "{none}");
    env.kvmb(["backup", "--all", "-n", "-r", &env.repo()]).run().assert_code(2);
    let machine = env
        .machine("vm1")
        .devices_xml("<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>")
        .disk(Disk::qcow2(MIB))
        .disk(Disk::qcow2(MIB))
        .define();
    let args = ["--all", "--exclude-disk", "vdb", "-r", &env.repo()];
    let point = env.kvmb(["backup"]).args(args).run().assert_ok().record_of("point");
    let listed = env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().record_of("point");
    for record in [&point, &listed] {
        let left_out: Vec<(&str, &str)> = record["left_out"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|left_out| (text(left_out, "disk"), text(left_out, "reason")))
            .collect();
        let mut sorted = left_out.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [("sda", "cdrom"), ("vdb", "excluded on request")], "{record}");
    }
    let table = env.kvmb(["points", "-r", &env.repo(), "-o", "table"]).run().assert_ok();
    assert!(table.stdout().contains("without "), "{table}");
    let piped = env.sh("kvmb snapshot vm1 --disk vda -r $R | kvmb push -r $R | kvmb release").run().assert_ok();
    assert_eq!(piped.record_of("point")["left_out"].as_array().map(Vec::len), Some(2), "{piped}");
    drop(machine);
    env.assert_nothing_left();
}

#[test]
fn machines_of_one_run_share_one_index() {
    let env = Env::new("sharedindex");
    init(&env);
    let machines = ["vm1", "vm2", "vm3"].map(|name| env.machine(name).disk(Disk::raw(2 * MIB)).define());
    for (seed, machine) in (1..).zip(&machines) {
        machine.write_bytes("vda", 0, &noise(seed, MIB));
        backup(machine);
    }
    let before = names_in(&PathBuf::from(env.repo()).join("index")).len();
    let output = env.kvmb(["-vv", "backup", "vm?", "--jobs", "2", "--verify", "-r", &env.repo()]).run().assert_ok();
    assert_eq!(output.records_of("point").len(), 3);
    // Each existing index file is read once, and so is each that a machine has added meanwhile.
    let files = |line: &str| line.split_once("files=")?.1.split(' ').next()?.parse::<usize>().ok();
    let read: usize = output.stderr().lines().filter(|line| line.contains("reading index")).filter_map(files).sum();
    assert!(before >= 3 && (before..=before + 3).contains(&read), "{before} were there, {read} were read\n{output}");
}

#[test]
fn disk_too_large_for_its_chunk_list_is_refused_before_reading() {
    let env = Env::new("too large");
    let repo = init(&env);
    // A machine that is off, for which every chunk counts, and one that runs, for which the holes count, so that larger
    // chunks do not help.
    let machines = [
        env.machine("vm1").disk(Disk::qcow2(70 << 40)).define(),
        env.machine("vm2").disk(Disk::qcow2(70 << 40)).start_paused(),
    ];
    for (arguments, hint) in [(&["--chunk-size", "1M"][..], "--chunk-size 4M"), (&[][..], "--exclude-disk")] {
        for machine in &machines {
            machine.disconnect();
            let output = env.kvmb(["backup", machine.name(), "-r", &repo]).args(arguments).run().assert_code(1);
            let failure = output.record_of("failure");
            assert_eq!(failure["code"], "disk", "{output}");
            let (error, hinted) = (text(&failure, "error"), text(&failure, "hint"));
            assert!(error.contains("disk vda is too large") && hinted.contains(hint), "{output}");
            assert!(!output.stderr().contains("libvirt checkpoint"), "no checkpoint stayed: {output}");
            assert_eq!(machine.checkpoints(), [""; 0]);
        }
    }
    // Refused before reading: the repository has no pack.
    let data = PathBuf::from(&repo).join("data");
    let packs: Vec<_> = names_in(&data).iter().flat_map(|folder| names_in(&data.join(folder))).collect();
    assert_eq!(packs, [""; 0]);
    assert_eq!(names_in(&PathBuf::from(&repo).join("snapshots")), [""; 0]);
    drop(machines);
    env.assert_nothing_left();
}
