//! The disks of a machine that is off: one read-only `qemu-nbd` a disk, on a private socket, that ends with its lease.
//!
//! The server is started detached, so that it outlives the command that opened the capture, and under coreutils'
//! `timeout`, so that a forgotten one ends by itself: while it runs, the machine cannot start. One of a capture that nobody else
//! can use is asked to end (`PR_SET_PDEATHSIG`) when the thread that started it does, however that happens.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::definition::Source;
use super::error::{Error, Result};
use super::state::{ServerProcess, start_ticks};

/// How many clients may read one disk at once.
const CLIENTS: u32 = 16;
/// How long a server may take until its socket answers.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long a server may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// What to serve.
#[derive(Debug, Clone)]
pub struct ServeRequest {
    /// The disk's target, which becomes the export's name.
    pub target: String,
    /// The image.
    pub source: Source,
    /// Its format.
    pub format: String,
    /// A bitmap to offer, checked before.
    pub bitmap: Option<String>,
    /// The socket.
    pub socket: PathBuf,
    /// Where the server's messages go.
    pub log: PathBuf,
    /// When it ends by itself.
    pub lease: Duration,
    /// Whether it ends with the calling thread, which then has to live as long as it is read.
    pub dies_with_us: bool,
}

/// The meta context of a bitmap that `qemu-nbd` offers.
pub fn dirty_context(bitmap: &str) -> String {
    format!("qemu:dirty-bitmap:{bitmap}")
}

/// Starts a server and waits until its socket answers.
pub fn serve(request: &ServeRequest) -> Result<ServerProcess> {
    let failed = |message: String| Error::Program { program: "qemu-nbd", subject: request.target.clone(), message };
    let log = File::create(&request.log).map_err(Error::io("create", &request.log))?;
    let errors = log.try_clone().map_err(Error::io("open", &request.log))?;
    let mut command = Command::new("setsid");
    if request.dies_with_us {
        command.args(["setpriv", "--pdeathsig=TERM", "--"]);
    }
    command
        .args(["timeout", "--kill-after=10"])
        .arg(request.lease.as_secs().max(1).to_string())
        .args(["qemu-nbd", "--read-only", "--persistent"])
        .arg(format!("--shared={CLIENTS}"))
        .arg(joined("--socket=", &request.socket))
        .arg(format!("--export-name={}", request.target));
    if let Some(bitmap) = &request.bitmap {
        command.arg(format!("--bitmap={bitmap}"));
    }
    add_image(&mut command, request).map_err(failed)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .current_dir("/")
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let pid = child.id();
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        if UnixStream::connect(&request.socket).is_ok() {
            break;
        }
        let ended = child.try_wait().map_err(|error| failed(error.to_string()))?;
        if ended.is_some() || Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            let said = fs::read_to_string(&request.log).unwrap_or_default();
            return Err(failed(said.trim().to_owned()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    // Somebody has to take the exit status, or the process stays a zombie for as long as we run.
    thread::spawn(move || child.wait());
    Ok(ServerProcess { pid, started_ticks: start_ticks(pid).unwrap_or(0) })
}

/// Ends a server, if the process is still the one that we started on this socket; says whether it was.
pub fn end(server: &ServerProcess, socket: &Path) -> Result<bool> {
    if !is_ours(server, socket) {
        return Ok(false);
    }
    let Some(pid) = i32::try_from(server.pid).ok().and_then(Pid::from_raw) else {
        return Ok(false);
    };
    // `timeout` hands SIGTERM on; SIGKILL it could not, so that is for its child, found by its socket.
    let _ = kill_process(pid, Signal::TERM);
    let deadline = Instant::now() + END_PATIENCE;
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

/// Whether a server runs.
pub fn is_ours(server: &ServerProcess, socket: &Path) -> bool {
    start_ticks(server.pid) == Some(server.started_ticks) && serves(server.pid, socket)
}

/// Every process of this user whose command line says `qemu-nbd` on this socket.
pub fn servers_on(socket: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| serves(pid, socket))
        .collect()
}

/// Ends every server on this socket: for a socket that is ours although no state tells the process.
pub fn end_all_on(socket: &Path) {
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
    let wanted = joined("--socket=", socket);
    let mut arguments = line.split(|&byte| byte == 0);
    let mut is_server = false;
    arguments.any(|argument| {
        is_server |= argument.ends_with(b"qemu-nbd");
        is_server && argument == wanted.as_encoded_bytes()
    })
}

fn joined(option: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(option);
    text.push(path);
    text
}

/// The image's arguments. Secrets would be visible to every user, so a source that needs one is refused.
fn add_image(command: &mut Command, request: &ServeRequest) -> std::result::Result<(), String> {
    match &request.source {
        Source::File { path } | Source::Block { path } => {
            command.arg(format!("--format={}", request.format)).arg("--").arg(path);
            Ok(())
        }
        Source::Network { options, .. } if options.auth.is_some() => {
            Err("a network disk that needs a secret can be read only while the machine runs".to_owned())
        }
        Source::Network { tls: true, .. } => {
            Err("a network disk behind TLS can be read only while the machine runs".to_owned())
        }
        network @ Source::Network { .. } => {
            let file = network_options(network)?;
            let options = serde_json::json!({ "driver": request.format, "file": file });
            command.arg("--").arg(format!("json:{options}"));
            Ok(())
        }
        other => Err(format!("a disk of kind {} cannot be read while the machine is off", other.kind())),
    }
}

/// QEMU's options for the kinds of network storage that it opens by address alone.
fn network_options(source: &Source) -> std::result::Result<serde_json::Value, String> {
    let Source::Network { protocol, name, hosts, .. } = source else {
        return Err("not a network disk".to_owned());
    };
    let host = hosts.first();
    let address = |default_port: u16| match host {
        Some(host) if host.transport.as_deref() == Some("unix") => {
            serde_json::json!({ "type": "unix", "path": host.socket })
        }
        _ => serde_json::json!({
            "type": "inet",
            "host": host.and_then(|host| host.name.clone()).unwrap_or_default(),
            "port": host.and_then(|host| host.port).unwrap_or(default_port).to_string(),
        }),
    };
    let name = name.clone().unwrap_or_default();
    match protocol.as_str() {
        "nbd" => Ok(serde_json::json!({
            "driver": "nbd", "server": address(10809), "export": name,
        })),
        "rbd" => {
            let (pool, image) = name.split_once('/').unwrap_or(("rbd", &name));
            Ok(serde_json::json!({ "driver": "rbd", "pool": pool, "image": image }))
        }
        "http" | "https" | "ftp" | "ftps" => {
            let host_name = host.and_then(|host| host.name.clone()).unwrap_or_default();
            let port = host.and_then(|host| host.port).map(|port| format!(":{port}")).unwrap_or_default();
            Ok(serde_json::json!({
                "driver": protocol,
                "url": format!("{protocol}://{host_name}{port}/{}", name.trim_start_matches('/')),
            }))
        }
        "gluster" => {
            let (volume, path) =
                name.trim_start_matches('/').split_once('/').ok_or("the gluster disk names no file")?;
            Ok(serde_json::json!({
                "driver": "gluster", "volume": volume, "path": path, "server": [address(24007)],
            }))
        }
        other => Err(format!("network storage of kind {other} cannot be read while the machine is off")),
    }
}
