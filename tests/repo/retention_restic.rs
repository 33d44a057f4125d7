//! `restic forget` and `kvmb prune` agree on the same points, for any rules, in a time zone with daylight saving time.

// A test panics if a result is not what it expects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::support::{Env, PASSWORD};
use chrono::{DateTime, Datelike, Duration, FixedOffset, NaiveDate, TimeZone, Utc, Weekday};
use kvmb::repo::{
    BlobKind, Content, Id, LockMode, Node, Password, Repository, Snapshot, Writer, WriterOptions, write_tree,
};
use kvmb::storage::LocalStorage;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Converts a moment to local time in Berlin.
fn berlin(utc: DateTime<Utc>) -> DateTime<FixedOffset> {
    let switch = |month| {
        let last = NaiveDate::from_ymd_opt(utc.year(), month, 31).unwrap();
        let back = last.weekday().days_since(Weekday::Sun);
        (last - Duration::days(i64::from(back))).and_hms_opt(1, 0, 0).unwrap().and_utc()
    };
    let is_summer = (switch(3)..switch(10)).contains(&utc);
    utc.with_timezone(&FixedOffset::east_opt(if is_summer { 7200 } else { 3600 }).unwrap())
}

/// Returns the times of points over three years: some at calendar boundaries, most at random.
fn times() -> Vec<DateTime<FixedOffset>> {
    let edges = [
        "2024-02-28T23:59:59Z",
        "2024-02-29T12:00:00Z",
        "2024-02-29T22:59:59Z",
        "2024-02-29T23:00:00Z",
        "2024-12-30T01:00:00Z",
        "2024-12-31T22:59:59Z",
        "2024-12-31T23:00:00Z",
        "2025-08-31T21:59:59Z",
        "2025-08-31T22:00:00Z",
        "2025-10-26T00:30:00Z",
        "2025-10-26T01:15:00Z",
        "2026-02-28T12:00:00Z",
        "2026-03-01T12:00:00Z",
        "2026-03-28T01:30:00Z",
        "2026-03-29T00:30:00Z",
        "2026-03-29T00:59:59Z",
        "2026-03-29T01:00:00Z",
        "2026-03-29T01:29:59Z",
        "2026-03-29T01:31:00Z",
        "2026-03-30T00:30:00Z",
        "2026-03-31T10:00:00Z",
        "2026-10-24T00:30:00Z",
        "2026-10-25T00:30:00Z",
        "2026-10-25T00:31:00Z",
        "2026-10-25T01:30:00Z",
        "2026-10-25T01:31:00Z",
        "2026-10-26T01:30:00Z",
    ];
    let mut times: BTreeSet<DateTime<Utc>> = edges.iter().map(|edge| edge.parse().unwrap()).collect();
    let mut random = StdRng::seed_from_u64(4);
    let start = Utc.with_ymd_and_hms(2023, 11, 1, 0, 0, 0).unwrap();
    for _ in 0..60 {
        times.insert(start + Duration::seconds(random.random_range(0..94_000_000)));
    }
    // Close together, shortly before the newest one.
    for _ in 0..30 {
        let newest: DateTime<Utc> = "2026-10-26T01:30:00Z".parse().unwrap();
        times.insert(newest - Duration::seconds(random.random_range(1..40 * 86_400)));
    }
    times.into_iter().map(berlin).collect()
}

/// Creates a repository with one point at each of these times, of another host's machine.
fn fill(env: &Env, times: &[DateTime<FixedOffset>]) -> BTreeMap<Id, DateTime<FixedOffset>> {
    let storage = Arc::new(LocalStorage::new(env.repo()));
    let repo = Repository::create(storage, &Password::new(PASSWORD.to_owned())).unwrap();
    let manifest = json!({
        "version": 1, "program": "kvmb", "machine": "vm1", "uuid": "u-1", "host": "elsewhere", "connect": "",
        "captured_at": "2026-10-25T12:00:00+01:00", "consistency": "crash", "duration_seconds": 0.0, "disks": [],
        "files": [],
    });
    let manifest = manifest.to_string();
    let permit = repo.lock(LockMode::Shared, std::time::Duration::ZERO).unwrap().permit();
    let writer = Writer::new(&repo, repo.load_index().unwrap(), WriterOptions::default(), &permit);
    let blob = writer.put(BlobKind::Data, manifest.as_bytes()).unwrap().id;
    let file = Node::file("point.json", times[0], manifest.len() as u64, Content::from_iter([blob]));
    let folder = write_tree(&writer, &[file]).unwrap();
    let root = write_tree(&writer, &[Node::dir("vm1", times[0], folder)]).unwrap();
    writer.finish().unwrap();
    let save = |time: &DateTime<FixedOffset>| {
        let mut snapshot = Snapshot::new(root, vec!["/vm1".into()]);
        snapshot.time = *time;
        snapshot.tags = vec!["kvmb".into(), "machine=vm1".into()];
        (repo.save_snapshot(&snapshot, &permit).unwrap(), *time)
    };
    times.iter().map(save).collect()
}

