//! A repository for several hosts, inspected from one of them: how recent each machine's points are, and how much space
//! they use.

use crate::support::backups::noise;
use crate::support::chains::*;
use crate::support::{Disk, Env, Machine, Output, faketime, parts};
use serde_json::Value;

/// Creates a machine with 2 MiB of this noise.
fn noisy<'e>(env: &'e Env, name: &str, seed: u64) -> Machine<'e> {
    let image = env.disks().join(format!("{name}.raw"));
    let mut bytes = vec![0; 8 * MIB as usize];
    bytes[..2 * MIB as usize].copy_from_slice(&noise(seed, 2 * MIB));
    std::fs::write(&image, bytes).expect("write");
    env.machine(name).disk(Disk::existing(&image, "raw")).start_paused()
}

/// Backs a machine up on a host with this name, with a clock shifted by `ago` (for `FAKETIME`).
#[track_caller]
fn backup_on(env: &Env, host: &str, machine: &str, repo: &str, ago: &str) -> Value {
    let call = env.kvmb_on(host, ["backup", machine, "-r", repo]);
    let call = call.env("LD_PRELOAD", faketime::library()).env("FAKETIME", ago);
    let point = call.run().assert_ok().record_of("point");
    faketime::clear();
    point
}

/// Returns the record with these fields.
#[track_caller]
fn record<'r>(records: &'r [Value], fields: &[(&str, &str)]) -> &'r Value {
    let is_meant = |record: &&Value| fields.iter().all(|(key, value)| record[*key] == *value);
    records.iter().find(is_meant).unwrap_or_else(|| panic!("no {fields:?} in {records:#?}"))
}

#[test]
fn status_of_all_hosts_needs_only_the_repository() {
    parts::require(&["faketime"]);
    let (a, b, watcher) = (Env::new("fleet a"), Env::new("fleet b"), Env::new("fleet watcher"));
    let repo = init(&a);
    let uuid = uuid::Uuid::new_v4().to_string();
    let web = a.machine("web").uuid(&uuid).disk(Disk::qcow2(MIB)).define();
    a.machine("db").disk(Disk::qcow2(MIB)).define();
    // A machine with a copied definition, on a host that has been silent for days.
    b.machine("web").uuid(&uuid).disk(Disk::qcow2(MIB)).define();
    backup_on(&a, "host-a", "web", &repo, "-40h");
    backup_on(&a, "host-a", "db", &repo, "-30h");
    let stale = backup_on(&b, "host-b", "web", &repo, "-80h");
    backup_on(&a, "host-a", web.name(), &repo, "-1h");

    let call = |args: &[&str]| {
        let call = watcher.kvmb_on("watcher", [&["status", "--all-hosts", "-r", &repo], args].concat());
        // It must not use libvirt at all.
        call.env("LIBVIRT_DEFAULT_URI", "qemu+unix:///system?socket=/none").run()
    };
    let output = call(&[]).assert_code(1);
    let checks = output.records_of("check");
    let machine = |host: &str, name: &str| record(&checks, &[("check", "backup"), ("host", host), ("target", name)]);
    let status = |check: &Value| check["status"].as_str().expect("status").to_owned();
    assert_eq!(status(machine("host-a", "web")), "ok");
    assert_eq!(status(machine("host-a", "db")), "warning");
    assert_eq!(status(machine("host-b", "web")), "critical");
    assert_eq!(machine("host-a", "web")["points"], 2);
    assert_eq!(machine("host-b", "web")["newest_point"], stale["point"]);
    assert_eq!(machine("host-b", "web")["standing"], "stored");
    let host = |name: &str| record(&checks, &[("check", "host"), ("target", name)]);
    assert_eq!((status(host("host-a")), &host("host-a")["machines"]), ("ok".into(), &2.into()));
    assert_eq!(status(host("host-b")), "critical");
    assert!(host("host-b")["detail"].as_str().expect("detail").starts_with("silent"), "{output}");
    assert_eq!(record(&checks, &[("check", "repository")])["status"], "ok");
    assert_eq!(checks.len(), 6, "{output}");

    // Tables show the host of each; names select machines, and an unknown one was never backed up.
    assert_has(&call(&["-o", "table"]).assert_code(1), &["HOST", "host-b", "silent"]);
    call(&["db", "--warning", "48h"]).assert_ok();
    call(&["web", "--warning", "5d"]).assert_ok();
    assert_has(&call(&["nobody"]).assert_code(1), &["never backed up"]);

    // Monitoring systems get names that distinguish the machines.
    let nagios = call(&["--nagios"]).assert_code(2);
    assert_has(&nagios, &["CRITICAL - ", "'host-b/web_age'=", "host-b: silent"]);
    let metrics = call(&["--prometheus"]).assert_ok();
    let samples: Vec<&str> = metrics.stdout().lines().filter(|line| !line.starts_with('#')).collect();
    let is_in =
        |beginning: &str, end: &str| samples.iter().any(|line| line.starts_with(beginning) && line.ends_with(end));
    for (host, status) in [("host-a", "0"), ("host-b", "2")] {
        assert!(is_in(&format!("kvmb_host_status{{host=\"{host}\""), &format!(" {status}")), "{metrics}");
        let web = format!("kvmb_machine_status{{machine=\"web\",uuid=\"{uuid}\",host=\"{host}\"");
        assert!(is_in(&web, &format!(" {status}")), "{metrics}");
    }
    let series: std::collections::BTreeSet<&str> =
        samples.iter().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
    assert_eq!(series.len(), samples.len(), "a series is there twice: {metrics}");
    let values = call(&["--zabbix", "values"]).assert_ok();
    assert!(values.stdout().contains(&format!("\"{uuid}_host-b\"")), "{values}");

    // An unreachable repository is not the same as silence.
    let output = watcher.kvmb(["status", "--all-hosts", "-r", &watcher.repo()]).run().assert_code(1);
    assert_eq!(record(&output.records_of("check"), &[("check", "repository")])["status"], "critical");
    for env in [&a, &b, &watcher] {
        env.assert_nothing_left();
    }
}

