//! Resources of a restored definition that this host lacks.
//!
//! libvirt accepts such a definition but refuses to start the machine. Missing resources are therefore reported with a
//! solution before anything is written.

use super::planned::PlannedDisk;
use crate::capture::domain_xml::references::{MachineType, Reference, references};
use crate::capture::domain_xml::source::SecretName;
use crate::capture::pools::VolumePlace;
use crate::capture::{self, Hypervisor};
use crate::ops::points::OpenPoint;
use crate::ops::{Error, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A resource that the machine needs and this host lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// The resource, and where it is expected.
    pub(crate) what: String,
    /// The flag or command that solves the problem.
    pub(crate) solve: String,
    /// The drive, if the resource is its medium.
    pub(crate) medium_of: Option<String>,
    /// Whether libvirt refuses the definition without it.
    pub(crate) prevents_definition: bool,
}

/// Returns what will be missing after the planned disks and files are written.
pub(super) fn missing(
    xml: &str,
    machine: &str,
    point: &OpenPoint,
    disks: &[PlannedDisk],
    written: &BTreeSet<PathBuf>,
    hypervisor: &Hypervisor,
) -> Result<Vec<Missing>> {
    if !hypervisor.is_local() {
        return Ok(Vec::new());
    }
    let host = HostParts { machine, point, written, hypervisor };
    let is_restored = |reference: &Reference| match reference {
        Reference::Disk { disk, .. } | Reference::Volume { disk, .. } => disks.iter().any(|known| known.disk == *disk),
        _ => false,
    };
    let mut missing: Vec<Missing> = Vec::new();
    for reference in references(xml).map_err(capture::Error::from)?.iter().filter(|reference| !is_restored(reference)) {
        match host.look_for(reference)? {
            Some(found) if !missing.contains(&found) => missing.push(found),
            _ => {}
        }
    }
    Ok(missing)
}

/// Refuses a machine type of another family, such as `pc` for a `q35` machine. libvirt would reject the definition, but
/// only after all disks are written.
pub(super) fn refuse_other_family(xml: &str, machine: &str, machine_type: &str) -> Result<()> {
    let references = references(xml).map_err(capture::Error::from)?;
    let family = references.iter().find_map(|reference| match reference {
        Reference::MachineType(kind) => kind.family(),
        _ => None,
    });
    match (family, MachineType::family_of(machine_type)) {
        (Some(family), Some(other)) if family != other => {
            Err(Error::OtherFamily { machine: machine.to_owned(), machine_type: machine_type.to_owned(), family })
        }
        _ => Ok(()),
    }
}

struct HostParts<'a> {
    machine: &'a str,
    point: &'a OpenPoint,
    written: &'a BTreeSet<PathBuf>,
    hypervisor: &'a Hypervisor,
}

