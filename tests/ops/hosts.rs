//! Points of several hosts in one repository: two machines with the same UUID are different machines, and a migrated
//! machine remains one machine.

use std::collections::BTreeMap;

use crate::support::chains::*;
use crate::support::{Disk, Env, Machine, Output, PASSWORD};
use kvmb::repo::{LockMode, Password, Repository};
use kvmb::storage::LocalStorage;
use serde_json::Value;
use std::sync::Arc;

/// A host with this name and its own libvirt.
struct Host {
    name: &'static str,
    env: Env,
}

impl Host {
    fn new(name: &'static str) -> Host {
        Host { name, env: Env::new(name) }
    }

    fn kvmb(&self, args: &[&str]) -> Output {
        self.env.kvmb_on(self.name, args).run()
    }

    #[track_caller]
    fn backup(&self, repo: &str, args: &[&str]) -> Value {
        let point = self.kvmb(&[&["backup", "vm", "-r", repo], args].concat()).assert_ok().record_of("point");
        assert_eq!(point["host"], self.name);
        point
    }

    /// Prunes, and returns the kept points: id → names of the rules.
    #[track_caller]
    fn prune(&self, repo: &str, args: &[&str]) -> BTreeMap<String, Vec<String>> {
        let output = self.kvmb(&[&["prune", "-r", repo, "--gone-machines"], args].concat()).assert_ok();
        kept(&output)
    }

    /// Returns the point that the machine's name refers to on this host.
    fn newest(&self, repo: &str) -> String {
        let output = self.kvmb(&["verify", "--quick", "vm@latest", "-r", repo]).assert_ok();
        id_of(&output.record_of("point")).to_owned()
    }
}

fn kept(output: &Output) -> BTreeMap<String, Vec<String>> {
    let forget = output.records_of("action").into_iter().filter(|action| action["action"] == "forget");
    let stays = forget.filter(|action| action["changed"] == false).map(|action| {
        let rules =
            action["rules"].as_array().expect("rules").iter().map(|rule| rule.as_str().expect("a word").to_owned());
        (action["target"].as_str().expect("target").to_owned(), rules.collect())
    });
    stays.collect()
}

/// Creates a machine with the same definition and its own disk.
fn copy_of_definition<'e>(host: &'e Host, uuid: &str, pattern: u8) -> Machine<'e> {
    let machine = host.env.machine("vm").uuid(uuid).disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 4 * MIB, pattern);
    machine
}

