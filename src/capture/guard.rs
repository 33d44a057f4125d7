//! What is known of a capture's guard: `guard.json` beside the state, which the guard writes and whoever reads the
//! capture looks at.
//!
//! The guard renews the lease while somebody reads. That stands in a file of its own, so that no writer of the state
//! ever takes the place of another.

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

/// A guard, and what it decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuardRecord {
    pub(crate) process: ServerProcess,
    /// How long the capture may stay open while nobody reads it.
    pub(crate) lease_seconds: u64,
    /// When it may be cleared away; moved on while it is read.
    pub(crate) lease_ends_at: DateTime<FixedOffset>,
    /// Why the guard ended the capture.
    pub(crate) verdict: Option<Verdict>,
}

/// Why a guard ends a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// The file system of the scratch files was about to run full.
    NoSpace {
        folder: PathBuf,
        free_bytes: u64,
        /// Below this the capture ends.
        needed_bytes: u64,
    },
    /// Nobody read it until its lease was over.
    Expired,
}

impl CaptureFile {
    /// What the guard wrote last; none if there was no guard yet.
    pub(crate) fn guard(&self) -> Option<GuardRecord> {
        serde_json::from_slice(&atomic_file::read(&self.folder().join("guard.json")).ok()?).ok()
    }

    pub(crate) fn note_guard(&self, record: &GuardRecord) -> Result<()> {
        let path = self.folder().join("guard.json");
        let text = serde_json::to_vec(record).map_err(std::io::Error::other);
        text.and_then(|text| atomic_file::write(&path, &text, 0o600)).map_err(Error::io("write", &path))
    }

    /// Makes this process the capture's only guard for as long as the lock lives; none where there is one.
    pub(crate) fn lock_guard(&self) -> Result<Option<File>> {
        let path = self.folder().join("guard.lock");
        let options = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = options.map_err(Error::io("open", &path))?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
    }

    /// Whether the capture is still there.
    pub(crate) fn exists(&self) -> bool {
        fs::exists(self.folder().join("state.json")).unwrap_or(true)
    }
}
