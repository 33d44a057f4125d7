//! Locations of kvmb's persistent files and of its configuration.

use crate::cli::failure::CliError;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use uzers::os::unix::UserExt;

/// The data folder of root.
const OF_ROOT: &str = "/var/lib/kvmb";

/// The cache folder of root.
const CACHE_OF_ROOT: &str = "/var/cache/kvmb";

/// The entries of the state folder.
const STATE: [&str; 3] = ["history", "jobs", "repositories"];

/// Returns the folder that a variable names. Ignores relative paths, as the XDG specification requires.
fn named_by(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_absolute())
}

/// Returns the home folder: `$HOME`, or else that of the password database, because systemd does not set `$HOME` for
/// system services.
pub(crate) fn home() -> Option<PathBuf> {
    let named = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    named.or_else(|| {
        let user = uzers::get_user_by_uid(rustix::process::geteuid().as_raw())?;
        Some(user.home_dir().to_owned()).filter(|home| home.is_absolute())
    })
}

/// Returns kvmb's folder below that of a variable, or below the home folder.
fn of_user(variable: &str, below_home: &str) -> Result<PathBuf, CliError> {
    let base = named_by(variable).or_else(|| Some(home()?.join(below_home)));
    let base = base.ok_or_else(|| {
        CliError::usage(format!("{variable} is not set, and there is no home folder"))
            .hint("set HOME to a folder that this user can write to")
    })?;
    Ok(base.join("kvmb"))
}

/// Returns the folder for all of kvmb's data, if a single one is configured.
fn of_everything() -> Option<PathBuf> {
    let named = std::env::var_os("KVMB_DATA_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    named.or_else(|| rustix::process::geteuid().is_root().then(|| OF_ROOT.into()))
}

/// Returns the folder of the default repository and its key, SSH keys, and scratch files.
pub(crate) fn data_folder() -> Result<PathBuf, CliError> {
    of_everything().map_or_else(|| of_user("XDG_DATA_HOME", ".local/share"), Ok)
}

/// Returns the folder of the history, the jobs, a user's log and the state of repositories. If a user already has them
/// in the data folder, where older versions kept them, they stay there.
pub(crate) fn state_folder() -> Result<PathBuf, CliError> {
    if let Some(folder) = of_everything() {
        return Ok(folder);
    }
    match data_folder() {
        Ok(data) if STATE.iter().any(|name| data.join(name).exists()) => Ok(data),
        _ => of_user("XDG_STATE_HOME", ".local/state"),
    }
}

/// Returns the folder for caches of repositories, if there is one.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let named = std::env::var_os("KVMB_DATA_DIR").filter(|folder| !folder.is_empty());
    match named {
        Some(folder) => Some(PathBuf::from(folder).join("cache")),
        None if rustix::process::geteuid().is_root() => Some(CACHE_OF_ROOT.into()),
        None => of_user("XDG_CACHE_HOME", ".cache").ok(),
    }
}

/// Returns the state folder, and creates it if necessary.
pub(crate) fn make_state_folder() -> Result<PathBuf, CliError> {
    make(state_folder()?)
}

/// Returns the data folder, and creates it if necessary.
pub(crate) fn make_data_folder() -> Result<PathBuf, CliError> {
    make(data_folder()?)
}

fn make(folder: PathBuf) -> Result<PathBuf, CliError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(&folder);
    made.map_err(crate::ops::Error::io("create", &folder))?;
    Ok(folder)
}

/// Returns the home folder, and the configuration folder.
pub(crate) fn of_configurations() -> (Option<PathBuf>, Option<PathBuf>) {
    let home = home();
    let configurations = named_by("XDG_CONFIG_HOME").or_else(|| Some(home.as_deref()?.join(".config")));
    (home, configurations)
}

/// Returns the log of a user who cannot write the host's log: its path, and whether its folder is kvmb's own.
pub(crate) fn log_of_user() -> Option<(PathBuf, bool)> {
    let known = home().map(|home| home.join("kvm_backup.log")).filter(|log| log.exists());
    let new = || state_folder().ok().map(|folder| (Path::new(&folder).join("kvmb.log"), true));
    known.map(|log| (log, false)).or_else(new)
}
