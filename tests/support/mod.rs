//! A hermetic place for the tests: real parts (libvirt, QEMU, restic, a small Linux guest) on private folders.
//!
//! [`Env`] is one test's world: a private folder under `/tmp` with its own home, runtime folder, embedded libvirt root
//! and password file. Programs are started with a cleared environment that points into it. When it is dropped, also by
//! a panic, every process that was started in it is ended by its process id, and the folder is removed
//! (`KVMB_TEST_KEEP=1` keeps it for a look). If the test program itself is killed, a guard process does that.
//!
//! | part | what it is for |
//! | --- | --- |
//! | [`Env::kvmb`], [`Env::sh`] | the program under test, alone or in a shell pipe; [`call::Output`] reads its records strictly |
//! | [`Env::machine`] | a QEMU machine without an operating system; patterns are written through its live block layer |
//! | [`model::DiskModel`] | what a disk must hold, kept in memory and compared byte for byte |
//! | [`Env::linux_guest`] | a small Linux with a working guest agent, under software emulation |
//! | [`guestfish`] | libguestfs, with the kernel of that Linux |
//! | [`Env::restic`] | restic's opinion of a repository |
//! | [`Env::sshd`] | an SSH server with accounts of its own |
//! | [`Sshd::behind`] | the same behind a network that delays, cuts, swallows and corrupts |
//! | [`Env::with_libvirtd`] | a libvirtd of the test's own, to be killed and started again |
//! | [`host::Host`] | crontabs, `/etc/cron.d` and systemd units of the test's own |
//! | [`Env::tmpfs`] | a small file system, to run out of room |
//! | [`storage`] | block devices and network storage |
//! | [`Env::quota`] | a folder that may hold only so much, on a file system that has room |
//! | [`Env::pty`] | kvmb on a terminal |
//! | [`browser::Browser`] | Chromium, for the pages of the console |
//!
//! Nothing is skipped: a missing part fails the test with the command that installs it.

// Each test program compiles the harness and uses its own half of it.
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

/// The password of every repository that a test does not say otherwise about.
pub const PASSWORD: &str = "correct horse";

/// One test's private world.
pub struct Env {
    name: String,
    folder: PathBuf,
    /// Only one process at a time may open the embedded root.
    libvirt: Mutex<()>,
    /// Instead of the embedded driver.
    libvirtd: Option<libvirtd::Libvirtd>,
    machines: AtomicUsize,
    guard: process::Guard,
}

impl Env {
    /// Makes the world. `name` only helps to recognise it in messages.
    pub fn new(name: &str) -> Env {
        processor::settle();
        parts::require(&["virsh", "qemu-system-x86_64", "qemu-img", "qemu-nbd", "restic"]);
        let base = std::env::var_os("KVMB_TEST_DIR").unwrap_or_else(|| "/tmp".into());
        // Short on purpose: the path of a unix socket ends at 107 bytes.
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
        // QEMU runs as a user of its own: it may pass through, and create sockets where it must.
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

    /// A path in the private folder.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.folder.join(relative)
    }

    /// Where the tests' disk images are.
    pub fn disks(&self) -> PathBuf {
        self.path("disks")
    }

    /// A repository path that is not there yet.
    pub fn repo(&self) -> String {
        self.repo_named("repo")
    }

    /// Another repository path that is not there yet.
    pub fn repo_named(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The file with [`PASSWORD`].
    pub fn password_file(&self) -> PathBuf {
        self.path("password")
    }

    /// kvmb's runtime folder (`KVMB_RUNTIME_DIR`).
    pub fn runtime_dir(&self) -> PathBuf {
        self.path("run/kvmb")
    }

    /// Where kvmb's scratch files go (`KVMB_SCRATCH`).
    pub fn scratch_dir(&self) -> PathBuf {
        self.path("scratch")
    }

    /// kvmb's configuration (`KVMB_CONFIG`), at first without any key.
    pub fn config_file(&self) -> PathBuf {
        self.path("config.json")
    }

    /// Configures kvmb.
    pub fn configure(&self, config: &serde_json::Value) {
        fs::write(self.config_file(), config.to_string()).expect("cannot write");
        set_mode(&self.config_file(), 0o600);
    }

    /// Where kvmb logs (`KVMB_LOG_FILE`).
    pub fn log_file(&self) -> PathBuf {
        self.path("kvmb.log")
    }

    /// The folder that libvirt lives in.
    pub fn libvirt_root(&self) -> PathBuf {
        self.path("libvirt")
    }

    /// The libvirt URI of this world.
    pub fn uri(&self) -> String {
        if let Some(libvirtd) = &self.libvirtd {
            return libvirtd.uri();
        }
        format!("qemu:///embed?root={}", self.libvirt_root().display())
    }

    /// Gives a command this world's environment and nothing else.
    pub fn apply_to(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
        command
            .env_clear()
            .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.path("bin").display()))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("LANG", "C.UTF-8")
            // Colour comes between words; the test of colour asks for it.
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