impl HostParts<'_> {
    /// How to provide a file that QEMU or libvirt reads.
    fn provide_file(&self, path: &Path, is_firmware: bool) -> String {
        let provide = match is_firmware {
            true => "install the firmware (Debian, Ubuntu: ovmf or qemu-efi-aarch64; Fedora: edk2-ovmf)",
            false => "provide it",
        };
        match self.point.manifest.outside_files.iter().any(|file| Path::new(&file.path) == path) {
            true => format!("{provide}, or restore it from the point: --with-files DIR"),
            false => format!("{provide}, or change the definition afterwards: virsh edit {}", self.machine),
        }
    }

    fn look_for(&self, reference: &Reference) -> Result<Option<Missing>> {
        let lacks = |path: &Path| !path.exists() && !self.written.contains(path);
        let found =
            |what: String, solve: String| Some(Missing { what, solve, medium_of: None, prevents_definition: false });
        Ok(match reference {
            Reference::Emulator(path) if lacks(path) => Some(Missing {
                what: format!("the emulator {}", path.display()),
                solve: match self.hypervisor.own_emulator()? {
                    Some(own) => format!("use the one of this host: --emulator {}", own.display()),
                    None => "install it (Debian, Ubuntu: qemu-system-x86 or that of the machine's architecture)".into(),
                },
                medium_of: None,
                prevents_definition: true,
            }),
            Reference::MachineType(kind) => self.machine_type(kind)?,
            Reference::Medium { disk, path } if lacks(path) => Some(Missing {
                what: format!("the medium {} of drive {disk}", path.display()),
                solve: "provide it, or use --drop-missing-media".into(),
                medium_of: Some(disk.clone()),
                prevents_definition: false,
            }),
            Reference::Disk { disk, path } if lacks(path) => found(
                format!("the image {} of disk {disk}, which is not in the point", path.display()),
                format!("provide it, or remove it afterwards: virsh detach-disk {} {disk} --config", self.machine),
            ),
            Reference::Volume { disk, is_medium, pool, volume } => self.volume(disk, *is_medium, pool, volume)?,
            Reference::File { what, path } if lacks(path) => {
                let is_firmware = *what == "loader";
                found(format!("the {what} {}", path.display()), self.provide_file(path, is_firmware))
            }
            Reference::NvramTemplate { template, variables }
                if lacks(template) && variables.as_deref().is_none_or(lacks) =>
            {
                let what = format!("the template of the firmware variables {}", template.display());
                found(what, self.provide_file(template, true))
            }
            Reference::Folder(path) if lacks(path) => found(
                format!("the shared folder {}", path.display()),
                format!("create it: mkdir -p {}", path.display()),
            ),
            Reference::Network(name) => match self.hypervisor.network_is_active(name)? {
                None => found(
                    format!("the network '{name}'"),
                    format!("define it with 'virsh net-define', or choose another one: --network {name}=NEW"),
                ),
                Some(false) => {
                    found(format!("the network '{name}', which is not started"), format!("virsh net-start {name}"))
                }
                Some(true) => None,
            },
            Reference::Bridge(name) if !has_network_device(name) => {
                found(format!("the bridge {name}"), format!("create it, or choose another one: --bridge {name}=NEW"))
            }
            Reference::NetworkDevice(name) if !has_network_device(name) => {
                found(format!("the network device {name}"), format!("choose another one: --bridge {name}=NEW"))
            }
            Reference::Filter(name) if !self.hypervisor.has_network_filter(name)? => {
                found(format!("the network filter '{name}'"), "define it with 'virsh nwfilter-define'".into())
            }
            Reference::Pci(address) if !Path::new("/sys/bus/pci/devices").join(address).exists() => found(
                format!("the PCI device {address}"),
                format!("remove it from the definition afterwards: virsh edit {}", self.machine),
            ),
            Reference::Usb(device) if !has_usb_device(device) => found(
                format!("the USB device {device}"),
                format!("plug it in, or remove it from the definition afterwards: virsh edit {}", self.machine),
            ),
            Reference::Mdev(uuid) if !Path::new("/sys/bus/mdev/devices").join(uuid).exists() => found(
                format!("the mediated device {uuid}"),
                format!(
                    "create it ('mdevctl start --uuid {uuid}'), or remove it from the definition afterwards: virsh \
                     edit {}",
                    self.machine
                ),
            ),
            Reference::DeviceFile(path) if !path.exists() => found(
                format!("the device {}", path.display()),
                format!("load its driver, or remove it from the definition afterwards: virsh edit {}", self.machine),
            ),
            Reference::Secret(secret) if !self.hypervisor.has_secret(secret)? => found(
                match &secret.name {
                    SecretName::Uuid(uuid) => format!("the secret {uuid}"),
                    SecretName::Usage(usage) => format!("the secret for {usage}"),
                },
                "define it with 'virsh secret-define' and 'virsh secret-set-value'".into(),
            ),
            _ => None,
        })
    }

    fn machine_type(&self, kind: &MachineType) -> Result<Option<Missing>> {
        // A missing emulator is reported separately.
        if kind.emulator.as_ref().is_some_and(|path| !path.exists()) || self.hypervisor.runs(kind)? {
            return Ok(None);
        }
        let family = match kind.family() {
            Some(family) if self.hypervisor.runs(&MachineType { name: family.into(), ..kind.clone() })? => Some(family),
            _ => None,
        };
        let (what, solve) = match family {
            Some(family) => (
                format!("the machine type {}", kind.name),
                format!("use the one of this host: --machine-type {family}"),
            ),
            None => (
                format!("a QEMU that runs the machine type {} with '{}'", kind.name, kind.virt_type),
                "choose another machine type (--machine-type TYPE; 'virsh capabilities' lists them), or write the \
                 definition to a file with --no-define and change it"
                    .into(),
            ),
        };
        Ok(Some(Missing { what, solve, medium_of: None, prevents_definition: true }))
    }

    fn volume(&self, disk: &str, is_medium: bool, pool: &str, volume: &str) -> Result<Option<Missing>> {
        let what = match self.hypervisor.volume_place(pool, volume)? {
            VolumePlace::There(_) => return Ok(None),
            VolumePlace::NoPool => format!("the storage pool '{pool}' of disk {disk}"),
            VolumePlace::PoolNotStarted => format!("the storage pool '{pool}' of disk {disk}, which is not started"),
            VolumePlace::NewFile(_) | VolumePlace::NewDevice(_) => {
                format!("the volume {volume} of storage pool '{pool}' for disk {disk}")
            }
        };
        let solve = match is_medium {
            true => "define and start the pool ('virsh pool-define-as'), or use --drop-missing-media",
            false => "define and start the pool ('virsh pool-define-as', 'virsh pool-start'), and create the volume",
        };
        let medium_of = is_medium.then(|| disk.to_owned());
        Ok(Some(Missing { what, solve: solve.into(), medium_of, prevents_definition: false }))
    }
}

/// Whether a USB device with this vendor and product is connected.
fn has_usb_device(device: &str) -> bool {
    let devices = fs::read_dir("/sys/bus/usb/devices").into_iter().flatten().flatten();
    devices.map(|entry| entry.path()).any(|folder| {
        let number = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default().trim().to_owned();
        format!("{}:{}", number("idVendor"), number("idProduct")) == *device
    })
}

fn has_network_device(name: &str) -> bool {
    !name.contains('/') && Path::new("/sys/class/net").join(name).exists()
}
