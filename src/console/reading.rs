//! Commands that are terminated properly when their output is no longer wanted, so that they do not leave locks behind:
//! downloads, whose output is passed on while they run, and look-ups, whose answer is awaited.

use axum::body::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// The size of one piece of output.
const PIECE_BYTES: usize = 64 << 10;

/// How much of standard error is kept.
const LARGEST_MESSAGES_BYTES: u64 = 64 << 10;

/// How long a command may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(30);

/// A part of a command's output.
#[derive(Debug)]
pub(super) enum OutputPart {
    /// Bytes of its standard output.
    Bytes(Bytes),
    /// The command has ended.
    End(End),
}

#[derive(Debug)]
pub(super) struct End {
    /// The exit code; None if it was killed.
    pub(super) exit_code: Option<i32>,
    /// Its error messages.
    pub(super) errors: Vec<String>,
}

/// A running command. It is terminated when this is dropped.
#[derive(Debug)]
pub(super) struct Reading(mpsc::Receiver<OutputPart>);

impl Reading {
    /// Starts a command; `permit` is released when it has ended.
    pub(super) fn start(mut command: Command, permit: OwnedSemaphorePermit) -> io::Result<Reading> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let said = tokio::spawn(read_some(stderr, LARGEST_MESSAGES_BYTES));
            let is_wanted = match stdout {
                Some(stdout) => pass_on(stdout, &sender).await,
                None => true,
            };
            let exit_code = ended(&mut child, is_wanted).await;
            let said = said.await.ok().and_then(Result::ok).unwrap_or_default();
            // The receiver may be gone.
            let _ = sender.send(OutputPart::End(End { exit_code, errors: words_of(&said, "error:") })).await;
            drop(permit);
        });
        Ok(Reading(receiver))
    }

    /// Returns the next part. The last one is the end, unless the console ends first.
    pub(super) async fn next(&mut self) -> Option<OutputPart> {
        self.0.recv().await
    }

    /// Like `next`, for polling.
    pub(super) fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<OutputPart>> {
        self.0.poll_recv(cx)
    }
}

/// Passes the output on. Returns false if the receiver is gone.
async fn pass_on(mut stdout: ChildStdout, sender: &mpsc::Sender<OutputPart>) -> bool {
    loop {
        let piece = tokio::select! {
            piece = read_piece(&mut stdout) => piece,
            () = sender.closed() => return false,
        };
        match piece {
            Ok(piece) if !piece.is_empty() => {
                if sender.send(OutputPart::Bytes(piece.into())).await.is_err() {
                    return false;
                }
            }
            _ => return true,
        }
    }
}

/// Reads the next part of an output; empty at its end.
pub(super) async fn read_piece(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    stream.read_buf(&mut piece).await?;
    Ok(piece)
}

/// Sends SIGTERM to a command that has not been waited for, so its PID has not been reused.
fn ask_to_end(child: &Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Waits until a command has ended. Terminates it if it is no longer wanted.
async fn ended(child: &mut Child, is_wanted: bool) -> Option<i32> {
    if !is_wanted {
        ask_to_end(child);
    }
    let status = match tokio::time::timeout(END_LIMIT, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    status.ok().and_then(|status| status.code())
}

/// A command whose answer is awaited. If dropped before its end, it is terminated, and killed if that does not end it.
#[derive(Debug)]
pub(super) struct Lookup(Option<Child>);

impl Lookup {
    /// Starts a command with pipes for its output.
    pub(super) fn start(command: &mut Command) -> io::Result<Lookup> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Lookup(Some(child)))
    }

    /// Returns its standard input, if that is a pipe.
    pub(super) fn stdin(&mut self) -> Option<ChildStdin> {
        self.0.as_mut().and_then(|child| child.stdin.take())
    }

    /// Returns its standard output and standard error.
    pub(super) fn output(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        self.0.as_mut().map_or((None, None), |child| (child.stdout.take(), child.stderr.take()))
    }

    /// Waits for its end.
    pub(super) async fn wait(mut self) -> io::Result<ExitStatus> {
        match self.0.as_mut() {
            Some(child) => child.wait().await,
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take().filter(|child| child.id().is_some()) else { return };
        ask_to_end(&child);
        // Without a runtime, the console is ending too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { ended(&mut child, true).await });
        }
    }
}

/// Reads the beginning of an output.
pub(super) async fn read_some(stream: Option<impl tokio::io::AsyncRead + Unpin>, most: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(most).read_to_end(&mut text).await?;
        // Discard the rest, but keep reading so that the command can write it.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(text)
}

/// Returns the messages of a kind from standard error.
pub(super) fn words_of(text: &[u8], kind: &str) -> Vec<String> {
    let prefix = format!("kvmb: {kind}");
    let text = String::from_utf8_lossy(text);
    text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_lookup_gets_sigterm_and_can_clean_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut command = Command::new("/bin/sh");
            command
                .stdin(Stdio::null())
                .args(["-c", "trap 'echo unlocked; exit' TERM; echo ready; while :; do sleep 0.1; done"]);
            let mut lookup = Lookup::start(&mut command).expect("a shell");
            let (stdout, _stderr) = lookup.output();
            let mut stdout = stdout.expect("its output");
            let mut said = [0; 6];
            stdout.read_exact(&mut said).await.expect("a line");
            assert_eq!(&said, b"ready\n");
            drop(lookup);
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).await.expect("its end");
            assert_eq!(rest, "unlocked\n");
        });
    }
}
