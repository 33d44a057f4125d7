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
//! | `html` | the frame of every page, and parts that several pages have |
//! | `answers` | answers that many pages give |
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
    /// A Unix socket that only its owner may use.
    Socket(PathBuf),
    /// What systemd listens on for it.
    Given(Given),
}

/// Sockets that systemd has opened.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) pages: TcpListener,
    /// A Unix socket: whoever may open it gets a link.
    pub(crate) links: UnixListener,
}

/// How the console runs.
pub(crate) struct Options {
    /// The program that it starts.
    pub(crate) program: PathBuf,
    /// Arguments that every command gets first.
    pub(crate) arguments: Vec<String>,
    pub(crate) listen: Listen,
    /// It ends when nobody has used it for so long.
    pub(crate) idle: Duration,
    /// Whether it refuses everything that changes something.
    pub(crate) read_only: bool,
    /// The name of this host, for titles.
    pub(crate) host: String,
    /// Called with each link that opens a session.
    pub(crate) announce: Box<dyn Fn(&str) + Send + Sync>,
    /// Raised when it is to end.
    pub(crate) stop: Arc<AtomicBool>,
}

/// Why the console does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {place}: {source}")]
    Listen {
        /// The address or socket.
        place: String,
        source: std::io::Error,
    },
    /// An address that others could reach.
    #[error("{address} is not a loopback address")]
    NotLoopback { address: SocketAddr },
    /// Another program uses the socket.
    #[error("the socket {} is in use", path.display())]
    SocketInUse { path: PathBuf },
    /// The system has no threads left.
    #[error("cannot start the console: {0}")]
    Runtime(std::io::Error),
}
