//! Every storage, and every decorator, keeps the promises of the trait.

// A test stops at what it does not expect.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kvmb::storage::testing::{Effect, Fault, FaultStorage, MemoryStorage, Operation, conformance};
use kvmb::storage::{Error, FileKind, LocalStorage, Storage};

const NAME: &str = "aa0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";

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
fn local_files_are_private() {
    let (_folder, storage) = local();
    storage.create_layout().unwrap();
    storage.write(FileKind::Pack, NAME, b"x").unwrap();
    let mode = |path: &str| {
        let path = storage.root().join(path);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(""), 0o700);
    assert_eq!(mode("data"), 0o700);
    assert_eq!(mode("data/aa"), 0o700);
    assert_eq!(mode("keys"), 0o700);
    assert_eq!(mode(&format!("data/aa/{NAME}")), 0o600);
}

#[test]
fn temporary_files_are_hidden_and_removed_when_stale() {
    let (_folder, storage) = local();
    storage.create_layout().unwrap();
    let folder = storage.root().join("data/aa");
    let fresh = folder.join(format!("{NAME}-tmp-1"));
    let stale = folder.join(format!("{NAME}-tmp-2"));
    for path in [&fresh, &stale] {
        fs::write(path, "half").unwrap();
    }
    let long_ago = SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60);
    let file = fs::File::options().write(true).open(&stale).unwrap();
    file.set_modified(long_ago).unwrap();
    assert_eq!(storage.list(FileKind::Pack).unwrap(), []);

    storage.write(FileKind::Pack, NAME, b"x").unwrap();
    assert!(fresh.exists(), "another writer may be at it");
    assert!(!stale.exists());
    assert_eq!(storage.list(FileKind::Pack).unwrap().len(), 1);
}

#[test]
fn nothing_is_written_where_the_root_is_gone() {
    let (_folder, storage) = local();
    let error = storage.write(FileKind::Index, NAME, b"x").unwrap_err();
    assert!(matches!(error, Error::Io { action: "write", .. }), "{error:?}");
    assert!(!storage.root().exists());
}

#[test]
fn a_folder_that_a_copy_left_out_is_made_again() {
    let (_folder, storage) = local();
    storage.create_layout().unwrap();
    for folder in ["locks", "data"] {
        fs::remove_dir_all(storage.root().join(folder)).unwrap();
    }
    assert_eq!(storage.list(FileKind::Lock).unwrap(), []);
    assert!(storage.list(FileKind::Pack).is_err());
    storage.write(FileKind::Lock, NAME, b"x").unwrap();
    storage.write(FileKind::Pack, NAME, b"x").unwrap();
    assert_eq!(storage.list(FileKind::Pack).unwrap().len(), 1);
}

#[test]
fn faults_do_what_they_say() {
    let storage = FaultStorage::new(Arc::new(MemoryStorage::new()));
    storage.write(FileKind::Pack, "a", b"abcdef").unwrap();
    storage.add(Fault::every(Operation::Read, Effect::Truncate(2)).nth(2));
    storage.add(Fault::every(Operation::Write, Effect::NoSpace).on(FileKind::Index));
    storage.add(Fault::every(Operation::ReadRange, Effect::FlipBit(0)));
    storage.add(Fault::every(Operation::Remove, Effect::FailAfter));
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
