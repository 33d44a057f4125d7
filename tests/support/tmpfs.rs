//! A small file system in memory that can be filled up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file that uses up the space.
pub(super) const FILLER: &str = "filler";

/// A mounted file system, which is unmounted when this is dropped.
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    pub(super) fn mount(path: PathBuf, size_bytes: u64) -> Tmpfs {
        fs::create_dir_all(&path).expect("cannot make a folder");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size_bytes},mode=0777"), "kvmb-test"])
            .arg(&path)
            .output()
            .expect("mount");
        assert!(
            output.status.success(),
            "cannot mount a tmpfs: run the tests as root, with the right to mount ({})",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Tmpfs { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the free space.
    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.path).expect("statvfs");
        stat.f_bavail * stat.f_frsize
    }

    /// Uses up all space except this much.
    pub fn fill_up_to(&self, free_bytes: u64) {
        // Create it first, because that frees what an earlier call used.
        let file = fs::File::create(self.path.join(FILLER)).expect("cannot write");
        // An interrupted process may still write for a moment, between our check and the allocation.
        for tries_left in (0..50).rev() {
            let fill = self.free_bytes().saturating_sub(free_bytes);
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, fill.max(1)) {
                Err(rustix::io::Errno::NOSPC) if tries_left > 0 => {
                    std::thread::sleep(std::time::Duration::from_millis(20))
                }
                taken => return taken.expect("fallocate"),
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// Unmounts everything below a folder.
pub(super) fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
    for point in points.map(Path::new).filter(|point| point.starts_with(folder)) {
        unmount(point);
    }
}

pub(super) fn unmount(path: &Path) {
    let _ = Command::new("umount").arg("-l").arg(path).output();
}
