//! Judges the state of a machine. Pure, so that every case can be tested.

use super::running::RunningNow;
use super::thresholds::Thresholds;
use crate::cli::table::age;
use crate::history::{MachineMemory, MachineRun, PastRun, RunOutcome};
use crate::ops::latest_points::{CLOCK_TOLERANCE, Newest};
use crate::record::{Check, Extra, Status, Time, time_value};
use serde_json::{Value, json};
use std::time::Duration;

/// How a machine relates to the backups of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It should be backed up.
    Selected,
    /// It should be backed up, but libvirt does not know it.
    Missing,
    /// It exists and has points, but should not be backed up.
    LeftOut,
    /// It has points, but libvirt does not know it any more.
    Gone,
    /// It belongs to another host, and was named on the command line.
    Elsewhere,
    /// It has points. Whether it still exists was not checked: the status is of the repository alone.
    Stored,
}

impl Standing {
    /// Returns the word in a record.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Standing::Selected => "selected",
            Standing::Missing => "missing",
            Standing::LeftOut => "left_out",
            Standing::Gone => "gone",
            Standing::Elsewhere => "elsewhere",
            Standing::Stored => "stored",
        }
    }

    /// Whether it should have a fresh point.
    pub(crate) fn counts(self) -> bool {
        matches!(self, Standing::Selected | Standing::Missing | Standing::Elsewhere | Standing::Stored)
    }
}

/// Everything that is known about a machine.
#[derive(Debug, Clone)]
pub(crate) struct MachineFacts {
    pub(crate) machine: String,
    /// Its UUID, if known.
    pub(crate) uuid: Option<String>,
    pub(crate) standing: Standing,
    pub(crate) newest: Option<Newest>,
    /// Whether the newest point was read from the repository; otherwise it is what this host remembers.
    pub(crate) from_repository: bool,
    /// Whether the repository exists, or existed once.
    pub(crate) is_repository_made: bool,
    /// This host's history of the machine.
    pub(crate) memory: Option<MachineMemory>,
    /// The ids of points that are known to be damaged.
    pub(crate) damaged: Vec<String>,
    /// The time of the next run that includes it.
    pub(crate) next_run: Option<Time>,
    /// Its backup that is running now.
    pub(crate) running: Option<RunningNow>,
}

impl MachineFacts {
    /// Returns the age of its newest point; zero if that is dated in the future.
    pub(crate) fn age(&self, now: Time) -> Option<Duration> {
        self.newest.as_ref().map(|newest| (now - newest.captured_at).to_std().unwrap_or_default())
    }

    fn last_run(&self) -> Option<&MachineRun> {
        self.memory.as_ref()?.last_run.as_ref()
    }

    /// Returns the last run if it failed and no successful one followed.
    fn last_failure(&self) -> Option<&MachineRun> {
        let stored_since = |run: &&MachineRun| {
            self.from_repository && self.newest.as_ref().is_some_and(|newest| newest.captured_at > run.ended_at)
        };
        self.last_run().filter(|run| run.result != RunOutcome::Done && !stored_since(run))
    }
}

/// Ranks a status by severity: a known problem ranks above an unknown state.
pub(crate) fn rank(status: Status) -> u8 {
    match status {
        Status::Ok => 0,
        Status::Unknown => 1,
        Status::Warning => 2,
        Status::Critical => 3,
    }
}

/// Returns the status of one of kvmb's own checks.
pub(crate) fn status_of(check: &Check) -> Status {
    let all = [Status::Ok, Status::Unknown, Status::Warning, Status::Critical];
    all.into_iter().find(|status| status.as_str() == check.status).unwrap_or(Status::Unknown)
}

/// Returns the host on which a machine's newest point was captured.
pub(crate) fn host_of(check: &Check) -> Option<&str> {
    check.extra.get("host")?.as_str()
}

/// The findings about a machine, worst first.
#[derive(Default)]
struct Findings(Vec<(Status, String, Option<String>)>);

