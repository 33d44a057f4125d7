//! Snapshots: one state of one thing at one time.

use chrono::{DateTime, FixedOffset};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Error, Id, Permit, Repository, Result, host, time};
use crate::storage::FileKind;

/// The JSON of a snapshot file, its fields in restic's order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When.
    #[serde(with = "time")]
    pub time: DateTime<FixedOffset>,
    /// The snapshot that this one continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<Id>,
    /// Its root folder.
    pub tree: Id,
    /// What was backed up.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub paths: Vec<String>,
    /// On which host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) hostname: String,
    /// By whom.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) username: String,
    /// By which user number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) uid: u32,
    /// By which group number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) gid: u32,
    /// restic's exclude patterns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) excludes: Vec<String>,
    /// Marks to select by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The snapshot that this one is a changed copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) original: Option<Id>,
    /// What made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) program_version: String,
    /// What other versions wrote.
    #[serde(flatten)]
    pub(crate) other: Map<String, Value>,
}

/// A snapshot with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSnapshot {
    /// The file's name.
    pub id: Id,
    /// What it says.
    pub snapshot: Snapshot,
}

/// A snapshot file that cannot be read.
#[derive(Debug)]
pub struct DamagedSnapshot {
    /// The file's name.
    pub(crate) id: Id,
    /// Why.
    pub(crate) error: Error,
}

/// All snapshots of a repository: one that is broken does not hide the others.
#[derive(Debug, Default)]
pub struct SnapshotList {
    /// Those that can be read, oldest first.
    pub snapshots: Vec<StoredSnapshot>,
    /// Those that cannot.
    pub damaged: Vec<DamagedSnapshot>,
}

impl Snapshot {
    /// A snapshot of now, by this user, on this host, with this program.
    pub fn new(tree: Id, paths: Vec<String>) -> Self {
        let (uid, gid) = host::user_and_group();
        Snapshot {
            time: time::now(),
            parent: None,
            tree,
            paths,
            hostname: host::host_name(),
            username: host::user_name(),
            uid,
            gid,
            excludes: Vec::new(),
            tags: Vec::new(),
            original: None,
            program_version: concat!("kvmb ", env!("CARGO_PKG_VERSION")).to_owned(),
            other: Map::new(),
        }
    }

    pub(super) fn load(repo: &Repository, id: &Id) -> Result<Self> {
        repo.load_unpacked(FileKind::Snapshot, id)
    }
}

impl SnapshotList {
    pub(super) fn load(repo: &Repository) -> Result<Self> {
        let ids = repo.list(FileKind::Snapshot)?;
        let results = repo.for_each(&ids, |id| Snapshot::load(repo, id));
        let mut list = SnapshotList::default();
        for (id, result) in ids.into_iter().zip(results) {
            match result {
                Ok(snapshot) => list.snapshots.push(StoredSnapshot { id, snapshot }),
                // Forgotten since it was listed.
                Err(Error::Storage(e)) if e.is_not_found() => {}
                Err(error) => list.damaged.push(DamagedSnapshot { id, error }),
            }
        }
        list.snapshots.sort_by_key(|stored| (stored.snapshot.time, stored.id));
        Ok(list)
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Go writes an empty list as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Repository {
    /// All snapshots, oldest first; those that cannot be read are listed apart.
    pub fn snapshots(&self) -> Result<SnapshotList> {
        SnapshotList::load(self)
    }

    /// One snapshot.
    pub fn snapshot(&self, id: &Id) -> Result<Snapshot> {
        Snapshot::load(self, id)
    }

    /// Stores a snapshot: the commit of a backup. All that it refers to must be durable before.
    pub fn save_snapshot(&self, snapshot: &Snapshot, permit: &Permit) -> Result<Id> {
        permit.store(self, FileKind::Snapshot, snapshot)
    }

    /// Removes a snapshot; its data stays until a prune.
    pub fn remove_snapshot(&self, id: &Id, permit: &Permit) -> Result<()> {
        permit.confirm()?;
        Ok(self.storage().remove(FileKind::Snapshot, &id.to_string())?)
    }
}