#[test]
fn machines_with_equal_uuids_have_separate_chains_and_retention() {
    let (a, b) = (Host::new("host-a"), Host::new("host-b"));
    let (repo, second) = (init(&a.env), init_at(&a.env, "second"));
    let uuid = uuid::Uuid::new_v4().to_string();
    let (on_a, on_b) = (copy_of_definition(&a, &uuid, 0x11), copy_of_definition(&b, &uuid, 0x22));
    let mut points: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for round in 0..3 {
        // Each continues with its own bitmaps and chunks, whatever the other has stored meanwhile.
        for (host, machine, size) in [(&a, &on_a, "4M"), (&b, &on_b, "1M")] {
            machine.write("vda", 6 * MIB + round * 4096, 4096, 0x33);
            let args: &[&str] = if round == 0 { &["--chunk-size", size] } else { &[] };
            let point = host.backup(&repo, args);
            let parents = points.entry(host.name).or_default();
            assert_eq!(point.get("parent"), parents.last().map(|parent| &parent["point"]), "{point}");
            if round > 0 {
                let read = disk_of(&point, "vda")["read_bytes"].as_u64().expect("read_bytes");
                let chunk = if host.name == "host-a" { 4 * MIB } else { MIB };
                assert!((chunk..=3 * chunk).contains(&read), "{read} bytes were read in chunks of {chunk}");
            }
            assert_restores(&host.env, &repo, &point, &machine.models());
            parents.push(point);
        }
    }
    let id = |host: &str, number: usize| id_of(&points[host][number]).to_owned();

    // The name refers to the machine of the local host.
    for (host, machine) in [(&a, &on_a), (&b, &on_b)] {
        assert_eq!(host.newest(&repo), id(host.name, 2));
        let status = host.kvmb(&["status", "vm", "-r", &repo]);
        let status = status.records_of("check").into_iter().find(|check| check["check"] == "backup").expect("a check");
        assert_eq!(status["newest_point"], id(host.name, 2), "{status}");
        assert_eq!(machine.checkpoints().len(), 1);
    }
    // A host without a machine of that name gets a list, and can use ids.
    let third = Host::new("host-c");
    let verify = |name: &str| third.kvmb(&["verify", "--quick", name, "-r", &repo]);
    let output = verify("vm").assert_code(2).assert_stderr_has("host-a (newest point");
    output.assert_stderr_has("host-b (newest point");
    verify(&id("host-a", 0)).assert_ok();

    // In the second repository, each looks for its own points.
    let copied = a.kvmb(&["backup", "vm", "-r", &repo, "--copy-to", &second]).assert_ok();
    points.get_mut("host-a").expect("points").push(copied.records_of("point").remove(0));
    let id = |host: &str, number: usize| id_of(&points[host][number]).to_owned();
    let copies = copied.records_of("point");
    assert!(copies.iter().all(|point| point["host"] == "host-a") && copies.len() == 5, "{copied}");
    a.env.configure(&serde_json::json!({ "retention": { "local": { "keep_last": 2 } } }));
    let rehearsed = a.prune(&repo, &["--copy-to", &second, "--keep-last", "1", "--dry-run"]);
    let awaits: Vec<&String> =
        rehearsed.iter().filter(|(_, rules)| rules.contains(&"awaits_copy".to_owned())).map(|(id, _)| id).collect();
    assert_eq!(awaits.len(), 3, "those of the other host that were never copied: {rehearsed:#?}");
    assert!((0..3).all(|number| awaits.contains(&&id("host-b", number))));

    // Each keeps its own two points.
    let stays = a.prune(&repo, &["--keep-last", "2", "--copy-to", ""]);
    let expected = [id("host-a", 2), id("host-a", 3), id("host-b", 1), id("host-b", 2)];
    assert_eq!(stays.keys().cloned().collect::<Vec<_>>(), sorted(expected));
    assert!(stays.values().all(|rules| rules == &["last"]));
    for (host, machine) in [(&a, &on_a), (&b, &on_b)] {
        machine.write("vda", 0, 512, 0x44);
        let point = host.backup(&repo, &[]);
        assert_eq!(disk_of(&point, "vda")["read_mode"], "changed", "{point}");
        assert_restores(&host.env, &repo, &point, &machine.models());
    }
    // A local machine that libvirt does not know keeps its points; those of another host with the same UUID do not
    // belong to it.
    on_a.stop();
    a.env.virsh(&["undefine", "vm", "--checkpoints-metadata"]);
    let output = a.kvmb(&["prune", "-r", &repo, "--keep-last", "1", "--copy-to", ""]).assert_ok();
    assert_eq!(kept(&output).values().filter(|rules| rules.contains(&"machine_gone".to_owned())).count(), 3);
    assert_eq!(kept(&output).len(), 4, "{output}");
    finish(&a.env, &[&repo, &second]);
    b.env.assert_nothing_left();
}

fn sorted<const N: usize>(mut ids: [String; N]) -> [String; N] {
    ids.sort();
    ids
}

