//! `kvmb ui`

use crate::cli::args::value_parsers::duration;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::Session;
use crate::cli::terminal::stderr;
use crate::console::{self, Listen, Options, server};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Open the web console: a local web page for looking, backing up and restoring.
///
/// Prints a link that opens one session, and how to reach it from another computer. The console runs kvmb commands with
/// the configuration and the rights of the user that starts it. For each action, it shows the command line that does
/// the same. Jobs that it starts continue when it ends. It ends with Ctrl-C, or when it has not been used for a while.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb ui
  kvmb ui --read-only --idle 8h
  kvmb ui --listen 127.0.0.1:9000
  kvmb ui --socket /run/kvmb-ui.sock")]
pub(crate) struct UiArgs {
    /// The loopback address to listen on. Port 0 takes any free port.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8420")]
    listen: SocketAddr,

    /// Listen on a Unix socket that only this user may use.
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    socket: Option<PathBuf>,

    /// End when nobody has used the console for this time.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1h")]
    idle: Duration,

    /// Show everything and change nothing.
    #[arg(long)]
    read_only: bool,
}

impl UiArgs {
    pub(crate) fn run(self, context: &Context, _session: &mut Session) -> Result<(), CliError> {
        let program = std::env::current_exe()
            .map_err(|error| CliError::failed(format!("cannot find the program of kvmb: {error}")))?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let (is_socket, name) = (self.socket.is_some(), host.clone());
        let announce = move |link: &str| {
            stderr::say(&format!("kvmb: open {link}"));
            if let Some(port) =
                link.rsplit_once("/login").and_then(|(address, _)| address.rsplit_once(':')).map(|(_, p)| p)
                && !is_socket
            {
                stderr::say(&format!(
                    "kvmb: from another computer, run this there first: ssh -L {port}:127.0.0.1:{port} {name}"
                ));
            }
        };
        let options = Options {
            program,
            arguments: arguments(context),
            listen: self.socket.map_or(Listen::Address(self.listen), Listen::Socket),
            idle: self.idle,
            read_only: self.read_only,
            host,
            announce: Box::new(announce),
            stop: context.stop.flag(),
        };
        server::run(options).map_err(explained)
    }
}

/// The global options that the commands of the console get too.
fn arguments(context: &Context) -> Vec<String> {
    let global = &context.global;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
    // What the environment says, the commands find there themselves.
    let given = |variable: &str, value: Option<String>| {
        value.filter(|value| std::env::var(variable).ok().as_deref() != Some(value.as_str()))
    };
    let options = [
        ("--connect", global.connect.clone()),
        ("--config", given("KVMB_CONFIG", path(&global.config))),
        ("--log-file", given("KVMB_LOG_FILE", path(&global.log.log_file))),
    ];
    options.into_iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value?))).collect()
}

fn explained(error: console::Error) -> CliError {
    let message = error.to_string();
    match error {
        console::Error::NotLoopback { .. } => {
            CliError::usage(message).hint("use 127.0.0.1 and, from another computer, ssh -L 8420:127.0.0.1:8420")
        }
        console::Error::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            CliError::new(Code::Busy, message).hint("use another port: kvmb ui --listen 127.0.0.1:0")
        }
        console::Error::Listen { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            CliError::new(Code::Permission, message).hint("choose a folder or a port that this user may use")
        }
        console::Error::SocketInUse { .. } => CliError::new(Code::Busy, message).hint("end the other console first"),
        console::Error::Listen { .. } | console::Error::Runtime(_) => CliError::failed(message),
    }
}
