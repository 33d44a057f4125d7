//! The `config` file: format version and repository ID.

use serde::{Deserialize, Serialize};

use super::crypto::{SealKey, fill_random};
use super::{Error, Flaw, Result, polynomial};
use crate::storage::FileKind;

/// The only format version that kvmb reads and writes.
const VERSION: u32 = 2;
/// The size of a sealed config: kvmb's and restic's have the same length.
const SEALED_BYTES: usize = 155;
/// The name of the file in errors.
const NAME: &str = "config";

/// Sealed JSON without compression.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RepoConfig {
    version: u32,
    pub(super) id: String,
    chunker_polynomial: String,
}

impl RepoConfig {
    pub(super) fn random() -> Result<Self> {
        let mut id = [0; 32];
        fill_random(&mut id)?;
        Ok(RepoConfig {
            version: VERSION,
            id: hex::encode(id),
            chunker_polynomial: format!("{:x}", polynomial::random_irreducible()?),
        })
    }

    /// Returns the bytes of the file.
    pub(super) fn seal(&self, key: &SealKey) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(self).map_err(|e| damaged(Flaw::NotJson(e.to_string())))?;
        key.seal(&json)
    }

    pub(super) fn open(sealed: &[u8], key: &SealKey, url: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if sealed.len() < SEALED_BYTES {
            return Err(damaged(Flaw::TooShort));
        }
        let mut sealed = sealed.to_vec();
        let json = key.open_in_place(&mut sealed).map_err(|e| damaged(e.into()))?;
        let not_json = |e: serde_json::Error| damaged(Flaw::NotJson(e.to_string()));
        // Check the version first: a later one may have other fields.
        let Version { version } = serde_json::from_slice(json).map_err(not_json)?;
        if version != VERSION {
            return Err(Error::UnsupportedVersion { url: url.to_owned(), version });
        }
        serde_json::from_slice(json).map_err(not_json)
    }
}

fn damaged(flaw: Flaw) -> Error {
    Error::damaged(FileKind::Config, NAME, flaw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_config_is_reported_as_too_short() {
        let key = SealKey::random().unwrap();
        for _ in 0..20 {
            let sealed = RepoConfig::random().unwrap().seal(&key).unwrap();
            assert!(RepoConfig::open(&sealed, &key, "").is_ok());
            let part = RepoConfig::open(&sealed[..sealed.len() - 1], &key, "").unwrap_err();
            assert!(matches!(part, Error::Damaged { flaw: Flaw::TooShort, .. }), "{part}");
        }
    }
}
