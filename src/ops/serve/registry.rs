//! The points that detached processes on this host serve. Each has a file in the state folder.

use super::super::{Error, Result};
use crate::atomic_file;
use crate::capture::RuntimeDirs;
use crate::capture::process::ServerProcess;
use crate::capture::runtime::is_of_live_restore;
use crate::record::Time;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The prefix of the file names.
const PREFIX: &str = "served-";

/// The time limit for the exit of a server.
const ENDING_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServedState {
    /// The name by which `release` ends it: `s-1a2b3c4d`.
    pub(crate) id: String,
    pub(crate) machine: String,
    pub(crate) point: String,
    pub(crate) repo: String,
    pub(crate) socket: PathBuf,
    pub(crate) process: ServerProcess,
    /// When the server exits unless a client is connected.
    pub(crate) lease_ends_at: Time,
}

impl ServedState {
    /// Writes or replaces its file.
    pub(crate) fn save(&self, runtime: &RuntimeDirs) -> Result<()> {
        let path = path_of(runtime, &self.id);
        let json = serde_json::to_vec(self).map_err(|error| Error::io("write", &path)(error.into()))?;
        atomic_file::write(&path, &json, 0o600).map_err(Error::io("write", &path))
    }

    /// Lists the points whose server is alive. The files of killed servers are removed.
    pub(crate) fn list(runtime: &RuntimeDirs) -> Result<Vec<ServedState>> {
        let folder = runtime.state_folder();
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
            let entry = entry.map_err(Error::io("list", folder))?;
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            let Some(state) = load(&entry.path())? else { continue };
            match state.process.is_alive() {
                true => found.push(state),
                false => state.clear(runtime)?,
            }
        }
        Ok(found)
    }

    /// Lists the servers that `release` may end. The server of a live restore is not included: a machine runs on its
    /// point, and the restore ends the server itself.
    pub(crate) fn releasable(runtime: &RuntimeDirs) -> Result<Vec<ServedState>> {
        let all = ServedState::list(runtime)?;
        Ok(all.into_iter().filter(|state| !is_of_live_restore(&state.socket)).collect())
    }

    /// Lists those among them that match a name, which is an id or a machine.
    pub(crate) fn named(runtime: &RuntimeDirs, name: &str) -> Result<Vec<ServedState>> {
        let all = ServedState::releasable(runtime)?;
        Ok(all.into_iter().filter(|state| state.id == name || state.machine == name).collect())
    }

    /// Ends the server and waits for its exit.
    pub(crate) fn end(&self, runtime: &RuntimeDirs) -> Result<()> {
        self.process.ask_to_end();
        if !self.process.wait_for_end(ENDING_LIMIT) {
            return Err(Error::ServerStuck { served: self.id.clone(), pid: self.process.pid });
        }
        self.clear(runtime)
    }

    /// Removes the files that the server left.
    pub(crate) fn clear(&self, runtime: &RuntimeDirs) -> Result<()> {
        // Only a folder within our own socket folder may be removed.
        if let Some(folder) = self.socket.parent().filter(|folder| folder.parent() == Some(runtime.socket_folder())) {
            remove(fs::remove_dir_all(folder), folder)?;
        }
        let path = path_of(runtime, &self.id);
        remove(fs::remove_file(&path), &path)
    }
}

fn path_of(runtime: &RuntimeDirs, id: &str) -> PathBuf {
    runtime.state_folder().join(format!("{PREFIX}{id}.json"))
}

fn load(path: &Path) -> Result<Option<ServedState>> {
    match fs::read(path) {
        // A file that cannot be parsed belongs to another version.
        Ok(json) => Ok(serde_json::from_slice(&json).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

fn remove(removed: std::io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
