//! Finds the processes that have a file or block device open.
//!
//! For block devices, this replaces QEMU's image locks: libvirt gives each QEMU device nodes of its own, and a lock on
//! one node does not exclude the users of another.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A process that has a file open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The name, as the kernel has it.
    pub name: String,
    /// The process id.
    pub pid: u32,
}

impl Holder {
    /// Whether it runs a machine.
    pub(crate) fn is_qemu(&self) -> bool {
        ["qemu-system", "qemu-kvm", "kvm"].iter().any(|name| self.name.starts_with(name))
    }

    /// Whether it is a program of QEMU, which would hold a lock on a file.
    pub(crate) fn locks_files(&self) -> bool {
        self.is_qemu() || self.name.starts_with("qemu-")
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// Returns the processes that have one of these files open for writing, as far as this process may see.
pub(crate) fn writers_of<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<Holder> {
    // A block device may have several nodes.
    let identity = |found: fs::Metadata| match found.file_type().is_block_device() {
        true => (None, found.rdev()),
        false => (Some(found.dev()), found.ino()),
    };
    let wanted: HashSet<(Option<u64>, u64)> = paths.filter_map(|path| fs::metadata(path).ok().map(identity)).collect();
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let descriptors = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let holds = |descriptor: fs::DirEntry| {
            let is_wanted = fs::metadata(descriptor.path()).is_ok_and(|found| wanted.contains(&identity(found)));
            is_wanted && is_for_writing(pid, &descriptor.file_name().to_string_lossy())
        };
        if pid != std::process::id() && descriptors.into_iter().any(holds) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            holders.push(Holder { name: name.trim().to_owned(), pid });
        }
    }
    holders
}

/// The same for the block devices among these paths.
pub(crate) fn writers_of_devices<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<Holder> {
    let is_device = |path: &&Path| fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let mut devices = paths.filter(is_device).peekable();
    if devices.peek().is_none() { Vec::new() } else { writers_of(devices) }
}

/// Whether a descriptor is open for writing, according to its flags, which the kernel prints in octal.
fn is_for_writing(pid: u32, descriptor: &str) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).is_some_and(|flags| flags & 0o3 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::{Command, Stdio};

    #[test]
    fn only_processes_that_write_a_file_are_reported() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let hold = |file: File| Command::new("sleep").arg("100").stdout(Stdio::from(file)).spawn().unwrap();
        let mut reader = hold(File::open(file.path()).unwrap());
        let mut writer = hold(File::options().append(true).open(file.path()).unwrap());
        let found = writers_of([file.path()].into_iter());
        let found: Vec<String> = found.iter().map(Holder::to_string).collect();
        assert_eq!(found, [format!("sleep (process {})", writer.id())]);
        for child in [&mut reader, &mut writer] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
