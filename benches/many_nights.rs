//! Simulates many nights of backups: `cargo bench --bench many_nights -- REPOSITORY PASSWORD-FILE DATA-FOLDER NIGHTS`.
//!
//! Takes the result of one night of `kvmb backup` in a repository and in this host's data folder, and writes as much
//! for each of the given number of nights before it: restorable points, each with its own block and continuing from the
//! previous point, in their own packs and index files; the runs of each machine in the history; and the jobs with their
//! records. `.ci/bench.d/console` shows the result in the web console.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, FixedOffset, TimeDelta};
use kvmb::repo::{
    BlobKind, Content, Id, Index, LockMode, Node, NodeKind, Password, Permit, Repository, Snapshot, Tree, Writer,
    WriterOptions, read_tree, write_tree,
};
use kvmb::storage::LocalStorage;
use rayon::prelude::*;
use serde_json::{Value, json};

const MANIFEST: &str = "point.json";

/// A repository with the points of one night.
struct FirstNight {
    repo: Repository,
    index: Arc<Index>,
}

/// The content of a machine.
struct Machine {
    name: String,
    snapshot: Value,
    manifest: Value,
    folder: Tree,
    /// The folder of each disk, and its first block.
    disks: HashMap<String, (Tree, Vec<u8>)>,
}

/// The points of a machine: number of nights ago → id.
type Points = HashMap<i64, Id>;

fn content(node: &Node) -> Vec<Id> {
    match &node.kind {
        NodeKind::File { content, .. } => content.iter().collect(),
        _ => panic!("{:?} is no file", node.name),
    }
}

/// Moves the times in these fields into the past.
fn move_times(value: &mut Value, names: &[&str], ago: TimeDelta) {
    for name in names {
        if let Some(time) = value[*name].as_str() {
            let time: DateTime<FixedOffset> = time.parse().expect("a time");
            value[*name] = (time - ago).to_rfc3339().into();
        }
    }
}

impl FirstNight {
    fn open(repo: &Path, password: &Path) -> FirstNight {
        let password = std::fs::read_to_string(password).expect("read the password");
        let password = Password::new(password.trim_end().to_owned());
        let repo = Repository::open(Arc::new(LocalStorage::new(repo)), &password).expect("open the repository");
        let index = repo.load_index().expect("load the index");
        FirstNight { repo, index }
    }

    fn tree(&self, id: &Id) -> Tree {
        read_tree(&self.repo, &self.index, id).expect("read a tree")
    }

    fn file(&self, node: &Node) -> Vec<u8> {
        let blob = |id: &Id| self.repo.read_blob(&self.index, id).expect("read a block");
        content(node).iter().flat_map(blob).collect()
    }

    fn machine(&self, snapshot: &Snapshot) -> Machine {
        let root = self.tree(&snapshot.tree);
        let name = root.nodes[0].name.to_string_lossy().into_owned();
        let folder = self.tree(&root.subtree(&name).expect("the folder of the machine"));
        let manifest = self.file(folder.get(MANIFEST).expect("a manifest"));
        let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest");
        let disk = |disk: &Value| {
            let disk = disk["disk"].as_str().expect("the name of a disk");
            let tree = self.tree(&folder.subtree(disk).expect("the folder of a disk"));
            let first = content(&tree.nodes[0])[0];
            (disk.to_owned(), (tree, self.repo.read_blob(&self.index, &first).expect("read a block")))
        };
        let disks = manifest["disks"].as_array().expect("disks").iter().map(disk).collect();
        let snapshot = serde_json::to_value(snapshot).expect("a snapshot");
        Machine { name, snapshot, manifest, folder, disks }
    }

    /// Writes the points of a machine, oldest first.
    fn write_points(&self, machine: &Machine, nights: i64, permit: &Permit) -> Points {
        let (mut points, mut parent) = (Points::new(), None);
        for night in (1..=nights).rev() {
            let writer = Writer::new(&self.repo, Arc::clone(&self.index), WriterOptions::default(), permit);
            let tree = machine.write_night(&writer, night, parent);
            writer.finish().expect("store the point");
            let mut snapshot = machine.snapshot.clone();
            move_times(&mut snapshot, &["time"], TimeDelta::days(night));
            (snapshot["tree"], snapshot["parent"]) = (json!(tree), json!(parent));
            let snapshot: Snapshot = serde_json::from_value(snapshot).expect("a snapshot");
            let id = self.repo.save_snapshot(&snapshot, permit).expect("store the snapshot");
            points.insert(night, id);
            parent = Some(id);
        }
        points
    }
}

impl Machine {
    /// Stores the tree of a point that is this many nights old.
    fn write_night(&self, writer: &Writer, night: i64, parent: Option<Id>) -> Id {
        let put = |bytes: &[u8]| writer.put(BlobKind::Data, bytes).expect("store a block").id;
        let mut manifest = self.manifest.clone();
        move_times(&mut manifest, &["captured_at"], TimeDelta::days(night));
        let node = |node: &Node| {
            let mut node = node.clone();
            let name = node.name.to_string_lossy().into_owned();
            if let Some((folder, block)) = self.disks.get(&name) {
                let mut file = folder.nodes[0].clone();
                let mut block = block.clone();
                let label = format!("{} {name} {night} nights ago", self.name);
                block[..label.len()].copy_from_slice(label.as_bytes());
                if let NodeKind::File { content, .. } = &mut file.kind {
                    *content = [put(&block)].into_iter().chain(content.iter().skip(1)).collect();
                }
                node.kind = NodeKind::Dir { subtree: write_tree(writer, &[file]).expect("store a tree") };
            } else if name == MANIFEST {
                manifest["parent"] = json!(parent);
                let bytes = serde_json::to_vec(&manifest).expect("a manifest");
                let content = Content::from_iter([put(&bytes)]);
                node.kind = NodeKind::File { size_bytes: bytes.len() as u64, content };
            }
            node
        };
        let nodes: Vec<Node> = self.folder.nodes.iter().map(node).collect();
        let folder = write_tree(writer, &nodes).expect("store a tree");
        let time = self.snapshot["time"].as_str().and_then(|time| time.parse().ok()).expect("a time");
        write_tree(writer, &[Node::dir(&*self.name, time, folder)]).expect("store a tree")
    }
}

