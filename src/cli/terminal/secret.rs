//! Secrets from their possible sources: a file, a command, a variable.

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
use zeroize::Zeroizing;

/// Maximum size of a password file; a larger one is assumed to be the wrong file.
const LONGEST_BYTES: u64 = 1 << 20;

/// Keeps passwords and keys in memory out of core dumps, and out of reach of other processes of this user. A child
/// program is dumpable again after exec(), within the inherited soft limit.
pub(crate) fn keep_out_of_core_dumps() {
    let limit = Rlimit { current: Some(0), ..getrlimit(Resource::Core) };
    let limited = setrlimit(Resource::Core, limit);
    // Core dumps into a pipe (such as systemd-coredump's) ignore the limit.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable).and(limited) {
        tracing::warn!("cannot turn off core dumps: {error}");
    }
}

/// Returns the value of a variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Reads a password from a file that is not world-readable, as restic does: the whole file, in UTF-8 or - with a byte
/// order mark, as Windows writes it - in UTF-16, without surrounding whitespace. The file may be a named pipe to which
/// another process writes within the limit.
pub(crate) fn from_file(path: &Path, limit: Duration) -> Result<Password, CliError> {
    from_file_by(path, limit, |bytes| trimmed(&decoded(bytes)))
}

/// Reads the first line of such a file: what ssh would ask for, which may have surrounding blanks.
pub(crate) fn line_from_file(path: &Path, limit: Duration) -> Result<Password, CliError> {
    from_file_by(path, limit, first_line)
}

fn from_file_by(path: &Path, limit: Duration, read: fn(&[u8]) -> Option<Password>) -> Result<Password, CliError> {
    let io = |error: io::Error| match error.kind() {
        ErrorKind::TimedOut => too_late(&format!("the password file {}", path.display()), limit),
        ErrorKind::Interrupted => crate::ops::Error::Interrupted.into(),
        _ => CliError::from(crate::ops::Error::io("read the password file", path)(error)),
    };
    let metadata = fs::metadata(path).map_err(io)?;
    if metadata.is_file() && metadata.mode() & 0o007 != 0 {
        return Err(CliError::usage(format!("password file {} is accessible to other users", path.display()))
            .hint(format!("chmod 600 '{}'", path.display())));
    }
    let content = Zeroizing::new(bounded::read(path, LONGEST_BYTES, limit, &bounded::ending()).map_err(io)?);
    read(&content).ok_or_else(|| CliError::usage(format!("the password file {} is empty", path.display())))
}

/// Removes a byte order mark, and converts UTF-16 to UTF-8. Returns bytes without one unchanged.
fn decoded(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units).into_bytes()
    };
    Zeroizing::new(match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => rest.to_vec(),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        plain => plain.to_vec(),
    })
}

/// Trims blanks and line ends; None if nothing is left.
fn trimmed(bytes: &[u8]) -> Option<Password> {
    let password = match std::str::from_utf8(bytes) {
        Ok(text) => text.trim().as_bytes(),
        Err(_) => bytes.trim_ascii(),
    };
    (!password.is_empty()).then(|| Password::of_bytes(password.to_vec()))
}

fn first_line(bytes: &[u8]) -> Option<Password> {
    let line = bytes.split(|byte| *byte == b'\n').next()?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    (!line.is_empty()).then(|| Password::of_bytes(line.to_vec()))
}

fn too_late(what: &str, limit: Duration) -> CliError {
    CliError::new(Code::Timeout, format!("{what} did not return a password within {} s", limit.as_secs()))
        .hint("limits.password in the configuration sets this limit")
}

/// Returns the output of a command within the limit, as restic does. `origin` says where the command is configured.
pub(crate) fn from_command(command: &str, origin: &str, limit: Duration) -> Result<Password, CliError> {
    from_command_by(command, origin, limit, trimmed)
}

/// Returns the first line that a command prints within the limit.
pub(crate) fn line_from_command(command: &str, origin: &str, limit: Duration) -> Result<Password, CliError> {
    from_command_by(command, origin, limit, first_line)
}

fn from_command_by(
    command: &str,
    origin: &str,
    limit: Duration,
    read: fn(&[u8]) -> Option<Password>,
) -> Result<Password, CliError> {
    let failed = |why: String| CliError::new(Code::Failed, format!("{origin} {why}"));
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdout(Stdio::piped()).stderr(Stdio::inherit());
    // The command may prompt on the terminal, which only our own process group may use.
    let group = if File::open("/dev/tty").is_ok() { Group::Ours } else { Group::Own };
    let output = bounded::output(shell, group, limit, &bounded::ending()).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => too_late(origin, limit),
        ErrorKind::Interrupted => crate::ops::Error::Interrupted.into(),
        ErrorKind::FileTooLarge => failed("printed too much".into()),
        _ => failed(format!("cannot be run: {error}")),
    })?;
    if !output.status.success() {
        return Err(failed(format!("failed: {}", output.status)));
    }
    read(&Zeroizing::new(output.stdout)).ok_or_else(|| failed("printed nothing".into()))
}

#[cfg(test)]
mod tests {
    use crate::cli::terminal::secret::*;

    #[test]
    fn password_file_is_decoded_and_trimmed_like_in_restic() {
        let utf16 = |mark: [u8; 2], unit: fn(u16) -> [u8; 2]| {
            [mark.to_vec(), "größe 1\r\n".encode_utf16().flat_map(unit).collect()].concat()
        };
        let cases: [(Vec<u8>, &[u8]); 9] = [
            (b"correct horse\r\n".to_vec(), b"correct horse"),
            (b"  correct horse \t\n".to_vec(), b"correct horse"),
            (b"\ncorrect horse".to_vec(), b"correct horse"),
            (b"correct\nhorse\n".to_vec(), b"correct\nhorse"),
            (b"\xef\xbb\xbfcorrect horse\r\n".to_vec(), b"correct horse"),
            (utf16([0xff, 0xfe], u16::to_le_bytes), "größe 1".as_bytes()),
            (utf16([0xfe, 0xff], u16::to_be_bytes), "größe 1".as_bytes()),
            ("\u{a0}größe\u{2003}\n".into(), "größe".as_bytes()),
            (b"gr\xf6\xdfe\n".to_vec(), b"gr\xf6\xdfe"),
        ];
        for (file, expected) in cases {
            assert_eq!(trimmed(&decoded(&file)).expect("a password").as_bytes(), expected, "{file:?}");
        }
        for empty in [&b""[..], b"\n", b" \r\n\t", b"\xef\xbb\xbf\r\n", b"\xff\xfe"] {
            assert!(trimmed(&decoded(empty)).is_none(), "{empty:?}");
        }
    }
}
