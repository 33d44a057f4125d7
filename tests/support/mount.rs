//! Folders that cannot be written, not even by root.

use std::process::Command;

/// A folder made read-only by a mount. Dropped, it can be written again.
pub struct ReadOnly(String);

impl ReadOnly {
    /// Makes it so, for all who open files in it from now on.
    pub fn make(folder: &str) -> ReadOnly {
        mount(&["--bind", folder, folder]);
        let made = ReadOnly(folder.to_owned());
        mount(&["-o", "remount,bind,ro", folder]);
        made
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn mount(args: &[&str]) {
    let output = Command::new("mount").args(args).output().expect("mount");
    assert!(
        output.status.success(),
        "cannot mount: run the tests as root, with the right to mount ({})",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}
