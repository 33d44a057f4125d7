//! The line that cron runs.
//!
//! ```text
//! 0 2 * * * sleep "$(shuf -i 0-1800 -n 1)"; flock -n -o … nice ionice -c 3 kvmb backup vm1 >/dev/null
//! ```
//!
//! Every program has its full path, because cron's own path is short. Records are discarded, so that cron's mail
//! contains only errors. The lock is held by `flock` itself (`-o`), not by its child processes: otherwise a process
//! that outlives a run would block the next one.

use super::{Cron, Error};
use crate::bounded::{self, Group};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The maximum length of a command: cron truncates it at a thousand bytes.
const LONGEST_COMMAND_BYTES: usize = 990;

/// The exit code of `flock` when the previous run has not ended: kvmb's own code for "busy".
const BUSY: &str = "5";

/// The kind of a job. A place has at most one job of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobKind {
    Backup,
    Drill,
}

impl JobKind {
    pub(super) const ALL: [JobKind; 2] = [JobKind::Backup, JobKind::Drill];
}

/// A command and its schedule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ScheduledJob {
    pub(crate) kind: JobKind,
    pub(crate) cron: Cron,
    /// The full path of kvmb, and its arguments.
    pub(crate) command: Vec<String>,
    /// Required variables that cron does not set.
    pub(crate) environment: Vec<(String, String)>,
    /// The maximum random delay before it starts.
    pub(crate) random_delay: Option<Duration>,
    /// The file that is locked so that a run does not start before the previous one has ended.
    pub(crate) lock: PathBuf,
}

impl ScheduledJob {
    /// Returns the command, quoted for a shell.
    pub(crate) fn shell_command(&self) -> Result<String, Error> {
        quoted(&self.command)
    }

