//! The known_hosts files, as `sshd(8)` describes them: hashed names, ports, patterns, several types, `@revoked`.
//!
//! | the server's key | verdict |
//! | --- | --- |
//! | is marked `@revoked`, for this server or a pattern that covers it | refused, whatever the other lines say |
//! | is listed for the server | right |
//! | is not listed, but another key of the server is | changed: refused |
//! | no key of the server is listed | unknown |
//!
//! Key types that are known for the server are requested first, so a second host key of another type is not a change.

use super::{Error, Result, SshTarget};
use crate::atomic_file;
use crate::glob::matches_wildcards;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use ssh_key::known_hosts::{Entry, HostPatterns, Marker};
use ssh_key::{Algorithm, HashAlg, PublicKey};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Host key methods in order of preference, each with the key type that it uses. The SHA-1 ones are left out, as in
/// OpenSSH.
const METHODS: [(&str, &str); 6] = [
    ("ssh-ed25519", "ssh-ed25519"),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256"),
    ("ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"),
    ("ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "ssh-rsa"),
    ("rsa-sha2-256", "ssh-rsa"),
];

/// The known_hosts entries for one server.
#[derive(Debug, Default)]
pub(crate) struct KnownKeys {
    lines: Vec<KnownHostsLine>,
    /// The entries for its name without the port. As in `ssh`, a server with one of these keys is known, and another
    /// key is not a change: it may be another server of that host.
    without_port: Vec<KnownHostsLine>,
    /// Whether a certificate authority is trusted for it.
    certified: bool,
}

#[derive(Debug)]
struct KnownHostsLine {
    path: PathBuf,
    number: usize,
    revoked: bool,
    key: PublicKey,
}

/// The verdict on a server's key.
#[derive(Debug)]
pub(crate) enum HostKeyStatus {
    /// The key is listed for the server.
    Right,
    Unknown {
        /// Whether a certificate authority is trusted for the server.
        certified: bool,
    },
    /// Another key is listed for the server.
    Changed {
        path: PathBuf,
        /// The line of that other key.
        line: usize,
    },
    /// The key is marked as revoked.
    Revoked { path: PathBuf, line: usize },
}

impl KnownKeys {
    /// Collects the entries for a server from the user's files and the system's.
    pub(crate) fn read(ssh_target: &SshTarget) -> Result<KnownKeys> {
        let mut known = KnownKeys::default();
        for path in ssh_target.user_known_hosts.iter().chain(&ssh_target.system_known_hosts) {
            match atomic_file::read(path) {
                Ok(text) => known.add_all(path, &String::from_utf8_lossy(&text), ssh_target),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(Error::KnownHosts { action: "read", path: path.clone(), source }),
            }
        }
        Ok(known)
    }

    /// Parses the entries for a server from the text of a known_hosts file.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn parse(text: &str, name: &str) -> KnownKeys {
        let mut known = KnownKeys::default();
        known.add(Path::new("known_hosts"), text, name);
        known
    }

    fn add_all(&mut self, path: &Path, text: &str, ssh_target: &SshTarget) {
        self.add(path, text, &ssh_target.known_as);
        if let Some(name) = &ssh_target.known_without_port {
            let mut others = KnownKeys::default();
            others.add(path, text, name);
            self.without_port.append(&mut others.lines);
        }
    }

    fn add(&mut self, path: &Path, text: &str, name: &str) {
        for (index, line) in text.lines().enumerate() {
            // The parser expects single spaces.
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // A key type that kvmb does not know cannot be presented to it either.
            let Ok(entry) = line.parse::<Entry>() else {
                tracing::debug!("{}:{}: not understood", path.display(), index + 1);
                continue;
            };
            if !covers(&entry, &line, name) {
                continue;
            }
            let revoked = match entry.marker() {
                Some(Marker::CertAuthority) => {
                    self.certified = true;
                    continue;
                }
                marker => marker == Some(&Marker::Revoked),
            };
            let key = PublicKey::from(entry.public_key().key_data().clone());
            self.lines.push(KnownHostsLine { path: path.to_owned(), number: index + 1, revoked, key });
        }
    }

    /// Returns the methods to request: those of known keys first.
    pub(crate) fn methods(&self) -> String {
        let lines = if self.lines.is_empty() { &self.without_port } else { &self.lines };
        let is_known =
            |key_type: &str| lines.iter().any(|line| !line.revoked && line.key.algorithm().as_str() == key_type);
        let (known, others): (Vec<(&str, &str)>, Vec<_>) =
            METHODS.into_iter().partition(|(_, key_type)| is_known(key_type));
        known.into_iter().chain(others).map(|(method, _)| method).collect::<Vec<_>>().join(",")
    }

    /// Compares the server's key with the known ones.
    pub(crate) fn judge(&self, shown: &PublicKey) -> HostKeyStatus {
        let is_shown = |line: &&KnownHostsLine| line.key.key_data() == shown.key_data();
        let same_type = |line: &&KnownHostsLine| line.key.algorithm() == shown.algorithm();
        if let Some(line) = self.lines.iter().chain(&self.without_port).filter(is_shown).find(|line| line.revoked) {
            return HostKeyStatus::Revoked { path: line.path.clone(), line: line.number };
        }
        let trusted = || self.lines.iter().filter(|line| !line.revoked);
        if trusted().any(|line| is_shown(&line)) {
            return HostKeyStatus::Right;
        }
        match trusted().find(same_type).or_else(|| trusted().next()) {
            Some(line) => HostKeyStatus::Changed { path: line.path.clone(), line: line.number },
            None if self.without_port.iter().any(|line| is_shown(&line)) => HostKeyStatus::Right,
            None => HostKeyStatus::Unknown { certified: self.certified },
        }
    }
}

