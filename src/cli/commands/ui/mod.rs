//! `kvmb ui`

mod browser;
mod shared;
mod units;

use crate::cli::args::value_parsers::duration;
use crate::cli::context::Context;
use crate::cli::failure::{CliError, Code};
use crate::cli::session::Session;
use crate::cli::terminal::stderr;
use crate::console::{Given, Listen, Options, server};
use listenfd::ListenFd;
use shared::{DEFAULT_ADDRESS, LINK_SOCKET, arguments, explained};
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long the systemd-managed console may take to start and to answer.
const LINK_LIMIT: Duration = Duration::from_secs(30);

/// Maximum length of a link.
const LONGEST_LINK_BYTES: u64 = 4096;

/// Open the web console: a local web page for looking, backing up and restoring.
///
/// Prints a link that opens one session, and how to reach it from another computer. The console runs kvmb commands with
/// the configuration and the rights of the user that starts it. For each action, it shows the command line that does
/// the same. Jobs that it starts continue when it ends. It ends with Ctrl-C, or when it has not been used for a while.
/// 'kvmb ui install' makes it a systemd service; 'kvmb ui --url' prints a link to that one.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  kvmb ui
  kvmb ui --read-only --idle 8h
  kvmb ui --listen 127.0.0.1:9000
  kvmb ui --socket /run/user/1000/kvmb.sock
  kvmb ui install
  kvmb ui --url"
)]
pub(crate) struct UiArgs {
    #[command(subcommand)]
    command: Option<UiCommand>,

    /// The loopback address to listen on. Port 0 takes any free port.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = DEFAULT_ADDRESS)]
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

    /// Do not open a browser. Without this option, one is opened on a desktop.
    #[arg(long)]
    no_open: bool,

    /// Use the sockets that systemd passes (see 'kvmb ui install').
    #[arg(long, conflicts_with_all = ["listen", "socket"])]
    system: bool,

    /// Print a link to the console that systemd runs, and exit.
    #[arg(long, conflicts_with_all = ["listen", "socket", "system", "idle", "read_only"])]
    url: bool,

    /// The socket that --url asks for a link.
    #[arg(long, value_name = "PATH", default_value = LINK_SOCKET, requires = "url")]
    link_socket: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum UiCommand {
    Install(units::UnitInstallArgs),
    Remove(units::UnitRemoveArgs),
}

impl UiArgs {
    pub(crate) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        match self.command {
            Some(UiCommand::Install(args)) => return args.run(context, session),
            Some(UiCommand::Remove(args)) => return args.run(session),
            None => {}
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        if self.url {
            let link = link_from(&self.link_socket)?;
            session.text(format!("{link}\n").as_bytes());
            say_tunnel(&link, &host);
            return Ok(());
        }
        let program = std::env::current_exe()
            .map_err(|error| CliError::failed(format!("cannot find the program of kvmb: {error}")))?;
        let listen = match (self.system, self.socket) {
            (true, _) => Listen::Given(given_by_systemd()?),
            (false, Some(socket)) => Listen::Socket(socket),
            (false, None) => Listen::Address(self.listen),
        };
        let (is_address, name) = (matches!(listen, Listen::Address(_)), host.clone());
        let is_to_open = AtomicBool::new(is_address && !self.no_open);
        let announce = move |link: &str| {
            stderr::say(&format!("kvmb: open {link}"));
            if is_address {
                say_tunnel(link, &name);
            }
            // Open only the first link: a session that was ended must not reopen by itself.
            if is_to_open.swap(false, Ordering::Relaxed) {
                browser::open(link);
            }
        };
        let options = Options {
            program,
            arguments: arguments(context),
            listen,
            idle: self.idle,
            read_only: self.read_only,
            host,
            announce: Box::new(announce),
            stop: context.stop.flag(),
        };
        server::run(options).map_err(explained)
    }
}

/// Prints how to reach the address of a link from another computer.
fn say_tunnel(link: &str, host: &str) {
    if let Some(tunnel) = tunnel(link) {
        stderr::say(&format!("kvmb: from another computer, run this there first: ssh -L {tunnel} {host}"));
    }
}

/// Returns the argument of `ssh -L` for the address of a link, quoted for a shell.
fn tunnel(link: &str) -> Option<String> {
    let address: SocketAddr = link.strip_prefix("http://")?.split('/').next()?.parse().ok()?;
    let port = address.port();
    Some(match address {
        SocketAddr::V4(address) => format!("{port}:{}:{port}", address.ip()),
        // Shells treat brackets as a pattern.
        SocketAddr::V6(address) => format!("'{port}:[{}]:{port}'", address.ip()),
    })
}

/// Returns the two sockets of `kvmb-ui.socket`, in any order.
fn given_by_systemd() -> Result<Given, CliError> {
    let refused = |message: String| {
        CliError::usage(message).hint("--system is for systemd; run 'kvmb ui install', then 'kvmb ui --url'")
    };
    let mut sockets = ListenFd::from_env();
    let (mut pages, mut links) = (None, None);
    for number in 0..sockets.len() {
        match sockets.take_tcp_listener(number) {
            Ok(found) => pages = pages.or(found),
            Err(_) => {
                links = links.or(sockets.take_unix_listener(number).map_err(|error| refused(error.to_string()))?)
            }
        }
    }
    match (pages, links) {
        (Some(pages), Some(links)) => Ok(Given { pages, links }),
        _ => Err(refused("systemd has not passed an address and a Unix socket".to_owned())),
    }
}

/// Requests a link from the systemd-managed console, which systemd starts if necessary.
fn link_from(socket: &Path) -> Result<String, CliError> {
    let place = socket.display();
    let explained = |error: std::io::Error| {
        let message = format!("cannot get a link from {place}: {error}");
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => CliError::new(Code::NotFound, message)
                .hint("run 'kvmb ui install' first, or 'kvmb ui' for a console here"),
            ErrorKind::PermissionDenied => {
                CliError::new(Code::Permission, message).hint("run it as root: sudo kvmb ui --url")
            }
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                CliError::new(Code::Timeout, message).hint("journalctl -u kvmb-ui.service")
            }
            _ => CliError::failed(message),
        }
    };
    let mut stream = UnixStream::connect(socket).map_err(explained)?;
    stream.set_read_timeout(Some(LINK_LIMIT)).map_err(explained)?;
    let mut link = String::new();
    (&mut stream).take(LONGEST_LINK_BYTES).read_to_string(&mut link).map_err(explained)?;
    match link.trim() {
        "" => Err(CliError::new(Code::Permission, format!("{place} did not return a link")).hint("sudo kvmb ui --url")),
        link => Ok(link.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_forwards_to_the_address_of_the_link() {
        for (link, expected) in [
            ("http://127.0.0.1:8420/login?token=a", Some("8420:127.0.0.1:8420")),
            ("http://127.0.0.2:1/login?token=a", Some("1:127.0.0.2:1")),
            ("http://[::1]:8420/login?token=a", Some("'8420:[::1]:8420'")),
            ("http://localhost/login?token=a", None),
        ] {
            assert_eq!(tunnel(link).as_deref(), expected, "{link}");
        }
    }
}
