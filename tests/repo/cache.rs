//! The cached index on this host: what it saves, and that it never contains more than the repository.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::backups::{MIB, assert_restores_to, backup, init, names_in, noise, text};
use crate::support::{Disk, Env, Machine};
use serde_json::{Value, json};

const SIZE: u64 = 4 * MIB;

fn machine(env: &Env) -> Machine<'_> {
    init(env);
    let machine = env.machine("vm1").disk(Disk::raw(SIZE)).define();
    machine.write_bytes("vda", 0, &noise(1, SIZE));
    machine
}

/// Returns the cached indexes in a cache folder.
fn copies(cache: &Path) -> Vec<PathBuf> {
    let repositories = fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path());
    repositories.map(|repository| repository.join("index")).filter(|copy| copy.exists()).collect()
}

/// Lists the points, which loads the index.
fn list(env: &Env, args: &[&str]) {
    env.kvmb(["points", "-r", &env.repo()]).args(args).run().assert_ok();
}

#[test]
fn chunks_pruned_by_another_host_are_stored_again() {
    let env = Env::new("cache-pruned");
    let machine = machine(&env);
    backup(&machine);
    list(&env, &[]);
    let copies = copies(&env.path("data/cache"));
    assert_eq!(copies.len(), 1, "there is no copy of the index");
    machine.write_bytes("vda", 0, &noise(2, SIZE));
    backup(&machine);
    let before = fs::read(&copies[0]).unwrap();

    // Another host has its own folders and no cached index.
    let prune = env.kvmb(["prune", "-r", &env.repo(), "--keep-last", "1", "--max-unused", "0%"]);
    prune.env("KVMB_DATA_DIR", env.path("other-host")).run().assert_ok();
    assert!(names_in(&Path::new(&env.repo()).join("snapshots")).len() == 1, "nothing was pruned");
    assert_eq!(fs::read(&copies[0]).unwrap(), before);

    // Data that this host's cached index still lists has been removed.
    machine.write_bytes("vda", 0, &noise(1, SIZE));
    let point = backup(&machine);
    assert_eq!(point["disks"][0]["new_bytes"], SIZE, "{point:#}");
    env.restic(env.repo()).check();
    assert_restores_to(&env, text(&point, "point"), &machine.models());
}

#[test]
fn index_cache_is_private_and_can_be_moved_or_disabled() {
    let env = Env::new("cache-chosen");
    let machine = machine(&env);
    backup(&machine);
    let (own, chosen) = (env.path("data/cache"), env.path("chosen"));
    fs::remove_dir_all(&own).expect("the backup has made one");
    list(&env, &["--no-cache"]);
    assert_eq!(copies(&own).len() + copies(&chosen).len(), 0);
    list(&env, &["--cache-dir", chosen.to_str().unwrap()]);
    assert_eq!((copies(&own).len(), copies(&chosen).len()), (0, 1));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let copy = copies(&chosen).remove(0);
    assert_eq!([mode(&chosen), mode(copy.parent().unwrap()), mode(&copy)], [0o700, 0o700, 0o600]);
    fs::remove_dir_all(&chosen).unwrap();
    env.configure(&json!({"cache_dir": chosen}));
    list(&env, &[]);
    assert_eq!((copies(&own).len(), copies(&chosen).len()), (0, 1));
    list(&env, &["--cache-dir", ""]);
    assert_eq!(copies(&own).len(), 1, "an empty name is none");
}

