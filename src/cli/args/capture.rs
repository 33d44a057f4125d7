//! Flags that `snapshot` and `backup` share: how to capture.

use crate::capture::{FreezeMode, FreezeOptions};
use crate::cli::args::machine::Selection;
use crate::cli::args::value_parsers::{chunk_size, duration, path_or_nothing, percent, rate};
use crate::cli::complete;
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::ops::push::Trust;
use crate::ops::snapshot::SnapshotRequest;
use crate::ops::threads::Parallelism;
use crate::rate_limiter::RateLimiter;
use crate::repo::Compression;
use crate::units::ChunkSize;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// How to capture.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Capture")]
pub(crate) struct CaptureArgs {
    /// Back up only this disk (can be repeated).
    #[arg(long, value_name = "DISK", add = complete::machine_disks())]
    pub(crate) disk: Vec<String>,

    /// Exclude this disk (can be repeated).
    #[arg(long, value_name = "DISK", add = complete::machine_disks())]
    pub(crate) exclude_disk: Vec<String>,

    /// Whether to freeze the guest's file systems through the guest agent during the capture.
    #[arg(long, value_enum, default_value_t = FreezeChoice::Auto, value_name = "WHEN")]
    pub(crate) freeze: FreezeChoice,

    /// How long to wait for the guest agent.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub(crate) freeze_timeout: Duration,

    /// How long a capture may stay open while no one reads it. After that, its guard process closes it.
    #[arg(long, default_value = "6h", value_name = "TIME", value_parser = duration)]
    pub(crate) lease: Duration,

    /// File with the passphrase of an encrypted disk, as DISK=FILE (can be repeated).
    ///
    /// Only needed for a stopped machine whose secret libvirt keeps private. Example: vda=/root/vda.key.
    #[arg(long, value_name = "DISK=FILE", value_parser = disk_file)]
    pub(crate) luks_key_file: Vec<(String, PathBuf)>,

    #[command(flatten)]
    pub(crate) scratch: ScratchArgs,
}

/// Where scratch files go.
#[derive(Debug, Clone, Args)]
pub(crate) struct ScratchArgs {
    /// Folder for the blocks that the guest overwrites while the capture is open.
    ///
    /// Default: /var/lib/kvmb/scratch.
    #[arg(
        long,
        value_name = "DIR",
        env = "KVMB_SCRATCH",
        hide_env_values = true,
        value_parser = path_or_nothing(),
        help_heading = "Capture"
    )]
    scratch: Option<PathBuf>,
}

impl ScratchArgs {
    /// Returns the absolute scratch folder; None means the default.
    pub(crate) fn folder(&self) -> Result<Option<PathBuf>, CliError> {
        let Some(folder) = self.scratch.as_ref().filter(|folder| !folder.as_os_str().is_empty()) else {
            return Ok(None);
        };
        let absolute = std::path::absolute(folder);
        absolute.map(Some).map_err(|error| CliError::usage(format!("--scratch {}: {error}", folder.display())))
    }
}

/// The audit of dirty bitmaps.
#[derive(Debug, Clone, Args)]
pub(crate) struct AuditArgs {
    /// Share of unchanged chunks to read again and compare, as a check of the dirty bitmap.
    #[arg(long, value_name = "P%", default_value = "0.1%", value_parser = percent, help_heading = "Capture")]
    pub(crate) audit: f64,
}

impl AuditArgs {
    /// Returns the trust settings with this audit.
    pub(crate) fn trust(&self) -> Trust {
        Trust { audit: self.audit, ..Trust::default() }
    }
}

/// The chunk size of disks.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChunkArgs {
    /// Chunk size: 512K, 1M, 2M or 4M.
    ///
    /// Disks are compared and stored in chunks. Default: the chunk size of the previous point; for a new disk 1M up to
    /// 64 GiB, 2M up to 1 TiB and 4M above. After a change the disk is read in full once.
    #[arg(long, value_name = "SIZE", value_parser = chunk_size, help_heading = "Capture")]
    pub(crate) chunk_size: Option<ChunkSize>,
}

