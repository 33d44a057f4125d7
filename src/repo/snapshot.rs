//! Snapshots: the state of something at one point in time.

use chrono::{DateTime, FixedOffset};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kept_records::RecordKind;
use super::repository::with_sizes;
use super::{Error, Flaw, Id, Permit, RepoLock, Repository, Result, host, time};
use crate::storage::FileKind;

/// The JSON of a snapshot file, with the fields in restic's order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was created.
    #[serde(with = "time")]
    pub time: DateTime<FixedOffset>,
    /// The snapshot that this one is based on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<Id>,
    /// The tree of the root folder.
    pub tree: Id,
    /// The paths that were backed up.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub paths: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) hostname: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) username: String,
    /// The user id of the creator.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) uid: u32,
    /// The group id of the creator.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) gid: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) excludes: Vec<String>,
    /// Tags to select snapshots by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The snapshot that this one is a modified copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) original: Option<Id>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) program_version: String,
    /// Fields of other versions.
    #[serde(flatten)]
    pub(crate) other: Map<String, Value>,
}

/// A snapshot with its id.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSnapshot {
    pub id: Id,
    pub snapshot: Snapshot,
}

/// A snapshot file that is unreadable.
#[derive(Debug)]
pub struct DamagedSnapshot {
    pub(crate) id: Id,
    pub(crate) error: Error,
}

/// All snapshots of a repository. A damaged one does not hide the others.
#[derive(Debug, Default)]
pub struct SnapshotList {
    /// The readable ones, oldest first.
    pub snapshots: Vec<StoredSnapshot>,
    pub damaged: Vec<DamagedSnapshot>,
}

impl Snapshot {
    /// Creates a snapshot with the current time, user, host and program.
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
    /// Loads the snapshots from files that were listed with their sizes.
    fn load(repo: &Repository, files: Vec<(Id, u64)>) -> Self {
        let mut list = SnapshotList::default();
        let mut unknown = Vec::new();
        for (id, size_bytes) in files.iter().copied() {
            match kept(repo, &id, size_bytes) {
                Some(snapshot) => list.snapshots.push(StoredSnapshot { id, snapshot }),
                None => unknown.push((id, size_bytes)),
            }
        }
        let results = repo.for_each(&unknown, |(id, _)| Snapshot::load(repo, id));
        let (mut new, mut missing) = (Vec::new(), Vec::new());
        for ((id, size_bytes), result) in unknown.into_iter().zip(results) {
            match result {
                Ok(snapshot) => {
                    new.extend(to_record(&snapshot, size_bytes).map(|record| (id, record)));
                    list.snapshots.push(StoredSnapshot { id, snapshot });
                }
                Err(Error::Storage(e)) if e.is_not_found() => missing.push(id),
                Err(error) => list.damaged.push(DamagedSnapshot { id, error }),
            }
        }
        list.damaged.extend(still_listed(repo, missing));
        if let Some(records) = repo.kept_records() {
            records.add(RecordKind::Snapshot, &new);
            records.retain(&files.into_iter().map(|(id, _)| id).collect());
        }
        list.snapshots.sort_by_key(|stored| (stored.snapshot.time, stored.id));
        list
    }
}

/// Returns those of these snapshots, which were listed but not found, that were not removed in the meantime. Some
/// servers answer "not found" while they restart, and what such a snapshot needs must not be forgotten.
fn still_listed(repo: &Repository, missing: Vec<Id>) -> Vec<DamagedSnapshot> {
    if missing.is_empty() {
        return Vec::new();
    }
    let listed = repo.list(FileKind::Snapshot);
    let damage = |id: Id| match &listed {
        Ok(listed) if !listed.contains(&id) => None,
        _ => Some(DamagedSnapshot { id, error: Error::damaged(FileKind::Snapshot, id, Flaw::ListedOnly) }),
    };
    missing.into_iter().filter_map(damage).collect()
}

