//! Finding restore points.

use super::chunk_map::{ChunkMap, Geometry, ZeroIds};
use super::inventory::host_name;
use super::lineage::{Origin, lineages};
use super::manifest::{DEFINITION, LIVE_DEFINITION, MANIFEST, Manifest, ManifestDisk};
use super::{Error, Monitor, Result, Stop};
use crate::capture::connection::{glob_matches, is_glob};
use crate::capture::suggest::similar_names;
use crate::capture::{self, Definition};
use crate::clock::last_moment_until;
use crate::record;
use crate::repo::{
    self, Content, DamagedSnapshot, Id, Index, LockMode, NodeKind, RepoLock, Repository, Snapshot, read_tree,
};
use crate::storage;
use crate::units::ShortDuration;
use chrono::{DateTime, Duration, FixedOffset, Local, NaiveDate, NaiveDateTime};
use std::collections::{BTreeMap, BTreeSet};

/// The tag that marks kvmb's snapshots among others in a repository.
pub const TAG: &str = "kvmb";

/// The beginning of the tag that names the machine.
pub const MACHINE_TAG: &str = "machine=";

/// The tag that keeps a point whatever the retention says; restic's `forget --keep-tag pinned` keeps it too.
pub const PINNED_TAG: &str = "pinned";

/// The largest small file (manifest, definition, firmware variables) that is read into memory.
const LARGEST_SMALL_FILE_BYTES: u64 = 256 << 20;

/// A snapshot that kvmb made.
#[derive(Debug, Clone)]
pub struct PointRef {
    /// The snapshot's id, which is the point's.
    pub id: Id,
    /// The snapshot file.
    pub snapshot: Snapshot,
}

impl PointRef {
    /// The machine's name, from the tag.
    pub fn machine(&self) -> &str {
        self.snapshot.tags.iter().find_map(|tag| tag.strip_prefix(MACHINE_TAG)).unwrap_or("")
    }

    /// Whether retention leaves it alone.
    pub fn is_pinned(&self) -> bool {
        self.snapshot.tags.iter().any(|tag| tag == PINNED_TAG)
    }

    /// Whether this is what the id meant when it was given: pinning a point, or tagging it with restic, changes its id, and
    /// so does copying it to another repository.
    pub fn is_or_was(&self, id: &Id) -> bool {
        self.id == *id || self.snapshot.original == Some(*id)
    }
}

/// A point that was opened: its description and the contents of its disks.
#[derive(Debug)]
pub struct OpenPoint {
    /// Which one.
    pub id: Id,
    /// The snapshot file.
    pub snapshot: Snapshot,
    /// `point.json`.
    pub manifest: Manifest,
    /// Every file of the point's folder and of its disks' folders: the path within the point, the size, the content.
    pub files: BTreeMap<String, (u64, Content)>,
    /// The tree of each disk's folder, for a later point that changes nothing in it.
    pub disk_trees: BTreeMap<String, Id>,
    /// Disks whose content cannot be known any more, and why; only [`open_with_damage`] lets such a point through.
    pub broken: BTreeMap<String, String>,
}

/// How a user names a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointName {
    /// An id or its beginning, or a machine's name, which means its newest point.
    Plain(String),
    /// The newest point of a machine at or before a moment (none: its newest).
    At {
        /// The machine.
        machine: String,
        /// The moment.
        moment: Option<DateTime<FixedOffset>>,
    },
}

impl PointName {
    /// Understands `ID`, `NAME`, `NAME@latest`, `NAME@2026-11-20`, `NAME@2026-11-20T14:30`, `NAME@-2h`; times without an
    /// offset are local, and a date means its end. What stands after an `@` and is no time belongs to the name.
    pub fn parse(text: &str, now: DateTime<Local>) -> PointName {
        if let Some((machine, time)) = text.rsplit_once('@')
            && !machine.is_empty()
        {
            if time == "latest" {
                return PointName::At { machine: machine.to_owned(), moment: None };
            }
            if let Some(moment) = parse_moment(time, now) {
                return PointName::At { machine: machine.to_owned(), moment: Some(moment) };
            }
        }
        PointName::Plain(text.to_owned())
    }
}

