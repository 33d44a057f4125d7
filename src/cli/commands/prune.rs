//! `kvmb prune`

use crate::cli::args::copy::CopyToArgs;
use crate::cli::args::repo::RepoArgs;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::history_recorder::HistoryRecorder;
use crate::cli::session::{About, Session};
use crate::cli::table::bytes;
use crate::ops;
use crate::ops::copy::plan::Copies;
use crate::ops::object_lock::local_time;
use crate::ops::points::{name_matches, no_such_point};
use crate::ops::prune::{JudgedPoint, Living, Prune, PruneRequest, SecondTier};
use crate::record::{Action, Extra, Record, time_value};
use crate::repo::{MaxUnused, PruneSummary, Repository};
use crate::retention::{CalendarSpan, Keep, Policy, Reason};
use chrono::Local;
use serde_json::json;

/// Remove points according to retention rules, and free their space.
///
/// The rules are those of 'restic forget'. They are applied to each machine separately. A point is kept if any rule
/// keeps it. Without options, the rules of the configuration apply ('retention': 'local' for a folder, 'remote' for
/// a server). Without any rule no point is removed, and only unused space is freed.
///
/// Some points are always kept: pinned points ('kvmb pin'), the last good point of a machine, points dated in the
/// future, points that the second repository (--copy-to) does not have yet, and points of machines of this host that no
/// longer exist, unless you name them or use --gone-machines. In a bucket, locked data ('kvmb backup --lock-for') stays
/// until its lock expires.
///
/// Prints a 'forget' record for each point, with the reason, and a 'prune' record.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb prune --keep-daily 7 --keep-weekly 4 --keep-monthly 12 -r /backup/kvm --dry-run
  kvmb prune --keep-within 30d -r /backup/kvm
  kvmb prune 'test*' --keep-last 3 -r /backup/kvm
  kvmb prune -r /backup/kvm --max-unused 0%     only free unused space, as much as possible")]
pub(crate) struct PruneArgs {
    /// Machine names or globs. Default: all machines.
    #[arg(value_name = "NAME", add = complete::point_machines())]
    names: Vec<String>,

    #[command(flatten)]
    policy: PolicyArgs,

    /// Also apply the rules to machines of this host that libvirt no longer knows.
    #[arg(long)]
    gone_machines: bool,

    /// Maximum share of unused data in packs: a share of the repository (5%), an amount (2G) or 'unlimited' (repack
    /// nothing).
    #[arg(long, value_name = "LIMIT", default_value = "5%")]
    max_unused: MaxUnused,

    /// Show what would be done without doing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,

    #[command(flatten)]
    copy: CopyToArgs,
}

/// The rules.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Rules")]
struct PolicyArgs {
    /// Keep the last N points ('unlimited' keeps all; this applies to all --keep options).
    #[arg(long, value_name = "N")]
    keep_last: Option<Keep>,

    /// Keep the last point of each of the last N hours that have points.
    #[arg(long, value_name = "N")]
    keep_hourly: Option<Keep>,

    /// Keep the last point of each of the last N days that have points.
    #[arg(long, value_name = "N")]
    keep_daily: Option<Keep>,

    /// Keep the last point of each of the last N weeks (Monday to Sunday) that have points.
    #[arg(long, value_name = "N")]
    keep_weekly: Option<Keep>,

    /// Keep the last point of each of the last N months that have points.
    #[arg(long, value_name = "N")]
    keep_monthly: Option<Keep>,

    /// Keep the last point of each of the last N years that have points.
    #[arg(long, value_name = "N")]
    keep_yearly: Option<Keep>,

    /// Keep all points made within this time before the machine's latest point: 30d, 12h, 1y6m (m means months).
    #[arg(long, value_name = "TIME")]
    keep_within: Option<CalendarSpan>,
}

impl PolicyArgs {
    /// Returns the rules of the flags or, without flags, the configured rules for a repository of this kind.
    fn policy(&self, context: &Context, url: &str) -> Policy {
        let given = self.given();
        if given == Policy::default() { context.config().retention.of(url).clone() } else { given }
    }

    fn given(&self) -> Policy {
        Policy {
            keep_last: self.keep_last.unwrap_or_default(),
            keep_hourly: self.keep_hourly.unwrap_or_default(),
            keep_daily: self.keep_daily.unwrap_or_default(),
            keep_weekly: self.keep_weekly.unwrap_or_default(),
            keep_monthly: self.keep_monthly.unwrap_or_default(),
            keep_yearly: self.keep_yearly.unwrap_or_default(),
            keep_within: self.keep_within,
        }
    }
}

