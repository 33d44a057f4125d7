//! Runs of this host: jobs and their progress.

use super::time::{self, Time};
use super::values::{Extra, without_steering};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A run of a command on this host that backs up, copies, restores, verifies, serves or prunes; printed by `jobs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Its id, as in the log.
    pub job: String,
    /// The subcommand.
    pub command: String,
    /// The whole command line, without the program. Passwords in addresses are hidden.
    pub arguments: Vec<String>,
    /// `running`, `done`, `failed`, `partial`, `damage`, `busy`, `interrupted`, or `lost` (the process disappeared
    /// without a result).
    pub status: String,
    /// The user who started it; with sudo, the user who called sudo.
    pub user: String,
    /// Where it was started: `cron`, `systemd`, `console` or `shell`.
    pub origin: String,
    /// Its process.
    pub pid: u32,
    /// When it began.
    #[serde(serialize_with = "time::serialize")]
    pub began_at: Time,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "time::serialize_option")]
    pub ended_at: Option<Time>,
    /// How long it took, or how long it has been running.
    pub duration_seconds: f64,
    /// Its exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u32>,
    /// How much it has actually read or copied.
    pub done_bytes: u64,
    /// How much it has to read or copy, as far as known. This grows while machines are opened, and shrinks when holes
    /// and unchanged parts of disks are found.
    pub total_bytes: u64,
    /// The present rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
    /// The time left at this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_seconds: Option<f64>,
    /// What it is working on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<JobStep>,
    /// The number of failures.
    pub failures: usize,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// One piece of work of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobStep {
    /// What is done: `reading`, `copying`, `verifying`, `restoring`, `moving`, `pruning`, `hashing`.
    pub verb: String,
    /// The machine and disk, or the point.
    pub label: String,
    /// How much is done.
    pub done_bytes: u64,
    /// How much there is.
    pub total_bytes: u64,
}

/// The progress of one piece of work; written to standard error by any command with `--progress jsonl`, once a second
/// and when the work ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The id of the run.
    pub job: String,
    /// What is done: `reading`, `copying`, `verifying`, `restoring`, `moving`, `pruning`, `hashing`.
    pub verb: String,
    /// The machine and disk, or the point.
    pub label: String,
    /// How much is done.
    pub done_bytes: u64,
    /// How much there is.
    pub total_bytes: u64,
    /// The rate since the work began.
    pub bytes_per_second: f64,
    /// Whether the work has ended.
    pub ended: bool,
}

/// A line of the log; printed by `log`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Log {
    /// When it was written.
    #[serde(serialize_with = "time::serialize")]
    pub logged_at: Time,
    /// `DEBUG`, `INFO`, `WARNING` or `ERROR`.
    pub level: String,
    /// The ID of the run that wrote it, which is also the ID of the job if the run was one.
    pub run: String,
    /// The message, followed by its fields (`machine=vm1`).
    pub message: String,
    /// Unknown fields.
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

impl Progress {
    /// Returns the record as one line of JSON, without the newline.
    pub fn to_line(&self) -> String {
        let mut object = serde_json::Map::from_iter([("type".to_owned(), "progress".into())]);
        if let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) {
            object.extend(fields);
        }
        without_steering(serde_json::Value::Object(object).to_string())
    }
}
