//! `kvmb ui install` and `kvmb ui remove`: a console that systemd starts on demand.

use super::shared::{DEFAULT_ADDRESS, LINK_SOCKET, arguments, not_loopback};
use crate::cli::commands::schedule::{own_path, text};
use crate::cli::context::Context;
use crate::cli::failure::CliError;
use crate::cli::session::Session;
use crate::record::{Action, Record};
use crate::schedule::units::{self, quoted, quoted_setting};
use serde_json::{Map, json};
use std::fmt::Write;
use std::net::SocketAddr;

const SOCKET: &str = "kvmb-ui.socket";
const SERVICE: &str = "kvmb-ui.service";

/// Install the console as a systemd service that starts when it is opened.
///
/// Writes and enables kvmb-ui.socket and kvmb-ui.service. The console runs as root and ends when nobody uses it; the
/// next visit starts it again. 'kvmb ui --url' prints a link, which only root can get.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb ui install
  kvmb ui install --dry-run
  kvmb ui install --read-only
  kvmb ui --url")]
pub(super) struct UnitInstallArgs {
    /// The loopback address to listen on.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = DEFAULT_ADDRESS)]
    listen: SocketAddr,

    /// Show everything and change nothing.
    #[arg(long)]
    read_only: bool,

    /// Show the units without installing them.
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// Remove the systemd service of the console.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kvmb ui remove
  kvmb ui remove --dry-run")]
pub(super) struct UnitRemoveArgs {
    /// Show what would be removed without removing it.
    #[arg(short = 'n', long)]
    dry_run: bool,
}

impl UnitInstallArgs {
    pub(super) fn run(self, context: &Context, session: &mut Session) -> Result<(), CliError> {
        if !self.listen.ip().is_loopback() {
            return Err(not_loopback(self.listen));
        }
        let (socket, service) = (self.socket(), self.service(context)?);
        let texts = [(SOCKET, socket.as_str()), (SERVICE, service.as_str())];
        let mut is_new = !units::is_enabled(SOCKET, "sockets.target");
        let mut changes = Vec::new();
        for (unit, text) in texts {
            let differs = units::read(unit)?.as_deref() != Some(text);
            is_new |= differs;
            changes.push(differs);
        }
        units::check_own(&[SOCKET, SERVICE])?;
        if is_new && !self.dry_run {
            units::install(&texts, SOCKET)?;
        }
        for ((unit, text), differs) in texts.into_iter().zip(changes) {
            let changed = differs || (is_new && unit == SOCKET);
            let reason = match (changed, self.dry_run) {
                (false, _) => "already installed",
                (true, false) => "installed",
                (true, true) => "would be installed",
            };
            session.done(action(unit, changed, reason, self.dry_run, Some(text)));
        }
        if !self.dry_run {
            context.hint("run 'kvmb ui --url' for a link");
        }
        Ok(())
    }

    fn socket(&self) -> String {
        format!(
            "# Created by 'kvmb ui install', removed by 'kvmb ui remove'.\n\
             [Unit]\n\
             Description=Web console for the backup of virtual machines\n\
             Documentation=https://github.com/kvmb/kvmb\n\
             \n\
             [Socket]\n\
             ListenStream={}\n\
             # Prints links to the console; only root may open it.\n\
             ListenStream={LINK_SOCKET}\n\
             SocketMode=0600\n\
             RemoveOnStop=yes\n\
             \n\
             [Install]\n\
             WantedBy=sockets.target\n",
            self.listen
        )
    }

    fn service(&self, context: &Context) -> Result<String, CliError> {
        let mut words = vec![text(&own_path()?)?];
        words.extend(arguments(context));
        words.extend(["ui".to_owned(), "--system".to_owned()]);
        words.extend(self.read_only.then(|| "--read-only".to_owned()));
        let command = words.iter().map(|word| quoted(word)).collect::<Result<Vec<_>, _>>()?.join(" ");
        let mut environment = String::new();
        // systemd does not set HOME for system services. SSH keys and other files are below it.
        for name in ["HOME", "KVMB_DATA_DIR", "KVMB_CACHE_DIR", "KVMB_RUNTIME_DIR", "KVMB_SCRATCH"] {
            if let Some(value) = crate::cli::terminal::secret::variable(name) {
                let _ = writeln!(environment, "Environment={}", quoted_setting(&format!("{name}={value}"))?);
            }
        }
        Ok(format!(
            "# Created by 'kvmb ui install', removed by 'kvmb ui remove'.\n\
             # Put your own settings into a drop-in: systemctl edit {SERVICE}\n\
             [Unit]\n\
             Description=Web console for the backup of virtual machines\n\
             Documentation=https://github.com/kvmb/kvmb\n\
             Requires={SOCKET}\n\
             After={SOCKET} libvirtd.service virtqemud.service\n\
             \n\
             [Service]\n\
             ExecStart={command}\n\
             {environment}\
             # Jobs that it started continue when it stops.\n\
             KillMode=process\n\
             # It changes the configuration and schedules and restores images, so files stay writable.\n\
             LockPersonality=yes\n\
             ProtectClock=yes\n\
             ProtectHostname=yes\n\
             ProtectKernelLogs=yes\n\
             ProtectKernelModules=yes\n\
             RestrictRealtime=yes\n\
             SystemCallArchitectures=native\n"
        ))
    }
}

impl UnitRemoveArgs {
    pub(super) fn run(self, session: &mut Session) -> Result<(), CliError> {
        units::check_own(&[SOCKET, SERVICE])?;
        let mut is_there = [false; 2];
        for (found, unit) in is_there.iter_mut().zip([SOCKET, SERVICE]) {
            *found = units::read(unit)?.is_some();
        }
        if is_there.contains(&true) && !self.dry_run {
            units::remove(&[SOCKET, SERVICE], SOCKET)?;
        }
        for (found, unit) in is_there.into_iter().zip([SOCKET, SERVICE]) {
            let reason = match (found, self.dry_run) {
                (false, _) => "not installed",
                (true, false) => "removed",
                (true, true) => "would be removed",
            };
            session.done(action(unit, found, reason, self.dry_run, None));
        }
        Ok(())
    }
}

fn action(unit: &str, changed: bool, reason: &str, dry_run: bool, entry: Option<&str>) -> Record {
    let extra = entry.map(|entry| Map::from_iter([("entry".to_owned(), json!(entry))])).unwrap_or_default();
    let (action, target, reason) = ("ui".to_owned(), units::path_of(unit), reason.to_owned());
    Record::Action(Action { action, target, changed, reason, dry_run, extra })
}