/// Opens the second repository and lists its points. If that fails, nothing may be removed.
fn known_to(context: &Context, second: &RepoArgs) -> Result<(Repository, Copies), CliError> {
    let known = second.open(context).and_then(|repo| {
        let copies = Copies::list(&repo)?;
        Ok((repo, copies))
    });
    known.map_err(|error| {
        let url = second.url().unwrap_or_default();
        let message = format!("nothing was removed, because the points in {url} cannot be listed: {}", error.message);
        let hint = error.hint.unwrap_or_else(|| "use --copy-to '' if there is no second repository".into());
        CliError { message, hint: Some(hint), ..error }
    })
}

impl PruneArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let repo = self.repo.open(context)?;
        let policy = self.policy.policy(context, &repo.url());
        let (_, second) = self.copy.tiers(context, &self.repo)?;
        let second = second.map(|second| known_to(context, &second)).transpose()?;
        let job = PruneJob {
            policy: &policy,
            names: &self.names,
            gone_machines: self.gone_machines,
            second: second.as_ref().map(|(repo, copies)| second_tier(context, repo, copies)),
            max_unused: self.max_unused,
            dry_run: self.dry_run,
            show_kept: true,
        };
        job.run(context, &repo, session)
    }
}

/// Describes the second repository, with its own rules.
fn second_tier<'a>(context: &'a Context, repo: &'a Repository, copies: &'a Copies) -> SecondTier<'a> {
    SecondTier { repo, copies, policy: context.config().retention.of(&repo.url()) }
}

/// Prunes a repository after a backup, by the rules of the configuration. Keeps points that `second`, if there is one,
/// does not have yet.
pub(crate) fn prune_after_backup(
    context: &Context,
    repo: &Repository,
    second: Option<&Repository>,
    session: &mut Session,
) -> Result<(), CliError> {
    let copies = second.map(Copies::list).transpose()?;
    let job = PruneJob {
        policy: context.config().retention.of(&repo.url()),
        names: &[],
        gone_machines: false,
        second: second.zip(copies.as_ref()).map(|(repo, copies)| second_tier(context, repo, copies)),
        max_unused: MaxUnused::default(),
        dry_run: false,
        show_kept: false,
    };
    job.run(context, repo, session)
}

/// Returns the record that a backup's dry run prints for the prune that would follow.
pub(crate) fn planned_prune(url: &str, policy: &Policy) -> Record {
    Record::Action(Action {
        action: "prune".into(),
        target: url.to_owned(),
        changed: true,
        reason: format!("would be pruned after the backup: {policy}"),
        dry_run: true,
        extra: Extra::new(),
    })
}

/// Returns the message after an interrupted prune.
fn what_is_kept(removed: usize, points: &[JudgedPoint]) -> String {
    let going = points.iter().filter(|judged| !judged.verdict.keep).count();
    let kept = points.len() - removed;
    format!(
        "{removed} of {going} points were removed, and {kept} points are complete; run the command again to free the \
         rest of the space"
    )
}

/// A prune of one repository.
struct PruneJob<'a> {
    policy: &'a Policy,
    names: &'a [String],
    gone_machines: bool,
    second: Option<SecondTier<'a>>,
    max_unused: MaxUnused,
    dry_run: bool,
    /// Whether kept points are printed too.
    show_kept: bool,
}

