//! Checks of a repository as a whole from this host's history: whether it is pruned, and when it will be full.

use crate::cli::context::Context;
use crate::cli::folders::state_folder;
use crate::cli::table::{age, bytes};
use crate::history::repo_memory::RepoSize;
use crate::history::{History, RepoMemory, RunOutcome};
use crate::ops::Monitor;
use crate::record::{Check, Extra, Status, Time, time_value};
use crate::repo::Repository;
use chrono::TimeDelta;
use serde_json::json;
use std::time::Duration;

/// Time since the last prune after which configured rules that were not applied are a warning.
const PRUNE_WARNING: TimeDelta = TimeDelta::days(7);

/// Time until the file system is full below which there is a warning.
const SPACE_WARNING: Duration = Duration::from_secs(31 * 86_400);

/// Returns the checks of retention and of free space, each only if there is data for it. `repo` is the repository at
/// `url`, if it could be opened.
pub(crate) fn checks(context: &Context, url: &str, repo: Option<&Repository>, now: Time) -> Vec<Check> {
    let memory = memory_of(context, url);
    let has_rules = !context.config().retention.of(url).is_empty();
    let free_bytes = repo.and_then(|repo| repo.storage().free_bytes().ok().flatten());
    let retention = has_rules.then(|| judge_prunes(url, memory.as_ref(), now));
    let space = memory.as_ref().and_then(|memory| judge_space(url, memory, free_bytes));
    retention.into_iter().chain(space).collect()
}

fn memory_of(context: &Context, url: &str) -> Option<RepoMemory> {
    let known = History::of(&state_folder().ok()?, url).of_repo();
    known.unwrap_or_else(|error| {
        context.monitor.warn(&error.to_string());
        None
    })
}

/// Adds the last sizes of the repository at `url` to a check, newest last.
pub(crate) fn with_sizes(mut check: Check, context: &Context, url: &str, most: usize) -> Check {
    let sizes = if most > 0 { memory_of(context, url).map(|memory| memory.sizes) } else { None };
    if let Some(sizes) = sizes.filter(|sizes| !sizes.is_empty()) {
        let newest = &sizes[sizes.len().saturating_sub(most)..];
        let size = |size: &RepoSize| json!({ "at": time_value(size.at), "stored_bytes": size.stored_bytes });
        check.extra.insert("sizes".into(), newest.iter().map(size).collect());
    }
    check
}

fn judge_prunes(url: &str, memory: Option<&RepoMemory>, now: Time) -> Check {
    let last = memory.and_then(|memory| memory.last_successful_prune.as_ref());
    let failed = memory.and_then(|memory| memory.last_prune.as_ref()).filter(|run| run.result != RunOutcome::Done);
    let since = last.map(|run| run.ended_at).or(memory.map(|memory| memory.since)).unwrap_or(now);
    let is_late = now - since > PRUNE_WARNING;
    let ago = age(now, since.min(now));
    let mut detail = match (last, is_late) {
        (Some(_), false) => format!("pruned {ago} ago"),
        (Some(_), true) => format!("there are retention rules, but the last successful prune was {ago} ago"),
        (None, false) => "not pruned yet".to_owned(),
        (None, true) => format!("there are retention rules, but no prune has run on this host for {ago}"),
    };
    if let Some(run) = failed {
        let why = run.error.as_deref().unwrap_or("the reason is unknown");
        detail.push_str(&format!("; the last prune, {} ago, failed: {why}", age(now, run.ended_at.min(now))));
    }
    let status = if is_late { Status::Warning } else { Status::Ok };
    let mut check = Check::new("retention", url, status, detail);
    if is_late {
        let url = shlex::try_quote(url).unwrap_or("URL".into());
        check.hint = Some(format!("kvmb prune -r {url}"));
    }
    let mut extra = Extra::new();
    let mut put = |key: &str, time: Option<Time>| {
        extra.extend(time.map(|time| (key.to_owned(), time_value(time))));
    };
    put("pruned_at", last.map(|run| run.ended_at));
    put("last_prune_at", memory.and_then(|memory| memory.last_prune.as_ref()).map(|run| run.ended_at));
    if let Some(run) = memory.and_then(|memory| memory.last_prune.as_ref()) {
        extra.insert("last_result".into(), json!(run.result.word()));
    }
    Check { extra, ..check }
}

