//! Time limits for calls that may never return; they also end soon after SIGINT or SIGTERM.
//!
//! A system call that hangs on dead storage, a named pipe that nobody writes to or a libvirt that waits for QEMU cannot
//! be cancelled. So another thread makes the call, and is left behind when its time is over: it ends with the process,
//! or when the call returns after all.
//!
//! ```text
//!  stop not raised ─ the limit is over ─────────────→ TimedOut
//!                  └ stop is raised ─ 2 s more ─────→ Interrupted
//!  stop raised before (we are cleaning up) ─ 5 s ───→ TimedOut
//! ```

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Raised when the program shall end.
pub(crate) type StopFlag = Arc<AtomicBool>;

/// The flag of this process, raised by its signals.
pub(crate) fn ending() -> StopFlag {
    static ENDING: LazyLock<StopFlag> = LazyLock::new(StopFlag::default);
    Arc::clone(&ENDING)
}

/// A call that is being made when the program shall end may still take this long: most end within milliseconds, and
/// what they did can then be undone.
const GRACE: Duration = Duration::from_secs(2);

/// A call that cleans up after the program was interrupted may take this long.
const CLEANUP: Duration = Duration::from_secs(5);

/// A program that prints more is taken for one that never ends: what is collected is kept in memory.
const LONGEST_OUTPUT_BYTES: u64 = 16 << 20;

/// A raised flag is noticed within this time.
const TICK: Duration = Duration::from_millis(50);

/// Why a call was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GaveUp {
    /// It took longer than it may.
    TimedOut,
    /// The program shall end.
    Interrupted,
    /// There was no thread to make it, or the thread is gone.
    NoThread,
}

impl From<GaveUp> for io::Error {
    fn from(why: GaveUp) -> io::Error {
        match why {
            GaveUp::TimedOut => io::Error::new(ErrorKind::TimedOut, "no answer in time"),
            GaveUp::Interrupted => io::Error::new(ErrorKind::Interrupted, "interrupted"),
            GaveUp::NoThread => io::Error::new(ErrorKind::WouldBlock, "no thread could be started"),
        }
    }
}

/// Makes a call that may take so long.
pub(crate) fn call<T: Send + 'static>(
    limit: Duration,
    stop: &AtomicBool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GaveUp> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let spawned = thread::Builder::new().name("bounded call".to_owned()).spawn(move || {
        // Nobody listens any more when this came too late.
        let _ = sender.send(work());
    });
    if let Err(error) = spawned {
        tracing::warn!("no thread for a call: {error}");
        return Err(GaveUp::NoThread);
    }
    let stopped_before = stop.load(Ordering::Relaxed);
    let mut end = Instant::now() + if stopped_before { limit.min(CLEANUP) } else { limit };
    let mut why = GaveUp::TimedOut;
    loop {
        let now = Instant::now();
        if !stopped_before && why == GaveUp::TimedOut && stop.load(Ordering::Relaxed) {
            (why, end) = (GaveUp::Interrupted, end.min(now + GRACE));
        }
        match receiver.recv_timeout(TICK.min(end.saturating_duration_since(now))) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => return Err(GaveUp::NoThread),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= end => return Err(why),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Reads a file to its end, whatever it is: a named pipe is waited for. Longer ones are refused.
pub(crate) fn read(path: &Path, longest_bytes: u64, limit: Duration, stop: &AtomicBool) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    call(limit, stop, move || {
        let mut content = Vec::new();
        File::open(path)?.take(longest_bytes.saturating_add(1)).read_to_end(&mut content)?;
        match content.len() as u64 > longest_bytes {
            true => Err(io::Error::new(ErrorKind::FileTooLarge, "it is too long")),
            false => Ok(content),
        }
    })?
}

/// Whose signals a program gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Those of this process, and it may use the terminal.
    Ours,
    /// Its own: all that it starts can be ended with it.
    Own,
}

/// Runs a program to its end and collects what it prints; standard input is empty. One that takes too long is killed,
/// and left behind where not even that ends it.
pub(crate) fn output(command: Command, group: Group, limit: Duration, stop: &AtomicBool) -> io::Result<Output> {
    output_of(command, None::<Vec<u8>>, group, limit, stop)
}