/// Adds a key to a known_hosts file, which is created if it does not exist. A hashed name does not reveal the server to
/// people who read the file.
pub(crate) fn append(path: &Path, name: &str, hash: bool, key: &PublicKey) -> Result<()> {
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let key = PublicKey::from(key.key_data().clone());
        let key = key.to_openssh().map_err(std::io::Error::other)?;
        // The last line of the file may lack its newline.
        let mut last = [b'\n'];
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        let begin = if last == *b"\n" { "" } else { "\n" };
        let name = if hash { hashed(name, rand::random()) } else { name.to_owned() };
        file.write_all(format!("{begin}{name} {key}\n").as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| Error::KnownHosts { action: "write", path: path.to_owned(), source })
}

/// Formats a name as `HashKnownHosts` does: `|1|salt|HMAC-SHA1`.
fn hashed(name: &str, salt: [u8; 20]) -> String {
    // HMAC accepts keys of any length.
    let code = Hmac::<Sha1>::new_from_slice(&salt).map(|code| code.chain_update(name).finalize().into_bytes());
    format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(code.unwrap_or_default()))
}

/// Returns the SHA-256 fingerprint of a key, as OpenSSH prints it.
pub(crate) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Returns the type of a key, as OpenSSH writes it.
pub(crate) fn key_type(key: &PublicKey) -> String {
    match key.algorithm() {
        Algorithm::Rsa { .. } => "ssh-rsa".to_owned(),
        other => other.as_str().to_owned(),
    }
}

/// Returns whether an entry applies to this server.
fn covers(entry: &Entry, line: &str, name: &str) -> bool {
    match entry.host_patterns() {
        HostPatterns::Patterns(patterns) => {
            let mut covered = false;
            for pattern in patterns {
                let pattern = pattern.to_lowercase();
                match pattern.strip_prefix('!') {
                    // A negated pattern excludes the server, whatever else matches.
                    Some(negated) if matches_wildcards(negated, name) => return false,
                    Some(_) => {}
                    None => covered |= matches_wildcards(&pattern, name),
                }
            }
            covered
        }
        HostPatterns::HashedName { .. } => is_hash_of(entry, line, name),
    }
}

