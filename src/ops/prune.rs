//! Applies retention: removes points, then frees their space.
//!
//! Everything is decided under the repository's exclusive lock before anything is changed: the decision for each point,
//! and which packs are needed afterwards. If the repository is damaged, nothing is removed.
//!
//! A machine is its UUID on a host and on the hosts that it came from ([`crate::ops::points::lineage`]), so that two
//! machines with one UUID are subject to the rules separately. A machine is *gone* if its newest point was taken on
//! this host and this host's libvirt does not know its UUID. Whether machines of other hosts still exist is unknown
//! here. The policy applies to them too and counts from their newest point, so a machine that is no longer backed up
//! keeps the points that the policy kept last.

use super::manifest::Manifest;
use super::object_lock::locked_until;
use super::points::{self, PointRef};
use super::repo_lock::{lock, lock_for_reading};
use super::verify::{Verifier, VerifyDepth};
use super::{Error, Monitor, Progress, Result, Silent, Stop};
use crate::failpoint::{self, Failpoint};
use crate::ops::copy::plan::Copies;
use crate::ops::points::lineage::{Lineage, Origin, lineages};
use crate::record::Time;
use crate::repo::{
    self, Id, Index, LockMode, MaxUnused, Permit, PruneEvent, PruneLimits, PrunePlan, PruneSummary, RepoLock,
    Repository, is_no_space,
};
use crate::retention::{Candidate, Policy, Reason, RetentionDecision, judge};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// The known machines of this host.
#[derive(Debug, Clone)]
pub enum Living {
    /// The user requested to ignore whether machines exist.
    DoesNotMatter,
    /// The UUIDs that libvirt knows.
    Known(HashSet<String>),
    /// libvirt is unreachable, with the reason.
    Unknown(String),
}

/// What to prune, and by which rules.
#[derive(Debug)]
pub struct PruneRequest<'a> {
    /// The rules that decide which points to keep.
    pub policy: &'a Policy,
    /// Names and globs of machines; empty means all. Points of a gone machine are pruned only if its name is listed.
    pub names: &'a [String],
    /// The machines that exist.
    pub living: Living,
    /// The second tier, if there is one.
    pub second: Option<SecondTier<'a>>,
    /// The maximum share of unused data in packs that are kept.
    pub max_unused: MaxUnused,
    /// Whether to change nothing.
    pub dry_run: bool,
}

/// The repository that the points are copied to.
#[derive(Debug, Clone, Copy)]
pub struct SecondTier<'a> {
    pub(crate) repo: &'a Repository,
    pub(crate) copies: &'a Copies,
    pub(crate) policy: &'a Policy,
}

/// A point and the decision about it.
#[derive(Debug)]
pub struct JudgedPoint {
    pub(crate) point: PointRef,
    pub(crate) manifest: Manifest,
    pub(crate) verdict: RetentionDecision,
}

/// The result of a prune.
#[derive(Debug, Clone, Copy)]
pub struct Pruned {
    /// What was removed.
    pub summary: PruneSummary,
    /// Whether there was too little free space to copy the used data out of packs that are mostly unused.
    pub was_short_of_room: bool,
}

/// A planned prune of a locked repository.
#[derive(Debug)]
pub struct Prune<'a> {
    repo: &'a Repository,
    max_unused: MaxUnused,
    /// `None` for a dry run.
    exclusive: Option<Permit>,
    /// `None` unless this is a dry run, and on read-only media.
    _shared: Option<RepoLock>,
    points: Vec<JudgedPoint>,
    unreadable: Vec<(PointRef, Error)>,
    plan: PrunePlan,
}

