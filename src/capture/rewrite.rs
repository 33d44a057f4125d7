//! A machine's definition, changed for a restore.
//!
//! Pure text splicing at the places that the parser found: what is not to be changed keeps every byte - comments,
//! metadata of other tools, elements that this version does not know. What only a running machine has (aliases, console
//! devices, security labels, tap devices) is taken out on the way, so a live definition works as well as an inactive one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use roxmltree::{Attribute, Node};

use super::definition::{Definition, DefinitionError, Result, child, children, parse_document};
use super::job::escape;

/// What to change.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Another name.
    pub name: Option<String>,
    /// Another UUID; the generation id, which tells a guest that it is a copy, becomes a new one then.
    pub uuid: Option<String>,
    /// New MAC addresses for every interface (QEMU's prefix 52:54:00 and a random rest).
    pub new_macs: bool,
    /// Where restored disks are now, by target. What was below or beside the old image is gone: the new one is flat.
    pub disks: BTreeMap<String, NewDisk>,
    /// Disks to leave out of the definition, by target.
    pub drop_disks: BTreeSet<String>,
    /// Where the UEFI variables are now.
    pub nvram: Option<PathBuf>,
    /// Where the kernel of a direct boot is now.
    pub kernel: Option<PathBuf>,
    /// Where the initial RAM disk of a direct boot is now.
    pub initrd: Option<PathBuf>,
    /// Where the state of the emulated TPM is now; only used when the definition names a place (else libvirt derives it from
    /// the UUID).
    pub tpm_state: Option<PathBuf>,
}

/// A restored disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// The image or device.
    pub path: PathBuf,
    /// Which of the two.
    pub kind: NewDiskKind,
    /// The image's format: `qcow2` or `raw`.
    pub format: String,
}

/// What a restored disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewDiskKind {
    /// An image file.
    File,
    /// A block device.
    Block,
}

/// Applies the changes to a definition.
pub fn rewrite(xml: &str, changes: &Changes) -> Result<String> {
    // Everything that is wrong with the definition itself is said before it is touched.
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
    disks(&mut splices, domain, changes)?;
    live_only(&mut splices, domain, changes);
    let result = splices.apply();
    check(&result, changes)?;
    Ok(result)
}

/// Reads the result again: what was to be changed is what it says now.
fn check(xml: &str, changes: &Changes) -> Result<()> {
    let after = Definition::parse(xml)?;
    let wrong = |what| Err(DefinitionError::BadValue { what, value: "after the change".to_owned() });
    // Reading trims, and so does nobody else: a name with blanks around it is not a name that libvirt would keep.
    if changes.name.as_ref().is_some_and(|name| after.name != *name) {
        return wrong("the name");
    }
    for (target, new) in &changes.disks {
        if after.disk(target).and_then(|disk| disk.path()) != Some(&new.path) {
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
    // libvirt insists that the UUID in the SMBIOS data, if any, is the machine's.
    let entries = children(domain, "sysinfo")
        .flat_map(|sysinfo| children(sysinfo, "system"))
        .flat_map(|system| children(system, "entry"))
        .filter(|entry| entry.attribute("name") == Some("uuid"));
    for entry in entries {
        let text = format!("<entry name='uuid'>{}</entry>", escape(new));
        splices.replace(entry.range(), text);
    }
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
        } else if let Some(new) = changes.disks.get(target) {
            replace_disk(splices, disk, new)?;
        }
    }
    Ok(())
}

