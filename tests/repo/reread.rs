//! Data that arrives corrupted over a network is read once more; damaged data is not read more often than that.

// A test panics if a result is not what it expects.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::support::repo::{CHUNK, disk, password, read_disk, try_read_disk, write_disk};
use kvmb::repo::{CheckOptions, Repository, check};
use kvmb::storage::testing::{FaultEffect, FaultStorage, InjectedFault, MemoryStorage, Operation};
use kvmb::storage::{FileKind, Storage, Transit};

/// A repository behind a network that injects faults.
struct Scene {
    memory: Arc<MemoryStorage>,
    network: Arc<FaultStorage>,
    repo: Repository,
}

impl Scene {
    fn behind(transit: Transit) -> Scene {
        let memory = Arc::new(MemoryStorage::behind(transit));
        let network = Arc::new(FaultStorage::new(Arc::clone(&memory) as Arc<dyn Storage>));
        let repo = Repository::create(Arc::clone(&network) as Arc<dyn Storage>, &password()).unwrap();
        Scene { memory, network, repo }
    }

    fn open(&self) -> kvmb::repo::Result<Repository> {
        Repository::open(Arc::clone(&self.network) as Arc<dyn Storage>, &password())
    }

    /// Returns how often something was read.
    fn reads(&self, operation: Operation, kind: Option<FileKind>) -> usize {
        let calls = self.network.calls().into_iter();
        calls.filter(|call| call.operation == operation && (kind.is_none() || call.kind == kind)).count()
    }

    /// Changes a byte of the only file of a kind.
    fn damage(&self, kind: FileKind) {
        let [file] = &self.memory.list(kind).unwrap()[..] else { panic!("not one {kind}") };
        let mut bytes = self.memory.read(kind, &file.name).unwrap();
        bytes[2] ^= 1;
        self.memory.replace(kind, &file.name, Some(bytes));
    }
}

#[test]
fn data_corrupted_in_transit_is_read_again() {
    let scene = Scene::behind(Transit::Protected);
    let images = [disk(5 * CHUNK, 1), disk(3 * CHUNK, 2)];
    let points = images.each_ref().map(|image| write_disk(&scene.repo, "vm1", image));
    for operation in [Operation::Read, Operation::ReadRange] {
        for number in 1.. {
            let before = scene.reads(operation, None);
            scene.network.add(InjectedFault::every(operation, FaultEffect::FlipBit(2)).nth(number));
            let repo = scene.open().unwrap();
            assert_eq!(repo.snapshots().unwrap().damaged.len(), 0, "{operation:?} {number}");
            for (point, image) in points.iter().zip(&images) {
                assert!(read_disk(&repo, &repo.snapshot(point).unwrap(), "vm1") == *image, "{operation:?} {number}");
            }
            let options = CheckOptions { quick: false, pack_headers: true };
            let report = check(&repo, options, &AtomicBool::new(false)).unwrap();
            assert!(report.damage.is_empty(), "{operation:?} {number}: {:?}", report.damage);
            let reads = scene.reads(operation, None) - before;
            assert!(reads > 5, "{reads} reads are too few for this test");
            scene.network.heal();
            if number > reads as u64 {
                break;
            }
        }
    }
}

#[test]
fn damage_has_the_same_message_and_few_reads_on_any_transport() {
    let ends = [Transit::Local, Transit::Protected, Transit::Unprotected].map(|transit| {
        [FileKind::Key, FileKind::Config, FileKind::Snapshot, FileKind::Index, FileKind::Pack].map(|kind| {
            let scene = Scene::behind(transit);
            let point = write_disk(&scene.repo, "vm1", &disk(CHUNK, 1));
            let mut pack = None;
            if kind == FileKind::Pack {
                // The larger one has the data.
                pack = scene.memory.list(kind).unwrap().into_iter().max_by_key(|file| file.size_bytes);
                let name = &pack.as_ref().unwrap().name;
                let mut bytes = scene.memory.read(kind, name).unwrap();
                bytes[2] ^= 1;
                scene.memory.replace(kind, name, Some(bytes));
            } else {
                scene.damage(kind);
            }
            let before = scene.network.calls().len();
            let read = || {
                let repo = scene.open()?;
                try_read_disk(&repo, &repo.snapshot(&point)?, "vm1")
            };
            let error = read().unwrap_err().to_string();
            // The blobs of trees in the other pack are shorter.
            let is_it = |length: usize| pack.as_ref().is_none_or(|pack| length as u64 > pack.size_bytes / 2);
            let calls = &scene.network.calls()[before..];
            let is_read = |operation| matches!(operation, Operation::Read | Operation::ReadRange);
            let reads =
                calls.iter().filter(|c| is_read(c.operation) && c.kind == Some(kind) && is_it(c.length)).count();
            let most = if transit == Transit::Unprotected { 8 } else { 2 };
            assert!((1..=most).contains(&reads), "{transit:?} {kind}: {reads}");
            // File names differ between repositories.
            let words = error.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !is_hex(word));
            words.collect::<Vec<_>>().join(" ")
        })
    });
    assert_eq!(ends[0], ends[1]);
    assert_eq!(ends[0], ends[2]);
}

fn is_hex(word: &str) -> bool {
    word.bytes().all(|byte| matches!(byte, b'a'..=b'f'))
}
