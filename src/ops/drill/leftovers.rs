//! The resources of a drill on this host, recorded before they are created, so that a later command can remove those of
//! a killed drill.

use crate::atomic_file;
use crate::capture::process::ServerProcess;
use crate::capture::{Hypervisor, RuntimeDirs};
use crate::ops::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What the names of the files begin with.
const PREFIX: &str = "drill-";

/// What the names of the machines begin with.
pub(super) const MACHINE_PREFIX: &str = "kvmb-drill-";

/// One drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DrillState {
    /// Its id, which is in the machine's name.
    pub(crate) id: String,
    /// The machine whose point it is.
    pub(crate) machine: String,
    /// The libvirt connection.
    pub(crate) connect: String,
    /// The UUID of the machine that is tried out.
    pub(crate) uuid: String,
    /// Folders and files that are its alone.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) process: ServerProcess,
}

impl DrillState {
    /// The name of the machine that is tried out.
    pub(crate) fn drill_machine(&self) -> String {
        format!("{MACHINE_PREFIX}{}", self.id)
    }

    /// Writes its file.
    pub(super) fn save(&self, runtime: &RuntimeDirs) -> Result<()> {
        let path = path_of(runtime, &self.id);
        let json = serde_json::to_vec(self).map_err(|error| Error::io("write", &path)(error.into()))?;
        atomic_file::write(&path, &json, 0o600).map_err(Error::io("write", &path))
    }

    /// Those whose process was killed.
    pub(crate) fn abandoned(runtime: &RuntimeDirs) -> Result<Vec<DrillState>> {
        let folder = runtime.state_folder();
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
            let entry = entry.map_err(Error::io("list", folder))?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                // What cannot be understood belongs to another version; what is gone was removed by its owner.
                let state = fs::read(entry.path()).ok().and_then(|json| serde_json::from_slice(&json).ok());
                found.extend(state.filter(|state: &DrillState| !state.process.is_alive()));
            }
        }
        Ok(found)
    }

    /// Ends the machine, if it lives on, and removes everything.
    pub(crate) fn clear(&self, hypervisor: &Hypervisor, runtime: &RuntimeDirs) -> Result<()> {
        hypervisor.end_abandoned(&self.uuid)?;
        self.remove_files(runtime)
    }

    /// Removes its files, this one last.
    pub(super) fn remove_files(&self, runtime: &RuntimeDirs) -> Result<()> {
        self.paths.iter().try_for_each(|path| remove(path))?;
        remove(&path_of(runtime, &self.id))
    }
}

fn path_of(runtime: &RuntimeDirs, id: &str) -> PathBuf {
    runtime.state_folder().join(format!("{PREFIX}{id}.json"))
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
