//! Finding and ending what a test has started, by process id.
//!
//! A process belongs to a test when its command line or its environment names the test's private folder. The folder's
//! name is random, so nobody else's process can be meant.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A process of a test.
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its arguments, separated by spaces.
    pub command_line: String,
}

impl Process {
    /// Whether its program has this name.
    pub fn is(&self, program: &str) -> bool {
        let first = self.command_line.split(' ').next().unwrap_or_default();
        Path::new(first).file_name().is_some_and(|name| name == program)
    }
}

/// The processes that belong to the test with this folder; zombies are not counted.
pub fn of(folder: &Path) -> Vec<Process> {
    let folder = folder.to_str().expect("UTF-8");
    let mine = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let arguments = read(&entry.path().join("cmdline"));
        // A zombie has no arguments, nor has a thread of the kernel.
        if pid == mine || arguments.is_empty() {
            continue;
        }
        if arguments.contains(folder) || read(&entry.path().join("environ")).contains(folder) {
            found.push(Process { pid, command_line: arguments.trim_end_matches('\0').replace('\0', " ") });
        }
    }
    found
}

/// Kills all of them and waits until they are gone.
pub fn end_all(folder: &Path) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let left = of(folder);
        if left.is_empty() {
            return;
        }
        for process in &left {
            kill(process.pid);
        }
        if Instant::now() > end {
            let left: Vec<&str> = left.iter().map(|p| p.command_line.as_str()).collect();
            eprintln!("cannot end: {left:?}");
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A shell that cleans up when the test program dies without a word (a kill, Ctrl-C, a runner's time limit).
pub(super) struct Guard(Child);

impl Guard {
    /// Starts it. It waits for the end of its stdin, the other end of which only this process holds.
    pub(super) fn start(folder: &Path) -> Guard {
        const SCRIPT: &str = r#"
            cat
            for process in /proc/[0-9]*; do
                tr '\0' '\n' <"$process/cmdline" | grep -qF "$1/$2" && kill -9 "${process#/proc/}"
            done 2>/dev/null
            [ -n "$KVMB_TEST_KEEP" ] || { umount -l "$1/$2"/* 2>/dev/null; rm -rf "$1/$2"; }"#;
        let parent = folder.parent().expect("a parent");
        let name = folder.file_name().expect("a name");
        let mut command = Command::new("/bin/sh");
        // The folder's path in two parts: this process must not look like one of the test's own.
        command.args(["-c", SCRIPT, "guard"]).arg(parent).arg(name);
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Guard(command.spawn().expect("cannot start /bin/sh"))
    }

    /// The test cleans up by itself.
    pub(super) fn dismiss(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `kill -9`, until the process has let go of its files; one that is gone already is no error.
pub fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
    super::wait_until("the process has ended", Duration::from_secs(60), || has_ended(pid));
}

/// Whether it is gone, or nothing of it is left but its exit status. A first thread can end before the others.
fn has_ended(pid: i32) -> bool {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let is_zombie = read(&folder.join("stat")).rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    is_zombie && fs::read_dir(folder.join("task")).map_or(0, Iterator::count) <= 1
}

/// What the system says of a process; nothing when it is gone.
fn read(file: &Path) -> String {
    fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
