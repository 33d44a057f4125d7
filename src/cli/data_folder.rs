//! Where kvmb keeps what outlives a run.

use crate::cli::failure::CliError;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where kvmb keeps what outlives a run.
pub(crate) fn data_folder() -> Result<PathBuf, CliError> {
    if let Some(folder) = std::env::var_os("KVMB_DATA_DIR").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/kvmb".into());
    }
    if let Some(folder) = std::env::var_os("XDG_DATA_HOME").filter(|folder| !folder.is_empty()) {
        return Ok(Path::new(&folder).join("kvmb"));
    }
    let home = std::env::var_os("HOME").ok_or_else(|| CliError::usage("neither XDG_DATA_HOME nor HOME is set"))?;
    Ok(Path::new(&home).join(".local/share/kvmb"))
}

/// The same, made if it is not there yet.
pub(crate) fn make_data_folder() -> Result<PathBuf, CliError> {
    let folder = data_folder()?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(&folder);
    made.map_err(crate::ops::Error::io("create", &folder))?;
    Ok(folder)
}
