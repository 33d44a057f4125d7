//! Rewrites the definition of a machine whose disks are overlays of a served point, for a live restore.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::splices::{Splices, children_named, path_text};
use crate::capture::domain_xml::definition::{Definition, Result, child, children, parse_document};
use crate::capture::domain_xml::source::DiskSource;
use crate::capture::domain_xml::xml::escape;

/// How long QEMU tries to reconnect to a server before a request of the guest fails and the machine is paused.
const RECONNECT_SECONDS: u32 = 60;

/// What the definition says of a disk while the disk is not on a served point.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskSettings {
    /// The kind of its source: `file` or `volume`.
    pub(crate) source_kind: Option<String>,
    /// The element of its source.
    pub(crate) source: String,
    /// The image format.
    pub(crate) format: Option<String>,
    /// The policy for I/O errors: of writes, and of reads unless the other one is set.
    pub(crate) error_policy: Option<String>,
    /// The policy for errors of reads.
    pub(crate) rerror_policy: Option<String>,
    /// Whether the definition states that the image has no backing file.
    pub(crate) says_flat: bool,
}

/// Puts disks on these overlays of the point that is served on a socket, and makes I/O errors pause the machine instead
/// of being reported to the guest. Also returns the settings that were replaced.
pub(crate) fn on_served_point(
    xml: &str,
    socket: &Path,
    overlays: &BTreeMap<String, PathBuf>,
) -> Result<(String, BTreeMap<String, DiskSettings>)> {
    let document = parse_document(xml)?;
    let mut splices = Splices::new(xml);
    let mut before = BTreeMap::new();
    let socket = escape(path_text(socket)?);
    for (name, disk) in disks_named(document.root_element(), |name| overlays.contains_key(name)) {
        let (Some(driver), Some(source)) = (child(disk, "driver"), child(disk, "source")) else { continue };
        let setting = |attribute| driver.attribute(attribute).map(str::to_owned);
        let settings = DiskSettings {
            source_kind: disk.attribute("type").map(str::to_owned),
            source: xml[source.range()].to_owned(),
            format: setting("type"),
            error_policy: setting("error_policy"),
            rerror_policy: setting("rerror_policy"),
            says_flat: child(disk, "backingStore").is_some(),
        };
        before.insert(name.to_owned(), settings);
        splices.set_attribute(disk, "type", "file");
        splices.set_attribute(driver, "type", "qcow2");
        splices.set_attribute(driver, "error_policy", "stop");
        splices.set_attribute(driver, "rerror_policy", "stop");
        let overlay = escape(path_text(&overlays[name])?);
        splices.replace(source.range(), format!("<source file='{overlay}'/>"));
        children_named(disk, "backingStore").into_iter().for_each(|old| splices.remove(old));
        splices.insert_after(
            driver,
            &format!(
                "<backingStore type='network'><format type='raw'/><source protocol='nbd' name='{}'>\
                 <host transport='unix' socket='{socket}'/><reconnect delay='{RECONNECT_SECONDS}'/></source>\
                 <backingStore/></backingStore>",
                escape(name)
            ),
        );
    }
    Ok((splices.apply(), before))
}

/// Restores the previous settings of disks, which are complete now.
pub(crate) fn with_settings(xml: &str, settings: &BTreeMap<String, DiskSettings>) -> Result<String> {
    let document = parse_document(xml)?;
    let mut splices = Splices::new(xml);
    for (name, disk) in disks_named(document.root_element(), |name| settings.contains_key(name)) {
        let (Some(driver), Some(source)) = (child(disk, "driver"), child(disk, "source")) else { continue };
        let before = &settings[name];
        let mut set = |node, attribute, value: &Option<String>| match value {
            Some(value) => splices.set_attribute(node, attribute, value),
            None => splices.drop_attribute(node, attribute),
        };
        set(disk, "type", &before.source_kind);
        set(driver, "type", &before.format);
        for (attribute, policy) in [("error_policy", &before.error_policy), ("rerror_policy", &before.rerror_policy)] {
            // Another value was set by another program meanwhile.
            if driver.attribute(attribute) == Some("stop") {
                set(driver, attribute, policy);
            }
        }
        splices.replace(source.range(), before.source.clone());
        children_named(disk, "backingStore").into_iter().for_each(|below| splices.remove(below));
        if before.says_flat {
            splices.insert_after(source, "<backingStore/>");
        }
    }
    Ok(splices.apply())
}

