//! Serves the disks of a stopped machine: one read-only `qemu-storage-daemon` for all of them, on a private socket,
//! which ends with its lease. Files that only image headers refer to are opened by a second, unprivileged one.
//!
//! A daemon runs detached, so that it outlives the command that opened the capture, and under coreutils' `timeout`, so
//! that it ends even if it is forgotten: while it runs, the machine cannot start. The daemon of a capture that only
//! this process uses is terminated (`PR_SET_PDEATHSIG`) when the thread that started it ends for any reason.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::qemu_user::{Privilege, QemuUser};
use crate::capture::error::{Error, Result};
use crate::capture::process::{ServerProcess, start_ticks};

pub(crate) const PROGRAM: &str = "qemu-storage-daemon";

/// The names of the sockets in a capture's folder: that of the daemon that reads what the definition refers to, and
/// that of the one that reads what only headers refer to.
pub(crate) const SERVER_SOCKETS: [&str; 2] = ["nbd", "side"];

/// The maximum number of parallel clients.
const CLIENTS: u32 = 64;
/// The time limit for a daemon to open all files.
const START_LIMIT: Duration = Duration::from_secs(30);
/// The time limit for a daemon to exit.
const END_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(crate) struct DaemonRequest {
    /// The nodes, children before their parents.
    pub(crate) nodes: Vec<Value>,
    /// The exports for clients.
    pub(crate) exports: Vec<DaemonExport>,
    /// Secrets by the names of their objects, in files that the daemon reads while it starts.
    pub(crate) secrets: Vec<(String, PathBuf)>,
    /// The socket, in a folder that the daemon's user can write to.
    pub(crate) socket: PathBuf,
    /// The file for the daemon's messages.
    pub(crate) log: PathBuf,
    /// When it exits by itself.
    pub(crate) lease: Duration,
    /// Whether it ends with the calling thread, which must then live as long as the daemon is used.
    pub(crate) dies_with_us: bool,
    /// The user that it runs as.
    pub(crate) user: QemuUser,
    /// The privileges of the daemon.
    pub(crate) privilege: Privilege,
}

/// A node that clients can read.
#[derive(Debug, Clone)]
pub(crate) struct DaemonExport {
    /// The name for clients.
    pub(crate) name: String,
    pub(crate) node: String,
    /// A bitmap to offer, which was checked before.
    pub(crate) bitmap: Option<String>,
}

/// The message of a daemon that did not start.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

/// The meta context of a bitmap that a daemon offers.
pub(crate) fn dirty_context(bitmap: &str) -> String {
    format!("qemu:dirty-bitmap:{bitmap}")
}

/// Starts a daemon and waits until it has opened everything.
pub(crate) fn serve(request: &DaemonRequest) -> Result<std::result::Result<ServerProcess, Refused>> {
    if !is_on_path(PROGRAM) {
        return Err(Error::NoStorageDaemon { package: package() });
    }
    let log = File::create(&request.log).map_err(Error::io("create", &request.log))?;
    let errors = log.try_clone().map_err(Error::io("open", &request.log))?;
    let ready = request.socket.with_extension("pid");
    let mut command = Command::new("setsid");
    if request.dies_with_us {
        command.args(["setpriv", "--pdeathsig=TERM", "--"]);
    }
    command.args(["timeout", "--kill-after=10"]).arg(request.lease.as_secs().max(1).to_string());
    command.args(request.user.launcher(request.privilege)).arg(PROGRAM).args(arguments(request));
    command.arg("--pidfile").arg(&ready);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .current_dir("/")
        .env("LC_ALL", "C")
        .spawn()
        .map_err(|source| Error::NotStarted { program: "setsid", source })?;
    let deadline = Instant::now() + START_LIMIT;
    // The daemon writes the file once all nodes are open.
    while !fs::metadata(&ready).is_ok_and(|found| found.len() > 0) {
        let ended = child.try_wait().map_err(|error| failed(error.to_string()))?;
        if ended.is_some() || Instant::now() > deadline {
            give_up(&mut child);
            let said = fs::read_to_string(&request.log).unwrap_or_default();
            return Ok(Err(Refused(reason_in(&said))));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id();
    // Reaps the child. If the thread cannot start, a zombie stays until this process exits, which is harmless.
    let _ = thread::Builder::new().spawn(move || child.wait());
    Ok(Ok(ServerProcess { pid, started_ticks: start_ticks(pid).unwrap_or(0) }))
}

fn arguments(request: &DaemonRequest) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    for (id, file) in &request.secrets {
        add("--object", json!({ "qom-type": "secret", "id": id, "file": file }).to_string());
    }
    for node in &request.nodes {
        add("--blockdev", node.to_string());
    }
    add("--nbd-server", server_option(&request.socket));
    for (at, export) in request.exports.iter().enumerate() {
        let mut option = json!({
            "type": "nbd", "id": format!("export-{at}"), "node-name": export.node, "name": export.name,
            "writable": false,
        });
        if let Some(bitmap) = &export.bitmap {
            option["bitmaps"] = json!([bitmap]);
        }
        add("--export", option.to_string());
    }
    arguments
}

fn server_option(socket: &Path) -> String {
    json!({ "addr": { "type": "unix", "path": socket }, "max-connections": CLIENTS }).to_string()
}

fn give_up(child: &mut Child) {
    // `timeout` forwards the signal.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM);
    }
    let _ = child.wait();
}

