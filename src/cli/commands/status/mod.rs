//! `kvmb status`

mod fleet;
mod gather;
mod judge;
mod nagios;
mod prometheus;
mod repository;
mod running;
mod thresholds;
mod zabbix;

pub(crate) use nagios::unknown;
pub(crate) use prometheus::write_textfile;

use crate::cli::args::copy::CopyToArgs;
use crate::cli::args::repo::RepoArgs;
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::failure::exit_code::PluginState;
use crate::cli::session::Session;
use crate::cli::table::bytes;
use crate::record::{Action, Record};
use clap::ValueEnum;
use fleet::gather_fleet;
use gather::{StatusReport, StatusRequest, ask, gather};
use serde_json::Map;
use std::path::{Path, PathBuf};
use thresholds::ThresholdArgs;

/// Show backup health: the age of the points and the results of the last runs.
///
/// Checks the machines in selected_vms, otherwise those of the schedule, otherwise all, and the machines that have
/// points. Prints a 'check' record for each machine ('backup'), the repository, the second repository ('copy'), the
/// key, retention (a warning if there are rules and no prune ran for a week) and the free space of a repository, if the
/// history of this host shows how it grows. The table shows problems first, and only counts the checks that are ok. A
/// machine that was never backed up is critical. A machine that has points but no longer exists is shown without an
/// alarm. The results of runs are known only on the host, and to the user, that ran them.
///
/// With --all-hosts it reads the repository and nothing else: the age of the newest point of every machine of every
/// host that has points there, and a 'host' check for each host.
///
/// Exits with code 1 if something is critical, 4 for damage. For metrics and Zabbix it fails only if nothing could be
/// determined.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb status
  kvmb status 'web*' -r /backup/kvm --warning 26h --critical 50h
  kvmb status --json | jq -r 'select(.status != \"ok\") | [.target, .status, .detail] | @tsv'
  kvmb status --all-hosts -r sftp://monitor@backup.example.com//backup/kvm
  kvmb status --nagios
  kvmb status --textfile /var/lib/prometheus/node-exporter/kvmb.prom
  command[check_kvmb]=sudo /usr/bin/kvmb status --nagios                         for NRPE
  UserParameter=kvmb.discovery,sudo /usr/bin/kvmb status --zabbix discovery      for Zabbix's agent
  UserParameter=kvmb.values,sudo /usr/bin/kvmb status --zabbix values            $.machines['{#ID}'].age_seconds")]
pub(crate) struct StatusArgs {
    /// Machine names or globs. Default: the machines to be backed up, and those that have points.
    #[arg(value_name = "NAME", add = complete::machines())]
    names: Vec<String>,

    /// Act as a plugin of Nagios, Icinga, Naemon or Checkmk: one line with performance data, then one line for each
    /// machine.
    ///
    /// The exit codes are those of a plugin: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (also for wrong usage).
    #[arg(long, group = "face")]
    nagios: bool,

    /// Print metrics in the Prometheus text format.
    #[arg(long, group = "face")]
    prometheus: bool,

    /// Write the metrics to a file, atomically. For the node exporter, use a name that ends in .prom in its
    /// textfile folder.
    ///
    /// 'kvmb backup' does this after each run if status.prometheus_textfile is set in the configuration.
    #[arg(long, value_name = "FILE", group = "face")]
    textfile: Option<PathBuf>,

    /// Show which file would be written without writing it.
    #[arg(short = 'n', long, requires = "textfile", conflicts_with_all = ["nagios", "prometheus", "zabbix"])]
    dry_run: bool,

    /// Print JSON for Zabbix.
    #[arg(long, value_enum, value_name = "WHAT", group = "face")]
    zabbix: Option<Zabbix>,

    /// Show all machines and checks, also those without a problem.
    #[arg(long)]
    all: bool,

    /// Check the machines of all hosts, from the repository alone. Works on any host that can read the repository.
    ///
    /// Limits default to those of daily backups (26h and 50h). A machine that no longer exists is reported until its
    /// points are removed ('kvmb prune --gone-machines' on its host). The second repository is not checked.
    #[arg(long, conflicts_with = "runs")]
    all_hosts: bool,

    /// Add the last N runs of each machine to its record ('runs'), and the last N sizes of the repository to that of
    /// the repository ('sizes').
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    runs: usize,

    #[command(flatten)]
    thresholds: ThresholdArgs,

    #[command(flatten)]
    repo: RepoArgs,

    #[command(flatten)]
    copy: CopyToArgs,
}

/// What Zabbix asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Zabbix {
    /// The machines, for low-level discovery.
    Discovery,
    /// The values of each machine, by its {#ID}.
    Values,
}

impl StatusArgs {
    /// Whether to answer as a monitoring plugin.
    pub(crate) fn is_plugin(&self) -> bool {
        self.nagios
    }

    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if self.nagios {
            let (state, text) = match self.report(context) {
                Ok(report) => nagios::text(&report),
                Err(error) => (PluginState::Unknown, unknown(&error.message)),
            };
            session.text(text.as_bytes());
            session.answer_as_plugin(state);
            return Ok(());
        }
        session.summarize_checks(self.all || !self.names.is_empty());
        let report = self.report(context)?;
        match (self.prometheus, &self.textfile, self.zabbix) {
            (true, ..) => session.text(prometheus::text(&report).as_bytes()),
            (_, Some(file), _) if self.dry_run => session.done(dry_run_record(&report, file)),
            (_, Some(file), _) => prometheus::write(&report, file)?,
            (_, _, Some(Zabbix::Discovery)) => session.text(zabbix::discovery(&report).as_bytes()),
            (_, _, Some(Zabbix::Values)) => session.text(zabbix::values(&report).as_bytes()),
            _ => print_report(report, session),
        }
        Ok(())
    }

    fn report(&self, context: &Context) -> Result<StatusReport, CliError> {
        if self.all_hosts {
            let repo = self.repo.in_a_hurry();
            let url = repo.storage(context)?.url();
            return gather_fleet(context, &self.names, &self.thresholds, url, &ask(context, &repo)?);
        }
        let (first, second) = self.copy.tiers(context, &self.repo)?;
        let second = match second.as_ref().map(RepoArgs::in_a_hurry) {
            Some(second) => Some((second.storage(context)?.url(), ask(context, &second)?)),
            None => None,
        };
        let first = first.in_a_hurry();
        let request = StatusRequest {
            names: &self.names,
            thresholds: &self.thresholds,
            runs: self.runs,
            repo: first.storage(context)?.url(),
            first: ask(context, &first)?,
            second,
        };
        gather(context, request)
    }
}

/// Returns the record of a dry run for writing the metrics.
fn dry_run_record(report: &StatusReport, file: &Path) -> Record {
    Record::Action(Action {
        action: "status".into(),
        target: file.display().to_string(),
        changed: true,
        reason: format!("{} of metrics would be written", bytes(prometheus::text(report).len() as u64)),
        dry_run: true,
        extra: Map::new(),
    })
}

/// Prints the checks as records.
fn print_report(report: StatusReport, session: &mut Session) {
    if report.damaged {
        session.damage();
    }
    for (facts, check) in report.machines {
        if !facts.damaged.is_empty() {
            session.damage();
        }
        session.check(check);
    }
    report.others.into_iter().for_each(|check| session.check(check));
}
