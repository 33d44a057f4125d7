//! Keys derived from passwords, cached in the kernel's keyring so that the next run need not derive them again.
//! Disabled by default.
//!
//! ```text
//! user keyring of this user ── user key "kvmb:ID-OF-THE-KEY-FILE", with a timeout
//!                                └── the key that scrypt derived, sealed with SHA-512(label, salt, password)
//! ```
//!
//! The cache saves only the derivation: without the password, the cached data opens nothing, and a wrong password is
//! still detected. It is never on disk: the kernel keeps such keys in memory that is not swapped, accessible only to
//! processes of this user, until the timeout or a reboot. Without a keyring, as in most containers, every run derives
//! the key.

use std::time::Duration;

use linux_keyutils::{KeyError, KeyPermissionsBuilder, KeyRing, KeyRingIdentifier, Permission};
use sha2::{Digest, Sha512};
use zeroize::Zeroizing;

use super::crypto::{OVERHEAD, SealKey};
use super::{Id, Password};

const LABEL: &[u8] = b"kvmb key cache 1\0";
/// The length of a derived key.
const KEY_BYTES: usize = 64;

/// The cache of derived keys.
#[derive(Debug, Clone, Copy)]
pub struct KeyCache {
    lifetime: Duration,
}

impl KeyCache {
    /// Creates a cache that keeps keys for `lifetime` after they were derived; at least for a second.
    pub fn new(lifetime: Duration) -> KeyCache {
        KeyCache { lifetime }
    }

    /// Returns whether there is an entry for a key file.
    pub(super) fn has(&self, file: &Id) -> bool {
        keyring().and_then(|keyring| keyring.search(&name(file))).is_ok()
    }

    /// Returns the derived key of a key file if it is cached for the same password.
    pub(super) fn load(&self, file: &Id, salt: &[u8], password: &Password) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let mut sealed = Zeroizing::new([0; KEY_BYTES + OVERHEAD]);
        let length = match read(&name(file), &mut *sealed) {
            Ok(length) => length,
            Err(error) => {
                tracing::debug!(key = %file, "no key in the kernel's keyring: {error}");
                return None;
            }
        };
        if length != sealed.len() {
            return None;
        }
        let opened = wrapping_key(salt, password).open_in_place(&mut *sealed).ok()?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        key.copy_from_slice(opened);
        tracing::debug!(key = %file, "took the key from the kernel's keyring");
        Some(key)
    }

    /// Stores a derived key. On failure the next run has to derive it again.
    pub(super) fn store(&self, file: &Id, salt: &[u8], password: &Password, key: &[u8; KEY_BYTES]) {
        let Ok(sealed) = wrapping_key(salt, password).seal(key) else { return };
        if let Err(error) = write(&name(file), &sealed, self.lifetime) {
            tracing::debug!(key = %file, "cannot keep the key in the kernel's keyring: {error}");
        }
    }
}

fn name(file: &Id) -> String {
    format!("kvmb:{file}")
}

/// Fast on purpose: the key in the keyring is at least as safe as it would be unsealed.
fn wrapping_key(salt: &[u8], password: &Password) -> SealKey {
    let mut hash = Sha512::new();
    hash.update(LABEL);
    hash.update((salt.len() as u64).to_le_bytes());
    hash.update(salt);
    hash.update(password.as_bytes());
    SealKey::from_bytes(hash.finalize().into())
}

/// Returns the keyring of this user, which all sessions and services of the user share. A systemd service has its own
/// session, which does not possess this keyring; a link in the keyring of this thread, which ends with the thread, is
/// enough.
fn keyring() -> Result<KeyRing, KeyError> {
    let user = KeyRing::from_special_id(KeyRingIdentifier::User, true)?;
    KeyRing::from_special_id(KeyRingIdentifier::Thread, true)?.link_keyring(user)?;
    Ok(user)
}

fn read(name: &str, payload: &mut [u8]) -> Result<usize, KeyError> {
    keyring()?.search(name)?.read(&mut { payload })
}

fn write(name: &str, payload: &[u8], lifetime: Duration) -> Result<(), KeyError> {
    let key = keyring()?.add_key(name, payload)?;
    // Set the timeout first: a key without one would stay until the next boot.
    let seconds = usize::try_from(lifetime.as_secs()).unwrap_or(usize::MAX).clamp(1, u32::MAX as usize);
    let bounded = key.set_timeout(seconds).and_then(|()| key.set_perms(owner_only()));
    if bounded.is_err() {
        key.invalidate()?;
    }
    bounded
}

/// Grants access to the possessor and to the owning user.
fn owner_only() -> linux_keyutils::KeyPermissions {
    KeyPermissionsBuilder::builder().posessor(Permission::ALL).user(Permission::ALL).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Returns whether the kernel lets us use a keyring, which most containers do not.
    fn has_keyring() -> bool {
        keyring().is_ok()
    }

    fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    #[test]
    fn cached_key_requires_the_same_password_salt_and_file() {
        let (file, other) = (Id::hash(&rand::random::<[u8; 32]>()), Id::hash(&rand::random::<[u8; 32]>()));
        let (cache, salt, key) = (KeyCache::new(Duration::from_secs(600)), [7; 64], [42; KEY_BYTES]);
        assert!(cache.load(&file, &salt, &password("right")).is_none());
        // For possession, another thread is like another session.
        thread::spawn(move || cache.store(&file, &salt, &password("right"), &key)).join().expect("the thread");
        let found = cache.load(&file, &salt, &password("right"));
        assert_eq!(found.map(|key| *key), has_keyring().then_some(key));
        assert!(cache.load(&file, &salt, &password("wrong")).is_none());
        assert!(cache.load(&file, &[8; 64], &password("right")).is_none());
        assert!(cache.load(&other, &salt, &password("right")).is_none());
        if has_keyring() {
            let kept = keyring().and_then(|ring| ring.search(&name(&file))).expect("the key");
            let payload = kept.read_to_vec().expect("the payload");
            assert!(!payload.windows(8).any(|part| part == &key[..8]), "the key is kept as it is");
            kept.invalidate().expect("remove the key");
        }
    }
}
