//! The user that QEMU runs as, and running programs as that user.
//!
//! libvirt gives the images of a stopped machine back to root with mode 0600, while QEMU runs as its own user. Programs
//! that read these images also run as that user, which network storage may require, with one capability: to read files
//! without permission. `setpriv` of util-linux sets this up.

use std::fs;

use crate::capture::domain_xml::definition::{DefinedDisk, Definition, child, children, parse_owner, parse_xml};
use crate::capture::error::{Error, Result};
use crate::capture::machine::Machine;
use crate::capture::runtime::{our_owner, our_uid};

/// The number of `CAP_DAC_READ_SEARCH` in the kernel.
const DAC_READ_SEARCH: u64 = 2;

/// The user and group that a machine's QEMU runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QemuUser {
    pub(crate) owner: (u32, u32),
}

/// The privileges of a program that runs as QEMU's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// It can read every file, as root can.
    ReadAll,
    /// It has only the permissions of that user.
    None,
}

impl QemuUser {
    /// Returns the user of a machine from the label of the first of these disks that has one, otherwise from its
    /// definition, or from the host. It is always the current user if that is not root, or if libvirt does not change
    /// owners.
    pub(crate) fn of<'a>(
        machine: &Machine,
        definition: &'a Definition,
        disks: impl Iterator<Item = &'a DefinedDisk>,
    ) -> Result<QemuUser> {
        if our_uid() != 0 {
            return Ok(QemuUser { owner: our_owner() });
        }
        let labels = disks.filter_map(|disk| disk.dac_label.as_deref());
        if let Some(label) = labels.chain(definition.dac_label.as_deref()).next() {
            let owner = parse_owner(label)
                .or_else(|| named_owner(label))
                .ok_or_else(|| Error::UnknownOwner { machine: machine.name().to_owned(), label: label.to_owned() })?;
            return Ok(QemuUser { owner });
        }
        let action = || "query the capabilities of the host".to_owned();
        let capabilities = machine.call(action, |domain| domain.connect()?.capabilities())?;
        Ok(QemuUser { owner: base_owner(&capabilities)?.unwrap_or_else(our_owner) })
    }

    /// This process's own user.
    pub(crate) fn ourselves() -> QemuUser {
        QemuUser { owner: our_owner() }
    }

    /// The words to put before a command so that it runs as this user. Empty if it is the current user.
    pub(crate) fn launcher(self, privilege: Privilege) -> Vec<String> {
        if self.owner.0 == our_uid() {
            return Vec::new();
        }
        let capabilities = match privilege {
            Privilege::ReadAll if can_pass_on_reading() => "-all,+dac_read_search",
            _ => "-all",
        };
        let groups = if is_in_passwd(self.owner.0) { "--init-groups" } else { "--clear-groups" };
        vec![
            "setpriv".to_owned(),
            format!("--reuid={}", self.owner.0),
            format!("--regid={}", self.owner.1),
            groups.to_owned(),
            "--no-new-privs".to_owned(),
            format!("--inh-caps={capabilities}"),
            format!("--ambient-caps={capabilities}"),
            format!("--bounding-set={capabilities}"),
            "--".to_owned(),
        ]
    }
}

/// Returns QEMU's user and group from the host's capabilities.
pub(crate) fn base_owner(capabilities: &str) -> Result<Option<(u32, u32)>> {
    let document = parse_xml(capabilities)?;
    let mut models = child(document.root_element(), "host").into_iter().flat_map(|host| children(host, "secmodel"));
    let dac = models.find(|model| child(*model, "model").and_then(|name| name.text()) == Some("dac"));
    let mut labels = dac.into_iter().flat_map(|dac| children(dac, "baselabel")).filter_map(|label| label.text());
    Ok(labels.find_map(parse_owner))
}

/// Whether this process has the capability itself, which a container may lack.
fn can_pass_on_reading() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    permitted
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|all| all >> DAC_READ_SEARCH & 1 == 1)
}

/// Whether the user has a name, by which its groups are looked up.
fn is_in_passwd(user: u32) -> bool {
    uzers::get_user_by_uid(user).is_some()
}

/// Parses a user and a group of this host, by name or number: `qemu:kvm` or `+107:+107`.
pub(crate) fn named_owner(label: &str) -> Option<(u32, u32)> {
    let (user, group) = label.split_once(':')?;
    let user = number(user).or_else(|| Some(uzers::get_user_by_name(user)?.uid()))?;
    let group = number(group).or_else(|| Some(uzers::get_group_by_name(group)?.gid()))?;
    Some((user, group))
}

fn number(label: &str) -> Option<u32> {
    label.strip_prefix('+').unwrap_or(label).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_parsed_from_names_ids_and_capabilities() {
        assert_eq!(named_owner("root:root"), Some((0, 0)));
        assert_eq!(named_owner("root:+107"), Some((0, 107)));
        assert_eq!(named_owner("no-such-user:root"), None);
        let capabilities = "<capabilities><host><secmodel><model>apparmor</model></secmodel><secmodel>\
                            <model>dac</model><baselabel type='kvm'>+64055:+109</baselabel></secmodel></host>\
                            </capabilities>";
        assert_eq!(base_owner(capabilities).unwrap(), Some((64055, 109)));
        assert_eq!(base_owner("<capabilities/>").unwrap(), None);
    }

    #[test]
    fn own_user_needs_no_launcher_and_other_users_lose_capabilities() {
        assert!(QemuUser::ourselves().launcher(Privilege::ReadAll).is_empty());
        let other = QemuUser { owner: (our_uid() + 64055, 1) };
        assert!(other.launcher(Privilege::None).contains(&"--bounding-set=-all".to_owned()));
    }
}
