//! Finds and ends the processes of a test, by process id.
//!
//! A process belongs to a test if its command line or its environment contains the test's private folder. The folder's
//! name is random, so no other process can match.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A process of a test.
pub struct Process {
    pub pid: i32,
    /// Its arguments, separated by spaces.
    pub command_line: String,
}

impl Process {
    /// Whether this is the name of its program.
    pub fn is(&self, program: &str) -> bool {
        let first = self.command_line.split(' ').next().unwrap_or_default();
        Path::new(first).file_name().is_some_and(|name| name == program)
    }
}

/// Returns the processes that belong to the test with this folder, without zombies.
pub fn of(folder: &Path) -> Vec<Process> {
    let folder = folder.to_str().expect("UTF-8");
    let mine = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let arguments = read(&entry.path().join("cmdline"));
        // Zombies and kernel threads have no arguments.
        if pid == mine || arguments.is_empty() {
            continue;
        }
        if arguments.contains(folder) || read(&entry.path().join("environ")).contains(folder) {
            found.push(Process { pid, command_line: arguments.trim_end_matches('\0').replace('\0', " ") });
        }
    }
    found
}

/// Kills all processes of a test and waits until they have ended.
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

/// A shell that cleans up if the test program is killed (by a signal, Ctrl-C, or a runner's time limit).
pub(super) struct Guard(Child);

impl Guard {
    /// Starts the shell, which waits for the end of its standard input. Only this process holds the other end.
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
        // Split the folder's path, so that this process does not look like one of the test's.
        command.args(["-c", SCRIPT, "guard"]).arg(parent).arg(name);
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Guard(command.spawn().expect("cannot start /bin/sh"))
    }

    /// Ends the guard, because the test cleans up itself.
    pub(super) fn dismiss(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Kills a process (`kill -9`) and waits until it has released its files. One that has already ended is not an error.
pub fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
    super::wait_until("the process has ended", Duration::from_secs(60), || has_ended(pid));
}

/// Whether a process has ended, at most leaving a zombie. Its first thread may end before the others.
fn has_ended(pid: i32) -> bool {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let is_zombie = read(&folder.join("stat")).rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    is_zombie && fs::read_dir(folder.join("task")).map_or(0, Iterator::count) <= 1
}

/// Reads a file in /proc; empty if the process has ended.
fn read(file: &Path) -> String {
    fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