#[test]
fn moved_machine_is_reported_on_its_current_host() {
    let env = Env::new("fleet moved");
    let repo = init(&env);
    let machine = env.machine("vm").disk(Disk::qcow2(4 * MIB)).start_paused();
    let backup = |host: &str| env.kvmb_on(host, ["backup", "vm", "-r", &repo]).run().assert_ok();
    backup("old-host");
    machine.write("vda", 0, MIB, 0x11);
    // The same machine with its bitmaps, on a host with another name.
    let moved = backup("new-host").record_of("point");
    assert_eq!(moved["disks"][0]["read_mode"], "changed", "{moved}");
    let checks = env.kvmb(["status", "--all-hosts", "-r", &repo]).run().assert_ok().records_of("check");
    let found = record(&checks, &[("check", "backup"), ("target", "vm")]);
    assert_eq!((&found["host"], &found["points"]), (&"new-host".into(), &2.into()), "{found}");
    assert_eq!(checks.iter().filter(|check| check["check"] == "host").count(), 1, "{checks:#?}");
    let usage = env.kvmb(["stats", "-r", &repo]).run().assert_ok().records_of("usage");
    assert_eq!(record(&usage, &[("machine", "vm")])["hosts"], serde_json::json!(["new-host", "old-host"]));
}

/// Fails unless standard output contains these texts.
#[track_caller]
fn assert_has(output: &Output, all: &[&str]) {
    all.iter().for_each(|words| assert!(output.stdout().contains(words), "stdout does not say {words:?}: {output}"));
}

/// Returns the space that the snapshots with these arguments use, according to restic.
fn restic_bytes(env: &Env, args: &[&str]) -> u64 {
    let output =
        env.restic(env.repo()).call([&["stats", "--mode", "raw-data", "--json"], args].concat()).run().assert_ok();
    let stats: Value = serde_json::from_str(output.stdout()).expect("JSON");
    stats["total_size"].as_u64().expect("total_size")
}

