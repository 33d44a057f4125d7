//! A folder with a quota: the file system has free space, but its user does not.
//!
//! Of Linux's quotas, only those of btrfs subvolumes need nothing but the file system itself and also apply to root.

use std::path::PathBuf;
use std::process::Command;

use super::{parts, tmpfs};

/// The size of the file system: the minimum for btrfs, and larger than any quota here.
const SIZE_BYTES: u64 = 512 << 20;

/// A mounted file system with a limited folder. It is unmounted when this is dropped.
pub struct Quota {
    mounted: PathBuf,
}

impl Quota {
    pub(super) fn mount(mounted: PathBuf, limit_bytes: u64) -> Quota {
        parts::require(&["mkfs.btrfs", "btrfs", "mount"]);
        std::fs::create_dir_all(&mounted).expect("cannot make a folder");
        let image = mounted.with_extension("btrfs");
        std::fs::File::create(&image).and_then(|file| file.set_len(SIZE_BYTES)).expect("cannot write");
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
        // The loop device is released with the mount.
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted));
        let quota = Quota { mounted };
        run(Command::new("btrfs").args(["quota", "enable"]).arg(&quota.mounted));
        run(Command::new("btrfs").args(["subvolume", "create"]).arg(quota.path()));
        quota.limit(limit_bytes);
        quota
    }

    /// Returns the limited folder.
    pub fn path(&self) -> PathBuf {
        self.mounted.join("limited")
    }

    /// Limits the total size of the folder's content.
    pub fn limit(&self, bytes: u64) {
        // Set it from the parent folder: nothing is permitted within a subvolume that exceeds its limit. 256 is the
        // first subvolume.
        run(Command::new("btrfs").args(["qgroup", "limit", &bytes.to_string(), "0/256"]).arg(&self.mounted));
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        tmpfs::unmount(&self.mounted);
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("cannot run");
    assert!(
        output.status.success(),
        "{command:?}: run the tests as root, with the right to mount, on a kernel that has btrfs ({})",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}
