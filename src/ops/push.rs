//! Stores a captured machine in a repository. All data is stored by this path.
//!
//! The order of the last steps guarantees consistency (design: "The commit order"): packs, then index, then the
//! snapshot file, each durable before the next. The snapshot file is the commit. Without it, everything stored before
//! is unused data.

use super::chain::mismatch;
use super::chunk_map::{ChunkMap, Geometry, ZeroIds};
use super::guard::guarded;
use super::locked_repo::{LockedRepo, RepoView};
use super::manifest::{
    DEFINITION, EarlierHost, LIVE_DEFINITION, MANIFEST, Manifest, ManifestDisk, ManifestFile, ManifestOutsideFile,
    Role, version_of,
};
use super::offline_watch::while_unchanged;
use super::pieces;
use super::points::{self, MACHINE_TAG, OpenPoint, PointRef, TAG};
use super::repo_lock::while_locked;
use super::storable::check_storable;
use super::store::{Base, DiskTask, StoreOutcome, StoredDisk, store_disk};
use super::store::{damaged_points, lost_chunks};
use super::threads::Parallelism;
use super::{Error, Monitor, Progress, Result, Stop};
use crate::capture::domain_xml::tpm::FOLDER as TPM_FOLDER;
use crate::capture::parts::copies::OUTSIDE_FOLDER;
use crate::capture::state::{FileRole, ReadMode};
use crate::capture::{CaptureFile, CaptureState, CapturedDisk, Definition};
use crate::clock::CLOCK_SKEW;
use crate::failpoint::{self, Failpoint};
use crate::nbd::NbdUri;
use crate::rate_limiter::RateLimiter;
use crate::record::{self, Damage, LeftOut};
use crate::repo::{
    BlobKind, Compression, Content, Id, Node, Snapshot, Writer, WriterOptions, write_tree, write_tree_of_file,
};
use crate::units::ChunkSize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The maximum size of the blobs of a small file.
const SMALL_FILE_BLOB_BYTES: usize = 4 << 20;

/// The memory for the open packs of all machines that are stored in parallel, unless that makes packs too small.
const OPEN_PACKS_BYTES: usize = 64 << 20;
const SMALLEST_PACK_BYTES: usize = 8 << 20;

/// The default share of clean chunks that are read and compared.
pub(crate) const AUDIT: f64 = 0.001;

/// How far the dirty bitmaps are trusted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trust {
    /// The share of clean chunks that are read and compared anyway.
    pub(crate) audit: f64,
    /// Whether to read and compare everything.
    pub(crate) read_all: bool,
    /// The age of a disk's last full read after which everything is read and compared.
    pub(crate) read_all_every: Option<Duration>,
}

impl Default for Trust {
    fn default() -> Trust {
        Trust { audit: AUDIT, read_all: false, read_all_every: None }
    }
}

#[derive(Debug)]
pub(crate) struct PushRequest<'a> {
    /// The capture, locked by the caller.
    pub(crate) file: &'a CaptureFile,
    pub(crate) capture: &'a CaptureState,
    /// The SHA-256 of whole disks that the input contained, by target.
    pub(crate) sha256: BTreeMap<String, String>,
    pub(crate) trust: Trust,
    /// Limits the speed at which the disks are read.
    pub(crate) rate_limit: Option<&'a RateLimiter>,
    /// The chunk size. `None` keeps that of the disk's last point; new disks get one by their size.
    pub(crate) chunk_size: Option<ChunkSize>,
    /// The compression level of new data.
    pub(crate) compression: Compression,
    /// The threads and memory that this machine may use.
    pub(crate) parallelism: Parallelism,
}

/// Called after the last byte of the last disk was read, so that the job can end.
pub(crate) type AfterRead<'a> = &'a mut dyn FnMut() -> Result<()>;

