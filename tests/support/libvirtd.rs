//! A real libvirtd (`qemu:///system`) of a test.
//!
//! The daemon's folders are compiled in, so it runs in a mount namespace that replaces them with folders of the test:
//!
//! | libvirtd sees | which is |
//! | --- | --- |
//! | `/etc/libvirt` | `libvirt/etc` |
//! | `/var/lib/libvirt`, `/var/log/libvirt`, `/var/cache/libvirt` | `libvirt/lib`, `libvirt/log`, `libvirt/cache`: as of the embedded driver |
//! | `/run` | `libvirt/run`: its socket, and no D-Bus, systemd or udev of the host |
//!
//! A network namespace isolates it from the host's firewall and bridges; it has a loopback interface. No other program
//! has to enter the namespaces: programs reach the daemon by the path of its socket, and the machines by the path of
//! their images. The machines outlive the daemon, as on any host.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Call, Env, parts, wait_until};

/// Anyone who can access the socket's folder has full access, without authentication.
const LIBVIRTD_CONF: &str = "auth_unix_rw = \"none\"\n";

/// Sets up the namespace and executes libvirtd. The argument is the test's libvirt folder.
const SCRIPT: &str = r#"
    set -e
    mount --bind "$1/etc" /etc/libvirt
    for name in lib log cache; do mount --bind "$1/$name" "/var/$name/libvirt"; done
    mount --bind "$1/run" /run
    ip link set lo up
    exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$1/libvirtd.pid""#;

/// The daemon of an [`Env`], whether it is running or not.
pub(super) struct Libvirtd {
    root: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Libvirtd {
    pub(super) fn new(root: PathBuf) -> Libvirtd {
        parts::require(&["libvirtd", "unshare", "mount", "ip"]);
        for folder in ["etc", "lib", "log", "cache", "run"] {
            fs::create_dir_all(root.join(folder)).expect("cannot make a folder");
        }
        fs::write(root.join("etc/libvirtd.conf"), LIBVIRTD_CONF).expect("cannot write");
        Libvirtd { root, child: Mutex::new(None) }
    }

    pub(super) fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.root.join("run/libvirt/libvirt-sock")
    }

    fn spawn(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(child.is_none(), "libvirtd runs already");
        let log = File::options().create(true).append(true).open(self.log()).expect("cannot write");
        let spawned = Command::new("unshare")
            .args(["--mount", "--net", "sh", "-c", SCRIPT, "sh"])
            .arg(&self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        *child = Some(spawned.expect("unshare"));
    }

    fn kill(&self) {
        let mut child =
            self.child.lock().unwrap_or_else(PoisonError::into_inner).take().expect("libvirtd does not run");
        child.kill().expect("kill");
        child.wait().expect("wait");
        // The next daemon creates its own socket. Until then, clients should be refused and not blocked.
        let _ = fs::remove_file(self.socket());
    }

    fn log(&self) -> PathBuf {
        self.root.join("log/libvirtd.log")
    }
}

impl Env {
    /// Creates an environment with its own libvirtd. Requires root and permission to create namespaces.
    pub fn with_libvirtd(name: &str) -> Env {
        let mut env = Env::new(name);
        env.libvirtd = Some(Libvirtd::new(env.libvirt_root()));
        env.start_libvirtd();
        env
    }

    /// Kills libvirtd (`kill -9`). Its machines keep running.
    pub fn kill_libvirtd(&self) {
        self.daemon().kill();
    }

    /// Starts libvirtd (again) and waits until it responds.
    pub fn start_libvirtd(&self) {
        let daemon = self.daemon();
        daemon.spawn();
        let log = daemon.log();
        wait_until(&format!("libvirtd answers (see {})", log.display()), Duration::from_secs(60), || {
            Path::new(&daemon.socket()).exists() && self.try_virsh(&["uri"]).code() == 0
        });
    }

    /// Runs kvmb in the daemon's mount namespace, where files that libvirt creates have the paths that libvirt reports.
    pub fn kvmb_beside_libvirtd<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Call {
        let child = self.daemon().child.lock().unwrap_or_else(PoisonError::into_inner);
        let namespace = format!("--mount=/proc/{}/ns/mnt", child.as_ref().expect("libvirtd runs").id());
        let call = self.program("nsenter").arg(namespace).arg(self.path("bin/kvmb")).args(args);
        call.env("LIBVIRT_DEFAULT_URI", "qemu:///system")
    }

    pub(super) fn has_libvirtd(&self) -> bool {
        self.libvirtd.is_some()
    }

    fn daemon(&self) -> &Libvirtd {
        self.libvirtd.as_ref().expect("a world with libvirtd")
    }
}
