//! `kvmb backup`

use crate::cli::args::capture::{AuditArgs, CaptureArgs, ChunkArgs, CompressionArgs, LimitReadArgs, ThreadsArgs};
use crate::cli::args::copy::CopyToArgs;
use crate::cli::args::machine::{self, Selection};
use crate::cli::args::object_lock::LockForArgs;
use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::{duration, percent};
use crate::cli::commands::prune::{planned_prune, prune_after_backup};
use crate::cli::commands::snapshot::selections;
use crate::cli::commands::status;
use crate::cli::commands::verify::verify_sample;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::dry_run::{DryRunTarget, show_dry_run};
use crate::cli::failure::exit_code::ExitCode;
use crate::cli::failure::{CliError, Code};
use crate::cli::history_recorder::HistoryRecorder;
use crate::cli::hooks::HookRunner;
use crate::cli::object_locks::extend_for_new_points;
use crate::cli::session::{About, Session};
use crate::cli::table::{bytes, duration as span};
use crate::cli::terminal::stderr::say;
use crate::helper_thread;
use crate::ops::backup::Backup;
use crate::ops::copy::transfer::Copier;
use crate::ops::points::{self, PointName};
use crate::ops::push::Trust;
use crate::ops::threads::Parallelism;
use crate::ops::verify::{Verifier, VerifyDepth};
use crate::ops::{self, Monitor};
use crate::rate_limiter::RateLimiter;
use crate::record::{Point, Record, Time};
use crate::repo::{LockMode, Repository};
use chrono::Local;
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

/// Back up machines.
///
/// Running and stopped machines are backed up. The first backup of a machine reads all of its data. Later backups
/// read only what has changed, if the changes are known for certain. Every point can be restored on its own.
/// Without -r, points are stored in the repository of this host, /var/lib/kvmb/repo, which is created on first use.
/// Prints a 'point' record for each machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb backup vm1
  kvmb backup --all -r /backup/kvm --verify
  kvmb backup --all -r /backup/kvm --verify-sample 5%
  kvmb backup --all --prune
  kvmb backup vm1 -r /backup/kvm --copy-to /mnt/nas/kvm --limit-upload 10M
  kvmb backup 'web*' -r /backup/kvm --exclude-disk vdb --jobs 2
  kvmb vms --json | jq -c 'select(.state == \"running\")' | kvmb backup -r /backup/kvm")]
pub(crate) struct BackupArgs {
    /// Machine names or globs. Without names, 'machine' or 'disk' records are read from standard input. If there
    /// are none, the machines in selected_vms of the configuration are backed up.
    #[arg(value_name = "NAME", add = complete::machines())]
    names: Vec<String>,

    /// Back up all machines that libvirt knows.
    #[arg(long, conflicts_with = "names")]
    all: bool,

    #[command(flatten)]
    audit: AuditArgs,

    #[command(flatten)]
    chunks: ChunkArgs,

    #[command(flatten)]
    compression: CompressionArgs,

    #[command(flatten)]
    threads: ThreadsArgs,

    /// Read all data instead of only the changes, and compare it with the previous point.
    ///
    /// A change that the dirty bitmap missed is reported as damage to the chain (exit code 4). The new point is
    /// correct.
    #[arg(long)]
    full: bool,

    /// Apply --full to a disk that has not been read in full for this long (example: 30d).
    #[arg(long, value_name = "TIME", value_parser = duration)]
    full_every: Option<Duration>,

    /// Number of machines to back up at the same time.
    #[arg(short, long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,

    /// Verify each new point by reading it back.
    #[arg(long, overrides_with = "no_verify")]
    verify: bool,

    /// Skip verification even if the configuration enables it.
    #[arg(long)]
    no_verify: bool,

    /// After the backup, verify this share of all chunks in the repository (example: 5%).
    ///
    /// Each run continues where the previous one ended, so that 20 runs with 5% verify everything. With --copy-to,
    /// the second repository is verified as well.
    #[arg(long, value_name = "P%", value_parser = percent)]
    verify_sample: Option<f64>,

    /// After the backup and the copy, remove old points according to the retention rules of the configuration.
    ///
    /// Each repository of the run that has rules is pruned as by 'kvmb prune'. If that fails, the new points are safe,
    /// and the exit code is 3. Nothing is removed if no machine was backed up or damage was found.
    #[arg(long, overrides_with = "no_prune")]
    prune: bool,

    /// Do not prune, even if the configuration enables it.
    #[arg(long)]
    no_prune: bool,