/// Stores a capture as a point.
pub(crate) fn push(
    open: &LockedRepo,
    request: &PushRequest,
    monitor: &dyn Monitor,
    stop: &Stop,
    after_read: AfterRead,
) -> Result<record::Point> {
    let (capture, host) = (request.capture, super::inventory::host_name());
    let LockedRepo { view, permit } = open;
    let (base, is_base_damaged) = base_point(view, capture, &host)?;
    let (earlier, is_earlier_damaged) = match &base {
        Some(base) if base.manifest.host == host => (None, false),
        _ => newest_point(view, capture, &host)?,
    };
    if is_base_damaged || is_earlier_damaged {
        monitor
            .warn(&format!("the newest point of {} is damaged, so the backup does not continue it", capture.machine));
    }
    warn_of_clock(view, capture, &host, monitor)?;
    let reference = base.as_ref().or(earlier.as_ref());
    let definition = Definition::parse(capture.definition_of_disks()).map_err(crate::capture::Error::from)?;

    let (compression, parallelism) = (request.compression, request.parallelism);
    let options = WriterOptions { compression, writers: parallelism.machines, ..WriterOptions::default() };
    let pack_bytes = parallelism.share(OPEN_PACKS_BYTES).clamp(SMALLEST_PACK_BYTES, options.pack_bytes);
    let options = WriterOptions { pack_bytes, ..options };
    let writer = Writer::new(&view.repo, Arc::clone(&view.index), options, permit);
    let reading = CaptureReading {
        request,
        base: base.as_ref(),
        reference,
        writer: &writer,
        monitor,
        has_lost: AtomicBool::new(is_base_damaged || is_earlier_damaged),
    };
    if capture.disks.iter().any(|disk| disk.read_mode == ReadMode::Full) {
        view.repo.storage().warm_up(view.repo.storage().parallel());
    }
    let read = while_locked(permit, stop, |stop| {
        guarded(request.file, capture, stop, |stop| {
            while_unchanged(capture, stop, |stop| {
                // The writer must see the flag too, because a thread may be waiting for a slow upload.
                writer.end_with(stop.flag());
                capture.disks.iter().try_for_each(|disk| reading.check_storable(disk, stop))?;
                capture.disks.iter().map(|disk| reading.disk(disk, stop)).collect::<Result<Vec<_>>>()
            })
        })
    })?;
    let has_lost = reading.has_lost.load(Ordering::Relaxed);
    failpoint::hit(Failpoint::AllRead);
    after_read()?;
    failpoint::hit(Failpoint::JobEnded);

    let checkpoint = checkpoint_of(capture, base.as_ref(), &read);
    let mut folder = PointFolder::new(&writer, capture.captured_at);
    let mut disks = Vec::new();
    for (disk, read) in capture.disks.iter().zip(&read) {
        folder.add_disk(&disk.target, read, reference)?;
        let described = definition.disk(&disk.target);
        disks.push(ManifestDisk {
            disk: disk.target.clone(),
            capacity_bytes: read.stored.capacity_bytes,
            chunk_bytes: read.chunk_bytes,
            split_chunks: pieces::ranges_to_text(read.stored.map.split_chunks()),
            format: disk.format.clone(),
            source: described.map_or(record::Source::Unknown, |d| super::inventory::source(&d.source)),
            layers: disk.image.iter().filter_map(|layer| serde_json::to_value(layer).ok()).collect(),
            owner: disk.owner,
            session: disk.session.clone(),
            in_checkpoint: match capture.checkpoint {
                Some(_) => disk.has_new_bitmap,
                None => checkpoint.is_some() && read.continues,
            },
            read_mode: super::inventory::read_mode(read.mode).into(),
            read_mode_reason: read.reason.clone(),
            distrusts: match read.chain_damage.is_empty() {
                true => disk.distrusts.clone(),
                false => disk.parent_checkpoint.clone(),
            },
            read_in_full_at: read.in_full_at,
            read_bytes: read.stored.read_bytes,
            new_bytes: read.stored.new_bytes,
            stored_bytes: read.stored.stored_bytes,
            sha256: request.sha256.get(&disk.target).cloned(),
        });
    }
    let files = folder.add_copies(request.file, capture)?;
    let outside_files = folder.add_outside(request.file, capture)?;
    folder.add_file(DEFINITION, capture.definition_xml.as_bytes())?;
    if let Some(live) = &capture.live_definition_xml {
        folder.add_file(LIVE_DEFINITION, live.as_bytes())?;
    }
    let continued = base.as_ref().filter(|_| read.iter().any(|disk| disk.continues));
    let parent = continued.map(|base| base.id);
    let known = [continued, base.as_ref(), earlier.as_ref()];
    let earlier_hosts = earlier_hosts(known.into_iter().flatten(), parent, &host, capture.captured_at);
    let elapsed = chrono::Utc::now().signed_duration_since(capture.captured_at);
    let manifest = Manifest {
        version: version_of(&disks),
        program: program(),
        machine: capture.machine.clone(),
        uuid: capture.uuid.clone(),
        host: host.clone(),
        earlier_hosts,
        connect: capture.connect.clone(),
        captured_at: capture.captured_at,
        consistency: capture.consistency.as_str().to_owned(),
        checkpoint,
        parent: parent.map(|parent| parent.to_string()),
        duration_seconds: (elapsed.num_milliseconds().max(0) as f64) / 1000.0,
        disks,
        files,
        outside_files,
        left_out: left_out(capture),
        autostart: Some(capture.autostart),
        snapshots: capture.snapshots.clone(),
    };
    folder.add_file(MANIFEST, &manifest.to_json())?;
    let tree = folder.finish(&capture.machine)?;

    writer.finish()?;
    failpoint::hit(Failpoint::IndexStored);
    stop.check()?;
    let mut snapshot = Snapshot::new(tree, vec![format!("/{}", capture.machine)]);
    snapshot.time = capture.captured_at;
    snapshot.parent = parent;
    snapshot.hostname = host;
    snapshot.tags = vec![TAG.into(), format!("{MACHINE_TAG}{}", capture.machine)];
    snapshot.program_version = program();
    let id = view.repo.save_snapshot(&snapshot, permit)?;
    failpoint::hit(Failpoint::PointStored);
    request.file.commit(&id.to_string())?;
    failpoint::hit(Failpoint::CommitNoted);

    let mut record = points::to_record(&view.repo, &id, &snapshot, &manifest);
    record.capture = Some(capture.id.clone());
    if has_lost {
        // The point is committed. A failure to check the other points is not a failure of this one.
        record.damaged_points = damaged_points(view).unwrap_or_else(|error| {
            monitor.warn(&format!("cannot determine which points lack data: {error}; run 'kvmb verify --all'"));
            Vec::new()
        });
    }
    record.chain_damage = read.into_iter().flat_map(|disk| disk.chain_damage).collect();
    Ok(record)
}

