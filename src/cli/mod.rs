//! The command line: the only layer that knows the terminal and the environment.
//!
//! One file a subcommand: its arguments, whose doc comments are its help, and a short `run`.

pub mod complete;
pub mod environment;
pub mod exit_code;
pub mod failure;
pub mod input;
pub mod interrupt;
pub mod output;
pub mod progress;
pub mod prompt;
pub mod repo_args;
pub mod secret;
pub mod session;
pub mod ssh_access;
pub mod table;

mod backup;
mod capture_args;
mod capture_stream;
mod completions;
mod disks;
mod doctor;
mod hash;
mod init;
mod key;
mod machine_args;
mod man;
mod points;
mod push;
mod rehearsal;
mod release;
mod restore;
mod restore_dialog;
mod snapshot;
mod verify;
mod vms;

use crate::capture::{Hypervisor, Runtime};
use crate::ops::Stop;
use crate::storage::Storage;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use exit_code::ExitCode;
use failure::CliError;
use output::{Effect, Format};
use progress::Bars;
use session::{About, Session};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Back up and restore KVM/libvirt virtual machines.
///
/// kvmb is a toolbox: small commands that read and write JSON records, one a line, so that a backup can be a shell pipe,
/// an Ansible play, or one 'kvmb backup'. Restore points are kept in a restic repository, which the stock restic program
/// can list, check, mount and restore as well.
#[derive(Debug, Parser)]
#[command(name = "kvmb", version, max_term_width = 100, disable_help_subcommand = true, subcommand_value_name = "COMMAND", after_help = after_help())]
pub struct Cli {
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
  kvmb vms                                        the machines of this host
  kvmb backup vm1 -r /backup/kvm                  a full backup of one machine, running or not
  kvmb snapshot vm1 -r R | kvmb hash | kvmb push -r R | kvmb release | kvmb verify -r R
                                                  the same as a pipe, with a checksum of each disk
  kvmb restore vm1@latest -r R --as vm1-copy --into /var/lib/libvirt/images --start";

/// What every command understands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The libvirt connection, as virsh takes it.
    ///
    /// Without it: $LIBVIRT_DEFAULT_URI, else what libvirt chooses: qemu:///system for root, qemu:///session for others.
    #[arg(short, long, value_name = "URI", global = true, add = complete::connections())]
    pub connect: Option<String>,

    /// How records are printed.
    #[arg(short, long, value_enum, default_value_t, global = true, value_name = "FORMAT")]
    pub output: Format,

    /// Short for --output jsonl.
    #[arg(long, global = true, conflicts_with = "output")]
    pub json: bool,

    /// Tell more on standard error; twice, still more.
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,

    /// No progress, no warnings, no questions.
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

impl Global {
    /// The format of records.
    pub fn format(&self) -> Format {
        if self.json { Format::Jsonl } else { self.output }
    }
}

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
    Points(points::PointsArgs),
    Backup(backup::BackupArgs),
    Init(init::InitArgs),
    Key(key::KeyArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    Doctor(doctor::DoctorArgs),
}

/// What a command works with.
#[derive(Debug)]
pub struct Context {
    /// The global flags.
    pub global: Global,
    /// Raised by Ctrl-C.
    pub stop: Stop,
    /// Progress and warnings.
    pub monitor: Bars,
    /// The places of repositories that were opened, by address.
    storages: Mutex<HashMap<String, Arc<dyn Storage>>>,
}

impl Context {
    /// The context of one command.
    pub fn new(global: Global) -> Context {
        let (monitor, stop, storages) = (Bars::new(global.quiet), Stop::default(), Mutex::default());
        Context { global, stop, monitor, storages }
    }

    /// Opens libvirt, by default the connection of the command line.
    pub fn hypervisor(&self, connect: Option<&str>) -> Result<Hypervisor, CliError> {
        Ok(Hypervisor::open(connect.or(self.global.connect.as_deref()))?)
    }

    /// The place that a repository's address means; the same one for the same address, with its connections.
    pub fn storage(&self, url: &str, ssh_password_file: Option<&Path>) -> Result<Arc<dyn Storage>, CliError> {
        let mut storages = self.storages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(storage) = storages.get(url) {
            return Ok(Arc::clone(storage));
        }
        let access = ssh_access::access(self, ssh_password_file)?;
        let storage = crate::storage::open(url, &access).map_err(repo_args::storage_error)?;
        storages.insert(url.to_owned(), Arc::clone(&storage));
        Ok(storage)
    }

    /// The folders of captures.
    pub fn runtime(&self) -> Result<Runtime, CliError> {
        Ok(Runtime::open()?.with_scratch_folder(repo_args::data_folder()?.join("scratch")))
    }
}

/// The whole program: parses, runs, says how it went.
pub fn main() -> ExitCode {
    if let Some(code) = complete::answer() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no error; a reader that has gone is none either.
            let _ = match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.print(),
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.print(),
                _ => write!(std::io::stderr(), "kvmb: {}", error.render()),
            };
            return if error.use_stderr() { ExitCode::Usage } else { ExitCode::Done };
        }
    };
    // Before any thread: the environment is about to change.
    crate::capture::quiet_libvirt_log();
    start_log(&cli.global);
    let context = Context::new(cli.global);
    if let Err(error) = interrupt::install(&context.stop) {
        session::report(&format!("cannot watch for signals: {error}"), None);
        return ExitCode::Failed;
    }
    let (name, effect) = cli.command.name_and_effect();
    let mut session = Session::new(&context, name, effect);
    if let Err(error) = cli.command.run(&context, &mut session) {
        // As a record too: the next stage of a pipe must hear of it.
        session.fail(About::default(), error);
    }
    session.finish()
}

impl Command {
    fn name_and_effect(&self) -> (&'static str, Effect) {
        match self {
            Command::Vms(_) => ("vms", Effect::Reads),
            Command::Disks(_) => ("disks", Effect::Reads),
            Command::Snapshot(_) => ("snapshot", Effect::Changes),
            Command::Hash(_) => ("hash", Effect::Reads),
            Command::Push(_) => ("push", Effect::Changes),
            Command::Release(_) => ("release", Effect::Changes),
            Command::Verify(_) => ("verify", Effect::Reads),
            Command::Restore(_) => ("restore", Effect::Changes),
            Command::Points(_) => ("points", Effect::Reads),
            Command::Backup(_) => ("backup", Effect::Changes),
            Command::Init(_) => ("init", Effect::Changes),
            Command::Key(_) => ("key", Effect::Changes),
            Command::Completions(_) => ("completions", Effect::Reads),
            Command::Man(_) => ("man", Effect::Changes),
            Command::Doctor(_) => ("doctor", Effect::Reads),
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
            Command::Points(args) => args.run(context, session),
            Command::Backup(args) => args.run(context, session),
            Command::Init(args) => args.run(context, session),
            Command::Key(args) => args.run(context, session),
            Command::Completions(args) => args.run(session),
            Command::Man(args) => args.run(session),
            Command::Doctor(args) => args.run(context, session),
        }
    }
}

fn start_log(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "kvmb=info,warn",
        _ => "kvmb=debug,info",
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .with_writer(std::io::stderr)
        // It would complain on standard error that standard error is closed, and panic.
        .log_internal_errors(false)
        .with_target(false)
        .init();
}

/// The command line as clap sees it, for the manual and the completions.
pub fn command() -> clap::Command {
    Cli::command()
}
