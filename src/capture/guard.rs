//! The record of a capture's guard: `guard.json` next to the state, written by the guard and read by the readers of the
//! capture.
//!
//! The guard renews the lease while the capture is read. The lease is in a separate file, so that the guard and the
//! writers of the state never overwrite each other's changes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use chrono::{DateTime, FixedOffset};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::capture::error::{Error, Result};
use crate::capture::process::ServerProcess;
use crate::capture::state::CaptureFile;

/// A guard and its decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuardRecord {
    pub(crate) process: ServerProcess,
    /// How long the capture may stay open without being read.
    pub(crate) lease_seconds: u64,
    /// When the capture may be removed. Moved forward while it is read.
    pub(crate) lease_ends_at: DateTime<FixedOffset>,
    /// Why the guard ended the capture.
    pub(crate) verdict: Option<Verdict>,
}

/// Why a guard ends a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// The file system of the scratch files was almost full.
    NoSpace {
        folder: PathBuf,
        free_bytes: u64,
        /// The limit of free space below which the capture ends.
        needed_bytes: u64,
    },
    /// The lease expired because nothing read the capture.
    Expired,
}

impl CaptureFile {
    /// Returns the guard's last record, or `None` if there was no guard yet.
    pub(crate) fn guard(&self) -> Option<GuardRecord> {
        serde_json::from_slice(&atomic_file::read(&self.folder().join("guard.json")).ok()?).ok()
    }

    pub(crate) fn note_guard(&self, record: &GuardRecord) -> Result<()> {
        let path = self.folder().join("guard.json");
        let text = serde_json::to_vec(record).map_err(std::io::Error::other);
        text.and_then(|text| atomic_file::write(&path, &text, 0o600)).map_err(Error::io("write", &path))
    }

    /// Makes this process the capture's only guard while the lock lives. Returns `None` if there is one already.
    pub(crate) fn lock_guard(&self) -> Result<Option<File>> {
        let path = self.folder().join("guard.lock");
        let options = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = options.map_err(Error::io("open", &path))?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
    }

    /// Whether the capture still exists.
    pub(crate) fn exists(&self) -> bool {
        fs::exists(self.folder().join("state.json")).unwrap_or(true)
    }
}
