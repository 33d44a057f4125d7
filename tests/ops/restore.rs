//! Restores: what is refused, what is replaced and when, and that a failure changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::backups::{MIB, backup, images_of, init, names_in, new_folder, noise, stopped_at, text};
use crate::support::call::{Call, Output, Running};
use crate::support::tmpfs::Tmpfs;
use crate::support::{Disk, DiskModel, Env, Machine, wait_until};
use kvmb::failpoint::Failpoint;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Creates a machine that is off, with a qcow2 and a raw disk, and one point in the repository.
fn machine_with_a_point(env: &Env) -> Machine<'_> {
    let machine = env.machine("vm1").disk(Disk::qcow2(12 * MIB)).disk(Disk::raw(5 * MIB + 512)).define();
    machine.write_bytes("vda", MIB, &noise(1, 3 * MIB));
    machine.write_bytes("vdb", 512, &noise(2, 2 * MIB));
    init(env);
    backup(&machine);
    machine
}

fn restore(env: &Env, args: &[&str]) -> Call {
    env.kvmb(["restore", "-r", &env.repo()]).args(args)
}

/// Returns everything that might be left behind in the folder of the images.
fn hidden_files(folder: &Path) -> Vec<String> {
    names_in(folder).into_iter().filter(|name| name.starts_with('.')).collect()
}

/// Returns the images' bytes.
fn images(machine: &Machine) -> BTreeMap<String, Vec<u8>> {
    machine.targets().into_iter().map(|t| (t.clone(), fs::read(machine.image(&t)).expect("read"))).collect()
}

fn inodes(machine: &Machine) -> BTreeMap<String, u64> {
    machine.targets().into_iter().map(|t| (t.clone(), fs::metadata(machine.image(&t)).expect("stat").ino())).collect()
}

/// The UUID of another machine.
const STANDBY: &str = "3b1f0a52-6c1e-4b5f-9a52-0d2f9c3a7e11";

#[test]
fn in_place_restore_brings_back_disks_and_definition() {
    let env = Env::new("in place");
    let machine = machine_with_a_point(&env);
    let (then, definition) = (machine.models(), machine.definition());
    // Changes since then: other content, another definition, and an owner and a mode that must be kept.
    machine.write("vda", 0, 4 * MIB, 0x55);
    machine.write("vdb", 0, MIB, 0x66);
    let changed = definition.replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<");
    assert_ne!(changed, definition);
    fs::write(env.path("changed.xml"), changed).expect("write");
    env.virsh(&["define", &env.path("changed.xml").display().to_string()]);
    fs::set_permissions(machine.image("vda"), fs::Permissions::from_mode(0o640)).expect("chmod");
    std::os::unix::fs::chown(machine.image("vda"), Some(1234), Some(4321)).expect("chown");

    restore(&env, &["vm1"]).run().assert_code(1).assert_stderr_has("already exists").assert_stderr_has("--overwrite");
    machine.assert_image_equals_model("vda");
    let record = restore(&env, &["vm1", "--overwrite"]).run().assert_ok().record_of("point");
    assert_eq!(record["restored_to"]["machine"], "vm1");
    assert_eq!(record["restored_to"]["uuid"], machine.uuid());
    for (target, model) in &then {
        model.assert_image_equals(machine.image(target), machine.format(target));
    }
    assert_eq!(machine.definition(), definition);
    let found = fs::metadata(machine.image("vda")).expect("stat");
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o640, 1234, 4321));
    assert_eq!(hidden_files(&env.disks()), [""; 0]);

    // With one more command it runs again.
    restore(&env, &["vm1", "--overwrite", "--start"]).run().assert_ok();
    assert!(machine.qemu_pid().is_some(), "it was not started");
}

