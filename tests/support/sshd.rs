//! A real `sshd` with its own accounts, passwords and host keys.
//!
//! It runs in its own mount namespace, in which `/etc/passwd`, `/etc/shadow` and sshd's PAM rules are the test's, and
//! in its own PID namespace, so that all of its processes end with it. The only account is [`USER`] with the password
//! [`SSH_PASSWORD`]. It is root, so that it can access the test's private folder. Its home is `server/home` in the
//! test's folder, also mounted at `/mnt`, where a `ChrootDirectory` may be.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::process::Process;
use super::proxy::Proxy;
use super::{Env, parts, wait_until};

/// The server's account.
pub const USER: &str = "keeper";

/// Its password.
pub const SSH_PASSWORD: &str = "swordfish";

/// The password, salted and hashed for `/etc/shadow`.
const SHADOW: &str =
    "$6$kvmbtestsalt$tB791bu.OOm8cZKqO0.d6ISEb4qv0Fis6rFS5nlvMovyJOP0L1AcQsgpnJFkU/.upSDe7Dw7lM4VGXca3SAKQ/";

/// The types of host keys.
pub const HOST_KEYS: [&str; 3] = ["ed25519", "ecdsa", "rsa"];

/// A running server, which ends when this is dropped.
pub struct Sshd {
    folder: PathBuf,
    client: PathBuf,
    port: u16,
    child: Mutex<Option<Child>>,
}

/// Whether a process belongs to a server, and is not a leftover of kvmb.
pub(super) fn is_part(process: &Process) -> bool {
    ["sshd", "sshd-session", "sshd-auth", "unshare"].iter().any(|program| process.is(program))
        || process.command_line.starts_with("sshd")
}

impl Sshd {
    pub(super) fn start(env: &Env, config: &str) -> Sshd {
        parts::require(&["sshd", "ssh-keygen", "unshare", "ssh"]);
        let folder = env.path("server");
        for (part, mode) in [("", 0o755), ("etc", 0o755), ("home", 0o755), ("home/.ssh", 0o700)] {
            let path = folder.join(part);
            fs::create_dir_all(&path).expect("cannot make a folder");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("cannot set the mode");
        }
        let home = folder.join("home");
        let etc = folder.join("etc");
        make_host_keys(&etc);
        let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        let passwd = format!("{passwd}{USER}:x:0:0:test:{}:/bin/sh\n", home.display());
        let shadow = fs::read_to_string("/etc/shadow").expect("run the tests as root: /etc/shadow");
        let shadow = format!("{shadow}{USER}:{SHADOW}:19000:0:99999:7:::\n");
        let pam = "auth required pam_unix.so\naccount required pam_unix.so\nsession required pam_permit.so\n";
        for (name, text, mode) in [("passwd", passwd.as_str(), 0o644), ("shadow", &shadow, 0o600), ("pam", pam, 0o644)]
        {
            fs::write(etc.join(name), text).expect("cannot write");
            fs::set_permissions(etc.join(name), fs::Permissions::from_mode(mode)).expect("cannot set the mode");
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a port").port();
        drop(listener);
        // The first occurrence counts, so the test's lines take precedence.
        let host_keys: String = match config.contains("HostKey ") {
            true => String::new(),
            false => HOST_KEYS
                .iter()
                .map(|kind| format!("HostKey {}\n", etc.join(format!("host_{kind}")).display()))
                .collect(),
        };
        let text = format!(
            "{config}\nPort {port}\nListenAddress 127.0.0.1\nListenAddress ::1\n{host_keys}PidFile none\nUsePAM yes\n\
             PermitRootLogin yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\nStrictModes no\n\
             AuthorizedKeysFile {home}/.ssh/authorized_keys\nLogLevel VERBOSE\nMaxStartups 50\nUseDNS no\nPrintMotd \
             no\n\
             {penalties}Subsystem sftp internal-sftp\n",
            home = home.display(),
            penalties = if has_penalties() { "PerSourcePenalties no\n" } else { "" }
        );
        // A Match block of the test would include our lines.
        let text = match text.split_once("\nMatch ") {
            Some(_) if config.contains("Match ") => {
                let (plain, block) = config.split_once("Match ").expect("a block");
                format!("{}Match {block}\n", text.replacen(config, plain, 1))
            }
            _ => text,
        };
        fs::write(etc.join("sshd_config"), text).expect("cannot write");
        let client = env.path("home/.ssh");
        fs::create_dir_all(&client).expect("cannot make a folder");
        fs::set_permissions(&client, fs::Permissions::from_mode(0o700)).expect("cannot set the mode");
        let sshd = Sshd { folder, client, port, child: Mutex::new(None) };
        sshd.run();
        sshd
    }

    /// Starts it on the same port as before.
    pub fn run(&self) {
        let etc = self.folder.join("etc");
        let script = "mount --bind \"$1/passwd\" /etc/passwd && mount --bind \"$1/shadow\" /etc/shadow &&
            mount --bind \"$1/pam\" /etc/pam.d/sshd && mount -t tmpfs none /run && mkdir /run/sshd &&
            mount --bind \"$1/../home\" /mnt &&
            exec /usr/sbin/sshd -D -f \"$1/sshd_config\" -E \"$1/log\"";
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "/bin/sh", "-c", script, "sshd"])
            .arg(&etc)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("KVMB_TEST_SSHD", &etc)
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare");
        *self.child.lock().expect("lock") = Some(child);
        wait_until("sshd listens", Duration::from_secs(60), || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// Stops it with all of its connections.
    pub fn stop(&self) {
        if let Some(mut child) = self.child.lock().expect("lock").take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        wait_until("sshd has ended", Duration::from_secs(60), || TcpStream::connect(("127.0.0.1", self.port)).is_err());
    }

    /// Stops all of its processes (or resumes them): a server that is connected but does not respond.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        let Some(outer) = self.child.lock().expect("lock").as_ref().map(Child::id) else {
            return;
        };
        for pid in descendants(outer).into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Returns the number of connections.
    pub fn connections(&self) -> usize {
        let outer = self.child.lock().expect("lock").as_ref().map(Child::id);
        let all = outer.map(descendants).unwrap_or_default();
        let is_session = |pid: &&i32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains(&format!("{USER} [priv]")) || line.contains(&format!("{USER}@notty"))
        };
        all.iter().filter(is_session).count()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL of a folder in the account's home, for kvmb's `--repo`.
    pub fn url(&self, folder: &str) -> String {
        format!("sftp://{USER}@127.0.0.1:{}/{folder}", self.port)
    }