fn parse_moment(text: &str, now: DateTime<Local>) -> Option<DateTime<FixedOffset>> {
    if let Some(span) = text.strip_prefix('-') {
        let ago = Duration::from_std(span.parse::<ShortDuration>().ok()?.0).ok()?;
        return Some((now - ago).fixed_offset());
    }
    if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
        return Some(moment);
    }
    let local = |naive| last_moment_until(&Local, naive).map(|moment| moment.fixed_offset());
    for form in ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"] {
        if let Ok(naive) = NaiveDateTime::parse_from_str(text, form) {
            // A table shows no parts of a second: what it shows must find its point.
            return local(naive + Duration::nanoseconds(999_999_999));
        }
    }
    for form in ["%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"] {
        if let Ok(naive) = NaiveDateTime::parse_from_str(text, form) {
            // "14:30" is the whole minute: a point of 14:30:20 is meant by it.
            return local(naive + Duration::seconds(59) + Duration::nanoseconds(999_999_999));
        }
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    local(date.and_hms_nano_opt(23, 59, 59, 999_999_999)?)
}

/// Takes the lock of a command that only reads. On a medium that cannot be written there is no lock, and no need of one: a
/// prune beside us could only make chunks go missing, which is told; what is read is proven whoever else is at it.
pub fn lock_for_reading(repo: &Repository, monitor: &dyn Monitor, stop: &Stop) -> Result<Option<RepoLock>> {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    let error = match super::locked_repo::lock(repo, LockMode::Shared, stop) {
        Ok(lock) => return Ok(Some(lock)),
        Err(error) => error,
    };
    if let Error::Repo(inner) = &error
        && let repo::Error::Storage(storage::Error::Io { source, path, .. }) = &**inner
        && matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem)
    {
        monitor.warn(&format!("reading without a lock: cannot write {}: {source}", path.display()));
        return Ok(None);
    }
    Err(error)
}

/// Loads the index as far as it can be read; what it lost shows up in the points that are hit.
pub fn load_index_for_reading(repo: &Repository, monitor: &dyn Monitor) -> Result<Index> {
    let (index, damaged) = repo.load_index_with_damage()?;
    for (_, error) in damaged {
        monitor.warn(&error.to_string());
    }
    Ok(index)
}

/// All points of a repository, oldest first, and what could not be read.
pub fn list(repo: &Repository) -> Result<(Vec<PointRef>, Vec<DamagedSnapshot>)> {
    let list = repo.snapshots()?;
    let mut points: Vec<PointRef> = list
        .snapshots
        .into_iter()
        .filter(|stored| stored.snapshot.tags.iter().any(|tag| tag == TAG))
        .map(|stored| PointRef { id: stored.id, snapshot: stored.snapshot })
        .collect();
    points.sort_by_key(|point| (point.snapshot.time, point.id));
    Ok((points, list.damaged))
}

/// The one point that `name` means. A machine's name means the machine of this host; where this host has none of that name and
/// several others have, it is [`Error::AmbiguousMachine`].
pub fn find(repo: &Repository, points: &[PointRef], name: &PointName) -> Result<PointRef> {
    let missing = |wanted: String| no_such_point(repo, points.iter().map(PointRef::machine), wanted);
    match name {
        PointName::At { machine, moment } => newest_named(repo, points, machine, *moment)?.ok_or_else(|| {
            missing(match moment {
                Some(moment) => format!("{machine}@{}", moment.to_rfc3339()),
                None => format!("{machine}@latest"),
            })
        }),
        PointName::Plain(text) => {
            if let Some(point) = newest_named(repo, points, text, None)? {
                return Ok(point);
            }
            let looks_like_id = text.len() >= 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
            let beginning = text.to_ascii_lowercase();
            let begins = |id: &Id| looks_like_id && id.to_string().starts_with(&beginning);
            let mut matching: Vec<&PointRef> = points.iter().filter(|point| begins(&point.id)).collect();
            if matching.is_empty() {
                matching =
                    points.iter().filter(|point| point.snapshot.original.is_some_and(|id| begins(&id))).collect();
            }
            match matching[..] {
                [] => Err(missing(text.clone())),
                [point] => Ok(point.clone()),
                _ => Err(Error::AmbiguousPoint { wanted: text.clone(), count: matching.len() }),
            }
        }
    }
}