    /// A program in this world.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Call {
        let mut command = Command::new(program);
        self.apply_to(&mut command);
        Call::new(command)
    }

    /// kvmb with these arguments.
    pub fn kvmb<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Call {
        self.program(self.path("bin/kvmb")).args(args)
    }

    /// kvmb with these arguments on a host of that name; root only.
    pub fn kvmb_on<A: AsRef<OsStr>>(&self, host: &str, args: impl IntoIterator<Item = A>) -> Call {
        let script = "echo \"$1\" >/proc/sys/kernel/hostname; shift; exec kvmb \"$@\"";
        self.program("unshare").args(["--uts", "sh", "-c", script, "sh", host]).args(args)
    }

    /// kvmb with these arguments on a host that lacks these programs, wherever it looks for them; root only.
    pub fn kvmb_without<A: AsRef<OsStr>>(&self, programs: &[&str], args: impl IntoIterator<Item = A>) -> Call {
        let script = "for name in $1; do
            for folder in $(echo \"$PATH\" | tr : ' '); do
                ! test -f \"$folder/$name\" || mount --bind /dev/null \"$folder/$name\"
            done
        done; shift; exec kvmb \"$@\"";
        self.program("unshare").args(["--mount", "sh", "-c", script, "sh", &programs.join(" ")]).args(args)
    }

    /// A script for `/bin/sh`, with `kvmb` on its path. `$R` is [`Env::repo`].
    pub fn sh(&self, script: &str) -> Call {
        self.program("/bin/sh").env("R", self.repo()).args(["-c", script])
    }

    /// A machine to be described further.
    pub fn machine(&self, name: &str) -> MachineBuilder<'_> {
        MachineBuilder::new(self, name)
    }

    /// A small Linux that is up, its guest agent answering, its disk a raw image.
    pub fn linux_guest(&self, name: &str) -> LinuxGuest<'_> {
        LinuxGuest::boot(self, name, FreezeMode::Normal, "raw")
    }

    /// The same, but with an agent that behaves as `freeze` says.
    pub fn linux_guest_that(&self, name: &str, freeze: FreezeMode) -> LinuxGuest<'_> {
        LinuxGuest::boot(self, name, freeze, "raw")
    }

    /// The same, its disk a qcow2 image.
    pub fn linux_guest_on_qcow2(&self, name: &str, freeze: FreezeMode) -> LinuxGuest<'_> {
        LinuxGuest::boot(self, name, freeze, "qcow2")
    }

    /// restic on a repository, with the password of this world.
    pub fn restic(&self, repo: impl Into<String>) -> Restic<'_> {
        Restic::new(self, repo.into())
    }

    /// A file system of that size, in memory; root only.
    pub fn tmpfs(&self, name: &str, size_bytes: u64) -> Tmpfs {
        Tmpfs::mount(self.path(name), size_bytes)
    }

    /// A folder that may hold so many bytes, on a file system with more room; root only.
    pub fn quota(&self, name: &str, limit_bytes: u64) -> Quota {
        Quota::mount(self.path(name), limit_bytes)
    }

    /// An SSH server on a port of the loopback interface.
    pub fn sshd(&self) -> Sshd {
        Sshd::start(self, "")
    }

    /// The same, with further lines of `sshd_config`.
    pub fn sshd_with(&self, config: &str) -> Sshd {
        Sshd::start(self, config)
    }

    /// kvmb on a terminal of 100 columns.
    pub fn pty<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Pty {
        Pty::start(self, &self.path("bin/kvmb").display().to_string(), args)
    }

    /// An interactive shell, or another program, on a terminal of 100 columns.
    pub fn pty_of<A: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = A>) -> Pty {
        Pty::start(self, program, args)
    }

    /// What kvmb has left behind: processes that are not QEMU machines or ours to know, and what a capture would own in
    /// its folders (state, sockets, scratch), an empty folder included.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = process::of(&self.folder)
            .into_iter()
            .filter(|p| {
                !p.is("qemu-system-x86_64") && !p.is("libvirtd") && !sshd::is_part(p) && !http_server::is_part(p)
            })
            // A QEMU that the embedded libvirt asked what it can do, when kvmb was killed with it.
            .filter(|p| !p.command_line.contains(" -machine none,"))
            .map(|p| format!("process {}: {}", p.pid, p.command_line))
            .collect();
        for folder in [self.runtime_dir(), self.path("run/kvmb-nbd"), self.scratch_dir()] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                // A machine's lock file that stays is no leftover: removing one is a race. The filler is our own.
                if path.extension() != Some(OsStr::new("lock")) && entry.file_name() != tmpfs::FILLER {
                    found.push(path.display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    /// Fails if anything of a capture is still there. A process may need a moment to go.
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

/// Waits until `done` says yes; fails with `what` when it takes longer than `limit`.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a server accepts connections at a socket: its file is there a moment earlier, and refuses them.
pub fn wait_until_it_listens(socket: &Path) {
    wait_until("a server listens", Duration::from_secs(60), || UnixStream::connect(socket).is_ok());
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("cannot set the mode");
}
