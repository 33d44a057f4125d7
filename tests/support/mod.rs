//! A hermetic environment for tests: real components (libvirt, QEMU, restic, a small Linux guest) in private folders.
//!
//! [`Env`] is the environment of one test: a private folder under `/tmp` with its own home, runtime folder, embedded
//! libvirt root and password file. Programs are started with a cleared environment that refers to it. When it is
//! dropped, even by a panic, every process that was started in it is ended by its process id, and the folder is removed
//! (`KVMB_TEST_KEEP=1` keeps it for inspection). If the test program itself is killed, a guard process cleans up.
//!
//! | part | what it is for |
//! | --- | --- |
//! | [`Env::kvmb`], [`Env::sh`] | the program under test, alone or in a shell pipe; [`call::Output`] reads its records strictly |
//! | [`Env::machine`] | a QEMU machine without an operating system; patterns are written through its live block layer |
//! | [`model::DiskModel`] | the expected content of a disk, kept in memory and compared byte for byte |
//! | [`Env::linux_guest`] | a small Linux with a working guest agent, under software emulation |
//! | [`guestfish`] | libguestfs, with the kernel of that Linux |
//! | [`Env::restic`] | restic, to check a repository |
//! | [`Env::sshd`] | an SSH server with its own accounts |
//! | [`Sshd::behind`] | the same behind a network that delays, cuts, drops and corrupts |
//! | [`Env::with_libvirtd`] | a private libvirtd that can be killed and restarted |
//! | [`host::Host`] | private crontabs, `/etc/cron.d` and systemd units |
//! | [`Env::tmpfs`] | a small file system that can be filled up |
//! | [`storage`] | block devices and network storage |
//! | [`Env::quota`] | a folder with a quota on a file system with free space |
//! | [`Env::pty`] | kvmb on a terminal |
//! | [`browser::Browser`] | Chromium, for the pages of the console |
//!
//! Nothing is skipped: a missing part fails the test with the command that installs it.

// Each test program compiles the harness and uses only a part of it.
#![allow(dead_code)]

pub mod backups;
pub mod browser;
pub mod call;
pub mod chains;
pub mod change;
pub mod faketime;
pub mod guest;
pub mod guestfish;
pub mod host;
pub mod hostile_sftp;
pub mod http_server;
pub mod libvirt;
pub mod libvirtd;
pub mod machine;
pub mod model;
pub mod mount;
pub mod parts;
pub mod process;
pub mod processor;
pub mod proxy;
pub mod pty;
pub mod qmp;
pub mod quota;
pub mod repo;
pub mod restic;
pub mod screen;
pub mod scripted_http;
pub mod sshd;
pub mod storage;
pub mod tmpfs;
pub mod writer;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::{Duration, Instant};

pub use call::{Call, Output};
pub use guest::{FreezeMode, LinuxGuest};
pub use machine::{Disk, Machine};
pub use model::DiskModel;

use machine::MachineBuilder;
use pty::Pty;
use quota::Quota;
use restic::Restic;
use sshd::Sshd;
use tmpfs::Tmpfs;

/// The default password of repositories.
pub const PASSWORD: &str = "correct horse";

/// The private environment of a test.
pub struct Env {
    name: String,
    folder: PathBuf,
    /// Only one process at a time may open the embedded root.
    libvirt: Mutex<()>,
    /// The daemon, if it replaces the embedded driver.
    libvirtd: Option<libvirtd::Libvirtd>,
    machines: AtomicUsize,
    guard: process::Guard,
}

impl Env {
    /// Creates the environment. `name` only identifies it in messages.
    pub fn new(name: &str) -> Env {
        processor::settle();
        parts::require(&["virsh", "qemu-system-x86_64", "qemu-img", "qemu-nbd", "restic"]);
        let base = std::env::var_os("KVMB_TEST_DIR").unwrap_or_else(|| "/tmp".into());
        // Kept short because the path of a Unix socket is limited to 107 bytes.
        let folder = tempfile::Builder::new()
            .prefix("kvmb-test-")
            .tempdir_in(base)
            .expect("cannot make the test's folder")
            .keep();
        let guard = process::Guard::start(&folder);
        let env = Env {
            name: name.to_owned(),
            folder,
            libvirt: Mutex::new(()),
            libvirtd: None,
            machines: AtomicUsize::new(0),
            guard,
        };
        // QEMU runs as its own user, which needs to traverse the folder and to create sockets in some of its
        // subfolders.
        set_mode(&env.folder, 0o711);
        for (folder, mode) in [
            ("home", 0o700),
            ("run", 0o711),
            ("tmp", 0o1777),
            ("scratch", 0o711),
            ("disks", 0o711),
            ("qmp", 0o777),
            ("bin", 0o755),
            ("libvirt", 0o755),
        ] {
            let path = env.folder.join(folder);
            fs::create_dir(&path).expect("cannot make a folder");
            set_mode(&path, mode);
        }
        fs::write(env.password_file(), format!("{PASSWORD}\n")).expect("cannot write");
        set_mode(&env.password_file(), 0o600);
        env.configure(&serde_json::json!({}));
        symlink(env!("CARGO_BIN_EXE_kvmb"), env.folder.join("bin/kvmb")).expect("cannot link");
        libvirt::prepare_root(&env.libvirt_root());
        env
    }

