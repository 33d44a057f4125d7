//! The command line: the only layer that uses the terminal and the environment.
//!
//! `commands` has one file per subcommand: its arguments, whose doc comments are its help, and a short `run`.

mod aws_profile;
pub(crate) mod complete;
mod context;
mod detach;
pub mod environment;
pub mod failure;
mod folders;
pub(crate) mod input;
pub(crate) mod output;
mod overview;
mod run;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod ssh_access;
pub mod table;

pub(crate) mod args;
mod capture_stream;
mod commands;
mod dry_run;
mod history_recorder;
mod hooks;
mod http_access;
mod job_recorder;
mod object_locks;
pub(crate) mod terminal;
mod usage_tip;

use crate::capture;
use crate::config::Loaded;
use crate::confined;
use crate::ops;
use args::global::Global;
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
#[cfg(feature = "console")]
use commands::ui;
use commands::{
    backup, completions, config, disks, doctor, drill, files, guard, hash, init, jobs, key, log, man, mount, pin,
    points, prune, push, release, remote, restore, schedule, schema, serve, snapshot, stats, status, unlock, verify,
    vms,
};
use context::Context;
use failure::CliError;
use failure::exit_code::{Exit, ExitCode, PluginState};
use job_recorder::JobRecorder;
use output::{ClosedPipe, Format};
use run::Run;
use session::{About, Session};
use settings::Settings;
use std::ffi::OsString;
use std::io::Write;
use std::time::SystemTime;

/// Back up and restore KVM/libvirt virtual machines.
///
/// kvmb consists of small commands that read and write JSON records, one per line. A backup can be a shell pipe, an
/// Ansible play or a single 'kvmb backup'. Restore points are kept in a restic repository, so the restic program
/// can also list, check, mount and restore them.
#[derive(Debug, Parser)]
#[command(name = "kvmb", version, max_term_width = 100, disable_help_subcommand = true,
    subcommand_value_name = "COMMAND", after_help = after_help())]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

fn after_help() -> String {
    let codes = ExitCode::ALL.map(|(code, meaning)| format!("  {:<3} {meaning}\n", code as u8)).concat();
    format!("{EXAMPLES}\n\nExit status:\n{}", codes.trim_end())
}

const EXAMPLES: &str = "\
Examples:
  kvmb vms                                        list the machines of this host
  kvmb backup vm1 -r /backup/kvm                  back up one machine, running or not
  kvmb snapshot vm1 -r R | kvmb hash | kvmb push -r R | kvmb release | kvmb verify -r R
                                                  the same as a pipe, with a checksum for each disk
  kvmb restore vm1@latest -r R --as vm1-copy --into /var/lib/libvirt/images --start";