#[test]
fn running_machine_is_never_overwritten() {
    let env = Env::new("running");
    let machine = machine_with_a_point(&env);
    let (before, models) = (inodes(&machine), machine.models());
    machine.start_paused();
    let refused = |args: &[&str]| {
        let failure = restore(&env, args).run().assert_code(1).record_of("failure");
        assert_eq!(failure["code"], "running", "{args:?}");
    };
    refused(&["vm1", "--overwrite"]);
    // Without libvirt, QEMU's own locks show it, also for a single disk and for any path.
    refused(&["vm1", "--overwrite", "--no-define"]);
    refused(&["vm1", "--overwrite", "--disk", "vdb"]);
    let link = env.path("link.qcow2");
    symlink(machine.image("vda"), &link).expect("link");
    let to_link = format!("vda={}", link.display());
    refused(&["vm1", "--overwrite", "--no-define", "--disk", "vda", "--to", &to_link]);
    // Not even if the images are restored elsewhere.
    let folder = new_folder(&env, "beside").display().to_string();
    refused(&["vm1", "--overwrite", "--into", &folder]);
    assert_eq!(names_in(Path::new(&folder)), [""; 0]);
    machine.stop();
    // The bytes of a qcow2 file change when QEMU opens its bitmaps; the guest's view and the file itself must not.
    assert_eq!(inodes(&machine), before, "the images were replaced");
    for (target, model) in &models {
        model.assert_image_equals(machine.image(target), machine.format(target));
    }
    // When the machine is off, the symbolic link is followed and its target replaced.
    machine.write("vda", 0, 65536, 0x11);
    restore(&env, &["vm1", "--overwrite", "--no-define", "--disk", "vda", "--to", &to_link]).run().assert_ok();
    assert!(fs::symlink_metadata(&link).expect("stat").is_symlink());
    let read = crate::support::DiskModel::from_image(machine.image("vda"), "qcow2");
    assert_eq!(read.read(0, 512), [0; 512]);
}

/// Returns the values of an attribute in a definition.
fn all_of(definition: &str, element: &str, attribute: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(definition).expect("XML");
    let found = document.descendants().filter(|node| node.has_tag_name(element));
    found.filter_map(|node| node.attribute(attribute).map(str::to_owned)).collect()
}

#[test]
fn restored_copy_gets_its_own_name_uuid_macs_and_images() {
    let env = Env::new("as");
    let machine = env
        .machine("vm1")
        .disk(Disk::qcow2(4 * MIB))
        .disk(Disk::raw(MIB + 512))
        .devices_xml(
            "<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>\
             <interface type='user'><mac address='52:54:00:00:00:02'/><model type='virtio'/></interface>",
        )
        .define();
    machine.write_bytes("vda", 0, &noise(1, MIB));
    machine.write_bytes("vdb", 0, &noise(2, MIB));
    init(&env);
    backup(&machine);
    let folder = new_folder(&env, "into");
    let into = folder.display().to_string();

    // A new machine needs a place for its disks, and an unused name.
    restore(&env, &["vm1", "--as", "vm2"]).run().assert_code(1).assert_stderr_has("--into");
    // A missing folder may be on a disk that is not mounted.
    let missing = env.path("not there").display().to_string();
    let failure = restore(&env, &["vm1", "--as", "vm2", "--into", &missing]).run().assert_code(1).record_of("failure");
    assert_eq!(
        (&failure["code"], &failure["error"]),
        (&json!("not_found"), &json!(format!("folder {missing} does not exist")))
    );
    assert!(failure["hint"].as_str().unwrap().contains(&format!("mkdir -p '{missing}'")), "{failure}");
    let file = env.path("a file").display().to_string();
    fs::write(&file, "").expect("write");
    let failure = restore(&env, &["vm1", "--as", "vm2", "--into", &file]).run().assert_code(2).record_of("failure");
    assert_eq!((&failure["code"], &failure["error"]), (&json!("usage"), &json!(format!("{file} is not a folder"))));
    let null = ["vm1", "--as", "vm2", "--into", "/dev/null"];
    restore(&env, &null).run().assert_code(2).assert_stderr_has("/dev/null is not a folder");
    restore(&env, &["vm1", "--into", &into]).run().assert_code(1).assert_stderr_has("machine vm1 already exists");
    assert_eq!(names_in(&folder), [""; 0]);

    let record = restore(&env, &["vm1@latest", "--as", "vm2", "--into", &into]).run().assert_ok().record_of("point");
    assert_eq!(record["machine"], "vm1");
    let to = &record["restored_to"];
    assert_eq!(to["machine"], "vm2");
    assert_eq!(to["started"], false);
    let definition = env.virsh(&["dumpxml", "--inactive", "vm2"]);
    assert!(definition.contains("<name>vm2</name>"), "{definition}");
    assert!(!definition.contains(machine.uuid()) && definition.contains(text(to, "uuid")));
    let macs = all_of(&definition, "mac", "address");
    assert_eq!(macs.len(), 2);
    assert_ne!(macs[0], macs[1]);
    for (mac, old) in macs.iter().zip(["52:54:00:00:00:01", "52:54:00:00:00:02"]) {
        assert!(mac.starts_with("52:54:00:") && mac != old, "{mac}");
    }
    assert_eq!(names_in(&folder), ["vm2-vda.qcow2", "vm2-vdb.raw"]);
    for disk in env.disks_of("vm2") {
        assert!(disk.image.starts_with(&folder), "{disk:?}");
        machine.model(&disk.target).assert_image_equals(&disk.image, &disk.format);
        assert_eq!(fs::metadata(&disk.image).expect("stat").mode() & 0o777, 0o600);
        assert_eq!(disk.format, machine.format(&disk.target));
    }
    // The raw image is sparse, and the first machine is unchanged.
    assert!(env.virsh(&["dumpxml", "--inactive", "vm1"]).contains("52:54:00:00:00:01"));
    machine.assert_image_equals_model("vda");

    // Again under that name: only with --overwrite, and never over another machine that happens to have it.
    restore(&env, &["vm1", "--as", "vm2", "--into", &into]).run().assert_code(1).assert_stderr_has("already exists");
    let other = new_folder(&env, "other").display().to_string();
    let failure = restore(&env, &["vm1", "--as", "vm2", "--overwrite", "--into", &other]).run().assert_code(1);
    let failure = failure.assert_stderr_has("another machine is already named vm2").record_of("failure");
    assert_eq!(failure["code"], "exists");
    assert_eq!(names_in(Path::new(&other)), [""; 0]);
}