impl<'a> Prune<'a> {
    /// Locks the repository, reads what it needs and decides. Changes nothing.
    pub fn plan(
        repo: &'a Repository,
        request: &PruneRequest,
        now: Time,
        monitor: &dyn Monitor,
        stop: &Stop,
    ) -> Result<Prune<'a>> {
        let (exclusive, shared) = match request.dry_run {
            true => (None, lock_for_reading(repo, monitor, stop)?),
            false => (Some(lock(repo, LockMode::Exclusive, stop)?.permit()), None),
        };
        let index = repo.reload_index().map_err(damaged)?;
        let (found, unreadable_snapshots) = points::list(repo)?;
        if let Some(snapshot) = unreadable_snapshots.into_iter().next() {
            return Err(damaged(snapshot.error));
        }
        let Judgement { mut points, unreadable } = judge_points(repo, &index, found, request, now, monitor, stop)?;
        keep_locked(repo, &mut points, stop)?;
        let plan = make_plan(repo, index, request.max_unused, room(repo)?, &removed_points(&points), stop)?;
        failpoint::hit(Failpoint::PrunePlanned);
        Ok(Prune { repo, max_unused: request.max_unused, exclusive, _shared: shared, points, unreadable, plan })
    }

    /// The points that the request covers, sorted by machine and time.
    pub(crate) fn points(&self) -> &[JudgedPoint] {
        &self.points
    }

    /// The points that are kept because their machine cannot be determined.
    pub(crate) fn take_unreadable(&mut self) -> Vec<(PointRef, Error)> {
        std::mem::take(&mut self.unreadable)
    }

    /// The expected result of [`Prune::run`].
    pub(crate) fn summary(&self) -> &PruneSummary {
        self.plan.summary()
    }

    /// Removes the points that are not kept (calling `forgotten` for each) and frees the space. A dry run does nothing.
    pub fn run(&self, monitor: &dyn Monitor, stop: &Stop, forgotten: &mut dyn FnMut(&JudgedPoint)) -> Result<Pruned> {
        let mut pruned = Pruned { summary: *self.plan.summary(), was_short_of_room: false };
        let Some(permit) = &self.exclusive else {
            return Ok(pruned);
        };
        let flag = stop.flag();
        let watch = PruneProgress::new(self.repo, self.plan.summary(), monitor);
        let refused = |error| refused(self.repo, error);
        self.plan.remove_unnamed(permit, &|event| watch.hear(event), &flag).map_err(refused)?;
        for judged in self.points.iter().filter(|judged| !judged.verdict.keep) {
            stop.check()?;
            match self.repo.remove_snapshot(&judged.point.id, permit) {
                Err(error) if !error.is_not_found() => return Err(refused(error)),
                _ => forgotten(judged),
            }
            failpoint::hit(Failpoint::PointForgotten);
        }
        stop.check()?;
        failpoint::hit(Failpoint::PointsForgotten);
        let mut done = self.plan.execute(permit, &|event| watch.hear(event), &flag);
        let mut last = *self.plan.summary();
        let mut was_full = false;
        // If there was space for only a part of the copies, there may be enough now.
        loop {
            let room_bytes = match &done {
                // The storage ran out of space earlier than it reported. Continue without copies.
                Err(error) if is_no_space(error) && !was_full => Some(0),
                Ok(()) if last.is_short_of_room && last.freed_bytes() > 0 && !was_full => room(self.repo)?,
                _ => break,
            };
            stop.check()?;
            was_full = done.is_err();
            let index = self.repo.reload_index()?;
            // A storage may still list the points that were removed.
            let gone = removed_points(&self.points);
            let plan = make_plan(self.repo, index, self.max_unused, room_bytes, &gone, stop)?;
            done = plan
                .remove_unnamed(permit, &|_| {}, &flag)
                .and_then(|()| plan.execute(permit, &|event| watch.hear(event), &flag));
            // The work that the full disk prevented does not count.
            pruned.summary = match was_full {
                true => PruneSummary { size_bytes: pruned.summary.size_bytes, ..*plan.summary() },
                false => pruned.summary.followed_by(*plan.summary()),
            };
            last = *plan.summary();
        }
        done.map_err(refused)?;
        stop.check()?;
        failpoint::hit(Failpoint::PacksGone);
        pruned.was_short_of_room = last.is_short_of_room;
        Ok(pruned)
    }
}

/// The ids of the points that are not kept.
fn removed_points(points: &[JudgedPoint]) -> HashSet<Id> {
    points.iter().filter(|judged| !judged.verdict.keep).map(|judged| judged.point.id).collect()
}

