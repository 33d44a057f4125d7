//! What the parsing process cannot do: each attempt ends it.

use rustix::process::{Signal, getppid};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

/// The attempt that this process was started for, if any.
const ATTEMPT: &str = "KVMB_TEST_CONFINED_ATTEMPT";

/// SIGSYS: a forbidden system call.
const FORBIDDEN: i32 = 31;

/// SIGABRT.
const ABORTED: i32 = 6;

/// Confines this process and makes an attempt.
fn make(attempt: &str) -> ! {
    kvmb::confined::lockdown::confine().expect("confined");
    match attempt {
        "nothing" => {}
        "open" => drop(std::fs::read("/etc/passwd")),
        "stat" => drop(std::fs::metadata("/")),
        "socket" => drop(std::net::TcpStream::connect("127.0.0.1:22")),
        "unix" => drop(std::os::unix::net::UnixStream::pair()),
        "fork" => drop(Command::new("/bin/true").status()),
        "exec" => drop(Command::new("/bin/true").exec()),
        "thread" => drop(std::thread::Builder::new().spawn(|| {})),
        "abort" => std::process::abort(),
        "kill" => drop(rustix::process::kill_process(getppid().expect("a parent"), Signal::TERM)),
        "setuid" => drop(rustix::thread::set_thread_uid(rustix::thread::Uid::from_raw(0))),
        "memory" => drop(std::hint::black_box(vec![1_u8; 2 << 30])),
        other => panic!("no attempt {other}"),
    }
    std::process::exit(77);
}

fn try_confined(attempt: &str) -> ExitStatus {
    attempted(Command::new(std::env::current_exe().expect("this program")), attempt)
}

fn attempted(mut program: Command, attempt: &str) -> ExitStatus {
    program
        .args(["--exact", "files::confinement::confined_process_is_killed_on_forbidden_system_calls"])
        .args(["--nocapture", "--test-threads=1"])
        .env(ATTEMPT, attempt)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("start")
}

#[test]
fn confined_process_is_killed_on_forbidden_system_calls() {
    if let Ok(attempt) = std::env::var(ATTEMPT) {
        make(&attempt);
    }
    assert_eq!(try_confined("nothing").code(), Some(77), "it can end");
    for attempt in ["open", "stat", "socket", "unix", "fork", "exec", "thread", "kill", "setuid"] {
        let status = try_confined(attempt);
        assert_eq!(status.signal(), Some(FORBIDDEN), "{attempt}: {status:?}");
    }
    assert_eq!(try_confined("abort").signal(), Some(ABORTED), "it can send signals to itself");
    let status = try_confined("memory");
    // It aborts, or is killed by the system call that reports the error.
    let ended = matches!(status.signal(), Some(ABORTED | FORBIDDEN));
    assert!(ended, "2 GiB are more than it may have: {status:?}");
}

#[test]
fn user_with_lower_limits_can_start_a_confined_process() {
    // Without this capability, a limit cannot be raised.
    let mut limited = Command::new("setpriv");
    limited.args(["--bounding-set=-sys_resource", "prlimit", "--cpu=600", "--as=900000000", "--core=0", "--"]);
    limited.arg(std::env::current_exe().expect("this program"));
    assert_eq!(attempted(limited, "nothing").code(), Some(77));
}