#[test]
fn single_disks_are_restored_to_the_given_paths() {
    let env = Env::new("to");
    let machine = machine_with_a_point(&env);
    let folder = new_folder(&env, "into");
    let path = |name: &str| folder.join(name);
    let to = |disk: &str, name: &str| format!("{disk}={}", path(name).display());

    // One of two disks, in another format; a partial machine is not defined.
    let record = restore(&env, &["vm1", "--disk", "vda", "--format", "raw", "--to", &to("vda", "a.img")]);
    let record = record.run().assert_ok().record_of("point");
    assert_eq!(images_of(&record).keys().collect::<Vec<_>>(), ["vda"]);
    machine.model("vda").assert_image_equals(&path("a.img"), "raw");
    restore(&env, &["vm1", "--disk", "vdb", "--format", "qcow2", "--to", &to("vdb", "b.img")]).run().assert_ok();
    machine.model("vdb").assert_image_equals(&path("b.img"), "qcow2");
    assert_eq!(names_in(&folder), ["a.img", "b.img"]);

    // An existing file, a folder, a missing folder, an unknown disk, and twice the same place with different spellings.
    let refused = |args: &[&str], code: &str, words: &str| {
        let output = restore(&env, args).run().assert_code(1).assert_stderr_has(words);
        assert_eq!(output.record_of("failure")["code"], code, "{output}");
    };
    refused(&["vm1", "--disk", "vda", "--to", &to("vda", "b.img")], "exists", "--overwrite");
    refused(&["vm1", "--disk", "vda", "--to", &to("vda", "")], "failed", "neither a file nor a block device");
    refused(&["vm1", "--disk", "vda", "--to", &to("vda", "no/a.img")], "not_found", "no");
    refused(&["vm1", "--disk", "vdx"], "not_found", "no disk \"vdx\"");
    refused(&["vm1", "--no-define", "--to", &to("vdx", "x")], "not_found", "no disk \"vdx\"");
    symlink(&folder, env.path("alias")).expect("link");
    for other in
        [path("c.img"), path("../").join(folder.file_name().expect("name")).join("c.img"), env.path("alias/c.img")]
    {
        let other = format!("vdb={}", other.display());
        refused(
            &["vm1", "--no-define", "--to", &to("vda", "c.img"), "--to", &other],
            "failed",
            "would be written there as well",
        );
    }
    // The link may lead to storage that is not mounted.
    symlink(path("not-mounted.img"), path("link.img")).expect("link");
    for overwrite in [None, Some("--overwrite")] {
        let link = to("vda", "link.img");
        let args: Vec<&str> = ["vm1", "--disk", "vda", "--to", &link].into_iter().chain(overwrite).collect();
        refused(&args, "failed", "not-mounted.img, which does not exist");
    }
    fs::remove_file(path("link.img")).expect("remove");
    let definition = to("vda", "vm1.xml");
    refused(
        &["vm1", "--no-define", "--into", &folder.display().to_string(), "--to", &definition],
        "failed",
        "would be written there as well",
    );
    env.kvmb(["restore", "-r", &env.repo(), "vm1", "--to", "vda"]).run().assert_code(2);
    env.kvmb(["restore", "-r", &env.repo(), "vm1", "--start", "--no-define"]).run().assert_code(2);
    assert_eq!(names_in(&folder), ["a.img", "b.img"]);
    machine.assert_image_equals_model("vda");
}

