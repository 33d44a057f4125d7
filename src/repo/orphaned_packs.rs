//! Recovery of packs that a run stored but did not add to an index before it ended.
//!
//! A pack is stored long before it appears in an index (see [`super::Writer`]), and a run may end in between: killed,
//! given up because the network failed, or interrupted. So that none of this data is sent twice, a writer records each
//! of its packs in the [`RepoCacheDir`], *after* it was stored, and the next run of this host adds the recorded packs
//! to an index before it checks which blobs exist. The packs are not searched for in the storage: to list them all
//! would take a server longer than most backups.
//!
//! ```text
//! writer:    store pack (durable) ─ record it ─ … ─ save index (durable) ─ remove the record
//! next run:  lock ─ find records without a writer ─ load index ─ check headers ─ save an index ─ load it
//! ```
//!
//! **Dead writers.** A writer holds a lock on its record file (`flock`) as long as it lives, and the system releases
//! that lock however the process ends: a record file that can be locked has no writer any more.
//!
//! **A recovered pack is as reliable as any other.** It is recorded after
//! [`Storage::write`](crate::storage::Storage::write) has returned: synced, renamed, its folder synced. So its content
//! is not read again to compare the hash. Only its header is read, which is authenticated, lists the entries for the
//! index, and must match the size of the file exactly. Later reads verify blobs as always. A pack that was being stored
//! when the run ended is not recorded and is sent again; its remains are removed by the next prune. There are at most
//! as many of these as packs are stored at a time.
//!
//! **Concurrency.** The lock that we hold since before the search keeps out processes that remove packs, kvmb or
//! restic. Packs that an earlier prune removed no longer exist, and are not added. The records of a live writer are not
//! touched. Two runs may add the same pack, or store the same blob: the format allows it, and the next prune fixes it.
//!
//! The records are not synced: a power failure loses the last half minute of them, and with it the use of some packs.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use super::crypto::OVERHEAD;
use super::index_file::PendingIndex;
use super::pack::{self, PackEntry};
use super::{BlobKind, Error, Flaw, Id, Index, Permit, RepoCacheDir, Repository, Result};
use crate::atomic_file;
use crate::storage::{self, FileKind};

/// The folder of the records.
const FOLDER: &str = "unfinished";

/// The record of packs that one writer has stored but not added to an index yet.
#[derive(Debug)]
pub(super) struct Notes {
    path: PathBuf,
    file: File,
}

impl Notes {
    pub(super) fn begin(host_folder: &RepoCacheDir) -> io::Result<Notes> {
        let path = host_folder.make_folder(FOLDER)?.join(format!("{:016x}", rand::random::<u64>()));
        loop {
            let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            // Before it was locked, another process may have mistaken it for a dead writer's and removed it.
            if file.metadata()?.nlink() > 0 {
                return Ok(Notes { path, file });
            }
        }
    }

    /// Records a pack that is durable.
    pub(super) fn add(&mut self, pack: &Id) -> io::Result<()> {
        self.file.write_all(format!("{pack}\n").as_bytes())
    }

    /// Removes the record, when all packs are in an index that is durable.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// The record of a writer that has ended.
struct Orphans {
    path: PathBuf,
    packs: Vec<Id>,
    /// Locked to exclude other processes.
    _file: File,
}

impl Orphans {
    /// Returns `None` if the writer is alive, or the record has just been removed.
    fn open(path: &Path) -> io::Result<Option<Orphans>> {
        let mut file = match atomic_file::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        // The last line may be truncated.
        let packs = text.split(|byte| *byte == b'\n').filter_map(Id::from_hex).collect();
        Ok(Some(Orphans { path: path.to_owned(), packs, _file: file }))
    }
}

/// Packs of ended runs that are to be added to an index. While this value exists, other threads that want one wait.
pub struct PackRecovery<'a> {
    repo: &'a Repository,
    left: Vec<Orphans>,
    _alone: MutexGuard<'a, ()>,
}

