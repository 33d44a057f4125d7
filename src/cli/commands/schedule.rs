//! `kvmb schedule`

use crate::cli::args::repo::{DefaultRepo, RepoArgs};
use crate::cli::args::value_parsers::duration;
use crate::cli::commands::installed_schedules::{installed, jobs_of};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use crate::cli::terminal::secret::variable;
use crate::cli::{complete, folders};
use crate::config::{DEFAULT_BACKUP_FREQ, Retention, is_on_server};
use crate::record::{Action, Record};
use crate::schedule::{self, Cron, CronError, Installed, JobKind, ScheduleLocation, ScheduledJob};
use chrono::{Local, SecondsFormat};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The number of next runs in a record.
const NEXT_RUNS: usize = 3;

/// Maximum number of next runs that can be listed.
const MOST_RUNS: u64 = 1000;

/// `--drill weekly`: early on Sunday, when hosts are least busy.
const WEEKLY_DRILL: &str = "30 4 * * sun";

/// How many machines a scheduled drill boots.
const DRILL_SAMPLE: &str = "3";

/// Schedule backups and drills with cron or systemd.
///
/// The job runs 'kvmb backup' with low priority, and is skipped while the previous run is still active. In a
/// crontab, the entry is placed between two marker lines. Nothing else in the crontab is changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb schedule install --cron '0 2 * * *' -r /backup/kvm --password-file /root/kvmb.pass vm1 'web*'
  kvmb schedule install --cron @daily --all --random-delay 30m --systemd
  kvmb schedule install --cron '30 1 * * sun' --all --dry-run -- --full --verify
  kvmb schedule install --all --drill weekly
  kvmb schedule describe '30 2 * * 1-5'
  kvmb schedule show
  kvmb schedule remove")]
pub(crate) struct ScheduleArgs {
    #[command(subcommand)]
    command: ScheduleCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ScheduleCommand {
    Install(Box<InstallArgs>),
    Show(ShowArgs),
    Describe(Box<DescribeArgs>),
    Remove(RemoveArgs),
}

/// Install the schedule, replacing any existing one.
///
/// Prints an 'action' record. 'changed' is false if the same schedule is already installed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb schedule install
  kvmb schedule install --cron '0 2 * * *' -r /backup/kvm --password-file /root/kvmb.pass vm1 'web*'
  kvmb schedule install --cron @daily --all --random-delay 30m --systemd
  kvmb schedule install --all --prune --drill weekly
  kvmb schedule install --cron '30 1 * * sun' --all --dry-run -- --full --verify")]
struct InstallArgs {
    /// Machine names or globs. Default: the machines in selected_vms of the configuration at the time of each run.
    #[arg(value_name = "NAME", add = complete::machines())]
    names: Vec<String>,

    /// All machines that libvirt knows at the time of each run.
    #[arg(long, conflicts_with = "names")]
    all: bool,

    /// When to run, as in crontab(5): five fields, or @daily and similar.
    ///
    /// Default: backup_freq of the configuration, otherwise 02:00 every day. Not used if auto_backup is false in
    /// the configuration.
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<Cron>,

    /// Wait a random time of up to this long before each run (example: 30m). Useful if many hosts share a backup
    /// server.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    random_delay: Option<Duration>,

    /// After each backup, remove old points according to the retention rules of the configuration.
    #[arg(id = "prune_scheduled", long = "prune")]
    prune: bool,

    /// Also schedule drills: 'weekly' (04:30 on Sundays), or five fields as in crontab(5), or @monthly and similar.
    ///
    /// Each run boots the newest points of the three machines drilled least recently, in isolation ('kvmb drill --all
    /// --sample 3'). 'kvmb status' shows the results. Without this option, an installed drill is removed.
    #[arg(long, value_name = "WHEN", value_parser = drill_times)]
    drill: Option<Cron>,

    /// Remove the entries of kvm_backup, the predecessor of kvmb, from the crontab.
    #[arg(long)]
    replace_old: bool,

    /// Show what would be installed without installing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    place: PlaceArgs,

    #[command(flatten)]
    repo: RepoArgs,

    /// More options for 'kvmb backup', after --.
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// Show installed schedules and their next runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb schedule show
  kvmb schedule show --json | jq -r '.next_runs[0]'")]
struct ShowArgs {}

/// Show what a cron expression means, in words, and its next runs.
///
/// Nothing is installed. Default: the schedule that 'kvmb schedule install' would use.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb schedule describe '30 2 * * 1-5'
  kvmb schedule describe @weekly --runs 3")]
struct DescribeArgs {
    /// When to run, as in crontab(5): five fields, or @daily and similar.
    #[arg(value_name = "EXPRESSION")]
    cron: Option<Cron>,

