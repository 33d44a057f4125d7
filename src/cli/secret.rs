//! Secrets from where they may be kept: a file, a command, a variable.

use crate::bounded::{self, Group};
use crate::cli::failure::{CliError, Code};
use crate::repo::Password;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A password file that is longer is taken for a slip.
const LONGEST_BYTES: u64 = 1 << 20;

/// Keeps passwords and keys that are in memory out of core dumps, and out of reach of other processes of this user. A program
/// that is started from here may dump again.
pub fn keep_out_of_core_dumps() {
    let limit = Rlimit { current: Some(0), ..getrlimit(Resource::Core) };
    let limited = setrlimit(Resource::Core, limit);
    // A core that goes into a pipe (as to systemd-coredump) knows no limit.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable).and(limited) {
        tracing::warn!("cannot turn off core dumps: {error}");
    }
}

/// A variable that is set and not empty.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The first line of a file that not everybody can read; it may be a named pipe, that somebody else writes to within the
/// limit.
pub fn from_file(path: &Path, limit: Duration) -> Result<Password, CliError> {
    let io = |error: io::Error| match error.kind() {
        ErrorKind::TimedOut => too_late(&format!("the password file {}", path.display()), limit),
        ErrorKind::Interrupted => crate::ops::Error::Interrupted.into(),
        _ => CliError::from(crate::ops::Error::io("read the password file", path)(error)),
    };
    let metadata = fs::metadata(path).map_err(io)?;
    if metadata.is_file() && metadata.mode() & 0o007 != 0 {
        return Err(CliError::usage(format!("everybody may read or write the password file {}", path.display()))
            .hint(format!("chmod 600 '{}'", path.display())));
    }
    let content = bounded::read(path, LONGEST_BYTES, limit, &bounded::ending()).map_err(io)?;
    let text = String::from_utf8(content).map_err(|_| io(ErrorKind::InvalidData.into()))?;
    first_line(&text).ok_or_else(|| CliError::usage(format!("the password file {} is empty", path.display())))
}

fn first_line(text: &str) -> Option<Password> {
    let line = text.lines().next()?.trim_end_matches('\r');
    (!line.is_empty()).then(|| Password::new(line.to_owned()))
}

fn too_late(what: &str, limit: Duration) -> CliError {
    CliError::new(Code::Timeout, format!("{what} gave no password within {} s", limit.as_secs()))
        .hint("limits.password of the configuration says how long it is waited for")
}

/// The first line that a command prints within the limit; `origin` is where the command stands.
pub fn from_command(command: &str, origin: &str, limit: Duration) -> Result<Password, CliError> {
    let failed = |why: String| CliError::new(Code::Failed, format!("{origin} {why}"));
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdout(Stdio::piped()).stderr(Stdio::inherit());
    // It may ask for something on the terminal, which only those of our own group may use.
    let group = if File::open("/dev/tty").is_ok() { Group::Ours } else { Group::Own };
    let output = bounded::output(shell, group, limit, &bounded::ending()).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => too_late(origin, limit),
        ErrorKind::Interrupted => crate::ops::Error::Interrupted.into(),
        _ => failed(format!("cannot be run: {error}")),
    })?;
    if !output.status.success() {
        return Err(failed(format!("failed: {}", output.status)));
    }
    let text = String::from_utf8(output.stdout).map_err(|_| failed("printed no text".into()))?;
    first_line(&text).ok_or_else(|| failed("printed nothing".into()))
}
