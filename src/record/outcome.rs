//! The outcome for a point: damage, a copy, a restore.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A point that lacks chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DamagedPoint {
    /// Its id.
    pub point: String,
    /// Its machine's name.
    pub machine: String,
    /// The disks, by target name; empty if the description of the point itself cannot be read.
    pub disks: Vec<String>,
}

/// A damaged piece of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Damage {
    /// The affected disk; omitted if the description of the point is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Offset of the damaged range of the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset_bytes: Option<u64>,
    /// Length of the damaged range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_bytes: Option<u64>,
    /// The file of the repository, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Description of the damage.
    pub error: String,
}

/// Statistics of copying a point from one repository to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Copied {
    /// The repository that it was copied from.
    pub from_repo: String,
    /// Its id there.
    pub from_point: String,
    /// Whether the point was already there, so that nothing was copied.
    pub already_there: bool,
    /// How much the other repository did not have yet.
    pub new_bytes: u64,
    /// Space used by the new data there, compressed and encrypted.
    pub stored_bytes: u64,
}

/// Where `restore` put a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RestoredTo {
    /// The machine that was defined; omitted with `--no-define`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Its UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The file with the definition, if it was written to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    /// The disks that were written.
    pub disks: Vec<RestoredDisk>,
    /// Whether the machine was started.
    pub started: bool,
    /// Timing of a live restore (`--live`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveRestore>,
}

/// A machine that was started before its data was copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LiveRestore {
    /// From the start of the command until the machine ran.
    pub running_seconds: f64,
    /// From the start of the command until all data was on the disks of this host.
    pub done_seconds: f64,
}

/// One restored disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoredDisk {
    /// The disk's target name.
    pub disk: String,
    /// The file or device that holds it now.
    pub path: String,
    /// Its format.
    pub format: String,
    /// Its size as the guest sees it.
    pub capacity_bytes: u64,
}