/// Warns if the machine has a point that is dated after the capture: the clock is wrong, or was wrong then. `@latest`
/// then names an older state, and retention rules may remove the new point first.
fn warn_of_clock(view: &RepoView, capture: &CaptureState, host: &str, monitor: &dyn Monitor) -> Result<()> {
    let of_machine = |point: &&PointRef| point.machine() == capture.machine && point.snapshot.hostname == host;
    let newest = view.points()?.iter().rev().find(of_machine).map(|point| point.snapshot.time);
    if let Some(newest) = newest.filter(|newest| *newest > capture.captured_at + CLOCK_SKEW) {
        let newest = newest.with_timezone(&capture.captured_at.timezone());
        monitor.warn(&format!(
            "the newest point of {} is dated {}, after this backup; check the clock of this host",
            capture.machine,
            newest.format("%Y-%m-%d %H:%M:%S %:z")
        ));
    }
    Ok(())
}

/// Returns the point that the capture continues, if there is one, and whether that point or the machine's newest one
/// exists but is damaged.
fn base_point(view: &RepoView, capture: &CaptureState, host: &str) -> Result<(Option<OpenPoint>, bool)> {
    let Some(id) = capture.parent_point.as_ref().and_then(|id| id.parse::<Id>().ok()) else {
        return Ok((None, false));
    };
    let Some(point) = view.points()?.iter().find(|point| point.is_or_was(&id)) else {
        return Ok((None, false));
    };
    let base = whole(view.point(point))?;
    let mut is_damaged = base.is_none();
    // The newest point would have been continued if it were intact.
    let of_machine = |other: &&PointRef| other.machine() == capture.machine && other.snapshot.hostname == host;
    if let Some(newest) = view.points()?.iter().rev().find(of_machine).filter(|newest| newest.id != point.id) {
        is_damaged |= whole(view.manifest(newest))?.is_none();
    }
    Ok((base, is_damaged))
}

/// Returns `None` for damaged data, which can be neither continued nor used as a reference. An unreachable repository
/// is an error.
fn whole<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(Error::Repo(error)) if error.is_unreachable() => Err((*error).into()),
        Err(Error::Interrupted) => Err(Error::Interrupted),
        Err(error) => {
            tracing::warn!(%error, "a point is damaged");
            Ok(None)
        }
    }
}