/// As [`output`], with this for its standard input, if there is any.
pub(crate) fn output_of(
    mut command: Command,
    input: Option<impl AsRef<[u8]> + Send + 'static>,
    group: Group,
    limit: Duration,
    stop: &AtomicBool,
) -> io::Result<Output> {
    if group == Group::Own {
        command.process_group(0);
    }
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let run = move || {
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // It reads all of it before it says anything; one that does not has failed, and says why.
            let _ = stdin.write_all(input.as_ref());
        }
        collect(child)
    };
    call(limit, stop, run).unwrap_or_else(|why| {
        // It has not been waited for, so that the number is still its own.
        if let Some(pid) = pid {
            let _ = match group {
                Group::Own => kill_process_group(pid, Signal::KILL),
                Group::Ours => kill_process(pid, Signal::KILL),
            };
        }
        Err(why.into())
    })
}

/// Waits for a program and collects what it prints. One that never ends printing gets a closed pipe.
fn collect(mut child: Child) -> io::Result<Output> {
    let stdout = child.stdout.take();
    thread::scope(|scope| {
        let read = move || -> io::Result<Vec<u8>> {
            let mut content = Vec::new();
            if let Some(pipe) = stdout {
                pipe.take(LONGEST_OUTPUT_BYTES + 1).read_to_end(&mut content)?;
            }
            Ok(content)
        };
        let printed = thread::Builder::new().spawn_scoped(scope, read).inspect_err(|_| {
            // Nobody would wait for it.
            let _ = child.kill().and_then(|()| child.wait());
        })?;
        let ended = child.wait_with_output()?;
        let stdout = printed.join().map_err(|_| io::Error::other("its output could not be read"))??;
        match stdout.len() as u64 > LONGEST_OUTPUT_BYTES {
            true => Err(io::Error::new(ErrorKind::FileTooLarge, "it prints too much")),
            false => Ok(Output { stdout, ..ended }),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_call_that_returns_is_no_different() {
        assert_eq!(call(LONG, &AtomicBool::new(false), || 42), Ok(42));
        assert_eq!(call(LONG, &AtomicBool::new(true), || 42), Ok(42));
    }

    #[test]
    fn one_that_does_not_is_given_up() {
        let (never, silence) = mpsc::channel::<()>();
        let hang = move || silence.recv().is_ok();
        assert_eq!(call(Duration::from_millis(20), &AtomicBool::new(false), hang), Err(GaveUp::TimedOut));
        drop(never);
    }

    #[test]
    fn a_raised_flag_ends_the_wait() {
        let (never, silence) = mpsc::channel::<()>();
        let stop = StopFlag::default();
        let raised = Arc::clone(&stop);
        let hang = move || {
            raised.store(true, Ordering::Relaxed);
            silence.recv().is_ok()
        };
        let began = Instant::now();
        // The flag may be raised before the wait begins.
        let given_up = call(LONG, &stop, hang);
        assert!(matches!(given_up, Err(GaveUp::Interrupted | GaveUp::TimedOut)), "{given_up:?}");
        assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
        drop(never);
    }

    #[test]
    fn a_pipe_is_read_and_waited_for_no_longer_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = |name: &str| {
            let path = folder.path().join(name);
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            path
        };
        let stop = AtomicBool::new(false);
        let error = read(&pipe("silent"), 100, Duration::from_millis(50), &stop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let path = pipe("written");
        let writer = thread::spawn({
            let path = path.clone();
            move || std::fs::write(path, "in time")
        });
        assert_eq!(read(&path, 100, LONG, &stop).unwrap(), b"in time");
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo $! >\"$0\"; wait"]).arg(&mark).stdout(Stdio::piped());
        let stop = AtomicBool::new(false);
        let error = output(command, Group::Own, Duration::from_secs(1), &stop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let pid = std::fs::read(&mark).unwrap();
        let stat = Path::new("/proc").join(std::ffi::OsStr::from_bytes(pid.trim_ascii()));
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::read_to_string(stat.join("stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "it lives on");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
