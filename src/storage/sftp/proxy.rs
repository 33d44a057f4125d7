//! Indirect connections to a server: over a program whose standard input and output are the connection (`ProxyCommand`
//! of `ssh_config`), or over `ssh` on an intermediate host (`ProxyJump`).
//!
//! The program gets one end of a socket pair, and libssh2 the other. It runs in its own process group, because Ctrl-C
//! at a terminal must not end the connection over which a lock is still to be removed. For the same reason it cannot
//! prompt at the terminal.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How a server is reached if not directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// A command line for the shell.
    Command(String),
    /// Intermediate hosts, nearest first, as in `ssh -J`.
    Jump {
        /// `[user@]host[:port]`, separated by commas.
        hosts: String,
        /// The configuration file for `ssh`, if not its default.
        config: Option<PathBuf>,
    },
}

/// A failure of a proxy that a retry does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProblem {
    /// The host key of an intermediate host is unknown, or has changed.
    HostKey,
    /// An intermediate host refused the login.
    Login,
    /// An intermediate host does not forward connections.
    Forwarding,
    /// The name of an intermediate host is unknown.
    Name,
}

impl ProxyProblem {
    /// Recognizes the words of `ssh`, which is the usual proxy.
    fn of(said: &str) -> Option<ProxyProblem> {
        let has = |words: &str| said.contains(words);
        match () {
            () if has("Host key verification failed") => Some(ProxyProblem::HostKey),
            () if has("Permission denied (") || has("Too many authentication failures") => Some(ProxyProblem::Login),
            () if has("administratively prohibited") => Some(ProxyProblem::Forwarding),
            () if has("Could not resolve hostname") && !has("Temporary failure") => Some(ProxyProblem::Name),
            () => None,
        }
    }
}

/// A process that carries a connection. It is killed when this value is dropped.
#[derive(Debug)]
pub(crate) struct ProxyProcess {
    child: Child,
    /// The last lines of its standard error.
    said: Arc<Mutex<VecDeque<String>>>,
    /// Reads the standard error of the process.
    listener: Option<JoinHandle<()>>,
}

/// How long to wait for an error message of a process whose connection has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The number of lines to keep for an error message. The cause may be in the line before the last one.
const KEPT_LINES: usize = 2;

/// The end of the message of `ssh` about a connection through another `ssh`.
const LOST_TO_INNER_PROXY: &str = "by UNKNOWN port 65535";

impl Proxy {
    /// Starts the process and returns a socket that leads to this host and port.
    pub(crate) fn start(&self, host: &str, port: u16) -> io::Result<(UnixStream, ProxyProcess)> {
        let (ours, theirs) = UnixStream::pair()?;
        let input: OwnedFd = theirs.try_clone()?.into();
        let mut command = self.command(host, port);
        command.stdin(input).stdout(OwnedFd::from(theirs)).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let said = Arc::<Mutex<VecDeque<String>>>::default();
        let listener = child.stderr.take().and_then(|errors| {
            let said = Arc::clone(&said);
            // The thread ends when the process closes its standard error.
            let listen = move || {
                for line in BufReader::new(errors).lines().map_while(Result::ok).filter(|line| !line.trim().is_empty())
                {
                    tracing::debug!("proxy: {line}");
                    // The outer one of several `ssh` only reports that the inner one has ended.
                    if line.contains(LOST_TO_INNER_PROXY) {
                        continue;
                    }
                    let line: String = line.trim().chars().take(500).collect();
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    if said.len() == KEPT_LINES {
                        said.pop_front();
                    }
                    said.push_back(line);
                }
            };
            thread::Builder::new().spawn(listen).ok()
        });
        Ok((ours, ProxyProcess { child, said, listener }))
    }