/// The number of bytes that may be copied at once. Some free space is left for the index and for other users of the
/// disk.
fn room(repo: &Repository) -> Result<Option<u64>> {
    let free_bytes = repo.storage().free_bytes().map_err(repo::Error::from)?;
    Ok(free_bytes.map(|bytes| bytes / 4 * 3))
}

fn make_plan(
    repo: &Repository,
    index: Arc<Index>,
    max_unused: MaxUnused,
    room_bytes: Option<u64>,
    forgotten: &HashSet<Id>,
    stop: &Stop,
) -> Result<PrunePlan> {
    let limits = PruneLimits { max_unused, room_bytes };
    let plan = PrunePlan::make(repo, index, forgotten, limits, &|_| {}, &stop.flag());
    plan.map_err(damaged)?.ok_or(Error::Interrupted)
}

/// Maps damage to [`Error::Unprunable`]. Other errors are kept.
fn damaged(error: repo::Error) -> Error {
    use repo::Error as E;
    match error.root() {
        E::Damaged { .. }
        | E::BlobMissing { .. }
        | E::BlobDamaged { .. }
        | E::BlobUnreadable { .. }
        | E::PackLost { .. }
        | E::TreeMalformed { .. } => Error::Unprunable { source: Box::new(error) },
        _ => error.into(),
    }
}

/// Maps a refused removal to [`Error::RemovalRefused`]. Damage found while copying is [`Error::Unprunable`]; the packs
/// are left where they are.
fn refused(repo: &Repository, error: repo::Error) -> Error {
    match error.is_refused_removal() {
        true => Error::RemovalRefused { url: repo.url(), source: Box::new(error) },
        false => damaged(error),
    }
}

/// Forwards the events of a prune to the progress bar and to the tests that interrupt it.
struct PruneProgress {
    progress: Box<dyn Progress>,
}

impl PruneProgress {
    fn new(repo: &Repository, summary: &PruneSummary, monitor: &dyn Monitor) -> PruneProgress {
        let total_bytes = summary.removed_bytes + summary.copied_bytes + summary.repacked_bytes;
        let progress: Box<dyn Progress> = match total_bytes {
            0 => Box::new(Silent),
            bytes => monitor.start("pruning", &repo.url(), bytes),
        };
        PruneProgress { progress }
    }

    fn hear(&self, event: PruneEvent) {
        match event {
            PruneEvent::SnapshotMarked => {}
            PruneEvent::UnnamedRemoved { bytes } => {
                self.progress.advance(bytes);
                failpoint::hit(Failpoint::UnnamedPackRemoved);
            }
            PruneEvent::Copied { bytes } => {
                self.progress.advance(bytes);
                failpoint::hit(Failpoint::BlobsCopied);
            }
            PruneEvent::AllCopied => failpoint::hit(Failpoint::CopiesStored),
            PruneEvent::IndexStored => failpoint::hit(Failpoint::NewIndexStored),
            PruneEvent::IndexRemoved => failpoint::hit(Failpoint::OldIndexRemoved),
            PruneEvent::OldIndexGone => failpoint::hit(Failpoint::OldIndexGone),
            PruneEvent::PackRemoved { bytes } => {
                self.progress.advance(bytes);
                failpoint::hit(Failpoint::PackRemoved);
            }
        }
    }
}

/// The decisions about the points, and the points that cannot be read.
struct Judgement {
    points: Vec<JudgedPoint>,
    unreadable: Vec<(PointRef, Error)>,
}

/// The points of one machine, oldest first.
struct MachinePoints {
    machine: Lineage,
    points: Vec<(PointRef, Manifest)>,
}

