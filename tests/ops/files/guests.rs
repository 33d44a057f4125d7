//! File systems created by the original programs.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::files::{assert_same, backed_up, facts, files, sh, tree};
use crate::support::Env;
use crate::support::backups::{new_folder, noise, text};
use serde_json::Value;

/// Copies everything, also as an archive that GNU tar unpacks, and compares both with the original folder.
fn assert_all_is_there(make: &str, name: &str) {
    let env = Env::new(name);
    let source = tree(&env, "tree");
    sh(&env, make);
    backed_up(&env, &[&env.path("image")]);
    let copied = new_folder(&env, "copied");
    files(&env, &["cp", "/", "--devices", "--to", &copied.display().to_string()]).assert_ok();
    assert_same(&env, &source, &copied);
    // Holes are preserved.
    let sparse = copied.join("home/u/sparse").metadata().expect("stat");
    assert!(sparse.blocks() * 512 < 2 << 20, "{} blocks", sparse.blocks());

    let archive = env.kvmb(["files", "tar", "-r", &env.repo(), "vm1", "/", "--devices"]).run().assert_ok();
    assert!(archive.stdout.len() < 8 << 20, "holes take no room: {}", archive.stdout.len());
    let unpacked = new_folder(&env, "unpacked");
    env.program("tar")
        .args(["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-C"])
        .arg(&unpacked)
        .arg("-xpf")
        .arg("-")
        .stdin(&archive.stdout)
        .run()
        .assert_ok();
    assert_same(&env, &source, &unpacked);
    env.assert_nothing_left();
}

#[test]
fn ext4_is_copied_unchanged() {
    assert_all_is_there("mkfs.ext4 -q -d tree image 64M", "filesext4");
}

#[test]
fn ext4_with_small_blocks_inline_data_and_meta_bg_is_copied_unchanged() {
    let make = "mkfs.ext4 -q -b 1024 -I 512 -g 8192 -O inline_data,metadata_csum,64bit,meta_bg,^resize_inode \
                -d tree image 64M";
    assert_all_is_there(make, "filesext4small");
}

#[test]
fn ext3_is_copied_unchanged() {
    assert_all_is_there("mkfs.ext3 -q -d tree image 64M", "filesext3");
}

#[test]
fn ext2_with_double_indirect_blocks_is_copied_unchanged() {
    assert_all_is_there("mkfs.ext2 -q -b 1024 -d tree image 64M", "filesext2");
}

/// Creates a disk with a partition of each kind, and a system that mounts some of them.
fn partitioned(env: &Env) {
    fs::create_dir_all(env.path("tree/boot/efi")).expect("folder");
    fs::create_dir_all(env.path("tree/srv")).expect("folder");
    tree(env, "tree");
    fs::write(env.path("data"), noise(7, 2_500_003)).expect("write");
    let script = r#"
        truncate -s 600M image
        printf 'label: gpt\nsize=64M,type=U\nsize=80M\nsize=300M\nsize=130M\nsize=8M,type=S\n' | sfdisk -q image
        start() { sfdisk -d image | sed -n "s/^image$1 : start= *\([0-9]*\),.*/\1/p"; }
        put() { dd if=part of=image bs=512 seek=$(start $1) conv=notrunc,sparse status=none; rm part; }
        mkdir -p b/srv; cp data b/srv/data; chmod 640 b/srv/data; chown 5:6 b/srv/data; ln b/srv/data b/srv/hard
        ln -s data b/srv/link; head -c 5000000 /dev/zero > b/zeros
        mkfs.fat -F 32 -n ESP -i 1234ABCD -C part 65536 >&2
        mmd -i part ::/EFI ::/EFI/boot; mcopy -i part data ::/EFI/boot/BOOTX64.EFI
        mcopy -i part data '::/A long name.txt'; put 1
        { echo 'UUID=1234-ABCD /boot/efi vfat umask=0077 0 1'; echo 'LABEL=xhome /home xfs defaults 0 0'
          echo '/dev/sda4 /srv btrfs defaults 0 0'; echo 'tmpfs /tmp tmpfs defaults 0 0'; } > tree/etc/fstab
        mkfs.ext4 -q -d tree part 80M; put 2
        { echo /dev/null; echo 0 0; echo 'd--755 0 0'; echo 'x d--750 1000 1001'
          echo "data -u-640 1000 1001 $PWD/data"; echo 'link l--777 1000 1001 data'; echo 'null c--666 0 0 1 3'
          echo '$'; echo '$'; } > proto
        truncate -s 300M part; mkfs.xfs -q -L xhome -p proto part; put 3
        truncate -s 130M part; mkfs.btrfs -q --rootdir b part >&2; put 4
        truncate -s 8M part; printf SWAPSPACE2 | dd of=part bs=1 seek=4086 conv=notrunc status=none; put 5
    "#;
    sh(env, script);
}

