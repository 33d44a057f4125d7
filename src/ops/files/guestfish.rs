//! A session of `guestfish`, whose virtual machine opens what kvmb itself cannot read: LUKS, RAID and all kinds of
//! logical volumes.
//!
//! ```text
//!  kvmb ── commands ──→ guestfish ──→ virtual machine ── NBD, read-only ──→ kvmb
//!       ←─ bytes, a mark ──┘
//! ```
//! It is only used to read bytes of devices. The file systems on them are parsed by the confined process, as for every
//! disk. The host's kernel parses nothing of a guest.

use crate::bounded::StopFlag;
use crate::capture::offline::storage_daemon::is_on_path;
use crate::ops::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

const PROGRAM: &str = "guestfish";

/// The time limit for starting its virtual machine: usually a few seconds, half a minute without KVM, and minutes on a
/// busy host.
const LAUNCH_LIMIT: Duration = Duration::from_secs(900);

/// The time limit for any other command. Deriving the key of a LUKS volume is slow by design.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);

/// The time limit for ending its virtual machine.
const END_LIMIT: Duration = Duration::from_secs(15);

/// How often to check the stop flag.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// The memory of its virtual machine unless [`MEMORY_VARIABLE`] is set. LUKS2 may need 1 GiB to derive a key.
const MEMORY_MIB: u32 = 2048;

/// libguestfs's own variable for the memory, in MiB.
const MEMORY_VARIABLE: &str = "LIBGUESTFS_MEMSIZE";

/// The maximum length of an answer other than bytes of a device.
const MOST_ANSWER_BYTES: usize = 1 << 20;

/// The maximum number of bytes of standard error that is read for one command.
const MOST_MESSAGE_BYTES: u64 = 64 << 10;

/// The text before each error message.
const ERROR: &str = "libguestfs: error: ";

/// A running guestfish. Dropping it ends the process.
pub(super) struct Guestfish {
    child: Child,
    /// Closing it ends guestfish.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    /// The standard error.
    messages: File,
    /// The number of bytes of it that were read.
    messages_read: u64,
    /// The line that guestfish prints after each answer. It is random, so a guest cannot forge it.
    mark: Vec<u8>,
    stop: StopFlag,
}