#[test]
fn machine_sizes_in_stats_match_restic() {
    parts::require(&["faketime"]);
    let (a, b) = (Env::new("stats a"), Env::new("stats b"));
    let repo = init(&a);
    // Two machines with the same 2 MiB on two hosts, and one that shares no data with them.
    noisy(&a, "web", 1);
    let db = noisy(&a, "db", 2);
    noisy(&b, "web", 1);
    backup_on(&a, "host-a", "db", &repo, "-48h");
    db.write("vda", 4 * MIB, MIB, 0x33);
    backup_on(&a, "host-a", "db", &repo, "-0h");
    backup_on(&a, "host-a", "web", &repo, "-0h");
    backup_on(&b, "host-b", "web", &repo, "-0h");
    // restic's own snapshots count in the total, but for no machine.
    std::fs::write(a.path("foreign"), noise(3, MIB)).expect("write");
    a.restic(&repo).backup(&a.path("foreign"));

    let stats = |args: &[&str]| -> Output { a.kvmb([&["stats", "-r", &repo], args].concat()).run() };
    let usage = stats(&[]).assert_ok().records_of("usage");
    let size = |record: &Value, key: &str| record[key].as_u64().unwrap_or_else(|| panic!("no {key} in {record}"));
    let of = |name: &str, host: &str| {
        let found = usage.iter().find(|usage| usage["machine"] == name && usage["hosts"][0] == host);
        found.unwrap_or_else(|| panic!("no {name} of {host} in {usage:#?}"))
    };
    for (name, host) in [("web", "host-a"), ("db", "host-a"), ("web", "host-b")] {
        let record = of(name, host);
        let counted = restic_bytes(&a, &["--host", host, "--tag", &format!("machine={name}")]);
        assert_eq!(size(record, "stored_bytes"), counted, "{record}");
        assert_eq!(size(record, "own_bytes") + size(record, "shared_bytes"), counted, "{record}");
    }
    for host in ["host-a", "host-b"] {
        let web = of("web", host);
        assert!(size(web, "shared_bytes") >= 2 * MIB && size(web, "own_bytes") < MIB, "{web}");
    }
    let db = of("db", "host-a");
    assert!(size(db, "own_bytes") >= 2 * MIB && size(db, "points") == 2, "{db}");
    // The second point has added less than a MiB of one byte, in two days.
    let growth = db["growth_bytes_per_day"].as_f64().expect("growth");
    assert!(growth > 0.0 && growth < MIB as f64 / 2.0, "{db}");
    let all = usage.iter().find(|usage| usage.get("machine").is_none()).expect("the repository");
    assert_eq!(size(all, "stored_bytes"), restic_bytes(&a, &[]), "{all}");
    assert_eq!((size(all, "points"), size(all, "unused_bytes")), (4, 0), "{all}");

    // Removing a machine frees the data that only it uses.
    let freed = size(db, "own_bytes");
    let left: Vec<Value> = a.restic(&repo).snapshots();
    let ids = left.iter().filter(|snapshot| snapshot["tags"].to_string().contains("machine=db"));
    for id in ids.map(|snapshot| snapshot["id"].as_str().expect("id")) {
        a.restic(&repo).call(["forget", id]).run().assert_ok();
    }
    let after = stats(&[]).assert_ok().records_of("usage");
    let all = after.iter().find(|usage| usage.get("machine").is_none()).expect("the repository");
    assert_eq!(size(all, "unused_bytes"), freed, "{all}");
    assert_has(&stats(&["-o", "table"]).assert_ok(), &["unused", "(all)"]);
    // A name selects one machine on each host; an unknown one is an error with a suggestion.
    assert_eq!(stats(&["web"]).assert_ok().records_of("usage").len(), 2);
    stats(&["wed"]).assert_code(1).assert_stderr_has("web");
}

#[test]
fn point_dated_in_the_future_does_not_hide_that_backups_stopped() {
    parts::require(&["faketime"]);
    let env = Env::new("future point");
    let repo = init(&env);
    env.machine("web").disk(Disk::qcow2(MIB)).define();
    // The clock was wrong once, and was corrected; later the backups stopped.
    backup_on(&env, "host-a", "web", &repo, "+400d");
    let newest = backup_on(&env, "host-a", "web", &repo, "-80h");
    let output = env.kvmb_on("host-a", ["status", "--all-hosts", "-r", &repo]).run().assert_code(1);
    let checks = output.records_of("check");
    let machine = record(&checks, &[("check", "backup"), ("target", "web")]);
    assert_eq!((&machine["status"], &machine["newest_point"]), (&"critical".into(), &newest["point"]), "{output}");
    assert!(machine["detail"].as_str().expect("detail").contains("1 point is dated in the future"), "{output}");
    assert_eq!(record(&checks, &[("check", "host")])["status"], "critical", "{output}");
}

#[test]
fn backup_with_a_wrong_clock_warns_or_is_refused() {
    parts::require(&["faketime"]);
    let env = Env::new("clock");
    let repo = init(&env);
    let machine = env.machine("web").disk(Disk::qcow2(MIB)).define();
    let backup = |time: &str| {
        let call = env.kvmb(["backup", machine.name(), "-r", &repo]);
        let output = call.env("LD_PRELOAD", faketime::library()).env("FAKETIME", time).run();
        faketime::clear();
        output
    };
    let warns = |output: &Output| output.stderr().contains(", after this backup; check the clock of this host");
    assert!(!warns(&backup("-1h").assert_ok()));
    assert!(!warns(&backup("-61m").assert_ok()), "clocks may differ by some minutes");
    let old = backup("-2d").assert_ok();
    assert!(warns(&old), "{old}");
    let refused = backup("1969-05-01 00:00:00").assert_code(1).assert_stderr_has("a time before 1970");
    assert_eq!(refused.record_of("failure")["code"], "failed", "{refused}");
}
