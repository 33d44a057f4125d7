//! Resources that a copy of a machine must not share with the original, which may run at the same time.
//!
//! Resources that can be duplicated get new values for the copy: ports, sockets, log files, tap devices, the vsock
//! address. Resources that exist only once (disks that were not restored, folders of the host, passed-through devices)
//! are removed. Each change is noted. Media of CD drives stay, because the guest cannot write to them.

use std::path::Path;

use roxmltree::Node;

use super::changes::Changes;
use super::qemu_arguments;
use super::splices::{Splices, children_named};
use crate::capture::domain_xml::definition::{child, children};

/// The maximum length of a Unix socket's path.
const LONGEST_SOCKET_PATH: usize = 107;

/// Makes a machine share nothing with the original. Returns the changes, one sentence each.
pub(super) fn own_resources(splices: &mut Splices, domain: Node, changes: &Changes) -> Vec<String> {
    let mut copy = Copy { splices, changes, notes: Vec::new() };
    for device in child(domain, "devices").into_iter().flat_map(|devices| devices.children()).filter(Node::is_element) {
        copy.device(device);
    }
    for line in children(domain, "commandline") {
        copy.notes.extend(qemu_arguments::take_out(copy.splices, line));
    }
    copy.notes
}

struct Copy<'c, 'x> {
    splices: &'c mut Splices<'x>,
    changes: &'c Changes,
    notes: Vec<String>,
}

impl Copy<'_, '_> {
    fn device(&mut self, device: Node) {
        match device.tag_name().name() {
            "disk" => self.disk(device),
            "filesystem" => {
                let folder = attribute_of_child(device, "source", &["dir", "file", "dev", "socket", "name"]);
                self.take_out(device, &format!("the shared folder {folder}"));
            }
            "hostdev" => self.take_out(device, &format!("the passed-through device {}", host_device(device))),
            "interface" => self.interface(device),
            "serial" | "console" | "parallel" | "channel" => self.character_device(device),
            "graphics" => self.graphics(device),
            "vsock" => self.vsock(device),
            "tpm" => self.tpm(device),
            "shmem" => {
                self.take_out(device, &format!("the shared memory {}", device.attribute("name").unwrap_or("-")));
            }
            "lease" => self.take_out(device, "the lease"),
            "redirdev" if device.attribute("type") != Some("spicevmc") => self.take_out(device, "the USB redirection"),
            "smartcard" if device.attribute("mode") == Some("host") || device.attribute("type") == Some("tcp") => {
                self.take_out(device, "the smart card");
            }
            "input" if matches!(device.attribute("type"), Some("passthrough" | "evdev")) => {
                let path = attribute_of_child(device, "source", &["evdev", "dev"]);
                self.take_out(device, &format!("the input device {path}"));
            }
            "memory" if child(device, "source").is_some_and(|source| child(source, "path").is_some()) => {
                let path = child(device, "source").and_then(|source| child(source, "path"));
                let path = path.and_then(|path| path.text()).unwrap_or("-").trim();
                self.take_out(device, &format!("the memory device {path}"));
            }
            "pstore" => {
                if let Some(path) = child(device, "path").filter(|path| path.text().is_some()) {
                    let own = self.own_path(path.text().unwrap_or_default().trim());
                    self.splices.replace(path.range(), super::splices::element("path", &own));
                }
            }
            _ => {}
        }
    }

    fn take_out(&mut self, device: Node, what: &str) {
        self.splices.remove(device);
        self.notes.push(format!("the copy does not have {what}, which belongs to the original"));
    }

    /// Handles a disk. One that the copy has no image for is removed.
    fn disk(&mut self, disk: Node) {
        let target = child(disk, "target").and_then(|target| target.attribute("dev")).unwrap_or_default();
        let is_settled = self.changes.disks.contains_key(target)
            || self.changes.drop_disks.contains(target)
            || self.changes.eject.contains(target);
        let source = attribute_of_child(disk, "source", &["file", "dev", "dir", "volume", "name", "path"]);
        match disk.attribute("device").unwrap_or("disk") {
            _ if is_settled => {}
            "cdrom" => {}
            "floppy" => {
                if let (Some(node), None) = (child(disk, "source"), child(disk, "readonly")) {
                    self.splices.remove(node);
                    self.notes
                        .push(format!("the floppy {target} of the copy is empty: {source} belongs to the original"));
                }
            }
            // A disk such as one of an NVMe controller has no name.
            _ if source == "-" => {
                self.take_out(disk, &format!("disk {target} ({})", disk.attribute("type").unwrap_or("file")));
            }
            _ => self.take_out(disk, &format!("disk {target} ({source})")),
        }
    }

    fn interface(&mut self, interface: Node) {
        let source = child(interface, "source");
        let kind = interface.attribute("type").unwrap_or_default();
        let is_passthrough = kind == "direct" && source.and_then(|s| s.attribute("mode")) == Some("passthrough");
        if is_passthrough || matches!(kind, "hostdev" | "vhostuser" | "vdpa" | "server" | "client" | "udp") {
            let mac = attribute_of_child(interface, "mac", &["address"]);
            return self.take_out(interface, &format!("the network interface {mac} ({kind})"));
        }
        if let Some(target) = child(interface, "target").filter(|target| target.has_attribute("dev")) {
            // A tap device that libvirt does not manage belongs to another program, so the whole element is removed.
            match target.attributes().all(|attribute| matches!(attribute.name(), "dev" | "managed")) {
                true => self.splices.remove(target),
                false => self.splices.drop_attribute(target, "dev"),
            }
        }
        for parameters in children(interface, "virtualport").filter_map(|port| child(port, "parameters")) {
            for id in ["interfaceid", "instanceid"] {
                self.splices.drop_attribute(parameters, id);
            }
        }
        if let Some(backend) = child(interface, "backend") {
            self.splices.drop_attribute(backend, "logFile");
        }
        for forward in children_named(interface, "portForward") {
            self.splices.remove(forward);
            self.notes.push("the copy does not forward ports of the host, which the original does".to_owned());
        }
    }

