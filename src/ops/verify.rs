//! Verifies points: the data of a repository is trusted only after it was read back and its SHA-256 compared.

use super::chunk_map::{BlobRun, ChunkMap, Geometry, ZeroIds};
use super::manifest::ManifestDisk;
use super::points::{self, OpenPoint, PointRef};
use super::verify_sampling::Sector;
use super::{Error, Monitor, Result, Stop, threads};
use crate::record::{self, Damage};
use crate::repo::{self, BlobKind, Id, Index, PlaceSet, Repository, read_blobs};
use crate::storage::FileKind;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Mutex;

/// How much `verify` reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum VerifyDepth {
    /// Structure, and every chunk.
    Full,
    /// Structure, and the chunks in this sector of the circle of ids.
    Sample(Sector),
    /// Structure only: manifests, trees and index, and that every pack exists and is long enough.
    Quick,
}

impl VerifyDepth {
    /// The word for `verified` in records.
    pub(crate) fn word(self) -> &'static str {
        match self {
            VerifyDepth::Full => "full",
            VerifyDepth::Sample(_) => "sample",
            VerifyDepth::Quick => "quick",
        }
    }
}

/// The parts of a point that are affected by blobs known to be damaged.
pub(super) fn damage_of(
    repo: &Repository,
    index: &Index,
    point: &PointRef,
    broken: BTreeMap<Id, String>,
    (monitor, stop): (&dyn Monitor, &Stop),
) -> Result<Vec<Damage>> {
    let mut verifier = Verifier::new(repo, index, VerifyDepth::Quick)?;
    verifier.broken = broken;
    Ok(verifier.verify(point, monitor, stop)?.damage)
}

/// Verifies the points of a repository, one after the other. Chunks that several of them share are read once.
#[derive(Debug)]
pub(crate) struct Verifier<'a> {
    repo: &'a Repository,
    index: &'a Index,
    depth: VerifyDepth,
    pack_sizes: HashMap<Id, u64>,
    /// The chunks that were read and are intact. Chunks that the index has from its copy on this host are not included.
    intact: PlaceSet,
    broken: BTreeMap<Id, String>,
}

