//! Copies points from one repository to another.
//!
//! A copy has the same trees, manifest and chunks, encrypted with the other repository's key. Only blobs that the
//! target lacks are read. They are verified on the way; damaged ones are reported and never copied. The copy's snapshot
//! names the original in the field that `restic copy` uses, so each program recognizes the other's copies without
//! reading data.
//!
//! Packs, index and snapshot file are written in this order, each durable before the next, as for a backup. The
//! checkpoint that the manifest names belongs to the chain of the repository that the point was first stored in, so
//! [`crate::ops::chain`] ignores it.

use crate::failpoint::{self, Failpoint};
use crate::ops::copy::plan::{Copies, persistent_id};
use crate::ops::inventory::host_name;
use crate::ops::locked_repo::LockedRepo;
use crate::ops::points::lineage::{Origin, lineages};
use crate::ops::points::{self, PointRef};
use crate::ops::repo_lock::{lock_and_list, while_locked};
use crate::ops::verify::damage_of;
use crate::ops::{Error, Monitor, Result, Stop, threads};
use crate::record;
use crate::repo::{
    self, BlobKind, Compression, Id, Index, NodeKind, RepoLock, Repository, Snapshot, Writer, WriterOptions,
    copy_blobs, read_tree,
};
use crate::retention::Policy;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Two locked repositories, and the points that the second one has already.
#[derive(Debug)]
pub struct Copier {
    source: Repository,
    index: Arc<Index>,
    _source_lock: Option<RepoLock>,
    /// The points of the source, oldest first.
    points: Vec<PointRef>,
    target: LockedRepo,
    writer: Writer,
    there: Copies,
    /// Trees that are in the target with everything below them.
    whole: HashSet<Id>,
    /// The machine of each point of the source; `None` if its manifest cannot be read.
    origins: OnceCell<Vec<Option<Origin>>>,
}

/// The blobs of a point that the target lacks.
#[derive(Debug, Default)]
struct MissingBlobs {
    data: Vec<Id>,
    trees: Vec<Id>,
    bytes: u64,
    /// Every tree of the point that was visited.
    seen: Vec<Id>,
}

impl Copier {
    /// Locks both repositories, then loads their indexes and points.
    pub fn open(
        source: &Repository,
        target: &Repository,
        compression: Compression,
        monitor: &dyn Monitor,
        stop: &Stop,
    ) -> Result<Copier> {
        let (source_lock, snapshots) = lock_and_list(source, monitor, stop)?;
        let (points, damaged) = points::of_snapshots(snapshots);
        let index = points::load_index_for_reading(source, monitor)?;
        for snapshot in damaged {
            monitor.warn(&format!("snapshot {} cannot be read: {}", snapshot.id, snapshot.error));
        }
        let target = LockedRepo::shared(target, stop)?;
        let there = Copies::of(target.view.points()?.iter().cloned());
        let options = WriterOptions { compression, ..WriterOptions::default() };
        let writer = Writer::new(&target.view.repo, Arc::clone(&target.view.index), options, &target.permit);
        failpoint::hit(Failpoint::CopyBegun);
        Ok(Copier {
            source: source.clone(),
            index,
            _source_lock: source_lock,
            points,
            target,
            writer,
            there,
            whole: HashSet::new(),
            origins: OnceCell::new(),
        })
    }

    /// Returns the source's point with this id, as a record names it.
    pub fn find(&self, id: &str) -> Result<PointRef> {
        let found = id.parse().ok().and_then(|id| self.points.iter().find(|point| point.is_or_was(&id))).cloned();
        found.ok_or_else(|| Error::NoSuchPoint {
            wanted: id.to_owned(),
            repo: self.source.url(),
            near: Vec::new(),
            known: None,
        })
    }

    /// Returns the points of a machine of this host that await their copy, oldest first; see [`Copies::await_copy`].
    /// `policy` is the target's.
    pub fn uncopied(&self, uuid: &str, policy: &Policy, now: record::Time) -> Result<Vec<PointRef>> {
        if self.points.iter().all(|point| self.there.copy_of(point).is_some()) {
            return Ok(Vec::new());
        }
        let known = self.points.iter().zip(self.origins()?);
        let known: Vec<(&PointRef, &Origin)> =
            known.filter_map(|(point, origin)| Some((point, origin.as_ref()?))).collect();
        let host = host_name();
        let machines = lineages(known.iter().copied());
        let Some(machine) = machines.iter().find(|machine| machine.uuid == uuid && machine.hosts.contains(&host))
        else {
            return Ok(Vec::new());
        };
        let of_machine: Vec<&PointRef> =
            known.iter().filter(|(_, origin)| machine.has(origin)).map(|(point, _)| *point).collect();
        let origin_there =
            |point: &PointRef| points::read_origin(&self.target.view.repo, &self.target.view.index, point);
        let awaits = self.there.await_copy((machine, &of_machine), policy, now, origin_there)?;
        Ok(of_machine.into_iter().zip(awaits).filter(|(_, awaits)| *awaits).map(|(point, _)| point.clone()).collect())
    }

