//! Malicious guests.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::files::{backed_up, files, sh, tree};
use crate::support::Env;
use crate::support::backups::{new_folder, text};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Replaces bytes in an image, all of the same length.
fn patch(image: &Path, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(image).expect("read");
    let places: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, at)| *at == from).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "nothing to patch");
    places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
    fs::write(image, bytes).expect("write");
}

#[test]
fn file_names_escaping_the_target_are_refused() {
    let env = Env::new("fileshostilenames");
    let script =
        "mkdir -p t/in; echo evil > t/NAMEONE; echo evil > t/NAMETWO; echo evil > t/in/NAMETHREE; echo good > t/good
        ln -s /etc/passwd t/link; ln -s .. t/up
        mkfs.ext4 -q -O ^metadata_csum,^dir_index -d t image 16M";
    sh(&env, script);
    patch(&env.path("image"), b"NAMEONE", b"../evil");
    patch(&env.path("image"), b"NAMETWO", b"/tmp/ev");
    patch(&env.path("image"), b"NAMETHREE", b"..\0/../ba");
    backed_up(&env, &[&env.path("image")]);
    let top = new_folder(&env, "top");
    let to = top.join("to");
    fs::create_dir(&to).expect("folder");
    let copied = files(&env, &["cp", "/", "--to", &to.display().to_string()]).assert_code(3);
    assert_eq!(copied.stderr().matches("it is refused").count(), 3, "{}", copied.stderr());
    assert_eq!(crate::support::backups::names_in(&top), ["to"]);
    let mut names = crate::support::backups::names_in(&to);
    names.retain(|name| name != "lost+found");
    assert_eq!(names, ["good", "in", "link", "up"]);
    assert_eq!(
        fs::read_link(to.join("link")).expect("link"),
        Path::new("/etc/passwd"),
        "a link is copied, not followed"
    );
    // A guest's symbolic link leads to the guest's own file, or nowhere.
    let cat = files(&env, &["cat", "/link"]).assert_code(1);
    assert!(cat.stderr().contains("does not exist"), "{}", cat.stderr());
    let listed = files(&env, &["ls", "/up/up/.."]).assert_code(3).records_of("file");
    assert!(listed.iter().any(|file| text(file, "path") == "/good"), "the root is above itself");
}

#[test]
fn directory_containing_itself_is_reported_as_damage() {
    let env = Env::new("fileshostileloop");
    sh(&env, "mkdir -p t/a/b; echo x > t/a/b/x; mkfs.ext4 -q -d t image 16M; debugfs -w -R 'ln a a/b/loop' image >&2");
    backed_up(&env, &[&env.path("image")]);
    let found = files(&env, &["find", "/"]).assert_code(3);
    assert!(
        found.stderr().contains("/a/b/loop: the file system is damaged: the directory contains itself"),
        "{}",
        found.stderr()
    );
    assert!(found.records_of("file").iter().any(|file| text(file, "path") == "/a/b/x"));
}

#[test]
fn sparse_16_tib_file_needs_little_space_and_time() {
    let env = Env::new("fileshostilesparse");
    let script = "mkdir t; printf begin > t/huge; mkfs.ext4 -q -O 64bit -d t image 16M
        debugfs -w -R 'set_inode_field /huge size 17592186036224' image >&2";
    sh(&env, script);
    backed_up(&env, &[&env.path("image")]);
    let begun = Instant::now();
    let to = new_folder(&env, "to");
    let copied = files(&env, &["cp", "/huge", "--to", &to.display().to_string()]);
    // A file system of this host may not support such a size; then the copy is refused.
    match copied.code() {
        0 => assert_eq!(to.join("huge").metadata().expect("stat").len(), 17_592_186_036_224),
        _ => assert!(copied.stderr().contains("File too large"), "{}", copied.stderr()),
    }
    let archive = env.kvmb(["files", "tar", "-r", &env.repo(), "vm1", "/huge"]).run().assert_ok();
    assert!(archive.stdout.len() < 100_000, "{}", archive.stdout.len());
    assert!(begun.elapsed() < Duration::from_secs(240));
}

/// Changes bytes in a file system's metadata.
fn mutate(image: &Path, random: &mut StdRng, places: &[(u64, u64)]) {
    let file = fs::File::options().write(true).open(image).expect("open");
    for _ in 0..random.random_range(1..40) {
        let (start, length) = places[random.random_range(0..places.len())];
        let at = start + random.random_range(0..length);
        let value: [u8; 4] = match random.random_range(0..4) {
            0 => [0; 4],
            1 => [0xff; 4],
            2 => random.random(),
            _ => [random.random(), 0, 0, 0],
        };
        file.write_all_at(&value[..random.random_range(1..=4)], at).expect("write");
    }
}

#[test]
fn fuzzed_file_systems_end_cleanly_within_the_time_limit() {
    let env = Env::new("fileshostilefuzz");
    tree(&env, "tree");
    let script =
        "mkdir s; cp -r tree/home/u/deep s; mkfs.ext4 -q -b 1024 -d tree ext4 40M; mkfs.ext2 -q -d tree ext2 40M
        mkfs.fat -F 16 -C fat 20480 >&2; mcopy -i fat -s s/deep ::/; truncate -s 20M ntfs; mkntfs -q -F -f ntfs >&2
        truncate -s 300M xfs; mkfs.xfs -q xfs; truncate -s 110M btrfs; mkfs.btrfs -q --rootdir s btrfs >&2";
    sh(&env, script);
    let mut random = StdRng::seed_from_u64(20_261_129);
    // Superblocks and tables; for Btrfs, whose trees have checksums, only the superblock.
    let kinds: [(&str, &[(u64, u64)]); 6] = [
        ("ext4", &[(1024, 1024), (2048, 4096), (8192, 400_000)]),
        ("ext2", &[(1024, 1024), (4096, 4096), (16_384, 2_000_000)]),
        ("fat", &[(0, 90), (512, 100_000)]),
        ("ntfs", &[(0, 90), (16_384, 65_536)]),
        ("xfs", &[(0, 512), (512, 65_536)]),
        ("btrfs", &[(65_536, 4096)]),
    ];
    let mut images = Vec::new();
    for round in 0..3 {
        for (kind, places) in kinds {
            let image = env.path(format!("{kind}-{round}"));
            sh(&env, &format!("cp --sparse=always {kind} {kind}-{round}"));
            mutate(&image, &mut random, places);
            images.push(image);
        }
    }
    backed_up(&env, &images.iter().map(AsRef::as_ref).collect::<Vec<_>>());
    let begun = Instant::now();
    let listed = files(&env, &["ls"]);
    assert!([0, 1, 3].contains(&listed.code()), "{}: {}", listed.code(), listed.stderr());
    for disk in ('a'..='r').map(|letter| format!("vd{letter}")) {
        let found = files(&env, &["tar", "--disk", &disk, &format!("{disk}:/")]);
        assert!([0, 1, 3].contains(&found.code()), "{disk}: {}: {}", found.code(), found.stderr());
        assert!(!found.stderr().contains("forbidden"), "{disk}: {}", found.stderr());
    }
    assert!(begun.elapsed() < Duration::from_secs(240), "{:?}", begun.elapsed());
    env.assert_nothing_left();
}
