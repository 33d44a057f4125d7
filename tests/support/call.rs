//! Runs programs and collects their output.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// A program to be run. Its standard input is empty unless [`Call::stdin`] sets it.
pub struct Call {
    command: Command,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Call {
    pub(super) fn new(command: Command) -> Call {
        Call { command, stdin: Vec::new(), limit: Duration::from_secs(120) }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Call {
        self.command.arg(arg);
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Call {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Call {
        self.command.env(key, value);
        self
    }

    /// Removes an environment variable.
    pub fn without_env(mut self, key: &str) -> Call {
        self.command.env_remove(key);
        self
    }

    /// Sets its standard input.
    pub fn stdin(mut self, input: impl AsRef<[u8]>) -> Call {
        self.stdin = input.as_ref().to_vec();
        self
    }

    /// Sets the time limit (two minutes by default).
    pub fn limit(mut self, limit: Duration) -> Call {
        self.limit = limit;
        self
    }

    /// Starts it in its own process group.
    pub fn spawn(self) -> Running {
        let Call { mut command, stdin, limit } = self;
        let shown = format!("{command:?}");
        let shown = shown.rsplit_once("\" \"kvmb").map_or(shown.clone(), |(_, s)| s.to_owned());
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        let input = child.stdin.take().expect("stdin");
        let feeder = thread::spawn(move || feed(input, &stdin));
        let stdout = Reader::start(child.stdout.take().expect("stdout"));
        let stderr = Reader::start(child.stderr.take().expect("stderr"));
        Running { child, shown, stdout, stderr, feeder: Some(feeder), started: Instant::now(), limit }
    }

    /// Runs it to its end.
    pub fn run(self) -> Output {
        self.spawn().wait()
    }
}

fn feed(mut input: ChildStdin, bytes: &[u8]) {
    // A program that does not read all of its input is no failure.
    let _ = input.write_all(bytes);
}

/// Collects a stream in the background, so that a test can inspect it while the program runs.
struct Reader {
    seen: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(mut stream: impl Read + Send + 'static) -> Reader {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            while let Ok(count) = stream.read(&mut buffer) {
                if count == 0 {
                    break;
                }
                sink.lock().expect("lock").extend_from_slice(&buffer[..count]);
            }
        });
        Reader { seen, thread: Some(thread) }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("lock")).into_owned()
    }

    /// Returns the whole stream. Fails if a daemon that inherited the stream keeps it open, which is a bug of the
    /// program.
    fn finish(mut self, shown: &str) -> Vec<u8> {
        let thread = self.thread.take().expect("reader");
        let end = Instant::now() + Duration::from_secs(10);
        while !thread.is_finished() {
            assert!(
                Instant::now() < end,
                "{shown} has ended, but something that it started still holds its stdout or stderr"
            );
            thread::sleep(Duration::from_millis(2));
        }
        std::mem::take(&mut self.seen.lock().expect("lock"))
    }
}

/// A running program, which is killed when this is dropped.
pub struct Running {
    child: Child,
    shown: String,
    stdout: Reader,
    stderr: Reader,
    feeder: Option<JoinHandle<()>>,
    started: Instant,
    limit: Duration,
}

impl Running {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pid")
    }

    /// Returns its standard output so far.
    pub fn stdout_so_far(&self) -> String {
        self.stdout.so_far()
    }

    /// Returns its standard error so far.
    pub fn stderr_so_far(&self) -> String {
        self.stderr.so_far()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }

    /// Whether it is stopped (SIGSTOP).
    pub fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid()) {
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Sends Ctrl-C (SIGINT).
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Kills it (`kill -9`).
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Output {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            if self.started.elapsed() > self.limit {
                self.kill();
                let _ = self.child.wait();
                panic!(
                    "{} was not done after {:?}\nstdout: {}\nstderr: {}",
                    self.shown,
                    self.limit,
                    self.stdout.so_far(),
                    self.stderr.so_far()
                );
            }
            thread::sleep(Duration::from_millis(2));
        };
        let took = self.started.elapsed();
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
        let empty = || Reader { seen: Arc::default(), thread: None };
        let stdout = std::mem::replace(&mut self.stdout, empty()).finish(&self.shown);
        let stderr = std::mem::replace(&mut self.stderr, empty()).finish(&self.shown);
        Output {
            shown: self.shown.clone(),
            status,
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// The output of a program, and how it ended.
pub struct Output {
    shown: String,
    status: ExitStatus,
    /// Its raw standard output.
    pub stdout: Vec<u8>,
    stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    pub(super) fn new(shown: String, status: ExitStatus, stdout: Vec<u8>, took: Duration) -> Output {
        Output { shown, status, stdout, stderr: String::new(), took }
    }

    /// Returns its exit code, or as a shell does, 128 plus the signal's number if a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Whether this signal ended it.
    pub fn ended_by(&self, signal: Signal) -> bool {
        self.status.signal() == Some(signal.as_raw())
    }

    /// Treats the program as successful.
    pub(super) fn forgiven(mut self) -> Output {
        self.status = ExitStatus::from_raw(0);
        self
    }

    /// Returns its standard output as text.
    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap_or_else(|_| panic!("{}: stdout is not UTF-8", self.shown))
    }

    /// Returns its standard error.
    pub fn stderr(&self) -> &str {
        &self.stderr
    }

    /// Parses its standard output strictly as records: JSON Lines, each an object with `type` first, each line
    /// complete.
    pub fn records(&self) -> Vec<Value> {
        let text = self.stdout();
        assert!(text.is_empty() || text.ends_with('\n'), "{}: the last record has no end of line: {text}", self.shown);
        text.lines()
            .map(|line| {
                let record: Value = serde_json::from_str(line)
                    .unwrap_or_else(|error| panic!("{}: not JSON ({error}): {line}", self.shown));
                let first = record.as_object().and_then(|object| object.keys().next());
                assert_eq!(first.map(String::as_str), Some("type"), "{}: \"type\" is not first: {line}", self.shown);
                record
            })
            .collect()
    }

    /// Returns the records of one type.
    pub fn records_of(&self, kind: &str) -> Vec<Value> {
        let mut records = self.records();
        records.retain(|record| record["type"] == kind);
        records
    }

    /// Returns the only record of a type.
    pub fn record_of(&self, kind: &str) -> Value {
        let mut records = self.records_of(kind);
        assert_eq!(records.len(), 1, "one {kind} record was expected\n{self}");
        records.remove(0)
    }

    /// Fails unless the exit code is 0.
    #[track_caller]
    pub fn assert_ok(self) -> Output {
        self.assert_code(0)
    }

    /// Fails unless the exit code is this one.
    #[track_caller]
    pub fn assert_code(self, code: i32) -> Output {
        assert_eq!(self.code(), code, "the exit code is not {code}\n{self}");
        self
    }

    /// Fails unless standard error contains this text.
    #[track_caller]
    pub fn assert_stderr_has(self, words: &str) -> Output {
        assert!(self.stderr.contains(words), "stderr does not say {words:?}\n{self}");
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(8192)]);
        write!(
            f,
            "{}\nexit code {} after {:.1?}\n--- stdout\n{stdout}\n--- stderr\n{}",
            self.shown,
            self.code(),
            self.took,
            self.stderr
        )
    }
}
