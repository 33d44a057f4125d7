//! Checks the structure of the repository without reading the data; for that see [`read_blobs`](super::read_blobs).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    BlobKind, Error, Flaw, Id, Index, NodeKind, Repository, Result, StoredSnapshot, index_cache, pack, read_tree,
};
use crate::storage::FileKind;

/// How thorough a check is.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Do not read the trees: check only that index and snapshots are readable and that the packs exist.
    pub quick: bool,
    /// Read the header of every pack and compare it with the index. Headers are needed to rebuild a lost index.
    pub pack_headers: bool,
}

/// A problem that was found.
#[derive(Debug)]
pub enum RepoDamage {
    /// An index file cannot be read. Blobs that only it lists are lost until the index is rebuilt.
    Index { id: Id, error: Error },
    /// The index lists a pack that does not exist.
    PackMissing { id: Id },
    /// A pack is shorter than the index says.
    PackTooShort {
        id: Id,
        size_bytes: u64,
        /// The minimum size according to the index.
        wanted_bytes: u64,
    },
    /// The header of a pack cannot be read, or lacks blobs that the index lists. The blobs may be intact.
    PackHeader { id: Id, error: Error },
    /// A snapshot cannot be read.
    Snapshot { id: Id, error: Error },
    /// A tree cannot be read.
    Tree {
        id: Id,
        /// A snapshot that needs it.
        snapshot: Id,
        error: Error,
    },
    /// A file has blobs that are not in any index.
    FileIncomplete {
        name: OsString,
        /// The tree that contains it.
        tree: Id,
        /// A snapshot that needs it.
        snapshot: Id,
        /// The number of its missing blobs.
        missing_blobs: u64,
    },
    /// The size of a file differs from the sum of its blobs.
    FileSize {
        name: OsString,
        /// The tree that contains it.
        tree: Id,
        /// A snapshot that needs it.
        snapshot: Id,
        /// The size in the tree.
        size_bytes: u64,
        /// The sum of its blobs.
        content_bytes: u64,
    },
}

impl fmt::Display for RepoDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RepoDamage::Index { error, .. }
            | RepoDamage::PackHeader { error, .. }
            | RepoDamage::Snapshot { error, .. } => {
                write!(f, "{error}")
            }
            RepoDamage::PackMissing { id } => write!(f, "pack {id} is missing"),
            RepoDamage::PackTooShort { id, size_bytes, wanted_bytes } => {
                write!(f, "pack {id} has {size_bytes} bytes instead of {wanted_bytes}")
            }
            RepoDamage::Tree { snapshot, error, .. } => write!(f, "snapshot {}: {error}", snapshot.short()),
            RepoDamage::FileIncomplete { name, snapshot, missing_blobs, .. } => {
                write!(f, "snapshot {}: {} lacks {missing_blobs} blobs", snapshot.short(), name.display())
            }
            RepoDamage::FileSize { name, snapshot, size_bytes, content_bytes, .. } => write!(
                f,
                "snapshot {}: {} has {content_bytes} bytes of content instead of {size_bytes}",
                snapshot.short(),
                name.display()
            ),
        }
    }
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct CheckReport {
    /// The problems that were found.
    pub damage: Vec<RepoDamage>,
    /// The number of packs in the index.
    pub(crate) packs: u64,
    /// The number of packs that are not in the index: left by interrupted runs, harmless.
    pub unused_packs: u64,
    /// The number of blobs in the index.
    pub(crate) blobs: u64,
    /// The number of readable snapshots.
    pub(crate) snapshots: u64,
    /// The number of trees that were read.
    pub(crate) trees: u64,
}

/// Checks a repository's structure. Damage is reported, not returned as an error; an error means that the storage was
/// unreachable. Hold a lock during the check. `stop` ends it early with the damage that was found so far.
pub fn check(repo: &Repository, options: CheckOptions, stop: &AtomicBool) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    // Read the files themselves, not what this process has cached.
    let (index, damaged) = index_cache::read_all(repo, &repo.list(FileKind::Index)?);
    let damaged = damaged.into_iter();
    report.damage.extend(damaged.map(|(id, error)| RepoDamage::Index { id, error }));
    report.blobs = index.len() as u64;
    check_packs(repo, &index, &mut report)?;
    if options.pack_headers {
        check_pack_headers(repo, &index, &mut report);
    }

    let list = repo.uncached().snapshots()?;
    report.snapshots = list.snapshots.len() as u64;
    let damaged = list.damaged.into_iter();
    report.damage.extend(damaged.map(|broken| RepoDamage::Snapshot { id: broken.id, error: broken.error }));
    if !options.quick {
        let mut walk = TreeWalk { repo, index: &index, seen: HashSet::new(), report: &mut report, stop };
        for stored in &list.snapshots {
            walk.snapshot(stored);
        }
    }
    Ok(report)
}

