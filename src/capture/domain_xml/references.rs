//! The resources of its host that a definition references, so that another host can report which ones it lacks (pure).

use std::path::PathBuf;

use roxmltree::Node;

use super::definition::{DefinedDisk, Definition, Device, DiskSource, Result, child, parse_document};
use super::outside_files::{OutsideKind, mentions};
use super::source::{SecretName, SecretRef, SecretUsage};

/// A resource outside the definition that the machine needs to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The emulator. Without it, libvirt refuses the definition.
    Emulator(PathBuf),
    /// A kind of machine that QEMU must support; otherwise libvirt refuses the definition.
    MachineType(MachineType),
    /// The medium of a CD or floppy drive.
    Medium {
        /// The target of the drive.
        disk: String,
        /// The image or device.
        path: PathBuf,
    },
    /// The image or device of a disk.
    Disk {
        /// The target of the disk.
        disk: String,
        /// The image or device.
        path: PathBuf,
    },
    /// A volume of a storage pool.
    Volume {
        /// The target of the disk or drive.
        disk: String,
        /// Whether it is a medium of a drive.
        is_medium: bool,
        /// The pool.
        pool: String,
        /// The volume.
        volume: String,
    },
    /// A file that QEMU reads: loader, kernel, option ROM …
    File {
        /// What the file is.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
    },
    /// The file from which libvirt creates missing firmware variables.
    NvramTemplate {
        /// The template.
        template: PathBuf,
        /// The variables, if their path is known.
        variables: Option<PathBuf>,
    },
    /// A folder of the host that is shared with the guest.
    Folder(PathBuf),
    /// A libvirt network.
    Network(String),
    /// A bridge.
    Bridge(String),
    /// A network device of the host.
    NetworkDevice(String),
    /// A libvirt network filter.
    Filter(String),
    /// A PCI device: `0000:01:00.0`.
    Pci(String),
    /// A USB device by vendor and product: `1050:0407`.
    Usb(String),
    /// A mediated device, by its UUID.
    Mdev(String),
    /// A device file that QEMU opens, such as an input device, a TPM or a serial port.
    DeviceFile(PathBuf),
    /// A libvirt secret, by its UUID or by its usage (`volume:NAME`).
    Secret(SecretRef),
}

/// The kind of machine: a machine type of QEMU, emulated or with hardware virtualization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineType {
    /// The emulator; `None` leaves the choice to libvirt.
    pub emulator: Option<PathBuf>,
    /// The architecture, such as `x86_64`.
    pub arch: Option<String>,
    /// The name of the machine type, such as `pc-q35-9.2`.
    pub name: String,
    /// The virtualization type: `kvm`, `qemu`, ….
    pub virt_type: String,
}

impl MachineType {
    fn of(domain: Node) -> Option<MachineType> {
        let kind = child(child(domain, "os")?, "type")?;
        Some(MachineType {
            emulator: child(domain, "devices").and_then(|devices| text(devices, "emulator")),
            arch: kind.attribute("arch").map(str::to_owned),
            name: kind.attribute("machine")?.to_owned(),
            virt_type: domain.attribute("type")?.to_owned(),
        })
    }

    /// The alias of the newest machine type of the same family, which does not depend on a distribution or version.
    /// `None` for an unknown family.
    pub fn family(&self) -> Option<&'static str> {
        MachineType::family_of(&self.name)
    }

    /// The family of the machine type with this name, as [`MachineType::family`].
    pub(crate) fn family_of(name: &str) -> Option<&'static str> {
        let families = [
            ("pc-q35-", "q35"),
            ("pc-", "pc"),
            ("rhel", "pc"),
            ("virt-", "virt"),
            ("s390-ccw-virtio-", "s390-ccw-virtio"),
            ("pseries-", "pseries"),
        ];
        let is_of = |(prefix, family): &&(&str, &str)| name.starts_with(prefix) || name == *family;
        families.iter().find(is_of).map(|(_, family)| *family)
    }
}

/// Returns all references of a definition. A medium or disk without which libvirt starts the machine
/// (`startupPolicy='optional'`) is not included.
pub fn references(xml: &str) -> Result<Vec<Reference>> {
    let document = parse_document(xml)?;
    let domain = document.root_element();
    let definition = Definition::parse(xml)?;
    let mut found = Vec::new();
    for (path, what) in [(&definition.kernel, "kernel"), (&definition.initrd, "initrd")] {
        found.extend(path.iter().map(|path| Reference::File { what, path: path.clone() }));
    }
    let files = mentions(domain).into_iter().filter(|mention| mention.kind.reason_not_stored().is_none());
    found.extend(files.map(|file| match file.kind {
        OutsideKind::NvramTemplate => {
            let source = definition.nvram.as_ref().and_then(|nvram| nvram.source.as_ref());
            Reference::NvramTemplate {
                template: file.path,
                variables: source.and_then(DiskSource::path).map(PathBuf::from),
            }
        }
        kind => Reference::File { what: kind.words(), path: file.path },
    }));
    let Some(devices) = child(domain, "devices") else { return Ok(found) };
    found.extend(text(devices, "emulator").map(Reference::Emulator));
    found.extend(MachineType::of(domain).map(Reference::MachineType));
    for disk in definition.disks.iter().filter(|disk| !disk.is_optional) {
        let is_medium = matches!(disk.device, Device::Cdrom | Device::Floppy);
        let name = disk.target.clone();
        found.extend(secrets_of(disk).map(Reference::Secret));
        found.extend(match disk.source.clone() {
            DiskSource::File { path } | DiskSource::Block { path } if is_medium => {
                Some(Reference::Medium { disk: name, path })
            }
            DiskSource::File { path } | DiskSource::Block { path } => Some(Reference::Disk { disk: name, path }),
            DiskSource::Dir { path } => Some(Reference::Folder(path)),
            DiskSource::Volume { pool, volume } => Some(Reference::Volume { disk: name, is_medium, pool, volume }),
            _ => None,
        });
    }
    devices.children().filter(Node::is_element).for_each(|device| device_references(device, &mut found));
    Ok(found)
}