impl Guestfish {
    /// Starts guestfish without its virtual machine.
    pub(super) fn start(stop: StopFlag) -> Result<Guestfish> {
        let failed = |source: io::Error| Error::NotStarted { program: PROGRAM, source };
        if !is_on_path(PROGRAM) {
            return Err(failed(ErrorKind::NotFound.into()));
        }
        let messages = tempfile::tempfile().map_err(failed)?;
        // guestfish ends its machine and removes its files when its input is closed, however kvmb ends. It must
        // therefore survive SIGPIPE, and the SIGTERM that is sent to end QEMU, which installs its own handler.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM PIPE; exec guestfish --keys-from-stdin"]).env("LC_ALL", "C");
        if std::env::var_os("LIBGUESTFS_BACKEND").is_none() {
            command.env("LIBGUESTFS_BACKEND", "direct");
        }
        let mut child = command
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(messages.try_clone().map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(ErrorKind::BrokenPipe.into()));
        };
        let mark = format!("kvmb-{:032x}\n", rand::random::<u128>()).into_bytes();
        Ok(Guestfish { child, stdin: Some(stdin), stdout, messages, messages_read: 0, mark, stop })
    }

    /// Starts the virtual machine with the exports of a socket as its disks, beginning with `/dev/sda`.
    pub(super) fn launch(&mut self, socket: &Path, exports: &[String]) -> Result<()> {
        let socket = socket
            .to_str()
            .filter(|path| !path.contains(['"', '\\', '\n']))
            .ok_or_else(|| Error::Guestfish { message: format!("it cannot connect to {}", socket.display()) })?;
        if std::env::var_os(MEMORY_VARIABLE).is_none() {
            self.ask(&format!("memsize {MEMORY_MIB}"))?;
        }
        for export in exports {
            let drive = format!("add-drive {export} format:raw readonly:true protocol:nbd");
            self.ask(&format!("{drive} \"server:unix:{socket}\""))?;
        }
        self.command("run", None, LAUNCH_LIMIT, MOST_ANSWER_BYTES)?.text()?;
        Ok(())
    }

    /// Opens a LUKS volume as `/dev/mapper/NAME`. The inner error is guestfish's message.
    pub(super) fn open_luks(
        &mut self,
        device: &str,
        name: &str,
        key: &[u8],
    ) -> Result<std::result::Result<(), String>> {
        if key.iter().any(|byte| matches!(byte, b'\n' | 0)) {
            return Ok(Err("the passphrase contains a line end or a zero byte".to_owned()));
        }
        let line = Zeroizing::new([key, b"\n"].concat());
        let command = format!("cryptsetup-open {device} {name} readonly:true");
        Ok(match self.command(&command, Some(&line), COMMAND_LIMIT, MOST_ANSWER_BYTES)?.error {
            Some(message) => Err(message),
            None => Ok(()),
        })
    }

    /// Returns the answer to a command. A failed command is an error.
    pub(super) fn ask(&mut self, command: &str) -> Result<String> {
        self.command(command, None, COMMAND_LIMIT, MOST_ANSWER_BYTES)?.text()
    }

    /// Returns the answer to a command, or `None` if the command fails.
    pub(super) fn try_ask(&mut self, command: &str) -> Result<Option<String>> {
        Ok(self.command(command, None, COMMAND_LIMIT, MOST_ANSWER_BYTES)?.text().ok())
    }

    /// Reads a range of a device.
    pub(super) fn read(&mut self, device: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        let answer = self.command(&format!("pread-device {device} {length} {offset}"), None, COMMAND_LIMIT, length)?;
        match answer.error {
            Some(message) => Err(Error::Guestfish { message }),
            None if answer.bytes.len() == length => Ok(answer.bytes),
            None => Err(Error::Guestfish { message: format!("{device} ends before byte {offset}") }),
        }
    }

    fn command(&mut self, command: &str, more: Option<&[u8]>, limit: Duration, most: usize) -> Result<Answer> {
        // With a minus sign before it, a failed command does not end the session.
        let mut input = Zeroizing::new(format!("-{command}\n").into_bytes());
        input.extend_from_slice(more.unwrap_or_default());
        input.extend_from_slice(b"echo ");
        input.extend_from_slice(&self.mark);
        let sent = match &mut self.stdin {
            Some(stdin) => stdin.write_all(&input),
            None => Err(ErrorKind::BrokenPipe.into()),
        };
        if sent.is_err() {
            return Err(self.ended());
        }
        let bytes = self.receive(limit, most)?;
        Ok(Answer { bytes, error: self.last_error() })
    }

    /// Reads the output until the mark.
    fn receive(&mut self, limit: Duration, most: usize) -> Result<Vec<u8>> {
        let deadline = Instant::now() + limit;
        let (mut received, mut buffer) = (Vec::new(), vec![0; 256 << 10]);
        while !received.ends_with(&self.mark) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if Instant::now() > deadline {
                return Err(Error::Guestfish { message: format!("no answer within {} s", limit.as_secs()) });
            }
            match poll(&mut [PollFd::new(&self.stdout, PollFlags::IN)], Some(&TICK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(Error::Guestfish { message: error.to_string() }),
            }
            match self.stdout.read(&mut buffer) {
                Ok(0) => return Err(self.ended()),
                Ok(read) => received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Guestfish { message: error.to_string() }),
            }
            if received.len() > most + self.mark.len() {
                return Err(Error::Guestfish { message: "the answer is longer than requested".to_owned() });
            }
        }
        received.truncate(received.len() - self.mark.len());
        Ok(received)
    }

    /// The first error on standard error since the last call.
    fn last_error(&mut self) -> Option<String> {
        let mut text = Vec::new();
        let begun = self.messages.seek(SeekFrom::Start(self.messages_read));
        let read = begun.and_then(|_| (&self.messages).take(MOST_MESSAGE_BYTES).read_to_end(&mut text));
        let end = self.messages.seek(SeekFrom::End(0));
        if let (Ok(_), Ok(end)) = (read, end) {
            self.messages_read = end;
        }
        let text = String::from_utf8_lossy(&text);
        tracing::debug!("{PROGRAM}: {}", text.trim());
        error_in(&text)
    }

    fn ended(&mut self) -> Error {
        let message = self.last_error().unwrap_or_else(|| "it exited".to_owned());
        Error::Guestfish { message }
    }
}

/// The answer to a command.
struct Answer {
    bytes: Vec<u8>,
    error: Option<String>,
}

impl Answer {
    fn text(self) -> Result<String> {
        match self.error {
            Some(message) => Err(Error::Guestfish { message }),
            None => Ok(String::from_utf8_lossy(&self.bytes).into_owned()),
        }
    }
}

/// The first error in a text, without control characters, because a guest may have influenced it.
fn error_in(text: &str) -> Option<String> {
    let message = text.lines().find_map(|line| line.split_once(ERROR).map(|(_, message)| message))?;
    Some(message.chars().filter(|character| !character.is_control()).take(300).collect())
}

impl Drop for Guestfish {
    fn drop(&mut self) {
        self.stdin = None;
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let signal = |signal: Signal| {
            // The child was not reaped yet, so its process id is still valid.
            if let Some(group) = group {
                let _ = kill_process_group(group, signal);
            }
        };
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                signal(Signal::KILL);
                let _ = self.child.wait();
                break;
            }
            // The virtual machine has nothing to write. Ending it ends every command.
            signal(Signal::TERM);
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_extracted_from_guestfish_output() {
        let said = "warning: x\n*stdin*:12: libguestfs: error: cryptsetup_open: No key\u{1b}[1m available\nmore\n";
        assert_eq!(error_in(said).as_deref(), Some("cryptsetup_open: No key[1m available"));
        assert_eq!(error_in("a warning\n"), None);
    }
}