#[test]
fn guest_system_is_found_with_its_mounted_file_systems() {
    let env = Env::new("filesmounts");
    partitioned(&env);
    backed_up(&env, &[&env.path("image")]);
    let listed = files(&env, &["ls"]).assert_ok().records_of("filesystem");
    let shown: Vec<[&str; 3]> = listed
        .iter()
        .map(|record| {
            [text(record, "filesystem"), text(record, "format"), record["mount_point"].as_str().unwrap_or("-")]
        })
        .collect();
    let expected = [
        ["vda1", "vfat", "/boot/efi"],
        ["vda2", "ext4", "/"],
        ["vda3", "xfs", "/home"],
        ["vda4", "btrfs", "/srv"],
        ["vda5", "swap", "-"],
    ];
    assert_eq!(shown, expected);
    assert_eq!(listed[1]["system"], "Test Linux 1");
    assert_eq!((&listed[0]["uuid"], &listed[0]["label"]), (&"1234-ABCD".into(), &"ESP".into()));

    let data = fs::read(env.path("data")).expect("read");
    for path in
        ["/boot/efi/efi/BOOT/bootx64.efi", "/home/x/link", "/srv/srv/hard", "vda1:/A long name.txt", "vda3:/x/data"]
    {
        let printed = files(&env, &["cat", path]).assert_ok();
        assert!(printed.stdout == data, "{path}: {} bytes", printed.stdout.len());
    }
    // A symbolic link out of its file system leads to the one that is mounted there.
    let copied = new_folder(&env, "copied");
    files(&env, &["cp", "/home", "/srv", "--to", &copied.display().to_string()]).assert_ok();
    let shown = facts(&env, &copied);
    for (path, mode, owner) in
        [("home/x/data", "4640", "1000 1001"), ("srv/srv/data", "640", "5 6"), ("srv/srv/hard", "640", "5 6")]
    {
        assert!(shown.contains(&format!("f {path} {mode} {owner} 2500003 ")), "{path}: {shown}");
        assert!(fs::read(copied.join(path)).expect("read") == data, "{path}");
    }
    assert!(shown.contains("l home/x/link 777 1000 1001"), "{shown}");
    assert_eq!(copied.join("srv/srv/data").metadata().expect("stat").nlink(), 2);
    assert!(fs::read(copied.join("srv/zeros")).expect("read").iter().all(|byte| *byte == 0));

    let found = files(&env, &["find", "/", "--name", "*.EFI", "--size", "+1M"]).assert_ok().records_of("file");
    assert_eq!(found.iter().map(|record| text(record, "path")).collect::<Vec<_>>(), ["/boot/efi/EFI/boot/BOOTX64.EFI"]);
    let table = files(&env, &["ls", "/etc", "-o", "table"]).assert_ok();
    assert!(table.stdout().contains("absolute -> /home/u/small"), "{}", table.stdout());

    let missing = files(&env, &["cat", "/etc/fstap"]).assert_code(1);
    assert!(missing.stderr().contains("/etc/fstap does not exist; similar: fstab"), "{}", missing.stderr());
    let swap = files(&env, &["ls", "vda5:/"]).assert_code(1);
    assert!(swap.stderr().contains("kvmb cannot read swap"), "{}", swap.stderr());
}

#[test]
fn btrfs_on_two_disks_is_listed_as_one_file_system() {
    let env = Env::new("filesbtrfs2");
    sh(&env, "truncate -s 320M image image2; mkfs.btrfs -q -d raid1 -m raid1 image image2 >&2");
    backed_up(&env, &[&env.path("image"), &env.path("image2")]);
    let listed = files(&env, &["ls"]).assert_ok().records_of("filesystem");
    let shown: Vec<(&Value, &Value)> = listed.iter().map(|record| (&record["readable"], &record["error"])).collect();
    assert_eq!(
        shown,
        [(&true.into(), &Value::Null), (&false.into(), &"it is a part of the file system on vda".into())]
    );
    files(&env, &["ls", "/"]).assert_ok();
    let other = files(&env, &["ls", "vdb:/"]).assert_code(1);
    assert!(other.stderr().contains("it is a part of the file system on vda"), "{other}");
}