impl<'a> Verifier<'a> {
    /// Reads the sizes of the packs. [`Verifier::verify`] then reads the points.
    pub(crate) fn new(repo: &'a Repository, index: &'a Index, depth: VerifyDepth) -> Result<Verifier<'a>> {
        let packs = repo.storage().list(FileKind::Pack).map_err(repo::Error::from)?;
        let pack_sizes =
            packs.into_iter().filter_map(|file| Some((file.name.parse().ok()?, file.size_bytes))).collect();
        Ok(Verifier { repo, index, depth, pack_sizes, intact: PlaceSet::new(index), broken: BTreeMap::new() })
    }

    /// Verifies one point. Damage is not an error: it is listed in the record, whose `verified` is false.
    pub(crate) fn verify(&mut self, point: &PointRef, monitor: &dyn Monitor, stop: &Stop) -> Result<record::Point> {
        let opened = match points::open_with_damage(self.repo, self.index, point) {
            Ok(opened) => opened,
            Err(Error::BadPoint { reason, .. }) => return Ok(self.unreadable(point, reason)),
            Err(other) => return Err(other),
        };
        let mut record = opened.to_record(self.repo);
        let mut maps = Vec::new();
        for disk in &opened.manifest.disks {
            match opened.chunk_map(disk) {
                Ok(map) => maps.push((disk, map)),
                Err(Error::BadPoint { reason, .. }) => record.damage.push(Damage {
                    disk: Some(disk.disk.clone()),
                    offset_bytes: Some(0),
                    length_bytes: Some(disk.capacity_bytes),
                    file: None,
                    error: reason,
                }),
                Err(other) => return Err(other),
            }
        }
        record.damage.extend(damage_of_folders(&opened));
        let wanted = self.wanted(&opened);
        let label = format!("{}@{}", record.machine, opened.id.short());
        self.verify_blobs(wanted, &label, monitor, stop)?;
        for (disk, map) in &maps {
            self.damage_of_disk(disk, map, &mut record.damage);
        }
        self.damage_of_small_files(&opened, &mut record.damage);
        record.verified_at = Some(chrono::Local::now().fixed_offset());
        record.verified = Some(if record.damage.is_empty() { self.depth.word().into() } else { false.into() });
        Ok(record)
    }

    /// The record of a point whose description is unreadable: the data of the snapshot file, and the damage.
    fn unreadable(&self, point: &PointRef, reason: String) -> record::Point {
        record::Point {
            point: point.id.to_string(),
            short_id: point.id.short(),
            repo: self.repo.url(),
            machine: point.machine().to_owned(),
            uuid: String::new(),
            host: point.snapshot.hostname.clone(),
            captured_at: point.snapshot.time,
            consistency: "unknown".into(),
            parent: None,
            pinned: point.is_pinned(),
            original: point.snapshot.original.map(|id| id.to_string()),
            copied: None,
            capture: None,
            batch: None,
            batch_machines: None,
            disks: Vec::new(),
            read_bytes: 0,
            new_bytes: 0,
            stored_bytes: 0,
            files: Vec::new(),
            left_out: Vec::new(),
            duration_seconds: None,
            chain_damage: Vec::new(),
            damaged_points: Vec::new(),
            verified_at: None,
            verified: Some(false.into()),
            damage: vec![Damage { disk: None, offset_bytes: None, length_bytes: None, file: None, error: reason }],
            restored_to: None,
            extra: Default::default(),
        }
    }

    /// The distinct blobs of a point that were not verified yet.
    fn wanted(&self, opened: &OpenPoint) -> Vec<Id> {
        let is_intact = |id: &Id| self.intact.contains_blob(self.index, BlobKind::Data, id);
        let is_new = |id: &Id| !is_intact(id) && !self.broken.contains_key(id);
        let mut wanted: Vec<Id> = opened.blobs().filter(is_new).collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    fn verify_blobs(&mut self, wanted: Vec<Id>, label: &str, monitor: &dyn Monitor, stop: &Stop) -> Result<()> {
        let (mut to_read, mut total_bytes) = (Vec::new(), 0);
        for id in wanted {
            if let Err(why) = self.located(&id) {
                self.broken.insert(id, why);
                continue;
            }
            let read = match self.depth {
                VerifyDepth::Full => true,
                VerifyDepth::Sample(sector) => sector.contains(&id),
                VerifyDepth::Quick => false,
            };
            if read {
                total_bytes += self.index.get(BlobKind::Data, &id).map_or(0, |found| u64::from(found.raw_length));
                to_read.push(id);
            }
        }
        if to_read.is_empty() {
            return Ok(());
        }
        let progress = monitor.start("verifying", label, total_bytes);
        let results = Mutex::new((Vec::new(), Vec::new()));
        read_blobs(self.repo, self.index, to_read, threads::for_disks(), &stop.flag(), |id, blob| {
            let mut results = results.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            match blob {
                Ok(bytes) => {
                    progress.advance(bytes.len() as u64);
                    results.0.push(id);
                }
                Err(error) => results.1.push((id, error.to_string())),
            }
            ControlFlow::Continue(())
        })?;
        stop.check()?;
        let (intact, broken) = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        for id in intact {
            self.intact.insert_blob(self.index, BlobKind::Data, &id);
        }
        self.broken.extend(broken);
        Ok(())
    }

    /// Whether the index has a location of the blob in a pack that exists and is long enough.
    fn located(&self, id: &Id) -> std::result::Result<(), String> {
        let mut why = "the chunk is not in any index".to_owned();
        for found in self.index.locations(BlobKind::Data, id) {
            let end = u64::from(found.offset) + u64::from(found.length);
            match self.pack_sizes.get(&found.pack) {
                None => why = format!("pack {} is missing", found.pack),
                Some(size) if *size < end => why = format!("pack {} is too short", found.pack),
                Some(_) => return Ok(()),
            }
        }
        Err(why)
    }

    fn file_of(&self, id: &Id) -> Option<String> {
        let pack = self.index.get(BlobKind::Data, id)?.pack.to_string();
        Some(format!("data/{}/{pack}", &pack[..2]))
    }

    fn damage_of_disk(&self, disk: &ManifestDisk, map: &ChunkMap, damage: &mut Vec<Damage>) {
        let geometry = Geometry { capacity_bytes: disk.capacity_bytes, chunk_bytes: disk.chunk_bytes };
        let zeros = ZeroIds::of(geometry);
        let first_new = damage.len();
        for run in map.blob_runs(geometry) {
            let (id, error) = match run.id {
                Some(id) => (id, self.chunk_error(&id, run)),
                // kvmb does not need the zero blobs to restore zeros, but restic does.
                None => {
                    let tail = zeros.tail.filter(|_| run.end() == disk.capacity_bytes);
                    let mut needed = [Some(zeros.whole), tail].into_iter().flatten();
                    let broken = needed.find_map(|id| Some((id, self.broken.get(&id)?.clone())));
                    broken.map_or((zeros.whole, None), |(id, error)| (id, Some(error)))
                }
            };
            let Some(error) = error else { continue };
            let BlobRun { offset, length, .. } = run;
            match damage[first_new..].last_mut() {
                // Adjacent damage with the same cause is reported as one place.
                Some(last)
                    if last.error == error
                        && last.offset_bytes.zip(last.length_bytes).is_some_and(|(o, l)| o + l == offset) =>
                {
                    last.length_bytes = last.length_bytes.map(|l| l + length);
                }
                _ => damage.push(Damage {
                    disk: Some(disk.disk.clone()),
                    offset_bytes: Some(offset),
                    length_bytes: Some(length),
                    file: self.file_of(&id),
                    error,
                }),
            }
        }
    }

    fn chunk_error(&self, id: &Id, run: BlobRun) -> Option<String> {
        if let Some(error) = self.broken.get(id) {
            return Some(error.clone());
        }
        let found = self.index.get(BlobKind::Data, id).map(|found| u64::from(found.raw_length));
        let wanted = run.blob_bytes.min(run.length);
        let even = run.length.is_multiple_of(wanted);
        (found != Some(wanted) || !even).then(|| format!("chunk {} has the wrong length", id.short()))
    }

    fn damage_of_small_files(&self, opened: &OpenPoint, damage: &mut Vec<Damage>) {
        for (name, (_, content)) in &opened.files {
            for (id, _) in content.runs() {
                if let Some(error) = self.broken.get(&id) {
                    let error = format!("{name}: {error}");
                    damage.push(Damage {
                        disk: None,
                        offset_bytes: None,
                        length_bytes: None,
                        file: self.file_of(&id),
                        error,
                    });
                }
            }
        }
    }
}

