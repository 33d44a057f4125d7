//! The conformance suite for storages and decorators.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::storage::{Error, FileAction, FileKind, Storage};

/// Checks everything that [`Storage`] promises, on an **empty** storage. Panics if a promise is not kept.
///
/// Call it for every implementation, and for every decorator around [`super::MemoryStorage`].
pub fn conformance(storage: &dyn Storage) {
    conformance_of(storage, true);
}

/// Like [`conformance`], for a server on which a file that is being replaced is absent for a moment: some refuse to
/// overwrite a file, so that it must be removed first.
pub fn conformance_without_overwriting(storage: &dyn Storage) {
    conformance_of(storage, false);
}

fn conformance_of(storage: &dyn Storage, overwrites: bool) {
    assert!(!storage.url().is_empty(), "a storage has an address");
    layout(storage);
    for (number, kind) in FileKind::ALL.into_iter().enumerate() {
        one_file(storage, kind, &name(number));
    }
    for (number, kind) in FileKind::ALL.into_iter().enumerate() {
        exclusive_creation(storage, kind, &name(number));
    }
    one_creator_of_many(storage);
    ranges(storage);
    nothing_is_read_that_is_too_long(storage);
    many_files(storage);
    many_threads(storage, overwrites);
    storage.free_bytes().expect("free_bytes");
}

/// Checks the additional promises of a storage in a folder. `root` is that folder as seen by this host, and must **not
/// exist** yet.
pub fn folder_conformance(storage: &dyn Storage, root: &Path) {
    nothing_is_written_where_the_root_is_gone(storage, root);
    storage.create_layout().expect("create_layout");
    stale_files_go_and_fresh_ones_stay(storage, root);
    files_are_private(storage, root);
    folders_that_a_copy_left_out_are_made_again(storage, root);
}

fn nothing_is_written_where_the_root_is_gone(storage: &dyn Storage, root: &Path) {
    let error = storage.write(FileKind::Index, &name(1), b"x").expect_err("there is no root");
    assert!(matches!(error, Error::Io { action: FileAction::Write, .. }) && !error.is_transient(), "{error:?}");
    assert!(!root.exists(), "it may be the mount point of a disk");
}

fn stale_files_go_and_fresh_ones_stay(storage: &dyn Storage, root: &Path) {
    let beside = |number: u32| root.join("snapshots").join(format!("{}-tmp-{number}", name(1)));
    let (fresh, stale) = (beside(1), beside(2));
    for path in [&fresh, &stale] {
        fs::write(path, "half").expect("write");
    }
    let long_ago = SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60);
    let file = fs::File::options().write(true).open(&stale).expect("open");
    file.set_modified(long_ago).expect("set_modified");
    assert_eq!(names(storage, FileKind::Snapshot), Vec::<String>::new());
    assert!(stale.exists(), "who only reads removes nothing");
    storage.write(FileKind::Snapshot, &name(1), b"x").expect("write");
    assert!(fresh.exists(), "another writer may be at it");
    assert!(!stale.exists(), "a writer of days ago is dead");
    assert_eq!(names(storage, FileKind::Snapshot), [name(1)]);
}

fn files_are_private(storage: &dyn Storage, root: &Path) {
    storage.write(FileKind::Pack, &name(2), b"x").expect("write");
    storage.write(FileKind::Config, "", b"x").expect("write");
    let mode = |path: &str| fs::metadata(root.join(path)).expect(path).permissions().mode() & 0o777;
    let fan = &name(2)[..2];
    assert_eq!([mode(""), mode("data"), mode(&format!("data/{fan}")), mode("keys")], [0o700; 4]);
    assert_eq!([mode(&format!("data/{fan}/{}", name(2))), mode("config")], [0o600; 2]);
}