    /// Returns the line for a crontab, without a newline. `user` is the additional field in system crontabs.
    pub(crate) fn crontab_line(&self, user: Option<&str>) -> Result<String, Error> {
        let mut words = vec![program("flock")?, "-n".into(), "-o".into(), "-E".into(), BUSY.into(), text(&self.lock)?];
        words.extend([program("nice")?, program("ionice")?, "-c".into(), "3".into()]);
        if !self.environment.is_empty() {
            words.push(program("env")?);
            words.extend(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        }
        words.extend(self.command.iter().cloned());
        let mut command = quoted(&words)? + " >/dev/null";
        if let Some(delay) = self.random_delay {
            let (sleep, shuf) = (quoted(&[program("sleep")?])?, quoted(&[program("shuf")?])?);
            command = format!("{sleep} \"$({shuf} -i 0-{} -n 1)\"; {command}", delay.as_secs());
        }
        // Debian's cron removes the backslash from both pairs, other crons only from the second one.
        if let Some(pair) = [r"\\", r"\%"].into_iter().find(|pair| command.contains(*pair)) {
            return Err(Error::Unspeakable { what: pair.to_owned() });
        }
        let command = command.replace('%', r"\%");
        if command.len() > LONGEST_COMMAND_BYTES {
            return Err(Error::TooLong { bytes: command.len(), most: LONGEST_COMMAND_BYTES });
        }
        let user = user.map(|user| format!("{user} ")).unwrap_or_default();
        Ok(format!("{} {user}{command}", self.cron))
    }
}

/// Parses a line of a crontab. Returns the expression and the command as passed to the shell.
pub(crate) fn read_line(line: &str, with_user: bool) -> Option<(Cron, String)> {
    let line = line.trim_start();
    let fields = if line.starts_with('@') { 1 } else { 5 };
    let mut rest = line;
    let mut words = Vec::new();
    for _ in 0..fields + usize::from(with_user) {
        let (word, after) = rest.split_once([' ', '\t'])?;
        words.push(word);
        rest = after.trim_start_matches([' ', '\t']);
    }
    let cron = words[..fields].join(" ").parse().ok()?;
    Some((cron, rest.replace(r"\%", "%")))
}

/// Quotes words for a shell.
pub(super) fn quoted(words: &[String]) -> Result<String, Error> {
    if let Some(word) = words.iter().find(|word| word.chars().any(char::is_control)) {
        return Err(Error::Unspeakable { what: word.escape_debug().to_string() });
    }
    let words = words.iter().map(String::as_str);
    shlex::try_join(words).map_err(|_| Error::Unspeakable { what: "a zero byte".into() })
}

/// Returns a path as text.
pub(super) fn text(path: &Path) -> Result<String, Error> {
    let text = path.to_str().ok_or_else(|| Error::Unspeakable { what: path.display().to_string() })?;
    Ok(text.to_owned())
}

/// The timeout for a scheduling program.
const CHILD_LIMIT: Duration = Duration::from_secs(30);

/// Runs a scheduling program with this standard input, and collects its output.
pub(super) fn run(name: &'static str, command: Command, input: Option<Vec<u8>>) -> Result<Output, Error> {
    let mut command = command;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    bounded::output_of(command, input, Group::Own, CHILD_LIMIT, &bounded::ending()).map_err(|error| {
        match error.kind() {
            ErrorKind::TimedOut => Error::TimedOut { program: name, after: CHILD_LIMIT },
            ErrorKind::Interrupted => Error::Interrupted,
            _ => Error::Program { program: name.into(), message: error.to_string() },
        }
    })
}

/// Returns the full path of a program in `$PATH`.
pub(super) fn program(name: &'static str) -> Result<String, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|file| file.is_file());
    text(&found.next().ok_or(Error::NoProgram { name })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(command: &[&str]) -> ScheduledJob {
        ScheduledJob {
            kind: JobKind::Backup,
            cron: "0 2 * * *".parse().unwrap(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            environment: Vec::new(),
            random_delay: None,
            lock: "/var/lib/kvmb/schedule.lock".into(),
        }
    }

    #[test]
    fn shell_and_cron_metacharacters_are_quoted() {
        let line = job(&["/usr/bin/kvmb", "backup", "my vm", "it's", "50%", "a\"b'c", "$(id)", "-r", "/x"]);
        let line = line.crontab_line(None).unwrap();
        assert!(line.starts_with("0 2 * * * /"), "{line}");
        let end = r#" /usr/bin/kvmb backup 'my vm' "it's" '50\%' "a\"b'c" '$(id)' -r /x >/dev/null"#;
        assert!(line.ends_with(end), "{line}");
        let (cron, command) = read_line(&line, false).unwrap();
        assert_eq!(cron.to_string(), "0 2 * * *");
        let words = shlex::split(&command).unwrap();
        assert!(words.windows(4).any(|four| four == ["it's", "50%", "a\"b'c", "$(id)"]), "{words:?}");
    }

    #[test]
    fn delay_and_variables_precede_the_command() {
        let mut job = job(&["/usr/bin/kvmb", "backup"]);
        job.cron = "@daily".parse().unwrap();
        job.random_delay = Some(Duration::from_secs(1800));
        job.environment = vec![("KVMB_DATA_DIR".into(), "/my data".into())];
        let line = job.crontab_line(Some("root")).unwrap();
        assert!(line.starts_with("@daily root /"), "{line}");
        assert!(line.contains("/shuf -i 0-1800 -n 1)\"; /"), "{line}");
        assert!(line.contains("/env 'KVMB_DATA_DIR=/my data' /usr/bin/kvmb backup >/dev/null"), "{line}");
        let (cron, command) = read_line(&line, true).unwrap();
        assert_eq!(cron.to_string(), "@daily");
        assert!(command.starts_with('/'), "{command}");
    }

    #[test]
    fn unquotable_and_overlong_words_are_refused() {
        for name in ["a\nb", r"a\b", "a\0b", &"x".repeat(1000)] {
            let error = job(&["/usr/bin/kvmb", "backup", name]).crontab_line(None).unwrap_err();
            assert!(matches!(error, Error::Unspeakable { .. } | Error::TooLong { .. }), "{name:?}: {error}");
        }
    }
}
