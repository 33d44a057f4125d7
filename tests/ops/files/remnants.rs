//! Disks that contain more than one thing: what is left of an earlier use, and copies of other disks.

use crate::files::{backed_up, files, sh, tree};
use crate::support::Env;
use crate::support::backups::text;

/// Lists the file systems: name and format.
fn listed(env: &Env) -> Vec<[String; 2]> {
    let records = files(env, &["ls"]).assert_ok().records_of("filesystem");
    records.iter().map(|record| [text(record, "filesystem").to_owned(), text(record, "format").to_owned()]).collect()
}

/// Checks that the partitions of this kind are read on a disk that had a file system without partitions before.
fn assert_partitions_are_read(name: &str, earlier: &str, label: &str) {
    let env = Env::new(name);
    tree(&env, "tree");
    let script = format!(
        "truncate -s 200M image; {earlier} image >&2
         printf 'label: {label}\\nsize=80M\\n' | sfdisk -q --wipe never image
         mkfs.ext4 -q -d tree part 80M
         start=$(sfdisk -d image | sed -n 's/^image1 : start= *\\([0-9]*\\),.*/\\1/p')
         dd if=part of=image bs=512 seek=$start conv=notrunc,sparse status=none"
    );
    sh(&env, &script);
    backed_up(&env, &[&env.path("image")]);
    assert_eq!(listed(&env), [["vda1", "ext4"]]);
    assert_eq!(files(&env, &["cat", "/home/u/small"]).assert_ok().stdout(), "small");
}

#[test]
fn btrfs_that_was_on_the_disk_before_its_gpt_is_ignored() {
    assert_partitions_are_read("filesoldbtrfs", "mkfs.btrfs -q", "gpt");
}

#[test]
fn ext4_that_was_on_the_disk_before_its_mbr_is_ignored() {
    assert_partitions_are_read("filesoldext4", "mkfs.ext4 -q", "dos");
}