fn folders_that_a_copy_left_out_are_made_again(storage: &dyn Storage, root: &Path) {
    for folder in ["locks", "data"] {
        fs::remove_dir_all(root.join(folder)).expect("remove");
    }
    assert_eq!(names(storage, FileKind::Lock), Vec::<String>::new(), "none is as good as empty");
    assert!(storage.list(FileKind::Pack).is_err(), "without packs it is no repository");
    storage.write(FileKind::Lock, &name(3), b"x").expect("write");
    storage.write(FileKind::Pack, &name(3), b"x").expect("write");
    assert_eq!(names(storage, FileKind::Pack), [name(3)]);
}

/// Returns 64 hex digits that differ for every number, with varying first bytes.
fn name(number: usize) -> String {
    format!("{:02x}{:062x}", (number * 37) % 256, number)
}

fn names(storage: &dyn Storage, kind: FileKind) -> Vec<String> {
    let mut names: Vec<_> = storage.list(kind).expect("list").into_iter().map(|file| file.name).collect();
    names.sort();
    names
}

fn layout(storage: &dyn Storage) {
    storage.create_layout().expect("create_layout");
    storage.create_layout().expect("create_layout where it is there already");
    for kind in FileKind::ALL {
        assert_eq!(names(storage, kind), Vec::<String>::new(), "{kind}: empty at first");
    }
}

fn one_file(storage: &dyn Storage, kind: FileKind, name: &str) {
    let listed = if kind == FileKind::Config { "" } else { name };
    let missing = |result: Result<(), Error>, what: &str| {
        let error = result.expect_err(what);
        assert!(error.is_not_found(), "{kind}: {what}: {error:?}");
    };
    missing(storage.size(kind, name).map(drop), "size of a file that is not there");
    missing(storage.read(kind, name).map(drop), "read of a file that is not there");
    missing(storage.read_range(kind, name, 0, 1).map(drop), "read_range of a file that is not there");
    missing(storage.remove(kind, name), "remove of a file that is not there");
    storage.sync_folder(kind, name).expect("sync_folder where nothing is");
    missing(storage.size(kind, name).map(drop), "size after sync_folder");

    storage.write(kind, name, b"first").expect("write");
    assert_eq!(storage.read(kind, name).expect("read"), b"first");
    assert_eq!(storage.size(kind, name).expect("size"), 5);
    let files = storage.list(kind).expect("list");
    assert_eq!(files.len(), 1, "{kind}: one file, no temporary ones");
    assert_eq!(files[0].name, listed);
    assert_eq!(files[0].size_bytes, 5);

    storage.write(kind, name, b"second!").expect("write over a file");
    storage.sync_folder(kind, name).expect("sync_folder");
    assert_eq!(storage.read(kind, name).expect("read"), b"second!");
    storage.write(kind, name, b"").expect("write nothing");
    assert_eq!(storage.read(kind, name).expect("read"), b"");

    storage.remove(kind, name).expect("remove");
    missing(storage.size(kind, name).map(drop), "size after remove");
    missing(storage.remove(kind, name), "second remove");
    assert_eq!(names(storage, kind), Vec::<String>::new());
}

fn nothing_is_read_that_is_too_long(storage: &dyn Storage) {
    for kind in [FileKind::Config, FileKind::Key, FileKind::Lock] {
        let (name, longest) = (name(101), kind.longest_bytes() as usize);
        storage.write(kind, &name, &vec![7; longest]).expect("write");
        assert_eq!(storage.read(kind, &name).expect("read").len(), longest);
        storage.write(kind, &name, &vec![7; longest + 1]).expect("write");
        let error = storage.read(kind, &name).expect_err("one byte more");
        assert!(matches!(error, Error::TooLong { .. }) && !error.is_transient(), "{kind}: {error:?}");
        storage.remove(kind, &name).expect("remove");
    }
}

