//! Definitions as people publish them, on a real libvirt: backed up while stopped and while running, restored as a copy
//! that runs beside the original, and in place, without a difference in any disk or in the definition.
//!
//! | file name | what it is |
//! | --- | --- |
//! | `tool-…` | as created by a tool: virt-install, Cockpit, Terraform, OpenStack … |
//! | `firmware-…`, `disk-…`, `device-…` | one part in all of its variants |
//! | `name-…` | names that need quoting somewhere |
//! | `host-…` | needs hardware or a program that a test's host lacks: backed up and restored stopped only |
//!
//! Other architectures have no emulator here; `tests/capture/definition_zoo.rs` parses them.

mod machines;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use self::machines::{Zoo, ZooMachine, definitions, text};
use crate::support::backups::{init, names_in};
use crate::support::change::run;
use crate::support::{DiskModel, Env, Output};

/// Unavoidable differences after a restore in place: the machine, and the message about it.
const CHANGED_IN_PLACE: [(&str, &str); 1] = [("tool-cloudstack", "had a backing chain of 2 images")];

/// The state of a machine at a point.
struct Moment {
    point: String,
    models: BTreeMap<String, DiskModel>,
    definition: String,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

fn is_changed_in_place(machine: &ZooMachine) -> Option<&'static str> {
    CHANGED_IN_PLACE.iter().find(|(file, _)| *file == machine.file).map(|(_, words)| *words)
}

/// Backs all machines up, and returns the points by machine name.
#[track_caller]
fn backup_all(env: &Env, zoo: &Zoo) -> BTreeMap<String, String> {
    let names = zoo.machines.iter().map(|machine| machine.name.as_str());
    let output = env.kvmb_beside_libvirtd(["backup", "-r", &env.repo(), "--"].into_iter().chain(names)).run();
    let points: BTreeMap<String, String> = output.assert_ok().records_of("point").iter().map(ids).collect();
    assert_eq!(points.len(), zoo.machines.len(), "{points:#?}");
    points
}

fn ids(point: &Value) -> (String, String) {
    let word = |field: &str| point[field].as_str().expect("text").to_owned();
    (word("machine"), word("point"))
}

fn restore(env: &Env, args: &[&str]) -> Output {
    env.kvmb_beside_libvirtd([&["restore", "-r", &env.repo()], args].concat()).run()
}

/// Corrupts everything, restores in place, and compares everything.
#[track_caller]
fn assert_comes_back(env: &Env, zoo: &Zoo, machine: &ZooMachine, moment: &Moment) {
    let before: Vec<String> = machine.disks.iter().map(|(_, path, _)| looks(path)).collect();
    for (_, path, format) in &machine.disks {
        run("qemu-io", &["-f", format, "-c", "write -P 0xee 0 1M", text(path)]);
    }
    for path in moment.files.keys() {
        fs::write(path, "spoilt").expect("write");
    }
    let output = restore(env, &["--overwrite", &moment.point]);
    assert_eq!(output.code(), 0, "{}: {output}", machine.file);
    for (disk, path, format) in &machine.disks {
        moment.models[disk].assert_image_equals(path, format);
    }
    let after: Vec<String> = machine.disks.iter().map(|(_, path, _)| looks(path)).collect();
    assert_eq!(after, before, "{}: owners and modes", machine.file);
    // Files that were created after the point are kept.
    let files = zoo.small_files(machine);
    for (path, bytes) in &moment.files {
        assert!(files.get(path) == Some(bytes), "{}: {}", machine.file, path.display());
    }
    match is_changed_in_place(machine) {
        Some(words) => drop(output.assert_stderr_has(words)),
        None => assert_eq!(zoo.definition(machine), moment.definition, "{}", machine.file),
    }
}

/// Returns owner and mode.
fn looks(path: &Path) -> String {
    run("stat", &["--dereference", "--format=%U:%G %a", text(path)])
}

