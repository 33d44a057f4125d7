//! Changes a machine's definition for a restore.
//!
//! The changes are pure text replacements at the positions that the parser found. Everything else is preserved byte for
//! byte: comments, metadata of other tools, unknown elements. An inactive definition without changes stays identical.
//! Elements that only a running machine has are removed from a live definition.
//!
//! | module | subject |
//! | --- | --- |
//! | [`changes`] | the requested changes |
//! | `copy` | what a copy must not share with the original |
//! | `files` | files in the definition that have moved |
//! | `hypervisor` | another QEMU or machine type |
//! | [`isolated`] | a machine isolated for a drill |
//! | `live` | elements that only the definition of a running machine has |
//! | `networks` | other names of networks and bridges on this host |
//! | `qemu_arguments` | QEMU arguments that a copy must not share |
//! | [`served`] | disks that are overlays of a served point |
//! | `splices` | replacing parts of an XML text |

pub(crate) mod changes;
mod copy;
mod files;
mod hypervisor;
pub mod isolated;
mod live;
mod networks;
mod qemu_arguments;
pub(crate) mod served;
mod splices;

use roxmltree::Node;

pub use changes::{Changes, NewDisk, NewDiskKind};

use super::definition::{Definition, DefinitionError, Result, child, children, parse_document};
use crate::capture::domain_xml::xml::escape;
use splices::{Splices, children_named, element, path_text};

/// A definition after its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The definition.
    pub xml: String,
    /// Notes on parts of the original that a copy lacks or changes; one sentence each.
    pub notes: Vec<String>,
}

/// Applies the changes to a definition.
pub fn rewrite(xml: &str, changes: &Changes) -> Result<String> {
    Ok(rewrite_with_notes(xml, changes)?.xml)
}

/// The same as [`rewrite`], but also returns notes on the parts of the original that a copy lacks.
pub fn rewrite_with_notes(xml: &str, changes: &Changes) -> Result<Rewritten> {
    // Errors of the definition itself are reported before it is changed.
    let before = Definition::parse(xml)?;
    let named = changes.disks.keys().chain(&changes.drop_disks);
    if let Some(missing) = named.into_iter().find(|&name| before.disk(name).is_none()) {
        return Err(DefinitionError::NoSuchDisk(missing.clone()));
    }
    let document = parse_document(xml)?;
    let domain = document.root_element();
    let mut splices = Splices::new(xml);
    identity(&mut splices, domain, changes);
    firmware(&mut splices, domain, changes)?;
    files::move_files(&mut splices, domain, changes)?;
    disks(&mut splices, domain, changes)?;
    if changes.new_macs {
        addresses(&mut splices, domain);
    }
    hypervisor::replace(&mut splices, domain, changes)?;
    networks::rename(&mut splices, domain, changes);
    let notes = match changes.own_resources {
        true => copy::own_resources(&mut splices, domain, changes),
        false => Vec::new(),
    };
    if domain.attribute("id").is_some() {
        live::take_out(&mut splices, domain);
    }
    let xml = splices.apply();
    check(&xml, changes)?;
    Ok(Rewritten { xml, notes })
}

/// Parses the result and checks that it contains the changes.
fn check(xml: &str, changes: &Changes) -> Result<()> {
    let after = Definition::parse(xml)?;
    let wrong = |what| Err(DefinitionError::BadValue { what, value: "after the change".to_owned() });
    // Parsing trims a name. Names with surrounding blanks are refused, because libvirt would not keep them.
    if changes.name.as_ref().is_some_and(|name| after.name != *name) {
        return wrong("the name");
    }
    for (target, new) in &changes.disks {
        let disk = after.disk(target);
        if !changes.unmoved.contains(target) && disk.and_then(|disk| disk.path()) != Some(&new.path) {
            return wrong("a disk's path");
        }
    }
    Ok(())
}

fn identity(splices: &mut Splices, domain: Node, changes: &Changes) {
    let name = child(domain, "name");
    if let (Some(node), Some(new)) = (name, &changes.name) {
        splices.replace(node.range(), element("name", new));
    }
    let Some(new) = &changes.uuid else { return };
    match (child(domain, "uuid"), name) {
        (Some(node), _) => splices.replace(node.range(), element("uuid", new)),
        (None, Some(name)) => splices.insert_after(name, &element("uuid", new)),
        (None, None) => {}
    }
    if let Some(genid) = child(domain, "genid") {
        let fresh = uuid::Uuid::new_v4().to_string();
        splices.replace(genid.range(), element("genid", &fresh));
    }
    // libvirt requires that a UUID in the SMBIOS data is the machine's. OpenStack also uses it as the serial number, by
    // which cloud-init identifies machines.
    let old = child(domain, "uuid").and_then(|uuid| uuid.text()).unwrap_or_default().trim();
    let entries = children(domain, "sysinfo")
        .flat_map(|sysinfo| children(sysinfo, "system"))
        .flat_map(|system| children(system, "entry"));
    for entry in entries {
        let name = entry.attribute("name").unwrap_or_default();
        let is_old = !old.is_empty() && entry.text().is_some_and(|text| text.trim().eq_ignore_ascii_case(old));
        if name == "uuid" || is_old {
            splices.replace(entry.range(), format!("<entry name='{}'>{}</entry>", escape(name), escape(new)));
        }
    }
}

/// Sets new MAC addresses for all interfaces.
fn addresses(splices: &mut Splices, domain: Node) {
    let interfaces = child(domain, "devices").into_iter().flat_map(|devices| children(devices, "interface"));
    for mac in interfaces.filter_map(|interface| child(interface, "mac")) {
        splices.set_attribute(mac, "address", &random_mac());
    }
}