fn ranges(storage: &dyn Storage) {
    let name = name(100);
    let contents: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    storage.write(FileKind::Pack, &name, &contents).expect("write");
    for (offset, length) in [(0usize, 0usize), (0, 1), (1, 4096), (65_535, 2), (99_999, 1), (100_000, 0), (0, 100_000)]
    {
        let range = storage.read_range(FileKind::Pack, &name, offset as u64, length).expect("range");
        assert_eq!(range, &contents[offset..offset + length], "{length} bytes from {offset}");
    }
    for (offset, length) in [(0u64, 100_001usize), (99_999, 2), (200_000, 1), (u64::MAX, 2), (5, usize::MAX / 2)] {
        let error = storage.read_range(FileKind::Pack, &name, offset, length).expect_err("beyond the end");
        assert!(matches!(error, Error::TooShort { kind: FileKind::Pack, .. }), "{error:?}");
    }
    storage.remove(FileKind::Pack, &name).expect("remove");
}

fn many_files(storage: &dyn Storage) {
    let mut wanted: Vec<String> = (0..300).map(name).collect();
    for name in &wanted {
        storage.write(FileKind::Pack, name, name.as_bytes()).expect("write");
    }
    wanted.sort();
    assert_eq!(names(storage, FileKind::Pack), wanted);
    assert_eq!(names(storage, FileKind::Index), Vec::<String>::new(), "kinds do not mix");
    for name in &wanted {
        assert_eq!(storage.read(FileKind::Pack, name).expect("read"), name.as_bytes());
        storage.remove(FileKind::Pack, name).expect("remove");
    }
}

fn exclusive_creation(storage: &dyn Storage, kind: FileKind, name: &str) {
    let missing = storage.remove_exact(kind, name, b"x").expect_err("nothing is there");
    assert!(missing.is_not_found(), "{kind}: {missing:?}");
    storage.create(kind, name, b"first").expect("create");
    for contents in [b"fi", b"other".as_slice()] {
        let error = storage.create(kind, name, contents).expect_err("the name is taken");
        assert!(matches!(error, Error::Exists { .. }) && !error.is_transient(), "{kind}: {error:?}");
        assert_eq!(storage.read(kind, name).expect("read"), b"first", "{kind}: what is there stays");
    }
    assert!(!storage.remove_exact(kind, name, b"other").expect("remove_exact"), "{kind}: it is another");
    assert_eq!(storage.read(kind, name).expect("read"), b"first", "{kind}");
    assert!(storage.remove_exact(kind, name, b"first").expect("remove_exact"), "{kind}");
    assert!(storage.list(kind).expect("list").is_empty(), "{kind}: nothing is left");
}

fn one_creator_of_many(storage: &dyn Storage) {
    for round in 0..5u8 {
        let created = std::thread::scope(|scope| {
            let create = |thread: u8| storage.create(FileKind::Config, "", &[thread; 155]).map(|()| thread);
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || create(thread))).collect();
            let results = threads.into_iter().map(|thread| thread.join().expect("a thread"));
            results.filter_map(Result::ok).collect::<Vec<_>>()
        });
        let [winner] = created[..] else { panic!("round {round}: {created:?} created the same file") };
        assert_eq!(storage.read(FileKind::Config, "").expect("read"), [winner; 155], "round {round}");
        storage.remove(FileKind::Config, "").expect("remove");
    }
}

fn many_threads(storage: &dyn Storage, overwrites: bool) {
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            scope.spawn(move || {
                for number in 0..20 {
                    let own = name(1000 + thread * 100 + number);
                    let contents = vec![thread as u8; 10_000 + number];
                    storage.write(FileKind::Pack, &own, &contents).expect("write");
                    // A name that all threads write: a reader must see the whole contents of one of them, never a
                    // mixture.
                    if overwrites {
                        storage.write(FileKind::Index, &name(1), &contents).expect("write");
                        let shared = storage.read(FileKind::Index, &name(1)).expect("read");
                        assert!(shared.windows(2).all(|pair| pair[0] == pair[1]), "a mixture");
                    }
                    assert_eq!(storage.read(FileKind::Pack, &own).expect("read"), contents);
                }
            });
        }
    });
    assert_eq!(names(storage, FileKind::Pack).len(), 80);
    for name in names(storage, FileKind::Pack) {
        storage.remove(FileKind::Pack, &name).expect("remove");
    }
    if overwrites {
        storage.remove(FileKind::Index, &name(1)).expect("remove");
    }
}