impl Findings {
    fn add(&mut self, status: Status, words: impl Into<String>) {
        self.0.push((status, words.into(), None));
    }

    fn hint(&mut self, status: Status, words: impl Into<String>, hint: impl Into<String>) {
        self.0.push((status, words.into(), Some(hint.into())));
    }

    fn check(mut self, check: &str, target: &str, extra: Extra) -> Check {
        self.0.sort_by_key(|(status, ..)| std::cmp::Reverse(rank(*status)));
        let status = self.0.first().map_or(Status::Ok, |(status, ..)| *status);
        let words: Vec<&str> = self.0.iter().map(|(_, words, _)| words.as_str()).collect();
        let hint = self.0.iter().find_map(|(_, _, hint)| hint.clone());
        Check { hint, extra, ..Check::new(check, target, status, words.join("; ")) }
    }
}

/// Returns the check of a machine.
pub(crate) fn judge(facts: &MachineFacts, thresholds: &Thresholds, now: Time, repo: &str) -> Check {
    let mut findings = Findings::default();
    // A name with a NUL byte cannot be quoted.
    let name = shlex::try_quote(&facts.machine).unwrap_or("MACHINE".into());
    match facts.standing {
        Standing::Gone => {
            findings.add(Status::Ok, "the machine no longer exists; its points are kept");
        }
        Standing::LeftOut => findings.add(Status::Ok, "not selected for backup"),
        Standing::Selected | Standing::Missing | Standing::Elsewhere => {
            freshness(&mut findings, facts, thresholds, now, &name);
            last_run(&mut findings, facts, now);
            verification(&mut findings, facts, thresholds, now, &name);
            drill(&mut findings, facts, thresholds, now, &name);
        }
        Standing::Stored => freshness(&mut findings, facts, thresholds, now, &name),
    }
    if !facts.damaged.is_empty() {
        let words = match facts.damaged.len() {
            1 => "1 point is damaged".to_owned(),
            count => format!("{count} points are damaged"),
        };
        findings.hint(
            Status::Critical,
            words,
            "run 'kvmb verify --all' to see what is affected; the next backup does not repair it",
        );
    }
    if let Some(running) = &facts.running {
        findings.add(Status::Ok, running.words());
    }
    findings.check("backup", &facts.machine, extra(facts, thresholds, now, repo))
}

fn freshness(findings: &mut Findings, facts: &MachineFacts, thresholds: &Thresholds, now: Time, name: &str) {
    if facts.standing == Standing::Missing {
        findings.hint(
            Status::Warning,
            "the machine does not exist",
            "remove it from selected_vms of the configuration, or from the schedule",
        );
    }
    let Some(newest) = &facts.newest else {
        let had_points = facts.memory.as_ref().is_some_and(|memory| memory.newest_point.is_some());
        let words = match (facts.from_repository, had_points) {
            (true, true) => "its points are no longer in the repository",
            (true, false) => "never backed up",
            (false, _) if !facts.is_repository_made => "never backed up",
            (false, _) => "the repository is unreachable; according to this host, never backed up",
        };
        return match facts.running {
            Some(_) => findings.add(Status::Critical, words),
            None => findings.hint(Status::Critical, words, format!("kvmb backup {name}")),
        };
    };
    let old = facts.age(now).unwrap_or_default();
    let status = freshness_of(old, thresholds);
    let words = format!("the newest point is {} old", age(now, newest.captured_at.min(now)));
    match facts.from_repository {
        true if newest.captured_at > now + CLOCK_TOLERANCE => {
            findings.add(Status::Warning, "the newest point is dated in the future; check the clocks");
        }
        true => {
            findings.add(status, words);
            match newest.future_points {
                0 => {}
                1 => findings.add(Status::Warning, "1 point is dated in the future; check the clocks"),
                count => {
                    findings.add(Status::Warning, format!("{count} points are dated in the future; check the clocks"));
                }
            }
        }
        false => {
            let worst = [status, Status::Unknown].into_iter().max_by_key(|status| rank(*status)).unwrap_or(status);
            findings.add(worst, format!("the repository is unreachable; according to this host, {words}"));
        }
    }
}