impl MachinePoints {
    fn of(points: Vec<(PointRef, Manifest)>) -> Vec<MachinePoints> {
        let origins: Vec<Origin> = points.iter().map(|(_, manifest)| Origin::of(manifest)).collect();
        let machines = lineages(points.iter().map(|(point, _)| point).zip(&origins));
        let mut groups: Vec<MachinePoints> =
            machines.into_iter().map(|machine| MachinePoints { machine, points: Vec::new() }).collect();
        let group_of = |number: usize, machine: &Lineage| {
            Vec::from_iter(machine.hosts.iter().map(|host| ((machine.uuid.clone(), host.clone()), number)))
        };
        let numbers = groups.iter().enumerate().flat_map(|(number, group)| group_of(number, &group.machine));
        let numbers: HashMap<(String, String), usize> = numbers.collect();
        for (point, origin) in points.into_iter().zip(origins) {
            if let Some(number) = numbers.get(&(origin.uuid, origin.host)) {
                groups[*number].points.push(point);
            }
        }
        groups
    }

    /// The disks and other parts that each point leaves out although another one has them. A part that no point has,
    /// such as a CD-ROM, distinguishes none.
    fn lacking(&self) -> Vec<BTreeSet<String>> {
        let disk = |name: &str| format!("disk {name}");
        let had: HashSet<String> = (self.points.iter())
            .flat_map(|(_, manifest)| {
                let disks = manifest.disks.iter().map(|its| disk(&its.disk));
                disks.chain(manifest.files.iter().map(|file| file.role.word().to_owned()))
            })
            .collect();
        let lacks = |(_, manifest): &(PointRef, Manifest)| {
            let parts = manifest.left_out.iter().filter_map(|part| match &part.disk {
                Some(name) => Some(disk(name)),
                None => part.part.clone(),
            });
            parts.filter(|part| had.contains(part)).collect()
        };
        self.points.iter().map(lacks).collect()
    }

    /// The machine's name in its newest point.
    fn name(&self) -> &str {
        self.points.last().map_or("", |(point, _)| point.machine())
    }
}

fn judge_points(
    repo: &Repository,
    index: &Index,
    found: Vec<PointRef>,
    request: &PruneRequest,
    now: Time,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<Judgement> {
    let (mut readable, mut unreadable) = (Vec::new(), Vec::new());
    for point in found {
        stop.check()?;
        match points::read_manifest(repo, index, &point) {
            Ok(manifest) => readable.push((point, manifest)),
            Err(error) => unreadable.push((point, error)),
        }
    }
    let is_meant = |machine: &str| {
        request.names.is_empty() || request.names.iter().any(|name| points::name_matches(name, machine))
    };
    let mut groups = MachinePoints::of(readable);
    groups.retain(|group| group.points.iter().any(|(point, _)| is_meant(point.machine())));
    unreadable.retain(|(point, _)| is_meant(point.machine()));

    // Without rules no point is judged, so damage need not be known.
    let mut verifier = match request.policy.is_empty() {
        true => None,
        false => Some(Verifier::new(repo, index, VerifyDepth::Quick)?),
    };
    let mut second =
        request.second.filter(|_| verifier.is_some()).map(|tier| OpenSecondTier { tier, index: None, monitor });
    let (mut candidates, mut judged) = (Vec::new(), Vec::new());
    for (number, group) in groups.into_iter().enumerate() {
        let outlives_machine = outlives_machine(&group, request);
        let machine = group.name();
        if let (true, Living::Unknown(reason)) = (outlives_machine, &request.living) {
            monitor.warn(&format!(
                "all points of {machine} are kept, because libvirt cannot tell whether the machine exists: {reason}"
            ));
        }
        let future = group.points.iter().filter(|(point, _)| point.snapshot.time > now).count();
        if future > 0 && verifier.is_some() {
            let hosts = Vec::from_iter(group.machine.hosts.iter().map(String::as_str)).join(", ");
            let (points, are) = if future == 1 { ("point", "is") } else { ("points", "are") };
            monitor.warn(&format!(
                "{future} {points} of {machine} {are} dated in the future and not removed; check the clocks of {hosts} \
                 and of this host"
            ));
        }
        let lacking = group.lacking();
        let damaged = match &mut verifier {
            Some(verifier) => newest_damaged(verifier, &group, &lacking, now, stop)?,
            None => HashSet::new(),
        };
        let awaits_copy = match &mut second {
            Some(second) => second.await_copy(&group, now)?,
            None => vec![false; group.points.len()],
        };
        for (((point, manifest), awaits_copy), lacks) in group.points.into_iter().zip(awaits_copy).zip(lacking) {
            candidates.push(Candidate {
                machine: number.to_string(),
                taken_at: point.snapshot.time,
                is_pinned: point.is_pinned(),
                is_restoring: point.is_restoring(),
                is_damaged: damaged.contains(&point.id),
                awaits_copy,
                outlives_machine,
                lacks,
            });
            judged.push((point, manifest));
        }
    }
    let verdicts = judge(request.policy, &candidates, now, &chrono::Local);
    let judged = judged.into_iter().zip(verdicts);
    let points = judged.map(|((point, manifest), verdict)| JudgedPoint { point, manifest, verdict }).collect();
    Ok(Judgement { points, unreadable })
}

/// Keeps the points that the storage locks.
fn keep_locked(repo: &Repository, points: &mut [JudgedPoint], stop: &Stop) -> Result<()> {
    let mut going: Vec<&mut JudgedPoint> = points.iter_mut().filter(|judged| !judged.verdict.keep).collect();
    if going.is_empty() {
        return Ok(());
    }
    let ends = locked_until(repo, &going.iter().map(|judged| &judged.point).collect::<Vec<_>>(), stop)?;
    for (judged, end) in going.iter_mut().zip(ends) {
        if let Some(end) = end {
            judged.verdict = RetentionDecision { keep: true, reasons: vec![Reason::Locked(end)] };
        }
    }
    Ok(())
}

/// The second tier. Its index is loaded when it is first needed.
struct OpenSecondTier<'a> {
    tier: SecondTier<'a>,
    index: Option<Arc<Index>>,
    monitor: &'a dyn Monitor,
}