/// Returns the newest point with the machine's name and UUID, for the chunk sizes of its disks and for unchanged
/// folders. Points of this host come first, because another host may have a different machine with the same UUID. Also
/// returns whether a damaged point was found.
fn newest_point(view: &RepoView, capture: &CaptureState, host: &str) -> Result<(Option<OpenPoint>, bool)> {
    /// The number of points of other machines with the same name that are skipped.
    const DEPTH: usize = 20;
    let named = view.points()?.iter().rev().filter(|point| point.machine() == capture.machine);
    let (here, elsewhere): (Vec<&PointRef>, Vec<&PointRef>) = named.partition(|point| point.snapshot.hostname == host);
    let mut has_damage = false;
    for points in [here, elsewhere] {
        for point in points.into_iter().take(DEPTH) {
            match whole(view.manifest(point))? {
                Some(manifest) if manifest.uuid == capture.uuid => {
                    let found = whole(view.point(point))?;
                    has_damage |= found.is_none();
                    return Ok((found, has_damage));
                }
                Some(_) => {}
                None => has_damage = true,
            }
        }
    }
    Ok((None, has_damage))
}

/// Returns the hosts that the machine was on before this one, according to its known points and the point that it
/// continues now.
fn earlier_hosts<'a>(
    known: impl Iterator<Item = &'a OpenPoint>,
    parent: Option<Id>,
    host: &str,
    now: record::Time,
) -> Vec<EarlierHost> {
    let mut left: BTreeMap<String, record::Time> = BTreeMap::new();
    for point in known {
        let manifest = &point.manifest;
        let is_continued = Some(point.id) == parent;
        // A point of another host that is not continued may belong to a different machine with the same UUID.
        if !is_continued && manifest.host != host {
            continue;
        }
        for earlier in &manifest.earlier_hosts {
            left.entry(earlier.host.clone()).or_insert(earlier.left_at);
        }
        if is_continued {
            left.entry(manifest.host.clone()).or_insert(now);
        }
    }
    left.remove(host);
    left.into_iter().map(|(host, left_at)| EarlierHost { host, left_at }).collect()
}

/// Returns the checkpoint that the next backup can continue from. A stopped machine makes no checkpoint. But if nothing
/// was dirty since the parent's checkpoint, that one is still valid for the new point.
fn checkpoint_of(capture: &CaptureState, base: Option<&OpenPoint>, read: &[ReadDisk]) -> Option<String> {
    if capture.checkpoint.is_some() || capture.job().is_some() {
        return capture.checkpoint.clone();
    }
    let mut chained = capture.disks.iter().zip(read).filter(|(disk, _)| disk.dirty_context.is_some()).peekable();
    chained.peek()?;
    let passes_on = chained.all(|(_, read)| read.continues && read.stored.is_unchanged);
    base.filter(|_| passes_on)?.manifest.checkpoint.clone()
}

fn manifest_disk<'a>(point: &'a OpenPoint, disk: &str) -> Option<&'a ManifestDisk> {
    point.manifest.disks.iter().find(|known| known.disk == disk)
}

/// The result of reading one disk.
struct ReadDisk {
    stored: StoredDisk,
    chunk_bytes: u32,
    mode: ReadMode,
    reason: Option<String>,
    /// Whether its clean chunks were taken from the parent, or compared with it.
    continues: bool,
    in_full_at: Option<record::Time>,
    chain_damage: Vec<Damage>,
}

/// The address at which a disk can be read.
fn nbd_uri(disk: &CapturedDisk) -> Result<NbdUri> {
    disk.nbd_uri.parse().map_err(|source| Error::NbdAddress { disk: disk.target.clone(), source })
}

/// The state shared by the reads of a capture's disks.
struct CaptureReading<'a> {
    request: &'a PushRequest<'a>,
    base: Option<&'a OpenPoint>,
    reference: Option<&'a OpenPoint>,
    writer: &'a Writer,
    monitor: &'a dyn Monitor,
    /// Whether the repository lacks a chunk of the parent.
    has_lost: AtomicBool,
}