fn last_run(findings: &mut Findings, facts: &MachineFacts, now: Time) {
    if let Some(run) = facts.last_run().filter(|run| run.result == RunOutcome::Done)
        && let Some(lack) = &run.error
    {
        findings.add(Status::Warning, lack.clone());
    }
    let Some(run) = facts.last_failure() else { return };
    let ago = age(now, run.ended_at.min(now));
    let why = run.error.as_deref().unwrap_or("damage was found");
    match run.result {
        RunOutcome::Done => {}
        RunOutcome::Damage => findings.add(Status::Critical, format!("the last run, {ago} ago, found damage: {why}")),
        RunOutcome::Failed => findings.hint(
            Status::Warning,
            format!("the last run, {ago} ago, failed: {why}"),
            format!("kvmb log {}", run.run),
        ),
        RunOutcome::Interrupted => findings.add(Status::Warning, format!("the last run, {ago} ago, was interrupted")),
        // The other run may be a backup too; if it is not, the newest point will become too old.
        RunOutcome::Busy => findings
            .add(Status::Ok, format!("the last run, {ago} ago, was skipped because the machine was busy: {why}")),
    }
}

fn verification(findings: &mut Findings, facts: &MachineFacts, thresholds: &Thresholds, now: Time, name: &str) {
    let Some(newest) = &facts.newest else { return };
    let verified = facts.memory.as_ref().and_then(|memory| memory.verified.as_ref());
    let since = verified.map(|verification| verification.at).or(facts.memory.as_ref().map(|memory| memory.since));
    let since = since.unwrap_or(newest.captured_at);
    if (now - since).to_std().unwrap_or_default() > thresholds.verify_warning {
        let words = match verified {
            Some(_) => format!("no point verified in the last {}", age(now, since)),
            None => "no point has ever been verified".to_owned(),
        };
        findings.hint(Status::Warning, words, format!("kvmb verify {name}@latest"));
    }
}

/// Judges the last drill: a failed one is critical, and one without any check is reported as such.
fn drill(findings: &mut Findings, facts: &MachineFacts, thresholds: &Thresholds, now: Time, name: &str) {
    let (Some(_), Some(memory)) = (&facts.newest, &facts.memory) else { return };
    let last = memory.last_drill.as_ref();
    if let Some(last) = last.filter(|last| last.status != Status::Ok.as_str()) {
        let status = if last.status == Status::Critical.as_str() { Status::Critical } else { Status::Warning };
        let words = format!("the last drill, {} ago: {}", age(now, last.ended_at.min(now)), last.detail);
        findings.hint(status, words, format!("kvmb drill {name}"));
    }
    let since = last.map_or(memory.since, |last| last.ended_at);
    if thresholds.drill_max_age.is_some_and(|limit| (now - since).to_std().unwrap_or_default() > limit) {
        let words = match last {
            Some(_) => format!("no drill in the last {}", age(now, since)),
            None => "no point has ever been booted".to_owned(),
        };
        findings.hint(Status::Warning, words, format!("kvmb drill {name}"));
    }
}

