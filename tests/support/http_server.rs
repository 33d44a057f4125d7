//! Real servers for repositories over HTTP, each with its own folder and a free port: restic's `rest-server`, `rclone
//! serve restic`, `rclone serve s3` and moto.

use super::process::Process;
use super::{Env, parts, wait_until};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Where `.ci/install-parts` installs programs without a package.
const PARTS: &str = "/opt/kvmb-test-parts";

/// A running server, which ends when this is dropped.
pub struct HttpServer {
    folder: PathBuf,
    log: PathBuf,
    port: u16,
    child: Mutex<Child>,
}

/// Whether a process is one of these servers, and not a leftover of kvmb.
pub(super) fn is_part(process: &Process) -> bool {
    ["rclone", "restic-rest-server"].iter().any(|program| process.is(program))
        || process.command_line.contains("moto_server")
}

/// Finds a program that `.ci/install-parts` installs outside of `$PATH`, or that a package provides.
fn find(program: &str) -> Option<PathBuf> {
    let beside = ["venv/bin", "bin"].map(|folder| Path::new(PARTS).join(folder).join(program));
    beside.into_iter().find(|path| path.is_file()).or_else(|| parts::find(program))
}

fn need(program: &str) -> PathBuf {
    find(program).unwrap_or_else(|| panic!("the tests need {program}; as root run: .ci/install-parts"))
}

/// Whether restic's own server is available.
pub fn has_rest_server() -> bool {
    find("restic-rest-server").is_some()
}

impl HttpServer {
    /// Starts `rclone serve restic` with these options. It overwrites files unless `--append-only` is given.
    pub fn rclone<A: AsRef<OsStr>>(env: &Env, name: &str, options: impl IntoIterator<Item = A>) -> HttpServer {
        let folder = env.path(name);
        fs::create_dir_all(&folder).expect("cannot make a folder");
        let mut command = Command::new(need("rclone"));
        command.args(["serve", "restic", "--addr", "127.0.0.1:0"]).args(options).arg(&folder);
        HttpServer::start(env, command, folder)
    }

    /// Starts restic's own server with these options. It never overwrites a file.
    pub fn rest_server<A: AsRef<OsStr>>(env: &Env, name: &str, options: impl IntoIterator<Item = A>) -> HttpServer {
        let folder = env.path(name);
        fs::create_dir_all(&folder).expect("cannot make a folder");
        let mut command = Command::new(need("restic-rest-server"));
        command.args(["--listen", "127.0.0.1:0", "--path"]).arg(&folder).args(options);
        HttpServer::start(env, command, folder)
    }

    /// Starts `rclone serve s3`, which ignores conditional requests. Its key is `keeper-key` with the secret
    /// `swordfish-secret`.
    pub fn rclone_s3(env: &Env, name: &str) -> HttpServer {
        let folder = env.path(name);
        fs::create_dir_all(&folder).expect("cannot make a folder");
        let mut command = Command::new(need("rclone"));
        command
            .args(["serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", "keeper-key,swordfish-secret"])
            .arg(&folder);
        HttpServer::start(env, command, folder)
    }

    /// Starts moto, an imitation of AWS that keeps everything in memory and accepts any key.
    pub fn moto(env: &Env, name: &str) -> HttpServer {
        let mut command = Command::new(need("moto_server"));
        command.args(["-H", "127.0.0.1", "-p", "0"]);
        HttpServer::start(env, command, env.path(name))
    }

    fn start(env: &Env, mut command: Command, folder: PathBuf) -> HttpServer {
        // Two servers may share a folder.
        static SERVERS: AtomicUsize = AtomicUsize::new(0);
        let log = folder.with_extension(format!("{}.log", SERVERS.fetch_add(1, Ordering::Relaxed)));
        env.apply_to(&mut command);
        let file = File::create(&log).expect("cannot write");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a handle")).stderr(file);
        let child = Mutex::new(command.spawn().expect("cannot start the server"));
        let port_in = |text: &str| -> Option<u16> {
            // The port is followed by a line end or a slash.
            let (_, after) = text.split_once("127.0.0.1:")?;
            let digits = after.find(|c: char| !c.is_ascii_digit())?;
            after[..digits].parse().ok()
        };
        let mut port = None;
        wait_until("the server says its port", Duration::from_secs(60), || {
            port = port_in(&fs::read_to_string(&log).unwrap_or_default());
            port.is_some()
        });
        HttpServer { folder, log, port: port.unwrap_or_default(), child }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL of a repository on it, for kvmb's and restic's `--repo`.
    pub fn rest_url(&self, repo: &str) -> String {
        format!("rest:http://127.0.0.1:{}/{repo}/", self.port)
    }

    /// Returns the URL of a bucket or of a folder in a bucket, for kvmb's and restic's `--repo`.
    pub fn s3_url(&self, bucket: &str) -> String {
        format!("s3:http://127.0.0.1:{}/{bucket}", self.port)
    }

    /// Runs Python code with an administrator's client `s3` for this server, and returns its output.
    pub fn administer(&self, env: &Env, code: &str) -> String {
        let client = format!(
            "import boto3, datetime\ns3 = boto3.client('s3', endpoint_url='http://127.0.0.1:{}', \
             region_name='us-east-1', aws_access_key_id='admin', aws_secret_access_key='admin')\n{code}",
            self.port
        );
        env.program(need("python")).args(["-c", &client]).run().assert_ok().stdout().to_owned()
    }

    /// Returns the folder of its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        let mut child = self.child.lock().expect("lock");
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A test certificate authority and its certificates.
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Creates an authority and certificates for a server `127.0.0.1` and a client.
    pub fn make(env: &Env) -> Certificates {
        let folder = env.path("certificates");
        fs::create_dir_all(&folder).expect("cannot make a folder");
        let script = "set -e; cd \"$1\"
            openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
            for name in server client; do
                openssl req -newkey rsa:2048 -nodes -subj /CN=$name -keyout $name.key -out $name.csr
                echo 'subjectAltName = IP:127.0.0.1' >$name.ext
                openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext \
                    -out $name.pem
            done
            cat client.pem client.key >both.pem";
        env.program("/bin/sh").args(["-c", script, "sh"]).arg(&folder).run().assert_ok();
        Certificates { folder }
    }

    /// Returns the path of `ca.pem`, `server.pem`, `server.key` or `both.pem` (the client's certificate and key).
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
