//! What a definition refers to on its host, so that another host can say what it lacks (pure).

use std::path::PathBuf;

use roxmltree::Node;

use super::definition::{Definition, Device, DiskSource, Result, child, parse_document};
use super::outside_files::mentions;

/// Something outside of the definition that the machine needs to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The QEMU that runs it: without it libvirt does not even take the definition.
    Emulator(PathBuf),
    /// The medium of a CD or floppy drive.
    Medium {
        /// The drive.
        disk: String,
        /// The image or device.
        path: PathBuf,
    },
    /// The image or device of a disk.
    Disk {
        /// The disk.
        disk: String,
        /// The image or device.
        path: PathBuf,
    },
    /// A volume of a storage pool.
    Volume {
        /// The disk or drive.
        disk: String,
        /// Whether the disk is a drive for media.
        is_medium: bool,
        /// The pool.
        pool: String,
        /// The volume.
        volume: String,
    },
    /// A file that QEMU reads: loader, kernel, option ROM …
    File {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A folder that the guest gets.
    Folder(PathBuf),
    /// A network of libvirt's.
    Network(String),
    /// A bridge.
    Bridge(String),
    /// A network device of the host.
    NetworkDevice(String),
    /// A filter of network traffic.
    Filter(String),
    /// A PCI device, as `0000:01:00.0`.
    Pci(String),
}

/// All that a definition refers to. A medium or disk that libvirt starts the machine without (`startupPolicy='optional'`) is
/// not needed.
pub fn references(xml: &str) -> Result<Vec<Reference>> {
    let document = parse_document(xml)?;
    let domain = document.root_element();
    let definition = Definition::parse(xml)?;
    let mut found = Vec::new();
    for (path, what) in [(&definition.kernel, "kernel"), (&definition.initrd, "initrd")] {
        found.extend(path.iter().map(|path| Reference::File { what, path: path.clone() }));
    }
    let files = mentions(domain).into_iter().filter(|mention| mention.kind.is_stored());
    found.extend(files.map(|file| Reference::File { what: file.kind.words(), path: file.path }));
    let Some(devices) = child(domain, "devices") else { return Ok(found) };
    found.extend(text(devices, "emulator").map(Reference::Emulator));
    for disk in definition.disks.iter().filter(|disk| !disk.is_optional) {
        let is_medium = matches!(disk.device, Device::Cdrom | Device::Floppy);
        let name = disk.target.clone();
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
        "hostdev" if device.attribute("type") == Some("pci") => {
            found.extend(source.and_then(|source| child(source, "address")).and_then(pci_address).map(Reference::Pci));
        }
        _ => {}
    }
}

/// As the kernel writes it.
fn pci_address(address: Node) -> Option<String> {
    let number = |name: &str| u32::from_str_radix(address.attribute(name)?.trim_start_matches("0x"), 16).ok();
    let domain = number("domain").unwrap_or(0);
    Some(format!("{domain:04x}:{:02x}:{:02x}.{:x}", number("bus")?, number("slot")?, number("function")?))
}

fn text(node: Node, name: &str) -> Option<PathBuf> {
    let text = child(node, name)?.text()?.trim();
    // libvirt knows some loaders by a plain name.
    text.starts_with('/').then(|| PathBuf::from(text))
}
