//! Commands that are asked to end when nobody wants their output any more, so that they leave no lock behind: one whose
//! output is passed on while it runs, and one whose answer is waited for.

use axum::body::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// So much is passed on at a time.
const PIECE_BYTES: usize = 64 << 10;

/// So much of what it says on standard error is kept.
const LARGEST_MESSAGES_BYTES: u64 = 64 << 10;

/// How long it may take to end after it was asked to.
const END_LIMIT: Duration = Duration::from_secs(30);

/// What a command brings.
#[derive(Debug)]
pub(super) enum OutputPart {
    /// Some of its output.
    Bytes(Bytes),
    /// That it has ended.
    End(End),
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct End {
    /// Its exit code; none if it was killed.
    pub(super) exit_code: Option<i32>,
    /// What it said went wrong.
    pub(super) errors: Vec<String>,
}

/// A command that runs; it ends soon after this is dropped.
#[derive(Debug)]
pub(super) struct Reading(mpsc::Receiver<OutputPart>);

impl Reading {
    /// Starts a command; `permit` is given back when it has ended.
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
            // Nobody may listen any more.
            let _ = sender.send(OutputPart::End(End { exit_code, errors: words_of(&said, "error:") })).await;
            drop(permit);
        });
        Ok(Reading(receiver))
    }

    /// What comes next; the last is its end, unless the console ends before.
    pub(super) async fn next(&mut self) -> Option<OutputPart> {
        self.0.recv().await
    }

    /// The same for who is asked again.
    pub(super) fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<OutputPart>> {
        self.0.poll_recv(cx)
    }
}

/// Passes the output on; false if nobody wants the rest.
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

/// What has come of an output; nothing at its end.
pub(super) async fn read_piece(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    stream.read_buf(&mut piece).await?;
    Ok(piece)
}

/// Asks a command to end that was not waited for yet: until then, its number is nobody else's.
fn ask_to_end(child: &Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Waits until a command has ended. One that nobody wants any more is asked to.
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

/// A command whose answer is waited for. Dropped before its end, it is asked to end, and killed if it does not.
#[derive(Debug)]
pub(super) struct Lookup(Option<Child>);

impl Lookup {
    /// Starts a command, with pipes to read from.
    pub(super) fn start(command: &mut Command) -> io::Result<Lookup> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Lookup(Some(child)))
    }

    /// Its standard input, if that is a pipe.
    pub(super) fn stdin(&mut self) -> Option<ChildStdin> {
        self.0.as_mut().and_then(|child| child.stdin.take())
    }

    /// Its output and its messages.
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
        // Without a runtime the console ends too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { ended(&mut child, true).await });
        }
    }
}

/// The beginning of an output.
pub(super) async fn read_some(stream: Option<impl tokio::io::AsyncRead + Unpin>, most: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(most).read_to_end(&mut text).await?;
        // The rest is not kept, but the command must be able to write it.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(text)
}

/// The messages of a kind on standard error.
pub(super) fn words_of(text: &[u8], kind: &str) -> Vec<String> {
    let prefix = format!("kvmb: {kind}");
    let text = String::from_utf8_lossy(text);
    text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_up_that_is_dropped_is_asked_to_end_and_not_killed() {
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
