//! The status of every host and machine that ever stored something in a repository, from the repository alone.

use super::gather::{Asked, HostFacts, StatusReport, damaged_files, look, of_machine, repository_check};
use super::judge::{Standing, host_of, judge, judge_host, status_of};
use super::thresholds::ThresholdArgs;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::glob::is_glob;
use crate::ops::latest_points::Newest;
use crate::ops::points::name_matches;
use crate::record::Time;
use chrono::Local;
use std::collections::BTreeMap;

/// Gathers and judges. `names` are names and globs of machines; empty means all.
pub(super) fn gather_fleet(
    context: &Context,
    names: &[String],
    thresholds: &ThresholdArgs,
    repo: String,
    asked: &Asked,
) -> Result<StatusReport, CliError> {
    let at = Local::now().fixed_offset();
    let thresholds = thresholds.thresholds(None)?;
    let (mut stored, unreachable) = look(context, &repo, asked);
    let found = stored.as_mut().map(|stored| stored.newest_of_each_machine()).transpose()?.unwrap_or_default();
    let is_wanted = |newest: &Newest| names.is_empty() || names.iter().any(|name| name_matches(name, &newest.machine));
    let wanted: Vec<Newest> = found.into_iter().filter(is_wanted).collect();
    let mut by_host: BTreeMap<String, (Time, usize)> = BTreeMap::new();
    for newest in &wanted {
        let (captured_at, machines) = by_host.entry(newest.host.clone()).or_insert((newest.captured_at, 0));
        *captured_at = newest.captured_at.max(*captured_at);
        *machines += 1;
    }
    let damaged = damaged_files(stored.as_ref());
    let mut others = vec![repository_check(&repo, unreachable, damaged, &[])];
    let mut hosts = Vec::new();
    for (host, (captured_at, machines)) in by_host {
        let check = judge_host(&host, captured_at, machines, &thresholds, at);
        hosts.push(HostFacts { host, captured_at, status: status_of(&check) });
        others.push(check);
    }
    let unreadable = stored.iter().flat_map(|stored| &stored.unreadable);
    let unreadable: Vec<&(String, String)> = unreadable.collect();
    let judged = |newest: Newest| {
        let (machine, uuid) = (newest.machine.clone(), newest.uuid.clone());
        let mut facts = of_machine(&machine, Some(&uuid), Standing::Stored, Some(newest));
        let its = unreadable.iter().filter(|(name, _)| *name == machine);
        facts.damaged = its.map(|(_, point)| point.clone()).collect();
        let check = judge(&facts, &thresholds, at, &repo);
        (facts, check)
    };
    let mut machines: Vec<_> = wanted.into_iter().map(judged).collect();
    for name in names.iter().filter(|name| stored.is_some() && !is_glob(name)) {
        if !machines.iter().any(|(facts, _)| facts.machine == *name) {
            let facts = of_machine(name, None, Standing::Stored, None);
            let check = judge(&facts, &thresholds, at, &repo);
            machines.push((facts, check));
        }
    }
    machines.sort_by(|(_, a), (_, b)| (&a.target, host_of(a)).cmp(&(&b.target, host_of(b))));
    Ok(StatusReport {
        at,
        reachable: stored.is_some(),
        damaged: damaged > 0,
        repo,
        thresholds,
        machines,
        second: None,
        key_kept: None,
        others,
        hosts,
    })
}
