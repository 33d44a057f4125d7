//! restic and kvmb read, extend and lock each other's repositories.

// A test panics if a result is not what it expects.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::support::Env;
use crate::support::backups::{init, names_in};
use crate::support::repo::{Home, PASSWORD, bytes_of, disk, password, permit, read_disk, time, write_disk};
use kvmb::repo::{
    BlobKind, CheckOptions, Content, Error, Id, LockMode, Node, NodeKind, Password, Repository, Snapshot, Writer,
    WriterOptions, check, read_tree, write_tree, zero_blob_id,
};
use kvmb::storage::LocalStorage;

#[test]
fn restic_reads_repositories_written_by_kvmb() {
    let home = Home::new();
    let repo = home.create();
    let disk = disk(5 << 20, 12345);
    let snapshot = write_disk(&repo, "vm1", &disk);

    home.restic(&["check", "--read-data"]);
    let listed = home.restic(&["ls", "latest"]);
    assert!(listed.contains("/vm1/vda/vda.raw"), "{listed}");
    let dumped = home.restic_bytes(&["dump", "latest", "/vm1/vda/vda.raw"]);
    assert!(dumped == disk, "restic dumps other bytes");
    let target = home.path("restored");
    let mut restore = vec!["restore", "latest", "--verify", "--target", target.to_str().unwrap()];
    // Since restic 0.15.
    let can_be_sparse = home.restic(&["help", "restore"]).contains("--sparse");
    if can_be_sparse {
        restore.push("--sparse");
    }
    home.restic(&restore);
    let file = target.join("vm1/vda/vda.raw");
    assert!(fs::read(&file).unwrap() == disk);
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    if can_be_sparse {
        let holes = 1 << 20;
        assert!(metadata.blocks() * 512 < disk.len() as u64 - holes, "not sparse");
    }
    assert_eq!(metadata.mtime(), time().timestamp());
    let json = home.restic(&["snapshots", "--json"]);
    assert!(json.contains(&snapshot.to_string()), "{json}");
    assert!(json.contains("machine=vm1"), "{json}");

    // A second point that shares most data; restic removes and prunes the first one.
    let mut changed = disk.clone();
    changed[(3 << 20) + 7] ^= 1;
    write_disk(&repo, "vm1", &changed);
    home.restic(&["forget", "--prune", &snapshot.to_string()]);
    home.restic(&["check", "--read-data"]);
    let repo = home.open();
    let list = repo.snapshots().unwrap();
    assert_eq!(list.snapshots.len(), 1);
    assert!(read_disk(&repo, &list.snapshots[0].snapshot, "vm1") == changed);

    // Copied to a repository that restic created, which kvmb then reads and extends.
    home.restic_at("copied", &["init"]);
    home.restic_with(
        &["-r", home.path("copied").to_str().unwrap(), "copy", "--from-repo", home.url(), "latest"],
        &[("RESTIC_FROM_PASSWORD", PASSWORD)],
    );
    let copied = home.open_at("copied");
    let list = copied.snapshots().unwrap();
    assert!(read_disk(&copied, &list.snapshots[0].snapshot, "vm1") == changed);
    let copied_disk = write_disk(&copied, "vm1", &disk);
    home.restic_at("copied", &["check", "--read-data"]);
    let snapshot = copied.snapshot(&copied_disk).unwrap();
    assert!(read_disk(&copied, &snapshot, "vm1") == disk);
    home.clean(&repo);
    home.clean(&copied);
}

