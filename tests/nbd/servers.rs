//! Real NBD servers for a test, each in a private folder and ended by its process id.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvmb::nbd::NbdUri;

const INSTALL: &str = "apt install qemu-utils qemu-system-x86 nbdkit";

/// A process that serves one socket. It is killed and its folder removed when this is dropped.
pub struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts a program that writes `pid` into the folder once it listens on `socket` in it.
    fn start(program: &str, arguments: impl FnOnce(&mut Command, &Path)) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        arguments(&mut command, folder.path());
        let child = command
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}. {INSTALL}"));
        let mut server = Server { child, folder };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !server.path("pid").exists() || !server.path("socket").exists() {
            let ended = server.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{program} does not serve: {ended:?} {}",
                std::fs::read_to_string(server.path("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Starts a read-only `qemu-nbd` for several clients.
    pub fn qemu_nbd(format: &str, image: &Path, more: &[&str]) -> Server {
        let mut arguments = vec!["-r", "-e", "8"];
        arguments.extend(more);
        Server::qemu_nbd_raw(format, image, &arguments)
    }

    /// Starts `qemu-nbd` with only these arguments.
    pub fn qemu_nbd_raw(format: &str, image: &Path, more: &[&str]) -> Server {
        Server::start("qemu-nbd", |command, folder| {
            command
                .args(["-t", "-f", format, "-k"])
                .arg(folder.join("socket"))
                .arg("--pid-file")
                .arg(folder.join("pid"))
                .args(more)
                .arg(image);
        })
    }

    /// Starts `nbdkit` with these arguments.
    pub fn nbdkit(arguments: &[&str]) -> Server {
        Server::start("nbdkit", |command, folder| {
            command.args(["-f", "-U"]).arg(folder.join("socket")).arg("-P").arg(folder.join("pid")).args(arguments);
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn uri(&self) -> NbdUri {
        self.export("")
    }

    pub fn export(&self, export: &str) -> NbdUri {
        NbdUri { socket: self.path("socket"), export: export.to_owned() }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A paused QEMU without a machine, with the block layer of a guest's disk and a monitor.
pub struct Qemu {
    server: Server,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    pub fn start() -> Qemu {
        let server = Server::start("qemu-system-x86_64", |command, folder| {
            command
                .args(["-machine", "none", "-nodefaults", "-display", "none", "-S"])
                .arg("-pidfile")
                .arg(folder.join("pid"))
                .arg("-qmp")
                .arg(format!("unix:{},server=on,wait=off", folder.join("socket").display()));
        });
        let stream = crate::support::qmp::connect_when_it_listens(&server.path("socket"));
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut qemu = Qemu { server, monitor: BufReader::new(stream) };
        let mut greeting = String::new();
        qemu.monitor.read_line(&mut greeting).unwrap();
        qemu.execute("qmp_capabilities", serde_json::json!({}));
        qemu
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.server.path(name)
    }

    /// Runs a QMP command, and returns its answer.
    pub fn execute(&mut self, command: &str, arguments: serde_json::Value) -> serde_json::Value {
        let request = serde_json::json!({"execute": command, "arguments": arguments});
        writeln!(self.monitor.get_mut(), "{request}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.monitor.read_line(&mut line).unwrap(), 0, "QEMU is gone");
            let reply: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(reply.get("error").is_none(), "{command}: {reply}");
            if let Some(answer) = reply.get("return") {
                return answer.clone();
            }
        }
    }

    /// Writes through the live block layer, as a guest does.
    pub fn io(&mut self, node: &str, command: &str) {
        let line = format!("qemu-io {node} \"{command}\"");
        let answer = self.execute("human-monitor-command", serde_json::json!({"command-line": line}));
        let answer = answer.as_str().unwrap().to_owned();
        assert!(answer.is_empty() || answer.contains("ops"), "{line}: {answer}");
    }
}

/// Runs a tool to its end.
pub fn run(program: &str, arguments: &[&str]) {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}. {INSTALL}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `qemu-io` commands on an image.
pub fn qemu_io(format: &str, image: &Path, commands: &[&str]) {
    let mut arguments = vec!["-f", format];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(image.to_str().unwrap());
    run("qemu-io", &arguments);
}
