//! Changes the names of networks and bridges to those on this host.

use roxmltree::Node;

use super::changes::Changes;
use super::splices::Splices;
use crate::capture::domain_xml::definition::{child, children};

/// Renames the networks, bridges and devices that interfaces are connected to.
pub(super) fn rename(splices: &mut Splices, domain: Node, changes: &Changes) {
    let interfaces = child(domain, "devices").into_iter().flat_map(|devices| children(devices, "interface"));
    for source in interfaces.filter_map(|interface| child(interface, "source")) {
        let is_of_network = source.has_attribute("network");
        for (name, names) in [("network", &changes.networks), ("bridge", &changes.bridges), ("dev", &changes.bridges)] {
            // If the source is a network, its bridge or device is not a setting but was added by libvirt.
            let is_setting = name == "network" || !is_of_network;
            if let Some(new) = source.attribute(name).filter(|_| is_setting).and_then(|old| names.get(old)) {
                splices.set_attribute(source, name, new);
            }
        }
    }
}
