//! `kvmb files`: the files that it lists and copies equal those that the original programs wrote, and malicious guests
//! do no harm.

mod confinement;
mod guestfish;
mod guests;
mod hostile;
mod journals;
mod logical;
mod remnants;
mod subvolumes;

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::backups::{backup, init, noise};
use crate::support::{Disk, Env, Output};

/// Backs up a machine that is off, with these images.
fn backed_up(env: &Env, images: &[&Path]) {
    let machine = images.iter().fold(env.machine("vm1"), |machine, image| machine.disk(Disk::existing(image, "raw")));
    init(env);
    backup(&machine.define());
}

/// Runs a `kvmb files` command.
fn files(env: &Env, args: &[&str]) -> Output {
    env.kvmb(["files", args[0], "-r", &env.repo(), "vm1"]).args(&args[1..]).run()
}

/// Runs a script in the test's folder.
fn sh(env: &Env, script: &str) -> String {
    let script = format!("set -e; export PATH=$PATH:/usr/sbin:/sbin; cd '{}'; {script}", env.path("").display());
    env.sh(&script).run().assert_ok().stdout().to_owned()
}

/// Creates a folder with everything that a Linux file system can contain, with several owners.
fn tree(env: &Env, name: &str) -> PathBuf {
    let tree = env.path(name);
    fs::create_dir_all(tree.join("home/u/deep/er")).expect("folders");
    fs::create_dir_all(tree.join("etc")).expect("folders");
    fs::write(tree.join("etc/os-release"), "PRETTY_NAME=\"Test Linux 1\"\n").expect("write");
    fs::write(tree.join("etc/fstab"), "# nothing\n").expect("write");
    fs::write(tree.join("home/u/data"), noise(1, 3_000_001)).expect("write");
    fs::write(tree.join("home/u/small"), "small").expect("write");
    fs::write(tree.join("home/u/empty"), "").expect("write");
    for number in 0..300 {
        fs::write(tree.join(format!("home/u/deep/a-name-that-is-not-short-{number}")), number.to_string())
            .expect("write");
    }
    let script = format!(
        "cd '{name}'
         ln home/u/data home/u/hard; ln home/u/data etc/hard
         ln -s ../etc/os-release home/release; ln -s /home/u/small etc/absolute; ln -s {} etc/long
         truncate -s 20M home/u/sparse; printf end >> home/u/sparse
         printf mid | dd of=home/u/sparse bs=1 seek=5000000 conv=notrunc status=none
         mkfifo home/fifo; mknod etc/null c 1 3; mknod etc/block b 8 300
         touch etc/{} \"etc/$(printf '\\377\\376')\"
         chown -hR 1000:1001 home/u; chown 70000:80000 home/u/small
         chmod 4750 home/u/small; chmod 1777 home/u/deep; chmod 0400 etc/fstab
         setfattr -n user.note -v value home/u/data; setfattr -n user.long -v {} home/u/small
         setfacl -m u:1002:rw,g:1003:r home/u/empty; setfacl -d -m u:1004:rwx home/u/deep
         find . -exec touch -h -d '2001-02-03 04:05:06' {{}} +",
        "x".repeat(200),
        "n".repeat(255),
        "v".repeat(500),
    );
    sh(env, &script);
    tree
}

/// Returns the output of `find` for all files in a folder, and their attributes and ACLs.
fn facts(env: &Env, folder: &Path) -> String {
    let script = format!(
        "cd '{}'
         find . -path ./lost+found -prune -o -type d -printf '%y %P %m %U %G\\n' \
             -o -printf '%y %P %m %U %G %s %T@ %n %l\\n' | LC_ALL=C sort
         find . -path ./lost+found -prune -o -print0 | LC_ALL=C sort -z | xargs -0 getfattr -h -d -m - -e hex
         find . -path ./lost+found -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum",
        folder.display()
    );
    // Names need not be UTF-8.
    let output = env.sh(&script).run().assert_ok();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn assert_same(env: &Env, expected: &Path, found: &Path) {
    let (expected, found) = (facts(env, expected), facts(env, found));
    let differing = expected.lines().zip(found.lines()).find(|(expected, found)| expected != found);
    assert!(expected == found, "{differing:?}\n{} and {} lines", expected.lines().count(), found.lines().count());
}
