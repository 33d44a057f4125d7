//! Options of every command.

use crate::cli::args::log::LogArgs;
use crate::cli::complete::connections::connections;
use crate::cli::folders;
use crate::cli::output::Format;
use crate::cli::terminal::color::ColorChoice;
use crate::cli::terminal::progress::ProgressStyle;
use crate::config::Loaded;
use clap::{ArgAction, Args};
use std::path::PathBuf;

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The libvirt connection, as for virsh.
    ///
    /// Default: $LIBVIRT_DEFAULT_URI, otherwise what libvirt chooses: qemu:///system for root, qemu:///session for
    /// other users.
    #[arg(short, long, value_name = "URI", global = true, add = connections())]
    pub(crate) connect: Option<String>,

    /// Output format. Default: $KVMB_OUTPUT, otherwise a table on a terminal and JSON Lines elsewhere.
    #[arg(short, long, value_enum, default_value_t, global = true, value_name = "FORMAT")]
    pub(crate) output: Format,

    /// Same as --output jsonl.
    #[arg(long, global = true, conflicts_with = "output")]
    pub(crate) json: bool,

    /// Same as --output table.
    #[arg(long, global = true, conflicts_with_all = ["output", "json"])]
    pub(crate) table: bool,

    /// Configuration file.
    ///
    /// Default: $KVMB_CONFIG, otherwise the first of ~/.kvm_backup_config.json, ~/.config/kvmb/config.json and
    /// /etc/kvmb/config.json that exists.
    #[arg(long, value_name = "FILE", env = "KVMB_CONFIG", hide_env_values = true, global = true)]
    pub(crate) config: Option<PathBuf>,

    /// The log.
    #[command(flatten)]
    pub(crate) log: LogArgs,

    /// When to use colour.
    #[arg(long, value_enum, default_value_t, global = true, value_name = "WHEN")]
    pub(crate) color: ColorChoice,

    /// How to show progress on standard error.
    #[arg(long, value_enum, default_value_t, global = true, value_name = "HOW")]
    pub(crate) progress: ProgressStyle,

    /// Increase verbosity (repeat for more).
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub(crate) verbose: u8,

    /// Do not show progress or warnings, and do not ask questions.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

impl Global {
    /// Returns the format of records.
    pub(crate) fn format(&self) -> Format {
        match (self.json, self.table) {
            (true, _) => Format::Jsonl,
            (_, true) => Format::Table,
            _ => self.output,
        }
    }

    /// Loads the configuration that applies.
    pub(crate) fn load_config(&self) -> Result<Loaded, crate::config::Error> {
        let (home, config_home) = folders::of_configurations();
        crate::config::load(self.config.as_deref(), home.as_deref(), config_home.as_deref())
    }
}
