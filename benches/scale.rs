//! Benchmarks of everything that grows with the size of disks and repositories:
//! `cargo bench --bench scale -- [MILLIONS OF BLOBS]`.
//!
//! Prints a table: the list of chunks of a 10 TiB disk, sparse or full, with chunks of 4 MiB (as for new disks of this
//! size) and of 1 MiB, written and read; the index of a repository, loaded from its files, loaded for the first time
//! with a cache, and loaded from the cache; and a repository with as many blobs, a hundredth as many packs and a
//! thousandth as many points, each of 10,000 blobs: a check, and the plan of a prune. Each line is measured in its own
//! process, with its time, its CPU time and its peak memory.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use chrono::{DateTime, FixedOffset};
use kvmb::repo::{
    BlobKind, CheckOptions, Content, Id, Index, LockMode, Node, NodeKind, Password, PruneLimits, PrunePlan, Repository,
    Snapshot, Writer, WriterOptions, check, read_tree, write_tree,
};
use kvmb::storage::LocalStorage;

/// The lists of chunks: their names, and the chunk size in MiB.
const LISTS: [(&str, u32); 3] = [("sparse", 0), ("full", 4), ("full-1M", 1)];
/// The size of the disk, in MiB.
const DISK_MIB: u32 = 10 << 20;
/// The number of blobs of a point's disk, in the repository with many points.
const BLOBS_OF_POINT: u64 = 10_000;
/// The number of points of a machine in it.
const POINTS_OF_MACHINE: u64 = 10;
/// The number of blobs that change from one point to the next.
const CHANGED: u64 = 100;

fn password() -> Password {
    Password::new("bench".to_owned())
}

fn create(folder: &Path) {
    Repository::create(Arc::new(LocalStorage::new(folder.join("repo"))), &password()).expect("create");
}

fn open(folder: &Path) -> Repository {
    Repository::open(Arc::new(LocalStorage::new(folder.join("repo"))), &password()).expect("open the repository")
}

fn writer(repo: &Repository, index: Arc<Index>) -> Writer {
    let lock = repo.lock(LockMode::Shared, Duration::ZERO).expect("lock the repository");
    let permit = lock.permit();
    // The lock is kept until the process ends.
    std::mem::forget(lock);
    Writer::new(repo, index, WriterOptions::default(), &permit)
}

fn time() -> DateTime<FixedOffset> {
    DateTime::parse_from_rfc3339("2026-11-23T14:55:59Z").expect("a time")
}

/// Returns the chunk list of a 10 TiB disk: chunks of this many MiB, all different; or, for 0, two zero blobs for each
/// MiB.
fn content(chunk_mib: u32) -> Content {
    match chunk_mib {
        0 => std::iter::repeat_n(kvmb::repo::zero_blob_id(), 2 * DISK_MIB as usize).collect(),
        _ => (0..DISK_MIB / chunk_mib).map(|number: u32| Id::hash(&number.to_le_bytes())).collect(),
    }
}

fn write(folder: &Path, name: &str) {
    let repo = open(folder);
    let content = content(LISTS.iter().find(|list| list.0 == name).expect("a list").1);
    let writer = writer(&repo, Arc::new(Index::default()));
    let node = Node::file(format!("{name}.raw"), time(), u64::from(DISK_MIB) << 20, content);
    let id = measured(&format!("write the list, {name}"), || {
        let id = write_tree(&writer, &[node]).expect("write the tree");
        writer.finish().expect("finish");
        id
    });
    std::fs::write(folder.join(name), id.to_string()).expect("note the tree");
}

fn read(folder: &Path, name: &str) {
    let repo = open(folder);
    let index = repo.load_index().expect("load the index");
    let id: Id = std::fs::read_to_string(folder.join(name)).expect("the tree").parse().expect("an id");
    let tree = measured(&format!("read the list, {name}"), || read_tree(&repo, &index, &id).expect("read the tree"));
    assert!(matches!(&tree.nodes[..], [Node { kind: NodeKind::File { .. }, .. }]));
}

fn fill(folder: &Path, blobs: u64) {
    let repo = open(folder);
    let index = repo.load_index().expect("load the index");
    let writer = writer(&repo, index);
    for number in 0..blobs {
        writer.put(BlobKind::Data, &number.to_le_bytes()).expect("put");
    }
    writer.finish().expect("finish");
}

fn load(folder: &Path, what: &str, cache: Option<&Path>) {
    let repo = open(folder);
    let repo = cache.into_iter().fold(repo, |repo, cache| repo.cached_in(cache));
    let index = measured(what, || {
        let index = repo.load_index().expect("load the index");
        // As a backup with few changes does.
        for number in 0..100u64 {
            index.contains(BlobKind::Data, &Id::hash(&(number * 997).to_le_bytes()));
        }
        index
    });
    assert!(!index.is_empty());
}