/// Folders other than those of disks that cannot be read: the TPM's state, and files that the definition references.
fn damage_of_folders(opened: &OpenPoint) -> impl Iterator<Item = Damage> {
    let is_disk = |name: &String| opened.manifest.disks.iter().any(|disk| disk.disk == *name);
    opened.broken.iter().filter(move |(name, _)| !is_disk(name)).map(|(_, reason)| Damage {
        disk: None,
        offset_bytes: None,
        length_bytes: None,
        file: None,
        error: reason.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Silent;
    use crate::repo::{Content, LockMode, Node, Password, Snapshot, Writer, WriterOptions, write_tree};
    use crate::storage::testing::MemoryStorage;
    use std::sync::Arc;
    use std::time::Duration;

    /// Reads back a machine with a disk of zeros and the state of a TPM. The blob for the last 512 bytes of the disk
    /// and the folder of the TPM each have an index file of their own, which is lost in turn.
    #[test]
    fn lost_folder_of_the_tpm_and_lost_last_zeros_are_damage() {
        let password = Password::new("test".to_owned());
        let repo = Repository::create(Arc::new(MemoryStorage::new()), &password).expect("create");
        let permit = repo.lock(LockMode::Shared, Duration::ZERO).expect("lock").permit();
        let writer = || Writer::new(&repo, Arc::default(), WriterOptions::default(), &permit);
        let now = chrono::Local::now().fixed_offset();
        let put = |writer: &Writer, bytes: &[u8]| writer.put(BlobKind::Data, bytes).expect("put").id;
        let file = |writer: &Writer, name: &str, bytes: &[u8]| {
            let mut content = Content::default();
            content.push(put(writer, bytes));
            Node::file(name, now, bytes.len() as u64, content)
        };
        let index_files = || repo.storage().list(FileKind::Index).expect("list").into_iter().map(|file| file.name);
        let of_tpm = writer();
        let tpm = write_tree(&of_tpm, &[file(&of_tpm, "tpm2-00.permall", b"state")]).expect("write");
        of_tpm.finish().expect("finish");
        let of_tpm = index_files().next().expect("an index file");
        let of_tail = writer();
        let tail = put(&of_tail, &[0; 512]);
        of_tail.finish().expect("finish");
        let of_tail = index_files().find(|name| *name != of_tpm).expect("an index file");

        let manifest = serde_json::json!({
            "version": 1, "program": "kvmb", "machine": "vm1", "uuid": "", "host": "", "connect": "",
            "captured_at": "2026-11-20T12:00:00+01:00", "consistency": "crash", "duration_seconds": 0.0,
            "disks": [{
                "disk": "vda", "capacity_bytes": (1 << 20) + 512, "chunk_bytes": 1 << 20, "format": "raw",
                "source": { "type": "none" }, "read_mode": "full", "read_bytes": 0, "new_bytes": 0, "stored_bytes": 0,
            }],
            "files": [{ "name": "tpm/tpm2-00.permall", "role": "tpm", "path": "/tpm", "size_bytes": 5 }],
        });
        let rest = writer();
        let zeros = put(&rest, &[0; crate::repo::ZERO_BLOB_BYTES]);
        let mut content = Content::default();
        [zeros, zeros, tail].into_iter().for_each(|id| content.push(id));
        let disk = write_tree(&rest, &[Node::file("vda.raw", now, (1 << 20) + 512, content)]).expect("write");
        let manifest = file(&rest, "point.json", manifest.to_string().as_bytes());
        let nodes = [manifest, Node::dir("tpm", now, tpm), Node::dir("vda", now, disk)];
        let folder = write_tree(&rest, &nodes).expect("write");
        let root = write_tree(&rest, &[Node::dir("vm1", now, folder)]).expect("write");
        rest.finish().expect("finish");
        let snapshot = Snapshot::new(root, vec!["/vm1".to_owned()]);
        let point = PointRef { id: repo.save_snapshot(&snapshot, &permit).expect("save"), snapshot };

        let verify = || {
            let index = repo.reload_index().expect("index");
            let mut verifier = Verifier::new(&repo, &index, VerifyDepth::Full).expect("verifier");
            verifier.verify(&point, &Silent, &Stop::default()).expect("verify")
        };
        let whole = verify();
        assert_eq!(whole.verified, Some("full".into()), "{:?}", whole.damage);
        for (lost, disk, error) in
            [(of_tpm, None, "the folder of tpm"), (of_tail, Some("vda"), "the chunk is not in any index")]
        {
            let bytes = repo.storage().read(FileKind::Index, &lost).expect("read");
            repo.storage().remove(FileKind::Index, &lost).expect("remove");
            let record = verify();
            assert_eq!((record.verified, record.damage.len()), (Some(false.into()), 1), "{error}");
            let damage = &record.damage[0];
            assert!(damage.error.contains(error) && damage.disk.as_deref() == disk, "{damage:?}");
            repo.storage().write(FileKind::Index, &lost, &bytes).expect("write");
        }
    }
}