/// Returns the daemon's message on one line, without its own name and the options that it repeats.
fn reason_in(said: &str) -> String {
    let from = said.rfind(&format!("{PROGRAM}: ")).unwrap_or(0);
    let reason = said[from..].trim();
    let reason = reason.rsplit_once("}: ").map_or(reason, |(_, reason)| reason);
    reason.trim_start_matches(PROGRAM).trim_start_matches(": ").replace('\n', "; ")
}

fn failed(message: String) -> Error {
    Error::Program { program: PROGRAM, subject: "the disks of a machine that is off".to_owned(), message }
}

/// Whether a program is in `PATH`.
pub(crate) fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The package that contains the daemon in this release. Debian moved it with QEMU 8.0.2.
pub(crate) fn package() -> &'static str {
    let output = Command::new("qemu-img").arg("--version").stdin(Stdio::null()).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let major = said.split_whitespace().find_map(|word| word.split('.').next()?.parse::<u32>().ok());
    match major {
        Some(major) if major < 8 => "qemu-system-common",
        _ => "qemu-utils",
    }
}

/// Ends a server if the process is still the one that was started for this socket. Returns whether it was.
pub(crate) fn end(server: &ServerProcess, socket: &Path) -> Result<bool> {
    if !is_ours(server, socket) {
        return Ok(false);
    }
    let Some(pid) = i32::try_from(server.pid).ok().and_then(Pid::from_raw) else {
        return Ok(false);
    };
    // `timeout` forwards SIGTERM. It cannot forward SIGKILL, which is therefore sent to its child, found by its socket.
    let _ = kill_process(pid, Signal::TERM);
    let deadline = Instant::now() + END_LIMIT;
    while is_ours(server, socket) || !servers_on(socket).is_empty() {
        if Instant::now() > deadline {
            for child in servers_on(socket) {
                if let Some(pid) = i32::try_from(child).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

/// Whether the process is still this server of the socket.
pub fn is_ours(server: &ServerProcess, socket: &Path) -> bool {
    start_ticks(server.pid) == Some(server.started_ticks) && serves(server.pid, socket)
}

/// Returns every process of this user whose command line is `qemu-storage-daemon` with this socket.
pub fn servers_on(socket: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| serves(pid, socket))
        .collect()
}

/// Ends every server on this socket, even if no state records the process.
pub(crate) fn end_all_on(socket: &Path) {
    for pid in servers_on(socket) {
        let server = ServerProcess { pid, started_ticks: start_ticks(pid).unwrap_or(0) };
        if let Err(error) = end(&server, socket) {
            tracing::warn!("{error}");
        }
    }
}

fn serves(pid: u32, socket: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let wanted = server_option(socket);
    let mut arguments = line.split(|&byte| byte == 0);
    let mut is_server = false;
    arguments.any(|argument| {
        is_server |= argument.ends_with(PROGRAM.as_bytes());
        is_server && argument == wanted.as_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemon_errors_are_reported_without_its_options() {
        let said = "qemu-storage-daemon: --blockdev {\"driver\":\"file\",\"filename\":\"/a/{b}: c\"}: Could not open \
            '/a': Permission denied\n";
        assert_eq!(reason_in(said), "Could not open '/a': Permission denied");
        let locked = "qemu-storage-daemon: --blockdev {\"a\":1}: Failed to get shared \"write\" lock\nIs another \
            process using the image [/a]?\n";
        let wanted = "Failed to get shared \"write\" lock; Is another process using the image [/a]?";
        assert_eq!(reason_in(locked), wanted);
        let missing = "timeout: failed to run command 'setpriv': No such file or directory\n";
        assert_eq!(reason_in(missing), missing.trim());
        assert_eq!(reason_in(""), "");
    }
}