#[derive(Debug, Subcommand)]
enum Command {
    Vms(vms::VmsArgs),
    Disks(disks::DisksArgs),
    Snapshot(snapshot::SnapshotArgs),
    Hash(hash::HashArgs),
    Push(push::PushArgs),
    Release(release::ReleaseArgs),
    Verify(verify::VerifyArgs),
    Restore(restore::RestoreArgs),
    Drill(drill::DrillArgs),
    Serve(serve::ServeArgs),
    Files(files::FilesArgs),
    Mount(mount::MountArgs),
    Points(points::PointsArgs),
    Pin(pin::PinArgs),
    Unlock(unlock::UnlockArgs),
    Stats(stats::StatsArgs),
    Prune(prune::PruneArgs),
    Backup(backup::BackupArgs),
    Init(init::InitArgs),
    Jobs(jobs::JobsArgs),
    Key(key::KeyArgs),
    Remote(remote::RemoteArgs),
    Schedule(schedule::ScheduleArgs),
    Config(config::ConfigArgs),
    Schema(schema::SchemaArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    Doctor(doctor::DoctorArgs),
    #[command(hide = true)]
    Guard(guard::GuardArgs),
    Status(status::StatusArgs),
    Log(log::LogCommandArgs),
    #[cfg(feature = "console")]
    Ui(ui::UiArgs),
}

/// The whole program: parses the command line, runs the command, and returns the exit code.
pub fn main() -> Exit {
    if std::env::args_os().nth(1).is_some_and(|word| word == confined::COMMAND) {
        // Before anything else is opened, read or started. Users never call this command.
        capture::detach_from_terminal();
        confined::child::run();
        return Exit::Code(ExitCode::Done);
    }
    if let Some(code) = complete::answer(command) {
        return Exit::Code(code);
    }
    terminal::secret::keep_out_of_core_dumps();
    let (cli, settings) = match parse() {
        Ok(parsed) => parsed,
        Err(exit) => return exit,
    };
    if SystemTime::now() < SystemTime::UNIX_EPOCH {
        // No time can be recorded, and neither points nor locks can be dated.
        let error = CliError::failed("the clock of this host shows a time before 1970");
        return refuse(&cli, vec![error.hint("set the clock, for example with 'timedatectl set-time'")]);
    }
    terminal::color::set(cli.global.color);
    // Before any thread is started, because this changes the environment.
    capture::quiet_libvirt_log();
    capture::complete_path();
    if let Ok(program) = std::env::current_exe() {
        ops::guard::set_program(program);
    }
    let (name, effect) = cli.command.name_and_effect();
    if cli.command.wants_to_detach() {
        match detach::split() {
            Ok(None) => {}
            Ok(Some(exit)) => return exit,
            Err(error) => {
                terminal::stderr::report(&format!("cannot continue in the background: {error}"), None);
                return Exit::Code(ExitCode::Failed);
            }
        }
    }
    let run = Run::begin(name, effect);
    args::log::start(&run, &cli.global.log, (cli.global.quiet, cli.global.verbose), &settings.loaded.config.log);
    let dry_run = settings.is_dry_run;
    let context = Context::new(cli.global, settings, run, command);
    if let Err(error) = terminal::interrupt::install(&context.stop) {
        terminal::stderr::report(&format!("cannot watch for signals: {error}"), None);
        return Exit::Code(ExitCode::Failed);
    }
    let mut session = Session::new(context.global.format(), name, effect);
    let (recorder, keeper) = JobRecorder::begin(&context.run, dry_run, context.monitor.board());
    session.keep_for_job(keeper);
    if let Err(error) = cli.command.run(&context, &mut session) {
        // Print a record too: the next stage of a pipeline must learn about the failure.
        session.fail(About::default(), error);
    }
    let plugin = session.plugin();
    let code = session.finish();
    recorder.end(code);
    args::log::ended(&context.run, code, context.global.quiet);
    plugin.map_or(Exit::Code(code), Exit::Plugin)
}

/// Parses the command line twice: first to find the configuration, then with its values as defaults.
fn parse() -> Result<(Cli, Settings), Exit> {
    let mut parser = settings::with_output_variable(settings::without_empty_variables(command()));
    let (cli, matches) = parse_with(&mut parser.clone())?;
    if !cli.command.needs_config() {
        return Ok((cli, Settings::new(Loaded::default(), &matches)));
    }
    let loaded = cli.global.load_config().map_err(|error| refuse(&cli, failure::of_config(error)))?;
    parser = settings::with_defaults(parser, &loaded);
    let (cli, matches) = parse_with(&mut parser)?;
    failure::hint::set_invocation(failure::hint::Invocation::new(command, &matches));
    Ok((cli, Settings::new(loaded, &matches)))
}

fn parse_with(parser: &mut clap::Command) -> Result<(Cli, clap::ArgMatches), Exit> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let matches = parser.try_get_matches_from_mut(&args);
    let parsed = matches.and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(parser))?;
        Ok((cli, matches))
    });
    parsed.map_err(|error| {
        if error.use_stderr() && is_for_a_plugin() {
            // Print only the first line of clap's message.
            let text = error.render().to_string();
            let words = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            return refuse_plugin(&words);
        }
        let code = if error.use_stderr() { ExitCode::Usage } else { ExitCode::Done };
        // Help and version go to standard output and are not errors; neither is a closed pipe.
        let _ = match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.print(),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand
                if std::env::args_os().len() == 1 =>
            {
                terminal::stderr::styled(&overview::overview(parser));
                Ok(())
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.print(),
            _ => write!(std::io::stderr(), "kvmb: {}", usage_tip::corrected(error, parser, &args).render()),
        };
        Exit::Code(code)
    })
}

/// Reports why the command cannot start, also as records.
fn refuse(cli: &Cli, errors: Vec<CliError>) -> Exit {
    if matches!(&cli.command, Command::Status(args) if args.is_plugin()) {
        let faults: Vec<String> = errors.into_iter().map(|error| error.message).collect();
        return refuse_plugin(&faults.join("; "));
    }
    let (name, effect) = cli.command.name_and_effect();
    let mut session = Session::new(cli.global.format(), name, effect);
    for error in errors {
        session.fail(About::default(), error);
    }
    Exit::Code(session.finish())
}

/// Whether an invalid command line was meant for a monitoring plugin.
fn is_for_a_plugin() -> bool {
    let mut words = std::env::args_os().skip(1);
    words.any(|word| word == "status") && words.any(|word| word == "--nagios")
}

/// Prints the output of a monitoring plugin that cannot start.
fn refuse_plugin(why: &str) -> Exit {
    output::Output::new(Format::Jsonl, ClosedPipe::Reads, table::View::Listing).text(status::unknown(why).as_bytes());
    Exit::Plugin(PluginState::Unknown)
}

