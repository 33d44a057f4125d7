//! The contents of a lock file.

use super::time;
use chrono::{DateTime, FixedOffset};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The JSON of a lock file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LockInfo {
    /// When it was last refreshed.
    #[serde(with = "time")]
    pub time: DateTime<FixedOffset>,
    /// Whether the lock excludes all others.
    pub exclusive: bool,
    /// The host of the holder.
    #[serde(default)]
    pub hostname: String,
    /// The user of the holder.
    #[serde(default)]
    pub username: String,
    /// The process id of the holder.
    #[serde(default)]
    pub pid: i32,
    /// The user id of the holder.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// The group id of the holder.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
}

impl fmt::Display for LockInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exclusively = if self.exclusive { "exclusively " } else { "" };
        write!(
            f,
            "{exclusively}by process {} of {} on {} since {}",
            self.pid,
            self.username,
            self.hostname,
            self.time.format("%Y-%m-%d %H:%M:%S %:z")
        )
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