#[test]
fn kvmb_reads_repositories_written_by_restic() {
    let home = Home::new();
    home.restic(&["init"]);
    let source = home.path("source");
    fs::create_dir_all(source.join("sub folder")).unwrap();
    let big = disk(9 << 20, 3);
    fs::write(source.join("big"), &big).unwrap();
    fs::write(source.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("big", source.join("link")).unwrap();
    let names: [&[u8]; 6] = [
        b"a \"quoted\" name",
        b"back\\slash",
        b"new\nline\ttab",
        "grüße 😀\u{200b}".as_bytes(),
        b"not utf-8 \xff\xfe",
        b"<&>",
    ];
    for name in names {
        fs::write(source.join("sub folder").join(OsStr::from_bytes(name)), name).unwrap();
    }
    for extra in [&["--compression", "max"][..], &["--compression", "off", "--force"]] {
        fs::write(source.join("changing"), extra.concat()).unwrap();
        let mut arguments = vec!["backup", source.to_str().unwrap()];
        arguments.extend(extra);
        home.restic(&arguments);

        let repo = home.open();
        let index = repo.load_index().unwrap();
        let list = repo.snapshots().unwrap();
        let snapshot = &list.snapshots.last().unwrap().snapshot;
        assert_eq!(snapshot.paths, [source.to_str().unwrap()]);
        let mut tree = read_tree(&repo, &index, &snapshot.tree).unwrap();
        for folder in source.iter().skip(1) {
            tree = read_tree(&repo, &index, &tree.subtree(folder).unwrap()).unwrap();
        }
        assert!(bytes_of(&repo, &index, &tree, "big") == big);
        assert!(bytes_of(&repo, &index, &tree, "empty").is_empty());
        assert_eq!(tree.get("link").unwrap().kind, NodeKind::Other("symlink".into()));
        let sub = tree.subtree("sub folder").unwrap();
        let sub = read_tree(&repo, &index, &sub).unwrap();
        assert_eq!(sub.nodes.len(), names.len());
        for name in names {
            assert_eq!(bytes_of(&repo, &index, &sub, OsStr::from_bytes(name)), name);
        }
        home.clean(&repo);
    }
    let repo = home.open();
    write_disk(&repo, "vm1", &big);
    home.restic(&["check", "--read-data"]);
}

#[test]
fn restic_restores_unusual_names() {
    let home = Home::new();
    let repo = home.create();
    let mut names: Vec<String> = [
        "plain",
        "with space",
        "a \"quoted\" name",
        "it's",
        "back\\slash",
        "new\nline\r\ttab",
        "grüße",
        "😀\u{200b}\u{a0}e\u{301}",
        "\u{301}mark",
        "<&>",
        "\u{2028}",
        "\u{1}\u{7f}",
        "\\x41",
        "\u{10ffff}\u{e000}",
        "$(reboot);`x`",
    ]
    .map(str::to_owned)
    .to_vec();
    names.sort();
    let writer = crate::support::repo::writer(&repo);
    let nodes: Vec<Node> = names
        .iter()
        .map(|name| {
            let stored = writer.put(BlobKind::Data, name.as_bytes()).unwrap();
            let content = Content::from_iter([stored.id]);
            Node::file(name, time(), name.len() as u64, content)
        })
        .collect();
    let inner = write_tree(&writer, &nodes).unwrap();
    let folder = "fol\"der\n";
    let tree = write_tree(&writer, &[Node::dir(folder, time(), inner)]).unwrap();
    writer.finish().unwrap();
    repo.save_snapshot(&Snapshot::new(tree, vec!["/x".into()]), &permit(&repo)).unwrap();
    home.restic(&["check", "--read-data"]);
    let target = home.path("restored");
    home.restic(&["restore", "latest", "--target", target.to_str().unwrap()]);
    assert_eq!(fs::read_dir(target.join(folder)).unwrap().count(), names.len());
    for name in &names {
        let restored = fs::read(target.join(folder).join(name)).unwrap();
        assert_eq!(restored, name.as_bytes(), "{name:?}");
    }
    let index = repo.load_index().unwrap();
    assert_eq!(read_tree(&repo, &index, &inner).unwrap().nodes, nodes);
}

#[test]
fn passwords_added_by_kvmb_or_restic_open_for_both() {
    let home = Home::new();
    let repo = home.create();
    let second = home.path("second-password");
    fs::write(&second, "zweites Paßwort\n").unwrap();
    home.restic(&["key", "add", "--new-password-file", second.to_str().unwrap()]);
    let opened = Repository::open(home.storage(), &Password::new("zweites Paßwort".into())).unwrap();
    assert_eq!(opened.id(), repo.id());
    let keys = opened.keys().unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys.iter().map(|key| key.current).collect::<Vec<_>>(), [false, true]);
    assert!(keys.iter().all(|key| !key.hostname.is_empty() && !key.username.is_empty()));

    let third = opened.add_key(&Password::new("third".into()), &permit(&opened)).unwrap();
    let listed = home.restic_with(&["key", "list"], &[("RESTIC_PASSWORD", "third")]);
    assert!(listed.contains(&third.short()), "{listed}");
    let error = Repository::open(home.storage(), &Password::new("fourth".into())).unwrap_err();
    assert!(matches!(error, Error::WrongPassword { .. }), "{error}");
}