impl std::fmt::Debug for PackRecovery<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackRecovery").field("runs", &self.left.len()).finish_non_exhaustive()
    }
}

impl Repository {
    /// Returns whether there are records of packs by runs of this host, live or not.
    pub(crate) fn has_orphans(&self) -> bool {
        let notes = self.host_folder().map(|folder| fs::read_dir(folder.path().join(FOLDER)));
        notes.is_some_and(|notes| notes.is_ok_and(|mut notes| notes.next().is_some()))
    }

    /// Looks for packs that ended runs of this host stored but did not add to an index. Returns `None` if there are
    /// none, as after most runs. Call it before the index is loaded, so that the index contains what another thread has
    /// just added.
    pub fn begin_recovery(&self) -> Option<PackRecovery<'_>> {
        let host_folder = self.host_folder()?;
        let alone = host_folder.recovering.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::new();
        for entry in fs::read_dir(host_folder.path().join(FOLDER)).into_iter().flatten().flatten() {
            match Orphans::open(&entry.path()) {
                Ok(found) => left.extend(found),
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "cannot read what a run has noted")
                }
            }
        }
        (!left.is_empty()).then_some(PackRecovery { repo: self, left, _alone: alone })
    }
}

impl PackRecovery<'_> {
    /// Saves a new index file with the packs that `index` lacks, and returns their number. If it is not 0, load the
    /// index again. The lock must be held since before `index` was loaded. `stop` ends it without changes.
    pub fn finish(self, index: &Index, permit: &Permit, stop: &AtomicBool) -> Result<usize> {
        let named: HashSet<Id> = index.packs().collect();
        let noted: HashSet<Id> = self.left.iter().flat_map(|left| &left.packs).copied().collect();
        let mut unnamed: Vec<Id> = noted.difference(&named).copied().collect();
        unnamed.sort_unstable();
        let headers = self.repo.for_each(&unnamed, |pack| match stop.load(Ordering::Relaxed) {
            true => Ok(None),
            false => read_whole_header(self.repo, pack),
        });
        let mut pending = PendingIndex::default();
        let mut recovered = 0;
        for (pack, entries) in unnamed.into_iter().zip(headers) {
            let Some(entries) = entries? else { continue };
            if pending.is_full_with(entries.len()) {
                std::mem::take(&mut pending).save(self.repo, permit)?;
            }
            pending.add(pack, entries.iter().map(|(kind, entry)| (*kind, entry)));
            recovered += 1;
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(0);
        }
        if !pending.is_empty() {
            pending.save(self.repo, permit)?;
        }
        for left in &self.left {
            if let Err(error) = fs::remove_file(&left.path) {
                tracing::debug!(path = %left.path.display(), %error, "cannot remove the notes of an ended run");
            }
        }
        Ok(recovered)
    }
}

/// Returns the header of a pack, or `None` if the pack is missing or damaged.
fn read_whole_header(repo: &Repository, pack: &Id) -> Result<Option<Vec<(BlobKind, PackEntry)>>> {
    let makes_no_sense = |entries: &[(BlobKind, PackEntry)]| {
        entries.is_empty() || entries.iter().any(|(_, entry)| (entry.length as usize) < OVERHEAD)
    };
    match pack::read_header(repo, pack) {
        Ok(entries) if makes_no_sense(&entries) => {
            let error = Error::damaged(FileKind::Pack, pack, Flaw::BadHeader);
            tracing::warn!(%error, "what an ended run has stored is not used");
            Ok(None)
        }
        Ok(entries) => Ok(Some(entries)),
        // A prune removed it.
        Err(error) if error.is_not_found() => Ok(None),
        Err(error @ (Error::Damaged { .. } | Error::Storage(storage::Error::TooShort { .. }))) => {
            tracing::warn!(%error, "what an ended run has stored is not used");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
