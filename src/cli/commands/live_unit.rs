//! The systemd unit that keeps the point of a live restore available, and continues the restore after a reboot.

use super::schedule::{environment, own_path};
use crate::cli::failure::CliError;
use crate::cli::terminal::secret::variable;
use crate::ops::guard::SECRETS;
use crate::ops::restore::live::supervisor::HostService;
use crate::schedule::units::{self, quoted, quoted_setting};
use crate::schedule::{self, ScheduleLocation};
use std::path::{Path, PathBuf};

/// Settings for the units of live restores.
#[derive(Debug)]
pub(super) struct LiveUnit {
    program: PathBuf,
    environment: Vec<(String, String)>,
}

impl LiveUnit {
    pub(super) fn new() -> Result<LiveUnit, CliError> {
        Ok(LiveUnit { program: own_path()?, environment: environment(ScheduleLocation::Systemd)? })
    }
}

impl HostService for LiveUnit {
    /// Installs the unit. Returns false if that is not possible: machines of the embedded driver belong to a single
    /// process, and a unit does not have secrets from environment variables.
    fn install(&self, machine: &str, uuid: &str, connect: &str) -> Result<bool, String> {
        let has_secret = SECRETS.into_iter().any(|name| variable(name).is_some());
        let is_of_system = rustix::process::geteuid().is_root() && !connect.starts_with("qemu:///embed");
        if !units::is_running() || !is_of_system || has_secret {
            return Ok(false);
        }
        let unit = unit_name(uuid);
        let text = unit_text(machine, uuid, &self.program, &self.environment);
        let installed = text.and_then(|text| units::install(&[(&unit, &text)], &unit));
        installed.map(|()| true).map_err(|error| error.to_string())
    }

    fn remove(&self, uuid: &str) -> Result<(), String> {
        let unit = unit_name(uuid);
        let removed = match units::read(&unit) {
            Ok(Some(_)) => units::remove(&[&unit], &unit),
            read => read.map(drop),
        };
        removed.map_err(|error| error.to_string())
    }
}

fn unit_name(uuid: &str) -> String {
    format!("kvmb-live-{uuid}.service")
}

fn unit_text(
    machine: &str,
    uuid: &str,
    program: &Path,
    environment: &[(String, String)],
) -> Result<String, schedule::Error> {
    let settings = environment.iter().map(|(name, value)| quoted_setting(&format!("{name}={value}")));
    let settings: Vec<String> = settings.collect::<Result<_, _>>()?;
    let environment: String = settings.iter().map(|setting| format!("Environment={setting}\n")).collect();
    Ok(format!(
        "# Created by 'kvmb restore --live', removed when all data is on the disks of this host.\n\
         [Unit]\n\
         Description=Live restore of the virtual machine {}\n\
         Documentation=https://github.com/kvmb/kvmb\n\
         Wants=network-online.target\n\
         After=network-online.target libvirtd.service virtqemud.service\n\
         \n\
         [Service]\n\
         Type=exec\n\
         ExecStart={} guard --live {uuid}\n\
         {environment}\
         StandardOutput=null\n\
         Restart=on-failure\n\
         RestartSec=30\n\
         # The server of the point keeps running when this process exits: a machine runs on it.\n\
         KillMode=process\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        machine.replace('%', "%%").escape_debug(),
        quoted(&program.to_string_lossy())?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    #[test]
    fn live_unit_passes_systemd_verification() {
        let environment = [("HOME".to_owned(), "/root".to_owned()), ("KVMB_DATA_DIR".to_owned(), "/a b%".to_owned())];
        let uuid = "00000000-0000-4000-8000-000000000001";
        let text = unit_text("odd 50%\n", uuid, Path::new("/bin/true"), &environment).unwrap();
        assert!(text.contains(&format!("ExecStart=/bin/true guard --live {uuid}\n")), "{text}");
        assert!(text.contains("Environment=\"KVMB_DATA_DIR=/a b%%\"\n"), "{text}");
        assert!(text.contains("virtual machine odd 50%%\\n\n"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(unit_name(uuid));
        fs::write(&path, text).unwrap();
        let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(verified.status.success() && !said.contains("kvmb-live"), "{said}");
    }
}