    /// Returns a path in the private folder.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.folder.join(relative)
    }

    /// Returns the folder of the tests' disk images.
    pub fn disks(&self) -> PathBuf {
        self.path("disks")
    }

    /// Returns the path of a repository, which does not exist yet.
    pub fn repo(&self) -> String {
        self.repo_named("repo")
    }

    /// Returns the path of another repository, which does not exist yet.
    pub fn repo_named(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Returns the file that contains [`PASSWORD`].
    pub fn password_file(&self) -> PathBuf {
        self.path("password")
    }

    /// Returns kvmb's runtime folder (`KVMB_RUNTIME_DIR`).
    pub fn runtime_dir(&self) -> PathBuf {
        self.path("run/kvmb")
    }

    /// Returns kvmb's scratch folder (`KVMB_SCRATCH`).
    pub fn scratch_dir(&self) -> PathBuf {
        self.path("scratch")
    }

    /// Returns kvmb's configuration file (`KVMB_CONFIG`), which is empty at first.
    pub fn config_file(&self) -> PathBuf {
        self.path("config.json")
    }

    /// Writes kvmb's configuration.
    pub fn configure(&self, config: &serde_json::Value) {
        fs::write(self.config_file(), config.to_string()).expect("cannot write");
        set_mode(&self.config_file(), 0o600);
    }

    /// Returns kvmb's log file (`KVMB_LOG_FILE`).
    pub fn log_file(&self) -> PathBuf {
        self.path("kvmb.log")
    }

    /// Returns the root folder of libvirt.
    pub fn libvirt_root(&self) -> PathBuf {
        self.path("libvirt")
    }

    /// Returns the libvirt URI of this environment.
    pub fn uri(&self) -> String {
        if let Some(libvirtd) = &self.libvirtd {
            return libvirtd.uri();
        }
        format!("qemu:///embed?root={}", self.libvirt_root().display())
    }

    /// Sets a command's environment to that of this test only.
    pub fn apply_to(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
        command
            .env_clear()
            .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.path("bin").display()))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("LANG", "C.UTF-8")
            // Colour codes would be inserted between words; the test of colour enables it.
            .env("NO_COLOR", "1")
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("XDG_CONFIG_HOME", self.path("home/.config"))
            .env("XDG_DATA_HOME", self.path("home/.local/share"))
            .env("XDG_CACHE_HOME", self.path("home/.cache"))
            .env("XDG_STATE_HOME", self.path("home/.local/state"))
            .env("KVMB_RUNTIME_DIR", self.runtime_dir())
            .env("KVMB_SCRATCH", self.scratch_dir())
            .env("KVMB_DATA_DIR", self.path("data"))
            .env("KVMB_LOG_FILE", self.log_file())
            .env("KVMB_CONFIG", self.config_file())
            .env("KVMB_PASSWORD_FILE", self.password_file())
            .env("KVMB_TEST_QUICK_KEYS", "1")
            .env("LIBVIRT_DEFAULT_URI", self.uri())
            .env("RESTIC_CACHE_DIR", self.path("home/.cache/restic"))
            .env("RESTIC_PASSWORD_FILE", self.password_file())
            .current_dir(&self.folder);
    }

    /// Runs a program in this environment.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Call {
        let mut command = Command::new(program);
        self.apply_to(&mut command);
        Call::new(command)
    }

    /// Runs kvmb with these arguments.
    pub fn kvmb<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Call {
        self.program(self.path("bin/kvmb")).args(args)
    }

    /// Runs kvmb with these arguments and this hostname. Requires root.
    pub fn kvmb_on<A: AsRef<OsStr>>(&self, host: &str, args: impl IntoIterator<Item = A>) -> Call {
        let script = "echo \"$1\" >/proc/sys/kernel/hostname; shift; exec kvmb \"$@\"";
        self.program("unshare").args(["--uts", "sh", "-c", script, "sh", host]).args(args)
    }

    /// Runs kvmb with these arguments while these programs cannot be found. Requires root.
    pub fn kvmb_without<A: AsRef<OsStr>>(&self, programs: &[&str], args: impl IntoIterator<Item = A>) -> Call {
        let script = "for name in $1; do
            for folder in $(echo \"$PATH\" | tr : ' '); do
                ! test -f \"$folder/$name\" || mount --bind /dev/null \"$folder/$name\"
            done
        done; shift; exec kvmb \"$@\"";
        self.program("unshare").args(["--mount", "sh", "-c", script, "sh", &programs.join(" ")]).args(args)
    }

    /// Runs a script with `/bin/sh`, with `kvmb` on its path. `$R` is [`Env::repo`].
    pub fn sh(&self, script: &str) -> Call {
        self.program("/bin/sh").env("R", self.repo()).args(["-c", script])
    }

    /// Starts the description of a machine.
    pub fn machine(&self, name: &str) -> MachineBuilder<'_> {
        MachineBuilder::new(self, name)
    }

    /// Starts a small Linux with a working guest agent and a raw image as its disk.
    pub fn linux_guest(&self, name: &str) -> LinuxGuest<'_> {
        LinuxGuest::boot(self, name, FreezeMode::Normal, "raw")
    }

    /// The same with an agent that behaves according to `freeze`.
    pub fn linux_guest_that(&self, name: &str, freeze: FreezeMode) -> LinuxGuest<'_> {
        LinuxGuest::boot(self, name, freeze, "raw")
    }

    /// The same with a qcow2 image as its disk.
    pub fn linux_guest_on_qcow2(&self, name: &str, freeze: FreezeMode) -> LinuxGuest<'_> {
        LinuxGuest::boot(self, name, freeze, "qcow2")
    }

    /// Runs restic on a repository, with the password of this environment.
    pub fn restic(&self, repo: impl Into<String>) -> Restic<'_> {
        Restic::new(self, repo.into())
    }

    /// Mounts a tmpfs of this size. Requires root.
    pub fn tmpfs(&self, name: &str, size_bytes: u64) -> Tmpfs {
        Tmpfs::mount(self.path(name), size_bytes)
    }

    /// Creates a folder with a quota, on a file system with more space. Requires root.
    pub fn quota(&self, name: &str, limit_bytes: u64) -> Quota {
        Quota::mount(self.path(name), limit_bytes)
    }

    /// Starts an SSH server on a port of the loopback interface.
    pub fn sshd(&self) -> Sshd {
        Sshd::start(self, "")
    }

    /// The same with additional lines in `sshd_config`.
    pub fn sshd_with(&self, config: &str) -> Sshd {
        Sshd::start(self, config)
    }

    /// Runs kvmb on a terminal with 100 columns.
    pub fn pty<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Pty {
        Pty::start(self, &self.path("bin/kvmb").display().to_string(), args)
    }

    /// Runs an interactive shell or another program on a terminal with 100 columns.
    pub fn pty_of<A: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = A>) -> Pty {
        Pty::start(self, program, args)
    }

    /// Returns what kvmb has left behind: processes other than QEMU machines and the harness's own, and a capture's
    /// files in its folders (state, sockets, scratch), including empty folders.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = process::of(&self.folder)
            .into_iter()
            .filter(|p| {
                !p.is("qemu-system-x86_64") && !p.is("libvirtd") && !sshd::is_part(p) && !http_server::is_part(p)
            })
            // A QEMU that the embedded libvirt started to probe capabilities when kvmb was killed.
            .filter(|p| !p.command_line.contains(" -machine none,"))
            .map(|p| format!("process {}: {}", p.pid, p.command_line))
            .collect();
        for folder in [self.runtime_dir(), self.path("run/kvmb-nbd"), self.scratch_dir()] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                // A machine's lock file may stay, because removing it is a race. The changes of its backing files are
                // for its next backup. The filler is our own.
                let is_kept = path.extension().is_some_and(|extension| extension == "lock" || extension == "changes");
                if !is_kept && entry.file_name() != tmpfs::FILLER {
                    found.push(path.display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    /// Fails if anything of a capture is left. Allows processes a moment to end.
    pub fn assert_nothing_left(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let found = self.leftovers();
            if found.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{}: left behind: {found:#?}", self.name);
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        self.guard.dismiss();
        process::end_all(&self.folder);
        libvirt::keep_capabilities(&self.libvirt_root());
        if std::env::var_os("KVMB_TEST_KEEP").is_some() {
            eprintln!("{}: kept {}", self.name, self.folder.display());
            return;
        }
        tmpfs::unmount_below(&self.folder);
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{}: cannot remove {}: {error}", self.name, self.folder.display());
        }
    }
}

/// Waits until `done` returns true; fails with `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a server accepts connections on a socket. The socket's file exists a moment before the server listens.
pub fn wait_until_it_listens(socket: &Path) {
    wait_until("a server listens", Duration::from_secs(60), || UnixStream::connect(socket).is_ok());
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("cannot set the mode");
}
