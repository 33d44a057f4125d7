//! Every storage, and every decorator, keeps the promises of the trait.

// A test stops at what it does not expect.

use std::sync::Arc;

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
fn memory_conforms() {
    conformance(&MemoryStorage::new());
}

#[test]
fn local_conforms() {
    let (_folder, storage) = local();
    conformance(&storage);
}

#[test]
fn a_fault_storage_without_faults_conforms() {
    conformance(&FaultStorage::new(Arc::new(MemoryStorage::new())));
}

#[test]
fn a_folder_of_this_host_keeps_what_folders_promise() {
    let (_folder, storage) = local();
    folder_conformance(&storage, storage.root());
}

#[test]
fn faults_do_what_they_say() {
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
