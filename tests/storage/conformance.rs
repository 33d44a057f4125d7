//! Every storage and every decorator fulfils the contract of the trait.

// A test panics if a result is not what it expects.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvmb::storage::testing::{
    FaultEffect, FaultStorage, InjectedFault, MemoryStorage, Operation, conformance, folder_conformance,
};
use kvmb::storage::{Error, FileKind, LocalStorage, Storage};

fn local() -> (tempfile::TempDir, LocalStorage) {
    let folder = tempfile::tempdir().unwrap();
    let storage = LocalStorage::new(folder.path().join("deep/repo"));
    (folder, storage)
}

#[test]
fn memory_storage_conforms() {
    conformance(&MemoryStorage::new());
}

#[test]
fn local_storage_conforms() {
    let (_folder, storage) = local();
    conformance(&storage);
}

#[test]
fn a_fault_storage_without_faults_conforms() {
    conformance(&FaultStorage::new(Arc::new(MemoryStorage::new())));
}

#[test]
fn local_storage_passes_folder_conformance() {
    let (_folder, storage) = local();
    folder_conformance(&storage, storage.root());
}

/// If the folder is on a local disk, files bypass the page cache in blocks; on a tmpfs they need not.
#[test]
fn large_files_of_any_length_are_read_back_unchanged() {
    for place in ["/var/tmp", "/dev/shm"] {
        let folder = tempfile::tempdir_in(place).unwrap();
        let storage = LocalStorage::new(folder.path().join("repo"));
        storage.create_layout().unwrap();
        let contents: Vec<u8> = (0..(9_usize << 20) + 5000).map(|n| (n / 7 + n / 4096) as u8).collect();
        for (name, length) in [("aa", 2 << 20), ("ab", (2 << 20) + 1), ("ac", (5 << 20) - 1), ("ad", contents.len())] {
            let contents = &contents[..length];
            storage.write(FileKind::Pack, name, contents).unwrap();
            assert!(storage.read(FileKind::Pack, name).unwrap() == contents, "{place}: {length} bytes");
            for (at, end) in [(0, length), (1, length), (0, 2 << 20), (length / 3, length), (length - 1, length)] {
                let read = storage.read_range(FileKind::Pack, name, at as u64, end - at).unwrap();
                assert!(read == contents[at..end], "{place}: {at} to {end} of {length} bytes");
            }
            let beyond = storage.read_range(FileKind::Pack, name, 1, length).unwrap_err();
            assert!(matches!(beyond, Error::TooShort { .. }), "{beyond}");
        }
        // The gate closes between two parts.
        let passed = AtomicUsize::new(0);
        let gate = |bytes: usize| passed.fetch_add(bytes, Ordering::Relaxed) < 6 << 20;
        let stopped = storage.write_gated(FileKind::Pack, "ae", &contents, &gate);
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert_eq!(storage.list(FileKind::Pack).unwrap().len(), 4);
    }
}

#[test]
fn injected_faults_have_the_described_effects() {
    let storage = FaultStorage::new(Arc::new(MemoryStorage::new()));
    storage.write(FileKind::Pack, "a", b"abcdef").unwrap();
    storage.add(InjectedFault::every(Operation::Read, FaultEffect::Truncate(2)).nth(2));
    storage.add(InjectedFault::every(Operation::Write, FaultEffect::NoSpace).on(FileKind::Index));
    storage.add(InjectedFault::every(Operation::ReadRange, FaultEffect::FlipBit(0)));
    storage.add(InjectedFault::every(Operation::Remove, FaultEffect::FailAfter));
    assert_eq!(storage.read(FileKind::Pack, "a").unwrap(), b"abcdef");
    assert_eq!(storage.read(FileKind::Pack, "a").unwrap(), b"abcd");
    assert_eq!(storage.read(FileKind::Pack, "a").unwrap(), b"abcdef");
    assert_eq!(storage.read_range(FileKind::Pack, "a", 1, 2).unwrap(), b"cc");
    let error = storage.write(FileKind::Index, "b", b"x").unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }));
    assert!(storage.remove(FileKind::Pack, "a").is_err());
    assert!(storage.read(FileKind::Pack, "a").is_err(), "it was removed all the same");
    storage.heal();
    storage.write(FileKind::Index, "b", b"x").unwrap();
    assert_eq!(storage.written().len(), 3);
}

#[test]
fn folder_that_cannot_be_examined_is_not_an_empty_one() {
    let (_home, storage) = local();
    storage.create_layout().unwrap();
    let loop_at = |folder: &str| {
        let path = storage.root().join(folder);
        std::fs::remove_dir(&path).unwrap();
        assert!(storage.list(FileKind::Lock).is_ok() && storage.list(FileKind::Pack).is_ok(), "{folder} is missing");
        std::os::unix::fs::symlink(&path, &path).unwrap();
    };
    loop_at("data/ab");
    storage.list(FileKind::Pack).expect_err("its packs would seem to be lost");
    std::fs::remove_file(storage.root().join("data/ab")).unwrap();
    loop_at("locks");
    storage.list(FileKind::Lock).expect_err("the locks of others would be ignored");
}
