//! Storage other than image files: block devices and network storage, which image locks do not protect.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::change::run;
use super::wait_until_it_listens;

/// A loop device, which is released when this is dropped. Requires root.
pub struct LoopDevice {
    /// `/dev/loop…`
    pub path: String,
}

impl LoopDevice {
    /// Creates a loop device over a file.
    pub fn on(file: &Path) -> LoopDevice {
        let path = run("losetup", &["--find", "--show", &file.display().to_string()]).trim().to_owned();
        // Clear what an earlier use of this number may have left: read-only mode, and the ownership that libvirt
        // recorded for a killed machine.
        run("blockdev", &["--setrw", &path]);
        for name in ["ref_dac", "dac", "timestamp_dac"] {
            let _ = rustix::fs::removexattr(&path, format!("trusted.libvirt.security.{name}"));
        }
        LoopDevice { path }
    }

    /// Returns the XML of a machine's disk.
    pub fn disk_xml(&self, target: &str) -> String {
        format!(
            "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{}'/>\
             <target dev='{target}' bus='virtio'/></disk>",
            self.path
        )
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.path]).output();
    }
}

/// A raw file as network storage: served over NBD on a socket that every user may use. The server ends when this is
/// dropped.
pub struct NetworkStorage {
    socket: PathBuf,
    server: Child,
}

impl NetworkStorage {
    /// Serves a file on this socket.
    pub fn of(file: &Path, socket: &Path) -> NetworkStorage {
        let server = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=8", "--format=raw", "--socket"])
            .args([socket, file])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("qemu-nbd");
        let storage = NetworkStorage { socket: socket.to_owned(), server };
        wait_until_it_listens(socket);
        fs::set_permissions(socket, fs::Permissions::from_mode(0o777)).expect("chmod");
        storage
    }

    /// Returns the XML of a machine's disk.
    pub fn disk_xml(&self, target: &str) -> String {
        format!(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
             <source protocol='nbd'><host transport='unix' socket='{}'/></source>\
             <target dev='{target}' bus='virtio'/></disk>",
            self.socket.display()
        )
    }

    /// Fills a range with one byte, as a machine's guest would.
    pub fn write(&self, offset: u64, length: u64, pattern: u8) {
        let address = format!("nbd+unix:///?socket={}", self.socket.display());
        run("qemu-io", &["-f", "raw", "-c", &format!("write -P {pattern} {offset} {length}"), &address]);
    }
}

impl Drop for NetworkStorage {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