fn extra(facts: &MachineFacts, thresholds: &Thresholds, now: Time, repo: &str) -> Extra {
    let mut extra = Extra::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            extra.insert(key.to_owned(), value);
        }
    };
    let seconds = |length: Duration| Some(json!(length.as_secs()));
    put("uuid", facts.uuid.as_ref().map(|uuid| json!(uuid)));
    put("repo", Some(json!(repo)));
    put("standing", Some(json!(facts.standing.word())));
    put("known_from", Some(json!(if facts.from_repository { "repository" } else { "history" })));
    if let Some(newest) = &facts.newest {
        put("host", Some(json!(newest.host)));
        put("newest_point", Some(json!(newest.point)));
        put("captured_at", Some(time_value(newest.captured_at)));
        put("age_seconds", facts.age(now).and_then(seconds));
        put("points", facts.from_repository.then(|| json!(newest.points)));
    }
    if let Some(memory) = &facts.memory {
        if let Some(run) = &memory.last_run {
            put("last_result", Some(json!(run.result.word())));
            put("last_run", Some(json!(run.run)));
            put("last_run_at", Some(time_value(run.ended_at)));
            put("last_code", run.code.as_ref().map(|code| json!(code)));
            put("last_error", run.error.as_ref().map(|error| json!(error)));
            put("duration_seconds", Some(json!(run.duration_seconds())));
        }
        if let Some(run) = &memory.last_success {
            put("last_success_at", Some(time_value(run.ended_at)));
            put("read_bytes", Some(json!(run.read_bytes)));
            put("new_bytes", Some(json!(run.new_bytes)));
            put("stored_bytes", Some(json!(run.stored_bytes)));
        }
        if let Some(verification) = &memory.verified {
            put("verified_at", Some(time_value(verification.at)));
            put("verified_age_seconds", (now - verification.at).to_std().ok().and_then(seconds));
            put("verified_depth", Some(json!(verification.depth.word())));
        }
        if let Some(drill) = &memory.last_drill {
            put("drill_at", Some(time_value(drill.ended_at)));
            put("drill_age_seconds", (now - drill.ended_at).to_std().ok().and_then(seconds));
            put("drill_status", Some(json!(drill.status)));
            put("drill_detail", Some(json!(drill.detail)));
            put("drill_point", Some(json!(drill.point.point)));
            put("drill_rung", drill.rung.as_ref().map(|rung| json!(rung)));
            put("drill_rung_seconds", drill.rung_seconds.map(|seconds| json!(seconds)));
            put("drill_log", drill.log.as_ref().map(|path| json!(path)));
            put("drill_screenshot", drill.screenshot.as_ref().map(|path| json!(path)));
        }
    }
    put("damaged_points", (!facts.damaged.is_empty()).then(|| json!(facts.damaged)));
    put("next_run_at", facts.next_run.map(time_value));
    if let Some(running) = &facts.running {
        put("running_pid", Some(json!(running.backup.pid)));
        put("running_began_at", Some(time_value(running.backup.since)));
        put("running_job", running.job.as_ref().map(|job| json!(job)));
        put("running_done_bytes", Some(json!(running.done_bytes)));
        put("running_total_bytes", Some(json!(running.total_bytes)));
    }
    if facts.standing.counts() {
        put("warning_seconds", seconds(thresholds.warning));
        put("critical_seconds", seconds(thresholds.critical));
    }
    if facts.standing.counts() && facts.standing != Standing::Stored {
        put("verify_warning_seconds", seconds(thresholds.verify_warning));
        put("drill_max_age_seconds", thresholds.drill_max_age.and_then(seconds));
    }
    extra
}

/// Adds the last runs of a machine to its check, newest last.
pub(crate) fn with_runs(mut check: Check, facts: &MachineFacts, most: usize) -> Check {
    let runs = facts.memory.as_ref().map_or(&[][..], |memory| &memory.runs);
    if most > 0 && !runs.is_empty() {
        let newest = &runs[runs.len().saturating_sub(most)..];
        let run = |run: &PastRun| {
            let mut value = json!({
                "run": run.run,
                "began_at": time_value(run.began_at),
                "ended_at": time_value(run.ended_at),
                "result": run.result.word(),
                "new_bytes": run.new_bytes,
                "stored_bytes": run.stored_bytes,
            });
            if let Some(code) = &run.code {
                value["code"] = json!(code);
            }
            value
        };
        check.extra.insert("runs".into(), newest.iter().map(run).collect());
    }
    check
}

