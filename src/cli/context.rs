//! The context that commands share: options, settings, limits and open storages.

use crate::capture::{self, CallLimits, Hypervisor, RuntimeDirs};
use crate::cli::args::global::Global;
use crate::cli::failure::{CliError, Code};
use crate::cli::folders::data_folder;
use crate::cli::run::Run;
use crate::cli::settings::Settings;
use crate::cli::terminal::progress::Bars;
use crate::cli::terminal::stderr;
use crate::config::Config;
use crate::ops::Stop;
use crate::ops::points::name_matches;
use crate::storage::Storage;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The context of a command.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) settings: Settings,
    /// This invocation of the program.
    pub(crate) run: Run,
    /// The grammar of the command line, for code that explains or parses one.
    pub(crate) grammar: fn() -> clap::Command,
    pub(crate) stop: Stop,
    /// Time limits for libvirt.
    pub(crate) limits: CallLimits,
    pub(crate) monitor: Bars,
    /// The storages of repositories that were opened, by address.
    pub(super) storages: Mutex<HashMap<String, Arc<dyn Storage>>>,
}

impl Context {
    /// Creates the context of a command.
    pub(crate) fn new(global: Global, settings: Settings, run: Run, grammar: fn() -> clap::Command) -> Context {
        let (monitor, stop, storages) =
            (Bars::new(global.quiet, global.progress, &run.id), Stop::of_process(), Mutex::default());
        let configured = &settings.loaded.config.limits;
        let (call, begin) = (configured.libvirt.value().0, configured.backup_begin.value().0);
        let limits = CallLimits::new(call, begin, stop.flag());
        Context { global, settings, run, grammar, stop, limits, monitor, storages }
    }

    /// Opens libvirt. The default is the connection of the command line.
    pub(crate) fn hypervisor(&self, connect: Option<&str>) -> Result<Hypervisor, CliError> {
        let opened = self.open_hypervisor(connect).map_err(CliError::from);
        opened.map_err(|error| match error.code {
            // A user's own libvirt rarely has the machines of the host.
            Code::Connection if !rustix::process::geteuid().is_root() => {
                error.hint("run kvmb as root, or choose a connection that you may use with -c URI")
            }
            _ => error,
        })
    }

    /// Like `hypervisor`, with libvirt's own error.
    pub(crate) fn open_hypervisor(&self, connect: Option<&str>) -> capture::Result<Hypervisor> {
        Hypervisor::open_within(connect.or(self.global.connect.as_deref()), &self.limits)
    }

    /// Prints why there is no output where the user would expect some, and how to continue; silent with `--quiet`.
    pub(crate) fn note(&self, message: &str, hint: &str) {
        if !self.global.quiet {
            stderr::note(message, hint);
        }
    }

    /// Prints how to continue; silent with `--quiet`.
    pub(crate) fn hint(&self, hint: &str) {
        if !self.global.quiet {
            stderr::hint(hint);
        }
    }

    /// Returns how long a command that prints a password may take.
    pub(crate) fn password_limit(&self) -> Duration {
        self.config().limits.password.value().0
    }

    /// Returns the configuration file, for settings without a flag.
    pub(crate) fn config(&self) -> &Config {
        &self.settings.loaded.config
    }

    /// Returns the disks of a machine that the configuration excludes from backups.
    pub(crate) fn excluded_disks(&self, machine: &str) -> Vec<String> {
        let lists = self.config().excluded_disks.iter().filter(|(name, _)| name_matches(name.text(), machine));
        lists.flat_map(|(_, disks)| disks.iter().map(|disk| disk.text().to_owned())).collect()
    }

    /// Opens the folders of captures.
    pub(crate) fn runtime(&self) -> Result<RuntimeDirs, CliError> {
        Ok(RuntimeDirs::open()?.with_limits(self.limits.clone()).with_scratch_folder(data_folder()?.join("scratch")))
    }
}