    /// Number of next runs to list.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=MOST_RUNS))]
    runs: u64,
}

/// Remove the schedule.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb schedule remove
  kvmb schedule remove --systemd --dry-run")]
struct RemoveArgs {
    /// Show what would be removed without removing it.
    #[arg(short = 'n', long)]
    dry_run: bool,

    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, clap::Args)]
struct PlaceArgs {
    /// Use /etc/cron.d/kvmb instead of the crontab of this user.
    #[arg(long, conflicts_with = "systemd")]
    system: bool,

    /// Use the systemd units kvmb.service and kvmb.timer, and for drills kvmb-drill.service and kvmb-drill.timer.
    /// Missed runs are caught up.
    #[arg(long)]
    systemd: bool,
}

impl PlaceArgs {
    fn place(&self) -> ScheduleLocation {
        match (self.system, self.systemd) {
            (true, _) => ScheduleLocation::System,
            (_, true) => ScheduleLocation::Systemd,
            _ => ScheduleLocation::User,
        }
    }
}

impl ScheduleArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        match self.command {
            ScheduleCommand::Install(args) => args.run(context, session),
            ScheduleCommand::Show(args) => args.run(context, session),
            ScheduleCommand::Describe(args) => args.run(context, session),
            ScheduleCommand::Remove(args) => args.run(session),
        }
    }
}