/// The host's records of the night, in kvmb's data folder.
struct HostMemory<'a> {
    folder: &'a Path,
    nights: i64,
    points: &'a HashMap<String, Points>,
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("read a file")).expect("JSON")
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, serde_json::to_vec(value).expect("JSON")).expect("write a file");
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).expect("read a folder").map(|entry| entry.expect("an entry").path()).collect()
}

/// Returns the id of a run this many nights before another.
fn run_id(run: &str, night: i64) -> String {
    let number = u32::from_str_radix(run, 16).expect("the id of a run");
    format!("{:08x}", number.wrapping_add(0x0101_0101 * night as u32))
}

/// Repeats the last entry of a list for each night before it.
fn repeat_last(list: &mut Value, nights: i64, change: impl Fn(&mut Value, i64)) {
    let list = list.as_array_mut().expect("a list");
    let last = list.last().expect("an entry").clone();
    let earlier = (1..=nights).rev().map(|night| {
        let mut entry = last.clone();
        change(&mut entry, night);
        entry
    });
    *list = earlier.chain([last.clone()]).collect();
}

impl HostMemory<'_> {
    /// Writes the runs of each machine, and the sizes of the repository.
    fn write_history(&self) {
        for path in files_in(&self.folder.join("history")).iter().flat_map(|folder| files_in(folder)) {
            let mut memory = read_json(&path);
            move_times(&mut memory, &["since"], TimeDelta::days(self.nights));
            if path.file_name().is_some_and(|name| name == "repository") {
                repeat_last(&mut memory["sizes"], self.nights, |size, night| {
                    move_times(size, &["at"], TimeDelta::days(night));
                    let bytes = size["stored_bytes"].as_i64().expect("a size");
                    size["stored_bytes"] = json!(bytes * (self.nights + 1 - night) / (self.nights + 1));
                });
            } else {
                repeat_last(&mut memory["runs"], self.nights, |run, night| {
                    move_times(run, &["began_at", "ended_at"], TimeDelta::days(night));
                    run["run"] = run_id(run["run"].as_str().expect("an id"), night).into();
                });
            }
            write_json(&path, &memory);
        }
    }

    /// Writes the jobs, with the points that they stored.
    fn write_jobs(&self) {
        let jobs = self.folder.join("jobs");
        for path in files_in(&jobs).iter().filter(|path| path.extension().is_some_and(|end| end == "json")) {
            let file = read_json(path);
            let records = std::fs::read_to_string(path.with_extension("records")).expect("read the records");
            let records: Vec<Value> = records.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            for night in 1..=self.nights {
                let mut file = file.clone();
                let id = run_id(file["job"]["job"].as_str().expect("an id"), night);
                file["job"]["job"] = json!(id);
                move_times(&mut file["job"], &["began_at", "ended_at"], TimeDelta::days(night));
                write_json(&jobs.join(format!("{id}.json")), &file);
                let lines: String = records.iter().map(|record| self.record_of(record.clone(), night)).collect();
                std::fs::write(jobs.join(format!("{id}.records")), lines).expect("write a file");
            }
        }
    }

    /// Returns the line that a backup printed this many nights ago.
    fn record_of(&self, mut record: Value, night: i64) -> String {
        if let Some(points) = record["machine"].as_str().and_then(|machine| self.points.get(machine)) {
            move_times(&mut record, &["captured_at"], TimeDelta::days(night));
            record["point"] = json!(points[&night]);
            record["short_id"] = json!(points[&night].to_string()[..8]);
        }
        format!("{record}\n")
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [repo, password, data, nights] = &words[..] else {
        // `cargo bench` runs every benchmark, without arguments.
        println!("many_nights: needs REPOSITORY PASSWORD-FILE DATA-FOLDER NIGHTS");
        return;
    };
    let nights: i64 = nights.parse().expect("a number of nights");
    let first = FirstNight::open(Path::new(repo), Path::new(password));
    let lock = first.repo.lock(LockMode::Shared, Duration::ZERO).expect("lock the repository");
    let permit = lock.permit();
    let snapshots = first.repo.snapshots().expect("list the snapshots").snapshots;
    let write = |machine: Machine| (machine.name.clone(), first.write_points(&machine, nights, &permit));
    let points: HashMap<String, Points> =
        snapshots.par_iter().map(|stored| write(first.machine(&stored.snapshot))).collect();
    lock.release().expect("release the lock");
    let memory = HostMemory { folder: Path::new(data), nights, points: &points };
    memory.write_history();
    memory.write_jobs();
    println!("{} points written", points.values().map(HashMap::len).sum::<usize>());
}