#[test]
fn machine_moved_with_its_images_keeps_one_chain() {
    let (a, b) = (Host::new("host-a"), Host::new("host-b"));
    let repo = init(&a.env);
    let machine = a.env.machine("vm").disk(Disk::qcow2(8 * MIB)).start_paused();
    machine.write("vda", 0, 4 * MIB, 0x11);
    let mut ids = vec![id_of(&a.backup(&repo, &[])).to_owned()];
    machine.write("vda", 0, 512, 0x22);
    ids.push(id_of(&a.backup(&repo, &[])).to_owned());
    machine.stop();
    let disk = Disk::existing(machine.image("vda"), "qcow2");
    let moved = b.env.machine("vm").uuid(machine.uuid()).disk(disk).start_paused();
    // Before its first backup there, it belongs to the other host, and its status says so.
    assert_eq!(b.newest(&repo), ids[1]);
    moved.write("vda", MIB, 512, 0x33);
    let point = b.backup(&repo, &[]);
    assert_eq!(point["parent"], ids[1].as_str(), "{point}");
    assert_restores(&b.env, &repo, &point, &moved.models());
    ids.push(id_of(&point).to_owned());
    // One machine: on every host, its name refers to the newest point, and its history remains.
    let third = Host::new("host-c");
    for host in [&a, &b, &third] {
        assert_eq!(host.newest(&repo), ids[2]);
    }
    assert_eq!(
        b.prune(&repo, &["--keep-last", "2"]).keys().cloned().collect::<Vec<_>>(),
        sorted([ids[1].clone(), ids[2].clone()])
    );
    // The point that links both hosts is removed, but the link is remembered, even after a full read.
    moved.write("vda", 2 * MIB, 512, 0x44);
    ids.push(id_of(&b.backup(&repo, &["--chunk-size", "2M"])).to_owned());
    a.env.restic(&*repo).call(["forget", &ids[2], "--prune"]).run().assert_ok();
    moved.write("vda", 3 * MIB, 512, 0x55);
    ids.push(id_of(&b.backup(&repo, &[])).to_owned());
    let stays = b.prune(&repo, &["--keep-last", "2"]);
    assert_eq!(stays.keys().cloned().collect::<Vec<_>>(), sorted([ids[3].clone(), ids[4].clone()]));
    finish(&a.env, &[&repo]);
    b.env.assert_nothing_left();
}

#[test]
fn future_dated_points_are_kept_but_never_the_latest() {
    let env = Env::new("wrong clock");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::raw(4 * MIB)).define();
    let mut points = Vec::new();
    for round in 0..4 {
        machine.write("vda", round * 4096, 4096, 0x11);
        points.push((id_of(&backup(&machine, &repo)).to_owned(), machine.models()));
    }
    // Two of them were made when the clock was ten years ahead.
    let opened =
        Repository::open(Arc::new(LocalStorage::new(&repo)), &Password::new(PASSWORD.to_owned())).expect("open");
    let permit = opened.lock(LockMode::Shared, std::time::Duration::ZERO).expect("lock").permit();
    for (id, _) in &mut points[..2] {
        let stored =
            opened.snapshots().expect("list").snapshots.into_iter().find(|stored| stored.id.to_string() == *id);
        let mut snapshot = stored.expect("the point").snapshot;
        snapshot.time += chrono::Duration::days(3650);
        let future = opened.save_snapshot(&snapshot, &permit).expect("save");
        opened.remove_snapshot(&id.parse().expect("an id"), &permit).expect("remove");
        *id = future.to_string();
    }
    drop(permit);
    let output = env.kvmb(["prune", "-r", &repo, "--keep-last", "1"]).run().assert_ok();
    let stays = kept(&output);
    assert_eq!(stays.len(), 3, "{output}");
    for (id, _) in &points[..2] {
        assert_eq!(stays[id], ["future"]);
    }
    assert_eq!(stays[&points[3].0], ["last"]);
    output.assert_stderr_has("2 points of vm are dated in the future and not removed; check the clocks");
    // The newest point is the newest one with a plausible date; the others can be selected by id.
    for name in ["vm", "vm@latest"] {
        let verified = env.kvmb(["verify", "--quick", name, "-r", &repo]).run().assert_ok().record_of("point");
        assert_eq!(id_of(&verified), points[3].0, "{name}");
    }
    let point = serde_json::json!({ "point": points[0].0 });
    assert_restores(&env, &repo, &point, &points[0].1);
    finish(&env, &[&repo]);
}
