//! Mounts of a served point by FUSE programs, which are NBD clients of its socket.
//!
//! The host's kernel parses no data of a guest: `guestmount` reads file systems in a small virtual machine, and
//! `nbdfuse` shows a disk as one file.

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

/// The time limit for unmounting, and for the program's exit after it.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);

/// The time limit for the first access to a mount.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The maximum number of bytes kept of a program's messages.
const MESSAGE_BYTES: u64 = 2000;

/// A FUSE program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountProgram {
    /// Shows the guest's file systems. Part of libguestfs.
    Guestmount,
    /// Shows a disk as a file. Part of libnbd.
    Nbdfuse,
}

impl MountProgram {
    pub(crate) fn name(self) -> &'static str {
        match self {
            MountProgram::Guestmount => "guestmount",
            MountProgram::Nbdfuse => "nbdfuse",
        }
    }

    /// The program exits, and unmounts, when the thread that started it ends for any reason.
    fn command(self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=TERM", "--", self.name()]);
        // Signals of the terminal must only reach kvmb, which then unmounts.
        command.process_group(0);
        command
    }

    /// Whether the program is in `PATH`.
    pub(crate) fn is_installed(self) -> bool {
        is_on_path(self.name())
    }
}

/// A started mount. Dropping it unmounts.
#[derive(Debug)]
pub(crate) struct Mount {
    program: MountProgram,
    target: PathBuf,
    child: Child,
    messages: File,
    /// Whether its files could be accessed.
    has_answered: bool,
    /// Whether the folder was created for the mount and is removed with it.
    is_own_folder: bool,
}

/// The state of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountState {
    /// The program has started.
    Starting,
    /// The files can be read.
    Mounted,
    Ended,
}

impl Mount {
    /// Starts to show a disk as the file `DISK.raw` in a new folder `DISK`.
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

    /// Starts to show the file systems of all disks of a guest, mounted as the guest mounts them.
    pub(crate) fn of_file_systems(folder: &Path, uris: &[String]) -> Result<Mount> {
        let mut command = MountProgram::Guestmount.command();
        command.args(["--ro", "--no-fork"]);
        for uri in uris {
            // libguestfs has no URI scheme for Unix sockets; it uses nbd:///EXPORT?socket=PATH.
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

    /// The folder of the mounted files.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Checks the state. If the program exited without mounting, its message is the error.
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

    /// Whether the files can be read. The program handles no signals until it answered for the first time: a signal
    /// that kills it before would leave the mount behind.
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

    /// The last message of the program.
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

/// Refuses a target that is not a folder, or whose content a mount would hide.
pub(crate) fn check_target(folder: &Path) -> Result<()> {
    let mut entries = fs::read_dir(folder).map_err(Error::io("mount on", folder))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::NotEmpty { path: folder.to_owned() }),
    }
}

/// Unmounts. A mount in use disappears when its last user exits.
fn unmount(target: &Path) {
    let attempts = [("fusermount3", ["-u"].as_slice()), ("fusermount3", &["-u", "-z"]), ("fusermount", &["-u", "-z"])];
    for (program, flags) in attempts {
        let mut command = Command::new(program);
        command.args(flags).arg("--").arg(target);
        // The process's own stop flag is raised already, so it is not used here.
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

/// Whether the kernel lists a mount on this folder. Accessing the folder itself could block.
fn is_mounted(target: &Path) -> bool {
    let list = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut targets = list.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    targets.any(|known| unescaped(known) == target.as_os_str().as_bytes())
}

/// Unescapes a path of `/proc/self/mountinfo`, where a space is `\040`.
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
    fn escaped_paths_of_mountinfo_are_decoded() {
        assert_eq!(unescaped(br"/mnt/a\040b\134c\011"), b"/mnt/a b\\c\t");
        assert_eq!(unescaped(br"/a\04"), br"/a\04");
        assert!(is_mounted(Path::new("/proc")) && !is_mounted(Path::new("/proc/self")));
    }
}
