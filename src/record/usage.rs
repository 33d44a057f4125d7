//! Space used in a repository.

use super::{Extra, Time, time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The space that a machine, or all data together, uses in a repository; printed by `stats`. Sizes are those of
/// compressed and encrypted data, as `restic stats --mode raw-data` counts them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// The repository.
    pub repo: String,
    /// The machine's name; omitted for the repository as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The machine's UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The hosts on which the points were captured; more than one if the machine moved.
    pub hosts: Vec<String>,
    /// The number of points.
    pub points: usize,
    /// The time of the newest point.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "time::serialize_option")]
    pub captured_at: Option<Time>,
    /// The size of all disks of the newest point as the guest sees them; for a repository, of all machines together.
    pub capacity_bytes: u64,
    /// Space used by the data that the points need. Data that several of them need counts once.
    pub stored_bytes: u64,
    /// The part that only points of this machine need: it is freed when all of them are removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_bytes: Option<u64>,
    /// The part that points of other machines need as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<u64>,
    /// Space used by unused data, which `prune` can free; only for a repository as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unused_bytes: Option<u64>,
    /// What the points of the last 30 days added per day; omitted if they are less than a day apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth_bytes_per_day: Option<f64>,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}