impl InstallArgs {
    fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let place = self.place.place();
        if self.cron.is_none() && !context.config().auto_backup {
            let reason = "auto_backup is false in the configuration; nothing was changed";
            session.done(action(place, false, reason, self.dry_run, Map::new()));
            return Ok(());
        }
        let jobs = self.jobs(context, place)?;
        if !self.dry_run {
            // The lock is in this folder, and cron's shell does not create it.
            folders::make_state_folder()?;
        }
        self.replace_old_entries(session)?;
        let change = place.install(&jobs, self.dry_run)?;
        let reason = match (change.changed, self.dry_run) {
            (false, _) => "already installed".to_owned(),
            (true, false) => "installed".to_owned(),
            (true, true) => "would be installed".to_owned(),
        };
        let mut extra = Map::new();
        for job in &jobs {
            let mut fields = times_of(&job.cron, NEXT_RUNS);
            fields.insert("command".into(), json!(job.shell_command()?));
            match job.kind {
                JobKind::Backup => extra.append(&mut fields),
                JobKind::Drill => drop(extra.insert("drill".into(), Value::Object(fields))),
            }
        }
        extra.insert("entry".into(), json!(change.entry));
        session.done(action(place, change.changed, &reason, self.dry_run, extra));
        report_others(place, session)
    }

    /// Returns the backup job, and the drill if one is requested.
    fn jobs(&self, context: &Context, place: ScheduleLocation) -> Result<Vec<ScheduledJob>, CliError> {
        let command = self.backup_command(context)?;
        // Report errors in the command now, not at night.
        (context.grammar)().try_get_matches_from(&command).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            CliError::usage(format!(
                "'kvmb backup' would reject these options: {}",
                first.trim_start_matches("error: ")
            ))
        })?;
        let folder = absolute(&folders::state_folder()?)?;
        let environment = environment(place)?;
        let job = |kind, cron, command| {
            // Two schedules may be installed at once; each has its own lock. A drill does not delay a backup.
            let lock = match (kind, place) {
                (JobKind::Backup, ScheduleLocation::System) => "schedule-system.lock",
                (JobKind::Backup, _) => "schedule.lock",
                (JobKind::Drill, ScheduleLocation::System) => "schedule-drill-system.lock",
                (JobKind::Drill, _) => "schedule-drill.lock",
            };
            let (environment, random_delay) = (environment.clone(), self.random_delay);
            ScheduledJob { kind, cron, command, environment, random_delay, lock: folder.join(lock) }
        };
        let mut jobs = vec![job(JobKind::Backup, cron_or_default(self.cron.as_ref(), context)?, command)];
        if let Some(cron) = &self.drill {
            jobs.push(job(JobKind::Drill, cron.clone(), self.drill_command(context)?));
        }
        Ok(jobs)
    }

    /// Returns a kvmb command with the arguments that locate things: all flags and variables of this call, which a
    /// schedule does not have, and the path of the configuration. The configuration itself is read at each run.
    fn command(&self, context: &Context, name: &str) -> Result<Vec<String>, CliError> {
        let config = context.config();
        let mut words = vec![text(&own_path()?)?];
        if let Some(file) = &context.settings.loaded.file {
            words.extend(["--config".into(), text(&absolute(file)?)?]);
        }
        let configured = config.connect.as_ref().map(|uri| uri.text().to_owned());
        let connect = context.global.connect.clone().or_else(|| variable("LIBVIRT_DEFAULT_URI"));
        let connect = connect.filter(|uri| Some(uri) != configured.as_ref());
        words.extend(connect.into_iter().flat_map(|uri| ["-c".to_owned(), uri]));
        words.push(name.into());
        if self.names_repo(context) {
            let url = self.repo.url()?;
            // cron runs in another working directory, so make a relative folder absolute.
            let url = if is_on_server(&url) { url } else { self.repo.storage(context)?.url() };
            words.extend(["-r".into(), url]);
        }
        words.extend(self.password_flags(context)?);
        if let Some(rate) = self.repo.limit_upload {
            words.extend(["--limit-upload".into(), rate.to_string()]);
        }
        if let Some(time) = self.repo.retry_for {
            words.extend(["--retry-for".into(), format!("{}s", time.as_secs())]);
        }
        if let Some(folder) = &self.repo.cache_dir {
            words.extend(["--cache-dir".into(), text(&absolute(folder)?)?]);
        }
        if let Some(time) = self.repo.key_cache {
            words.extend(["--key-cache".into(), format!("{}s", time.as_secs())]);
        }
        if self.repo.no_cache {
            words.push("--no-cache".into());
        }
        Ok(words)
    }

    fn drill_command(&self, context: &Context) -> Result<Vec<String>, CliError> {
        let mut words = self.command(context, "drill")?;
        words.extend(["--all", "--sample", DRILL_SAMPLE].map(str::to_owned));
        Ok(words)
    }

    fn backup_command(&self, context: &Context) -> Result<Vec<String>, CliError> {
        let mut words = self.command(context, "backup")?;
        if self.prune {
            if context.config().retention == Retention::default() {
                return Err(CliError::usage("--prune needs retention rules, and the configuration has none").hint(
                    "set the rules in the configuration ('retention': 'local' for a folder, 'remote' for a server)",
                ));
            }
            words.push("--prune".into());
        }
        words.extend(self.options.iter().cloned());
        match (self.all, self.names.is_empty()) {
            (true, _) => words.push("--all".into()),
            (_, false) => words.extend(self.names.iter().cloned()),
            (_, true) if context.config().selected_vms.values().any(|taken| *taken) => {}
            (_, true) => {
                return Err(CliError::usage("no machines were given and selected_vms of the configuration is not set")
                    .hint("specify machines, use --all, or set selected_vms in the configuration"));
            }
        }
        Ok(words)
    }

    /// Whether a repository other than that of the configuration was given.
    fn names_repo(&self, context: &Context) -> bool {
        self.repo.is_named() && self.repo.repo != context.config().primary_repo()
    }

    /// Returns the flags for passwords: a schedule has no user to ask, and must not contain a secret itself.
    fn password_flags(&self, context: &Context) -> Result<Vec<String>, CliError> {
        let mut words = Vec::new();
        for (flag, file, secrets) in [
            ("--password-file", &self.repo.password_file, ["KVMB_PASSWORD_COMMAND", "KVMB_PASSWORD"]),
            ("--ssh-password-file", &self.repo.ssh_password_file, ["KVMB_SSH_PASSWORD_COMMAND", "KVMB_SSH_PASSWORD"]),
        ] {
            if let Some(file) = file.as_ref().filter(|file| !file.as_os_str().is_empty()) {
                words.extend([flag.to_owned(), text(&absolute(file)?)?]);
            } else if let Some(name) = secrets.into_iter().find(|name| variable(name).is_some()) {
                let error = CliError::usage(format!("a scheduled backup cannot use ${name}"));
                return Err(error.hint(format!("use {flag} FILE")));
            }
        }
        for (flag, file) in [("--cacert", &self.repo.cacert), ("--tls-client-cert", &self.repo.tls_client_cert)] {
            if let Some(file) = file.as_ref().filter(|file| !file.as_os_str().is_empty()) {
                words.extend([flag.to_owned(), text(&absolute(file)?)?]);
            }
        }
        if self.repo.is_named() && self.repo.url()?.starts_with("rest:") {
            let names = ["KVMB_REST_PASSWORD_FILE", "KVMB_REST_PASSWORD_COMMAND", "RESTIC_REST_PASSWORD"];
            if let Some(name) = names.into_iter().find(|name| variable(name).is_some()) {
                let error = CliError::usage(format!("a scheduled backup cannot use ${name}"));
                return Err(error.hint("kvmb config set http.user=NAME http.password_file=FILE"));
            }
        }
        if self.repo.is_named()
            && self.repo.url()?.starts_with("s3:")
            && let Some(name) =
                ["AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"].into_iter().find(|name| variable(name).is_some())
        {
            let error = CliError::usage(format!("a scheduled backup cannot use ${name}"));
            return Err(error.hint("kvmb config set s3.credentials_file=FILE"));
        }
        let config = context.config();
        let is_configured = config.password_file.is_some() || config.password_command.is_some();
        let is_given = is_configured || words.iter().any(|word| word == "--password-file");
        // The default repository has a key file.
        let is_own = !self.repo.is_named() || Path::new(&self.repo.url()?) == DefaultRepo::locate()?.folder;
        let has_its_own = config.remote_password_file.is_some() && !self.names_repo(context);
        if !(is_given || is_own || has_its_own) {
            return Err(
                CliError::usage("a scheduled backup cannot ask for the password").hint("use --password-file FILE")
            );
        }
        Ok(words)
    }

    /// Reports entries of kvm_backup, which would run in addition to kvmb, and removes them with `--replace-old`.
    fn replace_old_entries(&self, session: &mut Session) -> Result<(), CliError> {
        for entry in old_entries()? {
            let extra = Map::from_iter([("entry".to_owned(), json!(entry))]);
            let reason = match (self.replace_old, self.dry_run) {
                (false, _) => {
                    "the crontab has an entry of kvm_backup, so both will run; use --replace-old to remove it"
                }
                (true, false) => "an entry of kvm_backup was removed",
                (true, true) => "an entry of kvm_backup would be removed",
            };
            session.done(action(ScheduleLocation::User, self.replace_old, reason, self.dry_run, extra));
        }
        if self.replace_old {
            schedule::remove_old_entries(self.dry_run)?;
        }
        Ok(())
    }
}

