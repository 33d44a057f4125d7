//! The web console: pages that run kvmb commands and show their records.
//!
//! It is a client of the command line. It starts `kvmb --json …` as child processes, with arguments as vectors, and
//! reads their records. The console cannot do anything that the commands cannot. It is the only place with an async
//! runtime, and only `kvmb ui` imports it.
//!
//! | module | what |
//! | --- | --- |
//! | [`server`] | listens, accepts connections, and ends |
//! | `access` | access control: hosts, sessions, forms, and the headers of every response |
//! | `state`, `visit`, `fields` | shared state; the context of a request, and its form |
//! | `sessions` | the one-time token, sessions and their form tokens |
//! | `links` | login links for root, if systemd has started the console |
//! | `toolbox` | runs commands: look-ups with a cache, and jobs |
//! | `job_watch` | the state of the jobs, from one command for all pages |
//! | `followed` | a command whose records are shown while it runs |
//! | `reading` | a command whose output is passed on while it runs |
//! | `language`, `dates`, `french` | English and French, numbers and dates; what commands print, in French |
//! | `html` | the frame of every page, and parts that several pages share |
//! | `answers` | responses that many pages use |
//! | `events` | live updates of parts of a page |
//! | `pages` | the pages, one file each |
//!
//! A request passes through these, in this order:
//!
//! ```text
//! connection limit → Host → session → body limit → Origin and form token → page → headers
//! ```

mod access;
mod answers;
mod dates;
mod events;
mod fields;
mod followed;
mod french;
mod html;
mod job_watch;
mod language;
mod links;
mod pages;
mod reading;
pub(crate) mod server;
mod sessions;
mod state;
mod toolbox;
mod visit;

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Where the console listens.
#[derive(Debug)]
pub(crate) enum Listen {
    Address(SocketAddr),
    Socket(PathBuf),
    /// Sockets that systemd listens on.
    Given(Given),
}

#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) pages: TcpListener,
    /// A Unix socket. Clients that may open it get a link.
    pub(crate) links: UnixListener,
}

pub(crate) struct Options {
    /// The kvmb program to run.
    pub(crate) program: PathBuf,
    /// Arguments that precede those of every command.
    pub(crate) arguments: Vec<String>,
    pub(crate) listen: Listen,
    /// The console ends after this time without use.
    pub(crate) idle: Duration,
    /// Whether to refuse everything that changes something.
    pub(crate) read_only: bool,
    pub(crate) host: String,
    /// Called with each new login link.
    pub(crate) announce: Box<dyn Fn(&str) + Send + Sync>,
    /// Raised when the console must end.
    pub(crate) stop: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot listen on {place}: {source}")]
    Listen {
        /// The address or socket.
        place: String,
        source: std::io::Error,
    },
    /// The address can be reached from other hosts.
    #[error("{address} is not a loopback address")]
    NotLoopback { address: SocketAddr },
    #[error("the socket {} is in use", path.display())]
    SocketInUse { path: PathBuf },
    /// The runtime could not be started.
    #[error("cannot start the console: {0}")]
    Runtime(std::io::Error),
}
