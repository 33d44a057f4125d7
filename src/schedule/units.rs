//! Writes, enables and removes systemd units, whether or not systemd is running.

use super::Error;
use super::entry::{self, program};
use crate::atomic_file;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The folder of the administrator's units.
const FOLDER: &str = "/etc/systemd/system";

/// A unit's name and text.
pub(crate) type UnitFile<'a> = (&'a str, &'a str);

/// Returns the path of a unit.
pub(crate) fn path_of(unit: &str) -> String {
    format!("{FOLDER}/{unit}")
}

/// Returns the text of an installed unit.
pub(crate) fn read(unit: &str) -> Result<Option<String>, Error> {
    let path = path_of(unit);
    match atomic_file::read_to_string(Path::new(&path)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", Path::new(&path))(error)),
    }
}

/// Refuses to change these units if kvmb did not create them.
pub(crate) fn check_own(units: &[&str]) -> Result<(), Error> {
    for unit in units {
        if let Some(text) = read(unit)? {
            super::check_own(Path::new(&path_of(unit)), &text)?;
        }
    }
    Ok(())
}

/// Writes units and enables one of them, at once or, if systemd is not running, at the next boot.
pub(crate) fn install(units: &[UnitFile], enabled: &str) -> Result<(), Error> {
    for (unit, text) in units {
        super::write_file(Path::new(&path_of(unit)), text)?;
    }
    if is_running() {
        systemctl(&["daemon-reload"])?;
        // A running timer adopts new settings only when it is restarted.
        systemctl(&["enable", enabled])?;
        systemctl(&["restart", enabled])
    } else {
        systemctl(&["enable", enabled])
    }
}

/// Disables a unit, and then removes all of them.
pub(crate) fn remove(units: &[&str], enabled: &str) -> Result<(), Error> {
    let mut disable = vec!["disable", enabled];
    if is_running() {
        disable.push("--now");
    }
    systemctl(&disable)?;
    for unit in units {
        let path = path_of(unit);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", Path::new(&path))(error));
            }
            _ => {}
        }
    }
    if is_running() { systemctl(&["daemon-reload"]) } else { Ok(()) }
}

/// Returns whether a unit is enabled for a target.
pub(crate) fn is_enabled(unit: &str, target: &str) -> bool {
    Path::new(FOLDER).join(format!("{target}.wants/{unit}")).exists()
}

/// Returns whether systemd is running on this host.
pub(crate) fn is_running() -> bool {
    Path::new("/run/systemd/system").exists()
}

fn systemctl(arguments: &[&str]) -> Result<(), Error> {
    let failed = |message: String| Error::Program { program: format!("systemctl {}", arguments.join(" ")), message };
    let mut command = Command::new(program("systemctl")?);
    command.args(arguments);
    let output = entry::run("systemctl", command, None)?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Quotes a word of a command line in a unit.
pub(crate) fn quoted(word: &str) -> Result<String, Error> {
    Ok(quoted_setting(word)?.replace('$', "$$"))
}

/// Quotes a word of another setting, in which variables are not expanded.
pub(crate) fn quoted_setting(word: &str) -> Result<String, Error> {
    if word.chars().any(char::is_control) {
        return Err(Error::Unspeakable { what: word.escape_debug().to_string() });
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    let escaped = word.replace('\\', r"\\").replace('"', r#"\""#).replace('%', "%%");
    Ok(if !word.is_empty() && word.chars().all(plain) { escaped } else { format!("\"{escaped}\"") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_systemd() {
        for (word, expected) in [
            ("/usr/bin/kvmb", "/usr/bin/kvmb"),
            ("my vm", "\"my vm\""),
            ("50%", "\"50%%\""),
            ("$HOME", "\"$$HOME\""),
            (r#"a"b\c'd"#, r#""a\"b\\c'd""#),
            ("", "\"\""),
        ] {
            assert_eq!(quoted(word).unwrap(), expected);
        }
        assert!(quoted("a\nb").is_err());
    }
}