    fn command(&self, host: &str, port: u16) -> Command {
        match self {
            Proxy::Command(line) => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", &format!("exec {line}")]);
                command
            }
            Proxy::Jump { hosts, config } => {
                let (before, last) = match hosts.rsplit_once(',') {
                    Some((before, last)) => (Some(before), last),
                    None => (None, hosts.as_str()),
                };
                let mut command = Command::new("ssh");
                // Messages of the resolver are translated.
                command.env("LC_ALL", "C");
                command.args(["-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes"]);
                if let Some(config) = config {
                    command.arg("-F").arg(config);
                }
                if let Some(before) = before {
                    command.args(["-J", before]);
                }
                let to = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
                command.args(["-W", &to, "--", &jump_address(last)]);
                command
            }
        }
    }
}

/// Formats `[user@]host[:port]` as a URI, the only form in which `ssh` accepts a port.
fn jump_address(host: &str) -> String {
    if host.starts_with("ssh://") { host.to_owned() } else { format!("ssh://{host}") }
}

impl ProxyProcess {
    /// Returns the last lines that the process wrote to its standard error.
    pub(crate) fn said(&self) -> Option<String> {
        let end = Instant::now() + LAST_WORDS;
        while self.listener.as_ref().is_some_and(|listener| !listener.is_finished()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: &[String] = said.make_contiguous();
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    /// Returns the problem that ended the process, and its words, if a retry would not help.
    pub(crate) fn problem(&self) -> Option<(ProxyProblem, String)> {
        let said = self.said()?;
        Some((ProxyProblem::of(&said)?, said))
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        // The process has not been reaped, so its PID has not been reused.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn proxy_command_carries_the_connection_until_dropped() {
        let (mut socket, process) = Proxy::Command("cat".to_owned()).start("host", 22).unwrap();
        socket.write_all(b"there and back").unwrap();
        let mut back = [0; 14];
        socket.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"there and back");
        drop(process);
        assert_eq!(socket.read(&mut back).unwrap(), 0);
    }

    #[test]
    fn last_two_lines_of_a_failed_proxy_are_reported() {
        let line = "sh -c 'echo one; echo two; echo; echo three' >&2";
        let (_socket, process) = Proxy::Command(line.to_owned()).start("host", 22).unwrap();
        assert_eq!(process.said().as_deref(), Some("two; three"));
        let (_socket, process) = Proxy::Command("true".to_owned()).start("host", 22).unwrap();
        assert_eq!(process.said(), None);
    }

    #[test]
    fn permanent_problems_of_a_proxy_are_recognized() {
        let problem = |lines: &str| {
            let line = format!("printf '{lines}' >&2");
            let (_socket, process) = Proxy::Command(format!("sh -c \"{line}\"")).start("host", 22).unwrap();
            process.problem().map(|(problem, _)| problem)
        };
        let table = [
            ("Host key verification failed.", Some(ProxyProblem::HostKey)),
            ("me@gate: Permission denied (publickey,password).", Some(ProxyProblem::Login)),
            (
                "channel 0: open failed: administratively prohibited: open failed\\nstdio forwarding failed\\n\
                 Connection closed by UNKNOWN port 65535\\n",
                Some(ProxyProblem::Forwarding),
            ),
            ("ssh: Could not resolve hostname gate: Name or service not known", Some(ProxyProblem::Name)),
            ("ssh: Could not resolve hostname gate: Temporary failure in name resolution", None),
            ("ssh: connect to host gate port 22: Connection refused", None),
            ("", None),
        ];
        for (lines, wanted) in table {
            assert_eq!(problem(lines), wanted, "{lines}");
        }
    }

    #[test]
    fn proxy_jump_passes_all_hosts_and_forwards_to_the_server() {
        let jump = Proxy::Jump { hosts: "me@one:2200,two".to_owned(), config: Some("/c".into()) };
        let command = jump.command("::1", 22);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(words[4..], ["-F", "/c", "-J", "me@one:2200", "-W", "[::1]:22", "--", "ssh://two"]);
    }
}
