//! Checks and their results.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The result of one check; printed by `doctor`, `status`, `remote test`, `drill` and `backup --verify-sample`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// The subject of the check. `doctor`: `connection`, `libvirt`, `qemu`, `programs`, `confinement`, `folders`, `key`
    /// of the host; `machine`, `job`, `agent`, `confinement`, `folders`, `scratch`, `part`, `snapshot`, `checkpoint` of
    /// a machine; `disk`, `bitmap` of a disk.
    /// `remote test`: `reach`, `host_key`, `login`, `path`, `space`, `speed`, `clock`. `status`: `backup` of a machine;
    /// `connection` of the host; `repository`, `copy` (the second repository), `key`; `retention` and `space` of a
    /// repository; with `--all-hosts`, `host` of each host that has points. `backup`: `sample`. `drill`: `drill` of a
    /// machine.
    pub check: String,
    /// The host, machine, disk (`MACHINE/DISK`) or repository that was checked.
    pub target: String,
    /// `ok`, `warning`, `critical` or `unknown`.
    pub status: String,
    /// What was found.
    pub detail: String,
    /// What to do about it, usually a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The subject's own fields. `host_key`: `host_key_state` (`known`, `unknown`, `changed` or `revoked`), `algorithm`
    /// and `fingerprint` of the key that the server shows. `space`: `free_bytes`. `speed`: `upload_bytes_per_second`,
    /// `download_bytes_per_second`. `clock`: `ahead_seconds` (of the server; negative if it is behind). `backup`:
    /// `uuid`, `repo`; `standing`: `selected`, `missing` (selected, but unknown to libvirt), `left_out`, `gone`
    /// (unknown to libvirt), `elsewhere` (of another host) or `stored` (with `--all-hosts`, which does not use
    /// libvirt); `known_from`: `repository`, or `history` while that is unreachable; for the newest point its `host`,
    /// `newest_point` (its id), `captured_at`, `age_seconds`, and how many `points` there are; of the last run
    /// `last_result` (`done`, `failed`, `damage`, `busy` or `interrupted`), `last_run` (its id in the log),
    /// `last_run_at`, `last_code`, `last_error`, `duration_seconds`; with `--runs`, of the last runs `runs` (each with
    /// `run`, `began_at`, `ended_at`, `result`, `new_bytes`, `stored_bytes` and `code` if something failed or is
    /// missing); of the last successful one `last_success_at`, `read_bytes`, `new_bytes`, `stored_bytes`; of the last
    /// verification `verified_at`, `verified_age_seconds`, `verified_depth` (`quick`, `sample` or `full`);
    /// `damaged_points` (their ids); `next_run_at`; while it is being backed up, `running_pid`, `running_began_at`,
    /// `running_job` (see `jobs`), `running_done_bytes` and `running_total_bytes` of its disks that are being read; the
    /// thresholds `warning_seconds`, `critical_seconds`, `verify_warning_seconds`, `drill_max_age_seconds`; of the last
    /// drill `drill_at`, `drill_age_seconds`, `drill_status`, `drill_detail`, `drill_point`, `drill_rung`,
    /// `drill_rung_seconds`, `drill_log` and `drill_screenshot`. `copy`: `machines`, and `captured_at` and
    /// `age_seconds` of the machine whose newest copy is the oldest. `host`: `machines`, and `captured_at` and
    /// `age_seconds` of the newest point. `repository` with `--runs`: `sizes` after the last backups (each with `at`
    /// and `stored_bytes`). `retention`: `pruned_at` (the last successful prune), `last_prune_at`, `last_result`.
    /// `space` by `status`: `growth_bytes_per_day` and `full_in_seconds` as well. `drill`: `machine`, `uuid`, `repo`,
    /// `point` and `captured_at` of the point; `rung` (the highest that was reached: `started`, `console`, `agent` or
    /// `check`) and `rung_seconds` (from the start until then); `started_seconds`, `console_seconds`, `agent_seconds`
    /// and `check_seconds` of the rungs that were reached; `duration_seconds` of the whole drill; `accelerated`
    /// (whether it ran with KVM); `reboots` of the guest; `system` and `mount_points` as reported by its agent;
    /// `check_output` of the command; `notes` (parts that the machine lacked); `damage` found in the point while it was
    /// read; `log` and `screenshot` (files of this host).
    #[serde(flatten)]
    #[schemars(!flatten)]
    pub extra: Extra,
}

/// The state of the subject of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// No problem was found.
    Ok,
    /// It works, but not as well as it could, or not for much longer.
    Warning,
    /// It does not work.
    Critical,
    /// The state could not be determined.
    Unknown,
}

impl Status {
    /// The word in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Critical => "critical",
            Status::Unknown => "unknown",
        }
    }
}

impl Check {
    /// Creates a check without a hint.
    pub fn new(check: &str, target: impl Into<String>, status: Status, detail: impl Into<String>) -> Check {
        Check {
            check: check.to_owned(),
            target: target.into(),
            status: status.as_str().to_owned(),
            detail: detail.into(),
            hint: None,
            extra: Extra::default(),
        }
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Check {
        self.hint = Some(hint.into());
        self
    }

    /// Returns whether the status is critical.
    pub fn is_critical(&self) -> bool {
        self.status == Status::Critical.as_str()
    }
}
