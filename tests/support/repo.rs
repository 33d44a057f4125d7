//! A private folder with a repository, and restic for it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, FixedOffset};
use kvmb::repo::{
    BlobKind, CheckOptions, Content, Id, Index, LockMode, LockTiming, Node, NodeKind, Password, Permit, Repository,
    Snapshot, Tree, Writer, WriterOptions, check, read_blobs, read_groups, read_tree, write_tree,
};
use kvmb::storage::{LocalStorage, Storage};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

pub const PASSWORD: &str = "open sesame";
/// Small, so that small disks have many chunks; a multiple of the zero blob.
pub const CHUNK: usize = 512 << 10;

pub fn password() -> Password {
    Password::new(PASSWORD.to_owned())
}

pub fn time() -> DateTime<FixedOffset> {
    DateTime::parse_from_rfc3339("2026-11-23T14:55:59.12+01:00").unwrap()
}

/// Waits for a condition that another thread or process brings about.
pub fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A private folder whose subfolder `repo` is the repository.
pub struct Home {
    folder: tempfile::TempDir,
    url: String,
}

impl Home {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().join("repo").to_str().unwrap().to_owned();
        Home { folder, url }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(LocalStorage::new(self.path("repo")))
    }

    pub fn create(&self) -> Repository {
        Repository::create(self.storage(), &password()).unwrap()
    }

    pub fn open(&self) -> Repository {
        self.open_at("repo")
    }

    pub fn open_at(&self, name: &str) -> Repository {
        Repository::open(Arc::new(LocalStorage::new(self.path(name))), &password()).unwrap()
    }

    /// Fails unless kvmb's check finds no errors.
    pub fn clean(&self, repo: &Repository) {
        let options = CheckOptions { quick: false, pack_headers: true };
        let report = check(repo, options, &AtomicBool::new(false)).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    }

    pub fn restic_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("restic");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("TMPDIR", self.folder.path())
            .env("RESTIC_CACHE_DIR", self.path("cache"))
            .env("RESTIC_PASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !arguments.contains(&"-r") {
            command.args(["-r", &self.url]);
        }
        command.args(arguments);
        command
    }

    fn run(command: &mut Command) -> Output {
        command.output().expect("restic is missing: apt-get install restic")
    }

    fn succeeded(command: &mut Command) -> Output {
        let output = Self::run(command);
        assert!(
            output.status.success(),
            "{command:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    pub fn restic(&self, arguments: &[&str]) -> String {
        self.restic_with(arguments, &[])
    }

    pub fn restic_at(&self, name: &str, arguments: &[&str]) -> String {
        let path = self.path(name);
        let mut all = vec!["-r", path.to_str().unwrap()];
        all.extend(arguments);
        self.restic(&all)
    }

    pub fn restic_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> String {
        let mut command = self.restic_command(arguments);
        command.envs(environment.iter().copied());
        String::from_utf8_lossy(&Self::succeeded(&mut command).stdout).into_owned()
    }

    pub fn restic_bytes(&self, arguments: &[&str]) -> Vec<u8> {
        Self::succeeded(&mut self.restic_command(arguments)).stdout
    }

    pub fn restic_fails(&self, arguments: &[&str]) -> String {
        let output = Self::run(&mut self.restic_command(arguments));
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// Returns a disk of odd size with text, noise and holes.
pub fn disk(length: usize, seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut disk = vec![0; length + 1234];
    for (number, chunk) in disk.chunks_mut(CHUNK).enumerate() {
        match number % 4 {
            0 => random.fill_bytes(chunk),
            1 => {
                for (line, part) in chunk.chunks_mut(32).enumerate() {
                    let text = format!("line {line} of disk {seed} chunk {number:16}");
                    part.copy_from_slice(&text.as_bytes()[..part.len()]);
                }
            }
            _ => {}
        }
    }
    disk
}

pub fn writer(repo: &Repository) -> Writer {
    writer_that_knows(repo, repo.load_index().unwrap())
}

/// Returns a writer that considers everything outside this index new.
pub fn writer_that_knows(repo: &Repository, index: Arc<Index>) -> Writer {
    let options = WriterOptions { pack_bytes: 1 << 20, ..Default::default() };
    Writer::new(repo, index, options, &permit(repo))
}

/// Stores a snapshot of a machine with one disk, in kvmb's layout.
pub fn write_disk(repo: &Repository, machine: &str, disk: &[u8]) -> Id {
    write_disk_with(repo, writer(repo), machine, disk)
}

/// The same, with this writer.
pub fn write_disk_with(repo: &Repository, writer: Writer, machine: &str, disk: &[u8]) -> Id {
    let mut content = Content::new();
    for chunk in disk.chunks(CHUNK) {
        content.push(writer.put(BlobKind::Data, chunk).unwrap().id);
    }
    let file = Node::file("vda.raw", time(), disk.len() as u64, content);
    let folder = write_tree(&writer, &[file]).unwrap();
    let machine_tree = write_tree(&writer, &[Node::dir("vda", time(), folder)]).unwrap();
    let root = write_tree(&writer, &[Node::dir(machine, time(), machine_tree)]).unwrap();
    writer.finish().unwrap();
    let mut snapshot = Snapshot::new(root, vec![format!("/{machine}")]);
    snapshot.tags = vec!["kvmb".into(), format!("machine={machine}")];
    repo.save_snapshot(&snapshot, &permit(repo)).unwrap()
}

pub fn try_read_disk(repo: &Repository, snapshot: &Snapshot, machine: &str) -> kvmb::repo::Result<Vec<u8>> {
    let index = repo.load_index()?;
    let mut tree = read_tree(repo, &index, &snapshot.tree)?;
    for folder in [machine, "vda"] {
        tree = read_tree(repo, &index, &tree.subtree(folder).unwrap())?;
    }
    try_bytes_of(repo, &index, &tree, "vda.raw")
}

pub fn read_disk(repo: &Repository, snapshot: &Snapshot, machine: &str) -> Vec<u8> {
    try_read_disk(repo, snapshot, machine).unwrap()
}

pub fn bytes_of(repo: &Repository, index: &Index, tree: &Tree, name: impl AsRef<OsStr>) -> Vec<u8> {
    try_bytes_of(repo, index, tree, name).unwrap()
}

/// Reads a whole file with `read_blobs`, and each blob again with `read_blob`.
pub fn try_bytes_of(
    repo: &Repository,
    index: &Index,
    tree: &Tree,
    name: impl AsRef<OsStr>,
) -> kvmb::repo::Result<Vec<u8>> {
    let NodeKind::File { size_bytes, content } = &tree.get(name).unwrap().kind else {
        panic!("not a file");
    };
    let mut ids: Vec<Id> = content.iter().collect();
    ids.sort();
    ids.dedup();
    let blobs = Mutex::new(HashMap::new());
    let failure = Mutex::new(None);
    let stop = AtomicBool::new(false);
    read_blobs(repo, index, ids.clone(), 3, &stop, |id, result| {
        match result {
            Ok(bytes) => {
                blobs.lock().unwrap().insert(id, bytes.to_vec());
            }
            Err(error) => *failure.lock().unwrap() = Some(error),
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failure.into_inner().unwrap() {
        return Err(error);
    }
    let blobs = blobs.into_inner().unwrap();
    assert_eq!(blobs.len(), ids.len());
    let mut grouped = read_groups(index, &ids, 1 << 20).concat();
    grouped.sort();
    assert_eq!(grouped, ids);
    for id in ids.iter().take(5) {
        assert!(repo.read_blob(index, id)? == blobs[id]);
    }
    let mut bytes = Vec::new();
    content.iter().for_each(|id| bytes.extend_from_slice(&blobs[&id]));
    assert_eq!(bytes.len() as u64, *size_bytes);
    Ok(bytes)
}

/// Returns a permit to change a repository, from an uncontended lock.
pub fn permit(repo: &Repository) -> Permit {
    let timing = LockTiming { settle: Duration::ZERO, ..LockTiming::default() };
    repo.lock_with(LockMode::Shared, Duration::from_secs(10), timing).unwrap().permit()
}