#[test]
fn disk_of_another_machine_is_not_overwritten() {
    let env = Env::new("othersdisk");
    let machine = machine_with_a_point(&env);
    let other = env.machine("vm2").disk(Disk::raw(2 * MIB)).define();
    other.write_bytes("vda", 0, &noise(7, MIB));
    let before = images(&other);
    let link = env.path("link");
    symlink(other.image("vda"), &link).expect("link");
    let folder = new_folder(&env, "into").display().to_string();
    for path in [other.image("vda"), &link] {
        let to = format!("vda={}", path.display());
        for dry_run in [None, Some("--dry-run")] {
            let call = restore(&env, &["vm1", "--as", "copy", "--into", &folder, "--overwrite", "--to", &to]);
            let failure = call.args(dry_run).run().assert_code(1).record_of("failure");
            assert!(text(&failure, "error").ends_with("it is a disk of vm2"), "{failure:#}");
        }
    }
    assert_eq!(images(&other), before);
    // A machine may share a disk with others in its own place.
    let standby = machine.definition().replace("<name>vm1<", "<name>standby<").replace(machine.uuid(), STANDBY);
    fs::write(env.path("standby.xml"), standby).expect("write");
    env.virsh(&["define", &env.path("standby.xml").display().to_string()]);
    restore(&env, &["vm1", "--overwrite"]).run().assert_ok();
}

#[test]
fn template_is_not_overwritten_while_a_clone_is_based_on_it() {
    let env = Env::new("template");
    let template = env.machine("template").disk(Disk::qcow2(4 * MIB)).define();
    template.write_bytes("vda", 0, &noise(3, MIB));
    init(&env);
    backup(&template);
    template.write("vda", 0, MIB, 0x77);
    // libvirt finds the template in the header of the clone's image, not in its definition.
    let base = template.image("vda");
    let clone = env.machine("clone").disk(Disk::qcow2(4 * MIB).backing(base, "qcow2")).define();
    assert!(!clone.definition().contains("backingStore"));
    let before = images(&template);
    for args in [&["template"][..], &["template", "--live"]] {
        for dry_run in [None, Some("--dry-run")] {
            let failure = restore(&env, args).arg("--overwrite").args(dry_run).run().assert_code(1);
            let failure = failure.record_of("failure");
            assert!(text(&failure, "error").ends_with("disk vda of clone is based on it"), "{failure:#}");
        }
    }
    assert_eq!(images(&template), before);
    // An image that was moved away is not overwritten.
    fs::rename(base, base.with_extension("old")).expect("rename");
    restore(&env, &["template", "--overwrite"]).run().assert_ok();
}

#[test]
fn definition_file_is_written_with_mode_0600() {
    let env = Env::new("file");
    let machine = machine_with_a_point(&env);
    let folder = new_folder(&env, "into");
    let into = folder.display().to_string();
    let args = ["vm1", "--no-define", "--as", "vm2", "--format", "qcow2", "--into", &into];
    // A defined machine does not matter if nothing will be defined.
    let record = restore(&env, &args).run().assert_ok().record_of("point");
    let file = folder.join("vm2.xml");
    assert_eq!(record["restored_to"]["definition"], file.display().to_string());
    assert_eq!(record["restored_to"]["machine"], Value::Null);
    assert_eq!(fs::metadata(&file).expect("stat").mode() & 0o7777, 0o600);
    // It becomes private when it replaces a readable file.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
    restore(&env, &args).run().assert_code(1).assert_stderr_has("already exists");
    restore(&env, &args).arg("--overwrite").run().assert_ok();
    assert_eq!(fs::metadata(&file).expect("stat").mode() & 0o7777, 0o600);
    assert_eq!(names_in(&folder), ["vm2-vda.qcow2", "vm2-vdb.qcow2", "vm2.xml"]);
    assert!(!env.virsh(&["list", "--all", "--name"]).contains("vm2"));
    // libvirt accepts it unchanged.
    env.virsh(&["define", &file.display().to_string()]);
    for disk in env.disks_of("vm2") {
        assert_eq!(disk.format, "qcow2");
        machine.model(&disk.target).assert_image_equals(&disk.image, "qcow2");
    }
}

