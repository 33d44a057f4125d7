//! Logical volumes of LVM.

use crate::files::{assert_same, backed_up, files, sh, tree};
use crate::support::backups::new_folder;
use crate::support::{Env, parts};

/// Creates the volume group `my-vg` on the image `lvm`, with the file system in `root` on its volume `root`, which has
/// two parts after another volume. No device is created on this host: the extents are written where LVM maps them.
fn make_logical_volumes(env: &Env) {
    let script = r#"size=$(($(stat -c %s root) >> 20)); truncate -s $((size + 40))M lvm
        loop=$(losetup --find --show lvm); trap 'losetup -d $loop' EXIT
        devices="scan=[\"/dev\"] filter=[\"a|^$loop\$|\",\"r|.*|\"] use_devicesfile=0 obtain_device_list_from_udev=0"
        config="devices { $devices } activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }"
        lvm() { word=$1; shift; command lvm $word --driverloaded n --config "$config" "$@" 2>>lvm.log; }
        lvm pvcreate -q -y $loop >&2; lvm vgcreate -q -s 1M my-vg $loop >&2
        lvm lvcreate -q -an -Zn -Wn -l 5 -n first my-vg >&2; lvm lvcreate -q -an -Zn -Wn -l 10 -n root my-vg >&2
        lvm lvcreate -q -an -Zn -Wn -l 3 -n other my-vg >&2; lvm lvextend -q -l $size my-vg/root >&2
        begin=$(lvm pvs --noheadings --units b --nosuffix -o pe_start | tr -d ' ')
        lvm lvs --noheadings -o lv_name,seg_start_pe,seg_pe_ranges | while read -r name at range; do
          range=${range##*:}; first=${range%-*}; last=${range#*-}
          [ "$name" = root ] || continue
          dd if=root of=lvm bs=1M skip=$at count=$((last - first + 1)) seek=$((begin + (first << 20))) conv=notrunc \
            oflag=seek_bytes status=none
        done"#;
    parts::require(&["lvm", "losetup"]);
    sh(env, script);
}

#[test]
fn logical_volume_in_two_segments_is_copied_unchanged() {
    let env = Env::new("fileslvm");
    let source = tree(&env, "tree");
    let script = "echo '/dev/my-vg/root / ext4 defaults 0 1' > tree/etc/fstab
        touch -d '2001-02-03 04:05:06' tree/etc/fstab; mkfs.ext4 -q -d tree root 40M";
    sh(&env, script);
    make_logical_volumes(&env);
    backed_up(&env, &[&env.path("lvm")]);
    let listed = files(&env, &["ls"]).assert_ok().records_of("filesystem");
    let of = |name: &str| listed.iter().find(|volume| volume["filesystem"] == name).expect("a volume");
    assert_eq!((&of("vda")["format"], &of("my--vg-first")["format"]), (&"LVM2_member".into(), &"unknown".into()));
    let root = of("my--vg-root");
    assert_eq!((&root["format"], &root["system"]), (&"ext4".into(), &"Test Linux 1".into()), "{root}");
    assert!(!sh(&env, "cat lvm.log").contains("error"));
    let copied = new_folder(&env, "copied");
    files(&env, &["cp", "/", "--devices", "--to", &copied.display().to_string()]).assert_ok();
    assert_same(&env, &source, &copied);
}

#[test]
fn logical_volumes_of_a_copied_disk_are_not_mixed_with_the_original() {
    let env = Env::new("fileslvmcopy");
    tree(&env, "tree");
    sh(&env, "mkfs.ext4 -q -d tree root 40M");
    make_logical_volumes(&env);
    sh(&env, "cp lvm copy; sed -i s/small/SMALL/ copy");
    backed_up(&env, &[&env.path("lvm"), &env.path("copy")]);
    let refused = files(&env, &["cat", "my--vg-root:/home/u/small"]).assert_code(1);
    let expected = "physical volume pv0 is on more than one disk; choose one with --disk";
    assert!(refused.stderr().contains(expected), "{}", refused.stderr());
    assert_eq!(files(&env, &["cat", "my--vg-root:/home/u/small", "--disk", "vda"]).assert_ok().stdout(), "small");
}
