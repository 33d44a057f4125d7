//! `kvmb status`: what it knows, when it alarms, and how monitoring systems hear of it.

// A test stops at what it does not expect.
#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use harness::{Disk, Env};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// The files of the history.
fn history(env: &Env) -> Vec<(PathBuf, Value)> {
    let folders = fs::read_dir(env.path("data/history")).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    files.map(|path| (path.clone(), serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())).collect()
}

#[test]
fn what_happened_is_remembered_and_that_it_cannot_be_stops_nothing() {
    let env = Env::new("status history");
    let name = "..;$(touch pwned) \"it's\" \\ , =|ü";
    env.machine(name).disk(Disk::qcow2(MIB)).define();
    env.sh("kvmb init -r $R").run().assert_ok();
    let point = env.kvmb(["backup", name, "-r", &env.repo(), "--verify"]).run().assert_ok().record_of("point");
    let [(path, memory)] = &history(&env)[..] else { panic!("one file") };
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = path.parent().unwrap();
    assert_eq!((mode(path), mode(folder), mode(folder.parent().unwrap())), (0o600, 0o700, 0o700));
    assert_eq!(path.file_stem().unwrap().to_str(), point["uuid"].as_str());
    assert_eq!((&memory["machine"], &memory["repo"]), (&point["machine"], &point["repo"]));
    assert_eq!(memory["last_run"]["result"], "done");
    assert_eq!(memory["newest_point"]["point"], point["point"]);
    assert_eq!(memory["verified"]["depth"], "full");
    // A run that comes to nothing does not take away what was known.
    env.kvmb(["backup", name, "-r", &env.repo_named("none")]).run().assert_code(1);
    let files = history(&env);
    assert_eq!(files.len(), 2);
    let failed = files.iter().map(|(_, memory)| memory).find(|memory| memory["last_run"]["result"] == "failed");
    assert_eq!(failed.unwrap()["last_run"]["code"], "no_repository");
    // Nothing can be written there, and nothing is read.
    fs::remove_dir_all(env.path("data/history")).unwrap();
    fs::write(env.path("data/history"), "").unwrap();
    env.kvmb(["backup", name, "-r", &env.repo()]).run().assert_ok();
    assert!(fs::read_to_string(env.log_file()).unwrap().contains("the history is not kept"));
}