/// The secrets that are needed to open a disk.
fn secrets_of(disk: &DefinedDisk) -> impl Iterator<Item = SecretRef> {
    let login = match &disk.source {
        DiskSource::Network { options, .. } => options.auth.as_ref().and_then(|auth| auth.secret.clone()),
        _ => None,
    };
    let key = disk.encryption.as_ref().and_then(|encryption| encryption.secret.clone());
    login.into_iter().chain(key)
}

fn device_references(device: Node, found: &mut Vec<Reference>) {
    let source = child(device, "source");
    let attribute = |name: &str| source.and_then(|source| source.attribute(name)).map(str::to_owned);
    match device.tag_name().name() {
        "interface" => {
            found.extend(match device.attribute("type").unwrap_or_default() {
                "network" => attribute("network").map(Reference::Network),
                "bridge" => attribute("bridge").map(Reference::Bridge),
                "direct" => attribute("dev").map(Reference::NetworkDevice),
                _ => None,
            });
            let filter = child(device, "filterref").and_then(|filter| filter.attribute("filter"));
            found.extend(filter.map(|filter| Reference::Filter(filter.to_owned())));
        }
        "filesystem" => found.extend(attribute("dir").map(|path| Reference::Folder(path.into()))),
        "hostdev" => host_device(device, found),
        "vsock" => found.push(Reference::DeviceFile("/dev/vhost-vsock".into())),
        "input" => {
            let path = attribute("evdev").or_else(|| attribute("dev"));
            found.extend(path.map(|path| Reference::DeviceFile(path.into())));
        }
        "tpm" => {
            let backend = child(device, "backend");
            let path = backend.and_then(|backend| child(backend, "device")?.attribute("path"));
            found.extend(path.map(|path| Reference::DeviceFile(path.into())));
            let secret = backend.and_then(|backend| child(backend, "encryption")?.attribute("secret"));
            found.extend(secret.map(|uuid| {
                Reference::Secret(SecretRef { usage: SecretUsage::Vtpm, name: SecretName::Uuid(uuid.to_owned()) })
            }));
        }
        "serial" | "parallel" | "console" | "channel" if device.attribute("type") == Some("dev") => {
            found.extend(attribute("path").map(|path| Reference::DeviceFile(path.into())));
        }
        _ => {}
    }
}

fn host_device(device: Node, found: &mut Vec<Reference>) {
    let Some(source) = child(device, "source") else { return };
    let address = child(source, "address");
    let number =
        |name: &str| child(source, name)?.attribute("id").map(|id| id.trim_start_matches("0x").to_ascii_lowercase());
    // libvirt starts the machine without an optional device.
    let is_optional = source.attribute("startupPolicy") == Some("optional");
    found.extend(match device.attribute("type") {
        Some("pci") => address.and_then(pci_address).map(Reference::Pci),
        Some("mdev") => address.and_then(|at| at.attribute("uuid")).map(|uuid| Reference::Mdev(uuid.to_owned())),
        Some("usb") if !is_optional => number("vendor")
            .zip(number("product"))
            .map(|(vendor, product)| Reference::Usb(format!("{vendor}:{product}"))),
        _ => None,
    });
}

/// Formats a PCI address as the kernel does.
fn pci_address(address: Node) -> Option<String> {
    let number = |name: &str| u32::from_str_radix(address.attribute(name)?.trim_start_matches("0x"), 16).ok();
    let domain = number("domain").unwrap_or(0);
    Some(format!("{domain:04x}:{:02x}:{:02x}.{:x}", number("bus")?, number("slot")?, number("function")?))
}

fn text(node: Node, name: &str) -> Option<PathBuf> {
    let text = child(node, name)?.text()?.trim();
    // libvirt knows some loaders by a plain name instead of a path.
    text.starts_with('/').then(|| PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_host_devices_and_secrets_are_found() {
        let xml = "<domain type='kvm'><name>vm</name><devices>\
            <hostdev mode='subsystem' type='usb'><source><vendor id='0x1050'/><product id='0x04A7'/></source></hostdev>\
            <hostdev mode='subsystem' type='usb'><source startupPolicy='optional'><vendor id='0x1'/><product id='0x2'/>\
            </source></hostdev>\
            <hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='c2177883'/></source>\
            </hostdev><input type='evdev'><source dev='/dev/input/event99'/></input>\
            <disk type='network' device='disk'><source protocol='rbd' name='p/i'><auth username='a'>\
            <secret type='ceph' usage='client.a'/></auth></source><target dev='vda'/></disk>\
            <tpm model='tpm-crb'><backend type='emulator'><encryption secret='7b2a'/></backend></tpm></devices>\
            </domain>";
        let secret = |usage, name| Reference::Secret(SecretRef { usage, name });
        let expected = [
            secret(SecretUsage::Ceph, SecretName::Usage("client.a".into())),
            Reference::Usb("1050:04a7".into()),
            Reference::Mdev("c2177883".into()),
            Reference::DeviceFile("/dev/input/event99".into()),
            secret(SecretUsage::Vtpm, SecretName::Uuid("7b2a".into())),
        ];
        assert_eq!(references(xml).unwrap(), expected);
    }
}