#[test]
fn windows_paths_ignore_case_and_accept_drive_letters() {
    let env = Env::new("fileswindows");
    let script = r"
        head -c 700000 /dev/urandom > data; truncate -s 64M image; mkntfs -q -F -f -L system image 2>&2 >&2
        mkdir mnt; ntfs-3g image mnt; trap 'umount mnt' EXIT
        mkdir -p mnt/Windows/System32 mnt/Users/x/Documents; echo k > mnt/Windows/System32/ntoskrnl.exe
        cp data 'mnt/Users/x/Documents/Über uns.docx'
        for i in $(seq 200); do echo $i > mnt/Users/x/file-number-$i; done
        echo tiny > mnt/Users/x/tiny; truncate -s 5M mnt/Users/x/sparse; printf end >> mnt/Users/x/sparse
        cp mnt/Users/x/sparse sparse; touch -d '2001-02-03 04:05:06.7' mnt/Users/x/tiny";
    sh(&env, script);
    backed_up(&env, &[&env.path("image")]);
    let listed = files(&env, &["ls"]).assert_ok().record_of("filesystem");
    assert_eq!(
        (text(&listed, "format"), text(&listed, "system"), text(&listed, "mount_point")),
        ("ntfs", "Windows", "C:\\")
    );
    assert_eq!(text(&listed, "label"), "system");
    for (path, file) in [(r"C:\users\X\documents\über uns.docx", "data"), ("/Users/x/sparse", "sparse")] {
        let printed = files(&env, &["cat", path]).assert_ok();
        assert!(printed.stdout == fs::read(env.path(file)).expect("read"), "{path}");
    }
    let copied = new_folder(&env, "copied");
    files(&env, &["cp", r"C:\Users", "--to", &copied.display().to_string()]).assert_ok();
    for number in 1..=200 {
        let path = copied.join(format!("Users/x/file-number-{number}"));
        assert_eq!(fs::read_to_string(path).expect("read"), format!("{number}\n"));
    }
    let tiny = copied.join("Users/x/tiny").metadata().expect("stat");
    assert_eq!((tiny.mtime(), tiny.mtime_nsec()), (981_173_106, 700_000_000));
    let other = files(&env, &["cat", r"D:\x"]).assert_code(2);
    assert!(other.stderr().contains("drive D: is not known"), "{}", other.stderr());
}

#[test]
fn files_are_read_from_an_sftp_repository() {
    let env = Env::new("filessftp");
    let sshd = env.sshd();
    sshd.trust_host_key();
    tree(&env, "tree");
    sh(&env, "mkfs.ext4 -q -d tree image 64M");
    let machine = env.machine("vm1").disk(crate::support::Disk::existing(&env.path("image"), "raw")).define();
    let repo = sshd.url("repo");
    env.kvmb(["init", "-r", &repo]).run().assert_ok();
    env.kvmb(["backup", machine.name(), "-r", &repo]).run().assert_ok();
    let printed = env.kvmb(["files", "cat", "vm1", "/etc/absolute", "/home/u/data", "-r", &repo]).run().assert_ok();
    assert!(printed.stdout == [b"small".to_vec(), noise(1, 3_000_001)].concat());
}

#[test]
fn existing_files_are_kept_without_the_overwrite_option() {
    let env = Env::new("filesoverwrite");
    tree(&env, "tree");
    sh(&env, "mkfs.ext4 -q -d tree image 64M");
    backed_up(&env, &[&env.path("image")]);
    let to = new_folder(&env, "to");
    let target = to.display().to_string();
    // A dry run reports what would be written.
    let action = files(&env, &["cp", "/home/u", "--dry-run", "--to", &target]).assert_ok().record_of("action");
    assert_eq!((&action["dry_run"], &action["target"]), (&true.into(), &to.join("u").display().to_string().into()));
    assert!(action["files"].as_u64() >= Some(3) && action["copied_bytes"].as_u64() > Some(3_000_000), "{action}");
    assert!(crate::support::backups::names_in(&to).is_empty());
    fs::write(to.join("small"), "mine").expect("write");
    files(&env, &["cp", "/home/u/small", "--dry-run", "--to", &target]).assert_code(1);
    let refused = files(&env, &["cp", "/home/u/small", "/home/u/empty", "--to", &target]).assert_code(3);
    assert!(refused.stderr().contains("small already exists"), "{}", refused.stderr());
    assert_eq!(fs::read(to.join("small")).expect("read"), b"mine");
    files(&env, &["cp", "/home/u/small", "--to", &target, "--overwrite"]).assert_ok();
    assert_eq!(fs::read(to.join("small")).expect("read"), b"small");
    // A symbolic link in the target is not followed, neither to a file nor to a folder.
    let outside = new_folder(&env, "outside");
    std::os::unix::fs::symlink(&outside, to.join("home")).expect("link");
    std::os::unix::fs::symlink(outside.join("victim"), to.join("fstab")).expect("link");
    let refused = files(&env, &["cp", "/home", "--to", &target, "--overwrite"]).assert_code(1);
    assert!(refused.stderr().contains("home already exists"), "{}", refused.stderr());
    files(&env, &["cp", "/etc/fstab", "--to", &target, "--overwrite"]).assert_ok();
    assert!(fs::read_dir(&outside).expect("read").next().is_none(), "something was written through a link");
    assert!(!to.join("fstab").symlink_metadata().expect("stat").is_symlink());
    let names: Vec<String> = crate::support::backups::names_in(&to);
    assert_eq!(names, ["empty", "fstab", "home", "small"], "nothing unfinished is left");
}

