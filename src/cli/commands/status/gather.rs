//! Gathers the facts: the machines from libvirt, which of them to back up from the configuration or the schedule, their
//! points from the repositories, and the results of the last runs from this host's history.

use super::judge::{self, LatestCopy, MachineFacts, Standing, judge, judge_copies};
use super::repository;
use super::running::running;
use super::thresholds::{ThresholdArgs, Thresholds};
use crate::cli::args::repo::RepoArgs;
use crate::cli::commands::installed_schedules::{self, Scheduled};
use crate::cli::commands::key;
use crate::cli::commands::restore_live;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::folders::state_folder;
use crate::config::Config;
use crate::glob::is_glob;
use crate::history::{History, MachineMemory};
use crate::ops::Monitor;
use crate::ops::inventory::host_name;
use crate::ops::latest_points::{LatestPoints, Newest};
use crate::ops::points::name_matches;
use crate::record::{Check, Status, Time};
use crate::repo::Repository;
use chrono::Local;
use std::collections::BTreeSet;
use std::path::Path;

/// An opened repository, or why it cannot be opened.
pub(crate) type Asked = Result<Repository, CliError>;

/// What to gather.
#[derive(Debug)]
pub(crate) struct StatusRequest<'a> {
    /// Names and globs of machines; empty means all.
    pub(crate) names: &'a [String],
    pub(crate) thresholds: &'a ThresholdArgs,
    /// The number of past runs and sizes to add to the checks.
    pub(crate) runs: usize,
    /// The first repository's address.
    pub(crate) repo: String,
    /// The first repository itself.
    pub(crate) first: Asked,
    /// The address of the second repository, and the repository itself.
    pub(crate) second: Option<(String, Asked)>,
}

#[derive(Debug)]
pub(crate) struct StatusReport {
    pub(crate) at: Time,
    /// The address of the first repository.
    pub(crate) repo: String,
    /// Whether the first repository could be read.
    pub(crate) reachable: bool,
    /// Whether the first or the second repository has unreadable snapshot files, of any machine.
    pub(crate) damaged: bool,
    pub(crate) thresholds: Thresholds,
    /// The machines, each with its check.
    pub(crate) machines: Vec<(MachineFacts, Check)>,
    /// The address of the second repository, and the newest copy of each machine in it.
    pub(crate) second: Option<(String, Vec<LatestCopy>)>,
    /// Whether the key that kvmb generated is also kept elsewhere; None if kvmb generated none.
    pub(crate) key_kept: Option<bool>,
    /// All other checks.
    pub(crate) others: Vec<Check>,
    /// The hosts, for the status of all hosts; otherwise empty.
    pub(crate) hosts: Vec<HostFacts>,
}

/// A host whose machines have points.
#[derive(Debug)]
pub(crate) struct HostFacts {
    pub(crate) host: String,
    /// The newest point of any of its machines.
    pub(crate) captured_at: Time,
    pub(crate) status: Status,
}

/// Opens a repository. Usage errors are returned as errors; an unavailable repository is a result.
pub(crate) fn ask(context: &Context, repo: &RepoArgs) -> Result<Asked, CliError> {
    match repo.open(context) {
        Err(error) if matches!(error.code, Code::Usage | Code::Interrupted) => Err(error),
        answer => Ok(answer),
    }
}

/// A machine that libvirt knows.
struct KnownMachine {
    name: String,
    uuid: String,
}

/// Which machines should be backed up.
enum SelectedMachines<'a> {
    /// Those named on the command line.
    Named(&'a [String]),
    /// Those that the configuration selects.
    Configured(&'a Selected),
    /// Those that the schedules name.
    Scheduled(Vec<String>),
    All,
}

/// `selected_vms` of the configuration.
struct Selected {
    taken: Vec<String>,
    left_out: Vec<String>,
}

impl Selected {
    fn new(config: &Config) -> Selected {
        let chosen = |wanted: bool| {
            let chosen = config.selected_vms.iter().filter(|(_, taken)| **taken == wanted);
            chosen.map(|(name, _)| name.text().to_owned()).collect()
        };
        Selected { taken: chosen(true), left_out: chosen(false) }
    }

    fn takes(&self, machine: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| name_matches(pattern, machine));
        any(&self.taken) && !any(&self.left_out)
    }
}