impl CaptureReading<'_> {
    /// Refuses a disk that could not be stored, before it is read.
    fn check_storable(&self, disk: &CapturedDisk, stop: &Stop) -> Result<()> {
        let geometry = Geometry { capacity_bytes: disk.capacity_bytes, chunk_bytes: self.chunk_bytes(disk) };
        check_storable(&disk.target, &nbd_uri(disk)?, geometry, stop)
    }

    /// Reads the changed parts of a disk if they are known for certain, otherwise all of it.
    fn disk(&self, disk: &CapturedDisk, stop: &Stop) -> Result<ReadDisk> {
        let uri = nbd_uri(disk)?;
        let label = format!("{}/{}", self.request.capture.machine, disk.target);
        let progress = self.monitor.start("reading", &label, disk.capacity_bytes);
        let chunk_bytes = self.chunk_bytes(disk);
        let whole = DiskTask {
            disk: &disk.target,
            uri: &uri,
            capacity_bytes: disk.capacity_bytes,
            chunk_bytes,
            base: None,
            earlier: None,
            rate_limit: self.request.rate_limit,
            parallelism: self.request.parallelism,
        };
        match self.continuation(disk, chunk_bytes)? {
            Err(reason) => {
                let earlier = self.earlier_map(disk, chunk_bytes)?;
                let whole = DiskTask { earlier: earlier.as_ref(), ..whole };
                self.in_full(&whole, reason, Vec::new(), &*progress, stop)
            }
            Ok((bitmap, then, map)) => {
                let (audit, due) = (self.request.trust.audit, self.is_due(then));
                let (lost, capacity_bytes) = (lost_chunks(&map, self.writer), then.capacity_bytes);
                if !lost.is_empty() {
                    let count: u64 = lost.iter().map(|(_, count)| count).sum();
                    self.has_lost.store(true, Ordering::Relaxed);
                    self.monitor.warn(&format!("{label}: the repository has lost {count} chunks; reading them again"));
                }
                let base = Base { bitmap, map: &map, lost: &lost, capacity_bytes, audit, read_all: due.is_some() };
                let task = DiskTask { base: Some(base), earlier: Some(&map), ..whole };
                match store_disk(&task, self.writer, &*progress, stop)? {
                    StoreOutcome::Stored(stored) => {
                        let chain_damage =
                            self.chain_damage(disk, task.chunk_bytes, stored.capacity_bytes, &stored.bitmap_mismatches);
                        Ok(ReadDisk {
                            chunk_bytes: task.chunk_bytes,
                            mode: if due.is_some() { ReadMode::Full } else { ReadMode::Changed },
                            in_full_at: if due.is_some() {
                                Some(self.request.capture.captured_at)
                            } else {
                                then.read_in_full_at
                            },
                            // A bitmap that missed changes is not used again.
                            continues: stored.bitmap_mismatches.is_empty(),
                            reason: due,
                            stored,
                            chain_damage,
                        })
                    }
                    StoreOutcome::BitmapInvalid { reason, bitmap_mismatches } => {
                        let damage = self.chain_damage(disk, task.chunk_bytes, disk.capacity_bytes, &bitmap_mismatches);
                        self.monitor.warn(&format!("{label}: {reason}; reading the disk in full"));
                        let whole = DiskTask { base: None, ..task };
                        // The progress restarts because the whole disk is read.
                        drop(progress);
                        let progress = self.monitor.start("reading", &label, disk.capacity_bytes);
                        self.in_full(&whole, Some(reason), damage, &*progress, stop)
                    }
                }
            }
        }
    }

    /// The chunk size of a disk: the requested one, else that of its last point, else the default for its size.
    fn chunk_bytes(&self, disk: &CapturedDisk) -> u32 {
        let known = || self.reference.and_then(|point| manifest_disk(point, &disk.target)).map(|disk| disk.chunk_bytes);
        let asked_for = self.request.chunk_size.map(ChunkSize::bytes);
        asked_for.or_else(known).unwrap_or_else(|| ChunkSize::for_disk(disk.capacity_bytes).bytes())
    }

    /// The chunks of a disk's last point, if some of them are stored in pieces.
    fn earlier_map(&self, disk: &CapturedDisk, chunk_bytes: u32) -> Result<Option<ChunkMap>> {
        let Some(point) = self.reference else { return Ok(None) };
        let known = manifest_disk(point, &disk.target);
        let known = known.filter(|known| known.chunk_bytes == chunk_bytes && !known.split_chunks.is_empty());
        known.map(|known| point.chunk_map(known)).transpose()
    }

    /// Returns what a disk continues (the bitmap, the parent's disk and its chunks), or why it cannot continue.
    #[allow(clippy::type_complexity)]
    fn continuation<'s>(
        &'s self,
        disk: &'s CapturedDisk,
        chunk_bytes: u32,
    ) -> Result<std::result::Result<(&'s str, &'s ManifestDisk, ChunkMap), Option<String>>> {
        let Some(bitmap) = &disk.dirty_context else {
            return Ok(Err(disk.read_mode_reason.clone()));
        };
        let refuse = |reason: &str| Ok(Err(Some(reason.to_owned())));
        let Some(base) = self.base else {
            return refuse("the parent point is missing or damaged");
        };
        if base.manifest.checkpoint.as_ref() != disk.parent_checkpoint.as_ref() {
            return refuse("the bitmap was not made with the parent point");
        }
        let Some(then) = manifest_disk(base, &disk.target).filter(|then| then.in_checkpoint) else {
            return refuse("the parent point's checkpoint does not cover it");
        };
        if then.chunk_bytes != chunk_bytes {
            return refuse("the chunk size has changed");
        }
        if let Some(reason) = mismatch(disk, then) {
            return Ok(Err(Some(reason)));
        }
        Ok(Ok((bitmap, then, base.chunk_map(then)?)))
    }

    /// Returns why the whole disk must be read and compared, if it must.
    fn is_due(&self, then: &ManifestDisk) -> Option<String> {
        if self.request.trust.read_all {
            return Some("requested".into());
        }
        let every = chrono::Duration::from_std(self.request.trust.read_all_every?).ok()?;
        let due = then.read_in_full_at.is_none_or(|at| self.request.capture.captured_at - at >= every);
        due.then(|| "due for a full read".into())
    }

    fn in_full(
        &self,
        task: &DiskTask,
        reason: Option<String>,
        chain_damage: Vec<Damage>,
        progress: &dyn Progress,
        stop: &Stop,
    ) -> Result<ReadDisk> {
        match store_disk(task, self.writer, progress, stop)? {
            StoreOutcome::Stored(stored) => Ok(ReadDisk {
                stored,
                chunk_bytes: task.chunk_bytes,
                mode: ReadMode::Full,
                reason,
                continues: false,
                in_full_at: Some(self.request.capture.captured_at),
                chain_damage,
            }),
            StoreOutcome::BitmapInvalid { reason, .. } => Err(Error::DiskMap { disk: task.disk.to_owned(), reason }),
        }
    }

    fn chain_damage(
        &self,
        disk: &CapturedDisk,
        chunk_bytes: u32,
        capacity_bytes: u64,
        lies: &[(u64, u64)],
    ) -> Vec<Damage> {
        let geometry = Geometry { capacity_bytes, chunk_bytes };
        let parent = self.base.map(|base| base.id.short()).unwrap_or_default();
        lies.iter()
            .map(|(first, count)| {
                let offset = geometry.offset(*first);
                Damage {
                    disk: Some(disk.target.clone()),
                    offset_bytes: Some(offset),
                    length_bytes: Some(geometry.offset(first + count).min(capacity_bytes).saturating_sub(offset)),
                    file: None,
                    error: format!("changed, but the dirty bitmap missed it: point {parent} may be wrong here"),
                }
            })
            .collect()
    }
}

