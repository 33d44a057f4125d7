//! Runs that ended before they could name what they had stored.
//!
//! A pack is stored long before an index names it (see [`super::Writer`]), and a run may end in between: killed, given
//! up when the network stayed dead, told to stop. So that nothing of that is sent twice, a writer notes each pack of
//! its own in the [`RepoCacheDir`], *after* it was stored, and the next run that writes there names what is noted
//! before it looks for what the repository has. The packs need not be looked for: to list them all would take a server
//! longer than most backups.
//!
//! ```text
//! writer:    store pack (durable) ─ note it ─ … ─ index names it (durable) ─ remove the notes
//! next run:  lock ─ load index ─ find notes without a writer ─ settle the lock ─ check headers ─ save an index ─ load it
//! ```
//!
//! **Who is dead.** A writer holds its notes locked (`flock`) as long as it lives, and the system lets go of the lock
//! however it ends: notes that can be locked have no writer any more.
//!
//! **An adopted pack is worth as much as any other.** It is noted when
//! [`Storage::write`](crate::storage::Storage::write) has returned: synced, renamed, its folder synced. So its content
//! is not read again to compare its name; its header is, which is authenticated, lists what the index will say, and
//! must add up to the size of the file to the byte. Whatever is read from it later is verified as always. A pack that
//! was under way when the run ended has no note, is sent again, and what is there of it goes with the next prune: no
//! more packs than are stored at a time.
//!
//! **Others beside us.** The lock that we hold since before we look keeps away whoever removes packs, kvmb or restic;
//! what a prune took before is not there any more, and is not named. Of a live writer nothing is touched. That two runs
//! name the same pack, or have stored the same blob, is allowed by the format and fixed by the next prune.
//!
//! The notes are not synced: a power cut takes the last half minute of them, and with it the use of some packs.

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

/// The folder of the notes.
const FOLDER: &str = "unfinished";

/// What one writer has stored and not named yet.
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
            // Before it was locked, somebody may have taken it for a dead writer's.
            if file.metadata()?.nlink() > 0 {
                return Ok(Notes { path, file });
            }
        }
    }

    /// Notes a pack that is durable.
    pub(super) fn add(&mut self, pack: &Id) -> io::Result<()> {
        self.file.write_all(format!("{pack}\n").as_bytes())
    }

    /// All packs are named by an index that is durable.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// The notes of a writer that has ended.
struct Orphans {
    path: PathBuf,
    packs: Vec<Id>,
    /// Locked, so that nobody else is at it.
    _file: File,
}

impl Orphans {
    /// None where a writer lives, or the notes have just been removed.
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
        // The last line may have been cut off.
        let packs = text.split(|byte| *byte == b'\n').filter_map(Id::from_hex).collect();
        Ok(Some(Orphans { path: path.to_owned(), packs, _file: file }))
    }
}

/// What ended runs have left, about to be named. While this lives, other threads that ask for it wait.
pub struct PackRecovery<'a> {
    repo: &'a Repository,
    left: Vec<Orphans>,
    _alone: MutexGuard<'a, ()>,
}

impl std::fmt::Debug for PackRecovery<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adoption").field("runs", &self.left.len()).finish_non_exhaustive()
    }
}

impl Repository {
    /// Whether there are notes of packs of this host's runs, living ones or not.
    pub(crate) fn has_orphans(&self) -> bool {
        let notes = self.host_folder().map(|folder| fs::read_dir(folder.path().join(FOLDER)));
        notes.is_some_and(|notes| notes.is_ok_and(|mut notes| notes.next().is_some()))
    }

    /// Looks for what runs of this host have stored and not named; none if there is nothing, as after most runs. Ask
    /// before the index is loaded, so that what another thread has just named is in it.
    pub fn begin_recovery(&self) -> Option<PackRecovery<'_>> {
        let host_folder = self.host_folder()?;
        let alone = host_folder.adopting.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// Names in a new index file the packs that `index` does not, and returns how many they are: if any, the index is
    /// to be loaded again. The lock must be held since before `index` was loaded. `stop` ends it with nothing done.
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
        let mut adopted = 0;
        for (pack, entries) in unnamed.into_iter().zip(headers) {
            let Some(entries) = entries? else { continue };
            if pending.is_full_with(entries.len()) {
                std::mem::take(&mut pending).save(self.repo, permit)?;
            }
            pending.add(pack, entries.iter().map(|(kind, entry)| (*kind, entry)));
            adopted += 1;
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
        Ok(adopted)
    }
}

/// The header of a pack that is there and whole; none of another.
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
        // A prune took it.
        Err(error) if error.is_not_found() => Ok(None),
        Err(error @ (Error::Damaged { .. } | Error::Storage(storage::Error::TooShort { .. }))) => {
            tracing::warn!(%error, "what an ended run has stored is not used");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