impl<'a> SelectedMachines<'a> {
    fn new(selected: &'a Selected, names: &'a [String], schedules: &[Scheduled]) -> SelectedMachines<'a> {
        let scheduled: Vec<String> = schedules.iter().flat_map(|schedule| schedule.names().iter().cloned()).collect();
        match () {
            () if !names.is_empty() => SelectedMachines::Named(names),
            () if !selected.taken.is_empty() => SelectedMachines::Configured(selected),
            () if scheduled.is_empty() || schedules.iter().any(Scheduled::takes_all) => SelectedMachines::All,
            () => SelectedMachines::Scheduled(scheduled),
        }
    }

    fn takes(&self, name: &str, uuid: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| name_matches(pattern, name) || pattern == uuid);
        match self {
            SelectedMachines::All => true,
            SelectedMachines::Named(names) => any(names),
            SelectedMachines::Scheduled(names) => any(names),
            SelectedMachines::Configured(selected) => selected.takes(name),
        }
    }

    /// Returns the names that are not patterns: machines with these names are expected to exist.
    fn expected(&self) -> Vec<&String> {
        let names: &[String] = match self {
            SelectedMachines::All => &[],
            SelectedMachines::Named(names) => names,
            SelectedMachines::Scheduled(names) => names,
            SelectedMachines::Configured(selected) => &selected.taken,
        };
        names.iter().filter(|name| !is_glob(name) && self.takes(name, name)).collect()
    }
}

/// Gathers and judges.
pub(crate) fn gather(context: &Context, request: StatusRequest) -> Result<StatusReport, CliError> {
    let at = Local::now().fixed_offset();
    let StatusRequest { names, thresholds, runs, repo, first, second } = request;
    let schedules = installed_schedules::all(context);
    let gap = schedules.iter().filter_map(Scheduled::longest_gap).min();
    let configured = context.config().backup_freq.as_ref().and_then(|cron| cron.value().longest_gap());
    let thresholds = thresholds.thresholds(gap.or(configured))?;
    let mut others = Vec::new();
    let listed = context.hypervisor(None).and_then(|hypervisor| {
        let machines = hypervisor.machines(&[])?;
        Ok((hypervisor.uri().to_owned(), machines))
    });
    let mut empty_connection = None;
    let known = match listed {
        Ok((uri, machines)) => {
            empty_connection = machines.is_empty().then_some(uri);
            let known = |machine: &crate::capture::Machine| KnownMachine {
                name: machine.name().to_owned(),
                uuid: machine.uuid().to_owned(),
            };
            Some(machines.iter().map(known).collect::<Vec<_>>())
        }
        Err(error) => {
            let detail = format!("cannot list the machines: {}", error.message);
            others.push(Check { hint: error.hint, ..Check::new("connection", host_name(), Status::Unknown, detail) });
            None
        }
    };
    let (mut stored, repository) = look(context, &repo, &first);
    let selected = Selected::new(context.config());
    let wanted = SelectedMachines::new(&selected, names, &schedules);
    let memories = remembered(context, &repo);
    let is_made_later = repository.as_ref().is_some_and(|error| is_made_later(error, &memories));
    let mut facts = subjects(known.as_deref(), &wanted, stored.as_mut(), &memories)?;
    others.extend(empty_connection.and_then(|uri| no_machines(&uri, &facts)));
    let running = running(context);
    for facts in &mut facts {
        facts.is_repository_made = !is_made_later;
        facts.running = running.iter().find(|running| running.is_of(&facts.machine, facts.uuid.as_deref())).cloned();
        if facts.standing == Standing::Selected {
            let is_configured = selected.takes(&facts.machine);
            let takes = schedules.iter().filter(|schedule| schedule.takes(&facts.machine, is_configured));
            facts.next_run = takes.filter_map(Scheduled::next_run).min();
        }
    }
    let mut damaged = damaged_files(stored.as_ref());
    let repository = match repository {
        Some(error) if is_made_later => Check { hint: error.hint, ..not_made_yet(&repo) },
        other => repository_check(&repo, other, damaged, &schedules),
    };
    others.push(repository::with_sizes(repository, context, &repo, runs));
    others.extend(repository::checks(context, &repo, first.as_ref().ok(), at));
    let second = match second {
        None => None,
        Some((url, asked)) => {
            others.extend(repository::checks(context, &url, asked.as_ref().ok(), at));
            let (copies, damaged_there, check) = copies(context, &url, &asked, &facts, &thresholds, at)?;
            damaged += damaged_there;
            others.push(check);
            Some((url, copies))
        }
    };
    if let Ok(runtime) = context.runtime() {
        others.extend(restore_live::checks(&runtime));
    }
    let key = key::kept_elsewhere()?;
    let key_kept = key.as_ref().map(|(kept, _)| *kept);
    others.extend(key.map(|(_, check)| check));
    let judged = |facts: MachineFacts| {
        let check = judge::with_runs(judge(&facts, &thresholds, at, &repo), &facts, runs);
        (facts, check)
    };
    let machines = facts.into_iter().map(judged).collect();
    let reachable = stored.is_some();
    Ok(StatusReport {
        at,
        reachable,
        damaged: damaged > 0,
        repo,
        thresholds,
        machines,
        second,
        key_kept,
        others,
        hosts: Vec::new(),
    })
}