/// Restores a copy of every machine, and returns their names.
#[track_caller]
fn copies_of_all(env: &Env, zoo: &Zoo, moments: &[Moment]) -> Vec<String> {
    let mut names = Vec::new();
    for (number, (machine, moment)) in zoo.machines.iter().zip(moments).enumerate() {
        let name = format!("copy {number}");
        let folder = env.path(format!("copy-{number}"));
        fs::create_dir(&folder).expect("cannot make a folder");
        crate::support::set_mode(&folder, 0o711);
        let output = restore(env, &["--as", &name, "--into", text(&folder), &moment.point]);
        assert_eq!(output.code(), 0, "{}: {output}", machine.file);
        let copy = env.virsh(&["dumpxml", "--inactive", &name]);
        assert!(!copy.contains(&machine.uuid), "{}: {copy}", machine.file);
        for (disk, path, format) in &machine.disks {
            assert!(!copy.contains(&format!("'{}'", text(path))), "{}: {copy}", machine.file);
            moment.models[disk].assert_image_equals(&folder.join(format!("{name}-{disk}.{format}")), format);
        }
        assert!(names_in(&folder).len() >= machine.disks.len());
        names.push(name);
    }
    names
}

/// Performs all checks of the machines of a kind.
fn keep(kind: &str, starts: bool) {
    let env = Env::with_libvirtd(kind);
    init(&env);
    let zoo = Zoo::define(&env, kind);
    let uuids: Vec<&str> = zoo.machines.iter().map(|machine| machine.uuid.as_str()).collect();
    let moments = |points: BTreeMap<String, String>, models: Vec<BTreeMap<String, DiskModel>>| {
        let moment = |(machine, models): (&ZooMachine, BTreeMap<String, DiskModel>)| Moment {
            point: points[&machine.name].clone(),
            models,
            definition: zoo.definition(machine),
            files: zoo.small_files(machine),
        };
        zoo.machines.iter().zip(models).map(moment).collect::<Vec<Moment>>()
    };
    let models = || zoo.machines.iter().map(|machine| zoo.models(machine)).collect::<Vec<_>>();
    let stopped = moments(backup_all(&env, &zoo), models());
    if !starts {
        copies_of_all(&env, &zoo, &stopped);
        for (machine, moment) in zoo.machines.iter().zip(&stopped) {
            assert_comes_back(&env, &zoo, machine, moment);
        }
        env.assert_nothing_left();
        return;
    }

    zoo.start(&uuids);
    zoo.machines.iter().for_each(|machine| zoo.write_to(machine, 0x5a));
    let points = backup_all(&env, &zoo);
    let running = moments(points, models());
    for (before, after) in stopped.iter().zip(&running) {
        for (disk, model) in &after.models {
            assert!(model.first_difference(&before.models[disk]).is_some(), "{disk} was not written");
        }
    }
    // The copies run beside the originals.
    let copies = copies_of_all(&env, &zoo, &running);
    zoo.start(&copies.iter().map(String::as_str).collect::<Vec<_>>());
    let all = copies.iter().map(String::as_str).chain(uuids);
    env.virsh(&[&all.map(|name| format!("destroy '{name}'")).collect::<Vec<_>>().join("; ")]);
    for moments in [&stopped, &running] {
        for (machine, moment) in zoo.machines.iter().zip(moments) {
            assert_comes_back(&env, &zoo, machine, moment);
        }
    }
    env.restic(env.repo()).check();
    env.assert_nothing_left();
}

#[test]
fn machines_made_by_tools_are_backed_up_and_restored() {
    keep("tool-", true);
}

#[test]
fn all_firmware_variants_are_backed_up_and_restored() {
    keep("firmware-", true);
}

#[test]
fn all_disk_variants_are_backed_up_and_restored() {
    keep("disk-", true);
}

#[test]
fn all_device_kinds_are_backed_up_and_restored() {
    keep("device-", true);
}

#[test]
fn machine_names_needing_quotes_are_backed_up_and_restored() {
    keep("name-", true);
}

#[test]
fn unstartable_machines_are_backed_up_and_restored() {
    keep("host-", false);
}

#[test]
fn the_zoo_has_at_least_forty_definitions() {
    assert!(definitions("").len() >= 40, "{}", definitions("").len());
}
