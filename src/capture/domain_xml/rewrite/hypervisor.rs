//! Changes the emulator or the machine type, because this host may lack those of the old host.

use roxmltree::Node;

use super::changes::Changes;
use super::splices::{Splices, element, path_text};
use crate::capture::domain_xml::definition::{Result, child};

/// Sets the requested emulator and machine type.
pub(super) fn replace(splices: &mut Splices, domain: Node, changes: &Changes) -> Result<()> {
    if let (Some(devices), Some(path)) = (child(domain, "devices"), &changes.emulator) {
        let new = element("emulator", path_text(path)?);
        match child(devices, "emulator") {
            Some(old) => splices.replace(old.range(), new),
            None => splices.insert_first(devices, &new),
        }
    }
    let kind = child(domain, "os").and_then(|os| child(os, "type"));
    if let (Some(kind), Some(name)) = (kind, &changes.machine_type) {
        splices.set_attribute(kind, "machine", name);
    }
    Ok(())
}
