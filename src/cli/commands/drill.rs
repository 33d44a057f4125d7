//! `kvmb drill`

use crate::cli::args::repo::RepoArgs;
use crate::cli::args::value_parsers::{duration, size};
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::folders::make_state_folder;
use crate::cli::history_recorder::HistoryRecorder;
use crate::cli::input::stdin_records;
use crate::cli::session::{About, Session};
use crate::cli::terminal::stderr;
use crate::config::Config;
use crate::config::rules::{MachineName, WithText};
use crate::ops::drill::{self, Drill, DrillRequest, Rung};
use crate::ops::inventory::host_name;
use crate::ops::latest_points::LatestPoints;
use crate::ops::points::{self, OpenPoint, PointName, PointRef, name_matches};
use crate::ops::repo_lock::lock_and_list;
use crate::record::{Check, Record, Status};
use crate::repo::{DamagedSnapshot, Index, Repository};
use chrono::Local;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Boot restore points in isolation and report how far they get.
///
/// Starts a copy of the machine from the point, without restoring it. Writes are discarded, the network cable is
/// unplugged, the guest cannot reach this host, and everything is removed afterwards. Reports the rungs that it
/// reaches: 'started', 'console' (the guest writes to its console, or draws on its screen and reads its disks), 'agent'
/// (the guest agent answers) and 'check' (a command succeeds).
///
/// Prints a 'check' record for each point: 'ok' if it reached its goal; 'critical' after a panic, endless restarts, a
/// disk error, a missing boot loader or an expectation that was not met; 'unknown' if the guest shows activity but no
/// agent answered. Exits with code 1 if a point is critical.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb drill vm1
  kvmb drill vm1@2026-11-20 --check 'systemctl is-active postgresql'
  kvmb drill vm2 --expect 'login:' --timeout 5m
  kvmb drill --all --sample 3                     the three machines drilled least recently")]
pub(crate) struct DrillArgs {
    /// Points: an ID or its beginning, NAME, NAME@latest, NAME@2026-11-20, NAME@-2h. Without points, 'point' records
    /// are read from standard input.
    #[arg(value_name = "POINT", add = complete::points())]
    points: Vec<String>,

    /// Boot the newest point of each machine of this host.
    #[arg(long, conflicts_with = "points")]
    all: bool,

    /// Boot only this many of the chosen points: those of the machines drilled least recently.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sample: Option<u32>,

    /// Rung that the machine must reach: started, console or agent. Default: the rung that the other options need,
    /// otherwise agent.
    #[arg(id = "drill_until", long = "until", value_name = "RUNG", value_enum, conflicts_with = "check")]
    until: Option<Until>,

    /// Time limit for each machine. Default: 10m, or 40m without KVM.
    #[arg(id = "drill_timeout", long = "timeout", value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,

    /// Maximum memory of the machine.
    #[arg(id = "drill_memory", long = "memory", value_name = "SIZE", value_parser = size, default_value = "2G")]
    memory: u64,

    /// Maximum number of processors of the machine.
    #[arg(id = "drill_vcpus", long = "vcpus", value_name = "N", value_parser = clap::value_parser!(u32).range(1..),
        default_value = "2")]
    vcpus: u32,

    /// Command to run in the guest, through its agent, and to repeat until it succeeds. Default: 'drill.check' of the
    /// configuration.
    #[arg(long, value_name = "CMD")]
    check: Option<String>,

    /// Where --check runs: guest, or host ($DRILL_MACHINE, $DRILL_CONNECT).
    #[arg(long, value_name = "PLACE", value_enum, default_value = "guest", requires = "check")]
    check_in: CheckPlace,

    /// Wait for this text on the console. Default: 'drill.expect' of the configuration.
    #[arg(long, value_name = "TEXT")]
    expect: Option<String>,

    #[command(flatten)]
    repo: RepoArgs,
}

/// A rung that may be enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Until {
    /// QEMU runs the machine.
    Started,
    /// The guest shows signs of life.
    Console,
    /// The guest agent answers.
    Agent,
}

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CheckPlace {
    /// In the guest.
    Guest,
    /// On this host.
    Host,
}

/// A point that will be booted.
struct DrillCandidate {
    point: PointRef,
    machine: String,
}

/// A repository that was opened for a drill.
struct OpenForDrill {
    repo: Repository,
    index: Arc<Index>,
    points: Vec<PointRef>,
    damaged: Vec<DamagedSnapshot>,
}

