//! Repositories that released versions have created: this version lists, verifies, restores, continues and prunes them.
//!
//! `frozen/VERSION.tar.gz` is the result of [`make`] in that version. When a version is released, its repository is
//! added:
//!
//! ```sh
//! KVMB_TEST_FREEZE=1 cargo test --locked --test repo -- frozen::
//! ```

use crate::support::backups::noise;
use crate::support::{Disk, Env, PASSWORD};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;
const MACHINE: &str = "kvmb-test-frozen";
const UUID: &str = "7d5a6a1e-0001-4000-8000-00000f402e01";
const HOST: &str = "frozen-host";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/repo/frozen")
}

fn kvmb(env: &Env, args: &[&str]) -> crate::support::Output {
    env.kvmb_on(HOST, args).run().assert_ok()
}

/// Creates such a repository at [`Env::repo`]: three points, the second of which is pinned.
fn make(env: &Env) {
    let repo = env.repo();
    kvmb(env, &["init", "-r", &repo]);
    let image = env.disks().join("noise.raw");
    fs::write(&image, second_disk(false)).unwrap();
    let machine = env.machine(MACHINE).uuid(UUID).disk(Disk::qcow2(8 << 20));
    let machine = machine.disk(Disk::existing(&image, "raw")).start_paused();
    let write = |disk: &str, offset: usize, length: usize, pattern: u8| {
        machine.write(disk, offset as u64, length as u64, pattern);
    };
    write("vda", 0, 3 * MIB, 0x11);
    write("vdb", 0, 2 * MIB, 0x22);
    kvmb(env, &["backup", MACHINE, "-r", &repo]);
    write("vda", 2 * MIB, MIB, 0x33);
    kvmb(env, &["backup", MACHINE, "-r", &repo]);
    kvmb(env, &["pin", MACHINE, "-r", &repo]);
    write("vda", 5 * MIB, 64 << 10, 0x44);
    kvmb(env, &["backup", MACHINE, "-r", &repo]);
    drop(machine);
}

fn second_disk(is_written: bool) -> Vec<u8> {
    let mut bytes = vec![0; 4 * MIB];
    if is_written {
        bytes[..2 * MIB].fill(0x22);
    }
    bytes[2 * MIB..][..48 << 10].copy_from_slice(&noise(7, 48 << 10));
    bytes
}

/// Returns the content of the first disk in each point.
fn first_disk(point: usize) -> Vec<u8> {
    let mut bytes = vec![0; 8 * MIB];
    bytes[..3 * MIB].fill(0x11);
    if point >= 1 {
        bytes[2 * MIB..3 * MIB].fill(0x33);
    }
    if point >= 2 {
        bytes[5 * MIB..][..64 << 10].fill(0x44);
    }
    bytes
}

/// Fails unless a point, restored without libvirt, equals the machine's disks.
#[track_caller]
fn assert_restores(env: &Env, id: &str, number: usize) {
    let into = env.path(format!("restored-{id}"));
    fs::create_dir(&into).unwrap();
    let args = ["restore", id, "-r", &env.repo(), "--no-define", "--format", "raw", "--into", into.to_str().unwrap()];
    let restored = kvmb(env, &args).record_of("point");
    let disks = restored["restored_to"]["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 2, "{restored}");
    for (disk, expected) in disks.iter().zip([first_disk(number), second_disk(true)]) {
        let found = fs::read(disk["path"].as_str().unwrap()).unwrap();
        assert!(found == expected, "{disk} of point {number} is not what the machine had");
    }
}

/// Uses a repository as its users do.
fn use_repository(env: &Env, name: &str) {
    let repo = env.repo();
    let list = || kvmb(env, &["points", "-r", &repo]).records_of("point");
    let id = |point: &Value| point["point"].as_str().unwrap().to_owned();
    let points = list();
    assert_eq!(points.len(), 3, "{name}: {points:#?}");
    for (number, point) in points.iter().enumerate() {
        let known = (&point["machine"], &point["uuid"], &point["host"], &point["consistency"]);
        assert_eq!(known, (&MACHINE.into(), &UUID.into(), &HOST.into(), &"crash".into()), "{name}");
        assert_eq!(point.get("pinned").is_some(), number == 1, "{name}: {point}");
        assert_restores(env, &id(point), number);
    }
    let verified = kvmb(env, &["verify", "--all", "-r", &repo]).records_of("point");
    assert!(verified.iter().all(|point| point["verified"] == "full"), "{name}: {verified:#?}");

    // The machine is restored, and its next point adds no new data; except that a chunk that was stored in pieces may
    // be stored as a whole, because the new machine has no point that refers to them.
    let images = env.disks().join("restored");
    fs::create_dir(&images).unwrap();
    env.sh(&format!("chmod 711 {}", images.display())).run().assert_ok();
    kvmb(env, &["restore", MACHINE, "-r", &repo, "--as", "kvmb-test-thawed", "--into", images.to_str().unwrap()]);
    let next = kvmb(env, &["backup", "kvmb-test-thawed", "-r", &repo]).record_of("point");
    assert!(next["new_bytes"].as_u64() <= Some(MIB as u64), "{name}: {next}");

    // Points without a rule are removed, the pinned one is kept, and all that remain are intact.
    kvmb(env, &["prune", "-r", &repo, "--gone-machines", "--keep-last", "1", "--max-unused", "0%"]);
    let left: Vec<String> = list().iter().map(id).collect();
    assert_eq!(left, [id(&points[1]), id(&points[2]), id(&next)], "{name}");
    kvmb(env, &["verify", "--all", "-r", &repo]);
    env.restic(&repo).check();
}

#[test]
fn repositories_of_all_released_versions_remain_usable() {
    let mut archives: Vec<PathBuf> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    archives.sort();
    assert!(!archives.is_empty());
    for archive in archives {
        let env = Env::new("frozen");
        env.program("tar").arg("-xzf").arg(&archive).arg("-C").arg(env.path("")).run().assert_ok();
        assert_eq!(PASSWORD, "correct horse", "the password of the repositories that were kept");
        use_repository(&env, &archive.display().to_string());
    }
}

#[test]
fn repository_of_this_version_passes_the_frozen_checks() {
    let env = Env::new("freeze");
    make(&env);
    if std::env::var_os("KVMB_TEST_FREEZE").is_some() {
        let archive =
            folder().join(concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"), ".tar.gz"));
        let tar = env.program("tar").args(["--sort=name", "--owner=0", "--group=0", "-czf"]).arg(archive);
        tar.arg("-C").arg(env.path("")).arg("repo").run().assert_ok();
    }
    let thawed = Env::new("thawed");
    env.program("cp").arg("-a").arg(env.repo()).arg(thawed.repo()).run().assert_ok();
    use_repository(&thawed, "this version");
}