fn disks_named<'a, 'i: 'a>(
    domain: Node<'a, 'i>,
    is_wanted: impl Fn(&str) -> bool,
) -> impl Iterator<Item = (&'a str, Node<'a, 'i>)> {
    let disks = child(domain, "devices").into_iter().flat_map(|devices| children(devices, "disk"));
    disks.filter_map(move |disk| {
        let name = child(disk, "target")?.attribute("dev")?;
        is_wanted(name).then_some((name, disk))
    })
}

/// Returns the disks of a definition that need an NBD server on a Unix socket, each with the socket.
pub(crate) fn sockets_below(definition: &Definition) -> impl Iterator<Item = (&str, &PathBuf)> {
    definition.disks.iter().flat_map(|disk| {
        let sources = disk.backing.iter().map(|layer| &layer.source).chain([&disk.source]);
        let sockets = sources.filter_map(|source| match source {
            DiskSource::Network { protocol, hosts, .. } if protocol == "nbd" => {
                hosts.iter().find_map(|host| host.socket.as_ref())
            }
            _ => None,
        });
        sockets.map(|socket| (disk.target.as_str(), socket))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<domain type='qemu'>\n  <name>vm</name>\n  <devices>\n    \
        <disk type='file' device='disk'>\n      \
        <driver name='qemu' type='qcow2' error_policy='enospace'/>\n      <source file='/i/a.qcow2'/>\n      \
        <backingStore/>\n      <target dev='vda' bus='virtio'/>\n    </disk>\n    \
        <disk type='volume' device='disk'>\n      <driver name='qemu' type='raw'/>\n      \
        <source pool='p' volume='b'><seclabel relabel='no'/></source>\n      \
        <target dev='vdb' bus='virtio'/>\n    </disk>\n  \
        </devices>\n</domain>";

    fn served() -> (String, BTreeMap<String, DiskSettings>) {
        let overlays = ["vda", "vdb"].map(|disk| (disk.to_owned(), PathBuf::from(format!("/i/.{disk}&"))));
        on_served_point(XML, Path::new("/run/kvmb-nbd/x/nbd"), &BTreeMap::from(overlays)).unwrap()
    }

    #[test]
    fn disks_are_overlays_of_the_served_point_and_io_errors_pause_the_machine() {
        let (xml, before) = served();
        let definition = Definition::parse(&xml).unwrap();
        let below: Vec<(&str, &PathBuf)> = sockets_below(&definition).collect();
        let socket = PathBuf::from("/run/kvmb-nbd/x/nbd");
        assert_eq!(below, [("vda", &socket), ("vdb", &socket)]);
        let stops = xml.matches("error_policy='stop'").count();
        assert_eq!(stops, 4, "both policies of both disks: {xml}");
        assert_eq!(xml.matches("<reconnect delay='60'/>").count(), 2);
        assert!(xml.contains("<source file='/i/.vda&amp;'/>") && xml.matches("type='qcow2'").count() == 2, "{xml}");
        let settings = |source: &str, kind: &str, format: &str, policy: Option<&str>, says_flat| DiskSettings {
            source_kind: Some(kind.to_owned()),
            source: source.to_owned(),
            format: Some(format.to_owned()),
            error_policy: policy.map(str::to_owned),
            rerror_policy: None,
            says_flat,
        };
        assert_eq!(before["vda"], settings("<source file='/i/a.qcow2'/>", "file", "qcow2", Some("enospace"), true));
        let volume = "<source pool='p' volume='b'><seclabel relabel='no'/></source>";
        assert_eq!(before["vdb"], settings(volume, "volume", "raw", None, false));
        assert!(definition.disks.iter().all(|disk| disk.backing_is_complete));
    }

    #[test]
    fn original_disk_settings_are_restored_unless_changed_since() {
        let (xml, before) = served();
        let plain = |xml: &str| xml.split_whitespace().collect::<Vec<_>>().join(" ").replace("> <", "><");
        assert_eq!(plain(&with_settings(&xml, &before).unwrap()), plain(XML));
        // What libvirt makes of a disk when its machine moves to another image.
        let (start, end) = (xml.find("<backingStore type=").unwrap(), "</backingStore>");
        let moved =
            xml.replace(&xml[start..xml.find(end).unwrap() + end.len()], "").replace("/i/.vda&amp;", "/i/c.raw");
        let moved = moved.replacen("type='qcow2'", "type='raw'", 1);
        assert_eq!(plain(&with_settings(&moved, &before).unwrap()), plain(XML));
        let changed = xml.replacen("rerror_policy='stop'", "rerror_policy='ignore'", 1);
        assert!(with_settings(&changed, &before).unwrap().contains("rerror_policy='ignore'"));
    }
}