/// Returns a snapshot from the cache. The size detects a file that was truncated in the repository.
fn kept(repo: &Repository, id: &Id, size_bytes: u64) -> Option<Snapshot> {
    let record = repo.kept_records()?.get(RecordKind::Snapshot, id)?;
    let (size, json) = record.split_first_chunk()?;
    (u64::from_le_bytes(*size) == size_bytes).then(|| serde_json::from_slice(json).ok())?
}

fn to_record(snapshot: &Snapshot, size_bytes: u64) -> Option<Vec<u8>> {
    let mut record = size_bytes.to_le_bytes().to_vec();
    serde_json::to_writer(&mut record, snapshot).ok()?;
    Some(record)
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Go writes an empty list as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Repository {
    /// Returns all snapshots, oldest first, with the unreadable ones listed separately.
    pub fn snapshots(&self) -> Result<SnapshotList> {
        Ok(self.snapshots_in(self.list_with_sizes(FileKind::Snapshot)?))
    }

    /// Takes a shared lock, and lists the snapshots with the final check of the locks of others, for callers that only
    /// read.
    pub fn lock_and_list_snapshots(&self) -> Result<(RepoLock, SnapshotList)> {
        let (lock, listed) = self.begin_lock_and_list(FileKind::Snapshot)?.settle()?;
        Ok((lock, self.snapshots_in(with_sizes(FileKind::Snapshot, listed))))
    }

    /// Loads the snapshots from files that were just listed with their sizes.
    pub(crate) fn snapshots_in(&self, files: Vec<(Id, u64)>) -> SnapshotList {
        SnapshotList::load(self, files)
    }

    /// Returns the note that this host keeps for a snapshot. It is valid as long as the snapshot exists.
    pub(crate) fn note_of(&self, snapshot: &Id) -> Option<Vec<u8>> {
        self.kept_records()?.get(RecordKind::Note, snapshot)
    }

    /// Keeps a note for a snapshot on this host.
    pub(crate) fn keep_note(&self, snapshot: Id, note: Vec<u8>) {
        if let Some(records) = self.kept_records() {
            records.add(RecordKind::Note, &[(snapshot, note)]);
        }
    }

    /// Reads one snapshot.
    pub fn snapshot(&self, id: &Id) -> Result<Snapshot> {
        Snapshot::load(self, id)
    }

    /// Stores a snapshot, which commits a backup. Everything that it refers to must already be durable.
    pub fn save_snapshot(&self, snapshot: &Snapshot, permit: &Permit) -> Result<Id> {
        permit.store(self, FileKind::Snapshot, snapshot)
    }

    /// Removes a snapshot; its data stays until a prune.
    pub fn remove_snapshot(&self, id: &Id, permit: &Permit) -> Result<()> {
        permit.confirm()?;
        Ok(self.storage().remove(FileKind::Snapshot, &id.to_string())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{LockMode, Password};
    use crate::storage::testing::{FaultEffect, FaultStorage, InjectedFault, MemoryStorage, Operation};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn snapshot_that_is_listed_but_not_found_is_damaged() {
        let storage = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
        let repo = Repository::create(Arc::clone(&storage) as _, &Password::new("test".to_owned())).expect("create");
        let permit = repo.lock(LockMode::Shared, Duration::ZERO).expect("lock").permit();
        let id = repo.save_snapshot(&Snapshot::new(Id::hash(b"tree"), Vec::new()), &permit).expect("save");
        let hide = |operation| InjectedFault::every(operation, FaultEffect::Hide).on(FileKind::Snapshot);
        assert_eq!(repo.snapshots().unwrap().snapshots[0].id, id);

        storage.add(hide(Operation::Read));
        let list = repo.snapshots().unwrap();
        assert!(list.snapshots.is_empty());
        assert!(matches!(list.damaged[0].error, Error::Damaged { flaw: Flaw::ListedOnly, .. }), "{:?}", list.damaged);
        // Another program has removed it since it was listed.
        storage.add(hide(Operation::List).nth(2));
        let list = repo.snapshots().unwrap();
        assert!(list.snapshots.is_empty() && list.damaged.is_empty(), "{:?}", list.damaged);
    }
}
