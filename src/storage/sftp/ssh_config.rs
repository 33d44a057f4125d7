//! The configuration of OpenSSH's client for one host. `ssh -G` prints every option with its value, so that `Include`,
//! `Match` and future additions are interpreted exactly as by `ssh`.
//!
//! `ssh` reads the files of the user in the password database. If the [`SshContext`] names other folders, `ssh` is
//! given a file that includes theirs instead. Without an OpenSSH client, no options are set.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use uzers::os::unix::UserExt;

use super::{Error, Result, SftpAddress, SshContext};
use crate::atomic_file;
use crate::bounded::{self, Group};

/// The system-wide folder of OpenSSH's client.
const SYSTEM_FOLDER: &str = "/etc/ssh";

/// A `Match exec` or the resolution of a name may take a while.
const LIMIT: Duration = Duration::from_secs(30);

/// The options for one host; empty if there is no OpenSSH client.
#[derive(Debug, Default)]
pub(crate) struct HostOptions {
    /// The option's name in lower case → its lines.
    lines: HashMap<String, Vec<String>>,
    /// The home folder that `ssh` uses.
    pub(crate) ssh_home: PathBuf,
}

impl HostOptions {
    /// Runs `ssh -G`.
    pub(crate) fn of(target: &SftpAddress, ssh_context: &SshContext) -> Result<HostOptions> {
        let ssh_home = passwd_home();
        let user_file = ssh_context.home.as_ref().map(|home| home.join(".ssh/config"));
        let bad = |reason: String| Error::SshConfig { path: user_file.clone().unwrap_or_default(), reason };
        let mut command = Command::new("ssh");
        // Without -T, ssh complains that it has no terminal, although it does not connect.
        command.args(["-G", "-T"]).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C");
        // Kept alive until `ssh` has read it.
        let mut composed = None;
        if ssh_context.home.as_deref() != Some(&ssh_home) || ssh_context.system_folder != Path::new(SYSTEM_FOLDER) {
            let folder = std::env::temp_dir();
            let cannot = |error: io::Error| Error::SshConfig {
                path: folder.clone(),
                reason: format!("cannot create a temporary file: {}", atomic_file::without_path(error)),
            };
            let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(cannot)?;
            let text = compose(user_file.as_deref(), &ssh_context.system_folder, &ssh_context.user);
            file.write_all(text.as_bytes()).map_err(cannot)?;
            command.arg("-F").arg(file.path());
            composed = Some(file);
        }
        if let Some(user) = &target.user {
            command.args(["-l", user]);
        }
        if let Some(port) = target.port {
            command.args(["-p", &port.to_string()]);
        }
        command.args(["--", &target.host]);
        let output = match bounded::output(command, Group::Own, LIMIT, &ssh_context.stop) {
            Ok(output) => output,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if user_file.as_ref().is_some_and(|file| file.exists()) {
                    tracing::warn!("OpenSSH's client is not installed: its configuration is not read");
                }
                return Ok(HostOptions { ssh_home, ..HostOptions::default() });
            }
            Err(error) => return Err(bad(format!("cannot get the configuration from ssh: {error}"))),
        };
        drop(composed);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            return Err(bad(format!("ssh cannot read its configuration: {}", lines.join("; "))));
        }
        Ok(HostOptions { lines: read(&String::from_utf8_lossy(&output.stdout)), ssh_home })
    }

    /// Returns the values of an option that may be given several times.
    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.lines.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the value of an option; `None` if it is not set.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.all(name).first().map(String::as_str).filter(|value| *value != "none")
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    /// Returns a duration in seconds; `None` for 0.
    pub(crate) fn seconds(&self, name: &str) -> Option<Duration> {
        self.number(name).map(Duration::from_secs).filter(|time| !time.is_zero())
    }

    /// Returns whether an option is set to `wanted`: on or off.
    pub(crate) fn is(&self, name: &str, wanted: bool) -> bool {
        let words: [&str; 2] = if wanted { ["yes", "true"] } else { ["no", "false"] };
        self.text(name).is_some_and(|value| words.contains(&value))
    }

    /// Returns the files of an option, or `None` if `ssh` prints its own defaults.
    pub(crate) fn files(&self, name: &str, folder: &Path, defaults: [&str; 2]) -> Option<Vec<String>> {
        let value = self.all(name).first()?;
        let of_ssh = defaults.map(|name| folder.join(name).display().to_string()).join(" ");
        match value.as_str() {
            "none" => Some(Vec::new()),
            value if value == of_ssh => None,
            value => Some(split_files(value)),
        }
    }
}

/// Splits a list of files. `ssh -G` prints them without quotes, so what does not begin a path continues the one before,
/// whose name contains a space.
fn split_files(value: &str) -> Vec<String> {
    let mut files: Vec<String> = Vec::new();
    for word in value.split(' ') {
        match files.last_mut() {
            Some(file) if !word.starts_with(['/', '~', '%', '$']) => *file = format!("{file} {word}"),
            _ => files.push(word.to_owned()),
        }
    }
    files
}

/// Returns the home folder of the current user, from the password database.
fn passwd_home() -> PathBuf {
    let user = uzers::get_user_by_uid(rustix::process::getuid().as_raw());
    user.map_or_else(|| PathBuf::from("/"), |user| user.home_dir().to_owned())
}

/// Composes a configuration that includes these files, the user's first.
fn compose(user_file: Option<&Path>, system_folder: &Path, user: &str) -> String {
    let system_file = system_folder.join("ssh_config");
    let included = user_file.into_iter().chain([system_file.as_path()]);
    let lines: String = included.map(|file| format!("Include \"{}\"\n", file.display())).collect();
    format!("{lines}Host *\n User {user}\n")
}

/// Parses lines of `name value`.
fn read(text: &str) -> HashMap<String, Vec<String>> {
    let mut lines: HashMap<String, Vec<String>> = HashMap::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        lines.entry(name.to_owned()).or_default().push(value.trim().to_owned());
    }
    lines
}