impl PruneJob<'_> {
    /// Prunes, prints the records, and records the result in the history of this host.
    fn run(&self, context: &Context, repo: &Repository, session: &mut Session) -> Result<(), CliError> {
        let done = self.prune(context, repo, session);
        // A prune of only some machines does not count as a prune of the repository.
        if !self.dry_run && !self.policy.is_empty() && self.names.is_empty() {
            let history = HistoryRecorder::of(context, &repo.url());
            history.prune(done.as_ref().err());
            history.free_space(repo);
        }
        done
    }

    fn prune(&self, context: &Context, repo: &Repository, session: &mut Session) -> Result<(), CliError> {
        let request = PruneRequest {
            policy: self.policy,
            names: self.names,
            living: self.living(context),
            second: self.second,
            max_unused: self.max_unused,
            dry_run: self.dry_run,
        };
        let now = Local::now().fixed_offset();
        let planned = Prune::plan(repo, &request, now, &context.monitor, &context.stop);
        let mut prune = planned.map_err(|error| match error {
            ops::Error::Interrupted => CliError::from(error).hint("nothing was removed"),
            other => other.into(),
        })?;
        for (point, error) in prune.take_unreadable() {
            session.fail(About { machine: Some(point.machine().to_owned()), ..About::default() }, error);
        }
        let is_known = |name: &&String| prune.points().iter().any(|judged| name_matches(name, judged.point.machine()));
        for name in self.names.iter().filter(|name| !is_known(name)) {
            let machines = prune.points().iter().map(|judged| judged.point.machine());
            let error = no_such_point(repo, machines, name.clone());
            session.fail(About { machine: Some(name.clone()), ..About::default() }, error);
        }
        // None of the requested machines has points.
        if !self.names.is_empty() && !self.names.iter().any(|name| is_known(&name)) {
            return Ok(());
        }
        let is_shown = |judged: &&JudgedPoint| if judged.verdict.keep { self.show_kept } else { self.dry_run };
        for judged in prune.points().iter().filter(is_shown) {
            // Nothing is done with a kept point.
            session.pass(&self.forget_record(judged));
        }
        if self.policy.is_empty() && session.is_table() {
            context.hint(
                "specify what to keep, for example 'kvmb prune --keep-daily 7', or set 'retention' in the \
                 configuration",
            );
        }
        if self.dry_run {
            session.done(self.prune_record(repo, prune.points(), prune.summary()));
            return Ok(());
        }
        let mut removed = 0;
        let mut forgotten = |judged: &JudgedPoint| {
            removed += 1;
            session.done(self.forget_record(judged));
        };
        let pruned = prune.run(&context.monitor, &context.stop, &mut forgotten).map_err(|error| match error {
            ops::Error::Interrupted => CliError::from(error).hint(what_is_kept(removed, prune.points())),
            other => other.into(),
        })?;
        session.done(self.prune_record(repo, prune.points(), &pruned.summary));
        if pruned.was_short_of_room {
            let message = format!("not enough space in {} to repack data", repo.url());
            let error = CliError::new(Code::NoSpace, message).hint("run the command again; some space was freed");
            session.fail(About::default(), error);
        }
        Ok(())
    }

    /// Returns which machines of this host still exist. Does not ask libvirt if the answer has no effect.
    fn living(&self, context: &Context) -> Living {
        if self.gone_machines || self.policy.is_empty() {
            return Living::DoesNotMatter;
        }
        let known = context.hypervisor(None).and_then(|hypervisor| Ok(hypervisor.machines(&[])?));
        match known {
            Ok(machines) => Living::Known(machines.iter().map(|machine| machine.uuid().to_owned()).collect()),
            Err(error) => Living::Unknown(error.message),
        }
    }

    fn forget_record(&self, judged: &JudgedPoint) -> Record {
        let reasons = &judged.verdict.reasons;
        let texts: Vec<String> = reasons.iter().map(ToString::to_string).collect();
        let why = texts.join(", ");
        let mut fields = json!({
            "machine": judged.manifest.machine,
            "uuid": judged.manifest.uuid,
            "host": judged.manifest.host,
            "captured_at": time_value(judged.manifest.captured_at),
            "keep": judged.verdict.keep,
            "rules": reasons.iter().map(|reason| reason.word()).collect::<Vec<_>>(),
        });
        if let [Reason::Locked(until)] = reasons[..] {
            fields["locked_until"] = time_value(until);
        }
        Record::Action(Action {
            action: "forget".into(),
            target: judged.point.id.to_string(),
            changed: !judged.verdict.keep,
            reason: if judged.verdict.keep { format!("keep: {why}") } else { format!("remove: {why}") },
            dry_run: self.dry_run,
            extra: fields.as_object().cloned().unwrap_or_default(),
        })
    }

    fn prune_record(&self, repo: &Repository, points: &[JudgedPoint], summary: &PruneSummary) -> Record {
        let kept = points.iter().filter(|judged| judged.verdict.keep).count();
        let mut fields = json!({
            "removed_points": points.len() - kept,
            "kept_points": kept,
            "size_bytes": summary.size_bytes,
            "freed_bytes": summary.freed_bytes(),
            "unused_bytes": summary.unused_bytes,
            "removed_packs": summary.removed_packs,
            "repacked_packs": summary.repacked_packs,
            "copied_bytes": summary.copied_bytes,
            "locked_packs": summary.locked_packs,
            "locked_bytes": summary.locked_bytes,
        });
        let locked_until = summary.locked_until.map(local_time);
        if let Some(until) = locked_until {
            fields["locked_until"] = time_value(until);
        }
        let rules = match self.policy.is_empty() {
            true => "no retention rules, no points removed".to_owned(),
            false => self.policy.to_string(),
        };
        let freed = match summary.is_nothing() {
            true => "nothing to free".to_owned(),
            false => format!("{} freed of {}", bytes(summary.freed_bytes()), bytes(summary.size_bytes)),
        };
        let locked = locked_until.map(|until| {
            format!("; {} unused are locked until {}", bytes(summary.locked_bytes), until.format("%Y-%m-%d %H:%M"))
        });
        Record::Action(Action {
            action: "prune".into(),
            target: repo.url(),
            changed: !summary.is_nothing(),
            reason: format!("{rules}; {freed}{}", locked.unwrap_or_default()),
            dry_run: self.dry_run,
            extra: fields.as_object().cloned().unwrap_or_default(),
        })
    }
}
