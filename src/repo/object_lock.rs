//! Object locks for new snapshots, on a storage that locks files: the locks of packs that older snapshots stored are
//! extended in time.
//!
//! A lock cannot be shortened, so its end is recorded on this host, and the storage is queried about a pack only when
//! less than half of the period is left.

use super::reachable::each_blob;
use super::{BlobKind, Error, Id, Repository, Result};
use crate::storage::FileKind;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The file that records when locks end, with a line for each pack.
const NOTES: &str = "locked-packs";

/// When locks end, in seconds since 1970.
type Ends = HashMap<Id, u64>;

/// Extends the locks of everything that snapshots with these root trees need to
/// [`crate::storage::Storage::lock_period`], where less than half of that is left. `stop` ends it early.
pub(crate) fn extend_locks(repo: &Repository, roots: &[Id], stop: &AtomicBool) -> Result<()> {
    let Some(period) = repo.storage().lock_period() else { return Ok(()) };
    let index = repo.load_index()?;
    let (mut trees, mut packs) = (HashSet::new(), HashSet::new());
    for root in roots {
        each_blob(repo, &index, root, stop, |kind, id| {
            if kind == BlobKind::Tree && !trees.insert(*id) {
                return Ok(false);
            }
            let place = index.get(kind, id).ok_or(Error::BlobMissing { kind, id: *id })?;
            packs.insert(place.pack);
            Ok(true)
        })?;
    }
    let enough = (SystemTime::now() + period / 2).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut ends = noted(repo);
    ends.retain(|_, end| *end >= enough);
    packs.retain(|pack| !ends.contains_key(pack));
    let packs: Vec<Id> = packs.into_iter().collect();
    let results = repo.for_each(&packs, |pack| extend(repo, FileKind::Pack, &pack.to_string(), stop));
    let mut failed = None;
    for (pack, result) in packs.into_iter().zip(results) {
        match result {
            Ok(end) => ends.extend(end.map(|end| (pack, end))),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if let Some(host_folder) = repo.host_folder()
        && let Err(error) = host_folder.change(NOTES, |_| Ok(text_of(&ends).into_bytes()))
    {
        tracing::debug!(%error, "cannot note which packs are locked");
    }
    if let Some(error) = failed {
        return Err(error);
    }
    // A concurrent prune may remove an index file.
    for kind in [FileKind::Config, FileKind::Key, FileKind::Index] {
        let names: Vec<String> = repo.storage().list(kind)?.into_iter().map(|file| file.name).collect();
        for result in repo.for_each(&names, |name| extend(repo, kind, name, stop)) {
            match result {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Extends the lock of a file and returns when it ends.
fn extend(repo: &Repository, kind: FileKind, name: &str, stop: &AtomicBool) -> Result<Option<u64>> {
    if stop.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let end = repo.storage().extend_lock(kind, name)?;
    let seconds = |end: SystemTime| end.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    Ok(end.map(seconds))
}

fn noted(repo: &Repository) -> Ends {
    let notes = repo.host_folder().and_then(|folder| folder.read(NOTES).ok().flatten()).unwrap_or_default();
    ends_in(&String::from_utf8_lossy(&notes))
}

/// Skips invalid lines: the storage is queried about those packs again.
fn ends_in(text: &str) -> Ends {
    let of_line = |line: &str| {
        let (pack, end) = line.split_once(' ')?;
        Some((pack.parse().ok()?, end.parse().ok()?))
    };
    text.lines().filter_map(of_line).collect()
}

fn text_of(ends: &Ends) -> String {
    let mut text = String::new();
    for (pack, end) in ends {
        let _ = writeln!(text, "{pack} {end}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_ends_round_trip_and_damaged_lines_are_skipped() {
        let ends = Ends::from([(Id::hash(b"one"), 1), (Id::hash(b"two"), u64::MAX)]);
        assert_eq!(ends_in(&text_of(&ends)), ends);
        let damaged = format!("x 1\n\n{}\n{} y\n{}", Id::hash(b"three"), Id::hash(b"four"), text_of(&ends));
        assert_eq!(ends_in(&damaged), ends);
    }
}