fn replace_disk(splices: &mut Splices, disk: Node, new: &NewDisk) -> Result<()> {
    let (kind, attribute) = match new.kind {
        NewDiskKind::File => ("file", "file"),
        NewDiskKind::Block => ("block", "dev"),
    };
    splices.set_attribute(disk, "type", kind);
    // Of the old image: what is below it, what it is encrypted with, who may open it, what is being copied from it.
    for gone in ["backingStore", "mirror", "encryption", "auth"] {
        for node in children_named(disk, gone) {
            splices.remove(node);
        }
    }
    let source = format!("<source {attribute}='{}'/>", escape(path_text(&new.path)?));
    let driver = child(disk, "driver");
    match child(disk, "source") {
        Some(old) => splices.replace(old.range(), source),
        None => match driver {
            Some(driver) => splices.insert_after(driver, &source),
            None => splices.insert_first(disk, &source),
        },
    }
    let Some(driver) = driver else {
        let text = format!("<driver name='qemu' type='{}'/>", escape(&new.format));
        splices.insert_first(disk, &text);
        return Ok(());
    };
    splices.set_attribute(driver, "type", &new.format);
    if new.format != "qcow2" {
        // libvirt accepts these for qcow2 only.
        if let Some(attribute) = driver.attribute_node("discard_no_unref") {
            splices.remove_attribute(attribute);
        }
        for node in children_named(driver, "metadata_cache") {
            splices.remove(node);
        }
    }
    Ok(())
}

/// What libvirt adds to the definition of a running machine.
fn live_only(splices: &mut Splices, domain: Node, changes: &Changes) {
    splices.drop_attribute(domain, "id");
    for label in children(domain, "seclabel") {
        security_label(splices, label);
    }
    let Some(devices) = child(domain, "devices") else {
        return;
    };
    for device in devices.children().filter(Node::is_element) {
        for alias in children(device, "alias") {
            // Only a user's own alias may be in a definition.
            let own = alias.attribute("name").is_some_and(|name| name.starts_with("ua-"));
            if !own {
                splices.remove(alias);
            }
        }
        match device.tag_name().name() {
            "disk" => indexes(splices, device),
            "interface" => interface(splices, device, changes),
            "console" | "serial" | "parallel" | "channel" => character_device(splices, device),
            "graphics" if device.attribute("autoport") == Some("yes") => {
                splices.drop_attribute(device, "port");
                splices.drop_attribute(device, "tlsPort");
            }
            _ => {}
        }
    }
}

/// A dynamic label is made at every start; only its base is a setting.
fn security_label(splices: &mut Splices, label: Node) {
    let dynamic = label.attribute("type") == Some("dynamic");
    let is_setting = child(label, "baselabel").is_some() || label.attribute("relabel") == Some("no");
    if dynamic && !is_setting {
        splices.remove(label);
        return;
    }
    for node in children_named(label, "imagelabel") {
        splices.remove(node);
    }
    if dynamic {
        for node in children_named(label, "label") {
            splices.remove(node);
        }
    }
}

/// The numbers of the block nodes, down the whole chain.
fn indexes(splices: &mut Splices, disk: Node) {
    for node in disk.descendants() {
        if matches!(node.tag_name().name(), "source" | "backingStore" | "mirror") {
            splices.drop_attribute(node, "index");
        }
    }
}

fn interface(splices: &mut Splices, interface: Node, changes: &Changes) {
    if let (true, Some(mac)) = (changes.new_macs, child(interface, "mac")) {
        splices.set_attribute(mac, "address", &random_mac());
    }
    if let Some(target) = child(interface, "target") {
        let automatic = target
            .attribute("dev")
            .is_some_and(|device| ["vnet", "macvtap", "macvlan"].iter().any(|prefix| device.starts_with(prefix)));
        if automatic {
            splices.drop_attribute(target, "dev");
            if target.attributes().count() == 1 {
                splices.remove(target);
            }
        }
    }
    if let (Some("network"), Some(source)) = (interface.attribute("type"), child(interface, "source")) {
        splices.drop_attribute(source, "portid");
        splices.drop_attribute(source, "bridge");
    }
}

