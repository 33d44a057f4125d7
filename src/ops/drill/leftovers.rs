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

/// The prefix of the file names.
const PREFIX: &str = "drill-";

/// The prefix of the machine names.
pub(super) const MACHINE_PREFIX: &str = "kvmb-drill-";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DrillState {
    /// The drill's id, which is part of the machine's name.
    pub(crate) id: String,
    /// The machine whose point is tested.
    pub(crate) machine: String,
    /// The libvirt connection.
    pub(crate) connect: String,
    /// The UUID of the test machine.
    pub(crate) uuid: String,
    /// Folders and files that belong only to this drill.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) process: ServerProcess,
}

impl DrillState {
    /// The name of the test machine.
    pub(crate) fn drill_machine(&self) -> String {
        format!("{MACHINE_PREFIX}{}", self.id)
    }

    /// Writes its file.
    pub(super) fn save(&self, runtime: &RuntimeDirs) -> Result<()> {
        let path = path_of(runtime, &self.id);
        let json = serde_json::to_vec(self).map_err(|error| Error::io("write", &path)(error.into()))?;
        atomic_file::write(&path, &json, 0o600).map_err(Error::io("write", &path))
    }

    /// Lists the drills whose process was killed.
    pub(crate) fn abandoned(runtime: &RuntimeDirs) -> Result<Vec<DrillState>> {
        let folder = runtime.state_folder();
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
            let entry = entry.map_err(Error::io("list", folder))?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                // A file that cannot be parsed belongs to another version; a missing one was removed by its owner.
                let state = fs::read(entry.path()).ok().and_then(|json| serde_json::from_slice(&json).ok());
                found.extend(state.filter(|state: &DrillState| !state.process.is_alive()));
            }
        }
        Ok(found)
    }

    /// Ends the machine if it still runs, and removes everything.
    pub(crate) fn clear(&self, hypervisor: &Hypervisor, runtime: &RuntimeDirs) -> Result<()> {
        hypervisor.end_abandoned(&self.uuid)?;
        self.remove_files(runtime)
    }

    /// Removes the drill's files, and this record last.
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
