//! Creation of a repository. Of several concurrent creators exactly one succeeds, and there is one master key.
//!
//! | step | what others find meanwhile |
//! | --- | --- |
//! | 1. create the config, which fails if it exists | a repository that is being created: they wait for its key |
//! | 2. store the first key | a repository |
//! | 3. check that the config is still the one of step 1 | a repository |
//!
//! A creator that dies between steps 1 and 2 leaves a config that no key opens. After [`BEING_CREATED`] it is
//! considered unfinished, and the next creator removes exactly that config and begins at step 1. A creator that was
//! merely suspended detects in step 3 that it was replaced, removes its key and gives up. On a file system without hard
//! links, the config may be short or empty for a moment; this, too, is a repository that is being created.

use std::thread;
use std::time::{Duration, Instant};

use super::config::RepoConfig;
use super::crypto::{Password, SealKey};
use super::key::{KeyFile, SealedKeyFile};
use super::{Error, Flaw, Id, Result};
use crate::failpoint::{self, Failpoint};
use crate::storage::{self, FileKind, Storage};

/// How long a creator may take between config and key before others consider it dead.
pub(super) const BEING_CREATED: Duration = Duration::from_secs(10);
/// A config older than this is no longer being created, so nobody waits for it.
const ABANDONED: Duration = Duration::from_secs(60);
/// How long a config may be absent while it is being compared.
const BEING_COMPARED: Duration = Duration::from_secs(2);
/// The interval between two checks of a repository that is being created.
const LOOK: Duration = Duration::from_millis(50);
/// The maximum number of attempts. A failed attempt means that another process interfered.
const TRIES: usize = 10;

/// The state of a place where a repository may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Presence {
    Nothing,
    /// A config without keys and data. It is being created, or its creator died.
    Unfinished {
        /// The config's bytes.
        config: Vec<u8>,
    },
    /// No config, but files of this kind.
    Remains(FileKind),
    /// A repository, intact or damaged.
    Repository,
}

impl Presence {
    /// Determines the state. If there is no config, the folders of a repository must exist.
    pub(super) fn of(storage: &dyn Storage) -> Result<Presence> {
        let config = read_config(storage)?;
        let found = first_files(storage)?;
        Ok(match (config, found) {
            (None, None) => Presence::Nothing,
            (None, Some(kind)) => Presence::Remains(kind),
            (Some(config), None) => Presence::Unfinished { config },
            (Some(_), Some(_)) => Presence::Repository,
        })
    }

    /// Like [`Presence::of`], but waits until no other process can still be creating a repository there.
    fn settled(storage: &dyn Storage) -> Result<Presence> {
        let (mut began, mut last) = (Instant::now(), None);
        loop {
            let now = Presence::of(storage)?;
            if !matches!(now, Presence::Unfinished { .. } | Presence::Remains(FileKind::Key)) {
                return Ok(now);
            }
            if last.as_ref() != Some(&now) {
                if matches!(now, Presence::Unfinished { .. }) && is_abandoned(storage) {
                    return Ok(now);
                }
                (began, last) = (Instant::now(), Some(now));
            } else if began.elapsed() >= BEING_CREATED {
                return Ok(now);
            }
            thread::sleep(LOOK);
        }
    }
}

/// Returns whether the config is too old to be still in creation, or `false` if its age is unknown.
fn is_abandoned(storage: &dyn Storage) -> bool {
    let modified_at = storage.modified_at(FileKind::Config, "").ok().flatten();
    modified_at.and_then(|at| at.elapsed().ok()).is_some_and(|age| age >= ABANDONED)
}

fn read_config(storage: &dyn Storage) -> storage::Result<Option<Vec<u8>>> {
    match storage.read(FileKind::Config, "") {
        Ok(config) => Ok(Some(config)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns a kind, other than config and lock, of which there are files.
fn first_files(storage: &dyn Storage) -> storage::Result<Option<FileKind>> {
    for kind in [FileKind::Key, FileKind::Snapshot, FileKind::Index, FileKind::Pack] {
        if !storage.list(kind)?.is_empty() {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// Returns whether there is a config, but no keys and no data.
pub(super) fn is_unfinished(storage: &dyn Storage) -> Result<bool> {
    Ok(matches!(Presence::of(storage)?, Presence::Unfinished { .. }))
}

/// The secrets of a new repository.
pub(super) struct Created {
    pub(super) key: SealKey,
    pub(super) key_id: Id,
    pub(super) config: RepoConfig,
}

/// Creates a repository, or fails with [`Error::AlreadyExists`].
pub(super) fn create(storage: &dyn Storage, password: &Password) -> Result<Created> {
    let exists = |found| Error::AlreadyExists { url: storage.url(), found };
    if read_config(storage)?.is_none() {
        storage.create_layout()?;
    }
    // Done before the config is created: step 2 must follow it without delay.
    let key = SealKey::random()?;
    let key_file = KeyFile::sealed(&key, password)?;
    for _ in 0..TRIES {
        match Presence::settled(storage)? {
            Presence::Repository => return Err(exists(FileKind::Config)),
            Presence::Remains(kind) => return Err(exists(kind)),
            Presence::Unfinished { config } => {
                tracing::warn!("completing the repository in {}, whose creation was interrupted", storage.url());
                match storage.remove_exact(FileKind::Config, "", &config) {
                    Err(error) if !error.is_not_found() => return Err(error.into()),
                    _ => {}
                }
            }
            Presence::Nothing => {}
        }
        let config = RepoConfig::random()?;
        if attempt(storage, &config.seal(&key)?, &key_file)? {
            return Ok(Created { key, key_id: key_file.id, config });
        }
    }
    Err(exists(FileKind::Config))
}

/// Makes one attempt. Returns whether it created the repository.
fn attempt(storage: &dyn Storage, config: &[u8], key: &SealedKeyFile) -> Result<bool> {
    match storage.create(FileKind::Config, "", config) {
        Err(storage::Error::Exists { .. }) => return Ok(false),
        other => other?,
    }
    failpoint::hit(Failpoint::ConfigCreated);
    if !storage.list(FileKind::Key)?.is_empty() {
        // A repository of another process whose config was being compared.
        storage.remove_exact(FileKind::Config, "", config)?;
        return Ok(false);
    }
    storage.write(FileKind::Key, &key.id.to_string(), &key.json)?;
    failpoint::hit(Failpoint::KeyCreated);
    let deadline = Instant::now() + BEING_COMPARED;
    loop {
        match read_config(storage)? {
            Some(there) if there == config => return Ok(true),
            None if Instant::now() < deadline => thread::sleep(LOOK),
            _ => {
                storage.remove(FileKind::Key, &key.id.to_string())?;
                return Ok(false);
            }
        }
    }
}

/// Repeats `open` while the repository is being created.
pub(super) fn wait_for_creator<T>(storage: &dyn Storage, open: impl Fn() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        let result = open();
        let limit = match &result {
            Err(Error::Unfinished { .. }) => BEING_CREATED,
            Err(Error::ConfigMissing { .. }) => BEING_COMPARED,
            Err(Error::Damaged { kind: FileKind::Config, flaw: Flaw::TooShort, .. }) => BEING_CREATED,
            _ => return result,
        };
        if began.elapsed() >= limit || (limit == BEING_CREATED && is_abandoned(storage)) {
            return result;
        }
        thread::sleep(LOOK);
    }
}
