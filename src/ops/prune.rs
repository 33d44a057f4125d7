//! Applying retention: removing points, and then freeing their space.
//!
//! All is decided under the repository's exclusive lock before anything is changed: the verdict on each point, and what
//! of the packs is needed then. Where the repository is damaged, nothing is removed at all.
//!
//! A machine is its UUID on a host, and on those that it came from ([`crate::ops::points::lineage`]): two machines with
//! one UUID do not share what a rule keeps. It is *gone* when the newest of its points was taken on this host and this
//! host's libvirt does not know its UUID. Of machines of other hosts nothing is known here: the policy applies to them,
//! and it counts from their newest point, so that a machine that is not backed up any more keeps what the policy left
//! it.

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
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What is known of the machines of this host.
#[derive(Debug, Clone)]
pub enum Living {
    /// The user said that it does not matter.
    DoesNotMatter,
    /// libvirt knows these UUIDs.
    Known(HashSet<String>),
    /// libvirt could not be asked, and why.
    Unknown(String),
}

/// What to prune, and by which rules.
#[derive(Debug)]
pub struct PruneRequest<'a> {
    /// Which points to keep.
    pub policy: &'a Policy,
    /// Names and globs of machines; none means all. A machine that is named may be gone.
    pub names: &'a [String],
    /// Which machines exist.
    pub living: Living,
    /// The second tier, if there is one.
    pub second: Option<SecondTier<'a>>,
    /// How much waste may stay in packs that are needed.
    pub max_unused: MaxUnused,
    /// Change nothing.
    pub dry_run: bool,
}

/// Where the points of a repository are copied to.
#[derive(Debug, Clone, Copy)]
pub struct SecondTier<'a> {
    pub(crate) repo: &'a Repository,
    pub(crate) copies: &'a Copies,
    pub(crate) policy: &'a Policy,
}

/// A point, and what becomes of it.
#[derive(Debug)]
pub struct JudgedPoint {
    pub(crate) point: PointRef,
    /// What it says of itself.
    pub(crate) manifest: Manifest,
    pub(crate) verdict: RetentionDecision,
}

/// What a prune came to.
#[derive(Debug, Clone, Copy)]
pub struct Pruned {
    /// What was done.
    pub summary: PruneSummary,
    /// There was no room for copying what is needed out of packs that are mostly waste.
    pub was_short_of_room: bool,
}

/// A prune that is decided, in a locked repository.
#[derive(Debug)]
pub struct Prune<'a> {
    repo: &'a Repository,
    max_unused: MaxUnused,
    /// None for a rehearsal.
    exclusive: Option<Permit>,
    /// None for the real thing, and on a medium that cannot be written.
    _shared: Option<RepoLock>,
    points: Vec<JudgedPoint>,
    unreadable: Vec<(PointRef, Error)>,
    plan: PrunePlan,
}

impl<'a> Prune<'a> {
    /// Locks the repository, reads what it must and decides; changes nothing.
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
        let forgotten = points.iter().filter(|judged| !judged.verdict.keep).map(|judged| judged.point.id).collect();
        let plan = make_plan(repo, index, request.max_unused, room(repo)?, &forgotten, stop)?;
        failpoint::hit(Failpoint::PrunePlanned);
        Ok(Prune { repo, max_unused: request.max_unused, exclusive, _shared: shared, points, unreadable, plan })
    }

    /// The points that were asked about, in the order of machines and times.
    pub(crate) fn points(&self) -> &[JudgedPoint] {
        &self.points
    }

    /// Points that stay because nobody can say which machine's they are.
    pub(crate) fn take_unreadable(&mut self) -> Vec<(PointRef, Error)> {
        std::mem::take(&mut self.unreadable)
    }

    /// What the rest of it will come to.
    pub(crate) fn summary(&self) -> &PruneSummary {
        self.plan.summary()
    }

    /// Forgets the points that go (`forgotten` is called for each) and frees the space. A rehearsal does nothing.
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
        // Where there was room for a part of the copies only, there is more now.
        loop {
            let room_bytes = match &done {
                // The place knew of less room than there was: the rest without copies.
                Err(error) if is_no_space(error) && !was_full => Some(0),
                Ok(()) if last.is_short_of_room && last.freed_bytes() > 0 && !was_full => room(self.repo)?,
                _ => break,
            };
            stop.check()?;
            was_full = done.is_err();
            let index = self.repo.reload_index()?;
            let plan = make_plan(self.repo, index, self.max_unused, room_bytes, &HashSet::new(), stop)?;
            done = plan
                .remove_unnamed(permit, &|_| {}, &flag)
                .and_then(|()| plan.execute(permit, &|event| watch.hear(event), &flag));
            // What the full disk stopped was not done.
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

/// How much may be copied at once: the index and the other users of the disk need some of what is free as well.
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

/// Damage is a reason to remove nothing; other errors are what they are.
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

/// Not being allowed to remove files is a matter of its own; damage found while copying leaves the packs where they
/// are.
fn refused(repo: &Repository, error: repo::Error) -> Error {
    match error.is_refused_removal() {
        true => Error::RemovalRefused { url: repo.url(), source: Box::new(error) },
        false => damaged(error),
    }
}

/// Passes on what a prune reports: to the progress bar, and to the tests that stop it.
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

/// What becomes of the points, and those that nobody can judge.
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

    /// Its name in its newest point.
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

    // Without rules nothing is judged, and nobody needs to know.
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
        let damaged = match &mut verifier {
            Some(verifier) => newest_damaged(verifier, &group, now, stop)?,
            None => HashSet::new(),
        };
        let awaits_copy = match &mut second {
            Some(second) => second.await_copy(&group, now)?,
            None => vec![false; group.points.len()],
        };
        for ((point, manifest), awaits_copy) in group.points.into_iter().zip(awaits_copy) {
            candidates.push(Candidate {
                machine: number.to_string(),
                taken_at: point.snapshot.time,
                is_pinned: point.is_pinned(),
                is_restoring: point.is_restoring(),
                is_damaged: damaged.contains(&point.id),
                awaits_copy,
                outlives_machine,
            });
            judged.push((point, manifest));
        }
    }
    let verdicts = judge(request.policy, &candidates, now, &chrono::Local);
    let judged = judged.into_iter().zip(verdicts);
    let points = judged.map(|((point, manifest), verdict)| JudgedPoint { point, manifest, verdict }).collect();
    Ok(Judgement { points, unreadable })
}

/// Keeps the points that the place locks.
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

/// The second tier, with its index as soon as that is needed.
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

/// The damaged points that are newer than the newest whole one, but those that are dated in the future. No chunk is
/// read: this is about which point may be the last one that is good for anything.
fn newest_damaged(verifier: &mut Verifier, group: &MachinePoints, now: Time, stop: &Stop) -> Result<HashSet<Id>> {
    let mut damaged = HashSet::new();
    for (point, _) in group.points.iter().rev().filter(|(point, _)| point.snapshot.time <= now) {
        if verifier.verify(point, &Silent, stop)?.damage.is_empty() {
            break;
        }
        damaged.insert(point.id);
    }
    Ok(damaged)
}