#[test]
fn kernel_key_cache_is_optional_and_needs_the_password() {
    let env = Env::new("key-cache");
    init(&env);
    let points = |args: &[&str]| env.kvmb(["points", "-vv", "-r", &env.repo()]).args(args).run();
    let was_kept = |run: &crate::support::Output| run.stderr().contains("took the key from the kernel's keyring");
    for _ in 0..2 {
        let run = points(&[]).assert_ok();
        assert!(!run.stderr().contains("keyring"), "{}", run.stderr());
    }
    let first = points(&["--key-cache", "2m"]).assert_ok();
    assert!(!was_kept(&first), "{}", first.stderr());
    let second = points(&["--key-cache", "2m"]).assert_ok();
    // If the kernel does not permit storing a key, as in most containers, every run derives it.
    let is_refused = first.stderr().contains("cannot keep the key");
    assert_eq!(was_kept(&second), !is_refused, "{}", second.stderr());
    let wrong = env.path("wrong");
    fs::write(&wrong, "another password").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    let wrong = points(&["--key-cache", "2m", "--password-file", wrong.to_str().unwrap()]);
    assert!(!was_kept(&wrong), "{}", wrong.stderr());
    wrong.assert_code(1).assert_stderr_has("wrong password");
    // The configuration can enable it too.
    env.configure(&json!({"key_cache": "2m"}));
    assert_eq!(was_kept(&points(&[]).assert_ok()), !is_refused);
}

#[test]
fn symlinked_or_world_writable_index_cache_is_not_trusted() {
    let env = Env::new("cache-foreign");
    let machine = machine(&env);
    backup(&machine);
    list(&env, &[]);
    let copy = copies(&env.path("data/cache")).remove(0);
    // Root would overwrite this file if it followed the link.
    let victim = env.path("victim");
    fs::write(&victim, "precious").unwrap();
    // Nothing else is cached, so the index is loaded.
    fs::remove_dir_all(copy.parent().unwrap()).unwrap();
    fs::create_dir(copy.parent().unwrap()).unwrap();
    symlink(&victim, &copy).unwrap();
    list(&env, &[]);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(fs::symlink_metadata(&copy).unwrap().is_file(), "the link is replaced");
    machine.write_bytes("vda", 0, &noise(3, MIB));
    let folder = copy.parent().unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(&copy, "from elsewhere").unwrap();
    let point = backup(&machine);
    assert_eq!(fs::read(&copy).unwrap(), b"from elsewhere", "a folder that others may write is left alone");
    assert_restores_to(&env, text(&point, "point"), &machine.models());
}

#[test]
fn cached_points_are_listed_without_the_index() {
    let env = Env::new("cache-points");
    let machine = machine(&env);
    let first = backup(&machine);
    machine.write_bytes("vda", 0, &noise(2, MIB));
    let second = backup(&machine);
    let points = || env.kvmb(["points", "-r", &env.repo()]).run().assert_ok().records_of("point");
    let ids = |records: &[Value]| records.iter().map(|record| text(record, "point").to_owned()).collect::<Vec<_>>();
    let status = || {
        let checks = env.kvmb(["status", "-r", &env.repo()]).run().records_of("check");
        let of_machine = checks.into_iter().find(|check| check["check"] == "backup").expect("a machine");
        (text(&of_machine, "status").to_owned(), of_machine["points"].clone())
    };
    let before = points();
    assert_eq!(ids(&before), [text(&first, "point"), text(&second, "point")]);
    let judged = status();
    assert_eq!(judged.0, "ok");

    // The index and the packs are not needed any more, and only names and sizes of the snapshots.
    let away = |name: &str| fs::rename(Path::new(&env.repo()).join(name), env.path(format!("away-{name}"))).unwrap();
    ["index", "data"].into_iter().for_each(away);
    let snapshots = Path::new(&env.repo()).join("snapshots");
    for name in names_in(&snapshots) {
        let size = fs::metadata(snapshots.join(&name)).unwrap().len() as usize;
        fs::remove_file(snapshots.join(&name)).unwrap();
        fs::write(snapshots.join(&name), vec![0; size]).unwrap();
    }
    assert_eq!(points(), before);
    assert_eq!(status(), judged);
    let without = env.kvmb(["points", "--no-cache", "-r", &env.repo()]).run();
    assert!(without.code() != 0 && without.records_of("point").is_empty(), "{without}");
    let snapshot = Path::new(&env.repo()).join("snapshots").join(text(&first, "point"));
    fs::remove_file(snapshot).unwrap();
    assert_eq!(ids(&points()), [text(&second, "point")], "a point that is gone is not listed");
}
