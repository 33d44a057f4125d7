//! A folder with a quota: the file system has room, and its user has none.
//!
//! Of all quotas that Linux knows, that of a btrfs subvolume needs nothing but the file system itself, and holds root
//! too.

use std::path::PathBuf;
use std::process::Command;

use super::{parts, tmpfs};

/// The size of the file system: the smallest that btrfs likes, and more than any quota here.
const SIZE_BYTES: u64 = 512 << 20;

/// A mounted file system with a limited folder. Dropped, it is unmounted.
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
        // Its loop device goes with it.
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted));
        let quota = Quota { mounted };
        run(Command::new("btrfs").args(["quota", "enable"]).arg(&quota.mounted));
        run(Command::new("btrfs").args(["subvolume", "create"]).arg(quota.path()));
        quota.limit(limit_bytes);
        quota
    }

    /// The folder.
    pub fn path(&self) -> PathBuf {
        self.mounted.join("limited")
    }

    /// From now on all that is in it may have so many bytes.
    pub fn limit(&self, bytes: u64) {
        // The first subvolume's number, asked of the whole: nothing is allowed within one that is beyond its limit.
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