/// Returns the check of a connection without machines on a host that has points: all of them seem to be gone. It is
/// probably the wrong connection, or libvirt has lost its definitions, so this must not look like success.
fn no_machines(uri: &str, facts: &[MachineFacts]) -> Option<Check> {
    let detail = format!("{uri} has no machines, but this host has points");
    let check = Check::new("connection", host_name(), Status::Unknown, detail);
    let is_any_gone = facts.iter().any(|facts| facts.standing == Standing::Gone);
    is_any_gone.then(|| check.hint("choose the connection that has the machines: kvmb -c URI status"))
}

/// Lists the latest points of a repository, or returns why it cannot be read.
pub(super) fn look<'r>(
    context: &'r Context,
    url: &str,
    asked: &'r Asked,
) -> (Option<LatestPoints<'r>>, Option<CliError>) {
    let looked = match asked {
        Ok(repo) => LatestPoints::look(repo, &context.monitor, Local::now().fixed_offset()).map_err(CliError::from),
        Err(error) => Err(error.clone()),
    };
    match looked {
        Ok(stored) => (Some(stored), None),
        Err(error) => {
            tracing::debug!("{url}: {error}");
            (None, Some(error))
        }
    }
}

/// Whether the repository was never created. One that this host has used may be on a file system that is not mounted.
fn is_made_later(error: &CliError, memories: &[MachineMemory]) -> bool {
    error.code == Code::NoRepository && memories.iter().all(|memory| memory.newest_point.is_none())
}

fn not_made_yet(url: &str) -> Check {
    Check::new("repository", url, Status::Critical, "no repository yet")
}

pub(super) fn repository_check(
    url: &str,
    unreachable: Option<CliError>,
    damaged: usize,
    schedules: &[Scheduled],
) -> Check {
    if let Some(error) = unreachable {
        return Check { hint: error.hint, ..Check::new("repository", url, Status::Critical, error.message) };
    }
    if damaged > 0 {
        let detail = format!("{damaged} snapshot files cannot be read");
        return Check::new("repository", url, Status::Critical, detail)
            .hint("run 'kvmb verify --all' to see what is affected");
    }
    let check = Check::new("repository", url, Status::Ok, "the points can be listed");
    // Compare as paths: a schedule has the address as it was typed, perhaps with a trailing slash.
    let is_another = |repo: &&str| Path::new(repo) != Path::new(url);
    match schedules.iter().filter_map(|schedule| schedule.repo.as_deref()).find(is_another) {
        // Otherwise nobody would notice that a newly installed monitor checks the wrong repository.
        Some(other) => {
            check.hint(format!("the schedule uses another repository; run 'kvmb status -r {other}' to check it"))
        }
        None => check,
    }
}

fn remembered(context: &Context, url: &str) -> Vec<MachineMemory> {
    let Ok(folder) = state_folder() else { return Vec::new() };
    let (memories, errors) = History::of(&folder, url).all();
    errors.iter().for_each(|error| context.monitor.warn(&error.to_string()));
    memories
}