    fn character_device(&mut self, device: Node) {
        if let Some(log) = child(device, "log") {
            let own = self.own_path(log.attribute("file").unwrap_or_default());
            self.splices.set_attribute(log, "file", &own);
        }
        let source = child(device, "source");
        let path = source.and_then(|source| source.attribute("path")).unwrap_or_default();
        let is_server = source.and_then(|source| source.attribute("mode")) != Some("connect");
        let is_named_channel = child(device, "target").is_some_and(|target| target.has_attribute("name"));
        match (device.attribute("type").unwrap_or_default(), source) {
            // libvirt derives the path of such a socket from the machine.
            ("unix", Some(source)) if is_named_channel => self.splices.remove(source),
            ("unix", Some(source)) if is_server && self.own_path(path).len() <= LONGEST_SOCKET_PATH => {
                let own = self.own_path(path);
                self.splices.set_attribute(source, "path", &own);
                self.note_path(device, path, &own);
            }
            ("file", Some(source)) => {
                let own = self.own_path(path);
                self.splices.set_attribute(source, "path", &own);
                self.note_path(device, path, &own);
            }
            ("unix" | "tcp" | "udp" | "dev" | "pipe" | "nmdm", _) => {
                let was = device.attribute("type").unwrap_or_default();
                self.splices.set_attribute(device, "type", "pty");
                for name in ["source", "protocol"] {
                    children_named(device, name).into_iter().for_each(|node| self.splices.remove(node));
                }
                let name = device.tag_name().name();
                self.notes.push(format!("the {name} device of the copy is a pty: the original's is a {was} device"));
            }
            _ => {}
        }
    }

    fn note_path(&mut self, device: Node, path: &str, own: &str) {
        let name = device.tag_name().name();
        // A console often duplicates the serial device.
        let note = format!("the {name} device of the copy is at {own} (the original's: {path})");
        if name != "console" || !self.notes.iter().any(|known| known.contains(own)) {
            self.notes.push(note);
        }
    }

    fn graphics(&mut self, graphics: Node) {
        let listens = children_named(graphics, "listen");
        for holder in [graphics].iter().chain(&listens) {
            self.splices.drop_attribute(*holder, "socket");
        }
        match graphics.attribute("type") {
            Some("vnc" | "spice" | "rdp") => {}
            Some("dbus") => return self.splices.drop_attribute(graphics, "address"),
            _ => return,
        }
        let is_fixed = |name: &str| graphics.attribute(name).is_some_and(|port| port != "-1" && port != "0");
        let fixed: Vec<&str> = ["port", "tlsPort", "websocket"].into_iter().filter(|name| is_fixed(name)).collect();
        if graphics.attribute("autoport") != Some("yes") && (is_fixed("port") || is_fixed("tlsPort")) {
            self.splices.set_attribute(graphics, "autoport", "yes");
            let kind = graphics.attribute("type").unwrap_or_default().to_uppercase();
            self.notes.push(format!("the {kind} port of the copy is chosen at its start: the original's is fixed"));
        }
        fixed.into_iter().for_each(|name| self.splices.drop_attribute(graphics, name));
    }

    fn vsock(&mut self, vsock: Node) {
        if let Some(cid) = child(vsock, "cid") {
            self.splices.set_attribute(cid, "auto", "yes");
            self.splices.drop_attribute(cid, "address");
        }
    }

    fn tpm(&mut self, tpm: Node) {
        let Some(backend) = child(tpm, "backend") else { return };
        match backend.attribute("type") {
            Some("emulator") => {
                // Without a path, libvirt uses its own folder for the UUID.
                if let (Some(source), None) = (child(backend, "source"), &self.changes.tpm_state) {
                    self.splices.remove(source);
                }
            }
            kind => self.take_out(tpm, &format!("the TPM ({})", kind.unwrap_or("unknown"))),
        }
    }

    /// The copy's path in place of a path of the original.
    fn own_path(&self, path: &str) -> String {
        let (path, name) = (Path::new(path), self.changes.name.as_deref().unwrap_or("copy").replace('/', "_"));
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!("{name}-{file}")).to_string_lossy().into_owned()
    }
}

/// The first of these attributes that a child element has, or `-`.
fn attribute_of_child<'a>(node: Node<'a, '_>, child_name: &str, names: &[&str]) -> &'a str {
    let source = child(node, child_name);
    names.iter().find_map(|name| source.and_then(|source| source.attribute(*name))).unwrap_or("-")
}

/// The description of a host device for messages.
fn host_device(device: Node) -> String {
    let kind = device.attribute("type").unwrap_or("unknown");
    let Some(source) = child(device, "source") else { return kind.to_owned() };
    let part = |node: Node, name: &str| node.attribute(name).unwrap_or("?").trim_start_matches("0x").to_owned();
    let address = child(source, "address");
    match (kind, address) {
        ("pci", Some(at)) => {
            format!("PCI {}:{}:{}.{}", part(at, "domain"), part(at, "bus"), part(at, "slot"), part(at, "function"))
        }
        ("mdev", Some(at)) => format!("mdev {}", at.attribute("uuid").unwrap_or("?")),
        ("usb", _) => match (child(source, "vendor"), child(source, "product")) {
            (Some(vendor), Some(product)) => format!("USB {}:{}", part(vendor, "id"), part(product, "id")),
            _ => "USB".to_owned(),
        },
        _ => kind.to_owned(),
    }
}