#[test]
fn restore_dry_run_writes_nothing() {
    let env = Env::new("dry");
    let machine = machine_with_a_point(&env);
    let folder = new_folder(&env, "into");
    let into = folder.display().to_string();
    let output = restore(&env, &["vm1", "-n", "--as", "vm2", "--into", &into, "--start"]).run().assert_ok();
    let actions = output.records_of("action");
    assert_eq!(actions.len(), 3, "{output}");
    assert!(actions.iter().all(|action| action["dry_run"] == true && action["action"] == "restore"), "{output}");
    assert_eq!(names_in(&folder), [""; 0]);
    assert!(!env.virsh(&["list", "--all", "--name"]).contains("vm2"));
    // A dry run refuses what a restore would refuse.
    restore(&env, &["vm1", "-n"]).run().assert_code(1).assert_stderr_has("already exists");
    let replaced = restore(&env, &["vm1", "-n", "--overwrite"]).run().assert_ok().records_of("action");
    assert!(text(&replaced[0], "reason").contains("replaced"), "{}", replaced[0]);
    machine.assert_image_equals_model("vda");
}

#[test]
fn restore_drops_only_own_checkpoints() {
    let env = Env::new("checkpoints");
    let machine = env.machine("vm1").disk(Disk::qcow2(4 * MIB)).start_paused();
    machine.write("vda", 0, MIB, 0x11);
    init(&env);
    backup(&machine);
    for name in ["kvmb-of-ours", "somebody-elses"] {
        env.virsh(&["checkpoint-create-as", "vm1", name, "--diskspec", "vda,checkpoint=bitmap"]);
    }
    machine.stop();
    restore(&env, &["vm1", "--overwrite"]).run().assert_ok();
    assert_eq!(machine.checkpoints(), ["somebody-elses"]);
    machine.start_paused();
    backup(&machine);
}

/// Starts a restore in place and stops it halfway: a part of the new image is written.
fn caught_writing(env: &Env, args: &[&str]) -> Running {
    for _ in 0..5 {
        let mut running = restore(env, args).arg("-q").spawn();
        let mut ended = false;
        wait_until("an image is being written", Duration::from_secs(60), || {
            ended = running.has_ended();
            let partial = || hidden_files(&env.disks()).into_iter().map(|name| env.disks().join(name));
            ended || partial().any(|path| fs::metadata(path).is_ok_and(|found| found.blocks() > 2048))
        });
        running.signal(Signal::STOP);
        if !ended && !running.has_ended() {
            return running;
        }
        running.signal(Signal::CONT);
        running.wait().assert_ok();
    }
    panic!("kvmb is too fast for this test: give it larger disks");
}

#[test]
fn interrupted_restore_changes_no_image() {
    let env = Env::new("interrupted");
    let machine = env.machine("vm1").disk(Disk::qcow2(80 * MIB)).disk(Disk::raw(64 * MIB)).define();
    machine.write_bytes("vda", 0, &noise(1, 60 * MIB));
    machine.write_bytes("vdb", 0, &noise(2, 8 * MIB));
    init(&env);
    backup(&machine);
    machine.write("vda", 0, MIB, 0x11);
    machine.write("vdb", 0, MIB, 0x22);
    let before = images(&machine);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let running = caught_writing(&env, &["vm1", "--overwrite"]);
        running.signal(signal);
        running.signal(Signal::CONT);
        running.wait().assert_code(code);
        assert!(images(&machine) == before, "the images were changed");
        assert_eq!(hidden_files(&env.disks()), [""; 0]);
        assert_eq!(names_in(&env.path("tmp")), [""; 0]);
        env.assert_nothing_left();
    }

    // kill -9: the old images are untouched, and the next restore removes the leftovers, once it is certain that the
    // process has ended.
    let running = caught_writing(&env, &["vm1", "--overwrite"]);
    running.kill();
    running.wait().assert_code(137);
    assert!(images(&machine) == before, "the images were changed");
    env.assert_nothing_left();
    let left = hidden_files(&env.disks());
    assert_eq!(left.len(), 1, "{left:?}");
    let left = fs::File::open(env.disks().join(&left[0])).expect("open");
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    left.set_modified(old).expect("utime");
    restore(&env, &["vm1", "--overwrite"]).run().assert_ok();
    assert_eq!(hidden_files(&env.disks()), [""; 0]);
    env.restic(env.repo()).check();
}