fn character_device(splices: &mut Splices, device: Node) {
    splices.drop_attribute(device, "tty");
    let source = child(device, "source");
    if let (Some("pty"), Some(source)) = (device.attribute("type"), source) {
        splices.remove(source);
    }
    let Some(target) = child(device, "target") else {
        return;
    };
    splices.drop_attribute(target, "state");
    // The socket that libvirt makes for a channel is called like the channel.
    if let (Some(source), Some(name)) = (source, target.attribute("name")) {
        let automatic = source.attribute("mode") == Some("bind")
            && source.attribute("path").is_some_and(|path| Path::new(path).file_name() == Some(name.as_ref()));
        if automatic {
            splices.remove(source);
        }
    }
}

/// A locally administered address with the prefix that libvirt itself gives QEMU's interfaces.
fn random_mac() -> String {
    let [a, b, c]: [u8; 3] = rand::random();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(text))
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| DefinitionError::BadValue { what: "the path", value: path.to_string_lossy().into_owned() })
}

fn children_named<'a, 'i: 'a>(node: Node<'a, 'i>, name: &'static str) -> Vec<Node<'a, 'i>> {
    children(node, name).collect()
}

/// Replacements of parts of a text, collected in any order.
struct Splices<'x> {
    xml: &'x str,
    list: Vec<(Range<usize>, String)>,
}

impl<'x> Splices<'x> {
    fn new(xml: &'x str) -> Splices<'x> {
        Splices { xml, list: Vec::new() }
    }

    fn replace(&mut self, range: Range<usize>, text: String) {
        self.list.push((range, text));
    }

    /// Removes an element and the line break and indentation before it.
    fn remove(&mut self, node: Node) {
        let range = node.range();
        let blank = self.blank_before(range.start).len();
        self.replace(range.start - blank..range.end, String::new());
    }

    fn remove_attribute(&mut self, attribute: Attribute) {
        let range = attribute.range();
        let blank = self.blank_before(range.start).len();
        self.replace(range.start - blank..range.end, String::new());
    }

    fn drop_attribute(&mut self, node: Node, name: &str) {
        if let Some(attribute) = node.attribute_node(name) {
            self.remove_attribute(attribute);
        }
    }

    fn set_attribute(&mut self, node: Node, name: &str, value: &str) {
        let text = format!("{name}='{}'", escape(value));
        match node.attribute_node(name) {
            Some(attribute) => self.replace(attribute.range(), text),
            None => {
                let at = self.after_tag_name(node);
                self.replace(at..at, format!(" {text}"));
            }
        }
    }

    /// Inserts behind an element, on a line of its own if the element is.
    fn insert_after(&mut self, node: Node, text: &str) {
        let range = node.range();
        let blank = self.blank_before(range.start);
        self.replace(range.end..range.end, format!("{blank}{text}"));
    }

    /// Inserts behind an element's start tag.
    fn insert_first(&mut self, node: Node, text: &str) {
        let (Some(first), Some(first_element)) = (node.first_child(), node.first_element_child()) else {
            return;
        };
        let at = first.range().start;
        let blank = self.blank_before(first_element.range().start);
        self.replace(at..at, format!("{blank}{text}"));
    }

    /// Behind `<name`, where an attribute may begin.
    fn after_tag_name(&self, node: Node) -> usize {
        let start = node.range().start;
        let length = self.xml[start..]
            .find(|character: char| character.is_whitespace() || matches!(character, '/' | '>'))
            .unwrap_or(0);
        start + length
    }

    fn blank_before(&self, at: usize) -> &'x str {
        let before = &self.xml[..at];
        &before[before.trim_end_matches([' ', '\t', '\r', '\n']).len()..]
    }

    /// Applies all of them; one inside another is part of what goes.
    fn apply(mut self) -> String {
        // An insertion stands before what is replaced at the same place; of two replacements the wider one wins.
        self.list.sort_by_key(|(range, _)| (range.start, !range.is_empty(), std::cmp::Reverse(range.end)));
        let mut result = String::with_capacity(self.xml.len());
        let mut done = 0;
        for (range, text) in &self.list {
            if range.start < done {
                continue;
            }
            result += &self.xml[done..range.start];
            result += text;
            done = range.end;
        }
        result += &self.xml[done..];
        result
    }
}
