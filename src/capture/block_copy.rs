//! Moves a running machine from an overlay to another image (`virsh blockcopy`).

use std::path::{Path, PathBuf};

use crate::capture::domain_xml::definition::{child, children, parse_xml};
use crate::capture::domain_xml::xml::escape;
use crate::capture::error::Result;
use crate::capture::ffi;
use crate::capture::machine::{Machine, Which};

impl Machine {
    /// Starts copying what the top image of a disk contains to another image, which must have the content of everything
    /// below the top image. The copy keeps up with the guest's writes until [`Machine::pivot`].
    pub(crate) fn begin_copy(&self, disk: &str, image: &Path, format: &str) -> Result<()> {
        let action = || format!("copy what {} has written to its disk {disk}", self.name());
        let path = escape(&image.to_string_lossy());
        let xml = format!("<disk type='file'><driver type='{format}'/><source file='{path}'/></disk>");
        let target = disk.to_owned();
        self.call(action, move |domain| ffi::block_copy_top(domain, &target, &xml))
    }

    /// The file that a disk of the running machine is being copied to.
    pub(crate) fn copy_target(&self, disk: &str) -> Result<Option<PathBuf>> {
        let xml = self.definition_xml(Which::Live, false)?;
        let document = parse_xml(&xml)?;
        let devices = child(document.root_element(), "devices");
        let mut disks = devices.into_iter().flat_map(|devices| children(devices, "disk"));
        let found =
            disks.find(|node| child(*node, "target").is_some_and(|target| target.attribute("dev") == Some(disk)));
        let source = found.and_then(|node| child(child(node, "mirror")?, "source"));
        Ok(source.and_then(|source| source.attribute("file")).map(PathBuf::from))
    }

    /// Ends a complete copy: from now on the disk is the other image, which QEMU has made durable.
    pub(crate) fn pivot(&self, disk: &str) -> Result<()> {
        let (action, target) = (|| format!("move {} to the copy of its disk {disk}", self.name()), disk.to_owned());
        self.call(action, move |domain| ffi::block_pivot(domain, &target))
    }
}