#[test]
fn machine_started_during_a_restore_keeps_its_images() {
    let env = Env::new("meanwhile");
    let machine = env.machine("vm1").disk(Disk::qcow2(80 * MIB)).define();
    machine.write_bytes("vda", 0, &noise(1, 60 * MIB));
    init(&env);
    backup(&machine);
    let running = caught_writing(&env, &["vm1", "--overwrite", "--no-define"]);
    let (before, models) = (inodes(&machine), machine.models());
    machine.start_paused();
    running.signal(Signal::CONT);
    let failure = running.wait().assert_code(1).record_of("failure");
    assert_eq!(failure["code"], "running");
    machine.stop();
    assert_eq!(inodes(&machine), before, "the image was replaced");
    for (target, model) in &models {
        model.assert_image_equals(machine.image(target), machine.format(target));
    }
    assert_eq!(hidden_files(&env.disks()), [""; 0]);
    assert!(!env.path("disks/vm1.xml").exists());
}

/// Returns the packs with the data of the newest backup.
fn packs(env: &Env) -> Vec<PathBuf> {
    let data = Path::new(&env.repo()).join("data");
    let folders = names_in(&data).into_iter().map(|name| data.join(name));
    folders.flat_map(|folder| names_in(&folder).into_iter().map(move |name| folder.join(name))).collect()
}