#[test]
fn file_with_a_damaged_chunk_is_reported_and_not_copied() {
    let env = Env::new("filesdamage");
    tree(&env, "tree");
    fs::write(env.path("tree/large"), noise(9, 9_000_000)).expect("write");
    sh(&env, "mkfs.ext4 -q -d tree image 64M");
    backed_up(&env, &[&env.path("image")]);
    // The largest pack contains the chunks of the largest file.
    sh(
        &env,
        &format!(
            "pack=$(find '{}/data' -type f -printf '%s %p\\n' | sort -n | tail -1 | cut -d' ' -f2); chmod 600 $pack
             printf 'damaged damaged' | dd of=$pack bs=1 seek=$(($(stat -c %s $pack) / 2)) conv=notrunc status=none",
            env.repo()
        ),
    );
    let to = new_folder(&env, "to");
    let copied = files(&env, &["cp", "/", "--to", &to.display().to_string()]).assert_code(4);
    let failures: Vec<Value> = copied.records_of("failure");
    assert!(failures.iter().any(|failure| failure["code"] == "damage"), "{failures:?}");
    let damaged: Vec<&str> = ["large", "home/u/data"].into_iter().filter(|file| !to.join(file).exists()).collect();
    assert_eq!(damaged.len(), 1, "exactly the file with the damaged chunk is missing: {}", copied.stderr());
    assert_eq!(fs::read_to_string(to.join("etc/os-release")).expect("read"), "PRETTY_NAME=\"Test Linux 1\"\n");
}

#[test]
fn files_after_one_that_cannot_be_printed_are_printed() {
    let env = Env::new("filescatmany");
    tree(&env, "tree");
    sh(&env, "mkfs.ext4 -q -d tree image 64M");
    backed_up(&env, &[&env.path("image")]);
    let printed = files(&env, &["cat", "/etc", "/home/u/small", "/home/release", "/etc/null", "/etc/fstab"]);
    let printed = printed.assert_code(3);
    assert_eq!(printed.stdout(), "smallPRETTY_NAME=\"Test Linux 1\"\n# nothing\n");
    assert!(printed.stderr().contains("/etc: it is a directory, not a file"), "{}", printed.stderr());
}

#[test]
fn holes_of_an_xfs_file_are_neither_read_nor_archived() {
    let env = Env::new("filesxfsholes");
    let script = "trap 'umount mounted 2>/dev/null || true' EXIT
        truncate -s 320M image; mkfs.xfs -q image; mkdir mounted; mount -o loop image mounted
        printf first > mounted/lastlog; truncate -s 4T mounted/lastlog
        printf last | dd of=mounted/lastlog bs=1 seek=3000000000000 conv=notrunc status=none
        fallocate -l 50M mounted/unwritten
        printf x | dd of=mounted/unwritten bs=1 seek=9000000 conv=notrunc status=none
        sha256sum < mounted/unwritten > expected; umount mounted";
    sh(&env, script);
    backed_up(&env, &[&env.path("image")]);
    let copied = new_folder(&env, "copied");
    files(&env, &["cp", "/", "--to", &copied.display().to_string()]).assert_ok();
    let script = "expected=$PWD/expected; cd 'COPIED'; sha256sum < unwritten | cmp - $expected
        stat -c %s lastlog; head -c 5 lastlog; dd if=lastlog bs=1 skip=3000000000000 count=4 status=none";
    let found = sh(&env, &script.replace("COPIED", &copied.display().to_string()));
    assert_eq!(found, format!("{}\nfirstlast", 4_u64 << 40));
    let archive = files(&env, &["tar", "/"]).assert_ok();
    assert!(archive.stdout.len() < 1 << 20, "{} bytes", archive.stdout.len());
}

#[test]
fn xfs_on_more_than_one_device_is_not_reported_as_damaged() {
    let env = Env::new("filesxfsdevices");
    let script = "truncate -s 320M image1 image2 realtime; truncate -s 64M log
        mkfs.xfs -q -l logdev=log,size=64m image1; mkfs.xfs -q -r rtdev=realtime image2";
    sh(&env, script);
    backed_up(&env, &[&env.path("image1"), &env.path("image2")]);
    let listed = files(&env, &["ls"]).assert_ok().records_of("filesystem");
    let errors = listed.iter().map(|volume| text(volume, "error")).collect::<Vec<_>>();
    let expected = ["XFS with a log on another device is not supported", "XFS with a realtime device is not supported"];
    assert_eq!(errors, expected);
}
