//! What a lock file says of whoever holds the lock.

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
    /// Whether nobody else may hold one.
    pub exclusive: bool,
    /// On which host.
    #[serde(default)]
    pub hostname: String,
    /// By whom.
    #[serde(default)]
    pub username: String,
    /// By which process.
    #[serde(default)]
    pub pid: i32,
    /// By which user number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// By which group number.
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