/// Returns the check of a host whose machines have points. A host without a new point is silent.
pub(crate) fn judge_host(host: &str, newest: Time, machines: usize, thresholds: &Thresholds, now: Time) -> Check {
    let old = (now - newest).to_std().unwrap_or_default();
    let age = age(now, newest.min(now));
    let status = freshness_of(old, thresholds);
    let words = match status {
        Status::Ok => format!("the newest point is {age} old"),
        _ => format!("silent: no new point of any machine for {age}"),
    };
    let mut findings = Findings::default();
    match status {
        Status::Ok => findings.add(status, words),
        _ => findings.hint(status, words, "run 'kvmb status' on that host"),
    }
    let extra = Extra::from_iter([
        ("machines".to_owned(), json!(machines)),
        ("captured_at".to_owned(), time_value(newest)),
        ("age_seconds".to_owned(), json!(old.as_secs())),
    ]);
    findings.check("host", host, extra)
}

/// Judges the age of a newest point.
fn freshness_of(old: Duration, thresholds: &Thresholds) -> Status {
    match () {
        () if old > thresholds.critical => Status::Critical,
        () if old > thresholds.warning => Status::Warning,
        () => Status::Ok,
    }
}

/// The newest copy of a machine in the second repository.
#[derive(Debug, Clone)]
pub(crate) struct LatestCopy {
    pub(crate) machine: String,
    pub(crate) uuid: String,
    /// When the newest copied point was captured.
    pub(crate) captured_at: Option<Time>,
}