/// Returns the machines that a status covers, sorted by name, with everything that is known about each.
fn subjects(
    known: Option<&[KnownMachine]>,
    wanted: &SelectedMachines,
    mut stored: Option<&mut LatestPoints>,
    memories: &[MachineMemory],
) -> Result<Vec<MachineFacts>, CliError> {
    let memory_of = |uuid: &str| memories.iter().find(|memory| memory.uuid == uuid);
    let mut facts: Vec<MachineFacts> = Vec::new();
    let mut seen = BTreeSet::new();
    let is_named = matches!(wanted, SelectedMachines::Named(_));
    for machine in known.unwrap_or_default() {
        seen.insert(machine.uuid.clone());
        let takes = wanted.takes(&machine.name, &machine.uuid);
        if is_named && !takes {
            continue;
        }
        let newest = match stored.as_deref_mut() {
            Some(stored) => stored.newest_of(&machine.name, &machine.uuid)?,
            None => memory_of(&machine.uuid).and_then(of_memory),
        };
        let standing = match takes {
            true => Standing::Selected,
            false if newest.is_some() => Standing::LeftOut,
            false => continue,
        };
        facts.push(of_machine(&machine.name, Some(&machine.uuid), standing, newest));
    }
    let others = match stored.as_deref_mut() {
        Some(stored) => stored.newest_of_all()?,
        None => memories.iter().filter_map(of_memory).collect(),
    };
    let this_host = host_name();
    for newest in others {
        if seen.contains(&newest.uuid) {
            continue;
        }
        let is_here = newest.host == this_host;
        let takes = wanted.takes(&newest.machine, &newest.uuid);
        let is_expected = wanted.expected().contains(&&newest.machine);
        let standing = match (known.is_some(), is_here, takes) {
            (_, false, true) if is_named => Standing::Elsewhere,
            (_, false, _) => continue,
            (_, true, false) if is_named => continue,
            (true, true, true) if is_expected && !is_named => Standing::Missing,
            (true, true, _) => Standing::Gone,
            (false, true, true) => Standing::Selected,
            (false, true, false) => Standing::LeftOut,
        };
        // A machine that was renamed: its newest point is the newer one.
        match facts.iter_mut().find(|facts| facts.uuid.as_ref() == Some(&newest.uuid)) {
            Some(facts) if facts.newest.as_ref().is_some_and(|known| known.captured_at >= newest.captured_at) => {}
            Some(facts) => *facts = of_machine(&newest.machine, Some(&newest.uuid), standing, Some(newest.clone())),
            None => facts.push(of_machine(&newest.machine, Some(&newest.uuid), standing, Some(newest.clone()))),
        }
    }
    for name in wanted.expected() {
        if !facts.iter().any(|facts| facts.machine == *name || facts.uuid.as_ref() == Some(name)) {
            // Without libvirt, it is not known whether the machine is missing.
            let standing = if known.is_some() { Standing::Missing } else { Standing::Selected };
            facts.push(of_machine(name, None, standing, None));
        }
    }
    for facts in &mut facts {
        facts.from_repository = stored.is_some();
        facts.memory = facts.uuid.as_deref().and_then(memory_of).cloned();
        let remembered = facts.memory.iter().flat_map(|memory| &memory.damaged).map(|damage| damage.point.clone());
        let still_there = |point: &String| stored.as_ref().is_none_or(|stored| stored.has(point));
        facts.damaged = remembered.filter(still_there).collect();
        let unreadable = stored.iter().flat_map(|stored| &stored.unreadable);
        for (_, point) in unreadable.filter(|(machine, _)| *machine == facts.machine) {
            if !facts.damaged.contains(point) {
                facts.damaged.push(point.clone());
            }
        }
    }
    facts.sort_by(|a, b| (&a.machine, &a.uuid).cmp(&(&b.machine, &b.uuid)));
    Ok(facts)
}

pub(super) fn of_machine(
    name: &str,
    uuid: Option<&String>,
    standing: Standing,
    newest: Option<Newest>,
) -> MachineFacts {
    MachineFacts {
        machine: name.to_owned(),
        uuid: uuid.cloned(),
        standing,
        newest,
        from_repository: true,
        is_repository_made: true,
        memory: None,
        damaged: Vec::new(),
        next_run: None,
        running: None,
    }
}

/// Returns the newest point that this host remembers. It was stored from this host.
fn of_memory(memory: &MachineMemory) -> Option<Newest> {
    let point = memory.newest_point.as_ref()?;
    Some(Newest {
        machine: memory.machine.clone(),
        uuid: memory.uuid.clone(),
        host: host_name(),
        point: point.point.clone(),
        captured_at: point.captured_at,
        points: 0,
        future_points: 0,
    })
}

/// Returns the number of unreadable snapshot files.
pub(super) fn damaged_files(stored: Option<&LatestPoints>) -> usize {
    stored.map_or(0, |stored| stored.damaged.len())
}

/// Returns the newest copies of the machines that should have fresh ones, and the number of unreadable snapshot files
/// in the second repository.
fn copies(
    context: &Context,
    url: &str,
    asked: &Asked,
    facts: &[MachineFacts],
    thresholds: &Thresholds,
    now: Time,
) -> Result<(Vec<LatestCopy>, usize, Check), CliError> {
    let (mut stored, unreachable) = look(context, url, asked);
    let memories = remembered(context, url);
    let mut copies = Vec::new();
    for facts in facts.iter().filter(|facts| facts.standing.counts() && facts.newest.is_some()) {
        let Some(uuid) = &facts.uuid else { continue };
        let newest = match &mut stored {
            Some(stored) => stored.newest_of(&facts.machine, uuid)?,
            None => memories.iter().find(|memory| memory.uuid == *uuid).and_then(of_memory),
        };
        let captured_at = newest.map(|newest| newest.captured_at);
        copies.push(LatestCopy { machine: facts.machine.clone(), uuid: uuid.clone(), captured_at });
    }
    let why = unreachable.as_ref().map(|error| match is_made_later(error, &memories) {
        true => "no repository yet".to_owned(),
        false => format!("unreachable; showing what this host knows: {}", error.message),
    });
    let damaged = damaged_files(stored.as_ref());
    let mut check = judge_copies(&copies, why.as_deref(), damaged, thresholds, now, url);
    check.hint = unreachable.and_then(|error| error.hint).or(check.hint);
    Ok((copies, damaged, check))
}
