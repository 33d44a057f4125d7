//! What a definition refers to on its host, so that another host can say what it lacks (pure).

use std::path::PathBuf;

use roxmltree::Node;

use super::definition::{Definition, Device, DiskSource, Result, child, children, parse_document};

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
    if let Some(os) = child(domain, "os") {
        let files = [("loader", "loader"), ("kernel", "kernel"), ("initrd", "initrd"), ("dtb", "device tree")];
        for (name, what) in files {
            found.extend(text(os, name).map(|path| Reference::File { what, path }));
        }
    }
    let tables =
        child(domain, "features").into_iter().chain(child(domain, "os")).filter_map(|node| child(node, "acpi"));
    for path in tables.filter_map(|acpi| text(acpi, "table")) {
        found.push(Reference::File { what: "ACPI table", path });
    }
    let entries = children(domain, "sysinfo").flat_map(|sysinfo| children(sysinfo, "entry"));
    for path in entries.filter_map(|entry| entry.attribute("file")) {
        found.push(Reference::File { what: "fw_cfg file", path: path.into() });
    }
    let Some(devices) = child(domain, "devices") else { return Ok(found) };
    found.extend(text(devices, "emulator").map(Reference::Emulator));
    let optional: Vec<&str> = children(devices, "disk").filter(is_optional).filter_map(target_of).collect();
    for disk in definition.disks.iter().filter(|disk| !optional.contains(&&*disk.target)) {
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
    if let Some(path) = child(device, "rom").and_then(|rom| rom.attribute("file")) {
        found.push(Reference::File { what: "option ROM", path: path.into() });
    }
}

/// As the kernel writes it.
fn pci_address(address: Node) -> Option<String> {
    let number = |name: &str| u32::from_str_radix(address.attribute(name)?.trim_start_matches("0x"), 16).ok();
    let domain = number("domain").unwrap_or(0);
    Some(format!("{domain:04x}:{:02x}:{:02x}.{:x}", number("bus")?, number("slot")?, number("function")?))
}

fn is_optional(disk: &Node) -> bool {
    child(*disk, "source").and_then(|source| source.attribute("startupPolicy")) == Some("optional")
}

fn target_of<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    child(disk, "target")?.attribute("dev")
}

fn text(node: Node, name: &str) -> Option<PathBuf> {
    let text = child(node, name)?.text()?.trim();
    // libvirt knows some loaders by a plain name.
    text.starts_with('/').then(|| PathBuf::from(text))
}