impl DrillArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if !self.points.is_empty() || self.all {
            return self.drill_repo(context, self.repo.open(context)?, None, session);
        }
        let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for record in stdin_records("drill", "points", &["point"], &context.stop)? {
            match record? {
                Record::Point(point) => {
                    let url = if self.repo.is_named() { self.repo.url()? } else { point.repo.clone() };
                    wanted.entry(url).or_default().push(point.point);
                }
                Record::Failure(failure) => session.pass_failure(failure),
                other => session.pass(&other),
            }
        }
        for (url, points) in wanted {
            let repo = RepoArgs { repo: Some(url), ..self.repo.clone() };
            let opened = repo.open(context);
            if let Err(error) = opened.and_then(|repo| self.drill_repo(context, repo, Some(points), session)) {
                session.fail(About::default(), error);
            }
        }
        Ok(())
    }

    /// Boots points of one repository: the given ones, or those that the command line selects.
    fn drill_repo(
        &self,
        context: &Context,
        repo: Repository,
        ids: Option<Vec<String>>,
        session: &mut Session,
    ) -> Result<(), CliError> {
        let (_lock, snapshots) = lock_and_list(&repo, &context.monitor, &context.stop)?;
        let (points, damaged) = points::of_snapshots(snapshots);
        let index = points::load_index_for_reading(&repo, &context.monitor)?;
        let open = OpenForDrill { repo, index, points, damaged };
        let history = HistoryRecorder::of(context, &open.repo.url());
        let mut chosen = match (&ids, self.all) {
            (None, true) => self.newest_of_this_host(context, &open)?,
            (Some(names), _) => named(&open, names, session),
            (None, false) => named(&open, &self.points, session),
        };
        if let Some(sample) = self.sample {
            let last = history.last_drills();
            chosen.sort_by_key(|candidate| last.get(&candidate.machine).copied());
            chosen.truncate(sample as usize);
        }
        context.monitor.expect("points", chosen.len());
        for candidate in chosen {
            context.stop.check()?;
            let about = About { machine: Some(candidate.machine.clone()), ..About::default() };
            match self.drill_point(context, &open, &candidate, &history) {
                Ok(check) => {
                    // A table shows the check. Without one, as in a crontab, this message is what cron mails.
                    if check.is_critical() && !session.is_table() {
                        stderr::report(&format!("{}: the drill failed: {}", check.target, check.detail), None);
                    }
                    session.check(check);
                }
                Err(error) if error.code == Code::Interrupted => return Err(error),
                Err(error) => session.fail(about, error),
            }
            context.monitor.one_done();
        }
        Ok(())
    }

    fn newest_of_this_host(&self, context: &Context, open: &OpenForDrill) -> Result<Vec<DrillCandidate>, CliError> {
        let mut latest = LatestPoints::look(&open.repo, &context.monitor, HistoryRecorder::now())?;
        let (all, this_host) = (latest.newest_of_all()?, host_name());
        let mut chosen = Vec::new();
        for newest in all.into_iter().filter(|newest| newest.host == this_host) {
            if let Some(point) = open.points.iter().find(|point| point.id.to_string() == newest.point) {
                chosen.push(DrillCandidate { point: point.clone(), machine: newest.machine });
            }
        }
        if chosen.is_empty() {
            let message = format!("nothing to boot: no points of this host in {}", open.repo.url());
            context.note(&message, "run 'kvmb backup NAME' to make the first one");
        }
        Ok(chosen)
    }

    fn drill_point(
        &self,
        context: &Context,
        open: &OpenForDrill,
        candidate: &DrillCandidate,
        history: &HistoryRecorder,
    ) -> Result<Check, CliError> {
        let point: OpenPoint = points::open_with_damage(&open.repo, &open.index, &candidate.point)?;
        let (runtime, hypervisor) = (context.runtime()?, context.hypervisor(None)?);
        drill::clear_abandoned(&hypervisor, &runtime)?;
        let drill = Drill {
            hypervisor: &hypervisor,
            runtime: &runtime,
            repo: &open.repo,
            index: Arc::clone(&open.index),
            stop: &context.stop,
        };
        let began_at = HistoryRecorder::now();
        let result = drill.run(&point, &self.request(context.config(), &candidate.machine))?;
        let mut check = result.to_check(&point, &open.repo.url());
        let folder = make_state_folder()?.join("drills");
        let (log, picture) = drill::keep(&folder, &point.manifest.uuid, &result)?;
        for (name, path) in [("log", Some(&log)), ("screenshot", picture.as_ref())] {
            if let Some(path) = path {
                check.extra.insert(name.to_owned(), path.display().to_string().into());
            }
        }
        history.drill(&point.manifest, &point.id.to_string(), began_at, &check);
        Ok(match result.status {
            Status::Ok => check,
            _ if result.console.is_empty() => check,
            _ => check.hint(format!("read what the guest wrote: less -R {}", shell_word(&log.to_string_lossy()))),
        })
    }

    /// Returns the request for a machine, from the command line or else from the configuration.
    fn request(&self, config: &Config, machine: &str) -> DrillRequest {
        let configured = self.check.is_none().then(|| of_machine(&config.drill.check, machine)).flatten();
        let check = self.check.clone().or_else(|| configured.map(|check| check.text().to_owned()));
        let expect = self.expect.clone().or_else(|| of_machine(&config.drill.expect, machine).cloned());
        let until = self.until.filter(|_| check.is_none()).map(|until| match until {
            Until::Started => Rung::Started,
            Until::Console => Rung::Console,
            Until::Agent => Rung::Agent,
        });
        DrillRequest {
            until,
            limit: self.timeout,
            memory_bytes: self.memory,
            vcpus: self.vcpus,
            check,
            is_check_of_host: self.check_in == CheckPlace::Host,
            expect,
        }
    }
}

/// Returns the configured value for a machine: that of its name, or else of the first glob that matches.
fn of_machine<'a, T>(by_machine: &'a BTreeMap<WithText<MachineName>, T>, machine: &str) -> Option<&'a T> {
    let found = |is_meant: &dyn Fn(&str) -> bool| by_machine.iter().find(|(name, _)| is_meant(name.text()));
    found(&|name| name == machine).or_else(|| found(&|name| name_matches(name, machine))).map(|(_, value)| value)
}

fn shell_word(text: &str) -> String {
    shlex::try_quote(text).map_or_else(|_| text.to_owned(), |quoted| quoted.into_owned())
}

/// Finds the points with these names. A missing point is recorded as a failure, and the others are booted.
fn named(open: &OpenForDrill, names: &[String], session: &mut Session) -> Vec<DrillCandidate> {
    let mut chosen = Vec::new();
    for name in names {
        match points::find_surely(&open.repo, &open.points, &open.damaged, &PointName::parse(name, Local::now())) {
            Ok(point) => chosen.push(DrillCandidate { machine: point.machine().to_owned(), point }),
            Err(error) => session.fail(About::default(), error),
        }
    }
    chosen
}
