//! The `config` file: which format, which repository.

use serde::{Deserialize, Serialize};

use super::crypto::{SealKey, fill_random};
use super::{Error, Flaw, Result, polynomial};
use crate::storage::{FileKind, Storage};

/// The only format version that kvmb reads and writes.
const VERSION: u32 = 2;
/// What errors call the file.
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

    pub(super) fn save(&self, storage: &dyn Storage, key: &SealKey) -> Result<()> {
        let json = serde_json::to_vec(self).map_err(|e| damaged(Flaw::NotJson(e.to_string())))?;
        Ok(storage.write(FileKind::Config, "", &key.seal(&json)?)?)
    }

    pub(super) fn open(sealed: &mut [u8], key: &SealKey, url: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let json = key.open_in_place(sealed).map_err(|e| damaged(e.into()))?;
        let not_json = |e: serde_json::Error| damaged(Flaw::NotJson(e.to_string()));
        // The version first: a later one may have other fields.
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
