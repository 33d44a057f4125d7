//! Where kvmb keeps what outlives a run, and where its configuration is.

use crate::cli::failure::CliError;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The folder of root.
const OF_ROOT: &str = "/var/lib/kvmb";

/// The folder of root's cache.
const CACHE_OF_ROOT: &str = "/var/cache/kvmb";

/// What is in the folder of the state.
const STATE: [&str; 3] = ["history", "jobs", "repositories"];

/// A folder that a variable names; as the specification of XDG has it, a relative one is ignored.
fn named_by(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_absolute())
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// A folder below that of a variable, or below the home folder.
fn of_user(variable: &str, below_home: &str) -> Result<PathBuf, CliError> {
    let base = named_by(variable).or_else(|| Some(home()?.join(below_home)));
    let base = base.ok_or_else(|| CliError::usage(format!("neither {variable} nor HOME is set")))?;
    Ok(base.join("kvmb"))
}

/// The folder of all that kvmb keeps, if there is one for everything.
fn of_everything() -> Option<PathBuf> {
    let named = std::env::var_os("KVMB_DATA_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    named.or_else(|| rustix::process::geteuid().is_root().then(|| OF_ROOT.into()))
}

/// Where the host's own repository and its key are, keys for SSH, and scratch files.
pub(crate) fn data_folder() -> Result<PathBuf, CliError> {
    of_everything().map_or_else(|| of_user("XDG_DATA_HOME", ".local/share"), Ok)
}

/// Where the history is, the jobs, the log of a user and what was read of repositories. Where a user has them beside
/// the data, as they used to be, they stay there.
pub(crate) fn state_folder() -> Result<PathBuf, CliError> {
    if let Some(folder) = of_everything() {
        return Ok(folder);
    }
    match data_folder() {
        Ok(data) if STATE.iter().any(|name| data.join(name).exists()) => Ok(data),
        _ => of_user("XDG_STATE_HOME", ".local/state"),
    }
}

/// Where copies of what repositories have are kept, if there is a place for them.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let named = std::env::var_os("KVMB_DATA_DIR").filter(|folder| !folder.is_empty());
    match named {
        Some(folder) => Some(PathBuf::from(folder).join("cache")),
        None if rustix::process::geteuid().is_root() => Some(CACHE_OF_ROOT.into()),
        None => of_user("XDG_CACHE_HOME", ".cache").ok(),
    }
}

/// The folder of the state, made if it is not there yet.
pub(crate) fn make_state_folder() -> Result<PathBuf, CliError> {
    make(state_folder()?)
}

/// The folder of the data, made if it is not there yet.
pub(crate) fn make_data_folder() -> Result<PathBuf, CliError> {
    make(data_folder()?)
}

fn make(folder: PathBuf) -> Result<PathBuf, CliError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(&folder);
    made.map_err(crate::ops::Error::io("create", &folder))?;
    Ok(folder)
}

/// The home folder, and the folder of configurations.
pub(crate) fn of_configurations() -> (Option<PathBuf>, Option<PathBuf>) {
    let home = home();
    let configurations = named_by("XDG_CONFIG_HOME").or_else(|| Some(home.as_deref()?.join(".config")));
    (home, configurations)
}

/// The log of a user who cannot write that of the host: where it is, and whether its folder is kvmb's own.
pub(crate) fn log_of_user() -> Option<(PathBuf, bool)> {
    let known = home().map(|home| home.join("kvm_backup.log")).filter(|log| log.exists());
    let new = || state_folder().ok().map(|folder| (Path::new(&folder).join("kvmb.log"), true));
    known.map(|log| (log, false)).or_else(new)
}