#[test]
fn kvmb_and_restic_respect_each_others_locks() {
    let home = Home::new();
    let repo = home.create();
    write_disk(&repo, "vm1", &disk(1 << 20, 0));

    // kvmb's lock, as seen by restic.
    let lock = repo.lock(LockMode::Exclusive, Duration::ZERO).unwrap();
    let refused = home.restic_fails(&["snapshots"]);
    assert!(refused.contains("locked exclusively"), "{refused}");
    assert!(refused.contains(&format!("PID {}", std::process::id())), "{refused}");
    lock.check().unwrap();
    lock.release().unwrap();
    home.restic(&["snapshots"]);
    let lock = repo.lock(LockMode::Shared, Duration::ZERO).unwrap();
    home.restic(&["snapshots"]);
    let refused = home.restic_fails(&["prune"]);
    assert!(refused.contains("already locked"), "{refused}");
    drop(lock);
    home.restic(&["prune"]);

    // restic's lock, as seen by kvmb: a backup of a pipe that stays open.
    let mut backup = home
        .restic_command(&["backup", "--stdin", "--stdin-filename", "pipe"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // A lock exists once it is renamed; before that, restic has a temporary file there.
    let is_lock = |entry: fs::DirEntry| entry.file_name().len() == 64;
    crate::support::repo::until(|| fs::read_dir(home.path("repo/locks")).unwrap().any(|entry| is_lock(entry.unwrap())));
    let pid = backup.id();
    let error = repo.lock(LockMode::Exclusive, Duration::ZERO).unwrap_err();
    match error {
        Error::Locked { holder, .. } => {
            assert_eq!(holder.pid as u32, pid);
            assert!(!holder.exclusive);
        }
        other => panic!("{other}"),
    }
    repo.lock(LockMode::Shared, Duration::ZERO).unwrap().release().unwrap();
    // If killed, it leaves the lock of a dead process of this host behind.
    backup.kill().unwrap();
    backup.wait().unwrap();
    assert_eq!(fs::read_dir(home.path("repo/locks")).unwrap().count(), 1);
    repo.lock(LockMode::Exclusive, Duration::ZERO).unwrap().release().unwrap();
    assert_eq!(fs::read_dir(home.path("repo/locks")).unwrap().count(), 0);
}

#[test]
fn lock_is_lost_after_restic_unlock_remove_all() {
    let home = Home::new();
    let repo = home.create();
    let timing = kvmb::repo::LockTiming { refresh: Duration::from_millis(100), ..Default::default() };
    let lock = repo.lock_with(LockMode::Shared, Duration::ZERO, timing).unwrap();
    home.restic(&["unlock"]);
    std::thread::sleep(Duration::from_millis(300));
    lock.check().expect("a lock that is not stale stays");
    home.restic(&["unlock", "--remove-all"]);
    crate::support::repo::until(|| lock.check().is_err());
    let error = lock.check().unwrap_err();
    assert!(matches!(error, Error::LockLost { .. }), "{error}");
}

#[test]
fn dropped_writer_leaves_a_clean_repository() {
    let home = Home::new();
    let repo = home.create();
    write_disk(&repo, "vm1", &disk(2 << 20, 0));
    let options = WriterOptions { pack_bytes: 1 << 20, index_interval: Duration::ZERO, ..Default::default() };
    let index = repo.load_index().unwrap();
    let writer = Writer::new(&repo, index, options, &permit(&repo));
    for seed in 10..20 {
        for chunk in disk(1 << 20, seed).chunks(1 << 18) {
            writer.put(BlobKind::Data, chunk).unwrap();
        }
    }
    drop(writer);
    home.restic(&["check", "--read-data"]);
    let index = repo.load_index().unwrap();
    assert!(index.len() > 8, "what was durable was named: {}", index.len());
    let stop = AtomicBool::new(false);
    let report = check(&repo, CheckOptions::default(), &stop).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    home.restic(&["prune"]);
    home.restic(&["check", "--read-data"]);
}

#[test]
fn zero_blob_id_matches_restic() {
    assert_eq!(zero_blob_id(), Id::hash(&vec![0; 512 << 10]));
    let home = Home::new();
    home.restic(&["init"]);
    fs::create_dir(home.path("source")).unwrap();
    fs::write(home.path("source/zeros"), vec![0; 4 << 20]).unwrap();
    home.restic(&["backup", home.path("source").to_str().unwrap()]);
    let repo = Repository::open(Arc::new(LocalStorage::new(home.path("repo"))), &password()).unwrap();
    let index = repo.load_index().unwrap();
    assert!(index.contains(BlobKind::Data, &zero_blob_id()));
}

/// Files that a NAS, a desktop or a network file system creates in every folder are neither reported nor removed. A
/// second copy of one of kvmb's files is reported.
#[test]
fn foreign_files_in_a_repository_are_left_alone() {
    let env = Env::new("foreign files");
    let repo = init(&env);
    let mut foreign = Vec::new();
    for folder in ["", "data", "index", "keys", "locks", "snapshots"] {
        let folder = env.path("repo").join(folder);
        std::fs::create_dir(folder.join("@eaDir")).unwrap();
        let names = ["@eaDir/SYNO", ".DS_Store", "Thumbs.db", "desktop.ini", ".nfs0000000000000001"];
        foreign.extend(names.map(|name| folder.join(name)));
    }
    for file in &foreign {
        std::fs::write(file, "theirs").unwrap();
    }
    for command in [&["points"][..], &["prune", "--keep-last", "1"], &["unlock"]] {
        let output = env.kvmb(command).args(["-r", &repo]).run().assert_ok();
        assert!(!output.stderr().contains("warning"), "{output}");
    }
    assert!(foreign.iter().all(|file| file.exists()), "a foreign file is gone");
    env.restic(&repo).check();
    let key = names_in(&env.path("repo/keys")).into_iter().find(|name| name.len() == 64).unwrap();
    let keys = env.path("repo/keys");
    std::fs::copy(keys.join(&key), keys.join(format!("{key} (1)"))).unwrap();
    env.kvmb(["points", "-r", &repo]).run().assert_ok().assert_stderr_has("unexpected name");
}
