//! Time limits for calls that may never return; they also end soon after SIGINT or SIGTERM.
//!
//! A system call that hangs on dead storage, a named pipe without a writer or a libvirt that waits for QEMU cannot be
//! cancelled. So another thread makes the call and is abandoned when the time limit expires. It ends with the process,
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

/// Raised when the program must end.
pub(crate) type StopFlag = Arc<AtomicBool>;

/// Returns the flag of this process, which its signal handlers raise.
pub(crate) fn ending() -> StopFlag {
    static ENDING: LazyLock<StopFlag> = LazyLock::new(StopFlag::default);
    Arc::clone(&ENDING)
}

/// Time that a pending call still gets when the program must end. Most calls end within milliseconds, and their effects
/// can then be undone.
const GRACE: Duration = Duration::from_secs(2);

/// Time limit for a call that cleans up after the program was interrupted.
const CLEANUP: Duration = Duration::from_secs(5);

/// Limit for the output of a program, which is collected in memory. A program that prints more is assumed never to end.
const LONGEST_OUTPUT_BYTES: u64 = 16 << 20;

/// Interval at which the stop flag is checked.
const TICK: Duration = Duration::from_millis(50);

/// Why the result of a call is not available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GaveUp {
    /// The call took longer than its limit.
    TimedOut,
    /// The program must end.
    Interrupted,
    /// No thread could be started for the call, or the thread has panicked.
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

/// Makes a call with a time limit.
pub(crate) fn call<T: Send + 'static>(
    limit: Duration,
    stop: &AtomicBool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GaveUp> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let spawned = thread::Builder::new().name("bounded call".to_owned()).spawn(move || {
        // Nobody receives the result if it comes too late.
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

/// Reads a file of any kind to its end; this may wait for the writer of a named pipe. Refuses files that are too long.
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

/// The process group of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// This process's group: the program receives its signals and may use the terminal.
    Ours,
    /// A group of its own, so that the program can be killed together with its descendants.
    Own,
}

/// Runs a program to its end and collects its output; standard input is empty. Kills a program that takes too long, and
/// abandons it if even that does not end it.
pub(crate) fn output(command: Command, group: Group, limit: Duration, stop: &AtomicBool) -> io::Result<Output> {
    output_of(command, None::<Vec<u8>>, group, limit, stop)
}

/// Like [`output`], with optional standard input.
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
            // A program that does not read all of its input has failed, and its output says why.
            let _ = stdin.write_all(input.as_ref());
        }
        collect(child)
    };
    call(limit, stop, run).unwrap_or_else(|why| {
        // The program has not been waited for, so its PID has not been reused.
        if let Some(pid) = pid {
            let _ = match group {
                Group::Own => kill_process_group(pid, Signal::KILL),
                Group::Ours => kill_process(pid, Signal::KILL),
            };
        }
        Err(why.into())
    })
}

/// Waits for a program and collects its output. A program that never stops printing gets a closed pipe.
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
            // Nobody would wait for the program.
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
    fn completed_call_returns_its_result_even_if_stop_is_raised() {
        assert_eq!(call(LONG, &AtomicBool::new(false), || 42), Ok(42));
        assert_eq!(call(LONG, &AtomicBool::new(true), || 42), Ok(42));
    }

    #[test]
    fn hanging_call_times_out() {
        let (never, silence) = mpsc::channel::<()>();
        let hang = move || silence.recv().is_ok();
        assert_eq!(call(Duration::from_millis(20), &AtomicBool::new(false), hang), Err(GaveUp::TimedOut));
        drop(never);
    }

    #[test]
    fn raised_stop_flag_ends_the_wait_early() {
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
    fn reading_a_pipe_is_bounded_by_the_time_limit() {
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
    fn hanging_program_is_killed_with_its_children() {
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