/// Each kept id with the names of the rules that keep it.
type Kept = BTreeMap<String, BTreeSet<String>>;

fn ask_kvmb(env: &Env, rules: &[&str]) -> Kept {
    let call = env.kvmb(["prune", "--dry-run", "--gone-machines", "-r", &env.repo()]);
    let output = call.args(rules).env("TZ", "Europe/Berlin").run().assert_ok();
    let kept = output.records_of("action").into_iter().filter(|r| r["action"] == "forget" && r["changed"] == false);
    let words = |record: &Value| {
        let reasons = record["reason"].as_str().unwrap().trim_start_matches("keep: ").split(", ");
        // Since 0.16, restic keeps the oldest point if a rule has not reached its count.
        reasons.filter(|reason| !reason.contains("oldest")).map(str::to_owned).collect()
    };
    let kept = kept.map(|record| (record["target"].as_str().unwrap().to_owned(), words(&record)));
    kept.filter(|(_, words): &(String, BTreeSet<String>)| !words.is_empty()).collect()
}

fn ask_restic(env: &Env, rules: &[&str]) -> Kept {
    let restic = env.restic(env.repo());
    let call = restic.call(["forget", "--dry-run", "--json", "--group-by", "paths"]);
    let output = call.args(rules).env("TZ", "Europe/Berlin").run().assert_ok();
    let groups: Value = serde_json::from_str(output.stdout().lines().next().unwrap()).unwrap();
    let mut kept = Kept::new();
    for reason in groups[0]["reasons"].as_array().unwrap() {
        let matches = reason["matches"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
        // "daily snapshot", "within 7d"
        let words = matches.filter(|text| !text.starts_with("oldest"));
        let words: BTreeSet<String> = words.map(|text| text.split(' ').next().unwrap().to_owned()).collect();
        if words.is_empty() {
            continue;
        }
        // Old versions omit the snapshot's id here, but not its time.
        let time = reason["snapshot"]["time"].as_str().unwrap().to_owned();
        kept.insert(time, words);
    }
    let by_time =
        |snapshot: &Value| (snapshot["time"].as_str().unwrap().to_owned(), snapshot["id"].as_str().unwrap().to_owned());
    let ids: BTreeMap<String, String> = groups[0]["keep"].as_array().unwrap().iter().map(by_time).collect();
    kept.into_iter().map(|(time, words)| (ids[&time].clone(), words)).collect()
}

#[test]
fn restic_and_kvmb_keep_the_same_points_for_the_same_reasons() {
    let env = Env::new("second opinion");
    let times = times();
    let ids = fill(&env, &times);
    let mut removed = 0;
    let mut compare = |rules: &str, left: usize| {
        let rules: Vec<&str> = rules.split_whitespace().collect();
        let (ours, theirs) = (ask_kvmb(&env, &rules), ask_restic(&env, &rules));
        let shown = |kept: &Kept| -> Vec<String> {
            let line =
                |(id, words): (&String, &BTreeSet<String>)| format!("{} {words:?}", ids[&id.parse::<Id>().unwrap()]);
            let mut lines: Vec<String> = kept.iter().map(line).collect();
            lines.sort();
            lines
        };
        assert_eq!(shown(&ours), shown(&theirs), "{rules:?}");
        assert!(!ours.is_empty());
        removed += left - ours.len();
    };
    for rules in [
        "--keep-last 3 --keep-hourly 9 --keep-within 36h",
        "--keep-daily 7 --keep-weekly 5 --keep-monthly 12 --keep-yearly 2",
        "--keep-daily 400",
        "--keep-weekly 60 --keep-yearly 9",
        "--keep-within 1d",
        "--keep-within 1m --keep-monthly 40",
        "--keep-within 1y2m3d4h",
    ] {
        compare(rules, times.len());
    }
    // Other newest points: on the day after daylight saving time began, on the last day of a month, on a leap day.
    let repo = Repository::open(Arc::new(LocalStorage::new(env.repo())), &Password::new(PASSWORD.to_owned())).unwrap();
    let mut left = times.len();
    for (newest, rules) in [
        ("2026-03-31T10:00:00Z", "--keep-within 1m"),
        ("2026-03-30T00:30:00Z", "--keep-within 1d"),
        ("2026-03-30T00:30:00Z", "--keep-within 24h --keep-hourly 2"),
        ("2024-02-29T12:00:00Z", "--keep-within 1y --keep-daily 2"),
    ] {
        let newest: DateTime<Utc> = newest.parse().unwrap();
        let permit = repo.lock(LockMode::Shared, std::time::Duration::ZERO).unwrap().permit();
        for (id, _) in ids.iter().filter(|(_, time)| **time > newest) {
            if repo.remove_snapshot(id, &permit).is_ok() {
                left -= 1;
            }
        }
        drop(permit);
        compare(rules, left);
    }
    assert!(removed > 300, "{removed}");
}
