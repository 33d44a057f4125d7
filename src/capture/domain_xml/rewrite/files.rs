//! Changes the paths of files in a definition that have moved.

use roxmltree::Node;

use super::changes::Changes;
use super::splices::{Splices, children_named, path_text};
use crate::capture::domain_xml::definition::{Result, child};
use crate::capture::domain_xml::outside_files::{Mention, MentionPlace, OutsideKind, escaped, mentions};
use crate::capture::domain_xml::xml::escape;

/// Replaces the paths.
pub(super) fn move_files(splices: &mut Splices, domain: Node, changes: &Changes) -> Result<()> {
    for Mention { kind, path, place } in mentions(domain) {
        let Some(new) = changes.files.get(&path) else { continue };
        let new = path_text(new)?;
        match place {
            MentionPlace::Text(node) => {
                let text = node.first_child().map_or(node.range(), |text| text.range());
                splices.replace(text, escape(new));
            }
            MentionPlace::Attribute(node, name) => splices.set_attribute(node, name, new),
            MentionPlace::Argument(node, "") => splices.set_attribute(node, "value", new),
            MentionPlace::Argument(node, key) => {
                let value = node.attribute("value").unwrap_or_default();
                let (old, new) = (escaped(path_text(&path)?), escaped(new));
                splices.set_attribute(
                    node,
                    "value",
                    &value.replacen(&format!("{key}{old}"), &format!("{key}{new}"), 1),
                );
            }
        }
        if kind == OutsideKind::Loader && matches!(place, MentionPlace::Text(_)) {
            // With the attribute, libvirt would select firmware itself and refuse another file.
            if let Some(os) = child(domain, "os").filter(|os| os.has_attribute("firmware")) {
                splices.drop_attribute(os, "firmware");
                children_named(os, "firmware").into_iter().for_each(|node| splices.remove(node));
            }
        }
    }
    Ok(())
}