fn check_packs(repo: &Repository, index: &Index, report: &mut CheckReport) -> Result<()> {
    let mut present: HashMap<Id, u64> = HashMap::new();
    for file in repo.storage().list(FileKind::Pack)? {
        if let Ok(id) = file.name.parse() {
            present.insert(id, file.size_bytes);
        }
    }
    // Sorted, so that reports can be compared.
    let wanted: BTreeMap<Id, u64> = index.pack_sizes().into_iter().collect();
    report.packs = wanted.len() as u64;
    for (id, wanted_bytes) in wanted {
        match present.remove(&id) {
            None => report.damage.push(RepoDamage::PackMissing { id }),
            Some(size_bytes) if size_bytes < wanted_bytes => {
                report.damage.push(RepoDamage::PackTooShort { id, size_bytes, wanted_bytes });
            }
            Some(_) => {}
        }
    }
    report.unused_packs = present.len() as u64;
    Ok(())
}

fn check_pack_headers(repo: &Repository, index: &Index, report: &mut CheckReport) {
    let mut wanted: HashMap<Id, Vec<(BlobKind, u32, Id)>> = HashMap::new();
    for kind in [BlobKind::Data, BlobKind::Tree] {
        for (id, location) in index.blobs(kind) {
            let blobs = wanted.entry(location.pack).or_default();
            blobs.push((kind, location.offset, id));
        }
    }
    let mut packs: Vec<Id> = wanted.keys().copied().collect();
    packs.sort_unstable();
    let errors = repo.for_each(&packs, |pack| {
        let header = match pack::read_header(repo, pack) {
            Ok(header) => header,
            Err(error) => return Some(error),
        };
        let listed: HashSet<_> = header.into_iter().map(|(kind, entry)| (kind, entry.offset, entry.id)).collect();
        let is_whole = wanted[pack].iter().all(|blob| listed.contains(blob));
        (!is_whole).then(|| Error::damaged(FileKind::Pack, pack, Flaw::BadHeader))
    });
    for (id, error) in packs.into_iter().zip(errors) {
        // Missing packs were already reported.
        let error = error.filter(|e| !matches!(e, Error::Storage(e) if e.is_not_found()));
        report.damage.extend(error.map(|error| RepoDamage::PackHeader { id, error }));
    }
}

struct TreeWalk<'a> {
    repo: &'a Repository,
    index: &'a Index,
    seen: HashSet<Id>,
    report: &'a mut CheckReport,
    stop: &'a AtomicBool,
}

impl TreeWalk<'_> {
    fn snapshot(&mut self, stored: &StoredSnapshot) {
        let mut ahead = vec![stored.snapshot.tree];
        while let Some(id) = ahead.pop() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if self.seen.insert(id) {
                self.tree(stored.id, id, &mut ahead);
            }
        }
    }

    fn tree(&mut self, snapshot: Id, id: Id, ahead: &mut Vec<Id>) {
        let tree = match read_tree(self.repo, self.index, &id) {
            Ok(tree) => tree,
            Err(error) => {
                return self.report.damage.push(RepoDamage::Tree { id, snapshot, error });
            }
        };
        self.report.trees += 1;
        for node in tree.nodes {
            let (size_bytes, content) = match node.kind {
                NodeKind::Dir { subtree } => {
                    ahead.push(subtree);
                    continue;
                }
                NodeKind::Other(_) => continue,
                NodeKind::File { size_bytes, content } => (size_bytes, content),
            };
            let mut content_bytes = 0u64;
            let mut missing_blobs = 0;
            for (blob, count) in content.runs() {
                match self.index.get(BlobKind::Data, &blob) {
                    Some(location) => content_bytes += u64::from(location.raw_length) * count,
                    None => missing_blobs += count,
                }
            }
            if missing_blobs > 0 {
                self.report.damage.push(RepoDamage::FileIncomplete {
                    name: node.name,
                    tree: id,
                    snapshot,
                    missing_blobs,
                });
            } else if content_bytes != size_bytes {
                self.report.damage.push(RepoDamage::FileSize {
                    name: node.name,
                    tree: id,
                    snapshot,
                    size_bytes,
                    content_bytes,
                });
            }
        }
    }
}