/// Stores machines with points, for a repository with this many blobs.
fn fill_with_points(folder: &Path, blobs: u64) {
    let repo = open(folder);
    let lock = repo.lock(LockMode::Shared, Duration::ZERO).expect("lock the repository");
    // A hundred blobs per pack.
    let options = WriterOptions { pack_bytes: 5_000, ..WriterOptions::default() };
    let writer = Writer::new(&repo, Arc::new(Index::default()), options, &lock.permit());
    let put = |number: u64| writer.put(BlobKind::Data, &number.to_le_bytes()).expect("put").id;
    let of_machine = BLOBS_OF_POINT + (POINTS_OF_MACHINE - 1) * CHANGED;
    let mut snapshots = Vec::new();
    for machine in 0..blobs / of_machine {
        let mut next = machine * of_machine..(machine + 1) * of_machine;
        let mut ids: Vec<Id> = next.by_ref().take(BLOBS_OF_POINT as usize).map(put).collect();
        for point in 0..POINTS_OF_MACHINE {
            let changed = if point > 0 { CHANGED } else { 0 };
            for number in next.by_ref().take(changed as usize) {
                ids[(number * 7919 % BLOBS_OF_POINT) as usize] = put(number);
            }
            let file = Node::file("vda.raw", time(), 8 * BLOBS_OF_POINT, ids.iter().copied().collect());
            let tree = write_tree(&writer, &[file]).expect("write the tree");
            let tree = write_tree(&writer, &[Node::dir("vda", time(), tree)]).expect("write the tree");
            snapshots.push(Snapshot::new(tree, vec![format!("/vm{machine}/{point}")]));
        }
    }
    writer.finish().expect("finish");
    let permit = lock.permit();
    for snapshot in &snapshots {
        repo.save_snapshot(snapshot, &permit).expect("store the snapshot");
    }
    lock.release().expect("release the lock");
}

fn check_all(folder: &Path) {
    let repo = open(folder);
    let never = AtomicBool::new(false);
    let report = measured("check the structure", || check(&repo, CheckOptions::default(), &never).expect("check"));
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

/// Plans to remove half of the points of each machine.
fn plan_prune(folder: &Path) {
    let repo = open(folder);
    let lock = repo.lock(LockMode::Exclusive, Duration::ZERO).expect("lock the repository");
    let goes = |point: &str| point.ends_with(['0', '1', '2', '3', '4']);
    let plan = measured("plan a prune", || {
        let index = repo.load_index().expect("load the index");
        let snapshots = repo.snapshots().expect("list the snapshots").snapshots.into_iter();
        let forgotten = snapshots.filter(|stored| goes(&stored.snapshot.paths[0])).map(|stored| stored.id).collect();
        PrunePlan::make(&repo, index, &forgotten, PruneLimits::default(), &|_| {}, &AtomicBool::new(false))
    });
    assert!(plan.expect("plan").is_some());
    lock.release().expect("release the lock");
}

/// Measures an operation and prints the result. The memory is that of the whole process.
fn measured<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let cpu = || {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        [11, 12].iter().filter_map(|place| fields.get(*place)?.parse::<f64>().ok()).sum::<f64>() / 100.0
    };
    let (before, start) = (cpu(), Instant::now());
    let result = work();
    let (wall, used) = (start.elapsed().as_secs_f64(), cpu() - before);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default().trim();
    println!("{what:<40} {wall:>8.2} s {used:>8.2} s {peak:>14}");
    result
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    if let [folder, step, rest @ ..] = &words[..] {
        let folder = Path::new(folder);
        let number = rest.first().and_then(|word| word.parse().ok()).unwrap_or_default();
        return match step.as_str() {
            "create" => create(folder),
            "write" => write(folder, &rest[0]),
            "read" => read(folder, &rest[0]),
            "fill" => fill(folder, number),
            "points" => fill_with_points(folder, number),
            "check" => check_all(folder),
            "prune" => plan_prune(folder),
            "plain" => load(folder, "read the index", None),
            "first" => load(folder, "read the index and copy it", Some(&folder.join("cache"))),
            _ => load(folder, "read the index from the copy", Some(&folder.join("cache"))),
        };
    }
    let millions: u64 = words.first().and_then(|word| word.parse().ok()).unwrap_or(1);
    let home = tempfile::tempdir().expect("a folder");
    let [lists, points] = ["lists", "points"].map(|name| home.path().join(name));
    for folder in [&lists, &points] {
        create(folder);
    }
    println!("{:<40} {:>10} {:>10} {:>14}", "", "wall", "processor", "memory");
    let step = |folder: &Path, words: &[&str]| {
        let own = std::env::current_exe().expect("this program");
        let status = Command::new(own).arg(folder).args(words).status().expect("run a step");
        assert!(status.success(), "{words:?}");
    };
    for (name, _) in LISTS {
        step(&lists, &["write", name]);
        step(&lists, &["read", name]);
    }
    let blobs = (millions * 1_000_000).to_string();
    step(&lists, &["fill", &blobs]);
    println!("an index of {millions} million blobs:");
    for name in ["plain", "first", "copy"] {
        step(&lists, &[name]);
    }
    step(&points, &["points", &blobs]);
    println!("{millions} million blobs, about {} packs and {} points:", millions * 10_000, millions * 1_000);
    for name in ["check", "prune"] {
        step(&points, &[name]);
    }
}