#[test]
fn failed_restore_leaves_the_old_machine_unchanged() {
    let env = Env::new("failure");
    let machine = machine_with_a_point(&env);
    let definition = machine.definition();
    machine.write("vda", 0, MIB, 0x11);
    let before = images(&machine);
    let unchanged = |what: &str| {
        assert!(images(&machine) == before, "{what}: the images were changed");
        assert_eq!(hidden_files(&env.disks()), [""; 0], "{what}");
        assert_eq!(machine.definition(), definition, "{what}");
        assert!(!env.path("disks/vm1.xml").exists(), "{what}");
        env.assert_nothing_left();
    };

    // libvirt refuses the definition because the machine has another name meanwhile.
    let renamed = definition.replace("<name>vm1</name>", "<name>vm1-renamed</name>");
    fs::write(env.path("renamed.xml"), renamed).expect("write");
    env.virsh(&["undefine", "--checkpoints-metadata", "vm1"]);
    env.virsh(&["define", &env.path("renamed.xml").display().to_string()]);
    restore(&env, &["vm1", "--overwrite"]).run().assert_code(1);
    assert!(images(&machine) == before, "define refused: the images were changed");
    assert_eq!(hidden_files(&env.disks()), [""; 0]);
    env.virsh(&["undefine", "vm1-renamed"]);
    fs::write(env.path("as-before.xml"), &definition).expect("write");
    env.virsh(&["define", &env.path("as-before.xml").display().to_string()]);
    unchanged("define refused");

    // Damage that also affects the second disk, so that one of them is written before it is found.
    let largest = packs(&env).into_iter().max_by_key(|path| fs::metadata(path).expect("stat").len()).expect("a pack");
    let whole = fs::read(&largest).expect("read");
    let mut bytes = whole.clone();
    let late = bytes.len() - MIB as usize / 2;
    bytes[late] ^= 1;
    fs::set_permissions(&largest, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::write(&largest, &bytes).expect("write");
    let failure = restore(&env, &["vm1", "--overwrite"]).run().assert_code(4).record_of("failure");
    assert_eq!(failure["code"], "damage");
    unchanged("damage");
    fs::write(&largest, &whole).expect("write");

    // Not enough space, found before or during the write.
    let small = env.tmpfs("small", 2 * MIB);
    let into = small.path().display().to_string();
    for (args, format) in [(&["--disk", "vda"][..], "raw"), (&["--disk", "vda"][..], "qcow2")] {
        let output = restore(&env, &["vm1", "--format", format, "--into", &into]).args(args).run().assert_code(1);
        assert_eq!(output.record_of("failure")["code"], "no_space", "{output}");
        assert_eq!(names_in(small.path()), [""; 0]);
    }
    drop(small);
    unchanged("no room");
    restore(&env, &["vm1", "--overwrite"]).run().assert_ok();
}

/// Stops a restore into a small file system when its images have used this much of it, while another program uses the
/// rest; then continues it.
fn restored_where_room_runs_out(env: &Env, small: &Tmpfs, taken_bytes: u64, disks: &[&str]) -> Output {
    let size_bytes = small.free_bytes();
    let into = small.path().display().to_string();
    let disks: Vec<&str> = disks.iter().flat_map(|disk| ["--disk", *disk]).collect();
    let mut running = restore(env, &[&["vm1", "--into", &into], &disks[..]].concat()).spawn();
    let mut ended = false;
    wait_until("it writes", Duration::from_secs(60), || {
        ended = running.has_ended();
        ended || size_bytes - small.free_bytes() >= taken_bytes
    });
    running.signal(Signal::STOP);
    assert!(!running.has_ended(), "too fast for this test: give it a larger disk");
    small.fill_up_to(MIB);
    running.signal(Signal::CONT);
    running.wait()
}

#[test]
fn target_filling_up_during_a_restore_is_left_clean() {
    let env = Env::new("full");
    let machine = env.machine("vm1").disk(Disk::qcow2(64 * MIB)).disk(Disk::raw(64 * MIB)).define();
    for disk in ["vda", "vdb"] {
        machine.write_bytes(disk, 0, &noise(1, 48 * MIB));
    }
    init(&env);
    backup(&machine);
    for (first, second) in [("vda", "vdb"), ("vdb", "vda")] {
        let small = env.tmpfs(first, 112 * MIB);
        let output = restored_where_room_runs_out(&env, &small, 40 * MIB, &[first, second]);
        let output = output.assert_code(1).assert_stderr_has("hint");
        assert_eq!(output.record_of("failure")["code"], "no_space", "{output}");
        assert_eq!(names_in(small.path()), ["filler"], "{first}");
        env.assert_nothing_left();
    }
}

#[test]
fn restore_with_reserved_space_succeeds_on_a_filling_target() {
    let env = Env::new("reserved");
    let machine = env.machine("vm1").disk(Disk::qcow2(64 * MIB)).disk(Disk::raw(64 * MIB)).define();
    for disk in ["vda", "vdb"] {
        machine.write_bytes(disk, 0, &noise(1, 48 * MIB));
    }
    init(&env);
    backup(&machine);
    for disk in ["vda", "vdb"] {
        // All of its space is allocated before the first byte is written.
        let small = env.tmpfs(disk, 64 * MIB);
        let output = restored_where_room_runs_out(&env, &small, 48 * MIB, &[disk]);
        let restored = output.assert_ok().record_of("point")["restored_to"]["disks"][0].clone();
        let (path, format) = (restored["path"].as_str().unwrap(), restored["format"].as_str().unwrap());
        machine.models()[disk].assert_image_equals(path.as_ref(), format);
    }
}

/// After a kill at any step, every disk is either the old or the new one and never a mixture, a replaced disk still
/// exists until the definition is stored, and the next restore completes.
#[test]
fn restore_killed_at_any_step_leaves_whole_disks_and_can_be_repeated() {
    let env = Env::new("killed restore");
    let machine = machine_with_a_point(&env);
    let (then, definition) = (machine.models(), machine.definition());
    let changed = definition.replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<");
    assert_ne!(changed, definition);
    fs::write(env.path("changed.xml"), &changed).expect("write");
    for (seed, step) in (10..).zip(Failpoint::RESTORE) {
        machine.write_bytes("vda", 0, &noise(seed, MIB));
        machine.write_bytes("vdb", 0, &noise(seed + 100, MIB));
        env.virsh(&["define", &env.path("changed.xml").display().to_string()]);
        let now = machine.models();
        let running = stopped_at(restore(&env, &["vm1", "--overwrite"]), step);
        running.kill();
        running.wait();

        let is = |image: &Path, target: &str, models: &BTreeMap<String, DiskModel>| {
            let found = DiskModel::from_image(image, machine.format(target));
            models[target].first_difference(&found).is_none()
        };
        let left = hidden_files(&env.disks());
        let replaced: Vec<_> =
            left.iter().filter(|name| name.ends_with(".replaced")).map(|n| env.disks().join(n)).collect();
        let mut placed = 0;
        for target in machine.targets() {
            let image = machine.image(&target);
            if is(image, &target, &then) {
                placed += 1;
                let is_kept = replaced.iter().any(|old| {
                    // The other disk has another size, and possibly another format.
                    fs::read(old).expect("read").starts_with(b"QFI") == (machine.format(&target) == "qcow2")
                        && is(old, &target, &now)
                });
                assert_eq!(is_kept, step != Failpoint::RestoreKept, "{step:?}: the old {target}: {left:?}");
            } else {
                assert!(is(image, &target, &now), "{step:?}: {target} is neither old nor new");
            }
        }
        let (expected_placed, expected_replaced) = match step {
            Failpoint::RestoreWritten => (0, 0),
            Failpoint::RestorePlacedFirst => (1, 1),
            Failpoint::RestorePlaced | Failpoint::RestoreDefined => (2, 2),
            _ => (2, 0),
        };
        assert_eq!((placed, replaced.len()), (expected_placed, expected_replaced), "{step:?}: {left:?}");
        let is_defined = matches!(step, Failpoint::RestoreDefined | Failpoint::RestoreKept);
        assert_eq!(machine.definition(), if is_defined { &*definition } else { &*changed }, "{step:?}");

        // The next restore is much later: unfinished files are removed, replaced files are reported and kept.
        let old = std::time::SystemTime::now() - Duration::from_secs(3600);
        for name in left.iter().filter(|name| name.ends_with(".partial")) {
            fs::File::open(env.disks().join(name)).and_then(|file| file.set_modified(old)).expect("utime");
        }
        let mut output = restore(&env, &["vm1", "--overwrite"]).run().assert_ok();
        for path in &replaced {
            output = output.assert_stderr_has(&format!("an interrupted restore left {}", path.display()));
        }
        let left: Vec<_> = hidden_files(&env.disks()).into_iter().map(|name| env.disks().join(name)).collect();
        assert_eq!(left, replaced, "{step:?}: {output}");
        replaced.iter().for_each(|path| fs::remove_file(path).expect("remove"));
        for target in machine.targets() {
            then[&target].assert_image_equals(machine.image(&target), machine.format(&target));
            machine.believe_image(&target);
        }
        assert_eq!(machine.definition(), definition, "{step:?}");
    }
    backup(&machine);
    env.assert_nothing_left();
}

/// Properties that an administrator set on an image are kept: an ACL, without which another user could not read it any
/// more, and extended attributes.
#[test]
fn in_place_restore_keeps_acls_and_extended_attributes() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let env = Env::new("attributes");
    let machine = machine_with_a_point(&env);
    // Version 2; owner, user 65534, group, mask, others: tag, permissions, id, in the format of the extended attribute
    // of acl(5).
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 6u16, u32::MAX), (2, 4, 65534), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let wanted: [(&str, &[u8]); 2] = [("system.posix_acl_access", &acl), ("user.note", b"of the administrator")];
    for (name, value) in wanted {
        setxattr(machine.image("vda"), name, value, XattrFlags::empty()).expect("setxattr");
    }
    let before = inodes(&machine);
    restore(&env, &["vm1", "--overwrite"]).run().assert_ok();
    assert_ne!(inodes(&machine), before, "the image was not replaced");
    for (name, value) in wanted {
        let mut found = [0; 256];
        let length =
            getxattr(machine.image("vda"), name, &mut found[..]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(&found[..length], value, "{name}");
    }

    // An immutable image is refused with the reason, which permissions do not change; nothing is left behind.
    env.sh("chattr +i disks/vm1-vda.qcow2").run().assert_ok();
    let output = restore(&env, &["vm1", "--overwrite"]).run();
    env.sh("chattr -i disks/vm1-vda.qcow2").run().assert_ok();
    let output = output.assert_code(1).assert_stderr_has("lsattr");
    assert_eq!(output.record_of("failure")["code"], "permission");
    assert_eq!(hidden_files(&env.disks()), [""; 0]);
}