/// The newest point of a machine at or before a moment; without one the newest whose date is not in the future, if there is
/// one.
fn newest_named(
    repo: &Repository,
    points: &[PointRef],
    machine: &str,
    moment: Option<DateTime<FixedOffset>>,
) -> Result<Option<PointRef>> {
    /// Clocks differ by seconds without being wrong.
    const SKEW: Duration = Duration::minutes(5);
    let named: Vec<&PointRef> = points.iter().filter(|point| point.machine() == machine).collect();
    let mut newest_first = of_one_machine(repo, named, machine)?.into_iter().rev();
    if let Some(moment) = moment {
        return Ok(newest_first.find(|point| point.snapshot.time <= moment).cloned());
    }
    let now = Local::now() + SKEW;
    let newest = newest_first.clone().next();
    Ok(newest_first.find(|point| point.snapshot.time <= now).or(newest).cloned())
}

/// Of the points with a machine's name, those of the machine that is meant, oldest first.
fn of_one_machine<'p>(repo: &Repository, named: Vec<&'p PointRef>, machine: &str) -> Result<Vec<&'p PointRef>> {
    let is_of_one_host = named.windows(2).all(|pair| pair[0].snapshot.hostname == pair[1].snapshot.hostname);
    if is_of_one_host {
        return Ok(named);
    }
    // Only their manifests say whether it is one machine that moved.
    let (index, _) = repo.load_index_with_damage()?;
    let mut origins = Vec::new();
    for point in &named {
        origins.push(read_origin(repo, &index, point)?);
    }
    let known = named.iter().zip(&origins).filter_map(|(point, origin)| Some((*point, origin.as_ref()?)));
    let machines = lineages(known);
    let hosts_of = |(point, origin): (&'p PointRef, Option<Origin>)| {
        let its = origin.as_ref().and_then(|origin| machines.iter().find(|machine| machine.has(origin)));
        // A damaged one may be anybody's of its host.
        let hosts = its.map_or_else(|| BTreeSet::from([point.snapshot.hostname.clone()]), |its| its.hosts.clone());
        (point, hosts)
    };
    let groups: Vec<(&PointRef, BTreeSet<String>)> = named.into_iter().zip(origins).map(hosts_of).collect();
    let this_host = host_name();
    let is_here = groups.iter().any(|(_, hosts)| hosts.contains(&this_host));
    let first = groups.first().map(|(_, hosts)| hosts.clone()).unwrap_or_default();
    match is_here {
        true => {
            let here = groups.into_iter().filter(|(_, hosts)| hosts.contains(&this_host));
            Ok(here.map(|(point, _)| point).collect())
        }
        false if groups.iter().all(|(_, hosts)| *hosts == first) => {
            Ok(groups.into_iter().map(|(point, _)| point).collect())
        }
        false => {
            // The newest of each, for whoever looks for one.
            let newest: BTreeMap<BTreeSet<String>, &PointRef> =
                groups.into_iter().map(|(point, hosts)| (hosts, point)).collect();
            let describe = |(hosts, point): (BTreeSet<String>, &PointRef)| {
                (
                    Vec::from_iter(hosts).join(", "),
                    format!("{} of {}", point.id.short(), point.snapshot.time.to_rfc3339()),
                )
            };
            let machine = machine.to_owned();
            Err(Error::AmbiguousMachine { machine, newest: newest.into_iter().map(describe).collect() })
        }
    }
}

/// That there is no such point, with those of the `machines` in the repository that may have been meant.
pub fn no_such_point<'a>(repo: &Repository, machines: impl Iterator<Item = &'a str>, wanted: String) -> Error {
    let machines: BTreeSet<&str> = machines.collect();
    let (machine, _) = wanted.rsplit_once('@').unwrap_or((&wanted, ""));
    let near = match machines.contains(machine) {
        true => Vec::new(),
        false => similar_names(machine, machines.into_iter()),
    };
    Error::NoSuchPoint { wanted, repo: repo.url(), near }
}

