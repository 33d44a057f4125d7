//! Hooks: the user's own commands before and after a backup and each of its machines.
//!
//! A hook is a program with fixed arguments. It gets its context from environment variables and, after a backup, as
//! records on standard input. So a shell never interprets a machine's name as anything but a value.

use crate::cli::args::machine::Selection;
use crate::cli::context::Context;
use crate::cli::failure::exit_code::ExitCode;
use crate::cli::failure::{CliError, Code};
use crate::cli::run::Run;
use crate::cli::session::{About, Session};
use crate::cli::table::printable;
use crate::config::{self, Hook, When};
use crate::ops::{Monitor, Stop};
use crate::record::{Failure, Point, Record};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The time limit of a hook that does not set one.
const USUAL_TIMEOUT: Duration = Duration::from_secs(60);

/// The time limit of a hook that runs after an interruption.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// The time that a hook has to clean up after SIGTERM.
const LAST_SECONDS: Duration = Duration::from_secs(5);

/// Interval at which a running hook is checked.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Variables of kvmb that hooks must not see.
const SECRETS: [&str; 5] =
    ["KVMB_PASSWORD", "KVMB_SSH_PASSWORD", "RESTIC_REST_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

type HookVariables = Vec<(&'static str, String)>;

/// The hooks of a run.
pub(crate) struct HookRunner<'c> {
    config: &'c config::Hooks,
    run: &'c Run,
    stop: &'c Stop,
    monitor: &'c dyn Monitor,
    repo: String,
}

impl<'c> HookRunner<'c> {
    /// Returns the configured hooks. `repo` is the repository of the backups.
    pub(crate) fn new(context: &'c Context, repo: String) -> HookRunner<'c> {
        let config = &context.config().hooks;
        HookRunner { config, run: &context.run, stop: &context.stop, monitor: &context.monitor, repo }
    }

    /// Runs `work` between the run's hooks. The hooks after it always run, and receive the result.
    pub(crate) fn around_run(
        &self,
        session: &mut Session,
        work: impl FnOnce(&mut Session) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        session.keep_records();
        let began = Instant::now();
        let done =
            self.before("before_run", &self.config.before_run, &HookVariables::new()).and_then(|()| work(session));
        if let Err(error) = done {
            session.fail(About::default(), error);
        }
        let code = session.outcome();
        let records = session.kept_records();
        let count = |kind: &str| records.iter().filter(|record| record.kind() == kind).count().to_string();
        let facts = vec![
            ("KVMB_STATUS", status_of(code).to_owned()),
            ("KVMB_EXIT_CODE", (code as u8).to_string()),
            ("KVMB_DONE", count("point")),
            ("KVMB_FAILED", count("failure")),
            ("KVMB_SUMMARY", printable(&summary(records))),
            ("KVMB_DURATION_SECONDS", seconds(began.elapsed())),
        ];
        self.after("after_run", &self.config.after_run, code == ExitCode::Done, &facts, records);
        Ok(())
    }

    /// Runs the work on one machine between its hooks. If a hook before it fails, the work is skipped.
    pub(crate) fn around_machine(
        &self,
        selection: &Selection,
        work: impl FnOnce() -> Result<Point, CliError>,
    ) -> Result<Point, CliError> {
        self.stop.check()?;
        let mut facts: HookVariables =
            vec![("KVMB_MACHINE", selection.name.clone()), ("KVMB_UUID", selection.machine.clone())];
        facts.extend(selection.connect.clone().map(|connect| ("KVMB_CONNECT", connect)));
        let began = Instant::now();
        let result = self.before("before_machine", &self.config.before_machine, &facts).and_then(|()| work());
        facts.push(("KVMB_DURATION_SECONDS", seconds(began.elapsed())));
        let (record, done) = match &result {
            Ok(point) => {
                let done = !point.is_damage_known();
                facts.push(("KVMB_STATUS", status_of(if done { ExitCode::Done } else { ExitCode::Damage }).to_owned()));
                facts.push(("KVMB_POINT", point.point.clone()));
                let sum =
                    |of: fn(&crate::record::PointDisk) -> u64| point.disks.iter().map(of).sum::<u64>().to_string();
                facts.push(("KVMB_READ_BYTES", sum(|disk| disk.read_bytes)));
                facts.push(("KVMB_NEW_BYTES", sum(|disk| disk.new_bytes)));
                facts.push(("KVMB_STORED_BYTES", sum(|disk| disk.stored_bytes)));
                (Record::Point(point.clone()), done)
            }
            Err(error) => {
                facts.push(("KVMB_STATUS", status_of(error.code.exit_code()).to_owned()));
                facts.push(("KVMB_CODE", error.code.word().to_owned()));
                facts.push(("KVMB_ERROR", printable(&error.message)));
                let failure = error.to_record(self.run.command);
                let (connect, machine) = (selection.connect.clone(), Some(selection.name.clone()));
                (Record::Failure(Failure { connect, machine, ..failure }), false)
            }
        };
        self.after("after_machine", &self.config.after_machine, done, &facts, &[record]);
        result
    }

    /// Runs the hooks before something, up to the first that fails.
    fn before(&self, name: &'static str, hooks: &[Hook], facts: &HookVariables) -> Result<(), CliError> {
        for hook in hooks {
            self.stop.check()?;
            if let Err(why) = self.call(name, hook, facts, &[], Some(self.stop)) {
                self.stop.check()?;
                let message = format!("the hook {name} ({}) {why}", hook.command.join(" "));
                return Err(CliError::new(Code::Hook, message)
                    .hint("nothing is backed up if this hook fails; fix it, or remove it from the configuration"));
            }
        }
        Ok(())
    }

    /// Runs all hooks after something. Their failures do not affect what is already stored.
    fn after(&self, name: &'static str, hooks: &[Hook], done: bool, facts: &HookVariables, records: &[Record]) {
        for hook in hooks {
            let wanted = match hook.when {
                When::Always => true,
                When::Done => done,
                When::Failed => !done,
            };
            // These hooks also run after an interruption. An interruption while they run ends them.
            let stop = (!self.stop.requested()).then_some(self.stop);
            if wanted && let Err(why) = self.call(name, hook, facts, records, stop) {
                self.monitor.warn(&format!("the hook {name} ({}) {why}", hook.command.join(" ")));
            }
        }
    }

    /// Runs one hook to its end, or until `stop` is raised.
    fn call(
        &self,
        name: &'static str,
        hook: &Hook,
        facts: &HookVariables,
        records: &[Record],
        stop: Option<&Stop>,
    ) -> Result<(), String> {
        let Some((program, arguments)) = hook.command.split_first() else { return Ok(()) };
        let mut timeout = hook.timeout.as_ref().map_or(USUAL_TIMEOUT, |timeout| timeout.value().0);
        if self.stop.requested() {
            timeout = timeout.min(LAST_WORDS);
        }
        let mut command = Command::new(program);
        SECRETS.iter().for_each(|name| {
            command.env_remove(name);
        });
        command
            .args(arguments)
            .env("KVMB_HOOK", name)
            .env("KVMB_RUN", &self.run.id)
            .env("KVMB_COMMAND", self.run.command)
            .env("KVMB_REPO", &self.repo)
            .envs(facts.iter().map(|(name, value)| (name, value)))
            .stdin(input(records).map_err(|error| format!("cannot receive records: {error}"))?)
            // Standard output is reserved for records.
            .stdout(io::stderr().as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from))
            .process_group(0);
        let began = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
        let ended = loop {
            match child.try_wait() {
                Ok(Some(status)) => break outcome(status),
                Err(error) => break Err(format!("cannot be waited for: {error}")),
                Ok(None) if stop.is_some_and(Stop::requested) => break Err(end(&mut child, "was interrupted")),
                Ok(None) if began.elapsed() >= timeout => {
                    break Err(end(&mut child, &format!("was stopped after {} s", timeout.as_secs())));
                }
                Ok(None) => std::thread::sleep(LOOK_AGAIN),
            }
        };
        let result = ended.as_ref().err().map_or("done", String::as_str);
        tracing::info!(hook = name, program, duration_seconds = began.elapsed().as_secs_f64(), "hook: {result}");
        ended
    }
}

fn outcome(status: ExitStatus) -> Result<(), String> {
    if status.success() { Ok(()) } else { Err(format!("failed: {status}")) }
}

/// Returns records as a file for standard input, so that no thread has to write them to a pipe.
fn input(records: &[Record]) -> io::Result<Stdio> {
    if records.is_empty() {
        return Ok(Stdio::null());
    }
    let mut file = File::from(memfd_create("kvmb-records", MemfdFlags::CLOEXEC)?);
    for record in records {
        writeln!(file, "{}", record.to_line())?;
    }
    file.rewind()?;
    Ok(file.into())
}

/// Ends a hook and all of its child processes, and returns the reason.
fn end(child: &mut Child, why: &str) -> String {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return why.to_owned() };
    // If the group is already gone, no signal is needed.
    let _ = kill_process_group(group, Signal::TERM);
    let deadline = Instant::now() + LAST_SECONDS;
    while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(LOOK_AGAIN);
    }
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
    why.to_owned()
}

