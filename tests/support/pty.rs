//! Runs kvmb or a shell on a terminal, which `script` of util-linux provides.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Env, Output, parts, process, wait_until};

/// A program on a pseudo-terminal, where standard output and standard error are combined.
pub struct Pty {
    child: Child,
    keys: Option<ChildStdin>,
    screen: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
    /// The folder that identifies the program's processes.
    folder: PathBuf,
    shown: String,
    started: Instant,
}

impl Pty {
    pub(super) fn start<A: AsRef<OsStr>>(env: &Env, program: &str, args: impl IntoIterator<Item = A>) -> Pty {
        parts::require(&["script", program]);
        let words: Vec<String> = args.into_iter().map(|arg| quoted(arg.as_ref().to_str().expect("UTF-8"))).collect();
        let shown = format!("{program} {} (on a terminal)", words.join(" "));
        let line = format!("stty cols 100 rows 40; exec {program} {}", words.join(" "));
        let mut command = Command::new("script");
        env.apply_to(&mut command);
        let mut child = command
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("script");
        let keys = child.stdin.take();
        let mut stdout = child.stdout.take().expect("stdout");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&screen);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                sink.lock().expect("lock").extend_from_slice(&buffer[..count]);
            }
        });
        Pty { child, keys, screen, reader: Some(reader), folder: env.path(""), shown, started: Instant::now() }
    }

    /// Returns everything that was sent to the terminal, with control sequences.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("lock")).into_owned()
    }

    /// Waits until the terminal has shown this text.
    #[track_caller]
    pub fn expect(&self, words: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.screen().contains(words) {
            assert!(Instant::now() < end, "{}: no {words:?} on the screen:\n{}", self.shown, self.screen());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the question has been asked this many times and the terminal hides input: earlier input would be
    /// discarded.
    #[track_caller]
    pub fn expect_hidden(&self, question: &str, times: usize) {
        let is_open = |line: &&str| line.contains(question) && !line.contains("[hidden]");
        // An answered question is shown again, with this in place of the answer.
        let asked = || self.screen().lines().filter(is_open).count() >= times;
        wait_until(&format!("it asks: {question}"), Duration::from_secs(60), asked);
        wait_until("the terminal hides what is typed", Duration::from_secs(60), || {
            let programs = process::of(&self.folder);
            let Some(kvmb) = programs.iter().find(|program| program.is("kvmb")) else { return false };
            let Ok(terminal) = File::open(format!("/proc/{}/fd/0", kvmb.pid)) else { return false };
            rustix::termios::tcgetattr(&terminal)
                .is_ok_and(|settings| !settings.local_modes.contains(rustix::termios::LocalModes::ECHO))
        });
    }

    /// Presses keys.
    pub fn send(&mut self, keys: &str) {
        let pipe = self.keys.as_mut().expect("keys");
        pipe.write_all(keys.as_bytes()).expect("the terminal is gone");
        pipe.flush().expect("the terminal is gone");
    }

    /// Sets the width of the terminal.
    pub fn resize(&self, columns: u16) {
        let programs = process::of(&self.folder);
        let kvmb = programs.iter().find(|program| program.is("kvmb")).expect("kvmb runs");
        let terminal = File::options().read(true).write(true).open(format!("/proc/{}/fd/0", kvmb.pid)).expect("open");
        let size = rustix::termios::tcgetwinsize(&terminal).expect("a terminal");
        let size = rustix::termios::Winsize { ws_col: columns, ..size };
        rustix::termios::tcsetwinsize(&terminal, size).expect("resize");
    }

    /// Waits for the end. The output's stdout is the screen.
    pub fn wait(self) -> Output {
        self.wait_within(Duration::from_secs(120))
    }

    /// The same with another time limit.
    pub fn wait_within(mut self, limit: Duration) -> Output {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            assert!(self.started.elapsed() < limit, "{} does not end; the screen:\n{}", self.shown, self.screen());
            thread::sleep(Duration::from_millis(5));
        };
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let screen = std::mem::take(&mut *self.screen.lock().expect("lock"));
        Output::new(self.shown.clone(), status, screen, self.started.elapsed())
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // Without its terminal the program ends too; otherwise `Env` ends it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Quotes a word for `/bin/sh`.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