/// The parts of the machine that the capture lacks.
fn left_out(capture: &CaptureState) -> Vec<LeftOut> {
    let text = |path: &Path| Some(path.to_string_lossy().into_owned());
    let disks = capture.skipped.iter().map(|skipped| LeftOut {
        disk: Some(skipped.target.clone()),
        part: None,
        path: skipped.path.as_deref().and_then(text),
        reason: skipped.reason.clone(),
    });
    let part = |part: &str, path: &Path, reason: &str| LeftOut {
        disk: None,
        part: Some(part.to_owned()),
        path: text(path),
        reason: reason.to_owned(),
    };
    let parts = capture.missing.iter().map(|missing| part(missing.role.as_str(), &missing.origin, &missing.reason));
    let others = capture.outside_left_out.iter().map(|other| part(&other.part, &other.origin, &other.reason));
    disks.chain(parts).chain(others).collect()
}

/// The program and version that write the point.
fn program() -> String {
    concat!("kvmb ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// The machine's folder while it is built.
struct PointFolder<'a> {
    writer: &'a Writer,
    time: record::Time,
    nodes: Vec<Node>,
}

impl<'a> PointFolder<'a> {
    fn new(writer: &'a Writer, time: record::Time) -> PointFolder<'a> {
        PointFolder { writer, time, nodes: Vec::new() }
    }

    fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut content = Content::default();
        for piece in bytes.chunks(SMALL_FILE_BLOB_BYTES) {
            content.push(self.writer.put(BlobKind::Data, piece)?.id);
        }
        self.nodes.push(Node::file(name, self.time, bytes.len() as u64, content));
        Ok(())
    }

    /// Adds the copied firmware variables, kernel and initrd, and the TPM's state in a folder of its own.
    fn add_copies(&mut self, file: &CaptureFile, capture: &CaptureState) -> Result<Vec<ManifestFile>> {
        let mut files = Vec::new();
        let mut tpm = PointFolder::new(self.writer, self.time);
        for copy in &capture.copies {
            let path = file.folder().join(&copy.name);
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            let (role, name) = match copy.role {
                FileRole::Nvram => (Role::Nvram, "nvram"),
                FileRole::Kernel => (Role::Kernel, "kernel"),
                FileRole::Initrd => (Role::Initrd, "initrd"),
                FileRole::Tpm => (Role::Tpm, &*copy.name),
            };
            match name.strip_prefix(TPM_FOLDER) {
                Some(inner) => tpm.add_file(inner, &bytes)?,
                None => self.add_file(name, &bytes)?,
            }
            let path = copy.origin.to_string_lossy().into_owned();
            files.push(ManifestFile { name: name.into(), role, path, size_bytes: bytes.len() as u64 });
        }
        if !tpm.nodes.is_empty() {
            let subtree = write_tree(self.writer, &tpm.nodes)?;
            self.nodes.push(Node::dir(TPM_FOLDER.trim_end_matches('/'), self.time, subtree));
        }
        Ok(files)
    }

    /// Adds the files that the definition references, in a folder of their own.
    fn add_outside(&mut self, file: &CaptureFile, capture: &CaptureState) -> Result<Vec<ManifestOutsideFile>> {
        let mut files = Vec::new();
        let mut folder = PointFolder::new(self.writer, self.time);
        for copy in &capture.outside {
            let path = file.folder().join(&copy.name);
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            folder.add_file(copy.name.strip_prefix(OUTSIDE_FOLDER).unwrap_or(&copy.name), &bytes)?;
            files.push(ManifestOutsideFile {
                name: copy.name.clone(),
                part: copy.part.clone(),
                path: copy.origin.to_string_lossy().into_owned(),
                size_bytes: bytes.len() as u64,
                mode: copy.mode,
            });
        }
        if !folder.nodes.is_empty() {
            folder.nodes.sort_by(|a, b| a.name.cmp(&b.name));
            let subtree = write_tree(self.writer, &folder.nodes)?;
            self.nodes.push(Node::dir(OUTSIDE_FOLDER.trim_end_matches('/'), self.time, subtree));
        }
        Ok(files)
    }

    /// Adds a disk. If it is identical to the parent's, the parent's folder is used, so that no new tree is stored.
    fn add_disk(&mut self, disk: &str, read: &ReadDisk, earlier: Option<&OpenPoint>) -> Result<()> {
        let stored = &read.stored;
        let geometry = Geometry { capacity_bytes: stored.capacity_bytes, chunk_bytes: read.chunk_bytes };
        let unchanged = earlier
            .filter(|point| point.map_of(disk).is_some_and(|known| known == (geometry, &stored.map)))
            .and_then(|point| point.disk_trees.get(disk).copied());
        let subtree = match unchanged {
            Some(tree) => tree,
            None => {
                let (name, zeros) = (format!("{disk}.raw"), ZeroIds::of(geometry));
                let blobs = || stored.map.blobs(geometry, zeros);
                write_tree_of_file(self.writer, (&name, self.time), stored.capacity_bytes, blobs)?
            }
        };
        self.nodes.push(Node::dir(disk, self.time, subtree));
        Ok(())
    }

    fn finish(mut self, machine: &str) -> Result<Id> {
        self.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let folder = write_tree(self.writer, &self.nodes)?;
        Ok(write_tree(self.writer, &[Node::dir(machine, self.time, folder)])?)
    }
}