    /// Puts a network with this delay in each direction in front of it. The host key is known under that address too,
    /// and logins work the same.
    pub fn behind(&self, delay: Duration) -> Proxy {
        let proxy = Proxy::start(self.port, delay);
        let known = fs::read_to_string(self.known_hosts()).unwrap_or_default();
        let line = format!("[127.0.0.1]:{} {}\n", proxy.port(), self.host_key("ed25519"));
        fs::write(self.known_hosts(), known + &line).expect("cannot write");
        proxy
    }

    /// Returns the URL of the same folder through that network.
    pub fn url_by(&self, proxy: &Proxy, folder: &str) -> String {
        format!("sftp://{USER}@127.0.0.1:{}/{folder}", proxy.port())
    }

    /// Makes its account's password expire, so that a login with it must set a new one.
    pub fn expire_password(&self) {
        let etc = self.folder.join("etc");
        let shadow = fs::read_to_string(etc.join("shadow")).expect("a file");
        // Both files are mounted, so they must not be replaced.
        fs::write(etc.join("shadow"), shadow.replace(":19000:0:99999:", ":0:0:99999:")).expect("cannot write");
        let pam = fs::read_to_string(etc.join("pam")).expect("a file");
        fs::write(etc.join("pam"), pam + "password required pam_unix.so\n").expect("cannot write");
    }