    /// Show what would be done without doing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    repo: RepoArgs,

    #[command(flatten)]
    lock: LockForArgs,

    #[command(flatten)]
    capture: CaptureArgs,

    #[command(flatten)]
    limit: LimitReadArgs,

    #[command(flatten)]
    copy: CopyToArgs,
}

/// How thoroughly --verify verifies a new point.
const NEW_POINT_DEPTH: VerifyDepth = VerifyDepth::Full;

/// State that all machines of one run share.
#[derive(Clone, Copy)]
struct BackupRun<'a> {
    repo: &'a Repository,
    runtime: &'a crate::capture::RuntimeDirs,
    rate_limit: Option<&'a RateLimiter>,
    parallelism: Parallelism,
}

/// The repositories that a run has opened.
#[derive(Default)]
struct OpenedRepos {
    first: OnceLock<Repository>,
    second: OnceLock<Repository>,
}

impl BackupArgs {
    pub(crate) fn run(mut self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        self.lock.apply(context, &mut self.repo, Some(&self.copy))?;
        let pruned = self.repos_to_prune(context)?;
        if self.dry_run {
            let selected = self.selected(context, session)?;
            let copy_to = self.copy.tiers(context, &self.repo)?.1.map(|second| second.url()).transpose()?;
            let to = DryRunTarget { repo: self.repo.url()?, copy_to };
            show_dry_run(context, selected, &self.capture, Some(&to), session);
            for url in &pruned {
                session.pass(&planned_prune(url, context.config().retention.of(url)));
            }
            return Ok(());
        }
        let hooks = HookRunner::new(context, self.repo.url()?);
        let began_at = HistoryRecorder::now();
        let opened = OpenedRepos::default();
        let done = hooks.around_run(session, |session| {
            let (first, second) = self.copy.tiers(context, &self.repo)?;
            // Deriving a key from the password takes as long as connecting to libvirt, so do both concurrently.
            let (selected, opening) = std::thread::scope(|scope| {
                let opening =
                    first.can_open_unasked(context).then(|| helper_thread::start(scope, || first.open(context)));
                (self.selected(context, session), opening.map(|opening| opening.join()))
            });
            let opening = opening.map(|opening| opening.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            if let Some(Ok(repo)) = &opening {
                opened.first.get_or_init(|| repo.clone());
            }
            let selected = selected?;
            if selected.is_empty() {
                return Ok(());
            }
            let repo = opening.unwrap_or_else(|| first.open_or_create_default(context));
            // Report usage errors before touching a machine. An unreachable second repository is reported after the
            // backup.
            let repo = repo.and_then(|repo| {
                let asked = second.as_ref().map(|second| second.open_if_asked(context)).transpose()?;
                if let Some(second) = asked.flatten() {
                    opened.second.get_or_init(|| second);
                }
                Ok(repo)
            });
            let repo = repo.inspect_err(|error| none_stored(context, &first, &selected, began_at, error))?;
            let repo = opened.first.get_or_init(|| repo);
            self.run_all(context, repo, &hooks, selected.clone(), session)?;
            if context.stop.requested() {
                report_kept(session, selected.len());
            }
            let has_second = second.is_some();
            if let Some(second) = second
                && !context.stop.requested()
            {
                self.copy_all(context, repo, (&second, &opened.second), &selected, session)?;
            }
            for repo in [&opened.first, &opened.second].into_iter().filter_map(OnceLock::get) {
                extend_for_new_points(context, repo, session)?;
            }
            self.verify_samples(context, &opened, session)?;
            match pruned.is_empty() {
                true => Ok(()),
                false => prune_all(context, &opened, has_second, session),
            }
        });
        summarize(context, session);
        note_space(context, &opened);
        self.update_monitoring(context, opened);
        done
    }

    /// Returns the addresses of the repositories to prune after the backup: those that have rules.
    ///
    /// Fails if pruning is requested and there are no rules: better to report that before the backup than after a month
    /// of backups.
    /// backups later.
    fn repos_to_prune(&self, context: &Context) -> Result<Vec<String>, CliError> {
        if !self.prune || self.no_prune {
            return Ok(Vec::new());
        }
        let (first, second) = self.copy.tiers(context, &self.repo)?;
        let mut urls = vec![first.storage(context)?.url()];
        if let Some(second) = second {
            urls.push(second.storage(context)?.url());
        }
        let retention = &context.config().retention;
        let ruled: Vec<String> = urls.iter().filter(|url| !retention.of(url).is_empty()).cloned().collect();
        if ruled.is_empty() {
            let message = format!("cannot prune {} after the backup: no retention rules", urls.join(" and "));
            return Err(CliError::usage(message).hint(
                "set the rules in the configuration ('retention': 'local' for a folder, 'remote' for a server), or \
                 omit --prune",
            ));
        }
        Ok(ruled)
    }

    /// Writes the metrics file if the configuration names one, using the repositories that the run has open.
    fn update_monitoring(&self, context: &Context, opened: OpenedRepos) {
        if context.config().status.prometheus_textfile.is_none() {
            return;
        }
        let write = || {
            let (first, second) = self.copy.tiers(context, &self.repo)?;
            let not_opened = || CliError::failed("it was not opened in this run");
            let repo = match opened.first.into_inner() {
                Some(repo) => Ok(repo),
                // A hook may have ended the run early. Do not ask for a password only for the metrics.
                None if first.can_open_unasked(context) => first.in_a_hurry().open(context),
                None => Err(not_opened()),
            };
            let second = match second {
                Some(second) => {
                    Some((second.storage(context)?.url(), opened.second.into_inner().ok_or_else(not_opened)))
                }
                None => None,
            };
            status::write_textfile(context, first.storage(context)?.url(), repo, second);
            Ok::<_, CliError>(())
        };
        if let Err(error) = write() {
            context.monitor.warn(&format!("the metrics are not up to date: {error}"));
        }
    }

    /// Verifies a sample of the repositories that this run has written to, including data from other hosts.
    fn verify_samples(&self, context: &Context, opened: &OpenedRepos, session: &mut Session) -> Result<(), CliError> {
        let Some(share) = self.verify_sample.filter(|share| *share > 0.0) else {
            return Ok(());
        };
        for repo in [&opened.first, &opened.second].into_iter().filter_map(OnceLock::get) {
            context.stop.check()?;
            if let Err(error) = verify_sample(context, repo, share, session) {
                session.fail(About::default(), error);
            }
        }
        Ok(())
    }

    fn selected(&self, context: &Context, session: &mut Session) -> Result<Vec<Selection>, CliError> {
        match (self.all, self.names.is_empty()) {
            (true, _) => all_machines(context),
            (_, false) => selections(context, &self.names, session),
            (_, true) => machine::from_stdin_or_config(context, session),
        }
    }

    fn run_all(
        &self,
        context: &Context,
        repo: &Repository,
        hooks: &HookRunner,
        selected: Vec<Selection>,
        session: &mut Session,
    ) -> Result<(), CliError> {
        let (runtime, rate_limit) = (context.runtime()?, self.limit.rate_limit(context));
        let parallelism = self.threads.parallelism(selected.len().min(usize::from(self.jobs)));
        let place = BackupRun { repo, runtime: &runtime, rate_limit: rate_limit.as_ref(), parallelism };
        let history = HistoryRecorder::of(context, &repo.url());
        context.monitor.expect("machines", selected.len());
        let queue = Mutex::new(selected.into_iter());
        let (sender, results) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                let (sender, queue, history) = (sender.clone(), &queue, &history);
                helper_thread::start(scope, move || {
                    loop {
                        let next = queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
                        let Some(selection) = next else { break };
                        let began_at = HistoryRecorder::now();
                        let result = hooks.around_machine(&selection, || self.one(context, place, &selection));
                        history.run(&selection.name, &selection.machine, began_at, result.as_ref());
                        if let Ok(point) = result.as_ref()
                            && point.verified.is_some()
                        {
                            history.verification(point, NEW_POINT_DEPTH);
                        }
                        context.monitor.one_done();
                        // The receiver lives as long as the scope.
                        let _ = sender.send((selection, result));
                    }
                });
            }
            drop(sender);
            for (selection, result) in results {
                let (connect, machine) = (selection.connect, Some(selection.name));
                let about = About { connect, machine, ..About::default() };
                match result {
                    Ok(point) => {
                        session.stored(point.clone());
                        session.report_shortcomings(about, &point);
                    }
                    Err(error) => session.fail(about, error),
                }
            }
        });
        Ok(())
    }

    fn one(
        &self,
        context: &Context,
        BackupRun { repo, runtime, rate_limit, parallelism }: BackupRun,
        selection: &Selection,
    ) -> Result<Point, CliError> {
        let connect = || context.open_hypervisor(selection.connect.as_deref());
        let request = self.capture.request(context, selection)?;
        let backup = Backup {
            runtime,
            connect: &connect,
            repo,
            trust: self.trust(),
            rate_limit,
            chunk_size: self.chunks.chunk_size,
            compression: self.compression.compression,
            parallelism,
            monitor: &context.monitor,
            stop: &context.stop,
        };
        let point = backup.run(&selection.machine, &request)?;
        if !self.verify || self.no_verify {
            return Ok(point);
        }
        Ok(verify_points(context, repo, point)?)
    }

    /// Copies to the second repository the points of these machines that it does not have yet. This includes machines
    /// whose backup failed: earlier runs may have left points to copy.
    fn copy_all(
        &self,
        context: &Context,
        first: &Repository,
        (second, opened): (&RepoArgs, &OnceLock<Repository>),
        selected: &[Selection],
        session: &mut Session,
    ) -> Result<(), CliError> {
        let (monitor, stop) = (&context.monitor, &context.stop);
        let about = |selection: &Selection| About {
            connect: selection.connect.clone(),
            machine: Some(selection.name.clone()),
            ..About::default()
        };
        let began_at = HistoryRecorder::now();
        let repo = match opened.get() {
            Some(repo) => Ok(repo),
            None => second.open(context).map(|repo| opened.get_or_init(|| repo)),
        };
        let compression = self.compression.compression;
        let mut copier = match repo.and_then(|repo| Ok(Copier::open(first, repo, compression, monitor, stop)?)) {
            Ok(copier) => copier,
            Err(error) => {
                none_stored(context, second, selected, began_at, &error);
                let error = not_copied(error, first);
                selected.iter().for_each(|selection| session.fail(about(selection), error.clone()));
                return Ok(());
            }
        };
        let url = second.storage(context)?.url();
        let (history, policy) = (HistoryRecorder::of(context, &url), context.config().retention.of(&url));
        let mut copied = 0;
        for selection in selected {
            let uncopied = match copier.uncopied(&selection.machine, policy, Local::now().fixed_offset()) {
                Ok(uncopied) => uncopied,
                Err(error @ ops::Error::Interrupted) => {
                    return Err(CliError::from(error).hint(copies_kept(first, copied)));
                }
                Err(error) => {
                    session.fail(about(selection), error);
                    continue;
                }
            };
            for point in uncopied {
                let began_at = HistoryRecorder::now();
                match copier.copy(&point, monitor, stop) {
                    Ok(copy) => {
                        history.run(&selection.name, &selection.machine, began_at, Ok(&copy));
                        copied += 1;
                        session.stored(copy);
                    }
                    Err(error) => {
                        // The next point may be intact. After any other error, the next run continues here: no later
                        // point is copied before this one, because it would then look as if this one had been copied
                        // too.
                        let is_of_this_point =
                            matches!(error, ops::Error::Damaged { .. } | ops::Error::BadPoint { .. });
                        let error = CliError::from(error);
                        history.run(&selection.name, &selection.machine, began_at, Err(&error));
                        if error.code == Code::Interrupted {
                            return Err(error.hint(copies_kept(first, copied)));
                        }
                        session.fail(about(selection), not_copied(error, first));
                        if !is_of_this_point {
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn trust(&self) -> Trust {
        Trust { read_all: self.full, read_all_every: self.full_every, ..self.audit.trust() }
    }
}

/// Returns the error of a failed copy, which does not affect the first repository.
fn not_copied(error: CliError, first: &Repository) -> CliError {
    let message = format!("not copied: {}; the points in {} are safe", error.message, first.url());
    let error = CliError { message, ..error };
    match error.code {
        Code::WrongPassword => error.hint("use --copy-to-password-file FILE to provide the password of the second one"),
        _ => error,
    }
}

/// Returns the message after an interrupted copy.
fn copies_kept(first: &Repository, copied: usize) -> String {
    let points = if copied == 1 { "1 point was copied".to_owned() } else { format!("{copied} points were copied") };
    format!(
        "the points in {} are complete, and {points}; run the command again: what was already copied is not sent again",
        first.url()
    )
}

/// Prunes the repositories of a run that have rules. The backup is complete: a failure is reported, and the exit code
/// says that the run was incomplete.
fn prune_all(context: &Context, opened: &OpenedRepos, has_second: bool, session: &mut Session) -> Result<(), CliError> {
    context.stop.check()?;
    if session.outcome() == ExitCode::Damage {
        context.monitor.warn("nothing was pruned because damage was found");
        return Ok(());
    }
    if !session.kept_records().iter().any(|record| matches!(record, Record::Point(_))) {
        context.monitor.warn("nothing was pruned because no machine was backed up");
        return Ok(());
    }
    let (first, second) = (opened.first.get(), opened.second.get());
    for (repo, copied_to) in first.map(|first| (first, second)).into_iter().chain(second.map(|repo| (repo, None))) {
        let url = repo.url();
        if context.config().retention.of(&url).is_empty() {
            continue;
        }
        let is_first = first.is_some_and(|first| first.url() == url);
        // Points that the second repository does not have yet stay in the first one.
        let pruned = match is_first && has_second && copied_to.is_none() {
            true => Err(CliError::failed("the points in the second repository cannot be listed")),
            false => prune_after_backup(context, repo, copied_to, session),
        };
        match pruned {
            Ok(()) => {}
            Err(error) if error.code == Code::Interrupted => return Err(error),
            Err(error) => {
                let message = format!("the backup is complete, but {url} was not pruned: {}", error.message);
                let by_hand =
                    || shlex::try_quote(&url).map_or("kvmb prune".into(), |url| format!("kvmb prune -r {url}"));
                let hint = error.hint.clone().unwrap_or_else(by_hand);
                session.warn(About::default(), CliError { message, hint: Some(hint), ..error });
            }
        }
    }
    Ok(())
}

/// Returns the points that a run created, without those that it copied.
fn new_points(session: &Session) -> impl Iterator<Item = &Point> {
    session.kept_records().iter().filter_map(|record| match record {
        Record::Point(point) if point.copied.is_none() => Some(point),
        _ => None,
    })
}

/// Prints how much of the backup is complete, after an interruption.
fn report_kept(session: &Session, selected: usize) {
    let done = new_points(session).filter(|point| point.verified.is_none() || point.damage.is_empty()).count();
    if done < selected {
        say(&format!(
            "kvmb: interrupted; {done} of {selected} machines backed up, their points are complete; data that was \
             already stored for the others is kept and used by the next backup"
        ));
    }
}

/// Ends the table of a run with its totals.
fn summarize(context: &Context, session: &mut Session) {
    let points: Vec<&Point> = new_points(session).collect();
    if points.is_empty() {
        return;
    }
    let sum = |of: fn(&Point) -> u64| bytes(points.iter().map(|point| of(point)).sum());
    let machines = if points.len() == 1 { "1 machine".to_owned() } else { format!("{} machines", points.len()) };
    let line = format!(
        "backed up {machines} in {}: {} read, {} stored\n",
        span(context.run.began.elapsed()),
        sum(|point| point.read_bytes),
        sum(|point| point.stored_bytes)
    );
    session.close_table(&line);
}

/// Records the size and the free space of the repositories that this run wrote to, for `kvmb status`.
fn note_space(context: &Context, opened: &OpenedRepos) {
    for repo in [&opened.first, &opened.second].into_iter().filter_map(OnceLock::get) {
        let history = HistoryRecorder::of(context, &repo.url());
        history.free_space(repo);
        if !context.stop.requested() {
            history.size(repo);
        }
    }
}

/// Records that a run failed for all of its machines.
fn none_stored(context: &Context, repo: &RepoArgs, selected: &[Selection], began_at: Time, error: &CliError) {
    let Ok(storage) = repo.storage(context) else { return };
    let history = HistoryRecorder::of(context, &storage.url());
    for selection in selected {
        history.run(&selection.name, &selection.machine, began_at, Err(error));
    }
}

fn all_machines(context: &Context) -> Result<Vec<Selection>, CliError> {
    let hypervisor = context.hypervisor(None)?;
    let machines = hypervisor.machines(&[])?;
    if machines.is_empty() {
        // Fail as if no machine had been named: a schedule on the wrong libvirt connection must not look like a
        // successful backup.
        return Err(CliError::usage(format!("no machines to back up: {} has none", hypervisor.uri()))
            .hint("choose the connection that has the machines: kvmb -c URI backup --all"));
    }
    Ok(machine::select(&hypervisor, &machines))
}

/// Verifies a new point by reading it back.
fn verify_points(context: &Context, repo: &Repository, point: Point) -> ops::Result<Point> {
    let _lock = ops::repo_lock::lock(repo, LockMode::Shared, &context.stop)?;
    let index = repo.load_index()?;
    let (known, _) = points::list(repo)?;
    let found = points::find(repo, &known, &PointName::Plain(point.point.clone()))?;
    let checked = Verifier::new(repo, &index, NEW_POINT_DEPTH)?.verify(&found, &context.monitor, &context.stop)?;
    let Point { verified, verified_at, damage, .. } = checked;
    Ok(Point { verified, verified_at, damage, ..point })
}