impl OpenSecondTier<'_> {
    fn await_copy(&mut self, group: &MachinePoints, now: Time) -> Result<Vec<bool>> {
        let SecondTier { repo, copies, policy } = self.tier;
        let here: Vec<&PointRef> = group.points.iter().map(|(point, _)| point).collect();
        copies.await_copy((&group.machine, &here), policy, now, |point| {
            let index = match &mut self.index {
                Some(index) => index,
                none => none.insert(points::load_index_for_reading(repo, self.monitor)?),
            };
            points::read_origin(repo, index, point)
        })
    }
}

fn outlives_machine(group: &MachinePoints, request: &PruneRequest) -> bool {
    let is_named = group.points.iter().any(|(point, _)| request.names.iter().any(|name| name == point.machine()));
    let is_of_this_host = group.points.last().is_some_and(|(_, newest)| newest.host == super::inventory::host_name());
    let lives = match &request.living {
        Living::DoesNotMatter => true,
        Living::Known(uuids) => uuids.contains(&group.machine.uuid),
        Living::Unknown(_) => false,
    };
    is_of_this_host && !is_named && !lives
}

/// Returns the damaged points that are newer than the newest intact one, except those dated in the future; also among
/// the points that have a part which others leave out. No chunk is read, because this only determines which points may
/// be the last usable ones.
fn newest_damaged(
    verifier: &mut Verifier,
    group: &MachinePoints,
    lacking: &[BTreeSet<String>],
    now: Time,
    stop: &Stop,
) -> Result<HashSet<Id>> {
    let mut damaged = HashSet::new();
    // The parts for which no intact point was found yet.
    let mut open: BTreeSet<&String> = lacking.iter().flatten().collect();
    let mut is_any_intact = false;
    let points = group.points.iter().zip(lacking).rev();
    for ((point, _), lacks) in points.filter(|((point, _), _)| point.snapshot.time <= now) {
        if is_any_intact && open.iter().all(|part| lacks.contains(*part)) {
            continue;
        }
        match verifier.verify(point, &Silent, stop)?.damage.is_empty() {
            true => {
                is_any_intact = true;
                open.retain(|part| lacks.contains(*part));
            }
            false => drop(damaged.insert(point.id)),
        }
    }
    Ok(damaged)
}
