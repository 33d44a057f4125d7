//! Points in the console: two repositories, calendar, verification, pins, copies, damage.

use std::fs;
use std::path::{Path, PathBuf};

use super::client::{Console, Page, encoded, open, open_with};
use crate::support::{Disk, Env};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const VM: &str = "kvmb-test-vm1";

fn points(env: &Env, repo: &str) -> Vec<Value> {
    env.kvmb(["points", "-r", repo]).run().assert_ok().records_of("point")
}

fn id_of(point: &Value) -> String {
    point["point"].as_str().unwrap().to_owned()
}

/// Returns the page of a point, after refreshing the cached answers.
fn page_of(console: &Console, id: &str) -> Page {
    console.get("/restore?again=1").assert_status(200);
    console.get(&format!("/points/{id}")).assert_status(200)
}

/// Returns the largest pack of a repository, which contains disk data.
fn largest_pack(repo: &str) -> PathBuf {
    let mut packs = Vec::new();
    for folder in fs::read_dir(Path::new(repo).join("data")).unwrap().flatten() {
        packs.extend(fs::read_dir(folder.path()).unwrap().flatten().map(|file| file.path()));
    }
    packs.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

#[test]
fn points_of_two_repositories_are_distinguished_pinned_and_copied() {
    let env = Env::new("two repos");
    let machine = env.machine(VM).disk(Disk::qcow2(4 * MIB)).define();
    machine.write("vda", 0, MIB, 0x11);
    let (first, second) = (env.repo(), env.repo_named("second"));
    for repo in [&first, &second] {
        env.kvmb(["init", "-r", repo]).run().assert_ok();
    }
    let console = open_with(&env, &[], &[("KVMB_COPY_TO", &second)]);
    console.run_job("/backup", &[("m", VM), ("no_copy", "1")], "done");
    assert!(points(&env, &second).is_empty());
    let id = id_of(&points(&env, &first)[0]);
    let page = page_of(&console, &id).assert_has("does not have this point").assert_has(&first).assert_has(&second);
    let page = page.assert_has(&format!("kvmb push -r {second} --from-repo={first} {id}"));
    page.assert_has("not verified").assert_has(&format!("kvmb verify -r {first} {id}"));

    // Copied, verified to both depths, and pinned, each in its own repository.
    console.run_job("/points/copy", &[("p", &id)], "done").assert_has(&second);
    let copy = id_of(&points(&env, &second)[0]);
    assert_ne!(copy, id);
    let page = page_of(&console, &id).assert_has("has this point").assert_has(&format!("/points/{copy}"));
    page.assert_lacks("/points/copy");
    console.run_job("/points/verify", &[("p", &copy), ("depth", "quick")], "done").assert_has("verify --quick -r");
    page_of(&console, &copy).assert_has("verified quickly").assert_has("second repository");
    page_of(&console, &id).assert_has("not verified");
    console.run_job("/points/verify", &[("p", &id), ("depth", "full")], "done");
    page_of(&console, &id).assert_has("verified in full");
    let pinned = console.post("/points/pin", &[("p", &copy)]).assert_status(303).header("location").to_owned();
    console.get(&pinned).assert_status(200).assert_has("pinned").assert_has("pin --undo");
    assert_eq!(
        (&points(&env, &second)[0]["pinned"], &points(&env, &first)[0]["pinned"]),
        (&Value::Bool(true), &Value::Null)
    );
    let copy = pinned.trim_start_matches("/points/").to_owned();
    console.post("/points/pin", &[("p", &copy), ("undo", "1")]).assert_status(303);
    assert_eq!(points(&env, &second)[0]["pinned"], Value::Null);

    // The list has both, each with its repository; it can be limited to one.
    let list = console.get(&format!("/restore?again=1&machine={VM}")).assert_status(200);
    assert_eq!(list.body.matches("/where\"").count(), 2, "{}", list.body);
    let list = console.get(&format!("/restore?machine={VM}&repo={}", encoded(&second))).assert_status(200);
    assert_eq!(list.body.matches("/where\"").count(), 1, "{}", list.body);
    for wrong in ["..%2f", "--help", "ffffffff", &id[..8]] {
        console.post("/points/verify", &[("p", wrong)]).assert_status(404);
        console.get(&format!("/points/{wrong}")).assert_status(404);
    }
}

#[test]
fn calendar_leads_to_the_points_of_a_day() {
    let env = Env::new("calendar");
    let machine = env.machine(VM).disk(Disk::qcow2(2 * MIB)).define();
    let repo = env.repo();
    env.kvmb(["init", "-r", &repo]).run().assert_ok();
    for pattern in [1, 2] {
        machine.write("vda", 0, MIB, pattern);
        env.kvmb(["backup", VM, "-r", &repo]).run().assert_ok();
    }
    let console = open_with(&env, &[], &[]);
    let day = points(&env, &repo)[1]["captured_at"].as_str().unwrap()[..10].to_owned();
    let page = console.get(&format!("/machines/{VM}")).assert_status(200);
    let page = page.assert_has(&format!("href=\"?day={day}\"")).assert_has("2 points, newest first");
    assert!(page.body.contains(", 2 points\"") || page.body.contains(", 1 point\""), "{}", page.body);
    let month = page.body.split("rel=\"prev\"").next().unwrap().rsplit("?month=").next().unwrap();
    let month = month.split('"').next().unwrap().to_owned();
    console.get(&format!("/machines/{VM}?month={month}")).assert_status(200).assert_lacks("aria-current=\"date\"");
    let of_day = console.get(&format!("/machines/{VM}?day={day}")).assert_status(200);
    of_day.assert_has("aria-current=\"date\"").assert_has("All days");
    console.get(&format!("/machines/{VM}?day=2001-02-03")).assert_status(200).assert_has("0 points, newest first");
    for wrong in ["day=x", "month=2026-99", "page=0", "page=9999", "month=99999999999-01"] {
        console.get(&format!("/machines/{VM}?{wrong}")).assert_status(200);
    }
}

#[test]
fn damage_is_shown_with_its_ranges_and_the_good_copy() {
    let env = Env::new("damage shown");
    let machine = env.machine(VM).disk(Disk::qcow2(4 * MIB)).define();
    machine.write("vda", 0, 2 * MIB, 0x11);
    let (first, second) = (env.repo(), env.repo_named("second"));
    for repo in [&first, &second] {
        env.kvmb(["init", "-r", repo]).run().assert_ok();
    }
    env.kvmb(["backup", VM, "-r", &first, "--copy-to", &second]).run().assert_ok();
    let (id, copy) = (id_of(&points(&env, &first)[0]), id_of(&points(&env, &second)[0]));
    let pack = largest_pack(&first);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[40] ^= 1;
    // restic's files are read-only.
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();

    let console = open_with(&env, &[], &[("KVMB_COPY_TO", &second)]);
    let job = console.run_job("/points/verify", &[("p", &id), ("depth", "full")], "damage");
    job.assert_has("Damage was found.").assert_has("note crit");
    let page = page_of(&console, &id).assert_has("This point is damaged.").assert_has("Damaged ranges");
    page.assert_has(&format!("/points/{copy}\"")).assert_has("Open the copy in the other repository");
    page_of(&console, &copy).assert_lacks("This point is damaged.");
    console.get("/?again=1").assert_status(200).assert_lacks("st ok\">ok");
    console.get(&format!("/machines/{VM}?again=1")).assert_has("damaged");
}

#[test]
fn unreadable_repository_is_not_shown_as_a_missing_point() {
    let env = Env::new("console unreadable");
    env.machine("kvmb-test-vm1").disk(Disk::qcow2(1 << 20)).define();
    env.kvmb(["init", "-r", &env.repo()]).run().assert_ok();
    let console = open(&env, &[]);
    let point = format!("/points/{}", "a".repeat(64));
    console.get(&point).assert_status(404);
    fs::rename(format!("{}/keys", env.repo()), env.path("keys")).unwrap();
    console.get("/restore?again=1").assert_status(200).assert_lacks("There is no point yet");
    console.get(&point).assert_status(503).assert_has("cannot be looked up").assert_has("role=\"alert\"");
}