/// The number of threads.
#[derive(Debug, Clone, Args)]
pub(crate) struct ThreadsArgs {
    /// Number of threads that hash and compress, for each machine.
    ///
    /// Default: one for each processor, at least 2 and at most 8. Fewer threads leave more processor time to the
    /// machines.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Capture")]
    threads: Option<u16>,
}

impl ThreadsArgs {
    /// Returns the number of threads per machine when this many machines are stored concurrently.
    pub(crate) fn parallelism(&self, machines: usize) -> Parallelism {
        Parallelism::new(self.threads.map(usize::from), machines)
    }
}

/// The compression of data.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompressionArgs {
    /// Compression of new data.
    ///
    /// Data that does not compress is stored as it is, whatever the mode. A copy keeps the compression of the first
    /// repository, unless 'better' or 'max' is given, or 'auto' finds that the second repository is the bottleneck.
    #[arg(long, value_enum, default_value_t = Compression::Auto, value_name = "MODE", help_heading = "Repository")]
    pub(crate) compression: Compression,
}

impl ValueEnum for Compression {
    fn value_variants<'a>() -> &'a [Compression] {
        &[Compression::Off, Compression::Fastest, Compression::Auto, Compression::Better, Compression::Max]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Compression::Off => ("off", "Do not compress data"),
            Compression::Fastest => ("fastest", "Compress as fast as possible"),
            Compression::Auto => ("auto", "Compress fast, and harder while the repository is the bottleneck"),
            Compression::Better => ("better", "Compress harder: smaller, and slower"),
            Compression::Max => ("max", "Compress as much as possible"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// The read limit.
#[derive(Debug, Clone, Args)]
pub(crate) struct LimitReadArgs {
    /// Limit reads from all disks together, in bytes per second (example: 500K, 10M).
    #[arg(long, value_name = "RATE", value_parser = rate, help_heading = "Capture")]
    pub(crate) limit_read: Option<NonZeroU32>,
}

impl LimitReadArgs {
    /// Returns the read limit, which all disks of this run share.
    pub(crate) fn rate_limit(&self, context: &Context) -> Option<RateLimiter> {
        Some(RateLimiter::new(self.limit_read?, context.stop.flag()))
    }
}

/// Parses `vda=/root/vda.key` and makes the path absolute.
fn disk_file(text: &str) -> Result<(String, PathBuf), String> {
    let parts = text.split_once('=').filter(|(disk, file)| !disk.is_empty() && !file.is_empty());
    let (disk, file) = parts.ok_or_else(|| "expected a disk and a file, such as vda=/root/vda.key".to_owned())?;
    Ok((disk.to_owned(), std::path::absolute(file).map_err(|error| error.to_string())?))
}

/// When to freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FreezeChoice {
    /// Freeze if a guest agent answers; otherwise the capture is crash-consistent only.
    Auto,
    /// Do not freeze.
    Never,
    /// Fail if the guest cannot be frozen.
    Required,
}

impl CaptureArgs {
    /// Builds the request for a machine, limited to the disks that records on standard input named, if any.
    pub(crate) fn request(&self, context: &Context, selection: &Selection) -> Result<SnapshotRequest, CliError> {
        let mode = match self.freeze {
            FreezeChoice::Auto => FreezeMode::Auto,
            FreezeChoice::Never => FreezeMode::Never,
            FreezeChoice::Required => FreezeMode::Required,
        };
        let named = (!self.disk.is_empty()).then(|| self.disk.clone());
        Ok(SnapshotRequest {
            disks: named.or_else(|| selection.disks.clone()),
            exclude: self.exclude_disk.clone(),
            configured_exclude: context.excluded_disks(&selection.name),
            freeze: FreezeOptions { mode, timeout: self.freeze_timeout },
            lease: self.lease,
            scratch: self.scratch.folder()?,
            owned: false,
            luks_key_files: self.luks_key_file.iter().cloned().collect(),
        })
    }
}