impl ShowArgs {
    fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let mut any = false;
        for (place, installed) in installed()? {
            let jobs = jobs_of(place, &installed, context.grammar);
            if jobs.is_empty() {
                let reason = "edited by hand; kvmb cannot interpret it";
                session.done(action(place, false, reason, false, describe(None, &installed.entry)));
            }
            for job in jobs {
                let words = job.cron.words();
                let (target, reason, command_field) = match job.is_drill {
                    false => (place.name(), format!("runs {words} ({})", job.cron), "backup_command"),
                    true => (place.drill_name(), format!("a drill runs {words} ({})", job.cron), "drill_command"),
                };
                let own = || Some(DefaultRepo::locate().ok()?.folder.to_string_lossy().into_owned());
                let repo = job.repo.clone().or_else(|| context.config().primary_repo()).or_else(own);
                let machines = job.machines();
                let mut extra = describe(Some((job.cron, job.full_command)), &installed.entry);
                extra.insert("machines".into(), machines);
                extra.insert("repo".into(), json!(repo));
                extra.insert(command_field.into(), json!(job.command));
                session.done(action_at(target, false, &reason, false, extra));
            }
            any = true;
        }
        for entry in old_entries()? {
            let extra = Map::from_iter([("entry".to_owned(), json!(entry))]);
            session.done(action(
                ScheduleLocation::User,
                false,
                "an entry of kvm_backup, the predecessor of kvmb",
                false,
                extra,
            ));
            any = true;
        }
        if !any {
            session.done(action(ScheduleLocation::User, false, "no schedule installed", false, Map::new()));
            context.hint("run 'kvmb schedule install --cron @daily --all' to back up every night");
        }
        Ok(())
    }
}

impl DescribeArgs {
    fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        let cron = cron_or_default(self.cron.as_ref(), context)?;
        let extra = times_of(&cron, usize::try_from(self.runs).unwrap_or(NEXT_RUNS));
        let reason = format!("runs {}", cron.words());
        session.done(Record::Action(Action {
            action: "schedule".into(),
            target: cron.to_string(),
            changed: false,
            reason,
            dry_run: true,
            extra,
        }));
        Ok(())
    }
}

impl RemoveArgs {
    fn run(self, session: &mut Session) -> Result<(), CliError> {
        let place = self.place.place();
        let changed = place.remove(self.dry_run)?;
        let reason = match (changed, self.dry_run) {
            (false, _) => "no schedule installed there",
            (true, false) => "removed",
            (true, true) => "would be removed",
        };
        session.done(action(place, changed, reason, self.dry_run, Map::new()));
        report_others(place, session)
    }
}