/// A locally administered address with the prefix that libvirt uses for QEMU's interfaces.
fn random_mac() -> String {
    let [a, b, c]: [u8; 3] = rand::random();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

fn firmware(splices: &mut Splices, domain: Node, changes: &Changes) -> Result<()> {
    if let Some(os) = child(domain, "os") {
        for (name, new) in [("kernel", &changes.kernel), ("initrd", &changes.initrd)] {
            if let (Some(node), Some(path)) = (child(os, name), new) {
                splices.replace(node.range(), element(name, path_text(path)?));
            }
        }
        if let (Some(node), Some(path)) = (child(os, "nvram"), &changes.nvram) {
            let kept: String = node
                .attributes()
                .filter(|attribute| attribute.name() != "type")
                .map(|attribute| format!(" {}", &splices.xml[attribute.range()]))
                .collect();
            let text = format!("<nvram{kept}>{}</nvram>", escape(path_text(path)?));
            splices.replace(node.range(), text);
        }
    }
    let tpm_source = child(domain, "devices")
        .and_then(|devices| child(devices, "tpm"))
        .and_then(|tpm| child(tpm, "backend"))
        .and_then(|backend| child(backend, "source"));
    if let (Some(source), Some(path)) = (tpm_source, &changes.tpm_state) {
        splices.set_attribute(source, "path", path_text(path)?);
    }
    Ok(())
}

fn disks(splices: &mut Splices, domain: Node, changes: &Changes) -> Result<()> {
    let Some(devices) = child(domain, "devices") else {
        return Ok(());
    };
    for disk in children(devices, "disk") {
        let Some(target) = child(disk, "target").and_then(|target| target.attribute("dev")) else {
            continue;
        };
        if changes.drop_disks.contains(target) {
            splices.remove(disk);
        } else if changes.eject.contains(target) {
            children_named(disk, "source").into_iter().for_each(|source| splices.remove(source));
        } else if let Some(new) = changes.disks.get(target) {
            flatten(splices, disk);
            if changes.unmoved.contains(target) || !move_disk(splices, disk, new)? {
                flatten_source(splices, disk);
            }
            let is_unmoved = changes.unmoved.contains(target);
            set_format(splices, disk, &new.format, is_unmoved);
        }
    }
    Ok(())
}

/// Removes layers and settings of the old image from a disk, because the new one is flat and plain. An empty
/// `<backingStore>`, which states that there is no backing file, is kept.
fn flatten(splices: &mut Splices, disk: Node) {
    for gone in ["backingStore", "mirror", "encryption", "auth"] {
        let says_that_it_is_flat = |node: &Node| gone == "backingStore" && child(*node, "source").is_none();
        for node in children_named(disk, gone).into_iter().filter(|node| !says_that_it_is_flat(node)) {
            splices.remove(node);
        }
    }
}

/// The same for the children of a source that is kept.
fn flatten_source(splices: &mut Splices, disk: Node) {
    let Some(source) = child(disk, "source") else { return };
    let gone = |node: &Node| matches!(node.tag_name().name(), "encryption" | "dataStore" | "slices");
    let (parts, all): (Vec<Node>, usize) =
        (source.children().filter(gone).collect(), source.children().filter(Node::is_element).count());
    match parts.len() == all {
        // Without children, the element is written as libvirt writes it.
        true if all > 0 => splices.make_empty(source),
        _ => parts.into_iter().for_each(|part| splices.remove(part)),
    }
}

/// Sets the new image of a disk. Returns false if its location does not change, in which case every byte is kept.
fn move_disk(splices: &mut Splices, disk: Node, new: &NewDisk) -> Result<bool> {
    let (kind, attribute) = match new.kind {
        NewDiskKind::File => ("file", "file"),
        NewDiskKind::Block => ("block", "dev"),
    };
    let path = path_text(&new.path)?;
    let old_kind = disk.attribute("type").unwrap_or("file");
    let old = child(disk, "source");
    if old_kind == kind && old.and_then(|source| source.attribute(attribute)) == Some(path) {
        return Ok(false);
    }
    splices.set_attribute(disk, "type", kind);
    let policy = old.and_then(|source| source.attribute_node("startupPolicy"));
    let policy = policy.map_or(String::new(), |policy| format!(" {}", &splices.xml[policy.range()]));
    let text = format!("<source {attribute}='{}'{policy}/>", escape(path));
    match (old, child(disk, "driver")) {
        // The access rights of the old image do not apply to the new one.
        (Some(old), _) => splices.replace(old.range(), text),
        (None, Some(driver)) => splices.insert_after(driver, &text),
        (None, None) => splices.insert_first(disk, &text),
    }
    Ok(true)
}

fn set_format(splices: &mut Splices, disk: Node, format: &str, is_unmoved: bool) {
    // libvirt treats an image without a format as raw.
    let is_understood = is_unmoved && format == "raw";
    let Some(driver) = child(disk, "driver") else {
        if !is_understood {
            splices.insert_first(disk, &format!("<driver name='qemu' type='{}'/>", escape(format)));
        }
        return;
    };
    if driver.attribute("type") != Some(format) && !(driver.attribute("type").is_none() && is_understood) {
        splices.set_attribute(driver, "type", format);
    }
    if format != "qcow2" {
        // libvirt accepts this attribute for qcow2 only.
        if let Some(attribute) = driver.attribute_node("discard_no_unref") {
            splices.remove_attribute(attribute);
        }
        for node in children_named(driver, "metadata_cache") {
            splices.remove(node);
        }
    }
}