fn judge_space(url: &str, memory: &RepoMemory, free_bytes: Option<u64>) -> Option<Check> {
    // If the repository is unreachable, use the last known value.
    let free_bytes = free_bytes.or(memory.free_space.last().map(|sample| sample.free_bytes))?;
    let growth = memory.growth()?;
    let left = memory.time_until_full(free_bytes)?;
    let a_day = bytes((growth * 86_400.0) as u64);
    let free = bytes(free_bytes);
    let days = left.as_secs() / 86_400;
    let check = match left < SPACE_WARNING {
        true => {
            let in_days = if days == 1 { "1 day".to_owned() } else { format!("{days} days") };
            let detail = format!("{free} free, full in about {in_days} at the present growth of {a_day} a day");
            Check::new("space", url, Status::Warning, detail)
                .hint("free some space: keep fewer points ('kvmb prune'), or move the repository to a larger disk")
        }
        false => Check::new("space", url, Status::Ok, format!("{free} free, growing by {a_day} a day")),
    };
    let extra = Extra::from_iter([
        ("free_bytes".to_owned(), json!(free_bytes)),
        ("growth_bytes_per_day".to_owned(), json!((growth * 86_400.0) as u64)),
        ("full_in_seconds".to_owned(), json!(left.as_secs())),
    ]);
    Some(Check { extra, ..check })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::PruneRun;

    const URL: &str = "/backup";

    fn now() -> Time {
        "2026-11-20T12:00:00+01:00".parse().unwrap()
    }

    fn ago(days: i64) -> Time {
        now() - TimeDelta::days(days)
    }

    /// Returns a history of the last days.
    fn memory(since: i64, change: impl FnOnce(&mut RepoMemory)) -> RepoMemory {
        let data = tempfile::tempdir().unwrap();
        let history = History::of(data.path(), URL);
        history.change_repo(ago(since), change).unwrap();
        history.of_repo().unwrap().unwrap()
    }

    fn run(days: i64, result: RunOutcome) -> PruneRun {
        let error = (result != RunOutcome::Done).then(|| "no luck".to_owned());
        PruneRun { run: "1".into(), command: "backup".into(), ended_at: ago(days), result, error }
    }

    #[test]
    fn missing_prune_is_a_warning_after_a_week() {
        let judged = |memory: Option<&RepoMemory>| {
            let check = judge_prunes(URL, memory, now());
            (check.status, check.detail)
        };
        assert_eq!(judged(None), ("ok".into(), "not pruned yet".into()));
        assert_eq!(judged(Some(&memory(6, |_| ()))).0, "ok");
        let (status, detail) = judged(Some(&memory(9, |_| ())));
        assert!(status == "warning" && detail.ends_with("no prune has run on this host for 9 days"), "{detail}");
        let pruned = |days| memory(90, |m| m.note_prune(run(days, RunOutcome::Done)));
        assert_eq!(judged(Some(&pruned(6))), ("ok".into(), "pruned 6 days ago".into()));
        let (status, detail) = judged(Some(&pruned(8)));
        assert!(status == "warning" && detail.ends_with("the last successful prune was 8 days ago"), "{detail}");
        // A failed prune does not count, and is reported.
        let failed = memory(90, |m| {
            m.note_prune(run(6, RunOutcome::Done));
            m.note_prune(run(1, RunOutcome::Busy));
        });
        let (status, detail) = judged(Some(&failed));
        assert!(status == "ok" && detail.ends_with("the last prune, 24 h ago, failed: no luck"), "{detail}");
        assert_eq!(judge_prunes(URL, Some(&pruned(8)), now()).hint.as_deref(), Some("kvmb prune -r /backup"));
    }

    #[test]
    fn file_system_that_fills_within_a_month_is_a_warning() {
        let grown = |bytes_a_day: u64| {
            memory(9, |memory| {
                (0..8).for_each(|day| memory.note_free_space(ago(8 - day), (100 << 30) - day as u64 * bytes_a_day));
            })
        };
        let judged =
            |memory: &RepoMemory, free| judge_space(URL, memory, free).map(|check| (check.status, check.detail));
        let (status, detail) = judged(&grown(5 << 30), Some(60 << 30)).unwrap();
        assert_eq!(status, "warning");
        assert_eq!(detail, "60.00 GiB free, full in about 12 days at the present growth of 5.00 GiB a day");
        assert_eq!(judged(&grown(1 << 30), Some(92 << 30)).unwrap().0, "ok");
        // The growth is zero or unknown.
        assert_eq!(judged(&grown(0), Some(1)), None);
        assert_eq!(judged(&memory(9, |_| ()), Some(1)), None);
        // Unreachable: the last known free space is used.
        assert_eq!(judged(&grown(5 << 30), None).unwrap().0, "warning");
    }
}
