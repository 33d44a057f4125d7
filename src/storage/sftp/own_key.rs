//! kvmb's own key, generated once on this host without a passphrase, for unattended logins.
//!
//! On the server it is restricted to SFTP. A server other than OpenSSH may not understand such restrictions, so there
//! the key is added without them.

use super::{SftpClient, SftpFault, SftpStatus};
use crate::atomic_file;
use rand::TryRngCore;
use rand::rngs::OsRng;
use ssh_key::private::Ed25519Keypair;
use ssh_key::{LineEnding, PrivateKey, PublicKey};
use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The path of `authorized_keys`, relative to the folder of the login.
pub(crate) const AUTHORIZED_KEYS: &str = ".ssh/authorized_keys";

/// What the key may do on an OpenSSH server.
const RESTRICTIONS: &str = "restrict,command=\"internal-sftp\"";

/// The maximum size of `authorized_keys`.
const LONGEST_LIST_BYTES: u64 = 1 << 20;

/// Returns the public key of the private key in `path`, or `None` if there is no such file.
pub(crate) fn read(path: &Path) -> io::Result<Option<PublicKey>> {
    match atomic_file::read_to_string(path) {
        Ok(text) => {
            let text = zeroize::Zeroizing::new(text);
            PrivateKey::from_openssh(&*text).map(|key| Some(key.public_key().clone())).map_err(io::Error::other)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the public key and whether it was generated. A missing key is generated, readable by its owner only, with
/// its public key in a file beside it. If several processes do this at once, one generates the key and the others
/// return it.
pub(crate) fn ensure(path: &Path, comment: &str) -> io::Result<(PublicKey, bool)> {
    if let Some(key) = read(path)? {
        return Ok((key, false));
    }
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    OsRng.try_fill_bytes(&mut *seed).map_err(io::Error::other)?;
    let key = PrivateKey::new(Ed25519Keypair::from_seed(&seed).into(), comment).map_err(io::Error::other)?;
    let private = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    let public = key.public_key().to_openssh().map_err(io::Error::other)?;
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match atomic_file::create(path, private.as_bytes(), 0o600) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return read(path)?.map(|key| (key, false)).ok_or(error);
        }
        other => other?,
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".pub");
    atomic_file::write(&PathBuf::from(beside), format!("{public}\n").as_bytes(), 0o644)?;
    Ok((key.public_key().clone(), true))
}

/// Returns the line for `authorized_keys`.
pub(crate) fn authorized_line(key: &PublicKey, server_is_openssh: bool) -> String {
    let key = key.to_openssh().unwrap_or_default();
    if server_is_openssh { format!("{RESTRICTIONS} {key}") } else { key }
}

/// Adds the key to the account's `authorized_keys` unless it is listed already, and returns whether it was added. The
/// file is appended to in place, so that it remains the file, or the link to one, that the server trusts.
pub(crate) fn authorize(files: &SftpClient, key: &PublicKey) -> Result<bool, SftpFault> {
    let list = match files.read(AUTHORIZED_KEYS, LONGEST_LIST_BYTES) {
        Ok(Some(list)) => list,
        Ok(None) => {
            return Err(SftpFault::Refused(SftpStatus::Other("the list of keys is longer than 1 MiB".to_owned())));
        }
        Err(SftpFault::Refused(SftpStatus::NotFound)) => {
            if files.stat(".ssh").is_err_and(|fault| fault.is_not_found()) {
                files.make_folder(".ssh")?;
            }
            Vec::new()
        }
        Err(fault) => return Err(fault),
    };
    let line = authorized_line(key, files.server_is_openssh());
    if is_listed(&String::from_utf8_lossy(&list), key) {
        return Ok(false);
    }
    let begin = if list.is_empty() || list.ends_with(b"\n") { "" } else { "\n" };
    files.append(AUTHORIZED_KEYS, list.len() as u64, format!("{begin}{line}\n").as_bytes())?;
    Ok(true)
}

fn is_listed(list: &str, key: &PublicKey) -> bool {
    let text = key.to_openssh().unwrap_or_default();
    let blob = text.split(' ').nth(1).unwrap_or(&text);
    let lines = list.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.into_iter().any(|line| line.split_whitespace().any(|word| word == blob))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn key_is_created_once_with_private_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ssh/id_ed25519");
        assert!(read(&path).unwrap().is_none());
        let made = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| ensure(&path, "kvmb@host").unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(made.iter().filter(|(_, made)| *made).count(), 1);
        let key = read(&path).unwrap().unwrap();
        assert!(made.iter().all(|(each, _)| each.key_data() == key.key_data()));
        assert!(fs::read_to_string(path.with_extension("pub")).unwrap().starts_with(&key.to_openssh().unwrap()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(!ensure(&path, "again").unwrap().1, "a key is never written over");
    }

    #[test]
    fn authorized_key_is_recognised_with_any_options() {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = ensure(&folder.path().join("key"), "kvmb@host").unwrap();
        let line = authorized_line(&key, true);
        assert!(line.starts_with("restrict,command=\"internal-sftp\" ssh-ed25519 AAAA"), "{line}");
        let blob = line.split(' ').nth(2).unwrap();
        assert!(is_listed(&format!("# me\nssh-rsa AAAA x\nfrom=\"10.0.0.1\" ssh-ed25519 {blob} other\n"), &key));
        assert!(!is_listed(&format!("# {line}\nssh-ed25519 {}x\n", &blob[1..]), &key));
    }
}