/// Returns the check of the second repository. It is judged by the machine whose newest copy is the oldest.
pub(crate) fn judge_copies(
    copies: &[LatestCopy],
    unreachable: Option<&str>,
    damaged: usize,
    thresholds: &Thresholds,
    now: Time,
    repo: &str,
) -> Check {
    let mut findings = Findings::default();
    // An address with a NUL byte cannot be quoted.
    let address = shlex::try_quote(repo).unwrap_or("REPO".into());
    if damaged > 0 {
        let words = format!("{damaged} snapshot files cannot be read");
        let hint = format!("run 'kvmb verify --all -r {address}' to see what is affected");
        findings.hint(Status::Critical, words, hint);
    }
    let mut extra = Extra::from_iter([("machines".to_owned(), json!(copies.len()))]);
    let missing: Vec<&str> = copies.iter().filter(|c| c.captured_at.is_none()).map(|c| c.machine.as_str()).collect();
    if !missing.is_empty() {
        findings.hint(
            Status::Critical,
            format!("no copy of {}", missing.join(", ")),
            format!("run 'kvmb backup --all --copy-to {address}' to copy the missing points"),
        );
    }
    let oldest = copies.iter().filter_map(|copied| Some((copied.captured_at?, copied))).min_by_key(|(at, _)| *at);
    if let Some((at, copied)) = oldest {
        let old = (now - at).to_std().unwrap_or_default();
        let status = freshness_of(old, thresholds);
        findings.add(status, format!("the newest copy of {} is {} old", copied.machine, age(now, at.min(now))));
        extra.insert("captured_at".into(), time_value(at));
        extra.insert("age_seconds".into(), json!(old.as_secs()));
    }
    if let Some(why) = unreachable {
        findings.add(Status::Unknown, why);
    } else if copies.is_empty() {
        findings.add(Status::Ok, "nothing to copy yet");
    }
    findings.check("copy", repo, extra)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{DrillRun, History, KnownPoint, Verification, VerifiedDepth};
    use chrono::TimeDelta;

    const UUID: &str = "6f2a7c3e-0d6a-4b6e-9d1c-3f2f6c1e0a11";
    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> Time {
        "2026-11-20T12:00:00+01:00".parse().unwrap()
    }

    fn ago(hours: i64) -> Time {
        now() - TimeDelta::hours(hours)
    }

    fn thresholds() -> Thresholds {
        Thresholds { warning: 26 * HOUR, critical: 50 * HOUR, verify_warning: 720 * HOUR, drill_max_age: None }
    }

    /// Returns a history of the last hours.
    fn memory(since: i64, change: impl FnOnce(&mut MachineMemory)) -> MachineMemory {
        let data = tempfile::tempdir().unwrap();
        let history = History::of(data.path(), "/backup");
        history.change("vm1", UUID, ago(since), change).unwrap();
        history.all().0.remove(0)
    }

    fn run(result: RunOutcome, hours: i64) -> MachineRun {
        MachineRun {
            run: "1".into(),
            command: "backup".into(),
            began_at: ago(hours),
            ended_at: ago(hours),
            result,
            code: None,
            error: (result != RunOutcome::Done).then(|| "no luck".to_owned()),
            point: (result == RunOutcome::Done).then(|| KnownPoint { point: "p".into(), captured_at: ago(hours) }),
            read_bytes: 1,
            new_bytes: 1,
            stored_bytes: 1,
        }
    }

    fn facts(age_hours: Option<i64>) -> MachineFacts {
        let newest = |hours| Newest {
            machine: "vm1".into(),
            uuid: UUID.into(),
            host: "h".into(),
            point: "p".into(),
            captured_at: ago(hours),
            points: 3,
            future_points: 0,
        };
        MachineFacts {
            machine: "vm1".into(),
            uuid: Some(UUID.into()),
            standing: Standing::Selected,
            newest: age_hours.map(newest),
            from_repository: true,
            is_repository_made: true,
            running: None,
            memory: None,
            damaged: Vec::new(),
            next_run: None,
        }
    }

    /// Returns the status and the text.
    fn judged(facts: &MachineFacts) -> (String, String) {
        let check = judge(facts, &thresholds(), now(), "/backup");
        (check.status, check.detail)
    }

    #[track_caller]
    fn assert_judged(facts: &MachineFacts, status: &str, words: &str) {
        let (found, detail) = judged(facts);
        assert!(found == status && detail.contains(words), "{found}: {detail}");
    }

    #[test]
    fn age_of_the_newest_point_determines_the_status() {
        assert_judged(&facts(Some(5)), "ok", "the newest point is 5 h old");
        assert_judged(&facts(Some(26)), "ok", "26 h");
        assert_judged(&facts(Some(27)), "warning", "27 h");
        assert_judged(&facts(Some(51)), "critical", "2 days old");
        assert_judged(&facts(None), "critical", "never backed up");
        assert_judged(&facts(Some(-2)), "warning", "dated in the future");
        let mut ahead = facts(Some(51));
        ahead.newest.iter_mut().for_each(|newest| newest.future_points = 1);
        assert_judged(&ahead, "critical", "2 days old; 1 point is dated in the future");
    }

    #[test]
    fn unreachable_repository_is_never_ok() {
        let unasked = |hours| MachineFacts { from_repository: false, ..facts(hours) };
        assert_judged(&unasked(Some(5)), "unknown", "is unreachable; according to this host, the newest point is 5 h");
        assert_judged(&unasked(Some(51)), "critical", "2 days old");
        assert_judged(&unasked(None), "critical", "according to this host, never backed up");
    }

    #[test]
    fn failed_run_after_the_newest_point_is_reported() {
        let with = |result, hours| MachineFacts {
            memory: Some(memory(100, |m| m.note_run(run(result, hours)))),
            ..facts(Some(10))
        };
        assert_judged(&with(RunOutcome::Failed, 3), "warning", "the last run, 3 h ago, failed: no luck");
        assert_judged(&with(RunOutcome::Interrupted, 3), "warning", "was interrupted");
        assert_judged(&with(RunOutcome::Damage, 3), "critical", "found damage");
        assert_judged(&with(RunOutcome::Busy, 3), "ok", "busy");
        // The newest point is newer than the failure.
        assert_judged(&with(RunOutcome::Failed, 11), "ok", "10 h old");
    }

    #[test]
    fn failed_and_overdue_drills_are_reported() {
        let drilled = |status: &str, hours| {
            let drill = DrillRun {
                run: "1".into(),
                point: KnownPoint { point: "p".into(), captured_at: ago(hours) },
                began_at: ago(hours),
                ended_at: ago(hours),
                status: status.into(),
                detail: "no luck".into(),
                rung: Some("agent".into()),
                rung_seconds: Some(4.5),
                log: None,
                screenshot: None,
            };
            MachineFacts { memory: Some(memory(100, |m| m.note_drill(drill))), ..facts(Some(5)) }
        };
        assert_judged(&drilled("ok", 90), "ok", "5 h old");
        assert_judged(&drilled("critical", 3), "critical", "the last drill, 3 h ago: no luck");
        assert_judged(&drilled("unknown", 3), "warning", "the last drill, 3 h ago: no luck");
        let check = judge(&drilled("ok", 90), &thresholds(), now(), "/backup");
        assert_eq!(check.extra["drill_rung_seconds"], json!(4.5));
        assert_eq!(check.extra["drill_age_seconds"], json!(90 * 3600));
        let within = |hours| Thresholds { drill_max_age: Some(hours * HOUR), ..thresholds() };
        let words = |facts: &MachineFacts, hours| judge(facts, &within(hours), now(), "/backup").detail;
        assert!(words(&drilled("ok", 90), 80).contains("no drill in the last"));
        assert!(!words(&drilled("ok", 90), 95).contains("drill"));
        let never = MachineFacts { memory: Some(memory(100, |_| ())), ..facts(Some(5)) };
        assert!(words(&never, 80).contains("no point has ever been booted"));
        assert!(!words(&never, 120).contains("booted"));
    }

    #[test]
    fn overdue_verification_is_a_warning_and_damage_is_critical() {
        let verified_ago = |hours| {
            let at = ago(hours);
            let verification = Verification { point: "p".into(), at, depth: VerifiedDepth::Quick };
            MachineFacts { memory: Some(memory(1000, |m| m.note_whole(verification))), ..facts(Some(1)) }
        };
        assert_judged(&verified_ago(719), "ok", "1 h old");
        assert_judged(&verified_ago(721), "warning", "no point verified in the last 4 weeks");
        let never = MachineFacts { memory: Some(memory(1000, |_| ())), ..facts(Some(1)) };
        assert_judged(&never, "warning", "ever been verified");
        // Without a history, the time of the first backup is unknown.
        assert_judged(&facts(Some(1)), "ok", "");
        assert_judged(&MachineFacts { damaged: vec!["p".into()], ..facts(Some(1)) }, "critical", "1 point is damaged");
    }

    #[test]
    fn gone_and_unselected_machines_are_ok_with_a_note() {
        for (standing, words) in [(Standing::Gone, "no longer exists"), (Standing::LeftOut, "not selected")] {
            assert_judged(&MachineFacts { standing, ..facts(Some(1000)) }, "ok", words);
        }
        assert_judged(&MachineFacts { standing: Standing::Missing, ..facts(Some(1)) }, "warning", "does not exist");
        assert_judged(
            &MachineFacts { standing: Standing::Missing, ..facts(None) },
            "critical",
            "never backed up; the machine",
        );
    }

    #[test]
    fn status_of_copies_follows_the_oldest_one() {
        let copy = |name: &str, hours: Option<i64>| LatestCopy {
            machine: name.into(),
            uuid: UUID.into(),
            captured_at: hours.map(ago),
        };
        let judged = |copies: &[LatestCopy], unreachable| {
            let check = judge_copies(copies, unreachable, 0, &thresholds(), now(), "/second");
            (check.status, check.detail)
        };
        assert_eq!(
            judged(&[copy("a", Some(1)), copy("b", Some(3))], None),
            ("ok".into(), "the newest copy of b is 3 h old".into())
        );
        assert_eq!(judged(&[copy("a", Some(1)), copy("b", Some(30))], None).0, "warning");
        assert_eq!(judged(&[copy("a", None), copy("b", Some(1))], None).0, "critical");
        assert_eq!(judged(&[copy("a", Some(1))], Some("no way")).0, "unknown");
        assert_eq!(judged(&[], None).0, "ok");
    }
}
