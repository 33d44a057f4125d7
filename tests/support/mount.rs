//! Folders that even root cannot write to.

use std::process::Command;

/// A folder that is mounted read-only until this is dropped.
pub struct ReadOnly(String);

impl ReadOnly {
    /// Makes a folder read-only for all files that are opened from now on.
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