    /// The machine of each point of the source, in the order of the points.
    fn origins(&self) -> Result<&[Option<Origin>]> {
        if let Some(origins) = self.origins.get() {
            return Ok(origins);
        }
        let read = |point| points::read_origin(&self.source, &self.index, point);
        let origins = self.points.iter().map(read).collect::<Result<_>>()?;
        Ok(self.origins.get_or_init(|| origins))
    }

    /// Copies a point and returns the record of the copy. A point that the target has already is left unchanged.
    pub fn copy(&mut self, point: &PointRef, monitor: &dyn Monitor, stop: &Stop) -> Result<record::Point> {
        let manifest = points::read_manifest(&self.source, &self.index, point)?;
        let mut copied = record::Copied {
            from_repo: self.source.url(),
            from_point: point.id.to_string(),
            already_there: false,
            new_bytes: 0,
            stored_bytes: 0,
        };
        if let Some(there) = self.there.copy_of(point) {
            tracing::info!("point {} of {} is there already", point.id.short(), point.machine());
            copied.already_there = true;
            let record = points::to_record(&self.target.view.repo, &there.id, &there.snapshot, &manifest);
            return Ok(record::Point { copied: Some(copied), ..record });
        }
        let before = self.writer.summary();
        let missing = self.missing(point, stop)?;
        self.transfer(point, missing, monitor, stop)?;
        failpoint::hit(Failpoint::CopyTransferred);
        let mut snapshot = Snapshot { parent: None, original: Some(persistent_id(point)), ..point.snapshot.clone() };
        // The machine of a live restore runs on the original, not on the copy.
        snapshot.tags.retain(|tag| !points::is_restoring(tag));
        let id = self.target.view.repo.save_snapshot(&snapshot, &self.target.permit)?;
        failpoint::hit(Failpoint::CopyStored);
        let after = self.writer.summary();
        copied.new_bytes = after.new_bytes - before.new_bytes;
        copied.stored_bytes = after.stored_bytes - before.stored_bytes;
        let record = points::to_record(&self.target.view.repo, &id, &snapshot, &manifest);
        self.there.add(PointRef { id, snapshot });
        Ok(record::Point { copied: Some(copied), ..record })
    }

    /// Finds the blobs that the target lacks, by reading trees only.
    fn missing(&self, point: &PointRef, stop: &Stop) -> Result<MissingBlobs> {
        let mut missing = MissingBlobs::default();
        let (mut ahead, mut known) = (vec![point.snapshot.tree], HashSet::new());
        while let Some(tree) = ahead.pop() {
            stop.check()?;
            if self.whole.contains(&tree) || !known.insert((BlobKind::Tree, tree)) {
                continue;
            }
            missing.seen.push(tree);
            if !self.writer.has(BlobKind::Tree, &tree) {
                missing.trees.push(tree);
            }
            let nodes = read_tree(&self.source, &self.index, &tree).map_err(|error| self.bad_tree(point, error))?.nodes;
            for node in nodes {
                match node.kind {
                    NodeKind::Dir { subtree } => ahead.push(subtree),
                    NodeKind::File { content, .. } => {
                        for (id, _) in content.runs() {
                            if known.insert((BlobKind::Data, id)) && !self.writer.has(BlobKind::Data, &id) {
                                let found = self.index.get(BlobKind::Data, &id);
                                missing.bytes += found.map_or(0, |found| u64::from(found.raw_length));
                                missing.data.push(id);
                            }
                        }
                    }
                    NodeKind::Other(_) => {}
                }
            }
        }
        Ok(missing)
    }

    fn bad_tree(&self, point: &PointRef, error: repo::Error) -> Error {
        match error.is_unreachable() {
            true => error.into(),
            false => Error::BadPoint { point: point.id.to_string(), reason: error.to_string() },
        }
    }

    /// Copies the missing blobs. They are durable when this returns.
    fn transfer(&mut self, point: &PointRef, missing: MissingBlobs, monitor: &dyn Monitor, stop: &Stop) -> Result<()> {
        let label = format!("{}@{}", point.machine(), point.id.short());
        let progress = monitor.start("copying", &label, missing.bytes);
        let broken = Mutex::new(BTreeMap::new());
        let from = (&self.source, &*self.index);
        for (kind, ids) in [(BlobKind::Data, missing.data), (BlobKind::Tree, missing.trees)] {
            let report = |id, stored: repo::Result<_>| match stored {
                Ok(_) => {
                    let found = self.index.get(kind, &id).filter(|_| kind == BlobKind::Data);
                    progress.advance(found.map_or(0, |found| u64::from(found.raw_length)));
                }
                Err(error) => {
                    broken.lock().unwrap_or_else(PoisonError::into_inner).insert(id, error.to_string());
                }
            };
            while_locked(&self.target.permit, stop, |stop| {
                Ok(copy_blobs(from, kind, ids, &self.writer, threads::for_disks(), &stop.flag(), report)?)
            })?;
        }
        let broken = broken.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !broken.is_empty() {
            let first = broken.values().next().cloned().unwrap_or_default();
            let damage = damage_of(&self.source, &self.index, point, broken, (monitor, stop))?;
            return Err(match damage.is_empty() {
                true => Error::BadPoint { point: point.id.to_string(), reason: first },
                false => Error::Damaged { point: point.id.to_string(), damage },
            });
        }
        self.writer.flush()?;
        stop.check()?;
        self.whole.extend(missing.seen);
        Ok(())
    }
}
