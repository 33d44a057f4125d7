//! File systems with a non-empty journal, like those of a machine that was captured while it ran.

use crate::files::{assert_same, backed_up, files, sh, tree};
use crate::support::Env;
use crate::support::backups::new_folder;
use std::path::Path;

/// Creates an image whose journal contains the step from one state to the next, block by block, and compares the result
/// with that of `e2fsck`.
fn assert_replayed(name: &str, options: &str, journal: &str) {
    let env = Env::new(name);
    tree(&env, "tree");
    let script = format!(
        r#"mkfs.ext4 -q {options} -d tree image 64M; cp image after
        head -c 100000 /dev/urandom > new
        debugfs -w -f - after >&2 <<END
write new etc/new
mkdir home/made
rm etc/fstab
ln home/u/data home/made/again
END
        size=$(dumpe2fs -h image 2>&1 | sed -n 's/^Block size: *//p')
        cmp -l image after | awk -v size=$size '{{ print int(($1 - 1) / size) }}' | uniq | sort -nu > blocks
        numbers=; : > content
        for block in $(cat blocks); do
          numbers="$numbers${{numbers:+,}}$block"; dd if=after bs=$size skip=$block count=1 status=none >> content
        done
        printf 'jo {journal}\njw -b %s content\njc\n' "$numbers" > commands
        debugfs -w -f commands image >&2
        cp image replayed; e2fsck -p -E journal_only replayed >&2 || true
        mkdir expected; debugfs -R 'rdump / expected' replayed >&2"#
    );
    sh(&env, &script);
    let recovers = sh(&env, "dumpe2fs -h image 2>/dev/null | grep -c needs_recovery || true");
    assert_eq!(recovers.trim(), "1", "the journal was not left as it should be");
    backed_up(&env, &[&env.path("image")]);
    let copied = new_folder(&env, "copied");
    files(&env, &["cp", "/", "--to", &copied.display().to_string()]).assert_ok();
    assert!(!copied.join("etc/fstab").exists());
    let compare = format!(
        "cmp new '{0}/etc/new'; cmp tree/home/u/data '{0}/home/made/again'
         test {0}/home/made/again -ef {0}/home/u/hard",
        copied.display()
    );
    sh(&env, &compare);
    // Names and bytes as read by e2fsprogs after its own replay; debugfs writes hard links and times differently.
    sh(
        &env,
        &format!("diff -r --no-dereference -x fifo -x null -x block -x lost+found expected '{}'", copied.display()),
    );
    let again = new_folder(&env, "again");
    files(&env, &["cp", "/", "--to", &again.display().to_string()]).assert_ok();
    assert_same(&env, &copied, &again);
}

#[test]
fn a_journal_without_checksums_is_replayed() {
    assert_replayed("filesjournal", "-O ^metadata_csum,^64bit", "");
}

#[test]
fn a_journal_with_checksums_and_64_bits_is_replayed() {
    assert_replayed("filesjournalcsum", "-O metadata_csum,64bit", "-c -v 3");
}

#[test]
fn transaction_with_a_damaged_commit_is_not_replayed() {
    let env = Env::new("filesjournaltorn");
    tree(&env, "tree");
    let script = r#"mkfs.ext4 -q -O metadata_csum,64bit -d tree image 64M
        block=$(debugfs -R 'blocks /etc/fstab' image 2>/dev/null)
        printf 'replaced\n' > content; truncate -s 4096 content
        printf 'jo -c -v 3\njw -b %s content\njc\n' "$block" > commands; debugfs -w -f commands image >&2
        # The commit is the last block of the journal with this transaction in it: its magic, type 2.
        at=$(LC_ALL=C grep -obUaP '\xc0\x3b\x39\x98\x00\x00\x00\x02' image | tail -1 | cut -d: -f1)
        printf '\001' | dd of=image bs=1 seek=$((at + 40)) conv=notrunc status=none"#;
    sh(&env, script);
    backed_up(&env, &[&env.path("image")]);
    assert_eq!(files(&env, &["cat", "/etc/fstab"]).assert_ok().stdout(), "# nothing\n");
}

