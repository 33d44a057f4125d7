//! Steps that many tests share: back up, restore, compare.
#![allow(dead_code, reason = "each test program tells its own stories")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvmb::failpoint::Failpoint;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::Value;

use crate::support::call::Running;
use crate::support::{Call, DiskModel, Env, Machine, wait_until};

pub const MIB: u64 = 1 << 20;

/// Returns incompressible bytes that differ for every seed.
pub fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Creates a repository at [`Env::repo`].
pub fn init(env: &Env) -> String {
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    env.repo()
}

/// Backs a machine up into [`Env::repo`], and returns the point's record.
#[track_caller]
pub fn backup(machine: &Machine) -> Value {
    let env = machine.env();
    env.kvmb(["backup", "-r", &env.repo(), "--", machine.name()]).run().assert_ok().record_of("point")
}

/// Returns a field of a record as text.
#[track_caller]
pub fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_else(|| panic!("no text {field:?} in {record}"))
}

/// Restores a point's disks as raw images into a new folder, without libvirt. Returns target → image.
#[track_caller]
pub fn restore_images(env: &Env, point: &str) -> BTreeMap<String, PathBuf> {
    let folder = new_folder(env, "restored");
    let output = env
        .kvmb(["restore", "-r", &env.repo(), "--format", "raw", "--no-define", "--into"])
        .arg(&folder)
        .args(["--", point])
        .run()
        .assert_ok();
    images_of(&output.record_of("point"))
}

/// Returns the images of a record with `restored_to`.
pub fn images_of(record: &Value) -> BTreeMap<String, PathBuf> {
    let disks = record["restored_to"]["disks"].as_array().unwrap_or_else(|| panic!("nothing was restored: {record}"));
    disks.iter().map(|disk| (text(disk, "disk").to_owned(), text(disk, "path").into())).collect()
}

/// Creates a new, empty folder.
pub fn new_folder(env: &Env, name: &str) -> PathBuf {
    let folder = tempfile::Builder::new().prefix(name).tempdir_in(env.path("")).expect("a folder");
    folder.keep()
}

/// Fails unless the restored point is identical to these disks.
#[track_caller]
pub fn assert_restores_to(env: &Env, point: &str, disks: &BTreeMap<String, DiskModel>) {
    let images = restore_images(env, point);
    let targets: Vec<_> = images.keys().collect();
    assert_eq!(targets, disks.keys().collect::<Vec<_>>(), "other disks were restored");
    for (target, model) in disks {
        model.assert_image_equals(&images[target], "raw");
    }
}

/// Returns the sorted names in a folder.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Starts a `kvmb` that stops itself at a failpoint.
pub fn stopped_at(call: Call, step: Failpoint) -> Running {
    let mut running = call.env("KVMB_TEST_STOP_AT", step.name()).spawn();
    wait_until("it has reached the step", Duration::from_secs(60), || {
        assert!(!running.has_ended(), "it is done already");
        running.is_stopped()
    });
    running
}

/// Starts a `kvmb` that stops itself while it reads a capture of `machine`, after it has stored the first chunk.
pub fn caught_reading(machine: &Machine, call: Call) -> Running {
    let mut running = call.env("KVMB_TEST_STOP_AT", "FirstChunk").spawn();
    wait_until("it has stored a chunk", Duration::from_secs(60), || {
        assert!(!running.has_ended(), "it is done already");
        running.is_stopped()
    });
    assert!(is_readable(machine), "no open capture");
    running
}

/// Whether QEMU serves every disk, so that the instant of the capture has passed. The jobs exist before that.
fn is_readable(machine: &Machine) -> bool {
    let exports = machine.qmp("query-block-exports", serde_json::json!({}));
    exports.as_array().is_some_and(|exports| exports.len() == machine.targets().len())
}