/// Returns the word for a result.
fn status_of(code: ExitCode) -> &'static str {
    match code {
        ExitCode::Done => "done",
        ExitCode::Partial => "partial",
        ExitCode::Damage => "damage",
        ExitCode::Busy => "busy",
        ExitCode::Interrupted | ExitCode::Terminated => "interrupted",
        ExitCode::Failed | ExitCode::Usage => "failed",
    }
}

/// Describes a run in one sentence: "2 machines were stored, 1 failed: vm3: the machine is held by …".
fn summary(records: &[Record]) -> String {
    let stored = records.iter().filter(|record| matches!(record, Record::Point(_))).count();
    let failures: Vec<String> = records
        .iter()
        .filter_map(|record| match record {
            Record::Failure(failure) => Some(match &failure.machine {
                Some(machine) => format!("{machine}: {}", failure.error),
                None => failure.error.clone(),
            }),
            Record::Point(point) if point.is_damage_known() => Some(format!("{}: damage was found", point.machine)),
            _ => None,
        })
        .collect();
    let machines =
        if stored == 1 { "1 machine was stored".to_owned() } else { format!("{stored} machines were stored") };
    match failures.len() {
        0 => machines,
        count => format!("{machines}, {count} failed: {}", failures.join("; ")),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64())
}

impl std::fmt::Debug for HookRunner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").field("config", self.config).finish_non_exhaustive()
    }
}