#[test]
fn file_system_with_changes_in_an_external_journal_is_refused() {
    let env = Env::new("filesjournalaway");
    tree(&env, "tree");
    let script = "mkfs.ext4 -q -O ^has_journal -d tree image 64M
        debugfs -w -R 'feature has_journal needs_recovery' image >&2";
    sh(&env, script);
    backed_up(&env, &[&env.path("image")]);
    let refused = files(&env, &["cat", "vda:/etc/fstab"]).assert_code(1);
    let expected = "its journal is on another device, and has changes to be replayed";
    assert!(refused.stderr().contains(expected), "{}", refused.stderr());
}

#[test]
fn xfs_log_is_replayed_after_a_shutdown() {
    assert_log_is_replayed("filesxfslog", "4096");
}

#[test]
fn xfs_log_with_small_blocks_is_replayed_after_a_shutdown() {
    assert_log_is_replayed("filesxfslogsmall", "1024");
}

fn assert_log_is_replayed(name: &str, block_bytes: &str) {
    let env = Env::new(name);
    tree(&env, "tree");
    // The shutdown writes only the log, which then contains all earlier changes.
    let script = "trap 'umount mounted 2>/dev/null || true' EXIT
        truncate -s 320M image; mkfs.xfs -q -b size=BLOCK image; mkdir mounted; mount -o loop image mounted
        cp -a tree/. mounted; umount mounted; mount -o loop image mounted
        head -c 100000 /dev/urandom > mounted/etc/new; mkdir -p mounted/home/made/deep; rm mounted/etc/fstab
        ln mounted/home/u/small mounted/home/made/again; mv mounted/home/release mounted/home/made/deep
        seq 2000 > mounted/home/u/small; ln -s ../etc/new mounted/home/newest
        for number in $(seq 500); do echo $number > mounted/home/made/deep/file-$number; done
        touch -d 2002-03-04 mounted/home/u/data mounted/etc; chown 1234:5678 mounted/home/u/small mounted/home/made
        chown 4321 mounted/etc/os-release; chmod 4755 mounted/etc/new
        sync -f mounted; xfs_io -x -c 'shutdown -f' mounted; umount mounted
        cp --sparse=always image replayed; mount -o loop replayed mounted; mkdir expected; cp -a mounted/. expected
        umount mounted";
    sh(&env, &script.replace("BLOCK", block_bytes));
    let log = sh(&env, "xfs_logprint -t image 2>&1 | grep -c DIRTY || true");
    assert_eq!(log.trim(), "1", "the log was not left as it should be");
    backed_up(&env, &[&env.path("image")]);
    let copied = new_folder(&env, "copied");
    files(&env, &["cp", "/", "--devices", "--to", &copied.display().to_string()]).assert_ok();
    assert!(copied.join("home/made/deep/file-500").exists() && !copied.join("etc/fstab").exists());
    sh(&env, &format!("diff -r --no-dereference -x fifo -x null -x block expected '{}'", copied.display()));
    let attributes = |folder: &Path| {
        let find = "-type d -printf '%P %m %U %G %T@\\n' -o -printf '%P %y %m %U %G %s %T@ %n\\n' | LC_ALL=C sort";
        // One name is not UTF-8.
        sh(&env, &format!("find '{}' -mindepth 1 {find} | tr -c '[:print:]\n' '?'", folder.display()))
    };
    let (expected, copied) = (attributes(&env.path("expected")), attributes(&copied));
    let differing = expected.lines().zip(copied.lines()).find(|(expected, copied)| expected != copied);
    assert!(expected == copied, "{differing:?}\n{} and {} lines", expected.lines().count(), copied.lines().count());
}