impl Command {
    fn name_and_effect(&self) -> (&'static str, ClosedPipe) {
        match self {
            Command::Vms(_) => ("vms", ClosedPipe::Reads),
            Command::Disks(_) => ("disks", ClosedPipe::Reads),
            Command::Snapshot(_) => ("snapshot", ClosedPipe::Changes),
            Command::Hash(_) => ("hash", ClosedPipe::Reads),
            Command::Push(_) => ("push", ClosedPipe::Changes),
            Command::Release(_) => ("release", ClosedPipe::Changes),
            Command::Verify(_) => ("verify", ClosedPipe::Reads),
            Command::Restore(_) => ("restore", ClosedPipe::Changes),
            Command::Drill(_) => ("drill", ClosedPipe::Changes),
            Command::Serve(_) => ("serve", ClosedPipe::Changes),
            Command::Files(args) if args.changes() => ("files", ClosedPipe::Changes),
            Command::Files(_) => ("files", ClosedPipe::Reads),
            Command::Mount(_) => ("mount", ClosedPipe::Changes),
            Command::Points(_) => ("points", ClosedPipe::Reads),
            Command::Pin(_) => ("pin", ClosedPipe::Changes),
            Command::Unlock(_) => ("unlock", ClosedPipe::Changes),
            Command::Stats(_) => ("stats", ClosedPipe::Reads),
            Command::Prune(_) => ("prune", ClosedPipe::Changes),
            Command::Backup(_) => ("backup", ClosedPipe::Changes),
            Command::Init(_) => ("init", ClosedPipe::Changes),
            Command::Jobs(args) if args.changes() => ("jobs", ClosedPipe::Changes),
            Command::Jobs(_) => ("jobs", ClosedPipe::Reads),
            Command::Key(_) => ("key", ClosedPipe::Changes),
            Command::Remote(_) => ("remote", ClosedPipe::Changes),
            Command::Schedule(_) => ("schedule", ClosedPipe::Changes),
            Command::Completions(_) => ("completions", ClosedPipe::Reads),
            Command::Schema(_) => ("schema", ClosedPipe::Reads),
            Command::Man(_) => ("man", ClosedPipe::Changes),
            Command::Doctor(_) => ("doctor", ClosedPipe::Reads),
            Command::Guard(_) => ("guard", ClosedPipe::Reads),
            Command::Status(_) => ("status", ClosedPipe::Reads),
            Command::Log(_) => ("log", ClosedPipe::Reads),
            #[cfg(feature = "console")]
            Command::Ui(_) => ("ui", ClosedPipe::Changes),
            Command::Config(args) if args.changes() => ("config", ClosedPipe::Changes),
            Command::Config(_) => ("config", ClosedPipe::Reads),
        }
    }

    /// Whether the command continues in the background once it is ready.
    fn wants_to_detach(&self) -> bool {
        match self {
            Command::Serve(args) => args.wants_to_detach(),
            Command::Mount(args) => args.wants_to_detach(),
            _ => false,
        }
    }

    /// Whether the command needs a valid configuration.
    fn needs_config(&self) -> bool {
        match self {
            Command::Config(args) => args.needs_config(),
            Command::Completions(_) | Command::Man(_) | Command::Guard(_) | Command::Schema(_) => false,
            _ => true,
        }
    }

    fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        match self {
            Command::Vms(args) => args.run(context, session),
            Command::Disks(args) => args.run(context, session),
            Command::Snapshot(args) => args.run(context, session),
            Command::Hash(args) => args.run(context, session),
            Command::Push(args) => args.run(context, session),
            Command::Release(args) => args.run(context, session),
            Command::Verify(args) => args.run(context, session),
            Command::Restore(args) => args.run(context, session),
            Command::Drill(args) => args.run(context, session),
            Command::Serve(args) => args.run(context, session),
            Command::Files(args) => args.run(context, session),
            Command::Mount(args) => args.run(context, session),
            Command::Points(args) => args.run(context, session),
            Command::Pin(args) => args.run(context, session),
            Command::Unlock(args) => args.run(context, session),
            Command::Stats(args) => args.run(context, session),
            Command::Prune(args) => args.run(context, session),
            Command::Backup(args) => args.run(context, session),
            Command::Init(args) => args.run(context, session),
            Command::Jobs(args) => args.run(context, session),
            Command::Key(args) => args.run(context, session),
            Command::Remote(args) => args.run(context, session),
            Command::Schedule(args) => args.run(context, session),
            Command::Config(args) => args.run(context, session),
            Command::Schema(args) => {
                args.run(session);
                Ok(())
            }
            Command::Completions(args) => args.run(session),
            Command::Man(args) => args.run(session, command()),
            Command::Doctor(args) => args.run(context, session),
            Command::Guard(args) => args.run(context),
            Command::Status(args) => args.run(context, session),
            Command::Log(args) => args.run(context, session),
            #[cfg(feature = "console")]
            Command::Ui(args) => args.run(context, session),
        }
    }
}

/// Returns the command line as clap sees it, for the manual and the completions.
pub fn command() -> clap::Command {
    overview::arranged(Cli::command())
}
