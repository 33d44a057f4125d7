//! Removes the elements that only the definition of a running machine has: device aliases, tap devices, ports and paths
//! that libvirt chose for this run, and the labels of this run.

use std::path::Path;

use roxmltree::Node;

use super::splices::{Splices, children_named};
use crate::capture::domain_xml::definition::{child, children};

/// Removes what libvirt adds to the definition of a running machine.
pub(super) fn take_out(splices: &mut Splices, domain: Node) {
    splices.drop_attribute(domain, "id");
    for label in children(domain, "seclabel") {
        security_label(splices, label);
    }
    let Some(devices) = child(domain, "devices") else {
        return;
    };
    for device in devices.children().filter(Node::is_element) {
        for alias in children(device, "alias") {
            // Only aliases set by the user are allowed in a definition.
            let own = alias.attribute("name").is_some_and(|name| name.starts_with("ua-"));
            if !own {
                splices.remove(alias);
            }
        }
        match device.tag_name().name() {
            "disk" => indexes(splices, device),
            "interface" => interface(splices, device),
            "console" | "serial" | "parallel" | "channel" => character_device(splices, device),
            "graphics" if device.attribute("autoport") == Some("yes") => {
                splices.drop_attribute(device, "port");
                splices.drop_attribute(device, "tlsPort");
            }
            _ => {}
        }
    }
}

/// Removes dynamic labels, which are generated at every start. Only their base label is a setting.
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

/// Removes the indexes of the block nodes in the whole chain.
fn indexes(splices: &mut Splices, disk: Node) {
    for node in disk.descendants() {
        if matches!(node.tag_name().name(), "source" | "backingStore" | "mirror") {
            splices.drop_attribute(node, "index");
        }
    }
}

fn interface(splices: &mut Splices, interface: Node) {
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
    // libvirt adds the bridge or device that the network resolved to in this run.
    if let Some(source) = child(interface, "source").filter(|source| source.has_attribute("network")) {
        if interface.attribute("type") != Some("network") {
            splices.set_attribute(interface, "type", "network");
        }
        for chosen in ["portid", "bridge", "dev", "mode"] {
            splices.drop_attribute(source, chosen);
        }
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
    // The socket that libvirt generates for a channel has the channel's name.
    if let (Some(source), Some(name)) = (source, target.attribute("name")) {
        let automatic = source.attribute("mode") == Some("bind")
            && source.attribute("path").is_some_and(|path| Path::new(path).file_name() == Some(name.as_ref()));
        if automatic {
            splices.remove(source);
        }
    }
}
