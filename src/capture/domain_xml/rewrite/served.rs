//! Rewrites the definition of a machine whose disks are overlays of a served point, for a live restore.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::splices::{Splices, children_named, path_text};
use crate::capture::domain_xml::definition::{Definition, Result, child, children, parse_document};
use crate::capture::domain_xml::source::DiskSource;
use crate::capture::domain_xml::xml::escape;

/// How long QEMU tries to reconnect to a server before a request of the guest fails and the machine is paused.
const RECONNECT_SECONDS: u32 = 60;

/// The settings of a disk that are changed while the disk is on a served point.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskSettings {
    /// The policy for I/O errors: of writes, and of reads unless the other one is set.
    pub(crate) error_policy: Option<String>,
    /// The policy for errors of reads.
    pub(crate) rerror_policy: Option<String>,
    /// Whether the definition states that the image has no backing file.
    pub(crate) says_flat: bool,
}

/// Makes the point served on a socket the backing file of these disks, and makes I/O errors pause the machine instead
/// of being reported to the guest. Also returns the settings that were replaced.
pub(crate) fn on_served_point(
    xml: &str,
    socket: &Path,
    disks: &BTreeSet<String>,
) -> Result<(String, BTreeMap<String, DiskSettings>)> {
    let document = parse_document(xml)?;
    let mut splices = Splices::new(xml);
    let mut before = BTreeMap::new();
    let socket = escape(path_text(socket)?);
    for (name, disk) in disks_named(document.root_element(), |name| disks.contains(name)) {
        let Some(driver) = child(disk, "driver") else { continue };
        let policy = |attribute| driver.attribute(attribute).map(str::to_owned);
        let (error_policy, rerror_policy) = (policy("error_policy"), policy("rerror_policy"));
        let says_flat = child(disk, "backingStore").is_some();
        before.insert(name.to_owned(), DiskSettings { error_policy, rerror_policy, says_flat });
        splices.set_attribute(driver, "error_policy", "stop");
        splices.set_attribute(driver, "rerror_policy", "stop");
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

/// Restores the previous settings of disks. Their backing files are not changed.
pub(crate) fn with_settings(xml: &str, settings: &BTreeMap<String, DiskSettings>) -> Result<String> {
    let document = parse_document(xml)?;
    let mut splices = Splices::new(xml);
    for (name, disk) in disks_named(document.root_element(), |name| settings.contains_key(name)) {
        let (Some(driver), Some(before)) = (child(disk, "driver"), settings.get(name)) else { continue };
        let flat = child(disk, "backingStore").filter(|below| child(*below, "source").is_none());
        flat.filter(|_| !before.says_flat).into_iter().for_each(|below| splices.remove(below));
        for (attribute, policy) in [("error_policy", &before.error_policy), ("rerror_policy", &before.rerror_policy)] {
            // Another value was set by another program meanwhile.
            if driver.attribute(attribute) != Some("stop") {
                continue;
            }
            match policy {
                Some(policy) => splices.set_attribute(driver, attribute, policy),
                None => splices.drop_attribute(driver, attribute),
            }
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
        <disk type='file' device='disk'>\n      <driver name='qemu' type='qcow2'/>\n      \
        <source file='/i/b.qcow2'/>\n      <target dev='vdb' bus='virtio'/>\n    </disk>\n  </devices>\n</domain>";

    fn served() -> (String, BTreeMap<String, DiskSettings>) {
        on_served_point(XML, Path::new("/run/kvmb-nbd/x/nbd"), &BTreeSet::from(["vda".into(), "vdb".into()])).unwrap()
    }

    #[test]
    fn served_point_backs_each_disk_and_io_errors_pause_the_machine() {
        let (xml, before) = served();
        let definition = Definition::parse(&xml).unwrap();
        let below: Vec<(&str, &PathBuf)> = sockets_below(&definition).collect();
        let socket = PathBuf::from("/run/kvmb-nbd/x/nbd");
        assert_eq!(below, [("vda", &socket), ("vdb", &socket)]);
        let stops = xml.matches("error_policy='stop'").count();
        assert_eq!(stops, 4, "both policies of both disks: {xml}");
        assert_eq!(xml.matches("<reconnect delay='60'/>").count(), 2);
        assert_eq!(
            before["vda"],
            DiskSettings { error_policy: Some("enospace".into()), rerror_policy: None, says_flat: true }
        );
        assert!(definition.disks.iter().all(|disk| disk.backing_is_complete));
    }

    #[test]
    fn original_disk_settings_are_restored_unless_changed_since() {
        let (xml, before) = served();
        let back = with_settings(&xml, &before).unwrap();
        assert!(back.contains("type='qcow2' error_policy='enospace'/>"), "{back}");
        assert!(!back.contains("rerror_policy") && back.matches("error_policy").count() == 1, "{back}");
        let below = "<backingStore type='network'>";
        let flat = |xml: &str| xml.matches("<backingStore/>").count();
        assert_eq!((back.matches(below).count(), flat(&back)), (2, 2), "{back}");
        // After all data is copied, libvirt states for both disks that they are flat, which the second one did not
        // before.
        let (start, end) = (xml.find(below).unwrap(), "</backingStore>".len());
        let copied = xml.replace(&xml[start..xml.find("</backingStore>").unwrap() + end], "<backingStore/>");
        let copied = copied.replace(
            &copied[copied.find(below).unwrap()..copied.find("</backingStore>").unwrap() + end],
            "<backingStore/>",
        );
        assert_eq!((flat(&copied), flat(&with_settings(&copied, &before).unwrap())), (2, 1));
        let changed = xml.replacen("rerror_policy='stop'", "rerror_policy='ignore'", 1);
        assert!(with_settings(&changed, &before).unwrap().contains("rerror_policy='ignore'"));
    }
}
