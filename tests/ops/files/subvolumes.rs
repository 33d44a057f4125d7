//! Subvolumes of Btrfs, as distributions arrange them.

use crate::files::{backed_up, files, sh};
use crate::support::Env;
use crate::support::backups::new_folder;

/// A system as openSUSE installs it: it runs in a snapshot, which is the default subvolume, and mounts others from the
/// top of the file system.
#[test]
fn system_in_a_snapshot_is_read_with_the_subvolumes_that_it_mounts() {
    let env = Env::new("filessnapper");
    let script = r#"trap 'umount top 2>/dev/null || true' EXIT
        truncate -s 200M image; mkfs.btrfs -q -L suse image; mkdir top; mount -o loop image top
        for name in @ @/home @/root @/.snapshots; do btrfs -q subvolume create top/$name; done
        mkdir top/@/.snapshots/1; system=top/@/.snapshots/1/snapshot; btrfs -q subvolume create $system
        mkdir -p $system/etc $system/home $system/root $system/.snapshots $system/top $system/gone
        echo 'PRETTY_NAME="openSUSE Leap"' > $system/etc/os-release
        { echo 'LABEL=suse / btrfs defaults 0 0'; echo 'LABEL=suse /home btrfs subvol=/@/home 0 0'
          echo "LABEL=suse /root btrfs subvolid=$(btrfs inspect-internal rootid top/@/root) 0 0"
          echo 'LABEL=suse /.snapshots btrfs compress=zstd,subvol=@/.snapshots 0 0'
          echo 'LABEL=suse /top btrfs subvol=/ 0 0'; echo 'LABEL=suse /gone btrfs subvol=@/gone 0 0'
        } > $system/etc/fstab
        echo document > top/@/home/file; echo hidden > top/@/root/file
        btrfs subvolume set-default $(btrfs inspect-internal rootid $system) top; umount top"#;
    sh(&env, script);
    backed_up(&env, &[&env.path("image")]);
    let print = |path: &str| files(&env, &["cat", path]).assert_ok().stdout().to_owned();
    assert_eq!((print("/home/file"), print("/root/file")), ("document\n".to_owned(), "hidden\n".to_owned()));
    assert_eq!(print("/top/@/home/file"), "document\n");
    // The system itself is reached through two mounts, which is no damage.
    assert_eq!(print("/.snapshots/1/snapshot/etc/os-release"), print("/etc/os-release"));
    let copied = new_folder(&env, "copied");
    files(&env, &["cp", "/", "--to", &copied.display().to_string()]).assert_ok();
    let same = "diff etc/fstab .snapshots/1/snapshot/etc/fstab; test -f top/@/root/file";
    sh(&env, &format!("cd '{}'; {same}", copied.display()));
    assert!(copied.join("gone").read_dir().expect("a folder").next().is_none(), "its subvolume does not exist");
}