/// Returns whether the hashed name of a line is `name`. libssh2 implements the hash.
fn is_hash_of(entry: &Entry, line: &str, name: &str) -> bool {
    let line = line.strip_prefix("@revoked ").or_else(|| line.strip_prefix("@cert-authority ")).unwrap_or(line);
    let check = || -> std::result::Result<bool, ssh2::Error> {
        let mut hosts = ssh2::Session::new()?.known_hosts()?;
        hosts.read_str(line, ssh2::KnownHostFileKind::OpenSSH)?;
        // Compared with the line's own key, only the name can differ.
        let key = entry.public_key().to_bytes().unwrap_or_default();
        Ok(matches!(hosts.check(name, &key), ssh2::CheckResult::Match))
    };
    check().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILLSyrIpGLFHtfmRnrCPqpBEsAkJwz0GI/dfOq76Zx6q";
    const TWO: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPopIJDh+Ov+pxCm5+71180KPS1JsfOoIhiI8Mzomimc";

    fn key(text: &str) -> PublicKey {
        text.parse().unwrap()
    }

    fn judge(file: &str, name: &str, shown: &str) -> HostKeyStatus {
        let mut known = KnownKeys::default();
        known.add(Path::new("known_hosts"), file, name);
        known.judge(&key(shown))
    }

    #[test]
    fn host_patterns_select_known_hosts_lines() {
        for (hosts, name, wanted) in [
            ("host", "host", true),
            ("Host,other", "host", true),
            ("host", "hosts", false),
            ("host", "[host]:2222", false),
            ("[host]:2222", "[host]:2222", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com,!a.*", "a.example.com", false),
            ("10.0.0.?", "10.0.0.7", true),
            ("[::1]:2222", "[::1]:2222", true),
            ("*", "anything", true),
        ] {
            let verdict = judge(&format!("# comment\n\n{hosts} {ONE} me@here\n"), name, ONE);
            assert_eq!(matches!(verdict, HostKeyStatus::Right), wanted, "{hosts} for {name}: {verdict:?}");
        }
    }

    #[test]
    fn hashed_host_name_is_recognised() {
        // Made by 'ssh-keygen -H'.
        let line = format!("|1|XWxDcm7ACl3Y0pMH2ABUdG6n4r0=|B/cjQvjb3uRrdlU1D7tlenF+/mk= {ONE}\n");
        assert!(matches!(judge(&line, "[127.0.0.1]:2222", ONE), HostKeyStatus::Right));
        assert!(matches!(judge(&line, "[127.0.0.1]:2223", ONE), HostKeyStatus::Unknown { .. }));
        let revoked = format!("@revoked {line}");
        assert!(matches!(judge(&revoked, "[127.0.0.1]:2222", ONE), HostKeyStatus::Revoked { line: 1, .. }));
    }

    #[test]
    fn host_name_is_hashed_as_in_ssh() {
        // Made by 'ssh-keygen -H', too.
        let salt = STANDARD.decode("XWxDcm7ACl3Y0pMH2ABUdG6n4r0=").unwrap().try_into().unwrap();
        let wanted = "|1|XWxDcm7ACl3Y0pMH2ABUdG6n4r0=|B/cjQvjb3uRrdlU1D7tlenF+/mk=";
        assert_eq!(hashed("[127.0.0.1]:2222", salt), wanted);
    }

    #[test]
    fn server_at_another_port_is_known_by_its_name_alone() {
        let judge = |lines: &str, without_port: &str| {
            let mut known = KnownKeys::default();
            known.add(Path::new("known_hosts"), lines, "[host]:2222");
            let mut others = KnownKeys::default();
            others.add(Path::new("known_hosts"), without_port, "host");
            known.without_port = others.lines;
            known.judge(&key(ONE))
        };
        let (one, two) = (format!("host {ONE}\n"), format!("host {TWO}\n"));
        assert!(matches!(judge("", &one), HostKeyStatus::Right));
        // Another key of that host is not a change, as it may be another server.
        assert!(matches!(judge("", &two), HostKeyStatus::Unknown { .. }));
        assert!(matches!(judge(&format!("[host]:2222 {TWO}\n"), &one), HostKeyStatus::Changed { .. }));
        assert!(matches!(judge("", &format!("@revoked {one}")), HostKeyStatus::Revoked { .. }));
    }

    #[test]
    fn changed_revoked_and_unknown_host_keys_are_distinguished() {
        assert!(matches!(judge(&format!("host {TWO}\n"), "host", ONE), HostKeyStatus::Changed { line: 1, .. }));
        assert!(matches!(judge(&format!("host {TWO}\nhost {ONE}\n"), "host", ONE), HostKeyStatus::Right));
        let both = format!("host {ONE}\n@revoked * {ONE}\n");
        assert!(matches!(judge(&both, "host", ONE), HostKeyStatus::Revoked { line: 2, .. }));
        // Another key's revocation does not affect this one.
        assert!(matches!(
            judge(&format!("@revoked * {TWO}\n"), "host", ONE),
            HostKeyStatus::Unknown { certified: false }
        ));
        let authority = format!("@cert-authority *.com {TWO}\n");
        assert!(matches!(judge(&authority, "a.com", ONE), HostKeyStatus::Unknown { certified: true }));
        assert!(matches!(judge("", "host", ONE), HostKeyStatus::Unknown { certified: false }));
    }

    #[test]
    fn known_key_type_is_requested_first() {
        let mut known = KnownKeys::default();
        assert!(known.methods().starts_with("ssh-ed25519,"));
        let rsa = concat!(
            "host ssh-rsa ",
            "AAAAB3NzaC1yc2EAAAADAQABAAABAQD3ZE8uvaQdue/KdxuWNzqnTYR3ZABh4sFzbjQJy2uZwnqr4HiqYnjmhKPWMDC0g+w",
            "gv0bYMNf8qPrFqBB21XYhapQ/yfVIamiIYHpHLZ6hiKPr68QInXyH2QXhki/7k8YAp53B5bSeNcY6e2oiDK63UlckdCPPWd",
            "sHHurdL8p3+iFqazEIs55zW3OFZBz6N+Nd1oSo63X/HY5NcWiMm4s1LyXAuBWX6iixprcb7H6PQMq5eCzhGz7ar+eCFDW/J",
            "YftDgp2ryztYxtpK7AqGxzCiM/mP76hzeUusomr3QDi6Gd41jjs0+CMmj1NuemkzRpmaquPmjmspGO+7raraNZr",
        );
        known.add(Path::new("known_hosts"), rsa, "host");
        assert!(known.methods().starts_with("rsa-sha2-512,rsa-sha2-256,ssh-ed25519"), "{}", known.methods());
    }

    #[test]
    fn key_appended_after_an_unterminated_line_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/known_hosts");
        append(&path, "host", false, &key(ONE)).unwrap();
        fs::write(&path, fs::read_to_string(&path).unwrap().trim_end()).unwrap();
        append(&path, "[other]:22022", false, &key(TWO)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("host {ONE}\n[other]:22022 {TWO}\n"));
        assert!(matches!(judge(&text, "[other]:22022", TWO), HostKeyStatus::Right));
    }
}