/// Warns about schedules in other places, which run as well.
fn report_others(here: ScheduleLocation, session: &mut Session) -> Result<(), CliError> {
    for (place, Installed { entry, jobs }) in installed()?.into_iter().filter(|(place, _)| *place != here) {
        let flag = match place {
            ScheduleLocation::User => "",
            ScheduleLocation::System => " --system",
            ScheduleLocation::Systemd => " --systemd",
        };
        let reason = format!("another schedule is installed here; 'kvmb schedule remove{flag}' removes it");
        session.done(action(place, false, &reason, false, describe(jobs.into_iter().next(), &entry)));
    }
    Ok(())
}

fn old_entries() -> Result<Vec<String>, CliError> {
    match schedule::old_entries() {
        Err(schedule::Error::NoProgram { .. }) => Ok(Vec::new()),
        other => Ok(other?),
    }
}

fn action(place: ScheduleLocation, changed: bool, reason: &str, dry_run: bool, extra: Map<String, Value>) -> Record {
    action_at(place.name(), changed, reason, dry_run, extra)
}

fn action_at(target: &str, changed: bool, reason: &str, dry_run: bool, extra: Map<String, Value>) -> Record {
    let (action, target, reason) = ("schedule".to_owned(), target.to_owned(), reason.to_owned());
    Record::Action(Action { action, target, changed, reason, dry_run, extra })
}

fn describe(job: Option<(Cron, String)>, entry: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    if let Some((cron, command)) = job {
        fields = times_of(&cron, NEXT_RUNS);
        fields.insert("command".into(), json!(command));
    }
    fields.insert("entry".into(), json!(entry));
    fields
}

/// Parses the times of drills.
fn drill_times(text: &str) -> Result<Cron, CronError> {
    if text == "weekly" { WEEKLY_DRILL.parse() } else { text.parse() }
}

/// Returns the given expression, or that of the configuration, or the default.
fn cron_or_default(given: Option<&Cron>, context: &Context) -> Result<Cron, CliError> {
    match (given, &context.config().backup_freq) {
        (Some(cron), _) => Ok(cron.clone()),
        (None, Some(cron)) => Ok(cron.value().clone()),
        (None, None) => DEFAULT_BACKUP_FREQ.parse().map_err(|error: CronError| CliError::failed(error.to_string())),
    }
}

/// Describes when an expression runs, as fields of a record.
fn times_of(cron: &Cron, count: usize) -> Map<String, Value> {
    let next = cron.next_runs(&Local::now(), count);
    let next = next.iter().map(|run| run.to_rfc3339_opts(SecondsFormat::Secs, false)).collect::<Vec<_>>();
    let mut fields = Map::new();
    fields.insert("cron".into(), json!(cron.to_string()));
    fields.insert("description".into(), json!(cron.words()));
    if let Some(gap) = cron.longest_gap() {
        fields.insert("longest_gap_seconds".into(), json!(gap.as_secs()));
    }
    fields.insert("next_runs".into(), json!(next));
    fields
}

/// Returns the variables that affect kvmb and for which `kvmb backup` has no flag.
pub(super) fn environment(place: ScheduleLocation) -> Result<Vec<(String, String)>, CliError> {
    let mut variables = Vec::new();
    // cron sets HOME, but systemd does not for system services. SSH keys and other files are below it.
    if place == ScheduleLocation::Systemd {
        variables.extend(variable("HOME").map(|home| ("HOME".to_owned(), home)));
    }
    // A user's folders may come from variables of the session.
    for name in ["KVMB_RUNTIME_DIR", "KVMB_SCRATCH", "KVMB_DATA_DIR", "XDG_DATA_HOME", "XDG_STATE_HOME"] {
        if let Some(folder) = variable(name) {
            variables.push((name.to_owned(), text(&absolute(Path::new(&folder))?)?));
        }
    }
    Ok(variables)
}

/// Returns the absolute path of this program. Prefers the path on `$PATH` if it is the same program, because that path
/// survives upgrades.
pub(super) fn own_path() -> Result<PathBuf, CliError> {
    let own =
        std::env::current_exe().map_err(|error| CliError::failed(format!("cannot find the kvmb program: {error}")))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let same = |found: &PathBuf| found.is_absolute() && found.canonicalize().is_ok_and(|found| found == own);
    Ok(std::env::split_paths(&path).map(|folder| folder.join("kvmb")).find(same).unwrap_or(own))
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))
}

pub(super) fn text(path: &Path) -> Result<String, CliError> {
    path.to_str().map(str::to_owned).ok_or_else(|| CliError::usage(format!("{} is not UTF-8", path.display())))
}
