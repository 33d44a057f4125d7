//! Key files: the master key, sealed with a key that scrypt derives from a password.

use chrono::{DateTime, FixedOffset};
use rayon::ThreadPoolBuilder;
use scrypt::scrypt;
use serde::{Deserialize, Serialize};
use std::num::NonZero;
use std::thread;
use zeroize::Zeroizing;

use super::crypto::{Password, SealKey, fill_random};
use super::key_cache::KeyCache;
use super::{Error, Flaw, Id, Result, base64, host, reread, time};
use crate::storage::{FileKind, Storage};

/// 2^15 · 8 · 128 bytes = 32 MiB of memory, three times: OWASP's recommendation for scrypt, about 0.2 s of processor
/// time.
const LOG_N: u8 = 15;
const R: u32 = 8;
const P: u32 = 3;
const SALT_LENGTH: usize = 64;
/// The memory limit for key derivation. Neither kvmb nor restic exceeds it, so a file that does is an attack or
/// damaged.
const MEMORY_LIMIT: u64 = 1 << 30;
/// The limit on `p`, which bounds the time.
const P_LIMIT: u32 = 64;
/// The memory limit for deriving parts of a key in parallel: two parts of a key of kvmb or restic.
const PARALLEL_MEMORY: u64 = 64 << 20;

/// Returns the cost of a new key. Tests create thousands of keys for passwords that are not secret, so builds with
/// debug assertions honour `$KVMB_TEST_QUICK_KEYS=1`. Opening is not affected, because a key file contains its cost.
fn log_n() -> u8 {
    let is_test = cfg!(debug_assertions) && std::env::var("KVMB_TEST_QUICK_KEYS").is_ok_and(|value| value == "1");
    if is_test { 4 } else { LOG_N }
}

/// Plain JSON, because it must be readable before any key is known.
#[derive(Serialize, Deserialize)]
pub(super) struct KeyFile {
    #[serde(with = "time")]
    created: DateTime<FixedOffset>,
    #[serde(default)]
    username: String,
    #[serde(default)]
    hostname: String,
    kdf: String,
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
    #[serde(with = "base64")]
    salt: Vec<u8>,
    #[serde(with = "base64")]
    data: Vec<u8>,
}

/// A key file that has not been stored yet.
pub(super) struct SealedKeyFile {
    pub(super) id: Id,
    pub(super) json: Vec<u8>,
}

/// A key as listed by [`super::Repository::keys`], without the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    pub(crate) id: Id,
    pub username: String,
    pub hostname: String,
    pub(crate) created: DateTime<FixedOffset>,
    /// Whether this key opened the repository.
    pub current: bool,
}

impl KeyFile {
    /// Seals `master` with `password` and stores the key file.
    pub(super) fn add(storage: &dyn Storage, master: &SealKey, password: &Password) -> Result<Id> {
        let SealedKeyFile { id, json } = KeyFile::sealed(master, password)?;
        storage.write(FileKind::Key, &id.to_string(), &json)?;
        Ok(id)
    }

    /// Seals `master` with `password`.
    pub(super) fn sealed(master: &SealKey, password: &Password) -> Result<SealedKeyFile> {
        let mut salt = vec![0; SALT_LENGTH];
        fill_random(&mut salt)?;
        let mut file = KeyFile {
            created: time::now(),
            username: host::user_name(),
            hostname: host::host_name(),
            kdf: "scrypt".to_owned(),
            n: 1 << log_n(),
            r: R,
            p: P,
            salt,
            data: Vec::new(),
        };
        let key = SealKey::from_bytes(*file.derive(password)?);
        file.data = key.seal(&master.to_json())?;
        let not_json = |e: serde_json::Error| Flaw::NotJson(e.to_string());
        let json = serde_json::to_vec(&file).map_err(|e| Error::damaged(FileKind::Key, "new", not_json(e)))?;
        Ok(SealedKeyFile { id: Id::hash(&json), json })
    }

    pub(super) fn read(storage: &dyn Storage, id: &Id) -> Result<Self> {
        reread::read(storage, || KeyFile::parse(id, &KeyFile::contents(storage, id)?))
    }

    /// Reads the contents of a key file.
    pub(super) fn contents(storage: &dyn Storage, id: &Id) -> Result<Vec<u8>> {
        storage.read(FileKind::Key, &id.to_string()).map_err(Error::unread)
    }

    /// Parses the contents of a key file.
    pub(super) fn parse(id: &Id, bytes: &[u8]) -> Result<Self> {
        let damaged = |flaw| Error::damaged(FileKind::Key, id, flaw);
        if Id::hash(bytes) != *id {
            return Err(damaged(Flaw::NotItsName));
        }
        let file: KeyFile = serde_json::from_slice(bytes).map_err(|e| damaged(Flaw::NotJson(e.to_string())))?;
        if file.parameters().is_none() {
            let reason = "the key derivation is not one that kvmb knows".to_owned();
            return Err(damaged(Flaw::NotJson(reason)));
        }
        Ok(file)
    }

    /// Returns the master key, or `None` if the password is wrong. If a cache is given, the derived key is taken from
    /// there or stored there.
    pub(super) fn unlock(&self, id: &Id, password: &Password, cache: Option<&KeyCache>) -> Result<Option<SealKey>> {
        let kept = cache.and_then(|cache| cache.load(id, &self.salt, password));
        if let Some(master) = kept.and_then(|key| self.open(*key)) {
            return Ok(Some(master));
        }
        let key = self.derive(password)?;
        let master = self.open(*key);
        if let Some(cache) = cache.filter(|_| master.is_some()) {
            cache.store(id, &self.salt, password, &key);
        }
        Ok(master)
    }

    fn open(&self, key: [u8; 64]) -> Option<SealKey> {
        let mut sealed = Zeroizing::new(self.data.clone());
        let json = SealKey::from_bytes(key).open_in_place(&mut sealed).ok()?;
        SealKey::from_json(json)
    }

    pub(super) fn info(self, id: Id, current: bool) -> KeyInfo {
        KeyInfo { id, username: self.username, hostname: self.hostname, created: self.created, current }
    }

    /// Returns the memory needed to derive one part of the key, in bytes.
    fn memory(&self) -> u64 {
        self.n.saturating_mul(u64::from(self.r)).saturating_mul(128).max(1)
    }

    fn parameters(&self) -> Option<scrypt::Params> {
        let is_sane =
            self.kdf == "scrypt" && self.n.is_power_of_two() && self.memory() <= MEMORY_LIMIT && self.p <= P_LIMIT;
        if !is_sane {
            return None;
        }
        let log_n = u8::try_from(self.n.ilog2()).ok()?;
        scrypt::Params::new(log_n, self.r, self.p).ok()
    }

    /// Derives the key from a password. Its `p` parts are independent and run in parallel as far as memory allows.
    fn derive(&self, password: &Password) -> Result<Zeroizing<[u8; 64]>> {
        let parameters = self.parameters().ok_or(Error::KeyDerivation)?;
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let most = usize::try_from(PARALLEL_MEMORY / self.memory()).unwrap_or(usize::MAX).min(self.p as usize);
        // A temporary thread pool: nothing else in the program needs one.
        let pool = ThreadPoolBuilder::new().num_threads(processors.min(most).max(1)).build();
        let pool = pool.map_err(|error| Error::NoThread(std::io::Error::other(error)))?;
        let mut bytes = Zeroizing::new([0; 64]);
        let derived = pool.install(|| scrypt(password.as_bytes(), &self.salt, &parameters, &mut *bytes));
        derived.map_err(|_| Error::KeyDerivation)?;
        Ok(bytes)
    }
}
