//! A `qemu-nbd` for the time of one command: any image format as the guest sees it.
//!
//! Unlike the servers of a capture ([`crate::capture::offline::storage_daemon`]) it ends with whoever started it: it serves until its last client
//! leaves, and a dropped [`ImageServer`] ends it at once.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::runtime::{check_socket_path, nbd_uri};

/// How long a server may take until its socket answers.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// A running server, private to us.
#[derive(Debug)]
pub struct ImageServer {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl ImageServer {
    /// Serves an image for reading. `moving`: although a machine may be writing to it.
    pub fn read_only(image: &Path, format: &str, moving: bool) -> Result<ImageServer> {
        if moving {
            // force-share is an option of the image, and only --image-opts can say it.
            let escaped = image.to_string_lossy().replace(',', ",,");
            let options =
                format!("driver={format},force-share=on,file.driver={},file.filename={escaped}", protocol(image));
            return ImageServer::start(image, &["--read-only", "--image-opts"], options.as_ref());
        }
        ImageServer::start(image, &["--read-only", "--format", format], image.as_os_str())
    }

    fn start(image: &Path, arguments: &[&str], subject: &std::ffi::OsStr) -> Result<ImageServer> {
        let folder = tempfile::Builder::new()
            .prefix("kvmb-")
            .tempdir()
            .map_err(|error| Error::io("create", std::env::temp_dir())(error))?;
        let socket = folder.path().join("nbd");
        check_socket_path(&socket)?;
        let log = folder.path().join("log");
        let errors = std::fs::File::create(&log).map_err(Error::io("create", &log))?;
        let child = Command::new("qemu-nbd")
            .args(["--shared", "16", "--socket"])
            .arg(&socket)
            .args(arguments)
            .arg("--")
            .arg(subject)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(|error| failed(image, error.to_string()))?;
        let mut server = ImageServer { child, socket, _folder: folder };
        let deadline = Instant::now() + START_PATIENCE;
        // A connection made only to look would be its last client.
        while !is_listening(&server.socket) {
            let ended = server.child.try_wait().map_err(|error| failed(image, error.to_string()))?;
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(failed(image, said.trim().trim_start_matches("qemu-nbd: ").to_owned()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Where it can be reached.
    pub fn uri(&self) -> String {
        nbd_uri(&self.socket, "")
    }
}

impl Drop for ImageServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether connections are taken: the socket's file is there a moment before that.
fn is_listening(socket: &Path) -> bool {
    /// `__SO_ACCEPTCON` in the column of flags.
    const LISTENING: &str = "00010000";
    let table = std::fs::read("/proc/net/unix").unwrap_or_default();
    let path = socket.as_os_str().as_bytes();
    table.split(|byte| *byte == b'\n').any(|line| {
        line.strip_suffix(path)
            .is_some_and(|line| String::from_utf8_lossy(line).split_whitespace().nth(3) == Some(LISTENING))
    })
}

fn protocol(image: &Path) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::metadata(image) {
        Ok(found) if found.file_type().is_block_device() => "host_device",
        _ => "file",
    }
}

fn failed(image: &Path, message: String) -> Error {
    Error::Program { program: "qemu-nbd", subject: image.display().to_string(), message }
}