/// [`find`] where snapshot files are damaged: each of them may be a newer point of the machine that is asked for, and an older
/// one is not what was meant. A point can then still be had by its id.
pub fn find_surely(
    repo: &Repository,
    points: &[PointRef],
    damaged: &[DamagedSnapshot],
    name: &PointName,
) -> Result<PointRef> {
    let found = find(repo, points, name);
    let unreadable = |snapshot: &DamagedSnapshot| Error::UnreadableSnapshot {
        snapshot: snapshot.id.to_string(),
        reason: snapshot.error.to_string(),
    };
    match (name, &found) {
        (PointName::Plain(text), Ok(point)) if point.machine() != text => found,
        (PointName::Plain(text), Err(_)) => {
            let meant = damaged.iter().find(|snapshot| text.len() >= 4 && snapshot.id.to_string().starts_with(text));
            meant.or(damaged.first()).map_or(found, |snapshot| Err(unreadable(snapshot)))
        }
        _ => damaged.first().map_or(found, |snapshot| Err(unreadable(snapshot))),
    }
}

/// Reads a point's manifest, and nothing else of it.
pub fn read_manifest(repo: &Repository, index: &Index, point: &PointRef) -> Result<Manifest> {
    Ok(describe(repo, index, point)?.manifest)
}

/// What a point says of its machine; none where the point is damaged, which verify reports.
pub fn read_origin(repo: &Repository, index: &Index, point: &PointRef) -> Result<Option<Origin>> {
    match read_manifest(repo, index, point) {
        Ok(manifest) => Ok(Some(Origin::of(&manifest))),
        Err(Error::BadPoint { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a point says of itself, without the contents of its disks.
#[derive(Debug)]
pub struct Description {
    /// `point.json`.
    pub manifest: Manifest,
    top: Top,
}

/// The machine's folder of a point.
#[derive(Debug)]
struct Top {
    files: FileContents,
    folders: BTreeMap<String, Id>,
}

type FileContents = BTreeMap<String, (u64, Content)>;

fn bad(point: &PointRef) -> impl Fn(String) -> Error + Copy + '_ {
    |reason| Error::BadPoint { point: point.id.to_string(), reason }
}

/// What cannot be read is damaged, unless the repository as a whole cannot be reached.
fn unreadable(what: &str, error: repo::Error, bad: impl Fn(String) -> Error) -> Error {
    match error.is_unreachable() {
        true => error.into(),
        false => bad(format!("{what}: {error}")),
    }
}

fn read_top(repo: &Repository, index: &Index, point: &PointRef) -> Result<Top> {
    let bad = bad(point);
    let tree = |id: &Id, what: &str| read_tree(repo, index, id).map_err(|error| unreadable(what, error, bad));
    let root = tree(&point.snapshot.tree, "its root tree")?;
    let subtree = match &root.nodes[..] {
        [node] => match node.kind {
            NodeKind::Dir { subtree } => subtree,
            _ => return Err(bad("its root is not a machine's folder".into())),
        },
        _ => return Err(bad("its root is not one machine's folder".into())),
    };
    let mut top = Top { files: BTreeMap::new(), folders: BTreeMap::new() };
    for node in tree(&subtree, "the machine's folder")?.nodes {
        let name = node.name.to_string_lossy().into_owned();
        match node.kind {
            NodeKind::File { size_bytes, content } => drop(top.files.insert(name, (size_bytes, content))),
            NodeKind::Dir { subtree } => drop(top.folders.insert(name, subtree)),
            NodeKind::Other(_) => {}
        }
    }
    Ok(top)
}

/// Reads a point's manifest. What is missing or does not fit is [`Error::BadPoint`].
pub fn describe(repo: &Repository, index: &Index, point: &PointRef) -> Result<Description> {
    let bad = bad(point);
    let top = read_top(repo, index, point)?;
    let json = read_small(repo, index, &top.files, MANIFEST, bad)?;
    let manifest = Manifest::parse(&json).map_err(|error| bad(error.to_string()))?;
    Ok(Description { manifest, top })
}

/// Opens a point that was described: reads the folders of its disks.
pub fn open(repo: &Repository, index: &Index, point: &PointRef, described: Description) -> Result<OpenPoint> {
    let opened = open_described(repo, index, point, described)?;
    match opened.broken.values().next() {
        Some(reason) => Err(Error::BadPoint { point: point.id.to_string(), reason: reason.clone() }),
        None => Ok(opened),
    }
}

/// Opens a point for whoever can do with a part: a disk whose list of chunks is lost is in [`OpenPoint::broken`], and
/// [`OpenPoint::chunk_map`] of it is the error.
pub fn open_with_damage(repo: &Repository, index: &Index, point: &PointRef) -> Result<OpenPoint> {
    open_described(repo, index, point, describe(repo, index, point)?)
}

fn open_described(repo: &Repository, index: &Index, point: &PointRef, described: Description) -> Result<OpenPoint> {
    let Description { manifest, top: Top { mut files, folders } } = described;
    let (mut disk_trees, mut broken) = (BTreeMap::new(), BTreeMap::new());
    for (name, subtree) in folders {
        match read_tree(repo, index, &subtree) {
            Ok(folder) => {
                for file in folder.nodes {
                    if let NodeKind::File { size_bytes, content } = file.kind {
                        files.insert(format!("{name}/{}", file.name.to_string_lossy()), (size_bytes, content));
                    }
                }
                disk_trees.insert(name, subtree);
            }
            Err(error) if error.is_unreachable() => return Err(error.into()),
            Err(error) => drop(broken.insert(name.clone(), format!("the folder of {name}: {error}"))),
        }
    }
    let mut opened = OpenPoint { id: point.id, snapshot: point.snapshot.clone(), manifest, files, disk_trees, broken };
    for disk in &opened.manifest.disks {
        if let Err(Error::BadPoint { reason, .. }) = opened.chunk_map(disk) {
            opened.broken.insert(disk.disk.clone(), reason);
        }
    }
    Ok(opened)
}

fn read_small(
    repo: &Repository,
    index: &Index,
    files: &FileContents,
    name: &str,
    bad: impl Fn(String) -> Error,
) -> Result<Vec<u8>> {
    let (size, content) = files.get(name).ok_or_else(|| bad(format!("{name} is missing")))?;
    if *size > LARGEST_SMALL_FILE_BYTES {
        return Err(bad(format!("{name} is {size} bytes long")));
    }
    let mut bytes = Vec::new();
    for id in content.iter() {
        bytes.extend(repo.read_blob(index, &id).map_err(|error| unreadable(name, error, &bad))?);
        if bytes.len() as u64 > *size {
            break;
        }
    }
    if bytes.len() as u64 != *size {
        return Err(bad(format!("{name} should have {size} bytes and has {}", bytes.len())));
    }
    Ok(bytes)
}

/// Whether a name or glob (`web*`) means this machine.
pub fn name_matches(pattern: &str, machine: &str) -> bool {
    pattern == machine || (is_glob(pattern) && glob_matches(pattern, machine))
}

/// The name of a disk's file within the point.
pub fn disk_file(disk: &str) -> String {
    format!("{disk}/{disk}.raw")
}

impl OpenPoint {
    /// One of the small files.
    pub fn read_file(&self, repo: &Repository, index: &Index, name: &str) -> Result<Vec<u8>> {
        let bad = |reason| Error::BadPoint { point: self.id.to_string(), reason };
        read_small(repo, index, &self.files, name, bad)
    }

    /// The machine's definition.
    pub fn definition(&self, repo: &Repository, index: &Index) -> Result<String> {
        String::from_utf8(self.read_file(repo, index, DEFINITION)?)
            .map_err(|_| Error::BadPoint { point: self.id.to_string(), reason: format!("{DEFINITION} is not UTF-8") })
    }

    /// The definition that has all disks of the point, and whether it is that of the running machine: one that was attached
    /// to it alone is in no other.
    pub fn definition_of_disks(&self, repo: &Repository, index: &Index) -> Result<(String, bool)> {
        let inactive = self.definition(repo, index)?;
        if !self.files.contains_key(LIVE_DEFINITION) {
            return Ok((inactive, false));
        }
        let live = String::from_utf8(self.read_file(repo, index, LIVE_DEFINITION)?).map_err(|_| Error::BadPoint {
            point: self.id.to_string(),
            reason: format!("{LIVE_DEFINITION} is not UTF-8"),
        })?;
        let definition = Definition::parse(&live).map_err(capture::Error::from)?;
        match self.manifest.disks.iter().all(|disk| definition.disk(&disk.disk).is_some()) {
            true => Ok((live, true)),
            false => Ok((inactive, false)),
        }
    }

    /// The chunks of one of the manifest's disks.
    pub fn chunk_map(&self, disk: &ManifestDisk) -> Result<ChunkMap> {
        let bad = |reason| Error::BadPoint { point: self.id.to_string(), reason };
        if let Some(reason) = self.broken.get(&disk.disk) {
            return Err(bad(reason.clone()));
        }
        let name = disk_file(&disk.disk);
        let (size, content) = self.files.get(&name).ok_or_else(|| bad(format!("{name} is missing")))?;
        if *size != disk.capacity_bytes {
            return Err(bad(format!("{name} has {size} bytes and the manifest says {}", disk.capacity_bytes)));
        }
        let geometry = Geometry { capacity_bytes: disk.capacity_bytes, chunk_bytes: disk.chunk_bytes };
        ChunkMap::from_content(content, geometry, ZeroIds::of(geometry))
            .map_err(|error| bad(format!("{name}: {error}")))
    }

    /// The point as a record.
    pub fn to_record(&self, repo: &Repository) -> record::Point {
        to_record(repo, &self.id, &self.snapshot, &self.manifest)
    }
}

/// A point as a record.
pub fn to_record(repo: &Repository, id: &Id, snapshot: &Snapshot, manifest: &Manifest) -> record::Point {
    record::Point {
        point: id.to_string(),
        repo: repo.url(),
        machine: manifest.machine.clone(),
        uuid: manifest.uuid.clone(),
        host: manifest.host.clone(),
        captured_at: manifest.captured_at,
        consistency: manifest.consistency.clone(),
        parent: manifest.parent.clone(),
        original: snapshot.original.map(|id| id.to_string()),
        copied: None,
        pinned: snapshot.tags.iter().any(|tag| tag == PINNED_TAG),
        capture: None,
        batch: None,
        batch_machines: None,
        disks: manifest.disks.iter().map(ManifestDisk::to_record).collect(),
        files: manifest.file_records(),
        left_out: manifest.left_out.clone(),
        duration_seconds: Some(manifest.duration_seconds),
        chain_damage: Vec::new(),
        damaged_points: Vec::new(),
        verified: None,
        damage: Vec::new(),
        restored_to: None,
        extra: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn points_are_named_as_the_manual_says() {
        let now = Local.with_ymd_and_hms(2026, 11, 20, 15, 0, 0).unwrap();
        let at = |text: &str| match PointName::parse(text, now) {
            PointName::At { machine, moment } => {
                (machine, moment.map(|m| m.with_timezone(&Local).format("%F %T").to_string()))
            }
            PointName::Plain(text) => (text, Some("plain".into())),
        };
        let cases = [
            ("vm1@latest", "vm1", None),
            ("vm1@2026-11-20", "vm1", Some("2026-11-20 23:59:59")),
            ("vm1@2026-11-20T14:30", "vm1", Some("2026-11-20 14:30:59")),
            ("vm1@2026-11-20T14:30:05", "vm1", Some("2026-11-20 14:30:05")),
            ("vm1@-2h", "vm1", Some("2026-11-20 13:00:00")),
            ("vm1@-3d", "vm1", Some("2026-11-17 15:00:00")),
            ("a@b@-3d", "a@b", Some("2026-11-17 15:00:00")),
            ("vm1", "vm1", Some("plain")),
            ("a@b", "a@b", Some("plain")),
            ("vm1@-2x", "vm1@-2x", Some("plain")),
            ("vm1@-é", "vm1@-é", Some("plain")),
            ("@latest", "@latest", Some("plain")),
        ];
        for (text, machine, moment) in cases {
            assert_eq!(at(text), (machine.to_owned(), moment.map(str::to_owned)), "{text}");
        }
    }
}
