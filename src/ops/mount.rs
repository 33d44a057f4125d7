//! Mounts of a served point: programs that are clients of its socket, and show what they read as files (FUSE).
//!
//! The host's kernel parses nothing of a guest: `guestmount` reads file systems in a small virtual machine of its own,
//! and `nbdfuse` shows a disk as one file.

use super::{Error, Result};
use crate::bounded::{self, Group, StopFlag};
use crate::capture::offline::storage_daemon::is_on_path;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long unmounting, and the end of the program after it, may take.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);

/// How long the first look at a mount may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// So much of what a program says is kept.
const MESSAGE_BYTES: u64 = 2000;

/// A program that mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountProgram {
    /// Shows the file systems of the guest; of libguestfs.
    Guestmount,
    /// Shows a disk as a file; of libnbd.
    Nbdfuse,
}

impl MountProgram {
    pub(crate) fn name(self) -> &'static str {
        match self {
            MountProgram::Guestmount => "guestmount",
            MountProgram::Nbdfuse => "nbdfuse",
        }
    }

    /// It ends, and unmounts, with the thread that starts it, however that ends.
    fn command(self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=TERM", "--", self.name()]);
        // Signals of the terminal are for kvmb, which unmounts.
        command.process_group(0);
        command
    }

    /// Whether it is on the path.
    pub(crate) fn is_installed(self) -> bool {
        is_on_path(self.name())
    }
}

/// A mount that was started; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Mount {
    program: MountProgram,
    target: PathBuf,
    child: Child,
    messages: File,
    /// Whether its files could be looked at.
    has_answered: bool,
    /// Whether the folder is ours, and goes with the mount.
    is_own_folder: bool,
}

/// How a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountState {
    /// Its program has started.
    Starting,
    /// Its files can be read.
    Mounted,
    Ended,
}

impl Mount {
    /// Begins to show a disk as the file `DISK.raw` in a folder `DISK` that is made for it.
    pub(crate) fn of_disk(folder: &Path, disk: &str, uri: &str) -> Result<Mount> {
        let target = folder.join(disk);
        fs::create_dir(&target).map_err(Error::io("create", &target))?;
        let mut command = MountProgram::Nbdfuse.command();
        command.arg("-r").arg(target.join(format!("{disk}.raw"))).arg(uri);
        let started = Mount::start(MountProgram::Nbdfuse, command, &target, true);
        if started.is_err() {
            let _ = fs::remove_dir(&target);
        }
        started
    }

    /// Begins to show the file systems of all disks of a guest, as the guest itself mounts them.
    pub(crate) fn of_file_systems(folder: &Path, uris: &[String]) -> Result<Mount> {
        let mut command = MountProgram::Guestmount.command();
        command.args(["--ro", "--no-fork"]);
        for uri in uris {
            // libguestfs has no scheme for sockets of its own: nbd:///EXPORT?socket=PATH.
            let address = uri.strip_prefix("nbd+unix:").map_or_else(|| uri.clone(), |rest| format!("nbd:{rest}"));
            command.args(["--format=raw", "-a", &address]);
        }
        command.arg("-i").arg(folder);
        Mount::start(MountProgram::Guestmount, command, folder, false)
    }

    fn start(program: MountProgram, mut command: Command, target: &Path, is_own_folder: bool) -> Result<Mount> {
        let messages = tempfile::tempfile().map_err(Error::io("create a file in", &std::env::temp_dir()))?;
        let output = |file: &File| file.try_clone().map(Stdio::from).map_err(Error::io("write", target));
        let child = command
            .stdin(Stdio::null())
            .stdout(output(&messages)?)
            .stderr(output(&messages)?)
            .spawn()
            .map_err(|error| failed(program, target, error.to_string()))?;
        Ok(Mount { program, target: target.to_owned(), child, messages, has_answered: false, is_own_folder })
    }

    /// Where its files are.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Looks how it is. A program that ended without a mount is an error, with what it said.
    pub(crate) fn state(&mut self) -> Result<MountState> {
        match self.child.try_wait() {
            Ok(None) if self.is_ready() => Ok(MountState::Mounted),
            Ok(None) => Ok(MountState::Starting),
            Ok(Some(status)) if status.success() => Ok(MountState::Ended),
            Ok(Some(status)) => {
                let words = self.said();
                let message = if words.is_empty() { status.to_string() } else { words };
                Err(failed(self.program, &self.target, message))
            }
            Err(error) => Err(failed(self.program, &self.target, error.to_string())),
        }
    }

    /// Whether its files can be read. Between the mount and its first answer the program does not handle signals yet:
    /// one that ends it would leave the mount behind.
    fn is_ready(&mut self) -> bool {
        if !is_mounted(&self.target) {
            return false;
        }
        if !self.has_answered {
            let target = self.target.clone();
            let looked = bounded::call(ANSWER_LIMIT, &StopFlag::default(), move || fs::read_dir(target).map(drop));
            self.has_answered = matches!(looked, Ok(Ok(())));
        }
        self.has_answered
    }

    /// The last thing that its program said.
    fn said(&mut self) -> String {
        let mut text = Vec::new();
        let read = self.messages.rewind().and_then(|()| (&self.messages).take(MESSAGE_BYTES).read_to_end(&mut text));
        let text = if read.is_ok() { String::from_utf8_lossy(&text).into_owned() } else { String::new() };
        text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if is_mounted(&self.target) {
            unmount(&self.target);
        }
        let end = Instant::now() + UNMOUNT_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end || !is_mounted(&self.target) && self.program == MountProgram::Nbdfuse {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.is_own_folder {
            let _ = fs::remove_dir(&self.target);
        }
    }
}

fn failed(program: MountProgram, target: &Path, message: String) -> Error {
    Error::Mount { program: program.name(), target: target.to_owned(), message }
}

/// Refuses a folder that a mount would hide something of, or that is none.
pub(crate) fn check_target(folder: &Path) -> Result<()> {
    let mut entries = fs::read_dir(folder).map_err(Error::io("mount on", folder))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::NotEmpty { path: folder.to_owned() }),
    }
}

/// Unmounts; a mount that is in use disappears when its last user has ended.
fn unmount(target: &Path) {
    let attempts = [("fusermount3", ["-u"].as_slice()), ("fusermount3", &["-u", "-z"]), ("fusermount", &["-u", "-z"])];
    for (program, flags) in attempts {
        let mut command = Command::new(program);
        command.args(flags).arg("--").arg(target);
        // The flag of the program is raised already: this is its end.
        match bounded::output(command, Group::Own, UNMOUNT_LIMIT, &StopFlag::default()) {
            Ok(output) if output.status.success() => return,
            Ok(output) => {
                tracing::debug!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("cannot unmount {}: {error}", target.display()),
        }
    }
}

/// Whether something is mounted on this folder, as the kernel lists it: to look at the folder itself could block.
fn is_mounted(target: &Path) -> bool {
    let list = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut targets = list.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    targets.any(|known| unescaped(known) == target.as_os_str().as_bytes())
}

/// A path of `/proc/self/mountinfo`, where blanks are `\040`.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_kernels_list_are_read() {
        assert_eq!(unescaped(br"/mnt/a\040b\134c\011"), b"/mnt/a b\\c\t");
        assert_eq!(unescaped(br"/a\04"), br"/a\04");
        assert!(is_mounted(Path::new("/proc")) && !is_mounted(Path::new("/proc/self")));
    }
}