    /// Returns the account's home.
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("etc/log")).unwrap_or_default()
    }

    /// Returns one of its public host keys as `type base64`.
    pub fn host_key(&self, kind: &str) -> String {
        let line = fs::read_to_string(self.folder.join(format!("etc/host_{kind}.pub"))).expect("a host key");
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// Returns the SHA-256 fingerprint of one of its host keys, as `ssh-keygen` prints it.
    pub fn fingerprint(&self, kind: &str) -> String {
        let output = Command::new("ssh-keygen")
            .arg("-lf")
            .arg(self.folder.join(format!("etc/host_{kind}.pub")))
            .output()
            .expect("ssh-keygen");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.split(' ').nth(1).expect("a fingerprint").to_owned()
    }

    /// Adds its host key of this type to the known hosts of the test's user.
    pub fn make_known(&self, kind: &str) {
        let line = format!("[127.0.0.1]:{} {}\n", self.port, self.host_key(kind));
        fs::write(self.known_hosts(), line).expect("cannot write");
    }

    /// Returns the known_hosts file of the test's user.
    pub fn known_hosts(&self) -> PathBuf {
        self.client.join("known_hosts")
    }

    /// Creates a key of the test's user, which the server does not accept yet.
    pub fn new_key(&self, name: &str, passphrase: &str) -> PathBuf {
        let path = self.client.join(name);
        keygen("ed25519", &path, passphrase);
        path
    }

    /// Lets a key log in to the account.
    pub fn authorize(&self, key: &Path) {
        let public = fs::read_to_string(key.with_extension("pub")).expect("a public key");
        let file = self.authorized_keys();
        let text = fs::read_to_string(&file).unwrap_or_default() + &public;
        fs::write(&file, text).expect("cannot write");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("cannot set the mode");
    }

    /// Returns the account's authorized_keys.
    pub fn authorized_keys(&self) -> PathBuf {
        self.home().join(".ssh/authorized_keys")
    }

    /// Makes the host key known and authorises a key without passphrase, so that logins just work.
    pub fn trust_host_key(&self) {
        self.make_known("ed25519");
        self.authorize(&self.new_key("id_ed25519", ""));
    }

    /// Returns the options with which restic reaches it: `ssh` with the files of the test's user.
    pub fn restic_options(&self) -> [String; 2] {
        let ssh = self.client.display();
        let command = format!(
            "ssh -F none -o UserKnownHostsFile={ssh}/known_hosts -o IdentityFile={ssh}/id_ed25519 -o BatchMode=yes \
             -p {} {USER}@127.0.0.1 -s sftp",
            self.port
        );
        ["-o".to_owned(), format!("sftp.command={command}")]
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.freeze(false);
        let child = self.child.lock().expect("lock").take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Creates the host keys of a new server. All servers share the RSA key, which takes a second to generate.
fn make_host_keys(etc: &Path) {
    for kind in HOST_KEYS {
        let path = etc.join(format!("host_{kind}"));
        if kind != "rsa" {
            keygen(kind, &path, "");
            continue;
        }
        let kept = kept_rsa_key();
        for extension in ["", "pub"] {
            fs::copy(kept.with_extension(extension), path.with_extension(extension)).expect("cannot copy");
        }
    }
}

fn kept_rsa_key() -> PathBuf {
    let folder = parts::cache_dir().join("ssh-host-rsa");
    if !folder.exists() {
        fs::create_dir_all(parts::cache_dir()).expect("cannot make a folder");
        let new = tempfile::tempdir_in(parts::cache_dir()).expect("cannot make a folder");
        keygen("rsa", &new.path().join("key"), "");
        // If another test was faster, its key is kept.
        let _ = fs::rename(new.path(), &folder);
    }
    folder.join("key")
}

fn keygen(kind: &str, path: &Path, passphrase: &str) {
    let output = Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-N", passphrase, "-C", "test", "-f"])
        .arg(path)
        .output()
        .expect("ssh-keygen");
    assert!(output.status.success(), "ssh-keygen: {}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the descendants of a process.
fn descendants(of: u32) -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut found = vec![i32::try_from(of).expect("pid")];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.remove(0);
    found
}

/// Whether this sshd refuses clients for a while that have closed connections without a login, as the tests do to see
/// whether it listens. OpenSSH does since 9.8.
fn has_penalties() -> bool {
    let output = Command::new("/usr/sbin/sshd").arg("-V").output().expect("run make test: sshd");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let version = said.split_once("OpenSSH_").and_then(|(_, rest)| rest.split_once('.'));
    version.is_some_and(|(major, rest)| {
        let minor = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        (major.parse().unwrap_or(0), minor.parse().unwrap_or(0)) >= (9_u32, 8_u32)
    })
}
