//! How to capture: the flags that `snapshot` and `backup` share.

use crate::capture::{Freeze, FreezeMode};
use crate::cli::failure::CliError;
use crate::cli::repo_args::path_or_nothing;
use crate::ops::push::Trust;
use crate::ops::snapshot::SnapshotRequest;
use crate::units::{Share, Span};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// How to capture.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Capture")]
pub struct CaptureArgs {
    /// Only this disk (may be repeated).
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<String>,

    /// Not this disk (may be repeated).
    #[arg(long, value_name = "DISK")]
    pub exclude_disk: Vec<String>,

    /// Whether to freeze the guest's file systems through its agent for the moment of the capture.
    #[arg(long, value_enum, default_value_t = FreezeChoice::Auto, value_name = "WHEN")]
    pub freeze: FreezeChoice,

    /// How long the guest agent may take to answer.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub freeze_timeout: Duration,

    /// How long the capture may stay open; then it may be cleared by anyone.
    #[arg(long, default_value = "6h", value_name = "TIME", value_parser = duration)]
    pub lease: Duration,

    /// The folder for what the guest overwrites while the capture is open; without it /var/lib/kvmb/scratch.
    #[arg(long, value_name = "DIR", env = "KVMB_SCRATCH", hide_env_values = true, value_parser = path_or_nothing())]
    pub scratch: Option<PathBuf>,
}

/// How far dirty bitmaps are believed.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// The share of unchanged chunks that is read all the same and compared: 0.1%.
    #[arg(long, value_name = "P%", default_value = "0.1%", value_parser = percent, help_heading = "Capture")]
    pub audit: f64,
}

impl AuditArgs {
    /// Trust with this audit.
    pub fn trust(&self) -> Trust {
        Trust { audit: self.audit, ..Trust::default() }
    }
}

/// A share of a whole, from 0 to 1.
pub fn percent(text: &str) -> Result<f64, String> {
    text.parse::<Share>().map(|share| share.0).map_err(|error| error.to_string())
}

/// When to freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FreezeChoice {
    /// If there is an agent that answers; else the capture is as after a power cut.
    Auto,
    /// Not at all.
    Never,
    /// Fail without it.
    Required,
}

/// A length of time that is not nothing.
pub fn duration(text: &str) -> Result<Duration, String> {
    let span = text.parse::<Span>().ok().filter(|span| !span.0.is_zero());
    span.map(|span| span.0).ok_or_else(|| Span::RULE.to_owned())
}

impl CaptureArgs {
    /// The request; `selected` are the disks that records on standard input named.
    pub fn request(&self, selected: Option<Vec<String>>) -> Result<SnapshotRequest, CliError> {
        let mode = match self.freeze {
            FreezeChoice::Auto => FreezeMode::Auto,
            FreezeChoice::Never => FreezeMode::Never,
            FreezeChoice::Required => FreezeMode::Required,
        };
        let scratch = match self.scratch.as_ref().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => {
                let absolute = std::path::absolute(folder);
                Some(absolute.map_err(|error| CliError::usage(format!("--scratch {}: {error}", folder.display())))?)
            }
            None => None,
        };
        let named = (!self.disk.is_empty()).then(|| self.disk.clone());
        Ok(SnapshotRequest {
            disks: named.or(selected),
            exclude: self.exclude_disk.clone(),
            freeze: Freeze { mode, timeout: self.freeze_timeout },
            lease: self.lease,
            scratch,
            owned: false,
        })
    }
}
